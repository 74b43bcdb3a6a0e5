//! The KVM virtual machine: opening KVM, memory slots, interrupt chips, irqfd and ioeventfd.
//!
//! Source: the kernel's Documentation/virt/kvm/api.rst.

mod dirty_log;
mod log_mode;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use kvm_bindings::{
    CpuId, KVM_API_VERSION, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_clock_data, kvm_irqchip,
    kvm_pit_config, kvm_pit_state2, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, VcpuFd, VmFd};
use serde::{Deserialize, Serialize};
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use crate::layout::{KVM_IDENTITY_MAP_START, KVM_TSS_START};
use crate::memory::GuestMemory;

pub use log_mode::DirtyLog;

#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error(
        "there is no /dev/kvm: enable virtualisation in the firmware, or nested virtualisation in a \
         cloud VM, and load kvm_intel or kvm_amd"
    )]
    NoKvm,
    #[error("no permission to open /dev/kvm: add your user to its group (usually `kvm`) and log in again")]
    KvmPermission,
    #[error("cannot open /dev/kvm: {0}")]
    KvmOpen(kvm_ioctls::Error),
    #[error("/dev/kvm is not a usable KVM device (API version {0} instead of {KVM_API_VERSION})")]
    KvmVersion(i32),
    #[error("this KVM is too old for piton: it lacks {0}; use a kernel of 5.10 or later")]
    KvmTooOld(String),
    #[error("this KVM supports at most {max} vCPUs, not {asked}")]
    TooManyCpus { asked: u32, max: usize },
    #[error(
        "this checkpoint does not record when its clock was read, so it cannot be moved forward: omit \
         --clock"
    )]
    NoRealtime,
    #[error("KVM refused to {what}: {error}")]
    Kvm { what: &'static str, error: kvm_ioctls::Error },
}

impl VmError {
    /// For `map_err`: names the call that KVM refused.
    pub fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Kvm { what, error }
    }
}

/// What piton cannot do without.
const REQUIRED: [(Cap, &str); 11] = [
    (Cap::Irqchip, "in-kernel interrupt controllers"),
    (Cap::Pit2, "the in-kernel timer (PIT2)"),
    (Cap::UserMemory, "user memory slots"),
    (Cap::Ioeventfd, "ioeventfd"),
    (Cap::Irqfd, "irqfd"),
    (Cap::ImmediateExit, "immediate_exit"),
    (Cap::MpState, "MP state"),
    (Cap::VcpuEvents, "vCPU events"),
    (Cap::Debugregs, "debug registers"),
    (Cap::Xsave, "XSAVE"),
    (Cap::AdjustClock, "the VM clock"),
];

/// Opens /dev/kvm and checks that it can do what piton needs.
pub fn open_kvm() -> Result<Kvm, VmError> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => VmError::NoKvm,
        libc::EACCES | libc::EPERM => VmError::KvmPermission,
        _ => VmError::KvmOpen(e),
    })?;
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION as i32 {
        return Err(VmError::KvmVersion(version));
    }
    let mut lacking: Vec<&str> =
        REQUIRED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
    if !log_mode::is_supported(&kvm) {
        lacking.push("a dirty log with manual protection");
    }
    if lacking.is_empty() { Ok(kvm) } else { Err(VmError::KvmTooOld(lacking.join(", "))) }
}

/// State of interrupt controllers, timer and clock, as KVM's ABI lays it out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    pub pic_master: kvm_irqchip,
    pub pic_slave: kvm_irqchip,
    pub ioapic: kvm_irqchip,
    pub pit: kvm_pit_state2,
    pub clock: kvm_clock_data,
}

/// What the clock of a restored VM (kvmclock) goes on from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Clock {
    /// From the time of the checkpoint: for the guest, no time has passed
    #[default]
    Saved,
    /// From the present: the elapsed time is added
    Host,
}

/// A saved clock that is yet to be set.
#[derive(Debug, Clone, Copy)]
pub struct RestoredClock {
    pub saved: kvm_clock_data,
    from: Clock,
}

impl RestoredClock {
    pub fn new(saved: kvm_clock_data, from: Clock) -> Result<Self, VmError> {
        if from == Clock::Host && saved.realtime == 0 {
            return Err(VmError::NoRealtime);
        }
        Ok(Self { saved, from })
    }

    /// What KVM is told at `now_ns` since 1970.
    fn data(&self, now_ns: u64) -> kvm_clock_data {
        let Self { saved, from } = self;
        let data = kvm_clock_data { clock: saved.clock, ..Default::default() };
        match from {
            Clock::Saved => data,
            // With the flag KVM adds the time that has passed since `realtime`.
            Clock::Host if saved.flags & KVM_CLOCK_REALTIME != 0 => {
                kvm_clock_data { flags: KVM_CLOCK_REALTIME, realtime: saved.realtime, ..data }
            }
            Clock::Host => {
                let passed = now_ns.saturating_sub(saved.realtime);
                kvm_clock_data { clock: saved.clock.saturating_add(passed), ..data }
            }
        }
    }
}

