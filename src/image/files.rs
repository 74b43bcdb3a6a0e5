//! The files of a volume, whichever file system they are on.

use super::ext::Ext;
use super::fat::Fat;
use super::kind::Kind;
use super::node::Node;
use super::source::Part;

/// FAT has its names in UTF-16.
fn utf8(path: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(path).map_err(|_| "it is no name that FAT can have".into())
}

pub enum Files {
    Ext(Box<Ext>),
    Fat(Box<Fat>),
}

impl Files {
    /// None: of a kind that cannot be read. What is wrong with it is a sentence's end.
    pub fn open(kind: Kind, part: &Part) -> Result<Option<Self>, String> {
        Ok(match kind {
            Kind::Ext => Some(Self::Ext(Box::new(Ext::open(part)?))),
            Kind::Fat => Some(Self::Fat(Box::new(Fat::open(part)?))),
            _ => None,
        })
    }

    /// Bytes of a file, links followed; none: there is no such file.
    pub fn len(&self, path: &str) -> Result<Option<u64>, String> {
        match self {
            Self::Ext(files) => files.len(path),
            Self::Fat(files) => files.len(path),
        }
    }

    /// `len` bytes from `offset` on, which the file has as [`Self::len`] says.
    pub fn read(&self, path: &str, offset: u64, len: usize) -> Result<Vec<u8>, String> {
        match self {
            Self::Ext(files) => files.read(path, offset, len),
            Self::Fat(files) => files.read(path, offset, len),
        }
    }

    /// What a path leads to, links followed; none: nowhere.
    pub fn node(&self, path: &str) -> Result<Option<Node>, String> {
        match self {
            Self::Ext(files) => files.node(path),
            Self::Fat(files) => files.node(path),
        }
    }

    /// Hands the bytes of a file of `len` bytes to `each` until it has all or wants no more; first, as soon as
    /// the file is found, none.
    pub fn stream(&self, path: &[u8], len: u64, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<(), String> {
        match self {
            Self::Ext(files) => files.stream(path, len, each),
            Self::Fat(files) => files.stream(utf8(path)?, 0, len, each),
        }
    }

    /// Hands what is in a folder to `each`, until it wants no more: names as they are, links not followed.
    pub fn entries(&self, path: &[u8], each: &mut dyn FnMut(&[u8], Node) -> bool) -> Result<(), String> {
        match self {
            Self::Ext(files) => files.entries(path, each),
            Self::Fat(files) => files.entries(utf8(path)?, each),
        }
    }

    /// Where a link leads.
    pub fn target(&self, path: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Ext(files) => files.target(path),
            Self::Fat(_) => Err("FAT has no links".into()),
        }
    }

    /// Names in a folder, sorted; none: there is no such folder.
    pub fn names(&self, path: &str) -> Result<Option<Vec<String>>, String> {
        match self {
            Self::Ext(files) => files.names(path),
            Self::Fat(files) => files.names(path),
        }
    }
}
