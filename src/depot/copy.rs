//! Checkpoints from one depot to another, which may have other keys.

use std::sync::Arc;

use super::chunks::Chunks;
use super::fetch::{Fetch, Wanted};
use super::location::Title;
use super::manifest::{Manifest, Stream};
use super::name::Name;
use super::open::Depot;
use super::push::LIMIT;
use super::send::{Sender, Sent, with_sender};
use super::{DepotError, Result, stream};
use crate::moment::Moment;
use crate::progress::Progress;

/// Chunks that are read together.
const TOGETHER: u64 = 128;

#[derive(Debug, serde::Serialize)]
pub struct Copied {
    pub title: String,
    pub already: bool,
    #[serde(flatten)]
    pub sent: Sent,
}

/// One checkpoint; `chunks` is what the depot that it comes from has.
pub fn copy(from: &Arc<Depot>, to: &Depot, title: &Title, progress: &Progress) -> Result<Copied> {
    let manifest = from.manifest(title)?;
    if let Some(there) = to.read_manifest(&to.keys.object(&title.to_string()))? {
        return already(to, title, &manifest, &there);
    }
    let fetch = Fetch::new(from.clone(), Arc::new(Chunks::load(from, progress)?), progress);
    let began = Moment::now();
    let known = Arc::new(Chunks::load(to, progress)?);
    let same_names = from.keys.are_plain() && to.keys.are_plain();
    let (copied, sent) = with_sender(to, &known, false, progress, |sender| {
        let mut copied = Manifest { depot: to.header.id, ..manifest.clone() };
        let streams = (copied.disks.values_mut())
            .chain(copied.own.values_mut())
            .chain(copied.memory.as_mut().map(|memory| &mut memory.stream))
            .chain(&mut copied.state)
            .chain(&mut copied.kernel)
            .chain(&mut copied.initrd);
        for stream in streams {
            progress.phase("chunks", stream.bytes);
            *stream = one(&fetch, sender, stream, same_names, progress)?;
        }
        Ok(copied)
    })?;
    if Moment::now().since(&began) > LIMIT {
        return Err(DepotError::Refused(format!(
            "copying `{title}` took more than {} hours: do it again, what was sent is not sent again",
            LIMIT / 3600
        )));
    }
    progress.check()?;
    if !to.publish(&copied)? {
        return match to.read_manifest(&to.keys.object(&title.to_string()))? {
            Some(there) => already(to, title, &manifest, &there),
            None => Err(taken(to, title)),
        };
    }
    Ok(Copied { title: title.to_string(), already: false, sent })
}

fn taken(to: &Depot, title: &Title) -> DepotError {
    DepotError::Refused(format!("the depot at {} has another checkpoint named `{title}`", to.at()))
}

fn already(to: &Depot, title: &Title, ours: &Manifest, there: &Manifest) -> Result<Copied> {
    if there.id != ours.id || there.created != ours.created {
        return Err(taken(to, title));
    }
    Ok(Copied { title: title.to_string(), already: true, sent: Sent::default() })
}

fn one(
    fetch: &Fetch,
    sender: &mut Sender,
    stream: &Stream,
    same_names: bool,
    progress: &Progress,
) -> Result<Stream> {
    let names = stream::names(fetch, stream)?;
    let mut copied = Vec::with_capacity(names.len());
    for first in (0..names.len() as u64).step_by(TOGETHER as usize) {
        progress.check()?;
        let numbers = first..(first + TOGETHER).min(names.len() as u64);
        let needed = |name: &Name| *name != Name::ZEROS && !(same_names && sender.has(name));
        let wanted: Vec<Wanted> = numbers
            .clone()
            .map(|at| (names[at as usize], stream.len_of(at)))
            .filter(|(name, _)| needed(name))
            .collect();
        let found = fetch.get(&wanted)?;
        for at in numbers {
            let name = names[at as usize];
            copied.push(match found.get(&name) {
                Some(chunk) => sender.chunk(chunk)?,
                None => {
                    if name != Name::ZEROS {
                        sender.kept();
                    }
                    name
                }
            });
            progress.add(stream.len_of(at) as u64);
        }
    }
    Ok(Stream { map: sender.map(&copied)?, ..stream.clone() })
}
