//! Disk images that users bring: what they are, who else has them, and where they are.

mod common;

use std::process::Command;

use common::{Finished, Home};

fn run(line: &str) {
    let mut words = line.split_ascii_whitespace();
    let mut command = Command::new(words.next().unwrap());
    command.args(words);
    Finished::run(command).ok();
}

/// The first command between backquotes.
fn line_in(text: &str) -> &str {
    let mut quoted = text.split('`').skip(1).step_by(2);
    quoted.find(|line| line.contains(' ')).unwrap_or_else(|| panic!("no line that helps: {text}"))
}

/// An image of `format` with a pattern in it; returns its path.
fn foreign(home: &Home, name: &str, format: &str) -> String {
    let raw = home.file("pattern.raw", &vec![0x5a; 4 << 20]);
    let path = home.beside(name).to_str().unwrap().to_owned();
    run(&format!("qemu-img convert -f raw -O {format} {raw} {path}"));
    path
}

#[test]
fn an_image_in_another_format_is_not_taken_for_a_raw_one() {
    let home = Home::new();
    for (name, format, shown) in [
        ("a.vmdk", "vmdk", "VMDK"),
        ("flat.vmdk", "vmdk -o subformat=monolithicFlat", "VMDK"),
        ("a.vhdx", "vhdx", "VHDX"),
        ("a.vdi", "vdi", "VDI"),
        ("dynamic.vhd", "vpc", "VHD"),
        ("fixed.vhd", "vpc -o subformat=fixed", "VHD"),
        ("a.qcow", "qcow", "qcow (version 1)"),
        ("named.img", "vmdk", "VMDK"),
    ] {
        let path = foreign(&home, name, format);
        let before = std::fs::read(&path).unwrap();
        for options in ["", ",overlay", ",readonly"] {
            let refused = home
                .piton(&format!("run demo --disk {path}{options}"))
                .fails_saying(3, &[name, shown, "qemu-img convert", "format=raw"]);
            if options.is_empty() {
                // What it says to do works.
                run(line_in(&refused));
                let made = home.beside(name).with_extension("qcow2");
                let vm = home.boot(&format!("run demo --disk {},overlay", made.display()));
                let mut vm = vm;
                vm.ok("blk read 0 1M");
                vm.power_off();
                home.piton("rm demo --yes").ok();
                std::fs::remove_file(made).unwrap();
            }
        }
        assert!(std::fs::read(&path).unwrap() == before, "{name}");
    }
    home.is_empty();
}

#[test]
fn a_packed_image_is_not_taken_for_a_raw_one() {
    let home = Home::new();
    for (name, mark, line) in [
        ("a.img.gz", &[0x1f, 0x8b, 8, 0][..], "`gzip -dk"),
        ("a.img.xz", b"\xfd7zXZ\0", "`xz -dk"),
        ("a.img.zst", b"\x28\xb5\x2f\xfd", "`zstd -d"),
        ("a.img.bz2", b"BZh91AY&SY", "`bzip2 -dk"),
        ("a.img.lz4", b"\x04\x22\x4d\x18", "`lz4 -d"),
        ("a.zip", b"PK\x03\x04", "`unzip"),
    ] {
        let path = home.file(name, &[mark, &vec![7; (1 << 20) - mark.len()]].concat());
        home.piton(&format!("run demo --disk {path}")).fails(3, &[name, line, "format=raw"]);
    }
    let mut disc = vec![0; 1 << 20];
    disc[0x8001..0x8006].copy_from_slice(b"CD001");
    let disc = home.file("disc.iso", &disc);
    home.piton(&format!("run demo --disk {disc}")).fails(3, &["disc.iso", "ISO", ",readonly"]);
    home.is_empty();
    let mut vm = home.boot(&format!("run demo --disk {disc},readonly"));
    vm.ok("blk read 0 1M");
    vm.power_off();
}

#[test]
fn a_format_that_is_given_is_not_guessed() {
    let home = Home::new();
    let path = foreign(&home, "a.vmdk", "vmdk -o subformat=monolithicFlat");
    let flat = home.file("flat.img", &[b"KDMV".to_vec(), vec![0; (1 << 20) - 4]].concat());
    home.piton(&format!("run demo --disk {flat}")).fails(3, &["VMDK"]);
    let mut vm = home.boot(&format!("run demo --disk {flat},format=raw"));
    vm.ok("blk write 0 4096 1");
    vm.power_off();
    assert_ne!(std::fs::read(&flat).unwrap()[..4], *b"KDMV");
    home.piton("rm demo --yes").ok();
    home.piton(&format!("run demo --disk {path},format=qcow2,overlay")).fails(3, &["not a qcow2 image"]);
    home.piton(&format!("run demo --disk {path},format=vmdk")).fails(2, &["format=vmdk", "format=raw"]);
    home.is_empty();
}

