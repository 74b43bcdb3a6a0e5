//! Networks of the bundled guest: passt and tap devices. Nothing but this host's loopback and what
//! lies in its namespaces is spoken to.

mod ckpt_common;
mod common;
mod net_common;

use std::io::{Read, Write};
use std::time::Duration;

use ckpt_common::Lab;
use common::{field, has_word, until};
use net_common::{
    Guest, Host, Names, fetch, fetch_at, fetch_bytes, free_port, has_passt, ip, on_an_island, passts, served,
    start,
};

#[test]
fn a_guest_reaches_the_host_and_is_reached() {
    if !has_passt() {
        return;
    }
    let (lab, host, port) = (Lab::new(), Host::new(), free_port());
    let mut guest = start(&lab, "demo", &format!("--net user --forward 127.0.0.1:{port}:80"));
    let hello = host.url(&guest.gateway(), "/hello");
    let got = guest.ok(&format!("net get {hello}"));
    assert_eq!(field(&got, "status"), 200, "{got}");
    // Where nobody listens it is refused at once.
    let nobody = free_port();
    let nowhere = format!("http://{}:{nobody}/", guest.gateway());
    let refused = guest.err(&format!("net get {nowhere}"));
    assert!(refused.contains("reason=refused"), "{refused}");
    guest.ok("net serve 80");
    served(port, 1);

    let show = lab.piton("show demo --json").json();
    let network = &show["networks"][0];
    assert_eq!(network["up"], true);
    assert_eq!(network["addresses"][0].as_str(), Some(&guest.address()[..]));
    assert!(network["received"]["bytes"].as_u64() > Some(0) && network["sent"]["frames"].as_u64() > Some(0));
    assert_eq!(show["forwards"][0], format!("127.0.0.1:{port}:80"));
    let text = lab.piton("show demo").ok();
    for part in ["user, MAC 52:54:00:", "MTU 65520", &guest.address(), &format!("127.0.0.1:{port}:80")] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(passts(&lab).len(), 1);
    lab.piton("stop demo --force --timeout 1").ok();
    assert_eq!(lab.home.processes(), Vec::<i32>::new(), "passt ends before its VM is said to be off");
    // The same ports are there for the next run, at once.
    lab.piton("start demo").ok();
    let pid = lab.piton("show demo --json").json()["pid"].as_i64().unwrap();
    common::send_signal(pid as i32, libc::SIGKILL);
    until("all of its processes to end", || lab.home.processes().is_empty().then_some(()));
    lab.piton("start demo").ok();
}

#[test]
fn a_checkpoint_disturbs_no_connection() {
    if !has_passt() {
        return;
    }
    let (lab, host, port) = (Lab::new(), Host::new(), free_port());
    let mut guest = start(&lab, "demo", &format!("--net user --forward 127.0.0.1:{port}:80"));
    guest.ok("net serve 80");
    served(port, 1);
    guest.ok("fill 8 1");
    let length = 64 << 20;
    let client = std::thread::spawn(move || fetch_bytes(port, &format!("/bytes/{length}")));
    for n in 0..5 {
        let mode = if n % 2 == 0 { "live" } else { "stop" };
        lab.piton(&format!("checkpoint create demo c{n} --type standard --mode {mode}")).ok();
    }
    let body = client.join().unwrap().unwrap();
    let head = body.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    assert_eq!(body.len() - head - 4, length);
    // The guest may send faster than passt reads: its card still works afterwards.
    guest.ok("net flood 1 64");
    // Nor does one lose a packet.
    let echo = host.echo(&guest.gateway());
    guest.send(&format!("net bench rtt {echo} 2000"));
    for n in 5..9 {
        lab.piton(&format!("checkpoint create demo c{n} --type standard")).ok();
    }
    let line = guest.line(&["ok bench rtt", "err"]);
    assert!(line.starts_with("ok") && field(&line, "lost") == 0, "{line}");
}

