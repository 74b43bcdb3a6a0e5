//! What exports and imports do with what they cannot use: one sentence, and nothing is changed.

mod ckpt_common;
mod common;

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use ckpt_common::{Lab, MIB, files};
use common::{Home, Vm, send_signal, until};
use piton::checkpoint::state::{StateInfo, read_state, write_state};
use piton::storage::Storage;
use piton::transfer::format::{Export, FileSum};
use serde_json::{Value, json};

fn dir(lab: &Lab, name: &str) -> String {
    lab.beside(name).to_str().unwrap().to_owned()
}

/// A running VM with checkpoints `one`, `two` and `three`, each after the other.
fn lab_with_three() -> (Lab, Vm) {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    for (n, name) in ["one", "two", "three"].iter().enumerate() {
        vm.ok(&format!("fill 2 {n}"));
        vm.ok(&format!("blk 0 write {n}M 64K {n}"));
        lab.create(name);
    }
    (lab, vm)
}

#[test]
fn a_wrong_or_missing_parent_is_refused() {
    let (lab, mut vm) = lab_with_three();
    let [one, two, three] = ["one", "two", "three"].map(|name| dir(&lab, name));
    lab.cp(&format!("export demo@one {one}")).ok();
    lab.cp(&format!("export demo@two {two} --since one")).ok();
    lab.cp(&format!("export demo@three {three} --since two")).ok();
    vm.journal();
    vm.power_off();
    let other = Home::new();
    for (dirs, words) in [
        (two.clone(), &["since checkpoint `one`", "before it"][..]),
        (format!("{one} {three}"), &["since checkpoint `two`", "is an export of `one`"]),
        (format!("{one} {two} {two}"), &["since checkpoint `one`", "is an export of `two`"]),
        (format!("{one} {three} {two}"), &["since checkpoint `two`"]),
        (format!("{two} {one}"), &["since checkpoint `one`"]),
        (format!("{one} {one}"), &["full export"]),
        (format!("{one}/disks"), &["not an export", "export.json"]),
        (dir(&lab, "nowhere"), &["nowhere", "not an export"]),
        (format!("{one}/export.json"), &["not an export"]),
    ] {
        other.piton(&format!("import {dirs}")).fails(3, words);
        other.piton(&format!("import {dirs} --check")).fails(3, words);
        other.is_empty();
    }
}

#[test]
fn damage_is_named_and_nothing_is_changed() {
    let (lab, mut vm) = lab_with_three();
    let [one, two] = ["one", "two"].map(|name| dir(&lab, name));
    lab.cp(&format!("export demo@one {one} --format qcow2")).ok();
    lab.cp(&format!("export demo@two {two} --since one")).ok();
    vm.power_off();
    let other = Home::new();
    let import = format!("import {one} {two}");
    let names = ["one/memory", "one/state", "one/disks/a.qcow2", "two/memory", "two/disks/b.delta"];
    for path in names.map(|name| lab.beside(name)) {
        let (bytes, shown) = (fs::read(&path).unwrap(), path.to_str().unwrap());
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[!bytes[bytes.len() / 2]], bytes.len() as u64 / 2).unwrap();
        other.piton(&import).fails(1, &[shown, "damaged", "checksum"]);
        file.set_len(bytes.len() as u64 - 1).unwrap();
        other.piton(&import).fails(1, &[shown, "bytes"]);
        fs::remove_file(&path).unwrap();
        let checked = other.piton(&format!("{import} --check --json"));
        assert_eq!(checked.code, Some(1), "{checked}");
        let told: Value = serde_json::from_str(&checked.stdout).unwrap();
        assert_eq!(told["problems"].as_array().unwrap().len(), 1, "{checked}");
        assert!(told["problems"][0]["text"].as_str().unwrap().contains(shown), "{checked}");
        other.is_empty();
        fs::write(&path, &bytes).unwrap();
    }
    let index = lab.beside("one/export.json");
    let text = fs::read_to_string(&index).unwrap();
    for (from, to, words) in [
        ("\"demo\"", "\"dome\"", &["damaged", "checksum"][..]),
        ("\"format\": 1,\n  \"id\"", "\"format\": 2,\n  \"id\"", &["newer version of piton"]),
        ("}", "", &["damaged"]),
    ] {
        fs::write(&index, text.replacen(from, to, 1)).unwrap();
        let code = if words[0] == "newer version of piton" { 3 } else { 1 };
        other.piton(&import).fails(code, &[words, &[index.to_str().unwrap()]].concat());
    }
    fs::write(&index, text).unwrap();
    other.is_empty();
    other.piton(&import).ok();
}

