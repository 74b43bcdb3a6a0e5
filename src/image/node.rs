//! What a path in a file system leads to.

use ext4_view::Metadata;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    File,
    Folder,
    /// A device, a socket, a pipe.
    Special,
}

/// Links have been followed. Two that are equal are so in all their times, too.
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

    /// Seconds since 1970, and nanoseconds.
    pub fn modified(&self) -> (i64, u32) {
        let time = self.0.modified();
        (time.seconds(), time.nanoseconds())
    }
}