#[test]
fn going_back_ends_connections_and_begins_afresh() {
    if !has_passt() {
        return;
    }
    let (lab, host, port) = (Lab::new(), Host::new(), free_port());
    let mut guest = start(&lab, "demo", &format!("--net user --forward 127.0.0.1:{port}:80"));
    guest.ok("net serve 80");
    served(port, 1);
    // A client's connection, and one of the guest that waits for an answer.
    let mut client = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    client.write_all(b"GET /by").unwrap();
    let hang = host.url(&guest.gateway(), "/hang");
    guest.send(&format!("net get {hang}"));
    host.wait_for_hanging();
    lab.piton("checkpoint create demo busy --type standard").ok();
    let before = passts(&lab);
    lab.piton("checkpoint apply demo@busy --discard-current --run").ok();
    let line = guest.line(&["ok net get", "ok get", "err"]);
    assert!(line.contains("reason=reset"), "the guest is told at once: {line}");
    client.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert!(matches!(client.read(&mut [0; 10]), Ok(0) | Err(_)), "the client's connection ends");
    assert_ne!(passts(&lab), before);
    // It counts on from the checkpoint.
    served(port, 2);
    let hello = host.url(&guest.gateway(), "/hello");
    let got = guest.ok(&format!("net get {hello}"));
    assert_eq!(field(&got, "status"), 200);
    // It looks at its link in its own time.
    until("the guest to see its link", || has_word(&guest.ok("net"), "link=up").then_some(()));
    // As well from a VM that is off.
    lab.piton("stop demo --force --timeout 1").ok();
    lab.piton("checkpoint apply demo@busy --discard-current --run").ok();
    served(port, 2);
}

#[test]
fn a_passt_that_dies_is_started_again() {
    if !has_passt() {
        return;
    }
    let (lab, host) = (Lab::new(), Host::new());
    let mut guest = start(&lab, "demo", "--net user");
    let [pid] = passts(&lab)[..] else { panic!() };
    common::send_signal(pid, libc::SIGKILL);
    guest.line(&["evt net=0 link=down"]);
    guest.line(&["evt net=0 link=up"]);
    guest.line(&["evt net=0 announced="]);
    assert_ne!(passts(&lab), [pid]);
    let hello = host.url(&guest.gateway(), "/hello");
    let got = guest.ok(&format!("net get {hello}"));
    assert_eq!(field(&got, "status"), 200);
    let log = std::fs::read_to_string(lab.home.vm("demo").join("piton.log")).unwrap();
    assert!(log.contains("the network user of this VM failed"), "{log}");
}

/// A guest whose frames do not go out for long takes its card for broken.
#[test]
fn a_passt_that_takes_nothing_is_replaced() {
    if !has_passt() {
        return;
    }
    let (lab, host) = (Lab::new(), Host::new());
    // The first one has the socket, and never looks at it.
    let bin = lab.home.beside("bin");
    std::fs::create_dir(&bin).unwrap();
    let passt = format!(
        "#!/bin/sh\nif mkdir {0}/stuck 2>/dev/null; then sleep 600 </dev/null >/dev/null 2>&1 & exit 0; fi\n\
         PATH=${{PATH#{0}:}} exec passt \"$@\"\n",
        bin.display()
    );
    std::fs::write(bin.join("passt"), passt).unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bin.join("passt"), mode).unwrap();
    let path = std::env::var("PATH").unwrap();
    let mut command = lab.home.command(["run", "demo", "--detach", "--memory", "64M", "--net", "user"]);
    command.env("PATH", format!("{}:{path}", bin.display()));
    common::Finished::run(command).ok();
    let mut guest = lab.attach("demo");
    guest.ready();
    // More than the socket and the queue hold.
    until("the queue to be full", || (field(&guest.ok("net flood 1 1500"), "frames") == 0).then_some(()));
    until("frames to be lost", || (field(&guest.ok("net flood 1 60"), "frames") > 1000).then_some(()));
    // Whatever it does at that time.
    until("a fresh passt", || {
        let text = guest.text();
        text.rfind("evt net=0 link=down").filter(|at| text[*at..].contains("evt net=0 link=up"))
    });
    let mut guest = Guest::new(guest);
    let hello = host.url(&guest.gateway(), "/hello");
    let got = guest.ok(&format!("net get {hello}"));
    assert_eq!(field(&got, "status"), 200);
    let log = std::fs::read_to_string(lab.home.vm("demo").join("piton.log")).unwrap();
    assert!(log.contains("takes no frames: what the guest sends is dropped"), "{log}");
    assert!(log.contains("failed (it took no frames for 10 s)"), "{log}");
}

