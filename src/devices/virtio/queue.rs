//! Serving a device's queues: one request at a time, so that whoever needs the device to stand
//! still (a pause, a reset) waits for one request at the most.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use virtio_bindings::virtio_config::{VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_NEEDS_RESET};
use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use virtio_queue::{Queue, QueueT};
use vmm_sys_util::eventfd::EventFd;

use super::awaited::Awaited;
use super::complaints::Complaints;
use super::{Device, NotServed, Turn, Violation};
use crate::memory::GuestMemory;
use crate::seccomp;

/// Requests that are served before the thread looks at its other devices.
const BURST: usize = 256;

/// Registers that vCPU threads read without waiting for a request to end.
#[derive(Default)]
pub struct Registers {
    pub status: AtomicU32,
    pub interrupt_status: AtomicU32,
    /// Counts changes of the configuration space.
    pub config_generation: AtomicU32,
    /// The one that the driver last read it in.
    pub config_seen: AtomicU32,
    config: Mutex<Vec<u8>>,
}

/// A device with its queues, shared by the transport's registers and the thread that serves it.
pub struct Backend<D> {
    pub registers: Registers,
    memory: GuestMemory,
    irq: EventFd,
    /// Signalled when a queue has work; KVM does it for the guest's notifications.
    pub doorbell: EventFd,
    active: Mutex<Active<D>>,
    /// Threads that wait for `active`. The serving thread lets them go first: a mutex is not fair,
    /// and they would wait for all requests in the queue otherwise.
    awaited: Awaited,
    complaints: Complaints,
}

pub struct Active<D> {
    pub device: D,
    pub queues: Vec<Queue>,
    paused: bool,
    /// Why the device stands still by itself.
    stuck: Option<String>,
    ending: bool,
}

impl<D: Device> Backend<D> {
    pub fn new(mut device: D, memory: GuestMemory, irq: EventFd) -> std::io::Result<Self> {
        let awaited = Awaited::default();
        device.watch(awaited.clone());
        let queues = device
            .queue_sizes()
            .iter()
            .map(|&size| Queue::new(size).map_err(|e| std::io::Error::other(e.to_string())))
            .collect::<Result<_, _>>()?;
        let registers = Registers { config: Mutex::new(device.config()), ..Registers::default() };
        Ok(Self {
            registers,
            memory,
            irq,
            doorbell: EventFd::new(libc::EFD_NONBLOCK)?,
            active: Mutex::new(Active { device, queues, paused: true, stuck: None, ending: false }),
            awaited,
            complaints: Complaints::default(),
        })
    }

    /// Waits for the request in flight, if any, or for the part of it that is being done.
    pub fn lock(&self) -> MutexGuard<'_, Active<D>> {
        self.awaited.during(|| self.active.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Between two requests: whoever waits goes first.
    fn lock_to_serve(&self) -> MutexGuard<'_, Active<D>> {
        while self.awaited.is_true() {
            std::thread::yield_now();
        }
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After this no request is in flight and none begins.
    pub fn pause(&self) {
        self.lock().paused = true;
    }

    /// Goes on, with whatever came in while paused. A request that the device was stuck at is
    /// tried again.
    pub fn resume(&self) {
        let mut active = self.lock();
        active.paused = false;
        active.stuck = None;
        drop(active);
        self.ring();
    }

    #[cfg(test)]
    pub fn is_awaited(&self) -> bool {
        self.awaited.is_true()
    }

    /// Why the device cannot serve the request that is next.
    pub fn stuck(&self) -> Option<String> {
        self.lock().stuck.clone()
    }

    /// Bytes of the configuration space from `offset` on.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        let config = self.registers.config.lock().unwrap_or_else(PoisonError::into_inner);
        for (byte, value) in data.iter_mut().zip(config.iter().skip(offset)) {
            *byte = *value;
        }
        let generation = self.registers.config_generation.load(Ordering::SeqCst);
        self.registers.config_seen.store(generation, Ordering::SeqCst);
    }

    /// Takes over the device's configuration space, and whether it is another one.
    pub fn update_config(&self, device: &D) -> bool {
        let now = device.config();
        let mut config = self.registers.config.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = *config != now;
        if changed {
            *config = now;
            self.registers.config_generation.fetch_add(1, Ordering::SeqCst);
        }
        changed
    }

