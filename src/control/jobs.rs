//! Long work of a VM's process: what there is, how far it is, and calling it off. Read by the
//! server while the owner of the machine is busy with just that work.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{Answer, Request, RequestError};
use crate::id::Id;
use crate::progress::Progress;

/// Finished jobs that are still told of; the oldest go first.
const KEPT: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobKind {
    Create,
    Apply,
    Revert,
    Delete,
    /// What was taken away last comes back.
    Undo,
    /// Layers that nothing needs apart become one.
    Merge,
    /// A base image gets checksums.
    Seal,
    Export,
    Clone,
}

impl std::fmt::Display for JobKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Create => "create",
            Self::Apply => "apply",
            Self::Revert => "revert",
            Self::Delete => "delete",
            Self::Undo => "undo",
            Self::Merge => "merge",
            Self::Seal => "seal",
            Self::Export => "export",
            Self::Clone => "clone",
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// Waits for what was asked for before it.
    Queued,
    Running,
    Done,
    /// Failed and undone; `error` says why.
    Failed,
    /// Called off and undone.
    Cancelled,
}

impl JobState {
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

impl std::fmt::Display for JobState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        })
    }
}

/// A job as `GET /vm/jobs/{job}` tells it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobInfo {
    pub id: Id,
    pub kind: JobKind,
    /// Name of a checkpoint, or of a disk; empty where the work has none, or not yet.
    pub subject: String,
    pub state: JobState,
    /// It was asked to stop; it may be too late for that.
    pub cancelling: bool,
    pub phase: String,
    /// Bytes done of this phase.
    pub done: u64,
    /// Bytes of this phase in all; 0: not known.
    pub total: u64,
    /// Bytes a second in this phase.
    pub rate: u64,
    pub asked: DateTime<Utc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started: Option<DateTime<Utc>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished: Option<DateTime<Utc>>,
    /// What the request is answered with, once it is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<serde_json::Value>,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Answer of `GET /vm/jobs`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobList {
    /// By when they were asked for.
    pub jobs: Vec<JobInfo>,
}

/// Part of the body of every request that is a job.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// Answer at once with the job.
    #[serde(default)]
    pub no_wait: bool,
    /// The id that the job gets, so that who asks can watch it meanwhile; none: a random one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<Id>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    #[error("there is no job `{0}`: `piton checkpoint jobs` lists all jobs")]
    Unknown(String),
    #[error("`{0}` matches several jobs: give more digits of the id")]
    Ambiguous(String),
    #[error("job {0} has finished: there is nothing to cancel")]
    Over(Id),
    #[error("job {0} already exists")]
    Taken(Id),
    #[error("cannot get an id for a job: {0}")]
    Random(String),
}

impl From<JobError> for RequestError {
    fn from(error: JobError) -> Self {
        Self::Refused(error.to_string())
    }
}

/// All jobs of a VM's process; a clone is the same registry.
#[derive(Debug, Clone, Default)]
pub struct Jobs {
    entries: Arc<Mutex<Vec<Entry>>>,
    finished: Arc<Mutex<Finished>>,
}

/// How many came to each end since the process began.
pub type Finished = BTreeMap<(JobKind, JobState), u64>;

#[derive(Debug)]
struct Entry {
    info: JobInfo,
    progress: Progress,
}

impl Entry {
    fn info(&self) -> JobInfo {
        if self.info.state.is_over() {
            return self.info.clone();
        }
        let now = self.progress.snapshot();
        JobInfo {
            cancelling: self.progress.is_cancelled(),
            phase: now.phase.into(),
            done: now.done,
            total: now.total,
            rate: self.progress.rate(),
            ..self.info.clone()
        }
    }
}

impl Request {
    /// What kind of job it is and of what, if it is one.
    pub fn job(&self) -> Option<(JobKind, String)> {
        Some(match self {
            Self::CreateCheckpoint(body) => {
                (JobKind::Create, body.name.as_ref().map(ToString::to_string).unwrap_or_default())
            }
            Self::ApplyCheckpoint(reference, _) => (JobKind::Apply, reference.clone()),
            // One that only tells what would go is no work.
            Self::DeleteCheckpoint(reference, body) if !body.dry_run => (JobKind::Delete, reference.clone()),
            Self::CloneCheckpoint(reference, _) => (JobKind::Clone, reference.clone()),
            Self::Revert(_) => (JobKind::Revert, String::new()),
            Self::Undo(_) => (JobKind::Undo, String::new()),
            Self::RestoreTrash(entry, _) => (JobKind::Undo, entry.clone()),
            Self::Prune(body) if !body.dry_run => (JobKind::Delete, String::new()),
            Self::EmptyTrash(entry) => (JobKind::Delete, entry.clone().unwrap_or_default()),
            _ => return None,
        })
    }
}

