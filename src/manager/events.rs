//! Server-sent events: how things are, and then each change.
//!
//! | event | data |
//! | --- | --- |
//! | `vm` | a VM, new or changed |
//! | `gone` | the name of a VM that is no more |
//! | `removed` | VMs that were removed and can be restored |
//! | `tree` | the checkpoints of the VM that was asked for; or `{"error"}` |
//! | `trash` | what can be taken back of that VM; or `{"error"}` |
//! | `actions` | all actions, without their results |
//! | `ready` | nothing: all that there was has been told |

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::channel::Sender;
use serde::Serialize;

use super::actions::Actions;
use super::files::{TreeFiles, trash, tree};
use super::watch::Watch;
use crate::control::ErrorBody;
use crate::folder::VmFolder;
use crate::history::CheckpointError;

/// Between two looks for news.
const TICK: Duration = Duration::from_millis(40);
/// A stream without news says that it lives; who is gone is noticed so.
const ALIVE: Duration = Duration::from_secs(5);
/// How long the VMs may take until a page is told that it knows them all.
const FIRST: Duration = Duration::from_secs(2);

pub type Stream = Sender<Bytes, Infallible>;

fn event(name: &str, data: &str) -> String {
    // JSON has no line breaks but in strings, where they are escaped.
    format!("event: {name}\ndata: {data}\n\n")
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| {
        log::error!("an event cannot be told: {e}");
        "null".into()
    })
}

/// The tree and the trash as they were told last.
struct Shown {
    files: TreeFiles,
    tree: String,
    trash: String,
}

impl Shown {
    /// An event for each of which there is something new.
    fn news(&mut self) -> String {
        if !self.files.have_changed() {
            return String::new();
        }
        let folder = self.files.folder();
        let (tree, trash) = (told(tree(folder)), told(trash(folder)));
        let mut news = String::new();
        for (name, before, now) in [("tree", &mut self.tree, tree), ("trash", &mut self.trash, trash)] {
            if *before != now {
                news += &event(name, &now);
                *before = now;
            }
        }
        news
    }
}

fn told(found: Result<impl Serialize, CheckpointError>) -> String {
    match found {
        Ok(found) => json(&found),
        Err(e) => json(&ErrorBody { error: e.to_string() }),
    }
}

/// Tells until nobody listens.
pub async fn tell(mut stream: Stream, watch: Watch, actions: Actions, vm: Option<VmFolder>) {
    let watcher = watch.watcher();
    let mut of_actions = actions.watch();
    of_actions.mark_changed();
    let mut shown =
        vm.map(|folder| Shown { files: TreeFiles::new(folder), tree: String::new(), trash: String::new() });
    let mut removed: Arc<str> = "".into();
    let mut told: BTreeMap<String, Arc<str>> = BTreeMap::new();
    let (began, mut spoke, mut ready) = (Instant::now(), Instant::now(), false);
    loop {
        let mut news = String::new();
        let now = watcher.seen.borrow().clone();
        for (name, vm) in now.iter() {
            if told.get(name).is_none_or(|before| !Arc::ptr_eq(before, vm)) {
                news += &event("vm", vm);
            }
        }
        for name in told.keys().filter(|name| !now.contains_key(*name)) {
            news += &event("gone", &json(name));
        }
        told.clone_from(&now);
        let now = watch.removed();
        if now != removed {
            news += &event("removed", &now);
            removed = now;
        }
        if let Some(mut tree) = shown.take() {
            let looked = tokio::task::spawn_blocking(move || {
                let news = tree.news();
                (tree, news)
            });
            if let Ok((tree, of_tree)) = looked.await {
                shown = Some(tree);
                news += &of_tree;
            }
        }
        if of_actions.has_changed().unwrap_or(false) {
            of_actions.mark_unchanged();
            news += &event("actions", &json(&actions.list()));
        }
        if !ready && (watch.is_complete() || began.elapsed() > FIRST) {
            ready = true;
            news += &event("ready", "null");
        }
        if news.is_empty() && spoke.elapsed() >= ALIVE {
            news = ": alive\n\n".into();
        }
        if !news.is_empty() {
            spoke = Instant::now();
            if stream.send_data(news.into()).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(TICK).await;
    }
}
