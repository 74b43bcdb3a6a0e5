//! What checkpoints refuse, and what they do when the file system fails them: the guest goes on,
//! nothing is left behind, and nothing damaged is ever applied.

mod ckpt_common;
mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_common::{Lab, files, unchanged};
use common::{Mount, is_root, skip};
use serde_json::{Value, json};

#[test]
fn names_that_cannot_be() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    for name in ["a@b", "a/b", "..", "../x", "", " a", "a ", "0123456789abcdef0123456789abcdef"] {
        lab.args(["checkpoint", "create", "demo", name]).fails(2, &["name"]);
        lab.args(["checkpoint", "rename", "demo@one", name]).fails(2, &["name"]);
    }
    lab.args(["checkpoint", "create", "demo", "a\nb"]).fails(2, &[]);
    let long = "x".repeat(65);
    lab.args(["checkpoint", "create", "demo", &long]).fails(2, &["65 characters"]);
    lab.cp("create demo one").fails(3, &["`one` already exists"]);
    assert_eq!(lab.names(), ["one"]);
    vm.power_off();
    lab.cp("create demo one").fails(3, &["`one` already exists"]);
    lab.cp("create demo a@b").fails(2, &["'@'"]);
    lab.args(["checkpoint", "create", "demo", "Ünïcode 名 \"quoted\""]).ok();
    assert_eq!(lab.names().len(), 2);
    lab.tidy();
}

#[test]
fn checkpoints_that_are_not_there() {
    let lab = Lab::new();
    for command in ["show", "verify", "apply --discard-current", "delete --yes", "note x"] {
        let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
        lab.cp(&format!("{verb} demo@one {rest}")).fails(3, &["no VM `demo`"]);
    }
    for verb in ["create demo one", "list demo", "revert demo --yes"] {
        lab.cp(verb).fails(3, &["no VM `demo`"]);
    }
    lab.piton("doctor demo").fails(3, &["no VM `demo`"]);
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    let before = lab.nodes();
    let refuse = || {
        for command in ["show", "verify", "apply --discard-current", "delete --yes", "note x", "rename x"] {
            let (verb, rest) = command.split_once(' ').unwrap_or((command, ""));
            lab.cp(&format!("{verb} demo@two {rest}")).fails(3, &["no checkpoint `two`"]);
            lab.cp(&format!("{verb} demo@onne {rest}")).fails(3, &["did you mean `one`"]);
            lab.cp(&format!("{verb} demo {rest}")).fails(2, &["VM@CHECKPOINT"]);
            lab.cp(&format!("{verb} demo@ {rest}")).fails(2, &["VM@CHECKPOINT"]);
        }
        // Without a terminal it is not asked.
        lab.cp("apply demo@one").fails(3, &["--save-current", "--discard-current"]);
        lab.cp("apply demo@one --save-current --discard-current").fails(2, &["cannot be used with"]);
        lab.cp("delete demo@one").fails(3, &["--yes"]);
        lab.cp("revert demo").fails(3, &["--yes"]);
        // A number that is less than an id.
        let id = lab.show("one")["id"].as_str().unwrap().to_owned();
        lab.cp(&format!("show demo@{}", &id[..3])).fails(3, &["no checkpoint"]);
    };
    refuse();
    vm.journal();
    vm.power_off();
    refuse();
    unchanged(&before, &lab.nodes());
    lab.tidy();
}

#[test]
fn an_ambiguous_id_is_refused() {
    let lab = Lab::new();
    lab.boot("--memory 32M").power_off();
    // Ids are random: two that begin alike have to be made.
    let one = lab.create("one");
    let id = one["id"].as_str().unwrap();
    let twin = format!("{}{}", &id[..16], if id.ends_with('0') { "1".repeat(16) } else { "0".repeat(16) });
    copy_checkpoint(&lab, id, &twin);
    lab.cp(&format!("show demo@{}", &id[..8])).fails(3, &["matches", "`one`", "`twin`"]);
    lab.cp(&format!("delete demo@{} --yes", &id[..8])).fails(3, &["matches"]);
    assert_eq!(lab.show(id)["name"], "one");
    assert_eq!(lab.show(&twin)["name"], "twin");
}

