//! A memory image and what it lies on: a delta, the deltas below it, and a full image at the end.

use std::ops::{ControlFlow, Range};
use std::path::PathBuf;

use super::image::{GROUP, Image, ImageError, Kind, Result, resolve};
use crate::id::Id;
use crate::layout::PAGE_SIZE;
use crate::storage::Storage;

/// Most images of a chain.
pub const MAX_IMAGES: usize = 4096;

/// Where an image is and which one has to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageSpec {
    pub path: PathBuf,
    /// Of the checkpoint that it was made for.
    pub id: Id,
    pub crc: u32,
}

/// A stretch of guest memory that comes from one place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Guest addresses.
    pub at: Range<u64>,
    /// Which image of the chain holds it; none: it is zeros.
    pub image: Option<usize>,
    /// The numbers of its pages.
    numbers: Range<u64>,
}

/// Reads may come from several threads.
#[derive(Debug)]
pub struct MemoryChain {
    /// The checkpoint's own first.
    images: Vec<Image>,
}

impl MemoryChain {
    /// `specs`: the checkpoint's own image first, then what each lies on.
    pub fn open(storage: &Storage, specs: &[ImageSpec]) -> Result<Self> {
        Self::open_each(specs.iter().map(|spec| (storage, spec)))
    }

    /// [`MemoryChain::open`] of images that do not all lie in the same place.
    pub fn open_each<'a>(specs: impl IntoIterator<Item = (&'a Storage, &'a ImageSpec)>) -> Result<Self> {
        let mut images: Vec<Image> = Vec::new();
        for (storage, spec) in specs {
            let image = Image::open(storage, &spec.path, spec.id, spec.crc)?;
            if let Some(above) = images.last() {
                let path = above.path().to_owned();
                if above.kind() != Kind::Delta(spec.id) {
                    return Err(ImageError::Chain { path, what: format!("is not based on {}", spec.id) });
                }
                if above.ranges() != image.ranges() {
                    let what = format!("has a different memory layout than {}", spec.path.display());
                    return Err(ImageError::Chain { path, what });
                }
            }
            images.push(image);
        }
        match images.last().map(|last| (last.kind(), last.path())) {
            Some((Kind::Full, _)) => Ok(Self { images }),
            Some((Kind::Delta(parent), path)) => Err(ImageError::Chain {
                path: path.to_owned(),
                what: format!("is based on {parent}, which is missing"),
            }),
            None => Err(ImageError::Chain { path: PathBuf::new(), what: "is none".into() }),
        }
    }

    /// The checkpoint's own first.
    pub fn images(&self) -> &[Image] {
        &self.images
    }

    /// Where memory lies: start and length.
    pub fn ranges(&self) -> &[(u64, u64)] {
        self.images[0].ranges()
    }

    /// Where each page of one range comes from; pieces do not cross groups of the index.
    pub fn pieces(&self, gpa: u64, len: u64) -> Result<Vec<Piece>> {
        let len = usize::try_from(len).map_err(|_| ImageError::NotRam { gpa, len })?;
        let numbers = self.images[0].numbers(gpa, len)?;
        let mut pieces: Vec<(Range<u64>, Option<usize>)> = Vec::new();
        let mut at = numbers.start;
        while at < numbers.end {
            let end = numbers.end.min((at / GROUP + 1) * GROUP);
            resolve(&self.images, at..end, |run, image| pieces.push((run, image)))?;
            at = end;
        }
        let address = |number: u64| gpa + (number - numbers.start) * PAGE_SIZE;
        pieces.sort_unstable_by_key(|(numbers, _)| numbers.start);
        Ok(pieces
            .into_iter()
            .map(|(numbers, image)| Piece {
                at: address(numbers.start)..address(numbers.end),
                image,
                numbers,
            })
            .collect())
    }

    /// The bytes of a piece, each page checked.
    pub fn read_piece(&self, piece: &Piece, buf: &mut [u8]) -> Result<()> {
        match piece.image {
            Some(image) => self.images[image].read_present(piece.numbers.clone(), piece.at.start, buf),
            None => {
                buf.fill(0);
                Ok(())
            }
        }
    }

    /// Whole pages of one range, each checked.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<()> {
        for piece in self.pieces(gpa, buf.len() as u64)? {
            let part = (piece.at.start - gpa) as usize..(piece.at.end - gpa) as usize;
            self.read_piece(&piece, &mut buf[part])?;
        }
        Ok(())
    }

    /// Reads and checks all of every image, also what others hide. `progress` is told bytes done
    /// and in all, and may stop it.
    pub fn verify(&self, mut progress: impl FnMut(u64, u64) -> ControlFlow<()>) -> Result<()> {
        let total = self.images.iter().map(Image::present_bytes).sum();
        let mut before = 0;
        for image in &self.images {
            image.verify(|done, _| progress(before + done, total))?;
            before += image.present_bytes();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
