//! The main loop: the commands that the kernel's command line brings, then those of the console.

use crate::guest::{Guest, LONGEST_IDLE_US};
use crate::pvh::CMDLINE_MAX;
use crate::{apic, commands, memory, say, serial, smp};

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
        match g.input.take_line(&mut line) {
            Some(text) => commands::run(&mut g, text),
            None => g.rest(seen, LONGEST_IDLE_US),
        }
    }
}
