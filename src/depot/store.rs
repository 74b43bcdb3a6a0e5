//! The one way to what a depot keeps: objects by name, in folders one level deep.

use std::ops::Range;
use std::time::SystemTime;

use super::Result;

/// An object as a list tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Without its folder.
    pub name: String,
    pub bytes: u64,
    /// By the store's clock.
    pub modified: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// Whatever is there.
    Over,
    /// Only if there is none.
    New,
}

/// All methods block, give up when the work is called off, and try again by themselves where that
/// may help.
pub trait Store: Send + Sync {
    /// Durable when it returns; whole or not at all. `false`: there is one already.
    fn put(&self, key: &str, bytes: Vec<u8>, how: Put) -> Result<bool>;
    /// None: there is none. One of more than `most` bytes is an error.
    fn get(&self, key: &str, most: u64) -> Result<Option<Vec<u8>>>;
    /// Exactly these bytes.
    fn get_range(&self, key: &str, range: Range<u64>) -> Result<Option<Vec<u8>>>;
    /// None there is no error.
    fn list(&self, folder: &str) -> Result<Vec<Object>>;
    /// None there is no error.
    fn delete(&self, key: &str) -> Result<()>;
    /// Removes what puts that were cut short left before that time.
    fn sweep(&self, _folders: &[&str], _before: SystemTime) -> Result<()> {
        Ok(())
    }
    /// The object as a user would name it.
    fn shown(&self, key: &str) -> String;
}
