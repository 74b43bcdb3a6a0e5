//! Deeds under way and done: each is a piton of its own, which goes on whatever becomes of the page
//! that asked for it, or of the manager.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Serialize;
use serde_json::Value;
use tokio::sync::watch;

use super::deed::{Deed, DeedError};
use crate::folder::VmName;
use crate::id::Id;

/// Finished ones that are still told of.
const KEPT: usize = 64;
/// At one time; each is a process.
const RUNNING_MAX: usize = 32;
/// Most that is read of what one prints.
const OUTPUT_MAX: u64 = 8 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionState {
    Running,
    Done,
    Failed,
    Cancelled,
}

/// As `GET /api/actions/{action}` tells it.
#[derive(Debug, Clone, Serialize)]
pub struct Action {
    pub id: Id,
    #[serde(rename = "do")]
    pub kind: &'static str,
    pub vm: VmName,
    pub state: ActionState,
    /// It was asked to stop; it may be too late for that.
    pub cancelling: bool,
    pub began: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<DateTime<Utc>>,
    /// What the command prints with `--json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<Value>,
    /// Why it was not done, in a sentence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What else the command had to say.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    #[error(transparent)]
    Deed(#[from] DeedError),
    #[error("{RUNNING_MAX} actions are already running: wait until one of them is done")]
    TooMany,
    #[error("cannot start piton: {0}")]
    Start(std::io::Error),
    #[error("there is no action `{0}`")]
    Unknown(String),
    #[error("this action has finished: there is nothing to cancel")]
    Over,
}

struct Entry {
    action: Action,
    /// None: it is over.
    process: Option<OwnedFd>,
}

/// A clone is the same list.
#[derive(Clone)]
pub struct Actions {
    program: PathBuf,
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Sent to with each change.
    changed: watch::Sender<()>,
}

impl Actions {
    pub fn new(program: PathBuf) -> Self {
        Self { program, entries: Arc::default(), changed: watch::Sender::new(()) }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told of each change.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Oldest first.
    pub fn list(&self) -> Vec<Action> {
        self.entries().iter().map(|entry| entry.action.clone()).collect()
    }

    pub fn find(&self, id: &str) -> Result<Action, ActionError> {
        let entries = self.entries();
        let found = entries.iter().find(|entry| entry.action.id.to_string() == id);
        found.map(|entry| entry.action.clone()).ok_or_else(|| ActionError::Unknown(id.to_owned()))
    }

    /// Begins; to be called where waiting is no harm.
    pub fn begin(&self, deed: &Deed) -> Result<Action, ActionError> {
        let words = deed.words()?;
        let id = Id::random().map_err(|e| ActionError::Start(std::io::Error::other(e)))?;
        let mut entries = self.entries();
        if entries.iter().filter(|entry| entry.process.is_some()).count() >= RUNNING_MAX {
            return Err(ActionError::TooMany);
        }
        let mut command = Command::new(&self.program);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C at the manager's terminal is not meant for it.
        command.process_group(0);
        let mut child = command.spawn().map_err(ActionError::Start)?;
        let process = match open(&child) {
            Ok(process) => process,
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(ActionError::Start(e));
            }
        };
        let action = Action {
            id,
            kind: deed.kind(),
            vm: deed.vm().clone(),
            state: ActionState::Running,
            cancelling: false,
            began: Utc::now(),
            finished: None,
            result: None,
            error: None,
            notes: Vec::new(),
        };
        entries.push(Entry { action: action.clone(), process: Some(process) });
        drop(entries);
        self.changed.send_replace(());
        let actions = self.clone();
        let watcher = std::thread::Builder::new().name("action".into()).spawn(move || {
            let ended = wait(child);
            actions.finish(id, ended);
        });
        if let Err(e) = watcher {
            // It goes on, and nobody will know how it ended.
            self.finish(id, Ended { code: None, stdout: String::new(), stderr: e.to_string() });
        }
        Ok(action)
    }

    /// Asks one to stop and undo what it did.
    pub fn cancel(&self, id: &str) -> Result<Action, ActionError> {
        let mut entries = self.entries();
        let entry = entries.iter_mut().find(|entry| entry.action.id.to_string() == id);
        let entry = entry.ok_or_else(|| ActionError::Unknown(id.to_owned()))?;
        let process = entry.process.as_ref().ok_or(ActionError::Over)?;
        // A second signal would end it as it is.
        if !entry.action.cancelling {
            pidfd_send_signal(process, Signal::TERM).map_err(|_| ActionError::Over)?;
            entry.action.cancelling = true;
        }
        let action = entry.action.clone();
        drop(entries);
        self.changed.send_replace(());
        Ok(action)
    }

