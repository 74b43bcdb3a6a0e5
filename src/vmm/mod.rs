//! The owner of a machine: takes requests, events and signals from one queue, one after another,
//! so no two operations ever interleave.

mod answers;
mod button;
mod chores;
mod confined;
mod desk;
mod diary;
mod going_back;
mod image;
mod merging;
mod message;
mod network;
mod reminder;
mod schedule;
mod sealer;
mod sealing;
mod seen;
mod series;
mod telling;
mod thaw;
mod trash;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::capture::lazy::Filling;
use crate::config::VmConfig;
use crate::control::agent::AgentAsked;
use crate::control::jobs::{JobKind, Jobs};
use crate::control::metrics::Metrics;
use crate::control::server::{Asked, Server};
use crate::control::{Answer, Request, RequestError, State, VmInfo, count};
use crate::devices::console::Console;
use crate::devices::virtio::vsock::host::{Host, HostError};
use crate::events::MachineEvent;
use crate::folder::{Definition, Ending, LastRun, VmFolder, VmLock, What};
use crate::history::disks::OpenDisks;
use crate::history::inventory::Inventory;
use crate::history::recover::{self, NamesBeingSynced};
use crate::history::{self, CheckpointError, apply, disks, merge, policy};
use crate::id::Id;
use crate::machine::{self, Machine, MachineError, Parts};
use crate::moment::Moment;
use crate::net::Network;
use crate::sandbox;
use chores::Chores;

pub use message::{Ender, Message, Outcome, VmmError};

/// The guest that comes with piton.
const BUNDLED_GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// So long after its start a VM has time for what an earlier run left.
const CALM: Duration = Duration::from_secs(1);

/// A VM with its lock, its console and, once booted or restored, its machine.
pub struct Vmm {
    folder: VmFolder,
    definition: Definition,
    console: Arc<Console>,
    queue: Receiver<Message>,
    sender: Sender<Message>,
    jobs: Jobs,
    seen: seen::Seen,
    metrics: Metrics,
    diary: diary::Diary,
    merging: Option<series::Series>,
    sealing: Option<sealer::Sealing>,
    /// Why what a schedule says could not be done last time.
    overdue: Option<String>,
    machine: Option<Machine>,
    /// Of the machine's memory; to be dropped after it.
    filling: Option<Filling>,
    disks: OpenDisks,
    boot: u64,
    started: chrono::DateTime<chrono::Utc>,
    /// Its checkpoints, as long as nothing was done.
    counted: Option<usize>,
    network: Option<Network>,
    /// Where programs of the host meet those of the guest. Dropped before the lock, as is:
    vsock: Option<Arc<Host>>,
    /// Calls to the agent of the machine.
    desk: desk::Desk,
    /// Dropped before the lock: nobody may find the socket of a VM that is not locked.
    server: Option<Server>,
    lock: VmLock,
}

impl Vmm {
    /// Without a machine yet. What a crash left is mended first.
    pub fn new(folder: VmFolder, definition: Definition, lock: VmLock) -> Result<Self, VmmError> {
        let (vmm, names, _) = Self::recovering(folder, definition, lock, None)?;
        names.wait()?;
        Ok(vmm)
    }

    /// [`Self::new`], with which nothing may be made durable before the names are. `also` is hardware
    /// that it will have.
    fn recovering(
        folder: VmFolder,
        mut definition: Definition,
        lock: VmLock,
        also: Option<&VmConfig>,
    ) -> Result<(Self, NamesBeingSynced, Option<Inventory>), VmmError> {
        let recover::Begun { findings, names, inventory } = recover::begin(&folder, &lock, &mut definition)?;
        for finding in &findings {
            log::warn!("{}", finding.text);
        }
        confined::plan(&folder, &definition, inventory.as_ref(), also);
        let path = folder.console_log();
        let console = Console::start(&path).map_err(|error| VmmError::Console { path, error })?;
        let (sender, queue) = channel();
        let disks = OpenDisks::default();
        let metrics = Metrics::new(folder.name().as_str());
        let mut vmm = Self {
            folder,
            definition,
            console,
            queue,
            sender,
            jobs: Jobs::default(),
            seen: seen::Seen::default(),
            metrics,
            diary: diary::Diary::default(),
            merging: None,
            sealing: None,
            overdue: None,
            machine: None,
            filling: None,
            disks,
            boot: 0,
            started: chrono::Utc::now(),
            counted: None,
            network: None,
            vsock: None,
            desk: desk::Desk::new(),
            server: None,
            lock,
        };
        vmm.tell_of_the_past(&findings.into_iter().map(|finding| finding.text).collect::<Vec<_>>());
        Ok((vmm, names, inventory))
    }

