//! What a measurement needs to know.

use std::path::PathBuf;

use crate::piton::Piton;

/// What to measure with, and where.
pub struct Setting {
    pub piton: Piton,
    pub guest: PathBuf,
    /// Emptied before; goes afterwards.
    pub work: PathBuf,
    /// Samples are kept here.
    pub results: PathBuf,
    pub rounds: usize,
    pub quick: bool,
}
