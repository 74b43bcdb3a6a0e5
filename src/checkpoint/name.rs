//! What a checkpoint may be called.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::id::Id;

/// Most characters of a name.
pub const NAME_MAX: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("the name of a checkpoint cannot be empty")]
    Empty,
    #[error(
        "`{shown}...` is not a checkpoint name: it has {len} characters, and at most {NAME_MAX} are allowed"
    )]
    TooLong { shown: String, len: usize },
    #[error("`{name}` is not a checkpoint name: {char:?} is not allowed")]
    Char { name: String, char: char },
    #[error("`{0}` is not a checkpoint name: it consists of dots only")]
    Dots(String),
    #[error("`{0}` is not a checkpoint name: it begins or ends with a space")]
    Space(String),
    #[error("`{0}` is not a checkpoint name: it could be taken for an id")]
    LikeId(String),
}

/// A name that `NAME@CP`, a URL and a terminal can carry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointName(String);

impl CheckpointName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The time as ISO 8601, with a number behind it if `taken`.
    pub fn of_time(time: &DateTime<Utc>, taken: impl Fn(&str) -> bool) -> Self {
        let time = time.format("%Y-%m-%dT%H:%M:%SZ").to_string();
        let mut name = time.clone();
        let mut number = 1u64;
        while taken(&name) {
            number += 1;
            name = format!("{time}-{number}");
        }
        Self(name)
    }
}

impl FromStr for CheckpointName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let name = || escaped(text);
        let len = text.chars().count();
        if len > NAME_MAX {
            let shown: String = text.chars().take(NAME_MAX).collect();
            return Err(NameError::TooLong { shown: escaped(&shown), len });
        }
        if let Some(char) = text.chars().find(|c| "/@".contains(*c) || c.is_control()) {
            return Err(NameError::Char { name: name(), char });
        }
        if text.is_empty() {
            Err(NameError::Empty)
        } else if text.chars().all(|c| c == '.') {
            Err(NameError::Dots(name()))
        } else if text.trim() != text {
            Err(NameError::Space(name()))
        } else if text.parse::<Id>().is_ok() {
            Err(NameError::LikeId(name()))
        } else {
            Ok(Self(text.to_owned()))
        }
    }
}

/// A message must not carry what the name may not.
fn escaped(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

impl TryFrom<String> for CheckpointName {
    type Error = NameError;
    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<CheckpointName> for String {
    fn from(name: CheckpointName) -> Self {
        name.0
    }
}

impl fmt::Display for CheckpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;

    use super::*;

    #[test]
    fn names() {
        for good in
            ["a", "before upgrade", "2026-11-22T18:40:12", "ä ö", ".x", "...a", "beef", &"ä".repeat(64)]
        {
            assert_eq!(good.parse::<CheckpointName>().map(String::from), Ok(good.to_owned()));
        }
        let (id, long) = ("0123456789abcdefABCDEF0123456789", "x".repeat(65));
        for bad in ["", ".", "..", "...", "a/b", "a@b", "a\nb", "\u{7f}", "\u{1b}[2J", " a", "a ", id, &long]
        {
            let error = bad.parse::<CheckpointName>().unwrap_err().to_string();
            assert!(!error.contains(|c: char| c.is_control()), "{error:?}");
        }
    }

    #[test]
    fn a_default_name_is_the_time_and_unique() {
        let time = Utc.with_ymd_and_hms(2026, 11, 22, 18, 40, 12).unwrap();
        let name = |taken: &[&str]| CheckpointName::of_time(&time, |name| taken.contains(&name));
        assert_eq!(name(&[]).as_str(), "2026-11-22T18:40:12Z");
        assert_eq!(name(&["2026-11-22T18:40:12Z"]).as_str(), "2026-11-22T18:40:12Z-2");
        let both = name(&["2026-11-22T18:40:12Z", "2026-11-22T18:40:12Z-2"]);
        assert_eq!(both.as_str(), "2026-11-22T18:40:12Z-3");
        assert_eq!(both.as_str().parse(), Ok(both));
    }
}
