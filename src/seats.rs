//! A bounded number of places for the clients of a server. Where all are taken, whoever has been
//! silent longest makes room for who comes: a client that says nothing keeps nobody out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Shows a client out; must not block.
type Leave = Box<dyn Fn() + Send>;

struct Taken {
    /// None: the server is at work for it, or it said something just now.
    silent_since: Option<Instant>,
    leave: Leave,
}

struct Room {
    max: usize,
    next: u64,
    taken: BTreeMap<u64, Taken>,
}

/// A clone is the same room.
#[derive(Clone)]
pub struct Seats {
    room: Arc<Mutex<Room>>,
    /// Who was heard of so recently keeps its seat.
    grace: Duration,
}

impl Seats {
    pub fn new(max: usize, grace: Duration) -> Self {
        let room = Room { max, next: 0, taken: BTreeMap::new() };
        Self { room: Arc::new(Mutex::new(room)), grace }
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// None: all are taken by clients that are being served.
    pub fn take(&self, leave: impl Fn() + Send + 'static) -> Option<Seat> {
        let mut room = self.room();
        if room.taken.len() >= room.max && !room.free_one(self.grace) {
            return None;
        }
        let number = room.next;
        room.next += 1;
        room.taken.insert(number, Taken { silent_since: Some(Instant::now()), leave: Box::new(leave) });
        Some(Seat { seats: self.clone(), number })
    }

    /// Shows out who has been silent longest, however short that is: something else has run out.
    pub fn free_one(&self) -> bool {
        self.room().free_one(Duration::ZERO)
    }
}

impl Room {
    fn free_one(&mut self, grace: Duration) -> bool {
        let silent =
            self.taken.iter().filter_map(|(number, taken)| Some((taken.silent_since?.elapsed(), *number)));
        let Some((_, number)) = silent.filter(|(time, _)| *time >= grace).max() else { return false };
        if let Some(taken) = self.taken.remove(&number) {
            (taken.leave)();
        }
        true
    }
}

/// A client's place, until it is dropped.
pub struct Seat {
    seats: Seats,
    number: u64,
}

impl Seat {
    /// The client said something, or took what it was sent.
    pub fn heard(&self) {
        self.set_silent_since(Some(Instant::now()));
    }

    /// The server is at work for this client until the guard goes.
    pub fn work(&self) -> Working<'_> {
        self.set_silent_since(None);
        Working(self)
    }

    fn set_silent_since(&self, since: Option<Instant>) {
        if let Some(taken) = self.seats.room().taken.get_mut(&self.number) {
            taken.silent_since = since;
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.room().taken.remove(&self.number);
    }
}

pub struct Working<'a>(&'a Seat);

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.0.set_silent_since(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn the_longest_silent_one_makes_room() {
        let seats = Seats::new(2, Duration::ZERO);
        let shown_out: [Arc<AtomicUsize>; 4] = Default::default();
        let take = |who: usize| {
            let count = shown_out[who].clone();
            seats.take(move || {
                count.fetch_add(1, Ordering::SeqCst);
            })
        };
        let told = || shown_out.each_ref().map(|count| count.load(Ordering::SeqCst));
        let first = take(0).unwrap();
        let _second = take(1).unwrap();
        drop(first.work());
        let third = take(2).unwrap();
        assert_eq!(told(), [0, 1, 0, 0], "the second one was silent longer");
        {
            let _both = (first.work(), third.work());
            assert!(take(3).is_none());
            assert!(!seats.free_one());
        }
        drop(third);
        let _fourth = take(3).unwrap();
        assert_eq!(told(), [0, 1, 0, 0], "a seat that was given back is free");
        assert!(seats.free_one());
        assert_eq!(told().iter().sum::<usize>(), 2);
    }

    #[test]
    fn who_was_heard_of_just_now_keeps_its_seat() {
        let seats = Seats::new(1, Duration::from_secs(3600));
        let seat = seats.take(|| panic!("it is shown out"));
        assert!(seats.take(|| ()).is_none());
        drop(seat);
        assert!(seats.take(|| ()).is_some());
    }
}