#[test]
fn a_qcow2_feature_that_is_not_read_is_named() {
    let home = Home::new();
    let raw = home.file("pattern.raw", &vec![0x5a; 4 << 20]);
    let image = |name: &str, options: &str| {
        let path = home.beside(name).to_str().unwrap().to_owned();
        run(&format!("qemu-img convert -f raw -O qcow2 {options} {raw} {path}"));
        path
    };
    let dirty = image("dirty.qcow2", "-o lazy_refcounts=on");
    let mut bytes = std::fs::read(&dirty).unwrap();
    bytes[79] |= 1;
    std::fs::write(&dirty, bytes).unwrap();
    let data = home.beside("data.raw");
    for (path, words) in [
        (image("zstd.qcow2", "-c -o compression_type=zstd"), "zstd"),
        (image("sub.qcow2", "-o extended_l2=on"), "extended L2"),
        (image("ext.qcow2", &format!("-o data_file={}", data.display())), "external data file"),
        (dirty, "dirty bit"),
    ] {
        let refused = home
            .piton(&format!("run demo --disk {path},overlay"))
            .fails_saying(3, &[&path, words, "qemu-img"]);
        let line = line_in(&refused).to_owned();
        run(&line);
        let made = line.rsplit(' ').next().unwrap();
        let mut vm = home.boot(&format!("run demo --disk {made},overlay"));
        vm.ok("blk read 0 4M");
        vm.power_off();
        home.piton("rm demo --yes").ok();
    }
    let secret = home.file("KEY", b"secret");
    let locked = home.beside("locked.qcow2").to_str().unwrap().to_owned();
    run(&format!(
        "qemu-img create -f qcow2 --object secret,id=key,file={secret} -o encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10 {locked} 1M"
    ));
    let refused = home
        .piton(&format!("run demo --disk {locked},overlay"))
        .fails_saying(3, &["encrypted", "encrypt.key-secret"]);
    run(&line_in(&refused).replace("file=KEY", &format!("file={secret}")));
    home.is_empty();
}

/// A VM with one checkpoint, off, over the base `base`.
fn checkpointed(home: &Home, disk: &str) {
    checkpointed_over(home, disk, "");
}

fn checkpointed_over(home: &Home, disk: &str, options: &str) {
    let mut vm = home.boot(&format!("run demo --disk {disk},id=root {options}"));
    vm.ok("blk write 0 64K 5");
    vm.ok("blk flush");
    home.piton("checkpoint create demo one").ok();
    vm.power_off();
}

/// What every command has to say that needs the base; `show` and `doctor` among others.
fn told_by_all(home: &Home, words: &[&str]) {
    let out = home.beside("out");
    let exports =
        ["checkpoint export demo@one", "export demo"].map(|line| format!("{line} {}", out.display()));
    let said = home.piton("checkpoint revert demo --yes").fails_saying(3, words);
    for (line, code) in [
        ("checkpoint apply demo@one --discard-current", 3),
        ("start demo", 3),
        ("checkpoint verify demo@one", 1),
        (&exports[0], 3),
        (&exports[1], 3),
        ("clone demo@one other", 3),
    ] {
        assert_eq!(home.piton(line).fails_saying(code, words), said, "{line}");
    }
    let finding = said.strip_prefix("piton: ").unwrap();
    let doctor = home.piton("doctor demo");
    assert_eq!(doctor.code, Some(1), "{doctor}");
    assert!(doctor.stdout.contains(finding), "{doctor}");
    let shown = home.piton("show demo");
    assert!(shown.code == Some(0) && shown.stderr.contains(finding), "{shown}");
    assert_eq!(home.piton("show demo --json").json()["problems"], serde_json::json!([finding]));
    assert!(!out.exists() && !home.vm("other").exists());
}

#[test]
fn a_base_that_is_gone_or_has_another_length_is_one_finding() {
    let home = Home::new();
    let base = home.file("base.raw", &vec![3; 4 << 20]);
    checkpointed(&home, &format!("{base},overlay"));
    home.piton("doctor demo").ok();
    let moved = home.beside("moved.raw");
    std::fs::rename(&base, &moved).unwrap();
    let words = [&base, "is missing", "`piton disk relocate demo root PATH`"];
    told_by_all(&home, &words);
    home.piton("checkpoint create demo two").fails(3, &words);
    home.piton("start demo --force").fails(3, &words);
    std::fs::copy(&moved, &base).unwrap();
    std::fs::File::options().write(true).open(&base).unwrap().set_len(5 << 20).unwrap();
    let words = [&base, "its size is 5242880 bytes instead of 4194304", "piton disk relocate demo root"];
    told_by_all(&home, &words);
    home.piton("checkpoint create demo two").fails(3, &words);
    home.piton("start demo --force").fails(3, &words);
}

