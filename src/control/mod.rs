//! What can be asked of a running VM, and the HTTP that carries it. Knows no machine: whoever
//! owns one answers the [`Request`]s.

pub mod client;
pub mod server;

use serde::{Deserialize, Serialize};

use crate::config::VmConfig;
use crate::folder::VmName;

/// Value of the `Upgrade` header that turns a request for the console into a byte stream.
pub const CONSOLE_PROTOCOL: &str = "piton-console";

/// A request to the owner of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    Show,
    Pause,
    Resume,
    /// Press the power button, or with `force` end the VM at once.
    Stop {
        force: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Running,
    Paused,
    Stopped,
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A VM as `GET /vm` and `piton show --json` tell it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    pub name: VmName,
    pub state: State,
    /// Process that runs it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    pub created: chrono::DateTime<chrono::Utc>,
    pub folder: std::path::PathBuf,
    pub config: VmConfig,
}

/// Why a request was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Nothing was tried.
    #[error("{0}")]
    Refused(String),
    /// It was tried and undone.
    #[error("{0}")]
    Failed(String),
}

pub type Answer = Result<VmInfo, RequestError>;

/// Body of `POST /vm/stop`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopBody {
    #[serde(default)]
    pub force: bool,
}

/// Body of every answer that is an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}
