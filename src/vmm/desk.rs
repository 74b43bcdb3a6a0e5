//! Calls to the guest's agent, one after another, in a thread of their own: neither the owner of the
//! machine nor a freeze waits for them, except for the call that the agent is at.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::agent::{Agent, AgentError};
use crate::control::agent::{AgentAnswer, AgentAsked, AgentReply};
use crate::devices::virtio::console_port::Port;
use crate::id::Id;
use crate::progress::Progress;
use crate::qga::{CallError, Why};
use crate::seccomp;

/// Calls that may wait for their turn.
const WAITING_MAX: usize = 64;
/// How long a conversation is kept for the next call: beginning one costs the agent an answer.
const LINGER: Duration = Duration::from_millis(20);

enum Message {
    Asked(AgentAsked),
    End,
}

/// The agent of the machine of now.
#[derive(Clone)]
struct Line {
    guest: Id,
    port: Arc<Port>,
    /// Cancelled when another machine takes this one's place.
    calls: Progress,
}

#[derive(Default)]
struct Shared {
    line: Option<Line>,
    /// What became of the guest before.
    former: &'static str,
}

/// Who calls waits here.
#[derive(Clone)]
pub struct Counter {
    shared: Arc<Mutex<Shared>>,
    sender: SyncSender<Message>,
}

pub struct Desk {
    counter: Counter,
    queue: Option<Receiver<Message>>,
    thread: Option<JoinHandle<()>>,
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Before it is opened, calls wait.
    pub fn new() -> Self {
        let (sender, queue) = sync_channel(WAITING_MAX);
        Self { counter: Counter { shared: Arc::default(), sender }, queue: Some(queue), thread: None }
    }

    pub fn open(&mut self) -> std::io::Result<()> {
        let Some(queue) = self.queue.take() else { return Ok(()) };
        let shared = self.counter.shared.clone();
        self.thread = Some(std::thread::Builder::new().name("agent".into()).spawn(move || {
            seccomp::confine(seccomp::Thread::Agent);
            serve(&shared, &queue);
        })?);
        Ok(())
    }

    pub fn counter(&self) -> Counter {
        self.counter.clone()
    }

    /// Another machine is there, or none; `former` says what became of the one before.
    pub fn set(&self, port: Option<Arc<Port>>, former: &'static str) {
        let mut shared = lock(&self.counter.shared);
        if let Some(line) = shared.line.take() {
            line.calls.cancel();
            shared.former = former;
        }
        shared.line = port.and_then(|port| match Id::random() {
            Ok(guest) => Some(Line { guest, port, calls: Progress::default() }),
            Err(e) => {
                log::error!("the guest's agent cannot be called: cannot get random bytes: {e}");
                None
            }
        });
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        self.set(None, "ended");
        if let Some(thread) = self.thread.take() {
            // It takes what waits before, and refuses it.
            let _ = self.counter.sender.send(Message::End);
            let _ = thread.join();
        }
    }
}

impl Counter {
    /// Puts a call into the queue; never waits.
    pub fn ask(&self, asked: AgentAsked) {
        let (asked, text) = match self.sender.try_send(Message::Asked(asked)) {
            Ok(()) => return,
            Err(TrySendError::Full(message)) => (message, "too many calls are waiting for the guest agent"),
            Err(TrySendError::Disconnected(message)) => (message, "the VM is stopping"),
        };
        if let Message::Asked(AgentAsked { reply, .. }) = asked {
            // Who asked may be gone by now.
            let _ = reply.send(Err(CallError::new(Why::Locked, text)));
        }
    }
}

