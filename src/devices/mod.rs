//! The devices a guest sees. Each is a state machine in memory behind a thin shell that knows
//! files, threads and eventfds.

pub mod console;
pub mod genid;
pub mod i8042;
pub mod power;
pub mod serial;
pub mod virtio;
