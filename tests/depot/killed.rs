//! kill -9 and Ctrl-C at random moments of push, pull and prune.

use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use crate::ckpt_common::{Dice, Lab, MIB};
use crate::common::{Home, send_signal};
use crate::shared::{bytes, end, folder, restore, with_one};

const KILLS: usize = 6;

/// Runs a command and ends it after a while; whether it had ended by itself.
fn end_it(home: &Home, line: &str, signal: i32, after: Duration) -> bool {
    let mut command = home.command(line.split_ascii_whitespace());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    if child.try_wait().unwrap().is_none() {
        send_signal(child.id().try_into().unwrap(), signal);
    }
    child.wait().unwrap().success()
}

#[test]
fn whenever_it_is_killed_a_depot_and_a_home_are_whole() {
    let lab = Lab::new();
    let mut dice = Dice::from_env("depot kills");
    let depot = folder(&lab, "depot");
    let (mut vm, one) = with_one(&lab);
    vm.ok("fill 24 5");
    let two = vm.ok("sum");
    lab.create("two");
    vm.power_off();
    lab.piton(&format!("push demo@one {depot}")).ok();
    for _ in 0..KILLS {
        let after = Duration::from_millis(dice.below(400));
        end_it(&lab, &format!("push demo@two {depot} --bandwidth 16M"), libc::SIGKILL, after);
        lab.piton(&format!("depot verify {depot} --json")).ok();
    }
    // What it sent before is not sent again, nor is it lost.
    lab.piton(&format!("push demo@two {depot}")).ok();
    let other = Home::new();
    let pull = format!("pull {depot}/demo@two");
    for _ in 0..KILLS {
        let after = Duration::from_millis(dice.below(500));
        if end_it(&other, &format!("{pull} --bandwidth 32M"), libc::SIGKILL, after) {
            other.piton("rm demo --yes").ok();
        }
        assert_eq!(other.piton("list --json").json(), json!([]));
    }
    other.piton(&pull).ok();
    let mut guest = restore(&other, "demo");
    assert_eq!(guest.ok("sum"), two);
    end(&other, "demo");
    for round in 0..KILLS {
        if round == KILLS / 2 {
            lab.piton(&format!("depot rm {depot}/demo@two --yes")).ok();
        }
        end_it(
            &lab,
            &format!("depot prune {depot} --alone"),
            libc::SIGKILL,
            Duration::from_millis(dice.below(150)),
        );
        let verified = lab.piton(&format!("depot verify {depot} --json")).json();
        assert_eq!(verified["damage"], json!({}));
    }
    other.piton(&format!("pull {depot}/demo@one first --new-id")).ok();
    let mut guest = restore(&other, "first");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "first");
}

#[test]
fn a_push_that_is_called_off_goes_on_where_it_was() {
    let lab = Lab::new();
    let depot = folder(&lab, "depot");
    let (mut vm, _) = with_one(&lab);
    // What cannot be packed, so that it takes a while and more than one pack.
    let noise: Vec<u8> = (0..40 * MIB / 8)
        .flat_map(|word: u64| {
            word.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31).wrapping_mul(word | 1).to_le_bytes()
        })
        .collect();
    vm.power_off();
    let image = lab.file("noise.raw", &noise);
    lab.piton(&format!("run big --memory 32M --disk {image},id=n,overlay --detach")).ok();
    lab.piton("checkpoint create big one --type standard").ok();
    lab.piton("stop big --force").ok();
    let mut command = lab.command(["push", "big@one", &depot, "--bandwidth", "16M"]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let packs = lab.beside("depot/index");
    crate::common::until("the first pack to be sent", || {
        let whole = |entry: std::io::Result<std::fs::DirEntry>| {
            !entry.unwrap().file_name().to_string_lossy().starts_with('.')
        };
        std::fs::read_dir(&packs).is_ok_and(|mut all| all.any(whole)).then_some(())
    });
    send_signal(child.id().try_into().unwrap(), libc::SIGINT);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("cancelled") && said.contains("not sent again"), "{said}");
    lab.piton(&format!("depot list {depot}/big@one")).fails(2, &["alone"]);
    assert_eq!(lab.piton(&format!("depot list {depot} --json")).json(), json!([]));
    let pushed = lab.piton(&format!("push big@one {depot} --json")).json();
    assert!(bytes(&pushed, "sent_bytes") < 34 * MIB, "{pushed}");
    lab.piton(&format!("depot verify {depot}")).ok();
    // A pull that is called off leaves nothing.
    let other = Home::new();
    let pull = format!("pull {depot}/big@one --bandwidth 4M");
    assert!(!end_it(&other, &pull, libc::SIGINT, Duration::from_millis(700)));
    other.is_empty();
}
