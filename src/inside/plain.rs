//! Running a command in a guest without a shell, as far as its agent alone can: input goes with the
//! request, output comes at the end, and nothing ends the command.

use std::time::{Duration, Instant};

use super::exec::{Command, Ended, Host, Stream};
use super::{Guest, InsideError, meanwhile};
use crate::qga::{self, CallError, Why};

const LOOK: Duration = Duration::from_millis(20);
const WHAT: &str = "the command was running";

/// Runs it to its end. `input` is all that it reads.
pub fn run(
    guest: &mut Guest,
    command: &Command,
    input: &[u8],
    host: &mut dyn Host,
) -> Result<Ended, InsideError> {
    for (given, option) in [(command.user.is_some(), "--user"), (command.folder.is_some(), "--workdir")] {
        if given {
            return Err(InsideError::Refused(format!(
                "{option} needs a shell, and this guest has no /bin/sh"
            )));
        }
    }
    let Some((program, arg)) = command.words.split_first() else {
        return Err(InsideError::Refused("no command was given".into()));
    };
    let exec = qga::Exec {
        path: program.clone(),
        arg: arg.to_vec(),
        env: command.env.clone(),
        input: (!input.is_empty()).then(|| qga::encode(input)),
        capture: true,
    };
    let pid = match guest.exec(exec) {
        Ok(pid) => pid,
        Err(InsideError::Call(CallError { why: Why::Refused, text })) if super::is_missing(&text) => {
            host.print(Stream::Err, format!("piton: the guest has no program `{program}`\n").as_bytes());
            return Ok(Ended { code: 127, timed_out: false });
        }
        Err(e) => return Err(e),
    };
    let deadline = command.timeout.map(|time| Instant::now() + time);
    loop {
        let status = guest.exec_status(pid).map_err(|e| meanwhile(WHAT, e))?;
        if status.exited {
            return Ok(tell(&status, host));
        }
        if host.signal().is_some() {
            return Err(InsideError::Refused(
                "this guest has no /bin/sh, so the command cannot be killed and keeps running".into(),
            ));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(InsideError::Refused(
                "the command did not finish in time; this guest has no /bin/sh, so it keeps running".into(),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

fn tell(status: &qga::ExecStatus, host: &mut dyn Host) -> Ended {
    for (stream, data, truncated) in
        [(Stream::Out, &status.out, status.out_truncated), (Stream::Err, &status.err, status.err_truncated)]
    {
        let bytes = data.as_deref().and_then(qga::decode).unwrap_or_default();
        host.print(stream, &bytes);
        if truncated == Some(true) {
            log::warn!("the guest agent kept only the first {} bytes of the output", bytes.len());
        }
    }
    let code = match (status.signal, status.exitcode) {
        (Some(signal), _) => 128 + signal,
        (None, code) => code.unwrap_or(0),
    };
    Ended { code: u8::try_from(code).unwrap_or(255), timed_out: false }
}
