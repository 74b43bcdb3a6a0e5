//! Files in checkpoints: found, printed and restored without starting anything.

#[path = "image_common/mod.rs"]
mod image_common;

mod common;

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Home, HostAgent};
use image_common::{Contents, Root, debugfs, gpt, write_disk};
use piton::folder;
use piton::progress::Progress;
use piton::search::{self, Wanted, Which};
use piton::storage::Storage;
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A VM that is off, and the disk that it has: what the test writes to it, the guest could have.
struct Machine {
    home: Home,
    base: String,
    /// The disk as it is now.
    image: String,
    /// Where its file system is.
    at: usize,
}

impl Machine {
    fn new(home: Home, base: String, at: usize) -> Self {
        let mut vm = home.args_vm(&[
            "run",
            "demo",
            "--memory",
            "32M",
            "--vsock",
            "--disk",
            &format!("{base},id=root,overlay"),
        ]);
        vm.power_off();
        let image = format!("{base}.now");
        std::fs::copy(&base, &image).unwrap();
        Self { home, base, image, at }
    }

    /// Changes files as a guest would, by debugfs, and puts what changed of the disk into its overlay.
    fn change(&self, commands: &[&str]) {
        let before = std::fs::read(&self.image).unwrap();
        let part = self.home.file("part", &before[self.at..]);
        debugfs(&part, commands);
        let after = [&before[..self.at], &std::fs::read(&part).unwrap()].concat();
        self.write_all(&after);
        std::fs::write(&self.image, &after).unwrap();
    }

    /// Puts what differs from the current state into the overlay.
    fn write_all(&self, after: &[u8]) {
        let after = self.home.file("after", after);
        write_disk(&self.home, "demo", "root", &self.base, &Contents::of(&after));
    }

    fn create(&self, name: &str) {
        self.home.piton(&format!("checkpoint create demo {name}")).ok();
    }

    fn find(&self, path: &str) -> Value {
        self.home.args(["checkpoint", "find", "demo", "--path", path, "--json"]).json()
    }
}

/// The names of the checkpoints, with `Now` behind them.
fn states(list: &Value) -> Vec<String> {
    let names =
        list["checkpoints"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
    names.chain(list["now"].as_bool().unwrap().then(|| "Now".to_owned())).collect()
}

fn sha256(bytes: &[u8]) -> String {
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), bytes).unwrap();
    let out = child.wait_with_output().unwrap().stdout;
    String::from_utf8(out).unwrap()[..64].to_owned()
}

