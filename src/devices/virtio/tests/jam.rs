//! The network device with a back-end that takes nothing.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::net::{Card, TX, Wire, frame};

#[test]
fn a_back_end_that_takes_nothing_holds_the_guest_up_for_a_while_only() {
    let (mut card, _) = Card::ready(0);
    let (wire, told) = (Wire::new(), Arc::new(Mutex::new(None)));
    let tell = told.clone();
    card.link.plug(wire.plug(), Box::new(move |lost| *tell.lock().unwrap() = Some(lost.0)));
    card.follow(true);
    let second = Duration::from_secs(1);
    let mut now = Instant::now();
    let mut look = |card: &Card, moved, later| {
        now += later;
        card.driver.backend.lock().device.watch_jam(moved, now);
    };
    wire.ends().room = 1;
    (0..4).for_each(|n| card.send(&frame(60, n)));
    card.serve();
    // Who did not look for long knows no more than who looked once.
    for (moved, later) in [(false, second), (false, 60 * second), (true, second), (false, second)] {
        look(&card, moved, later);
        card.serve();
    }
    assert_eq!(card.used(TX).len(), 1, "they wait");
    look(&card, false, second);
    card.serve();
    assert_eq!((card.used(TX).len(), wire.ends().from_guest.len()), (3, 1), "they are lost");
    // It takes frames again.
    wire.ends().drains = 1;
    (4..6).for_each(|n| card.send(&frame(60, n)));
    card.serve();
    assert_eq!(wire.ends().from_guest[1..], [frame(60, 4)]);
    for _ in 0..5 {
        look(&card, false, second);
    }
    look(&card, true, second);
    for _ in 0..9 {
        look(&card, false, second);
    }
    assert!(card.link.info().up && told.lock().unwrap().is_none());
    look(&card, false, second);
    assert!(!card.link.info().up && wire.ends().gone);
    assert_eq!(told.lock().unwrap().as_deref(), Some("it took no frames for 10 s"));
}