#[test]
fn forwards_change_while_the_guest_runs() {
    if !has_passt() {
        return;
    }
    let (lab, one, two) = (Lab::new(), free_port(), free_port());
    let (first, second) = (format!("127.0.0.1:{one}:80"), format!("127.0.0.1:{two}:80"));
    let mut guest = start(&lab, "demo", &format!("--forward {first}"));
    guest.ok("net serve 80");
    served(one, 1);
    lab.piton(&format!("set demo --forward {second} --no-forward {first}")).ok();
    served(two, 2);
    assert!(fetch(one, "/").is_err());
    let refused = lab.piton(&format!("set demo --no-forward {first}"));
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    // What cannot be changes nothing.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let third = format!("127.0.0.1:{}:80", taken.local_addr().unwrap().port());
    let refused = lab.piton(&format!("set demo --forward {third}"));
    assert_eq!(refused.code, Some(3));
    assert!(refused.stderr.contains("is in use"), "{}", refused.stderr);
    assert_eq!(lab.piton("show demo --json").json()["forwards"], serde_json::json!([second]));
    served(two, 3);
}

#[test]
fn an_isolated_guest_reaches_nobody() {
    if !has_passt() {
        return;
    }
    let (lab, host, port) = (Lab::new(), Host::new(), free_port());
    let mut guest = start(&lab, "demo", &format!("--isolated --forward 127.0.0.1:{port}:80"));
    let hello = host.url(&guest.gateway(), "/hello");
    let line = guest.err(&format!("net get {hello}"));
    assert!(line.contains("reason=refused") || line.contains("reason=reset"), "{line}");
    guest.ok("net serve 80");
    served(port, 1);
}

/// On a host that has IPv6, and a server for names that is its own.
#[test]
fn names_and_ipv6_work_as_passt_gives_them() {
    if !has_passt() || !net_common::has_ipv6() {
        return;
    }
    on_an_island(|| {
        ip("tuntap add up0 mode tap");
        ip("link set up0 up");
        for own in ["192.0.2.2/24", "fd00:77::2/64 nodad", "fe80::2/64 nodad"] {
            ip(&format!("address add {own} dev up0"));
        }
        for gateway in ["192.0.2.1", "fd00:77::1"] {
            ip(&format!("route add default via {gateway} dev up0"));
        }
        let _names = Names::serve([("four.test", "192.0.2.1"), ("six.test", "fd00:77::1")]);
        let (lab, host, host6, port) = (Lab::new(), Host::new(), Host::at("::1"), free_port());
        let mut guest = start(&lab, "demo", &format!("--net user --forward [::1]:{port}:80"));
        until("an IPv6 address", || (!has_word(&guest.ok("net"), "address6=none")).then_some(()));
        for url in [
            host.url("four.test", "/hello"),
            host6.url("six.test", "/hello"),
            // The gateway is this host's loopback, here too.
            host6.url("[fd00:77::1]", "/hello"),
        ] {
            let got = guest.ok(&format!("net get {url}"));
            assert_eq!(field(&got, "status"), 200, "{url}: {got}");
        }
        let unknown = guest.err(&format!("net get {}", host.url("none.test", "/hello")));
        assert!(unknown.contains("reason=name"), "{unknown}");
        guest.ok("net serve 80");
        let ask = || {
            let answer = until("the guest to answer over IPv6", || {
                fetch_at("::1", port, "/").ok().filter(|text| text.contains("seq="))
            });
            field(&answer, "seq")
        };
        assert_eq!(ask(), 1);
        let show = lab.piton("show demo --json").json();
        let addresses = &show["networks"][0]["addresses"];
        assert!(addresses[1].as_str().is_some_and(|address| address.starts_with("fd00:77::")), "{addresses}");
        // The fresh passt is told the guest's address by nobody but the guest.
        lab.create("here");
        lab.apply("here", "--run");
        assert_eq!(ask(), 2);
    });
}

