//! Lengths of time, as they are typed.

use std::time::Duration;

/// Seconds, with a fraction or without.
pub fn parse_seconds(text: &str) -> Result<Duration, String> {
    let time = text.parse().ok().and_then(|seconds: f64| Duration::try_from_secs_f64(seconds).ok());
    // A year is as good as for ever, and can be added to any time.
    time.map(|time| time.min(Duration::from_secs(365 * 24 * 3600)))
        .ok_or_else(|| format!("`{}` is not a number of seconds", text.escape_debug()))
}
