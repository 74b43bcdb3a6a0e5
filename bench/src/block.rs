//! The block path: the bundled guest's own benchmark on disks of piton and of QEMU.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::console::Console;
use crate::host;
use crate::piton::Vm;
use crate::qemu::{self, Qemu};
use crate::results::{GOALS, Results, Values, goal};
use crate::setting::Setting;
use crate::stats::spread;

const MEMORY_MIB: u64 = 128;
/// Names of the ways to store a disk, and what each of them is.
const CONTENDERS: [&str; 4] = ["piton raw", "piton overlay", "QEMU raw", "QEMU qcow2"];
const DEPTHS: [u64; 3] = [1, 8, 32];
/// Steps in their order; in brackets what of an answer counts.
const STEPS: [(&str, &str, &str); 6] = [
    ("4 KiB random write, fresh", "fresh", "iops"),
    ("64 KiB sequential write", "seq-write", "mb_s"),
    ("4 KiB random write, allocated", "allocated", "iops"),
    ("4 KiB random write, allocated, flush each 64", "flushed", "iops"),
    ("64 KiB sequential read", "seq-read", "mb_s"),
    ("4 KiB random read", "rand-read", "iops"),
];

/// How much is read and written.
struct Size {
    /// The part of the disk that is used.
    area_mib: u64,
    writes: u64,
    flushed: u64,
    reads: u64,
}

pub fn run(setting: &Setting) -> io::Result<()> {
    let size = if setting.quick {
        Size { area_mib: 32, writes: 1024, flushed: 256, reads: 4096 }
    } else {
        Size { area_mib: 512, writes: 16384, flushed: 2048, reads: 65536 }
    };
    let mut results = Results::append_to(&setting.results)?;
    let base = setting.work.join("base.raw");
    make_base(&base, &size)?;
    for round in 0..setting.rounds {
        for turn in 0..CONTENDERS.len() {
            let contender = CONTENDERS[(round + turn) % CONTENDERS.len()];
            results.measure(contender, round, || {
                with_guest(setting, contender, &base, |guest| steps(guest.console(), &size))
            })?;
        }
        for turn in 0..DEPTHS.len() * 2 {
            let turn = (round + turn) % (DEPTHS.len() * 2);
            let (contender, depth) = (CONTENDERS[1 + turn % 2 * 2], DEPTHS[turn / 2]);
            results.measure(&format!("{contender}, {depth} layers"), round, || {
                with_guest(setting, contender, &base, |guest| layers(setting, guest, depth, &size))
            })?;
        }
    }
    Ok(())
}

/// Of one piece, without holes, in the page cache and on the disk.
fn make_base(path: &Path, size: &Size) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut word: u64 = 1;
    // The guest's journal has its place behind the area.
    for _ in 0..=size.area_mib {
        let mut piece = Vec::with_capacity(1 << 20);
        while piece.len() < 1 << 20 {
            word = word
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            piece.extend(word.to_le_bytes());
        }
        file.write_all(&piece)?;
    }
    file.sync_all()
}

enum Guest {
    Piton(Vm),
    Qemu(Qemu),
}

impl Guest {
    fn console(&mut self) -> &mut Console {
        match self {
            Self::Piton(vm) => &mut vm.console,
            Self::Qemu(qemu) => &mut qemu.console,
        }
    }

    /// Freezes what the disk is and puts a new layer on top.
    fn add_layer(&mut self, work: &Path, n: u64) -> io::Result<()> {
        match self {
            Self::Piton(vm) => {
                vm.piton.run(&["checkpoint", "create", &vm.name, &format!("l{n}")]).map(drop)
            }
            Self::Qemu(qemu) => {
                let file = work.join(format!("layer-{n}.qcow2"));
                let arguments = json!({ "device": "d0", "snapshot-file": file, "format": "qcow2" });
                qemu.qmp.run("blockdev-snapshot-sync", arguments).map(drop)
            }
        }
    }
}

/// Runs a guest on a disk of its own, which goes afterwards.
fn with_guest(
    setting: &Setting,
    contender: &str,
    base: &Path,
    run: impl FnOnce(&mut Guest) -> io::Result<Values>,
) -> io::Result<Values> {
    let mib = fs::metadata(base)?.len() >> 20;
    let disk = setting.work.join("disk");
    let own_copy = contender.ends_with("raw");
    if own_copy {
        fs::copy(base, &disk)?;
    } else if contender == "QEMU qcow2" {
        qemu::create_qcow2(&disk, mib, Some(("raw", base)))?;
    }
    host::sync()?;
    let outcome = if contender.starts_with("piton") {
        let shown = if own_copy {
            disk.display().to_string()
        } else {
            format!("{},overlay", base.display())
        };
        let args = ["--memory".into(), format!("{MEMORY_MIB}M"), "--disk".into(), shown];
        let vm = setting.piton.boot("block", &args)?;
        let mut guest = Guest::Piton(vm);
        let outcome = quiet(guest.console()).and_then(|()| run(&mut guest));
        drop(guest);
        setting.piton.remove("block");
        outcome
    } else {
        let disks = [(if own_copy { "raw" } else { "qcow2" }, disk.clone())];
        let qemu = Qemu::boot(&qemu::Setup {
            guest: &setting.guest,
            work: &setting.work,
            memory_mib: MEMORY_MIB,
            cpus: 1,
            disks: &disks,
            more: &[],
        })?;
        let mut guest = Guest::Qemu(qemu);
        quiet(guest.console()).and_then(|()| run(&mut guest))
    };
    remove_layers(&setting.work)?;
    outcome
}

