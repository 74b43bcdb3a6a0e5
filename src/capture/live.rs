//! Copies the memory of a guest that runs, so that little is left to copy while it stands still.
//!
//! Round 1 writes all that the image needs to its file. Each later round copies what changed
//! during the one before into staging, in memory. When the rest is small, or does not get smaller
//! and fits into the pause that is allowed, the guest is stopped and the rest is copied. A guest
//! that writes faster than that is slowed down, more with every round, and given up on in the end.

use std::ops::Range;
use std::time::{Duration, Instant};

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::chain::MemoryChain;
use super::guest::{CaptureError, STEP, Touched};
use super::image::ImageWriter;
use super::staging::Staging;
use super::tracker::Tracker;
use crate::layout::PAGE_SIZE;
use crate::memory::GuestMemory;
use crate::pages::PageSet;
use crate::progress::Progress;

/// Pages cleared in the log and looked at at a time.
const CHUNK: u64 = 16 << 10;
/// So few pages are copied in less time than another round takes.
const FEW: u64 = 32;
/// So many times the pages that were left are too many: the guest wrote a burst just before it
/// stopped.
const BURST: u64 = 4;
/// So few are not: to stop the guest again would take longer than to copy them.
const SMALL_BURST: u64 = 256;
/// Copying a page while the guest stands still is counted as this long.
const PAGE_COPY: Duration = Duration::from_nanos(1500);
/// Room for the rest is made in steps of this many pages.
const RESERVE: usize = 512;
/// Rounds after each other without that much less to copy end the wait for less.
const LEVEL: u32 = 3;
/// Rounds that are waited for the rest to get smaller.
const ROUNDS: u32 = 24;
/// More rounds, in which the guest is slowed down.
const SLOW_ROUNDS: u32 = 12;

/// What a live capture may use.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub max_pause: Duration,
    /// Pages that staging may hold.
    pub staging: usize,
}

impl Limits {
    /// A sixteenth of guest memory for staging, from 8 MiB to 64 MiB.
    pub fn new(max_pause: Duration, guest_bytes: u64) -> Self {
        let staging = (guest_bytes / 16).clamp(8 << 20, 64 << 20) / PAGE_SIZE;
        Self { max_pause, staging: staging as usize }
    }

    /// Pages that may be left for the pause.
    pub fn rest(&self) -> u64 {
        let pages = self.max_pause.as_nanos() / PAGE_COPY.as_nanos();
        u64::try_from(pages).unwrap_or(u64::MAX).clamp(FEW, self.staging as u64)
    }

    /// [`Self::rest`], where `left` are expected and more can be waited for to get less again.
    pub fn rest_without_burst(&self, left: u64) -> u64 {
        left.saturating_mul(BURST).max(SMALL_BURST).min(self.rest())
    }
}

/// What happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    pub rounds: u32,
    /// Of these the guest was slowed down in.
    pub slowed: u32,
    /// Pages copied in the pause.
    pub rest: u64,
}

/// Guest addresses of runs of page numbers, cut where memory has its hole and into bounded parts.
fn parts<'a>(
    memory: &'a GuestMemory,
    pages: &'a PageSet,
    within: Range<u64>,
) -> impl Iterator<Item = (u64, u64)> + 'a {
    let mut end = 0;
    memory.iter().flat_map(move |region| {
        let first = end;
        end += region.len() / PAGE_SIZE;
        let start = region.start_addr().raw_value();
        pages.runs(within.start.max(first)..within.end.min(end), true).flat_map(move |run| {
            let bytes = (run.start - first) * PAGE_SIZE..(run.end - first) * PAGE_SIZE;
            bytes.clone().step_by(STEP as usize).map(move |at| (start + at, (bytes.end - at).min(STEP)))
        })
    })
}

fn cancelled(progress: &Progress) -> Result<(), CaptureError> {
    if progress.is_cancelled() { Err(CaptureError::Cancelled) } else { Ok(()) }
}

/// Writes pages to the image as they are now.
fn write_pages(
    memory: &GuestMemory,
    image: &mut ImageWriter,
    parts: impl Iterator<Item = (u64, u64)>,
    progress: &Progress,
) -> Result<(), CaptureError> {
    let mut buffer = vec![0; STEP as usize];
    for (gpa, len) in parts {
        cancelled(progress)?;
        let part = &mut buffer[..len as usize];
        memory.read_slice(part, GuestAddress(gpa))?;
        image.write(gpa, part)?;
        progress.add(len);
    }
    Ok(())
}