/// Makes a checkpoint with another id and the name `twin`.
fn copy_checkpoint(lab: &Lab, id: &str, twin: &str) {
    let dir = lab.vm("demo").join("checkpoints");
    std::fs::create_dir(dir.join(twin)).unwrap();
    let mut manifest: Value =
        serde_json::from_slice(&std::fs::read(dir.join(id).join("manifest.json")).unwrap()).unwrap();
    manifest["id"] = json!(twin);
    manifest["name"] = json!("twin");
    std::fs::write(dir.join(twin).join("manifest.json"), sealed(manifest)).unwrap();
}

/// A manifest with its checksum, as docs/format.md has it.
fn sealed(mut manifest: Value) -> Vec<u8> {
    let object = manifest.as_object_mut().unwrap();
    object.remove("crc");
    let crc = crc32(serde_json::to_string(&sorted(&manifest)).unwrap().as_bytes());
    manifest["crc"] = json!(crc);
    serde_json::to_vec_pretty(&manifest).unwrap()
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let map: BTreeMap<_, _> = map.iter().map(|(key, value)| (key.clone(), sorted(value))).collect();
            map.into_iter().collect()
        }
        Value::Array(list) => list.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_manifest_of_a_newer_format_is_refused() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    lab.create("two");
    let folder = lab.folder(&lab.show("one"));
    let path = folder.join("manifest.json");
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let original = std::fs::read(&path).unwrap();
    manifest["format"] = json!(99);
    std::fs::write(&path, sealed(manifest)).unwrap();
    let layers = lab.deltas("a").len();
    let list = lab.list();
    let told = list["damaged"][0].as_str().unwrap();
    assert!(told.contains("manifest.json") && told.contains("newer"), "{told}");
    assert_eq!(list["checkpoints"].as_array().unwrap().len(), 1);
    let id = folder.file_name().unwrap().to_str().unwrap();
    assert_ne!(lab.cp(&format!("apply demo@{id} --discard-current")).code, Some(0));
    vm.journal();
    // Nothing that it may need goes away meanwhile.
    lab.delete("two");
    vm.power_off();
    assert_eq!(lab.deltas("a").len(), layers);
    let doctor = lab.piton("doctor demo --repair");
    assert_ne!(doctor.code, Some(0), "{doctor}");
    assert!(doctor.stdout.contains("newer"), "{doctor}");
    std::fs::write(&path, original).unwrap();
    lab.verify("one");
    lab.apply("one", "--run");
    lab.attach("demo").journal();
    lab.stop();
    lab.sound();
}

fn flip(path: &Path, at: u64) {
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
}

/// The middle of the file's first stretch of data at or after `from`.
fn data(path: &Path, from: u64) -> u64 {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open(path).unwrap();
    // SAFETY: lseek touches no memory of this process.
    let start = unsafe { libc::lseek(file.as_raw_fd(), i64::try_from(from).unwrap(), libc::SEEK_DATA) };
    u64::try_from(start).expect("the file has data there") + 100
}

/// A VM that is off, its checkpoint `one` with a layer of its own for each disk, and Now elsewhere.
fn damaged_lab() -> Lab {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    vm.ok("fill 4 1");
    lab.create("zero");
    vm.ok("blk 0 write 0 512K 1");
    vm.ok("blk 1 write 0 512K 1");
    lab.create("one");
    vm.ok("blk 0 write 0 512K 2");
    vm.ok("blk 0 flush");
    vm.power_off();
    lab.tidy();
    lab
}

/// The file of the layer that `one` has of a disk.
fn layer(lab: &Lab, disk: &str) -> PathBuf {
    let id = lab.show("one")["disks"][disk]["layer"]["id"].as_str().unwrap().to_owned();
    let storage = piton::storage::Storage::os();
    let found = lab.deltas(disk).into_iter().find(|path| {
        piton::disk::layer::inspect(&storage, path).is_ok_and(|layer| layer.id.to_string() == id)
    });
    found.unwrap()
}

