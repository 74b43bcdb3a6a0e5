//! Output of a guest on its way to standard output: as it is, with times, or as JSON.

use chrono::{DateTime, Local, SecondsFormat, Utc};

use super::super::out;
use crate::devices::console::times::Times;

/// Longest line as JSON, in bytes; what is longer becomes several.
const LINE_MAX: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Plain,
    /// Each line after its time.
    Stamped,
    /// An object for each line.
    Json,
}

pub struct Lines {
    form: Form,
    /// The line that is not at its end, and its time; what of it was printed is not kept.
    line: Option<(Option<DateTime<Utc>>, Vec<u8>)>,
}

/// Local, with the zone. What has no time gets as much space.
fn stamp(time: Option<DateTime<Utc>>) -> String {
    match time {
        Some(time) => time.with_timezone(&Local).to_rfc3339_opts(SecondsFormat::Millis, false),
        None => format!("{:29}", "-"),
    }
}

impl Lines {
    pub fn new(form: Form) -> Self {
        Self { form, line: None }
    }

    /// `piece` is what the log has from `at` on.
    pub fn print(&mut self, piece: &[u8], at: u64, times: &Times) {
        if self.form == Form::Plain {
            out::bytes(piece);
            return out::flush();
        }
        let mut at = at;
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let (is_new, begun) = (self.line.is_none(), self.line.take());
            let (time, mut line) = begun.unwrap_or_else(|| (times.at(at), Vec::new()));
            at += part.len() as u64;
            if self.form == Form::Stamped {
                if is_new {
                    out::bytes(format!("{} ", stamp(time)).as_bytes());
                }
                out::bytes(part);
            } else {
                line.extend_from_slice(part);
            }
            if part.ends_with(b"\n") || line.len() >= LINE_MAX {
                self.tell(time, &line);
            } else {
                self.line = Some((time, line));
            }
        }
        out::flush();
    }

    /// There is no more.
    pub fn end(&mut self) {
        if let Some((time, line)) = self.line.take() {
            self.tell(time, &line);
        }
    }

    fn tell(&self, time: Option<DateTime<Utc>>, line: &[u8]) {
        if self.form == Form::Json {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line));
            let time = time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true));
            out::json_line(&serde_json::json!({ "time": time, "line": line }));
        }
    }
}
