//! What a guest does to its disks, seen from both sides.

mod common;

use common::{Finished, Home, has_word, is_root, skip};

#[test]
fn keeps_what_is_written_over_a_stop() {
    let home = Home::new();
    let mut vm = home.boot("run demo");
    vm.ok("blk write 0 8M 42");
    vm.ok("blk write 16M 1M 43");
    vm.ok("blk flush");
    vm.ok("blk verify 0 8M 42");
    let sum = vm.ok("blk read 0 32M");
    let seq = vm.journal_goes_on(2);
    vm.power_off();
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk verify 0 8M 42");
    vm.ok("blk verify 16M 1M 43");
    assert!(has_word(&vm.err("blk verify 0 8M 41"), "reason=differs"), "a check that can fail");
    assert_eq!(vm.ok("blk read 0 32M"), sum);
    assert!(vm.journal() >= seq);
    vm.power_off();
}

#[test]
fn discards_and_zeroes() {
    let home = Home::new();
    let image = home.image("a.raw", 16 << 20);
    let mut vm = home.boot(&format!("run demo --disk {image}"));
    let empty = vm.ok("blk read 4M 1M");
    vm.ok("blk write 0 8M 7");
    vm.ok("blk zero 4M 1M");
    assert_eq!(vm.ok("blk read 4M 1M"), empty);
    vm.ok("blk discard 5M 1M");
    vm.ok("blk flush");
    vm.ok("blk verify 0 4M 7");
    vm.ok("blk verify 6M 2M 7");
    vm.power_off();
    let bytes = std::fs::read(&image).unwrap();
    assert!(bytes[4 << 20..5 << 20].iter().all(|byte| *byte == 0));
    assert!(bytes[..4 << 20].iter().any(|byte| *byte != 0));
}

#[test]
fn refuses_what_is_beyond_the_end() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    let mut vm = home.boot(&format!("run demo --disk {image}"));
    for command in ["write 1M 512 1", "read 1M 512", "write 0 2M 1", "discard 512K 1M", "zero 1M 4K"] {
        assert!(has_word(&vm.err(&format!("blk {command}")), "reason=range"), "{command}");
    }
    vm.journal();
    vm.power_off();
    assert_eq!(std::fs::metadata(&image).unwrap().len(), 1 << 20);
}

#[test]
fn works_in_every_size() {
    let home = Home::new();
    let image = home.image("a.raw", 8 << 20);
    let mut vm = home.boot(&format!("run demo --cpus 2 --disk {image}"));
    for (n, len) in [512, 1024, 4096, 4608, 65536, 65536 + 512, 1 << 20].into_iter().enumerate() {
        let at = 512 + n * 1_049_088;
        vm.ok(&format!("blk write {at} {len} {n}"));
        vm.ok(&format!("blk verify {at} {len} {n}"));
    }
    vm.ok("journal off");
    vm.ok("blk bench rand-write 0 4M 4096 200 16 qd=4");
    vm.ok("blk bench rand-read 0 4M 4096 200 qd=4");
    vm.ok("blk bench seq-write 0 4M 65536 64");
    vm.ok("blk bench seq-read 0 4M 65536 64");
    vm.power_off();
}

#[test]
fn a_readonly_disk_is_not_written() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    std::fs::write(&image, vec![0x5a; 1 << 20]).unwrap();
    let mut vm = home.boot(&format!("run demo --disk {image},readonly"));
    vm.ok("info");
    assert!(vm.text().contains("ro=1"));
    assert!(vm.text().contains("journal off"), "no disk to keep one on");
    assert!(has_word(&vm.err("blk write 0 4096 1"), "reason=readonly"));
    assert!(has_word(&vm.err("blk zero 0 4096"), "reason=readonly"));
    vm.ok("blk read 0 1M");
    vm.power_off();
    assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 0x5a));
}

#[test]
fn several_disks_are_kept_apart() {
    let home = Home::new();
    let images: Vec<String> = (0..4).map(|n| home.image(&format!("{n}.raw"), (n + 1) << 20)).collect();
    let disks: String = images.iter().map(|image| format!(" --disk {image}")).collect();
    let mut vm = home.boot(&format!("run demo{disks}"));
    for n in 0..4 {
        vm.ok(&format!("blk {n} write 0 512K {}", 100 + n));
    }
    for n in 0..4 {
        vm.ok(&format!("blk {n} verify 0 512K {}", 100 + n));
    }
    let status = vm.ok("journal check");
    assert_eq!(common::field(&status, "disks"), 4);
    vm.power_off();
    let halves: Vec<Vec<u8>> =
        images.iter().map(|image| std::fs::read(image).unwrap()[..512 << 10].to_vec()).collect();
    for a in 0..4 {
        for b in 0..a {
            assert_ne!(halves[a], halves[b]);
        }
    }
}

#[test]
fn a_writable_image_has_one_vm() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    let mut first = home.boot(&format!("run first --disk {image}"));
    home.piton(&format!("run second --disk {image}")).fails(3, &["a.raw", "in use"]);
    home.piton(&format!("run second --disk {image},readonly")).fails(3, &["a.raw", "in use"]);
    assert!(!home.vm("second").exists());
    first.journal();
    first.power_off();
    let mut second = home.boot(&format!("run second --disk {image}"));
    home.piton("start first").fails(3, &["a.raw", "in use"]);
    second.power_off();
}