/// Nanoseconds since 1970; 0 if the host's clock is before that.
fn realtime_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}

/// A virtual machine with its memory and interrupt chips, without vCPUs.
pub struct Vm {
    kvm: Kvm,
    fd: VmFd,
    memory: GuestMemory,
    /// The guest's writes are logged.
    logs: AtomicBool,
}

impl Vm {
    pub fn new(kvm: Kvm, memory: GuestMemory, cpus: u32, log: DirtyLog) -> Result<Self, VmError> {
        let max = kvm.get_max_vcpus();
        if cpus as usize > max {
            return Err(VmError::TooManyCpus { asked: cpus, max });
        }
        let fd = kvm.create_vm().map_err(VmError::kvm("create a VM"))?;
        let vm = Self { kvm, fd, memory, logs: AtomicBool::new(log == DirtyLog::FromTheStart) };
        vm.prepare_dirty_log(log)?;
        // Slots come before the irqchip: the other way round costs 5 ms more (the kernel waits
        // for a grace period of its I/O bus for each slot).
        vm.set_memory_slots(log.slot_flags())?;
        vm.fd
            .set_identity_map_address(KVM_IDENTITY_MAP_START)
            .map_err(VmError::kvm("place the identity map"))?;
        vm.fd.set_tss_address(KVM_TSS_START as usize).map_err(VmError::kvm("place the TSS"))?;
        vm.fd.create_irq_chip().map_err(VmError::kvm("create the interrupt controllers"))?;
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.fd.create_pit2(pit).map_err(VmError::kvm("create the timer"))?;
        Ok(vm)
    }

    fn set_memory_slots(&self, flags: u32) -> Result<(), VmError> {
        for (slot, region) in self.memory.iter().enumerate() {
            let region = kvm_userspace_memory_region {
                slot: slot as u32,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
                flags,
            };
            // SAFETY: the region is mapped for as long as `self.memory` lives, which this VM
            // owns a reference to, and regions of one GuestMemory do not overlap.
            unsafe { self.fd.set_user_memory_region(region) }.map_err(VmError::kvm("map guest memory"))?;
        }
        Ok(())
    }

    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// The CPU features that KVM can give to guests on this host.
    pub fn supported_cpuid(&self) -> Result<CpuId, VmError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(VmError::kvm("list its CPU features"))
    }

    /// MSRs that have to be saved with a vCPU.
    pub fn msr_list(&self) -> Result<Arc<[u32]>, VmError> {
        let list = self.kvm.get_msr_index_list().map_err(VmError::kvm("list its MSRs"))?;
        Ok(list.as_slice().into())
    }

    /// The state of what all vCPUs share. They must stand still.
    pub fn save(&self) -> Result<VmState, VmError> {
        let chip = |id| {
            let mut chip = kvm_irqchip { chip_id: id, ..Default::default() };
            self.fd.get_irqchip(&mut chip).map_err(VmError::kvm("read an interrupt controller"))?;
            Ok(chip)
        };
        let mut clock = self.fd.get_clock().map_err(VmError::kvm("read the clock"))?;
        if clock.flags & KVM_CLOCK_REALTIME == 0 {
            // KVM does not say (it is of before Linux 5.16, or a vCPU's TSC is not steady, or a guest uses the
            // first kind of kvmclock): this is as good to a few microseconds.
            clock.realtime = realtime_ns();
        }
        Ok(VmState {
            pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
            pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
            ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
            pit: self.fd.get_pit2().map_err(VmError::kvm("read the timer"))?,
            clock,
        })
    }

    /// Before the vCPUs' own state: an interrupt that a local APIC waits for comes from here. The
    /// clock is apart: it runs from the moment that it is set.
    pub fn restore(&self, state: &VmState) -> Result<(), VmError> {
        for chip in [&state.pic_master, &state.pic_slave, &state.ioapic] {
            self.fd.set_irqchip(chip).map_err(VmError::kvm("set an interrupt controller"))?;
        }
        self.fd.set_pit2(&state.pit).map_err(VmError::kvm("set the timer"))
    }

    pub fn set_clock(&self, clock: &RestoredClock) -> Result<(), VmError> {
        self.fd.set_clock(&clock.data(realtime_ns())).map_err(VmError::kvm("set the clock"))
    }

    pub fn create_vcpu(&self, index: u32) -> Result<VcpuFd, VmError> {
        self.fd.create_vcpu(u64::from(index)).map_err(VmError::kvm("create a vCPU"))
    }

    /// A write to `event` raises `gsi` as an edge.
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), VmError> {
        self.fd.register_irqfd(event, gsi).map_err(VmError::kvm("connect an interrupt"))
    }

    /// A 32-bit write of `value` at `address` signals `event` without leaving the kernel.
    pub fn connect_doorbell(&self, event: &EventFd, address: u64, value: u32) -> Result<(), VmError> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), value)
            .map_err(VmError::kvm("connect a queue's doorbell"))
    }
}
