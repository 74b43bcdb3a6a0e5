//! Signals that end what piton does.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// Ctrl-C, a closed terminal, and being told to end, all of which mean the same: come to an orderly
/// end. One that was ignored when piton was started stays so: `nohup` asks for that.
pub fn ending() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}
