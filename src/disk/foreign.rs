//! Files that are no disk as they lie: images in formats that are not read here, and packed ones.
//!
//! Told by what is in them, never by their names. A guest that got one as a raw disk would write
//! over its header, and all in it would be lost.

use std::fmt;
use std::path::Path;

use super::limits::SECTOR;
use crate::storage::{File, StorageError};

/// So much of a file's start is looked at: an ISO's descriptor is the farthest.
pub const HEAD: usize = 0x8000 + 6;
/// And so much of its end: a footer, and the one byte more that some have before it.
pub const TAIL: usize = SECTOR as usize;

/// What a file is that is no disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Foreign {
    /// An image that `qemu-img convert` reads.
    Image(&'static Format),
    /// One file, packed.
    Packed(&'static Packing),
    /// Other files, put into one.
    Archive(&'static Packing),
    /// A CD's image. Its bytes are the disk's, but nothing that is written to it is kept sound.
    Iso,
}

/// An image format.
#[derive(Debug, PartialEq, Eq)]
pub struct Format {
    /// What its makers call it.
    name: &'static str,
    /// What QEMU calls it.
    driver: &'static str,
}

/// A way to pack files.
#[derive(Debug, PartialEq, Eq)]
pub struct Packing {
    name: &'static str,
    /// The command that unpacks it, before the file's name.
    unpack: &'static str,
    /// How names of its files end.
    suffix: &'static str,
}

const VMDK: Format = Format { name: "VMDK", driver: "vmdk" };
const VHDX: Format = Format { name: "VHDX", driver: "vhdx" };
const VHD: Format = Format { name: "VHD", driver: "vpc" };
const VDI: Format = Format { name: "VDI", driver: "vdi" };
const QCOW: Format = Format { name: "qcow (version 1)", driver: "qcow" };
const QED: Format = Format { name: "QED", driver: "qed" };
const PARALLELS: Format = Format { name: "Parallels", driver: "parallels" };
const DMG: Format = Format { name: "DMG", driver: "dmg" };

/// Where the mark of an image is, and what it is of.
const IMAGES: [(usize, &[u8], &Format); 9] = [
    (0, b"KDMV", &VMDK),
    (0, b"COWD", &VMDK),
    (0, b"# Disk DescriptorFile", &VMDK),
    (0, b"vhdxfile", &VHDX),
    (0, b"conectix", &VHD),
    (0x40, &[0x7f, 0x10, 0xda, 0xbe], &VDI),
    (0, b"QFI\xfb\0\0\0\x01", &QCOW),
    (0, b"QED\0", &QED),
    (0, b"WithoutFreeSpace", &PARALLELS),
];
/// The older mark of Parallels.
const PARALLELS_OLD: &[u8] = b"WithouFreSpacExt";

const GZIP: Packing = Packing { name: "gzip", unpack: "gzip -dk", suffix: ".gz" };
const XZ: Packing = Packing { name: "xz", unpack: "xz -dk", suffix: ".xz" };
const ZSTD: Packing = Packing { name: "zstd", unpack: "zstd -d", suffix: ".zst" };
const BZIP2: Packing = Packing { name: "bzip2", unpack: "bzip2 -dk", suffix: ".bz2" };
const LZ4: Packing = Packing { name: "lz4", unpack: "lz4 -d", suffix: ".lz4" };
const ZIP: Packing = Packing { name: "zip", unpack: "unzip", suffix: ".zip" };
const SEVEN_ZIP: Packing = Packing { name: "7z", unpack: "7z x", suffix: ".7z" };
const TAR: Packing = Packing { name: "tar (or OVA)", unpack: "tar -xf", suffix: ".tar" };

const PACKED: [(&[u8], &Packing); 5] = [
    (&[0x1f, 0x8b, 8], &GZIP),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], &XZ),
    (&[0x28, 0xb5, 0x2f, 0xfd], &ZSTD),
    (&[4, 0x22, 0x4d, 0x18], &LZ4),
    (b"BZh", &BZIP2),
];
const ARCHIVES: [(usize, &[u8], &Packing); 3] =
    [(0, b"PK\x03\x04", &ZIP), (0, b"7z\xbc\xaf\x27\x1c", &SEVEN_ZIP), (257, b"ustar", &TAR)];
