//! What is watched, and waited for.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use chrono::{DateTime, Utc};
use clap::Args;

use super::seconds::parse_seconds;
use crate::folder::VmName;
use crate::moment::parse_instant;

#[derive(Debug, Args)]
pub struct LogsArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// Keep printing new output until the VM stops
    #[arg(long, short)]
    pub follow: bool,
    /// Print only the last N lines
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,
    /// Print only lines from this time on: 10m, 2h, 14:30, `2026-01-31 14:30` or 2026-01-31T14:30:00Z
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<DateTime<Utc>>,
    /// Print the time of each line before it
    #[arg(long, short)]
    pub timestamps: bool,
}

fn parse_since(text: &str) -> Result<DateTime<Utc>, String> {
    parse_instant(text, Utc::now())
}

#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only of these VMs [default: all]
    #[arg(value_name = "VM")]
    pub names: Vec<VmName>,
    /// Go on with what happens until interrupted
    #[arg(long, short)]
    pub follow: bool,
    /// Only so many of the last events
    #[arg(long, short = 'n', value_name = "N")]
    pub tail: Option<usize>,
}

#[derive(Debug, Args)]
pub struct ApiArgs {
    /// Path of the socket [default: `.api.sock` in the folder of VMs]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Do not restrict the system calls of this command
    #[arg(long)]
    pub no_seccomp: bool,
}

#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Only of these VMs [default: all]
    #[arg(value_name = "VM", conflicts_with = "listen")]
    pub names: Vec<VmName>,
    /// Serve the metrics of all VMs at http://ADDRESS:PORT/metrics; without ADDRESS, on 127.0.0.1
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = parse_address)]
    pub listen: Option<SocketAddr>,
    /// Takes the place of the option that all other commands have.
    #[arg(id = "json", long = "json", hide = true)]
    pub no_json: bool,
}

/// An address and a port, or a port of this host.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let loopback = |port: u16| SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    text.parse()
        .or_else(|_| text.strip_prefix(':').unwrap_or(text).parse().map(loopback))
        .map_err(|_| format!("`{}` is not an address: use ADDRESS:PORT or PORT", text.escape_debug()))
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    #[arg(value_name = "VM")]
    pub name: VmName,
    /// running, paused, stopped, agent (the guest's agent responds), or exec=COMMAND (a shell command in
    /// the guest exits with 0)
    #[arg(long = "for", value_name = "STATE")]
    pub until: WaitFor,
    /// Give up after this time [default: never]
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub timeout: Option<Duration>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitFor {
    Running,
    Paused,
    Stopped,
    Agent,
    Exec(String),
}

impl std::str::FromStr for WaitFor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "running" => Self::Running,
            "paused" => Self::Paused,
            "stopped" => Self::Stopped,
            "agent" => Self::Agent,
            _ => match text.strip_prefix("exec=") {
                Some(command) if !command.is_empty() => Self::Exec(command.into()),
                _ => return Err("use running, paused, stopped, agent or exec=COMMAND".into()),
            },
        })
    }
}