fn quiet(console: &mut Console) -> io::Result<()> {
    console.ask("journal off").map(drop)
}

fn remove_layers(work: &Path) -> io::Result<()> {
    for entry in fs::read_dir(work)? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "disk" || name.starts_with("layer-") {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

fn steps(console: &mut Console, size: &Size) -> io::Result<Values> {
    let Size { area_mib, writes, flushed, reads } = size;
    let big = area_mib * 16;
    let mut values = Values::new();
    for (_, name, counts) in STEPS {
        let what = match name {
            "fresh" | "allocated" => format!("rand-write 0 {area_mib}M 4K {writes} qd=8"),
            "flushed" => format!("rand-write 0 {area_mib}M 4K {flushed} 64 qd=8"),
            "seq-write" => format!("seq-write 0 {area_mib}M 64K {big} qd=4"),
            "seq-read" => format!("seq-read 0 {area_mib}M 64K {big} qd=4"),
            _ => format!("rand-read 0 {area_mib}M 4K {reads} qd=8"),
        };
        let answer = console.ask(&format!("blk 0 bench {what}"))?;
        values.insert(name.into(), answer.number(counts)?);
        // What was written before is not flushed in the next step.
        console.ask("blk 0 flush")?;
    }
    Ok(values)
}

/// Each layer holds an equal part of the area, in stripes, and the base nothing of it.
fn layers(setting: &Setting, guest: &mut Guest, depth: u64, size: &Size) -> io::Result<Values> {
    let stripe = (size.area_mib << 20) / DEPTHS[2];
    for n in 0..depth {
        for part in (n..DEPTHS[2]).step_by(depth as usize) {
            let offset = part * stripe;
            guest.console().ask(&format!("blk 0 write {offset} {stripe} {}", n + 1))?;
        }
        guest.console().ask("blk 0 flush")?;
        if n + 1 < depth {
            guest.add_layer(&setting.work, n)?;
        }
    }
    let Size { area_mib, reads, .. } = size;
    let mut values = Values::new();
    // Once for the caches.
    for _ in 0..2 {
        let random =
            guest.console().ask(&format!("blk 0 bench rand-read 0 {area_mib}M 4K {reads} qd=8"))?;
        values.insert("rand-read".into(), random.number("iops")?);
        let whole = format!("blk 0 bench seq-read 0 {area_mib}M 64K {} qd=4", area_mib * 16);
        values.insert("seq-read".into(), guest.console().ask(&whole)?.number("mb_s")?);
    }
    Ok(values)
}

pub fn report(results: &Results) -> io::Result<()> {
    let mut text = results.describe() + "\n\n| median (lowest–highest) |";
    for contender in CONTENDERS {
        text += &format!(" {contender} |");
    }
    text += " overlay ÷ piton raw | overlay ÷ qcow2 |\n| --- | ---: | ---: | ---: | ---: | ---: | ---: |\n";
    let ratio =
        |name: &str, to: &str| results.median("piton overlay", name) / results.median(to, name);
    for (title, name, counts) in STEPS {
        text += &format!(
            "| {title}, {} |",
            counts.replace("mb_s", "MB/s").replace("iops", "requests/s")
        );
        for contender in CONTENDERS {
            text += &format!(" {} |", spread(&results.of(contender, name)));
        }
        text += &format!(" {:.2} | {:.2} |\n", ratio(name, "piton raw"), ratio(name, "QEMU qcow2"));
    }
    text += "\n| reads through layers | 4 KiB random, requests/s | 64 KiB sequential, MB/s |\n| --- | ---: | ---: |\n";
    for contender in [CONTENDERS[1], CONTENDERS[3]] {
        for depth in DEPTHS {
            let cell = format!("{contender}, {depth} layers");
            let of = |name| spread(&results.of(&cell, name));
            text += &format!("| {cell} | {} | {} |\n", of("rand-read"), of("seq-read"));
        }
    }
    let through = |name| {
        let of = |depth| results.median(&format!("piton overlay, {depth} layers"), name);
        of(1) / of(32)
    };
    text += "\n";
    text += GOALS;
    let reads = through("rand-read").max(through("seq-read"));
    text += &goal(
        "time of reads, 32 layers ÷ 1 layer, the worse of both",
        "≤ 1.2",
        reads,
        "×",
        reads <= 1.2,
    );
    let slower = 1.0 / ratio("allocated", "piton raw");
    text +=
        &goal("time of allocated 4 KiB writes, overlay ÷ raw", "≤ 1.1", slower, "×", slower <= 1.1);
    let faster = ratio("fresh", "QEMU qcow2");
    text += &goal(
        "rate of fresh 4 KiB writes, overlay ÷ QEMU qcow2",
        "≥ 3",
        faster,
        "×",
        faster >= 3.0,
    );
    io::stdout().lock().write_all(text.as_bytes())
}
