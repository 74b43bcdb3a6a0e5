//! passt at the other end of a socket. It speaks for the guest with sockets of the host, so it needs
//! no rights, and two guests with one address do not meet.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::net::{Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::backend::{Backend, Incoming, Lost, MOST_FRAME};
use super::flows::{Flows, SavedFlow, Verdict};
use super::frames;
use super::packet::{HEADER, finish_checksum};
use crate::config::{Forward, NetConfig, Protocol};

const PROGRAM: &str = "passt";
/// Longest frame that passt takes.
const MOST_TO_PASST: usize = 65535;
/// Answers to the guest that are kept; more of them are not given.
const MOST_ANSWERS: usize = 256;
/// Features of the driver (virtio 1.2, section 5.1.3): it takes packets whose checksum is known to
/// be right.
const GUEST_CSUM: u64 = 1 << 1;
/// Flag of a header that says so.
const DATA_VALID: u8 = 2;

/// Where a host without a network of its own puts its guest: the addresses that QEMU chose for it.
const OFFLINE: [&str; 11] =
    ["-4", "-i", "lo", "-a", "10.0.2.15", "-n", "24", "-g", "10.0.2.2", "-M", "52:55:0a:00:02:02"];

#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("the network `user` needs passt, which is not installed: install the package `passt`")]
    Missing,
}

/// The program, as the shell would find it.
pub fn find_passt(path: Option<&OsStr>) -> Result<PathBuf, UserError> {
    let runs = |path: &Path| {
        std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let mut candidates = path.into_iter().flat_map(std::env::split_paths).map(|dir| dir.join(PROGRAM));
    candidates.find(|candidate| runs(candidate)).ok_or(UserError::Missing)
}

/// What passt is told, beside where its socket is. `offline` is for a host that has no route to
/// anywhere, where passt finds no addresses by itself.
pub fn arguments(net: &NetConfig, forwards: &[Forward], offline: bool) -> Vec<String> {
    let mut args: Vec<String> = vec!["--stderr".into(), "--mtu".into(), net.mtu.to_string()];
    if offline {
        args.extend(OFFLINE.map(Into::into));
    }
    for (protocol, option) in [(Protocol::Tcp, "--tcp-ports"), (Protocol::Udp, "--udp-ports")] {
        let mut specs: Vec<String> =
            forwards.iter().filter(|forward| forward.protocol == protocol).map(spec).collect();
        if specs.is_empty() {
            // Ports of the one protocol would be forwarded for the other as well.
            specs.push("none".into());
        }
        args.extend(specs.into_iter().flat_map(|spec| [option.into(), spec]));
    }
    args
}

fn spec(forward: &Forward) -> String {
    let ports = format!("{}:{}", forward.port, forward.guest_port);
    match forward.address {
        Some(address) => format!("{address}/{ports}"),
        None => ports,
    }
}

/// Whether what passt said means that the host has no route to anywhere.
pub fn is_offline(said: &str) -> bool {
    said.contains("External interface not usable") || said.contains("No external routable interface")
}

/// What passt said before it gave up, in words that help.
pub fn explain(said: &str) -> String {
    if said.contains("unrecognized option") || said.contains("invalid option") {
        return "the installed passt is too old (it has no --fd): install a newer `passt` package".into();
    }
    if let Some(port) = said.lines().find_map(unbound_ipv6) {
        return format!(
            "cannot listen on port {port}: passt has IPv6 only on a host with a default route for IPv6; forward \
             from an IPv4 address"
        );
    }
    let noise = |line: &&str| {
        !(line.trim().is_empty() || line.contains("to syslog") || line.contains("Don't run as root"))
    };
    // The last of it is why; it may say anything, and at any length.
    let why = said.lines().rfind(noise).unwrap_or("it gave no reason");
    let why: String = why.chars().filter(|c| !c.is_control()).take(200).collect();
    format!("passt failed: {why}")
}

/// The address and port of a forward that passt could not listen on, if it is one of IPv6.
fn unbound_ipv6(line: &str) -> Option<String> {
    let (_, rest) = line.split_once("Failed to bind any port for '-")?;
    let (address, ports) = rest.get(2..)?.split_once('/')?;
    let address: Ipv6Addr = address.parse().ok()?;
    let (port, _) = ports.split_once(':')?;
    Some(SocketAddr::new(address.into(), port.parse().ok()?).to_string())
}

pub struct User {
    socket: UnixStream,
    incoming: frames::Incoming,
    outgoing: frames::Outgoing,
    flows: Flows,
    /// Frames of our own to the guest, which come before those of passt.
    answers: VecDeque<Vec<u8>>,
    former: Vec<SavedFlow>,
    /// The frame that is looked at is one of ours.
    own: bool,
    header: [u8; HEADER],
}

impl User {
    /// `socket` leads to passt.
    pub fn new(socket: UnixStream, isolated: bool) -> std::io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            incoming: frames::Incoming::default(),
            outgoing: frames::Outgoing::default(),
            flows: Flows::new(isolated),
            answers: VecDeque::new(),
            former: Vec::new(),
            own: false,
            header: [0; HEADER],
        })
    }
}

