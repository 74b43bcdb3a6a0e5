//! Commands on VMs that exist.

use std::io::{BufRead, IsTerminal};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::args::ListArgs;
use super::each::each;
use super::error::{InUse, REFUSED, Told, refused, sentence};
use super::named::{existing, home};
use super::out::{self, outln};
use super::output::{self, Listed};
use crate::control::client::{self, ClientError};
use crate::control::{State, VmInfo};
use crate::folder::{FolderError, Happened, Holder, TrustError, VmFolder, VmLock, VmName, What};
use crate::history::{Catalog, base_problems};

/// How long a killed process may take to be gone.
pub const LAST_BREATH: Duration = Duration::from_secs(1);
/// How often a VM that was told to stop is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a list waits for the VMs that run, all of which are asked at once.
const LIST: Duration = Duration::from_secs(2);
/// How long a VM may be busy with something else before it is paused, resumed or stopped.
pub const BUSY: Duration = Duration::from_secs(60);

/// What is in the way of a command that wants the VM for itself, and what to do about it.
pub fn in_use(folder: &VmFolder, error: FolderError) -> anyhow::Error {
    if !matches!(error, FolderError::Busy(_)) {
        return error.into();
    }
    let name = folder.name();
    let state = client::get(&folder.socket()).ok().map(|info| info.state);
    let text = match state {
        Some(State::Running) => format!("the VM `{name}` is running: stop it first with `piton stop {name}`"),
        Some(State::Paused) => format!(
            "the VM `{name}` is paused: resume it with `piton resume {name}` and stop it with `piton stop \
             {name}`, or cut its power with `piton kill {name}`"
        ),
        Some(State::Unresponsive) => {
            format!("the VM `{name}` is not responding: cut its power with `piton kill {name}`")
        }
        Some(State::Stopped) | None => {
            if let Ok(Some(holder)) = folder.holder().map(|holder| holder.filter(|it| !it.runs_a_vm())) {
                return other_command(folder, &holder);
            }
            format!("another command is working on the VM `{name}`: try again when it is done")
        }
    };
    InUse { text, state }.into()
}

/// The answer of a VM that has to run for it.
pub fn must_run<T>(folder: &VmFolder, answer: Result<T, ClientError>) -> anyhow::Result<T> {
    let name = folder.name();
    answer.map_err(|e| match e {
        ClientError::NotRunning => {
            refused(format!("the VM `{name}` is stopped: start it first with `piton start {name}`"))
        }
        ClientError::Ended => anyhow!("the VM `{name}` stopped before it responded"),
        e => e.into(),
    })
}

/// Locks a VM that does not run. A process that was killed just now may hold the lock a moment
/// longer, with nobody behind its socket.
pub fn lock(folder: &VmFolder) -> Result<VmLock, FolderError> {
    let deadline = Instant::now() + LAST_BREATH;
    loop {
        match folder.lock() {
            Err(FolderError::Busy(_))
                if Instant::now() < deadline
                    && matches!(client::get(&folder.socket()), Err(ClientError::NotRunning)) =>
            {
                std::thread::sleep(POLL);
            }
            locked => return locked,
        }
    }
}

pub fn other_command(folder: &VmFolder, holder: &Holder) -> anyhow::Error {
    refused(format!(
        "another command is working on the VM `{}`: wait for `{}` (process {}) to finish",
        folder.name(),
        holder.command(),
        holder.pid()
    ))
}

/// The VM as its process tells it, or as its folder does when none runs.
pub fn info(folder: &VmFolder) -> anyhow::Result<VmInfo> {
    folder.must_exist()?;
    told(folder, client::get(&folder.socket()), Instant::now() + LAST_BREATH)
}

/// What is known of a VM that was asked.
fn told(folder: &VmFolder, answer: Result<VmInfo, ClientError>, deadline: Instant) -> anyhow::Result<VmInfo> {
    match answer {
        Ok(info) => Ok(info),
        Err(ClientError::NotRunning) => {
            // A process that is about to end has closed its socket: what is stopped can be used.
            has_ended(folder, deadline.saturating_duration_since(Instant::now()));
            let last_run = folder.last_run();
            Ok(VmInfo { last_run, ..VmInfo::new(folder, &folder.load()?, State::Stopped, None) })
        }
        Err(ClientError::Silent { .. }) => {
            let holder = folder.holder().ok().flatten();
            let why = match &holder {
                Some(holder) if holder.is_stopped() => {
                    "its process is suspended (SIGSTOP) and not responding"
                }
                _ => "its process is not responding",
            };
            let reason = format!("{why}: `piton kill {}` ends it", folder.name());
            let pid = holder.map(|holder| holder.pid());
            let known = VmInfo::new(folder, &folder.load()?, State::Unresponsive, pid);
            Ok(VmInfo { reason: Some(reason), ..known })
        }
        Err(e) => Err(e.into()),
    }
}

