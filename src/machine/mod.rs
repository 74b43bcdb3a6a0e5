//! The machine: memory, vCPUs and devices as one thing that runs or stands still.

mod bare;
mod builder;
mod event_loop;

use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_clock_data;
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::BootError;
use crate::bus::BusError;
use crate::capture::tracker::Tracker;
use crate::devices::console::Console;
use crate::devices::genid::GenerationError;
use crate::devices::power::Power;
use crate::devices::serial::{Serial, SerialState};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::{Console as AgentConsole, ConsoleState};
use crate::devices::virtio::console_port::Port;
use crate::devices::virtio::mmio::{SaveTransport, TransportState};
use crate::devices::virtio::net::{Net, NetState};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::{Vsock, VsockState};
use crate::devices::virtio::{Backend, Worker};
use crate::disk::Disk;
use crate::memory::MemoryError;
use crate::net::Link;
use crate::vcpu::state::{StateError, VcpuState};
use crate::vcpu::{self, Runner, Vcpu, VcpuError};
use crate::vm::{RestoredClock, Vm, VmError, VmState};
use event_loop::EventLoop;

pub use bare::Bare;
pub use builder::{Parts, boot, missing_features, restore};

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Vm(#[from] VmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    #[error(transparent)]
    Bus(#[from] BusError),
    #[error("cannot set up {what}: {error}")]
    Setup { what: &'static str, error: std::io::Error },
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the saved state does not fit: {0}")]
    Misfit(String),
    #[error("the guest is shutting down or resetting")]
    Ended,
    #[error("cannot press the guest's power button: {0}")]
    Button(std::io::Error),
}

impl MachineError {
    fn setup(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Setup { what, error }
    }
}

/// A disk as the guest gets it.
#[derive(Clone)]
pub struct MachineDisk {
    pub id: String,
    pub disk: Arc<dyn Disk>,
}

/// State of a machine beside its memory and disks.
#[derive(Debug, Serialize, Deserialize)]
pub struct MachineState {
    pub vm: VmState,
    pub vcpus: Vec<VcpuState>,
    pub serial: SerialState,
    /// Platform events that the guest has not read.
    pub power_events: u8,
    /// In the order of the slots.
    pub virtio: Vec<TransportState>,
    pub agent: ConsoleState,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetState>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockState>,
}

/// The device that the guest's agent talks through, and our end of it.
struct AgentLine {
    device: Arc<Backend<AgentConsole>>,
    port: Arc<Port>,
}

/// A network card, and its end of the cable.
struct Card {
    device: Arc<Backend<Net>>,
    link: Arc<Link>,
}

/// A machine with its threads. Born standing still; dropping it ends it at once.
///
/// The fields are dropped in this order: guest code stops first, then the threads that serve it,
/// and the VM, which they all use, goes last.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    _event_loop: EventLoop,
    _workers: Vec<Worker>,
    blocks: Vec<Arc<Backend<Block>>>,
    rng: Arc<Backend<Rng>>,
    agent: AgentLine,
    cards: Vec<Card>,
    vsock: Option<Arc<Backend<Vsock>>>,
    transports: Vec<Arc<dyn SaveTransport>>,
    serial: Arc<Serial>,
    console_input: EventFd,
    power: Arc<Power>,
    vm: Arc<Vm>,
    tracker: Arc<Mutex<Tracker>>,
    /// Set when a restored guest first runs: until then its time stands still.
    clock: Option<RestoredClock>,
    running: bool,
}

impl Machine {
    pub fn is_running(&self) -> bool {
        self.running
    }

    /// Lets devices go on, then the vCPUs, which may use them at once.
    pub fn resume(&mut self) -> Result<(), MachineError> {
        // Only now, so that what was restored can be saved again unchanged.
        if let Some(clock) = &self.clock {
            self.vm.set_clock(clock)?;
            self.power.interrupt_again().map_err(MachineError::Button)?;
            self.transports.iter().for_each(|transport| transport.interrupt_again());
            self.clock = None;
        }
        self.resume_devices();
        self.vcpus.iter().try_for_each(Vcpu::resume)?;
        self.running = true;
        Ok(())
    }

    /// Which disks cannot serve the request that is next, and why.
    pub fn stuck(&self) -> Option<String> {
        let reasons: Vec<String> = self.blocks.iter().filter_map(|block| block.stuck()).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    /// Stops all vCPUs, then the devices with their requests in flight done.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        let pausing = self.vcpus.iter().map(Vcpu::pause).collect::<Result<Vec<_>, _>>()?;
        pausing.into_iter().try_for_each(|pausing| pausing.wait())?;
        self.pause_devices();
        self.running = false;
        Ok(())
    }

    /// Does `job` while the machine stands still, on the thread of the vCPU that stops last, and
    /// lets it continue as before. Nothing that the job does may wait for the guest.
    pub fn stand_still<T: Send + 'static>(
        &mut self,
        job: impl FnOnce(&Standstill<'_>) -> T + Send + 'static,
    ) -> Result<Stood<T>, MachineError> {
        let running = self.running;
        // Requests in flight end while the guest still runs: its pause must not wait for a disk.
        self.pause_devices();
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner).note_own_writes();
        let done = self.gather(job);
        if running {
            self.resume_devices();
        }
        let mut stood = done?;
        if !running {
            stood.pause = None;
        }
        Ok(stood)
    }

    fn gather<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Standstill<'_>) -> T + Send + 'static,
    ) -> Result<Stood<T>, MachineError> {
        let (told, done) = channel();
        let saver = Saver {
            msrs: self.vm.msr_list()?,
            vm: self.vm.clone(),
            transports: self.transports.clone(),
            serial: self.serial.clone(),
            power: self.power.clone(),
            agent: self.agent.device.clone(),
            cards: self.cards.iter().map(|card| card.device.clone()).collect(),
            vsock: self.vsock.clone(),
            clock: self.clock.as_ref().map(|clock| clock.saved),
        };
        vcpu::gather(&self.vcpus, move |vcpus, waited| {
            let began = Instant::now();
            let result = if vcpus.iter().any(|vcpu| vcpu.has_ended()) {
                Err(MachineError::Ended)
            } else {
                Ok(job(&Standstill { saver: &saver, vcpus }))
            };
            let pause = Some(waited + began.elapsed());
            // Whoever asked waits for it below.
            let _ = told.send(result.map(|value| Stood { value, pause }));
        })?;
        done.recv().map_err(|_| MachineError::Ended)?
    }

    fn pause_devices(&self) {
        self.blocks.iter().for_each(|block| block.pause());
        self.rng.pause();
        self.agent.device.pause();
        self.agent.port.set_still(true);
        self.cards.iter().for_each(|card| card.device.pause());
        self.vsock.iter().for_each(|device| device.pause());
    }

    fn resume_devices(&self) {
        self.blocks.iter().for_each(|block| block.resume());
        self.rng.resume();
        self.agent.port.set_still(false);
        self.agent.device.resume();
        self.cards.iter().for_each(|card| card.device.resume());
        self.vsock.iter().for_each(|device| device.resume());
    }

    /// Serves again what could not be served for want of room on the host.
    pub fn retry_requests(&self) {
        self.resume_devices();
    }

    /// Which pages changed since which checkpoint.
    pub fn tracker(&self) -> Arc<Mutex<Tracker>> {
        self.tracker.clone()
    }

    /// Keeps every vCPU from running for `time`.
    pub fn nap(&self, time: Duration) -> Result<(), MachineError> {
        Ok(self.vcpus.iter().try_for_each(|vcpu| vcpu.nap(time))?)
    }

    /// Lets what is typed go to this machine's COM1 from now on.
    pub fn take_console(&self, console: &Console) -> Result<(), MachineError> {
        let event = self.console_input.try_clone().map_err(MachineError::setup("the console"))?;
        console.on_input(Some(event));
        Ok(())
    }

    /// Our end of the guest agent's port.
    pub fn agent(&self) -> Arc<Port> {
        self.agent.port.clone()
    }

    /// The cables of its network cards, in their order.
    pub fn links(&self) -> Vec<Arc<Link>> {
        self.cards.iter().map(|card| card.link.clone()).collect()
    }

    /// Asks the guest to switch itself off.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        self.power.press_button().map_err(MachineError::Button)
    }

    /// Whether the guest was told of power events, or of a new generation id, and has not read what.
    pub fn has_unread_power_events(&self) -> bool {
        self.power.save() != 0
    }

    /// Raises their interrupt again.
    pub fn repeat_power_events(&self) -> Result<(), MachineError> {
        self.power.interrupt_again().map_err(MachineError::Button)
    }
}