/// Changes what export.json says, with its checksums.
fn rewrite(dir: &Path, change: impl FnOnce(&mut Export)) {
    let path = dir.join("export.json");
    let mut export = Export::decode(&fs::read(&path).unwrap(), &path).unwrap();
    change(&mut export);
    for (name, sum) in &mut export.files {
        let bytes = fs::read(dir.join(name)).unwrap();
        *sum = FileSum { bytes: bytes.len() as u64, crc: crc32fast::hash(&bytes) };
    }
    fs::write(&path, export.encode(&path).unwrap()).unwrap();
}

#[test]
fn all_that_is_missing_is_told_at_once_and_can_be_remapped() {
    let lab = Lab::new();
    let (shared, more) = (lab.image("shared.raw", MIB), lab.image("more.raw", MIB));
    let mut vm = lab
        .boot(&format!("--memory 64M --disk {shared},id=shared,passthrough --disk {more},id=more,readonly"));
    vm.ok("fill 2 1");
    let sum = vm.ok("sum");
    lab.create("one");
    vm.journal();
    vm.power_off();
    let one = dir(&lab, "one");
    let said = lab.cp(&format!("export demo@one {one}")).ok();
    assert!(said.contains("disk `shared` is not included: it is passthrough"), "{said}");
    assert!(!lab.beside("one/disks/shared.raw").exists());
    let (elsewhere, third) = (lab.image("elsewhere.raw", MIB), lab.image("third.raw", MIB));
    [&shared, &more].iter().for_each(|path| fs::remove_file(path).unwrap());
    // A processor with every feature that there could be.
    let (storage, state) = (Storage::os(), lab.beside("one/state"));
    let kept = fs::read(&state).unwrap();
    rewrite(&lab.beside("one"), |export| {
        let recorded = export.state.clone().unwrap();
        let info = StateInfo { bytes: recorded.bytes, crc: recorded.crc };
        let mut json: Value = serde_json::from_slice(&read_state(&storage, &state, &info).unwrap()).unwrap();
        // Bytes of kvm_cpuid_entry2: leaf, subleaf, flags, EAX, EBX.
        let leaf_7 = |entry: &&mut Value| (0..8).all(|at| entry[at] == if at == 0 { 7 } else { 0 });
        let entry = json["vcpus"][0]["cpuid"].as_array_mut().unwrap().iter_mut().find(leaf_7).unwrap();
        (16..20).for_each(|at| entry[at] = json!(255));
        fs::remove_file(&state).unwrap();
        let info = write_state(&storage, &state, &serde_json::to_vec(&json).unwrap()).unwrap();
        export.state =
            Some(piton::transfer::format::StateFile { bytes: info.bytes, crc: info.crc, ..recorded });
    });

    let other = Home::new();
    let words =
        ["disk `shared`", "shared.raw", "disk `more`", "--disk more=PATH", "lacks features", "0x7.0 EBX"];
    let refused = other.piton(&format!("import {one}"));
    assert_eq!(refused.code, Some(3), "{refused}");
    words.iter().for_each(|word| assert!(refused.stderr.contains(word), "{word}: {refused}"));
    other.is_empty();
    let remap = format!("--disk shared={elsewhere} --disk more={third}");
    other
        .piton(&format!("import {one} {remap} --disk a={elsewhere}"))
        .fails(3, &["disk `a` is in the export"]);
    other.piton(&format!("import {one} {remap} --disk zz={elsewhere}")).fails(3, &["no disk `zz`"]);
    other.piton(&format!("import {one} {remap} --disk more={elsewhere}")).fails(2, &["twice"]);
    let twice = other.piton(&format!("import {one} --disk shared={elsewhere} --disk more={elsewhere}"));
    assert_eq!(twice.code, Some(3), "{twice}");
    assert!(twice.stderr.contains("`shared` and `more` are the same file"), "{twice}");
    other.piton(&format!("import {one} --disk more")).fails(2, &["ID=PATH"]);
    other.piton(&format!("import {one} {remap}")).fails(3, &["lacks features", "--without-memory"]);
    other.is_empty();
    other.piton(&format!("import {one} {remap} --without-memory --name cold")).ok();
    let list = other.piton("checkpoint list cold --json").json();
    assert_eq!(list["checkpoints"][0]["type"], "offline");
    fs::write(&state, &kept).unwrap();
    rewrite(&lab.beside("one"), |export| {
        let crc = u32::from_le_bytes(kept[12..16].try_into().unwrap());
        export.state.as_mut().unwrap().crc = crc;
        export.state.as_mut().unwrap().bytes = kept.len() as u64;
    });
    other.piton(&format!("import {one} {remap}")).ok();
    other.piton(&format!("import {one} {remap}")).fails(3, &["a VM named `demo` already exists", "--name"]);
    other.piton("checkpoint revert demo --yes --run").ok();
    let mut guest = other.attach("demo");
    assert_eq!(guest.ok("sum"), sum);
    other.piton("stop demo --force").ok();
}

