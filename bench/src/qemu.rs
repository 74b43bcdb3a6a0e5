//! QEMU, driven through QMP; its guest's console is its standard input and output.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::console::{Console, PATIENCE};

pub struct Qemu {
    child: Child,
    pub console: Console,
    pub qmp: Qmp,
}

/// What is started.
pub struct Setup<'a> {
    pub guest: &'a Path,
    pub work: &'a Path,
    pub memory_mib: u64,
    pub cpus: u32,
    /// Format and file of each disk.
    pub disks: &'a [(&'static str, PathBuf)],
    pub more: &'a [String],
}

impl Qemu {
    /// Returns when QMP answers; with `-S` the guest does not run then.
    pub fn spawn(setup: &Setup) -> io::Result<Self> {
        Self::spawn_with(setup, None)
    }

    /// With `wire` as its file descriptor 3.
    fn spawn_with(setup: &Setup, wire: Option<UnixStream>) -> io::Result<Self> {
        let socket = setup.work.join("qmp.sock");
        let _ = fs::remove_file(&socket);
        let log = setup.work.join("qemu.log");
        let mut command = match &wire {
            None => Command::new("qemu-system-x86_64"),
            Some(_) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", "exec qemu-system-x86_64 \"$@\" 3<&2 2>\"$LOG\"", "sh"]);
                shell.env("LOG", &log);
                shell
            }
        };
        command.args(["-M", "microvm", "-accel", "kvm", "-cpu", "qemu64,-pni"]);
        command.args(["-smp", &setup.cpus.to_string(), "-m", &setup.memory_mib.to_string()]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"]);
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        for (index, (format, path)) in setup.disks.iter().enumerate() {
            let path = path.display();
            command.args([
                "-drive",
                &format!("id=d{index},if=none,format={format},cache=writeback,aio=threads,discard=unmap,file={path}"),
                "-device",
                &format!("virtio-blk-device,drive=d{index}"),
            ]);
        }
        command.arg("-qmp").arg(format!("unix:{},server=on,wait=off", socket.display()));
        command.arg("-kernel").arg(setup.guest).args(setup.more);
        let stderr = match wire {
            None => Stdio::from(File::create(&log)?),
            Some(wire) => Stdio::from(OwnedFd::from(wire)),
        };
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(stderr).spawn()?;
        // Its copy of the wire ends, too.
        drop(command);
        let made = Console::of(&mut child)
            .and_then(|console| Ok((console, Qmp::connect(&socket, &mut child)?)));
        match made {
            Ok((console, qmp)) => Ok(Self { child, console, qmp }),
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                let said = fs::read_to_string(&log).unwrap_or_default();
                Err(io::Error::other(format!("QEMU: {e}: {}", said.trim())))
            }
        }
    }

    pub fn boot(setup: &Setup) -> io::Result<Self> {
        Self::boot_with(setup, None)
    }

    pub fn boot_with(setup: &Setup, wire: Option<UnixStream>) -> io::Result<Self> {
        let mut qemu = Self::spawn_with(setup, wire)?;
        qemu.console.ready()?;
        Ok(qemu)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes an empty qcow2 image, or one over another.
pub fn create_qcow2(path: &Path, mib: u64, base: Option<(&str, &Path)>) -> io::Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["create", "-q", "-f", "qcow2"]);
    if let Some((format, base)) = base {
        command.args(["-F", format, "-b"]).arg(base);
    }
    command.arg(path).arg(format!("{mib}M"));
    let done = command.output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("qemu-img: {}", String::from_utf8_lossy(&done.stderr).trim())))
}

pub struct Qmp {
    stream: BufReader<UnixStream>,
    events: Vec<Value>,
}

impl Qmp {
    fn connect(socket: &Path, child: &mut Child) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) if child.try_wait()?.is_some() => return Err(io::Error::other("it ended")),
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut qmp = Self { stream: BufReader::new(stream), events: Vec::new() };
        qmp.read()?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::other("QMP ended"));
        }
        Ok(serde_json::from_str(&line)?)
    }

    pub fn run(&mut self, command: &str, arguments: Value) -> io::Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes())?;
        loop {
            let mut message = self.read()?;
            if message.get("event").is_some() {
                self.events.push(message);
            } else if let Some(error) = message.get("error") {
                return Err(io::Error::other(format!("QMP {command}: {}", error["desc"])));
            } else {
                return Ok(message["return"].take());
            }
        }
    }

    /// A command of the monitor for humans; it says something only if it failed.
    pub fn human(&mut self, line: &str) -> io::Result<()> {
        let said = self.run("human-monitor-command", json!({ "command-line": line }))?;
        match said.as_str().map(str::trim) {
            None | Some("") => Ok(()),
            Some(said) => Err(io::Error::other(format!("QEMU {line}: {said}"))),
        }
    }

    /// Copies the guest's state to a file.
    pub fn migrate(&mut self, file: &Path) -> io::Result<()> {
        self.run("migrate", json!({ "uri": format!("exec:cat > '{}'", file.display()) }))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let info = self.run("query-migrate", json!({}))?;
            match info["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(io::Error::other(format!(
                        "QEMU migrate failed: {}",
                        info["error-desc"]
                    )));
                }
                _ if Instant::now() > deadline => {
                    return Err(io::Error::other("QEMU migrate does not end"));
                }
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    pub fn capability(&mut self, name: &str, state: bool) -> io::Result<()> {
        let capabilities = json!({ "capabilities": [{ "capability": name, "state": state }] });
        self.run("migrate-set-capabilities", capabilities).map(drop)
    }

    pub fn status(&mut self) -> io::Result<String> {
        Ok(self.run("query-status", json!({}))?["status"].as_str().unwrap_or_default().into())
    }

    pub fn forget_events(&mut self) {
        self.events.clear();
    }

    /// From STOP to RESUME by QEMU's own clock, in ms; all of them summed up.
    pub fn stopped_ms(&self) -> f64 {
        let time = |event: &Value| {
            let part = |name| event["timestamp"][name].as_f64().unwrap_or(f64::NAN);
            part("seconds") * 1e3 + part("microseconds") / 1e3
        };
        let mut stopped = None;
        let mut sum = 0.0;
        for event in &self.events {
            match (event["event"].as_str(), stopped) {
                (Some("STOP"), _) => stopped = Some(time(event)),
                (Some("RESUME"), Some(since)) => {
                    sum += time(event) - since;
                    stopped = None;
                }
                _ => {}
            }
        }
        sum
    }
}
