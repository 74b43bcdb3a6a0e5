//! A command's words.

use crate::outcome::Fail;

pub struct Args<'a> {
    words: core::str::SplitAsciiWhitespace<'a>,
    usage: &'static str,
}

impl<'a> Args<'a> {
    pub fn new(text: &'a str, usage: &'static str) -> Self {
        Self { words: text.split_ascii_whitespace(), usage }
    }

    pub fn word(&mut self) -> Option<&'a str> {
        self.words.next()
    }

    pub fn usage(&self) -> Fail {
        Fail::Usage(self.usage)
    }

    pub fn number(&mut self) -> Result<u64, Fail> {
        self.word().and_then(number).ok_or(self.usage())
    }

    pub fn number_or(&mut self, default: u64) -> Result<u64, Fail> {
        self.word().map_or(Some(default), number).ok_or(self.usage())
    }
}

/// Decimal or 0x hexadecimal, with K, M or G for powers of 1024.
pub fn number(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    let (digits, unit) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 1 << 10),
        b'M' | b'm' => (&text[..text.len() - 1], 1 << 20),
        b'G' | b'g' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}
