//! `piton clone --new-identity`, with programs of this host behind the bundled guest's port. What they
//! change lies in rooms of the test's own.

mod ckpt_common;
mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ckpt_common::Lab;
use common::{HostAgent, Terminal, is_root, skip, until};
use serde_json::{Value, json};

const STEPS: [&str; 5] = ["randomness", "hostname", "machine-id", "ssh-host-keys", "dhcp"];
const OLD_ID: &str = "0123456789abcdef0123456789abcdef";

/// A guest at a checkpoint whose clones can have an agent.
fn warm(agent: &str) -> (Lab, Terminal) {
    let lab = Lab::new();
    lab.piton("run demo --detach --memory 64M --vsock").ok();
    let mut guest = lab.attach("demo");
    guest.ready();
    guest.ok(&format!("agent {agent}"));
    lab.piton("checkpoint create demo warm --type standard").ok();
    (lab, guest)
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).trim().to_owned()
}

/// A program that notes how it was called, and then does this.
fn program(room: &Path, name: &str, script: &str) {
    let path = room.join("bin").join(name);
    write(&path, &format!("#!/bin/sh\necho {name} \"$@\" >>{}/calls\n{script}\n", room.display()));
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// What every guest has.
fn room(lab: &Lab, name: &str) -> PathBuf {
    let room = lab.home.beside(name);
    for file in ["passwd", "group", "nsswitch.conf", "ld.so.cache"] {
        let _ = std::fs::create_dir_all(room.join("etc"));
        let _ = std::fs::copy(Path::new("/etc").join(file), room.join("etc").join(file));
    }
    if let Ok(awk) = std::fs::read_link("/etc/alternatives/awk") {
        std::fs::create_dir_all(room.join("etc/alternatives")).unwrap();
        std::os::unix::fs::symlink(awk, room.join("etc/alternatives/awk")).unwrap();
    }
    // It reseeds this host's kernel otherwise, and need not be there.
    program(&room, "perl", "exit 0");
    room
}

/// One with systemd, sshd and NetworkManager.
fn furnished(lab: &Lab, name: &str, host: &str) -> PathBuf {
    let room = room(lab, name);
    write(&room.join("etc/machine-id"), OLD_ID);
    write(&room.join("var/lib/dbus/machine-id"), OLD_ID);
    write(&room.join("etc/hosts"), &format!("127.0.0.1  localhost\n127.0.1.1 {host}.lan {host}\n# {host}\n"));
    for kind in ["ed25519", "ecdsa"] {
        write(&room.join(format!("etc/ssh/ssh_host_{kind}_key")), "old");
        write(&room.join(format!("etc/ssh/ssh_host_{kind}_key.pub")), "old");
    }
    write(&room.join("run/systemd/system/unit"), "");
    write(&room.join("sys/class/net/eth0/device"), "");
    write(&room.join("sys/class/net/eth0/carrier"), "1");
    program(&room, "hostnamectl", "");
    program(&room, "systemctl", "case \"$*\" in *is-active*networkd*) exit 3 ;; esac");
    program(&room, "nmcli", "[ \"$1\" != -t ] || printf 'aaa:loopback\\nbbb:802-3-ethernet\\n'");
    room
}

/// The agents of clones that a command is just making.
fn agents(lab: &Lab, rooms: &[(&str, &Path)]) -> Vec<HostAgent> {
    let start = |(name, room): &(&str, &Path)| {
        until("the clone to run", || {
            lab.piton(&format!("show {name}")).stdout.contains("running").then_some(())
        });
        HostAgent::start_in_room(&lab.home, name, &mut lab.attach(name), room)
    };
    rooms.iter().map(start).collect()
}

fn told(value: &Value) -> Vec<(String, String, String)> {
    let word = |step: &Value, name: &str| step[name].as_str().unwrap_or_default().to_owned();
    let steps = value["new_identity"].as_array().unwrap_or_else(|| panic!("{value}"));
    steps.iter().map(|step| (word(step, "step"), word(step, "outcome"), word(step, "reason"))).collect()
}

#[test]
fn each_clone_gets_an_identity_of_its_own() {
    if !is_root() {
        return skip("rooms of their own need root");
    }
    let (lab, _guest) = warm("off");
    let host = read(Path::new("/proc/sys/kernel/hostname"));
    let rooms = ["web-1", "web-2"].map(|name| (name, furnished(&lab, name, &host)));
    let (done, _agents) = std::thread::scope(|scope| {
        let line = "clone demo@warm web --count 2 --run --new-identity --json";
        let command = scope.spawn(|| lab.piton(line));
        let agents = agents(&lab, &rooms.each_ref().map(|(name, room)| (*name, room.as_path())));
        (command.join().unwrap(), agents)
    });
    let clones = done.json();
    let mut keys = Vec::new();
    for ((name, room), clone) in rooms.iter().zip(clones.as_array().unwrap()) {
        assert_eq!((clone["name"].as_str(), clone["state"].as_str()), (Some(*name), Some("running")));
        let done = STEPS.map(|step| (step.to_owned(), "done".to_owned(), String::new()));
        assert_eq!(told(clone), done);
        assert_eq!(read(&room.join("etc/hostname")), *name);
        let hosts = read(&room.join("etc/hosts"));
        assert_eq!(hosts, format!("127.0.0.1  localhost\n127.0.1.1 {name}.lan {name}\n# {host}"));
        let id = read(&room.join("etc/machine-id"));
        assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()) && &id[12..13] == "4", "{id}");
        assert_eq!(read(&room.join("var/lib/dbus/machine-id")), id);
        keys.push(id);
        for kind in ["ed25519", "ecdsa"] {
            let key = room.join(format!("etc/ssh/ssh_host_{kind}_key"));
            assert!(read(&key).contains("PRIVATE KEY"));
            let public = read(&key.with_extension("pub"));
            assert!(public.contains(kind) && public.ends_with(&format!("root@{name}")), "{public}");
            keys.push(public);
        }
        assert_eq!(std::fs::read_dir(room.join("etc/ssh")).unwrap().count(), 4, "nothing is left behind");
        let calls = read(&room.join("calls"));
        for call in [
            &format!("hostnamectl set-hostname {name}")[..],
            "systemctl reload ssh.service",
            "nmcli -w 30 connection up uuid bbb",
        ] {
            assert!(calls.lines().any(|line| line == call), "{call}: {calls}");
        }
        assert!(!calls.contains("uuid aaa"), "{calls}");
    }
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 6, "no two are alike: {keys:?}");
    assert_eq!(read(Path::new("/proc/sys/kernel/hostname")), host);
}