#[test]
fn a_base_that_was_written_to_is_one_finding_and_can_be_used_all_the_same() {
    let home = Home::new();
    let before = vec![3; 4 << 20];
    let base = home.file("base.raw", &before);
    checkpointed(&home, &format!("{base},overlay"));
    let mut after = before.clone();
    after[..4096].fill(9);
    std::fs::write(&base, &after).unwrap();
    let words = [&base, "changed since checkpoint `one`", "piton start --force"];
    told_by_all(&home, &words);
    // Nor does it pass for good from now on.
    home.piton("set demo --seal-base").fails(3, &words);
    assert_eq!(home.piton("doctor demo").code, Some(1));
    // What was put back is what it was, at whatever time.
    std::fs::write(&base, &before).unwrap();
    home.piton("start demo").ok();
    home.piton("kill demo").ok();
    std::fs::write(&base, &after).unwrap();
    let mut vm = home.boot("start demo --attach --force");
    vm.ok("blk verify 0 64K 5");
    // A checkpoint of that says so, and from then on it is what Now lies on.
    let created = home.piton("checkpoint create demo two");
    assert!(
        created.code == Some(0) && created.stderr.contains("changed since checkpoint `one`"),
        "{created}"
    );
    let warnings = &home.piton("checkpoint show demo@two --json").json()["warnings"];
    assert!(warnings[0].as_str().unwrap().contains("changed since checkpoint `one`"), "{warnings}");
    vm.power_off();
    home.piton("start demo").ok();
    home.piton("kill demo").ok();
    home.piton("checkpoint verify demo@two").ok();
    home.piton("checkpoint verify demo@one").fails(1, &words);
    assert_eq!(home.piton("doctor demo").code, Some(1));
    home.piton("checkpoint apply demo@one --discard-current").fails(3, &words);
    home.piton("checkpoint apply demo@one --discard-current --force --run").ok();
    home.piton("kill demo").ok();
}

#[test]
fn nothing_is_merged_into_a_base_that_was_written_to() {
    let home = Home::new();
    let base = home.file("base.raw", &vec![3; 4 << 20]);
    checkpointed(&home, &base);
    let before = std::fs::read(&base).unwrap();
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk write 64K 64K 6");
    home.piton("checkpoint create demo two").ok();
    vm.power_off();
    let mut after = before.clone();
    after[..4096].fill(9);
    std::fs::write(&base, &after).unwrap();
    // It would be a part of what `two` knows as its base.
    let deleted = home.piton("checkpoint delete demo@one --yes");
    assert!(deleted.code == Some(0) && deleted.stderr.contains("has changed since checkpoint"), "{deleted}");
    assert!(std::fs::read(&base).unwrap() == after);
    home.piton("checkpoint verify demo@two").fails(1, &[&base, "has changed"]);
    std::fs::write(&base, &before).unwrap();
    home.piton("doctor demo --repair").ok();
    assert!(std::fs::read(&base).unwrap() != before);
    home.piton("checkpoint verify demo@two").ok();
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk verify 0 64K 5");
    vm.ok("blk verify 64K 64K 6");
    vm.power_off();
}

#[test]
fn a_base_that_was_moved_is_given_anew() {
    let home = Home::new();
    let base = home.file("base.raw", &vec![3; 4 << 20]);
    checkpointed(&home, &format!("{base},overlay"));
    let moved = home.beside("moved.raw");
    std::fs::rename(&base, &moved).unwrap();
    let moved = moved.to_str().unwrap();
    let other = home.file("other.raw", &vec![4; 4 << 20]);
    let longer = home.file("longer.raw", &vec![3; 5 << 20]);
    let relocate = |disk: &str, path: &str| home.piton(&format!("disk relocate demo {disk} {path}"));
    relocate("root", &other).fails(3, &["other.raw", "is not the base image of disk `root`", "`one`"]);
    relocate("root", &longer).fails(3, &["longer.raw", "bytes"]);
    relocate("root", "/nowhere").fails(3, &["/nowhere", "does not exist"]);
    relocate("data", moved).fails(3, &["no disk `data`", "root"]);
    home.piton("start demo").fails(3, &["is missing"]);
    let done = home.piton(&format!("disk relocate demo root {moved} --json")).json();
    assert_eq!((&done["path"], &done["checkpoints"]), (&moved.into(), &1.into()));
    home.piton("doctor demo").ok();
    home.piton("checkpoint verify demo@one").ok();
    let manifest = home.piton("checkpoint show demo@one --json").json();
    assert_eq!(manifest["config"]["disks"][0]["path"], moved);
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk verify 0 64K 5");
    relocate("root", moved).fails(3, &["demo", "running"]);
    vm.power_off();
    home.piton("checkpoint revert demo --yes --run").ok();
    home.piton("stop demo --force").ok();
}

