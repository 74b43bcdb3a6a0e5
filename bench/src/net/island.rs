//! A network namespace for the measurement, where it may make a tap device. Only root may.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Addresses on the tap device.
pub const HOST: &str = "10.77.0.1";
pub const GUEST: &str = "10.77.0.2";
pub const TAP: &str = "bench0";

const MARK: &str = "PITON_BENCH_ISLAND";
const SETUP: &str = "mount -t sysfs sysfs /sys && ip link set lo up && exec \"$@\"";

/// Runs this program again in a namespace of its own, or says that it is there already. False: it
/// may not, and there are no tap devices.
pub fn enter() -> io::Result<bool> {
    if std::env::var_os(MARK).is_some() {
        return Ok(true);
    }
    let may =
        Command::new("unshare").args(["--net", "--mount", "test", "-w", "/dev/net/tun"]).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("no tap devices: they need root and /dev/net/tun");
        return Ok(false);
    }
    let mut again = Command::new("unshare");
    again.args(["--net", "--mount", "sh", "-c", SETUP, "sh"]).arg(std::env::current_exe()?);
    Err(again.args(std::env::args_os().skip(1)).env(MARK, "1").exec())
}

fn ip(line: &str) -> io::Result<()> {
    let done = Command::new("ip").args(line.split(' ')).output()?;
    if done.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&done.stderr);
    Err(io::Error::other(format!("ip {line}: {}", said.trim())))
}

pub fn make_tap() -> io::Result<()> {
    ip(&format!("tuntap add {TAP} mode tap"))?;
    ip(&format!("address add {HOST}/24 dev {TAP}"))?;
    ip(&format!("link set {TAP} up"))
}

pub fn remove_tap() -> io::Result<()> {
    ip(&format!("link delete {TAP}"))
}
