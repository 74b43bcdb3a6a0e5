//! Checksums of whole files, the holes of sparse ones not read.

use crc32fast::Hasher;

use super::Result;
use super::format::FileSum;
use crate::progress::Progress;
use crate::storage::File;

const STEP: u64 = 1 << 20;

/// Adds `count` zeros: the checksum of twice as many follows from that of half of them.
fn add_zeros(sum: &mut Hasher, mut count: u64) {
    let mut zeros = Hasher::new();
    zeros.update(&[0]);
    while count > 0 {
        if count & 1 == 1 {
            sum.combine(&zeros);
        }
        let half = zeros.clone();
        zeros.combine(&half);
        count >>= 1;
    }
}

/// CRC-32 (IEEE) of all of a file, as any tool tells it. `progress` moves on by the file's length.
pub fn of_file(file: &File, progress: &Progress) -> Result<FileSum> {
    let len = file.len()?;
    let mut sum = Hasher::new();
    let mut buf = vec![0; STEP.min(len) as usize];
    let mut at = 0;
    while at < len {
        progress.check()?;
        let data = file.next_data(at)?.unwrap_or(len..len);
        if data.start > at {
            add_zeros(&mut sum, data.start - at);
            progress.add(data.start - at);
            at = data.start;
            continue;
        }
        let part = &mut buf[..(data.end.min(len) - at).min(STEP) as usize];
        file.read_at(part, at)?;
        sum.update(part);
        at += part.len() as u64;
        progress.add(part.len() as u64);
    }
    Ok(FileSum { bytes: len, crc: sum.finalize() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Access, Storage};

    #[test]
    fn holes_count_as_the_zeros_that_they_are() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = std::fs::File::create(&path).unwrap();
        for (len, writes) in
            [(0, vec![]), (1, vec![]), (3 << 20, vec![5 << 10, 2 << 20]), ((3 << 20) + 7, vec![])]
        {
            file.set_len(0).unwrap();
            file.set_len(len).unwrap();
            for at in writes {
                std::os::unix::fs::FileExt::write_all_at(&file, b"data", at).unwrap();
            }
            let opened = Storage::os().open(&path, Access::ReadOnly).unwrap();
            let sum = of_file(&opened, &Progress::default()).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(sum, FileSum { bytes: len, crc: crc32fast::hash(&bytes) });
        }
    }
}
