//! Commands that boot a VM: in this process with its console on the terminal, or in a background
//! process that outlives this one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow};
use nix::sys::resource::{Resource, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT};

use super::args::{RunArgs, StartArgs};
use super::background::{self, READY};
use super::disks::{check_images, look_at, named};
use super::each::each;
use super::error::{InUse, refused, usage};
use super::paths::kept;
use super::terminal::{RawTerminal, print, read_keys};
use super::{limits, log_file, logging, manage, net, notify, output, seed, signals};
use crate::config::{DiskArg, DiskConfig, DiskFormat, Forward, NetArg, VmConfig};
use crate::control::{ApplyBody, GoBack, State, VmInfo};
use crate::devices::console::BACKLOG;
use crate::devices::virtio::vsock::host::check_path;
use crate::folder::{Definition, FolderError, Home, VmFolder, VmLock, VmName};
use crate::history::{disks, lost, seal};
use crate::id::Id;
use crate::storage::Storage;
use crate::vm::Clock;
use crate::vmm::{Ender, Outcome, Vmm, VmmError};
use crate::{sandbox, seccomp};

const KEYS: &str = "Ctrl-A x stops the VM, Ctrl-A h shows help";
const HELP: &str = "Ctrl-A x stops the VM, Ctrl-A Ctrl-A sends one Ctrl-A to the guest";
/// Size of the disk that a VM of the bundled guest gets for itself, in bytes.
const OWN_DISK: u64 = 64 << 20;
/// How long a guest has to shut down, unless it is said.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

pub fn run(args: RunArgs, background: bool, json: bool) -> anyhow::Result<()> {
    leave_session(background)?;
    let home = Home::from_env(Storage::os())?;
    let folder = home.folder(&args.name);
    if args.detach && !background {
        manage::print_started(&background::start(std::env::args_os().skip(1))?, json);
        return Ok(());
    }
    let boot_disk = args.image.clone().map(|disk| image_disk(disk, args.disk_size)).transpose()?;
    let disks: Vec<DiskArg> = boot_disk.iter().cloned().chain(args.disks).collect();
    let asked: Vec<(Option<DiskFormat>, Option<u64>)> =
        disks.iter().map(|disk| (disk.format, disk.size)).collect();
    let mut config = VmConfig {
        cpus: args.cpus,
        memory: args.memory,
        kernel: args.kernel.as_deref().map(kept).transpose()?,
        initrd: args.initrd.as_deref().map(kept).transpose()?,
        boot_disk: boot_disk.and_then(|disk| disk.id),
        cmdline: args.cmdline_extra.unwrap_or(args.cmdline),
        disks: disks
            .into_iter()
            .enumerate()
            .map(|(index, disk)| named(disk.id.clone().unwrap_or_else(|| format!("disk{index}")), disk))
            .collect::<Result<_, _>>()?,
        nets: Vec::new(),
        vsock: args.vsock,
    };
    let (nets, forwards) = net::of_run(&args.nets, &args.forwards, args.isolated)?;
    config.nets = nets;
    config.validate().map_err(usage)?;
    crate::net::check_mtus(&config.nets)?;
    let mut sizes = BTreeMap::new();
    for (disk, (asked, size)) in config.disks.iter_mut().zip(asked) {
        sizes.extend(size.map(|size| (disk.id.clone(), size)));
        // Once and for all: what the guest writes must not change it.
        disk.format = match asked {
            Some(format) => format,
            None => look_at(disk)?,
        };
    }
    if config.vsock {
        check_path(&folder.vsock_socket())?;
    }
    check_images(&config.disks, &args.backing)?;
    limits::check_memory(config.memory)?;
    let seed = seed::wanted(&args.seed, &args.name, &config)?;
    confine(args.no_seccomp, args.no_landlock)?;
    let cleaner = Cleaner::begin(&folder)?;
    let lock = folder.create()?;
    // From here on a failure must leave nothing behind.
    let booted = make_own_disk(&folder, &mut config)
        .and_then(|()| seed::make(&folder, &mut config, seed.as_ref()))
        .and_then(|()| boot_new(&folder, config, &sizes, forwards, lock, args.seal_base));
    cleaner.end(booted.is_err());
    serve(booted?, &folder, true, background, args.stop_timeout)
}

