//! Running clones of one checkpoint: how soon they answer, and the memory that they take.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::console::{Console, PATIENCE};
use crate::host;
use crate::results::{GOALS, Results, Values, goal};
use crate::setting::Setting;
use crate::stats::{self, quantile, short, spread};

const ORIGIN: &str = "origin";
/// Of its memory the origin fills this much, in percent, and each clone writes again that much.
const FILLED: u64 = 60;
const WRITTEN: u64 = 1;

/// One line of the table.
#[derive(Clone, Copy)]
struct Case {
    mib: u64,
    count: u64,
    /// Memory of its own for each, as before clones shared.
    own: bool,
}

impl Case {
    fn cell(&self) -> String {
        let Self { mib, count, own } = self;
        format!("clones {mib}M {count}{}", if *own { " own" } else { "" })
    }

    fn written(&self) -> u64 {
        (self.mib * WRITTEN / 100).max(1)
    }

    fn fits_host(&self) -> bool {
        let each = if self.own { self.mib } else { self.written() + 4 };
        let needed = self.mib * 2 + each * self.count + 1024;
        host::kib("/proc/meminfo", "MemAvailable").is_ok_and(|free| free / 1024 > needed)
    }
}

fn sizes(quick: bool) -> &'static [u64] {
    if quick { &[512] } else { &[128, 512, 2048] }
}

fn cases(mib: u64, quick: bool) -> Vec<Case> {
    let counts: &[u64] = if quick { &[1, 10] } else { &[1, 10, 100] };
    let shared = counts.iter().map(|&count| Case { mib, count, own: false });
    shared.chain([1, 10].map(|count| Case { mib, count, own: true })).collect()
}

pub fn run(setting: &Setting) -> io::Result<()> {
    std::fs::create_dir_all(&setting.piton.home)?;
    let mut results = Results::append_to(&setting.results)?;
    for &mib in sizes(setting.quick) {
        let cases = cases(mib, setting.quick);
        let done = |round| cases.iter().all(|case| results.has(&case.cell(), round));
        if (0..setting.rounds).all(done) {
            continue;
        }
        let failed = make_origin(setting, mib).err().map(|e| e.to_string());
        for round in 0..setting.rounds {
            for case in cases.iter().filter(|case| case.fits_host()) {
                results.measure(&case.cell(), round, || match &failed {
                    Some(e) => Err(io::Error::other(e.clone())),
                    None => measure(setting, case),
                })?;
            }
        }
        setting.piton.remove(ORIGIN);
    }
    Ok(())
}

/// Two checkpoints, so that the second is a delta and clones need a copy in one file.
fn make_origin(setting: &Setting, mib: u64) -> io::Result<()> {
    let piton = &setting.piton;
    let mut vm = piton.boot(ORIGIN, &["--memory".into(), format!("{mib}M")])?;
    vm.console.ask(&format!("fill {}", mib * FILLED / 100))?;
    piton.run(&["checkpoint", "create", ORIGIN, "below", "--type", "standard"])?;
    vm.console.ask("fill 1 2")?;
    piton.run(&["checkpoint", "create", ORIGIN, "one", "--type", "standard"])?;
    vm.end()?;
    // The copy is made and checked once, by the first; that is not what is measured.
    piton.run(&["clone", &format!("{ORIGIN}@one"), "c"])?;
    piton.remove("c");
    Ok(())
}

fn measure(setting: &Setting, case: &Case) -> io::Result<Values> {
    host::sync()?;
    let outcome = with_clones(setting, case);
    for n in 1..=case.count {
        setting.piton.remove(&format!("c-{n}"));
    }
    outcome
}

