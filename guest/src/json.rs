//! As much of JSON and base64 as a host's compact requests need: no spaces between the parts.

use core::fmt::Write;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// A string, with its escapes. A quoted key inside of another string has its quotes escaped, so this
/// finds none of those.
fn string_after<'a>(text: &'a str, before: &str) -> Option<&'a str> {
    let start = text.find(before)? + before.len();
    raw_string(&text[start..]).map(|(string, _)| string)
}

/// The string that `text`, behind its opening quote, begins with, and what follows it.
fn raw_string(text: &str) -> Option<(&str, &str)> {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some((&text[..at], &text[at + 1..])),
            _ => {}
        }
    }
    None
}

pub fn string<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut quoted = crate::text::Text::<40>::new();
    write!(quoted, "\"{key}\":\"").ok()?;
    string_after(text, quoted.as_str())
}

pub fn number(text: &str, key: &str) -> Option<i64> {
    let mut quoted = crate::text::Text::<40>::new();
    write!(quoted, "\"{key}\":").ok()?;
    let rest = &text[text.find(quoted.as_str())? + quoted.as_str().len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '-').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

/// Calls `each` with the strings of an array.
pub fn strings(text: &str, key: &str, mut each: impl FnMut(&str)) {
    let mut quoted = crate::text::Text::<40>::new();
    if write!(quoted, "\"{key}\":[").is_err() {
        return;
    }
    let Some(start) = text.find(quoted.as_str()) else { return };
    let mut rest = &text[start + quoted.as_str().len()..];
    while let Some(after) = rest.strip_prefix('"') {
        let Some((string, behind)) = raw_string(after) else { return };
        each(string);
        rest = behind.strip_prefix(',').unwrap_or(behind);
    }
}

/// What a string with escapes means; how many bytes of `out` that is.
pub fn unescape(text: &str, out: &mut [u8]) -> Option<usize> {
    let (mut len, mut bytes) = (0, text.bytes());
    while let Some(byte) = bytes.next() {
        let byte = match byte {
            b'\\' => match bytes.next()? {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'b' => 8,
                b'f' => 12,
                b'u' => {
                    let hex = [bytes.next()?, bytes.next()?, bytes.next()?, bytes.next()?];
                    u8::from_str_radix(core::str::from_utf8(&hex).ok()?, 16).ok()?
                }
                other => other,
            },
            byte => byte,
        };
        *out.get_mut(len)? = byte;
        len += 1;
    }
    Some(len)
}

/// How many bytes of `out` it means.
pub fn decode(text: &str, out: &mut [u8]) -> Option<usize> {
    let (mut len, mut bits, mut held) = (0, 0_u32, 0_u32);
    for byte in text.bytes().filter(|byte| *byte != b'=') {
        let value = ALPHABET.iter().position(|c| *c == byte)? as u32;
        (bits, held) = (bits << 6 | value, held + 6);
        if held >= 8 {
            held -= 8;
            *out.get_mut(len)? = (bits >> held) as u8;
            len += 1;
        }
    }
    Some(len)
}

pub fn encode(bytes: &[u8], out: &mut impl Write) -> core::fmt::Result {
    for chunk in bytes.chunks(3) {
        let mut word = [0; 4];
        word[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(word);
        for n in 0..4 {
            let digit = ALPHABET[(bits >> (18 - 6 * n) & 63) as usize];
            out.write_char(if n > chunk.len() { '=' } else { digit.into() })?;
        }
    }
    Ok(())
}
