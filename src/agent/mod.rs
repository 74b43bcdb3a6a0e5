//! The agent in the guest: asking it to freeze the guest's file systems for a moment, or for what
//! [`crate::qga`] lists.
//!
//! One conversation at a time; one that is to freeze goes before all others that wait.
//! [`protocol`] is pure; here is what waits. Every call has a time-out. Whatever the agent does,
//! the caller gets an answer or an error in that time, and file systems that may be frozen are
//! thawed, or remembered as due.

pub mod protocol;

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::devices::virtio::console_port::{Port, Received};
use crate::progress::Progress;
use crate::qga::Call;
use protocol::{Answer, Matcher, SYNC, request};

/// How long an agent has to answer anything but a freeze.
const PATIENCE: Duration = Duration::from_secs(5);
/// The same for a call of [`crate::qga`], which may have to wait for the guest's disk.
const CALL_PATIENCE: Duration = Duration::from_secs(30);
/// How long such a call waits for a freeze to be over: the longest that there is, and some.
const LINE_PATIENCE: Duration = Duration::from_secs(75);
/// How often a thaw is asked for before it is put off. An agent thaws in milliseconds, but may be
/// slow to come back from a freeze that was given up.
const THAWS: u32 = 2;
/// Between two looks at whether the work was called off.
const SLICE: Duration = Duration::from_millis(50);

