//! Tap devices, in networks of the tests' own, and networks in place of those that a checkpoint has.

mod ckpt_common;
mod common;
mod net_common;

use ckpt_common::Lab;
use common::{Terminal, field, has_word, until};
use net_common::{Host, ask, fetch, free_port, has_passt, ip, on_an_island, powerless, taken};
use serde_json::{Value, json};

/// A VM on the tap device, whose guest has the address 10.77.0.`n`.
fn start(lab: &Lab, name: &str, options: &str, n: u8) -> Terminal {
    let mut guest = start_of(lab, name, options);
    guest.ok(&format!("net address 10.77.0.{n}/24 10.77.0.1"));
    guest
}

fn start_of(lab: &Lab, name: &str, options: &str) -> Terminal {
    lab.piton(&format!("run {name} --detach --memory 64M {options}")).ok();
    let mut guest = lab.attach(name);
    guest.ready();
    guest
}

fn make_tap(name: &str, rest: &str) {
    ip(&format!("tuntap add {name} mode tap{rest}"));
}

fn link(lab: &Lab, vm: &str) -> Value {
    lab.piton(&format!("show {vm} --json")).json()["networks"][0]["up"].clone()
}

#[test]
fn frames_travel_through_a_tap_device() {
    on_an_island(|| {
        make_tap("t0", "");
        ip("address add 10.77.0.1/24 dev t0");
        ip("link set t0 up");
        let lab = Lab::new();
        let mut guest = start(&lab, "demo", "--net tap=t0,mtu=1400", 2);
        assert_eq!(field(&guest.ok("net"), "mtu"), 1400);
        let ping = guest.ok("net ping 10.77.0.1 5 10");
        assert_eq!(field(&ping, "received"), 5, "{ping}");
        let host = Host::at("10.77.0.1");
        let got = guest.ok(&format!("net get {}", host.url("10.77.0.1", "/hello")));
        assert_eq!(field(&got, "status"), 200, "{got}");
        guest.ok("net serve 80");
        // Many frames, and large ones: the guest leaves it to the host to cut them up.
        let length = 8 << 20;
        let download = std::thread::spawn(move || ask("10.77.0.2", &format!("/bytes/{length}")));
        lab.create("here");
        let body = download.join().unwrap();
        let head = body.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        assert_eq!(body.len() - head - 4, length);
        let refused = lab.piton("run other --detach --net tap=t0");
        refused.fails(3, &["the tap device `t0` is in use by another process"]);
        // Going back, and a reboot, keep the device.
        lab.apply("here", "--run");
        guest.line(&["evt net=0 link=down"]);
        guest.line(&["evt net=0 link=up"]);
        assert!(String::from_utf8_lossy(&ask("10.77.0.2", "/")).contains("seq="));
        assert!(has_word(&guest.ok("net"), "link=up"));
        guest.send("reboot");
        guest.ready();
        guest.ok("net address 10.77.0.2/24 10.77.0.1");
        let ping = guest.ok("net ping 10.77.0.1 2 10");
        assert_eq!(field(&ping, "received"), 2, "{ping}");
        // It was not made for this VM, and stays.
        lab.stop();
        ip("link show t0");
    });
}

#[test]
fn one_that_is_made_for_a_vm_goes_with_it() {
    on_an_island(|| {
        let lab = Lab::new();
        lab.piton("run demo --detach --net tap=t0").ok();
        ip("link show t0");
        lab.piton("stop demo --force").ok();
        let gone = std::process::Command::new("ip").args(["link", "show", "t0"]).output().unwrap();
        assert!(!gone.status.success());
    });
}

#[test]
fn a_tap_device_that_is_not_to_be_had_is_named() {
    on_an_island(|| {
        let lab = Lab::new();
        make_tap("t0", " user 12345");
        make_tap("mine", " user 0");
        ip("link add dummy0 type bridge");
        let run = |net: &str| powerless(lab.home.command(["run", "demo", "--detach", "--net", net]));
        run("tap=none").fails(3, &["`none` does not exist, and only root can create it", "ip tuntap add"]);
        run("tap=t0").fails(3, &["no permission to use the tap device `t0`"]);
        lab.home.is_empty();
        lab.piton("run demo --detach --net tap=dummy0").fails(3, &["but not a tap device"]);
        let held = taken("t0");
        lab.piton("run demo --detach --net tap=t0").fails(3, &["in use by another process"]);
        lab.home.is_empty();
        drop(held);
        // One's own is had without any rights.
        run("tap=mine").ok();
    });
}

