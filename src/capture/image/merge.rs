//! Several images of a chain become one: what is read through them stays the same.

use std::ops::Range;
use std::path::Path;

use crate::layout::PAGE_SIZE;
use crate::storage::Storage;

use super::format::Group;
use super::pages::{CHUNK, GROUP, GROUP_WORDS};
use super::reader::Image;
use super::writer::{ImageInfo, ImageWriter};
use super::{ImageError, Kind, Result};
use crate::pages::runs;

/// Which of `images`, the uppermost first, holds each page of a part of one group: each image that
/// holds some, and which. Last, the pages that none does.
fn holders<'a>(images: &'a [Image], numbers: &Range<u64>) -> Result<(Vec<Held<'a>>, Words)> {
    let index = numbers.start / GROUP;
    let within = numbers.start - index * GROUP..numbers.end - index * GROUP;
    // Pages that no image so far has.
    let mut open = [0; GROUP_WORDS];
    within.for_each(|bit| open[(bit / 64) as usize] |= 1 << (bit % 64));
    let mut held = Vec::new();
    for (image, source) in images.iter().enumerate() {
        let Some(group) = source.group(index as usize)? else { continue };
        let mut words = open;
        words.iter_mut().zip(&group.bitmap).for_each(|(word, present)| *word &= present);
        open.iter_mut().zip(&group.bitmap).for_each(|(open, present)| *open &= !present);
        if words != [0; GROUP_WORDS] {
            held.push(Held { image, group, words });
        }
        if open == [0; GROUP_WORDS] {
            break;
        }
    }
    Ok((held, open))
}

type Words = [u64; GROUP_WORDS];

struct Held<'a> {
    image: usize,
    group: &'a Group,
    words: Words,
}

/// Which of `images`, the uppermost first, holds each page of a part of one group: runs of their
/// numbers, in no order; `None`: none of them does.
pub(in crate::capture) fn resolve(
    images: &[Image],
    numbers: Range<u64>,
    mut each: impl FnMut(Range<u64>, Option<usize>),
) -> Result<()> {
    let first = numbers.start / GROUP * GROUP;
    let (held, open) = holders(images, &numbers)?;
    let mut tell = |words: &Words, image| {
        runs(words, 0..GROUP, true).for_each(|run| each(first + run.start..first + run.end, image));
    };
    held.iter().for_each(|held| tell(&held.words, Some(held.image)));
    tell(&open, None);
    Ok(())
}

/// A new image that reads as several read through each other, while it is written. Checksums go
/// along with the pages that they are of, so nothing has to be read to be checked: what is
/// damaged stays damaged, and is noticed as before. Only a chunk that is compressed and of which
/// another image has a part is read, and checked. The new image is compressed if one of them is.
#[derive(Debug)]
pub struct Merge {
    sources: Vec<Image>,
    writer: ImageWriter,
    /// Chunks may be compressed.
    packs: bool,
    /// Parts of groups that are left, the last first.
    left: Vec<(Range<u64>, u64)>,
}

impl Merge {
    /// `sources`: the uppermost first. The new image is the uppermost one's, and lies on what the
    /// lowest lies on.
    pub fn begin(storage: &Storage, path: &Path, sources: Vec<Image>) -> Result<Self> {
        let packs = sources.iter().any(Image::is_compressed);
        let merge = Self::with(storage, path, sources, packs)?;
        let writer = if packs { merge.writer } else { merge.writer.streamed() };
        Ok(Self { writer, ..merge })
    }

    /// [`Merge::begin`] of a whole chain into an image that is not compressed: it can be mapped.
    pub fn flat(storage: &Storage, path: &Path, sources: Vec<Image>) -> Result<Self> {
        Self::with(storage, path, sources, false)
    }

    fn with(storage: &Storage, path: &Path, sources: Vec<Image>, packs: bool) -> Result<Self> {
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
        Ok(Self { sources, writer, packs, left })
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
            done += self.copy(numbers, gpa)?;
        }
        Ok(done)
    }

    fn copy(&mut self, numbers: Range<u64>, gpa: u64) -> Result<u64> {
        let Self { sources, writer, packs, .. } = self;
        let first = numbers.start / GROUP * GROUP;
        let address = |number: u64| gpa + (number - (numbers.start - first)) * PAGE_SIZE;
        let mut pages = 0;
        let (held, _) = holders(sources, &numbers)?;
        for Held { image, group, words } in &held {
            let source = &sources[*image];
            pages += words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
            // Whole chunks that stay as they are.
            let mut left = *words;
            for (chunk, frame) in group.frames.iter().enumerate() {
                let alone = held.iter().all(|other| other.image == *image || other.words[chunk] == 0);
                if *packs && !frame.is_none() && alone && words[chunk] == group.bitmap[chunk] {
                    let at = chunk as u64 * CHUNK;
                    let crcs = &group.crcs[at as usize..(at + CHUNK) as usize];
                    writer.adopt_frame(first + at, *frame, (words[chunk], crcs), source.file())?;
                    left[chunk] = 0;
                }
            }
            for run in runs(&left, 0..GROUP, true).flat_map(|run| group.stretches(run)) {
                let (numbers, gpa) = (first + run.start..first + run.end, address(run.start));
                if group.frames[(run.start / CHUNK) as usize].is_none() {
                    let crcs = &group.crcs[run.start as usize..run.end as usize];
                    writer.adopt(numbers, gpa, crcs, source.file())?;
                } else {
                    let mut bytes = vec![0; ((run.end - run.start) * PAGE_SIZE) as usize];
                    source.read_present(numbers, gpa, &mut bytes)?;
                    writer.write(gpa, &bytes)?;
                }
            }
        }
        if *packs {
            for chunk in numbers.start / CHUNK..numbers.end.div_ceil(CHUNK) {
                writer.compress(chunk)?;
            }
        }
        Ok(pages * PAGE_SIZE)
    }

    /// Copies what is left, and makes the file durable; its name is for the caller.
    pub fn finish(mut self) -> Result<ImageInfo> {
        while self.step(u64::MAX)? > 0 {}
        self.writer.finish()
    }
}
