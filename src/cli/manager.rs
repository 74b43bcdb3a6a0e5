//! `piton manager`: the web manager in the foreground; `piton api`: the same for programs.

use std::process::{Command, Stdio};

use anyhow::Context;

use super::args::{ApiArgs, ManagerArgs};
use super::error::usage;
use super::out::{self, note, outln};
use super::signals;
use crate::folder::Home;
use crate::manager::{self, Address, HomeOptions, Options};
use crate::storage::Storage;

pub fn run(args: ManagerArgs, json: bool) -> anyhow::Result<()> {
    let address = args.listen.unwrap_or_default();
    match &address {
        Address::Tcp(at) if at.ip().is_unspecified() && args.allowed_host.is_empty() => {
            return Err(usage(
                "to listen on all addresses, give the host name that browsers use with --allowed-host NAME",
            ));
        }
        Address::Tcp(at) if !at.ip().is_loopback() => log::warn!(
            "others on the network can read what goes to and from the manager: `ssh -L` encrypts it"
        ),
        _ => {}
    }
    let options = Options {
        home: Home::from_env(Storage::os())?,
        address: address.clone(),
        allowed_hosts: args.allowed_host,
        starter: starter()?,
        confined: !args.no_seccomp,
    };
    let stopped = signals::first()?;
    let opens = !args.no_open && !json && matches!(address, Address::Tcp(_));
    let first = std::sync::Once::new();
    let new_link = move |link: &str| {
        if json {
            out::json_line(&serde_json::json!({ "url": link }));
        } else if first.is_completed() {
            outln!("for another browser: {link}");
        } else {
            outln!("{link}");
        }
        first.call_once(|| {
            if let Address::Unix(path) = &address {
                let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
                note(&format!(
                    "piton: on your computer, `ssh -L PORT:{} HOST` makes this link work there, with a PORT of your choice",
                    path.display()
                ));
            }
            if opens {
                open(link);
            }
        });
    };
    Ok(manager::serve(options, new_link, stopped)?)
}

/// The process that starts commands.
fn starter() -> anyhow::Result<Command> {
    let mut starter = Command::new(std::env::current_exe().context("piton cannot find itself")?);
    starter.arg("start-commands");
    Ok(starter)
}

pub fn api(args: ApiArgs, json: bool) -> anyhow::Result<()> {
    let home = Home::from_env(Storage::os())?;
    let path = args.socket.unwrap_or_else(|| home.api_socket());
    let path = std::path::absolute(&path).unwrap_or(path);
    home.make()?;
    let options = HomeOptions { home, path: path.clone(), starter: starter()?, confined: !args.no_seccomp };
    let stopped = signals::first()?;
    let ready = || match json {
        true => out::json_line(&serde_json::json!({ "socket": path })),
        false => outln!("{}", path.display()),
    };
    Ok(manager::serve_home(options, ready, stopped)?)
}

/// Shows the link to the user's browser, where there is a screen.
fn open(link: &str) {
    if ["DISPLAY", "WAYLAND_DISPLAY"].iter().all(|name| std::env::var_os(name).is_none()) {
        return;
    }
    let mut command = Command::new("xdg-open");
    command.arg(link).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.spawn() {
        // Waited for, so that it does not stay as a zombie.
        Ok(mut child) => drop(std::thread::spawn(move || child.wait())),
        Err(e) => log::debug!("no browser could be opened: {e}"),
    }
}
