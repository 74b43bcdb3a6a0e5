//! Guest memory that is filled from a chain of images after the machine is there.
//!
//! [`Filling`] is the one door: memory is whole from the start, as far as anybody can tell. Where
//! the kernel allows it, a thread puts pages in place when they are first touched, and once the
//! guest runs another one fetches the rest. Where not, everything is read before.
//! Or one image is mapped, which takes nothing of that: then its pages are those of the page cache,
//! which all who map it share until they write to them.
//!
//! Both threads reach guest memory through the kernel only: a page that they waited for
//! themselves would never come. They take no lock that anybody holds while he touches guest memory.

mod uffd;
mod unreadable;

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::chain::MemoryChain;
use super::guest::{self, CaptureError};
use super::image::ImageError;
use crate::events::{EventSink, MachineEvent};
use crate::layout::PAGE_SIZE;
use crate::memory::{self, GuestMemory};
use crate::progress::Progress;
use crate::seccomp;
use uffd::{Put, Uffd};

/// What is filled at once, around a page that was touched or ahead. It stays in the processor's
/// cache between being read, checked and copied.
const STEP: u64 = 256 << 10;
/// A machine whose memory is damaged has this long to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// Fills a machine's memory. To be dropped after the machine: what is not filled by then would read
/// as zeros.
#[derive(Debug)]
pub struct Filling {
    lazy: Option<Lazy>,
    /// Where what nobody wrote is read from for as long as the machine is there.
    mapped: Option<Arc<MemoryChain>>,
}

#[derive(Debug)]
struct Lazy {
    shared: Arc<Shared>,
    server: Option<JoinHandle<()>>,
    fetcher: Option<JoinHandle<()>>,
}

struct Shared {
    uffd: Uffd,
    /// None once memory holds all of it.
    chain: Mutex<Option<Arc<MemoryChain>>>,
    regions: Vec<Region>,
    /// Bit by bit, the steps that are done.
    done: Vec<AtomicU64>,
    /// The step after the one that was last waited for, plus 1: the guest may go on there.
    hint: AtomicU64,
    running: AtomicBool,
    stopping: AtomicBool,
    stop: EventFd,
    broken: AtomicBool,
    events: EventSink,
    /// Keeps the mappings.
    _memory: GuestMemory,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("uffd", &self.uffd)
            .field("regions", &self.regions)
            .finish_non_exhaustive()
    }
}

/// A mapping of guest memory.
#[derive(Clone, Debug)]
struct Region {
    gpa: u64,
    len: u64,
    address: u64,
    /// The number of its first step.
    first: u64,
}

/// Why something could not be filled.
#[derive(Debug, thiserror::Error)]
enum FillError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot fill pages of guest memory: {0}")]
    Put(std::io::Error),
}

impl Filling {
    /// Makes fresh memory read as `chain`. A page that turns out to be damaged when somebody
    /// touches it is never given to him: `events` is told of a crash, and he waits for the end.
    pub fn begin(
        chain: MemoryChain,
        memory: &GuestMemory,
        events: EventSink,
        progress: &Progress,
    ) -> Result<Self, CaptureError> {
        guest::check_ranges(&chain, memory)?;
        match Uffd::new() {
            Ok(uffd) => Self::lazy(uffd, chain, memory, events),
            Err(e) => {
                log::warn!("all memory is read before the guest runs, as userfaultfd is not available ({e})");
                guest::load(&chain, memory, progress)?;
                Ok(Self { lazy: None, mapped: None })
            }
        }
    }

    /// Whether [`Filling::begin`] need not read everything first.
    pub fn can_be_lazy() -> bool {
        Uffd::new().is_ok()
    }

    /// Makes fresh memory read as `chain`, which is one flat image that was checked as a whole
    /// ([`super::image::Image::check_once`]): nothing is looked at any more when it is touched.
    pub fn map(chain: MemoryChain, memory: &GuestMemory) -> Result<Self, CaptureError> {
        guest::check_ranges(&chain, memory)?;
        let image = &chain.images()[0];
        let failed = |error| CaptureError::Map { path: image.path().to_owned(), error };
        let file = image.file().as_fd().filter(|_| image.is_flat());
        let file = file.ok_or_else(|| failed(std::io::ErrorKind::Unsupported.into()))?;
        unreadable::catch().and_then(|()| memory::map_file(memory, file)).map_err(failed)?;
        Ok(Self { lazy: None, mapped: Some(Arc::new(chain)) })
    }

    /// Whether it shares its memory with others that map the same image.
    pub fn is_shared(&self) -> bool {
        self.mapped.is_some()
    }