pub fn start(args: StartArgs, background: bool, json: bool) -> anyhow::Result<()> {
    leave_session(background)?;
    if !args.attach && !background {
        let alone = args.names.len() == 1;
        let start_one = |folder: &VmFolder| {
            // The background process takes it; should another be quicker, that one is told.
            drop(manage::lock(folder).map_err(|e| started_already(folder, e))?);
            background::start(words_to_start(&args, folder.name(), json && alone))
        };
        return each(&args.names, json, start_one, |info| manage::print_started(info, false));
    }
    let [name] = &args.names[..] else {
        return Err(usage("--attach works with only one VM"));
    };
    let folder = Home::from_env(Storage::os())?.folder(name);
    let lock = manage::lock(&folder).map_err(|e| started_already(&folder, e))?;
    if args.accept_lost_writes {
        lost::accept(&folder)?;
    }
    confine(args.no_seccomp, args.no_landlock)?;
    let definition = folder.load()?;
    let patience = args.stop_timeout;
    let Some(id) = args.restore else {
        let mut vmm = Vmm::new(folder.clone(), definition, lock)?;
        vmm.start(args.force)?;
        return serve(vmm, &folder, true, background, patience);
    };
    let how = GoBack { force: args.force, clock: args.clock, share: args.share, cold: false };
    restore(&folder, lock, definition, id, how, args.nets, args.resume, background, patience)
}

/// Goes to a checkpoint of a VM that is off, and runs it to its end.
#[allow(clippy::too_many_arguments, reason = "what the words of a command line say")]
fn restore(
    folder: &VmFolder,
    lock: VmLock,
    definition: Definition,
    checkpoint: Id,
    how: GoBack,
    net: Vec<NetArg>,
    run: bool,
    background: bool,
    patience: Duration,
) -> anyhow::Result<()> {
    let body = ApplyBody { discard_current: true, how, net, ..Default::default() };
    let vmm = Vmm::restore(folder.clone(), definition, lock, checkpoint, &body, run)?;
    serve(vmm, folder, run, background, patience)
}

/// The same in a process of its own, which waits there for what comes.
pub fn restore_in_background(
    folder: &VmFolder,
    lock: VmLock,
    checkpoint: Id,
    how: GoBack,
    net: &[NetArg],
    run: bool,
) -> anyhow::Result<VmInfo> {
    let mut words: Vec<OsString> =
        ["start", folder.name().as_str(), "--restore", &checkpoint.to_string()].map(Into::into).into();
    let flags = [
        (run, "--resume"),
        (how.force, "--force"),
        (how.clock == Clock::Host, "--clock=host"),
        (how.share, "--share"),
    ];
    words.extend(flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag.into()));
    words.extend(net.iter().map(|net| format!("--net={net}").into()));
    // With its lock, so that nobody else comes between.
    let copied = background::copy(&words, move || {
        confine(false, false)?;
        let definition = folder.load()?;
        restore(folder, lock, definition, checkpoint, how, net.to_vec(), run, true, STOP_TIMEOUT)
    })?;
    copied.map_or_else(|| background::start(words), Ok)
}

/// What the background process of one VM is told.
fn words_to_start(args: &StartArgs, name: &VmName, json: bool) -> Vec<OsString> {
    let timeout = args.stop_timeout.as_secs_f64().to_string();
    let mut words: Vec<OsString> = ["start", "--stop-timeout"].map(Into::into).into();
    words.push(timeout.into());
    let flags = [
        (json, "--json"),
        (args.accept_lost_writes, "--accept-lost-writes"),
        (args.force, "--force"),
        (args.no_seccomp, "--no-seccomp"),
        (args.no_landlock, "--no-landlock"),
    ];
    words.extend(flags.iter().filter(|(on, _)| *on).map(|(_, flag)| flag.into()));
    words.extend(["--".into(), name.to_string().into()]);
    words
}

/// A VM that has been started needs something else than to be stopped first.
fn started_already(folder: &VmFolder, error: FolderError) -> anyhow::Error {
    let (name, error) = (folder.name(), manage::in_use(folder, error));
    match error.downcast_ref().and_then(|in_use: &InUse| in_use.state) {
        Some(State::Running) => {
            refused(format!("the VM `{name}` is already running: `piton console {name}` attaches to it"))
        }
        Some(State::Paused) => {
            refused(format!("the VM `{name}` is paused: `piton resume {name}` resumes it"))
        }
        _ => error,
    }
}

