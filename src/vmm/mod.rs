//! The owner of a machine: takes requests, events and signals from one queue, one after another,
//! so no two operations ever interleave.

pub mod disks;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::sync::oneshot;

use crate::control::server::{Server, ServerError};
use crate::control::{Answer, Request, RequestError, State, VmInfo};
use crate::devices::console::Console;
use crate::events::MachineEvent;
use crate::folder::{Definition, FolderError, VmFolder, VmLock};
use crate::machine::{self, Machine, MachineError, Parts};
use disks::DisksError;

/// The guest that comes with piton.
const BUNDLED_GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error(transparent)]
    Disks(#[from] DisksError),
    #[error("the console log {} cannot be opened: {error}", path.display())]
    Console { path: std::path::PathBuf, error: std::io::Error },
    #[error(transparent)]
    Server(#[from] ServerError),
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// What can happen to a VM while it runs.
pub enum Message {
    Request(Request, oneshot::Sender<Answer>),
    Machine {
        /// Counts the machine's boots: what an earlier one still had to say is no news.
        boot: u64,
        event: MachineEvent,
    },
    /// End the VM at once: a signal, or the user left its console.
    End(&'static str),
}

/// How a VM's run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The guest switched itself off.
    PoweredOff,
    /// It was told to end; the text says by whom.
    Ended(&'static str),
    /// The guest cannot go on; the text says why.
    Crashed(String),
}

/// A running VM.
pub struct Vmm {
    folder: VmFolder,
    definition: Definition,
    console: Arc<Console>,
    queue: Receiver<Message>,
    sender: Sender<Message>,
    /// None only between the two machines of a reboot.
    machine: Option<Machine>,
    boot: u64,
    state: State,
    /// Dropped before the lock: nobody may find the socket of a VM that is not locked.
    server: Option<Server>,
    lock: VmLock,
}

impl Vmm {
    /// Boots the VM, standing still.
    pub fn boot(folder: VmFolder, definition: Definition, lock: VmLock) -> Result<Self, VmmError> {
        let path = folder.console_log();
        let console = Console::start(&path).map_err(|error| VmmError::Console { path, error })?;
        let (sender, queue) = channel();
        let machine = boot_machine(&folder, &definition, &console, &sender, 0)?;
        Ok(Self {
            folder,
            definition,
            console,
            queue,
            sender,
            machine: Some(machine),
            boot: 0,
            state: State::Paused,
            server: None,
            lock,
        })
    }

    pub fn save_definition(&self) -> Result<(), VmmError> {
        Ok(self.folder.save(&self.lock, &self.definition)?)
    }

    pub fn console(&self) -> Arc<Console> {
        self.console.clone()
    }

    /// Where everybody else puts their messages.
    pub fn sender(&self) -> Sender<Message> {
        self.sender.clone()
    }

    /// Lets the guest run and begins to answer on the control socket.
    pub fn start(&mut self) -> Result<(), VmmError> {
        self.resume()?;
        let sender = self.sender.clone();
        let dispatch = Arc::new(move |request, reply| {
            // When the queue is gone the reply is dropped, which the server reports.
            let _ = sender.send(Message::Request(request, reply));
        });
        self.server = Some(Server::start(&self.folder.socket(), dispatch, self.console.clone())?);
        Ok(())
    }

    /// Serves until the VM ends.
    pub fn run(mut self) -> Outcome {
        let outcome = loop {
            // It cannot be closed while `self.sender` lives.
            let Ok(message) = self.queue.recv() else { break Outcome::Ended("its owner") };
            match message {
                Message::Request(Request::Stop { force: true }, reply) => {
                    let _ = reply.send(Ok(VmInfo { state: State::Stopped, pid: None, ..self.info() }));
                    break Outcome::Ended("piton stop --force");
                }
                Message::Request(request, reply) => {
                    // Who asked may be gone by now.
                    let _ = reply.send(self.answer(request));
                }
                Message::Machine { boot, event } if boot == self.boot => match event {
                    MachineEvent::PowerOff => break Outcome::PoweredOff,
                    MachineEvent::Crash(text) => break Outcome::Crashed(text),
                    MachineEvent::Reset => {
                        log::info!("the guest asked for a reset");
                        if let Err(e) = self.reboot() {
                            break Outcome::Crashed(format!("the guest could not be rebooted: {e}"));
                        }
                    }
                },
                Message::Machine { .. } => {}
                Message::End(by) => break Outcome::Ended(by),
            }
        };
        let Self { machine, console, server, lock, .. } = self;
        // Guest and disks end first, so that what they last printed is still shown.
        drop(machine);
        console.close();
        drop(server);
        drop(lock);
        outcome
    }

    fn info(&self) -> VmInfo {
        VmInfo {
            name: self.folder.name().clone(),
            state: self.state,
            pid: Some(std::process::id()),
            created: self.definition.created,
            folder: self.folder.path().to_owned(),
            config: self.definition.config.clone(),
        }
    }

    fn resume(&mut self) -> Result<(), MachineError> {
        self.machine.as_mut().map_or(Ok(()), Machine::resume)?;
        self.state = State::Running;
        Ok(())
    }

    fn pause(&mut self) -> Result<(), MachineError> {
        self.machine.as_mut().map_or(Ok(()), Machine::pause)?;
        self.state = State::Paused;
        Ok(())
    }

    fn answer(&mut self, request: Request) -> Answer {
        let failed = |e: MachineError| RequestError::Failed(e.to_string());
        match (request, self.state) {
            (Request::Pause, State::Running) => self.pause().map_err(failed)?,
            (Request::Resume, State::Paused) => self.resume().map_err(failed)?,
            (Request::Stop { .. }, State::Paused) => {
                let name = self.folder.name();
                return Err(RequestError::Refused(format!(
                    "the VM `{name}` is paused, so its guest cannot shut down: \
                     `piton resume {name}` first, or end it with `piton stop --force {name}`"
                )));
            }
            (Request::Stop { .. }, _) => {
                self.machine.as_ref().map_or(Ok(()), Machine::press_power_button).map_err(failed)?;
            }
            // Pausing what is paused and resuming what runs are done already.
            (Request::Show | Request::Pause | Request::Resume, _) => {}
        }
        Ok(self.info())
    }

    /// A fresh machine from the same definition. The old one ends first: it holds the disks.
    fn reboot(&mut self) -> Result<(), VmmError> {
        self.machine = None;
        self.boot += 1;
        let machine = boot_machine(&self.folder, &self.definition, &self.console, &self.sender, self.boot)?;
        self.machine = Some(machine);
        Ok(self.resume()?)
    }
}

fn boot_machine(
    folder: &VmFolder,
    definition: &Definition,
    console: &Arc<Console>,
    sender: &Sender<Message>,
    boot: u64,
) -> Result<Machine, VmmError> {
    let disks = disks::open(folder, definition)?;
    let sender = sender.clone();
    let events = Arc::new(move |event| {
        // After the VMM's end nobody needs to know.
        let _ = sender.send(Message::Machine { boot, event });
    });
    let parts = Parts { disks, console: console.clone(), events, bundled: BUNDLED_GUEST };
    Ok(machine::boot(&definition.config, parts)?)
}
