//! The last lines of a console as plain text: what a terminal would obey is left out.

use std::path::Path;

use crate::storage::{Access, Storage, StorageError};

/// Lines that are told, and characters of each.
const LINES: usize = 8;
const WIDTH: usize = 120;
/// How much of the end is looked at, in bytes.
const END: usize = 8 << 10;

/// The last lines of the log at `path`; none where there is none.
pub fn of(storage: &Storage, path: &Path) -> Result<Vec<String>, StorageError> {
    let file = match storage.open(path, Access::ReadOnly) {
        Err(e) if e.is_not_found() => return Ok(Vec::new()),
        file => file?,
    };
    let mut bytes = vec![0; END];
    let count = file.read_up_to(&mut bytes, file.len()?.saturating_sub(END as u64))?;
    Ok(lines(&String::from_utf8_lossy(&bytes[..count])))
}

fn lines(text: &str) -> Vec<String> {
    let plain = without_escapes(text);
    let shown = plain.split('\n').map(|line| {
        // What follows a carriage return is written over what stands before.
        let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        let line: String = line.chars().filter(|c| !c.is_control()).take(WIDTH).collect();
        line.trim_end().to_owned()
    });
    let mut lines: Vec<String> = shown.filter(|line| !line.is_empty()).collect();
    lines.drain(..lines.len().saturating_sub(LINES));
    lines
}

/// Without the sequences that begin with an escape character (ECMA-48).
fn without_escapes(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '\u{1b}' {
            plain.push(c);
            continue;
        }
        match chars.next() {
            Some('[') => while chars.next().is_some_and(|c| !('@'..='~').contains(&c)) {},
            // A string, up to a bell or the sequence ESC \.
            Some(']' | 'P' | 'X' | '^' | '_') => loop {
                match chars.next() {
                    None | Some('\u{7}' | '\n') => break,
                    Some('\u{1b}') => {
                        chars.next_if_eq(&'\\');
                        break;
                    }
                    Some(_) => {}
                }
            },
            Some('(' | ')' | '#' | '%') => drop(chars.next()),
            _ => {}
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_seen_of_a_console() {
        for (text, expected) in [
            ("one\r\ntwo\r\n\r\nthree", vec!["one", "two", "three"]),
            ("\u{1b}[1;31mred\u{1b}[0m \u{1b}]0;title\u{7}x\u{1b}(B", vec!["red x"]),
            ("10 %\r20 %\r", vec!["20 %"]),
            ("<script>alert(1)</script>\u{0}", vec!["<script>alert(1)</script>"]),
            ("\u{1b}", vec![]),
            ("\u{1b}[", vec![]),
        ] {
            assert_eq!(lines(text), expected, "{text:?}");
        }
        let many: String = (0..20).map(|n| format!("{n}\n")).collect();
        assert_eq!(lines(&many).first().map(String::as_str), Some("12"));
        let dir = tempfile::tempdir().unwrap();
        assert!(of(&Storage::os(), &dir.path().join("none")).unwrap().is_empty());
    }

    proptest! {
        #[test]
        fn whatever_a_guest_prints(bytes: Vec<u8>) {
            let lines = lines(&String::from_utf8_lossy(&bytes));
            prop_assert!(lines.len() <= LINES);
            for line in lines {
                prop_assert!(line.chars().count() <= WIDTH && !line.contains(|c: char| c.is_control()));
            }
        }
    }
}
