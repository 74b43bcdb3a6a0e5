//! One thread for devices that never wait: each is an eventfd and what to do when it is signalled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use event_manager::{EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps};
use vmm_sys_util::eventfd::EventFd;

use crate::seccomp;

/// What happens when `event` is signalled.
pub struct OnEvent {
    event: EventFd,
    act: Box<dyn FnMut() + Send>,
}

impl OnEvent {
    pub fn new(event: EventFd, act: impl FnMut() + Send + 'static) -> Self {
        Self { event, act: Box::new(act) }
    }
}

impl MutEventSubscriber for OnEvent {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(e) = ops.add(Events::new(&self.event, EventSet::IN)) {
            log::error!("cannot watch a device's event: {e}");
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        // Emptied before acting, so that a signal during it is not lost.
        let _ = self.event.read();
        (self.act)();
    }
}

pub struct EventLoop {
    ending: Arc<AtomicBool>,
    wake: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl EventLoop {
    pub fn start(subscribers: Vec<OnEvent>) -> std::io::Result<Self> {
        let other = |e: event_manager::Error| std::io::Error::other(e.to_string());
        let mut manager = EventManager::<OnEvent>::new().map_err(other)?;
        let wake = EventFd::new(libc::EFD_NONBLOCK)?;
        let ending = Arc::new(AtomicBool::new(false));
        manager.add_subscriber(OnEvent::new(wake.try_clone()?, || {}));
        for subscriber in subscribers {
            manager.add_subscriber(subscriber);
        }
        let end = ending.clone();
        let thread = std::thread::Builder::new().name("devices".into()).spawn(move || {
            seccomp::confine(seccomp::Thread::Devices);
            while !end.load(Ordering::SeqCst) {
                if let Err(e) = manager.run() {
                    log::error!("the device loop: {e}");
                    return;
                }
            }
        })?;
        Ok(Self { ending, wake, thread: Some(thread) })
    }
}

impl Drop for EventLoop {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::SeqCst);
        if self.wake.write(1).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
