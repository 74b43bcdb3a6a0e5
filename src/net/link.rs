//! The cable between a guest's network card and a back-end: plugged in and out while the guest runs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::backend::{Backend, Lost};
use super::packet::{Carries, look_at};

/// Called when the back-end is of no use any more; must not block.
pub type OnLost = Box<dyn Fn(Lost) + Send + Sync>;

/// What the card is to do about its back-end.
pub enum Change {
    Nothing,
    /// Use this one from now on. Whatever was before is gone.
    Plug(Box<dyn Backend>),
    Unplug,
}

/// One card's end of the cable, and the host's.
pub struct Link {
    inner: Mutex<Inner>,
    /// Signalled when there is a change.
    pub wake: EventFd,
    received: Counter,
    sent: Counter,
}

struct Inner {
    change: Change,
    on_lost: Option<OnLost>,
    up: bool,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

#[derive(Default)]
struct Counter {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    fn count(&self, bytes: usize) {
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn read(&self) -> (u64, u64) {
        (self.frames.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed))
    }
}

/// What is known of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    pub up: bool,
    /// What the guest was seen to use.
    pub addresses: Vec<IpAddr>,
    /// Frames and bytes that the guest got, and that it sent.
    pub received: (u64, u64),
    pub sent: (u64, u64),
}

impl Link {
    pub fn new() -> std::io::Result<Self> {
        let inner = Inner { change: Change::Nothing, on_lost: None, up: false, v4: None, v6: None };
        Ok(Self {
            inner: Mutex::new(inner),
            wake: EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?,
            received: Counter::default(),
            sent: Counter::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: Change) {
        self.lock().change = change;
        if let Err(e) = self.wake.write(1) {
            log::error!("cannot update the link state of a network card: {e}");
        }
    }

    /// The card uses `backend` from now on; `on_lost` is called if it fails.
    pub fn plug(&self, backend: Box<dyn Backend>, on_lost: OnLost) {
        self.lock().on_lost = Some(on_lost);
        self.change(Change::Plug(backend));
    }

    pub fn unplug(&self) {
        self.lock().on_lost = None;
        self.change(Change::Unplug);
    }

    pub fn info(&self) -> LinkInfo {
        let inner = self.lock();
        let v4 = inner.v4.map(IpAddr::V4);
        LinkInfo {
            up: inner.up,
            addresses: v4.into_iter().chain(inner.v6.map(IpAddr::V6)).collect(),
            received: self.received.read(),
            sent: self.sent.read(),
        }
    }

    /// For the card: what it is to do.
    pub fn take_change(&self) -> Change {
        std::mem::replace(&mut self.lock().change, Change::Nothing)
    }

    /// For the card: its back-end failed.
    pub fn lose(&self, lost: Lost) {
        // What is told must not need this lock.
        let on_lost = self.lock().on_lost.take();
        if let Some(on_lost) = on_lost {
            on_lost(lost);
        }
    }

    /// For the card: whether the guest can send and receive now.
    pub fn set_up(&self, up: bool) {
        self.lock().up = up;
    }

    pub fn count_received(&self, bytes: usize) {
        self.received.count(bytes);
    }

    /// A frame of the guest; every so often its address is looked for in one.
    pub fn count_sent(&self, frame: &[u8]) {
        /// A power of two.
        const LOOK_EVERY: u64 = 64;
        self.sent.count(frame.len());
        if self.sent.frames.load(Ordering::Relaxed) & (LOOK_EVERY - 1) >= LOOK_EVERY / 2 {
            return;
        }
        let from = match look_at(frame) {
            Carries::Arp { sender } => IpAddr::V4(sender),
            Carries::Tcp(segment) => segment.from.ip(),
            Carries::Udp { from, .. } => from.ip(),
            Carries::Other { from, .. } => from,
            Carries::Unknown => return,
        };
        match from {
            IpAddr::V4(address) if !address.is_unspecified() => self.lock().v4 = Some(address),
            IpAddr::V6(address) if !address.is_unspecified() && !address.is_unicast_link_local() => {
                self.lock().v6 = Some(address);
            }
            _ => {}
        }
    }
}
