//! Rewrites pages of memory at a given rate, in the background.
//!
//! Each page is written whole, from its index and a generation, so that it can
//! be told later whether any page was torn or lost.

use crate::cpu::tsc;
use crate::memory;
use crate::{hash, time};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const PAGE_WORDS: usize = 512;
const PAGES_PER_MIB: u64 = 256;
pub const UNPACED: u64 = u64::MAX;

static FIRST_MIB: AtomicU64 = AtomicU64::new(0);
static MIBS: AtomicU64 = AtomicU64::new(0);
static MB_PER_S: AtomicU64 = AtomicU64::new(0);
/// Pages written since `prepare`; also says which page is next.
static WRITTEN: AtomicU64 = AtomicU64::new(0);
static PACE_TSC: AtomicU64 = AtomicU64::new(0);
static PACE_PAGES: AtomicU64 = AtomicU64::new(0);

/// Sets the job; nothing may be running it.
pub fn prepare(first_mib: u64, mibs: u64, mb_per_s: u64) {
    FIRST_MIB.store(first_mib, SeqCst);
    MIBS.store(mibs, SeqCst);
    MB_PER_S.store(mb_per_s, SeqCst);
    WRITTEN.store(0, SeqCst);
    rebase();
}

pub fn range() -> (u64, u64) {
    (FIRST_MIB.load(SeqCst), MIBS.load(SeqCst))
}

pub fn rate() -> u64 {
    MB_PER_S.load(SeqCst)
}

pub fn written() -> u64 {
    WRITTEN.load(SeqCst)
}

fn rebase() {
    PACE_TSC.store(tsc(), SeqCst);
    PACE_PAGES.store(written(), SeqCst);
}

/// Writes the next page if it is due; false if it is not.
pub fn step() -> bool {
    let rate = rate();
    let pages = MIBS.load(SeqCst) * PAGES_PER_MIB;
    if rate == 0 || pages == 0 {
        return false;
    }
    let n = written();
    if rate != UNPACED {
        let start = PACE_TSC.load(SeqCst);
        let now = tsc();
        // Time that the guest was stopped for is not made up by a burst.
        if now < start || time::us(now - start) > 100_000 {
            rebase();
            return false;
        }
        let due = time::us(now - start) * rate / (PAGE_WORDS as u64 * 8);
        if n - PACE_PAGES.load(SeqCst) >= due {
            return false;
        }
    }
    let page = n % pages;
    with_page(page, |words| {
        let generation = n / pages + 1;
        words[0] = generation;
        hash::fill(&mut words[1..], generation, page * PAGE_WORDS as u64);
    });
    WRITTEN.store(n + 1, SeqCst);
    true
}

fn with_page<R>(page: u64, use_it: impl FnOnce(&mut [u64]) -> R) -> Option<R> {
    let at = (page % PAGES_PER_MIB) as usize * PAGE_WORDS;
    let mib = FIRST_MIB.load(SeqCst) + page / PAGES_PER_MIB;
    memory::with_mib(mib, |words| use_it(&mut words[at..at + PAGE_WORDS]))
}

/// Compares every page that was written with what was written last, while no
/// vCPU is writing: the pages checked, or the first page that is wrong.
pub fn verify() -> Result<u64, u64> {
    let pages = MIBS.load(SeqCst) * PAGES_PER_MIB;
    let n = written();
    let checked = n.min(pages);
    for page in 0..checked {
        let generation = (n - 1 - page) / pages + 1;
        let right = with_page(page, |words| {
            words[0] == generation
                && hash::differs(&words[1..], generation, page * PAGE_WORDS as u64).is_none()
        });
        if right != Some(true) {
            return Err(page);
        }
    }
    Ok(checked)
}
