//! What can be asked of a guest's agent beside freezing, and the shapes of its answers.
//!
//! Source: QEMU's docs/interop/qemu-ga-ref. An answer is a guest's word: [`Call::check`] bounds it
//! before anybody uses it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Most bytes of a file in one call.
pub const CHUNK_MAX: usize = 128 << 10;
/// Most bytes of all arguments of a command, and of a path.
pub const ARGS_MAX: usize = 128 << 10;
pub const PATH_MAX: usize = 4096;
/// Most commands that an agent is believed to know, and the length of a name.
const COMMANDS_MAX: usize = 256;
const NAME_MAX: usize = 64;

/// A call to the agent, as the protocol spells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "execute", content = "arguments", deny_unknown_fields)]
pub enum Call {
    #[serde(rename = "guest-info")]
    Info,
    #[serde(rename = "guest-exec")]
    Exec(Exec),
    #[serde(rename = "guest-exec-status")]
    ExecStatus(Pid),
    #[serde(rename = "guest-file-open")]
    Open(Open),
    #[serde(rename = "guest-file-read")]
    Read(Read),
    #[serde(rename = "guest-file-write")]
    Write(Write),
    #[serde(rename = "guest-file-seek")]
    Seek(Seek),
    #[serde(rename = "guest-file-flush")]
    Flush(Handle),
    #[serde(rename = "guest-file-close")]
    Close(Handle),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    pub path: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arg: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// What the command reads; base64.
    #[serde(default, rename = "input-data", skip_serializing_if = "Option::is_none")]
    pub input: Option<String>,
    /// Whether the agent keeps what it prints.
    #[serde(default, rename = "capture-output", skip_serializing_if = "std::ops::Not::not")]
    pub capture: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pid {
    pub pid: i64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    pub path: String,
    /// As of `fopen`: `r`, `w`, `a`, `r+`.
    pub mode: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Handle {
    pub handle: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Read {
    pub handle: i64,
    pub count: usize,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    pub handle: i64,
    #[serde(rename = "buf-b64")]
    pub data: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seek {
    pub handle: i64,
    pub offset: i64,
    pub whence: Whence,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Whence {
    Set,
    Cur,
    End,
}

/// What `guest-info` tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Info {
    #[serde(default)]
    pub version: String,
    pub supported_commands: Vec<Command>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Command {
    pub name: String,
    pub enabled: bool,
}

impl Info {
    /// None: the agent does not know it.
    pub fn allows(&self, name: &str) -> Option<bool> {
        self.supported_commands.iter().find(|command| command.name == name).map(|command| command.enabled)
    }
}

/// What `guest-exec-status` tells.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStatus {
    pub exited: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exitcode: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i64>,
    /// base64, as all data here.
    #[serde(default, rename = "out-data", skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
    #[serde(default, rename = "err-data", skip_serializing_if = "Option::is_none")]
    pub err: Option<String>,
    #[serde(default, rename = "out-truncated", skip_serializing_if = "Option::is_none")]
    pub out_truncated: Option<bool>,
    #[serde(default, rename = "err-truncated", skip_serializing_if = "Option::is_none")]
    pub err_truncated: Option<bool>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    pub count: usize,
    #[serde(default, rename = "buf-b64")]
    pub data: String,
    pub eof: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Written {
    pub count: usize,
    pub eof: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub position: u64,
    pub eof: bool,
}

/// Why a call did not do what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// No agent has the port open.
    Absent,
    /// It went away in the middle, or what it said means nothing.
    Broken,
    /// It did not answer in time.
    Silent,
    /// It tried, and says why it could not.
    Refused,
    /// It does not know the call, or is told not to do it.
    Forbidden,
    /// The guest is paused or frozen: nothing was tried, and later it may work.
    Locked,
    /// The guest that was asked is no more: it went back to a checkpoint, or was restarted.
    WentBack,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct CallError {
    pub why: Why,
    pub text: String,
}

impl CallError {
    pub fn new(why: Why, text: impl Into<String>) -> Self {
        Self { why, text: text.into() }
    }
}

pub fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// None: it is no base64.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

impl Call {
    pub fn name(&self) -> &'static str {
        match self {
            Self::Info => "guest-info",
            Self::Exec(_) => "guest-exec",
            Self::ExecStatus(_) => "guest-exec-status",
            Self::Open(_) => "guest-file-open",
            Self::Read(_) => "guest-file-read",
            Self::Write(_) => "guest-file-write",
            Self::Seek(_) => "guest-file-seek",
            Self::Flush(_) => "guest-file-flush",
            Self::Close(_) => "guest-file-close",
        }
    }

    pub fn arguments(&self) -> Option<Value> {
        let object = serde_json::to_value(self).ok()?;
        object.get("arguments").cloned()
    }

    /// Whether it may be sent; else a sentence.
    pub fn allowed(&self) -> Result<(), String> {
        let too_long = |what: &str, most: usize| Err(format!("{what} is too long: at most {most} bytes"));
        match self {
            Self::Exec(exec) => {
                let texts = exec.arg.iter().chain(&exec.env);
                if exec.path.len() > PATH_MAX {
                    too_long("`path`", PATH_MAX)
                } else if texts.map(|text| text.len() + 1).sum::<usize>() > ARGS_MAX {
                    too_long("`arg` with `env`", ARGS_MAX)
                } else {
                    exec.input.as_deref().map_or(Ok(()), |data| sendable("input-data", data))
                }
            }
            Self::Open(open) if open.path.len() > PATH_MAX => too_long("`path`", PATH_MAX),
            Self::Open(open) if !["r", "w", "a", "r+", "w+", "a+"].contains(&open.mode.as_str()) => {
                Err("`mode` must be one of r, w, a, r+, w+, a+".into())
            }
            Self::Read(read) if !(1..=CHUNK_MAX).contains(&read.count) => {
                Err(format!("`count` must be 1 to {CHUNK_MAX} bytes"))
            }
            Self::Write(write) => sendable("buf-b64", &write.data),
            _ => Ok(()),
        }
    }

    /// The answer in its documented shape and within its bounds; none if it is no answer to this.
    pub fn check(&self, answer: Value) -> Option<Value> {
        fn typed<T: for<'de> Deserialize<'de>>(answer: Value) -> Option<T> {
            serde_json::from_value(answer).ok()
        }
        let checked = match self {
            Self::Info => {
                let mut info: Info = typed(answer)?;
                info.version.retain(|c| !c.is_control());
                if info.version.len() > NAME_MAX || info.supported_commands.len() > COMMANDS_MAX {
                    return None;
                }
                info.supported_commands.retain(|one| {
                    one.name.len() <= NAME_MAX
                        && one.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
                });
                serde_json::to_value(info)
            }
            Self::Exec(_) => serde_json::to_value(typed::<Pid>(answer)?),
            Self::ExecStatus(_) => {
                let status: ExecStatus = typed(answer)?;
                for data in [&status.out, &status.err].into_iter().flatten() {
                    decode(data)?;
                }
                serde_json::to_value(status)
            }
            Self::Open(_) => serde_json::to_value(answer.as_i64()?),
            Self::Read(read) => {
                let bytes: Bytes = typed(answer)?;
                if bytes.count > read.count || decode(&bytes.data)?.len() != bytes.count {
                    return None;
                }
                serde_json::to_value(bytes)
            }
            Self::Write(write) => {
                let written: Written = typed(answer)?;
                if written.count > decode(&write.data)?.len() {
                    return None;
                }
                serde_json::to_value(written)
            }
            Self::Seek(_) => serde_json::to_value(typed::<Position>(answer)?),
            Self::Flush(_) | Self::Close(_) => {
                answer.as_object()?;
                Ok(Value::Object(serde_json::Map::new()))
            }
        };
        checked.ok()
    }
}

fn sendable(field: &str, data: &str) -> Result<(), String> {
    match decode(data) {
        None => Err(format!("`{field}` is not base64")),
        Some(bytes) if bytes.len() > CHUNK_MAX => {
            Err(format!("`{field}` is too long: at most {CHUNK_MAX} bytes at a time"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn calls_are_spelled_as_the_protocol_has_them() {
        let exec = json!({"execute": "guest-exec", "arguments": {
            "path": "/bin/ls", "arg": ["-l"], "capture-output": true}});
        let call: Call = serde_json::from_value(exec.clone()).unwrap();
        assert_eq!(serde_json::to_value(&call).unwrap(), exec);
        assert_eq!((call.name(), call.arguments()), ("guest-exec", Some(exec["arguments"].clone())));
        let info: Call = serde_json::from_value(json!({"execute": "guest-info"})).unwrap();
        assert_eq!((info.name(), info.arguments()), ("guest-info", None));
        for wrong in [
            json!({"execute": "guest-shutdown"}),
            json!({"execute": "guest-fsfreeze-freeze"}),
            json!({"execute": "guest-exec", "arguments": {"path": "x", "more": 1}}),
            json!({"execute": "guest-file-close"}),
        ] {
            assert!(serde_json::from_value::<Call>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn answers_that_lie_are_none() {
        let read = Call::Read(Read { handle: 1, count: 4 });
        let honest = json!({"count": 3, "buf-b64": "YWJj", "eof": true});
        assert_eq!(read.check(honest.clone()), Some(honest));
        for lie in [
            json!({"count": 2, "buf-b64": "YWJj", "eof": true}),
            json!({"count": 6, "buf-b64": "YWJjYWJj", "eof": true}),
            json!({"count": 3, "buf-b64": "YWJ", "eof": true}),
            json!({"count": -3, "buf-b64": "YWJj", "eof": true}),
            json!("YWJj"),
        ] {
            assert_eq!(read.check(lie.clone()), None, "{lie}");
        }
        let write = Call::Write(Write { handle: 1, data: encode(b"abc") });
        assert!(write.check(json!({"count": 3, "eof": false})).is_some());
        assert_eq!(write.check(json!({"count": 4, "eof": false})), None, "more than there was");
        let names = json!({"supported_commands": [
            {"name": "guest-exec", "enabled": false}, {"name": "\u{1b}[2J", "enabled": true}]});
        let info: Info = serde_json::from_value(Call::Info.check(names).unwrap()).unwrap();
        assert_eq!((info.allows("guest-exec"), info.allows("guest-ping")), (Some(false), None));
        assert_eq!(info.supported_commands.len(), 1);
    }

    #[test]
    fn what_is_sent_has_bounds() {
        let long = "x".repeat(ARGS_MAX);
        let exec = |arg: Vec<String>| Call::Exec(Exec { path: "p".into(), arg, ..Exec::default() });
        assert!(exec(vec![long[1..].into()]).allowed().is_ok());
        assert!(exec(vec![long]).allowed().is_err());
        let write = |data: String| Call::Write(Write { handle: 0, data }).allowed();
        assert!(write(encode(&vec![0; CHUNK_MAX])).is_ok());
        assert!(write(encode(&vec![0; CHUNK_MAX + 1])).unwrap_err().contains("too long"));
        assert!(write("!".into()).unwrap_err().contains("base64"));
        assert!(Call::Read(Read { handle: 0, count: 0 }).allowed().is_err());
        assert!(Call::Open(Open { path: "/x".into(), mode: "rw".into() }).allowed().is_err());
    }
}
