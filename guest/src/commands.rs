//! The command line: each command ends with one line `ok ...` or `err ...`.

use crate::args::Args;
use crate::cpu::{self, tsc};
use crate::guest::Guest;
use crate::outcome::{Fail, Outcome};
use crate::smp::{self, MODE_COUNT, MODE_DIRTY, MODE_GAPS};
use crate::{cmd_disk, cmd_memory, memory, net, power, say, serial, time, vsock, wall};
use core::sync::atomic::Ordering::SeqCst;

const HELP: &str = "\
info | echo TEXT | time | clock | smp | generation | poweroff | reboot | crash | hang
fill MIB [SEED]        fill memory with pseudo-random data
sum | read             checksum of / time to read what is filled
dirty MIB MB_PER_S     rewrite the last MIB of memory at that rate (max: unpaced; 0: stop)
dirty check            stop, and see whether every page is as it was last written
gaps start|off         spin on every vCPU and watch the TSC for gaps
gaps                   gap_us: longest since start or the last gaps, then starts over; busy_us: the
                       same for the boot vCPU's own work, which a pause may fall into, too
blk [N] write|verify OFFSET LEN SEED     blk [N] read OFFSET LEN
blk [N] flush|id       blk [N] discard|zero OFFSET LEN
blk [N] bench rand-write|rand-read|seq-write|seq-read OFFSET LEN BS COUNT [FLUSH_EVERY] [qd=N]
journal on|off|status|check|tick MS      memory and disks must tell the same step
agent on|off|BEHAVIOUR play a guest agent, honest or not (see README.md)
cat PATH | sleep MS    print a file that a host's agent wrote; do nothing for so long
net [N]                MAC, link, address (by DHCP), counts
net [N] address dhcp|A/BITS [GATEWAY]    net [N] ping HOST [COUNT [INTERVAL_MS]]
net [N] get http://HOST[:PORT]/PATH      net [N] serve PORT|off (goes on in the background)
net [N] flood [SECONDS [BYTES]]          net [N] bench tcp|tcp-in|udp|rtt A:PORT [SECONDS|COUNT]
vsock [echo PORT|off]  streams to programs of the host: state, or echo what comes to a port
vsock call PORT [TEXT | bytes N]         call a program of the host
tick on|off            evt tick N each second
numbers may be 0x hex or end in K, M, G; disk numbers start at 0";

/// Whether it went well.
pub fn run(g: &mut Guest, line: &str) -> bool {
    let line = line.trim();
    let (name, rest) = line.split_once(' ').unwrap_or((line, ""));
    let rest = rest.trim();
    let outcome = match name {
        "" => return true,
        "help" => {
            HELP.lines().for_each(|l| say!("evt {l}"));
            say!("ok help");
            Ok(())
        }
        "info" => info(g),
        "echo" => {
            say!("ok {rest}");
            Ok(())
        }
        "generation" => match g.generation() {
            Some(id) => {
                say!("ok generation={:032x}", u128::from_be_bytes(id));
                Ok(())
            }
            None => Err(Fail::Text("there is no VM generation id")),
        },
        "time" => {
            say!("ok tsc={} tsc_khz={}", tsc(), time::tsc_khz());
            Ok(())
        }
        "clock" => match wall::now_ms() {
            Some(ms) => {
                say!("ok unix_ms={ms}");
                Ok(())
            }
            None => Err(Fail::Text("there is no kvmclock")),
        },
        "fill" => cmd_memory::fill(g, rest),
        "sum" => cmd_memory::sum(g),
        "read" => cmd_memory::read(g),
        "dirty" => cmd_memory::dirty(g, rest),
        "gaps" => gaps(rest),
        "agent" => {
            let (acpi, info) = (&g.acpi, &g.info);
            let listed = acpi.virtio[..acpi.virtio_count].iter().map(|&(addr, _)| addr);
            let devices = info.virtio_devices().map(|(addr, _)| addr).chain(listed);
            g.agent.command(rest, devices, g.vsock.as_mut())
        }
        "blk" | "journal" if g.agent.frozen && rest != "status" => {
            Err(Fail::Text("frozen: no disk is used until the thaw"))
        }
        "net" => net::commands::net(g, rest),
        "vsock" => vsock::commands::vsock(g, rest),
        "blk" => cmd_disk::blk(g, rest),
        "journal" => journal(g, rest),
        "cat" => cat(g, rest),
        "sleep" => sleep(g, rest),
        "smp" => show_smp(),
        "tick" => tick(g, rest),
        "poweroff" => {
            say!("evt poweroff");
            power::off(&g.acpi);
            Err(Fail::Text("poweroff had no effect"))
        }
        "reboot" => {
            say!("evt reboot");
            power::reset(&g.acpi);
            Err(Fail::Text("reboot had no effect"))
        }
        "crash" => {
            say!("evt crash");
            cpu::triple_fault()
        }
        "hang" => {
            say!("evt hang");
            loop {
                core::hint::spin_loop();
            }
        }
        _ => Err(Fail::Text("unknown command, try help")),
    };
    match outcome {
        Ok(()) => true,
        Err(fail) => {
            say!("err {fail}");
            false
        }
    }
}

fn cat(g: &Guest, name: &str) -> Outcome {
    let bytes = g.agent.file(name.as_bytes()).ok_or(Fail::Text("no such file"))?;
    let text = core::str::from_utf8(bytes).map_err(|_| Fail::Text("it is no text"))?;
    serial::raw(text);
    Ok(())
}

