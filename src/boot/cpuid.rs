//! CPU features of the guest: what KVM supports, with the topology of this VM in it.
//!
//! Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix E; the kernel's
//! Documentation/virt/kvm/x86/cpuid.rst.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

const ECX_HYPERVISOR: u32 = 1 << 31;
const EDX_HTT: u32 = 1 << 28;
const ECX_CMP_LEGACY: u32 = 1 << 1;
/// AMD's performance counter extensions (core, northbridge, L2).
const ECX_AMD_COUNTERS: u32 = 1 << 23 | 1 << 24 | 1 << 28;
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

/// The entries of vCPU `index` of `cpus`: one socket, one thread a core, the local APIC id being
/// the index.
pub fn for_vcpu(supported: &CpuId, index: u32, cpus: u32) -> Result<CpuId, kvm_ioctls::Error> {
    let mut entries: Vec<_> = supported.as_slice().to_vec();
    let max_leaf = entries.iter().find(|e| e.function == 0).map_or(0, |e| e.eax);
    for entry in &mut entries {
        adapt(entry, index, cpus);
    }
    entries.retain(|e| !matches!(e.function, 0xb | 0x1f));
    for leaf in [0xb, 0x1f].into_iter().filter(|leaf| *leaf <= max_leaf) {
        entries.extend(extended_topology(leaf, index, cpus));
    }
    CpuId::from_entries(&entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
}

/// Bits of an APIC id that tell the cores of a socket apart.
fn core_bits(cpus: u32) -> u32 {
    cpus.next_power_of_two().trailing_zeros()
}

fn adapt(entry: &mut kvm_cpuid_entry2, index: u32, cpus: u32) {
    let cores = cpus - 1;
    match entry.function {
        0x1 => {
            let logical = cpus.next_power_of_two().min(255);
            entry.ebx = entry.ebx & 0xffff | logical << 16 | index << 24;
            entry.ecx |= ECX_HYPERVISOR;
            entry.edx = if cpus > 1 { entry.edx | EDX_HTT } else { entry.edx & !EDX_HTT };
        }
        // Cores that share the package, and threads that share this cache: only the last level
        // (Intel's third) is shared.
        0x4 if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { cores } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14 | cores.min(63) << 26;
        }
        // Performance counters are not part of a checkpoint, so the guest gets none.
        0xa => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        0x8000_0001 => {
            entry.ecx &= !ECX_AMD_COUNTERS;
            entry.ecx = if cpus > 1 { entry.ecx | ECX_CMP_LEGACY } else { entry.ecx & !ECX_CMP_LEGACY };
        }
        0x8000_0008 => entry.ecx = cores | core_bits(cpus) << 12,
        0x8000_001d if entry.eax & 0x1f != 0 => {
            let shared = if entry.eax >> 5 & 7 >= 3 { cores } else { 0 };
            entry.eax = entry.eax & 0x3fff | shared << 14;
        }
        0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (index, index & 0xff, 0),
        0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
        _ => {}
    }
}

/// Feature words: leaf, subleaf, register (EAX 0 to EDX 3), and the bits in it that tell of this
/// VM or of its guest's choices and not of the processor.
const FEATURE_WORDS: [(u32, u32, usize, u32); 10] = [
    (0x1, 0, 2, ECX_HYPERVISOR | 1 << 27),
    (0x1, 0, 3, EDX_HTT | 1 << 9),
    (0x7, 0, 1, 0),
    (0x7, 0, 2, 1 << 4),
    (0x7, 0, 3, 0),
    (0x7, 1, 0, 0),
    (0xd, 1, 0, 0),
    (0x8000_0001, 0, 2, ECX_CMP_LEGACY),
    (0x8000_0001, 0, 3, 1 << 9),
    (0x8000_0008, 0, 1, 0),
];

/// Features that a saved vCPU has and this host cannot give, as CPUID leaf, register and bits.
pub fn missing(saved: &[kvm_cpuid_entry2], supported: &CpuId) -> Vec<String> {
    let word = |entries: &[kvm_cpuid_entry2], leaf, index, register: usize| {
        let found = entries.iter().find(|e| e.function == leaf && e.index == index);
        found.map_or(0, |e| [e.eax, e.ebx, e.ecx, e.edx][register])
    };
    let lacking = FEATURE_WORDS.iter().filter_map(|&(leaf, index, register, own)| {
        let lacking =
            word(saved, leaf, index, register) & !word(supported.as_slice(), leaf, index, register) & !own;
        let name = ["EAX", "EBX", "ECX", "EDX"][register];
        (lacking != 0).then(|| format!("CPUID {leaf:#x}.{index} {name} {lacking:#x}"))
    });
    lacking.collect()
}

fn extended_topology(leaf: u32, index: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |number: u32, shift, count, kind| kvm_cpuid_entry2 {
        function: leaf,
        index: number,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: number | kind,
        edx: index,
        ..Default::default()
    };
    [level(0, 0, 1, LEVEL_SMT), level(1, core_bits(cpus), cpus, LEVEL_CORE), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|e| e.function == function && e.index == index).unwrap()
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        let leaf = |ecx, edx| kvm_cpuid_entry2 { function: 1, ecx, edx, ..Default::default() };
        let supported = CpuId::from_entries(&[leaf(0b1001, 0)]).unwrap();
        assert!(missing(&[leaf(0b1001 | ECX_HYPERVISOR, EDX_HTT)], &supported).is_empty());
        assert_eq!(missing(&[leaf(0b1111, 1)], &supported), ["CPUID 0x1.0 ECX 0x6", "CPUID 0x1.0 EDX 0x1"]);
    }

    #[test]
    fn every_leaf_tells_the_same_topology() {
        let leaf = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let supported = CpuId::from_entries(&[
            leaf(0, 0x1f),
            leaf(1, 0),
            leaf(0xb, 7),
            leaf(0x8000_0008, 0x3030),
            leaf(0x8000_001e, 0),
        ])
        .unwrap();
        let cpuid = for_vcpu(&supported, 2, 3).unwrap();
        let one = find(&cpuid, 1, 0);
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (2, 4));
        assert_ne!(one.edx & EDX_HTT, 0);
        for leaf in [0xb, 0x1f] {
            assert_eq!(find(&cpuid, leaf, 0).eax, 0);
            let core = find(&cpuid, leaf, 1);
            assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (2, 3, LEVEL_CORE | 1, 2));
        }
        assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 2 | 2 << 12);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 2);
        let single = for_vcpu(&supported, 0, 1).unwrap();
        assert_eq!(find(&single, 1, 0).edx & EDX_HTT, 0);
    }
}