fn with_clones(setting: &Setting, case: &Case) -> io::Result<Values> {
    let (piton, count) = (&setting.piton, case.count.to_string());
    let available = || host::kib("/proc/meminfo", "MemAvailable");
    let before = available()?;
    let start = Instant::now();
    let mut command = vec!["clone", "origin@one", "c", "--count", &count, "--run"];
    command.extend(case.own.then_some("--own-memory"));
    let socket = |n: u64| piton.home.join(format!("c-{n}")).join("control.sock");
    // The first is asked as soon as it listens, while others are still made.
    let (made, first) = std::thread::scope(|scope| {
        let command = scope.spawn(|| piton.run(&command).map(|_| start.elapsed()));
        let first =
            attach(&socket(1)).and_then(|mut console| console.ask("echo 1").map(|a| a.at - start));
        (command.join(), first)
    });
    let made = made.map_err(|_| io::Error::other("the command's thread"))??;
    let mut consoles =
        (1..=case.count).map(|n| attach(&socket(n))).collect::<io::Result<Vec<_>>>()?;
    consoles.iter_mut().try_for_each(|console| console.send("echo 2"))?;
    let mut last = start;
    for console in &mut consoles {
        last = last.max(console.answer("echo 2")?.at);
    }
    let pids = (1..=case.count)
        .map(|n| {
            let shown = piton.json(&["show", &format!("c-{n}")])?;
            shown["pid"].as_u64().ok_or_else(|| io::Error::other(format!("no process in {shown}")))
        })
        .collect::<io::Result<Vec<_>>>()?;
    let own = |pids: &[u64]| -> io::Result<Vec<f64>> {
        let each = pids.iter().map(|pid| Ok(host::own_memory(*pid)? as f64 / 1024.0));
        Ok(stats::sorted(each.collect::<io::Result<Vec<_>>>()?))
    };
    let idle = own(&pids)?;
    let seed = |n: usize| format!("fill {} {}", case.written(), n + 100);
    for (n, console) in consoles.iter_mut().enumerate() {
        console.send(&seed(n))?;
    }
    for (n, console) in consoles.iter_mut().enumerate() {
        console.answer(&seed(n))?;
    }
    let written = own(&pids)?;
    let pss = pids.iter().map(|pid| host::kib(&format!("/proc/{pid}/smaps_rollup"), "Pss"));
    let pss: Vec<f64> = pss.map(|kib| Ok(kib? as f64 / 1024.0)).collect::<io::Result<_>>()?;
    let in_all = before.saturating_sub(available()?) as f64 / 1024.0;
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    Ok(Values::from([
        ("made_ms".into(), ms(made)),
        ("first_ms".into(), ms(first?)),
        ("answered_ms".into(), ms(last - start)),
        ("idle_mib".into(), stats::median(&idle)),
        ("own_mib".into(), stats::median(&written)),
        ("own_most_mib".into(), quantile(&written, 1.0)),
        ("pss_mib".into(), stats::median(&stats::sorted(pss.iter().copied()))),
        ("pss_sum_mib".into(), pss.iter().sum()),
        ("host_mib".into(), in_all),
    ]))
}

/// The console of a VM that is about to listen. No process of its own, which would take longer than
/// what is measured.
fn attach(socket: &Path) -> io::Result<Console> {
    let deadline = Instant::now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(socket) {
            Ok(stream) => break stream,
            Err(e) if Instant::now() > deadline => return Err(e),
            Err(_) => std::thread::sleep(Duration::from_micros(200)),
        }
    };
    stream.write_all(
        b"GET /vm/console?past=0 HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\n\
          Upgrade: piton-console\r\n\r\n",
    )?;
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    if !head.starts_with(b"HTTP/1.1 101") {
        return Err(io::Error::other(String::from_utf8_lossy(&head).into_owned()));
    }
    Ok(Console::over(stream.try_clone()?, stream))
}

pub fn report(results: &Results) -> io::Result<()> {
    let quick = results.of(&Case { mib: 128, count: 1, own: false }.cell(), "made_ms").is_empty();
    println!("{}\n", results.describe());
    println!(
        "| guest, clones | first answer, ms | all answered, ms | private, MiB: idle | after writing {WRITTEN} % | largest | Pss | Pss of all | host's memory in all |"
    );
    println!("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    for &mib in sizes(quick) {
        for case in cases(mib, quick) {
            let cell = case.cell();
            let median = |value| short(results.median(&cell, value));
            let times = |value| spread(&results.of(&cell, value));
            let how = if case.own { ", memory of their own" } else { "" };
            println!(
                "| {mib} MiB, {}{how} | {} | {} | {} | {} | {} | {} | {} | {} |",
                case.count,
                times("first_ms"),
                times("answered_ms"),
                median("idle_mib"),
                median("own_mib"),
                short(quantile(&results.of(&cell, "own_most_mib"), 1.0)),
                median("pss_mib"),
                median("pss_sum_mib"),
                median("host_mib"),
            );
        }
    }
    let count = if quick { 10 } else { 100 };
    let many = Case { mib: 512, count, own: false };
    let one = Case { count: 1, ..many };
    let beyond = results.median(&many.cell(), "own_mib") - many.written() as f64;
    let all = results.median(&many.cell(), "answered_ms");
    let first = results.median(&one.cell(), "first_ms");
    print!("\n{GOALS}");
    print!(
        "{}",
        goal("private memory beyond what the guest wrote", "< 3", beyond, "MiB", beyond < 3.0)
    );
    if !quick {
        print!("{}", goal("100 clones of 512 MiB have answered", "< 400", all, "ms", all < 400.0));
    }
    print!("{}", goal("the first answer of one", "< 6", first, "ms", first < 6.0));
    Ok(())
}