    pub fn save_definition(&self) -> Result<(), VmmError> {
        Ok(self.folder.save(&self.lock, &self.definition)?)
    }

    pub fn definition(&self) -> &Definition {
        &self.definition
    }

    pub fn console(&self) -> Arc<Console> {
        self.console.clone()
    }

    /// For signals, and for the user at the console.
    pub fn ender(&self) -> Ender {
        Ender { sender: self.sender.clone(), jobs: self.jobs.clone() }
    }

    /// What a machine of boot number `boot` needs beside its definition.
    fn parts(&self, boot: u64, config: &VmConfig, disks: &OpenDisks) -> Parts {
        let sender = self.sender.clone();
        let events = Arc::new(move |event| {
            // After the VMM's end nobody needs to know.
            let _ = sender.send(Message::Machine { boot, event });
        });
        Parts {
            disks: disks.machine.clone(),
            nets: config.nets.clone(),
            vsock: self.vsock.clone().filter(|_| config.vsock),
            console: self.console.clone(),
            events,
            generation: self.definition.now.generation.unwrap_or(Id::from_bytes([0; 16])),
            bundled: BUNDLED_GUEST,
            found: None,
            counts: self.metrics.disks(),
        }
    }

    /// Begins to listen for programs of the host that want to talk to the guest, if they may, before
    /// this process is confined.
    fn open_vsock(&mut self, config: &VmConfig) -> Result<(), HostError> {
        if config.vsock && self.vsock.is_none() {
            self.vsock = Some(Arc::new(Host::listen(&self.folder.vsock_socket())?));
        }
        Ok(())
    }

    /// Makes a fresh machine, standing still, with its networks plugged in.
    pub fn boot(&mut self) -> Result<(), VmmError> {
        self.start_network()?;
        self.boot_machine()?;
        self.plug_in()
    }

    /// Puts a fresh machine in place of what ran before, standing still.
    fn boot_machine(&mut self) -> Result<(), VmmError> {
        self.park_merge();
        // The former machine and its disks end first: they hold the images' locks.
        self.machine = None;
        self.filling = None;
        self.disks.flush();
        self.disks = OpenDisks::default();
        self.boot += 1;
        self.touch()?;
        if self.definition.now.generation.is_none() {
            // Of a VM that was defined without one.
            self.definition.now.generation = Some(Id::random().map_err(CheckpointError::Random)?);
            self.save_definition()?;
        }
        let sums = history::Catalog::new(&self.folder, &self.definition).layer_sums(&self.definition)?;
        let Definition { config, now, .. } = &self.definition;
        self.disks = disks::open(&self.folder, config, &now.tops, &sums, &Default::default())?;
        let config = config.clone();
        // What others wrote is read from here on.
        sandbox::enter()?;
        self.open_vsock(&config)?;
        let found = image::find(&self.folder, &config, &self.disks)?;
        let parts = Parts { found, ..self.parts(self.boot, &config, &self.disks) };
        let machine = machine::boot(&config, parts)?;
        machine.take_console(&self.console)?;
        self.desk.set(Some(machine.agent()), "was restarted");
        self.machine = Some(machine);
        Ok(())
    }

    /// Boots a VM that was off, as its settings say with a checkpoint of what it was before; with
    /// `force` over bases that have changed, too.
    pub fn start(&mut self, force: bool) -> Result<(), VmmError> {
        if !force {
            history::check_now(&self.folder, &self.definition)?;
        }
        if let Err(e) = policy::at_start(&self.folder, &self.lock, &mut self.definition) {
            log::warn!("no automatic checkpoint was created: {e}");
        }
        self.boot()
    }

