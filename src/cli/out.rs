//! The one way to standard output and standard error. What was done is done, so output that cannot
//! be written never stops a command: the first error is kept for [`finish`].

use std::borrow::Cow;
use std::io::{self, IsTerminal, Write};
use std::ops::RangeInclusive;
use std::sync::{Mutex, PoisonError};

use super::log_file;

static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

fn keep(result: io::Result<()>) {
    if let Err(e) = result {
        FAILED.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
    }
}

/// Text to standard output; nothing once writing has failed.
pub fn to_stdout(text: &str) {
    if FAILED.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
        let mut stdout = io::stdout().lock();
        keep(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()));
    }
}

/// Bytes to standard output as they are; false once nobody takes them any more.
pub fn bytes(bytes: &[u8]) -> bool {
    let written = io::stdout().lock().write_all(bytes);
    let good = written.is_ok();
    keep(written);
    good
}

pub fn flush() {
    keep(io::stdout().lock().flush());
}

/// As `println!`, which would end the process where nobody reads any more; one line, shown by
/// [`harmless`].
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::out::line(&format!($($text)*)) };
}
pub(super) use outln;

pub fn line(text: &str) {
    to_stdout(&format!("{}\n", harmless(text)));
}

/// As it is: whoever reads JSON knows what is in a string.
pub fn json(value: &serde_json::Value) {
    to_stdout(&format!("{value:#}\n"));
}

pub fn json_line(value: &serde_json::Value) {
    to_stdout(&format!("{value}\n"));
}

/// Text in which others may have a say (notes, paths, what a guest or an export says) without what
/// a terminal would obey, or show in another order than it stands: that is shown escaped.
pub fn harmless(text: &str) -> Cow<'_, str> {
    // Marks of Unicode that turn the direction of what follows.
    const TURNS: [RangeInclusive<char>; 4] =
        ['\u{61c}'..='\u{61c}', '\u{200e}'..='\u{200f}', '\u{2028}'..='\u{202e}', '\u{2066}'..='\u{2069}'];
    let obeyed = |c: char| c.is_control() || TURNS.iter().any(|range| range.contains(&c));
    if !text.contains(obeyed) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if obeyed(c) { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown.into()
}

/// Text to standard error. Where that cannot be written there is nobody to tell.
pub fn to_stderr(text: &str) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
    log_file::written(text.len());
}

/// One line to standard error, shown by [`harmless`]. A raw terminal needs the carriage return, any other ignores it.
pub fn note(text: &str) {
    let end = if io::stderr().is_terminal() { "\r\n" } else { "\n" };
    to_stderr(&format!("{}{end}", harmless(text)));
}

/// Whether nobody takes what is written.
pub fn is_closed() -> bool {
    FAILED.lock().unwrap_or_else(PoisonError::into_inner).is_some()
}

/// Why not all of the output could be written. That nobody wanted more of it is no error.
pub fn finish() -> io::Result<()> {
    match FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_shown() {
        assert_eq!(harmless("a note, \u{e4} \u{2514} \u{1f40d}"), "a note, \u{e4} \u{2514} \u{1f40d}");
        for (text, shown) in [
            ("\x1b[2J\x07", r"\u{1b}[2J\u{7}"),
            ("a\nb\r", r"a\nb\r"),
            ("\u{9b}31m\u{7f}", r"\u{9b}31m\u{7f}"),
            ("safe\u{202e}txt.exe", r"safe\u{202e}txt.exe"),
        ] {
            assert_eq!(harmless(text), shown);
        }
    }
}