impl Jobs {
    fn entries(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finished(&self) -> MutexGuard<'_, Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many came to which end, also those that are told of no more.
    pub fn ends(&self) -> Finished {
        self.finished().clone()
    }

    /// A new job, which waits to begin.
    pub fn add(&self, id: Option<Id>, kind: JobKind, subject: String) -> Result<Job, JobError> {
        let id = match id {
            Some(id) => id,
            None => Id::random().map_err(|e| JobError::Random(e.to_string()))?,
        };
        let mut entries = self.entries();
        if entries.iter().any(|entry| entry.info.id == id) {
            return Err(JobError::Taken(id));
        }
        let progress = Progress::default();
        let info = JobInfo {
            id,
            kind,
            subject,
            state: JobState::Queued,
            cancelling: false,
            phase: String::new(),
            done: 0,
            total: 0,
            rate: 0,
            asked: Utc::now(),
            started: None,
            finished: None,
            result: None,
            error: None,
        };
        entries.push(Entry { info, progress: progress.clone() });
        Ok(Job { jobs: self.clone(), id, progress })
    }

    /// How many are not over.
    pub fn under_way(&self) -> usize {
        self.entries().iter().filter(|entry| !entry.info.state.is_over()).count()
    }

    pub fn list(&self) -> JobList {
        JobList { jobs: self.entries().iter().map(Entry::info).collect() }
    }

    /// By id or the start of one.
    pub fn find(&self, reference: &str) -> Result<JobInfo, JobError> {
        let reference = reference.to_ascii_lowercase();
        let entries = self.entries();
        let mut found = entries.iter().filter(|entry| entry.info.id.begins_with(&reference));
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one.info()),
            (Some(_), Some(_)) => Err(JobError::Ambiguous(reference)),
            (None, _) => Err(JobError::Unknown(reference)),
        }
    }

    /// Asks a job to stop and undo what it did.
    pub fn cancel(&self, reference: &str) -> Result<JobInfo, JobError> {
        let id = self.find(reference)?.id;
        let entries = self.entries();
        match entries.iter().find(|entry| entry.info.id == id) {
            Some(entry) if !entry.info.state.is_over() => {
                entry.progress.cancel();
                Ok(entry.info())
            }
            Some(_) => Err(JobError::Over(id)),
            None => Err(JobError::Unknown(reference.to_owned())),
        }
    }

    /// Asks all that are not over to stop: the VM is about to end.
    pub fn cancel_all(&self) {
        for entry in self.entries().iter().filter(|entry| !entry.info.state.is_over()) {
            entry.progress.cancel();
        }
    }

    /// Drops a job that was not even begun.
    pub fn forget(&self, id: Id) {
        self.entries().retain(|entry| entry.info.id != id);
    }

    fn change(&self, id: Id, change: impl FnOnce(&mut Entry)) {
        if let Some(entry) = self.entries().iter_mut().find(|entry| entry.info.id == id) {
            change(entry);
        }
    }

    fn finish(&self, id: Id, state: JobState, result: Option<serde_json::Value>, error: Option<String>) {
        self.change(id, |entry| {
            *self.finished().entry((entry.info.kind, state)).or_default() += 1;
            // What it said last stays to be seen.
            entry.info = JobInfo { state, result, error, finished: Some(Utc::now()), ..entry.info() };
        });
        let mut entries = self.entries();
        let mut too_many =
            entries.iter().filter(|entry| entry.info.state.is_over()).count().saturating_sub(KEPT);
        entries.retain(|entry| {
            let goes = too_many > 0 && entry.info.state.is_over();
            too_many -= usize::from(goes);
            !goes
        });
    }
}

/// The right to do a job. One that is dropped unfinished has failed.
#[derive(Debug)]
pub struct Job {
    jobs: Jobs,
    id: Id,
    progress: Progress,
}

impl Job {
    pub fn id(&self) -> Id {
        self.id
    }

