//! The MMIO transport's registers (virtio 1.2, section 4.2.2), version 2.

use std::fmt::Display;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES,
    VIRTIO_MMIO_DEVICE_FEATURES_SEL, VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES,
    VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH,
    VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW,
    VIRTIO_MMIO_SHM_BASE_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID,
    VIRTIO_MMIO_VERSION,
};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueState, QueueT};

use super::{Backend, Device, Violation};
use crate::bus::BusDevice;
use crate::memory::GuestMemory;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"pitn");
/// The doorbell; KVM turns its writes into eventfd signals.
pub const DOORBELL: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;
/// Where the registers end and the device's configuration begins.
const CONFIG: u64 = VIRTIO_MMIO_CONFIG as u64;

/// State of a transport and its queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    pub device_type: u32,
    pub status: u32,
    pub interrupt_status: u32,
    pub choices: Choices,
    pub queues: Vec<SavedQueue>,
}

/// A queue: what the driver set up, and how far the device has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedQueue {
    pub max_size: u16,
    pub size: u16,
    pub ready: bool,
    pub event_idx: bool,
    pub next_avail: u16,
    pub next_used: u16,
    pub desc_table: u64,
    pub avail_ring: u64,
    pub used_ring: u64,
}

impl SavedQueue {
    fn of(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            max_size: state.max_size,
            size: state.size,
            ready: state.ready,
            event_idx: state.event_idx_enabled,
            next_avail: state.next_avail,
            next_used: state.next_used,
            desc_table: state.desc_table,
            avail_ring: state.avail_ring,
            used_ring: state.used_ring,
        }
    }

    fn to_queue(&self) -> Result<Queue, virtio_queue::Error> {
        Queue::try_from(QueueState {
            max_size: self.max_size,
            size: self.size,
            ready: self.ready,
            event_idx_enabled: self.event_idx,
            next_avail: self.next_avail,
            next_used: self.next_used,
            desc_table: self.desc_table,
            avail_ring: self.avail_ring,
            used_ring: self.used_ring,
        })
    }
}

/// Save and restore without knowing the kind of device.
pub trait SaveTransport: Send + Sync {
    /// No request may be in flight.
    fn save(&self) -> TransportState;
    fn restore(&self, state: &TransportState) -> Result<(), Violation>;
    /// To be called once before a restored guest first runs: raises what it has not acknowledged.
    fn interrupt_again(&self);
}

/// What the driver chose so far.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choices {
    device_features_sel: u32,
    driver_features_sel: u32,
    features: u64,
    queue_sel: u32,
}

pub struct Transport<D> {
    backend: Arc<Backend<D>>,
    memory: GuestMemory,
    device_type: u32,
    offered: u64,
    choices: Mutex<Choices>,
}

impl<D: Device> Transport<D> {
    pub fn new(backend: Arc<Backend<D>>, memory: GuestMemory) -> Self {
        let (device_type, features) = {
            let active = backend.lock();
            (active.device.device_type(), active.device.features())
        };
        let offered = features
            | 1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | 1 << VIRTIO_RING_F_INDIRECT_DESC;
        Self { backend, memory, device_type, offered, choices: Mutex::default() }
    }

    fn status(&self) -> u32 {
        self.backend.registers.status.load(Ordering::SeqCst)
    }

