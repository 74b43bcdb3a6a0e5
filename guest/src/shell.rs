//! The main loop: the commands that the kernel's command line brings, then those of the console.

use crate::guest::{Guest, LONGEST_IDLE_US};
use crate::pvh::CMDLINE_MAX;
use crate::{apic, commands, memory, say, serial, smp, work};

pub fn run(mut g: Guest) -> ! {
    say!(
        "evt piton guest ready vcpus={} memory={} disks={}",
        smp::running(),
        g.info.ram_bytes().div_ceil(memory::MIB),
        g.disks.iter().flatten().count()
    );
    serial::line(format_args!("type help for the commands"));
    g.journal.start(&mut g.disks);
    let mut script = [0; CMDLINE_MAX];
    let text = g.info.run();
    let script = &mut script[..text.len()];
    script.copy_from_slice(text.as_bytes());
    for command in core::str::from_utf8(script).unwrap_or("").split(';') {
        g.background();
        commands::run(&mut g, command);
    }
    let mut line = serial::line_buffer();
    loop {
        let seen = apic::total();
        g.background();
        run_programs(&mut g);
        match g.input.take_line(&mut line) {
            Some(text) => {
                commands::run(&mut g, text);
            }
            None => g.rest(seen, LONGEST_IDLE_US),
        }
    }
}

/// Runs what the host's agent was asked for.
fn run_programs(g: &mut Guest) {
    let (mut line, mut bytes) = ([0; 512], [0; work::OUTPUT]);
    while let Some((n, line_len, input)) = g.agent.next_program(&mut line, &mut bytes) {
        let text = core::str::from_utf8(&line[..line_len]).unwrap_or("");
        if text == "cat" {
            g.agent.end_program(n, 0, &bytes[..input], false);
            continue;
        }
        serial::capture(true);
        let well = commands::run(g, text);
        serial::capture(false);
        let (len, truncated) = serial::take_captured(&mut bytes);
        g.agent.end_program(n, u8::from(!well), &bytes[..len], truncated);
    }
}
