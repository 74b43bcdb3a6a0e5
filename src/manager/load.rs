//! What a VM's process uses of the host, as the kernel counts it.

use std::time::{Duration, Instant};

use serde::Serialize;

/// How long is looked at, at least.
const SPAN: Duration = Duration::from_secs(1);

/// Over the last second or so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Load {
    /// Of one CPU: a VM with two busy vCPUs has 200.
    pub cpu_percent: u64,
    /// Bytes a second that its process read and wrote.
    pub read: u64,
    pub written: u64,
    /// Bytes a second that the guest sent and received.
    pub network: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    /// In hundredths of a second, which is what Linux tells to programs.
    cpu: u64,
    read: u64,
    written: u64,
    network: u64,
}

/// Remembers what was counted before.
#[derive(Debug, Default)]
pub struct Meter {
    before: Option<(u32, Instant, Counters)>,
    load: Option<Load>,
}

impl Meter {
    /// The load of a process whose guest sent and received so many bytes; none where nothing is known
    /// yet.
    pub fn look(&mut self, pid: Option<u32>, network: u64) -> Option<Load> {
        let Some(pid) = pid else {
            *self = Self::default();
            return None;
        };
        match self.before {
            Some((before, at, _)) if before == pid && at.elapsed() < SPAN => return self.load,
            _ => {}
        }
        let now = Instant::now();
        let counted = Counters { network, ..count(pid)? };
        self.load = match self.before {
            Some((before, at, counters)) if before == pid => Some(rate(counters, counted, now - at)),
            _ => None,
        };
        self.before = Some((pid, now, counted));
        self.load
    }
}

fn rate(before: Counters, now: Counters, time: Duration) -> Load {
    let ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    let a_second = |before: u64, now: u64| now.saturating_sub(before).saturating_mul(1000) / ms;
    Load {
        cpu_percent: a_second(before.cpu, now.cpu),
        read: a_second(before.read, now.read),
        written: a_second(before.written, now.written),
        network: a_second(before.network, now.network),
    }
}

fn count(pid: u32) -> Option<Counters> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Of a process that may not be traced it is not told.
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    parse(&stat, &io)
}

fn parse(stat: &str, io: &str) -> Option<Counters> {
    // The name in parentheses may have anything in it. State is the first field after it, utime and
    // stime are the 12th and 13th (proc(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    let cpu = ticks()?.checked_add(ticks()?)?;
    let bytes = |name: &str| {
        let line = io.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        line.and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    Some(Counters { cpu, read: bytes("read_bytes"), written: bytes("write_bytes"), network: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_tells() {
        let stat = "7 (a) b (c) S 1 2 3 4 5 6 7 8 9 10 30 20 0 0 20 0 1 0";
        let counters = parse(stat, "rchar: 9\nread_bytes: 4096\nwrite_bytes: 10\n").unwrap();
        assert_eq!(counters, Counters { cpu: 50, read: 4096, written: 10, network: 0 });
        assert!(parse("7 (a", "").is_none() && parse("7 (a) S 1", "").is_none());
        let later = Counters { cpu: 250, read: 4096, written: 30, network: 5 };
        let load = rate(counters, later, Duration::from_secs(2));
        assert_eq!(load, Load { cpu_percent: 100, read: 0, written: 10, network: 2 });
        assert!(count(std::process::id()).is_some());
    }
}
