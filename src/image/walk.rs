//! All that is below a folder. What a file system says of itself is a guest's: folders that contain
//! each other would have no end, and a name can be there twice.

use std::collections::BTreeMap;

use super::error::{ImageError, Result};
use super::node::Node;
use super::survey::Volume;

/// Entries of all folders of a walk.
const ENTRIES_MAX: usize = 1 << 20;
/// Deepest folder.
const DEPTH_MAX: usize = 256;

/// What is left of what a walk may read.
pub struct Walk {
    entries: usize,
}

impl Default for Walk {
    fn default() -> Self {
        Self { entries: ENTRIES_MAX }
    }
}

/// A path that a walk is at, in bytes, from the root of its file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct At {
    path: Vec<u8>,
    depth: usize,
}

impl At {
    /// Of an absolute path.
    pub fn new(path: &str) -> Self {
        Self { path: path.trim_end_matches('/').as_bytes().to_vec(), depth: 0 }
    }

    pub fn below(&self, name: &[u8]) -> Self {
        Self { path: [&self.path, b"/".as_slice(), name].concat(), depth: self.depth + 1 }
    }

    pub fn bytes(&self) -> &[u8] {
        if self.path.is_empty() { b"/" } else { &self.path }
    }

    /// As text, what is not UTF-8 made so.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(self.bytes()).into_owned()
    }
}

impl Volume {
    /// What is in a folder, by name, links not followed. Nothing if the volume has no files.
    pub fn folder(&self, walk: &mut Walk, at: &At) -> Result<BTreeMap<Vec<u8>, Node>> {
        let Some(files) = self.files()? else { return Ok(BTreeMap::new()) };
        let failed = |error: String| self.failed(&at.text())(error);
        let whole = |error: String| ImageError::FileSystem { volume: self.name(), error };
        if at.depth >= DEPTH_MAX {
            return Err(whole(format!("folders are nested more than {DEPTH_MAX} deep")));
        }
        let (mut found, mut wrong) = (BTreeMap::new(), None);
        let each = &mut |name: &[u8], node: Node| {
            wrong = match (walk.entries.checked_sub(1), name) {
                (None, _) => Some(format!("there are more than {ENTRIES_MAX} files and folders")),
                (_, name) if name.is_empty() || name.contains(&b'/') || name.contains(&0) => {
                    Some("it has an entry without a valid name".to_owned())
                }
                (Some(left), name) => {
                    walk.entries = left;
                    let before = found.insert(name.to_vec(), node);
                    before.map(|_| format!("it has `{}` twice", String::from_utf8_lossy(name)))
                }
            };
            wrong.is_none()
        };
        files.entries(at.bytes(), each).map_err(failed)?;
        match wrong {
            Some(wrong) => Err(failed(wrong)),
            None => Ok(found),
        }
    }

    /// Where a link leads.
    pub fn target(&self, at: &At) -> Result<Vec<u8>> {
        let Some(files) = self.files()? else { return Ok(Vec::new()) };
        files.target(at.bytes()).map_err(self.failed(&at.text()))
    }

    /// As [`Self::stream`], of a file that a walk found.
    pub fn stream_at(&self, at: &At, node: &Node, each: &mut dyn FnMut(&[u8]) -> bool) -> Result<()> {
        let Some(files) = self.files()? else { return Ok(()) };
        if node.len() > self.part.len {
            let text = format!("it claims to have {} bytes, more than there are", node.len());
            return Err(self.failed(&at.text())(text));
        }
        files.stream(at.bytes(), node.len(), each).map_err(self.failed(&at.text()))
    }
}