/// passt has no IPv6 where this host has no route for it.
#[test]
fn a_forward_of_ipv6_that_cannot_be_is_refused() {
    if !has_passt() || !net_common::has_ipv6() {
        return;
    }
    on_an_island(|| {
        let (lab, port) = (Lab::new(), free_port());
        let refused = lab.piton(&format!("run demo --detach --forward [::1]:{port}:80"));
        assert_ne!(refused.code, Some(0));
        let wanted = format!("cannot listen on port [::1]:{port}: passt has IPv6 only on a host with");
        assert!(refused.stderr.contains(&wanted), "{}", refused.stderr);
        lab.home.is_empty();
    });
}

#[test]
fn what_cannot_be_is_said_before_anything_is_made() {
    let lab = Lab::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let taken = format!("--forward 127.0.0.1:{port}:80");
    let mut cases = vec![
        (2, "--net bridge", "is not a network"),
        (2, "--net tap=", "is not a valid tap device name"),
        (2, "--net user,mac=53:54:00:12:34:56", "multicast MAC address"),
        (2, "--net user,mac=zz", "is not a MAC address"),
        (2, "--net user,mtu=100", "not a valid MTU"),
        (2, "--net none --forward 80:80", "`--net none` means no network"),
        (2, "--net tap=piton-none --forward 80:80", "require --net user"),
        (2, "--forward 80:0", "port 0 cannot be forwarded"),
        (2, "--forward 80", "is not a port forward"),
        (2, "--forward 8080:80 --forward 127.0.0.1:8080:81", "the same host port"),
        (2, "--net user,mac=52:54:00:00:00:01 --net user,mac=52:54:00:00:00:01", "two networks of this VM"),
    ];
    if has_passt() {
        cases.push((3, &taken, "is in use"));
        cases.push((3, "--forward 203.0.113.9:8080:80", "does not have that address"));
    }
    if net_common::may_make_taps() {
        cases.push((3, "--net tap=lo", "is a network interface, but not a tap device"));
    }
    for (code, options, text) in cases {
        let refused = lab.piton(&format!("run demo --detach {options}"));
        assert_eq!(refused.code, Some(code), "{options}: {}", refused.stderr);
        assert!(refused.stderr.contains(text), "{options}: {}", refused.stderr);
        lab.home.is_empty();
    }
}

#[test]
fn a_missing_passt_is_named_with_its_package() {
    let lab = Lab::new();
    let mut command = lab.home.command(["run", "demo", "--net", "user"]);
    command.env("PATH", "/nowhere");
    let refused = common::Finished::run(command);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("install the package `passt`"), "{}", refused.stderr);
    lab.home.is_empty();
}

#[test]
fn each_clone_has_a_forward_of_its_own() {
    if !has_passt() {
        return;
    }
    let (lab, port) = (Lab::new(), free_port());
    let mut guest = start(&lab, "demo", &format!("--forward 127.0.0.1:{port}:80"));
    guest.ok("net serve 80");
    served(port, 1);
    lab.piton("checkpoint create demo warm --type standard").ok();
    let refused =
        lab.piton(&format!("clone demo@warm web --count 2 --run --forward-from 127.0.0.1:{port}:80"));
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    assert!(refused.stderr.contains("is in use"), "{}", refused.stderr);
    assert!(!lab.home.vm("web-1").exists(), "nothing is made");
    // Two ports in a row that nobody has.
    let first = until("two free ports", || {
        let first = free_port();
        std::net::TcpListener::bind(("127.0.0.1", first.checked_add(1)?)).ok().map(|_| first)
    });
    lab.piton(&format!("clone demo@warm web --count 2 --run --forward-from 127.0.0.1:{first}:80")).ok();
    served(first, 2);
    served(first + 1, 2);
    served(port, 2);
}