/// What follows `BZh` and a digit: too little without it to tell by.
const BZIP2_BLOCK: [u8; 6] = [0x31, 0x41, 0x59, 0x26, 0x53, 0x59];
const ISO: &[u8] = b"CD001";
const ISO_AT: usize = 0x8001;
const VHD_FOOTER: &[u8] = b"conectix";
const DMG_FOOTER: &[u8] = b"koly";

/// Looks at the first [`HEAD`] and the last [`TAIL`] bytes of a file, or all that there are. None:
/// it may well be the bytes of a disk.
pub fn recognise(head: &[u8], tail: &[u8]) -> Option<Foreign> {
    let at = |offset: usize, mark: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(mark));
    if let Some((_, _, format)) = IMAGES.iter().find(|(offset, mark, _)| at(*offset, mark)) {
        return Some(Foreign::Image(format));
    }
    if at(0, PARALLELS_OLD) {
        return Some(Foreign::Image(&PARALLELS));
    }
    let packed = PACKED.iter().find(|(mark, packing)| {
        at(0, mark)
            && (**packing != BZIP2 || head.get(3).is_some_and(u8::is_ascii_digit) && at(4, &BZIP2_BLOCK))
    });
    if let Some((_, packing)) = packed {
        return Some(Foreign::Packed(packing));
    }
    if let Some((_, _, packing)) = ARCHIVES.iter().find(|(offset, mark, _)| at(*offset, mark)) {
        return Some(Foreign::Archive(packing));
    }
    // A fixed VHD is the disk's bytes and a footer, of 511 bytes if an old program made it.
    if tail.len() >= TAIL - 1 && (tail.starts_with(VHD_FOOTER) || tail[1..].starts_with(VHD_FOOTER)) {
        return Some(Foreign::Image(&VHD));
    }
    if tail.starts_with(DMG_FOOTER) && tail.len() == TAIL {
        return Some(Foreign::Image(&DMG));
    }
    at(ISO_AT, ISO).then_some(Foreign::Iso)
}

/// As [`recognise`].
pub(super) fn look_at(file: &File) -> Result<Option<Foreign>, StorageError> {
    let mut head = vec![0; HEAD];
    let got = file.read_up_to(&mut head, 0)?;
    let mut tail = vec![0; TAIL];
    let start = file.len()?.saturating_sub(TAIL as u64);
    let ends = file.read_up_to(&mut tail, start)?;
    Ok(recognise(&head[..got], &tail[..ends]))
}

/// An image in a format of QEMU's that is not read here.
pub fn of_driver(driver: &str) -> Option<Foreign> {
    let formats = IMAGES.iter().map(|(_, _, format)| *format).chain([&DMG]);
    formats.into_iter().find(|format| format.driver == driver).map(Foreign::Image)
}

impl Foreign {
    /// What makes a disk of it, as a sentence's end; `path` is the file.
    pub fn help(self, path: &Path) -> String {
        let from = quoted(path);
        match self {
            Self::Image(format) => {
                let to = quoted(&beside(path, "qcow2"));
                format!("convert it with `qemu-img convert -f {} -O qcow2 {from} {to}`", format.driver)
            }
            Self::Packed(packing) => {
                // Some refuse names that end otherwise, and all know what to call what they unpack.
                if path.to_string_lossy().ends_with(packing.suffix) {
                    format!("unpack it with `{} {from}`", packing.unpack)
                } else {
                    let command = packing.unpack.split(' ').next().unwrap_or(packing.unpack);
                    let to = quoted(&beside(path, "unpacked"));
                    format!("unpack it with `{command} -dc < {from} > {to}`")
                }
            }
            Self::Archive(packing) => format!("unpack it with `{} {from}`", packing.unpack),
            Self::Iso => "the guest's writes would damage it: add ,readonly or ,overlay".to_owned(),
        }
    }
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(format) => write!(f, "a {} image", format.name),
            Self::Packed(packing) => write!(f, "compressed with {}", packing.name),
            Self::Archive(packing) => write!(f, "a {} archive", packing.name),
            Self::Iso => f.write_str("an ISO image of a CD"),
        }
    }
}

