//! What is pushed on one host is pulled on another, and is the same there.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::ckpt_common::{Lab, MIB, files};
use crate::common::{Home, Terminal};

/// A folder for a depot.
pub fn folder(home: &Home, name: &str) -> String {
    let path = home.beside(name);
    fs::create_dir(&path).unwrap();
    path.to_str().unwrap().to_owned()
}

/// Goes to the checkpoint of a VM that was pulled, and attaches to its console.
#[track_caller]
pub fn restore(home: &Home, name: &str) -> Terminal {
    home.piton(&format!("checkpoint revert {name} --yes")).ok();
    let terminal = home.attach(name);
    home.piton(&format!("resume {name}")).ok();
    terminal
}

#[track_caller]
pub fn end(home: &Home, name: &str) {
    home.piton(&format!("stop {name} --force")).ok();
    home.ended(name);
    assert_eq!(home.piton(&format!("doctor {name} --json")).json(), json!([]));
}

/// A VM with something in memory and on both disks at checkpoint `one`; what its guest sums up.
#[track_caller]
pub fn with_one(lab: &Lab) -> (crate::common::Vm, String) {
    let mut vm = lab.boot("--memory 64M");
    vm.ok("fill 8 1");
    vm.ok("blk 0 write 0 1M 1");
    vm.ok("blk 1 write 1M 64K 2");
    let sum = vm.ok("sum");
    lab.create("one");
    (vm, sum)
}

pub fn bytes(pushed: &Value, what: &str) -> u64 {
    pushed[what].as_u64().unwrap_or_else(|| panic!("{what} of {pushed}"))
}

#[test]
fn two_hosts_share_a_folder_and_only_what_is_new_is_sent() {
    let lab = Lab::new();
    let depot = folder(&lab, "depot");
    let (mut vm, one) = with_one(&lab);
    let first = lab.piton(&format!("push demo@one {depot} --json")).json();
    assert_eq!((&first["depot_created"], &first["title"]), (&json!(true), &json!("demo@one")));
    // Both disks and what is in memory; not the 64 MiB that it may have.
    let stored: u64 =
        files(&Path::new(&depot).join("packs")).iter().map(|pack| fs::metadata(pack).unwrap().len()).sum();
    assert!(stored <= bytes(&first, "sent_bytes") && stored < 24 * MIB, "{first}");

    vm.ok("blk 0 write 2M 64K 3");
    vm.ok("fill 1 4");
    let two = vm.ok("sum");
    lab.create("two");
    let second = lab.piton(&format!("push demo@two file://{depot} --json")).json();
    assert_eq!(second["depot_created"], json!(false));
    assert!(bytes(&second, "new_bytes") < 6 * MIB, "{second}");
    assert!(bytes(&second, "new_chunks") < bytes(&first, "new_chunks") / 2, "{first} {second}");
    let again = lab.piton(&format!("push demo@two {depot} --json")).json();
    assert_eq!((&again["already"], bytes(&again, "sent_bytes")), (&json!(true), 0));
    assert!(lab.piton(&format!("push demo@two {depot}")).ok().contains("already"));
    vm.power_off();
    // A clone has the same disks and memory, all but its own name.
    lab.piton("clone demo@one twin").ok();
    lab.piton("checkpoint create twin same --type standard").ok();
    let clone = lab.piton(&format!("push twin@same {depot} --json")).json();
    assert!(bytes(&clone, "new_bytes") < MIB, "{clone}");

    let list = lab.piton(&format!("depot list {depot} --json")).json();
    let titles: Vec<&str> =
        list.as_array().unwrap().iter().map(|one| one["title"].as_str().unwrap()).collect();
    assert_eq!(titles, ["demo@one", "demo@two", "twin@same"]);
    let table = lab.piton(&format!("depot list {depot}")).ok();
    assert!(table.starts_with("CHECKPOINT") && table.contains("demo@two"), "{table}");
    let shown = lab.piton(&format!("depot show {depot} --json")).json();
    assert_eq!((&shown["checkpoints"], &shown["encryption"]), (&json!(3), &Value::Null));
    let shown = lab.piton(&format!("depot show {depot}/demo@two")).ok();
    assert!(shown.contains("disk `a`, 4 MiB") && shown.contains("memory, 64 MiB"), "{shown}");
    let verified = lab.piton(&format!("depot verify {depot} --json")).json();
    assert_eq!((&verified["checkpoints"], &verified["damage"]), (&json!(3), &json!({})));

    let other = Home::new();
    let checked = other.piton(&format!("pull {depot}/demo@two --check --json")).json();
    assert_eq!((&checked["pulled"], &checked["vm"]), (&json!(false), &json!("demo")));
    other.is_empty();
    // Nothing of the first host is needed any more.
    fs::remove_file(&lab.a).unwrap();
    let pulled = other.piton(&format!("pull {depot}/demo@two --json")).json();
    assert_eq!((&pulled["pulled"], &pulled["vm"]), (&json!(true), &json!("demo")));
    other.piton("checkpoint verify demo@two").ok();
    let mut guest = restore(&other, "demo");
    assert_eq!(guest.ok("sum"), two);
    guest.ok("blk 0 verify 2M 64K 3");
    guest.ok("blk 0 verify 0 1M 1");
    guest.ok("blk 1 verify 1M 64K 2");
    end(&other, "demo");
    other.piton(&format!("pull {depot}/demo@one web --new-id")).ok();
    let mut guest = restore(&other, "web");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "web");
    // From there it goes back, and nothing is new but its state.
    let back = other.piton(&format!("push web@one {depot}/back@one --json")).json();
    assert!(bytes(&back, "new_bytes") < MIB, "{back}");
    other.piton(&format!("pull {depot}/demo@one cold --without-memory --new-id")).ok();
    let list = other.piton("checkpoint list cold --json").json();
    assert_eq!(list["checkpoints"][0]["type"], "offline");
}

