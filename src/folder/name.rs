//! What a VM may be called.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name of a VM.
pub const NAME_MAX: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error(
    "`{}` is not a VM name: use 1 to {NAME_MAX} letters, digits, `-`, `_` or `.`, starting with a letter or digit",
    .0.escape_debug()
)]
pub struct NameError(String);

/// A name that is also a safe file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VmName(String);

impl VmName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VmName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let good = (1..=NAME_MAX).contains(&text.len())
            && text.chars().all(ok)
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());
        if good {
            return Ok(Self(text.to_owned()));
        }
        // A long name would bury the sentence.
        let shown: String = text.chars().take(NAME_MAX).collect();
        Err(NameError(if shown.len() < text.len() { shown + "..." } else { shown }))
    }
}

impl TryFrom<String> for VmName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<VmName> for String {
    fn from(name: VmName) -> Self {
        name.0
    }
}

impl std::fmt::Display for VmName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