    fn lazy(
        uffd: Uffd,
        chain: MemoryChain,
        memory: &GuestMemory,
        events: EventSink,
    ) -> Result<Self, CaptureError> {
        let mut regions = Vec::new();
        let mut steps = 0;
        for region in memory.iter() {
            let (gpa, len, address) = (region.start_addr().raw_value(), region.len(), region.as_ptr() as u64);
            uffd.watch(address, len).map_err(CaptureError::Watch)?;
            regions.push(Region { gpa, len, address, first: steps });
            steps += len.div_ceil(STEP);
        }
        let shared = Arc::new(Shared {
            uffd,
            chain: Mutex::new(Some(Arc::new(chain))),
            regions,
            done: (0..steps.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            hint: AtomicU64::new(0),
            running: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop: EventFd::new(libc::EFD_NONBLOCK).map_err(CaptureError::Thread)?,
            broken: AtomicBool::new(false),
            events,
            _memory: memory.clone(),
        });
        let served = shared.clone();
        let server = std::thread::Builder::new().name("fill".into()).spawn(move || {
            seccomp::confine(seccomp::Thread::Fill);
            served.serve();
        });
        let server = Some(server.map_err(CaptureError::Thread)?);
        Ok(Self { lazy: Some(Lazy { shared, server, fetcher: None }), mapped: None })
    }

    /// Puts a page in place that the caller will touch: to wait for it would take longer.
    pub fn bring(&self, gpa: u64) {
        let Some(Lazy { shared, .. }) = &self.lazy else { return };
        let within = |region: &&Region| (region.gpa..region.gpa + region.len).contains(&gpa);
        let (Some(region), Some(chain)) = (shared.regions.iter().find(within), shared.chain()) else {
            return;
        };
        // What goes wrong is told when the page is touched.
        let _ = shared.fill(&chain, region, gpa..gpa + PAGE_SIZE, true, &mut Vec::new());
    }

    /// The guest runs: what it has not touched yet is fetched from now on. A VM that stays paused
    /// needs no memory for it.
    pub fn fetch(&mut self) {
        let Some(lazy) = &mut self.lazy else { return };
        if lazy.shared.running.swap(true, Ordering::SeqCst) {
            return;
        }
        let shared = lazy.shared.clone();
        match std::thread::Builder::new().name("prefetch".into()).spawn(move || {
            seccomp::confine(seccomp::Thread::Fill);
            shared.fetch();
        }) {
            Ok(thread) => lazy.fetcher = Some(thread),
            // What is touched comes all the same.
            Err(e) => log::warn!("cannot fetch memory in the background: {e}"),
        }
    }

    /// Where what memory does not hold itself is read from; none once it holds everything.
    pub fn pending(&self) -> Option<Arc<MemoryChain>> {
        match &self.lazy {
            Some(lazy) => lazy.shared.chain(),
            None => self.mapped.clone(),
        }
    }

    /// Somebody waits for a page that cannot be given to him. Then the machine cannot be ended in
    /// the ordinary way: it is to be forgotten, and this [`Filling::abandon`]ed.
    pub fn is_broken(&self) -> bool {
        self.lazy.as_ref().is_some_and(|lazy| lazy.shared.broken.load(Ordering::SeqCst))
    }

    /// Ends the threads and lets whoever waits wait on, until the process ends.
    pub fn abandon(self) {
        if let Some(lazy) = &self.lazy {
            // Were it closed, who waits would go on with a page of zeros.
            std::mem::forget(lazy.shared.clone());
        }
    }
}

impl Drop for Lazy {
    fn drop(&mut self) {
        self.shared.end();
        for thread in [self.fetcher.take(), self.server.take()].into_iter().flatten() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn chain(&self) -> Option<Arc<MemoryChain>> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn end(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        if let Err(e) = self.stop.write(1) {
            log::warn!("cannot stop filling memory: {e}");
        }
    }

    /// Puts pages in place for those who wait for them.
    fn serve(&self) {
        let mut buf = Vec::new();
        loop {
            let addresses = match self.uffd.wait(&self.stop) {
                Ok(addresses) if addresses.is_empty() => return,
                Ok(addresses) => addresses,
                Err(e) => return self.give_up(&format!("guest memory can no longer be filled: {e}")),
            };
            // Without one it is all there, and nothing is watched any more.
            let Some(chain) = self.chain() else { continue };
            for address in addresses {
                if let Err(e) = self.serve_one(&chain, address, &mut buf) {
                    return self.give_up(&format!("the guest needs memory that cannot be restored: {e}"));
                }
            }
        }
    }

    fn serve_one(&self, chain: &MemoryChain, address: u64, buf: &mut Vec<u8>) -> Result<(), FillError> {
        let holds = |region: &&Region| (region.address..region.address + region.len).contains(&address);
        let Some(region) = self.regions.iter().find(holds) else { return Ok(()) };
        let offset = (address - region.address) / PAGE_SIZE * PAGE_SIZE;
        let page = region.gpa + offset..region.gpa + offset + PAGE_SIZE;
        if !self.running.load(Ordering::SeqCst) {
            return self.fill(chain, region, page, true, buf).map(drop);
        }
        let step = region.first + offset / STEP;
        self.hint.store(step + 2, Ordering::Relaxed);
        match self.fill(chain, region, region.step(step), true, buf) {
            // Something near the page is damaged, perhaps not the page.
            Err(_) => self.fill(chain, region, page, true, buf).map(drop),
            Ok(_) => {
                self.set_done(step);
                Ok(())
            }
        }
    }

    /// Puts a stretch of one region in place; zeros only if somebody waits for one.
    fn fill(
        &self,
        chain: &MemoryChain,
        region: &Region,
        at: Range<u64>,
        zeros: bool,
        buf: &mut Vec<u8>,
    ) -> Result<Put, FillError> {
        let address = |gpa: u64| region.address + (gpa - region.gpa);
        let pieces = chain.pieces(at.start, at.end - at.start)?;
        for run in pieces.chunk_by(|a, b| a.image.is_some() == b.image.is_some()) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let (start, len) = (first.at.start, last.at.end - first.at.start);
            let put = if first.image.is_none() {
                if !zeros {
                    continue;
                }
                self.uffd.zero(address(start), len)
            } else {
                buf.resize(buf.len().max(len as usize), 0);
                for piece in run {
                    let part = (piece.at.start - start) as usize..(piece.at.end - start) as usize;
                    chain.read_piece(piece, &mut buf[part])?;
                }
                self.uffd.copy(address(start), &buf[..len as usize])
            };
            if put.map_err(FillError::Put)? == Put::Gone {
                return Ok(Put::Gone);
            }
        }
        Ok(Put::Done)
    }

