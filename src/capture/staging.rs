//! Copies of guest pages in memory, on their way to an image: what changes again and again while
//! a capture goes on costs no writes to the file.

use std::collections::HashMap;

use super::image::{ImageWriter, Result};
use crate::layout::PAGE_SIZE;

const PAGE: usize = PAGE_SIZE as usize;
/// Pages that are made ready at a time.
const SEGMENT: usize = 256;

/// Holds at most a given number of pages, the last copy of each.
pub struct Staging {
    segments: Vec<Box<[u8]>>,
    /// By guest address.
    slots: HashMap<u64, usize>,
    most: usize,
}

impl Staging {
    pub fn new(most: usize) -> Self {
        Self { segments: Vec::new(), slots: HashMap::new(), most }
    }

    /// Pages that can still come.
    pub fn room(&self) -> usize {
        self.most - self.slots.len()
    }

    /// Makes room for `pages` more, so that taking them allocates nothing and meets no page fault.
    /// False: there is not as much.
    pub fn reserve(&mut self, pages: usize) -> bool {
        if pages > self.room() {
            return false;
        }
        self.slots.reserve(pages);
        while self.segments.len() * SEGMENT < self.slots.len() + pages {
            let mut segment = vec![0; SEGMENT * PAGE].into_boxed_slice();
            // Zeros come untouched from the kernel.
            segment.iter_mut().step_by(PAGE).for_each(|byte| *byte = std::hint::black_box(1));
            self.segments.push(segment);
        }
        true
    }

    /// Where the page at `gpa` is to be copied to; nothing if no room was reserved.
    pub fn slot(&mut self, gpa: u64) -> Option<&mut [u8]> {
        let next = self.slots.len();
        let slot = match self.slots.get(&gpa) {
            Some(&slot) => slot,
            None if next < self.segments.len() * SEGMENT => {
                self.slots.insert(gpa, next);
                next
            }
            None => return None,
        };
        let at = slot % SEGMENT * PAGE;
        self.segments.get_mut(slot / SEGMENT)?.get_mut(at..at + PAGE)
    }

    pub fn bytes(&self) -> u64 {
        self.slots.len() as u64 * PAGE_SIZE
    }

    /// Moves all to the image, by address.
    pub fn write_out(&mut self, image: &mut ImageWriter, mut told: impl FnMut(u64)) -> Result<()> {
        let mut pages: Vec<(u64, usize)> = self.slots.iter().map(|(gpa, slot)| (*gpa, *slot)).collect();
        pages.sort_unstable();
        let mut run = Vec::new();
        for neighbours in pages.chunk_by(|a, b| a.0 + PAGE_SIZE == b.0) {
            for part in neighbours.chunks(SEGMENT) {
                run.clear();
                for (_, slot) in part {
                    let at = slot % SEGMENT * PAGE;
                    run.extend_from_slice(&self.segments[slot / SEGMENT][at..at + PAGE]);
                }
                image.write(part[0].0, &run)?;
                told(run.len() as u64);
            }
        }
        self.slots.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::image::Image;
    use crate::id::Id;
    use crate::storage::Storage;

    #[test]
    fn the_last_copy_counts_and_room_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let id = Id::random().unwrap();
        let mut image = ImageWriter::create(&Storage::os(), &path, id, &[(0, 64 << 20)]).unwrap();
        let mut staging = Staging::new(600);
        assert!(staging.slot(0).is_none(), "nothing was reserved");
        assert!(staging.reserve(600) && !staging.reserve(601));
        for round in [1u8, 2] {
            for page in (0..300u64).rev() {
                staging.slot(page * 2 * PAGE_SIZE).unwrap().fill(round);
            }
        }
        assert_eq!(staging.room(), 300);
        staging.write_out(&mut image, |_| ()).unwrap();
        assert_eq!((staging.room(), staging.bytes()), (600, 0));
        let info = image.finish().unwrap();
        assert_eq!(info.stored_bytes, 300 * PAGE_SIZE);
        let image = Image::open(&Storage::os(), &path, id, info.crc).unwrap();
        let mut pages = vec![0; 3 * PAGE];
        image.read(0, &mut pages).unwrap();
        assert_eq!((pages[0], pages[PAGE], pages[2 * PAGE]), (2, 0, 2));
    }
}
