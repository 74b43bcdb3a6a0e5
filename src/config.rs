//! What a VM is made of: the hardware definition that vm.json and every manifest hold.

mod net;
mod net_arg;

use std::path::PathBuf;

pub use net::{Forward, MAX_NETS, Mac, NetBackend, NetConfig, NetError, Protocol, validate_forwards};
pub use net_arg::{NetArg, networks, replug};
use serde::{Deserialize, Serialize};

use crate::layout::{CMDLINE_MAX, MAX_CPUS, VIRTIO_GSIS};

/// Smallest guest memory, in bytes: a kernel's load address and its page tables need this much.
pub const MIN_MEMORY: u64 = 8 << 20;
/// Largest guest memory, in bytes: bounds the maps of pages that are kept for it.
pub const MAX_MEMORY: u64 = 4 << 40;
/// Largest disk, in bytes: what a layer can be of.
pub const MAX_DISK: u64 = 1 << 46;
/// Virtio slots that every VM needs: the random number generator's and the agent's.
const OWN_SLOTS: usize = 2;
/// Most disks of a VM.
pub const MAX_DISKS: usize = VIRTIO_GSIS.len() - OWN_SLOTS;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("{kib} KiB of memory is too little: the minimum is {min}M", kib = .0 >> 10, min = MIN_MEMORY >> 20)]
    MemoryTooSmall(u64),
    #[error("{mib} MiB of memory is too much: the maximum is {max}T", mib = .0 >> 20, max = MAX_MEMORY >> 40)]
    MemoryTooLarge(u64),
    #[error("{kib} KiB of memory is not a whole number of MiB: use a size such as 512M or 2G", kib = .0 >> 10)]
    MemoryNotWhole(u64),
    #[error("`{0}` is not a memory size: use a size such as 512M or 2G")]
    MemorySyntax(String),
    #[error("{0} is not a valid number of vCPUs: a VM can have 1 to {MAX_CPUS}")]
    Cpus(u32),
    #[error("{0} disks are too many: a VM can have up to {MAX_DISKS}")]
    TooManyDisks(usize),
    #[error("two disks have the id `{0}`: set another one with ,id=NAME")]
    DiskIdTaken(String),
    #[error(
        "`{0}` is not a disk id: use 1 to 20 letters, digits, `-`, `_` or `.`, not starting with `.` or `-`"
    )]
    DiskId(String),
    #[error(
        "the disk `{0}` has no path: write it as \
         PATH[,id=NAME][,format=raw|qcow2][,readonly][,passthrough][,overlay[,size=SIZE]]"
    )]
    DiskPath(String),
    #[error(
        "`{0}` is not a disk option: the options are id=NAME, format=raw, format=qcow2, readonly, \
         passthrough, overlay and size=SIZE (in a path, double each comma)"
    )]
    DiskOption(String),
    #[error("`{0}` is not a disk size: use a size such as 512M, 20G or 2T")]
    DiskSize(String),
    #[error("the disk `{0}` has a size of its own: that takes an overlay, so add ,overlay")]
    DiskSizeAlone(String),
    #[error("the disk `{0}` has the option `{1}` twice: remove one of them")]
    DiskOptionTwice(String, String),
    #[error("the kernel command line has {0} characters: the maximum is {max}", max = CMDLINE_MAX - 1)]
    CmdlineTooLong(usize),
    #[error("the kernel command line contains a character that is not printable ASCII")]
    CmdlineNotAscii,
    #[error("{disks} disks and {nets} networks are too many: a VM can have up to {MAX_DISKS} together")]
    TooManyDevices { disks: usize, nets: usize },
    #[error("{0} disks and networks are too many: with --vsock a VM can have up to {max} together", max = MAX_DISKS - 1)]
    TooManyBesideVsock(usize),
    #[error("it boots from disk `{0}`, which it does not have")]
    BootDisk(String),
    #[error("it boots from disk `{0}`, so it cannot also have a kernel or initrd")]
    BootDiskAndKernel(String),
    #[error(transparent)]
    Net(#[from] NetError),
    #[error("the disk `{0}` cannot be both {1} and {2}: remove one of them")]
    DiskConflict(String, &'static str, &'static str),
}

