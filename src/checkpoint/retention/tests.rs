use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::checkpoint::manifest::tests::sample;
use crate::folder::Counts;

fn id(n: usize) -> Id {
    Id::from_bytes((n as u128).to_be_bytes())
}

fn candidates(times: &[(i64, bool)]) -> Vec<Candidate> {
    let candidate = |(n, (time, pinned)): (usize, &(i64, bool))| Candidate {
        id: id(n),
        time: *time,
        created: DateTime::UNIX_EPOCH,
        spared: pinned.then_some("pinned"),
    };
    times.iter().enumerate().map(candidate).collect()
}

/// The same slowly: who stays is whoever is the newest of one of the newest periods.
fn slow(candidates: &[Candidate], rule: &Retention) -> BTreeSet<Id> {
    let day = |time: i64| time.div_euclid(86_400);
    // 1970-01-01 was a Thursday.
    let week = |time: i64| (day(time) + 3).div_euclid(7);
    let month = |time: i64| DateTime::<Utc>::from_timestamp(time, 0).unwrap().format("%Y%m").to_string();
    let year = |time: i64| DateTime::<Utc>::from_timestamp(time, 0).unwrap().format("%Y").to_string();
    let is_newer = |a: &Candidate, b: &Candidate| (a.time, a.id) > (b.time, b.id);
    let same = |name: &str, a: &Candidate, b: &Candidate| match name {
        "hourly" => a.time.div_euclid(3600) == b.time.div_euclid(3600),
        "daily" => day(a.time) == day(b.time),
        "weekly" => week(a.time) == week(b.time),
        "monthly" => month(a.time) == month(b.time),
        "yearly" => year(a.time) == year(b.time),
        _ => a.id == b.id,
    };
    let is_first = |name: &str, one: &Candidate| {
        !candidates.iter().any(|other| is_newer(other, one) && same(name, other, one))
    };
    let newest = candidates.iter().map(|one| one.time).max().unwrap_or(0);
    let stays = |one: &&Candidate| {
        let by_count = rule.keep.named().into_iter().any(|(name, most)| {
            let newer = candidates.iter().filter(|other| is_newer(other, one) && is_first(name, other));
            is_first(name, one) && (newer.count() as u32) < most
        });
        let young = rule.within_seconds > 0 && newest - one.time <= rule.within_seconds as i64;
        one.spared.is_some() || !rule.has_rule() || by_count || young
    };
    candidates.iter().filter(stays).map(|one| one.id).collect()
}

fn staying(verdicts: &[Verdict]) -> BTreeSet<Id> {
    verdicts.iter().filter(|one| one.stays).map(|one| one.id).collect()
}

fn rules() -> impl Strategy<Value = Retention> {
    let counts = (0..4u32, 0..4u32, 0..4u32, 0..4u32, 0..4u32, 0..3u32);
    (counts, prop_oneof![Just(0u64), 0..1_000_000u64], prop_oneof![Just(0u64), 0..40u64]).prop_map(
        |((last, hourly, daily, weekly, monthly, yearly), within_seconds, max_bytes)| Retention {
            keep: Counts { last, hourly, daily, weekly, monthly, yearly },
            within_seconds,
            max_bytes,
            all: false,
        },
    )
}

fn times() -> impl Strategy<Value = Vec<(i64, bool)>> {
    let time = prop_oneof![0..40_000i64, 0..3_000_000i64, 0..200_000_000i64];
    prop::collection::vec((time, prop::bool::weighted(0.1)), 0..40)
}

proptest! {
    #[test]
    fn who_stays_is_whom_the_slow_model_keeps(times in times(), rule in rules()) {
        let rule = Retention { max_bytes: 0, ..rule };
        let candidates = candidates(&times);
        let verdicts = judge(&candidates, &rule, |_| 0);
        prop_assert_eq!(staying(&verdicts), slow(&candidates, &rule));
        prop_assert!(verdicts.iter().all(|one| !one.why.is_empty()));
    }

    #[test]
    fn a_size_takes_the_oldest_and_no_more_than_it_must(times in times(), rule in rules()) {
        let candidates = candidates(&times);
        let by_age = staying(&judge(&candidates, &Retention { max_bytes: 0, ..rule }, |_| 0));
        let verdicts = judge(&candidates, &rule, |ids| ids.len() as u64);
        let stays = staying(&verdicts);
        prop_assert!(stays.is_subset(&by_age));
        let pinned = candidates.iter().filter(|one| one.spared.is_some()).count() as u64;
        if rule.max_bytes > 0 {
            prop_assert!(stays.len() as u64 <= rule.max_bytes.max(pinned));
            prop_assert!(stays.len() as u64 >= rule.max_bytes.min(by_age.len() as u64));
        }
        // Of those that may go, none that stays is older than one that the size took.
        let time = |id: &Id| candidates.iter().find(|one| one.id == *id).map(|one| (one.time, one.id)).unwrap();
        let spared = |id: &Id| candidates.iter().any(|one| one.id == *id && one.spared.is_some());
        let oldest = stays.iter().filter(|id| !spared(id)).map(time).min();
        let taken = by_age.difference(&stays).map(time).max();
        prop_assert!(oldest.zip(taken).is_none_or(|(oldest, taken)| oldest > taken));
    }

    /// The same checkpoints at the same real times, with a clock that is right and one that is set
    /// between any two of them: what goes is the same.
    #[test]
    fn a_clock_that_jumps_takes_nothing_more(
        steps in prop::collection::vec((1..400_000u64, prop_oneof![Just(0i64), -90_000_000..90_000_000i64]), 1..25),
        rule in rules(),
    ) {
        let begin = 1_700_000_000i64;
        let make = |jumps: bool| {
            let (mut all, mut uptime, mut wall): (Vec<Manifest>, u64, i64) = (Vec::new(), 100, begin);
            for (n, (step, jump)) in steps.iter().enumerate() {
                uptime += step;
                wall += *step as i64;
                if jumps && n > 0 {
                    wall += jump;
                }
                let at = DateTime::from_timestamp(wall, 0).unwrap();
                let now = Moment { at, boot: Some("a".into()), uptime };
                let mut manifest = sample(id(n), "x", None);
                manifest.created = at;
                manifest.keeping.counted = Some(counted(&all, &now));
                manifest.keeping.made = Some(now);
                all.push(manifest);
            }
            let candidates: Vec<_> = all
                .iter()
                .map(|one| Candidate { id: one.id, time: time_of(one), created: one.created, spared: None })
                .collect();
            staying(&judge(&candidates, &rule, |ids| ids.len() as u64))
        };
        prop_assert_eq!(make(true), make(false));
    }
}

#[test]
fn each_is_told_why() {
    let hour = 3600;
    let times = [(0, false), (hour, true), (2 * hour, false), (2 * hour + 60, false)];
    let rule = Retention { keep: "last=1,hourly=2".parse().unwrap(), ..Retention::default() };
    let verdicts = judge(&candidates(&times), &rule, |_| 0);
    let told: Vec<_> = verdicts.iter().map(|one| (one.stays, one.why.as_str())).collect();
    assert_eq!(
        told,
        [
            (true, "last 1 of 1, hourly 1 of 2"),
            (false, "no rule keeps it"),
            (true, "pinned"),
            (false, "no rule keeps it")
        ]
    );
}