    /// To be handed to the work.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    pub fn begin(&self) {
        self.jobs.change(self.id, |entry| {
            entry.info.state = JobState::Running;
            entry.info.started = Some(Utc::now());
        });
    }

    /// What it is about, once that is known.
    pub fn set_subject(&self, subject: impl ToString) {
        self.jobs.change(self.id, |entry| entry.info.subject = subject.to_string());
    }

    pub fn info(&self) -> Option<JobInfo> {
        self.jobs.entries().iter().find(|entry| entry.info.id == self.id).map(Entry::info)
    }

    pub fn finish(self, answer: &Answer) {
        let (state, result, error) = match answer {
            Ok(reply) => (JobState::Done, serde_json::to_value(reply).ok(), None),
            Err(e @ RequestError::Cancelled(_)) => (JobState::Cancelled, None, Some(e.to_string())),
            Err(e) => (JobState::Failed, None, Some(e.to_string())),
        };
        self.jobs.finish(self.id, state, result, error);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if self.info().is_some_and(|info| !info.state.is_over()) {
            let why = "the VM stopped before this was done".to_owned();
            self.jobs.finish(self.id, JobState::Failed, None, Some(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Reply, TreeInfo};

    fn reply() -> Answer {
        Ok(Reply::Tree(TreeInfo {
            now: None,
            checkpoints: Vec::new(),
            damaged: Vec::new(),
            pending_merges: 0,
        }))
    }

    #[test]
    fn a_job_is_seen_from_its_beginning_to_its_end() {
        let jobs = Jobs::default();
        let job = jobs.add(None, JobKind::Create, "one".into()).unwrap();
        let id = job.id().to_string();
        assert_eq!(jobs.find(&id).unwrap().state, JobState::Queued);
        job.begin();
        job.progress().phase("memory", 100);
        job.progress().add(30);
        job.set_subject("two");
        let info = jobs.find(&id[..8].to_uppercase()).unwrap();
        assert_eq!((info.state, info.done, info.total), (JobState::Running, 30, 100));
        assert_eq!((info.subject.as_str(), info.phase.as_str()), ("two", "memory"));
        job.finish(&reply());
        let info = jobs.find(&id).unwrap();
        assert_eq!((info.state, info.done), (JobState::Done, 30));
        assert!(info.result.is_some() && info.finished >= info.started);
        assert_eq!(jobs.cancel(&id), Err(JobError::Over(info.id)));
    }

    #[test]
    fn a_job_can_be_called_off() {
        let jobs = Jobs::default();
        let job = jobs.add(None, JobKind::Apply, String::new()).unwrap();
        let id = job.id();
        let other = jobs.add(None, JobKind::Merge, String::new()).unwrap();
        assert!(jobs.cancel(&id.to_string()).unwrap().cancelling);
        assert!(job.progress().is_cancelled() && !other.progress().is_cancelled());
        job.finish(&Err(RequestError::Cancelled("called off".into())));
        let info = jobs.find(&id.to_string()).unwrap();
        assert_eq!((info.state, info.error.as_deref()), (JobState::Cancelled, Some("called off")));
        jobs.cancel_all();
        assert!(other.progress().is_cancelled());
        let lost = other.id().to_string();
        drop(other);
        assert_eq!(jobs.find(&lost).unwrap().state, JobState::Failed);
    }

    #[test]
    fn an_id_is_used_once_and_wrong_ones_are_named() {
        let jobs = Jobs::default();
        let id = Id::from_bytes([7; 16]);
        let first = jobs.add(Some(id), JobKind::Create, String::new()).unwrap();
        assert_eq!(
            jobs.add(Some(id), JobKind::Create, String::new()).map(|_| ()).unwrap_err(),
            JobError::Taken(id)
        );
        let near = Id::from_bytes([&[7; 15][..], &[8]].concat().try_into().unwrap());
        let _second = jobs.add(Some(near), JobKind::Create, String::new()).unwrap();
        assert_eq!(jobs.find("0707"), Err(JobError::Ambiguous("0707".into())));
        assert_eq!(jobs.find("07"), Err(JobError::Unknown("07".into())));
        assert_eq!(jobs.find("zzzz"), Err(JobError::Unknown("zzzz".into())));
        drop(first);
    }

    #[test]
    fn only_the_last_finished_jobs_are_kept() {
        let jobs = Jobs::default();
        let waiting = jobs.add(None, JobKind::Export, String::new()).unwrap();
        let ids: Vec<Id> = (0..KEPT + 3)
            .map(|_| {
                let job = jobs.add(None, JobKind::Create, String::new()).unwrap();
                let id = job.id();
                job.finish(&reply());
                id
            })
            .collect();
        let listed: Vec<Id> = jobs.list().jobs.into_iter().map(|job| job.id).collect();
        assert_eq!(listed, [&[waiting.id()], &ids[3..]].concat());
    }
}