/// What came of standing still.
pub struct Stood<T> {
    pub value: T,
    /// How long the guest did not run; nothing if it did not run before.
    pub pause: Option<Duration>,
}

/// What of a machine is read to save it.
struct Saver {
    msrs: Arc<[u32]>,
    vm: Arc<Vm>,
    transports: Vec<Arc<dyn SaveTransport>>,
    serial: Arc<Serial>,
    power: Arc<Power>,
    agent: Arc<Backend<AgentConsole>>,
    cards: Vec<Arc<Backend<Net>>>,
    vsock: Option<Arc<Backend<Vsock>>>,
    /// Of a restored machine that has not run.
    clock: Option<kvm_clock_data>,
}

/// A machine that stands still: only of one can the state be read.
pub struct Standstill<'a> {
    saver: &'a Saver,
    vcpus: &'a [&'a Runner],
}

impl Standstill<'_> {
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let saver = self.saver;
        // The vCPUs come first: reading one can deliver an interrupt from the shared chips.
        let vcpus = self.vcpus.iter().map(|vcpu| vcpu.save(&saver.msrs)).collect::<Result<_, _>>()?;
        let mut vm = saver.vm.save()?;
        if let Some(clock) = saver.clock {
            vm.clock = clock;
        }
        Ok(MachineState {
            vm,
            vcpus,
            serial: saver.serial.save(),
            power_events: saver.power.save(),
            virtio: saver.transports.iter().map(|transport| transport.save()).collect(),
            agent: saver.agent.lock().device.save(),
            nets: saver.cards.iter().map(|card| card.lock().device.save()).collect(),
            vsock: saver.vsock.as_ref().map(|device| device.lock().device.save()),
        })
    }
}
