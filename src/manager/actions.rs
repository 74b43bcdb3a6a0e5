//! Deeds under way and done: each is a piton of its own, which goes on whatever becomes of the page
//! that asked for it, or of the manager.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use super::deed::Deed;
use super::starter::{Off, Started, Starter};
use super::words::DeedError;
use crate::folder::VmName;
use crate::id::Id;

/// Finished ones that are still told of.
const KEPT: usize = 64;
/// At one time; each is a process.
const RUNNING_MAX: usize = 32;
/// Most that is read of what one prints: a comparison of disks that differ all over is long.
const OUTPUT_MAX: u64 = 64 << 20;
/// Bytes of results that are still told of, of all of them; the oldest go.
const RESULTS_MAX: usize = 64 << 20;
/// Longest line of what one says beside its result.
const LINE_MAX: u64 = 64 << 10;
/// Lines of it that are kept.
const NOTES_MAX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ActionState {
    Running,
    Done,
    Failed,
    Cancelled,
}

/// How far a command is that works by itself; what a VM does for it is a job of the VM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Far {
    pub phase: String,
    /// Bytes of this phase.
    pub done: u64,
    /// 0: not known.
    pub total: u64,
    /// Bytes a second.
    pub rate: u64,
}

/// A line of progress.
#[derive(Deserialize)]
struct FarLine {
    progress: Far,
}

/// As `GET /api/actions/{action}` tells it.
#[derive(Debug, Clone, Serialize)]
pub struct Action {
    pub id: Id,
    #[serde(rename = "do")]
    pub kind: &'static str,
    pub vm: VmName,
    /// The checkpoint that it is about, as it was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<String>,
    pub state: ActionState,
    /// It was asked to stop; it may be too late for that.
    pub cancelling: bool,
    pub began: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finished: Option<DateTime<Utc>>,
    /// As long as it runs and tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<Far>,
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

impl Action {
    fn without_result(&self) -> Self {
        let Self { id, kind, state, cancelling, began, finished, .. } = *self;
        let Self { vm, checkpoint, progress, error, notes, .. } = self;
        Self {
            id,
            kind,
            vm: vm.clone(),
            checkpoint: checkpoint.clone(),
            state,
            cancelling,
            began,
            finished,
            progress: progress.clone(),
            result: None,
            error: error.clone(),
            notes: notes.clone(),
        }
    }
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
    off: Option<Off>,
    /// Of its result.
    bytes: usize,
}

/// A clone is the same list.
#[derive(Clone)]
pub struct Actions {
    starter: Arc<Starter>,
    entries: Arc<Mutex<Vec<Entry>>>,
    /// Sent to with each change.
    changed: watch::Sender<()>,
}

impl Actions {
    pub fn new(starter: Starter) -> Self {
        Self { starter: Arc::new(starter), entries: Arc::default(), changed: watch::Sender::new(()) }
    }

    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told of each change.
    pub fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Oldest first, without their results.
    pub fn list(&self) -> Vec<Action> {
        let told = |entry: &Entry| entry.action.without_result();
        self.entries().iter().map(told).collect()
    }

    pub fn find(&self, id: &str) -> Result<Action, ActionError> {
        let entries = self.entries();
        let found = entries.iter().find(|entry| entry.action.id.to_string() == id);
        found.map(|entry| entry.action.clone()).ok_or_else(|| ActionError::Unknown(id.to_owned()))
    }

    /// Begins; to be called where waiting is no harm.
    pub fn begin(&self, deed: &Deed) -> Result<Action, ActionError> {
        deed.words()?;
        let id = Id::random().map_err(|e| ActionError::Start(std::io::Error::other(e)))?;
        let mut entries = self.entries();
        if entries.iter().filter(|entry| entry.off.is_some()).count() >= RUNNING_MAX {
            return Err(ActionError::TooMany);
        }
        let started = self.starter.start(deed).map_err(ActionError::Start)?;
        let off = started.off().map_err(ActionError::Start)?;
        let action = Action {
            id,
            kind: deed.kind(),
            vm: deed.vm().clone(),
            checkpoint: deed.checkpoint().map(str::to_owned),
            state: ActionState::Running,
            cancelling: false,
            began: Utc::now(),
            finished: None,
            progress: None,
            result: None,
            error: None,
            notes: Vec::new(),
        };
        entries.push(Entry { action: action.clone(), off: Some(off), bytes: 0 });
        drop(entries);
        self.changed.send_replace(());
        let actions = self.clone();
        let watcher = std::thread::Builder::new().name("action".into()).spawn(move || {
            let ended = wait(started, |far| actions.goes_on(id, far));
            actions.finish(id, ended);
        });
        if let Err(e) = watcher {
            // It goes on, and nobody will know how it ended.
            self.finish(id, Ended { code: None, stdout: Vec::new(), notes: vec![e.to_string()] });
        }
        Ok(action)
    }