#[test]
fn damage_is_named_and_never_applied() {
    let lab = damaged_lab();
    let folder = lab.folder(&lab.show("one"));
    let (memory, state) = (folder.join("memory"), folder.join("state"));
    let manifest = folder.join("manifest.json");
    let delta = layer(&lab, "a");
    let crc = lab.show("one")["disks"]["a"]["layer"]["sums"].as_u64().unwrap();
    let sums = piton::disk::sums::path_of(&delta, crc.try_into().unwrap());
    let len = |path: &Path| std::fs::metadata(path).unwrap().len();
    // Where the data of a 4 MiB disk begins.
    let content = data(&delta, 1 << 20);
    // Of the two places of a bitmap page the newer one counts; the other is free to rot.
    let bytes = std::fs::read(&delta).unwrap();
    let generation = |slot: usize| u64::from_le_bytes(bytes[slot + 8..slot + 16].try_into().unwrap());
    let bitmap = if generation(8192) > generation(8192 + 4096) { 8192 } else { 8192 + 4096 };
    let places = [
        (&memory, data(&memory, 1 << 20)),
        (&memory, len(&memory) - 4000),
        (&memory, data(&memory, 32 << 20)),
        (&state, 3),
        (&state, len(&state) / 2),
        (&sums, 17),
        (&sums, len(&sums) - 3),
        // The header, and the bitmap.
        (&delta, 45),
        (&delta, bitmap as u64 + 40),
        (&delta, content),
        (&manifest, len(&manifest) / 2),
    ];
    let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
    let now = lab.definition()["now"].clone();
    for (path, at) in places {
        flip(path, at);
        let name = path.file_name().unwrap().to_str().unwrap();
        let what = format!("{name} flipped at {at}");
        let verify = lab.cp(&format!("verify demo@{id}"));
        assert!(matches!(verify.code, Some(1 | 3 | 4)), "{what}: {verify}");
        let path_is_named = |said: &str| said.contains(path.to_str().unwrap());
        assert!(path_is_named(&verify.stderr), "{what}: {verify}");
        let apply = lab.cp(&format!("apply demo@{id} --discard-current --run"));
        if path == &delta && at == content {
            // Of a disk every block is checked when it is first read: an error for the guest,
            // never wrong data.
            if apply.code == Some(0) {
                let mut console = lab.attach("demo");
                let read = console.ask("blk 0 read 0 512K");
                assert!(read.starts_with("err") && read.contains("reason=io"), "{what}: {read}");
                console.ok("blk 1 verify 0 512K 1");
                lab.stop();
                flip(path, at);
                assert_eq!(lab.definition()["now"]["parent"], id.as_str());
                lab.apply("one", "");
                lab.stop();
                continue;
            }
        }
        // A page of memory is checked when it is needed; then the VM ends, after the apply has told of
        // it or before.
        if path != &memory || apply.code == Some(0) || !path_is_named(&apply.stderr) {
            assert!(matches!(apply.code, Some(1 | 3 | 4)) || path == &memory, "{what}: {apply}");
            lab.ended();
            let log = std::fs::read_to_string(lab.vm("demo").join("piton.log")).unwrap_or_default();
            assert!(path_is_named(&apply.stderr) || path_is_named(&log), "{what}: {apply}\n{log}");
        }
        assert_eq!(lab.state(), "stopped", "{what}");
        if at != content {
            let parent = &lab.definition()["now"]["parent"];
            assert!(*parent == now["parent"] || *parent == id.as_str(), "{what}");
        }
        flip(path, at);
        lab.verify("one");
    }
    // Whole again, all of it works again.
    lab.apply("one", "--run");
    let mut console = lab.attach("demo");
    console.ok("blk 0 verify 0 512K 1");
    console.journal();
    lab.stop();
    lab.tidy();
}