#[test]
fn a_change_below_a_qcow2_base_is_noticed() {
    let home = Home::new();
    let low = home.file("lvl0.raw", &vec![3; 8 << 20]);
    let [mid, top] = ["lvl1.qcow2", "lvl2.qcow2"].map(|name| home.beside(name).to_str().unwrap().to_owned());
    run(&format!("qemu-img create -f qcow2 -F raw -b {low} {mid}"));
    run(&format!("qemu-img create -f qcow2 -F qcow2 -b {mid} {top}"));
    checkpointed_over(&home, &format!("{top},overlay"), &format!("--backing {mid} --backing {low}"));
    home.piton("checkpoint verify demo@one").ok();
    let before = std::fs::read(&low).unwrap();
    let mut bytes = before.clone();
    bytes[2 << 20..3 << 20].fill(9);
    std::fs::write(&low, bytes).unwrap();
    told_by_all(&home, &["lvl0.raw", "backing file", "root", "changed since checkpoint `one`"]);
    // What was put back is what it was, at whatever time.
    std::fs::write(&low, before).unwrap();
    home.piton("checkpoint verify demo@one").ok();
    home.piton("doctor demo").ok();
    std::fs::remove_file(&low).unwrap();
    told_by_all(&home, &["lvl0.raw", "backing file", "is missing"]);
    std::fs::rename(&mid, home.beside("away")).unwrap();
    told_by_all(&home, &["lvl1.qcow2", "backing file", "is missing"]);
}

/// `qemu-nbd` with an image; it ends with this.
struct Nbd(std::process::Child);

impl Nbd {
    fn of(home: &Home, image: &str, options: &[&str]) -> Self {
        let socket = home.beside("nbd.sock");
        let _ = std::fs::remove_file(&socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["-t", "-f", "raw", "-k"]).arg(&socket).args(options).arg(image);
        let child = Self(command.spawn().unwrap());
        common::until("qemu-nbd to listen", || socket.exists().then_some(()));
        child
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_image_that_qemu_writes_is_left_alone() {
    let home = Home::new();
    let image = home.image("a.raw", 1 << 20);
    let writer = Nbd::of(&home, &image, &[]);
    let pid = writer.0.id().to_string();
    for options in ["", ",overlay", ",readonly"] {
        let refused = home.piton(&format!("run demo --disk {image}{options}"));
        refused.fails(3, &["a.raw", "in use", &pid, "qemu-nbd", "for writing"]);
    }
    home.is_empty();
    drop(writer);
    let reader = Nbd::of(&home, &image, &["-r"]);
    home.piton(&format!("run demo --disk {image}")).fails(3, &["a.raw", "in use", "for reading"]);
    for options in [",overlay", ",readonly"] {
        let mut vm = home.boot(&format!("run demo --disk {image}{options}"));
        vm.ok("info");
        // Whoever only reads may; nobody may write what has to stand still.
        run(&format!("qemu-img info -f raw {image}"));
        let written =
            Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &image]).output().unwrap();
        assert!(!written.status.success(), "{written:?}");
        vm.power_off();
        home.piton("rm demo --yes").ok();
    }
    drop(reader);
    let mut vm = home.boot(&format!("run demo --disk {image}"));
    let written = Command::new("qemu-io").args(["-f", "raw", "-c", "write 0 512", &image]).output().unwrap();
    assert!(!written.status.success(), "the guest writes: {written:?}");
    vm.power_off();
}