    /// Asks one to stop and undo what it did.
    pub fn cancel(&self, id: &str) -> Result<Action, ActionError> {
        let mut entries = self.entries();
        let entry = entries.iter_mut().find(|entry| entry.action.id.to_string() == id);
        let entry = entry.ok_or_else(|| ActionError::Unknown(id.to_owned()))?;
        let off = entry.off.as_mut().ok_or(ActionError::Over)?;
        if !entry.action.cancelling {
            off.call().map_err(|_| ActionError::Over)?;
            entry.action.cancelling = true;
        }
        let action = entry.action.clone();
        drop(entries);
        self.changed.send_replace(());
        Ok(action)
    }

    fn goes_on(&self, id: Id, far: Far) {
        if let Some(entry) = self.entries().iter_mut().find(|entry| entry.action.id == id) {
            entry.action.progress = Some(far);
        }
        self.changed.send_replace(());
    }

    fn finish(&self, id: Id, ended: Ended) {
        let mut entries = self.entries();
        if let Some(entry) = entries.iter_mut().find(|entry| entry.action.id == id) {
            entry.off = None;
            let told = entry.action.cancelling;
            entry.bytes = ended.stdout.len();
            ended.tell(&mut entry.action, told);
        }
        let mut bytes = 0;
        for entry in entries.iter_mut().rev() {
            bytes += entry.bytes;
            if bytes > RESULTS_MAX && entry.action.id != id {
                entry.action.result = None;
                bytes -= std::mem::take(&mut entry.bytes);
            }
        }
        let over = entries.iter().filter(|entry| entry.off.is_none()).count();
        let mut too_many = over.saturating_sub(KEPT);
        entries.retain(|entry| {
            let goes = too_many > 0 && entry.off.is_none();
            too_many -= usize::from(goes);
            !goes
        });
        drop(entries);
        self.changed.send_replace(());
    }
}

/// How a command ended, and what it printed.
struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    notes: Vec<String>,
}

fn wait(started: Started, goes_on: impl FnMut(Far) + Send) -> Ended {
    let (stdout, notes) = std::thread::scope(|scope| {
        let errors = scope.spawn(|| listen(&started.stderr, goes_on));
        let mut bytes = Vec::new();
        // What cannot be read is missing, which is told for what it is.
        let _ = (&started.stdout).take(OUTPUT_MAX).read_to_end(&mut bytes);
        (bytes, errors.join().unwrap_or_default())
    });
    Ended { code: started.code(), stdout, notes }
}

/// Takes what a command says of its progress, and returns what else it says.
fn listen(stderr: impl Read, mut goes_on: impl FnMut(Far)) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        match (&mut stderr).take(LINE_MAX).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return notes,
            Ok(_) => {}
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim();
        if let Ok(FarLine { progress }) = serde_json::from_str(line) {
            goes_on(progress);
        } else if !line.is_empty() {
            notes.push(line.strip_prefix("piton: ").unwrap_or(line).to_owned());
            // The last says why it failed.
            if notes.len() > NOTES_MAX {
                notes.remove(0);
            }
        }
    }
}

impl Ended {
    fn tell(self, action: &mut Action, cancelled: bool) {
        // Some commands print a line for each thing that they did; the last says where things stand.
        let values = serde_json::Deserializer::from_slice(&self.stdout).into_iter::<Value>();
        let result = values.map_while(Result::ok).last();
        let mut notes = self.notes;
        action.finished = Some(Utc::now());
        action.progress = None;
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
        Actions::new(Starter::thread(path))
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
        let gone = Actions::new(Starter::thread(dir.path().join("none")));
        assert!(matches!(gone.begin(&start()), Err(ActionError::Start(_))));
    }

    #[test]
    fn how_far_it_is_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let line = r#"{"progress":{"phase":"disks","done":1,"total":2,"rate":3}}"#;
        // Goes on once the file is there.
        let script = format!("echo '{line}' >&2; until [ -e \"$0.go\" ]; do sleep 0.01; done; echo '{{}}'");
        let actions = program(&dir, &script);
        let id = actions.begin(&start()).unwrap().id;
        let told = Far { phase: "disks".into(), done: 1, total: 2, rate: 3 };
        while actions.find(&id.to_string()).unwrap().progress.as_ref() != Some(&told) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        std::fs::write(dir.path().join("piton.go"), "").unwrap();
        let action = over(&actions, id);
        assert_eq!((action.progress, action.notes), (None, vec![]));
        assert!(action.result.is_some() && actions.list()[0].result.is_none());
        let many: String = (0..50).map(|n| format!("{n}\n")).collect();
        assert_eq!(listen(many.as_bytes(), |_| {}).first().map(String::as_str), Some("30"));
    }

    #[test]
    fn only_so_many_run_at_one_time() {
        let dir = tempfile::tempdir().unwrap();
        let actions = program(&dir, "exec sleep 1000");
        let ids: Vec<Id> = (0..RUNNING_MAX).map(|_| actions.begin(&start()).unwrap().id).collect();
        assert!(matches!(actions.begin(&start()), Err(ActionError::TooMany)));
        for id in ids {
            actions.cancel(&id.to_string()).unwrap();
            over(&actions, id);
        }
        let last = actions.begin(&start()).unwrap().id;
        actions.cancel(&last.to_string()).unwrap();
        over(&actions, last);
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
