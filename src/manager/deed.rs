//! What the pages may ask for, and the words of piton's command line that do it. Words are handed
//! over one by one, so nothing in them means anything to a shell.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::checkpoint::CheckpointName;
use crate::checkpoint::manifest::Mode;
use crate::config::Forward;
use crate::folder::{CheckpointType, VmName};

/// Body of `POST /api/actions`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Deed {
    /// A new VM, which boots.
    Run {
        vm: VmName,
        cpus: Option<u32>,
        /// In bytes.
        memory: Option<u64>,
        kernel: Option<PathBuf>,
        initrd: Option<PathBuf>,
        cmdline: Option<String>,
        #[serde(default)]
        disks: Vec<Image>,
        /// Through this host's network.
        #[serde(default)]
        network: bool,
        #[serde(default)]
        forwards: Vec<Forward>,
    },
    Start {
        vm: VmName,
    },
    Stop {
        vm: VmName,
        /// Cut the power at once.
        #[serde(default)]
        force: bool,
    },
    Pause {
        vm: VmName,
    },
    Resume {
        vm: VmName,
    },
    Remove {
        vm: VmName,
    },
    Set {
        vm: VmName,
        checkpoint_type: Option<CheckpointType>,
        auto_checkpoint: Option<bool>,
        checkpoint_dir: Option<PathBuf>,
        #[serde(default)]
        forward: Vec<Forward>,
        #[serde(default)]
        no_forward: Vec<Forward>,
    },
    Create {
        vm: VmName,
        name: Option<CheckpointName>,
        #[serde(default)]
        note: String,
        #[serde(rename = "type")]
        kind: Option<CheckpointType>,
        #[serde(default)]
        mode: Mode,
        #[serde(default)]
        compress: bool,
        #[serde(default)]
        pause_after: bool,
    },
    /// What becomes of the current state has to be said.
    Apply {
        vm: VmName,
        checkpoint: String,
        current: Current,
        /// Of the checkpoint that the current state is saved as.
        name: Option<CheckpointName>,
        #[serde(default)]
        run: bool,
        #[serde(default)]
        force: bool,
    },
    Revert {
        vm: VmName,
        #[serde(default)]
        run: bool,
        #[serde(default)]
        force: bool,
    },
    Delete {
        vm: VmName,
        checkpoint: String,
        #[serde(default)]
        subtree: bool,
        /// Only tell what would go.
        #[serde(default)]
        dry_run: bool,
    },
    Rename {
        vm: VmName,
        checkpoint: String,
        name: CheckpointName,
    },
    Note {
        vm: VmName,
        checkpoint: String,
        note: String,
    },
    Verify {
        vm: VmName,
        checkpoint: String,
    },
    Clone {
        vm: VmName,
        checkpoint: String,
        new: VmName,
        #[serde(default)]
        run: bool,
    },
    /// Of a checkpoint, or of the VM as it is.
    Export {
        vm: VmName,
        checkpoint: Option<String>,
        dir: PathBuf,
        #[serde(default)]
        live: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Current {
    Save,
    Discard,
}

/// A disk's image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    path: PathBuf,
    #[serde(default)]
    overlay: bool,
    #[serde(default)]
    readonly: bool,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeedError {
    #[error("use an absolute path, beginning with `/`, instead of `{}`", .0.display())]
    Relative(PathBuf),
    #[error("no checkpoint was given")]
    NoCheckpoint,
}

type Result<T> = std::result::Result<T, DeedError>;

/// Words of a command line: options first, then what stands by its place.
struct Words {
    options: Vec<OsString>,
    operands: Vec<OsString>,
}

impl Words {
    fn new(command: &[&str]) -> Self {
        Self { options: command.iter().map(Into::into).collect(), operands: Vec::new() }
    }

    fn on(mut self, name: impl AsRef<OsStr>) -> Self {
        self.operands.push(name.as_ref().to_owned());
        self
    }

    fn at(self, vm: &VmName, checkpoint: &str) -> Result<Self> {
        if checkpoint.is_empty() {
            return Err(DeedError::NoCheckpoint);
        }
        Ok(self.on(format!("{vm}@{checkpoint}")))
    }

    fn flag(mut self, name: &str, on: bool) -> Self {
        if on {
            self.options.push(name.into());
        }
        self
    }

    fn option(mut self, name: &str, value: Option<impl AsRef<OsStr>>) -> Self {
        if let Some(value) = value {
            let mut word = OsString::from(name);
            word.push("=");
            word.push(value);
            self.options.push(word);
        }
        self
    }

    fn options(self, name: &str, values: &[impl ToString]) -> Self {
        values.iter().fold(self, |words, value| words.option(name, Some(value.to_string())))
    }

    fn path(self, name: &str, path: Option<&Path>) -> Result<Self> {
        Ok(self.option(name, path.map(absolute).transpose()?))
    }

    fn done(self) -> Vec<OsString> {
        // In front: what follows `--` is no option, however it begins.
        let json = std::iter::once("--json".into());
        json.chain(self.options).chain(std::iter::once("--".into())).chain(self.operands).collect()
    }
}

/// The manager's working directory is nothing that who looks at its pages knows of.
fn absolute(path: &Path) -> Result<&Path> {
    if path.is_absolute() { Ok(path) } else { Err(DeedError::Relative(path.to_owned())) }
}

fn image(image: &Image) -> Result<OsString> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    // A comma in the path is written twice.
    let path = absolute(&image.path)?.as_os_str().as_bytes();
    let path = path.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    let mut word = OsString::from_vec(path.collect());
    for (flag, on) in [(",overlay", image.overlay), (",readonly", image.readonly)] {
        if on {
            word.push(flag);
        }
    }
    Ok(word)
}