#[test]
fn what_a_guest_cannot_do_is_said() {
    if !is_root() {
        return skip("rooms of their own need root");
    }
    let (lab, _guest) = warm("off");
    // There is no new randomness, and nothing that a name could be written to.
    let room = room(&lab, "web");
    for name in ["perl", "python3"] {
        program(&room, name, "exit 1");
    }
    std::fs::create_dir_all(room.join("etc/hostname")).unwrap();
    write(&room.join("etc/ssh/ssh_host_ed25519_key"), "old");
    let (done, _agents) = std::thread::scope(|scope| {
        let command = scope.spawn(|| lab.piton("clone demo@warm web --run --new-identity"));
        let agents = agents(&lab, &[("web", &room)]);
        (command.join().unwrap(), agents)
    });
    assert_eq!(done.code, Some(1), "{done}");
    let words = "the VM `web` is at checkpoint `warm` of `demo`, running with a part of a new identity";
    assert!(!done.stdout.contains(words), "nothing was done: {done}");
    for line in [
        "web: new identity: randomness failed: its kernel has no vmgenid driver",
        "web: new identity: hostname failed: ",
        "web: new identity: machine-id skipped: it has none",
        "web: new identity: ssh-host-keys failed: keys made now could be those of another clone",
        "web: new identity: dhcp skipped: it has no network card",
    ] {
        assert!(done.stderr.contains(line), "{line}: {done}");
    }
    assert_eq!(read(&room.join("etc/ssh/ssh_host_ed25519_key")), "old");
    assert!(lab.piton("show web").ok().contains("running"));
}

#[test]
fn a_guest_that_cannot_be_asked_keeps_what_it_had() {
    for (agent, reason) in [
        ("forbids", "the guest does not allow running commands from the host"),
        ("on", "the guest has no /bin/sh"),
        ("off", "no guest agent is connected"),
    ] {
        let (lab, _guest) = warm(agent);
        let done = lab.piton("clone demo@warm web --run --new-identity --json");
        assert_eq!(done.code, Some(1), "{agent}: {done}");
        let clone: Value = serde_json::from_str(&done.stdout).unwrap();
        assert_eq!(clone[0]["state"], json!("running"));
        for (step, (name, outcome, why)) in STEPS.iter().zip(told(&clone[0])) {
            assert_eq!((*step, &outcome[..]), (&name[..], "failed"), "{agent}");
            assert!(why.contains(reason), "{agent}: {why}");
        }
        assert!(done.stderr.contains("web: no new identity: "), "{done}");
    }
}

#[test]
fn a_new_identity_needs_a_clone_that_runs_and_can_be_called_so() {
    let (lab, _guest) = warm("off");
    let told = lab.piton("clone demo@warm web --new-identity");
    assert!(told.code == Some(2) && told.stderr.contains("--run"), "{told}");
    lab.piton("clone demo@warm web_1 --run --new-identity").fails(2, &["`web_1`"]);
    assert!(!lab.home.vm("web_1").exists() && !lab.home.vm("web").exists(), "nothing is made");
}