#[test]
fn a_checkpoint_is_gone_to_with_another_network() {
    if !has_passt() {
        return;
    }
    on_an_island(|| {
        make_tap("t0", "");
        let lab = Lab::new();
        let mut guest = start(&lab, "demo", "--net tap=t0", 2);
        lab.create("here");
        let apply = "checkpoint apply demo@here --discard-current --run";
        // While it runs.
        lab.piton(&format!("{apply} --net none")).ok();
        assert_eq!(link(&lab, "demo"), false);
        assert!(has_word(&guest.ok("net"), "link=down"));
        ip("link delete t0");
        lab.piton(&format!("{apply} --net user")).ok();
        until("the link to passt", || (link(&lab, "demo") == true).then_some(()));
        guest.ok("net address dhcp");
        until("an address of passt's", || guest.ok("net").contains("address=10.0.2.15").then_some(()));
        for (net, text) in [
            ("--net user --net user", "give --net once for each"),
            ("--net user,mac=52:54:00:00:00:09", "omit mac="),
            ("--net user,mtu=1400", "omit mtu="),
            ("--net tap=lo", "but not a tap device"),
        ] {
            lab.piton(&format!("{apply} {net}")).fails(3, &[text]);
        }
        assert_eq!(link(&lab, "demo"), true, "what is refused changes nothing");
        let config = lab.definition()["config"]["nets"][0].clone();
        assert_eq!(config["backend"], "user");
        assert_eq!(lab.show("here")["config"]["nets"][0]["backend"]["tap"], "t0");
        // And over the socket.
        let body = json!({"discard_current": true, "run": true, "net": ["none"]}).to_string();
        let told = lab.home.http("demo", "POST", "/vm/checkpoints/here/apply", &body).json();
        assert_eq!(told["config"]["nets"][0]["backend"], "none");
        let wrong = json!({"discard_current": true, "net": ["bridge"]}).to_string();
        lab.home.http("demo", "POST", "/vm/checkpoints/here/apply", &wrong).error(400);
        // Of a VM that is off, where nobody may make the device that is missing.
        lab.piton("stop demo --force").ok();
        let line = ["checkpoint", "apply", "demo@here", "--discard-current"];
        let way_out = "`piton checkpoint apply demo@here --net none`";
        powerless(lab.home.command(line)).fails(3, &["`t0` does not exist", way_out]);
        powerless(lab.home.command(line.into_iter().chain(["--net", "none"]))).ok();
        assert_eq!(link(&lab, "demo"), false);
        assert_eq!(lab.state(), "paused");
    });
}

#[test]
fn a_new_vm_is_given_a_network_of_its_own() {
    on_an_island(|| {
        make_tap("t0", "");
        let lab = Lab::new();
        start(&lab, "demo", "--net tap=t0", 2);
        lab.create("here");
        let anew = "--net tap=NAME, --net user or --net none";
        lab.piton("clone demo@here web").fails(3, &["the tap device `t0`", anew]);
        lab.piton("clone demo@here web --count 2 --net tap=t1").fails(3, &["2 VMs cannot share"]);
        let body = json!({"names": ["web"]}).to_string();
        let error = lab.home.http("demo", "POST", "/vm/checkpoints/here/clone", &body).error(409);
        assert!(error.contains(anew), "{error}");
        assert!(!lab.home.vm("web").exists());
        let body = json!({"names": ["web"], "net": ["none"]}).to_string();
        assert_eq!(lab.home.http("demo", "POST", "/vm/checkpoints/here/clone", &body).status, 200);
        lab.piton("clone demo@here other --run --net none").ok();
        assert_eq!(link(&lab, "other"), false);
        // What is imported says as little about the devices of this host.
        let dir = lab.home.beside("export").display().to_string();
        lab.piton(&format!("checkpoint export demo@here {dir}")).ok();
        lab.piton(&format!("import {dir} --name copy")).fails(3, &["the tap device `t0`", anew]);
        let told = lab.piton(&format!("import {dir} --name copy --check --json"));
        let told: Value = serde_json::from_str(&told.stdout).unwrap();
        assert_eq!(told["problems"][0]["about"], "network");
        lab.piton(&format!("import {dir} --name copy --net none")).ok();
        lab.piton("checkpoint revert copy --yes --run").ok();
        assert_eq!(link(&lab, "copy"), false);
    });
}

