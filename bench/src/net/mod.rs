//! Networks: the bundled guest behind piton and behind QEMU, with the same passt and with tap devices.

mod guests;
mod island;
mod peers;
mod report;

use std::io;
use std::thread;
use std::time::{Duration, Instant};

pub use report::report;

use guests::{Contender, Guest};
use peers::Peers;

use crate::results::{Results, Values};
use crate::setting::Setting;

pub const CONTENDERS: [(&str, Contender); 4] = [
    ("piton, passt", Contender { piton: true, tap: false }),
    ("QEMU, passt", Contender { piton: false, tap: false }),
    ("piton, tap", Contender { piton: true, tap: true }),
    ("QEMU, tap", Contender { piton: false, tap: true }),
];

/// How much is sent.
struct Size {
    seconds: u64,
    round_trips: u64,
    checkpoints: usize,
}

pub fn run(setting: &Setting) -> io::Result<()> {
    let alone = island::enter()?;
    let size = if setting.quick {
        Size { seconds: 1, round_trips: 500, checkpoints: 2 }
    } else {
        Size { seconds: 4, round_trips: 5000, checkpoints: 10 }
    };
    let mut results = Results::append_to(&setting.results)?;
    for round in 0..setting.rounds {
        for turn in 0..CONTENDERS.len() {
            let (name, contender) = CONTENDERS[(round + turn) % CONTENDERS.len()];
            if contender.tap && !alone {
                continue;
            }
            results.measure(name, round, || measure(setting, contender, &size))?;
        }
    }
    Ok(())
}

fn measure(setting: &Setting, contender: Contender, size: &Size) -> io::Result<Values> {
    if contender.tap {
        island::make_tap()?;
    }
    let peers = Peers::start(if contender.tap { island::HOST } else { "127.0.0.1" })?;
    let mut guest = Guest::boot(setting, contender)?;
    let done = steps(&mut guest, &peers, size);
    guest.end();
    if contender.tap {
        island::remove_tap()?;
    }
    done
}

fn steps(guest: &mut Guest, peers: &Peers, size: &Size) -> io::Result<Values> {
    let gateway = guest.gateway()?;
    let at = |port: u16| format!("{gateway}:{port}");
    let seconds = size.seconds;
    let mut values = Values::new();
    let (mut bytes, cpu) = (0.0, guest.cpu()?);
    for (name, what) in
        [("out", format!("tcp {}", at(peers.sink))), ("in", format!("tcp-in {}", at(peers.source)))]
    {
        let answer = guest.ask(&format!("net bench {what} {seconds}"))?;
        values.insert(format!("{name}_mb_s"), answer.number("mb_s")?);
        bytes += answer.number("bytes")?;
    }
    let spent = guest.cpu()?.since(cpu);
    values.insert("vmm_s_per_gb".into(), spent.vmm / (bytes / 1e9));
    values.insert("passt_s_per_gb".into(), spent.passt / (bytes / 1e9));
    let flood = guest.ask(&format!("net flood {seconds} 64"))?;
    values.insert("frames_s".into(), flood.number("per_s")?);
    let rtt = guest.ask(&format!("net bench rtt {} {}", at(peers.echo), size.round_trips))?;
    for (name, value) in [("rtt_median_us", "p50_us"), ("rtt_p99_us", "p99_us"), ("lost", "lost")] {
        values.insert(name.into(), rtt.number(value)?);
    }
    if guest.makes_checkpoints() {
        gaps(guest, peers, &at(peers.sink), size, &mut values)?;
    }
    Ok(values)
}

/// The longest time in which nothing came of a stream at full speed, over checkpoints and beside
/// them.
fn gaps(
    guest: &mut Guest,
    peers: &Peers,
    sink: &str,
    size: &Size,
    values: &mut Values,
) -> io::Result<()> {
    const BETWEEN: Duration = Duration::from_millis(300);
    let command = format!("net bench tcp {sink} {}", 2 + size.checkpoints);
    peers.forget_gaps();
    guest.send(&command)?;
    thread::sleep(BETWEEN);
    let (mut quiet, mut during) = (Vec::new(), Vec::new());
    for n in 0..size.checkpoints {
        let before = Instant::now();
        thread::sleep(BETWEEN);
        let begin = Instant::now();
        guest.create_checkpoint(n)?;
        let end = Instant::now();
        quiet.push((before, begin));
        during.push((begin, end));
    }
    guest.answer(&command)?;
    let longest = |spans: &[(Instant, Instant)]| {
        let each = spans.iter().map(|&(begin, end)| peers.longest_gap(begin, end));
        each.max().unwrap_or_default().as_secs_f64() * 1e3
    };
    values.insert("gap_quiet_ms".into(), longest(&quiet));
    values.insert("gap_checkpoint_ms".into(), longest(&during));
    Ok(())
}
