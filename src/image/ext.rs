//! Files on ext2, ext3 and ext4, read by the `ext4-view` crate, which reads through the journal: a
//! guest whose power was cut left a file system that only its journal makes whole.

use ext4_view::{Ext4, Ext4Error, Ext4Read};

use super::node::Node;
use super::source::{Part, le16, le32};

/// Block groups of a file system: at 128 MiB each these are 128 TiB. The crate has room for all.
const MAX_GROUPS: u64 = 1 << 20;
const MAX_NAMES: usize = 4096;
/// Bytes of the largest block of a file system.
const BLOCK_MAX: usize = 64 << 10;
const SUPER: u64 = 1024;

struct Reader(Part);

impl Ext4Read for Reader {
    fn read(
        &mut self,
        start: u64,
        into: &mut [u8],
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(self.0.read(into, start).map_err(|e| e.to_string())?)
    }
}

pub struct Ext(Ext4);

impl Ext {
    /// What is wrong with it is a sentence's end.
    pub fn open(part: &Part) -> Result<Self, String> {
        check(part)?;
        Ext4::load(Box::new(Reader(part.clone()))).map(Self).map_err(|e| e.to_string())
    }

    /// Bytes of a file, links followed; none: there is no such file.
    pub fn len(&self, path: &str) -> Result<Option<u64>, String> {
        match self.0.metadata(path) {
            Ok(meta) if meta.file_type().is_regular_file() => Ok(Some(meta.len())),
            Ok(_) | Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    /// `len` bytes of a file from `offset` on, which it has as [`Self::len`] says.
    pub fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        let mut file = self.0.open(path).map_err(|e| e.to_string())?;
        file.seek_to(offset).map_err(|e| e.to_string())?;
        let mut bytes = vec![0; len];
        let mut got = 0;
        while got < len {
            match file.read_bytes(&mut bytes[got..]).map_err(|e| e.to_string())? {
                0 => return Err(format!("it ends after {got} of {len} bytes")),
                more => got += more,
            }
        }
        Ok(bytes)
    }

    /// What a path leads to, links followed; none: nowhere.
    pub fn node(&self, path: &str) -> Result<Option<Node>, String> {
        match self.0.metadata(path) {
            Ok(meta) => Ok(Some(Node::new(meta))),
            // A link that leads round in a circle leads nowhere, as one whose end is missing.
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory | Ext4Error::TooManySymlinks) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Hands the bytes of a file of `len` bytes to `each`, block by block, until it has all or wants
    /// no more; first, as soon as the file is found, none.
    pub fn stream(&self, path: &[u8], len: u64, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), String> {
        let mut file = self.0.open(path).map_err(|e| e.to_string())?;
        let mut block = vec![0; BLOCK_MAX];
        let (mut got, mut more) = (0, each(&[]));
        while more && got < len {
            let room = block.len().min(usize::try_from(len - got).unwrap_or(usize::MAX));
            // At most to the end of a block.
            let count = file.read_bytes(&mut block[..room]).map_err(|e| e.to_string())?;
            if count == 0 {
                return Err(format!("it ends after {got} of {len} bytes"));
            }
            got += count as u64;
            more = each(&block[..count]);
        }
        Ok(())
    }

    /// Hands what is in a folder to `each`, until it wants no more: names as they are, links not followed.
    pub fn entries(&self, path: &[u8], each: &mut dyn FnMut(&[u8], Node) -> bool) -> Result<(), String> {
        for entry in self.0.read_dir(path).map_err(|e| e.to_string())? {
            let entry = entry.map_err(|e| e.to_string())?;
            let name = entry.file_name();
            if matches!(name.as_ref(), b"." | b"..") {
                continue;
            }
            let meta = entry.metadata().map_err(|e| e.to_string())?;
            if !each(name.as_ref(), Node::new(meta)) {
                break;
            }
        }
        Ok(())
    }

    /// Where a link leads.
    pub fn target(&self, path: &[u8]) -> Result<Vec<u8>, String> {
        let target = self.0.read_link(path).map_err(|e| e.to_string())?;
        Ok(AsRef::<[u8]>::as_ref(&target).to_vec())
    }

    /// Names in a folder, sorted; none: there is no such folder.
    pub fn names(&self, path: &str) -> Result<Option<Vec<String>>, String> {
        let entries = match self.0.read_dir(path) {
            Ok(entries) => entries,
            Err(Ext4Error::NotFound | Ext4Error::NotADirectory) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let mut names = Vec::new();
        for entry in entries.take(MAX_NAMES) {
            let entry = entry.map_err(|e| e.to_string())?;
            if let Ok(name) = entry.file_name().as_str()
                && !matches!(name, "." | "..")
            {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(Some(names))
    }
}

/// What the crate would take for true: how many things it has to make room for.
fn check(part: &Part) -> Result<(), String> {
    let block = part.bytes(SUPER, 1024).map_err(|e| e.to_string())?.ok_or("it is truncated")?;
    let high = if le32(&block, 0x60) & 0x80 == 0 { 0 } else { u64::from(le32(&block, 0x150)) << 32 };
    let blocks = u64::from(le32(&block, 4)) | high;
    let size = 1024u64.checked_shl(le32(&block, 0x18)).filter(|size| *size <= 1 << 16);
    let size = size.ok_or("its blocks are too large")?;
    let per_group = u64::from(le32(&block, 0x20));
    if per_group == 0 || blocks.div_ceil(per_group) > MAX_GROUPS || le16(&block, 0x38) != 0xef53 {
        return Err("its superblock is damaged".into());
    }
    if blocks.checked_mul(size).is_none_or(|len| len > part.len) {
        return Err(format!(
            "it has {blocks} blocks of {size} bytes, but there is only room for {} bytes",
            part.len
        ));
    }
    Ok(())
}
