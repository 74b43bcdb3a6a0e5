//! The one way to standard output and standard error. What was done is done, so output that cannot
//! be written never stops a command: the first error is kept for [`finish`].

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};

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

/// As `println!`, which would end the process where nobody reads any more.
macro_rules! outln {
    ($($text:tt)*) => { $crate::cli::out::to_stdout(&format!("{}\n", format_args!($($text)*))) };
}
pub(super) use outln;

/// Text to standard error. Where that cannot be written there is nobody to tell.
pub fn to_stderr(text: &str) {
    let mut stderr = io::stderr();
    let _ = stderr.write_all(text.as_bytes()).and_then(|()| stderr.flush());
}

/// One line to standard error. A raw terminal needs the carriage return, any other ignores it.
pub fn note(text: &str) {
    let end = if io::stderr().is_terminal() { "\r\n" } else { "\n" };
    to_stderr(&format!("{text}{end}"));
}

/// Why not all of the output could be written. That nobody wanted more of it is no error.
pub fn finish() -> io::Result<()> {
    match FAILED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        Some(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e),
        _ => Ok(()),
    }
}