fn serve(shared: &Mutex<Shared>, queue: &Receiver<Message>) {
    let mut next = None;
    loop {
        let asked = match next.take() {
            Some(asked) => asked,
            None => match queue.recv() {
                Ok(Message::Asked(asked)) => asked,
                Ok(Message::End) | Err(_) => return,
            },
        };
        let line = lock(shared).line.clone();
        match line {
            // Who asked may be gone by now.
            _ if asked.reply.is_closed() => {}
            Some(line) => match refusal(shared, &line, &asked) {
                None => match converse(shared, &line, asked, queue) {
                    Next::Any => {}
                    Next::This(asked) => next = Some(asked),
                    Next::None => return,
                },
                Some(e) => drop(asked.reply.send(Err(e))),
            },
            None => drop(asked.reply.send(Err(went(shared)))),
        }
    }
}

/// What comes after a conversation.
enum Next {
    Any,
    /// A call that could not be made in it.
    This(AgentAsked),
    None,
}

/// Makes this call, and those that come while the conversation lasts.
fn converse(shared: &Mutex<Shared>, line: &Line, first: AgentAsked, queue: &Receiver<Message>) -> Next {
    let mut agent = match Agent::for_calls(&*line.port, &line.calls) {
        Ok(agent) => agent,
        Err(e) => {
            drop(first.reply.send(Err(told(shared, e))));
            return Next::Any;
        }
    };
    let mut asked = first;
    loop {
        let answer: AgentAnswer = agent
            .do_call(&asked.call)
            .map(|value| AgentReply { guest: line.guest, value })
            .map_err(|e| told(shared, e));
        let lost = answer.as_ref().is_err_and(|e| matches!(e.why, Why::Broken | Why::Silent | Why::WentBack));
        drop(asked.reply.send(answer));
        if lost {
            return Next::Any;
        }
        asked = loop {
            // A freeze goes first; what comes meanwhile has its turn after it.
            if line.port.is_wanted() {
                return Next::Any;
            }
            match queue.recv_timeout(LINGER) {
                Ok(Message::Asked(asked)) if asked.reply.is_closed() => {}
                Ok(Message::Asked(asked)) if line.port.is_wanted() => return Next::This(asked),
                Ok(Message::Asked(asked)) => match refusal(shared, line, &asked) {
                    None => break asked,
                    Some(_) => return Next::This(asked),
                },
                Ok(Message::End) | Err(RecvTimeoutError::Disconnected) => return Next::None,
                Err(RecvTimeoutError::Timeout) => return Next::Any,
            }
        };
    }
}

/// Why a call is not made at all.
fn refusal(shared: &Mutex<Shared>, line: &Line, asked: &AgentAsked) -> Option<CallError> {
    if line.calls.is_cancelled() || asked.guest.is_some_and(|guest| guest != line.guest) {
        return Some(went(shared));
    }
    if line.port.is_still() {
        return Some(CallError::new(Why::Locked, "the VM is paused: resume it first"));
    }
    line.port.is_thaw_due().then(|| {
        let text = "the guest's file systems are frozen: its agent did not respond to the thaw; piton \
         keeps trying";
        CallError::new(Why::Locked, text)
    })
}

fn went(shared: &Mutex<Shared>) -> CallError {
    let former = match lock(shared).former {
        // Known from a VM that was stopped and started since.
        "" => "was restarted",
        former => former,
    };
    CallError::new(Why::WentBack, format!("the guest {former} in the meantime"))
}

fn told(shared: &Mutex<Shared>, error: AgentError) -> CallError {
    let why = match &error {
        AgentError::CalledOff => return went(shared),
        AgentError::Absent => Why::Absent,
        AgentError::Silent { .. } => Why::Silent,
        AgentError::Busy => Why::Locked,
        // Frozen by somebody else, who may thaw it.
        AgentError::Forbidden { why, .. } if why.contains("frozen") => Why::Locked,
        AgentError::Forbidden { .. } | AgentError::Lacks(_) => Why::Forbidden,
        AgentError::Refused { why, .. } => return CallError::new(Why::Refused, why.clone()),
        AgentError::Gone(_)
        | AgentError::Senseless(_)
        | AgentError::TooLong(_)
        | AgentError::NothingFrozen
        | AgentError::ThawedEarly => Why::Broken,
    };
    CallError::new(why, error.to_string())
}
