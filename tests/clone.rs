//! `piton clone`, with guests that check what they are.

mod ckpt_common;
mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ckpt_common::{Lab, files, same};
use common::{Terminal, field, send_signal, until};
use serde_json::Value;

fn running() -> (Lab, Terminal) {
    let lab = Lab::new();
    lab.piton(&format!("run demo --detach --memory 64M {}", lab.disks())).ok();
    let mut guest = lab.attach("demo");
    guest.ready();
    (lab, guest)
}

fn show(lab: &Lab, vm: &str) -> Value {
    lab.piton(&format!("show {vm} --json")).json()
}

fn kill(lab: &Lab, vm: &str) {
    let pid = show(lab, vm)["pid"].as_i64().expect("it runs");
    send_signal(i32::try_from(pid).unwrap(), libc::SIGKILL);
    until("the process to end", || show(lab, vm)["pid"].is_null().then_some(()));
    until("its lock to go", || (lab.piton(&format!("doctor {vm}")).code == Some(0)).then_some(()));
}

#[test]
fn clones_of_a_running_guest_go_their_own_ways() {
    let (lab, mut demo) = running();
    demo.ok("fill 8 1");
    lab.create("zero");
    // The checkpoint to clone lies on another one, in memory and on disk.
    demo.ok("fill 4 2");
    let sum = demo.ok("sum");
    demo.ok("blk 0 write 0 64K 3");
    lab.create("one");
    demo.ok("fill 2 9");
    demo.ok("blk 0 write 0 64K 9");
    let later = demo.ok("sum");
    assert_ne!(sum, later);
    let told = lab.piton("clone demo@one web --count 2 --run --json").json();
    assert_eq!((told[0]["name"].as_str(), told[1]["state"].as_str()), (Some("web-1"), Some("running")));
    let mut clones = ["web-1", "web-2"].map(|vm| lab.console(vm));
    for (n, guest) in (10..).zip(&mut clones) {
        assert_eq!(guest.ok("sum"), sum);
        guest.ok("blk 0 verify 0 64K 3");
        guest.journal();
        guest.ok(&format!("fill 2 {n}"));
        guest.ok(&format!("blk 0 write 32K 32K {n}"));
        guest.ok("blk 0 flush");
    }
    for (n, guest) in (10..).zip(&mut clones) {
        guest.ok("blk 0 verify 0 32K 3");
        guest.ok(&format!("blk 0 verify 32K 32K {n}"));
        guest.journal();
    }
    assert_eq!(demo.ok("sum"), later);
    demo.ok("blk 0 verify 0 64K 9");
    // The origin forgets all that they stand on, and is off for a while.
    let base = std::fs::read(&lab.a).unwrap();
    lab.delete("one");
    lab.delete("zero");
    demo.journal();
    lab.piton("stop demo").ok();
    same("the base that the clones rest on", &base, &std::fs::read(&lab.a).unwrap());
    drop(clones);
    kill(&lab, "web-1");
    lab.piton("checkpoint revert web-1 --yes --run").ok();
    let mut guest = lab.console("web-1");
    assert_eq!(guest.ok("sum"), sum);
    guest.ok("blk 0 verify 0 64K 3");
    guest.journal();
    // One is cloned again, of a checkpoint of its own.
    lab.piton("checkpoint create web-1 mine").ok();
    lab.piton("clone web-1@mine again").ok();
    assert_eq!(show(&lab, "again")["state"], "paused");
    lab.piton("resume again").ok();
    let mut again = lab.console("again");
    assert_eq!(again.ok("sum"), sum);
    again.journal();
    for vm in ["web-1", "web-2", "again"] {
        lab.piton(&format!("stop {vm} --force")).ok();
        lab.home.ended(vm);
    }
    for reference in ["web-1@one", "web-1@mine", "web-2@one", "again@mine"] {
        lab.piton(&format!("checkpoint verify {reference}")).ok();
    }
    // Without them the origin has its base for itself again.
    for vm in ["web-1", "web-2", "again"] {
        lab.piton(&format!("doctor {vm}")).ok();
        lab.piton(&format!("rm {vm} --yes")).ok();
    }
    lab.piton("doctor demo --repair").ok();
    assert!(lab.deltas("a").is_empty(), "{:?}", lab.deltas("a"));
    assert_eq!(files(&lab.root()).len(), 1, "{:?}", files(&lab.root()));
    lab.piton("start demo").ok();
    let mut demo = lab.attach("demo");
    demo.ready();
    demo.ok("blk 0 verify 0 64K 9");
    demo.journal();
    lab.template_is_untouched();
}