    /// Tells the driver that the configuration space is another one.
    pub fn publish_config(&self, device: &D) {
        if self.update_config(device) && self.running() {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Makes a restored driver look at the configuration space again, once it runs.
    pub fn owe_config(&self) {
        if self.running() {
            self.registers.config_generation.fetch_add(1, Ordering::SeqCst);
            self.registers.interrupt_status.fetch_or(VIRTIO_MMIO_INT_CONFIG, Ordering::SeqCst);
        }
    }

    /// Whether the driver has read the configuration space as it is.
    pub fn is_config_seen(&self) -> bool {
        let generation = self.registers.config_generation.load(Ordering::SeqCst);
        self.registers.config_seen.load(Ordering::SeqCst) == generation
    }

    pub fn ring(&self) {
        if let Err(e) = self.doorbell.write(1) {
            log::error!("cannot ring a virtio doorbell: {e}");
        }
    }

    pub fn interrupt(&self, reason: u32) {
        self.registers.interrupt_status.fetch_or(reason, Ordering::SeqCst);
        self.raise();
    }

    /// Raises the interrupt again if the driver has not acknowledged it: KVM injects an irqfd's
    /// interrupt from a kernel thread, so what a save read of its chips may be without it. One
    /// too many does no harm, the driver finds nothing to do.
    pub fn interrupt_again(&self) {
        if self.registers.interrupt_status.load(Ordering::SeqCst) != 0 {
            self.raise();
        }
    }

    fn raise(&self) {
        if let Err(e) = self.irq.write(1) {
            log::error!("cannot raise a virtio interrupt: {e}");
        }
    }

    /// Makes the driver reset the device.
    pub fn break_down(&self, device_type: u32, violation: &Violation) {
        self.complaints.warn(format_args!("virtio device of type {device_type} needs a reset: {violation}"));
        let before = self.registers.status.fetch_or(VIRTIO_CONFIG_S_NEEDS_RESET, Ordering::SeqCst);
        if before & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    /// Whether a driver uses the device.
    pub fn running(&self) -> bool {
        let status = self.registers.status.load(Ordering::SeqCst);
        status & VIRTIO_CONFIG_S_DRIVER_OK != 0 && status & VIRTIO_CONFIG_S_NEEDS_RESET == 0
    }

    /// Serves requests until there are none, the device must stand still, or others on this
    /// thread had to wait long enough. Returns false when the machine is going away.
    pub fn serve(&self) -> bool {
        for _ in 0..BURST {
            let mut active = self.lock_to_serve();
            if active.ending {
                return false;
            }
            if active.paused || active.stuck.is_some() || !self.running() {
                return true;
            }
            let Active { device, queues, .. } = &mut *active;
            match device.turn(queues, &self.memory) {
                Ok(Turn::Nothing) => return true,
                Ok(Turn::Served { notify: false }) => {}
                Ok(Turn::Served { notify: true }) => self.interrupt(VIRTIO_MMIO_INT_VRING),
                Ok(Turn::Finished { notify }) => {
                    if notify {
                        self.interrupt(VIRTIO_MMIO_INT_VRING);
                    }
                    return true;
                }
                Err(NotServed::Violation(violation)) => {
                    self.break_down(active.device.device_type(), &violation);
                }
                Err(NotServed::Stuck(why)) => active.stuck = Some(why),
                // It is the next one again, once those who wait have had their turn.
                Err(NotServed::Interrupted) => {}
            }
        }
        self.ring();
        true
    }
}

impl<D: Device> Active<D> {
    /// The machine is going away.
    pub fn end(&mut self) {
        self.ending = true;
    }

    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Forgets everything that the driver asked for.
    pub fn reset(&mut self) {
        self.queues.iter_mut().for_each(QueueT::reset);
        self.device.reset();
        self.stuck = None;
    }
}

/// A thread that serves one device, for devices that wait for the host's disks.
pub struct Worker {
    stop: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    pub fn spawn<D: Device>(name: String, backend: Arc<Backend<D>>) -> std::io::Result<Self> {
        // The worker waits in read(2), so it needs a doorbell that blocks: the same eventfd,
        // polled first.
        let served = backend.clone();
        Self::running(name, backend, move || {
            seccomp::confine(seccomp::Thread::Disk);
            while wait_readable(&served.doorbell) {
                // Emptied before serving, so that a ring during it is not lost.
                let _ = served.doorbell.read();
                if !served.serve() {
                    return;
                }
            }
        })
    }

    /// A thread of another kind, which must end when the device's doorbell rings after its end.
    pub fn running<D: Device>(
        name: String,
        backend: Arc<Backend<D>>,
        run: impl FnOnce() + Send + 'static,
    ) -> std::io::Result<Self> {
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        let stop = Box::new(move || {
            backend.lock().ending = true;
            backend.ring();
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        (self.stop)();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn wait_readable(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: `poll` is one valid pollfd that lives across the call.
        let ready = unsafe { libc::poll(&raw mut poll, 1, -1) };
        if ready >= 0 {
            return true;
        }
        let error = std::io::Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            log::error!("waiting for a virtio doorbell: {error}");
            return false;
        }
    }
}
