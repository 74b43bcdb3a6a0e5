//! Between the console device and whoever talks to the guest's agent: two bounded buffers, and
//! whether the guest has its end of the port open.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

/// Bytes of the guest that are kept for a listener. What one request adds to a full buffer is
/// bounded, too: the device takes no request while there is no room.
const KEPT: usize = 64 << 10;

/// How often the guest opening the port is told of for one freeze: a guest that opens it again and
/// again does not get anybody's attention for it without end.
const CONTACTS: u32 = 3;

/// Called when the guest opens the port while its file systems may be frozen.
pub type OnContact = Box<dyn Fn() + Send + Sync>;

/// The host's end of a port.
#[derive(Default)]
pub struct Port {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Default)]
struct Inner {
    open: bool,
    /// Somebody talks with the guest, or is about to.
    claimed: bool,
    /// How many wait to talk who go before others.
    first: u32,
    /// The guest is paused.
    still: bool,
    listening: bool,
    thaw_due: bool,
    /// How often contact may still be told of.
    contacts: u32,
    /// The next word of the guest is contact, too.
    poked: bool,
    to_guest: VecDeque<u8>,
    from_guest: Vec<u8>,
    doorbell: Option<EventFd>,
    on_contact: Option<OnContact>,
}

/// What came of waiting for the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    Bytes(Vec<u8>),
    /// Nothing in the time given.
    Nothing,
    /// The guest has closed the port.
    Closed,
}

impl Port {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `doorbell` makes the device look at its queues; `on_contact` must not block.
    pub fn connect(&self, doorbell: EventFd, on_contact: OnContact) {
        let mut inner = self.lock();
        inner.doorbell = Some(doorbell);
        inner.on_contact = Some(on_contact);
    }

    /// Waits until nobody else talks with the guest; who comes `first` goes before others. False: it
    /// took too long. To be given back with [`Self::release`].
    pub fn claim(&self, first: bool, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut inner = self.lock();
        inner.first += u32::from(first);
        loop {
            let mine = !inner.claimed && (first || inner.first == 0);
            let left = deadline.saturating_duration_since(Instant::now());
            if mine || left.is_zero() {
                inner.first -= u32::from(first);
                inner.claimed |= mine;
                self.changed.notify_all();
                return mine;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn release(&self) {
        self.lock().claimed = false;
        self.changed.notify_all();
    }

    /// Whether somebody waits who goes before others.
    pub fn is_wanted(&self) -> bool {
        self.lock().first > 0
    }

    /// Whether the guest is paused.
    pub fn is_still(&self) -> bool {
        self.lock().still
    }

    pub fn set_still(&self, still: bool) {
        self.lock().still = still;
    }

    /// Whether a process of the guest has the port open.
    pub fn is_open(&self) -> bool {
        self.lock().open
    }

    /// Whether the guest may have frozen file systems that nobody could thaw yet.
    pub fn is_thaw_due(&self) -> bool {
        self.lock().thaw_due
    }

    pub fn set_thaw_due(&self, due: bool) {
        let mut inner = self.lock();
        inner.thaw_due = due;
        inner.contacts = if due { CONTACTS } else { 0 };
    }

    /// Takes what the guest sends from now on; before, it was thrown away.
    pub fn listen(&self) {
        let mut inner = self.lock();
        inner.from_guest.clear();
        inner.to_guest.clear();
        inner.poked = false;
        inner.listening = true;
    }

    /// Forgets what was not taken, in both directions.
    pub fn hang_up(&self) {
        let mut inner = self.lock();
        inner.listening = false;
        inner.from_guest = Vec::new();
        inner.to_guest = VecDeque::new();
        inner.ring();
    }

    /// Puts bytes on their way to the guest. The caller bounds what it sends: it waits for answers.
    pub fn send(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        inner.to_guest.extend(bytes);
        inner.ring();
    }

    /// Sends bytes whose answer nobody waits for: that there is one is told of, as the guest opening
    /// the port is. Only while a thaw is due and nobody talks with the guest.
    pub fn poke(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.open && inner.thaw_due && !inner.listening {
            // What was sent before and not taken would only be answered twice.
            inner.to_guest.clear();
            inner.to_guest.extend(bytes);
            inner.poked = true;
            inner.contacts = CONTACTS;
            inner.ring();
        }
    }

    /// Waits for bytes of the guest.
    pub fn receive(&self, patience: Duration) -> Received {
        let deadline = Instant::now() + patience;
        let mut inner = self.lock();
        loop {
            if !inner.from_guest.is_empty() {
                let bytes = std::mem::take(&mut inner.from_guest);
                // There is room again.
                inner.ring();
                return Received::Bytes(bytes);
            }
            if !inner.open {
                return Received::Closed;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Received::Nothing;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub(super) fn set_open(&self, open: bool) {
        let mut inner = self.lock();
        let opened = open && !inner.open;
        inner.open = open;
        if !open {
            inner.to_guest.clear();
        }
        if opened && inner.contacts > 0 {
            inner.contacts -= 1;
            if let Some(on_contact) = &inner.on_contact {
                on_contact();
            }
        }
        self.changed.notify_all();
    }

    pub(super) fn has_for_guest(&self) -> bool {
        let inner = self.lock();
        inner.open && !inner.to_guest.is_empty()
    }

    pub(super) fn take_for_guest(&self, most: usize) -> Vec<u8> {
        let mut inner = self.lock();
        let count = inner.to_guest.len().min(most);
        inner.to_guest.drain(..count).collect()
    }

    pub(super) fn has_room(&self) -> bool {
        let inner = self.lock();
        !inner.listening || inner.from_guest.len() < KEPT
    }

    pub(super) fn put_from_guest(&self, bytes: &[u8]) {
        let mut inner = self.lock();
        if inner.listening {
            inner.from_guest.extend_from_slice(bytes);
            self.changed.notify_all();
        } else if std::mem::take(&mut inner.poked)
            && let Some(on_contact) = &inner.on_contact
        {
            on_contact();
        }
    }
}

impl Inner {
    fn ring(&self) {
        if let Some(doorbell) = &self.doorbell
            && let Err(e) = doorbell.write(1)
        {
            log::error!("cannot serve the agent's port: {e}");
        }
    }
}