#[test]
fn an_export_leads_nowhere_else() {
    let (lab, mut vm) = lab_with_three();
    let one = dir(&lab, "one");
    lab.cp(&format!("export demo@one {one} --format qcow2")).ok();
    vm.power_off();
    let other = Home::new();
    let secret = lab.file("secret", &[7; 4096]);
    // A qcow2 image that reads a file of this host through its backing file.
    let path = lab.beside("one/disks/a.qcow2");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(secret.as_bytes(), 1024).unwrap();
    file.write_all_at(&1024u64.to_be_bytes(), 8).unwrap();
    file.write_all_at(&(secret.len() as u32).to_be_bytes(), 16).unwrap();
    rewrite(&lab.beside("one"), |_| ());
    other.piton(&format!("import {one}")).fails(1, &["a.qcow2", "backing file"]);
    // Something else than a file, and a link to one, in the place of each.
    let before: Vec<_> = ["one/state", "one/memory", "one/disks/b.qcow2", "one/export.json"]
        .map(|name| (name, fs::read(lab.beside(name)).unwrap()))
        .into();
    for (name, bytes) in &before {
        let path = lab.beside(name);
        for (make, says) in [
            ("mkdir", "directory"),
            ("mkfifo", "is a FIFO"),
            ("ln -s /dev/zero", "symbolic link"),
            ("ln -s kept", "symbolic link"),
        ] {
            fs::write(path.with_file_name("kept"), bytes).unwrap();
            fs::remove_file(&path).unwrap();
            let words: Vec<&str> = make.split(' ').collect();
            let made = std::process::Command::new(words[0]).args(&words[1..]).arg(&path).status();
            assert!(made.unwrap().success());
            other.piton(&format!("import {one} --check")).fails(1, &[path.to_str().unwrap(), says]);
            if make == "mkdir" { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
            fs::remove_file(path.with_file_name("kept")).unwrap();
            fs::write(&path, bytes).unwrap();
        }
    }
    // A folder on the way.
    let (disks, away) = (lab.beside("one/disks"), lab.beside("away"));
    fs::rename(&disks, &away).unwrap();
    std::os::unix::fs::symlink(&away, &disks).unwrap();
    let refused = other.piton(&format!("import {one}"));
    assert_eq!(refused.code, Some(1), "{refused}");
    assert!(refused.stderr.contains("one/disks/a.qcow2: \"disks\" in it is not a folder"), "{refused}");
    fs::remove_file(&disks).unwrap();
    fs::rename(&away, &disks).unwrap();
    // More than anybody writes.
    fs::File::options().write(true).open(lab.beside("one/export.json")).unwrap().set_len(1 << 40).unwrap();
    other.piton(&format!("import {one}")).fails(1, &["export.json", "more than the maximum"]);
    other.is_empty();
}

#[test]
fn files_outside_an_export_are_the_users_to_name() {
    let (lab, mut vm) = lab_with_three();
    let one = dir(&lab, "one");
    lab.cp(&format!("export demo@one {one}")).ok();
    vm.power_off();
    let other = Home::new();
    // Each is there, and could be read and written.
    let secret = lab.file("secret.raw", &[7; MIB as usize]);
    let kernel = lab.file("kernel", common::GUEST);
    let disk = |id: &str, readonly: bool| json!({ "id": id, "path": secret, "format": "raw", "readonly": readonly, "passthrough": !readonly });
    rewrite(&lab.beside("one"), |export| {
        let mut config = serde_json::to_value(&export.config).unwrap();
        config["kernel"] = json!(kernel);
        config["initrd"] = json!(kernel);
        config["disks"].as_array_mut().unwrap().extend([disk("p", false), disk("q", true)]);
        export.config = serde_json::from_value(config).unwrap();
        let mut left_out = serde_json::to_value(&export.left_out).unwrap();
        left_out.as_array_mut().unwrap().push(json!({ "disk": "p", "why": "passthrough" }));
        left_out.as_array_mut().unwrap().push(json!({ "disk": "q", "why": "readonly" }));
        export.left_out = serde_json::from_value(left_out).unwrap();
    });
    let checked = other.piton(&format!("import {one} --check --json"));
    assert_eq!(checked.code, Some(3), "{checked}");
    let told: Value = serde_json::from_str(&checked.stdout).unwrap();
    let about: Vec<_> = told["problems"].as_array().unwrap().iter().map(|one| &one["about"]).collect();
    assert_eq!(about, ["kernel", "initrd", "disk", "disk"], "{checked}");
    let refused = other.piton(&format!("import {one}"));
    assert_eq!(refused.code, Some(3), "{refused}");
    for words in ["--kernel FILE", "--initrd FILE", "--disk p=PATH", "--disk q=PATH", &secret, "writes"] {
        assert!(refused.stderr.contains(words), "{words}: {refused}");
    }
    other.is_empty();
    // An image that the user names may lead to others, which he did not.
    let mut header = vec![0; 4096];
    header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x02");
    header[8..16].copy_from_slice(&1024u64.to_be_bytes());
    header[16..20].copy_from_slice(&(secret.len() as u32).to_be_bytes());
    header[1024..1024 + secret.len()].copy_from_slice(secret.as_bytes());
    let qcow2 = lab.file("over.qcow2", &header);
    let (third, boot) = (lab.image("third.raw", MIB), format!("--kernel {kernel} --initrd {kernel}"));
    let import = format!("import {one} {boot} --disk p={third} --disk q=");
    other.piton(&format!("{import}{qcow2}")).fails(3, &[&qcow2, &format!("--backing {secret}")]);
    let run = format!("run demo --disk {qcow2},readonly");
    other.piton(&run).fails(3, &[&qcow2, &format!("--backing {secret}")]);
    // Named, it is looked at, and is no whole image.
    let looked_at = other.piton(&format!("{run} --backing {secret}"));
    assert!(!looked_at.stderr.contains("--backing"), "{looked_at}");
    looked_at.fails(3, &[&qcow2]);
    other.is_empty();
    other.piton(&format!("{import}{} --without-memory", lab.image("fourth.raw", MIB))).ok();
    assert_eq!(fs::read(&secret).unwrap(), [7; MIB as usize]);
}

#[test]
fn what_others_wrote_cannot_speak_to_the_terminal() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    vm.power_off();
    let one = dir(&lab, "one");
    lab.cp(&format!("export demo@one {one}")).ok();
    let evil = "\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\nok";
    rewrite(&lab.beside("one"), |export| {
        export.note = evil.into();
        export.warnings.push(evil.into());
        export.config.kernel = Some(format!("/boot/{evil}").into());
    });
    let other = Home::new();
    let shown = r"\u{1b}]0;owned\u{7}\u{9b}2J\u{202e}\nok";
    let plain = |text: &str| {
        let obeyed = |c: char| c != '\n' && (c.is_control() || c == '\u{202e}');
        assert!(!text.contains(obeyed), "{}", text.escape_debug());
        assert!(text.contains(shown), "{}", text.escape_debug());
    };
    let refused = other.piton(&format!("import {one}"));
    plain(&refused.stderr);
    let kernel = lab.file("kernel", common::GUEST);
    other.piton(&format!("import {one} --without-memory --kernel {kernel}")).ok();
    plain(&other.piton("checkpoint show demo@one").ok());
    let json = other.args(["checkpoint", "show", "demo@one", "--json"]).json();
    assert_eq!((&json["note"], &json["warnings"][0]), (&json!(evil), &json!(evil)));
    // Paths, in an answer and in an error.
    let named = lab.beside(&format!("to\u{1b}[31m{}", "here"));
    let finished = lab.home.args(["checkpoint", "export", "demo@one", named.to_str().unwrap()]);
    assert!(finished.ok().contains(r"to\u{1b}[31mhere"));
    let finished = lab.home.args(["checkpoint", "export", "demo@one", named.to_str().unwrap()]);
    finished.fails(3, &[r"to\u{1b}[31mhere", "not empty"]);
}

