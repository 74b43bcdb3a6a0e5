//! Everything the boot vCPU owns, and what it does besides commands.

use crate::acpi::{self, Acpi};
use crate::agent::Agent;
use crate::cpu::{cpuid, inb, tsc};
use crate::disk::{self, Disk};
use crate::journal::Journal;
use crate::memory::{self, Dma};
use crate::net::http::Facts;
use crate::net::stack::{self, Stack};
use crate::outcome::{Fail, Outcome};
use crate::pvh::StartInfo;
use crate::serial::{self, Input};
use crate::smp::{self, MODE_DIRTY, MODE_GAPS};
use crate::time::{self, Every};
use crate::virtio::MAX_DISKS;
use crate::vsock::device as vsock;
use crate::{apic, dirty, hash, journal, power, say};

/// At most this long between two looks at everything, whatever gets lost.
pub const LONGEST_IDLE_US: u64 = 1_000_000;

pub const MAX_NICS: usize = 2;

/// How much dirtying a command is held up by, if there is but one vCPU.
const DIRTY_PAGES_AT_ONCE: usize = 64;

pub struct Guest {
    pub info: StartInfo,
    pub acpi: Acpi,
    pub disks: [Option<Disk>; MAX_DISKS],
    pub buffer: Dma,
    pub journal: Journal,
    pub agent: Agent,
    pub net: [Option<Stack>; MAX_NICS],
    pub vsock: Option<vsock::Device>,
    /// Differs from boot to boot.
    boot: u64,
    pub input: Input,
    /// MiB filled, from the first on.
    pub filled: u64,
    pub tick: Option<Every>,
    pub ticks: u64,
    /// Platform event interrupts looked at so far.
    events_seen: u64,
}

/// Address and GSI of each virtio-mmio device: those of the command line, or else those of ACPI.
fn devices<'a>(info: &'a StartInfo, acpi: &'a Acpi) -> impl Iterator<Item = (u64, u32)> + 'a {
    let named = info.virtio_devices().next().is_some();
    let listed = acpi.virtio[..acpi.virtio_count].iter().filter(move |_| !named);
    info.virtio_devices().chain(listed.copied())
}

impl Guest {
    /// Finds and starts the hardware.
    pub fn boot(start_info: u64) -> Self {
        let info = StartInfo::read(start_info);
        let acpi = Acpi::read(info.rsdp);
        apic::enable_local();
        time::calibrate();
        let nics =
            devices(&info, &acpi).filter(|&(addr, _)| stack::is_at(addr)).take(MAX_NICS).count();
        let socket = devices(&info, &acpi).find(|&(addr, _)| vsock::is_at(addr));
        let more = nics as u64 * stack::MEMORY + socket.map_or(0, |_| vsock::MEMORY);
        let dma_mibs = if info.ram_bytes() > 64 * memory::MIB { 8 } else { 3 };
        let mut dma = memory::init(&info.ram, dma_mibs + more / memory::MIB);
        smp::start(&acpi.apic_ids[..acpi.cpus]);

        apic::route(acpi.ioapics(), serial::IRQ, apic::SERIAL);
        serial::enable_receive_interrupt();
        if acpi.events.is_some() {
            apic::route(acpi.ioapics(), acpi::EVENTS_GSI, apic::EVENTS);
        }
        let mut small = if dma.len() > 0 { dma.split(4096) } else { Dma::empty() };
        let mut disks = [const { None }; MAX_DISKS];
        let mut count = 0;
        for (addr, gsi) in devices(&info, &acpi) {
            if count < MAX_DISKS
                && small.len() >= 64
                && let Some(disk) = Disk::open(addr, count, small.split(64))
            {
                apic::route(acpi.ioapics(), gsi, disk.vector());
                disks[count] = Some(disk);
                count += 1;
            }
        }
        let mut net = [const { None }; MAX_NICS];
        let mut places = devices(&info, &acpi).filter(|&(addr, _)| stack::is_at(addr));
        for (n, slot) in net.iter_mut().enumerate() {
            let Some((addr, gsi)) = places.next() else { break };
            if dma.len() < stack::MEMORY as usize {
                break;
            }
            let vector = apic::FIRST_NIC + n as u8;
            apic::route(acpi.ioapics(), gsi, vector);
            *slot = Stack::open(addr, n, vector, dma.split(stack::MEMORY as usize));
        }
        drop(places);
        let vsock =
            socket.filter(|_| dma.len() >= vsock::MEMORY as usize).and_then(|(addr, gsi)| {
                apic::route(acpi.ioapics(), gsi, apic::VSOCK);
                vsock::Device::open(addr, apic::VSOCK, dma.split(vsock::MEMORY as usize))
            });
        let journal = Journal::new(&mut dma, &disks);
        Self {
            info,
            acpi,
            disks,
            buffer: dma,
            journal,
            agent: Agent::new(),
            net,
            vsock,
            boot: hash::word(tsc(), 3),
            input: Input::new(),
            filled: 0,
            tick: None,
            ticks: 0,
            events_seen: 0,
        }
    }