#[test]
fn what_is_encrypted_needs_its_key() {
    let lab = Lab::new();
    let (depot, plain) = (folder(&lab, "depot"), folder(&lab, "plain"));
    let (mut vm, one) = with_one(&lab);
    vm.power_off();
    let key = lab.beside("key").to_str().unwrap().to_owned();
    let wrong = lab.beside("wrong").to_str().unwrap().to_owned();
    lab.piton(&format!("depot key {key}")).ok();
    lab.piton(&format!("depot key {wrong}")).ok();
    lab.piton(&format!("depot key {key}")).fails(3, &["already exists"]);
    let said = lab.piton(&format!("push demo@one {depot} --key-file {key}")).ok();
    assert!(said.contains("encrypted"), "{said}");
    let other = Home::new();
    let pull = format!("pull {depot}/demo@one");
    other.piton(&pull).fails(3, &["encrypted", "--key-file"]);
    other.piton(&format!("{pull} --key-file {wrong}")).fails(3, &["not the key"]);
    other.piton(&format!("{pull} --key-file {}", lab.a)).fails(1, &["a.raw"]);
    lab.piton(&format!("push demo@one {plain}")).ok();
    lab.piton(&format!("depot list {plain} --key-file {key}")).fails(3, &["not encrypted"]);
    other.is_empty();
    // No name, and nothing of what the disks hold.
    let template = fs::read(&lab.b).unwrap();
    for dir in ["packs", "index", "checkpoints"] {
        for path in files(&Path::new(&depot).join(dir)) {
            let bytes = fs::read(&path).unwrap();
            for known in [b"demo".as_slice(), &template[4096..4160]] {
                assert!(!bytes.windows(known.len()).any(|part| part == known), "{}", path.display());
            }
            let name = path.file_name().unwrap();
            assert!(!Path::new(&plain).join(dir).join(name).exists(), "{}", path.display());
        }
    }
    other.piton(&format!("{pull} --key-file {key}")).ok();
    let mut guest = restore(&other, "demo");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "demo");
    // From one to the other and back, each with keys of its own.
    let (third, fourth) = (folder(&lab, "third"), folder(&lab, "fourth"));
    lab.piton(&format!("depot copy {depot} {third} --key-file {key}")).ok();
    lab.piton(&format!("depot copy {third}/demo@one {fourth} --to-key-file {wrong}")).ok();
    let said = lab.piton(&format!("depot copy {third} {fourth} --to-key-file {wrong}")).ok();
    assert!(said.contains("already"), "{said}");
    lab.piton(&format!("depot verify {third}")).ok();
    other.piton(&format!("pull {fourth}/demo@one again --new-id --key-file {wrong}")).ok();
    let mut guest = restore(&other, "again");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "again");
}

#[test]
fn what_cannot_be_is_said_in_a_sentence() {
    let lab = Lab::new();
    let depot = folder(&lab, "depot");
    let (mut vm, _) = with_one(&lab);
    vm.power_off();
    lab.piton(&format!("push demo@one {depot}/missing")).fails(3, &["no folder", "create it"]);
    lab.piton(&format!("push demo@none {depot}")).fails(3, &["none"]);
    for line in ["depot list", "depot verify", "depot prune", "depot show"] {
        lab.piton(&format!("{line} {depot}")).fails(3, &["no depot", &depot, "piton push"]);
    }
    lab.piton(&format!("push demo@one {depot}")).ok();
    lab.piton(&format!("pull {depot}")).fails(2, &["VM@CHECKPOINT"]);
    lab.piton(&format!("pull {depot}/demo@none web")).fails(3, &["no checkpoint `demo@none`", "depot list"]);
    lab.piton(&format!("pull {depot}/demo@one")).fails(3, &["already exists", "another name"]);
    lab.piton(&format!("depot prune {depot}/demo@one")).fails(2, &["alone"]);
    lab.piton("pull ftp://x/demo@one").fails(2, &["s3://"]);
    lab.piton(&format!("push demo@one {depot} --bandwidth 7")).fails(2, &["10M"]);
    // Another checkpoint of the same name.
    lab.piton("clone demo@one twin").ok();
    lab.piton("checkpoint create twin same").ok();
    lab.piton(&format!("push twin@same {depot}/demo@one")).fails(3, &["another checkpoint", "demo@one"]);
    // A kernel that is not there any more has to be brought.
    let kernel = lab.file("kernel", crate::common::GUEST);
    lab.piton(&format!("run k --kernel {kernel} --detach")).ok();
    lab.piton("stop k --force").ok();
    lab.home.ended("k");
    lab.piton("checkpoint create k one").ok();
    fs::remove_file(&kernel).unwrap();
    let told = lab.piton(&format!("push k@one {depot}"));
    assert!(told.stderr.contains("kernel"), "{told}");
    let other = Home::new();
    other.piton(&format!("pull {depot}/k@one")).fails(3, &["cannot pull", "--kernel"]);
    other.is_empty();
    let kernel = lab.file("kernel", crate::common::GUEST);
    other.piton(&format!("pull {depot}/k@one --kernel {kernel}")).ok();
}