/// A file of one MiB that is text nowhere.
fn blob() -> Vec<u8> {
    (0..MIB as u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// `one` as it was installed, `two` with another file changed, `three` with passwd changed, `four`
/// without it; Now as `four`.
fn machine() -> Machine {
    let home = Home::new();
    let root = Root::new(&home, "root");
    root.file("etc/passwd", b"root:x:0:0\n");
    root.file("etc/odd", b"\x1b[31mred\n\ttab\n");
    root.file("var/blob", &blob());
    root.link("etc/alias", "passwd");
    root.link("etc/far", "/../../../etc/passwd");
    root.link("etc/loop", "loop");
    let boot = Root::new(&home, "boot");
    boot.file("vmlinuz", b"kernel");
    let base = gpt(&home, "disk.raw", &[&root.ext4_with(16 << 20, &["-b", "4096"]), &boot.ext4()]);
    let machine = Machine::new(home, base, MIB);
    let other = machine.home.file("other", b"something else\n");
    let passwd = machine.home.file("passwd", b"root:x:0:0\nuser:x:1000:1000\n");
    machine.create("one");
    machine.change(&[&format!("write {other} /etc/other")]);
    machine.create("two");
    machine.change(&["rm /etc/passwd", &format!("write {passwd} /etc/passwd")]);
    machine.create("three");
    machine.change(&["rm /etc/passwd"]);
    machine.create("four");
    machine
}

#[test]
fn versions_of_a_file() {
    let machine = machine();
    let home = &machine.home;
    let found = machine.find("/etc/passwd");
    let versions = found["versions"].as_array().unwrap();
    let seen: Vec<_> = versions.iter().map(states).collect();
    assert_eq!(seen, [vec!["one", "two"], vec!["three"]], "{found:#}");
    assert_eq!(states(&found["missing"]), ["four", "Now"]);
    let (first, second) = (&versions[0], &versions[1]);
    assert_eq!((&first["bytes"], &second["bytes"]), (&11.into(), &28.into()));
    assert_eq!(first["sha256"], sha256(b"root:x:0:0\n"));
    assert_eq!(second["sha256"], sha256(b"root:x:0:0\nuser:x:1000:1000\n"));
    assert_eq!((&first["disk"], &first["partition"]), (&"root".into(), &1.into()));
    assert_eq!(found["unreadable"], json!([]));
    // Links lead to it, within the image; one in a circle leads nowhere.
    for link in ["/etc/alias", "/etc/far"] {
        assert_eq!(states(&machine.find(link)["versions"][1]), ["three"], "{link}");
    }
    let nowhere = machine.find("/etc/loop");
    assert_eq!((&nowhere["versions"], states(&nowhere["missing"]).len()), (&json!([]), 5));
    // Another partition; and only there.
    assert_eq!(machine.find("/vmlinuz")["versions"][0]["partition"], 2);
    let words = ["checkpoint", "find", "demo", "--path", "/vmlinuz", "--partition"];
    let first = home.args([&words[..], &["1", "--json"]].concat()).json();
    assert_eq!(states(&first["missing"]).len(), 5, "{first:#}");
    let ninth = home.args([&words[..], &["9", "--json"]].concat()).json();
    assert_eq!(ninth["notes"], json!(["disk `root` has no partition 9"]));
    // For people.
    let text = home.piton("checkpoint find demo --path /etc/passwd").ok();
    for part in
        ["/etc/passwd on partition 1 of disk `root`", "  one, two\n", "  three\n", "not there: four, Now\n"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    home.piton("checkpoint find demo --path /etc").fails(3, &["/etc is a folder"]);
    home.piton("checkpoint find demo --path etc").fails(2, &["begins with /"]);
    // A disk that is not there is told of each.
    let none = home.piton("checkpoint find demo --path /etc/passwd --disk data");
    assert_eq!((none.code, none.stderr.lines().count()), (Some(1), 5), "{none}");
}

#[test]
fn a_file_of_a_checkpoint_is_printed_and_restored() {
    let machine = machine();
    let home = &machine.home;
    let cat = |file: &str| home.args(["checkpoint", "cat", file]);
    assert_eq!(cat("demo@three:/etc/passwd").ok(), "root:x:0:0\nuser:x:1000:1000\n");
    assert_eq!(cat("demo@one:/etc/alias").ok(), "root:x:0:0\n");
    cat("demo@four:/etc/passwd").fails(3, &["/etc/passwd does not exist in checkpoint `four`"]);
    cat("demo:/etc/passwd").fails(3, &["does not exist in the current state"]);
    assert_eq!(cat("demo:/etc/other").ok(), "something else\n");
    cat("demo@one:/etc").fails(3, &["/etc is a folder"]);
    cat("demo@one:etc/passwd").fails(2, &["VM@CHECKPOINT:/PATH"]);
    cat("demo@five:/etc/passwd").fails(3, &["five"]);
    assert_eq!(home.args(["checkpoint", "cat", "demo@one:/etc/odd", "--json"]).code, Some(2));
    // Bytes as they are; and nobody has to take all of them.
    let read = |most: usize| {
        let mut command = home.command(["checkpoint", "cat", "demo@two:/var/blob"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut bytes = vec![0; most];
        let mut out = child.stdout.take().unwrap();
        out.read_exact(&mut bytes).unwrap();
        let rest = out.read(&mut [0]).unwrap();
        drop(out);
        let ended = child.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
        (bytes, rest)
    };
    assert_eq!(read(MIB), (blob(), 0));
    assert_eq!(read(10).0, blob()[..10]);
    // A terminal gets nothing that it would obey.
    let mut words = Command::new("script");
    words.args([
        "-qec",
        &format!("{} checkpoint cat demo@one:/etc/odd", env!("CARGO_BIN_EXE_piton")),
        "/dev/null",
    ]);
    home.equip(&mut words);
    let shown = common::Finished::run(words).ok();
    assert!(shown.contains(r"\u{1b}[31mred") && !shown.contains('\x1b'), "{shown:?}");

    // Restored to the host, once.
    let out = home.beside("out");
    std::fs::create_dir(&out).unwrap();
    let restore = |more: &[&str]| {
        let mut command =
            home.command([&["checkpoint", "restore-file", "demo@three:/etc/passwd"], more].concat());
        command.current_dir(&out);
        common::Finished::run(command)
    };
    let told = restore(&[]).ok();
    let path = out.join("passwd");
    assert_eq!(told, format!("/etc/passwd restored to {} (28 B)\n", path.display()));
    assert_eq!(std::fs::read(&path).unwrap(), b"root:x:0:0\nuser:x:1000:1000\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    restore(&[]).fails(3, &["out/passwd already exists", "--force"]);
    std::fs::write(&path, "mine").unwrap();
    restore(&["new"]).ok();
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    assert_eq!(restore(&["--force", ".", "--json"]).json(), json!({ "path": path, "bytes": 28 }));
    restore(&["/nowhere/at/all"]).fails(3, &["/nowhere/at does not exist"]);
    let mut names: Vec<_> =
        std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["new", "passwd"]);
}

#[test]
fn a_running_vm_keeps_its_current_state_to_itself_and_takes_files() {
    let machine = machine();
    let home = &machine.home;
    let mut vm = home.args_vm(&["start", "demo", "--attach"]);
    vm.ready();
    let found = machine.find("/etc/other");
    assert_eq!(states(&found["versions"][0]), ["two", "three", "four"]);
    assert!(found["notes"][0].as_str().unwrap().contains("--live"), "{found:#}");
    home.args(["checkpoint", "cat", "demo:/etc/other"]).fails(3, &["running or paused", "piton copy"]);
    let live = home.piton("checkpoint find demo --path /etc/other --live --json").json();
    assert_eq!(states(&live["versions"][0]), ["two", "three", "four", "Now"]);
    assert_eq!(home.piton("checkpoint list demo --json").json()["checkpoints"].as_array().unwrap().len(), 4);
    // Into the guest, whose files are this host's here.
    let agent = HostAgent::start(home, &mut vm);
    let guest = home.beside("guest");
    std::fs::create_dir(&guest).unwrap();
    let to = format!("demo:{}", guest.display());
    home.args(["checkpoint", "restore-file", "demo@three:/etc/passwd", &to]).ok();
    assert_eq!(std::fs::read(guest.join("passwd")).unwrap(), b"root:x:0:0\nuser:x:1000:1000\n");
    home.args(["checkpoint", "restore-file", "demo@four:/etc/passwd", &to]).fails(3, &["does not exist"]);
    drop(agent);
    vm.power_off();
}

/// However many checkpoints there are, what did not change is read once.
#[test]
fn unchanged_contents_are_not_read_again() {
    let machine = machine();
    for n in 0..12 {
        let file = machine.home.file("small", format!("{n}\n").as_bytes());
        machine.change(&[&format!("write {file} /var/small{n}")]);
        machine.create(&format!("more{n}"));
    }
    let home = folder::Home::at(machine.home.root(), Storage::os());
    let folder = home.folder(&"demo".parse().unwrap());
    let wanted = Wanted { path: "/var/blob".into(), disk: None, partition: None };
    let progress = Progress::default();
    let mut shelf = search::open(&folder, &Which::All(None), "test").unwrap();
    let found = search::find(&mut shelf, &wanted, &progress).unwrap();
    assert_eq!((found.versions.len(), found.versions[0].states.len()), (1, 16));
    assert_eq!(progress.snapshot().done, MIB as u64);
    drop(shelf);
    // Its blocks were written, and its times say nothing of it: it is read.
    let mut image = std::fs::read(&machine.image).unwrap();
    let head = &blob()[..64];
    let start = image.windows(64).position(|part| part == head).unwrap();
    image[start] ^= 1;
    machine.write_all(&image);
    machine.create("rotten");
    let found = machine.find("/var/blob");
    assert_eq!(states(&found["versions"][1]), ["rotten", "Now"], "{found:#}");
}

/// A file system that can be edited byte by byte: its metadata have no checksums.
fn plain_machine() -> Machine {
    let home = Home::new();
    let root = Root::new(&home, "root");
    root.file("srv/site/index", b"hello\n");
    root.file("srv/site/deep/er/page", &blob());
    root.file("srv/site/odd", b"odd\n");
    root.file("srv/site/pipe", b"");
    root.file("srv/site/two", b"two\n");
    root.link("srv/site/here", "index");
    root.link("srv/site/out", "/etc/shadow");
    let image = root.ext4_with(16 << 20, &["-b", "4096", "-O", "^metadata_csum,^dir_index"]);
    let base = gpt(&home, "disk.raw", &[&image]);
    Machine::new(home, base, MIB)
}

#[test]
fn a_folder_of_a_checkpoint_is_restored() {
    let machine = plain_machine();
    let home = &machine.home;
    let holes = home.file("holes", b"");
    std::fs::File::options().write(true).open(&holes).unwrap().set_len(8 << 20).unwrap();
    machine.change(&[
        "set_inode_field /srv/site/pipe mode 010644",
        "set_inode_field /srv/site/odd mode 0104711",
        "set_inode_field /srv/site/deep mode 040500",
        &format!("write {holes} /srv/site/holes"),
    ]);
    machine.create("one");
    let out = home.beside("out");
    std::fs::create_dir(&out).unwrap();
    let restore = |of: &str, more: &[&str]| {
        let mut command = home.command([&["checkpoint", "restore-file", of], more].concat());
        command.current_dir(&out);
        common::Finished::run(command)
    };
    let restored = restore("demo@one:/srv/site", &[]);
    let site = out.join("site");
    let told = format!("/srv/site restored to {} (5 files, 9 MiB)\n", site.display());
    assert_eq!(restored.stdout, told, "{restored}");
    assert!(restored.stderr.contains("skipped 1 devices"), "{restored}");
    let mode = |name: &str| std::fs::metadata(site.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("odd"), mode("deep"), mode("index")), (0o711, 0o500, 0o644));
    assert_eq!(std::fs::read(site.join("deep/er/page")).unwrap(), blob());
    assert_eq!(std::fs::read_link(site.join("out")).unwrap(), Path::new("/etc/shadow"));
    let sparse = std::fs::metadata(site.join("holes")).unwrap();
    assert_eq!(sparse.len(), 8 << 20);
    assert!(std::os::unix::fs::MetadataExt::blocks(&sparse) < 64, "{sparse:?}");
    let names = |dir: &Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names(&site), ["deep", "here", "holes", "index", "odd", "out", "two"]);
    // It replaces nothing, and goes where it was told to.
    restore("demo@one:/srv/site", &["--force"]).fails(3, &["out/site already exists"]);
    let told = restore("demo@one:/srv/site/deep", &["copy", "--json"]).json();
    assert_eq!(told, json!({"path": out.join("copy"), "files": 1, "bytes": MIB, "left_out": 0}));
    restore("demo@one:/srv/site", &["/nowhere/at/all"]).fails(3, &["/nowhere/at does not exist"]);
    restore("demo@one:/", &["root"]).ok();
    home.args(["checkpoint", "cat", "demo@one:/srv/site"]).fails(3, &["/srv/site is a folder"]);

    // Into a guest, whose files are this host's here.
    let mut vm = home.args_vm(&["start", "demo", "--attach"]);
    vm.ready();
    let agent = HostAgent::start(home, &mut vm);
    let guest = home.beside("guest");
    std::fs::create_dir(&guest).unwrap();
    let to = format!("demo:{}", guest.display());
    let told = home.args(["checkpoint", "restore-file", "demo@one:/srv/site", &to]).ok();
    assert!(told.contains("(5 files, 9 MiB)"), "{told}");
    assert_eq!(std::fs::read(guest.join("site/deep/er/page")).unwrap(), blob());
    assert_eq!(std::fs::read_link(guest.join("site/out")).unwrap(), Path::new("/etc/shadow"));
    drop(agent);
    vm.power_off();
    std::fs::remove_dir_all(&out).unwrap();
    std::fs::create_dir(&out).unwrap();

    // What a guest can do to it: nothing is left of what is refused.
    let image = std::fs::read(&machine.image).unwrap();
    let edited = |from: &[u8], to: &[u8]| {
        let mut image = image.clone();
        let at = image.windows(from.len()).position(|part| part == from).unwrap();
        image[at..at + to.len()].copy_from_slice(to);
        machine.write_all(&image);
    };
    // An entry: length of the name, its type, the name.
    for (to, why) in
        [(b"\x03\x01two", "it has `two` twice"), (b"\x03\x01../", "separator"), (b"\x03\x01/et", "separator")]
    {
        edited(b"\x03\x01odd", to);
        restore("demo:/srv/site", &[]).fails(1, &[why]);
        assert!(names(&out).is_empty(), "{why}: {:?}", names(&out));
    }
    machine.write_all(&image);
    machine.change(&["ln /srv/site /srv/site/deep/er/again"]);
    restore("demo:/srv/site", &[]).fails(1, &["nested more than 256 deep"]);
    assert!(names(&out).is_empty(), "{:?}", names(&out));
}

#[test]
fn files_that_differ_are_listed() {
    let machine = machine();
    let home = &machine.home;
    machine.change(&[
        "set_inode_field /etc/odd atime 20300101",
        "mkdir /srv",
        "mkdir /srv/deep",
        "symlink /srv/deep/link /etc",
        "set_inode_field /var mode 040700",
    ]);
    let diff = |more: &str| home.piton(&format!("checkpoint diff {more} --files"));
    let found = diff("demo@one demo@three --json").json();
    let changes = found["files"]["changes"].as_array().unwrap();
    let seen: Vec<_> = changes
        .iter()
        .map(|one| {
            format!(
                "{} {} {}",
                one["change"].as_str().unwrap(),
                one["type"].as_str().unwrap(),
                one["path"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(seen, ["added file /etc/other", "changed file /etc/passwd"], "{found:#}");
    assert_eq!((&changes[1]["before"], &changes[1]["after"]), (&11.into(), &28.into()));
    assert_eq!((&changes[1]["disk"], &changes[1]["partition"]), (&"root".into(), &1.into()));
    assert_eq!((&found["files"]["truncated"], &found["files"]["notes"]), (&false.into(), &json!([])));
    // The other way round, for people; what was only read is the same.
    let text = diff("demo@three demo").ok();
    for part in [
        "files on partition 1 of disk `root`:\n  - /etc/passwd  28 B\n",
        "  + /srv/\n  + /srv/deep/\n  + /srv/deep/link\n  ~ /var/\n",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(!text.contains("/etc/odd") && !text.contains("partition 2"), "{text}");
    assert!(diff("demo@one demo@one").ok().contains("files: no difference"));
    assert_eq!(home.piton("checkpoint diff demo@one demo@three --json").json()["files"], Value::Null);
    // Of a VM that runs.
    let mut vm = home.args_vm(&["start", "demo", "--attach"]);
    vm.ready();
    let live = diff("demo@four demo --live --json").json();
    assert_eq!(live["files"]["changes"].as_array().unwrap().len(), 4, "{live:#}");
    vm.power_off();
}

/// How long `find` takes over 50 checkpoints of a disk of 2 GiB, by hand: PITON_MEASURE is the piton.
#[test]
#[ignore = "a measurement, docs/search.md"]
fn find_in_fifty_checkpoints() {
    let home = Home::new();
    let root = Root::new(&home, "root");
    root.file("etc/passwd", b"root:x:0:0\n");
    root.file("var/blob", &blob());
    for n in 0..2000 {
        root.file(&format!("usr/{}/file{n}", n % 50), &[n as u8; 5000]);
    }
    let base = root.ext4_with(2 << 30, &["-b", "4096"]);
    let disk = format!("{base},id=root,overlay");
    home.args_vm(&["run", "demo", "--memory", "32M", "--disk", &disk]).power_off();
    let image = home.beside("now").display().to_string();
    let mut copy = Command::new("cp");
    copy.args(["--sparse=always", &base, &image]);
    common::Finished::run(copy).ok();
    for n in 0..50 {
        let file = home.file("new", format!("{n}\n").repeat(20_000).as_bytes());
        debugfs(&image, &[&format!("write {file} /var/new{n}")]);
        if n % 10 == 9 {
            debugfs(&image, &["rm /etc/passwd", &format!("write {file} /etc/passwd")]);
        }
        write_disk(&home, "demo", "root", &base, &Contents::of(&image));
        home.piton(&format!("checkpoint create demo cp{n}")).ok();
    }
    let piton = std::env::var("PITON_MEASURE").unwrap_or_else(|_| env!("CARGO_BIN_EXE_piton").into());
    for path in ["/etc/passwd", "/var/blob", "/var/new25", "/none"] {
        let mut times = Vec::new();
        for _ in 0..5 {
            let mut command = Command::new(&piton);
            command.args(["checkpoint", "find", "demo", "--path", path, "--json"]);
            home.equip(&mut command);
            let begun = std::time::Instant::now();
            let found = common::Finished::run(command).json();
            times.push(begun.elapsed().as_millis());
            assert_eq!(
                states(&found["missing"]).len()
                    + found["versions"]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|one| states(one).len())
                        .sum::<usize>(),
                51
            );
        }
        println!("{path}: {times:?} ms");
    }
}
