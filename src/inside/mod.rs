//! What is done inside of a guest over its agent: running commands and copying files. In the process
//! of the command; a VM only passes short calls on.
//!
//! All answers are a guest's word. None of them names a place on the host.

pub mod copy;
pub mod exec;
mod find;
pub mod identity;
pub mod plain;
pub mod tar;

use serde::de::DeserializeOwned;

use crate::control::agent_line::{AgentLine, LineError};
use crate::control::client::ClientError;
use crate::qga::{self, Call, CallError, Info, Why};

/// Between two tries of a call that the guest cannot answer now.
const RETRY: std::time::Duration = std::time::Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum InsideError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{0}")]
    Call(CallError),
    #[error(
        "the guest does not allow {what}: its agent may not run {call} (in the guest, see \
         /etc/sysconfig/qemu-ga, /etc/qemu/qemu-ga.conf or the options of qemu-ga)"
    )]
    Forbidden { what: &'static str, call: &'static str },
    #[error("{text} while {what}, so its result is lost")]
    WentBack { what: &'static str, text: String },
    #[error("{text} while {what}; whether it was completed is not known")]
    Lost { what: &'static str, text: String },
    #[error("the command cannot be started in the guest: {0}")]
    NotBegun(String),
    #[error("tar in the guest failed: {said} (exit code {code}), so not everything was copied as it is")]
    Tar { said: String, code: u8 },
    #[error("{0}")]
    Refused(String),
    #[error("{what}: {error}")]
    Host { what: String, error: std::io::Error },
    #[error("it was cancelled")]
    Cancelled,
}

impl InsideError {
    /// Nothing was tried.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Client(e) => matches!(e, ClientError::NotRunning | ClientError::Request(_)),
            Self::Call(e) => matches!(e.why, Why::Absent | Why::Forbidden | Why::Locked),
            Self::Forbidden { .. } | Self::Refused(_) => true,
            _ => false,
        }
    }
}

impl From<LineError> for InsideError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Client(e) => Self::Client(e),
            LineError::Call(e) => Self::Call(e),
        }
    }
}

/// A guest whose agent can be called.
pub struct Guest {
    line: AgentLine,
    info: Info,
    /// It was said that the guest is waited for.
    told: bool,
}

impl Guest {
    /// Finds out whether there is an agent that may do all of `needed`, for what it is called.
    pub fn connect(
        mut line: AgentLine,
        needed: &[&'static str],
        what: &'static str,
    ) -> Result<Self, InsideError> {
        let info: Info = line.call(&Call::Info)?;
        for call in needed {
            if info.allows(call) != Some(true) {
                return Err(InsideError::Forbidden { what, call });
            }
        }
        Ok(Self { line, info, told: false })
    }

    pub fn allows(&self, call: &str) -> bool {
        self.info.allows(call) == Some(true)
    }

    /// The same guest for another thread.
    pub fn another(&self) -> Result<Self, InsideError> {
        Ok(Self { line: self.line.another()?, info: self.info.clone(), told: self.told })
    }

    /// Makes a call; of a guest that is paused or frozen, when it is no more.
    pub fn call<T: DeserializeOwned>(&mut self, call: &Call) -> Result<T, InsideError> {
        loop {
            match self.line.call(call) {
                Ok(answer) => return Ok(answer),
                Err(LineError::Call(CallError { why: Why::Locked, text })) => {
                    if !std::mem::replace(&mut self.told, true) {
                        log::warn!("{}: waiting", text.trim_end_matches(": resume it first"));
                    }
                    std::thread::sleep(RETRY);
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    pub fn open(&mut self, path: &str, mode: &str) -> Result<i64, InsideError> {
        self.call(&Call::Open(qga::Open { path: path.into(), mode: mode.into() }))
    }

    /// None: there is no such file.
    pub fn open_if_there(&mut self, path: &str) -> Result<Option<i64>, InsideError> {
        match self.open(path, "r") {
            Ok(handle) => Ok(Some(handle)),
            Err(InsideError::Call(CallError { why: Why::Refused, text })) if is_missing(&text) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Bytes of a file from where it was read last; none at its end, as it is now.
    pub fn read(&mut self, handle: i64) -> Result<Vec<u8>, InsideError> {
        let answer: qga::Bytes = self.call(&Call::Read(qga::Read { handle, count: qga::CHUNK_MAX }))?;
        // Checked where it came in, too; this process believes nobody.
        qga::decode(&answer.data).filter(|bytes| bytes.len() <= qga::CHUNK_MAX).ok_or_else(|| {
            InsideError::Call(CallError::new(Why::Broken, "the guest agent gave an invalid response"))
        })
    }

    pub fn write(&mut self, handle: i64, bytes: &[u8]) -> Result<(), InsideError> {
        let mut left = bytes;
        while !left.is_empty() {
            let part = &left[..left.len().min(qga::CHUNK_MAX)];
            let written: qga::Written =
                self.call(&Call::Write(qga::Write { handle, data: qga::encode(part) }))?;
            if written.count == 0 || written.count > part.len() {
                let text = "the guest agent wrote nothing and gave no reason";
                return Err(InsideError::Call(CallError::new(Why::Broken, text)));
            }
            left = &left[written.count..];
        }
        Ok(())
    }

    pub fn close(&mut self, handle: i64) -> Result<(), InsideError> {
        self.call::<serde_json::Value>(&Call::Close(qga::Handle { handle })).map(|_| ())
    }

    /// A file with these bytes in place of what was there.
    pub fn put(&mut self, path: &str, bytes: &[u8]) -> Result<(), InsideError> {
        let handle = self.open(path, "w")?;
        let written = self.write(handle, bytes);
        // What was buffered is written here, or fails here.
        let closed = self.close(handle);
        written.and(closed)
    }

    pub fn exec(&mut self, exec: qga::Exec) -> Result<i64, InsideError> {
        let pid: qga::Pid = self.call(&Call::Exec(exec))?;
        Ok(pid.pid)
    }

    pub fn exec_status(&mut self, pid: i64) -> Result<qga::ExecStatus, InsideError> {
        self.call(&Call::ExecStatus(qga::Pid { pid }))
    }

    /// Whether the guest has a shell at the place where all Unixes have one.
    pub fn has_shell(&mut self) -> Result<bool, InsideError> {
        let Some(handle) = self.open_if_there(SHELL)? else { return Ok(false) };
        self.close(handle)?;
        Ok(true)
    }
}

pub const SHELL: &str = "/bin/sh";

/// Whether an agent's own words tell that there is no such file.
pub fn is_missing(text: &str) -> bool {
    text.contains("No such file or directory")
}

/// After a command has begun: what an error means for it.
pub fn meanwhile(what: &'static str, error: InsideError) -> InsideError {
    match error {
        InsideError::Call(e) if e.why == Why::WentBack => {
            InsideError::WentBack { what, text: e.text.trim_end_matches(" in the meantime").to_owned() }
        }
        InsideError::Call(CallError { why: Why::Absent | Why::Broken | Why::Silent, text }) => {
            InsideError::Lost { what, text }
        }
        InsideError::Call(CallError { why: Why::Refused, text }) if text.contains("has not been found") => {
            InsideError::Lost { what, text: "the guest agent was restarted".into() }
        }
        InsideError::Client(ClientError::NotRunning | ClientError::Ended) => {
            InsideError::Lost { what, text: "the VM ended".into() }
        }
        other => other,
    }
}
