//! A VM as the pages show it: what its process tells, or its folder where none runs. A process that
//! is busy or stuck is not waited for; what it said last is told, and that it is busy.

use std::time::{Duration, Instant};

use hyper::Method;
use serde::Serialize;
use tokio::task::JoinSet;

use super::files::{Files, Told};
use super::load::{Load, Meter};
use crate::control::client::{self, ClientError};
use crate::control::jobs::{JobInfo, JobList};
use crate::control::{State, VmInfo};
use crate::folder::{Definition, VmFolder, VmName};

/// How long a process may take for a sign of life.
const LIFE: Duration = Duration::from_secs(3);
/// How long a request may wait in the queue of a VM; it waits there once, however often it is looked at.
const QUEUE: Duration = Duration::from_secs(600);
/// Who has not answered for this long, and lives, is busy.
const BUSY: Duration = Duration::from_secs(1);
/// Of what is known already, news is waited for this long.
const NEWS: Duration = Duration::from_millis(40);

#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum VmView {
    Known(Box<KnownVm>),
    Broken {
        name: VmName,
        /// `broken`
        state: &'static str,
        error: String,
    },
}

#[derive(Debug, Clone, Serialize)]
pub struct KnownVm {
    #[serde(flatten)]
    pub info: VmInfo,
    /// It is at work and has not come to tell how it is; the rest is what was known before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub busy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load: Option<Load>,
    /// The last lines of its console, as plain text.
    pub console: Vec<String>,
    /// Without their results.
    pub jobs: Vec<JobInfo>,
}

/// Looks at one VM again and again.
pub struct Looker {
    folder: VmFolder,
    files: Option<Files>,
    meter: Meter,
    asked: JoinSet<Result<VmInfo, ClientError>>,
    asked_at: Instant,
    known: Option<VmInfo>,
}

impl Looker {
    pub fn new(folder: VmFolder) -> Self {
        Self {
            folder,
            files: None,
            meter: Meter::default(),
            asked: JoinSet::new(),
            asked_at: Instant::now(),
            known: None,
        }
    }

    pub async fn look(&mut self) -> VmView {
        let mut files = self.files.take().unwrap_or_else(|| Files::new(self.folder.clone()));
        let read = tokio::task::spawn_blocking(move || {
            let told = files.look();
            (files, told)
        });
        let told = match read.await {
            Ok((files, told)) => {
                self.files = Some(files);
                told
            }
            Err(e) => return self.broken(format!("cannot read the VM's folder: {e}")),
        };
        if !told.listens {
            return self.stopped(told);
        }
        let answer = self.news().await;
        let jobs = match &answer {
            Some(Ok(VmInfo { active_jobs: Some(0), .. })) => Ok(JobList { jobs: Vec::new() }),
            _ => client::ask_once(&self.folder.socket(), Method::GET, "/vm/jobs", LIFE).await,
        };
        let busy = match (answer, &jobs) {
            (Some(Ok(info)), _) => {
                self.known = Some(info);
                false
            }
            (Some(Err(ClientError::NotRunning)), _) | (None, Err(ClientError::NotRunning)) => {
                return self.stopped(told);
            }
            (None, Ok(_)) => self.asked_at.elapsed() >= BUSY,
            (None | Some(Err(ClientError::Silent { .. })), _) => return self.silent(told),
            (Some(Err(e)), _) => return self.broken(e.to_string()),
        };
        let jobs = jobs.map(|list| list.jobs).unwrap_or_default();
        let info = match (&self.known, &told.definition) {
            (Some(info), _) => info.clone(),
            (None, Ok(definition)) => self.told(definition, State::Running, None, told.checkpoints),
            (None, Err(error)) => return self.broken(error.clone()),
        };
        let traffic = info.networks.iter().map(|one| one.received.bytes.saturating_add(one.sent.bytes)).sum();
        VmView::Known(Box::new(KnownVm {
            load: self.meter.look(info.pid, traffic),
            info,
            busy,
            console: told.console,
            jobs: jobs.into_iter().map(|job| JobInfo { result: None, ..job }).collect(),
        }))
    }

    /// What the VM says of itself; none if it has not come to that.
    async fn news(&mut self) -> Option<Result<VmInfo, ClientError>> {
        if self.asked.is_empty() {
            self.asked_at = Instant::now();
            let socket = self.folder.socket();
            self.asked.spawn(async move { client::ask_once(&socket, Method::GET, "/vm", QUEUE).await });
        }
        let patience = if self.known.is_some() { NEWS } else { LIFE };
        let answer = tokio::time::timeout(patience, self.asked.join_next()).await.ok()??;
        answer.ok()
    }

    fn stopped(&mut self, told: Told) -> VmView {
        self.forget();
        match told.definition {
            Err(error) => self.broken(error),
            Ok(definition) => {
                let info = self.told(&definition, State::Stopped, None, told.checkpoints);
                idle(VmInfo { last_run: told.last_run, ..info }, told.console)
            }
        }
    }

    fn silent(&mut self, told: Told) -> VmView {
        let pid = self.known.as_ref().and_then(|info| info.pid);
        self.forget();
        match told.definition {
            Err(error) => self.broken(error),
            Ok(definition) => {
                let info = self.told(&definition, State::Unresponsive, pid, told.checkpoints);
                let reason = "its process is not responding: wait, or cut its power".to_owned();
                idle(VmInfo { reason: Some(reason), ..info }, told.console)
            }
        }
    }

    /// What its folder tells.
    fn told(&self, definition: &Definition, state: State, pid: Option<u32>, checkpoints: usize) -> VmInfo {
        VmInfo::counted(&self.folder, definition, state, pid, checkpoints)
    }

    fn broken(&self, error: String) -> VmView {
        VmView::Broken { name: self.folder.name().clone(), state: "broken", error }
    }

    fn forget(&mut self) {
        self.known = None;
        self.asked.abort_all();
        self.asked = JoinSet::new();
        self.meter.look(None, 0);
    }
}

fn idle(info: VmInfo, console: Vec<String>) -> VmView {
    VmView::Known(Box::new(KnownVm { info, busy: false, load: None, console, jobs: Vec::new() }))
}