#[test]
fn an_export_takes_the_place_of_an_empty_folder() {
    let (lab, mut vm) = lab_with_three();
    vm.power_off();
    let (link, folder) = (lab.beside("link"), lab.beside("folder"));
    std::os::unix::fs::symlink("folder", &link).unwrap();
    let shown = link.to_str().unwrap();
    lab.cp(&format!("export demo@one {shown}")).fails(3, &[shown, "dangling symbolic link"]);
    fs::create_dir(&folder).unwrap();
    lab.cp(&format!("export demo@one {shown}")).ok();
    assert!(link.is_symlink() && folder.join("export.json").exists());
    lab.cp(&format!("export demo@one {shown}")).fails(3, &["not empty"]);
    lab.piton(&format!("import {shown} --check --name other")).ok();
    // Somebody else waits there for what is exported.
    let (partial, out) = (lab.beside(".out.partial"), dir(&lab, "out"));
    fs::create_dir(&partial).unwrap();
    fs::set_permissions(&partial, fs::Permissions::from_mode(0o777)).unwrap();
    lab.cp(&format!("export demo@one {out}")).fails(3, &[".out.partial", "other users can write"]);
    fs::remove_dir(&partial).unwrap();
    std::os::unix::fs::symlink(&folder, &partial).unwrap();
    lab.cp(&format!("export demo@one {out}")).fails(3, &[".out.partial", "symbolic link"]);
    assert!(folder.join("export.json").exists());
    if common::is_root() {
        let mount = common::Mount::tmpfs("64m", &lab.beside("mount"));
        lab.cp(&format!("export demo@one {}", dir(&lab, "mount"))).fails(3, &["is a mount point"]);
        drop(mount);
    }
}

