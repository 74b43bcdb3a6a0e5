//! Kills at random moments, and what must hold after them.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Dice, Lab, Node, cuts, unchanged};
use crate::common::{Terminal, send_signal, until};

/// The process that runs the VM.
pub fn process(lab: &Lab) -> Option<i32> {
    let pid = lab.piton("show demo --json").json()["pid"].as_i64()?;
    Some(i32::try_from(pid).unwrap())
}

/// Kills a process and waits until it holds nothing any more.
pub fn kill(pid: i32) {
    send_signal(pid, libc::SIGKILL);
    until("the process to end", || {
        // Threads may still hold what the first of them has left behind.
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = stat.rsplit(") ").next().unwrap_or_default();
        (threads <= 1 && (state.is_empty() || state.starts_with('Z'))).then_some(())
    });
}

pub fn kill_vm(lab: &Lab) {
    kill(process(lab).expect("it runs"));
}

/// Starts the VM if it is off, and lets it continue if it is paused; returns its console. A command
/// whose VM was killed may have done its work offline, and left it paused.
pub fn running(lab: &Lab) -> Terminal {
    static MARK: AtomicU64 = AtomicU64::new(0);
    let state = lab.state();
    let is_off = state == "stopped";
    if is_off {
        lab.piton("start demo").ok();
    } else if state == "paused" {
        lab.piton("resume demo").ok();
    }
    let mut console = lab.attach("demo");
    if is_off {
        console.ready();
    }
    // An attached console first shows what was printed before.
    let mark = format!("mark-{}", MARK.fetch_add(1, Ordering::Relaxed));
    console.send(&format!("echo {mark}"));
    console.line(&[&format!("ok {mark}")]);
    console
}

/// Does `line` and kills the process that does it at a random moment; returns whether the command
/// said that it was done.
pub fn killed_at(lab: &Lab, line: &str, within_ms: u64, dice: &mut Dice, vm: bool) -> bool {
    let pid = process(lab).filter(|_| vm);
    let mut child = lab.command(line.split_ascii_whitespace());
    child.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = child.spawn().unwrap();
    std::thread::sleep(Duration::from_micros(dice.below(within_ms * 1000)));
    match pid {
        Some(pid) => kill(pid),
        None => child.kill().unwrap(),
    }
    child.wait().unwrap().success()
}

/// Everything that was there before is as it was; returns the names of all that is there.
pub fn whole(lab: &Lab, before: &BTreeMap<String, Node>, gone: Option<&str>) -> Vec<String> {
    let mut console = running(lab);
    console.journal();
    // What the killed process left to merge begins a while after the start.
    // Some may have to wait for the VM's end.
    let begun = Instant::now();
    while lab.list()["pending_merges"] != 0 && begun.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(20));
    }
    let after = lab.nodes();
    unchanged(before, &after);
    for name in before.keys().filter(|name| gone != Some(name.as_str())) {
        assert!(after.contains_key(name), "`{name}` is lost");
    }
    assert!(!lab.console_log("demo").contains("MISMATCH"));
    lab.template_is_untouched();
    after.into_keys().collect()
}

pub fn kill_lab() -> (Lab, Dice) {
    let lab = Lab::new();
    if cuts::are_on() {
        cuts::sync();
    }
    let cpus = if cuts::are_on() { 1 } else { 2 };
    lab.piton(&format!("run demo --detach --cpus {cpus} --memory 64M {}", lab.disks())).ok();
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    (lab, Dice::from_env(&name))
}
