//! What a process looks like to whoever lists processes.

use std::ffi::OsString;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;

/// Puts `words` in place of those that this process was started with, after its name, as many as fit.
/// Only while it has one thread.
pub fn set(words: &[OsString]) {
    let Some(place) = place() else { return };
    let Some(name) = std::env::args_os().next().map(|name| name.len() + 1) else { return };
    let Some(room) = place.len().checked_sub(name).filter(|room| *room > 1) else { return };
    let bytes = fitting(words, room);
    // SAFETY: between these addresses the kernel put the words of the command line, in memory of this
    // process that is writable and stays; its one thread is here, so nobody reads them now, and each of
    // them ends with a NUL afterwards as the last byte is one.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), (place.start + name) as *mut u8, bytes.len()) }
}

/// As many as fit, each with a NUL at its end, and so many bytes in all.
fn fitting(words: &[OsString], room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(room);
    for word in words.iter().map(|word| word.as_bytes()) {
        if bytes.len() + word.len() >= room {
            break;
        }
        bytes.extend(word.iter().chain([&0]));
    }
    bytes.resize(room, 0);
    bytes
}

/// Where the words are, as proc_pid_stat(5) tells it: fields 48 and 49, the second of which is the name
/// of the program, in parentheses.
fn place() -> Option<Range<usize>> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(48 - 3);
    let mut next = || fields.next()?.parse().ok().filter(|at| *at > 0);
    let (start, end) = (next()?, next()?);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_do_not_fit_are_left_out() {
        let words = ["start".into(), "demo".into()];
        assert_eq!(fitting(&words, 14), b"start\0demo\0\0\0\0");
        assert_eq!(fitting(&words, 11), b"start\0demo\0");
        assert_eq!(fitting(&words, 8), b"start\0\0\0");
        assert_eq!(fitting(&words, 5), [0; 5]);
    }

    #[test]
    fn the_words_are_where_the_kernel_says() {
        let place = place().unwrap();
        let first = std::env::args_os().next().unwrap();
        // SAFETY: the words of this process are there, and nobody changes them.
        let found = unsafe { std::slice::from_raw_parts(place.start as *const u8, first.len() + 1) };
        assert_eq!((&found[..first.len()], found[first.len()]), (first.as_bytes(), 0));
    }
}
