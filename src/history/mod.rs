//! Checkpoints of a VM: the operations on its folder, its disks and, while it runs, its machine.
//!
//! [`create`] and [`apply`] read from top to bottom. Whoever calls them holds the VM's lock and is
//! its only actor: the VMM's queue while the VM runs, one command otherwise.

pub mod apply;
mod base_findings;
mod base_problem;
pub mod bases;
pub mod capture;
mod catalog;
pub mod clone;
pub mod contents;
pub mod create;
pub mod delete;
pub mod disk_changes;
pub mod disks;
mod effect;
mod error;
mod files;
mod finding;
pub mod flat;
pub mod inventory;
pub mod lost;
pub mod memory;
pub mod merge;
pub mod networks;
mod orphans;
pub mod outdated;
mod overlay;
pub mod pair;
pub mod policy;
pub mod production;
pub mod prune;
pub mod reach;
pub mod readers;
pub mod recover;
pub mod relocate;
pub mod removed;
pub mod reserve;
mod saving;
pub mod seal;
pub mod sealing;
mod shadow;
pub mod sizes;
pub mod steady;
mod syncing;
pub mod trash;
mod tree;
pub mod usage;
pub mod whole;

pub use base_findings::{base_problems, check_now};
pub use base_problem::BaseProblem;
pub use catalog::Catalog;
pub use error::{CheckpointError, Result};
pub use finding::Finding;
pub use recover::recover;
pub use saving::catch_up;
pub use tree::{details, tree};
