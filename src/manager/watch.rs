//! Looks at all VMs while somebody wants to know. Each has a task of its own, so one that is stuck
//! holds up no other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::files::RemovedFiles;
use super::vms::Looker;
use crate::folder::{Home, VmFolder, VmName};

/// Between two looks at a VM; nothing that changes is told later than two of these.
const TICK: Duration = Duration::from_millis(80);
/// Of many VMs, each is looked at less often: this much later for each, up to [`TICK_MAX`].
const TICK_EACH: Duration = Duration::from_millis(3);
const TICK_MAX: Duration = Duration::from_millis(500);

/// All VMs by name, each as JSON.
pub type Snapshot = Arc<BTreeMap<String, Arc<str>>>;

/// A clone is the same watch.
#[derive(Clone)]
pub struct Watch {
    home: Home,
    seen: watch::Sender<Snapshot>,
    /// How many want to know.
    watchers: watch::Sender<usize>,
    /// VMs that were removed, as JSON; empty as long as nobody looked.
    removed: Arc<Mutex<Arc<str>>>,
    /// How many VMs there are; none as long as nobody looked.
    there: Arc<Mutex<Option<usize>>>,
}

/// Somebody who wants to know, until it is dropped.
pub struct Watcher {
    watch: Watch,
    pub seen: watch::Receiver<Snapshot>,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.watch.watchers.send_modify(|count| *count -= 1);
    }
}

impl Watch {
    pub fn new(home: Home) -> Self {
        Self {
            home,
            seen: watch::Sender::default(),
            watchers: watch::Sender::new(0),
            removed: Arc::new(Mutex::new("".into())),
            there: Arc::default(),
        }
    }

    pub fn watcher(&self) -> Watcher {
        self.watchers.send_modify(|count| *count += 1);
        Watcher { watch: self.clone(), seen: self.seen.subscribe() }
    }

    /// Whether all VMs have been looked at.
    pub fn is_complete(&self) -> bool {
        let there = *self.there.lock().unwrap_or_else(PoisonError::into_inner);
        there.is_some_and(|there| self.seen.borrow().len() >= there)
    }

    pub fn removed(&self) -> Arc<str> {
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn tick(&self) -> Duration {
        let there = self.there.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(0);
        let count = u32::try_from(there).unwrap_or(u32::MAX);
        TICK_EACH.saturating_mul(count).clamp(TICK, TICK_MAX)
    }

    async fn somebody_watches(&self) {
        let mut watchers = self.watchers.subscribe();
        // The sender is here.
        let _ = watchers.wait_for(|count| *count > 0).await;
    }

    /// Follows VMs as they come and go, without end.
    pub async fn run(self) {
        let mut followed: BTreeMap<VmName, AbortHandle> = BTreeMap::new();
        let mut removed = RemovedFiles::default();
        loop {
            self.somebody_watches().await;
            let home = self.home.clone();
            let mut files = std::mem::take(&mut removed);
            let look = move || {
                let news = files.news(&home);
                home.all().map(|folders| (folders, files, news))
            };
            match tokio::task::spawn_blocking(look).await {
                Ok(Ok((folders, files, news))) => {
                    removed = files;
                    match news.map(|news| news.map(|removed| serde_json::to_string(&removed))) {
                        Ok(None) => {}
                        Ok(Some(Ok(json))) => {
                            *self.removed.lock().unwrap_or_else(PoisonError::into_inner) = json.into();
                        }
                        Ok(Some(Err(e))) => log::error!("removed VMs cannot be told of: {e}"),
                        // As below.
                        Err(e) => log::warn!("{e}"),
                    }
                    self.follow(&mut followed, folders);
                }
                // It may be there again at the next look.
                Ok(Err(e)) => log::warn!("{e}"),
                Err(e) => log::error!("cannot list the folder of VMs: {e}"),
            }
            tokio::time::sleep(self.tick()).await;
        }
    }

    fn follow(&self, followed: &mut BTreeMap<VmName, AbortHandle>, folders: Vec<VmFolder>) {
        *self.there.lock().unwrap_or_else(PoisonError::into_inner) = Some(folders.len());
        followed.retain(|name, task| {
            let there = folders.iter().any(|folder| folder.name() == name);
            if !there {
                task.abort();
            }
            there
        });
        let gone = |name: &String| !folders.iter().any(|folder| folder.name().as_str() == name);
        self.seen.send_if_modified(|seen| {
            let changed = seen.keys().any(gone);
            if changed {
                Arc::make_mut(seen).retain(|name, _| !gone(name));
            }
            changed
        });
        for folder in folders {
            let (watch, name) = (self.clone(), folder.name().clone());
            followed.entry(name).or_insert_with(|| tokio::spawn(watch.follow_one(folder)).abort_handle());
        }
    }

    async fn follow_one(self, folder: VmFolder) {
        let name = folder.name().to_string();
        let mut looker = Looker::new(folder);
        loop {
            self.somebody_watches().await;
            let view = looker.look().await;
            match serde_json::to_string(&view) {
                Ok(json) => self.tell(&name, &json),
                Err(e) => log::error!("cannot describe the VM `{name}` to browsers: {e}"),
            }
            tokio::time::sleep(self.tick()).await;
        }
    }

    fn tell(&self, name: &str, json: &str) {
        self.seen.send_if_modified(|seen| {
            let changed = seen.get(name).is_none_or(|before| &**before != json);
            if changed {
                Arc::make_mut(seen).insert(name.to_owned(), json.into());
            }
            changed
        });
    }
}
