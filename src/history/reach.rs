//! The files of the host that the process of a VM needs, now and for whatever it does later: nothing
//! can be added while it runs.

use super::Catalog;
use super::disks::base_path;
use super::inventory::Inventory;
use crate::config::{DiskConfig, DiskFormat, NetConfig, VmConfig};
use crate::disk::backing;
use crate::folder::{Definition, VmFolder};
use crate::sandbox::{Reach, Rules};

/// What piton itself reads beside the VM's files.
const KERNEL: [&str; 4] =
    ["/proc/self", "/proc/meminfo", "/proc/sys/kernel/random/boot_id", "/proc/sys/vm/overcommit_memory"];
/// What the host's time zone is.
const ZONE: [&str; 2] = ["/etc/localtime", "/usr/share/zoneinfo"];
const DEVICES: [&str; 2] = ["/dev/kvm", "/dev/userfaultfd"];
const TAP_DEVICE: &str = "/dev/net/tun";
const TAPS: [&str; 2] = ["/sys/class/net", "/sys/devices/virtual/net"];

/// Of a VM so defined, with the hardware that its checkpoints go back to and `also`. Without an inventory
/// its checkpoints are read.
pub fn rules(
    folder: &VmFolder,
    definition: &Definition,
    inventory: Option<&Inventory>,
    also: Option<&VmConfig>,
) -> Rules {
    let mut rules = Rules::default();
    let catalog = Catalog::new(folder, definition);
    rules.allow(Reach::All, folder.path()).allow(Reach::All, catalog.store.dir());
    // Clones of a VM that runs are made in its folder, and then moved to be beside it.
    let home = folder.home();
    let home = home.root();
    rules.allow(Reach::MoveInto, home);
    for path in KERNEL {
        rules.allow(Reach::Kernel, path);
    }
    for path in ZONE {
        rules.allow(Reach::Read, path);
    }
    for path in DEVICES {
        rules.allow(Reach::Write, path);
    }
    // What cannot be read is not gone back to.
    let read = match inventory {
        Some(_) => Vec::new(),
        None => catalog.manifests().unwrap_or_default(),
    };
    let manifests = inventory.map_or(&read, |inventory| &inventory.listing.manifests);
    let configs = manifests.iter().map(|manifest| &manifest.config);
    // Most checkpoints have the same disks, and what lies below one is read from it.
    let mut known: Vec<&DiskConfig> = Vec::new();
    for config in configs.chain([&definition.config]).chain(also) {
        for path in config.kernel.iter().chain(&config.initrd) {
            rules.allow(Reach::Read, path);
        }
        for config in &config.disks {
            if !known.contains(&config) {
                known.push(config);
                disk(&mut rules, folder, config);
            }
        }
        if config.nets.iter().any(|net| net.tap().is_some()) {
            rules.allow(Reach::Write, TAP_DEVICE);
            for path in TAPS {
                rules.allow(Reach::Kernel, path);
            }
        }
        if asks_about_others(config) {
            rules.allow(Reach::Read, home);
        }
    }
    rules
}

fn disk(rules: &mut Rules, folder: &VmFolder, config: &DiskConfig) {
    let path = base_path(folder, config);
    // A guest could write into a raw one what names other files.
    if config.format == DiskFormat::Qcow2 {
        for below in backing::files(folder.storage(), &path).unwrap_or_default() {
            rules.allow(Reach::Read, below);
        }
    }
    rules.allow(if is_written(config) { Reach::Write } else { Reach::Read }, path);
}

/// Whether the image itself is: without an overlay layers are merged into it.
fn is_written(disk: &DiskConfig) -> bool {
    disk.format == DiskFormat::Raw && !disk.readonly && !disk.overlay
}

/// Whether it looks at what other VMs of its home are: what it merges into may be theirs as well, and
/// so may be an address on a bridge.
fn asks_about_others(config: &VmConfig) -> bool {
    let merges = |disk: &DiskConfig| is_written(disk) && !disk.passthrough;
    config.disks.iter().any(merges)
        || config.nets.iter().any(|net: &NetConfig| net.tap().is_some() && !net.shared_mac)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::folder::Home;
    use crate::storage::Storage;

    #[test]
    fn images_are_reached_as_they_are_used() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::at(dir.path().join("home"), Storage::os());
        let folder = home.folder(&"demo".parse().unwrap());
        let lock = folder.create().unwrap();
        let at = |name: &str| dir.path().join(name);
        let disk = |id: &str, readonly, passthrough, overlay| DiskConfig {
            id: id.into(),
            path: at(id),
            format: DiskFormat::Raw,
            readonly,
            passthrough,
            overlay,
        };
        let config = |disks: Vec<DiskConfig>| VmConfig {
            cpus: 1,
            memory: 64 << 20,
            kernel: Some(at("kernel")),
            initrd: None,
            boot_disk: None,
            cmdline: String::new(),
            disks,
            nets: Vec::new(),
            vsock: false,
        };
        let of = |disks| {
            let definition = Definition::new(config(disks));
            folder.save(&lock, &definition).unwrap();
            rules(&folder, &definition, None, None)
        };
        let has = |rules: &Rules, reach, path: &Path| rules.paths().any(|found| found == (path, reach));
        let strict = of(vec![
            disk("ro", true, false, false),
            disk("pass", false, true, false),
            disk("base", false, false, true),
        ]);
        for (reach, name) in
            [(Reach::Read, "ro"), (Reach::Write, "pass"), (Reach::Read, "base"), (Reach::Read, "kernel")]
        {
            assert!(has(&strict, reach, &at(name)), "{name}");
        }
        let root = at("home");
        assert!(has(&strict, Reach::All, folder.path()) && has(&strict, Reach::MoveInto, &root));
        assert!(!has(&strict, Reach::Read, &root) && !has(&strict, Reach::Write, &at("base")));
        let direct = of(vec![disk("direct", false, false, false)]);
        assert!(has(&direct, Reach::Write, &at("direct")) && has(&direct, Reach::Read, &root));
        assert!(!direct.paths().any(|(path, _)| path == Path::new(TAP_DEVICE)));
    }
}
