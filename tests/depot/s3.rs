//! The same in object storage, and over a network that breaks.

use std::time::Instant;

use serde_json::json;

use crate::ckpt_common::{Lab, MIB};
use crate::common::{Home, is_emulated, skip};
use crate::server::{Fault, Proxy, Server, piton};
use crate::shared::{bytes, end, folder, restore, with_one};

/// The throw-away host has no Python.
fn server() -> Option<Server> {
    if is_emulated() {
        skip("the S3 server runs on the machine itself only");
        return None;
    }
    Some(Server::start())
}

#[test]
fn two_hosts_share_a_bucket() {
    let Some(server) = server() else { return };
    let lab = Lab::new();
    let (mut vm, one) = with_one(&lab);
    vm.ok("blk 0 write 2M 64K 3");
    lab.create("two");
    vm.power_off();
    let url = "s3://test/some/prefix";
    let run = |home: &Home, line: &str| piton(home, server.port, line);
    run(&lab, &format!("depot list {url}")).fails(3, &["no depot", url]);
    let first = run(&lab, &format!("push demo@one {url} --json")).json();
    let second = run(&lab, &format!("push demo@two {url} --json")).json();
    assert!(bytes(&second, "sent_bytes") < bytes(&first, "sent_bytes") / 2, "{first} {second}");
    assert_eq!(run(&lab, &format!("push demo@two {url} --json")).json()["already"], json!(true));
    let other = Home::new();
    let list = run(&other, &format!("depot list {url} --json")).json();
    assert_eq!(list.as_array().unwrap().len(), 2);
    let verified = run(&other, &format!("depot verify {url} --json")).json();
    assert_eq!((&verified["checkpoints"], &verified["damage"]), (&json!(2), &json!({})));
    run(&other, &format!("pull {url}/demo@one")).ok();
    let mut guest = restore(&other, "demo");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "demo");
    // To a folder, which has the same then.
    let depot = folder(&other, "depot");
    run(&other, &format!("depot copy {url} {depot}")).ok();
    other.piton(&format!("depot verify {depot}")).ok();
    other.piton(&format!("pull {depot}/demo@two second --new-id")).ok();
    run(&lab, &format!("depot rm {url}/demo@two --yes")).ok();
    run(&lab, &format!("depot prune {url} --alone")).ok();
    let verified = run(&other, &format!("depot verify {url} --json")).json();
    assert_eq!((&verified["checkpoints"], &verified["damage"]), (&json!(1), &json!({})));
    // Two depots in one bucket know nothing of each other.
    run(&lab, "push demo@two s3://test/another").ok();
    assert_eq!(run(&lab, "depot list s3://test/another --json").json().as_array().unwrap().len(), 1);
    run(&lab, "push demo@two s3://no-such-bucket").fails(1, &["no-such-bucket"]);
}

#[test]
fn what_breaks_on_the_way_is_tried_again() {
    let Some(server) = server() else { return };
    let lab = Lab::new();
    let (mut vm, one) = with_one(&lab);
    vm.power_off();
    let url = "s3://test/faulty";
    // Three of four requests go through.
    let kinds = [Fault::Error, Fault::Close, Fault::Half, Fault::Slow, Fault::Deaf, Fault::Silence];
    let proxy = Proxy::start(server.port, move |_, number| {
        (number % 4 == 1).then(|| kinds[(number / 4) as usize % kinds.len()])
    });
    piton(&lab, proxy.port, &format!("push demo@one {url}")).ok();
    let other = Home::new();
    let mut seen = Vec::new();
    for round in 0..4 {
        piton(&other, proxy.port, &format!("pull {url}/demo@one r{round} --new-id")).ok();
        seen = proxy.faults.lock().unwrap().iter().map(|(fault, _)| *fault).collect();
    }
    assert!(kinds.iter().all(|kind| seen.contains(kind)), "{seen:?}");
    let mut guest = restore(&other, "r3");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "r3");
    piton(&lab, server.port, &format!("depot verify {url}")).ok();
    // Bits that flip on their way are not those that were stored.
    let flips = Proxy::start(server.port, |line, number| {
        (line.starts_with("GET") && line.contains("/packs/") && number % 3 == 0).then_some(Fault::Flip)
    });
    for round in 0..2 {
        piton(&other, flips.port, &format!("pull {url}/demo@one f{round} --new-id")).ok();
        let mut guest = restore(&other, &format!("f{round}"));
        assert_eq!(guest.ok("sum"), one);
        end(&other, &format!("f{round}"));
    }
    assert!(!flips.faults.lock().unwrap().is_empty());
    // Those that always do are named, and nothing is left.
    let always = Proxy::start(server.port, |line, _| {
        (line.starts_with("GET") && line.contains("/packs/")).then_some(Fault::Flip)
    });
    let third = Home::new();
    piton(&third, always.port, &format!("pull {url}/demo@one")).fails(1, &["/packs/", "damaged"]);
    third.is_empty();
    // A store that says no.
    let closed = Proxy::start(server.port, |line, _| line.starts_with("PUT").then_some(Fault::Error));
    let began = Instant::now();
    piton(&lab, closed.port, "push demo@one s3://test/closed")
        .fails(1, &["s3://test/closed/depot.json", "500"]);
    assert!(began.elapsed().as_secs() < 60);
}

#[test]
fn the_pace_is_kept_and_nothing_is_sent_in_the_open() {
    let Some(server) = server() else { return };
    let lab = Lab::new();
    let (mut vm, _) = with_one(&lab);
    vm.power_off();
    let began = Instant::now();
    let pushed = piton(&lab, server.port, "push demo@one s3://test/paced --bandwidth 2M --json").json();
    let least = (bytes(&pushed, "sent_bytes") as f64 - 0.2 * MIB as f64) / (2 * MIB) as f64;
    assert!(began.elapsed().as_secs_f64() > least, "{pushed} in {:?}", began.elapsed());
    let mut command = lab.command(["push", "demo@one", "s3://test/open"]);
    command
        .env("AWS_ENDPOINT_URL", "http://192.0.2.1:9000")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test");
    crate::common::Finished::run(command).fails(3, &["unprotected", "https"]);
}
