//! The tables.

use std::io::{self, Write};

use super::CONTENDERS;
use crate::results::{GOALS, Results, goal};
use crate::stats::spread;

const LINES: [(&str, &str); 9] = [
    ("TCP from the guest, MB/s", "out_mb_s"),
    ("TCP to the guest, MB/s", "in_mb_s"),
    ("frames of 64 bytes from the guest, a second", "frames_s"),
    ("round trip over UDP, median, µs", "rtt_median_us"),
    ("round trip over UDP, p99, µs", "rtt_p99_us"),
    ("CPU of the VMM and its guest, s per GB", "vmm_s_per_gb"),
    ("CPU of passt, s per GB", "passt_s_per_gb"),
    ("longest gap of a stream, no checkpoint, ms", "gap_quiet_ms"),
    ("longest gap of a stream, over `checkpoint create`, ms", "gap_checkpoint_ms"),
];

pub fn report(results: &Results) -> io::Result<()> {
    let mut text = results.describe() + "\n\n| median (lowest–highest) |";
    for (name, _) in CONTENDERS {
        text += &format!(" {name} |");
    }
    text += "\n| --- | ---: | ---: | ---: | ---: |\n";
    for (title, value) in LINES {
        text += &format!("| {title} |");
        for (name, contender) in CONTENDERS {
            let is_measured = value != "passt_s_per_gb" || !contender.tap;
            let of = if is_measured { results.of(name, value) } else { Vec::new() };
            text += &format!(" {} |", spread(&of));
        }
        text += "\n";
    }
    text += "\n";
    text += GOALS;
    for (backend, ours, theirs) in
        [("passt", CONTENDERS[0].0, CONTENDERS[1].0), ("tap", CONTENDERS[2].0, CONTENDERS[3].0)]
    {
        let ratio = |value| results.median(ours, value) / results.median(theirs, value);
        for (title, value) in [("from", "out_mb_s"), ("to", "in_mb_s")] {
            let rate = ratio(value);
            let what = format!("{backend}: TCP {title} the guest, piton ÷ QEMU");
            text += &goal(&what, "≥ 1.2", rate, "×", rate >= 1.2);
        }
        let time = ratio("rtt_median_us");
        let what = format!("{backend}: round trip, piton ÷ QEMU");
        text += &goal(&what, "≤ 0.8", time, "×", time <= 0.8);
        let beyond =
            results.median(ours, "gap_checkpoint_ms") - results.median(ours, "gap_quiet_ms");
        let what = format!("{backend}: gap over a checkpoint, beyond that without");
        text += &goal(&what, "< 5", beyond, "ms", beyond < 5.0);
    }
    io::stdout().lock().write_all(text.as_bytes())
}
