//! Stock Debian behind passt, where stock Linux can run.

mod ckpt_common;
mod common;
mod net_common;

use std::path::Path;

use ckpt_common::Lab;
use common::{LinuxGuest, Vm, is_long, until};
use net_common::{Host, fetch, free_port, has_passt};

/// What busybox' udhcpc calls.
const DHCP_SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
echo BOUND-$interface"#;

/// What a clone tells of itself: what its kernel takes for random, its time, and what it gets of the
/// outside.
const CGI: &str = r#"#!/bin/sh
echo Content-Type: text/plain
echo
echo "id=$(cat /proc/sys/kernel/random/uuid)"
echo "time=$(date +%s)"
echo "outside=$(wget -q -O - http://OUTSIDE/hello)"
echo end"#;

fn boot(lab: &Lab, kernel: &Path, initrd: &Path, options: &[&str]) -> Vm {
    let (kernel, initrd) = (kernel.to_str().unwrap(), initrd.to_str().unwrap());
    let cmdline = "console=ttyS0 quiet panic=-1 piton.run=shell";
    let args = ["run", "demo", "--kernel", kernel, "--initrd", initrd, "--cmdline", cmdline];
    let args = args.into_iter().chain(["--memory", "256M", "--net", "user"]).chain(options.iter().copied());
    let mut vm = lab.home.args_vm(&args.collect::<Vec<_>>());
    vm.expect("LINUX-GUEST-UP");
    vm.expect("# ");
    vm
}

/// So many in a row, beyond those that connections to anywhere take for themselves.
fn free_ports(count: u16) -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let end: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    let begin = 1024 + u16::try_from(std::process::id() % u32::from((end - 1024) / 2)).unwrap();
    let is_free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    (begin..end - count).find(|first| (*first..first + count).all(is_free)).unwrap()
}

fn type_file(vm: &mut Vm, path: &str, text: &str) {
    for line in text.lines() {
        vm.send(&format!("echo '{line}' >>{path}"));
    }
    vm.send(&format!("chmod +x {path}"));
}

/// Until it has an address.
fn connect(vm: &mut Vm) {
    type_file(vm, "/dhcp", DHCP_SCRIPT);
    vm.send("modprobe virtio_net; ip link set eth0 up; udhcpc -q -i eth0 -s /dhcp");
    vm.expect("BOUND-eth0");
}

/// Their kernel knows of the VM's generation.
#[test]
fn eight_clones_at_once_are_random_on_time_and_connected() {
    const CLONES: u16 = 8;
    if !is_long() {
        return;
    }
    let Some(images) = LinuxGuest::find() else { return };
    if !has_passt() {
        return;
    }
    let (lab, host) = (Lab::new(), Host::new());
    let mut vm = boot(&lab, &images.generic, &images.initrd, &[]);
    connect(&mut vm);
    vm.send("ip route | sed -n 's/^default via \\([^ ]*\\).*/GATEWAY=\\1;/p'");
    vm.expect("GATEWAY=");
    let gateway = until("the gateway", || {
        let text = vm.text();
        let (gateway, _) = text.rsplit_once("GATEWAY=")?.1.split_once(';')?;
        gateway.parse::<std::net::Ipv4Addr>().ok()
    });
    let outside = host.url(&gateway.to_string(), "");
    let cgi = CGI.replace("OUTSIDE", outside.strip_prefix("http://").unwrap());
    vm.send("mkdir -p /www/cgi-bin");
    type_file(&mut vm, "/www/cgi-bin/id", &cgi);
    vm.send("httpd -h /www && echo SERV''ES");
    vm.expect("SERVES");
    lab.piton("checkpoint create demo warm --type standard").ok();
    lab.piton("pause demo").ok();
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    // As much as any rounding, and more: who does not follow the host's clock is late by this.
    let late = now() + 15;
    until("the checkpoint to be of the past", || (now() >= late).then_some(()));
    let first = free_ports(CLONES);
    let before = now();
    let forward = format!("--forward-from 127.0.0.1:{first}:80");
    lab.piton(&format!("clone demo@warm web --count {CLONES} --run --clock host {forward}")).ok();
    let asked: Vec<_> = (first..first + CLONES)
        .map(|port| {
            std::thread::spawn(move || {
                until("a clone's answer", || {
                    fetch(port, "/cgi-bin/id").ok().filter(|answer| answer.trim_end().ends_with("end"))
                })
            })
        })
        .collect();
    let mut ids = Vec::new();
    for (n, answer) in (1..).zip(asked) {
        let answer = answer.join().unwrap_or_else(|_| {
            let vm = lab.home.vm(&format!("web-{n}"));
            let console = std::fs::read_to_string(vm.join("console.log")).unwrap_or_default();
            let log = std::fs::read_to_string(vm.join("piton.log")).unwrap_or_default();
            let shown = lab.piton(&format!("show web-{n}"));
            panic!("web-{n}: {shown}\n{log}\n{console}")
        });
        let word = |name: &str| {
            let line = answer.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            line.unwrap_or_else(|| panic!("{name}: {answer}")).to_owned()
        };
        assert_eq!(word("outside"), "hello", "{answer}");
        let time: u64 = word("time").parse().unwrap();
        assert!((before - 2..=now() + 2).contains(&time), "{time}, and it is {before}: {answer}");
        ids.push(word("id"));
    }
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), usize::from(CLONES), "{ids:?}");
    for n in 1..=CLONES {
        lab.piton(&format!("kill web-{n}")).ok();
    }
    lab.piton("kill demo").ok();
}

#[test]
fn debian_gets_an_address_and_serves_over_going_back() {
    let Some(images) = LinuxGuest::find() else { return };
    if !has_passt() {
        return;
    }
    let (lab, port) = (Lab::new(), free_port());
    let forward = format!("127.0.0.1:{port}:80");
    let mut vm = boot(&lab, &images.kernel, &images.initrd, &["--forward", &forward]);
    connect(&mut vm);
    vm.send("mkdir /www; echo hello-of-debian >/www/hello; httpd -h /www && echo SERV''ES");
    vm.expect("SERVES");
    let ask = || {
        until("Debian's answer", || {
            fetch(port, "/hello").ok().filter(|answer| answer.contains("hello-of-debian"))
        })
    };
    ask();
    lab.create("here");
    ask();
    lab.apply("here", "--run");
    // The guest does nothing for it.
    ask();
    vm.send("poweroff -f");
    vm.exits_well();
}
