//! Identities of layers and checkpoints.

use std::cell::Cell;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// 128 random bits that name a layer or a checkpoint for good, whatever its file is called.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id([u8; 16]);

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("an id is 32 hexadecimal digits")]
pub struct BadId;

/// Shortest part of an id that stands for it.
pub const MIN_PREFIX: usize = 4;

thread_local! {
    static FORESEEN: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From here on, ids that this thread makes are a sequence that `seed` begins: for tests that have
/// to run the same way again. piton itself never calls it.
pub fn foresee(seed: u64) {
    FORESEEN.set(Some(seed.wrapping_mul(1 << 20)));
}

fn foreseen(count: u64) -> [u8; 16] {
    // Multiplied by an odd number, no two are the same; and they are in no order.
    let word = count.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&word.to_be_bytes());
    bytes[8..].copy_from_slice(&word.rotate_left(29).to_be_bytes());
    bytes
}

impl Id {
    /// A fresh one, unlike any other.
    pub fn random() -> std::io::Result<Self> {
        if let Some(count) = FORESEEN.get() {
            FORESEEN.set(Some(count.wrapping_add(1)));
            return Ok(Self(foreseen(count)));
        }
        let mut bytes = [0u8; 16];
        // SAFETY: `bytes` is valid for writes of its length; up to 256 bytes come whole or not at
        // all.
        let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
        if usize::try_from(got) == Ok(bytes.len()) {
            Ok(Self(bytes))
        } else {
            Err(std::io::Error::last_os_error())
        }
    }

    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Whether `reference`, as somebody typed it, is its beginning, and long enough for one.
    pub fn begins_with(&self, reference: &str) -> bool {
        reference.len() >= MIN_PREFIX && self.to_string().starts_with(&reference.to_ascii_lowercase())
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Id {
    type Err = BadId;

    fn from_str(text: &str) -> Result<Self, BadId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadId);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| BadId)
    }
}

impl TryFrom<String> for Id {
    type Error = BadId;
    fn try_from(text: String) -> Result<Self, BadId> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_text_and_back() {
        let id = Id([0x0f; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0f", "+f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "zf0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"] {
            assert_eq!(bad.parse::<Id>(), Err(BadId));
        }
    }
}
