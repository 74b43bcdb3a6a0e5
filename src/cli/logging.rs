//! The log: what piton has to say beside its output, as lines on standard error. `PITON_LOG` says how
//! much, and `PITON_LOG_FORMAT` how.

use std::io::IsTerminal;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, OnceLock, PoisonError};

use chrono::{SecondsFormat, Utc};
use log::{Level, LevelFilter};

use super::out;
use crate::control::metrics;

/// Lines of the log in a second; a guest that provokes more must not fill a disk with them.
const LINES_A_SECOND: u32 = 20;

/// How a line is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Format {
    #[default]
    Plain,
    /// Before each line its priority, which journald takes off again (sd-daemon(3)).
    Journal,
    /// A JSON object on each line.
    Json,
}

/// With the second it is in and how many lines that had.
struct Logger {
    window: Mutex<(u64, u32)>,
    format: OnceLock<Format>,
    level: OnceLock<LevelFilter>,
    vm: OnceLock<String>,
}

static LOGGER: Logger = Logger {
    window: Mutex::new((0, 0)),
    format: OnceLock::new(),
    level: OnceLock::new(),
    vm: OnceLock::new(),
};

impl Logger {
    fn has_room(&self) -> bool {
        let now = Utc::now().timestamp().unsigned_abs();
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0 != now {
            *window = (now, 0);
        }
        window.1 += 1;
        window.1 <= LINES_A_SECOND
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        metadata.target().starts_with("piton")
    }

    fn log(&self, record: &log::Record) {
        if !self.enabled(record.metadata()) {
            return;
        }
        metrics::logged(record.level());
        if self.level.get().is_none_or(|most| record.level() <= *most) && self.has_room() {
            line(record.level(), true, &record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// journald's numbers of how grave something is (syslog(3)).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// A line as it is written. One of the log has its level in front, others are what a command says.
fn write_down(format: Format, level: Level, of_log: bool, vm: Option<&str>, text: &str) -> String {
    let name = level.to_string().to_lowercase();
    let plain = if of_log { format!("piton: {name}: {text}") } else { format!("piton: {text}") };
    match format {
        Format::Plain => plain,
        Format::Journal => format!("<{}>{plain}", priority(level)),
        Format::Json => {
            let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
            let mut line = serde_json::json!({ "time": time, "level": name, "message": text });
            if let Some(vm) = vm {
                line["vm"] = vm.into();
            }
            line.to_string()
        }
    }
}

fn line(level: Level, of_log: bool, text: &str) {
    let format = LOGGER.format.get().copied().unwrap_or_default();
    out::note(&write_down(format, level, of_log, LOGGER.vm.get().map(String::as_str), text));
}

/// What a command says on standard error in its own words.
pub fn say(text: &str) {
    line(Level::Info, false, text);
}

/// The same of what went wrong.
pub fn fail(text: &str) {
    line(Level::Error, false, text);
}

/// Every line is about this VM from now on.
pub fn about(vm: &str) {
    // Nobody else has one.
    let _ = LOGGER.vm.set(vm.to_owned());
}

/// Whether standard error leads to journald, which says so by device and number (systemd.exec(5)).
fn is_journal(named: &str, stderr: (u64, u64)) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    named
        .split_once(':')
        .is_some_and(|(dev, ino)| number(dev).zip(number(ino)).is_some_and(|(dev, ino)| (dev, ino) == stderr))
}

fn leads_to_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    let found = std::fs::metadata("/proc/self/fd/2").map(|found| (found.dev(), found.ino()));
    !std::io::stderr().is_terminal() && found.is_ok_and(|found| is_journal(&named, found))
}

/// Warnings and errors go to standard error; `PITON_LOG` asks for more or less.
pub fn start() -> Result<(), String> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    let level = match set("PITON_LOG") {
        None => LevelFilter::Warn,
        Some(level) => level.to_str().and_then(|level| level.parse().ok()).ok_or_else(|| {
            format!("PITON_LOG is set to `{}`: use off, error, warn, info or debug", level.display())
        })?,
    };
    let format = match set("PITON_LOG_FORMAT") {
        None if leads_to_journal() => Format::Journal,
        None => Format::Plain,
        Some(format) => match format.to_str() {
            Some("plain") => Format::Plain,
            Some("json") => Format::Json,
            _ => return Err(format!("PITON_LOG_FORMAT is set to `{}`: use plain or json", format.display())),
        },
    };
    let _ = (LOGGER.level.set(level), LOGGER.format.set(format));
    if log::set_logger(&LOGGER).is_ok() {
        // What is not shown is counted all the same.
        log::set_max_level(level.max(LevelFilter::Warn));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_its_level() {
        let write = |format, level, of_log| write_down(format, level, of_log, Some("demo"), "a \"b\"");
        assert_eq!(write(Format::Plain, Level::Warn, true), "piton: warn: a \"b\"");
        assert_eq!(write(Format::Plain, Level::Error, false), "piton: a \"b\"");
        assert_eq!(write(Format::Journal, Level::Error, true), "<3>piton: error: a \"b\"");
        assert_eq!(write(Format::Journal, Level::Info, false), "<6>piton: a \"b\"");
        let json: serde_json::Value =
            serde_json::from_str(&write(Format::Json, Level::Info, true)).expect("it is JSON");
        assert_eq!((json["level"].as_str(), json["vm"].as_str()), (Some("info"), Some("demo")));
        assert_eq!(json["message"], "a \"b\"");
        assert!(json["time"].as_str().is_some_and(|time| time.ends_with('Z')), "{json}");
    }

    #[test]
    fn only_the_stream_that_is_named_is_the_journal() {
        assert!(is_journal("8:17", (8, 17)));
        for named in ["", "8", "8:18", "9:17", "8:17:1", "x:17"] {
            assert!(!is_journal(named, (8, 17)), "{named}");
        }
    }
}