#[test]
fn damage_is_never_applied_to_what_runs() {
    let lab = damaged_lab();
    let folder = lab.folder(&lab.show("one"));
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 512K 2");
    let layers = [lab.deltas("a"), lab.deltas("b")];
    // The last page of the memory image, and the state.
    let last = std::fs::metadata(folder.join("memory")).unwrap().len() - 4000;
    for (name, at) in [("memory", last), ("state", 3000)] {
        let path = folder.join(name);
        flip(&path, at);
        lab.cp("apply demo@one --discard-current --run").fails(1, &[path.to_str().unwrap()]);
        assert_eq!(lab.state(), "running");
        vm.ok("blk 0 verify 0 512K 2");
        let seq = vm.journal();
        vm.journal_goes_on(seq + 1);
        assert_eq!([lab.deltas("a"), lab.deltas("b")], layers, "it left a layer behind");
        flip(&path, at);
    }
    // A file that is not there.
    for name in ["memory", "state"] {
        let (path, away) = (folder.join(name), folder.join("away"));
        std::fs::rename(&path, &away).unwrap();
        lab.cp("apply demo@one --discard-current").fails(1, &[path.to_str().unwrap()]);
        lab.cp("verify demo@one").fails(1, &[path.to_str().unwrap()]);
        vm.journal();
        std::fs::rename(&away, &path).unwrap();
    }
    lab.apply("one", "--run");
    vm.ok("blk 0 verify 0 512K 1");
    vm.journal();
    // A page of memory is checked when it is needed. The guest never sees it: its VM ends.
    let path = folder.join("memory");
    flip(&path, data(&path, 1 << 20));
    let apply = lab.cp("apply demo@one --discard-current --run");
    let exit = vm.exit();
    assert_eq!(exit.code, Some(1), "{apply}");
    assert!(exit.stderr.contains(path.to_str().unwrap()), "{}", exit.stderr);
    assert!(exit.stderr.contains("a wrong checksum of the page at offset"), "{}", exit.stderr);
    flip(&path, data(&path, 1 << 20));
    lab.apply("one", "--run");
    lab.attach("demo").journal();
    lab.stop();
    lab.tidy();
}

#[test]
fn a_missing_layer_is_said() {
    let lab = damaged_lab();
    let path = layer(&lab, "a");
    let away = lab.beside("away");
    std::fs::rename(&path, &away).unwrap();
    lab.cp("verify demo@one").fails(1, &["layer"]);
    let apply = lab.cp("apply demo@one --discard-current");
    assert!(matches!(apply.code, Some(1 | 3 | 4)), "{apply}");
    assert!(apply.stderr.contains("layer"), "{apply}");
    assert_eq!(lab.state(), "stopped");
    // Now stands on it too.
    let start = lab.piton("start demo");
    assert!(matches!(start.code, Some(1 | 3 | 4)), "{start}");
    let before = files(&lab.vm("demo").join("disks"));
    let doctor = lab.piton("doctor demo --repair");
    assert_ne!(doctor.code, Some(0), "{doctor}");
    assert_eq!(files(&lab.vm("demo").join("disks")), before, "what others may need is not removed");
    std::fs::rename(&away, &path).unwrap();
    lab.verify("one");
    lab.apply("one", "--run");
    lab.attach("demo").ok("blk 0 verify 0 512K 1");
    lab.stop();
    lab.tidy();
}

#[test]
fn a_changed_base_is_noticed() {
    for disk in ["a", "b"] {
        let lab = damaged_lab();
        let image = PathBuf::from(if disk == "a" { &lab.a } else { &lab.b });
        flip(&image, 300);
        for name in ["zero", "one"] {
            let line = format!("apply demo@{name} --discard-current");
            lab.cp(&line).fails(3, &[image.to_str().unwrap(), "changed"]);
            assert_eq!(lab.state(), "stopped");
        }
        flip(&image, 300);
        // Touched is not changed.
        lab.apply("one", "--run");
        lab.attach("demo").ok("blk 0 verify 0 512K 1");
        lab.stop();
        // Cut short.
        std::fs::File::options().write(true).open(&image).unwrap().set_len(2 << 20).unwrap();
        let apply = lab.cp("apply demo@one --discard-current");
        assert!(matches!(apply.code, Some(1 | 3)), "{apply}");
        assert!(apply.stderr.contains(image.to_str().unwrap()), "{apply}");
    }
}

