//! Why a machine cannot be made ready to boot.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum BootError {
    #[error("cannot read the {what} {}: {error}", path.display())]
    Open { what: &'static str, path: PathBuf, error: std::io::Error },
    #[error("the {what} {} is {is}", path.display())]
    Unfit { what: &'static str, path: PathBuf, is: String },
    #[error(
        "the initrd {} ({initrd_mib} MiB) does not fit beside the kernel in {memory_mib} MiB of memory; \
         give the VM more with --memory", path.display()
    )]
    InitrdTooBig { path: PathBuf, initrd_mib: u64, memory_mib: u64 },
    #[error("the kernel command line has {0} characters: the maximum is {max}", max = crate::layout::CMDLINE_MAX - 1)]
    CmdlineTooLong(usize),
    #[error("the kernel command line contains a character that is not printable ASCII")]
    CmdlineNotAscii,
    #[error("cannot write {what} to guest memory: {error}")]
    Write { what: &'static str, error: String },
    #[error("KVM refused to {what}: {error}")]
    Kvm { what: &'static str, error: String },
}

/// For `map_err`: names what did not get into guest memory.
pub(super) fn write_error<E: ToString>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| BootError::Write { what, error: error.to_string() }
}
