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
pub struct Node(Metadata);

impl Node {
    pub(super) fn new(meta: Metadata) -> Self {
        Self(meta)
    }

    pub fn kind(&self) -> NodeKind {
        let kind = self.0.file_type();
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
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Permission bits, with those for set-uid and its kin.
    pub fn mode(&self) -> u32 {
        u32::from(self.0.mode())
    }

    pub fn owner(&self) -> (u32, u32) {
        (self.0.uid(), self.0.gid())
    }

    /// Whether all that is shown of them is the same: they can differ in when they were last read, and
    /// in when anything about them was last changed.
    pub fn looks_like(&self, other: &Self) -> bool {
        let seen = |one: &Self| (one.kind(), one.len(), one.mode(), one.owner(), one.modified());
        seen(self) == seen(other)
    }

    /// Seconds since 1970, and nanoseconds.
    pub fn modified(&self) -> (i64, u32) {
        let time = self.0.modified();
        (time.seconds(), time.nanoseconds())
    }
}
