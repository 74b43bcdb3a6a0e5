//! The allocation bits of a delta layer in memory: pages as in the file, each
//! present only once it has a bit set.

use std::ops::Range;

use super::delta_format::{Geometry, PAGE_BLOCKS, PAGE_WORDS};

#[derive(Debug)]
pub(super) struct Bitmap {
    blocks: u64,
    pages: Vec<Option<Box<Page>>>,
}

#[derive(Debug)]
pub(super) struct Page {
    pub words: Box<[u64; PAGE_WORDS]>,
    /// As in the slot that is durable; 0 before the first.
    pub generation: u64,
    /// The durable slot. The next write goes to the other one.
    pub slot: usize,
    /// Has bits that the durable slot has not.
    pub dirty: bool,
}

impl Bitmap {
    pub fn new(geometry: &Geometry) -> Self {
        let mut pages = Vec::new();
        pages.resize_with(geometry.pages, || None);
        Self { blocks: geometry.blocks, pages }
    }

    pub fn load(&mut self, page: usize, content: Page) {
        self.pages[page] = Some(Box::new(content));
    }

    pub fn set(&mut self, blocks: Range<u64>) {
        debug_assert!(blocks.end <= self.blocks);
        let mut at = blocks.start;
        while at < blocks.end {
            let (index, first) = split(at);
            let count = (blocks.end - at).min(PAGE_BLOCKS - first as u64) as usize;
            let page = self.pages[index].get_or_insert_with(|| {
                Box::new(Page {
                    words: Box::new([0; PAGE_WORDS]),
                    generation: 0,
                    // So that the first write goes to slot 0.
                    slot: 1,
                    dirty: false,
                })
            });
            page.dirty |= set_bits(&mut page.words, first..first + count);
            at += count as u64;
        }
    }

    pub fn dirty(&mut self) -> impl Iterator<Item = (usize, &mut Page)> {
        let pages = self.pages.iter_mut().enumerate();
        pages.filter_map(|(at, page)| Some((at, page.as_deref_mut().filter(|p| p.dirty)?)))
    }

    /// All pages that have, or had, a bit.
    pub fn pages(&self) -> impl Iterator<Item = (usize, &Page)> {
        let pages = self.pages.iter().enumerate();
        pages.filter_map(|(at, page)| Some((at, page.as_deref()?)))
    }

    pub fn is_dirty(&self) -> bool {
        self.pages.iter().flatten().any(|page| page.dirty)
    }

    pub fn count(&self) -> u64 {
        let words = self.pages.iter().flatten().flat_map(|p| p.words.iter());
        words.map(|w| u64::from(w.count_ones())).sum()
    }

    /// The first run of set bits at or after `from`.
    pub fn next_run(&self, from: u64) -> Option<Range<u64>> {
        let start = self.find(from, true)?;
        let end = self.find(start, false).unwrap_or(self.blocks);
        Some(start..end)
    }

    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(at)?;
            at = run.end;
            Some(run)
        })
    }

    /// The first block at or after `from` whose bit is `wanted`.
    fn find(&self, from: u64, wanted: bool) -> Option<u64> {
        let mut at = from;
        while at < self.blocks {
            let (index, bit) = split(at);
            let next_page = (index as u64 + 1) * PAGE_BLOCKS;
            match &self.pages[index] {
                None if wanted => at = next_page,
                None => return Some(at),
                Some(page) => {
                    let word = page.words[bit / 64];
                    let hits = (if wanted { word } else { !word }) >> (bit % 64);
                    if hits != 0 {
                        let found = at + u64::from(hits.trailing_zeros());
                        return (found < self.blocks).then_some(found);
                    }
                    // A page is a whole number of words.
                    at += 64 - (bit % 64) as u64;
                }
            }
        }
        None
    }
}

fn split(block: u64) -> (usize, usize) {
    ((block / PAGE_BLOCKS) as usize, (block % PAGE_BLOCKS) as usize)
}

/// Whether any of the bits was clear.
fn set_bits(words: &mut [u64; PAGE_WORDS], bits: Range<usize>) -> bool {
    let mut changed = false;
    let mut at = bits.start;
    while at < bits.end {
        let count = (bits.end - at).min(64 - at % 64);
        let mask = (u64::MAX >> (64 - count)) << (at % 64);
        let word = &mut words[at / 64];
        changed |= *word & mask != mask;
        *word |= mask;
        at += count;
    }
    changed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bits_are_those_of_a_model(
            ranges in prop::collection::vec((0u64..70_000, 0u64..40_000), 0..8)
        ) {
            let geometry = Geometry::new(70_000 * 4096).unwrap();
            let mut bitmap = Bitmap::new(&geometry);
            let mut model = vec![false; 70_000];
            for (start, len) in ranges {
                let end = (start + len).min(70_000);
                bitmap.set(start..end);
                model[start as usize..end as usize].fill(true);
            }
            prop_assert_eq!(bitmap.count(), model.iter().filter(|b| **b).count() as u64);
            let mut seen = vec![false; 70_000];
            for run in bitmap.runs() {
                prop_assert!(run.start < run.end);
                seen[run.start as usize..run.end as usize].fill(true);
            }
            prop_assert!(seen == model);
        }
    }

    #[test]
    fn a_page_is_dirty_only_when_a_bit_changed() {
        let mut bitmap = Bitmap::new(&Geometry::new(1 << 30).unwrap());
        assert!(!bitmap.is_dirty());
        bitmap.set(40_000..40_010);
        assert_eq!(bitmap.dirty().map(|(at, _)| at).collect::<Vec<_>>(), [1]);
        bitmap.dirty().for_each(|(_, page)| page.dirty = false);
        bitmap.set(40_002..40_008);
        assert!(!bitmap.is_dirty());
        bitmap.set(40_010..40_011);
        assert!(bitmap.is_dirty());
    }
}
