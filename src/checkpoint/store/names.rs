//! Names in the folder of checkpoints and in a checkpoint's own.

use std::fmt;

use crate::id::Id;

pub const MANIFEST: &str = "manifest.json";
pub const MEMORY: &str = "memory";
/// A copy of memory that can be mapped.
pub const FLAT: &str = "memory-flat";
pub const STATE: &str = "state";
/// Whether it was seen to come back.
pub const VERIFIED: &str = "verified.json";
pub(super) const STAGING: &str = ".staging-";
pub(super) const DELETED: &str = ".deleted-";

/// `file` as [`crate::checkpoint::manifest::MemoryInfo::file`].
pub(super) fn own_name(file: u32) -> String {
    if file == 0 { MEMORY.to_owned() } else { format!("{MEMORY}-{file}") }
}

pub(super) fn kept_name(image: Id) -> String {
    format!("{MEMORY}.{image}")
}

/// Of a name as we write it: no two names are of one id.
pub(super) fn id_of(name: &str) -> Option<Id> {
    name.parse().ok().filter(|id: &Id| id.to_string() == name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leftover {
    /// A checkpoint that was not finished.
    Staging,
    /// A checkpoint that was deleted, but for its files.
    Deleted,
    /// A manifest that did not come to replace the one that is there.
    Temporary,
    /// The same of what came of trying this checkpoint.
    Verdict(Id),
    /// A memory image that its manifest does not name: not yet, or not any more.
    Image,
}

impl Leftover {
    /// Of a name in the folder of checkpoints.
    pub(super) fn of(name: &str) -> Option<Self> {
        let is = |prefix: &str| name.strip_prefix(prefix).and_then(id_of).is_some();
        if is(STAGING) {
            Some(Self::Staging)
        } else if is(DELETED) {
            Some(Self::Deleted)
        } else {
            None
        }
    }
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Staging => "an unfinished checkpoint",
            Self::Deleted => "remains of a deleted checkpoint",
            Self::Temporary => "an unfinished manifest",
            Self::Verdict(_) => "an unfinished record of a verification",
            Self::Image => "an unused memory image",
        })
    }
}