/// Changes one byte of a file as rot does: nothing else of it tells.
fn rot(path: &str, at: usize) {
    let modified = std::fs::metadata(path).unwrap().modified().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
    std::fs::File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn what_nothing_vouches_for_is_said() {
    let home = Home::new();
    let base = home.file("base.raw", &vec![3; 4 << 20]);
    checkpointed(&home, &format!("{base},overlay"));
    let out = home.beside("out");
    let export = format!("checkpoint export demo@one {}", out.display());
    let apply = "checkpoint apply demo@one --discard-current";
    for line in ["checkpoint verify demo@one", apply, &export] {
        let said = home.piton(line).ok();
        assert!(said.contains("not checked") && said.contains(&base), "{line}: {said}");
        assert!(said.contains("`piton set demo --seal-base`"), "{line}: {said}");
        if line == apply {
            home.piton("stop demo --force").ok();
        }
        let _ = std::fs::remove_dir_all(&out);
        let told = home.piton(&format!("{line} --json")).json();
        assert!(told["unchecked"][0].as_str().unwrap().contains(&base), "{line}: {told}");
        if line == apply {
            home.piton("stop demo --force").ok();
        }
    }
    home.piton("set demo --seal-base").ok();
    let _ = std::fs::remove_dir_all(&out);
    for line in ["checkpoint verify demo@one", &export] {
        let told = home.piton(&format!("{line} --json")).json();
        assert_eq!(told["unchecked"], serde_json::json!([]), "{line}");
    }
    home.piton("clone demo@one copy").ok();
    let told = home.piton("checkpoint verify copy@one --json").json();
    assert_eq!(told["unchecked"], serde_json::json!([]), "{told}");
    rot(&base, 3 << 20);
    let words = ["base.raw", "damaged", "offset 3145728"];
    home.piton("checkpoint verify demo@one").fails(1, &words);
    home.piton("checkpoint verify copy@one").fails(1, &words);
    let _ = std::fs::remove_dir_all(&out);
    home.piton(&export).fails(1, &words);
    let mut vm = home.boot("start demo --attach");
    vm.ok("blk read 0 1M");
    assert!(common::has_word(&vm.err("blk read 3M 64K"), "errno=5") || vm.text().contains("reason="));
    vm.power_off();
    let plain = home.image("plain.raw", 1 << 20);
    let mut vm = home.boot(&format!("run plain --disk {plain}"));
    vm.journal();
    vm.power_off();
    home.piton("set plain --seal-base").fails(3, &["plain", "overlay"]);
}

/// The jobs of this kind and what became of them.
fn jobs(home: &Home, kind: &str) -> Vec<String> {
    let list = home.piton("checkpoint jobs demo --json").json();
    let jobs = list["jobs"].as_array().unwrap().iter().filter(|job| job["kind"] == kind);
    jobs.map(|job| job["state"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_base_is_sealed_while_its_guest_runs() {
    let home = Home::new();
    let base = home.file("base.raw", &vec![3; 4 << 20]);
    let sums = home.vm("demo").join("disks/root.base-sums");
    home.piton(&format!("run demo --detach --seal-base --disk {base},id=root,overlay")).ok();
    common::until("the base to be sealed", || (jobs(&home, "seal") == ["done"]).then_some(()));
    assert!(sums.exists());
    home.piton("checkpoint create demo one").ok();
    let told = home.piton("checkpoint verify demo@one --json").json();
    assert_eq!(told["unchecked"], serde_json::json!([]));
    home.piton("clone demo@one other").ok();
    assert!(home.vm("other").join("disks/root.base-sums").exists());
    home.piton("stop demo --force").ok();
    // Sums that rotted are not believed.
    rot(sums.to_str().unwrap(), 40);
    home.piton("checkpoint verify demo@one").fails(1, &["root.base-sums", "damaged"]);
    home.piton("start demo").fails(3, &["root.base-sums", "damaged"]);
}

#[test]
fn sealing_can_be_cancelled_and_killed() {
    let home = Home::new();
    let base = home.image("base.raw", 48 << 30);
    let sums = home.vm("demo").join("disks/root.base-sums");
    home.piton(&format!("run demo --detach --seal-base --disk {base},id=root,overlay")).ok();
    common::until("it to begin", || (jobs(&home, "seal") == ["running"]).then_some(()));
    let list = home.piton("checkpoint jobs demo --json").json();
    let id = list["jobs"].as_array().unwrap().iter().find(|job| job["kind"] == "seal").unwrap()["id"].clone();
    home.piton(&format!("checkpoint cancel demo {}", id.as_str().unwrap())).ok();
    common::until("it to end", || (jobs(&home, "seal") == ["cancelled"]).then_some(()));
    assert!(!sums.exists());
    home.piton("stop demo --force").ok();
    home.piton("start demo").ok();
    common::until("it to begin again", || (jobs(&home, "seal") == ["running"]).then_some(()));
    let pid = home.piton("show demo --json").json()["pid"].as_i64().unwrap();
    common::send_signal(pid as i32, libc::SIGKILL);
    home.ended("demo");
    assert!(!sums.exists());
    home.piton("doctor demo").ok();
    home.piton("start demo").ok();
    home.piton("stop demo --force").ok();
    assert!(!sums.exists());
    home.piton("doctor demo").ok();
}
