//! All that makes up a vCPU's state, and the order to read and write it in.

use std::collections::BTreeMap;

use kvm_bindings::{
    CpuId, Msrs, kvm_cpuid_entry2, kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

/// State of one vCPU. The KVM structures are kept as KVM's ABI lays them out.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    pub cpuid: Vec<kvm_cpuid_entry2>,
    pub mp_state: kvm_mp_state,
    pub regs: kvm_regs,
    pub sregs: kvm_sregs,
    pub xcrs: kvm_xcrs,
    pub xsave: kvm_xsave,
    pub debug_regs: kvm_debugregs,
    pub lapic: kvm_lapic_state,
    /// Value of every MSR that KVM lets be read.
    pub msrs: BTreeMap<u32, u64>,
    pub events: kvm_vcpu_events,
}

/// KVM refused to give or take a part of a vCPU's state.
#[derive(Debug, thiserror::Error)]
#[error("KVM refused to {what}: {error}")]
pub struct StateError {
    what: &'static str,
    error: kvm_ioctls::Error,
}

fn refused(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> StateError {
    move |error| StateError { what, error }
}

/// Memory type range registers, which KVM keeps but does not list (Intel SDM volume 3, 12.11).
const MTRRS: [u32; 28] = [
    0x200, 0x201, 0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e,
    0x20f, 0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x2ff,
];
/// MSRs passed to KVM at a time.
const BATCH: usize = 128;

/// Reads the whole state. `listed` are the MSRs that KVM says it saves.
pub fn save(fd: &VcpuFd, listed: &[u32]) -> Result<VcpuState, StateError> {
    // First: it makes KVM act on an INIT or SIPI that came in, which changes all that follows.
    let mp_state = fd.get_mp_state().map_err(refused("read the MP state"))?;
    let regs = fd.get_regs().map_err(refused("read the registers"))?;
    let sregs = fd.get_sregs().map_err(refused("read the segments"))?;
    let xcrs = fd.get_xcrs().map_err(refused("read the XCRs"))?;
    let xsave = fd.get_xsave().map_err(refused("read the FPU state"))?;
    let debug_regs = fd.get_debug_regs().map_err(refused("read the debug registers"))?;
    let lapic = fd.get_lapic().map_err(refused("read the local APIC"))?;
    let mut msrs = get_msrs(fd, listed)?;
    keep_deadline(&lapic, &mut msrs);
    // Last: reading other state can complete or raise an exception.
    let mut events = fd.get_vcpu_events().map_err(refused("read the pending events"))?;
    // Without KVM_CAP_EXCEPTION_PAYLOAD a pending exception is told as injected, too, and setting the
    // events drops that it was pending (Documentation/virt/kvm/api.rst, 4.32).
    if events.exception.injected != 0 {
        events.exception.pending = 0;
    }
    let cpuid = fd
        .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(refused("read the features"))?
        .as_slice()
        .to_vec();
    Ok(VcpuState { cpuid, mp_state, regs, sregs, xcrs, xsave, debug_regs, lapic, msrs, events })
}

/// Writes the whole state to a fresh vCPU.
pub fn restore(fd: &VcpuFd, state: &VcpuState) -> Result<(), StateError> {
    // First: the features decide what the registers below may hold.
    let cpuid = CpuId::from_entries(&state.cpuid)
        .map_err(|_| refused("accept this many features")(kvm_ioctls::Error::new(libc::E2BIG)))?;
    fd.set_cpuid2(&cpuid).map_err(refused("set the features"))?;
    fd.set_mp_state(state.mp_state).map_err(refused("set the MP state"))?;
    fd.set_regs(&state.regs).map_err(refused("set the registers"))?;
    // Before the local APIC, whose address and mode are in here.
    fd.set_sregs(&state.sregs).map_err(refused("set the segments"))?;
    // Before the FPU state, whose parts it switches on.
    fd.set_xcrs(&state.xcrs).map_err(refused("set the XCRs"))?;
    // SAFETY: KVM reads as much as the guest's features need, and those fit the structure: no
    // feature that needs permission for a larger one was asked for.
    unsafe { fd.set_xsave(&state.xsave) }.map_err(refused("set the FPU state"))?;
    fd.set_debug_regs(&state.debug_regs).map_err(refused("set the debug registers"))?;
    fd.set_lapic(&state.lapic).map_err(refused("set the local APIC"))?;
    // After the local APIC: the deadline MSR is only taken while its timer is in that mode.
    set_msrs(fd, &state.msrs)?;
    // Last: setting registers drops pending exceptions.
    fd.set_vcpu_events(&state.events).map_err(refused("set the pending events"))
}

const LAPIC_LVT_TIMER: usize = 0x320;
const MSR_TSC: u32 = 0x10;
const MSR_TSC_DEADLINE: u32 = 0x6e0;

/// A deadline that passed after the local APIC was read and before its MSR was is in neither: the
/// timer fired. It is put back as due at once; a tick too many does no harm, one too few hangs an
/// idle vCPU.
fn keep_deadline(lapic: &kvm_lapic_state, msrs: &mut BTreeMap<u32, u64>) {
    // Bits 17 and 18 of the timer's vector entry: mode; 2 is TSC-deadline (Intel SDM 3A, 11.5.4).
    let mode = lapic.regs[LAPIC_LVT_TIMER + 2] as u8 >> 1 & 3;
    if let (2, Some(0), Some(&tsc)) = (mode, msrs.get(&MSR_TSC_DEADLINE), msrs.get(&MSR_TSC)) {
        msrs.insert(MSR_TSC_DEADLINE, tsc);
    }
}

fn batch(entries: &[kvm_msr_entry]) -> Result<Msrs, StateError> {
    Msrs::from_entries(entries)
        .map_err(|_| refused("accept this many MSRs")(kvm_ioctls::Error::new(libc::E2BIG)))
}

/// KVM stops at the first MSR that it cannot read; that one is left out.
fn get_msrs(fd: &VcpuFd, listed: &[u32]) -> Result<BTreeMap<u32, u64>, StateError> {
    let mut indices: Vec<u32> = listed.iter().chain(&MTRRS).copied().collect();
    indices.sort_unstable();
    indices.dedup();
    let mut found = BTreeMap::new();
    let mut rest = indices.as_slice();
    while !rest.is_empty() {
        let entries: Vec<_> =
            rest.iter().take(BATCH).map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = batch(&entries)?;
        let got = fd.get_msrs(&mut msrs).map_err(refused("read the MSRs"))?;
        found.extend(msrs.as_slice().iter().take(got).map(|msr| (msr.index, msr.data)));
        rest = rest.get(if got < entries.len() { got + 1 } else { got }..).unwrap_or_default();
    }
    Ok(found)
}

/// An MSR that KVM refuses is left as it is: some can be read and not set, on some hosts.
fn set_msrs(fd: &VcpuFd, msrs: &BTreeMap<u32, u64>) -> Result<(), StateError> {
    let entries: Vec<_> =
        msrs.iter().map(|(&index, &data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
    let mut rest = entries.as_slice();
    while let Some(first) = rest.first() {
        let part = &rest[..rest.len().min(BATCH)];
        let set = fd.set_msrs(&batch(part)?).unwrap_or(0);
        if set < part.len() {
            let left = rest.get(set).unwrap_or(first);
            log::debug!("KVM does not allow setting MSR {:#x} to {:#x}", left.index, left.data);
        }
        rest = rest.get(if set < part.len() { set + 1 } else { set }..).unwrap_or_default();
    }
    Ok(())
}