    /// Goes on with what happens in the background until `look` finds something, or for so long.
    pub fn until<T>(&mut self, us: u64, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let start = tsc();
        loop {
            let seen = apic::total();
            self.background();
            if let Some(found) = look(self) {
                return Some(found);
            }
            let left = us.saturating_sub(time::us_since(start));
            if left == 0 {
                return None;
            }
            self.rest(seen, left);
        }
    }

    pub fn disk(&mut self, n: usize) -> Result<&mut Disk, Fail> {
        self.disks.get_mut(n).and_then(Option::as_mut).ok_or(Fail::Text("no such disk"))
    }

    /// Refuses to touch what the journal watches.
    pub fn check_writable(&mut self, n: usize, offset: u64, len: u64) -> Outcome {
        let owned = self.journal.owns(n);
        let d = self.disk(n)?;
        if d.read_only {
            return Err(disk::Error::ReadOnly.into());
        }
        d.check_range(offset, len)?;
        if owned && offset + len > d.bytes() - journal::AREA {
            return Err(Fail::Text(
                "the journal has the last 64K of this disk (journal off first)",
            ));
        }
        Ok(())
    }

    /// What must go on during long commands, too.
    pub fn background(&mut self) {
        // What it prints is no program's output.
        let captured = serial::capture(false);
        self.do_background();
        serial::capture(captured);
    }

    fn do_background(&mut self) {
        self.input.drain();
        self.look_at_events();
        self.agent.poll(&mut self.disks, self.vsock.as_mut(), self.journal.seq);
        if !self.agent.frozen {
            self.journal.poll(&mut self.disks);
        }
        let facts = Facts { boot: self.boot, generation: self.generation() };
        self.net.iter_mut().flatten().for_each(|stack| stack.poll(&facts));
        if let Some(vsock) = &mut self.vsock {
            vsock.poll();
        }
        if let Some(tick) = &mut self.tick
            && tick.take().is_some()
        {
            self.ticks += 1;
            say!("evt tick {}", self.ticks);
        }
        if smp::boot_cpu().mode() & MODE_DIRTY != 0 {
            for _ in 0..DIRTY_PAGES_AT_ONCE {
                dirty::step();
            }
        }
    }

    /// Shuts down when the power button is pressed, as a desktop does; tells of other news.
    fn look_at_events(&mut self) {
        let events = apic::count(apic::EVENTS);
        if let Some(port) = self.acpi.events
            && events != self.events_seen
        {
            self.events_seen = events;
            // Reading clears it.
            let news = inb(port);
            if news & acpi::EVENT_GENERATION != 0 {
                say!("evt generation changed");
            }
            if news & acpi::EVENT_BUTTON != 0 {
                say!("evt power button");
                power::off(&self.acpi);
                say!("err poweroff had no effect");
            }
        }
    }

    fn due_us(&mut self) -> u64 {
        let agent = self.agent.due_us().unwrap_or(LONGEST_IDLE_US);
        let journal = if self.journal.on && !self.journal.broken && !self.agent.frozen {
            self.journal.every.left_us()
        } else {
            LONGEST_IDLE_US
        };
        let tick = self.tick.as_ref().map_or(LONGEST_IDLE_US, Every::left_us);
        let net = self.net.iter_mut().flatten().map(Stack::due_us).min().unwrap_or(LONGEST_IDLE_US);
        let vsock = match &self.vsock {
            Some(vsock) if vsock.is_due() => 0,
            _ => LONGEST_IDLE_US,
        };
        journal.min(tick).min(agent).min(net).min(vsock)
    }

    /// Halts until something of the background is due, an interrupt after the `seen` first, or for
    /// `us`; while gaps are measured or pages dirtied on this vCPU, spins instead.
    pub fn rest(&mut self, seen: u64, us: u64) {
        let us = us.min(self.due_us());
        if us == 0 {
            return;
        }
        let me = smp::boot_cpu();
        let mode = me.mode();
        if mode & (MODE_GAPS | MODE_DIRTY) == 0 {
            apic::idle(seen, us);
            return;
        }
        me.gaps.sample_busy();
        // With no timer armed, the look at the clock bounds this; by count too,
        // as the TSC may go back.
        let start = tsc();
        for _ in 0..200_000_000_u64 {
            me.gaps.sample();
            if mode & MODE_DIRTY == 0 || !dirty::step() {
                core::hint::spin_loop();
            }
            let passed = tsc().wrapping_sub(start);
            if apic::total() != seen || passed > time::ticks(us) {
                // A gap that ended just now is none of what comes next.
                me.gaps.sample();
                return;
            }
        }
    }

    /// The VM generation id.
    pub fn generation(&self) -> Option<[u8; 16]> {
        // SAFETY: ACPI names this place; below 4 GiB all is mapped, and there are no bytes with
        // another meaning than a number.
        self.acpi.generation.map(|addr| unsafe { (addr as *const [u8; 16]).read_volatile() })
    }

    /// The hypervisor's twelve letters.
    pub fn signature(&self) -> [u8; 12] {
        let [_, b, c, d] = cpuid(0x4000_0000, 0);
        let mut text = [0; 12];
        for (out, word) in text.chunks_mut(4).zip([b, c, d]) {
            out.copy_from_slice(&word.to_le_bytes());
        }
        text.map(|c| if c.is_ascii_graphic() { c } else { b'.' })
    }
}
