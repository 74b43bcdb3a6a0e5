//! One thread a vCPU: it runs the guest, serves its port and MMIO accesses, and stands still
//! when told to.
//!
//! A vCPU is born paused. [`Vcpu`] is the owner's handle: it asks, the thread obeys between two
//! entries into the guest. A paused vCPU has completed every access that it began: KVM delivers
//! the result of a port or MMIO read only on the next KVM_RUN, so before it parks it enters once
//! more with `immediate_exit` set, which completes the access and runs no guest code.

mod kick;
mod rendezvous;
pub mod state;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN};
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::bus::Bus;
use crate::events::{EventSink, MachineEvent};
use crate::seccomp;
use kick::Kick;
use rendezvous::Rendezvous;
use state::{StateError, VcpuState};

#[derive(Debug, thiserror::Error)]
pub enum VcpuError {
    #[error("cannot start the thread of vCPU {index}: {error}")]
    Spawn { index: u32, error: std::io::Error },
    #[error("the thread of vCPU {0} has exited")]
    Gone(u32),
    #[error("vCPU {index}: {error}")]
    State { index: u32, error: StateError },
}

/// The buses and the sink that all vCPUs of a machine share.
#[derive(Clone)]
pub struct Wiring {
    pub ports: Arc<Bus>,
    pub mmio: Arc<Bus>,
    pub events: EventSink,
}

enum Command {
    Resume,
    /// Answered once the vCPU stands still with no access half done.
    Pause(Sender<()>),
    /// Stand still together with all others, then go on as before.
    Meet(Arc<Rendezvous<Runner>>),
    /// Let others run for a while.
    Nap(Duration),
    Stop,
}

/// Handle of a vCPU's thread. Dropping it stops the thread and waits for its end.
pub struct Vcpu {
    index: u32,
    commands: Sender<Command>,
    kick: Arc<Kick>,
    thread: Option<JoinHandle<()>>,
}

impl Vcpu {
    /// Starts the thread, paused.
    pub fn spawn(index: u32, fd: VcpuFd, wiring: Wiring) -> Result<Self, VcpuError> {
        let (commands, inbox) = channel();
        let mut runner = Runner { index, fd, wiring, inbox, ended: false };
        let kick = Arc::new(Kick::new(&mut runner.fd));
        let thread_kick = kick.clone();
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{index}"))
            .spawn(move || {
                thread_kick.enter_thread();
                seccomp::confine(seccomp::Thread::Vcpu);
                let runner = runner.run(&thread_kick);
                thread_kick.leave_thread();
                drop(runner);
            })
            .map_err(|error| VcpuError::Spawn { index, error })?;
        Ok(Self { index, commands, kick, thread: Some(thread) })
    }

    fn send(&self, command: Command) -> Result<(), VcpuError> {
        self.commands.send(command).map_err(|_| VcpuError::Gone(self.index))?;
        self.kick.kick();
        Ok(())
    }

    pub fn resume(&self) -> Result<(), VcpuError> {
        self.send(Command::Resume)
    }

    /// Asks the vCPU to stand still; [`Pausing::wait`] for it. Two steps, so that all vCPUs of a
    /// machine stop at once and not one after another.
    pub fn pause(&self) -> Result<Pausing, VcpuError> {
        let (done, answer) = channel();
        self.send(Command::Pause(done))?;
        Ok(Pausing { index: self.index, answer })
    }

    /// Slows the guest down.
    pub fn nap(&self, time: Duration) -> Result<(), VcpuError> {
        self.send(Command::Nap(time))
    }
}

