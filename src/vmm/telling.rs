//! What is told of a VM to those who watch it: events in its folder, and numbers.

use super::{Outcome, State, Vmm};
use crate::checkpoint::Manifest;
use crate::control::happened::{self, Asked};
use crate::control::metrics::Now;
use crate::control::{Answer, Request};
use crate::folder::{Ending, Happened, What};
use crate::history::Catalog;
use crate::history::disks::Layers;
use crate::machine::Machine;
use crate::net::News;

/// A request that is being answered.
pub struct Before {
    asked: Option<Asked>,
    goes: bool,
    state: State,
}

impl Vmm {
    /// Something that no request is behind.
    pub(super) fn tell(&mut self, what: What, text: impl Into<String>) {
        let event = Happened::now(what, text);
        match self.diary.may(what) {
            true => self.note(event),
            false => self.metrics.happened(&event),
        }
    }

    pub(super) fn note(&mut self, event: Happened) {
        self.metrics.happened(&event);
        self.diary.add(event);
        self.write_diary();
    }

    /// Writes what could not be written before, too.
    pub(super) fn write_diary(&mut self) {
        self.diary.write(&self.folder, &self.lock);
    }

    pub(super) fn tell_start(&mut self) {
        let how = match &self.filling {
            Some(_) => "at a checkpoint",
            None => "with a boot",
        };
        let paused = if self.state() == State::Paused { ", paused" } else { "" };
        self.tell(What::Started, format!("process {} started {how}{paused}", std::process::id()));
    }

    pub(super) fn tell_end(&mut self, outcome: &Outcome) {
        match outcome {
            Outcome::PoweredOff => self.tell(What::Stopped, "the guest shut down"),
            Outcome::Ended(by) => self.tell(What::Stopped, format!("stopped by {by}")),
            Outcome::Crashed(why) => self.tell(What::Crashed, why.clone()),
        }
        if let Err(e) = self.folder.sync_events() {
            log::debug!("{e}");
        }
    }

    /// What an earlier run left.
    pub(super) fn tell_of_the_past(&mut self, findings: &[String]) {
        if self.folder.last_run().is_some_and(|last| last.how == Ending::Killed) {
            self.tell(What::Interrupted, "the process before was killed, or the host went down");
        }
        for finding in findings {
            self.tell(What::Repaired, finding.clone());
        }
    }

    pub(super) fn tell_of_network(&mut self, news: News) {
        match news {
            News::Down(why) => self.tell(What::NetworkDown, why),
            News::Up(text) => self.tell(What::NetworkUp, text),
        }
    }

    pub(super) fn before(&self, request: &Request) -> Before {
        let goes = matches!(request, Request::ApplyCheckpoint(..) | Request::Revert(_));
        Before { asked: happened::of(request), goes, state: self.state() }
    }

    pub(super) fn tell_answer(&mut self, before: Before, answer: &Answer) {
        let Before { asked, goes, state } = before;
        let Some(asked) = asked else { return };
        let mut events = asked.answered(answer);
        if goes
            && answer.is_ok()
            && let Some(id) = self.definition.now.parent
            && let Ok(manifest) = Catalog::new(&self.folder, &self.definition).store.load(id)
        {
            events.push(happened::went_to(id, &manifest.name));
        }
        match (state, self.state()) {
            (State::Running, State::Paused) if answer.is_ok() => {
                events.push(Happened::now(What::Paused, "paused"));
            }
            (State::Paused, State::Running) if answer.is_ok() => {
                events.push(Happened::now(What::Resumed, "resumed"));
            }
            _ => {}
        }
        events.into_iter().for_each(|event| self.note(event));
    }

    /// To be called when the state may have changed.
    pub(super) fn measure(&self) {
        let machine = self.machine.as_ref();
        self.metrics.set_now(Now {
            state: Some(self.state()),
            stuck: machine.filter(|machine| !machine.is_running()).and_then(Machine::stuck).is_some(),
            cpus: self.definition.config.cpus,
            memory: self.definition.config.memory,
            links: machine.map(Machine::links).unwrap_or_default(),
        });
    }

    pub(super) fn measure_checkpoints(&self, manifests: &[Manifest]) {
        let now = &self.definition.now;
        let layers = Layers::read(&self.folder).ok();
        let count = |top| layers.as_ref()?.chain(top).ok().map(|chain| chain.len());
        let disks = self.definition.config.disks.iter();
        let counts = disks.map(|disk| {
            let top = now.tops.get(&disk.id).copied();
            (disk.id.clone(), top.and_then(count).unwrap_or(0))
        });
        self.metrics.set_stored(manifests, counts.collect());
    }
}
