//! A network of its own, where tap devices, bridges and addresses are made as a test needs them.

use std::fs::File;
use std::io::{Error, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::common::{Finished, patience, until};

/// Runs `body` in a network namespace of its own, which begins with nothing but its loopback and
/// ends with what was started there.
pub fn on_an_island(body: impl FnOnce() + Send + 'static) {
    if !super::may_make_taps() {
        return;
    }
    let island = std::thread::spawn(move || {
        // SAFETY: both change what this thread alone sees.
        let alone = unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) };
        assert_eq!(alone, 0, "{}", Error::last_os_error());
        // What it sees of the network's devices are those of its own.
        ran(Command::new("mount").args(["--make-rprivate", "/"]));
        ran(Command::new("mount").args(["-t", "sysfs", "sysfs", "/sys"]));
        ip("link set lo up");
        body();
    });
    if let Err(panic) = island.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ran(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

pub fn ip(line: &str) {
    ran(Command::new("ip").args(line.split(' ')));
}

/// Without the right to make network devices.
pub fn powerless(mut command: Command) -> Finished {
    const CAP_NET_ADMIN: libc::c_ulong = 12;
    // SAFETY: prctl takes numbers, and is safe between fork and exec.
    unsafe {
        command.pre_exec(|| match libc::prctl(libc::PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0) {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        });
    }
    Finished::run(command)
}

/// Asks a web server at an address of this network for `path`, until it answers.
pub fn ask(address: &str, path: &str) -> Vec<u8> {
    until("the guest's web server", || {
        let mut stream = TcpStream::connect((address, 80)).ok()?;
        stream.set_read_timeout(Some(patience())).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        Some(answer)
    })
}

/// Holds a tap device as another program does.
pub fn taken(name: &str) -> File {
    const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    request[16..18].copy_from_slice(&((libc::IFF_TAP | libc::IFF_NO_PI) as u16).to_ne_bytes());
    use std::os::fd::AsRawFd;
    // SAFETY: the request is a whole `struct ifreq` that lives across the call.
    let done = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(done, 0, "{}", Error::last_os_error());
    file
}
