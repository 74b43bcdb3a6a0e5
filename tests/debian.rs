//! A stock Debian image as clouds use it, booted with the kernel in it. Only where stock Linux can
//! run, see tests/linux.rs.

mod common;

use common::{Home, Vm, debian_image, is_long, until};

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGbAvv1234567890123456789012345678901234 me@here";

fn agent(home: &Home) {
    until("the guest's agent", || {
        (home.piton("show demo --json").json()["agent_connected"] == true).then_some(())
    });
}

fn boot(home: &Home, more: &[&str]) -> Option<Vm> {
    // Before the image: it may not even be built where this is not wanted.
    let image = is_long().then(debian_image)??;
    let key = home.file("id.pub", KEY.as_bytes());
    let mut words =
        vec!["run", "demo", "--memory", "512M", "--image", image.to_str().unwrap(), "--ssh-key", &key];
    words.extend(more);
    Some(home.args_vm(&words))
}

#[test]
fn an_image_boots_to_its_login_as_cloud_init_set_it_up() {
    let home = Home::new();
    let Some(mut vm) = boot(&home, &["--hostname", "web", "--cmdline-extra", "quiet"]) else { return };
    // cloud-init says whose keys it has put in place, and the login is under its name.
    vm.expect("web login:");
    agent(&home);
    vm.expect("me@here");
    home.piton("stop demo --timeout 240").ok();
    vm.exits_well();
}

/// Waits for longer than a single command may take.
fn comes(home: &Home, what: &str) {
    until("the VM", || (home.piton("show demo").code == Some(0)).then_some(()));
    let wait = || home.args(["wait", "demo", "--for", what, "--timeout", "150"]);
    assert!((0..6).any(|_| wait().code == Some(0)), "waited in vain for {what}");
}

/// What an agent's commands print, and that they succeed.
fn inside(home: &Home, vm: &str, script: &str) -> String {
    home.args(["exec", vm, "--", "sh", "-c", script]).ok()
}

#[test]
fn clones_get_an_identity_each() {
    let home = Home::new();
    // A busy host is no reason for it to give up on its own console.
    let cmdline = "quiet systemd.default_timeout_start_sec=900";
    let Some(_vm) = boot(&home, &["--hostname", "web", "--cmdline-extra", cmdline, "--net", "user"]) else {
        return;
    };
    comes(&home, "agent");
    // Keys are made, and the network is there.
    comes(&home, "exec=test -e /var/lib/cloud/instance/boot-finished");
    const ALL: &str = "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_*_key.pub; \
        grep -o '127.0.1.1.*' /etc/hosts || true";
    let before = inside(&home, "demo", ALL);
    home.piton("checkpoint create demo warm --type standard").ok();
    let told = home.piton("clone demo@warm web --count 2 --run --new-identity --json");
    let mut seen = vec![before.clone()];
    for (n, clone) in told.json().as_array().unwrap().iter().enumerate() {
        let steps = clone["new_identity"].as_array().unwrap();
        assert_eq!(steps.len(), 5, "{clone}");
        assert!(steps.iter().all(|step| step["outcome"] == "done"), "{clone}");
        let name = format!("web-{}", n + 1);
        seen.push(inside(&home, &name, ALL));
        assert_eq!(seen[n + 1].lines().next(), Some(&name[..]));
        // What runs has it, too.
        assert_eq!(inside(&home, &name, "hostnamectl hostname").trim(), name);
        inside(&home, &name, "systemctl is-active ssh systemd-networkd");
        let address = inside(&home, &name, "ip -4 -o address show scope global");
        assert!(address.contains("inet "), "{address}");
    }
    // Nothing but the kind of a key is in two of them.
    for n in 1..seen.len() {
        for line in seen[n].lines().filter(|line| !line.is_empty()) {
            assert!(!seen[..n].iter().any(|other| other.lines().any(|it| it == line)), "{line}: {seen:?}");
        }
    }
    // Its original is as it was.
    assert_eq!(inside(&home, "demo", ALL), before);
    for name in ["web-1", "web-2", "demo"] {
        home.piton(&format!("kill {name}")).ok();
    }
}