impl Deed {
    /// The VM, or the one that is to be.
    pub fn vm(&self) -> &VmName {
        match self {
            Self::Run { vm, .. }
            | Self::Start { vm }
            | Self::Stop { vm, .. }
            | Self::Pause { vm }
            | Self::Resume { vm }
            | Self::Remove { vm }
            | Self::Set { vm, .. }
            | Self::Create { vm, .. }
            | Self::Apply { vm, .. }
            | Self::Revert { vm, .. }
            | Self::Delete { vm, .. }
            | Self::Rename { vm, .. }
            | Self::Note { vm, .. }
            | Self::Verify { vm, .. }
            | Self::Clone { vm, .. }
            | Self::Export { vm, .. } => vm,
        }
    }

    /// As `do` says it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Run { .. } => "run",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Pause { .. } => "pause",
            Self::Resume { .. } => "resume",
            Self::Remove { .. } => "remove",
            Self::Set { .. } => "set",
            Self::Create { .. } => "create",
            Self::Apply { .. } => "apply",
            Self::Revert { .. } => "revert",
            Self::Delete { .. } => "delete",
            Self::Rename { .. } => "rename",
            Self::Note { .. } => "note",
            Self::Verify { .. } => "verify",
            Self::Clone { .. } => "clone",
            Self::Export { .. } => "export",
        }
    }

    /// What piton is to be run with.
    pub fn words(&self) -> Result<Vec<OsString>> {
        let words = match self {
            Self::Run { vm, cpus, memory, kernel, initrd, cmdline, disks, network, forwards } => {
                let words = Words::new(&["run", "--detach"]).on(vm.as_str());
                let words = words.option("--cpus", cpus.map(|cpus| cpus.to_string()));
                let words =
                    words.option("--memory", memory.map(|bytes| format!("{}K", bytes.div_ceil(1024))));
                let words = words.path("--kernel", kernel.as_deref())?.path("--initrd", initrd.as_deref())?;
                let words = words.option("--cmdline", cmdline.as_ref());
                let words = words.option("--net", network.then_some("user")).options("--forward", forwards);
                let disks = disks.iter().map(image).collect::<Result<Vec<_>>>()?;
                disks.into_iter().fold(words, |words, disk| words.option("--disk", Some(disk)))
            }
            Self::Start { vm } => Words::new(&["start"]).on(vm.as_str()),
            Self::Stop { vm, force } => Words::new(&[if *force { "kill" } else { "stop" }]).on(vm.as_str()),
            Self::Pause { vm } => Words::new(&["pause"]).on(vm.as_str()),
            Self::Resume { vm } => Words::new(&["resume"]).on(vm.as_str()),
            Self::Remove { vm } => Words::new(&["rm", "--yes"]).on(vm.as_str()),
            Self::Set { vm, checkpoint_type, auto_checkpoint, checkpoint_dir, forward, no_forward } => {
                let switch = auto_checkpoint.map(|on| if on { "on" } else { "off" });
                Words::new(&["set"])
                    .on(vm.as_str())
                    .option("--checkpoint-type", checkpoint_type.map(CheckpointType::as_str))
                    .option("--auto-checkpoint", switch)
                    .path("--checkpoint-dir", checkpoint_dir.as_deref())?
                    .options("--forward", forward)
                    .options("--no-forward", no_forward)
            }
            Self::Create { vm, name, note, kind, mode, compress, pause_after } => {
                let words = Words::new(&["checkpoint", "create"]).on(vm.as_str());
                let words = match name {
                    Some(name) => words.on(name.as_str()),
                    None => words,
                };
                words
                    .option("--note", (!note.is_empty()).then_some(note))
                    .option("--type", kind.map(CheckpointType::as_str))
                    .option("--mode", (*mode == Mode::Stop).then_some("stop"))
                    .flag("--compress", *compress)
                    .flag("--pause-after", *pause_after)
            }
            Self::Apply { vm, checkpoint, current, name, run, force } => {
                let words = Words::new(&["checkpoint", "apply"]).at(vm, checkpoint)?;
                let words = match (current, name) {
                    (Current::Discard, _) => words.flag("--discard-current", true),
                    (Current::Save, None) => words.flag("--save-current", true),
                    (Current::Save, Some(name)) => words.option("--save-current", Some(name.as_str())),
                };
                words.flag("--run", *run).flag("--force", *force)
            }
            Self::Revert { vm, run, force } => Words::new(&["checkpoint", "revert", "--yes"])
                .on(vm.as_str())
                .flag("--run", *run)
                .flag("--force", *force),
            Self::Delete { vm, checkpoint, subtree, dry_run } => {
                Words::new(&["checkpoint", "delete", "--yes"])
                    .at(vm, checkpoint)?
                    .flag("--subtree", *subtree)
                    .flag("--dry-run", *dry_run)
            }
            Self::Rename { vm, checkpoint, name } => {
                Words::new(&["checkpoint", "rename"]).at(vm, checkpoint)?.on(name.as_str())
            }
            Self::Note { vm, checkpoint, note } => {
                Words::new(&["checkpoint", "note"]).at(vm, checkpoint)?.on(note)
            }
            Self::Verify { vm, checkpoint } => Words::new(&["checkpoint", "verify"]).at(vm, checkpoint)?,
            Self::Clone { vm, checkpoint, new, run } => {
                Words::new(&["clone"]).at(vm, checkpoint)?.on(new.as_str()).flag("--run", *run)
            }
            Self::Export { vm, checkpoint, dir, live } => {
                let words = match checkpoint {
                    Some(checkpoint) => Words::new(&["checkpoint", "export"]).at(vm, checkpoint)?,
                    None => Words::new(&["export"]).on(vm.as_str()).flag("--live", *live),
                };
                words.on(absolute(dir)?)
            }
        };
        Ok(words.done())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(json: &str) -> String {
        let deed: Deed = serde_json::from_str(json).unwrap();
        let words: Vec<_> = deed.words().unwrap();
        words.iter().map(|word| word.to_str().unwrap()).collect::<Vec<_>>().join("|")
    }

    #[test]
    fn what_is_asked_for_becomes_words() {
        for (json, expected) in [
            (r#"{"do":"start","vm":"demo"}"#, "--json|start|--|demo"),
            (r#"{"do":"stop","vm":"demo","force":true}"#, "--json|kill|--|demo"),
            (
                r#"{"do":"create","vm":"demo","name":"-x","note":"--json; rm -rf /","type":"standard"}"#,
                "--json|checkpoint|create|--note=--json; rm -rf /|--type=standard|--|demo|-x",
            ),
            (
                r#"{"do":"apply","vm":"demo","checkpoint":"-a b","current":"save","name":"--run","run":true}"#,
                "--json|checkpoint|apply|--save-current=--run|--run|--|demo@-a b",
            ),
            (r#"{"do":"note","vm":"d","checkpoint":"c","note":"-y"}"#, "--json|checkpoint|note|--|d@c|-y"),
            (
                r#"{"do":"run","vm":"d","memory":1048576,"disks":[{"path":"/a,b","overlay":true}],"network":true}"#,
                "--json|run|--detach|--memory=1024K|--net=user|--disk=/a,,b,overlay|--|d",
            ),
            (r#"{"do":"export","vm":"d","dir":"/x"}"#, "--json|export|--|d|/x"),
        ] {
            assert_eq!(words(json), expected);
        }
    }

    #[test]
    fn what_cannot_be_meant_is_no_deed() {
        for json in [
            r#"{"do":"start"}"#,
            r#"{"do":"start","vm":"../x"}"#,
            r#"{"do":"start","vm":"--help"}"#,
            r#"{"do":"start","vm":"demo","surely":1}"#,
            r#"{"do":"start","vm":"demo","force":true}"#,
            r#"{"do":"apply","vm":"demo","checkpoint":"a"}"#,
            r#"{"do":"rename","vm":"demo","checkpoint":"a","name":"x@y"}"#,
            r#"{"do":"shell","vm":"demo"}"#,
            "[]",
        ] {
            assert!(serde_json::from_str::<Deed>(json).is_err(), "{json}");
        }
        let deed = |json: &str| serde_json::from_str::<Deed>(json).unwrap().words();
        let relative = Err(DeedError::Relative("x/y".into()));
        assert_eq!(deed(r#"{"do":"export","vm":"d","dir":"x/y"}"#), relative);
        assert_eq!(deed(r#"{"do":"run","vm":"d","kernel":"x/y"}"#), relative);
        assert_eq!(deed(r#"{"do":"run","vm":"d","disks":[{"path":"x/y"}]}"#), relative);
        let nothing = Err(DeedError::NoCheckpoint);
        assert_eq!(deed(r#"{"do":"verify","vm":"d","checkpoint":""}"#), nothing);
    }
}
