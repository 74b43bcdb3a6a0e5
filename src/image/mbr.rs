//! Partition tables as the first PCs had them.

use std::collections::BTreeSet;

use super::error::Result;
use super::partition::{Partition, Table, TableKind};
use super::source::{Part, le32};

const SECTOR: u64 = 512;
const ENTRIES: usize = 446;
const EXTENDED: [u8; 3] = [0x05, 0x0f, 0x85];
/// Partitions inside an extended one that are looked at.
const MAX_LOGICAL: u32 = 128;

struct Entry {
    kind: u8,
    start: u64,
    len: u64,
}

/// None: there is none.
pub fn read(disk: &Part) -> Result<Option<Table>> {
    let Some(sector) = disk.bytes(0, SECTOR as usize)? else { return Ok(None) };
    let Some(entries) = entries(&sector) else { return Ok(None) };
    let signature = le32(&sector, 440);
    let mut partitions = Vec::new();
    let mut add = |number: u32, entry: &Entry, start: u64| {
        if start.checked_add(entry.len).is_some_and(|end| end <= disk.len) {
            partitions.push(Partition {
                number,
                start,
                len: entry.len,
                kind: format!("{:02x}", entry.kind),
                name: String::new(),
                uuid: Some(format!("{signature:08x}-{number:02x}")),
            });
        }
    };
    let mut extended = None;
    for (entry, number) in entries.iter().zip(1..) {
        if EXTENDED.contains(&entry.kind) {
            extended.get_or_insert(entry.start);
        } else if entry.kind != 0 && entry.len > 0 {
            add(number, entry, entry.start);
        }
    }
    // Each has a table of its own: of itself, and of the next one.
    let (mut next, mut seen, mut number) = (extended, BTreeSet::new(), 5);
    while let (Some(at), Some(outer)) = (next.take(), extended) {
        if number >= 5 + MAX_LOGICAL || !seen.insert(at) {
            break;
        }
        let Some(sector) = disk.bytes(at, SECTOR as usize)? else { break };
        let Some([here, link, ..]) = self::entries(&sector) else { break };
        if here.kind != 0 && here.len > 0 {
            add(number, &here, at.saturating_add(here.start));
            number += 1;
        }
        if EXTENDED.contains(&link.kind) {
            next = Some(outer.saturating_add(link.start));
        }
    }
    let any = !partitions.is_empty();
    Ok(any.then_some(Table { kind: TableKind::Mbr, partitions, note: None }))
}

/// The four entries of a table; none if the sector is something else, such as a file system's first.
fn entries(sector: &[u8]) -> Option<[Entry; 4]> {
    if sector.get(510..512) != Some(&[0x55, 0xaa]) {
        return None;
    }
    let at = |number: usize| &sector[ENTRIES + 16 * number..ENTRIES + 16 * (number + 1)];
    if (0..4).any(|number| at(number)[0] & 0x7f != 0) {
        return None;
    }
    let entry = |number| {
        let bytes = at(number);
        Entry {
            kind: bytes[4],
            start: u64::from(le32(bytes, 8)) * SECTOR,
            len: u64::from(le32(bytes, 12)) * SECTOR,
        }
    };
    Some([entry(0), entry(1), entry(2), entry(3)])
}
