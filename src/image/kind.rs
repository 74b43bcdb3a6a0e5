//! Which file system, or what else, begins at a place: told by its magic, with its UUID and label.
//!
//! Sources: the on-disk formats as the kernel's Documentation/filesystems and the libblkid manual
//! name them.

use serde::Serialize;

use super::error::Result;
use super::gpt::guid;
use super::source::{Part, le, le16, le32};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// ext2, ext3 or ext4.
    Ext,
    Fat,
    Xfs,
    Btrfs,
    F2fs,
    Squashfs,
    Erofs,
    Iso9660,
    Ntfs,
    Zfs,
    Bcachefs,
    Swap,
    /// Encrypted.
    Luks,
    /// A part of LVM's volume groups.
    Lvm,
    /// A part of a RAID of Linux's.
    Raid,
    Unknown,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ext => "ext4",
            Self::Fat => "FAT",
            Self::Xfs => "XFS",
            Self::Btrfs => "Btrfs",
            Self::F2fs => "F2FS",
            Self::Squashfs => "SquashFS",
            Self::Erofs => "EROFS",
            Self::Iso9660 => "ISO 9660",
            Self::Ntfs => "NTFS",
            Self::Zfs => "ZFS",
            Self::Bcachefs => "bcachefs",
            Self::Swap => "swap",
            Self::Luks => "LUKS (encrypted)",
            Self::Lvm => "LVM",
            Self::Raid => "Linux RAID",
            Self::Unknown => "unknown",
        }
    }

    /// Whether a kernel may be in it that cannot be got at.
    pub fn hides_files(self) -> bool {
        !matches!(self, Self::Ext | Self::Fat | Self::Swap | Self::Unknown)
    }
}

/// What was found, with the names that boot entries call it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub kind: Kind,
    pub uuid: Option<String>,
    pub label: Option<String>,
}

/// Where a mark is, and what it means.
const MARKS: [(u64, &[u8], Kind); 14] = [
    (0, b"LUKS\xba\xbe", Kind::Luks),
    (0, b"XFSB", Kind::Xfs),
    (0, b"hsqs", Kind::Squashfs),
    (3, b"NTFS    ", Kind::Ntfs),
    (512, b"LABELONE", Kind::Lvm),
    (1024, b"\x10\x20\xf5\xf2", Kind::F2fs),
    (1024, b"\xe2\xe1\xf5\xe0", Kind::Erofs),
    (4096, b"\xfc\x4e\x2b\xa9", Kind::Raid),
    (4096 + 24, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", Kind::Bcachefs),
    (4086, b"SWAPSPACE2", Kind::Swap),
    (0x8001, b"CD001", Kind::Iso9660),
    (0x1_0040, b"_BHRfS_M", Kind::Btrfs),
    (0x2_0000, b"\x0c\xb1\xba\0\0\0\0\0", Kind::Zfs),
    (0x2_0400, b"\x0c\xb1\xba\0\0\0\0\0", Kind::Zfs),
];
const EXT_SUPER: u64 = 1024;

pub fn find(part: &Part) -> Result<Found> {
    for (at, mark, kind) in MARKS {
        if part.bytes(at, mark.len())?.is_some_and(|found| found == mark) {
            return named(part, kind);
        }
    }
    if let Some(block) = part.bytes(EXT_SUPER, 1024)?
        && le16(&block, 0x38) == 0xef53
    {
        let uuid = dashed(&le(&block, 0x68));
        return Ok(Found { kind: Kind::Ext, uuid: Some(uuid), label: label(&block[0x78..0x88]) });
    }
    if let Some(sector) = part.bytes(0, 512)?
        && let Some(found) = fat(&sector)
    {
        return Ok(found);
    }
    Ok(Found { kind: Kind::Unknown, uuid: None, label: None })
}

fn named(part: &Part, kind: Kind) -> Result<Found> {
    let (uuid, name) = match kind {
        Kind::Xfs => (Some(32), Some((108, 12))),
        Kind::Btrfs => (Some(0x1_0020), Some((0x1_0000 + 0x12b, 256))),
        Kind::Swap => (Some(1036), Some((1052, 16))),
        _ => (None, None),
    };
    let uuid = match uuid {
        Some(at) => part.bytes(at, 16)?.map(|bytes| dashed(&le(&bytes, 0))),
        None if kind == Kind::Luks => part.bytes(168, 40)?.and_then(|bytes| label(&bytes)),
        None => None,
    };
    let name = match name {
        Some((at, len)) => part.bytes(at, len)?.and_then(|bytes| label(&bytes)),
        None => None,
    };
    Ok(Found { kind, uuid, label: name })
}

fn fat(sector: &[u8]) -> Option<Found> {
    if sector.get(510..512) != Some(&[0x55, 0xaa]) {
        return None;
    }
    let at = if sector.get(82..87) == Some(b"FAT32") {
        67
    } else if sector.get(54..57) == Some(b"FAT") {
        39
    } else {
        return None;
    };
    let serial = le32(sector, at);
    let uuid = format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff);
    let label = label(&sector[at + 4..at + 15]).filter(|label| label != "NO NAME");
    Some(Found { kind: Kind::Fat, uuid: Some(uuid), label })
}

/// The bytes in order, as ext4, XFS and Btrfs have them.
fn dashed(bytes: &[u8; 16]) -> String {
    let mut mixed = *bytes;
    mixed[..4].reverse();
    mixed[4..6].reverse();
    mixed[6..8].reverse();
    guid(&mixed)
}

fn label(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let text = String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned();
    (!text.is_empty()).then_some(text)
}