/// Writes all that was ever touched, and what memory that is still being filled lacks of `pending`.
/// From here on the log tells what changed after it.
pub fn write_all(
    tracker: &mut Tracker,
    image: &mut ImageWriter,
    touched: &Touched,
    pending: Option<&MemoryChain>,
    progress: &Progress,
) -> Result<(), CaptureError> {
    let vm = tracker.vm().clone();
    let memory = vm.memory();
    tracker.start_over()?;
    let pages = vm.pages();
    progress.phase("memory", pages * PAGE_SIZE);
    let mut set = PageSet::new(pages);
    let mut first = 0;
    for region in memory.iter() {
        let end = first + region.len() / PAGE_SIZE;
        let mut at = first;
        while at < end {
            let chunk = at..(at + CHUNK).min(end);
            // Before looking: what is touched from here on is logged.
            tracker.clear(chunk.clone())?;
            let mapping = region.as_ptr() as u64 + (chunk.start - first) * PAGE_SIZE;
            set.clear();
            touched.find(mapping, chunk.clone(), &mut set)?;
            if let Some(chain) = pending {
                write_absent(memory, chain, image, &set, chunk.clone())?;
            }
            let absent: u64 = set.runs(chunk.clone(), false).map(|run| run.end - run.start).sum();
            progress.add(absent * PAGE_SIZE);
            write_pages(memory, image, parts(memory, &set, chunk.clone()), progress)?;
            at = chunk.end;
        }
        first = end;
    }
    Ok(())
}

/// Writes those pages of the chain that were not touched. One that is touched now is written again
/// if it changes.
fn write_absent(
    memory: &GuestMemory,
    chain: &MemoryChain,
    image: &mut ImageWriter,
    touched: &PageSet,
    within: Range<u64>,
) -> Result<(), CaptureError> {
    let mut absent = touched.clone();
    absent.words_mut().iter_mut().for_each(|word| *word = !*word);
    let mut buffer = vec![0; STEP as usize];
    for (gpa, len) in parts(memory, &absent, within) {
        for piece in chain.pieces(gpa, len)?.iter().filter(|piece| piece.image.is_some()) {
            let part = &mut buffer[..(piece.at.end - piece.at.start) as usize];
            chain.read_piece(piece, part)?;
            image.write(piece.at.start, part)?;
        }
    }
    Ok(())
}

/// Writes what changed since the tracker's parent.
pub fn write_changed(
    tracker: &mut Tracker,
    image: &mut ImageWriter,
    progress: &Progress,
) -> Result<(), CaptureError> {
    let vm = tracker.vm().clone();
    tracker.note_own_writes();
    tracker.peek()?;
    let changed = tracker.changed();
    tracker.harvest()?;
    progress.phase("memory", changed.count() * PAGE_SIZE);
    write_pages(vm.memory(), image, parts(vm.memory(), &changed, 0..vm.pages()), progress)
}

/// Copies what changes while the guest runs until little is left; returns how many pages. `nap`
/// keeps the guest from running for a while.
pub fn copy_rounds(
    tracker: &mut Tracker,
    image: &mut ImageWriter,
    staging: &mut Staging,
    limits: &Limits,
    progress: &Progress,
    report: &mut Report,
    nap: impl Fn(Duration),
) -> Result<u64, CaptureError> {
    let vm = tracker.vm().clone();
    let mut before = u64::MAX;
    let (mut level, mut slow) = (0, 0);
    progress.phase("changes", 0);
    loop {
        cancelled(progress)?;
        let began = Instant::now();
        tracker.note_own_writes();
        let count = tracker.peek()?.count();
        let fits = count <= limits.rest();
        let shrinks = count.saturating_mul(10) < before.saturating_mul(8);
        level = if shrinks { 0 } else { level + 1 };
        if count <= FEW || (fits && (level >= LEVEL || report.rounds >= ROUNDS)) {
            // Room for what comes until the guest stands still.
            let wanted = (count as usize * 2).next_multiple_of(RESERVE).min(limits.rest() as usize);
            if !staging.reserve(wanted) {
                staging.write_out(image, |bytes| progress.add(bytes))?;
                staging.reserve(wanted);
            }
            return Ok(count);
        }
        if !fits && report.rounds >= ROUNDS && !shrinks {
            if slow == SLOW_ROUNDS {
                let needed = PAGE_COPY * u32::try_from(count).unwrap_or(u32::MAX);
                return Err(CaptureError::TooFast { needed, allowed: limits.max_pause });
            }
            slow += 1;
            report.slowed += 1;
            // As long as the last round took and longer each time: most of this one.
            nap(Duration::from_millis(1 << slow.min(7)));
        }
        let fresh = tracker.harvest()?;
        let parts = parts(vm.memory(), fresh, 0..vm.pages());
        if count as usize > limits.staging {
            // What is staged is older than what goes past it.
            staging.write_out(image, |bytes| progress.add(bytes))?;
            write_pages(vm.memory(), image, parts, progress)?;
        } else {
            if !staging.reserve(count as usize) {
                staging.write_out(image, |bytes| progress.add(bytes))?;
                staging.reserve(count as usize);
            }
            for (gpa, len) in parts {
                copy_part(vm.memory(), gpa, len, staging)?;
            }
            progress.add(count * PAGE_SIZE);
        }
        before = count;
        report.rounds += 1;
        log::debug!("capture: {count} pages in {:?}", began.elapsed());
    }
}

