//! Where the tests run: on the machine's own KVM, or in the throw-away host of scripts/vm-host.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long anything may take; only a hang takes longer.
pub fn patience() -> Duration {
    // What takes long is not looked at by anybody who waits.
    let long = std::env::var_os("PITON_TEST_LONG").is_some_and(|value| value == "1");
    Duration::from_secs(if !is_emulated() {
        40
    } else if long {
        1200
    } else {
        240
    })
}

/// In the throw-away host, where an exit to the VMM costs ten times as much.
pub fn is_emulated() -> bool {
    std::env::var("PITON_LANE").is_ok_and(|lane| lane == "linux")
}

pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() == 0 }
}

/// Says why this test tells nothing here, and counts it for scripts/test.
pub fn skip(reason: &str) {
    let thread = std::thread::current();
    let line = format!("skipped: {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Not by eprint!, which the test harness keeps to itself.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("PITON_SKIPS") {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        file.and_then(|mut file| file.write_all(line.as_bytes())).expect("PITON_SKIPS can be written");
    }
}

/// Whether tests that take minutes are to run, too; says so where they are not.
pub fn is_long() -> bool {
    let long = std::env::var_os("PITON_TEST_LONG").is_some_and(|value| value == "1");
    if !long {
        skip("it takes minutes: scripts/test --long");
    }
    long
}

/// A disk image of Debian as clouds use it, made by scripts/lib/debian-image. None, with the reason
/// told, where it cannot boot.
pub fn debian_image() -> Option<PathBuf> {
    LinuxGuest::find()?;
    let image = std::env::var_os("PITON_GUEST_DEBIAN").map(PathBuf::from);
    if image.is_none() {
        skip("no image: PITON_GUEST_DEBIAN names it (scripts/lib/debian-image)");
    }
    image
}

/// Images of a stock Linux guest, made by scripts/lib/linux-guest.
pub struct LinuxGuest {
    pub kernel: PathBuf,
    pub vmlinux: PathBuf,
    pub initrd: PathBuf,
    pub rootfs: PathBuf,
    /// The unpacked kernel of linux-image-amd64.
    pub generic: PathBuf,
}

impl LinuxGuest {
    /// None, with the reason told, where stock Linux cannot boot.
    pub fn find() -> Option<Self> {
        let hardware = ["/sys/module/kvm_amd", "/sys/module/kvm_intel"];
        if !is_emulated() && !hardware.iter().any(|path| Path::new(path).exists()) {
            skip("stock Linux needs kvm_amd or kvm_intel: run it in scripts/vm-host --guest");
            return None;
        }
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let found = (|| {
            Some(Self {
                kernel: path("PITON_GUEST_KERNEL")?,
                vmlinux: path("PITON_GUEST_VMLINUX")?,
                initrd: path("PITON_GUEST_INITRD")?,
                rootfs: path("PITON_GUEST_ROOTFS")?,
                generic: path("PITON_GUEST_GENERIC")?,
            })
        })();
        if found.is_none() {
            skip("no images: PITON_GUEST_KERNEL, _VMLINUX, _INITRD, _ROOTFS and _GENERIC name them");
        }
        found
    }
}
