//! Work that takes a while: shows how far it is, and lets a signal cancel it.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Context;
use hyper::Method;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;
use signal_hook::flag;

use super::error::{FAILED, Told};
use super::out;
use super::signals::ending;
use super::units::size;
use crate::control::client::{self, ClientError, Wait};
use crate::control::jobs::JobInfo;
use crate::id::Id;
use crate::progress::Progress;

/// How often the work is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Work that is done by then says nothing of itself.
const QUIET: Duration = Duration::from_secs(1);

/// The meter tells of the work.
const QUIETLY: Wait = Wait { within: None, quietly: true };

/// Takes the signals that end piton from here on; a second one does so as if none had been taken.
struct Interrupt(Arc<AtomicBool>);

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Whether signals that end piton are, or were, taken by work of this process.
pub fn takes_signals() -> bool {
    TAKEN.load(Ordering::SeqCst)
}

impl Interrupt {
    fn take() -> anyhow::Result<Self> {
        TAKEN.store(true, Ordering::SeqCst);
        let asked = Arc::new(AtomicBool::new(false));
        for signal in ending() {
            flag::register_conditional_default(signal, asked.clone())
                .and_then(|_| flag::register(signal, asked.clone()))
                .context("cannot set up signal handling")?;
        }
        Ok(Self(asked))
    }

