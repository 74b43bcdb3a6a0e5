//! Which checkpoints stay by a rule, and why. No files and no clock here: a checkpoint's time is counted
//! (see [`counted`]), and the newest one is now.

use chrono::{DateTime, Datelike, Utc};

use super::manifest::Manifest;
use crate::folder::Retention;
use crate::id::Id;
use crate::moment::Moment;

/// What a rule has to know of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub id: Id,
    /// Seconds since 1970, as they were counted.
    pub time: i64,
    /// What the clock said: it tells which of two of the same second is the newer.
    pub created: DateTime<Utc>,
    /// Why it stays whatever the rule says, if so.
    pub spared: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub id: Id,
    pub stays: bool,
    pub why: String,
}

/// What each of them comes to; the newest first. `bytes` tells what these take together.
pub fn judge(candidates: &[Candidate], rule: &Retention, bytes: impl Fn(&[Id]) -> u64) -> Vec<Verdict> {
    let mut order: Vec<&Candidate> = candidates.iter().collect();
    order.sort_by_key(|one| std::cmp::Reverse((one.time, one.created, one.id)));
    let reasons = reasons(&order, rule);
    let mut verdicts: Vec<Verdict> = Vec::new();
    for (one, reasons) in order.iter().zip(reasons) {
        let (stays, why) = match (one.spared, reasons.is_empty()) {
            (Some(why), _) => (true, why.to_owned()),
            (None, _) if !rule.has_rule() => (true, "there is no rule for its age".into()),
            (None, false) => (true, reasons.join(", ")),
            (None, true) => (false, "no rule keeps it".into()),
        };
        verdicts.push(Verdict { id: one.id, stays, why });
    }
    if rule.max_bytes > 0 {
        shrink(&order, rule.max_bytes, &mut verdicts, bytes);
    }
    verdicts
}

/// Lets the oldest go until all that stay take no more than that.
fn shrink(order: &[&Candidate], most: u64, verdicts: &mut [Verdict], bytes: impl Fn(&[Id]) -> u64) {
    for at in (0..order.len()).rev() {
        let staying: Vec<Id> = verdicts.iter().filter(|one| one.stays).map(|one| one.id).collect();
        if bytes(&staying) <= most {
            return;
        }
        if verdicts[at].stays && order[at].spared.is_none() {
            verdicts[at].stays = false;
            verdicts[at].why = "all of them take more than --max-size, and it is the oldest".into();
        }
    }
}

/// Of each, newest first, what keeps it.
fn reasons(order: &[&Candidate], rule: &Retention) -> Vec<Vec<String>> {
    let mut reasons = vec![Vec::new(); order.len()];
    for (name, most) in rule.keep.named() {
        let (mut count, mut last) = (0, None);
        for (at, one) in order.iter().enumerate() {
            let period = period(name, one.time, at);
            if count < most && last != Some(period) {
                count += 1;
                last = Some(period);
                reasons[at].push(format!("{name} {count} of {most}"));
            }
        }
    }
    if let Some(newest) = order.first().filter(|_| rule.within_seconds > 0) {
        for (at, one) in order.iter().enumerate() {
            if newest.time.abs_diff(one.time) <= rule.within_seconds {
                reasons[at].push("young enough".into());
            }
        }
    }
    reasons
}

/// Which period of its kind a time is in; for `last` each is one of its own.
fn period(name: &str, time: i64, at: usize) -> (i64, i64) {
    let date = DateTime::<Utc>::from_timestamp(time, 0).unwrap_or_default();
    match name {
        "hourly" => (time.div_euclid(3600), 0),
        "daily" => (time.div_euclid(24 * 3600), 0),
        "weekly" => (date.iso_week().year().into(), date.iso_week().week().into()),
        "monthly" => (date.year().into(), date.month().into()),
        "yearly" => (date.year().into(), 0),
        _ => (i64::try_from(at).unwrap_or(i64::MAX), 1),
    }
}

/// The time of a checkpoint that is made at `now`, counted on from all that there are: a clock that
/// is set while the host is up neither adds nor takes anything.
pub fn counted(all: &[Manifest], now: &Moment) -> i64 {
    let on = |manifest: &Manifest| {
        let since = i64::try_from(now.since(manifest.keeping.made.as_ref()?)).ok()?;
        time_of(manifest).checked_add(since)
    };
    all.iter().filter_map(on).max().unwrap_or(now.at.timestamp())
}

/// One of an older piton has the clock's.
pub fn time_of(manifest: &Manifest) -> i64 {
    manifest.keeping.counted.unwrap_or(manifest.created.timestamp())
}

#[cfg(test)]
mod tests;