    fn choices(&self) -> MutexGuard<'_, Choices> {
        self.choices.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device_type,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            // An interrupt handler reads and writes these: without a lock, so that it never waits
            // for another vCPU that waits for a request.
            VIRTIO_MMIO_INTERRUPT_STATUS => self.backend.registers.interrupt_status.load(Ordering::SeqCst),
            VIRTIO_MMIO_STATUS => self.status(),
            // There is no shared memory.
            VIRTIO_MMIO_SHM_LEN_LOW..=VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            VIRTIO_MMIO_CONFIG_GENERATION => self.backend.registers.config_generation.load(Ordering::SeqCst),
            _ => self.read_choice(register, &self.choices()),
        }
    }

    fn read_choice(&self, register: u32, choices: &Choices) -> u32 {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.offered, choices.device_features_sel),
            VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.with_queue(choices, |queue| queue.max_size().into()).unwrap_or(0)
            }
            VIRTIO_MMIO_QUEUE_READY => self.with_queue(choices, |queue| queue.ready().into()).unwrap_or(0),
            _ => 0,
        }
    }

    fn write_register(&self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_QUEUE_NOTIFY => self.backend.ring(),
            VIRTIO_MMIO_INTERRUPT_ACK => {
                self.backend.registers.interrupt_status.fetch_and(!value, Ordering::SeqCst);
            }
            _ => self.write_choice(register, value, &mut self.choices()),
        }
    }

    fn write_choice(&self, register: u32, value: u32, choices: &mut Choices) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => choices.device_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => choices.driver_features_sel = value,
            VIRTIO_MMIO_DRIVER_FEATURES if self.status() & VIRTIO_CONFIG_S_FEATURES_OK == 0 => {
                let shift = match choices.driver_features_sel {
                    0 => 0,
                    1 => 32,
                    _ => return,
                };
                choices.features &= !(u64::from(u32::MAX) << shift);
                choices.features |= u64::from(value) << shift;
            }
            VIRTIO_MMIO_QUEUE_SEL => choices.queue_sel = value,
            VIRTIO_MMIO_QUEUE_NUM => self.configure(choices, |queue| {
                u16::try_from(value).is_ok_and(|size| queue.try_set_size(size).is_ok())
            }),
            VIRTIO_MMIO_QUEUE_READY => self.set_ready(choices, value == 1),
            VIRTIO_MMIO_QUEUE_DESC_LOW => self.configure(choices, |queue| {
                queue.set_desc_table_address(Some(value), None);
                value.is_multiple_of(16)
            }),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => self.configure(choices, |queue| {
                queue.set_avail_ring_address(Some(value), None);
                value.is_multiple_of(2)
            }),
            VIRTIO_MMIO_QUEUE_USED_LOW => self.configure(choices, |queue| {
                queue.set_used_ring_address(Some(value), None);
                value.is_multiple_of(4)
            }),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => self.configure(choices, |queue| {
                queue.set_desc_table_address(None, Some(value));
                true
            }),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => self.configure(choices, |queue| {
                queue.set_avail_ring_address(None, Some(value));
                true
            }),
            VIRTIO_MMIO_QUEUE_USED_HIGH => self.configure(choices, |queue| {
                queue.set_used_ring_address(None, Some(value));
                true
            }),
            VIRTIO_MMIO_STATUS => self.write_status(choices, value),
            _ => {}
        }
    }

    fn with_queue<T>(&self, choices: &Choices, f: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        let index = usize::try_from(choices.queue_sel).ok()?;
        self.backend.lock().queues.get_mut(index).map(f)
    }

    /// Queue set-up: allowed until the queue is ready. `f` says whether it took the value. If not,
    /// driver and device disagree on where the queue lies, and must not use it.
    fn configure(&self, choices: &Choices, f: impl FnOnce(&mut Queue) -> bool) {
        let taken = self.with_queue(choices, |queue| queue.ready() || f(queue));
        if taken == Some(false) {
            let violation = Violation(format!("queue {} has a wrong size or alignment", choices.queue_sel));
            self.backend.break_down(self.device_type, &violation);
        }
    }

    fn set_ready(&self, choices: &Choices, ready: bool) {
        let live = self.status() & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        let valid = self.with_queue(choices, |queue| {
            queue.set_ready(ready);
            // Before that, all queues are checked when the driver declares itself ready.
            !(live && ready) || queue.is_valid(&self.memory)
        });
        if valid == Some(false) {
            self.backend.break_down(self.device_type, &misplaced(choices.queue_sel));
        }
    }

    fn write_status(&self, choices: &mut Choices, value: u32) {
        if value == 0 {
            return self.reset(choices);
        }
        let before = self.status();
        // A driver may only add bits, and only the device says that it needs a reset.
        let mut added = value & !before & !VIRTIO_CONFIG_S_NEEDS_RESET & 0xff;
        let acceptable =
            choices.features & !self.offered == 0 && choices.features >> VIRTIO_F_VERSION_1 & 1 == 1;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !acceptable {
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        if (before | added) & VIRTIO_CONFIG_S_FEATURES_OK == 0 {
            added &= !VIRTIO_CONFIG_S_DRIVER_OK;
        }
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0
            && let Err(violation) = self.activate(choices)
        {
            self.backend.registers.status.fetch_or(added, Ordering::SeqCst);
            return self.backend.break_down(self.device_type, &violation);
        }
        self.backend.registers.status.fetch_or(added, Ordering::SeqCst);
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            match before & VIRTIO_CONFIG_S_NEEDS_RESET {
                0 => self.backend.ring(),
                _ => self.backend.interrupt(VIRTIO_MMIO_INT_CONFIG),
            }
        }
    }

    fn activate(&self, choices: &Choices) -> Result<(), Violation> {
        let mut active = self.backend.lock();
        let event_idx = choices.features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        for (index, queue) in active.queues.iter_mut().enumerate() {
            if queue.ready() && !queue.is_valid(&self.memory) {
                return Err(misplaced(index));
            }
            queue.set_event_idx(event_idx);
        }
        active.device.activate(choices.features);
        Ok(())
    }

    fn reset(&self, choices: &mut Choices) {
        // Under the lock no request is in flight, and none begins once the status is 0.
        let mut active = self.backend.lock();
        self.backend.registers.status.store(0, Ordering::SeqCst);
        self.backend.registers.interrupt_status.store(0, Ordering::SeqCst);
        active.reset();
        *choices = Choices::default();
    }
}