/// Lets all vCPUs of a machine stand still at once, does `job` on the thread of the one that
/// stopped last, and lets them go on as they were. `job` is told how long ago the first stopped.
/// Returns before that is done; if it cannot be done, `job` is dropped.
pub fn gather(
    vcpus: &[Vcpu],
    job: impl FnOnce(&[&Runner], Duration) + Send + 'static,
) -> Result<(), VcpuError> {
    let meeting = Arc::new(Rendezvous::new(vcpus.len(), Box::new(job)));
    let sent = vcpus.iter().try_for_each(|vcpu| vcpu.send(Command::Meet(meeting.clone())));
    if sent.is_err() {
        meeting.call_off();
    }
    sent
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // A thread that is gone already needs no stop.
        let _ = self.send(Command::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A pause that was asked for and may not have happened yet.
pub struct Pausing {
    index: u32,
    answer: Receiver<()>,
}

impl Pausing {
    pub fn wait(self) -> Result<(), VcpuError> {
        self.answer.recv().map_err(|_| VcpuError::Gone(self.index))
    }
}

/// How an entry into the guest came back.
enum Entered {
    Served,
    Interrupted,
    Ended(MachineEvent),
}

enum Next {
    Enter,
    Park,
    /// And what comes after it.
    Meet(Arc<Rendezvous<Runner>>, Box<Next>),
    End,
}

/// What lives on the vCPU's thread.
pub struct Runner {
    index: u32,
    fd: VcpuFd,
    wiring: Wiring,
    inbox: Receiver<Command>,
    /// The guest ended the machine here, by a reset or by switching it off.
    ended: bool,
}

impl Runner {
    fn run(mut self, kick: &Kick) -> Option<Self> {
        let mut next = Next::Park;
        loop {
            next = match next {
                Next::Enter if kick.take() => self.check_inbox(),
                Next::Enter => match self.enter() {
                    Entered::Served | Entered::Interrupted => Next::Enter,
                    Entered::Ended(event) => {
                        self.end(event);
                        Next::Park
                    }
                },
                Next::Park => match self.inbox.recv() {
                    Ok(command) => self.obey(command, Next::Park),
                    Err(_) => Next::End,
                },
                Next::Meet(meeting, after) => {
                    self = meeting.arrive(self.index as usize, self)?;
                    // What came in after it.
                    if matches!(*after, Next::Enter) { self.check_inbox() } else { *after }
                }
                Next::End => return Some(self),
            }
        }
    }

    fn end(&mut self, event: MachineEvent) {
        self.ended = true;
        (self.wiring.events)(event);
    }

    /// The guest ended the machine and this vCPU will not go on.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The state of a vCPU that stands still; `msrs` are those that KVM says it saves.
    pub fn save(&self, msrs: &[u32]) -> Result<VcpuState, VcpuError> {
        state::save(&self.fd, msrs).map_err(|error| VcpuError::State { index: self.index, error })
    }

    fn check_inbox(&mut self) -> Next {
        let mut next = Next::Enter;
        // What comes after a meeting is looked at after it.
        while !matches!(next, Next::Meet(..))
            && let Ok(command) = self.inbox.try_recv()
        {
            next = self.obey(command, next);
        }
        next
    }

    fn obey(&mut self, command: Command, now: Next) -> Next {
        match command {
            Command::Stop => Next::End,
            // Once ended, nothing revives the thread.
            _ if matches!(now, Next::End) => Next::End,
            Command::Resume => Next::Enter,
            Command::Meet(meeting) => {
                // Once parked there is nothing left of it.
                if matches!(now, Next::Enter) {
                    self.complete_access();
                }
                Next::Meet(meeting, Box::new(now))
            }
            Command::Nap(time) => {
                if matches!(now, Next::Enter) {
                    std::thread::sleep(time);
                }
                now
            }
            Command::Pause(done) => {
                self.complete_access();
                // Whoever asked may have given up waiting.
                let _ = done.send(());
                Next::Park
            }
        }
    }

    /// Enters until KVM has nothing left to complete: one instruction may take several accesses.
    fn complete_access(&mut self) {
        loop {
            self.fd.set_kvm_immediate_exit(1);
            let entered = self.enter();
            self.fd.set_kvm_immediate_exit(0);
            match entered {
                Entered::Served => {}
                Entered::Interrupted => return,
                Entered::Ended(event) => return self.end(event),
            }
        }
    }

    fn enter(&mut self) -> Entered {
        let index = self.index;
        let crash = |text: String| Entered::Ended(MachineEvent::Crash(text));
        match self.fd.run() {
            // String I/O arrives as one exit with many bytes, all for the same port.
            Ok(VcpuExit::IoIn(port, data)) => {
                data.chunks_mut(1).for_each(|byte| self.wiring.ports.read(port.into(), byte));
                Entered::Served
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                data.chunks(1).for_each(|byte| self.wiring.ports.write(port.into(), byte));
                Entered::Served
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                self.wiring.mmio.read(address, data);
                Entered::Served
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                self.wiring.mmio.write(address, data);
                Entered::Served
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => Entered::Interrupted,
            Ok(VcpuExit::Shutdown) => crash(format!(
                "the guest crashed: vCPU {index} had a triple fault (an exception with no handler)"
            )),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Entered::Ended(MachineEvent::PowerOff),
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Entered::Ended(MachineEvent::Reset),
            Ok(VcpuExit::InternalError) => crash(format!(
                "KVM cannot run vCPU {index}: it encountered an instruction that it cannot emulate"
            )),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                crash(format!("the processor refused to run vCPU {index} (hardware reason {reason:#x})"))
            }
            Ok(exit) => crash(format!("vCPU {index} stopped for an unknown reason: {exit:?}")),
            Err(e) if [libc::EINTR, libc::EAGAIN].contains(&e.errno()) => {
                // Cleared before the inbox is looked at; see kick.rs.
                self.fd.set_kvm_immediate_exit(0);
                Entered::Interrupted
            }
            Err(e) => crash(format!("KVM cannot run vCPU {index}: {e}")),
        }
    }
}
