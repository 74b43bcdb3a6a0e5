//! A VM in the foreground: a child process with its console on pipes.

use std::ops::{Deref, DerefMut};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, Stdio};

use super::terminal::{Terminal, Watched};

pub struct Vm {
    child: Child,
    terminal: Terminal,
    stderr: Watched,
}

/// How a VM's process ended.
#[derive(Debug)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub console: String,
    pub stderr: String,
}

impl Vm {
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // SAFETY: prctl is async-signal-safe and the closure touches nothing else.
        unsafe {
            command.pre_exec(|| {
                // Should the test be killed, too, its VMs go with it.
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let input = child.stdin.take().map(|pipe| Box::new(pipe) as Box<_>);
        let output = child.stdout.take().expect("stdout is a pipe");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let terminal = Terminal::new(&format!("`piton {}`", words.join(" ")), output, input);
        Self { child, terminal, stderr: Watched::start(stderr) }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What piton itself said so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn signal(&self, signal: i32) {
        super::send_signal(self.pid() as i32, signal);
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for the process to end.
    #[track_caller]
    pub fn exit(&mut self) -> Exit {
        let child = &mut self.child;
        let status = super::until("the VM's process to end", || child.try_wait().unwrap());
        Exit {
            code: status.code(),
            signal: status.signal(),
            console: self.terminal.end(),
            stderr: self.stderr.all().expect("stderr ends with the process"),
        }
    }

    /// Waits for the process to end as it should.
    #[track_caller]
    pub fn exits_well(&mut self) -> Exit {
        let exit = self.exit();
        assert_eq!(exit.code, Some(0), "{}", exit.stderr);
        exit
    }

    #[track_caller]
    pub fn power_off(&mut self) -> Exit {
        self.send("poweroff");
        self.exits_well()
    }
}

impl Deref for Vm {
    type Target = Terminal;
    fn deref(&self) -> &Terminal {
        &self.terminal
    }
}

impl DerefMut for Vm {
    fn deref_mut(&mut self) -> &mut Terminal {
        &mut self.terminal
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- stderr of process {}\n{}\n---", self.child.id(), self.stderr.text());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