fn copy_part(memory: &GuestMemory, gpa: u64, len: u64, staging: &mut Staging) -> Result<(), CaptureError> {
    for page in (gpa..gpa + len).step_by(PAGE_SIZE as usize) {
        let slot = staging.slot(page).ok_or(CaptureError::NoRoom)?;
        memory.read_slice(slot, GuestAddress(page))?;
    }
    Ok(())
}

/// Copies the rest while the guest stands still. False: more than `most` pages changed, or more than
/// there is room for, and the guest has to run on.
pub fn copy_rest(
    tracker: &mut Tracker,
    staging: &mut Staging,
    most: u64,
    report: &mut Report,
) -> Result<bool, CaptureError> {
    let vm = tracker.vm().clone();
    let changed = tracker.peek()?;
    // Looked through twice and put together nowhere: all of that would be part of the pause.
    let rest = || parts(vm.memory(), changed, 0..vm.pages());
    let mut count = 0;
    for (_, len) in rest() {
        count += len / PAGE_SIZE;
        if count > most {
            return Ok(false);
        }
    }
    if !staging.reserve(count as usize) {
        return Ok(false);
    }
    for (gpa, len) in rest() {
        copy_part(vm.memory(), gpa, len, staging)?;
    }
    report.rest = count;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::chain::ImageSpec;
    use super::*;
    use crate::capture::guest::{load, ranges};
    use crate::id::Id;
    use crate::storage::Storage;

    #[test]
    fn memory_comes_back_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let size = 5 << 30;
        let memory = crate::memory::allocate(size).unwrap();
        let written = [(0u64, 1u8), (0x5000, 2), ((3 << 30) - 4096, 3), (4 << 30, 4), ((6 << 30) - 1, 5)];
        for (at, byte) in written {
            memory.write_obj(byte, GuestAddress(at)).unwrap();
        }
        let touched = Touched::open().unwrap();
        let mut set = PageSet::new(size / PAGE_SIZE);
        let mut first = 0;
        for region in memory.iter() {
            let end = first + region.len() / PAGE_SIZE;
            touched.find(region.as_ptr() as u64, first..end, &mut set).unwrap();
            first = end;
        }
        let id = Id::random().unwrap();
        let mut writer = ImageWriter::create(&Storage::os(), &path, id, &ranges(&memory)).unwrap();
        let progress = Progress::default();
        write_pages(&memory, &mut writer, parts(&memory, &set, 0..first), &progress).unwrap();
        let info = writer.finish().unwrap();
        assert_eq!((info.guest_bytes, info.stored_bytes), (size, 5 * PAGE_SIZE));
        assert_eq!(progress.snapshot().done, 5 * PAGE_SIZE);
        let chain = MemoryChain::open(&Storage::os(), &[ImageSpec { path, id, crc: info.crc }]).unwrap();
        let copy = crate::memory::allocate(size).unwrap();
        load(&chain, &copy, &progress).unwrap();
        for (at, byte) in written {
            assert_eq!(copy.read_obj::<u8>(GuestAddress(at)).unwrap(), byte);
        }
        let other = crate::memory::allocate(16 << 20).unwrap();
        assert!(matches!(load(&chain, &other, &progress), Err(CaptureError::OtherMemory { .. })));
    }

    #[test]
    fn a_cancelled_capture_stops() {
        let dir = tempfile::tempdir().unwrap();
        let memory = crate::memory::allocate(16 << 20).unwrap();
        let id = Id::random().unwrap();
        let path = dir.path().join("memory");
        let mut writer = ImageWriter::create(&Storage::os(), &path, id, &ranges(&memory)).unwrap();
        let progress = Progress::default();
        progress.cancel();
        let done = write_pages(&memory, &mut writer, [(0, 4096)].into_iter(), &progress);
        assert!(matches!(done, Err(CaptureError::Cancelled)));
    }

    #[test]
    fn parts_end_at_the_hole_and_are_bounded() {
        let memory = crate::memory::allocate(4 << 30).unwrap();
        let mut set = PageSet::new(1 << 20);
        let border = (3 << 30) / PAGE_SIZE;
        (border - 2..border + 2).for_each(|page| set.insert(page));
        (1000..1000 + 2 * STEP / PAGE_SIZE).for_each(|page| set.insert(page));
        let expected = [
            (1000 * PAGE_SIZE, STEP),
            (1000 * PAGE_SIZE + STEP, STEP),
            ((3 << 30) - 8192, 8192),
            (4 << 30, 8192),
        ];
        assert_eq!(parts(&memory, &set, 0..1 << 20).collect::<Vec<_>>(), expected);
        assert_eq!(parts(&memory, &set, 0..1024).collect::<Vec<_>>(), [(1000 * PAGE_SIZE, 24 * PAGE_SIZE)]);
    }
}