pub fn pause(names: &[VmName], json: bool) -> anyhow::Result<()> {
    each(names, json, |folder| told_to(folder, "/vm/pause"), output::state)
}

pub fn resume(names: &[VmName], json: bool) -> anyhow::Result<()> {
    each(names, json, |folder| told_to(folder, "/vm/resume"), output::state)
}

fn told_to(folder: &VmFolder, path: &str) -> anyhow::Result<VmInfo> {
    must_run(folder, client::post_within(&folder.socket(), path, &(), BUSY))
}

pub fn show(name: &VmName, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let mut info = info(&folder)?;
    if info.state == State::Stopped {
        let definition = folder.load()?;
        // What cannot be looked through is told by `piton doctor`.
        let found = base_problems(&Catalog::new(&folder, &definition), &definition).unwrap_or_default();
        info.problems = found.iter().map(ToString::to_string).collect();
    }
    if json {
        out::json(&serde_json::json!(info));
    } else {
        output::show(&info);
        info.problems.iter().for_each(|problem| output::complain(problem));
    }
    Ok(())
}

pub fn list(args: &ListArgs, json: bool) -> anyhow::Result<()> {
    let folders = home()?.all()?;
    // Nothing is asked of what another user may have put there.
    let (own, others): (Vec<_>, Vec<_>) = folders
        .into_iter()
        .map(|folder| (folder.must_exist(), folder))
        .partition(|(trusted, _)| trusted.is_ok());
    let sockets: Vec<PathBuf> = own.iter().map(|(_, folder)| folder.socket()).collect();
    let answers = client::get_all(&sockets, LIST)?;
    let deadline = Instant::now() + LAST_BREATH;
    let own = own.into_iter().zip(answers).map(|((_, folder), answer)| {
        let info = told(&folder, answer, deadline);
        (folder, info)
    });
    let others = others.into_iter().map(|(trusted, folder)| {
        let info = trusted.map_err(anyhow::Error::from).and_then(|()| info(&folder));
        (folder, info)
    });
    let mut all: Vec<(VmFolder, anyhow::Result<VmInfo>)> = own.chain(others).collect();
    all.sort_by(|(a, _), (b, _)| a.name().cmp(b.name()));
    let listed = |(folder, info): (VmFolder, anyhow::Result<VmInfo>)| match info {
        Ok(info) => Listed::Known(Box::new(info)),
        Err(e) if is_foreign(&e) => Listed::Foreign { name: folder.name().to_string(), why: sentence(&e) },
        Err(e) => Listed::Broken { name: folder.name().to_string(), error: sentence(&e) },
    };
    let mut vms: Vec<Listed> = all.into_iter().map(listed).collect();
    let none = vms.is_empty();
    if let Some(state) = args.state {
        vms.retain(|vm| matches!(vm, Listed::Known(info) if info.state == state));
    }
    if json {
        out::json(&output::list_json(&vms));
    } else if args.quiet {
        vms.iter().for_each(|vm| outln!("{}", output::name_of(vm)));
    } else if none {
        outln!("there are no VMs yet: `piton run demo` creates one");
    } else {
        output::list(&vms);
    }
    if !vms.is_empty() && vms.iter().all(|vm| matches!(vm, Listed::Foreign { .. })) {
        if json {
            // The list has said it, and is all there is to be on standard output.
            return Err(Told { code: REFUSED }.into());
        }
        return Err(refused("all VMs here belong to other users: set PITON_HOME to a folder of your own"));
    }
    Ok(())
}

fn is_foreign(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(FolderError::Trust(TrustError::OtherUser { .. })))
}

/// Waits until the VM's process has given up its lock.
pub fn has_ended(folder: &VmFolder, patience: Duration) -> bool {
    let deadline = Instant::now() + patience;
    loop {
        if folder.lock().is_ok() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

pub fn rename(name: &VmName, new_name: &VmName, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let taken = lock(&folder).map_err(|e| in_use(&folder, e))?;
    let renamed = folder.rename(&taken, new_name)?;
    renamed.tell(&taken, [Happened::now(What::Renamed, format!("renamed from `{name}`"))]);
    drop(taken);
    if json {
        out::json_line(&serde_json::json!(info(&renamed)?));
    } else {
        outln!("the VM `{name}` has been renamed to `{new_name}`");
    }
    Ok(())
}

/// Asks on the terminal; without one there is nobody to ask.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(refused("cannot ask for confirmation without a terminal: use --yes to proceed"));
    }
    out::to_stderr(&format!("{} [y/N] ", out::harmless(question)));
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}

pub fn print_started(info: &VmInfo, json: bool) {
    let name = &info.name;
    match json {
        true => out::json_line(&serde_json::json!(info)),
        false => outln!("the VM `{name}` is running; `piton console {name}` attaches to it"),
    }
}