#[test]
fn damage_to_vm_json_is_said() {
    let lab = damaged_lab();
    let path = lab.vm("demo").join("vm.json");
    let original = std::fs::read(&path).unwrap();
    let text = String::from_utf8(original.clone()).unwrap();
    for changed in
        [text[..text.len() / 2].to_owned(), String::new(), text.replacen("\"format\": 1", "\"format\": 9", 1)]
    {
        std::fs::write(&path, &changed).unwrap();
        for line in ["start demo", "checkpoint apply demo@one --discard-current", "checkpoint list demo"] {
            lab.piton(line).fails(3, &["vm.json"]);
        }
        lab.cp("create demo two").fails(3, &["vm.json"]);
        lab.piton("doctor demo --repair").fails(3, &["vm.json"]);
    }
    std::fs::write(&path, original).unwrap();
    lab.tidy();
}

/// A flipped bit that leaves JSON that can be read: another layer is named than there is.
#[test]
fn a_flipped_bit_in_vm_json_is_noticed() {
    let lab = damaged_lab();
    let path = lab.vm("demo").join("vm.json");
    let original = std::fs::read_to_string(&path).unwrap();
    let top = lab.definition()["now"]["tops"]["a"].as_str().unwrap().to_owned();
    let other = format!("{}{}", if top.starts_with('0') { '1' } else { '0' }, &top[1..]);
    std::fs::write(&path, original.replace(&top, &other)).unwrap();
    let layers = files(&lab.vm("demo").join("disks"));
    let start = lab.piton("start demo");
    assert!(matches!(start.code, Some(1 | 3 | 4)), "{start}");
    assert_eq!(files(&lab.vm("demo").join("disks")), layers, "nothing is removed");
    // Going back to a checkpoint is a way out of it, or refused.
    std::fs::write(&path, original).unwrap();
    lab.tidy();
}

#[test]
fn a_full_disk_while_creating_leaves_nothing() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let mount = Mount::tmpfs("12m", &lab.root());
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("fill 2 1");
    lab.create("small");
    vm.ok("fill 32 5");
    let sum = vm.ok("sum");
    let used = |lab: &Lab| {
        let entries = [lab.vm("demo").join("disks"), lab.vm("demo").join("checkpoints"), lab.vm("demo")];
        entries.map(|dir| files(&dir))
    };
    let (before, nodes) = (used(&lab), lab.nodes());
    for n in 0..4 {
        let failed = lab.cp(&format!("create demo big{n}"));
        assert_eq!(failed.code, Some(1), "{failed}");
        let words = failed.stderr.to_lowercase();
        assert!(words.contains("space") || words.contains("full"), "{failed}");
        assert_eq!(used(&lab)[1], before[1], "a staging folder is left");
        assert_eq!(lab.names(), ["small"]);
        assert_eq!(lab.state(), "running");
        assert_eq!(vm.ok("sum"), sum);
        let seq = vm.journal();
        vm.journal_goes_on(seq + 1);
    }
    // Saving Now before an apply fails as well, and then nothing is applied.
    let failed = lab.cp("apply demo@small --save-current=big");
    assert_eq!(failed.code, Some(1), "{failed}");
    assert_eq!(lab.state(), "running");
    assert_eq!(vm.ok("sum"), sum);
    unchanged(&nodes, &lab.nodes());
    assert_eq!(used(&lab)[0], before[0], "a layer is left");
    assert_eq!(lab.parents()["Now"], "small");
    // With room again it works again.
    mount.resize("200m");
    lab.create("big");
    vm.ok("fill 4 1");
    lab.apply("big", "--run");
    assert_eq!(vm.ok("sum"), sum);
    vm.journal();
    vm.power_off();
    lab.tidy();
}

