//! Several images of a chain become one: what is read through them stays the same.

use std::ops::Range;
use std::path::Path;

use crate::layout::PAGE_SIZE;
use crate::storage::Storage;

use super::format::Group;
use super::pages::GROUP;
use super::reader::Image;
use super::writer::{ImageInfo, ImageWriter};
use super::{ImageError, Kind, Result};
use crate::pages::runs;

/// Which of `images`, the uppermost first, holds each page of a part of one group: runs of their
/// numbers, in no order; `None`: none of them does.
pub(in crate::capture) fn resolve(
    images: &[Image],
    numbers: Range<u64>,
    mut each: impl FnMut(Range<u64>, Option<(usize, &Group)>),
) -> Result<()> {
    let index = numbers.start / GROUP;
    let first = index * GROUP;
    let within = numbers.start - first..numbers.end - first;
    let shifted = |run: Range<u64>| first + run.start..first + run.end;
    // Pages that no image so far has.
    let mut open = [u64::MAX; GROUP as usize / 64];
    for (at, image) in images.iter().enumerate() {
        let Some(group) = image.group(index as usize)? else { continue };
        let mut found = open;
        found.iter_mut().zip(&group.bitmap).for_each(|(found, present)| *found &= present);
        runs(&found, within.clone(), true).for_each(|run| each(shifted(run), Some((at, group))));
        open.iter_mut().zip(&group.bitmap).for_each(|(open, present)| *open &= !present);
        if runs(&open, within.clone(), true).next().is_none() {
            return Ok(());
        }
    }
    runs(&open, within, true).for_each(|run| each(shifted(run), None));
    Ok(())
}

/// A new image that reads as several read through each other, while it is written. Checksums go
/// along with the pages that they are of, so nothing has to be read to be checked: what is
/// damaged stays damaged, and is noticed as before.
#[derive(Debug)]
pub struct Merge {
    sources: Vec<Image>,
    writer: ImageWriter,
    /// Parts of groups that are left, the last first.
    left: Vec<(Range<u64>, u64)>,
}

impl Merge {
    /// `sources`: the uppermost first. The new image is the uppermost one's, and lies on what the
    /// lowest lies on.
    pub fn begin(storage: &Storage, path: &Path, sources: Vec<Image>) -> Result<Self> {
        let (Some(top), Some(bottom)) = (sources.first(), sources.last()) else {
            return Err(ImageError::Chain { path: path.to_owned(), what: "is of no images".into() });
        };
        let (id, ranges) = (top.id(), top.ranges());
        let writer = match bottom.kind() {
            Kind::Full => ImageWriter::create(storage, path, id, ranges)?,
            Kind::Delta(parent) => ImageWriter::create_delta(storage, path, id, parent, ranges)?,
        };
        let mut left = Vec::new();
        for (numbers, gpa) in top.header().ram.parts() {
            let mut at = numbers.start;
            while at < numbers.end {
                let end = numbers.end.min((at / GROUP + 1) * GROUP);
                left.push((at..end, gpa + (at - numbers.start) * PAGE_SIZE));
                at = end;
            }
        }
        left.reverse();
        Ok(Self { sources, writer, left })
    }

    /// Bytes that may have to be copied, at most.
    pub fn total(&self) -> u64 {
        self.sources.iter().map(Image::present_bytes).sum()
    }

    /// Copies at least `bytes`, if there are so many; returns how many it copied. With none there
    /// are none left.
    pub fn step(&mut self, bytes: u64) -> Result<u64> {
        let mut done = 0;
        while done < bytes.max(1)
            && let Some((numbers, gpa)) = self.left.pop()
        {
            let mut runs = Vec::new();
            resolve(&self.sources, numbers.clone(), |run, from| {
                if let Some((source, group)) = from {
                    let within = (run.start % GROUP) as usize..((run.end - 1) % GROUP) as usize + 1;
                    runs.push((run, source, group.crcs[within].to_vec()));
                }
            })?;
            for (run, source, crcs) in runs {
                let at = gpa + (run.start - numbers.start) * PAGE_SIZE;
                done += (run.end - run.start) * PAGE_SIZE;
                self.writer.adopt(run, at, &crcs, self.sources[source].file())?;
            }
        }
        Ok(done)
    }

    /// Copies what is left, and makes the file durable; its name is for the caller.
    pub fn finish(mut self) -> Result<ImageInfo> {
        while self.step(u64::MAX)? > 0 {}
        self.writer.finish()
    }
}