impl<D: Device> SaveTransport for Transport<D> {
    fn save(&self) -> TransportState {
        let choices = self.choices();
        let active = self.backend.lock();
        TransportState {
            device_type: self.device_type,
            status: self.status(),
            interrupt_status: self.backend.registers.interrupt_status.load(Ordering::SeqCst),
            choices: choices.clone(),
            queues: active.queues.iter().map(SavedQueue::of).collect(),
        }
    }

    fn interrupt_again(&self) {
        self.backend.interrupt_again();
    }

    fn restore(&self, state: &TransportState) -> Result<(), Violation> {
        let mut choices = self.choices();
        let mut active = self.backend.lock();
        let fits = state.device_type == self.device_type
            && state.queues.iter().map(|q| q.max_size).eq(active.queues.iter().map(QueueT::max_size))
            && state.choices.features & !self.offered == 0;
        if !fits {
            return Err(Violation("the saved state belongs to another device".into()));
        }
        let broken = |e| Violation(format!("a saved queue is invalid: {e}"));
        active.queues =
            state.queues.iter().map(SavedQueue::to_queue).collect::<Result<_, _>>().map_err(broken)?;
        if state.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            active.device.activate(state.choices.features);
        }
        *choices = state.choices.clone();
        self.backend.registers.status.store(state.status, Ordering::SeqCst);
        self.backend.registers.interrupt_status.store(state.interrupt_status, Ordering::SeqCst);
        Ok(())
    }
}

fn misplaced(queue: impl Display) -> Violation {
    Violation(format!("queue {queue} is not in guest memory"))
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

impl<D: Device> BusDevice for Transport<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset >= CONFIG {
            let start = usize::try_from(offset - CONFIG).unwrap_or(usize::MAX);
            self.backend.read_config(start, data);
        } else if data.len() == 4 && offset.is_multiple_of(4) {
            data.copy_from_slice(&self.read_register(offset as u32).to_le_bytes());
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // None of the devices has configuration that the driver may write.
        if offset < CONFIG
            && offset.is_multiple_of(4)
            && let Ok(bytes) = data.try_into()
        {
            self.write_register(offset as u32, u32::from_le_bytes(bytes));
        }
    }
}
