//! Where a depot is, and which checkpoint in it is meant: `s3://bucket/prefix/VM@CHECKPOINT`, the same
//! with `file://`, or as the path of a folder. What has an `@` in its last part names a checkpoint.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use super::folder::Folder;
use super::pace::Pace;
use super::s3::S3;
use super::store::Store;
use super::{DepotError, Result};
use crate::checkpoint::CheckpointName;
use crate::folder::VmName;
use crate::progress::Progress;
use crate::storage::Storage;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    S3 {
        bucket: String,
        /// Without a slash at either end; may be empty.
        prefix: String,
    },
    Folder(PathBuf),
}

/// What a checkpoint is called in a depot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Title {
    pub vm: VmName,
    pub checkpoint: CheckpointName,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub place: Place,
    pub title: Option<Title>,
}

impl fmt::Display for Title {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.vm, self.checkpoint)
    }
}

impl FromStr for Title {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let (vm, checkpoint) = text.split_once('@').ok_or_else(|| {
            format!("a checkpoint in a depot is named as VM@CHECKPOINT, not `{}`", text.escape_debug())
        })?;
        Ok(Self {
            vm: vm.parse().map_err(|e: crate::folder::NameError| e.to_string())?,
            checkpoint: checkpoint.parse().map_err(|e| format!("{e}"))?,
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

/// What is before the name of a checkpoint, if there is one.
fn title_of(text: &str) -> std::result::Result<(&str, Option<Title>), String> {
    let text = text.trim_end_matches('/');
    let (before, last) = text.rsplit_once('/').unwrap_or(("", text));
    if last.contains('@') {
        Ok((before.trim_end_matches('/'), Some(last.parse()?)))
    } else {
        Ok((text, None))
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let shown = text.escape_debug();
        let (place, title) = match text.split_once("://") {
            Some(("s3", rest)) => {
                let (whole, title) = title_of(rest)?;
                let (bucket, prefix) = whole.split_once('/').unwrap_or((whole, ""));
                let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
                if bucket.is_empty() || !bucket.chars().all(plain) {
                    return Err(format!("`{shown}` names no bucket: write it as s3://BUCKET/PREFIX"));
                }
                let fine =
                    |part: &str| !part.is_empty() && ![".", ".."].contains(&part) && part.chars().all(plain);
                if !prefix.is_empty() && !prefix.split('/').all(fine) {
                    return Err(format!(
                        "the prefix `{}` is not made of letters, digits, `-`, `_` and `.` between single slashes",
                        prefix.escape_debug()
                    ));
                }
                (Place::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() }, title)
            }
            Some(("file", rest)) if rest.starts_with('/') => {
                let (path, title) = title_of(rest)?;
                (Place::Folder(if path.is_empty() { "/" } else { path }.into()), title)
            }
            Some(("file", _)) => return Err(format!("`{shown}` is no path: write it as file:///FOLDER")),
            Some((scheme, _)) => {
                return Err(format!(
                    "`{}://` is not supported: a depot is at s3://BUCKET/PREFIX or in a folder",
                    scheme.escape_debug()
                ));
            }
            None if text.is_empty() => return Err("an empty path names no depot".into()),
            None => {
                let (path, title) = title_of(text)?;
                let empty = if text.starts_with('/') { "/" } else { "." };
                (Place::Folder(if path.is_empty() { empty } else { path }.into()), title)
            }
        };
        Ok(Self { place, title })
    }
}

impl Place {
    /// `progress` calls off what is under way.
    pub fn open(&self, storage: &Storage, pace: Pace, progress: &Progress) -> Result<Arc<dyn Store>> {
        let pace = Arc::new(pace);
        Ok(match self {
            Self::S3 { bucket, prefix } => Arc::new(S3::open(bucket, prefix, pace, progress)?),
            Self::Folder(path) => {
                let path = std::path::absolute(path).map_err(|e| {
                    DepotError::Refused(format!("cannot find the folder {}: {e}", path.display()))
                })?;
                Arc::new(Folder::open(storage, &path, pace, progress)?)
            }
        })
    }

    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Folder(path) => Some(path),
            Self::S3 { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_names_are_told_apart() {
        let read = |text: &str| text.parse::<Location>();
        let shown = |text: &str| {
            let location = read(text).unwrap();
            (location.place.to_string(), location.title.map(|title| title.to_string()).unwrap_or_default())
        };
        let pair = |place: &str, title: &str| (place.to_owned(), title.to_owned());
        assert_eq!(shown("s3://b"), pair("s3://b", ""));
        assert_eq!(shown("s3://b/"), pair("s3://b", ""));
        assert_eq!(shown("s3://b/p/q/"), pair("s3://b/p/q", ""));
        assert_eq!(shown("s3://b/demo@clean"), pair("s3://b", "demo@clean"));
        assert_eq!(shown("s3://b/p/demo@clean"), pair("s3://b/p", "demo@clean"));
        assert_eq!(shown("file:///srv/depot/demo@clean"), pair("/srv/depot", "demo@clean"));
        assert_eq!(shown("file:///"), pair("/", ""));
        assert_eq!(shown("/srv/depot"), pair("/srv/depot", ""));
        assert_eq!(shown("depot/demo@one"), pair("depot", "demo@one"));
        assert_eq!(shown("./demo@one"), pair(".", "demo@one"));
        for bad in [
            "",
            "s3://",
            "s3:///p",
            "s3://b/../p",
            "s3://b/a//b",
            "https://x/y",
            "file://rel",
            "d/@x",
            "s3://v@c",
            "d/v@",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
