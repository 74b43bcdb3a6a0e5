//! Drives the real `piton` binary, each test in a home of its own. A test that fails shows every
//! console; whatever it started ends with it.

#![allow(dead_code, unused_imports, reason = "each test binary uses a part of this")]

mod finished;
mod flat;
mod home;
mod host_agent;
pub mod http;
mod lane;
mod mount;
mod terminal;
mod vm;

pub use finished::Finished;
pub use flat::{e2fsck, flatten};
pub use home::Home;
pub use host_agent::{HostAgent, left_in_tmp};
pub use http::Response;
pub use lane::{LinuxGuest, debian_image, is_emulated, is_long, is_root, patience, skip};
pub use mount::Mount;
pub use terminal::{Terminal, field, has_word};
pub use vm::{Exit, Vm};

/// The bundled guest as a file's content, to make kernels of that are good or just not.
pub const GUEST: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

/// A process that has ended meanwhile is no matter.
pub fn send_signal(pid: i32, signal: i32) {
    assert!(pid > 1);
    // SAFETY: kill touches no memory of this process.
    unsafe { libc::kill(pid, signal) };
}

/// Looks again and again until `found` finds something.
pub fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + patience();
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
