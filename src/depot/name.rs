//! The names of chunks.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What a chunk is called after its contents (`keys.rs`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(pub [u8; Name::LEN]);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the name of a chunk is 64 hexadecimal digits")]
pub struct BadName;

impl Name {
    pub const LEN: usize = 32;
    /// Of every chunk that is all zeros; none is stored.
    pub const ZEROS: Self = Self([0; Self::LEN]);
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for Name {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let mut bytes = [0; Self::LEN];
        if text.len() != 2 * Self::LEN || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(BadName);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            let digits = std::str::from_utf8(digits).map_err(|_| BadName)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| BadName)?;
        }
        Ok(Self(bytes))
    }
}

impl TryFrom<String> for Name {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> Self {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_survives_its_digits_and_nothing_else_is_one() {
        let name = Name(std::array::from_fn(|at| at as u8 * 7));
        assert_eq!(name.to_string().parse(), Ok(name));
        let zeros = Name::ZEROS.to_string();
        for bad in
            ["", "00", &zeros[1..], &format!("{zeros}0"), &zeros.replacen('0', "+", 1), &"\u{e9}".repeat(32)]
        {
            assert_eq!(bad.parse::<Name>(), Err(BadName), "{bad}");
        }
    }
}
