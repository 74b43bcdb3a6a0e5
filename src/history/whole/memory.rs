//! Memory of checkpoints: all of it into one image, and where two differ.

use std::ops::Range;
use std::path::Path;

use super::Result;
use crate::capture::chain::{MemoryChain, Piece};
use crate::capture::image::{ImageInfo, ImageWriter};
use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::progress::Progress;
use crate::storage::Storage;

/// Bytes that are looked at together.
const STEP: u64 = 1 << 20;

/// Writes one full image of all that a chain holds, each page checked.
pub fn write_full(
    storage: &Storage,
    path: &Path,
    id: Id,
    chain: &MemoryChain,
    progress: &Progress,
) -> Result<ImageInfo> {
    let mut writer = ImageWriter::create(storage, path, id, chain.ranges())?;
    each_part(chain, |gpa, len| {
        progress.check()?;
        for piece in chain.pieces(gpa, len)?.iter().filter(|piece| piece.image.is_some()) {
            let mut bytes = vec![0; (piece.at.end - piece.at.start) as usize];
            chain.read_piece(piece, &mut bytes)?;
            writer.write(piece.at.start, &bytes)?;
        }
        progress.add(len);
        Ok(())
    })?;
    finish(writer, chain, progress)
}

/// Writes an image of what differs from `before`, which is of checkpoint `parent`.
pub fn write_changes(
    storage: &Storage,
    path: &Path,
    id: Id,
    chain: &MemoryChain,
    (parent, before): (Id, &MemoryChain),
    progress: &Progress,
) -> Result<ImageInfo> {
    let mut writer = ImageWriter::create_delta(storage, path, id, parent, chain.ranges())?;
    differences(before, chain, progress, |gpa, pages| Ok(writer.write(gpa, pages)?))?;
    finish(writer, chain, progress)
}

/// What was compressed stays so.
fn finish(mut writer: ImageWriter, chain: &MemoryChain, progress: &Progress) -> Result<ImageInfo> {
    if chain.images()[0].is_compressed() {
        writer.compress_all(progress)?;
    }
    Ok(writer.finish()?)
}

fn each_part(chain: &MemoryChain, mut each: impl FnMut(u64, u64) -> Result<()>) -> Result<()> {
    for &(start, len) in chain.ranges() {
        for at in (start..start + len).step_by(STEP as usize) {
            each(at, STEP.min(start + len - at))?;
        }
    }
    Ok(())
}

/// Tells `each` every run of pages in which `b` differs from `a`, in order, and what `b` has there.
/// Both are memory of the same ranges. Pages that both have from the same image are not read.
/// `progress` moves on by all of memory.
pub fn differences(
    a: &MemoryChain,
    b: &MemoryChain,
    progress: &Progress,
    mut each: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    each_part(b, |gpa, len| {
        progress.check()?;
        for run in suspects(a, b, gpa, len)? {
            let (mut then, mut now) = (vec![0; run.len_bytes()], vec![0; run.len_bytes()]);
            a.read(run.start, &mut then)?;
            b.read(run.start, &mut now)?;
            let page = |at: usize| at * PAGE_SIZE as usize..(at + 1) * PAGE_SIZE as usize;
            let differs = |at: usize| then[page(at)] != now[page(at)];
            let pages = now.len() / PAGE_SIZE as usize;
            let mut at = 0;
            while at < pages {
                let start = at;
                while at < pages && differs(at) {
                    at += 1;
                }
                if start < at {
                    each(run.start + start as u64 * PAGE_SIZE, &now[page(start).start..page(at - 1).end])?;
                }
                at += 1;
            }
        }
        progress.add(len);
        Ok(())
    })
}

trait Bytes {
    fn len_bytes(&self) -> usize;
}

impl Bytes for Range<u64> {
    fn len_bytes(&self) -> usize {
        (self.end - self.start) as usize
    }
}

