//! What a qcow2 header asks of its reader (QEMU's docs/interop/qcow2.txt), as far as it cannot be
//! done here: which feature that is, and what makes an image without it.

use std::path::Path;

use super::foreign::{beside, quoted};
use super::probe::QCOW2_MAGIC;

/// Bytes that are looked at; up to the compression type.
pub const LEN: usize = 105;
const SHORTEST: usize = 72;
/// Of version 3 without what was added later.
const V3: usize = 104;
/// QEMU's limit, too.
const MAX_L1: u32 = (32 << 20) / 8;

/// Incompatible features, by their bits.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Why an image cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    NoHeader,
    Version(u32),
    TooLargeTable(u32),
    Encrypted,
    Dirty,
    Corrupt,
    ExternalData,
    Compression(u8),
    ExtendedL2,
    Unknown(u64),
}

/// Looks at the first [`LEN`] bytes, or at all that there are.
pub fn check(header: &[u8]) -> Result<(), Unfit> {
    let word = |at: usize| {
        let bytes = header.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_be_bytes).ok_or(Unfit::NoHeader)
    };
    if header.len() < SHORTEST || header[..4] != QCOW2_MAGIC {
        return Err(Unfit::NoHeader);
    }
    let version = word(4)?;
    if !(2..=3).contains(&version) {
        return Err(Unfit::Version(version));
    }
    if word(32)? != 0 {
        return Err(Unfit::Encrypted);
    }
    if word(36)? > MAX_L1 {
        return Err(Unfit::TooLargeTable(word(36)?));
    }
    if version < 3 {
        return Ok(());
    }
    let features = u64::from(word(72)?) << 32 | u64::from(word(76)?);
    // The worst first: what is damaged has to be mended before anything else can be done.
    let known = [
        (CORRUPT, Unfit::Corrupt),
        (DIRTY, Unfit::Dirty),
        (EXTERNAL_DATA, Unfit::ExternalData),
        (EXTENDED_L2, Unfit::ExtendedL2),
    ];
    if let Some((_, unfit)) = known.iter().find(|(bit, _)| features & bit != 0) {
        return Err(unfit.clone());
    }
    if features & COMPRESSION != 0 {
        let named = word(100)? as usize > V3;
        return Err(Unfit::Compression(header.get(V3).copied().filter(|_| named).unwrap_or(0)));
    }
    match features & !(CORRUPT | DIRTY | EXTERNAL_DATA | EXTENDED_L2 | COMPRESSION) {
        0 => Ok(()),
        bits => Err(Unfit::Unknown(bits)),
    }
}

impl Unfit {
    /// What it is, and what to do about the image at `path`.
    pub fn text(&self, path: &Path) -> String {
        let from = quoted(path);
        let to = quoted(&beside(path, "qcow2"));
        let convert = format!("`qemu-img convert -f qcow2 -O qcow2 {from} {to}` makes a copy without it");
        match self {
            Self::NoHeader => "this is not a qcow2 image".into(),
            Self::Version(version) => format!("it has version {version}, but only 2 and 3 are supported"),
            Self::TooLargeTable(entries) => format!("its table is too large ({entries} entries)"),
            Self::Encrypted => format!(
                "it is encrypted: put its passphrase into a file KEY and decrypt it with `qemu-img \
                 convert --object secret,id=key,file=KEY --image-opts \
                 driver=qcow2,encrypt.key-secret=key,file.filename={from} -O qcow2 {to}`"
            ),
            Self::Dirty => format!(
                "the image was not closed (dirty bit, lazy refcounts): repair it with `qemu-img check -r \
                 all {from}`"
            ),
            Self::Corrupt => format!(
                "the image is marked corrupt: restore a backup, or try to repair it with `qemu-img check \
                 -r all {from}`"
            ),
            Self::ExternalData => {
                format!("the image has an external data file, which piton does not support: {convert}")
            }
            Self::Compression(kind) => {
                let kind = if *kind == 1 { "zstd".into() } else { format!("method {kind}") };
                format!(
                    "its clusters are compressed with {kind}, but piton supports only zlib: convert it \
                     with `qemu-img convert -f qcow2 -O qcow2 -o compression_type=zlib {from} {to}` (add \
                     -c to keep it compressed)"
                )
            }
            Self::ExtendedL2 => {
                format!(
                    "the image has extended L2 entries (subclusters), which piton does not support: {convert}"
                )
            }
            Self::Unknown(bits) => {
                let bits: Vec<String> =
                    (0..64).filter(|bit| bits >> bit & 1 != 0).map(|bit| bit.to_string()).collect();
                format!(
                    "the image uses a feature that piton does not support (bit {}): {convert}",
                    bits.join(", ")
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(change: impl FnOnce(&mut [u8; LEN])) -> [u8; LEN] {
        let mut header = [0; LEN];
        header[..4].copy_from_slice(&QCOW2_MAGIC);
        header[7] = 3;
        header[103] = 112;
        change(&mut header);
        header
    }

    #[test]
    fn each_feature_is_named_with_what_helps() {
        assert_eq!(check(&header(|_| {})), Ok(()));
        let told = |change: &dyn Fn(&mut [u8; LEN]), words: &[&str]| {
            let unfit = check(&header(|header| change(header))).unwrap_err();
            let text = unfit.text(Path::new("/a/old.img"));
            for word in words {
                assert!(text.contains(word), "{text}");
            }
        };
        told(&|h| h[79] = 1, &["dirty bit", "`qemu-img check -r all /a/old.img`"]);
        told(&|h| h[79] = 3, &["corrupt", "qemu-img check -r all"]);
        told(&|h| h[79] = 4, &["external data file", "-O qcow2 /a/old.img /a/old.qcow2`"]);
        told(&|h| (h[79], h[104]) = (8, 1), &["zstd", "-o compression_type=zlib /a/old.img"]);
        told(&|h| (h[79], h[104]) = (8, 7), &["method 7"]);
        told(&|h| h[79] = 16, &["extended L2", "qemu-img convert"]);
        told(&|h| h[74] = 1, &["bit 40", "qemu-img convert"]);
        told(&|h| h[35] = 2, &["encrypted", "encrypt.key-secret"]);
        told(&|h| h[36] = 1, &["too large"]);
        told(&|h| h[7] = 4, &["version 4"]);
        assert_eq!(check(&header(|_| {})[..71]), Err(Unfit::NoHeader));
        assert_eq!(check(&header(|_| {})[..75]), Err(Unfit::NoHeader));
        assert_eq!(check(&header(|h| h[7] = 2)[..72]), Ok(()));
    }
}