#[test]
fn the_origin_may_go_with_all_its_files() {
    let lab = Lab::new();
    // Its disk is in its own folder.
    lab.piton("run demo --detach --memory 32M").ok();
    let mut demo = lab.attach("demo");
    demo.ready();
    demo.ok("blk 0 write 0 64K 5");
    demo.ok("fill 4 6");
    let sum = demo.ok("sum");
    lab.create("one");
    lab.piton("clone demo@one other").ok();
    lab.stop();
    lab.piton("rm demo --yes").ok();
    lab.piton("resume other").ok();
    let mut other = lab.console("other");
    assert_eq!(other.ok("sum"), sum);
    other.ok("blk 0 verify 0 64K 5");
    other.journal();
    lab.piton("stop other --force").ok();
    lab.home.ended("other");
    lab.piton("checkpoint verify other@one").ok();
}

#[test]
fn a_checkpoint_without_memory_gives_vms_that_are_off() {
    let (lab, mut demo) = running();
    demo.ok("blk 0 write 0 64K 3");
    demo.ok("blk 0 flush");
    lab.stop();
    lab.create("off");
    lab.piton("clone demo@off web --run").fails(3, &["no memory", "--run"]);
    lab.piton("clone demo@off web").ok();
    assert_eq!(show(&lab, "web")["state"], "stopped");
    lab.piton("start web").ok();
    let mut web = lab.attach("web");
    web.ready();
    web.ok("blk 0 verify 0 64K 3");
    web.ok("blk 0 write 0 64K 4");
    web.ok("blk 0 flush");
    lab.piton("start demo").ok();
    let mut demo = lab.attach("demo");
    demo.ready();
    demo.ok("blk 0 verify 0 64K 3");
}

#[test]
fn what_cannot_be_cloned_is_refused_before_anything_is_made() {
    let (lab, _demo) = running();
    lab.create("one");
    lab.piton("clone demo@none web").fails(3, &["no checkpoint `none`"]);
    lab.piton("clone nobody@one web").fails(3, &["no VM `nobody`"]);
    lab.piton("clone demo@one demo").fails(3, &["`demo` already exists"]);
    lab.piton("clone demo@one ../x").fails(2, &["not a VM name"]);
    lab.piton("clone demo@one web --count 0").fails(2, &["count"]);
    lab.piton("clone demo@one web-2").ok();
    lab.piton("clone demo@one web --count 3").fails(3, &["`web-2` already exists"]);
    let names = |lab: &Lab| {
        let home = files(&lab.root()).into_iter();
        home.map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(&lab), ["demo", "web-2"]);
    // A leftover of a clone that was cut short goes with the next one; one at work stays.
    std::fs::create_dir_all(lab.root().join(".clone-x-0/disks")).unwrap();
    lab.piton("clone demo@one web-3").ok();
    assert_eq!(names(&lab), ["demo", "web-2", "web-3"]);
    let image = lab.folder(&lab.show("one")).join("memory");
    let file = std::fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len(4096).unwrap();
    lab.piton("clone demo@one web-4").fails(1, &["memory"]);
    assert_eq!(names(&lab), ["demo", "web-2", "web-3"]);
}