/// Where the two do not have their pages from the same image, or both none.
fn suspects(a: &MemoryChain, b: &MemoryChain, gpa: u64, len: u64) -> Result<Vec<Range<u64>>> {
    let source = |chain: &MemoryChain, piece: &Piece| piece.image.map(|image| chain.images()[image].id());
    let (before, after) = (a.pieces(gpa, len)?, b.pieces(gpa, len)?);
    let mut suspects: Vec<Range<u64>> = Vec::new();
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    let mut at = gpa;
    while let (Some(was), Some(is)) = (old.peek(), new.peek()) {
        let end = was.at.end.min(is.at.end);
        if source(a, was) != source(b, is) {
            match suspects.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => suspects.push(at..end),
            }
        }
        at = end;
        old.next_if(|piece| piece.at.end == end);
        new.next_if(|piece| piece.at.end == end);
    }
    Ok(suspects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::chain::ImageSpec;

    #[test]
    fn differences_are_exact_and_put_together_again() {
        let dir = tempfile::tempdir().unwrap();
        let (storage, progress) = (Storage::os(), Progress::default());
        let id = |n| Id::from_bytes([n; 16]);
        let ranges = [(0, 8 << 20), (1 << 32, 4 << 20)];
        let page = |n: u8| vec![n; 4096];
        let write = |n: u8, parent: Option<u8>, pages: &[(u64, u8)]| {
            let path = dir.path().join(n.to_string());
            let mut writer = match parent {
                None => ImageWriter::create(&storage, &path, id(n), &ranges).unwrap(),
                Some(parent) => {
                    ImageWriter::create_delta(&storage, &path, id(n), id(parent), &ranges).unwrap()
                }
            };
            pages.iter().for_each(|(gpa, fill)| writer.write(*gpa, &page(*fill)).unwrap());
            ImageSpec { path, id: id(n), crc: writer.finish().unwrap().crc }
        };
        let one = write(1, None, &[(0, 1), (4096, 1), (1 << 20, 1), (1 << 32, 1)]);
        // The second of these is as it was.
        let two = write(2, Some(1), &[(4096, 2), (1 << 20, 1), (2 << 20, 2)]);
        let three = write(3, Some(1), &[(8192, 3), ((1 << 32) + 8192, 3), (0, 0)]);
        let chain = |specs: &[&ImageSpec]| {
            let specs: Vec<ImageSpec> = specs.iter().map(|spec| (*spec).clone()).collect();
            MemoryChain::open(&storage, &specs).unwrap()
        };
        let (a, b, c) = (chain(&[&one]), chain(&[&two, &one]), chain(&[&three, &one]));
        let found = |a: &MemoryChain, b: &MemoryChain| {
            let mut found = Vec::new();
            let tell = |gpa, bytes: &[u8]| {
                found.push((gpa, bytes.len() / 4096, bytes[0]));
                Ok(())
            };
            differences(a, b, &Progress::default(), tell).unwrap();
            found
        };
        assert_eq!(found(&a, &b), [(4096, 1, 2), (2 << 20, 1, 2)]);
        assert_eq!(found(&b, &a), [(4096, 1, 1), (2 << 20, 1, 0)]);
        assert_eq!(found(&b, &b), []);
        let between = [(0, 3, 0), (2 << 20, 1, 0), ((1 << 32) + 8192, 1, 3)];
        assert_eq!(found(&b, &c), between);

        let full = write_full(&storage, &dir.path().join("full"), id(9), &c, &progress).unwrap();
        let full = ImageSpec { path: dir.path().join("full"), id: id(9), crc: full.crc };
        assert_eq!(found(&c, &chain(&[&full])), []);
        let path = dir.path().join("changes");
        let info = write_changes(&storage, &path, id(8), &c, (id(9), &b), &progress).unwrap();
        assert_eq!(info.stored_bytes, 3 * 4096);
        let b_full = write_full(&storage, &dir.path().join("b"), id(9), &b, &progress).unwrap();
        let b_full = ImageSpec { path: dir.path().join("b"), id: id(9), crc: b_full.crc };
        let changes = ImageSpec { path, id: id(8), crc: info.crc };
        assert_eq!(found(&c, &chain(&[&changes, &b_full])), []);
    }
}