/// A background process belongs to no terminal.
fn leave_session(background: bool) -> anyhow::Result<()> {
    if background {
        nix::unistd::setsid().context("the background process cannot detach from its terminal")?;
    }
    Ok(())
}

/// The threads of the VM confine themselves from here on.
fn confine(no_seccomp: bool, no_landlock: bool) -> anyhow::Result<()> {
    if !no_seccomp {
        seccomp::enable()?;
        // A guest's memory is not to be in a file that was left by a fault of piton's.
        setrlimit(Resource::RLIMIT_CORE, 0, 0).context("cannot set the limit of core files")?;
    }
    if !no_landlock {
        sandbox::enable();
    }
    // It may be out of reach later.
    notify::begin();
    Ok(())
}

/// The disk that is booted from: the image itself is never written.
fn image_disk(arg: DiskArg, size: Option<u64>) -> anyhow::Result<DiskArg> {
    if arg.size.is_some() && size.is_some() {
        return Err(usage("--disk-size and the image's size= are the same: use one of them"));
    }
    let size = size.or(arg.size);
    if arg.readonly || arg.passthrough {
        return Err(usage("--image takes neither readonly nor passthrough: writes go to an overlay"));
    }
    Ok(DiskArg { id: Some(arg.id.unwrap_or_else(|| "root".into())), overlay: true, size, ..arg })
}

/// The bundled guest without a disk gets one, so that there is something to try.
fn make_own_disk(folder: &VmFolder, config: &mut VmConfig) -> anyhow::Result<()> {
    if config.kernel.is_some() || !config.disks.is_empty() {
        return Ok(());
    }
    let storage = folder.storage();
    let disks = folder.make_disks_folder()?;
    let path = disks.join("root.raw");
    storage.remove_file_if_exists(&path)?;
    let file = storage.create_new(&path)?;
    file.set_len(OWN_DISK)?;
    file.sync_data()?;
    storage.sync_dir(&disks)?;
    config.disks.push(DiskConfig {
        id: "root".into(),
        path: path.strip_prefix(folder.path()).unwrap_or(&path).to_owned(),
        format: DiskFormat::Raw,
        readonly: false,
        passthrough: false,
        overlay: false,
    });
    Ok(())
}

/// Saves the definition when the machine is known to be possible and before the guest runs.
fn boot_new(
    folder: &VmFolder,
    config: VmConfig,
    sizes: &BTreeMap<String, u64>,
    forwards: Vec<Forward>,
    lock: VmLock,
    seal_base: bool,
) -> anyhow::Result<Vmm> {
    let mut definition = Definition { forwards, ..Definition::new(config) };
    if seal_base {
        seal::want(folder, &mut definition)?;
    }
    definition.now.generation = Some(Id::random().context("cannot get random bytes")?);
    disks::create_overlays(folder, &mut definition, sizes)?;
    let mut vmm = Vmm::new(folder.clone(), definition, lock)?;
    vmm.boot()?;
    vmm.save_definition()?;
    Ok(vmm)
}

/// Removes a VM that could not be made. A thread that began before the others are bound: none of those
/// can remove a folder of the home.
struct Cleaner {
    fail: Sender<()>,
    thread: JoinHandle<()>,
}

impl Cleaner {
    fn begin(folder: &VmFolder) -> anyhow::Result<Self> {
        let (fail, failed) = channel();
        let folder = folder.clone();
        let thread = std::thread::Builder::new().name("cleaner".into()).spawn(move || {
            if failed.recv().is_ok() {
                abandon(&folder);
            }
        });
        Ok(Self { fail, thread: thread.context("cannot start a thread")? })
    }

    /// Returns when its thread has ended, which is before the guest runs.
    fn end(self, failed: bool) {
        if failed {
            let _ = self.fail.send(());
        }
        drop(self.fail);
        let _ = self.thread.join();
    }
}

/// Removes what a failed `run` made. The lock went with the failure, so it is taken again, and a
/// VM that somebody else makes meanwhile is left alone.
fn abandon(folder: &VmFolder) {
    if let Ok(lock) = folder.lock_leftover()
        && let Err(e) = folder.remove(&lock)
    {
        output::complain(&format!("cannot remove {}: {e}", folder.path().display()));
    }
}

