//! The words of piton's command line that do what was asked for. They are handed over one by one, so
//! nothing in them means anything to a shell.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::deed::{Current, Deed, Image};
use crate::checkpoint::manifest::Mode;
use crate::folder::{CheckpointType, VmName};

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

/// A comma in it is written twice.
fn path_of_disk(path: &Path) -> Result<OsString> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let path = absolute(path)?.as_os_str().as_bytes();
    let path = path.iter().flat_map(|byte| std::iter::repeat_n(*byte, if *byte == b',' { 2 } else { 1 }));
    Ok(OsString::from_vec(path.collect()))
}

fn kibibytes(bytes: u64) -> String {
    format!("{}K", bytes.div_ceil(1 << 10))
}

/// The smallest unit that the command knows of sizes on disk.
fn mebibytes(bytes: u64) -> String {
    match bytes.div_ceil(1 << 20) {
        0 => "0".into(),
        count => format!("{count}M"),
    }
}

fn image(image: &Image) -> Result<OsString> {
    let mut word = path_of_disk(&image.path)?;
    for (flag, on) in [(",overlay", image.overlay), (",readonly", image.readonly)] {
        if on {
            word.push(flag);
        }
    }
    Ok(word)
}

impl Deed {
    /// What piton is to be run with.
    pub fn words(&self) -> Result<Vec<OsString>> {
        let words = match self {
            Self::Run {
                vm,
                cpus,
                memory,
                kernel,
                initrd,
                cmdline,
                image: boots,
                cmdline_extra,
                ssh_keys,
                hostname,
                disks,
                network,
                forwards,
            } => {
                let words = Words::new(&["run", "--detach"]).on(vm.as_str());
                let words = words.option("--cpus", cpus.map(|cpus| cpus.to_string()));
                let words = words.option("--memory", memory.map(kibibytes));
                let words = words.path("--kernel", kernel.as_deref())?.path("--initrd", initrd.as_deref())?;
                let words = words.option("--cmdline", cmdline.as_ref());
                let boots = boots.as_deref().map(path_of_disk).transpose()?;
                let words = words.option("--image", boots).option("--cmdline-extra", cmdline_extra.as_ref());
                let keys = ssh_keys.iter().map(|key| absolute(key)).collect::<Result<Vec<_>>>()?;
                let words = keys.into_iter().fold(words, |words, key| words.option("--ssh-key", Some(key)));
                let words = words.option("--hostname", hostname.as_ref());
                let words = words.option("--net", network.then_some("user")).options("--forward", forwards);
                let disks = disks.iter().map(image).collect::<Result<Vec<_>>>()?;
                disks.into_iter().fold(words, |words, disk| words.option("--disk", Some(disk)))
            }
            Self::Start { vm } => Words::new(&["start"]).on(vm.as_str()),
            Self::Stop { vm, force, timeout } => Words::new(&["stop"])
                .on(vm.as_str())
                .flag("--force", *force)
                .option("--timeout", timeout.map(|seconds| seconds.to_string())),
            Self::Kill { vm } => Words::new(&["kill"]).on(vm.as_str()),
            Self::Pause { vm } => Words::new(&["pause"]).on(vm.as_str()),
            Self::Resume { vm } => Words::new(&["resume"]).on(vm.as_str()),
            Self::Remove { vm } => Words::new(&["rm", "--yes"]).on(vm.as_str()),
            Self::RenameVm { vm, name } => Words::new(&["rename"]).on(vm.as_str()).on(name.as_str()),
            Self::Set {
                vm,
                checkpoint_type,
                auto_checkpoint,
                checkpoint_dir,
                trash_seconds,
                retention,
                schedule,
                memory,
                cpus,
                cmdline,
                forward,
                no_forward,
            } => {
                let switch = |on: bool| if on { "on" } else { "off" };
                let seconds = |seconds: u64| format!("{seconds}s");
                Words::new(&["set"])
                    .on(vm.as_str())
                    .option("--checkpoint-type", checkpoint_type.map(CheckpointType::as_str))
                    .option("--auto-checkpoint", auto_checkpoint.map(switch))
                    .path("--checkpoint-dir", checkpoint_dir.as_deref())?
                    .option("--trash", trash_seconds.map(seconds))
                    .option("--keep", retention.keep.map(|keep| keep.to_string()))
                    .option("--keep-within", retention.within_seconds.map(seconds))
                    .option("--max-size", retention.max_bytes.map(mebibytes))
                    .option("--keep-all", retention.all.map(switch))
                    .option("--every", schedule.every_seconds.map(seconds))
                    .option("--every-type", schedule.kind.map(CheckpointType::as_str))
                    .option("--only-if-changed", schedule.only_if_changed.map(switch))
                    .option("--memory", memory.map(kibibytes))
                    .option("--cpus", cpus.map(|cpus| cpus.to_string()))
                    .option("--cmdline", cmdline.as_ref())
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
            Self::Apply { vm, checkpoint, current, name, run, force, cold } => {
                let words = Words::new(&["checkpoint", "apply"]).at(vm, checkpoint)?;
                let words = match (current, name) {
                    (Current::Discard, _) => words.flag("--discard-current", true),
                    (Current::Save, None) => words.flag("--save-current", true),
                    (Current::Save, Some(name)) => words.option("--save-current", Some(name.as_str())),
                };
                words.flag("--run", *run).flag("--force", *force).flag("--cold", *cold)
            }
            Self::Revert { vm, run, force, cold } => Words::new(&["checkpoint", "revert", "--yes"])
                .on(vm.as_str())
                .flag("--run", *run)
                .flag("--force", *force)
                .flag("--cold", *cold),
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
            Self::Pin { vm, checkpoint } => Words::new(&["checkpoint", "pin"]).at(vm, checkpoint)?,
            Self::Unpin { vm, checkpoint } => Words::new(&["checkpoint", "unpin"]).at(vm, checkpoint)?,
            Self::Undo { vm } => Words::new(&["undo"]).on(vm.as_str()),
            Self::Restore { vm, entry, name } => {
                let words = Words::new(&["trash", "restore"]).on(vm.as_str());
                let words = words.option("--name", name.as_ref().map(VmName::as_str));
                entry.iter().fold(words, Words::on)
            }
            Self::Empty { vm, entry } => {
                let words = Words::new(&["trash", "empty", "--yes"]).on(vm.as_str());
                entry.iter().fold(words, Words::on)
            }
            Self::Prune { vm, dry_run } => {
                Words::new(&["checkpoint", "prune", "--yes"]).on(vm.as_str()).flag("--dry-run", *dry_run)
            }
            Self::Diff { vm, checkpoint, with, live, files } => {
                let words = Words::new(&["checkpoint", "diff"]).at(vm, checkpoint)?;
                let words = words.flag("--live", *live).flag("--files", *files);
                match with {
                    Some(with) => words.at(vm, with)?,
                    None => words.on(vm.as_str()),
                }
            }
            Self::Verify { vm, checkpoint } => Words::new(&["checkpoint", "verify"]).at(vm, checkpoint)?,
            Self::VerifyBoot { vm, checkpoint, wait_for, exec, agent, timeout } => {
                Words::new(&["checkpoint", "verify", "--boot"])
                    .at(vm, checkpoint)?
                    .option("--wait-for", wait_for.as_ref())
                    .option("--exec", exec.as_ref())
                    .flag("--agent", *agent)
                    .option("--timeout", timeout.map(|seconds| seconds.to_string()))
            }
            Self::Clone { vm, checkpoint, new, count, run } => Words::new(&["clone"])
                .at(vm, checkpoint)?
                .on(new.as_str())
                .option("--count", count.map(|count| count.to_string()))
                .flag("--run", *run),
            Self::Export { vm, checkpoint, dir, since, live } => {
                let words = match checkpoint {
                    Some(checkpoint) => Words::new(&["checkpoint", "export"]).at(vm, checkpoint)?,
                    None => Words::new(&["export"]).on(vm.as_str()).flag("--live", *live),
                };
                words.option("--since", since.as_ref()).on(absolute(dir)?)
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
            (r#"{"do":"kill","vm":"demo"}"#, "--json|kill|--|demo"),
            (
                r#"{"do":"stop","vm":"demo","force":true,"timeout":5}"#,
                "--json|stop|--force|--timeout=5|--|demo",
            ),
            (
                r#"{"do":"set","vm":"d","trash_seconds":0,"retention":{"keep":{"last":3},"max_bytes":1},"schedule":{"every_seconds":90}}"#,
                "--json|set|--trash=0s|--keep=last=3|--max-size=1M|--every=90s|--|d",
            ),
            (
                r#"{"do":"set","vm":"d","retention":{"keep":{},"max_bytes":0}}"#,
                "--json|set|--keep=none|--max-size=0|--|d",
            ),
            (
                r#"{"do":"run","vm":"d","image":"/a,b","ssh_keys":["/k"]}"#,
                "--json|run|--detach|--image=/a,,b|--ssh-key=/k|--|d",
            ),
            (r#"{"do":"empty","vm":"d","entry":"--yes"}"#, "--json|trash|empty|--yes|--|d|--yes"),
            (r#"{"do":"restore","vm":"d","entry":"-x"}"#, "--json|trash|restore|--|d|-x"),
            (r#"{"do":"restore","vm":"d","name":"e"}"#, "--json|trash|restore|--name=e|--|d"),
            (r#"{"do":"empty","vm":"d"}"#, "--json|trash|empty|--yes|--|d"),
            (
                r#"{"do":"diff","vm":"d","checkpoint":"a","live":true}"#,
                "--json|checkpoint|diff|--live|--|d@a|d",
            ),
            (r#"{"do":"diff","vm":"d","checkpoint":"a","with":"b"}"#, "--json|checkpoint|diff|--|d@a|d@b"),
            (
                r#"{"do":"clone","vm":"d","checkpoint":"a","new":"n","count":3}"#,
                "--json|clone|--count=3|--|d@a|n",
            ),
            (
                r#"{"do":"create","vm":"demo","name":"-x","note":"--json; rm -rf /","type":"standard"}"#,
                "--json|checkpoint|create|--note=--json; rm -rf /|--type=standard|--|demo|-x",
            ),
            (
                r#"{"do":"apply","vm":"demo","checkpoint":"-a b","current":"save","name":"--run","run":true}"#,
                "--json|checkpoint|apply|--save-current=--run|--run|--|demo@-a b",
            ),
            (
                r#"{"do":"apply","vm":"d","checkpoint":"a","current":"discard","cold":true}"#,
                "--json|checkpoint|apply|--discard-current|--cold|--|d@a",
            ),
            (
                r#"{"do":"verify-boot","vm":"d","checkpoint":"a","exec":"--x; y","timeout":9}"#,
                "--json|checkpoint|verify|--boot|--exec=--x; y|--timeout=9|--|d@a",
            ),
            (r#"{"do":"note","vm":"d","checkpoint":"c","note":"-y"}"#, "--json|checkpoint|note|--|d@c|-y"),
            (
                r#"{"do":"run","vm":"d","memory":1048576,"disks":[{"path":"/a,b","overlay":true}],"network":true}"#,
                "--json|run|--detach|--memory=1024K|--net=user|--disk=/a,,b,overlay|--|d",
            ),
            (r#"{"do":"export","vm":"d","dir":"/x"}"#, "--json|export|--|d|/x"),
            (
                r#"{"do":"export","vm":"d","checkpoint":"b","since":"a","dir":"/x"}"#,
                "--json|checkpoint|export|--since=a|--|d@b|/x",
            ),
        ] {
            assert_eq!(words(json), expected);
        }
    }

    #[test]
    fn what_has_no_words_is_refused() {
        let deed = |json: &str| serde_json::from_str::<Deed>(json).unwrap().words();
        let relative = Err(DeedError::Relative("x/y".into()));
        assert_eq!(deed(r#"{"do":"export","vm":"d","dir":"x/y"}"#), relative);
        assert_eq!(deed(r#"{"do":"run","vm":"d","kernel":"x/y"}"#), relative);
        assert_eq!(deed(r#"{"do":"run","vm":"d","image":"x/y"}"#), relative);
        assert_eq!(deed(r#"{"do":"run","vm":"d","ssh_keys":["x/y"]}"#), relative);
        assert_eq!(deed(r#"{"do":"run","vm":"d","disks":[{"path":"x/y"}]}"#), relative);
        let nothing = Err(DeedError::NoCheckpoint);
        assert_eq!(deed(r#"{"do":"verify","vm":"d","checkpoint":""}"#), nothing);
        assert_eq!(deed(r#"{"do":"diff","vm":"d","checkpoint":"a","with":""}"#), nothing);
    }
}
