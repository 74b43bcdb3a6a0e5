//! piton, driven through its command line.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::console::{Console, PATIENCE};

/// The program and the folder of its VMs.
#[derive(Clone)]
pub struct Piton {
    pub program: PathBuf,
    pub home: PathBuf,
}

impl Piton {
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.env("PITON_HOME", &self.home).args(args);
        command
    }

    /// Runs a command to its end and returns what it prints.
    pub fn run(&self, args: &[&str]) -> io::Result<String> {
        let done = self.command(args).stdin(Stdio::null()).output()?;
        if done.status.success() {
            return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&done.stderr);
        Err(io::Error::other(format!("piton {}: {}", args.join(" "), said.trim())))
    }

    pub fn json(&self, args: &[&str]) -> io::Result<Value> {
        let args: Vec<&str> = std::iter::once("--json").chain(args.iter().copied()).collect();
        Ok(serde_json::from_str(&self.run(&args)?)?)
    }

    /// Boots a new VM in the foreground.
    pub fn boot(&self, name: &str, args: &[String]) -> io::Result<Vm> {
        self.remove(name);
        let mut command = self.command(&["run", name]);
        command.args(args);
        let mut vm = self.attach(name, command)?;
        vm.console.ready()?;
        Ok(vm)
    }

    /// Attaches to the console of a VM that runs in the background.
    pub fn console(&self, name: &str) -> io::Result<Vm> {
        self.attach(name, self.command(&["console", name]))
    }

    fn attach(&self, name: &str, mut command: Command) -> io::Result<Vm> {
        let log = File::create(self.home.with_extension("log"))?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let console = Console::of(&mut child)?;
        Ok(Vm { piton: self.clone(), name: name.into(), child, console })
    }

    /// Cuts a VM's power and waits until its process is gone.
    pub fn stop(&self, name: &str) -> io::Result<()> {
        // The guest may be faster and shut down by itself; the merging of layers then takes a while.
        let said = self.run(&["stop", name, "--force", "--timeout", "0"]);
        let deadline = Instant::now() + PATIENCE;
        while self.json(&["show", name])?["state"] != "stopped" {
            if Instant::now() > deadline {
                return said.map(drop);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Ends and removes a VM, if there is one.
    pub fn remove(&self, name: &str) {
        if self.home.join(name).exists() {
            let _ = self.stop(name);
            let _ = self.run(&["rm", name, "--yes"]);
        }
    }
}

/// A VM with its console.
pub struct Vm {
    pub piton: Piton,
    pub name: String,
    pub child: Child,
    pub console: Console,
}

impl Vm {
    /// Cuts its power and waits until its process is gone.
    pub fn end(mut self) -> io::Result<()> {
        self.piton.stop(&self.name)?;
        self.child.wait().map(drop)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(Some(_))) {
            let _ = self.piton.stop(&self.name);
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
