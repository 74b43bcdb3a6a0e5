//! Tables of what was measured.

use std::io::{self, Write};
use std::path::Path;

use super::cases::{self, Case, METHODS, Rate};
use super::{clones, plot, restore};
use crate::results::{GOALS, Results, goal};
use crate::stats::{quantile, short, spread};

/// Which results there are: those of a quick run know small guests only.
fn is_quick(results: &Results) -> bool {
    cases::all(false)
        .iter()
        .filter(|case| case.mib > 1024)
        .all(|case| results.of(&case.cell("piton"), "total_ms").is_empty())
}

pub fn report(results: &Results, picture: &Path) -> io::Result<()> {
    let quick = is_quick(results);
    let mut text = results.describe() + "\n";
    text += &creates(results, quick);
    text += &growth(results);
    text += &restores(results, quick);
    text += &clones(results, quick);
    text += &goals(results);
    plot::draw(results, quick, picture)?;
    io::stdout().lock().write_all(text.as_bytes())
}

/// Median, 99th percentile and worst.
fn three(sorted: &[f64]) -> String {
    let at = |share| short(quantile(sorted, share));
    format!("{} / {} / {}", at(0.5), at(0.99), at(1.0))
}

fn creates(results: &Results, quick: bool) -> String {
    let mut text = String::from(
        "\nPauses in ms as the guest saw them: median / p99 / worst. *Nothing* is the same watch for half a second \
         without a checkpoint.\n\n\
         | guest | | pause | pause by the host's clock | in all, ms | MiB | guest dirtied, MB/s |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for case in cases::all(quick).iter().filter(|case| case.peers) {
        let mut row = |who: &str, name: &str, prefix: &str| {
            let of = |value: &str| results.of(&case.cell(who), &format!("{prefix}{value}"));
            if of("pause_ms").is_empty() {
                return;
            }
            let mib: Vec<f64> = of("bytes").iter().map(|bytes| bytes / 1048576.0).collect();
            text += &format!(
                "| {} | {name} | {} | {} | {} | {} | {} |\n",
                case.title(),
                three(&of("pause_ms")),
                three(&of("host_pause_ms")),
                spread(&of("total_ms")),
                short(quantile(&mib, 0.5)),
                short(quantile(&of("dirtied_mb_s"), 0.5)),
            );
        };
        row("piton", "nothing, on piton", "idle_");
        row("piton", "piton, full", "");
        row("piton", "piton, incremental", "next_");
        for method in METHODS {
            row(method, &format!("QEMU {method}"), "");
        }
    }
    text
}

fn growth(results: &Results) -> String {
    let mut text = String::from(
        "\n| piton, full, 1 vCPU, 500 MB/s | pause, ms | in all, ms |\n| --- | ---: | ---: |\n",
    );
    for (mib, pauses) in cases::growing(results, "pause_ms") {
        let total = results.of(&cases::growth(mib).cell("piton"), "total_ms");
        text += &format!("| {mib} MiB | {} | {} |\n", three(&pauses), spread(&total));
    }
    text
}

fn restores(results: &Results, quick: bool) -> String {
    let mut text = String::from(
        "\nTimes in ms from the spawn of the command or of QEMU: median (lowest–highest).\n\n\
         | restore | caches | paused | first answer | all memory touched |\n\
         | --- | --- | ---: | ---: | ---: |\n",
    );
    let mut row = |mib, depth, who: &str, name: String| {
        for cache in restore::CACHES {
            let of = |value| results.of(&restore::cell(mib, depth, cache, who), value);
            if of("paused_ms").is_empty() {
                continue;
            }
            text += &format!(
                "| {mib} MiB, {name} | {cache} | {} | {} | {} |\n",
                spread(&of("paused_ms")),
                spread(&of("answer_ms")),
                spread(&of("touched_ms")),
            );
        }
    };
    for &mib in cases::sizes(quick) {
        for depth in restore::DEPTHS {
            row(mib, depth, "piton", format!("piton, depth {depth}"));
        }
        row(mib, 1, "incoming", "QEMU -incoming file".into());
        row(mib, 1, "loadvm", "QEMU -loadvm".into());
    }
    text += "\n| checkpoint at the end of a chain, piton, in all, ms |";
    let depths = restore::DEPTHS;
    text += &depths.map(|depth| format!(" depth {depth} |")).concat();
    text += "\n| --- | ---: | ---: | ---: |\n";
    for &mib in cases::sizes(quick) {
        let of =
            |depth| spread(&results.of(&restore::chain_cell(mib), &format!("create_{depth}_ms")));
        text +=
            &format!("| {mib} MiB |{}\n", depths.map(|depth| format!(" {} |", of(depth))).concat());
    }
    text
}

