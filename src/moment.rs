//! Points in time between which setting the host's clock adds and takes nothing, as far as that
//! can be known: while the host is up it counts by itself.

use std::sync::OnceLock;

use chrono::{DateTime, Local, NaiveDate, NaiveDateTime, NaiveTime, TimeZone, Utc};
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub at: DateTime<Utc>,
    /// Which boot of the host it was in; none: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Seconds that the host was up, those included in which it slept.
    #[serde(default)]
    pub uptime: u64,
}

impl Moment {
    pub fn now() -> Self {
        // What cannot be told is as good as no boot.
        let up = clock_gettime(ClockId::CLOCK_BOOTTIME).ok();
        let boot = boot().clone().filter(|_| up.is_some());
        Self { at: Utc::now(), boot, uptime: up.map_or(0, |time| time.tv_sec().unsigned_abs()) }
    }

    /// Seconds from `earlier` to this one. Over a reboot of the host it is what the clock says, but at least
    /// as long as the host is up again.
    pub fn since(&self, earlier: &Self) -> u64 {
        if self.boot.is_some() && self.boot == earlier.boot {
            return self.uptime.saturating_sub(earlier.uptime);
        }
        let by_clock = u64::try_from((self.at - earlier.at).num_seconds()).unwrap_or(0);
        match (&self.boot, &earlier.boot) {
            (Some(_), Some(_)) => by_clock.max(self.uptime),
            _ => by_clock,
        }
    }
}

const UNITS: [(&str, u64); 5] = [("w", 7 * 24 * 3600), ("d", 24 * 3600), ("h", 3600), ("m", 60), ("s", 1)];

/// Seconds of a time such as `24h`, `3d`, `90m` or `1d12h`; `0` stands for none.
pub fn parse_span(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{}` is not a time: write it as 90m, 24h, 3d or 2w", text.escape_debug());
    if text == "0" {
        return Ok(0);
    }
    let (mut rest, mut seconds) = (text, 0u64);
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, after) = rest.split_at(digits);
        let (unit, each) = UNITS.iter().find(|(unit, _)| after.starts_with(unit)).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        seconds = number.checked_mul(*each).and_then(|more| seconds.checked_add(more)).ok_or_else(wrong)?;
        rest = &after[unit.len()..];
    }
    // A century is as good as for ever, and can be added to any time.
    if text.is_empty() { Err(wrong()) } else { Ok(seconds.min(100 * 365 * 24 * 3600)) }
}

/// A point in time: a span before `now`, or an instant: RFC 3339, a local date with or without a time, or a
/// time of today.
pub fn parse_instant(text: &str, now: DateTime<Utc>) -> Result<DateTime<Utc>, String> {
    if let Ok(seconds) = parse_span(text) {
        let before = chrono::TimeDelta::seconds(i64::try_from(seconds).unwrap_or(i64::MAX / 1000));
        return now.checked_sub_signed(before).ok_or_else(|| "this is too long ago".into());
    }
    if let Ok(instant) = DateTime::parse_from_rfc3339(text) {
        return Ok(instant.to_utc());
    }
    let today = now.with_timezone(&Local).date_naive();
    let with_date = ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"];
    let date = |text| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0);
    let time = |format| NaiveTime::parse_from_str(text, format).ok().map(|time| today.and_time(time));
    let local = with_date.iter().find_map(|format| NaiveDateTime::parse_from_str(text, format).ok());
    let local = local.or_else(|| date(text)).or_else(|| ["%H:%M:%S", "%H:%M"].iter().find_map(|it| time(it)));
    // An hour that a clock shows twice is the first one; one that it skips is none.
    local.and_then(|local| Local.from_local_datetime(&local).earliest()).map(|time| time.to_utc()).ok_or_else(|| {
        let text = text.escape_debug();
        format!("`{text}` is not a time: write it as 10m, 2h, 14:30, `2026-01-31 14:30` or 2026-01-31T14:30:00Z")
    })
}

/// As people read it: local time with its zone, to the second.
pub fn shown(time: &DateTime<Utc>) -> String {
    let local = time.with_timezone(&Local);
    let zone =
        if local.offset().local_minus_utc() == 0 { "Z".into() } else { local.format("%:z").to_string() };
    format!("{}{zone}", local.format("%Y-%m-%d %H:%M:%S"))
}

/// As [`parse_span`] reads it.
pub fn span(seconds: u64) -> String {
    let whole = UNITS.iter().filter(|(unit, _)| *unit != "w");
    let fits = whole.clone().find(|(_, each)| seconds > 0 && seconds.is_multiple_of(*each));
    match fits {
        Some((unit, each)) => format!("{}{unit}", seconds / each),
        None => "0".into(),
    }
}

fn boot() -> &'static Option<String> {
    static BOOT: OnceLock<Option<String>> = OnceLock::new();
    BOOT.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty() && id.len() <= 64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(boot: Option<&str>, uptime: u64, seconds: i64) -> Moment {
        let at = DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap();
        Moment { at, boot: boot.map(Into::into), uptime }
    }

    #[test]
    fn a_clock_that_is_set_changes_nothing_while_the_host_is_up() {
        let first = moment(Some("a"), 100, 0);
        assert_eq!(moment(Some("a"), 160, 1_000_000).since(&first), 60);
        assert_eq!(moment(Some("a"), 160, -1_000_000).since(&first), 60);
        // Over a reboot, and where no boot is known.
        assert_eq!(moment(Some("b"), 5, 3600).since(&first), 3600);
        assert_eq!(moment(Some("b"), 5, -3600).since(&first), 5);
        assert_eq!(moment(None, 160, 7).since(&moment(None, 100, 0)), 7);
    }

    #[test]
    fn times_are_read_and_told() {
        for (text, seconds) in
            [("0", 0), ("24h", 86_400), ("3d", 259_200), ("1d12h", 129_600), ("2w", 1_209_600), ("90m", 5400)]
        {
            assert_eq!(parse_span(text), Ok(seconds), "{text}");
            assert_eq!(parse_span(&span(seconds)), Ok(seconds), "{text}");
        }
        for wrong in ["", "h", "24", "1y", "-3h", "1.5h", "99999999999999999999d", "99999999999999999w", "ä"]
        {
            assert!(parse_span(wrong).is_err(), "{wrong}");
        }
        assert_eq!((span(86_400), span(5400), span(61)), ("1d".into(), "90m".into(), "61s".into()));
    }

    #[test]
    fn instants() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let after = |text: &str| parse_instant(text, now).map(|time| (now - time).num_seconds());
        assert_eq!((after("10m"), after("1d")), (Ok(600), Ok(86_400)));
        assert_eq!(after("2027-01-15T08:00:00Z"), Ok(0));
        assert_eq!(after("2027-01-15T10:00:00+02:00"), Ok(0));
        let local = now.with_timezone(&Local);
        for format in ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M", "%H:%M:%S", "%H:%M"] {
            assert_eq!(after(&local.format(format).to_string()), Ok(0), "{format}");
        }
        let midnight = after(&local.format("%Y-%m-%d").to_string()).unwrap();
        assert!((0..86_400).contains(&midnight), "{midnight}");
        for wrong in ["", "yesterday", "25:00", "2027-02-30", "2027-01-15T08:00:00X", "-1h", "10"] {
            assert!(parse_instant(wrong, now).is_err(), "{wrong}");
        }
    }

    #[test]
    fn now_is_not_before_what_was() {
        let before = Moment::now();
        assert!(Moment::now().since(&before) < 3600);
    }
}