/// The virtual hardware of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmConfig {
    /// Number of vCPUs.
    pub cpus: u32,
    /// Guest memory in bytes.
    pub memory: u64,
    /// Kernel image; none means the bundled guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// The disk that kernel, initrd and command line are read from, anew at each boot; `cmdline` is
    /// added to what is found there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_disk: Option<String>,
    /// Kernel command line.
    #[serde(default)]
    pub cmdline: String,
    /// In the order the guest sees them.
    #[serde(default)]
    pub disks: Vec<DiskConfig>,
    /// In the order the guest sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nets: Vec<NetConfig>,
    /// Programs of the guest and of the host can talk to each other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub vsock: bool,
}

/// How the bytes of a base image are laid out. Recorded when the disk is added and never
/// guessed again: a guest could write another format's magic into a raw disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    Raw,
    Qcow2,
}

impl std::fmt::Display for DiskFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        })
    }
}

/// One disk of a VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiskConfig {
    /// Unique in the VM; the guest reads it as the disk's serial.
    pub id: String,
    /// The base image, absolute.
    pub path: PathBuf,
    pub format: DiskFormat,
    /// The guest cannot write it.
    #[serde(default)]
    pub readonly: bool,
    /// Checkpoints leave it alone.
    #[serde(default)]
    pub passthrough: bool,
    /// The base is never written; an overlay takes the writes from the start.
    #[serde(default)]
    pub overlay: bool,
}

impl VmConfig {
    pub fn validate(&self) -> Result<(), ConfigError> {
        check_memory(self.memory)?;
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(ConfigError::Cpus(self.cpus));
        }
        if self.cmdline.len() >= CMDLINE_MAX {
            return Err(ConfigError::CmdlineTooLong(self.cmdline.chars().count()));
        }
        if !self.cmdline.bytes().all(|b| b == b' ' || b.is_ascii_graphic()) {
            return Err(ConfigError::CmdlineNotAscii);
        }
        if self.disks.len() > MAX_DISKS {
            return Err(ConfigError::TooManyDisks(self.disks.len()));
        }
        for (i, disk) in self.disks.iter().enumerate() {
            disk.validate()?;
            if self.disks[..i].iter().any(|other| other.id == disk.id) {
                return Err(ConfigError::DiskIdTaken(disk.id.clone()));
            }
        }
        if let Some(id) = &self.boot_disk {
            if !self.disks.iter().any(|disk| disk.id == *id) {
                return Err(ConfigError::BootDisk(id.clone()));
            }
            if self.kernel.is_some() || self.initrd.is_some() {
                return Err(ConfigError::BootDiskAndKernel(id.clone()));
            }
        }
        net::validate(&self.nets)?;
        if self.disks.len() + self.nets.len() > MAX_DISKS {
            return Err(ConfigError::TooManyDevices { disks: self.disks.len(), nets: self.nets.len() });
        }
        let count = self.disks.len() + self.nets.len();
        if self.vsock && count == MAX_DISKS {
            return Err(ConfigError::TooManyBesideVsock(count));
        }
        Ok(())
    }
}

impl DiskConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let named = (1..=20).contains(&self.id.len()) && self.id.chars().all(ok);
        if !named || self.id.starts_with(['.', '-']) {
            return Err(ConfigError::DiskId(self.id.clone()));
        }
        let conflicts = [
            (self.readonly, "readonly", self.overlay, "overlay"),
            (self.passthrough, "passthrough", self.overlay, "overlay"),
        ];
        for (a, a_name, b, b_name) in conflicts {
            if a && b {
                return Err(ConfigError::DiskConflict(self.id.clone(), a_name, b_name));
            }
        }
        Ok(())
    }
}

fn check_memory(bytes: u64) -> Result<u64, ConfigError> {
    if bytes < MIN_MEMORY {
        Err(ConfigError::MemoryTooSmall(bytes))
    } else if bytes > MAX_MEMORY {
        Err(ConfigError::MemoryTooLarge(bytes))
    } else if !bytes.is_multiple_of(1 << 20) {
        Err(ConfigError::MemoryNotWhole(bytes))
    } else {
        Ok(bytes)
    }
}

pub fn parse_cpus(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(cpus) if (1..=MAX_CPUS).contains(&cpus) => Ok(cpus),
        _ => Err(format!("a VM can have 1 to {MAX_CPUS} vCPUs")),
    }
}

/// Parses a size of guest memory, see [`parse_size`].
pub fn parse_memory(text: &str) -> Result<u64, ConfigError> {
    check_memory(parse_size(text).ok_or_else(|| ConfigError::MemorySyntax(text.to_owned()))?)
}

