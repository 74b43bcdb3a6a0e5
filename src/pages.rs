//! Pages of guest memory by number, and sets of them.

use std::ops::Range;

/// A set of page numbers below a bound, a bit each: bit n of word w is page w * 64 + n.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    words: Vec<u64>,
}

impl PageSet {
    pub fn new(pages: u64) -> Self {
        Self { words: vec![0; pages.div_ceil(64) as usize] }
    }

    pub fn words(&self) -> &[u64] {
        &self.words
    }

    pub fn words_mut(&mut self) -> &mut [u64] {
        &mut self.words
    }

    pub fn put(&mut self, page: u64, present: bool) {
        let (word, bit) = (&mut self.words[(page / 64) as usize], 1 << (page % 64));
        if present { *word |= bit } else { *word &= !bit }
    }

    pub fn insert(&mut self, page: u64) {
        self.put(page, true);
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

    /// Runs of pages of `within` that are in the set, or that are not.
    pub fn runs(&self, within: Range<u64>, present: bool) -> impl Iterator<Item = Range<u64>> + '_ {
        runs(&self.words, within, present)
    }
}

/// Runs of bits of `within` that are set, or that are not.
pub fn runs(words: &[u64], within: Range<u64>, present: bool) -> impl Iterator<Item = Range<u64>> + '_ {
    let mut at = within.start;
    std::iter::from_fn(move || {
        let start = find(words, at..within.end, present)?;
        at = find(words, start..within.end, !present).unwrap_or(within.end);
        Some(start..at)
    })
}

/// Words looked at together where a long way may be without a bit.
const STRIDE: usize = 16;

/// The first bit of `within` that is set, or that is not.
fn find(words: &[u64], within: Range<u64>, present: bool) -> Option<u64> {
    let flip = if present { 0 } else { u64::MAX };
    let words = words.get(..within.end.div_ceil(64) as usize)?;
    let mut at = within.start;
    while at < within.end {
        let index = (at / 64) as usize;
        let wanted = (words.get(index)? ^ flip) >> (at % 64);
        if wanted != 0 {
            return Some(at + u64::from(wanted.trailing_zeros())).filter(|found| *found < within.end);
        }
        let strides = words.get(index + 1..)?.chunks_exact(STRIDE);
        let without = |stride: &&[u64]| stride.iter().fold(0, |any, word| any | (word ^ flip)) == 0;
        at = (index + 1 + strides.take_while(without).count() * STRIDE) as u64 * 64;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn runs_are_those_of_the_set() {
        let mut set = PageSet::new(200);
        let pages = [0, 1, 2, 63, 64, 127, 130, 199];
        pages.iter().for_each(|page| set.insert(*page));
        let present: Vec<_> = set.runs(0..200, true).collect();
        assert_eq!(present, [0..3, 63..65, 127..128, 130..131, 199..200]);
        let absent: Vec<_> = set.runs(1..140, false).collect();
        assert_eq!(absent, [3..63, 65..127, 128..130, 131..140]);
        let mut other = PageSet::new(200);
        other.insert(3);
        other.insert(64);
        set.union(&other);
        assert_eq!((set.count(), set.runs(0..10, true).next()), (9, Some(0..4)));
        set.put(1, false);
        assert_eq!(set.count(), 8);
    }

    proptest! {
        #[test]
        fn long_ways_are_gone_right(
            pages in prop::collection::btree_set(0u64..9000, 0..12), start in 0u64..9000, len in 0u64..9000,
        ) {
            let within = start..(start + len).min(9000);
            let mut set = PageSet::new(9000);
            pages.iter().for_each(|page| set.insert(*page));
            let found: Vec<u64> = set.runs(within.clone(), true).flatten().collect();
            prop_assert_eq!(found, pages.iter().copied().filter(|page| within.contains(page)).collect::<Vec<_>>());
            let absent: Vec<u64> = set.runs(within.clone(), false).flatten().collect();
            prop_assert_eq!(absent, within.filter(|page| !pages.contains(page)).collect::<Vec<_>>());
        }
    }
}