/// Runs the VM to its end, with its console on this terminal unless in the background. With `run`
/// its guest begins at once. On a signal the guest has `patience` to shut down.
fn serve(vmm: Vmm, folder: &VmFolder, run: bool, background: bool, patience: Duration) -> anyhow::Result<()> {
    logging::about(folder.name().as_str());
    limits::warn_of_memory(vmm.definition().config.memory);
    end_on_signals(vmm.ender(), patience)?;
    let outcome = if background {
        begin(vmm, run, |info| {
            // Whoever waits is woken once: by then its other pipe has ended, too.
            let path = folder.vmm_log();
            let log = log_file::begin(path.clone());
            let log = log.with_context(|| format!("cannot write {}", path.display()))?;
            let ready = format!("{READY} {}\n", serde_json::json!(info));
            // The VM is there, also if who started it was killed meanwhile.
            let _ = print(ready.as_bytes());
            nix::unistd::dup2_stdout(&log).context("cannot redirect standard output")
        })?
    } else {
        serve_terminal(vmm, folder, run)?
    };
    let name = folder.name();
    match outcome {
        Outcome::PoweredOff => {
            logging::say(&format!("the VM `{name}` has shut down"));
            Ok(())
        }
        Outcome::Ended(by) => {
            logging::say(&format!("the VM `{name}` was stopped by {by}"));
            Ok(())
        }
        Outcome::Crashed(why) => {
            Err(anyhow!("{why}; its console output is in {}", folder.console_log().display()))
        }
    }
}

/// Lets the guest go, answers requests, and serves until the VM ends.
fn begin(
    mut vmm: Vmm,
    run: bool,
    ready: impl FnOnce(VmInfo) -> anyhow::Result<()>,
) -> anyhow::Result<Outcome> {
    if run {
        vmm.resume().map_err(VmmError::from)?;
    }
    vmm.listen()?;
    ready(vmm.look())?;
    notify::ready();
    seccomp::confine(seccomp::Thread::Main);
    Ok(vmm.run())
}

fn serve_terminal(vmm: Vmm, folder: &VmFolder, run: bool) -> anyhow::Result<Outcome> {
    logging::say(&format!("the VM `{}` is booting. {KEYS}.", folder.name()));
    let terminal = RawTerminal::enter().context("cannot set up the terminal")?;
    // Attached before the guest runs, so that its first byte is shown at once.
    let output = vmm.console().attach(BACKLOG);
    let shown = std::thread::spawn(move || {
        seccomp::confine(seccomp::Thread::Terminal);
        for chunk in output {
            // Whoever closed our standard output misses the rest; the log has it.
            if print(&chunk).is_err() {
                return;
            }
        }
    });
    let (ender, console) = (vmm.ender(), vmm.console());
    std::thread::spawn(move || {
        seccomp::confine(seccomp::Thread::Terminal);
        let left = read_keys(&format!("piton: {HELP}."), |bytes| {
            console.input(bytes);
            Ok(())
        });
        if left {
            ender.end("Ctrl-A x");
        }
    });
    let outcome = begin(vmm, run, |_| Ok(()));
    if outcome.is_ok() {
        // All output was handed out when the console closed.
        let _ = shown.join();
    }
    drop(terminal);
    outcome
}

/// The first signal presses the power button and gives the guest `patience` to shut down; the second
/// ends the VM at once.
fn end_on_signals(ender: Ender, patience: Duration) -> anyhow::Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new(signals::ending()).context("cannot set up signal handling")?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        seccomp::confine(seccomp::Thread::Signals);
        let mut first = true;
        for signal in signals.forever() {
            let name = match signal {
                SIGHUP => "SIGHUP",
                SIGINT => "SIGINT",
                _ => "SIGTERM",
            };
            // After the VMM's end there is nothing left to end.
            if std::mem::take(&mut first) && !patience.is_zero() {
                let within = patience.as_secs();
                notify::stopping(patience);
                logging::say(&format!(
                    "{name}: the guest has {within} s to shut down; another signal cuts its power \
                    immediately"
                ));
                ender.shut_down(name, patience);
            } else {
                notify::stopping(Duration::ZERO);
                ender.end(name);
            }
        }
    })?;
    Ok(())
}