fn clones(results: &Results, quick: bool) -> String {
    let mib = clones::size(quick);
    let mut text = format!(
        "\n| clones of a {mib} MiB guest | each, ms | own memory, MiB: median | the largest |\n\
         | --- | ---: | ---: | ---: |\n"
    );
    for count in clones::COUNTS {
        let of = |value| results.of(&clones::cell(mib, count), value);
        let (each, own, most) =
            (spread(&of("each_ms")), spread(&of("own_mib")), of("own_most_mib"));
        text += &format!("| {count} | {each} | {own} | {} |\n", short(quantile(&most, 1.0)));
    }
    text
}

fn goals(results: &Results) -> String {
    let mut text = format!("\n{GOALS}");
    let mut at_most = |what: &str, limit: f64, measured: f64, unit: &str| {
        text += &goal(what, &format!("≤ {limit}"), measured, unit, measured <= limit);
    };
    let pause =
        |case: &Case, value: &str, share| quantile(&results.of(&case.cell("piton"), value), share);
    let one = cases::growth(2048);
    at_most("pause, 2 GiB, 1 vCPU, 500 MB/s, median", 0.4, pause(&one, "pause_ms", 0.5), "ms");
    at_most("the same, p99", 3.0, pause(&one, "pause_ms", 0.99), "ms");
    let two = cases::disk_load(2048);
    at_most(
        "pause, 2 vCPUs and a disk under load, median",
        1.0,
        pause(&two, "pause_ms", 0.5),
        "ms",
    );
    at_most("the same, p99", 5.0, pause(&two, "pause_ms", 0.99), "ms");
    let grown =
        pause(&cases::growth(8192), "pause_ms", 0.5) / pause(&cases::growth(512), "pause_ms", 0.5);
    at_most("pause, 8 GiB ÷ 512 MiB", 1.3, grown, "×");
    let still = Case { rate: Rate::Paced(0), ..one };
    at_most(
        "full checkpoint of 2 GiB in all, fsync included",
        800.0,
        pause(&still, "total_ms", 0.5),
        "ms",
    );
    at_most("incremental of 32 MiB, pause", 0.4, pause(&still, "next_pause_ms", 0.5), "ms");
    at_most("incremental of 32 MiB, in all", 60.0, pause(&still, "next_total_ms", 0.5), "ms");
    let restored = |cache| results.median(&restore::cell(2048, 1, cache, "piton"), "paused_ms");
    at_most("restore, spawn to paused, 2 GiB, warm", 6.0, restored("warm"), "ms");
    at_most("the same, cold", 10.0, restored("cold"), "ms");
    let clones = clones::cell(2048, 50);
    at_most("clone, each of 50", 8.0, results.median(&clones, "each_ms"), "ms");
    at_most("own memory of a clone", 5.0, results.median(&clones, "own_mib"), "MiB");
    let halved = pause(&one, "dirtied_mb_s", 0.5) / pause(&one, "idle_dirtied_mb_s", 0.5);
    text +=
        &goal("throughput while captured, 500 MB/s ÷ before", "≥ 0.5", halved, "×", halved >= 0.5);
    text
}