    fn set_done(&self, step: u64) {
        self.done[(step / 64) as usize].fetch_or(1 << (step % 64), Ordering::Relaxed);
    }

    fn is_done(&self, step: u64) -> bool {
        self.done[(step / 64) as usize].load(Ordering::Relaxed) & 1 << (step % 64) != 0
    }

    /// Fetches everything, beginning with what comes after the last page that was waited for.
    fn fetch(&self) {
        // SAFETY: the call takes no memory; 0 is the calling thread.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) } != 0 {
            log::debug!("cannot lower the priority of the thread that fetches memory");
        }
        let Some(chain) = self.chain() else { return };
        let steps: u64 = self.regions.iter().map(|region| region.len.div_ceil(STEP)).sum();
        let (mut buf, mut next, mut damaged) = (Vec::new(), 0, false);
        let mut left = steps;
        while left > 0 {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            match self.hint.swap(0, Ordering::Relaxed) {
                0 => {}
                hint => (next, left) = (hint - 1, steps),
            }
            let step = next % steps;
            (next, left) = (step + 1, left - 1);
            let region = self.regions.iter().rfind(|region| region.first <= step);
            let Some(region) = region.filter(|_| !self.is_done(step)) else { continue };
            match self.fill(&chain, region, region.step(step), false, &mut buf) {
                Ok(Put::Done) => self.set_done(step),
                Ok(Put::Gone) => return,
                Err(e) => {
                    // Perhaps nobody ever needs it; whoever does is told.
                    log::error!("{e}; the VM keeps running until its guest needs that memory");
                    damaged = true;
                    self.set_done(step);
                }
            }
        }
        if damaged {
            return;
        }
        for region in &self.regions {
            if let Err(e) = self.uffd.release(region.address, region.len) {
                // It stays watched, and what is touched comes all the same.
                return log::warn!("cannot stop watching guest memory: {e}");
            }
        }
        *self.chain.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.end();
    }

    /// Whoever waits now waits for the end of the process.
    fn give_up(&self, text: &str) {
        log::error!("{text}");
        self.broken.store(true, Ordering::SeqCst);
        (self.events)(MachineEvent::Crash(text.to_owned()));
        let deadline = Instant::now() + GRACE;
        while Instant::now() < deadline {
            if self.stopping.load(Ordering::SeqCst) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // The owner itself waits for that page.
        log::error!("the VM did not stop on its own: its process exits");
        std::process::exit(1);
    }
}

impl Region {
    /// Guest addresses of a step.
    fn step(&self, step: u64) -> Range<u64> {
        let start = (step - self.first) * STEP;
        self.gpa + start..self.gpa + (start + STEP).min(self.len)
    }
}

#[cfg(test)]
mod tests;
