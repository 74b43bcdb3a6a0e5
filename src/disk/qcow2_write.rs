//! Writing a disk as a qcow2 image (QEMU's docs/interop/qcow2.txt, version 3) from end to end.
//!
//! There are no snapshots, no backing file and no cluster that is used twice, so the file is laid
//! out in the order in which it is written: a cluster for the header, data and the L2 table behind
//! each stretch that it maps, the L1 table, reference counts. The header comes last, so a file that
//! was cut short is no image.

use std::path::Path;

use super::flat::each_data;
use super::probe::QCOW2_MAGIC;
use super::{Backing, Result};
use crate::progress::Progress;
use crate::storage::{File, Storage};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of an L2 table, and of a cluster of the L1 table.
const ENTRIES: u64 = CLUSTER / 8;
/// 2^4 bits for each cluster.
const REFCOUNT_ORDER: u32 = 4;
const COUNTS: u64 = CLUSTER / 2;
const HEADER_LEN: u32 = 104;
/// The cluster is used once.
const COPIED: u64 = 1 << 63;

struct Writer {
    file: File,
    /// Clusters so far.
    used: u64,
    l1: Vec<u64>,
    /// The L2 table that is filled, and which entry of the L1 table it is for.
    l2: Option<(u64, Vec<u64>)>,
}

/// Writes the disk as a new image, durable.
pub fn write_qcow2(storage: &Storage, path: &Path, disk: &dyn Backing, progress: &Progress) -> Result<()> {
    let l1 = disk.len().div_ceil(CLUSTER * ENTRIES) as usize;
    let mut writer = Writer { file: storage.create_new(path)?, used: 1, l1: vec![0; l1], l2: None };
    each_data(disk, CLUSTER, progress, |at, bytes| writer.data(at / CLUSTER, bytes))?;
    writer.finish(disk.len())
}

impl Writer {
    fn allocate(&mut self, clusters: u64) -> u64 {
        let at = self.used * CLUSTER;
        self.used += clusters;
        at
    }

    /// Whole clusters from guest cluster `first` on; the disk's last one may be cut short.
    fn data(&mut self, first: u64, bytes: &[u8]) -> Result<()> {
        for (cluster, bytes) in (first..).zip(bytes.chunks(CLUSTER as usize)) {
            let table = cluster / ENTRIES;
            if self.l2.as_ref().is_none_or(|(index, _)| *index != table) {
                self.end_table()?;
                self.l2 = Some((table, vec![0; ENTRIES as usize]));
            }
            let at = self.allocate(1);
            self.file.write_at(bytes, at)?;
            if let Some((_, entries)) = &mut self.l2 {
                entries[(cluster % ENTRIES) as usize] = at | COPIED;
            }
        }
        Ok(())
    }

    fn end_table(&mut self) -> Result<()> {
        let Some((index, entries)) = self.l2.take() else { return Ok(()) };
        let at = self.allocate(1);
        self.write_words(at, &entries)?;
        self.l1[index as usize] = at | COPIED;
        Ok(())
    }

    fn write_words(&self, at: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        Ok(self.file.write_at(&bytes, at)?)
    }

    fn finish(mut self, size: u64) -> Result<()> {
        self.end_table()?;
        let l1 = std::mem::take(&mut self.l1);
        let l1_at = self.allocate((l1.len() as u64).div_ceil(ENTRIES));
        self.write_words(l1_at, &l1)?;

        // Blocks and table of reference counts count themselves, too.
        let (mut blocks, mut table) = (0, 0);
        loop {
            let all = self.used + blocks + table;
            let needed = (all.div_ceil(COUNTS), all.div_ceil(COUNTS).div_ceil(ENTRIES));
            if needed == (blocks, table) {
                break;
            }
            (blocks, table) = needed;
        }
        let all = self.used + blocks + table;
        let blocks_at = self.allocate(blocks);
        let table_at = self.allocate(table);
        for block in 0..blocks {
            let counted = (all - block * COUNTS).min(COUNTS) as usize;
            self.file.write_at(&[0, 1].repeat(counted), blocks_at + block * CLUSTER)?;
        }
        let places: Vec<u64> = (0..blocks).map(|block| blocks_at + block * CLUSTER).collect();
        self.write_words(table_at, &places)?;
        // The last cluster is all there; the file's length is a whole number of them.
        self.file.set_len(all * CLUSTER)?;
        self.file.sync_data()?;

        let [high, low] = [|value: u64| (value >> 32) as u32, |value: u64| value as u32];
        let (version, encryption, no_features) = (3, 0, [0; 6]);
        // Offset (two words) and length of the backing file's name, number and offset of snapshots.
        let (no_backing, no_snapshots) = ([0; 3], [0; 3]);
        let mut words = vec![u32::from_be_bytes(QCOW2_MAGIC), version];
        words.extend(no_backing);
        words.extend([CLUSTER_BITS, high(size), low(size), encryption]);
        words.extend([l1.len() as u32, high(l1_at), low(l1_at)]);
        words.extend([high(table_at), low(table_at), table as u32]);
        words.extend(no_snapshots);
        words.extend(no_features);
        words.extend([REFCOUNT_ORDER, HEADER_LEN]);
        let header: Vec<u8> = words.into_iter().flat_map(u32::to_be_bytes).collect();
        self.file.write_at(&header, 0)?;
        Ok(self.file.sync_data()?)
    }
}
