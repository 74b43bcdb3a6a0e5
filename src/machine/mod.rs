//! The machine: memory, vCPUs and devices as one thing that runs or stands still.

mod builder;
mod event_loop;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::boot::BootError;
use crate::bus::BusError;
use crate::devices::console::Console;
use crate::devices::genid::GenerationError;
use crate::devices::power::Power;
use crate::devices::serial::{Serial, SerialState};
use crate::devices::virtio::block::Block;
use crate::devices::virtio::console::{Console as AgentConsole, ConsoleState};
use crate::devices::virtio::console_port::Port;
use crate::devices::virtio::mmio::{SaveTransport, TransportState};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{Backend, Worker};
use crate::disk::Disk;
use crate::memory::{GuestMemory, MemoryError};
use crate::vcpu::state::{StateError, VcpuState};
use crate::vcpu::{Vcpu, VcpuError};
use crate::vm::{RestoredClock, Vm, VmError, VmState};
use event_loop::EventLoop;

pub use builder::{Parts, boot, restore};

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
    #[error("{what} could not be set up: {error}")]
    Setup { what: &'static str, error: std::io::Error },
    #[error(transparent)]
    Generation(#[from] GenerationError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error("the saved state does not fit: {0}")]
    Misfit(String),
    #[error("the guest cannot be told about the power button: {0}")]
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
}

/// The device that the guest's agent talks through, and our end of it.
struct AgentLine {
    device: Arc<Backend<AgentConsole>>,
    port: Arc<Port>,
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
    transports: Vec<Arc<dyn SaveTransport>>,
    serial: Arc<Serial>,
    console_input: EventFd,
    power: Arc<Power>,
    vm: Vm,
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
        self.blocks.iter().for_each(|block| block.resume());
        self.rng.resume();
        self.agent.device.resume();
        self.vcpus.iter().try_for_each(Vcpu::resume)?;
        self.running = true;
        Ok(())
    }

    /// Stops all vCPUs, then the devices with their requests in flight done.
    pub fn pause(&mut self) -> Result<(), MachineError> {
        let pausing = self.vcpus.iter().map(Vcpu::pause).collect::<Result<Vec<_>, _>>()?;
        pausing.into_iter().try_for_each(|pausing| pausing.wait())?;
        self.blocks.iter().for_each(|block| block.pause());
        self.rng.pause();
        self.agent.device.pause();
        self.running = false;
        Ok(())
    }

    /// Holds the machine still; dropping what is returned lets it go on if it ran before.
    pub fn hold(&mut self) -> Result<PausedMachine<'_>, MachineError> {
        let resume = self.running;
        if resume && let Err(e) = self.pause() {
            // Those that stand still already go on.
            if let Err(again) = self.resume() {
                log::error!("the guest cannot go on: {again}");
            }
            return Err(e);
        }
        Ok(PausedMachine { machine: self, resume })
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

    /// Asks the guest to switch itself off.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        self.power.press_button().map_err(MachineError::Button)
    }
}

/// A machine that stands still: only of one can the state be read.
pub struct PausedMachine<'a> {
    machine: &'a mut Machine,
    resume: bool,
}

impl PausedMachine<'_> {
    pub fn save(&self) -> Result<MachineState, MachineError> {
        let machine = &*self.machine;
        let msrs = machine.vm.msr_list()?;
        // The vCPUs come first: reading one can deliver an interrupt from the shared chips.
        let vcpus = machine.vcpus.iter().map(|vcpu| vcpu.save(msrs.clone())).collect::<Result<_, _>>()?;
        let mut vm = machine.vm.save()?;
        if let Some(clock) = &machine.clock {
            vm.clock = clock.saved;
        }
        Ok(MachineState {
            vm,
            vcpus,
            serial: machine.serial.save(),
            power_events: machine.power.save(),
            virtio: machine.transports.iter().map(|transport| transport.save()).collect(),
            agent: machine.agent.device.lock().device.save(),
        })
    }

    pub fn memory(&self) -> &GuestMemory {
        self.machine.vm.memory()
    }
}

impl Drop for PausedMachine<'_> {
    fn drop(&mut self) {
        if self.resume
            && let Err(e) = self.machine.resume()
        {
            log::error!("the guest cannot go on: {e}");
        }
    }
}