fn sleep(g: &mut Guest, text: &str) -> Outcome {
    let ms = Args::new(text, "sleep MS").number()?;
    let _: Option<()> = g.until(ms * 1000, |_| None);
    say!("ok sleep {ms}");
    Ok(())
}

fn info(g: &mut Guest) -> Outcome {
    for (n, d) in g.disks.iter().enumerate().filter_map(|(n, d)| Some((n, d.as_ref()?))) {
        say!(
            "evt disk={n} mib={} bytes={} ro={} flush={}",
            d.bytes() / memory::MIB,
            d.bytes(),
            u8::from(d.read_only),
            u8::from(d.has_flush())
        );
    }
    let signature = g.signature();
    say!(
        "ok vcpus={} memory={} usable={} disks={} tsc_mhz={} vmm={} cmdline=\"{}\"",
        smp::running(),
        g.info.ram_bytes().div_ceil(memory::MIB),
        memory::mibs(),
        g.disks.iter().flatten().count(),
        time::tsc_khz() / 1000,
        core::str::from_utf8(&signature).unwrap_or("?"),
        g.info.cmdline()
    );
    Ok(())
}

/// Starts or stops the measuring loop everywhere.
fn gaps(text: &str) -> Outcome {
    let measure = |on: u32, off: u32| {
        for (_, cpu) in smp::cpus() {
            cpu.set_mode(on, off);
            cpu.gaps.reset();
        }
    };
    match text {
        "start" | "on" => measure(MODE_GAPS, 0),
        "off" | "stop" => measure(0, MODE_GAPS),
        "" => {
            let (mut longest, mut busiest, mut over, mut since) = (0, 0, 0, 0);
            // Of this vCPU the stretch until now; one in which all stood still may have ended in it, with
            // this command waiting for its end.
            if smp::boot_cpu().mode() & (MODE_GAPS | MODE_DIRTY) != 0 {
                smp::boot_cpu().gaps.sample_busy();
            }
            for (n, cpu) in smp::cpus() {
                // Another vCPU may not have run again yet.
                let open = if n == 0 { 0 } else { cpu.gaps.open() };
                let gap = time::us(cpu.gaps.longest.load(SeqCst).max(open));
                let count = cpu.gaps.over_100us.load(SeqCst);
                let began = cpu.gaps.since.load(SeqCst);
                let ms = if began == 0 { 0 } else { time::us_since(began) / 1000 };
                let busy = time::us(cpu.gaps.busy.load(SeqCst));
                say!(
                    "evt gaps cpu={n} gap_us={gap} busy_us={busy} over_100us={count} since_ms={ms}"
                );
                longest = longest.max(gap);
                busiest = busiest.max(busy);
                over += count;
                since = since.max(ms);
                cpu.gaps.reset();
            }
            say!("ok gap_us={longest} busy_us={busiest} over_100us={over} since_ms={since}");
            return Ok(());
        }
        _ => return Err(Fail::Usage("gaps [start|off]")),
    }
    say!("ok gaps {}", if text.ends_with('f') || text == "stop" { "off" } else { "on" });
    Ok(())
}

fn journal(g: &mut Guest, text: &str) -> Outcome {
    let mut args = Args::new(text, "journal on|off|status|check|tick MS");
    let status = |g: &Guest| {
        let j = &g.journal;
        if j.broken {
            say!("err journal broken seq={} ticks={} errors={}", j.seq, j.ticks, j.errors);
        } else {
            let on = if j.on { "" } else { " off" };
            let (seq, ticks, disks, errors) = (j.seq, j.ticks, j.disks(), j.errors);
            say!("ok journal seq={seq} ticks={ticks} disks={disks} errors={errors}{on}");
        }
    };
    match args.word() {
        None | Some("status") => status(g),
        Some("on") => {
            if !g.journal.on {
                g.journal.start(&mut g.disks);
            }
            status(g);
        }
        Some("off") => {
            g.journal.stop();
            status(g);
        }
        Some("check") => {
            if g.journal.on && !g.journal.broken {
                g.journal.check(&mut g.disks).map_err(|(_, e)| Fail::Disk(e))?;
            }
            status(g);
        }
        Some("tick") => {
            g.journal.every.period_us = args.number()?.clamp(1, 3_600_000) * 1000;
            status(g);
        }
        Some(_) => return Err(args.usage()),
    }
    Ok(())
}

fn show_smp() -> Outcome {
    let before = || smp::secondaries().for_each(|c| c.counter.store(0, SeqCst));
    before();
    smp::secondaries().for_each(|c| c.set_mode(MODE_COUNT, 0));
    let me = smp::boot_cpu();
    me.counter.store(0, SeqCst);
    let start = tsc();
    let mut looks = 0_u64;
    while time::us_since(start) < 50_000 && looks < 1 << 26 {
        looks += 1;
        me.counter.fetch_add(1, SeqCst);
        core::hint::spin_loop();
    }
    smp::secondaries().for_each(|c| c.set_mode(0, MODE_COUNT));
    let mut running = 0;
    for (n, c) in smp::cpus() {
        let count = c.counter.load(SeqCst);
        say!("evt smp cpu={n} apic={} count={count}", c.apic_id.load(SeqCst));
        running += u32::from(count > 0);
    }
    if running as usize != smp::running() {
        return Err(Fail::Text("a vcpu does not run"));
    }
    say!("ok smp vcpus={running}");
    Ok(())
}

fn tick(g: &mut Guest, text: &str) -> Outcome {
    g.tick = match text {
        "on" => Some(time::Every::new(1_000_000)),
        "off" => None,
        _ => return Err(Fail::Usage("tick on|off")),
    };
    serial::line(format_args!("ok tick {text}"));
    Ok(())
}