    fn came(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One line on the terminal that is written over again and again; none where nobody looks. A program
/// that started this one may want lines of JSON instead (`PITON_PROGRESS=json`).
struct Meter {
    began: Instant,
    seen: bool,
    shown: bool,
    lines: bool,
}

impl Meter {
    fn new() -> Self {
        let lines = std::env::var_os("PITON_PROGRESS").is_some_and(|how| how == "json");
        Self { began: Instant::now(), seen: std::io::stderr().is_terminal(), shown: false, lines }
    }

    fn is_due(&self) -> bool {
        self.lines || self.seen && self.began.elapsed() >= QUIET
    }

    fn show(&mut self, phase: &str, done: u64, total: u64, rate: u64, cancelling: bool) {
        if self.lines {
            let far = serde_json::json!({"phase": phase, "done": done, "total": total, "rate": rate});
            return out::to_stderr(&format!("{}\n", serde_json::json!({ "progress": far })));
        }
        self.shown = true;
        let line = line(phase, done, total, rate, cancelling);
        out::to_stderr(&format!("\r\x1b[K{}", out::harmless(&line)));
    }

    fn show_job(&mut self, job: &JobInfo) {
        self.show(&job.phase, job.done, job.total, job.rate, job.cancelling);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        if self.shown {
            out::to_stderr("\r\x1b[K");
        }
    }
}

/// How far work is, in a line.
pub fn line(phase: &str, done: u64, total: u64, rate: u64, cancelling: bool) -> String {
    let phase = if phase.is_empty() { "waiting" } else { phase };
    let mut line = phase.to_owned();
    if total > 0 {
        line += &format!(": {} of {} ({} %)", size(done), size(total), done.min(total) * 100 / total);
    } else if done > 0 {
        line += &format!(": {}", size(done));
    }
    if rate > 0 {
        line += &format!(", {}/s", size(rate));
    }
    if cancelling {
        line += ", cancelling";
    }
    line
}

fn job_path(job: Id) -> String {
    format!("/vm/jobs/{job}")
}

/// The body with the fields that make it a job of this id.
fn as_job(body: &impl Serialize, fields: &[(&str, serde_json::Value)]) -> anyhow::Result<Vec<u8>> {
    let mut body = serde_json::to_value(body)?;
    if let Some(object) = body.as_object_mut() {
        object.extend(fields.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    }
    Ok(serde_json::to_vec(&body)?)
}

/// Asks a running VM for long work and waits for its answer; none if it does not run.
pub fn ask<T: DeserializeOwned + Send>(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> anyhow::Result<Option<T>> {
    if matches!(socket.try_exists(), Ok(false)) {
        // Off, and no thread has to find that out.
        return Ok(None);
    }
    let job = Id::random().context("cannot get random bytes")?;
    let body = as_job(body, &[("job", serde_json::json!(job))])?;
    let interrupt = Interrupt::take()?;
    let mut meter = Meter::new();
    let (sender, answer) = channel();
    let answer = std::thread::scope(|scope| {
        scope.spawn(move || {
            // The receiver waits for just this.
            let _ = sender.send(client::ask::<T>(socket, method, path, Some(body), QUIETLY));
        });
        let mut cancelled = false;
        loop {
            match answer.recv_timeout(LOOK) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(ClientError::Broken("no response was received".into()));
                }
            }
            if interrupt.came() && !cancelled {
                // Refused only as long as the VM does not know of it.
                let asked = client::delete::<JobInfo>(socket, &job_path(job), &());
                cancelled = asked.is_ok();
            }
            if meter.is_due()
                && let Ok(job) = client::ask::<JobInfo>(socket, Method::GET, &job_path(job), None, QUIETLY)
            {
                meter.show_job(&job);
            }
        }
    });
    drop(meter);
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(ClientError::NotRunning) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Asks a running VM for long work and does not wait for it.
pub fn ask_for_later(
    socket: &Path,
    method: Method,
    path: &str,
    body: &impl Serialize,
) -> Result<JobInfo, ClientError> {
    let body = as_job(body, &[("no_wait", true.into())]).map_err(|e| ClientError::Broken(e.to_string()))?;
    client::ask(socket, method, path, Some(body), QUIETLY)
}

/// Waits for a job until it is over; a signal cancels it. None if the VM ended meanwhile.
pub fn watch(socket: &Path, job: Id) -> anyhow::Result<Option<JobInfo>> {
    let interrupt = Interrupt::take()?;
    let mut meter = Meter::new();
    let mut cancelled = false;
    loop {
        let info = match client::ask::<JobInfo>(socket, Method::GET, &job_path(job), None, QUIETLY) {
            Ok(info) => info,
            Err(ClientError::NotRunning) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        if info.state.is_over() {
            return Ok(Some(info));
        }
        if interrupt.came() && !cancelled {
            // Over by now, perhaps; the next look tells.
            cancelled = client::delete::<JobInfo>(socket, &job_path(job), &()).is_ok();
        }
        if meter.is_due() {
            meter.show_job(&info);
        }
        std::thread::sleep(LOOK);
    }
}

/// Does long work in this process.
pub fn here<T>(work: impl FnOnce(&Progress) -> T) -> anyhow::Result<T> {
    let interrupt = Interrupt::take()?;
    let progress = Progress::default();
    let (working, done) = channel::<()>();
    Ok(std::thread::scope(|scope| {
        let watched = &progress;
        scope.spawn(move || {
            let mut meter = Meter::new();
            while done.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if interrupt.came() {
                    watched.cancel();
                }
                if meter.is_due() {
                    let now = watched.snapshot();
                    let (rate, cancelled) = (watched.rate(), watched.is_cancelled());
                    meter.show(now.phase, now.done, now.total, rate, cancelled);
                }
            }
        });
        let result = work(&progress);
        drop(working);
        result
    }))
}

/// Runs piton once more with these words, which shows for itself how far it is; Ctrl-C calls it off.
pub fn in_a_process(words: impl IntoIterator<Item = OsString>) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("cannot find the piton executable")?;
    let interrupt = Interrupt::take()?;
    let mut child = Command::new(program).args(words).spawn().context("cannot start piton")?;
    let mut told = false;
    let status = loop {
        if let Some(status) = child.try_wait().context("lost track of the other process")? {
            break status;
        }
        if interrupt.came() && !std::mem::replace(&mut told, true) {
            // A terminal tells both of them; that it ended meanwhile is seen next.
            let child = i32::try_from(child.id()).map(Pid::from_raw);
            let _ = child.map(|child| kill(child, Signal::SIGINT));
        }
        std::thread::sleep(LOOK);
    };
    match status.code() {
        Some(0) => Ok(()),
        code => Err(Told { code: code.and_then(|code| u8::try_from(code).ok()).unwrap_or(FAILED) }.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_is_known() {
        assert_eq!(line("", 0, 0, 0, false), "waiting");
        assert_eq!(line("memory", 5 << 20, 0, 0, false), "memory: 5 MiB");
        assert_eq!(
            line("memory", 512 << 20, 2 << 30, 3 << 20, true),
            "memory: 512 MiB of 2 GiB (25 %), 3 MiB/s, cancelling"
        );
    }
}