const INFO: &str = "guest-info";
const FREEZE: &str = "guest-fsfreeze-freeze";
const STATUS: &str = "guest-fsfreeze-status";
const THAW: &str = "guest-fsfreeze-thaw";

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    #[error("no guest agent is connected: install and start qemu-guest-agent in the guest")]
    Absent,
    #[error("the guest agent did not respond to {call} within {} ms", within.as_millis())]
    Silent { call: &'static str, within: Duration },
    #[error("the guest agent disconnected during {0}")]
    Gone(&'static str),
    #[error("the guest agent refused {call}: {why}")]
    Refused { call: &'static str, why: String },
    #[error("the guest agent does not support {0}")]
    Lacks(&'static str),
    #[error("the guest agent is not allowed to run {call}: {why}")]
    Forbidden { call: &'static str, why: String },
    #[error("the guest agent's response to {0} is too long")]
    TooLong(&'static str),
    #[error("another command has been using the guest agent for too long")]
    Busy,
    #[error("the guest agent gave an invalid response to {0}")]
    Senseless(&'static str),
    #[error("the guest agent did not freeze any file system")]
    NothingFrozen,
    #[error("the guest's file systems were thawed before the disks were switched")]
    ThawedEarly,
    #[error("it was cancelled")]
    CalledOff,
}

/// The host's end of the agent's port.
pub trait Channel {
    /// Waits until nobody else talks; false if that took too long.
    fn claim(&self, first: bool, patience: Duration) -> bool;
    fn release(&self);
    /// The guest is paused: time does not pass for it.
    fn is_still(&self) -> bool;
    fn is_open(&self) -> bool;
    fn listen(&self);
    fn hang_up(&self);
    fn send(&self, bytes: &[u8]);
    fn receive(&self, patience: Duration) -> Received;
    fn set_thaw_due(&self, due: bool);
}

impl Channel for Port {
    fn claim(&self, first: bool, patience: Duration) -> bool {
        Self::claim(self, first, patience)
    }
    fn release(&self) {
        Self::release(self);
    }
    fn is_still(&self) -> bool {
        Self::is_still(self)
    }
    fn is_open(&self) -> bool {
        Self::is_open(self)
    }
    fn listen(&self) {
        Self::listen(self);
    }
    fn hang_up(&self) {
        Self::hang_up(self);
    }
    fn send(&self, bytes: &[u8]) {
        Self::send(self, bytes);
    }
    fn receive(&self, patience: Duration) -> Received {
        Self::receive(self, patience)
    }
    fn set_thaw_due(&self, due: bool) {
        Self::set_thaw_due(self, due);
    }
}

/// A conversation with the agent; dropping it ends it.
pub struct Agent<'a> {
    channel: &'a dyn Channel,
    progress: &'a Progress,
    matcher: Matcher,
    /// Number of the last call.
    id: u64,
    /// A call was left without an answer: before the next one comes a sync.
    out_of_step: bool,
    patience: Duration,
}

impl<'a> Agent<'a> {
    /// Finds out whether an agent is there that can freeze. One whose port the guest has not even
    /// opened is not waited for.
    pub fn connect(channel: &'a dyn Channel, progress: &'a Progress) -> Result<Self, AgentError> {
        let mut agent = Self::begin(channel, progress, PATIENCE)?;
        agent.check_abilities()?;
        Ok(agent)
    }

    /// For calls that can wait for those who freeze.
    pub fn for_calls(channel: &'a dyn Channel, progress: &'a Progress) -> Result<Self, AgentError> {
        Self::begin_with(channel, progress, CALL_PATIENCE, (false, LINE_PATIENCE))
    }

    fn begin(
        channel: &'a dyn Channel,
        progress: &'a Progress,
        patience: Duration,
    ) -> Result<Self, AgentError> {
        Self::begin_with(channel, progress, patience, (true, PATIENCE))
    }

    fn begin_with(
        channel: &'a dyn Channel,
        progress: &'a Progress,
        patience: Duration,
        (first, turn): (bool, Duration),
    ) -> Result<Self, AgentError> {
        if !channel.is_open() {
            return Err(AgentError::Absent);
        }
        if !channel.claim(first, turn) {
            return Err(AgentError::Busy);
        }
        channel.listen();
        // Numbers of another conversation must not be taken for those of this one; and an agent
        // keeps them in a signed number.
        let id = crate::id::Id::random().map_or(1 << 40, |id| {
            id.as_bytes().iter().take(5).fold(0, |number, byte| number << 8 | u64::from(*byte))
        });
        Ok(Self { channel, progress, matcher: Matcher::sync(id), id, out_of_step: true, patience })
    }

    fn check_abilities(&mut self) -> Result<(), AgentError> {
        let info = self.call(INFO, self.patience)?;
        let commands = info.get("supported_commands").and_then(Value::as_array);
        let commands = commands.ok_or(AgentError::Senseless(INFO))?;
        for needed in [FREEZE, STATUS, THAW] {
            let offered = |one: &Value| {
                one.get("name").and_then(Value::as_str) == Some(needed)
                    && one.get("enabled").and_then(Value::as_bool) == Some(true)
            };
            if !commands.iter().any(offered) {
                return Err(AgentError::Lacks(needed));
            }
        }
        Ok(())
    }

    fn call(&mut self, call: &'static str, within: Duration) -> Result<Value, AgentError> {
        self.call_with(call, None, within)
    }

    /// The agent's answer in its documented shape.
    pub fn do_call(&mut self, call: &Call) -> Result<Value, AgentError> {
        let answer = self.call_with(call.name(), call.arguments(), self.patience)?;
        call.check(answer).ok_or(AgentError::Senseless(call.name()))
    }

    fn call_with(
        &mut self,
        call: &'static str,
        arguments: Option<Value>,
        within: Duration,
    ) -> Result<Value, AgentError> {
        let deadline = Instant::now() + within;
        if self.out_of_step {
            self.sync(call, within.min(self.patience))?;
        }
        self.id += 1;
        self.matcher.call(self.id);
        self.channel.send(&request(call, arguments, self.id));
        self.out_of_step = true;
        let answer = self.wait(call, within, deadline)?;
        self.out_of_step = matches!(answer, Answer::TooLong);
        match answer {
            Answer::Return(value) => Ok(value),
            Answer::Error { why, unsupported: true } => Err(AgentError::Forbidden { call, why }),
            Answer::Error { why, unsupported: false } => Err(AgentError::Refused { call, why }),
            Answer::TooLong => Err(AgentError::TooLong(call)),
        }
    }

    /// Leaves everything behind that the agent said or was asked before.
    fn sync(&mut self, call: &'static str, within: Duration) -> Result<(), AgentError> {
        self.id += 1;
        self.matcher = Matcher::sync(self.id);
        self.channel.send(&request(SYNC, Some(json!({ "id": self.id })), self.id));
        self.wait(call, within, Instant::now() + within)?;
        self.out_of_step = false;
        Ok(())
    }

    fn wait(
        &mut self,
        call: &'static str,
        within: Duration,
        mut deadline: Instant,
    ) -> Result<Answer, AgentError> {
        loop {
            // What is being undone goes on after a cancel.
            if self.progress.is_cancelled() && call != THAW {
                return Err(AgentError::CalledOff);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(AgentError::Silent { call, within });
            }
            match self.channel.receive(left.min(SLICE)) {
                Received::Bytes(bytes) => {
                    if let Some(answer) = self.matcher.take(&bytes) {
                        return Ok(answer);
                    }
                }
                Received::Nothing if self.channel.is_still() => deadline += SLICE,
                Received::Nothing => {}
                Received::Closed => return Err(AgentError::Gone(call)),
            }
        }
    }

    /// Freezes, does `switch`, and thaws, on every path; `switch` is only called while all is
    /// frozen, and before `limit` has passed since the freeze was asked for. An error after
    /// `switch` says that the thaw came before it.
    pub fn while_frozen<T, E>(
        &mut self,
        limit: Duration,
        switch: impl FnOnce() -> Result<T, E>,
    ) -> Frozen<T, E> {
        let begun = Instant::now();
        self.channel.set_thaw_due(true);
        let outcome = match self.freeze(limit, begun) {
            Ok(()) => Outcome::Switched(switch()),
            Err(e) => Outcome::NotFrozen(e),
        };
        let stayed = match outcome {
            Outcome::Switched(Ok(_)) => self.is_frozen(),
            _ => Ok(()),
        };
        let thawed = self.thaw();
        Frozen { outcome, stayed, thawed, took: begun.elapsed() }
    }

    fn freeze(&mut self, limit: Duration, begun: Instant) -> Result<(), AgentError> {
        let count = self.call(FREEZE, limit)?;
        match count.as_u64() {
            Some(1..) if begun.elapsed() < limit => Ok(()),
            Some(1..) => Err(AgentError::Silent { call: FREEZE, within: limit }),
            Some(0) => Err(AgentError::NothingFrozen),
            None => Err(AgentError::Senseless(FREEZE)),
        }
    }

    fn is_frozen(&mut self) -> Result<(), AgentError> {
        match self.call(STATUS, self.patience)?.as_str() {
            Some("frozen") => Ok(()),
            Some("thawed") => Err(AgentError::ThawedEarly),
            _ => Err(AgentError::Senseless(STATUS)),
        }
    }

    fn thaw(&mut self) -> Result<(), AgentError> {
        let mut thawed = Err(AgentError::Absent);
        for _ in 0..THAWS {
            thawed = self.call(THAW, self.patience).map(|_| ());
            match thawed {
                Ok(()) => {
                    self.channel.set_thaw_due(false);
                    break;
                }
                // Its port is closed: who opens it next is asked again.
                Err(AgentError::Gone(_)) => break,
                Err(_) => {}
            }
        }
        thawed
    }
}

impl Drop for Agent<'_> {
    fn drop(&mut self) {
        self.channel.hang_up();
        self.channel.release();
    }
}

/// Asks for the thaw that an earlier conversation could not get.
pub fn thaw_again(channel: &dyn Channel) -> Result<(), AgentError> {
    Agent::begin(channel, &Progress::default(), PATIENCE)?.thaw()
}

/// Puts a word for the agent on its way, to be told of when it says something. Nothing is waited
/// for, and what it answers means nothing.
pub fn poke(port: &Port) {
    port.poke(&request(SYNC, Some(json!({ "id": 0 })), 0));
}

/// How far a freeze came.
#[derive(Debug)]
pub enum Outcome<T, E> {
    NotFrozen(AgentError),
    Switched(Result<T, E>),
}

/// What came of a freeze.
#[derive(Debug)]
pub struct Frozen<T, E> {
    pub outcome: Outcome<T, E>,
    /// Whether all was still frozen after the switch.
    pub stayed: Result<(), AgentError>,
    /// An error means that the guest may be frozen still.
    pub thawed: Result<(), AgentError>,
    /// From asking for the freeze to the answer to the thaw: the guest was frozen no longer.
    pub took: Duration,
}

#[cfg(test)]
mod tests;
