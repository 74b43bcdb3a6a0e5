//! `piton checkpoint verify --boot`: a checkpoint is tried in a temporary clone without a network.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use chrono::Utc;
use hyper::Method;
use regex::bytes::Regex;

use super::args::{BootArgs, CheckpointRef};
use super::error::{FAILED, Told};
use super::named::{existing, home};
use super::offline::{Offline, find};
use super::out::{self, outln};
use super::temporary::{self, Temporary};
use super::{background, manage, output, wait, work};
use crate::checkpoint::Manifest;
use crate::checkpoint::store::{Began, CONSOLE_MAX, Store, Verified};
use crate::config::NetArg;
use crate::control::{CloneBody, State, VmInfo};
use crate::folder::{Ending, VerifyPlan, VmFolder, VmName};
use crate::history::{Catalog, clone, outdated, readers};
use crate::inside::exec::{Host, Signal, Stream};
use crate::progress::Progress;
use crate::storage::{Access, File, Storage};

const COMMAND: &str = "piton checkpoint verify --boot";
/// Between two looks.
const LOOK: Duration = Duration::from_millis(100);
/// A guest that nothing is asked of has to live this long.
const ALIVE: Duration = Duration::from_secs(10);
/// That a guest has where nothing else is said, as of `--timeout`.
const TIMEOUT: Duration = Duration::from_secs(120);
/// Lines of the console that are shown when it did not pass.
const LINES_SHOWN: usize = 10;

/// What the guest has to do.
enum Until<'a> {
    Prints(&'a Regex),
    Succeeds(&'a str),
    Answers,
    /// Nothing is said: it lives for a while.
    Lives(Duration),
}

impl<'a> Until<'a> {
    /// The one thing that was asked for, by a command or by a VM's settings.
    fn asked(regex: Option<&'a Regex>, command: Option<&'a str>, agent: bool, timeout: Duration) -> Self {
        match (regex, command) {
            (Some(regex), _) => Self::Prints(regex),
            (None, Some(command)) => Self::Succeeds(command),
            (None, None) if agent => Self::Answers,
            (None, None) => Self::Lives(ALIVE.min(timeout)),
        }
    }
}

impl std::fmt::Display for Until<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Prints(regex) => write!(f, "its console matched `{regex}`"),
            Self::Succeeds(command) => write!(f, "`{command}` succeeded in it"),
            Self::Answers => f.write_str("its guest agent answered"),
            Self::Lives(time) => write!(f, "it ran for {} s", time.as_secs_f64()),
        }
    }
}

pub fn run(target: &CheckpointRef, args: &BootArgs, json: bool) -> anyhow::Result<()> {
    let folder = existing(&target.vm)?;
    let until = Until::asked(args.wait_for.as_ref(), args.exec.as_deref(), args.agent, args.timeout);
    let (manifest, verified) = prove(&folder, &target.checkpoint, &until, args.timeout)?;
    if json {
        let mut result = serde_json::json!(verified);
        result["checkpoint"] = serde_json::json!(manifest.id);
        out::json(&result);
    }
    tell(&manifest, &verified, json);
    if verified.passed { Ok(()) } else { Err(Told { code: FAILED }.into()) }
}

/// Tries a checkpoint, and records what came of it.
fn prove(
    folder: &VmFolder,
    checkpoint: &str,
    until: &Until,
    timeout: Duration,
) -> anyhow::Result<(Manifest, Verified)> {
    temporary::sweep()?;
    let definition = folder.load()?;
    let found = find(folder, checkpoint)?;
    let (manifest, why) = outdated::usable(&Catalog::new(folder, &definition), &found);
    if let Some(why) = why {
        output::complain(&format!("checkpoint `{}` is tried {why}", manifest.name));
    }
    let note = readers::begin(folder, COMMAND, &[manifest.id])?;
    let name = temporary::name_for(&note)?;
    make(folder, &manifest, &name)?;
    let temporary = Temporary(folder.sibling(&name));
    let verified = work::here(|progress| attempt(&temporary.0, &manifest, until, timeout, progress))??;
    drop(temporary);
    store(folder)?.save_verified(manifest.id, &verified)?;
    drop(note);
    Ok((manifest, verified))
}

