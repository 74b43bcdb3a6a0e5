//! Names of layers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Name of a layer that outlives renames of its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LayerId([u8; 16]);

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a layer id is 32 hexadecimal digits")]
pub struct BadLayerId;

impl LayerId {
    pub const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for LayerId {
    type Err = BadLayerId;

    fn from_str(text: &str) -> Result<Self, BadLayerId> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(BadLayerId);
        }
        u128::from_str_radix(text, 16).map(|n| Self(n.to_be_bytes())).map_err(|_| BadLayerId)
    }
}

impl TryFrom<String> for LayerId {
    type Error = BadLayerId;
    fn try_from(text: String) -> Result<Self, BadLayerId> {
        text.parse()
    }
}

impl From<LayerId> for String {
    fn from(id: LayerId) -> String {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_text_and_back() {
        let id = LayerId([0x0f; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        for bad in ["", "0f", "+f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f", "zf0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"] {
            assert_eq!(bad.parse::<LayerId>(), Err(BadLayerId));
        }
    }
}