/// However little room there is: the checkpoint is made or it is not.
#[test]
fn little_room_leaves_nothing_half_made() {
    if !is_root() {
        return skip("a small tmpfs is mounted as root only");
    }
    let lab = Lab::new();
    let _mount = Mount::tmpfs("40m", &lab.root());
    let mut vm = lab.boot("--memory 32M");
    vm.ok("journal off");
    let ballast = lab.root().join("ballast");
    let mut made = Vec::new();
    for kib in [0, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 2048] {
        let _ = std::fs::remove_file(&ballast);
        // All but so much is taken.
        let df = |_: ()| {
            let path = std::ffi::CString::new(lab.root().to_str().unwrap()).unwrap();
            // SAFETY: an all-zero statvfs is valid, and the path ends with NUL.
            let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
            // SAFETY: both pointers are valid for the call.
            assert_eq!(unsafe { libc::statvfs(path.as_ptr(), &raw mut stat) }, 0);
            stat.f_bavail * stat.f_frsize
        };
        let free = df(());
        let file = std::fs::File::create(&ballast).unwrap();
        let size = free.saturating_sub(kib * 1024);
        let zeros = vec![1; usize::try_from(size).unwrap()];
        std::io::Write::write_all(&mut &file, &zeros).unwrap();
        drop(file);
        let name = format!("c{kib}");
        let done = lab.cp(&format!("create demo {name}"));
        let names = lab.names();
        match done.code {
            Some(0) => made.push(name),
            Some(1) => assert!(!names.contains(&name), "{done}"),
            _ => panic!("{done}"),
        }
        std::fs::remove_file(&ballast).unwrap();
        eprintln!("{kib} KiB left: {done}");
        vm.ok("blk 0 write 0 64K 1");
        vm.ok("blk 0 flush");
        vm.ok("blk 0 verify 0 64K 1");
        let left: Vec<_> = files(&lab.vm("demo").join("checkpoints"));
        assert_eq!(left.len(), made.len(), "with {kib} KiB: {left:?}");
        for name in &made {
            lab.verify(name);
        }
    }
    assert!(!made.is_empty() && made.len() < 20, "{made:?}");
    let nodes = lab.nodes();
    vm.power_off();
    lab.tidy();
    unchanged(&nodes, &lab.nodes());
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("blk 0 verify 0 64K 1");
    vm.power_off();
}

#[test]
fn a_folder_that_cannot_be_written_is_refused() {
    if !is_root() {
        return skip("a folder is mounted read-only as root only");
    }
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 32M");
    lab.create("one");
    let before = (lab.deltas("a"), lab.deltas("b"));
    let dir = lab.vm("demo").join("checkpoints");
    let mount = Mount::new(&["--bind", dir.to_str().unwrap()], &dir);
    let remounted = Command::new("mount").args(["-o", "remount,ro,bind"]).arg(&dir).status().unwrap();
    assert!(remounted.success());
    let failed = lab.cp("create demo two");
    assert!(matches!(failed.code, Some(1 | 3)), "{failed}");
    assert!(failed.stderr.contains(dir.to_str().unwrap()), "{failed}");
    for line in ["rename demo@one two", "note demo@one x", "delete demo@one --yes"] {
        let failed = lab.cp(line);
        assert!(matches!(failed.code, Some(1 | 3)), "{failed}");
    }
    assert_eq!(lab.parents(), BTreeMap::from([("one".into(), "-".into()), ("Now".into(), "one".into())]));
    assert_eq!((lab.deltas("a"), lab.deltas("b")), before);
    vm.journal();
    // What is there can still be gone back to.
    lab.apply("one", "--run");
    vm.journal();
    drop(mount);
    lab.create("two");
    vm.power_off();
    lab.tidy();
}