/// Parses the size of a disk, which is not a bare number: some count it in bytes, and others in MiB.
pub fn parse_disk_size(text: &str) -> Result<u64, ConfigError> {
    parse_size(text)
        .filter(|size| text.ends_with(|c: char| c.is_ascii_alphabetic()) && *size > 0 && *size <= MAX_DISK)
        .filter(|size| size.is_multiple_of(4096))
        .ok_or_else(|| ConfigError::DiskSize(text.to_owned()))
}

/// Parses bytes a second as `10M` or `512K`, not as a bare number.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let rate = text.strip_suffix("/s").unwrap_or(text);
    parse_size(rate).filter(|rate| *rate > 0 && text.contains(|c: char| c.is_ascii_alphabetic())).ok_or_else(
        || format!("`{}` is not a rate: write it as 10M or 512K, each second", text.escape_debug()),
    )
}

/// Parses a size as `512M`, `2G`, `1T`, `1024K`; a bare number is MiB, as with QEMU's `-m`.
fn parse_size(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "k" | "kib" => 10,
        "" | "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return None,
    };
    match digits.parse::<u64>() {
        Ok(number) => number.checked_shl(shift).filter(|b| b >> shift == number),
        // A fraction of a unit, in whole pages.
        Err(_) => {
            let number: f64 = digits.parse().ok()?;
            let pages = number * (1u64 << shift) as f64 / 4096.0;
            let is_number = digits.starts_with(|c: char| c.is_ascii_digit());
            (pages.round() as u64).checked_mul(4096).filter(|_| is_number)
        }
    }
}

/// A disk as the user named it, before its file was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskArg {
    pub id: Option<String>,
    pub path: PathBuf,
    /// None: as the file looks.
    pub format: Option<DiskFormat>,
    pub readonly: bool,
    pub passthrough: bool,
    pub overlay: bool,
    /// As large as that, and not as its image: takes an overlay.
    pub size: Option<u64>,
}

impl std::str::FromStr for DiskArg {
    type Err = ConfigError;

    /// `PATH[,id=NAME][,format=raw|qcow2][,readonly][,passthrough][,overlay[,size=SIZE]]`; a comma in it is written twice.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let parts = split_options(text);
        let mut parts = parts.iter().map(String::as_str);
        let path = parts.next().unwrap_or_default();
        if path.is_empty() {
            return Err(ConfigError::DiskPath(text.to_owned()));
        }
        let mut disk = Self {
            id: None,
            path: path.into(),
            format: None,
            readonly: false,
            passthrough: false,
            overlay: false,
            size: None,
        };
        let mut seen: Vec<&str> = Vec::new();
        for option in parts {
            let name = match option.split_once('=').map_or(option, |(name, _)| name) {
                "ro" => "readonly",
                name => name,
            };
            if seen.contains(&name) {
                return Err(ConfigError::DiskOptionTwice(text.to_owned(), name.to_owned()));
            }
            seen.push(name);
            match option {
                "readonly" | "ro" => disk.readonly = true,
                "passthrough" => disk.passthrough = true,
                "overlay" => disk.overlay = true,
                "format=raw" => disk.format = Some(DiskFormat::Raw),
                "format=qcow2" => disk.format = Some(DiskFormat::Qcow2),
                _ => match option.split_once('=') {
                    Some(("id", id)) => disk.id = Some(id.to_owned()),
                    Some(("size", size)) => disk.size = Some(parse_disk_size(size)?),
                    _ => return Err(ConfigError::DiskOption(option.to_owned())),
                },
            }
        }
        Ok(disk)
    }
}