    /// Begins to answer on the control socket.
    pub fn listen(&mut self) -> Result<(), VmmError> {
        self.tell_start();
        self.measure();
        let (sender, jobs, seen) = (self.sender.clone(), self.jobs.clone(), self.seen.clone());
        let dispatch = Arc::new(move |asked: Asked| {
            if asked.request == Request::Kill {
                // It would wait for what is to be cut short.
                jobs.cancel_all();
            }
            let Some(asked) = seen.answer(asked) else { return };
            // When the queue is gone the reply is dropped, which the server reports.
            let _ = sender.send(Message::Request(asked));
        });
        let counter = self.desk.counter();
        let agent = Arc::new(move |asked: AgentAsked| counter.ask(asked));
        self.desk.open().map_err(VmmError::Desk)?;
        let socket = self.folder.socket();
        let (jobs, metrics, console) = (self.jobs.clone(), self.metrics.clone(), self.console.clone());
        self.server = Some(Server::start(&socket, dispatch, agent, jobs, metrics, console)?);
        Ok(())
    }

    /// Before the guest runs, so that nobody takes what it leaves for untouched.
    fn touch(&mut self) -> Result<(), VmmError> {
        if self.definition.now.untouched {
            let mut next = self.definition.clone();
            next.now.untouched = false;
            self.folder.save(&self.lock, &next)?;
            self.definition = next;
        }
        Ok(())
    }

    pub fn resume(&mut self) -> Result<(), MachineError> {
        self.touch().map_err(|e| MachineError::Setup {
            what: "the note that the guest runs",
            error: std::io::Error::other(e.to_string()),
        })?;
        let Some(machine) = &mut self.machine else { return Ok(()) };
        machine.resume()?;
        if let Some(filling) = &mut self.filling {
            filling.fetch();
        }
        if machine.agent().is_thaw_due() {
            // In its turn: whoever asked for the resume does not wait for the agent.
            let _ = self.sender.send(Message::Machine { boot: self.boot, event: MachineEvent::AgentBack });
        }
        Ok(())
    }

