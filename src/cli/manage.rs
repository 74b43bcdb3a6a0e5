//! Commands on VMs that exist.

use std::io::{BufRead, IsTerminal, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::args::{RmArgs, StopArgs};
use super::error::{InUse, refused, sentence};
use super::out::{self, note, outln};
use super::output::{self, Listed};
use super::terminal::{RawTerminal, print, read_keys};
use crate::control::client::{self, ClientError};
use crate::control::{State, StopBody, VmInfo};
use crate::folder::{Ending, FolderError, Home, LastRun, TrustError, VmFolder, VmLock, VmName};
use crate::history::{Catalog, base_problems};
use crate::storage::Storage;

const KEYS: &str = "Ctrl-A x leaves it, the VM keeps running; Ctrl-A h: help";
const HELP: &str = "Ctrl-A x leaves the console; Ctrl-A Ctrl-A sends one Ctrl-A to the guest";
/// How long a killed process may take to be gone.
const LAST_BREATH: Duration = Duration::from_secs(1);
/// How often a VM that was told to stop is looked at.
const POLL: Duration = Duration::from_millis(50);

fn home() -> Result<Home, FolderError> {
    Home::from_env(Storage::os())
}

/// A VM that exists; whether it runs is for the request to find out.
pub fn existing(name: &VmName) -> anyhow::Result<VmFolder> {
    let folder = home()?.folder(name);
    folder.must_exist()?;
    Ok(folder)
}

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
            "the VM `{name}` is paused: resume it with `piton resume {name}` and stop it with \
             `piton stop {name}`, or end it with `piton stop --force {name}`"
        ),
        Some(State::Stopped) | None => {
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
        ClientError::Ended => anyhow!("the VM `{name}` ended before it answered"),
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

/// The VM as its process tells it, or as its folder does when none runs.
pub fn info(folder: &VmFolder) -> anyhow::Result<VmInfo> {
    folder.must_exist()?;
    match client::get(&folder.socket()) {
        Ok(info) => Ok(info),
        Err(ClientError::NotRunning) => {
            // A process that is about to end has closed its socket: what is stopped can be used.
            has_ended(folder, LAST_BREATH);
            let last_run = folder.last_run();
            Ok(VmInfo { last_run, ..VmInfo::new(folder, &folder.load()?, State::Stopped, None) })
        }
        Err(e) => Err(e.into()),
    }
}

pub fn pause(name: &VmName, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    output::done(&must_run(&folder, client::post(&folder.socket(), "/vm/pause", &()))?, json);
    Ok(())
}

pub fn resume(name: &VmName, json: bool) -> anyhow::Result<()> {
    let folder = existing(name)?;
    output::done(&must_run(&folder, client::post(&folder.socket(), "/vm/resume", &()))?, json);
    Ok(())
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

pub fn list(json: bool) -> anyhow::Result<()> {
    let listed = |folder: VmFolder| match info(&folder) {
        Ok(info) => Listed::Known(Box::new(info)),
        Err(e) if is_foreign(&e) => Listed::Foreign { name: folder.name().to_string(), why: sentence(&e) },
        Err(e) => Listed::Broken { name: folder.name().to_string(), error: sentence(&e) },
    };
    let vms: Vec<Listed> = home()?.all()?.into_iter().map(listed).collect();
    if json {
        out::json(&output::list_json(&vms));
    } else if vms.is_empty() {
        outln!("there are no VMs yet: `piton run demo` makes one");
    } else {
        output::list(&vms);
    }
    if !vms.is_empty() && vms.iter().all(|vm| matches!(vm, Listed::Foreign { .. })) {
        return Err(refused("all VMs here belong to other users: set PITON_HOME to a folder of your own"));
    }
    Ok(())
}

fn is_foreign(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(FolderError::Trust(TrustError::OtherUser { .. })))
}

pub fn stop(args: StopArgs, json: bool) -> anyhow::Result<()> {
    let folder = existing(&args.name)?;
    let socket = folder.socket();
    let paused = match client::get(&socket) {
        Ok(info) => info.state == State::Paused,
        // It is off already, which is what was asked for.
        Err(ClientError::NotRunning) => {
            output::done(&info(&folder)?, json);
            return Ok(());
        }
        Err(e) => return Err(e.into()),
    };
    // A paused guest cannot shut down, so with --force there is nothing to wait for.
    if !(paused && args.force) {
        match client::post::<VmInfo>(&socket, "/vm/stop", &StopBody { force: false }) {
            // It ends by itself.
            Ok(_) | Err(ClientError::NotRunning | ClientError::Ended) => {}
            Err(e) => return Err(e.into()),
        }
        if has_ended(&folder, Duration::from_secs(args.timeout)) {
            output::done(&info(&folder)?, json);
            return Ok(());
        }
    }
    // With --force it has a while to end, whatever the guest was given.
    let grace = Duration::from_secs(args.timeout.max(5));
    let ends = matches!(client::get(&socket), Err(ClientError::NotRunning));
    if ends && !(args.force && has_ended(&folder, grace)) {
        return Err(anyhow!(
            "the guest of `{}` has shut down; its disk layers are still being merged, which takes a while",
            args.name
        ));
    }
    if !args.force {
        return Err(anyhow!(
            "the guest of `{name}` has not shut down within {} s: it may need longer, or end it with `piton stop --force {name}`",
            args.timeout,
            name = args.name
        ));
    }
    match client::post::<VmInfo>(&socket, "/vm/stop", &StopBody { force: true }) {
        Ok(_) | Err(ClientError::NotRunning | ClientError::Ended) => {}
        Err(e) => return Err(e.into()),
    }
    if !has_ended(&folder, grace) {
        return Err(anyhow!("the VM `{}` does not end: see {}", args.name, folder.vmm_log().display()));
    }
    output::done(&info(&folder)?, json);
    Ok(())
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

pub fn remove(args: RmArgs, json: bool) -> anyhow::Result<()> {
    let folder = home()?.folder(&args.name);
    let lock = folder.lock().map_err(|e| in_use(&folder, e))?;
    if !args.yes
        && !confirm(&format!("Remove the VM `{}` with all in {}?", args.name, folder.path().display()))?
    {
        return Err(refused("nothing was removed"));
    }
    folder.remove(lock)?;
    if json {
        out::json_line(&serde_json::json!({ "removed": args.name }));
    } else {
        outln!("the VM `{}` has been removed", args.name);
    }
    Ok(())
}

/// Asks on the terminal; without one there is nobody to ask.
pub fn confirm(question: &str) -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(refused("there is no terminal to ask on: give --yes to go ahead"));
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

pub fn console(name: &VmName) -> anyhow::Result<()> {
    let folder = existing(name)?;
    let mut output = must_run(&folder, client::console(&folder.socket()))?;
    let mut input = output.try_clone().context("the console cannot be used")?;
    note(&format!("piton: console of `{name}`. {KEYS}."));
    let terminal = RawTerminal::enter().context("the terminal cannot be used")?;
    let left = Arc::new(AtomicBool::new(false));
    let leaving = left.clone();
    std::thread::spawn(move || {
        if read_keys(&format!("piton: {HELP}."), |bytes| input.write_all(bytes)) {
            leaving.store(true, Ordering::SeqCst);
            // Ends the reading below too.
            let _ = input.shutdown(std::net::Shutdown::Both);
        }
    });
    let mut buffer = [0; 4096];
    let mut ended = Ok(());
    while let Ok(count @ 1..) = output.read(&mut buffer) {
        ended = print(&buffer[..count]);
        if ended.is_err() {
            break;
        }
    }
    drop(terminal);
    match ended {
        // Who read it has seen enough.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        Err(e) => return Err(e).context("the console's output cannot be shown"),
        Ok(()) => {}
    }
    if left.load(Ordering::SeqCst) {
        note(&format!("piton: left the console of `{name}`, which keeps running"));
        return Ok(());
    }
    run_ended(&folder)
}

/// Tells how the run of a VM ended whose console has just come to its end.
fn run_ended(folder: &VmFolder) -> anyhow::Result<()> {
    let name = folder.name();
    let deadline = Instant::now() + LAST_BREATH;
    // It goes by itself, unless its process was killed; the lock says which.
    while folder.socket().exists() && folder.lock().is_err() && Instant::now() < deadline {
        std::thread::sleep(POLL);
    }
    match folder.last_run() {
        Some(LastRun { how: Ending::Crashed { why }, .. }) => Err(anyhow!("the VM `{name}` crashed: {why}")),
        Some(LastRun { how: Ending::Killed, .. }) => {
            Err(anyhow!("the process of the VM `{name}` was killed"))
        }
        Some(LastRun { how: Ending::Ended { by }, .. }) => {
            note(&format!("piton: the VM `{name}` was ended by {by}"));
            Ok(())
        }
        Some(LastRun { how: Ending::Off, .. }) | None => {
            note(&format!("piton: the VM `{name}` has shut down"));
            Ok(())
        }
    }
}
