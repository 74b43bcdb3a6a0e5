//! What the folder of a VM tells, read again only where a file has changed.

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::tail;
use crate::control::trash::TrashInfo;
use crate::control::{TreeInfo, count};
use crate::folder::{Definition, Home, LastRun, VmFolder};
use crate::history::removed::{self, RemovedVms};
use crate::history::{self, Catalog, CheckpointError};
use crate::id::Id;

/// Counting checkpoints reads a file for each, and measuring removed VMs looks at all of theirs; of what
/// does not seem to have changed it is done so often.
const COUNT: Duration = Duration::from_secs(1);

/// A file or folder as it was when it was looked at; another one if anything was written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp(u64, i64, i64, u64);

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let found = std::fs::metadata(path).ok()?;
        Some(Self(found.ino(), found.mtime(), found.mtime_nsec(), found.size()))
    }
}

/// Of a VM as it lies there.
#[derive(Debug, Clone)]
pub struct Told {
    /// Or why it cannot be read.
    pub definition: Result<Definition, String>,
    pub checkpoints: usize,
    pub last_run: Option<LastRun>,
    /// There is a socket; whether somebody is behind it is another matter.
    pub listens: bool,
    pub console: Vec<String>,
}

pub struct Files {
    folder: VmFolder,
    definition: Option<(Stamp, Definition)>,
    console: Option<(Stamp, Vec<String>)>,
    counted: Option<(Instant, usize)>,
}

impl Files {
    pub fn new(folder: VmFolder) -> Self {
        Self { folder, definition: None, console: None, counted: None }
    }

    pub fn look(&mut self) -> Told {
        let definition = self.definition();
        let listens = self.folder.socket().exists();
        // One that runs counts them itself.
        let checkpoints = match &definition {
            Ok(definition) if !listens => self.count(definition),
            _ => self.counted.map_or(0, |(_, count)| count),
        };
        Told { definition, checkpoints, last_run: self.folder.last_run(), listens, console: self.console() }
    }

    /// How many checkpoints there are.
    fn count(&mut self, definition: &Definition) -> usize {
        match self.counted {
            Some((at, count)) if at.elapsed() < COUNT => count,
            _ => {
                let count = count(&self.folder, definition);
                self.counted = Some((Instant::now(), count));
                count
            }
        }
    }

    fn definition(&mut self) -> Result<Definition, String> {
        let stamp = Stamp::of(&self.folder.definition_path());
        if let Some((before, definition)) = &self.definition
            && Some(*before) == stamp
        {
            return Ok(definition.clone());
        }
        let definition = self.folder.load().map_err(|e| e.to_string())?;
        self.definition = stamp.map(|stamp| (stamp, definition.clone()));
        Ok(definition)
    }

    fn console(&mut self) -> Vec<String> {
        let path = self.folder.console_log();
        let stamp = Stamp::of(&path);
        if let Some((before, lines)) = &self.console
            && Some(*before) == stamp
        {
            return lines.clone();
        }
        // A picture of it is no reason to complain.
        let lines = tail::of(self.folder.storage(), &path).unwrap_or_default();
        self.console = stamp.map(|stamp| (stamp, lines.clone()));
        lines
    }
}

/// The checkpoints of a VM.
pub fn tree(folder: &VmFolder) -> Result<TreeInfo, CheckpointError> {
    let definition = folder.load()?;
    history::tree(&Catalog::new(folder, &definition), &definition)
}

/// What was taken away and can be taken back.
pub fn trash(folder: &VmFolder) -> Result<TrashInfo, CheckpointError> {
    let definition = folder.load()?;
    history::trash::info(&Catalog::new(folder, &definition), &definition)
}

/// VMs that were removed and can be restored.
pub fn removed(home: &Home) -> Result<RemovedVms, CheckpointError> {
    Ok(removed::describe_all(&removed::list(home)?))
}

/// The same for who looks many times a second: all of their files are looked at again only if other
/// VMs are there, or now and then.
#[derive(Default)]
pub struct RemovedFiles(Option<(Instant, Vec<Id>)>);

impl RemovedFiles {
    /// None: nothing is known to have changed.
    pub fn news(&mut self, home: &Home) -> Result<Option<RemovedVms>, CheckpointError> {
        let all = removed::list(home)?;
        let ids: Vec<Id> = all.iter().map(|one| one.id).collect();
        if self.0.as_ref().is_some_and(|(at, then)| *then == ids && at.elapsed() < COUNT) {
            return Ok(None);
        }
        self.0 = Some((Instant::now(), ids));
        Ok(Some(removed::describe_all(&all)))
    }
}

/// Notices when the checkpoints of a VM change.
pub struct TreeFiles {
    folder: VmFolder,
    /// Of vm.json, of the folder of checkpoints and of each of them.
    stamps: Vec<Option<Stamp>>,
}

impl TreeFiles {
    pub fn new(folder: VmFolder) -> Self {
        Self { folder, stamps: Vec::new() }
    }

    pub fn folder(&self) -> &VmFolder {
        &self.folder
    }

    /// Whether they changed since this was asked last.
    pub fn have_changed(&mut self) -> bool {
        let stamps = self.look();
        let changed = stamps != self.stamps;
        self.stamps = stamps;
        changed
    }

    fn look(&self) -> Vec<Option<Stamp>> {
        let mut stamps = vec![Stamp::of(&self.folder.definition_path())];
        // What cannot be read is told by who reads all of it.
        let Ok(definition) = self.folder.load() else { return stamps };
        let dir = self.folder.checkpoints(&definition);
        stamps.push(Stamp::of(&dir));
        let names = self.folder.storage().list_dir(&dir).unwrap_or_default();
        stamps.extend(names.iter().map(|name| Stamp::of(&dir.join(name))));
        stamps
    }
}
