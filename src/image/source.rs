//! Bytes that an image is read from.

use std::sync::Arc;

use super::error::{ImageError, Result};

/// The contents of a disk, as a guest would read them.
pub trait ReadAt: Send + Sync {
    /// Bytes.
    fn len(&self) -> u64;

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `buf`, or says in a sentence's end why not.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::result::Result<(), String>;
}

impl ReadAt for Vec<u8> {
    fn len(&self) -> u64 {
        self.as_slice().len() as u64
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> std::result::Result<(), String> {
        let start = usize::try_from(offset).map_err(|e| e.to_string())?;
        let end = start.checked_add(buf.len()).ok_or("beyond its end")?;
        buf.copy_from_slice(self.get(start..end).ok_or("beyond its end")?);
        Ok(())
    }
}

/// A stretch of a disk.
#[derive(Clone)]
pub struct Part {
    pub disk: Arc<dyn ReadAt>,
    pub start: u64,
    pub len: u64,
}

impl Part {
    pub fn whole(disk: Arc<dyn ReadAt>) -> Self {
        Self { start: 0, len: disk.len(), disk }
    }

    pub fn read(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= self.len);
        let at = end.and_then(|_| self.start.checked_add(offset));
        let Some(at) = at else {
            return Err(ImageError::Read { offset, error: "that is beyond its end".into() });
        };
        self.disk.read_at(buf, at).map_err(|error| ImageError::Read { offset: at, error })
    }

    /// `len` bytes; none if it ends before them.
    pub fn bytes(&self, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
        if offset.checked_add(len as u64).is_none_or(|end| end > self.len) {
            return Ok(None);
        }
        let mut buf = vec![0; len];
        self.read(&mut buf, offset)?;
        Ok(Some(buf))
    }
}

/// Numbers in little-endian order; zeros beyond the end, which callers have checked.
pub fn le<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut found = [0; N];
    if let Some(part) = bytes.get(at..).and_then(|rest| rest.get(..N)) {
        found.copy_from_slice(part);
    }
    found
}

pub fn le16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(le(bytes, at))
}

pub fn le32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(le(bytes, at))
}

pub fn le64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(le(bytes, at))
}