impl Backend for User {
    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    fn peek(&mut self) -> Result<Option<Incoming<'_>>, Lost> {
        if self.answers.is_empty() {
            self.answers.extend(self.former.pop().map(|flow| flow.probe()));
        }
        self.own = !self.answers.is_empty();
        if let Some(frame) = self.answers.front() {
            return Ok(Some(Incoming { header: [0; HEADER], frame }));
        }
        let frame = self.incoming.peek(&mut self.socket)?;
        Ok(frame.map(|frame| Incoming { header: self.header, frame }))
    }

    fn drop_frame(&mut self) {
        if self.own {
            self.answers.pop_front();
            return;
        }
        // Only what the guest was given is a connection that it has.
        if let Ok(Some(frame)) = self.incoming.ready() {
            self.answers.extend(self.flows.enters(frame));
        }
        self.incoming.drop_frame();
    }

    fn has_frame(&self) -> bool {
        // What makes no sense is for `peek` to say.
        !(self.answers.is_empty() && self.former.is_empty() && matches!(self.incoming.ready(), Ok(None)))
    }

    fn is_blocked(&self) -> bool {
        self.outgoing.is_blocked()
    }

    fn send(&mut self, packet: &mut [u8]) -> Result<(), Lost> {
        if !finish_checksum(packet) {
            return Ok(());
        }
        let Some(frame) = packet.get(HEADER..).filter(|frame| frame.len() <= MOST_TO_PASST) else {
            return Ok(());
        };
        match self.flows.leaves(frame) {
            Verdict::Pass => self.outgoing.put(frame, &mut self.socket),
            Verdict::Answer(answer) => {
                if self.answers.len() < MOST_ANSWERS {
                    self.answers.push_back(answer);
                }
                Ok(())
            }
            Verdict::Drop => Ok(()),
        }
    }

    fn flush(&mut self) -> Result<(), Lost> {
        self.outgoing.flush(&mut self.socket)
    }

    fn set_offloads(&mut self, features: u64) -> Result<(), Lost> {
        // Nothing between passt and here can damage a frame.
        self.header[0] = if features & GUEST_CSUM != 0 { DATA_VALID } else { 0 };
        Ok(())
    }

    fn flows(&self) -> Vec<SavedFlow> {
        self.flows.saved()
    }

    fn end_flows(&mut self, former: Vec<SavedFlow>) {
        self.former = former;
    }
}

const _: () = assert!(MOST_TO_PASST <= MOST_FRAME);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{NetArg, networks};

    #[test]
    fn passt_is_told_what_was_asked_for() {
        let nets = networks(&[NetArg::USER], &[], &[[1, 2, 3]]).unwrap();
        let forwards: Vec<Forward> =
            ["8080:80", "127.0.0.1:2222:22", "[::1]:1:2"].map(|text| text.parse().unwrap()).into();
        let args = arguments(&nets[0], &forwards, false).join(" ");
        assert_eq!(
            args,
            "--stderr --mtu 65520 --tcp-ports 8080:80 --tcp-ports 127.0.0.1/2222:22 --tcp-ports ::1/1:2 --udp-ports none"
        );
        let args = arguments(&nets[0], &["udp:5:6".parse().unwrap()], true).join(" ");
        assert!(args.contains("-i lo") && args.ends_with("--tcp-ports none --udp-ports 5:6"), "{args}");
    }

    #[test]
    fn what_passt_says_is_told_once_and_short() {
        let old = explain("passt: unrecognized option '--fd'\nUsage: passt [OPTION]...");
        assert!(old.contains("too old"), "{old}");
        let said = "Don't run as root. Changing to nobody...\nFailed to send 9 bytes to syslog\nFailed to bind any port for '-t 1:1', exiting\n\n";
        assert_eq!(explain(said), "passt failed: Failed to bind any port for '-t 1:1', exiting");
        let no_ipv6 = "Failed to bind any port for '-t ::1/8080:80', exiting\n";
        assert!(explain(no_ipv6).starts_with("cannot listen on port [::1]:8080: passt has IPv6 only"));
        assert!(explain(&"x".repeat(10_000)).len() < 300);
        assert_eq!(explain(""), "passt failed: it gave no reason");
    }

    #[test]
    fn passt_is_found_where_the_shell_would_find_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = std::env::join_paths([Path::new("/nowhere"), dir.path()]).unwrap();
        assert!(find_passt(Some(&path)).is_err());
        let file = dir.path().join(PROGRAM);
        std::fs::write(&file, "").unwrap();
        assert!(find_passt(Some(&path)).is_err(), "it cannot be run");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(find_passt(Some(&path)).unwrap(), file);
        assert!(find_passt(None).unwrap_err().to_string().contains("install the package `passt`"));
    }
}