#[test]
fn two_vms_on_one_bridge_have_different_addresses() {
    on_an_island(|| {
        ip("link add br0 type bridge");
        for tap in ["t0", "t1"] {
            make_tap(tap, "");
            ip(&format!("link set {tap} master br0 up"));
        }
        ip("address add 10.77.0.1/24 dev br0");
        ip("link set br0 up");
        let lab = Lab::new();
        let mut guest = start(&lab, "demo", "--net tap=t0", 2);
        lab.create("here");
        let refused = lab.piton("clone demo@here web --run --net tap=t1");
        refused.fails(3, &["the running VM `demo`", "on the bridge `br0`", "shared-mac"]);
        assert!(!lab.home.vm("web").exists(), "nothing is made");
        let mac = lab.definition()["config"]["nets"][0]["mac"].as_str().unwrap().to_owned();
        let run = format!("run web --detach --memory 64M --net tap=t1,mac={mac}");
        lab.piton(&run).fails(3, &["the running VM `demo`"]);
        lab.home.vm("web").exists().then(|| panic!("nothing is made"));
        // With another one, both are there.
        let mut web = start(&lab, "web", "--net tap=t1", 3);
        let ping = web.ok("net ping 10.77.0.2 3 10");
        assert_eq!(field(&ping, "received"), 3, "{ping}");
        guest.ok("net serve 80");
        assert!(web.ok("net get http://10.77.0.2/").contains("status=200"));
        lab.piton("stop web --force").ok();
        lab.piton("rm web --yes").ok();
        lab.piton("clone demo@here web --run --net tap=t1,shared-mac").ok();
        lab.piton("stop web --force").ok();
        // Nor is it refused once the other one is off.
        lab.piton("stop demo --force").ok();
        lab.piton("clone demo@here again --run --net tap=t1").ok();
        lab.piton("start demo").fails(3, &["the running VM `again`"]);
    });
}

#[test]
fn a_tap_device_that_carries_less_than_the_guest_would_send_is_refused() {
    on_an_island(|| {
        let lab = Lab::new();
        make_tap("t0", "");
        ip("link set t0 mtu 1400");
        lab.piton("run demo --detach --net tap=t0").fails(3, &["`t0` has an MTU of 1400", "mtu=1400"]);
        lab.piton("run demo --detach --net tap=t0,mtu=9000").fails(3, &["would be told 9000"]);
        lab.home.is_empty();
        let mut guest = start(&lab, "demo", "--net tap=t0,mtu=1400", 2);
        assert_eq!(field(&guest.ok("net"), "mtu"), 1400);
    });
}

#[test]
fn a_guest_with_two_cards_is_on_both_networks() {
    if !has_passt() {
        return;
    }
    on_an_island(|| {
        make_tap("t0", "");
        ip("address add 10.77.0.1/24 dev t0");
        ip("link set t0 up");
        let (lab, port) = (Lab::new(), free_port());
        let mut guest =
            start_of(&lab, "demo", &format!("--net user --net tap=t0 --forward 127.0.0.1:{port}:80"));
        until("an address of passt's", || guest.ok("net 0").contains("address=10.0.2.15").then_some(()));
        guest.ok("net 1 address 10.77.0.2/24 10.77.0.1");
        let macs =
            [0, 1].map(|n| guest.ok(&format!("net {n}")).split(" mac=").nth(1).unwrap()[..17].to_owned());
        assert_ne!(macs[0], macs[1]);
        guest.ok("net 0 serve 80");
        guest.ok("net 1 serve 80");
        let mut on_both = || {
            until("the answer through passt", || fetch(port, "/").ok().filter(|text| text.contains("seq=")));
            assert!(String::from_utf8_lossy(&ask("10.77.0.2", "/")).contains("seq="));
            let ping = guest.ok("net 1 ping 10.77.0.1 3 10");
            assert_eq!(field(&ping, "received"), 3, "{ping}");
        };
        on_both();
        let networks = lab.piton("show demo --json").json()["networks"].clone();
        assert!((0..2).all(|n| networks[n]["up"] == true), "{networks}");
        lab.create("here");
        lab.apply("here", "--run");
        on_both();
        // Of one card only.
        let apply = "checkpoint apply demo@here --discard-current --run --net user --net none";
        lab.piton(apply).ok();
        until("the answer through passt", || fetch(port, "/").ok().filter(|text| text.contains("seq=")));
        let networks = lab.piton("show demo --json").json()["networks"].clone();
        assert_eq!((&networks[0]["up"], &networks[1]["up"]), (&json!(true), &json!(false)));
    });
}