/// The newest checkpoint of a VM, if it is time to try it.
fn newest_if_due(folder: &VmFolder, plan: &VerifyPlan) -> anyhow::Result<Option<Manifest>> {
    let definition = folder.load()?;
    let catalog = Catalog::new(folder, &definition);
    let mut manifests = catalog.shown(&definition)?.0;
    let last = manifests.iter().filter_map(|one| catalog.store.verified(one.id)).map(|one| one.when).max();
    // One in the future was told by a clock that was wrong.
    let passed = last.and_then(|last| (Utc::now() - last).to_std().ok());
    if passed.is_some_and(|passed| passed.as_secs() < plan.every_seconds) {
        return Ok(None);
    }
    manifests.sort_by_key(|one| one.created);
    Ok(manifests.pop())
}

/// `piton checkpoint verify-due`. What one VM comes to does not keep the others from being tried.
pub fn due(names: &[VmName], json: bool) -> anyhow::Result<()> {
    let folders = match names {
        [] => home()?.all()?,
        names => names.iter().map(existing).collect::<anyhow::Result<_>>()?,
    };
    let (mut results, mut failed) = (Vec::new(), false);
    for folder in folders {
        match due_of(&folder) {
            Ok(None) => {}
            Ok(Some((manifest, verified))) => {
                failed |= !verified.passed;
                if !json {
                    outln!("the VM `{}`:", folder.name());
                }
                tell(&manifest, &verified, json);
                let mut result = serde_json::json!(Verified { console: None, ..verified });
                result["vm"] = serde_json::json!(folder.name());
                result["checkpoint"] = serde_json::json!(manifest.id);
                results.push(result);
            }
            Err(e) => {
                failed = true;
                output::complain(&format!("the VM `{}`: {}", folder.name(), super::error::sentence(&e)));
            }
        }
    }
    if json {
        out::json(&serde_json::json!(results));
    } else if results.is_empty() && !failed {
        outln!("no checkpoint is due");
    }
    if failed { Err(Told { code: FAILED }.into()) } else { Ok(()) }
}

fn due_of(folder: &VmFolder) -> anyhow::Result<Option<(Manifest, Verified)>> {
    let plan = folder.load()?.verify;
    if plan.every_seconds == 0 {
        return Ok(None);
    }
    let Some(newest) = newest_if_due(folder, &plan)? else { return Ok(None) };
    let timeout = plan.timeout_seconds.map_or(TIMEOUT, Duration::from_secs);
    let regex = plan.wait_for.as_deref().map(Regex::new).transpose()?;
    let until = Until::asked(regex.as_ref(), plan.exec.as_deref(), plan.agent, timeout);
    prove(folder, &newest.id.to_string(), &until, timeout).map(Some)
}

fn store(folder: &VmFolder) -> anyhow::Result<Store> {
    let definition = folder.load()?;
    Ok(Catalog::new(folder, &definition).store)
}

/// What JSON says it does not say again, but for why it did not pass.
fn tell(manifest: &Manifest, verified: &Verified, json: bool) {
    let Verified { began, took_ms, why, console, .. } = verified;
    let took = Duration::from_millis(*took_ms).as_secs_f64();
    let Some(why) = why else {
        if !json {
            outln!("checkpoint `{}` works: {verified} ({took:.1} s in all)", manifest.name);
        }
        return;
    };
    let lines: Vec<&str> = console.iter().filter(|_| !json).flat_map(|text| text.lines()).collect();
    for line in &lines[lines.len().saturating_sub(LINES_SHOWN)..] {
        output::complain(&format!("console: {line}"));
    }
    output::complain(&format!("checkpoint `{}` was {began}, but {why}", manifest.name));
}

/// A clone that is nobody's: its memory is not shared, as that may take a copy in the checkpoint.
fn make(folder: &VmFolder, manifest: &Manifest, name: &VmName) -> anyhow::Result<()> {
    let none = NetArg { backend: None, ..NetArg::USER };
    let net = if manifest.config.nets.is_empty() { Vec::new() } else { vec![none] };
    let body = CloneBody { names: vec![name.clone()], net, own_memory: true };
    let path = format!("/vm/checkpoints/{}/clone", manifest.id);
    if work::ask::<VmInfo>(&folder.socket(), Method::POST, &path, &body)?.is_none() {
        let vm = Offline::open(folder)?;
        work::here(|progress| clone::make(folder, &vm.definition, manifest.id, &body, progress))??;
    }
    Ok(())
}

