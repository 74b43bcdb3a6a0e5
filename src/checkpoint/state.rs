//! The state file: JSON behind a header that says how much of it there is, and its checksum.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::storage::{Storage, StorageError};

const MAGIC: [u8; 8] = *b"PITONsta";
const VERSION: u32 = 1;
const CRC_AT: usize = 12;
const HEADER: usize = 24;

#[derive(Debug, thiserror::Error)]
pub enum StateError {
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("{} is not a checkpoint's state file, or is damaged at offset 0", .0.display())]
    Magic(PathBuf),
    #[error("{}: this version of piton does not read its format version {found}, only {VERSION}", path.display())]
    Version { path: PathBuf, found: u32 },
    #[error("{} is {found} bytes long, but {expected} were written", path.display())]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("{} is damaged: its {bytes} bytes from offset 0 have checksum {found:08x}, not {expected:08x}", path.display())]
    Checksum { path: PathBuf, bytes: u64, found: u32, expected: u32 },
}

/// What to record of a state file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateInfo {
    /// Length of the file.
    pub bytes: u64,
    pub crc: u32,
}

/// Writes a new file and makes its contents durable; its name is for the caller.
pub fn write_state(storage: &Storage, path: &Path, json: &[u8]) -> Result<StateInfo, StateError> {
    let mut bytes = Vec::with_capacity(HEADER + json.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&VERSION.to_le_bytes());
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
    bytes.extend_from_slice(json);
    let crc = crc_of(&bytes);
    bytes[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    let file = storage.create_new(path)?;
    file.write_at(&bytes, 0)?;
    file.sync_data()?;
    Ok(StateInfo { bytes: bytes.len() as u64, crc })
}

/// Most bytes that are read: many times what the largest machine has.
const STATE_MAX: u64 = 256 << 20;

/// The JSON of the file that was recorded as `info`.
pub fn read_state(storage: &Storage, path: &Path, info: &StateInfo) -> Result<Vec<u8>, StateError> {
    let mut bytes = storage.read_at_most(path, STATE_MAX)?;
    let len = bytes.len() as u64;
    if bytes.get(..8) != Some(&MAGIC) {
        return Err(StateError::Magic(path.to_owned()));
    }
    let length = |expected| StateError::Length { path: path.to_owned(), found: len, expected };
    if bytes.len() < HEADER {
        return Err(length(info.bytes));
    }
    let word = |at: usize| bytes[at..at + 4].iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
    if word(8) > VERSION || word(8) == 0 {
        return Err(StateError::Version { path: path.to_owned(), found: word(8) });
    }
    if len != info.bytes {
        return Err(length(info.bytes));
    }
    // The one in the file serves a reader that has no manifest.
    let (found, own) = (crc_of(&bytes), word(CRC_AT));
    let checksum = |expected| StateError::Checksum { path: path.to_owned(), bytes: len, found, expected };
    if found != info.crc {
        return Err(checksum(info.crc));
    }
    if found != own {
        return Err(checksum(own));
    }
    Ok(bytes.split_off(HEADER))
}

/// Of the file without the checksum itself.
fn crc_of(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CRC_AT]);
    hasher.update(&bytes[CRC_AT + 4..]);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_state_comes_back_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let (path, storage) = (dir.path().join("state"), Storage::os());
        let json = br#"{"vcpus": [1, 2, 3]}"#;
        let info = write_state(&storage, &path, json).unwrap();
        assert_eq!(read_state(&storage, &path, &info).unwrap(), json);
        assert!(write_state(&storage, &path, json).is_err(), "an existing file is not replaced");
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len() as u64, info.bytes);
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = read_state(&storage, &path, &info).unwrap_err();
            assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            error
        };
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            refused(&bytes);
        }
        for len in 0..whole.len() {
            refused(&whole[..len]);
        }
        refused(&[&whole[..], b" "].concat());
        let newer = [&whole[..8], &[2], &whole[9..]].concat();
        assert!(matches!(refused(&newer), StateError::Version { found: 2, .. }));
        // Another state, whole in itself.
        fs::remove_file(&path).unwrap();
        write_state(&storage, &path, br#"{"vcpus": [1, 2, 4]}"#).unwrap();
        let error = read_state(&storage, &path, &info).unwrap_err();
        assert!(matches!(error, StateError::Checksum { .. }), "{error}");
    }
}
