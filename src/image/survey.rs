//! All that is in an image: its partitions, what is on each, and which systems.

use std::cell::OnceCell;
use std::sync::Arc;

use super::entry::Section;
use super::error::{ImageError, Result};
use super::files::Files;
use super::kind::{self, Found, Kind};
use super::node::Node;
use super::os_release::System;
use super::partition::{Partition, Table, TableKind};
use super::source::{Part, ReadAt};
use super::{gpt, mbr, os_release};

/// Bytes of a text that is read: configurations of boot loaders have some ten thousand.
pub const TEXT_MAX: u64 = 1 << 20;

pub struct Survey {
    pub table: TableKind,
    /// Sentences about what is not as it should be.
    pub notes: Vec<String>,
    pub volumes: Vec<Volume>,
}

/// A partition, or the disk where there are none.
pub struct Volume {
    /// None: the whole disk.
    pub partition: Option<Partition>,
    pub part: Part,
    pub found: Found,
    files: OnceCell<std::result::Result<Option<Files>, String>>,
}

impl Survey {
    pub fn of(disk: Arc<dyn ReadAt>) -> Result<Self> {
        let whole = Part::whole(disk);
        let table = match gpt::read(&whole)? {
            Some(table) => Some(table),
            // A file system may have what looks like a partition table in its first sector.
            None if kind::find(&whole)?.kind == Kind::Unknown => mbr::read(&whole)?,
            None => None,
        };
        let Some(Table { kind, partitions, note }) = table else {
            let volumes = vec![Volume::new(None, whole)?];
            return Ok(Self { table: TableKind::None, notes: Vec::new(), volumes });
        };
        let volume = |partition: Partition| {
            let part = Part { start: partition.start, len: partition.len, ..whole.clone() };
            Volume::new(Some(partition), part)
        };
        let volumes = partitions.into_iter().map(volume).collect::<Result<_>>()?;
        Ok(Self { table: kind, notes: note.into_iter().collect(), volumes })
    }

    /// The volume whose file system or partition has this name, as boot entries use them.
    pub fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.position(|volume| volume.found.uuid.as_deref().is_some_and(|own| own.eq_ignore_ascii_case(uuid)))
    }

    pub fn by_label(&self, label: &str) -> Option<usize> {
        self.position(|volume| volume.found.label.as_deref() == Some(label))
    }

    pub fn by_partition_uuid(&self, uuid: &str) -> Option<usize> {
        self.position(|volume| volume.partition_uuid().is_some_and(|own| own.eq_ignore_ascii_case(uuid)))
    }

    pub fn by_number(&self, number: u32) -> Option<usize> {
        self.position(|volume| volume.partition.as_ref().is_some_and(|own| own.number == number))
    }

    fn position(&self, is_it: impl Fn(&Volume) -> bool) -> Option<usize> {
        self.volumes.iter().position(is_it)
    }
}

impl Volume {
    fn new(partition: Option<Partition>, part: Part) -> Result<Self> {
        Ok(Self { partition, found: kind::find(&part)?, part, files: OnceCell::new() })
    }

    /// For messages.
    pub fn name(&self) -> String {
        match &self.partition {
            Some(partition) => format!("partition {}", partition.number),
            None => "the disk".into(),
        }
    }

    pub fn partition_uuid(&self) -> Option<&str> {
        self.partition.as_ref()?.uuid.as_deref()
    }

    /// Its files, if they can be read here at all.
    pub(super) fn files(&self) -> Result<Option<&Files>> {
        match self.files.get_or_init(|| Files::open(self.found.kind, &self.part)) {
            Ok(files) => Ok(files.as_ref()),
            Err(error) => Err(ImageError::FileSystem { volume: self.name(), error: error.clone() }),
        }
    }

    /// Why its files cannot be read, although they should.
    pub fn broken(&self) -> Option<String> {
        self.files().err().map(|e| e.to_string())
    }

    /// Of what firmware reads, a system may need nothing to boot.
    pub fn is_broken_fat(&self) -> bool {
        self.found.kind == Kind::Fat && self.broken().is_some()
    }

    /// Bytes of a file; none: there is none of this name.
    pub fn len(&self, path: &str) -> Result<Option<u64>> {
        let Some(files) = self.files()? else { return Ok(None) };
        files.len(&absolute(path)).map_err(self.failed(path))
    }

    pub fn has(&self, path: &str) -> bool {
        matches!(self.len(path), Ok(Some(_)))
    }

    /// A file of at most `max` bytes; none: there is none of this name.
    pub fn read(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>> {
        let (Some(files), Some(len)) = (self.files()?, self.len(path)?) else { return Ok(None) };
        if len > max {
            return Err(ImageError::TooLarge { volume: self.name(), path: path.to_owned(), len, max });
        }
        if len > self.part.len {
            return Err(self.failed(path)(format!("it claims to have {len} bytes, more than there are")));
        }
        let bytes = files.read(&absolute(path), 0, usize::try_from(len).unwrap_or(usize::MAX));
        bytes.map(Some).map_err(self.failed(path))
    }

    /// Bytes that a file has, as [`Self::len`] says.
    pub fn read_section(&self, path: &str, section: Section) -> Result<Vec<u8>> {
        let Some(files) = self.files()? else { return Ok(Vec::new()) };
        let Section { offset, len } = section;
        if len > self.part.len {
            return Err(self.failed(path)(format!("it claims to have {len} bytes, more than there are")));
        }
        let bytes = files.read(&absolute(path), offset, usize::try_from(len).unwrap_or(usize::MAX));
        bytes.map_err(self.failed(path))
    }

    /// What a path leads to, links followed within this file system; none: nowhere.
    pub fn node(&self, path: &str) -> Result<Option<Node>> {
        let Some(files) = self.files()? else { return Ok(None) };
        files.node(&absolute(path)).map_err(self.failed(path))
    }

    /// Hands the bytes of a file, found by [`Self::node`], to `each`, until it has all or wants no more; first,
    /// as soon as it is found, none.
    pub fn stream(&self, path: &str, node: &Node, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let Some(files) = self.files()? else { return Ok(()) };
        let len = node.len();
        if len > self.part.len {
            return Err(self.failed(path)(format!("it claims to have {len} bytes, more than there are")));
        }
        files.stream(absolute(path).as_bytes(), len, each).map_err(self.failed(path))
    }

    /// A short text. What is not UTF-8 in it is made so.
    pub fn text(&self, path: &str) -> Result<Option<String>> {
        let bytes = self.read(path, TEXT_MAX)?;
        Ok(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// Names in a folder, sorted; none if there is no such folder.
    pub fn names(&self, path: &str) -> Result<Vec<String>> {
        let Some(files) = self.files()? else { return Ok(Vec::new()) };
        Ok(files.names(&absolute(path)).map_err(self.failed(path))?.unwrap_or_default())
    }

    pub(super) fn failed(&self, path: &str) -> impl FnOnce(String) -> ImageError {
        let (volume, path) = (self.name(), path.to_owned());
        move |error| ImageError::File { volume, path, error }
    }

    /// The system whose root this is. What cannot be read is none.
    pub fn system(&self) -> Option<System> {
        let paths = ["/etc/os-release", "/usr/lib/os-release"];
        let text = paths.iter().find_map(|path| self.text(path).ok().flatten())?;
        Some(os_release::parse(&text))
    }
}

fn absolute(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}
