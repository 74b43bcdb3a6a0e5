//! A disk in memory that can fail, and that never lets anybody reach beyond its end.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crate::disk::{Backing, Disk, DiskError, Result};
use crate::events::MachineEvent;
use crate::storage::StorageError;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    Read(u64, u64),
    Write(u64, u64),
    Zero(u64, u64),
    Discard(u64, u64),
    Flush,
}

pub struct MemDisk {
    bytes: Mutex<Vec<u8>>,
    ops: Mutex<Vec<Op>>,
    pub failing: AtomicBool,
    /// Changes find no room on the host.
    pub full: AtomicBool,
    told: Mutex<Vec<MachineEvent>>,
    read_only: bool,
}

impl MemDisk {
    pub fn new(len: usize, read_only: bool) -> Arc<Self> {
        let mut bytes = vec![0; len];
        // No two sectors near each other are alike, nor are the ends of one.
        for (sector, bytes) in bytes.chunks_mut(512).enumerate() {
            bytes.fill(sector as u8);
            bytes[0] = (sector >> 8) as u8 ^ 0x55;
        }
        Arc::new(Self {
            bytes: Mutex::new(bytes),
            ops: Mutex::default(),
            failing: AtomicBool::new(false),
            full: AtomicBool::new(false),
            told: Mutex::default(),
            read_only,
        })
    }

    pub fn contents(&self, range: Range<usize>) -> Vec<u8> {
        self.bytes.lock().unwrap()[range].to_vec()
    }

    /// What was asked of the disk since the last call.
    pub fn take_ops(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock().unwrap())
    }

    /// What the device told its owner.
    pub fn told(&self, event: MachineEvent) {
        self.told.lock().unwrap().push(event);
    }

    pub fn take_told(&self) -> Vec<MachineEvent> {
        std::mem::take(&mut self.told.lock().unwrap())
    }

    fn note(&self, op: Op) -> Result<()> {
        if let Op::Read(at, len) | Op::Write(at, len) | Op::Zero(at, len) | Op::Discard(at, len) = op {
            assert!(at.checked_add(len).is_some_and(|end| end <= self.len()), "{op:?} is beyond the end");
        }
        if self.read_only {
            assert!(matches!(op, Op::Read(..) | Op::Flush), "{op:?} of a read-only disk");
        }
        if !matches!(op, Op::Read(..)) && self.full.load(Ordering::SeqCst) {
            let source = std::io::Error::from_raw_os_error(libc::ENOSPC);
            let path = "/images/root.raw".into();
            return Err(StorageError::Range { op: "write", path, offset: 0, len: 512, source }.into());
        }
        self.ops.lock().unwrap().push(op);
        if self.failing.load(Ordering::SeqCst) { Err(DiskError::Broken) } else { Ok(()) }
    }
}

fn range(offset: u64, len: u64) -> Range<usize> {
    offset as usize..(offset + len) as usize
}

impl Backing for MemDisk {
    fn len(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.note(Op::Read(offset, buf.len() as u64))?;
        buf.copy_from_slice(&self.bytes.lock().unwrap()[range(offset, buf.len() as u64)]);
        Ok(())
    }
    fn next_data(&self, _: u64) -> Result<Option<Range<u64>>> {
        Ok(None)
    }
}

impl Disk for MemDisk {
    fn is_read_only(&self) -> bool {
        self.read_only
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.note(Op::Write(offset, buf.len() as u64))?;
        self.bytes.lock().unwrap()[range(offset, buf.len() as u64)].copy_from_slice(buf);
        Ok(())
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.note(Op::Zero(offset, len))?;
        self.bytes.lock().unwrap()[range(offset, len)].fill(0);
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.note(Op::Discard(offset, len))
    }
    fn flush(&self) -> Result<()> {
        self.note(Op::Flush)
    }
}
