//! Pages of guest memory by number, and sets of them.

use std::ops::Range;

/// A set of page numbers below a bound, a bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize] }
    }

    /// Bit n of word w is page w * 64 + n.
    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }

    pub fn insert(&mut self, page: u64) {
        self.words[(page / 64) as usize] |= 1 << (page % 64);
    }

    pub fn clear(&mut self) {
        self.words.fill(0);
    }

    pub fn count(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Both sets must be of the same number of pages.
    pub fn union(&mut self, other: &Self) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, more)| *word |= more);
    }

    /// The first page of `within` that is in the set, or that is not.
    fn find(&self, within: Range<u64>, present: bool) -> Option<u64> {
        let mut at = within.start;
        while at < within.end {
            let word = self.words[(at / 64) as usize];
            let wanted = if present { word } else { !word } >> (at % 64);
            if wanted != 0 {
                return Some(at + u64::from(wanted.trailing_zeros())).filter(|found| *found < within.end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// Runs of pages of `within` that are in the set.
    pub fn runs(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = within.start;
        std::iter::from_fn(move || {
            let start = self.find(at..within.end, true)?;
            at = self.find(start..within.end, false).unwrap_or(within.end);
            Some(start..at)
        })
    }
}