/// The path with another ending, for what is made of it.
pub(super) fn beside(path: &Path, extension: &str) -> std::path::PathBuf {
    let other = path.with_extension(extension);
    if other != path {
        return other;
    }
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push("-new.");
    name.push(extension);
    path.with_file_name(name)
}

/// A path as a shell takes it for one word.
pub(super) fn quoted(path: &Path) -> String {
    let text = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,".contains(c);
    if !text.is_empty() && text.chars().all(plain) && !text.starts_with('-') {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(head: &[u8], tail: &[u8]) -> String {
        recognise(head, tail).map_or(String::new(), |found| found.to_string())
    }

    fn with(len: usize, at: usize, mark: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; len];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bytes
    }

    #[test]
    fn each_is_told_by_its_mark() {
        for (offset, mark, format) in IMAGES {
            assert_eq!(found(&with(HEAD, offset, mark), &[]), format!("a {} image", format.name));
            assert_eq!(of_driver(format.driver), Some(Foreign::Image(format)));
        }
        for (mark, packing) in PACKED.iter().filter(|(_, packing)| **packing != BZIP2) {
            assert_eq!(found(&with(HEAD, 0, mark), &[]), format!("compressed with {}", packing.name));
        }
        for (offset, mark, packing) in ARCHIVES {
            assert_eq!(found(&with(HEAD, offset, mark), &[]), format!("a {} archive", packing.name));
        }
        assert_eq!(found(b"BZh91AY&SY", &[]), "compressed with bzip2");
        assert_eq!(found(b"BZh9 is how a text may begin", &[]), "");
        assert_eq!(found(&with(HEAD, ISO_AT, ISO), &[]), "an ISO image of a CD");
        assert_eq!(found(&[0; HEAD], &with(TAIL, 0, VHD_FOOTER)), "a VHD image");
        assert_eq!(found(&[0; HEAD], &with(TAIL, 1, VHD_FOOTER)), "a VHD image");
        assert_eq!(found(&[0; HEAD], &with(TAIL, 0, DMG_FOOTER)), "a DMG image");
    }

    #[test]
    fn a_disk_is_not_taken_for_another_thing() {
        assert_eq!(found(&[0; HEAD], &[0; TAIL]), "");
        assert_eq!(found(&[], &[]), "");
        // A boot sector, and a LUKS header, which a guest may have written itself.
        assert_eq!(found(&with(HEAD, 510, &[0x55, 0xaa]), &[0; TAIL]), "");
        assert_eq!(found(&with(HEAD, 0, b"LUKS\xba\xbe"), &[0; TAIL]), "");
        assert_eq!(found(b"QFI\xfb\0\0\0\x03", &[]), "");
        assert_eq!(found(&[0; HEAD], &with(TAIL, 2, VHD_FOOTER)), "");
    }

    #[test]
    fn what_helps_is_a_line_for_a_shell() {
        let help = |what: Foreign, path: &str| what.help(Path::new(path));
        let line = "`qemu-img convert -f vmdk -O qcow2 /a/b.vmdk /a/b.qcow2`";
        assert!(help(Foreign::Image(&VMDK), "/a/b.vmdk").contains(line));
        let line = "'/a/it'\\''s.qcow2' '/a/it'\\''s-new.qcow2'";
        assert!(help(Foreign::Image(&QCOW), "/a/it's.qcow2").contains(line));
        assert!(help(Foreign::Packed(&XZ), "/a/b.img.xz").contains("`xz -dk /a/b.img.xz`"));
        assert!(help(Foreign::Packed(&ZSTD), "/a/b").contains("`zstd -dc < /a/b > /a/b.unpacked`"));
        assert!(help(Foreign::Archive(&TAR), "/a/b.ova").contains("`tar -xf /a/b.ova`"));
    }
}
