//! The web manager: pages that show all VMs of a user and do what the commands do. It is a process
//! of its own, a client of the VMs' sockets and a reader of their folders; what it changes it has
//! changed by the program itself. Nothing depends on it.
//!
//! [`gate`] is who may ask, [`api`] what can be asked, [`pages`] what a browser gets. [`home`] is the same for
//! programs, over a socket of the user's.

mod actions;
mod api;
mod console;
mod deed;
mod events;
mod files;
mod front;
mod gate;
mod home;
mod life;
mod listen;
mod load;
pub mod metrics;
mod pages;
mod starter;
mod tail;
mod vms;
mod watch;
mod words;

pub use listen::{Address, HomeOptions, ManagerError, Options, serve, serve_home};
pub use starter::run as start_commands;