    /// Serves until the VM ends.
    pub fn run(mut self) -> Outcome {
        // What an earlier run left to merge must not hold up the start.
        let mut begin = Some(Instant::now() + CALM);
        let mut closing: Option<(Instant, &'static str)> = None;
        let mut thaw = thaw::reminder();
        let mut button = button::reminder();
        let mut chores = Chores::new(Moment::now());
        let outcome = loop {
            self.measure();
            self.write_diary();
            if closing.is_none() {
                self.do_chores(&mut chores);
            }
            let behind = self.lock.is_behind().then(|| Instant::now() + CALM);
            let look = thaw.next(thaw::is_due(self.machine.as_ref()));
            let unread = button.next(button::is_unread(self.machine.as_ref()));
            let chore = self.next_chore(&mut chores).filter(|_| closing.is_none());
            let due = [begin, behind, look, unread, chore, closing.map(|(at, _)| at)];
            let due = due.into_iter().flatten().min();
            let message = match due {
                Some(due) => self.queue.recv_timeout(due.saturating_duration_since(Instant::now())),
                None => self.queue.recv().map_err(RecvTimeoutError::from),
            };
            history::catch_up(&self.folder, &self.lock, &self.definition);
            if !matches!(&message, Ok(Message::Request(asked)) if asked.request == Request::Show) {
                self.counted = None;
            }
            let now = Instant::now();
            if let Some((_, by)) = closing.filter(|(at, _)| now >= *at) {
                log::warn!("the guest did not shut down in time");
                break Outcome::Ended(by);
            }
            let message = match message {
                Ok(message) => message,
                Err(RecvTimeoutError::Timeout) => {
                    if begin.take_if(|at| now >= *at).is_some() {
                        self.merge_layers();
                        self.seal_bases();
                    }
                    if thaw.is_due(now) {
                        thaw::poke(self.machine.as_ref());
                    }
                    if button.is_due(now) {
                        button::repeat(self.machine.as_ref());
                    }
                    continue;
                }
                // It cannot be closed while `self.sender` lives.
                Err(RecvTimeoutError::Disconnected) => break Outcome::Ended("piton itself"),
            };
            match message {
                Message::Request(Asked { request: Request::Kill, reply, .. }) => {
                    if !self.filling.as_ref().is_some_and(Filling::is_broken) {
                        self.machine = None;
                    }
                    respond(reply, Ok(self.info().into()));
                    break Outcome::Ended("piton kill");
                }
                Message::Request(asked) if asked.is_withdrawn() => asked.withdraw(),
                Message::Request(Asked { request, job, reply }) => {
                    let creates = matches!(request, Request::CreateCheckpoint(_));
                    let changes = request.job().is_some() || matches!(request, Request::Set(_));
                    self.seen.set(creates.then(|| self.info()));
                    let before = self.before(&request);
                    let answer = self.answer(request, job.as_ref());
                    if changes {
                        chores.look_again();
                        // Looked at now, so that who asked finds numbers that know of it.
                        self.next_chore(&mut chores);
                    }
                    self.measure();
                    self.tell_answer(before, &answer);
                    self.seen.set(None);
                    if let Some(job) = job {
                        job.finish(&answer);
                    }
                    respond(reply, answer);
                    if self.machine.is_none() {
                        break Outcome::Ended("going back to a checkpoint without memory");
                    }
                }
                Message::Machine { boot, event } if boot == self.boot => match event {
                    MachineEvent::AgentBack => thaw::again(self.machine.as_ref()),
                    MachineEvent::PowerOff => break Outcome::PoweredOff,
                    MachineEvent::Crash(text) => break Outcome::Crashed(text),
                    MachineEvent::Reset => {
                        log::info!("the guest asked for a reset");
                        self.tell(What::Reset, "the guest asked for a reset");
                        let booted = self.boot_machine();
                        self.plug_over();
                        if let Err(e) = booted.and_then(|()| Ok(self.resume()?)) {
                            break Outcome::Crashed(format!("cannot reboot the guest: {e}"));
                        }
                        self.merge_on();
                    }
                    MachineEvent::Stuck => self.pause_if_stuck(),
                },
                Message::Machine { .. } => {}
                Message::Merged(number) => self.merge_goes_on(number),
                Message::Sealed => self.sealed(),
                Message::Network(news) => self.tell_of_network(news),
                Message::ForgetFormer => {
                    apply::forget_former(&self.folder, &self.definition);
                    self.consume();
                }
                Message::End(by) => break Outcome::Ended(by),
                Message::ShutDown { by, patience } => match button::press(self.machine.as_ref()) {
                    Ok(true) => closing = closing.or(Some((now + patience, by))),
                    Ok(false) => break Outcome::Ended(by),
                    Err(e) => {
                        log::error!("cannot press the guest's power button: {e}");
                        break Outcome::Ended(by);
                    }
                },
            }
        };
        self.end_merge();
        self.end_sealing();
        self.tell_end(&outcome);
        let last = LastRun { ended: Some(chrono::Utc::now()), how: ending(&outcome) };
        if let Err(e) = self.folder.save_last_run(&self.lock, last) {
            log::warn!("cannot record how this run ended: {e}");
        }
        let Self {
            folder,
            mut definition,
            machine,
            mut filling,
            disks,
            console,
            jobs,
            network,
            vsock,
            desk,
            server,
            lock,
            ..
        } = self;
        drop(desk);
        if let Some(filling) = filling.take_if(|filling| filling.is_broken()) {
            // Threads of the machine wait for memory that will not come, and end with the process.
            std::mem::forget((machine, disks));
            filling.abandon();
            console.close();
            return outcome;
        }
        // Guest and disks end first, so that what they last printed is still shown.
        drop(machine);
        drop(vsock);
        drop(filling);
        disks.flush();
        drop(disks);
        // Whoever starts the VM next finds its ports free.
        drop(network);
        console.close();
        drop(server);
        if outcome == Outcome::PoweredOff
            && let Err(e) = policy::at_shutdown(&folder, &lock, &mut definition)
        {
            log::warn!("cannot delete the automatic checkpoint: {e}");
        }
        // A second signal leaves that for later, too.
        let settled = jobs
            .add(None, JobKind::Merge, String::new())
            .map(|job| merge::settle(&folder, &lock, &mut definition, job.progress()));
        if let Ok(Err(e)) = settled {
            log::warn!("layers could not be merged yet: {e}");
        }
        history::catch_up(&folder, &lock, &definition);
        drop(lock);
        outcome
    }

    fn state(&self) -> State {
        match &self.machine {
            None => State::Stopped,
            Some(machine) if machine.is_running() => State::Running,
            Some(_) => State::Paused,
        }
    }

    pub fn info(&self) -> VmInfo {
        self.counted_info(count(&self.folder, &self.definition))
    }

    /// The same for who looks many times a second: checkpoints are counted again only after something
    /// was done.
    pub fn look(&mut self) -> VmInfo {
        let known = self.counted.unwrap_or_else(|| count(&self.folder, &self.definition));
        self.counted = Some(known);
        self.counted_info(known)
    }

    fn counted_info(&self, checkpoints: usize) -> VmInfo {
        let pid = self.machine.is_some().then(std::process::id);
        // Of a machine that runs, it would have to wait for requests in flight.
        let reason = self.machine.as_ref().filter(|machine| !machine.is_running()).and_then(Machine::stuck);
        let agent_connected = self.machine.as_ref().map(|machine| machine.agent().is_open());
        let networks = self.network_info();
        let overdue = self.overdue.as_ref().filter(|_| !self.definition.schedule.is_off()).cloned();
        let warnings = thaw::warning(self.machine.as_ref()).into_iter().chain(overdue).collect();
        let known = VmInfo::counted(&self.folder, &self.definition, self.state(), pid, checkpoints);
        let shares_memory =
            self.machine.as_ref().map(|_| self.filling.as_ref().is_some_and(Filling::is_shared));
        let started = Some(self.started);
        let active_jobs = Some(self.jobs.under_way());
        let sandbox = Some(confined::info());
        VmInfo {
            active_jobs,
            reason,
            warnings,
            started,
            agent_connected,
            shares_memory,
            networks,
            sandbox,
            ..known
        }
    }

    /// The guest waits for the user, rather than seeing its disk fail. It may be over already: a
    /// checkpoint lets devices try again.
    fn pause_if_stuck(&mut self) {
        if self.machine.as_ref().and_then(Machine::stuck).is_some() && self.make_room() {
            return;
        }
        let Some(machine) = &mut self.machine else { return };
        let Some(why) = machine.stuck() else { return };
        let name = self.folder.name();
        let paused = if machine.is_running() { machine.pause() } else { Ok(()) };
        match paused {
            Ok(()) => {
                log::error!(
                    "{why}: the VM is paused; free some space, then resume it with `piton resume {name}`"
                );
                self.tell(What::OutOfRoom, why);
            }
            Err(e) => log::error!("{why}, and the VM cannot be paused: {e}"),
        }
    }
}

fn ending(outcome: &Outcome) -> Ending {
    match outcome {
        Outcome::PoweredOff => Ending::Off,
        Outcome::Ended(by) => Ending::Ended { by: (*by).to_owned() },
        Outcome::Crashed(why) => Ending::Crashed { why: why.clone() },
    }
}

fn respond(reply: Option<oneshot::Sender<Answer>>, answer: Answer) {
    if let Some(reply) = reply {
        // Who asked may be gone by now.
        let _ = reply.send(answer);
    }
}

impl From<CheckpointError> for RequestError {
    fn from(error: CheckpointError) -> Self {
        let text = error.to_string();
        match () {
            () if error.is_cancelled() => Self::Cancelled(text),
            () if error.is_missing() => Self::Missing(text),
            () if error.is_refusal() => Self::Refused(text),
            () => Self::Failed(text),
        }
    }
}