#[test]
fn disks_that_two_vms_would_write_to_are_refused() {
    let lab = Lab::new();
    lab.piton(&format!("run demo --detach --memory 32M --disk {},id=a,passthrough", lab.a)).ok();
    lab.create("one");
    lab.piton("clone demo@one web").fails(3, &["`a`", "passthrough"]);
}

#[test]
fn another_file_system_is_refused() {
    use std::os::unix::fs::MetadataExt;
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        return common::skip("there is no second file system");
    };
    if elsewhere.path().metadata().unwrap().dev() == std::path::Path::new("/tmp").metadata().unwrap().dev() {
        return common::skip("/dev/shm is on the file system of /tmp");
    }
    let (lab, _demo) = running();
    lab.stop();
    lab.piton(&format!("set demo --checkpoint-dir {}", elsewhere.path().display())).ok();
    lab.piton("start demo").ok();
    lab.attach("demo").ready();
    lab.create("one");
    lab.piton("clone demo@one web").fails(3, &["not on the same file system", "hard links"]);
}

/// By what it checks a certificate: the guest asked for the time before the checkpoint, and counts on.
#[test]
fn clones_of_an_old_checkpoint_know_what_time_it_is() {
    const OLD: Duration = Duration::from_secs(6);
    let (lab, mut demo) = running();
    let now = || i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    // How late it is: at least, and at most.
    let late = |guest: &mut Terminal| {
        let before = now();
        let told = field(&guest.ok("clock"), "unix_ms") as i64;
        (before - told, now() - told)
    };
    if demo.ask("clock").starts_with("err") {
        return common::skip("there is no kvmclock here");
    }
    let (least, most) = late(&mut demo);
    assert!(least < 1000 && most > -1000, "{least} {most}");
    lab.create("one");
    let made = Instant::now();
    until("the checkpoint to be old", || (made.elapsed() >= OLD).then_some(()));
    lab.piton("clone demo@one web --count 4 --run --clock host").ok();
    lab.piton("clone demo@one saved --run").ok();
    for n in 1..=4 {
        let (least, most) = late(&mut lab.attach(&format!("web-{n}")));
        assert!(least < 1000 && most > -1000, "web-{n}: {least} {most}");
    }
    // Without the option it is as late as its checkpoint is old.
    let (_, most) = late(&mut lab.attach("saved"));
    assert!(most >= OLD.as_millis() as i64, "{most}");
}

#[test]
fn a_clone_continues_at_the_time_of_its_checkpoint_or_of_now() {
    let (lab, _demo) = running();
    lab.create("one");
    // How far its clock is behind the host's, as KVM has both of one instant.
    let behind = |vm: &str, checkpoint: &str| {
        let id = lab.home.manifest(vm, checkpoint)["id"].as_str().unwrap().to_owned();
        let state = std::fs::read(lab.home.vm(vm).join("checkpoints").join(id).join("state")).unwrap();
        let state: Value = serde_json::from_slice(&state[24..]).unwrap();
        let data: Vec<u8> = serde_json::from_value(state["vm"]["clock"].clone()).unwrap();
        // `struct kvm_clock_data`: the clock, flags, and the host's.
        let at = |at: usize| u64::from_le_bytes(*data[at..].first_chunk().unwrap());
        (at(16) != 0).then(|| at(16) - at(0))
    };
    let before = behind("demo", "one").expect("it says when the clock was read");
    let since = std::time::Instant::now();
    lab.piton("clone demo@one saved --run").ok();
    lab.piton("clone demo@one host --run --clock host").ok();
    let elapsed = since.elapsed();
    let [saved, host] = ["saved", "host"].map(|vm| {
        lab.piton(&format!("checkpoint create {vm} two --type standard")).ok();
        behind(vm, "two").unwrap().abs_diff(before)
    });
    assert!(saved > 0 && u128::from(host) < elapsed.as_nanos(), "{saved} {host} {elapsed:?}");
    assert!(host < saved / 4, "{saved} ns behind, and {host} ns with the host's clock");
}
