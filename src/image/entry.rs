//! Something that an image can boot.

use serde::Serialize;

/// Where an entry was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The menu of GRUB.
    Grub,
    /// A file of the Boot Loader Specification.
    LoaderEntry,
    /// A unified kernel image.
    UnifiedKernel,
    /// A kernel in /boot that no boot loader speaks of.
    KernelFile,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub title: String,
    /// What a saved default calls it.
    pub id: String,
    pub origin: Origin,
    /// Where the file is that speaks of it, as an index into the volumes.
    pub volume: usize,
    pub kernel: File,
    pub initrds: Vec<File>,
    pub cmdline: String,
}

/// A file on one of the volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    pub volume: usize,
    pub path: String,
    /// None: all of it.
    pub section: Option<Section>,
}

impl File {
    pub fn whole(volume: usize, path: impl Into<String>) -> Self {
        Self { volume, path: path.into(), section: None }
    }
}

/// Bytes of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Section {
    pub offset: u64,
    pub len: u64,
}

/// What can be booted, and which of it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Menu {
    pub entries: Vec<Entry>,
    /// An index into the entries, or why there is none.
    pub default: Result<usize, String>,
}
