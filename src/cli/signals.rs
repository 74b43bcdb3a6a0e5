//! Signals that end what piton does.

use anyhow::Context;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tokio::sync::oneshot;

/// Ctrl-C, a closed terminal, and being told to end, all of which mean the same: come to an orderly
/// end. One that was ignored when piton was started stays so: `nohup` asks for that.
pub fn ending() -> Vec<i32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    [SIGHUP, SIGINT, SIGTERM].into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect()
}

/// Told of the first of these.
pub fn first() -> anyhow::Result<oneshot::Receiver<()>> {
    let mut signals = signal_hook::iterator::Signals::new(ending()).context("signals cannot be received")?;
    let (stop, stopped) = oneshot::channel();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        if signals.forever().next().is_some() {
            // Who is to stop may have ended by itself.
            let _ = stop.send(());
        }
    })?;
    Ok(stopped)
}
