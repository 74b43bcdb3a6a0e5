//! Stock Debian behind passt, where stock Linux can run.

mod ckpt_common;
mod common;
mod net_common;

use ckpt_common::Lab;
use common::{LinuxGuest, until};
use net_common::{fetch, free_port, has_passt};

/// What busybox' udhcpc calls.
const DHCP_SCRIPT: &str = r#"#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add $ip/$mask dev $interface
ip route add default via $router
echo BOUND-$interface"#;

#[test]
fn debian_gets_an_address_and_serves_over_going_back() {
    let Some(images) = LinuxGuest::find() else { return };
    if !has_passt() {
        return;
    }
    let (lab, port) = (Lab::new(), free_port());
    let (kernel, initrd) = (images.kernel.to_str().unwrap(), images.initrd.to_str().unwrap());
    let forward = format!("127.0.0.1:{port}:80");
    let cmdline = "console=ttyS0 quiet panic=-1 piton.run=shell";
    let args = ["run", "demo", "--kernel", kernel, "--initrd", initrd, "--cmdline", cmdline];
    let args = args.into_iter().chain(["--memory", "256M", "--net", "user", "--forward", &forward]);
    let mut vm = lab.home.args_vm(&args.collect::<Vec<_>>());
    vm.expect("LINUX-GUEST-UP");
    vm.expect("# ");
    for line in DHCP_SCRIPT.lines() {
        vm.send(&format!("echo '{line}' >>/dhcp"));
    }
    vm.send("chmod +x /dhcp; modprobe virtio_net; ip link set eth0 up; udhcpc -q -i eth0 -s /dhcp");
    vm.expect("BOUND-eth0");
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
