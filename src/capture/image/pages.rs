//! Where guest memory lies, and its pages in groups; no files here.

use std::ops::Range;

use crate::layout::PAGE_SIZE;
use crate::pages::PageSet;

/// Keeps every offset of a file in bounds, and the number of pages below 2^32.
const END_MAX: u64 = 1 << 43;
pub(super) const RANGES_MAX: usize = 2;
/// Pages of a chunk: a word of the bitmap, and what a lazy restore fills at once.
pub(super) const CHUNK: u64 = 64;
/// Pages whose part of the index is read and checked together.
pub(in crate::capture) const GROUP: u64 = 1024;
pub(in crate::capture) const GROUP_WORDS: usize = GROUP as usize / 64;

/// Where RAM lies. Its pages are numbered through, in the order of their addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ram(Vec<(u64, u64)>);

impl Ram {
    /// `None`: not one or two ranges of whole pages in ascending order.
    pub fn new(ranges: &[(u64, u64)]) -> Option<Self> {
        let mut end = 0;
        for &(start, len) in ranges {
            let aligned = start.is_multiple_of(PAGE_SIZE) && len.is_multiple_of(PAGE_SIZE);
            if !aligned || len == 0 || start < end {
                return None;
            }
            end = start.checked_add(len).filter(|end| *end <= END_MAX)?;
        }
        (1..=RANGES_MAX).contains(&ranges.len()).then(|| Self(ranges.to_vec()))
    }

    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|(_, len)| len).sum()
    }

    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_SIZE
    }

    /// Groups of pages; the last one may have fewer.
    pub fn groups(&self) -> u64 {
        self.pages().div_ceil(GROUP)
    }

    /// The address after the last page.
    pub fn end(&self) -> u64 {
        self.0.last().map_or(0, |(start, len)| start + len)
    }

    /// The numbers of the pages in a part of one range.
    pub fn numbers(&self, gpa: u64, len: u64) -> Option<Range<u64>> {
        let end = gpa.checked_add(len)?;
        if !gpa.is_multiple_of(PAGE_SIZE) || !len.is_multiple_of(PAGE_SIZE) {
            return None;
        }
        let mut first = 0;
        for &(start, size) in &self.0 {
            if gpa >= start && end <= start + size {
                let number = first + (gpa - start) / PAGE_SIZE;
                return Some(number..number + len / PAGE_SIZE);
            }
            first += size / PAGE_SIZE;
        }
        None
    }

    /// Address and length of the chunk that begins with page `first`. `None`: part of it lies
    /// elsewhere, so that it has no place for a frame.
    pub fn chunk(&self, first: u64) -> Option<(u64, u64)> {
        let end = self.pages().min(first + CHUNK);
        let (part, start) = self.parts().find(|(part, _)| part.contains(&first))?;
        (end <= part.end).then(|| (start + (first - part.start) * PAGE_SIZE, (end - first) * PAGE_SIZE))
    }

    /// Each range as the numbers of its pages, and its address.
    pub fn parts(&self) -> impl Iterator<Item = (Range<u64>, u64)> + '_ {
        let mut first = 0;
        self.0.iter().map(move |&(start, len)| {
            let numbers = first..first + len / PAGE_SIZE;
            first = numbers.end;
            (numbers, start)
        })
    }
}

/// The words of a group of a set; what is missing at the end is clear.
pub(super) fn group_of(set: &PageSet, group: usize) -> [u64; GROUP_WORDS] {
    let mut words = [0; GROUP_WORDS];
    let found = set.words().get(group * GROUP_WORDS..).unwrap_or_default();
    words.iter_mut().zip(found).for_each(|(word, found)| *word = *found);
    words
}

pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Every byte equals the one before it, and the first is 0: one memcmp.
    matches!(bytes, [0, rest @ ..] if *rest == bytes[..rest.len()])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pages::runs;

    #[test]
    fn pages_are_numbered_through_the_hole() {
        let ram = Ram::new(&[(0, 0x4000), (0x10000, 0x2000)]).unwrap();
        assert_eq!((ram.pages(), ram.end()), (6, 0x12000));
        assert_eq!(ram.numbers(0x1000, 0x2000), Some(1..3));
        assert_eq!(ram.numbers(0x11000, 0x1000), Some(5..6));
        for (gpa, len) in [(0x3000, 0x2000), (0x8000, 0x1000), (0x1100, 0x1000), (0, 1), (u64::MAX, 4096)] {
            assert_eq!(ram.numbers(gpa, len), None);
        }
        let parts: Vec<_> = ram.parts().collect();
        assert_eq!(parts, [(0..4, 0), (4..6, 0x10000)]);
        let twice: [&[(u64, u64)]; 6] = [
            &[],
            &[(0, 0)],
            &[(0, 100)],
            &[(0, 0x2000), (0x1000, 0x1000)],
            &[(0, 1 << 44)],
            &[(0, 4096), (4096, 4096), (8192, 4096)],
        ];
        assert!(twice.iter().all(|bad| Ram::new(bad).is_none()));
    }

    #[test]
    fn a_chunk_has_a_place_where_it_is_of_one_piece() {
        let pages = |count: u64| count * PAGE_SIZE;
        let ram = Ram::new(&[(0, pages(CHUNK + 9)), (1 << 32, pages(2 * CHUNK))]).unwrap();
        assert_eq!(ram.chunk(0), Some((0, pages(CHUNK))));
        assert_eq!(ram.chunk(CHUNK), None);
        let second = (1 << 32) + pages(CHUNK - 9);
        assert_eq!(ram.chunk(2 * CHUNK), Some((second, pages(CHUNK))));
        assert_eq!(ram.chunk(3 * CHUNK), Some((second + pages(CHUNK), pages(9))));
        assert_eq!(ram.chunk(4 * CHUNK), None);
    }

    #[test]
    fn groups_are_parts_of_a_set() {
        let mut set = PageSet::new(GROUP + 100);
        let pages = [0, 1, 64, 1023, GROUP, GROUP + 99];
        pages.iter().for_each(|page| set.insert(*page));
        assert!(runs(&group_of(&set, 0), 0..GROUP, true).eq([0..2, 64..65, 1023..1024]));
        assert!(runs(&group_of(&set, 1), 0..100, false).eq(std::iter::once(1..99)));
    }

    #[test]
    fn zeros_are_zeros() {
        let mut page = vec![0u8; 4096];
        assert!(is_zero(&page));
        for at in [0, 1, 2048, 4095] {
            page[at] = 1;
            assert!(!is_zero(&page));
            page[at] = 0;
        }
    }
}
