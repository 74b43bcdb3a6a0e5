//! `piton wait`.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::args::{WaitArgs, WaitFor};
use super::out::{self, outln};
use super::{manage, named};
use crate::control::State;
use crate::control::agent_line::AgentLine;
use crate::inside::exec::{self, Command, Host, Signal, Stream};
use crate::inside::{Guest, InsideError};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);
/// Longest time that one try of a command may take.
const TRY: Duration = Duration::from_secs(60);

/// Whom a try's output is nothing to.
struct Nobody;

impl Host for Nobody {
    fn print(&mut self, _: Stream, _: &[u8]) -> bool {
        true
    }
    fn signal(&mut self) -> Option<Signal> {
        None
    }
}

/// Waits until the VM is as asked for.
pub fn run(args: &WaitArgs, json: bool) -> anyhow::Result<()> {
    let folder = named::existing(&args.name)?;
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    loop {
        let info = manage::info(&folder)?;
        let running = info.state == State::Running;
        let reached = match &args.until {
            WaitFor::Running => running,
            WaitFor::Paused => info.state == State::Paused,
            WaitFor::Stopped => info.state == State::Stopped,
            WaitFor::Agent => running && answers(&folder),
            WaitFor::Exec(command) => {
                let left =
                    deadline.map_or(TRY, |deadline| deadline.saturating_duration_since(Instant::now()));
                running && succeeds(&folder, command, left, &mut Nobody)
            }
        };
        if reached {
            match json {
                true => out::json(&serde_json::json!(info)),
                false => outln!("the VM `{}` is {}", info.name, info.state),
            }
            return Ok(());
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(anyhow!(
                "the VM `{}` is {}, and did not reach the state that was waited for in time",
                info.name,
                info.state
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn guest(folder: &crate::folder::VmFolder) -> Result<Guest, InsideError> {
    Guest::connect(AgentLine::new(&folder.socket())?, &[], "this")
}

pub fn answers(folder: &crate::folder::VmFolder) -> bool {
    guest(folder).is_ok()
}

/// Whether the shell command ends with 0. That it cannot be run yet is why somebody waits.
pub fn succeeds(
    folder: &crate::folder::VmFolder,
    command: &str,
    left: Duration,
    host: &mut impl Host,
) -> bool {
    let words = ["/bin/sh", "-c", command].map(str::to_owned).to_vec();
    let command = Command { words, timeout: Some(left.min(TRY)), ..Command::default() };
    let tried =
        guest(folder).and_then(|mut guest| match guest.allows("guest-exec") && guest.has_shell()? {
            true => exec::run(&mut guest, &command, None, host),
            false => Err(InsideError::Refused("there is no shell".into())),
        });
    tried.is_ok_and(|ended| ended.code == 0)
}
