//! Chunks out of a depot: many at once, each checked against its name.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::chunks::{Chunks, Spot, pack_key};
use super::name::Name;
use super::open::Depot;
use super::{DepotError, Result};
use crate::progress::Progress;

/// Requests at once.
const AT_ONCE: usize = 8;
/// Most bytes of a request, and most that lie unused between two chunks of one.
const REQUEST: u64 = 4 << 20;
const GAP: u64 = 64 << 10;
/// How often a chunk is asked for whose contents are wrong.
const TRIES: usize = 3;

pub struct Fetch {
    pub depot: Arc<Depot>,
    chunks: RwLock<Arc<Chunks>>,
    progress: Progress,
}

/// A chunk that is wanted: its name and length.
pub type Wanted = (Name, usize);

/// Chunks by name.
type Found = HashMap<Name, Arc<Vec<u8>>>;

struct Request {
    pack: usize,
    range: Range<u64>,
    chunks: Vec<(Wanted, Spot)>,
}

impl Fetch {
    pub fn new(depot: Arc<Depot>, chunks: Arc<Chunks>, progress: &Progress) -> Self {
        Self { depot, chunks: RwLock::new(chunks), progress: progress.clone() }
    }

    pub fn chunks(&self) -> Arc<Chunks> {
        self.chunks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All of these, whatever packs they are in. Chunks of zeros come from nowhere.
    pub fn get(&self, wanted: &[Wanted]) -> Result<Found> {
        let mut found = Found::new();
        let stored = wanted.iter().filter(|(name, _)| *name != Name::ZEROS);
        for &(name, len) in wanted.iter().filter(|(name, _)| *name == Name::ZEROS) {
            let longest = found.entry(name).or_insert_with(|| Arc::new(Vec::new()));
            if longest.len() < len {
                *longest = Arc::new(vec![0; len]);
            }
        }
        let mut missing: Vec<Wanted> = stored.copied().collect();
        missing.sort_unstable();
        missing.dedup();
        if self.pass(&missing, &mut found)? {
            // A prune moved some of them: where they are now is in the new indexes.
            let chunks = Arc::new(Chunks::load(&self.depot, &self.progress)?);
            *self.chunks.write().unwrap_or_else(PoisonError::into_inner) = chunks;
            missing.retain(|(name, _)| !found.contains_key(name));
            self.pass(&missing, &mut found)?;
        }
        match missing.iter().find(|(name, _)| !found.contains_key(name)) {
            None => Ok(found),
            Some((name, _)) => Err(self.lost(name)),
        }
    }

    fn lost(&self, name: &Name) -> DepotError {
        let chunks = self.chunks();
        let why = match chunks.damaged.first() {
            Some(damaged) => format!("chunk {name} is missing, and {damaged}"),
            None => format!("chunk {name} is missing"),
        };
        DepotError::damaged(format!("the depot at {}", self.depot.at()), why)
    }

    /// Whether a pack was not there that should have been.
    fn pass(&self, wanted: &[Wanted], found: &mut Found) -> Result<bool> {
        let chunks = self.chunks();
        let mut spots: Vec<(Wanted, Spot)> = Vec::with_capacity(wanted.len());
        let mut gone = false;
        for &(name, len) in wanted {
            match chunks.spot(&name) {
                Some(spot) if spot.len as usize == len => spots.push(((name, len), spot)),
                Some(spot) => {
                    let what = format!("chunk {name} has {} bytes instead of {len}", spot.len);
                    let pack = self.depot.store.shown(&pack_key(chunks.packs[spot.pack].id));
                    return Err(DepotError::damaged(pack, what));
                }
                None => gone = true,
            }
        }
        let requests = requests(spots);
        let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let work = || -> Result<bool> {
            let mut gone = false;
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                self.progress.check()?;
                match self.request(&chunks, request)? {
                    Some(got) => results.lock().unwrap_or_else(PoisonError::into_inner).extend(got),
                    None => gone = true,
                }
            }
            Ok(gone)
        };
        let threads = AT_ONCE.min(requests.len());
        if threads <= 1 {
            gone |= work()?;
        } else {
            gone |= std::thread::scope(|scope| {
                let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                // All are waited for; the first error is the one to report.
                let ended: Vec<_> =
                    threads.into_iter().map(|thread| thread.join().unwrap_or(Ok(true))).collect();
                ended.into_iter().try_fold(false, |all, gone| gone.map(|gone| all | gone))
            })?;
        }
        found.extend(results.into_inner().unwrap_or_else(PoisonError::into_inner));
        Ok(gone)
    }

    fn request(&self, chunks: &Chunks, request: &Request) -> Result<Option<Found>> {
        let id = chunks.packs[request.pack].id;
        let key = pack_key(id);
        let Some(bytes) = self.depot.store.get_range(&key, request.range.clone())? else { return Ok(None) };
        let mut got = Found::with_capacity(request.chunks.len());
        for ((name, len), spot) in &request.chunks {
            let at = (u64::from(spot.offset) - request.range.start) as usize;
            let mut chunk = bytes
                .get(at..at + spot.stored as usize)
                .ok_or("the pack is too short")
                .and_then(|stored| self.depot.keys.unpack(name, *len, stored));
            for _ in 1..TRIES {
                if chunk.is_ok() {
                    break;
                }
                // On its way, perhaps.
                let start = u64::from(spot.offset);
                let again = self.depot.store.get_range(&key, start..start + u64::from(spot.stored))?;
                let Some(stored) = again else { return Ok(None) };
                chunk = self.depot.keys.unpack(name, *len, &stored);
            }
            match chunk {
                Ok(chunk) => drop(got.insert(*name, Arc::new(chunk))),
                Err(what) => {
                    let what =
                        format!("{what} (chunk {name}, {} bytes at offset {})", spot.stored, spot.offset);
                    return Err(DepotError::damaged(self.depot.store.shown(&key), what));
                }
            }
        }
        Ok(Some(got))
    }
}

/// What lies near each other comes together.
fn requests(mut spots: Vec<(Wanted, Spot)>) -> Vec<Request> {
    spots.sort_unstable_by_key(|(_, spot)| (spot.pack, spot.offset));
    let mut requests: Vec<Request> = Vec::new();
    for (wanted, spot) in spots {
        let range = u64::from(spot.offset)..u64::from(spot.offset) + u64::from(spot.stored);
        match requests.last_mut() {
            Some(last)
                if last.pack == spot.pack
                    && range.start <= last.range.end + GAP
                    && range.end.saturating_sub(last.range.start) <= REQUEST =>
            {
                last.range.end = last.range.end.max(range.end);
                last.chunks.push((wanted, spot));
            }
            _ => requests.push(Request { pack: spot.pack, range, chunks: vec![(wanted, spot)] }),
        }
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_come_together_and_no_request_is_large() {
        let spot = |pack, offset, stored| ((Name([1; 32]), 1), Spot { pack, offset, stored, len: 1 });
        let found = requests(vec![
            spot(0, 1 << 20, 100),
            spot(0, 28, 100),
            spot(0, 128, 100),
            spot(1, 228, 100),
            spot(1, 228 + (4 << 20), 100),
        ]);
        let ranges: Vec<_> = found.iter().map(|request| (request.pack, request.range.clone())).collect();
        let far = 1 << 20;
        assert_eq!(
            ranges,
            [(0, 28..228), (0, far..far + 100), (1, 228..328), (1, 228 + (4 << 20)..328 + (4 << 20))]
        );
    }
}