#[test]
fn one_image_cannot_be_two_writable_disks() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    home.piton(&format!("run demo --disk {image} --disk {image}")).fails(3, &["a.raw", "same file"]);
    home.is_empty();
}

#[test]
fn a_readonly_image_is_shared() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    let mut first = home.boot(&format!("run first --disk {image},readonly"));
    let mut second = home.boot(&format!("run second --disk {image},readonly"));
    assert_eq!(first.ok("blk read 0 1M"), second.ok("blk read 0 1M"));
    home.piton(&format!("run third --disk {image}")).fails(3, &["a.raw", "in use"]);
    first.power_off();
    second.power_off();
}

#[test]
fn a_disk_is_named_relative_to_where_one_is() {
    let home = Home::new();
    home.image("a.raw", 1 << 20);
    let mut command = home.command(["run", "demo", "--detach", "--disk", "a.raw"]);
    command.current_dir(home.beside(""));
    common::Finished::run(command).ok();
    let shown = home.piton("show demo --json").json();
    assert_eq!(shown["config"]["disks"][0]["path"], home.beside("a.raw").to_str().unwrap());
    home.piton("stop demo --force").ok();
    home.piton("start demo").ok();
    home.piton("stop demo --force").ok();
}

/// A loop device, which goes with it.
struct Loop(String);

impl Loop {
    /// None, with the reason told, where there can be none.
    fn new(image: &str) -> Option<Self> {
        if !is_root() {
            skip("only root can set up a loop device");
            return None;
        }
        let told = std::process::Command::new("losetup").args(["--find", "--show", image]).output();
        match told {
            Ok(told) if told.status.success() => {
                Some(Self(String::from_utf8(told.stdout).unwrap().trim().into()))
            }
            other => {
                skip(&format!("there is no loop device to be had: {other:?}"));
                None
            }
        }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

fn tool(words: &[&str]) -> Finished {
    let mut command = std::process::Command::new(words[0]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).args(&words[1..]);
    Finished::run(command)
}

#[test]
fn a_block_device_of_the_host() {
    let home = Home::new();
    let image = home.image("device.raw", 48 << 20);
    let Some(device) = Loop::new(&image) else { return };
    let path = &device.0;
    let mut vm = home.boot(&format!("run demo --memory 64M --disk {path},id=data,passthrough"));
    vm.ok("journal off");
    vm.ok("blk 0 write 0 4M 5");
    let shown = home.piton("show demo").ok();
    assert!(shown.contains(&format!("data: {path} (raw, passthrough)")), "{shown}");
    // Nobody else can have it: not a mount, not another VM.
    let told = tool(&["mkfs.ext4", "-q", path]);
    assert!(told.code != Some(0) && told.stderr.contains("in use"), "{told}");
    let other = || home.piton(&format!("run other --memory 64M --detach --disk {path},passthrough"));
    other().fails(3, &[path, "is in use"]);
    // It is not part of what is gone back to.
    let said = home.piton("checkpoint create demo one").ok();
    assert!(said.contains("`data`") && said.contains("passthrough"), "{said}");
    vm.ok("blk 0 write 0 4M 6");
    home.piton("checkpoint apply demo@one --discard-current --run").ok();
    vm.ok("blk 0 verify 0 4M 6");
    // The guest's reboot opens it anew.
    vm.send("reboot");
    vm.ready();
    vm.ok("blk 0 verify 0 4M 6");
    vm.ok("blk 0 discard 1M 1M");
    vm.ok("blk 0 flush");
    vm.power_off();

    // One that grew is larger at the next start.
    std::fs::File::options().write(true).open(&image).unwrap().set_len(64 << 20).unwrap();
    tool(&["losetup", "--set-capacity", path]).ok();
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk 0 write 60M 1M 7");
    vm.power_off();
    home.piton("disk resize demo data 80M").fails(3, &["data"]);

    // What is mounted is refused, also where only a part of it is.
    tool(&["mkfs.ext4", "-q", "-F", path]).ok();
    let at = home.beside("mounted");
    std::fs::create_dir(&at).unwrap();
    tool(&["mount", path, at.to_str().unwrap()]).ok();
    let refused = home.piton("start demo");
    let reads = home.piton(&format!("run reader --memory 64M --detach --disk {path},readonly"));
    tool(&["umount", at.to_str().unwrap()]).ok();
    refused.fails(3, &[path, "is in use", "mounted"]);
    reads.ok();
    home.piton("kill reader").ok();
    home.ended("reader");

    // As a disk like any other it is in checkpoints: the device stays as it was then.
    let mut vm = home.boot(&format!("run third --memory 64M --disk {path},id=root"));
    vm.ok("blk 0 write 8M 1M 8");
    home.piton("checkpoint create third one").ok();
    vm.ok("blk 0 write 8M 1M 9");
    home.piton("checkpoint apply third@one --discard-current --run").ok();
    vm.ok("blk 0 verify 8M 1M 8");
    home.piton("checkpoint delete third@one --yes").ok();
    vm.ok("blk 0 write 9M 1M 3");
    vm.power_off();
    let mut vm = home.boot("start third --attach");
    vm.ok("blk 0 verify 8M 1M 8");
    vm.ok("blk 0 verify 9M 1M 3");
    vm.power_off();
}
