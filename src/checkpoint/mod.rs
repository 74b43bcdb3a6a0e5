//! Checkpoints as they lie in their folder, and the tree that they form. Knows no machine.
//!
//! [`manifest`], [`keeping`], [`shown`], [`tree`], [`layers`] and [`name`] are pure; [`store`], [`state`] and [`stamp`]
//! read and write, through [`crate::storage`] only.

pub mod keeping;
pub mod layers;
pub mod manifest;
pub mod name;
pub mod retention;
pub mod shown;
pub mod stamp;
pub mod state;
pub mod store;
pub mod tree;

pub use keeping::{Keeping, Trashed};
pub use manifest::{Kind, Manifest};
pub use name::CheckpointName;
