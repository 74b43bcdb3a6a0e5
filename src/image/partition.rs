//! What a partition table says, whichever it is.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TableKind {
    Gpt,
    Mbr,
    /// The disk is one file system, or empty.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub kind: TableKind,
    pub partitions: Vec<Partition>,
    /// A sentence about what is not as it should be.
    pub note: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// As Linux counts them, from 1.
    pub number: u32,
    /// Bytes from the start of the disk.
    pub start: u64,
    pub len: u64,
    /// The type: a GUID, or two hexadecimal digits.
    pub kind: String,
    pub name: String,
    /// What Linux calls `PARTUUID`.
    pub uuid: Option<String>,
}
