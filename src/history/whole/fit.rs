//! Whether a VM that comes from elsewhere can be here: what this host has to bring, and what is in
//! the way.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::config::{NetArg, VmConfig};
use crate::disk::{backing, probe};
use crate::machine::{self, MachineState};
use crate::storage::{Access, FileKind, Storage};

/// What to take in place of what the VM says that comes.
#[derive(Debug, Clone, Default)]
pub struct Remap {
    /// Images of disks that do not come along, by the disk's id.
    pub disks: BTreeMap<String, PathBuf>,
    /// Files that these may read as their backing files.
    pub backing: Vec<PathBuf>,
    pub kernel: Option<PathBuf>,
    pub initrd: Option<PathBuf>,
    /// Take neither memory nor state: the VM boots from its disks.
    pub without_memory: bool,
    /// Other networks; a tap device's has to be said anew.
    pub nets: Vec<NetArg>,
}

/// Something that is in the way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// `export`, `depot`, `file`, `disk`, `kernel`, `initrd`, `processor`, `network` or `name`.
    pub about: &'static str,
    /// One sentence, with what helps.
    pub text: String,
    /// It was not like that when it was written.
    pub damage: bool,
}

#[derive(Default)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub fn add(&mut self, about: &'static str, text: String, damage: bool) {
        self.0.push(Problem { about, text, damage });
    }

    pub fn damage(&self) -> bool {
        self.0.iter().any(|problem| problem.damage)
    }
}

pub fn can_boot(storage: &Storage, path: &Path) -> std::result::Result<(), String> {
    let meta = storage.open_named(path, Access::ReadOnly).and_then(|file| file.metadata());
    match meta {
        Err(e) => Err(format!("cannot be used: {e}")),
        Ok(meta) if meta.kind != FileKind::File => Err("is not a regular file".into()),
        Ok(_) => Ok(()),
    }
}

/// Disks that checkpoints leave out: which file of this host is theirs is for the user to say.
/// `place` is what the VM comes from, which brings the disks that it `has`.
pub fn outside_disks(
    storage: &Storage,
    place: &str,
    has: &dyn Fn(&str) -> bool,
    config: &mut VmConfig,
    remap: &Remap,
    is_own: &dyn Fn(&str) -> bool,
    problems: &mut Problems,
) {
    for id in remap.disks.keys() {
        if has(id) {
            problems.add("disk", format!("disk `{id}` is in {place}: remove --disk {id}=..."), false);
        } else if !config.disks.iter().any(|disk| disk.id == *id) {
            problems.add("disk", format!("the VM has no disk `{id}`"), false);
        }
    }
    for disk in config.disks.iter_mut().filter(|disk| !has(&disk.id) && !is_own(&disk.id)) {
        let id = &disk.id;
        let Some(path) = remap.disks.get(id) else {
            let (was, access) = (disk.path.display(), if disk.readonly { "reads" } else { "writes" });
            let text = format!(
                "disk `{id}` is not in {place} (it was {was}, which the guest {access}): give its \
                 image with --disk {id}=PATH"
            );
            problems.add("disk", text, false);
            continue;
        };
        disk.path.clone_from(path);
        match probe(storage, path, !disk.readonly).and_then(|format| {
            backing::check(storage, path, &remap.backing)?;
            Ok(format)
        }) {
            Ok(format) => disk.format = format,
            Err(e) => problems.add("disk", format!("disk `{id}`: {e}"), false),
        }
    }
    let named = config.disks.iter().filter(|disk| remap.disks.contains_key(&disk.id));
    if let Some(error) = backing::given_twice(storage, named) {
        problems.add("disk", error.to_string(), false);
    }
}

pub fn check_processor(config: &VmConfig, state: &[u8], problems: &mut Problems) {
    let found = serde_json::from_slice::<MachineState>(state)
        .map_err(|e| format!("the saved state is invalid: {e}"))
        .and_then(|state| machine::missing_features(config, &state).map_err(|e| e.to_string()));
    let hint = "--without-memory takes only the disks";
    match found {
        Ok(lacking) if lacking.is_empty() => {}
        Ok(lacking) => {
            let lacking = lacking.join(", ");
            problems.add(
                "processor",
                format!("this host's processor lacks features that the guest uses ({lacking}): {hint}"),
                false,
            );
        }
        Err(e) => problems.add("processor", format!("{e}: {hint}"), false),
    }
}
