//! A VM at a checkpoint as a folder of files that needs nothing else: out of a VM, into another.
//!
//! docs/export.md draws the folder. [`format`] is what `export.json` says, [`export`] and [`import`]
//! read from top to bottom; what they share with the depot is in `history/whole/`.

pub mod compare;
pub mod export;
pub mod format;
pub mod import;
mod plan;
mod sum;

pub use crate::history::whole::{Result, WholeError as TransferError};
