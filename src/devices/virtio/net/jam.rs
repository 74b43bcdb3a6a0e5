//! A back-end that takes nothing. A guest's driver takes a card whose frames do not go out for broken
//! (Linux after 5 s), so after a while what it sends is lost, as on a wire; after a longer one the
//! back-end is given up.

use std::time::{Duration, Instant};

/// How often it is looked at. What is counted are looks, not time: who did not get to look, on a host
/// that is busy or was stopped, knows nothing of others either.
pub(super) const LOOK: Duration = Duration::from_secs(1);
const DROPS_FROM: u32 = 2;
pub(super) const DEAD_FROM: u32 = 10;

#[derive(Default)]
pub(super) struct Jam {
    /// When it was looked at last, while it was blocked.
    looked: Option<Instant>,
    looks: u32,
}

impl Jam {
    /// `moved`: it has taken something since the last time.
    pub fn look(&mut self, blocked: bool, moved: bool, now: Instant) {
        if !blocked {
            *self = Self::default();
        } else if moved || self.looked.is_none() {
            *self = Self { looked: Some(now), looks: 0 };
        } else if self.looked.is_some_and(|looked| now.duration_since(looked) >= LOOK) {
            self.looked = Some(now);
            self.looks += 1;
        }
    }

    /// Whether what is sent is lost.
    pub fn drops(&self) -> bool {
        self.looks >= DROPS_FROM
    }

    pub fn is_dead(&self) -> bool {
        self.looks >= DEAD_FROM
    }
}
