//! Power cuts below the file system that holds a lab. `PITON_POWER` names the program that switches
//! (scripts/lib/power-cut-host, which also runs the test): `off`, from when on every write to the
//! device is lost, and `on`, which mounts again what there was.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Dice, Lab};
use crate::common::{Terminal, field, send_signal, until};

pub fn are_on() -> bool {
    std::env::var_os("PITON_POWER").is_some()
}

/// What is made before piton begins is not what is tried.
pub fn sync() {
    // SAFETY: sync has no preconditions.
    unsafe { libc::sync() };
}

fn power(state: &str) -> Command {
    let mut command = Command::new(std::env::var_os("PITON_POWER").expect("PITON_POWER is set"));
    command.arg(state);
    command
}

/// Cuts the power at the end of its standard input.
fn fuse() -> Child {
    let mut fuse = power("off").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(fuse.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    fuse
}

/// What was told before the power went.
pub struct Told {
    /// The command said that it was done.
    pub done: bool,
    /// The journal's step that the guest said it had flushed.
    pub step: Option<u64>,
}

/// The newest step that the guest told of.
fn step(console: &Terminal) -> Option<u64> {
    let text = console.text();
    // What is after the last line's end may still be half a number.
    let (whole, _) = text.rsplit_once('\n')?;
    whole.lines().rev().find(|line| line.starts_with("ok journal")).map(|line| field(line, "seq"))
}

/// Does `line` and cuts the power at a random moment; the guest behind `console` is asked meanwhile.
pub fn cut_at(lab: &Lab, line: &str, within_ms: u64, dice: &mut Dice, mut console: Option<Terminal>) -> Told {
    let mut fuse = fuse();
    let mut child = lab.command(line.split_ascii_whitespace());
    let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let moment = Instant::now() + Duration::from_micros(dice.below(within_ms * 1000));
    while Instant::now() < moment {
        if let Some(console) = &mut console {
            console.send("journal status");
        }
        let left = moment.saturating_duration_since(Instant::now());
        std::thread::sleep(left.min(Duration::from_millis(50)));
    }
    let done = child.try_wait().unwrap().is_some_and(|status| status.success());
    let told = Told { done, step: console.as_ref().and_then(step) };
    assert!(fuse.wait().unwrap().success(), "the power does not go");
    drop(console);
    child.kill().unwrap();
    child.wait().unwrap();
    // What holds a file keeps the file system from being unmounted.
    until("all processes to end", || {
        let all = lab.home.processes();
        all.iter().for_each(|pid| send_signal(*pid, libc::SIGKILL));
        all.is_empty().then_some(())
    });
    assert!(power("on").status().unwrap().success(), "the file system does not come back");
    told
}

/// The oldest step that a guest found on its disks when it booted.
pub fn step_found(console: &Terminal) -> u64 {
    let text = console.text();
    let found = text.lines().filter(|line| line.starts_with("evt journal found"));
    found.map(|line| field(line, "seq")).min().expect("the guest has just booted")
}