/// Cancelled is an error; whatever else comes of it is a verdict.
fn attempt(
    clone: &VmFolder,
    manifest: &Manifest,
    until: &Until,
    timeout: Duration,
    progress: &Progress,
) -> anyhow::Result<Verified> {
    progress.phase("waiting for the guest", 0);
    let cancelled = |_| anyhow!("cancelled: the checkpoint was not verified");
    let began = if manifest.memory.is_some() { Began::Resumed } else { Began::Booted };
    let mut words = vec!["start".into(), clone.name().to_string().into()];
    if began == Began::Resumed {
        words.extend(["--restore".into(), manifest.id.to_string().into(), "--resume".into()]);
    }
    let start = Instant::now();
    let mut console = Console::new(clone);
    let why = match background::start(words) {
        Err(e) => Some(format!("it could not be started: {}", super::error::sentence(&e))),
        Ok(_) => loop {
            progress.check().map_err(cancelled)?;
            let info = manage::info(clone)?;
            // After the state was asked for: a guest that has ended has printed all.
            console.read();
            let running = info.state == State::Running;
            let left = timeout.saturating_sub(start.elapsed());
            let reached = match until {
                Until::Prints(regex) => regex.is_match(&console.last),
                Until::Answers => running && wait::answers(clone),
                Until::Succeeds(command) => {
                    running && wait::succeeds(clone, command, left, &mut Quiet(progress))
                }
                Until::Lives(time) => {
                    let lives = running && start.elapsed() >= *time;
                    lives && (began == Began::Resumed || !console.last.is_empty())
                }
            };
            if reached {
                break None;
            }
            if info.state == State::Stopped {
                break Some(format!("it ended before {until}: {}", ending(&info)));
            }
            if left.is_zero() {
                let reason = info.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
                break Some(format!(
                    "within {} s it was not seen that {until}; it is {}{reason}",
                    timeout.as_secs_f64(),
                    info.state
                ));
            }
            std::thread::sleep(LOOK);
        },
    };
    progress.check().map_err(cancelled)?;
    console.read();
    Ok(Verified {
        when: Utc::now(),
        passed: why.is_none(),
        began,
        until: until.to_string(),
        took_ms: u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX),
        why,
        console: Some(String::from_utf8_lossy(&console.last).into_owned()).filter(|text| !text.is_empty()),
    })
}

fn ending(info: &VmInfo) -> String {
    match info.last_run.as_ref().map(|last| &last.how) {
        Some(Ending::Off) => "the guest shut down".into(),
        Some(Ending::Ended { by }) => format!("it was ended by {by}"),
        Some(Ending::Crashed { why }) => format!("the guest crashed: {why}"),
        Some(Ending::Killed) => "its process was killed".into(),
        None => "nobody knows how".into(),
    }
}

/// The last of what a guest printed.
struct Console {
    path: PathBuf,
    file: Option<File>,
    at: u64,
    last: Vec<u8>,
}

impl Console {
    fn new(folder: &VmFolder) -> Self {
        Self { path: folder.console_log(), file: None, at: 0, last: Vec::new() }
    }

    /// What came since. One that cannot be read has nothing more to say.
    fn read(&mut self) {
        let mut piece = vec![0; CONSOLE_MAX];
        loop {
            if self.file.is_none() {
                self.file = match Storage::os().open(&self.path, Access::ReadOnly) {
                    Ok(file) => Some(file),
                    Err(e) if e.kind() == ErrorKind::NotFound => return,
                    Err(e) => return log::warn!("{e}"),
                };
            }
            let Some(file) = &self.file else { return };
            match file.read_up_to(&mut piece, self.at) {
                Ok(0) | Err(_) => return,
                Ok(count) => {
                    self.at += count as u64;
                    self.last.extend_from_slice(&piece[..count]);
                    let over = self.last.len().saturating_sub(CONSOLE_MAX);
                    self.last.drain(..over);
                }
            }
        }
    }
}

/// Whom a command's output is nothing to.
struct Quiet<'a>(&'a Progress);

impl Host for Quiet<'_> {
    fn print(&mut self, _: Stream, _: &[u8]) -> bool {
        true
    }
    fn signal(&mut self) -> Option<Signal> {
        self.0.is_cancelled().then_some(Signal::Kill)
    }
}
