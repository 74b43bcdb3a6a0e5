//! What is inside a disk image: partitions, file systems, systems, and what they boot.
//!
//! All of it is hostile input: nothing here panics, loops or takes memory without bound, whatever the
//! bytes say. Nothing is ever written.

mod bls;
mod cmdline;
mod entry;
mod error;
mod ext;
mod fat;
mod files;
mod gpt;
pub mod grub;
mod kernels;
mod kind;
mod load;
mod mbr;
mod menu;
mod node;
mod os_release;
mod partition;
mod software;
mod source;
mod survey;
mod uki;
mod version;
mod walk;

pub use cmdline::of as cmdline_of;
pub use entry::{Entry, Menu, Origin};
pub use error::{ImageError, Result};
pub use kind::Kind;
pub use load::{Payload, choose, load};
pub use menu::of as menu_of;
pub use node::{Node, NodeKind};
pub use os_release::System;
pub use partition::TableKind;
pub use software::{has_agent, has_cloud_init};
pub use source::ReadAt;
pub use survey::{Survey, Volume};
pub use walk::{At, Walk};
