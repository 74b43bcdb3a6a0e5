//! `piton ssh`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::args::SshArgs;
use super::error::refused;
use super::{manage, named};
use crate::config::{Forward, Protocol};
use crate::control::State;

/// Where ssh listens in a guest.
const PORT: u16 = 22;

/// Becomes ssh, which talks to the guest through the forward to its port 22.
pub fn run(args: &SshArgs) -> anyhow::Result<()> {
    let folder = named::existing(&args.name)?;
    let info = manage::info(&folder)?;
    let name = &info.name;
    if info.state != State::Running {
        return Err(refused(format!("the VM `{name}` is {}, so nothing in it responds", info.state)));
    }
    let leads = |forward: &&Forward| forward.protocol == Protocol::Tcp && forward.guest_port == PORT;
    let Some(forward) = info.forwards.iter().find(leads) else {
        return Err(refused(format!(
            "no port of this host leads to port {PORT} of `{name}`: \
             `piton set {name} --forward 127.0.0.1:2222:{PORT}`, or use `piton exec {name}`"
        )));
    };
    let mut command = Command::new("ssh");
    // The VM's own: another VM at the same port has another key.
    let mut known = std::ffi::OsString::from("UserKnownHostsFile=\"");
    known.push(folder.path().join("known_hosts"));
    known.push("\"");
    command.arg("-o").arg(known);
    command.args(["-o", "StrictHostKeyChecking=accept-new"]);
    command.arg("-o").arg(format!("HostKeyAlias=piton-{name}"));
    command.arg("-p").arg(forward.port.to_string());
    if let Some(user) = &args.user {
        command.arg("-l").arg(user);
    }
    if let Some(identity) = &args.identity {
        command.arg("-i").arg(identity);
    }
    command.arg(host(forward)).args(&args.words);
    // Comes back only if it could not be started.
    let error = command.exec();
    Err(match error.kind() {
        std::io::ErrorKind::NotFound => refused("ssh is not installed on this host"),
        _ => anyhow::Error::new(error).context("ssh cannot be started"),
    })
}

/// An address of this host at which the forward listens.
fn host(forward: &Forward) -> String {
    let address = match forward.address {
        None => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Some(IpAddr::V4(all)) if all.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        Some(IpAddr::V6(all)) if all.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        Some(address) => address,
    };
    address.to_string()
}