#[test]
fn two_commands_at_once_never_interleave() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M --cpus 2");
    vm.ok("fill 16 1");
    let at_once = |lines: &[String]| {
        let children: Vec<_> = lines
            .iter()
            .map(|line| {
                let mut command = lab.command(line.split_ascii_whitespace());
                command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            })
            .collect();
        let done = children.into_iter().map(|child| {
            let output = child.wait_with_output().unwrap();
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        });
        done.collect::<Vec<_>>()
    };
    // While it runs one waits for the other.
    let done = at_once(&(0..6).map(|n| format!("checkpoint create demo c{n}")).collect::<Vec<_>>());
    assert!(done.iter().all(|(code, _)| *code == Some(0)), "{done:?}");
    // They are one line of descent, in some order.
    let parents = lab.parents();
    let mut at = "Now".to_owned();
    for _ in 0..6 {
        at.clone_from(&parents[&at]);
    }
    assert_eq!(parents[&at], "-", "{parents:?}");
    // Of one name there is one.
    let same = vec!["checkpoint create demo same".to_owned(); 4];
    let done = at_once(&same);
    assert_eq!(done.iter().filter(|(code, _)| *code == Some(0)).count(), 1, "{done:?}");
    assert_eq!(done.iter().filter(|(code, _)| *code == Some(3)).count(), 3, "{done:?}");
    let mixed = [
        "checkpoint apply demo@c1 --discard-current --run",
        "checkpoint delete demo@c2 --yes",
        "checkpoint create demo mixed",
        "checkpoint apply demo@c3 --discard-current --run",
        "checkpoint rename demo@c4 four",
    ];
    let done = at_once(&mixed.map(str::to_owned));
    assert!(done.iter().all(|(code, _)| *code == Some(0)), "{done:?}");
    let nodes = lab.nodes();
    vm.ok("sum");
    vm.journal();
    vm.power_off();
    // While it is off the second is refused, or waits.
    let done = at_once(&[
        "checkpoint delete demo@c5 --yes".to_owned(),
        "checkpoint create demo off".to_owned(),
        "checkpoint delete demo@same --yes".to_owned(),
        "start demo".to_owned(),
    ]);
    for (code, said) in &done {
        let in_use = said.contains("is running") || said.contains("is working on");
        assert!(*code == Some(0) || *code == Some(3) && in_use, "{done:?}");
    }
    if lab.state() != "stopped" {
        lab.stop();
    }
    lab.tidy();
    unchanged(&nodes, &lab.nodes());
}

#[test]
fn a_damaged_checkpoint_can_be_deleted_by_its_id() {
    let lab = damaged_lab();
    lab.cp("create demo later").ok();
    let before = lab.nodes();
    let folder = lab.folder(&lab.show("one"));
    let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
    flip(&folder.join("manifest.json"), 40);
    let told = lab.cp("delete demo@one --yes");
    assert_eq!(told.code, Some(3), "{told}");
    assert!(told.stderr.contains(&id), "{told}");
    // The damage is told of, too, so this is more than one line.
    let refused = lab.cp(&format!("delete demo@{id} --subtree --yes"));
    assert_eq!(refused.code, Some(3), "{refused}");
    let said = lab.cp(&format!("delete demo@{} --yes --json", &id[..8])).json();
    assert_eq!(said["damaged"], json!(id));
    assert_eq!(
        lab.parents(),
        [("later", "-"), ("zero", "-"), ("Now", "later")].map(|(a, b)| (a.into(), b.into())).into()
    );
    // What vouched for the checksums of layers that are left is gone with it.
    let accept = || {
        let verified = lab.cp("verify demo@later");
        assert_eq!(verified.code, Some(1), "{verified}");
        assert!(verified.stderr.contains("no checksums; `piton doctor demo`"), "{verified}");
        assert_eq!(lab.piton("doctor demo").code, Some(1));
        lab.piton("doctor demo --repair --accept-unchecked").ok();
    };
    accept();
    unchanged(&before, &lab.nodes());
    lab.tidy();
    // The same in a VM that runs.
    let folder = lab.folder(&lab.show("zero"));
    let id = folder.file_name().unwrap().to_str().unwrap().to_owned();
    flip(&folder.join("manifest.json"), 40);
    lab.piton("start demo").ok();
    lab.cp(&format!("delete demo@{id} --yes")).ok();
    lab.at_rest();
    assert_eq!(lab.names(), ["later"]);
    lab.attach("demo").journal();
    lab.stop();
    accept();
    lab.tidy();
    unchanged(&before, &lab.nodes());
}
