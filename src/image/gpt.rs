//! GUID partition tables (UEFI 2.10, section 5.3).

use super::error::Result;
use super::partition::{Partition, Table, TableKind};
use super::source::{Part, le, le16, le32, le64};

const SIGNATURE: &[u8] = b"EFI PART";
const HEADER: usize = 92;
/// Entries that are looked at, and how long one may be: tables have 128 of 128 bytes.
const MAX_ENTRIES: u32 = 1024;
const MAX_ENTRY: u32 = 4096;

struct Header {
    entries_at: u64,
    count: u32,
    entry: u32,
    entries_crc: u32,
}

/// None: there is no trace of one. A damaged first copy is made up for by the second.
pub fn read(disk: &Part) -> Result<Option<Table>> {
    for sector in [512, 4096] {
        let first = copy(disk, sector, sector)?;
        if let Copy::Good(partitions) = first {
            return Ok(Some(Table { kind: TableKind::Gpt, partitions, note: None }));
        }
        let last = (disk.len / sector).checked_sub(1).map(|last| last * sector);
        let second = last.map_or(Ok(Copy::None), |at| copy(disk, sector, at))?;
        match (first, second) {
            (_, Copy::Good(partitions)) => {
                let note =
                    Some("the first copy of the partition table is damaged: using the second one".into());
                return Ok(Some(Table { kind: TableKind::Gpt, partitions, note }));
            }
            (Copy::Bad, _) | (_, Copy::Bad) => {
                let note = Some("the partition table (GPT) is damaged in both copies".into());
                return Ok(Some(Table { kind: TableKind::Gpt, partitions: Vec::new(), note }));
            }
            _ => {}
        }
    }
    Ok(None)
}

enum Copy {
    Good(Vec<Partition>),
    Bad,
    None,
}

fn copy(disk: &Part, sector: u64, at: u64) -> Result<Copy> {
    let Some(mut header) = disk.bytes(at, sector as usize)? else { return Ok(Copy::None) };
    if !header.starts_with(SIGNATURE) {
        return Ok(Copy::None);
    }
    let len = le32(&header, 12) as usize;
    if !(HEADER..=header.len()).contains(&len) || le64(&header, 24) != at / sector {
        return Ok(Copy::Bad);
    }
    let crc = le32(&header, 16);
    header[16..20].fill(0);
    if crc32fast::hash(&header[..len]) != crc {
        return Ok(Copy::Bad);
    }
    let header = Header {
        entries_at: le64(&header, 72).saturating_mul(sector),
        count: le32(&header, 80),
        entry: le32(&header, 84),
        entries_crc: le32(&header, 88),
    };
    if header.count > MAX_ENTRIES || !(128..=MAX_ENTRY).contains(&header.entry) {
        return Ok(Copy::Bad);
    }
    let Some(entries) = disk.bytes(header.entries_at, (header.count * header.entry) as usize)? else {
        return Ok(Copy::Bad);
    };
    if crc32fast::hash(&entries) != header.entries_crc {
        return Ok(Copy::Bad);
    }
    let each = entries.chunks_exact(header.entry as usize).zip(1..);
    Ok(Copy::Good(each.filter_map(|(entry, number)| partition(entry, number, disk, sector)).collect()))
}

fn partition(entry: &[u8], number: u32, disk: &Part, sector: u64) -> Option<Partition> {
    let kind: [u8; 16] = le(entry, 0);
    if kind == [0; 16] {
        return None;
    }
    let (first, last) = (le64(entry, 32), le64(entry, 40));
    let start = first.checked_mul(sector)?;
    let len = last.checked_sub(first)?.checked_add(1)?.checked_mul(sector)?;
    start.checked_add(len).filter(|end| *end <= disk.len)?;
    let name: Vec<u16> =
        (56..128).step_by(2).map(|at| le16(entry, at)).take_while(|unit| *unit != 0).collect();
    Some(Partition {
        number,
        start,
        len,
        kind: guid(&kind),
        name: String::from_utf16_lossy(&name),
        uuid: Some(guid(&le(entry, 16))),
    })
}

/// As udev and kernels write it: the first three groups are little-endian.
pub fn guid(bytes: &[u8; 16]) -> String {
    let (a, b, c) = (le32(bytes, 0), le16(bytes, 4), le16(bytes, 6));
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("{a:08x}-{b:04x}-{c:04x}-{}-{}", hex(&bytes[8..10]), hex(&bytes[10..]))
}
