//! What the process may use of the host.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::error::refused;
use super::units::size;

/// Raises the soft limit of open files to the hard one: every disk, layer and client takes some,
/// and the soft one is low only for the sake of programs that use select(2).
pub fn raise_open_files() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| match soft < hard {
        true => setrlimit(Resource::RLIMIT_NOFILE, hard, hard),
        false => Ok(()),
    });
    if let Err(e) = raised {
        log::warn!("cannot raise the limit on open files: {e}");
    }
}

/// Memory of the host in bytes.
struct HostMemory {
    /// RAM and swap: what all programs together can use at most.
    total: u64,
    /// What is left of it for now.
    available: u64,
}

impl HostMemory {
    /// None where the host does not tell.
    fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        let swap = |name| field(name).unwrap_or(0);
        Some(Self {
            total: field("MemTotal")?.checked_add(swap("SwapTotal"))?,
            available: field("MemAvailable")?.checked_add(swap("SwapFree"))?,
        })
    }
}

/// How many times as much memory as the host has a new VM may have: guests seldom use all of theirs.
const OVERCOMMIT: u64 = 2;

/// Refuses what cannot be meant.
pub fn check_memory(bytes: u64) -> anyhow::Result<()> {
    match HostMemory::now() {
        Some(host) if bytes > host.total.saturating_mul(OVERCOMMIT) => Err(refused(format!(
            "{} of guest memory is more than {OVERCOMMIT} times what the host has including swap ({}): \
             use a smaller --memory",
            size(bytes),
            size(host.total)
        ))),
        _ => Ok(()),
    }
}

/// Of a VM that is about to run: its guest may never use all of its memory.
pub fn warn_of_memory(bytes: u64) {
    if let Some(host) = HostMemory::now().filter(|host| bytes > host.available) {
        log::warn!(
            "the guest has {} of memory, but the host has only {} available including swap: if the guest \
             uses more, the host's kernel kills the VM",
            size(bytes),
            size(host.available)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::HostMemory;

    #[test]
    fn what_the_host_tells_of_its_memory() {
        let text = "MemTotal:       1000 kB\nMemFree: 1 kB\nMemAvailable:    600 kB\nSwapTotal: 24 kB\nSwapFree:   4 kB\n";
        let host = HostMemory::parse(text).unwrap();
        assert_eq!((host.total, host.available), (1024 * 1024, 604 * 1024));
        let host = HostMemory::parse("MemTotal: 8 kB\nMemAvailable: 4 kB\n").unwrap();
        assert_eq!((host.total, host.available), (8192, 4096));
        assert!(HostMemory::parse("MemTotal: 8 kB\n").is_none());
        assert!(HostMemory::parse("MemTotal: 8 pages\nMemAvailable: 4 kB").is_none());
    }
}
