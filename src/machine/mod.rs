//! The machine: memory, vCPUs and devices as one thing that runs or stands still.

mod builder;
mod event_loop;

use std::sync::Arc;

use crate::boot::BootError;
use crate::bus::BusError;
use crate::devices::power::Power;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::{Backend, Worker};
use crate::disk::Disk;
use crate::memory::MemoryError;
use crate::vcpu::{Vcpu, VcpuError};
use crate::vm::{Vm, VmError};
use event_loop::EventLoop;

pub use builder::{Parts, boot};

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
    #[error("the guest cannot be told about the power button: {0}")]
    Button(std::io::Error),
}

impl MachineError {
    fn setup(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Setup { what, error }
    }
}

/// A disk as the guest gets it.
pub struct MachineDisk {
    pub id: String,
    pub disk: Arc<dyn Disk>,
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
    power: Arc<Power>,
    _vm: Vm,
}

impl Machine {
    /// Lets devices go on, then the vCPUs, which may use them at once.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.blocks.iter().for_each(|block| block.resume());
        self.rng.resume();
        self.vcpus.iter().try_for_each(Vcpu::resume)?;
        Ok(())
    }

    /// Stops all vCPUs, then the devices with their requests in flight done.
    pub fn pause(&self) -> Result<(), MachineError> {
        let pausing = self.vcpus.iter().map(Vcpu::pause).collect::<Result<Vec<_>, _>>()?;
        pausing.into_iter().try_for_each(|pausing| pausing.wait())?;
        self.blocks.iter().for_each(|block| block.pause());
        self.rng.pause();
        Ok(())
    }

    /// Asks the guest to switch itself off.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        self.power.press_button().map_err(MachineError::Button)
    }
}