#[test]
fn bad_input_of_each_command() {
    let (lab, mut vm) = lab_with_three();
    let out = dir(&lab, "out");
    lab.cp(&format!("export demo {out}")).fails(2, &["VM@CHECKPOINT"]);
    lab.cp(&format!("export demo@nothing {out}")).fails(3, &["nothing"]);
    lab.cp(&format!("export nobody@one {out}")).fails(3, &["nobody"]);
    lab.cp(&format!("export demo@one {out} --since nothing")).fails(3, &["nothing"]);
    lab.cp(&format!("export demo@one {out} --format vmdk")).fails(2, &["vmdk"]);
    lab.cp(&format!("export demo@one {out}/deep/er")).fails(3, &["does not exist", "create it first"]);
    lab.cp("export demo@one /").fails(3, &["cannot create"]);
    lab.cp(&format!("export demo@one {}", lab.a)).fails(3, &["not a folder"]);
    assert!(!Path::new(&out).exists());
    fs::create_dir(&out).unwrap();
    fs::write(format!("{out}/mine"), "x").unwrap();
    lab.cp(&format!("export demo@one {out}")).fails(3, &[&out, "not empty"]);
    assert_eq!(files(Path::new(&out)).len(), 1);
    fs::remove_file(format!("{out}/mine")).unwrap();
    // An empty one does, and what a killed export left goes.
    let left = lab.beside(".out.partial");
    fs::create_dir_all(left.join("disks")).unwrap();
    fs::write(left.join("disks/a.raw"), "half").unwrap();
    lab.cp(&format!("export demo@one {out}")).ok();
    assert!(!left.exists());
    assert!(!lab.beside("out/lock").exists());
    lab.piton(&format!("export nobody {out}")).fails(3, &["nobody"]);
    lab.piton(&format!("export demo {out} --live")).fails(3, &["not empty"]);
    assert_eq!(lab.names().len(), 3, "the checkpoint for it is gone");
    lab.piton("import").fails(2, &["required"]);
    lab.piton(&format!("import {out} --name a/b")).fails(2, &["a/b"]);

    let data = dir(&lab, "data");
    lab.cp("diff demo@one").fails(2, &["required"]);
    lab.cp("diff demo@one demo@nothing").fails(3, &["nothing"]);
    fs::write(&data, "mine").unwrap();
    lab.cp(&format!("diff demo@one demo@two --data {data}")).fails(3, &[&data, "already"]);
    assert_eq!(fs::read(&data).unwrap(), b"mine");

    // A base image that somebody wrote to since.
    vm.power_off();
    fs::OpenOptions::new().write(true).open(&lab.b).unwrap().write_all_at(&[9; 512], 0).unwrap();
    fs::remove_dir_all(&out).unwrap();
    lab.cp(&format!("export demo@one {out}")).fails(3, &[&lab.b, "has changed"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn an_import_takes_over_what_a_killed_one_left() {
    let (lab, mut vm) = lab_with_three();
    let one = dir(&lab, "one");
    lab.cp(&format!("export demo@one {one}")).ok();
    vm.power_off();
    let other = Home::new();
    fs::create_dir_all(other.vm("demo").join("checkpoints/.staging-x")).unwrap();
    fs::create_dir_all(other.vm("demo").join("disks")).unwrap();
    fs::write(other.vm("demo").join("disks/a.raw"), "half").unwrap();
    assert_eq!(other.piton("list --json").json(), json!([]));
    other.piton(&format!("import {one}")).ok();
    other.piton("checkpoint verify demo@one").ok();
    assert_eq!(other.piton("doctor demo --json").json(), json!([]));
}

#[test]
fn an_export_is_called_off_and_leaves_nothing() {
    let lab = Lab::new();
    let big = lab.file("big.raw", &vec![5; 256 * MIB as usize]);
    let mut vm = lab.home.boot(&format!("run demo --memory 64M --disk {big},id=big,overlay"));
    vm.ok("fill 1 1");
    lab.create("one");
    let out = dir(&lab, "out");
    let partial: PathBuf = lab.beside(".out.partial");
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGKILL] {
        let mut export = lab.home.command(["checkpoint", "export", "demo@one", &out]);
        let mut export = export.stderr(std::process::Stdio::null()).spawn().unwrap();
        until("the export to begin", || partial.join("disks/big.raw").exists().then_some(()));
        // However quick this machine is.
        send_signal(export.id() as i32, libc::SIGSTOP);
        // Meanwhile the checkpoint stays.
        lab.cp("delete demo@one --yes").fails(3, &["piton checkpoint export", "being read"]);
        lab.cp(&format!("export demo@one {out}")).fails(3, &["another export", "in progress"]);
        send_signal(export.id() as i32, signal);
        send_signal(export.id() as i32, libc::SIGCONT);
        let status = export.wait().unwrap();
        assert!(!Path::new(&out).exists(), "it was done already: {status}");
        if signal != libc::SIGKILL {
            assert_eq!(status.code(), Some(1));
            assert!(!partial.exists());
        }
    }
    // What was killed is in nobody's way.
    lab.cp(&format!("export demo@one {out} --format qcow2")).ok();
    assert!(!partial.exists());
    // An import, too.
    lab.cp(&format!("export demo@one {out}-raw")).ok();
    let other = Home::new();
    let import = other.command(["import", &format!("{out}-raw")]).stderr(std::process::Stdio::null()).spawn();
    let mut import = import.unwrap();
    until("the import to begin", || other.vm("demo").join("disks/big.raw").exists().then_some(()));
    send_signal(import.id() as i32, libc::SIGSTOP);
    send_signal(import.id() as i32, libc::SIGINT);
    send_signal(import.id() as i32, libc::SIGCONT);
    assert_eq!(import.wait().unwrap().code(), Some(1));
    other.is_empty();
    lab.cp("delete demo@one --yes").ok();
    assert_eq!(files(&lab.home.vm("demo").join("readers")), [""; 0].map(PathBuf::from));
    vm.power_off();
    lab.tidy();
}
