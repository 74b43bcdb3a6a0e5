//! The guest behind each contender, with one network card.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::island;
use crate::console::{Answer, Console, PATIENCE};
use crate::piton::Vm;
use crate::qemu::{self, Qemu};
use crate::setting::Setting;

const MEMORY_MIB: u64 = 128;
const NAME: &str = "net";
/// Ticks of a process's CPU time in a second, as the kernel tells them to everyone.
const TICKS: f64 = 100.0;
/// How long passt may take to find that it cannot work here.
const GIVES_UP: Duration = Duration::from_secs(2);
/// As piton starts it where the host has no route to anywhere.
const OFFLINE: &str = "-4 -i lo -a 10.0.2.15 -n 24 -g 10.0.2.2 -M 52:55:0a:00:02:02";

#[derive(Clone, Copy)]
pub struct Contender {
    pub piton: bool,
    pub tap: bool,
}

enum Machine {
    Piton(Vm),
    Qemu(Qemu),
}

pub struct Guest {
    machine: Machine,
    /// Of QEMU; piton starts its own.
    passt: Option<Child>,
    tap: bool,
}

/// CPU time in seconds: of the VMM with its guest, and of passt.
#[derive(Clone, Copy)]
pub struct Spent {
    pub vmm: f64,
    pub passt: f64,
}

impl Spent {
    pub fn since(self, before: Self) -> Self {
        Self { vmm: self.vmm - before.vmm, passt: self.passt - before.passt }
    }
}

impl Guest {
    pub fn boot(setting: &Setting, contender: Contender) -> io::Result<Self> {
        let tap = contender.tap;
        let (machine, passt) = if contender.piton {
            let net = if tap { format!("tap={}", island::TAP) } else { "user".into() };
            let args = ["--memory".into(), format!("{MEMORY_MIB}M"), "--net".into(), net];
            (Machine::Piton(setting.piton.boot(NAME, &args)?), None)
        } else {
            let (passt, wire) = match tap {
                true => (None, None),
                false => start_passt(setting).map(|(passt, wire)| (Some(passt), Some(wire)))?,
            };
            let netdev = match tap {
                true => format!("tap,id=n0,ifname={},script=no,downscript=no", island::TAP),
                false => "stream,id=n0,server=off,addr.type=fd,addr.str=3".into(),
            };
            let more =
                ["-netdev".into(), netdev, "-device".into(), "virtio-net-device,netdev=n0".into()];
            let setup = qemu::Setup {
                guest: &setting.guest,
                work: &setting.work,
                memory_mib: MEMORY_MIB,
                cpus: 1,
                disks: &[],
                more: &more,
            };
            (Machine::Qemu(Qemu::boot_with(&setup, wire)?), passt)
        };
        let mut guest = Self { machine, passt, tap };
        if tap {
            guest.ask(&format!("net address {}/24 {}", island::GUEST, island::HOST))?;
        }
        Ok(guest)
    }

    fn console(&mut self) -> &mut Console {
        match &mut self.machine {
            Machine::Piton(vm) => &mut vm.console,
            Machine::Qemu(qemu) => &mut qemu.console,
        }
    }

    pub fn ask(&mut self, command: &str) -> io::Result<Answer> {
        self.console().ask(command)
    }

    pub fn send(&mut self, command: &str) -> io::Result<()> {
        self.console().send(command)
    }

    pub fn answer(&mut self, command: &str) -> io::Result<Answer> {
        self.console().answer(command)
    }

    /// Waits for the guest's address; where it finds this host.
    pub fn gateway(&mut self) -> io::Result<String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let line = self.ask("net")?.line;
            let found = line.split_whitespace().find_map(|word| word.strip_prefix("gateway="));
            match found.filter(|gateway| *gateway != "none") {
                Some(gateway) => return Ok(gateway.into()),
                None if Instant::now() > deadline => {
                    return Err(io::Error::other(format!("the guest got no address: {line}")));
                }
                None => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn makes_checkpoints(&self) -> bool {
        matches!(self.machine, Machine::Piton(_))
    }

    pub fn create_checkpoint(&self, n: usize) -> io::Result<()> {
        let Machine::Piton(vm) = &self.machine else { return Ok(()) };
        vm.piton.run(&["checkpoint", "create", &vm.name, &format!("c{n}")]).map(drop)
    }

    pub fn cpu(&self) -> io::Result<Spent> {
        let vmm = match &self.machine {
            Machine::Piton(vm) => cpu_of(vm.child.id())?,
            Machine::Qemu(qemu) => cpu_of(qemu.pid())?,
        };
        let passt = match (&self.machine, &self.passt) {
            (_, Some(passt)) => cpu_of(passt.id())?,
            (Machine::Piton(_), None) if !self.tap => {
                passts()?.into_iter().map(cpu_of).sum::<io::Result<f64>>()?
            }
            _ => 0.0,
        };
        Ok(Spent { vmm, passt })
    }

    pub fn end(self) {
        match self.machine {
            Machine::Piton(vm) => {
                let piton = vm.piton.clone();
                let _ = vm.end();
                piton.remove(NAME);
            }
            Machine::Qemu(qemu) => drop(qemu),
        }
        if let Some(mut passt) = self.passt {
            let _ = passt.kill();
            let _ = passt.wait();
        }
    }
}

/// User and system time of a process and all its threads, in seconds.
fn cpu_of(pid: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Its name, in brackets, may hold anything.
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        rest.split_whitespace().skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    Ok(ticks.sum::<f64>() / TICKS)
}

/// Processes of that name in this network namespace; the measurement's own has no others.
fn passts() -> io::Result<Vec<u32>> {
    let here = fs::read_link("/proc/self/ns/net")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with("passt")
            && fs::read_link(entry.path().join("ns/net")).is_ok_and(|ns| ns == here)
        {
            found.push(pid);
        }
    }
    Ok(found)
}

/// As piton starts it; the socket leads to it.
fn start_passt(setting: &Setting) -> io::Result<(Child, UnixStream)> {
    let log = setting.work.join("passt.log");
    for offline in ["", OFFLINE] {
        let (ours, theirs) = UnixStream::pair()?;
        let mut child = Command::new("passt")
            .args([
                "--foreground",
                "--stderr",
                "--mtu",
                "65520",
                "-t",
                "none",
                "-u",
                "none",
                "--fd",
                "0",
            ])
            .args(offline.split_whitespace())
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .spawn()?;
        // It gives up at once, if it does.
        let deadline = Instant::now() + GIVES_UP;
        while child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                return Ok((child, ours));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    Err(io::Error::other(format!("passt: {}", said.trim())))
}