/// Parts between commas; two commas are one that belongs to its part, as with QEMU.
fn split_options(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        if c == ',' && rest.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push(c);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_in_a_path_is_written_twice() {
        for (text, path, readonly) in [
            ("a,,b.raw", "a,b.raw", false),
            ("a,,b.raw,readonly", "a,b.raw", true),
            ("a,,,readonly", "a,", true),
            (",,a", ",a", false),
            ("a,,,,b", "a,,b", false),
        ] {
            let disk: DiskArg = text.parse().unwrap();
            assert_eq!((disk.path, disk.readonly), (PathBuf::from(path), readonly), "{text}");
        }
        assert_eq!("a,,,".parse::<DiskArg>(), Err(ConfigError::DiskOption(String::new())));
    }

    #[test]
    fn memory_sizes() {
        assert_eq!(parse_memory("512M"), Ok(512 << 20));
        assert_eq!(parse_memory("2G"), Ok(2 << 30));
        assert_eq!(parse_memory("512"), Ok(512 << 20));
        assert_eq!(parse_memory("16384K"), Ok(16 << 20));
        assert_eq!(parse_memory("0"), Err(ConfigError::MemoryTooSmall(0)));
        assert_eq!(parse_memory("1K"), Err(ConfigError::MemoryTooSmall(1024)));
        assert_eq!(parse_memory("5T"), Err(ConfigError::MemoryTooLarge(5 << 40)));
        assert_eq!(parse_memory("16385K"), Err(ConfigError::MemoryNotWhole(16385 << 10)));
        for wrong in ["", "M", "1X", "-1", "99999999999999G", "20000000T"] {
            assert!(matches!(parse_memory(wrong), Err(ConfigError::MemorySyntax(_))), "{wrong}");
        }
    }

    #[test]
    fn disk_arguments() {
        let disk: DiskArg = "a/b.img,id=root,readonly".parse().unwrap();
        assert_eq!(disk.path, PathBuf::from("a/b.img"));
        assert_eq!(disk.id.as_deref(), Some("root"));
        assert!(disk.readonly && !disk.overlay && !disk.passthrough);
        let disk: DiskArg = "a,,b,,,readonly".parse().unwrap();
        assert_eq!((disk.path, disk.readonly), (PathBuf::from("a,b,"), true));
        assert_eq!(disk.format, None);
        for (format, text) in [(DiskFormat::Raw, "a,format=raw"), (DiskFormat::Qcow2, "a,format=qcow2")] {
            assert_eq!(text.parse::<DiskArg>().unwrap().format, Some(format));
        }
        assert!(matches!("a,format=vmdk".parse::<DiskArg>(), Err(ConfigError::DiskOption(_))));
        assert_eq!(",overlay".parse::<DiskArg>(), Err(ConfigError::DiskPath(",overlay".into())));
        assert_eq!("a,b".parse::<DiskArg>(), Err(ConfigError::DiskOption("b".into())));
        for (twice, option) in
            [("a,id=x,id=y", "id"), ("a,overlay,overlay", "overlay"), ("a,ro,readonly", "readonly")]
        {
            let error = ConfigError::DiskOptionTwice(twice.into(), option.into());
            assert_eq!(twice.parse::<DiskArg>(), Err(error));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let disk = |id: &str| DiskConfig {
            id: id.into(),
            path: "/x".into(),
            format: DiskFormat::Raw,
            readonly: false,
            passthrough: false,
            overlay: false,
        };
        let config = VmConfig {
            cpus: 1,
            memory: 64 << 20,
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            disks: vec![disk("a"), disk("b")],
            nets: Vec::new(),
            vsock: false,
            boot_disk: None,
        };
        assert_eq!(config.validate(), Ok(()));
        for cpus in [0, 255, u32::MAX] {
            assert_eq!(VmConfig { cpus, ..config.clone() }.validate(), Err(ConfigError::Cpus(cpus)));
        }
        let twice = VmConfig { disks: vec![disk("a"), disk("a")], ..config.clone() };
        assert_eq!(twice.validate(), Err(ConfigError::DiskIdTaken("a".into())));
        for id in ["", "a/b", ".a", "-a", "123456789012345678901", "ä"] {
            let config = VmConfig { disks: vec![disk(id)], ..config.clone() };
            assert_eq!(config.validate(), Err(ConfigError::DiskId(id.into())));
        }
        for cmdline in ["a\nb", "\u{e4}"] {
            let config = VmConfig { cmdline: cmdline.into(), ..config.clone() };
            assert_eq!(config.validate(), Err(ConfigError::CmdlineNotAscii));
        }
        let config = VmConfig { cmdline: "x".repeat(CMDLINE_MAX - 1), ..config };
        assert_eq!(config.validate(), Ok(()));
        let long = VmConfig { cmdline: "x".repeat(CMDLINE_MAX), ..config.clone() };
        assert_eq!(long.validate(), Err(ConfigError::CmdlineTooLong(CMDLINE_MAX)));
        let many = VmConfig { disks: (0..15).map(|i| disk(&i.to_string())).collect(), ..config };
        assert_eq!(many.validate(), Err(ConfigError::TooManyDisks(15)));
    }
}
