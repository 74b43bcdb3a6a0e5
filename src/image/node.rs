//! What a path in a file system leads to.

use ext4_view::Metadata;

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeKind {
    File,
    Folder,
    /// A symbolic link; where links are followed, nothing is.
    Link,
    /// A device, a socket, a pipe.
    Special,
}

/// Two that are equal are so in all their times, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node(Inner);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Inner {
    Ext(Metadata),
    Fat { folder: bool, len: u64, modified: i64 },
}

impl Node {
    pub(super) fn new(meta: Metadata) -> Self {
        Self(Inner::Ext(meta))
    }

    /// FAT knows neither owners nor modes.
    pub(super) fn of_fat(folder: bool, len: u64, modified: i64) -> Self {
        Self(Inner::Fat { folder, len, modified })
    }

    pub fn kind(&self) -> NodeKind {
        let kind = match &self.0 {
            Inner::Ext(meta) => meta.file_type(),
            Inner::Fat { folder: true, .. } => return NodeKind::Folder,
            Inner::Fat { .. } => return NodeKind::File,
        };
        if kind.is_regular_file() {
            NodeKind::File
        } else if kind.is_dir() {
            NodeKind::Folder
        } else if kind.is_symlink() {
            NodeKind::Link
        } else {
            NodeKind::Special
        }
    }

    /// Bytes, as it claims.
    pub fn len(&self) -> u64 {
        match &self.0 {
            Inner::Ext(meta) => meta.len(),
            Inner::Fat { len, .. } => *len,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Permission bits, with those for set-uid and its kin.
    pub fn mode(&self) -> u32 {
        match &self.0 {
            Inner::Ext(meta) => u32::from(meta.mode()),
            Inner::Fat { folder: true, .. } => 0o755,
            Inner::Fat { .. } => 0o644,
        }
    }

    pub fn owner(&self) -> (u32, u32) {
        match &self.0 {
            Inner::Ext(meta) => (meta.uid(), meta.gid()),
            Inner::Fat { .. } => (0, 0),
        }
    }

    /// Whether all that is shown of them is the same: they can differ in when they were last read, and
    /// in when anything about them was last changed.
    pub fn looks_like(&self, other: &Self) -> bool {
        let seen = |one: &Self| (one.kind(), one.len(), one.mode(), one.owner(), one.modified());
        seen(self) == seen(other)
    }

    /// Seconds since 1970, and nanoseconds.
    pub fn modified(&self) -> (i64, u32) {
        match &self.0 {
            Inner::Ext(meta) => (meta.modified().seconds(), meta.modified().nanoseconds()),
            Inner::Fat { modified, .. } => (*modified, 0),
        }
    }
}