    fn finish(&self, id: Id, ended: Ended) {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.action.id == id) {
            entry.process = None;
            let told = entry.action.cancelling;
            ended.tell(&mut entry.action, told);
        }
        let over = entries.iter().filter(|entry| entry.process.is_none()).count();
        let mut too_many = over.saturating_sub(KEPT);
        entries.retain(|entry| {
            let goes = too_many > 0 && entry.process.is_none();
            too_many -= usize::from(goes);
            !goes
        });
        drop(entries);
        self.changed.send_replace(());
    }
}

/// It was not waited for yet, so its number is its own.
fn open(child: &Child) -> std::io::Result<OwnedFd> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("its process has an impossible number"))?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// How a command ended, and what it printed.
struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn wait(mut child: Child) -> Ended {
    fn read(output: Option<impl Read>) -> String {
        let mut bytes = Vec::new();
        if let Some(output) = output {
            // What cannot be read is missing, which is told for what it is.
            let _ = output.take(OUTPUT_MAX).read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
    let stderr = child.stderr.take();
    let (stdout, stderr) = std::thread::scope(|scope| {
        let errors = scope.spawn(move || read(stderr));
        let stdout = read(child.stdout.take());
        (stdout, errors.join().unwrap_or_default())
    });
    let code = child.wait().ok().and_then(|status| status.code());
    Ended { code, stdout, stderr }
}

impl Ended {
    fn tell(self, action: &mut Action, cancelled: bool) {
        // Some commands print a line for each thing that they did; the last says where things stand.
        let values = serde_json::Deserializer::from_str(&self.stdout).into_iter::<Value>();
        let result = values.map_while(Result::ok).last();
        let lines = self.stderr.lines().filter(|line| !line.trim().is_empty());
        let mut notes: Vec<String> =
            lines.map(|line| line.strip_prefix("piton: ").unwrap_or(line).to_owned()).take(20).collect();
        action.finished = Some(Utc::now());
        if self.code == Some(0) {
            action.state = ActionState::Done;
            action.result = result;
        } else {
            action.state = if cancelled { ActionState::Cancelled } else { ActionState::Failed };
            let error = result.as_ref().and_then(|result| result.get("error")?.as_str());
            let error = error.map(str::to_owned).or_else(|| notes.last().cloned());
            notes.retain(|note| Some(note) != error.as_ref());
            action.error = Some(error.unwrap_or_else(|| match self.code {
                Some(code) => format!("the command ended with exit code {code}"),
                None => "the command was killed".into(),
            }));
        }
        action.notes = notes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over(actions: &Actions, id: Id) -> Action {
        loop {
            let action = actions.find(&id.to_string()).unwrap();
            if action.state != ActionState::Running {
                return action;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }

    fn program(dir: &tempfile::TempDir, script: &str) -> Actions {
        use std::os::unix::fs::PermissionsExt;
        let path = dir.path().join("piton");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        Actions::new(path)
    }

    fn start() -> Deed {
        serde_json::from_str(r#"{"do":"start","vm":"demo"}"#).unwrap()
    }

    #[test]
    fn what_a_command_prints_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let actions =
            program(&dir, r#"echo '{"a":1}'; echo "{\"words\":\"$*\"}"; echo 'piton: mind this' >&2"#);
        let action = over(&actions, actions.begin(&start()).unwrap().id);
        assert_eq!(action.state, ActionState::Done);
        assert_eq!(action.result.unwrap()["words"], "--json start -- demo");
        assert_eq!(action.notes, ["mind this"]);
        assert!(matches!(actions.cancel(&action.id.to_string()), Err(ActionError::Over)));
        assert!(matches!(actions.cancel("x"), Err(ActionError::Unknown(_))));
        let actions = program(&dir, r#"echo '{"error":"no"}'; echo 'piton: no' >&2; exit 3"#);
        let action = over(&actions, actions.begin(&start()).unwrap().id);
        assert_eq!((action.state, action.error.as_deref()), (ActionState::Failed, Some("no")));
        assert!(action.notes.is_empty());
        let actions = program(&dir, "kill -9 $$");
        let action = over(&actions, actions.begin(&start()).unwrap().id);
        assert_eq!(action.error.as_deref(), Some("the command was killed"));
        let gone = Actions::new(dir.path().join("none"));
        assert!(matches!(gone.begin(&start()), Err(ActionError::Start(_))));
    }

    #[test]
    fn one_can_be_cancelled() {
        let dir = tempfile::tempdir().unwrap();
        let actions = program(&dir, "exec sleep 1000");
        let id = actions.begin(&start()).unwrap().id;
        assert!(actions.cancel(&id.to_string()).unwrap().cancelling);
        assert_eq!(over(&actions, id).state, ActionState::Cancelled);
    }
}
