//! Whether all that the checkpoints of a depot need is there, and is what it was.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::chunks::Chunks;
use super::fetch::{Fetch, Wanted};
use super::location::Title;
use super::manifest::Manifest;
use super::name::Name;
use super::open::Depot;
use super::{DepotError, Result, stream};
use crate::progress::Progress;

/// Chunks that are read together.
const TOGETHER: usize = 128;

#[derive(Debug, Default, serde::Serialize)]
pub struct Verified {
    pub checkpoints: usize,
    /// Chunks that were looked at, each once, and their bytes.
    pub chunks: usize,
    pub bytes: u64,
    /// What is damaged or missing, by the checkpoint that needs it; those of no checkpoint under "".
    pub damage: BTreeMap<String, Vec<String>>,
}

impl Verified {
    fn add(&mut self, whose: &str, what: String) {
        let damage = self.damage.entry(whose.to_owned()).or_default();
        // The first few tell what there is to know.
        if damage.len() < 20 && !damage.contains(&what) {
            damage.push(what);
        }
    }
}

/// All manifests, or that of one checkpoint. `quick`: only whether the chunks are there.
pub fn verify(depot: Depot, only: Option<&Title>, quick: bool, progress: &Progress) -> Result<Verified> {
    let mut verified = Verified::default();
    let mut manifests: Vec<Manifest> = Vec::new();
    match only {
        Some(title) => manifests.push(depot.manifest(title)?),
        None => {
            for object in depot.manifests()? {
                match depot.read_manifest(&object) {
                    Ok(manifest) => manifests.extend(manifest),
                    Err(e @ DepotError::Damaged { .. }) => verified.add("", e.to_string()),
                    Err(e) => return Err(e),
                }
            }
        }
    }
    let depot = Arc::new(depot);
    let chunks = Arc::new(Chunks::load(&depot, progress)?);
    for damaged in &chunks.damaged {
        verified.add("", damaged.clone());
    }
    let fetch = Fetch::new(depot, chunks.clone(), progress);
    // Who needs a chunk, and how long it is.
    let mut needed: HashMap<Wanted, usize> = HashMap::new();
    for (number, manifest) in manifests.iter().enumerate() {
        verified.checkpoints += 1;
        for (what, stream) in manifest.streams() {
            match stream::names(&fetch, stream) {
                Ok(names) => {
                    for (at, name) in (0..).zip(names).filter(|(_, name)| *name != Name::ZEROS) {
                        needed.entry((name, stream.len_of(at))).or_insert(number);
                    }
                }
                Err(e @ DepotError::Damaged { .. }) => {
                    verified.add(&manifest.title().to_string(), format!("{what}: {e}"));
                }
                Err(e) => return Err(e),
            }
        }
    }
    verified.chunks = needed.len();
    verified.bytes = needed.keys().map(|(_, len)| *len as u64).sum();
    progress.phase("chunks", verified.bytes);
    let mut bad: BTreeSet<usize> = BTreeSet::new();
    let mut told: Vec<(usize, String)> = Vec::new();
    // As they lie in the packs.
    let mut wanted: Vec<(Wanted, usize)> = needed.into_iter().collect();
    wanted.sort_by_key(|((name, _), _)| chunks.spot(name).map(|spot| (spot.pack, spot.offset)));
    for some in wanted.chunks(TOGETHER) {
        progress.check()?;
        let names: Vec<Wanted> = some.iter().map(|(wanted, _)| *wanted).collect();
        let done = match quick {
            true => Ok(()),
            false => fetch.get(&names).map(drop),
        };
        let one_by_one = quick || matches!(done, Err(DepotError::Damaged { .. }));
        if !one_by_one {
            done?;
        }
        for (wanted, whose) in some.iter().filter(|_| one_by_one) {
            let found = match chunks.spot(&wanted.0) {
                Some(spot) if quick && spot.len as usize == wanted.1 => continue,
                None if quick => {
                    Err(DepotError::damaged("the depot", format!("chunk {} is missing", wanted.0)))
                }
                _ => fetch.get(&[*wanted]).map(drop),
            };
            match found {
                Ok(()) => {}
                Err(e @ DepotError::Damaged { .. }) => {
                    bad.insert(*whose);
                    told.push((*whose, e.to_string()));
                }
                Err(e) => return Err(e),
            }
        }
        progress.add(names.iter().map(|(_, len)| *len as u64).sum());
    }
    for (whose, what) in told {
        verified.add(&manifests[whose].title().to_string(), what);
    }
    Ok(verified)
}
