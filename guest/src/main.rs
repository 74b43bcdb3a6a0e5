//! A guest for trying out a VMM: it boots by PVH, runs its program at CPL 3 and
//! takes commands on the serial console. See README.md.

#![no_std]
#![no_main]

mod acpi;
mod agent;
mod apic;
mod args;
mod bench;
mod boot;
mod cmd_disk;
mod cmd_memory;
mod commands;
mod cpu;
mod dirty;
mod disk;
mod guest;
mod hash;
mod histogram;
mod journal;
mod json;
mod libc;
mod memory;
mod net;
mod outcome;
mod port;
mod power;
mod pvh;
mod relay;
mod ring;
mod serial;
mod shell;
mod smp;
mod text;
mod time;
mod transport;
mod virtio;
mod vsock;
mod wall;
mod work;

/// The stub's `iretq` lands here on each vCPU, with interrupts on and, on the
/// boot vCPU, none enabled yet.
#[unsafe(no_mangle)]
extern "C" fn rust_start(index: usize, start_info: u64) -> ! {
    if index > 0 {
        smp::secondary_main(index);
    }
    apic::fill_tables();
    serial::init();
    // The stub has printed the first letter.
    serial::raw("iton guest\r\n");
    shell::run(guest::Guest::boot(start_info))
}

/// Where the stub goes on after an exception that it has no use for.
#[unsafe(no_mangle)]
extern "C" fn fault_report(vector: u64, code: u64, rip: u64, addr: u64, rsp: u64) -> ! {
    say!(
        "err fault vector={vector} code={code:#x} rip={rip:#x} addr={addr:#x} rsp={rsp:#x} cpu={}",
        apic::local_id()
    );
    halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => say!("err panic at={}:{} {}", at.file(), at.line(), info.message()),
        None => say!("err panic {}", info.message()),
    }
    halt()
}

fn halt() -> ! {
    static NEVER: core::sync::atomic::AtomicU64 = core::sync::atomic::AtomicU64::new(0);
    loop {
        cpu::idle(&NEVER, 0);
    }
}
