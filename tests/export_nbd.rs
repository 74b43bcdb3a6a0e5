//! A checkpoint's disks over a socket, with QEMU's and libnbd's tools as the clients.

mod ckpt_common;
mod common;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use ckpt_common::{Lab, MIB, same};
use common::{Finished, Vm, send_signal, skip};
use serde_json::Value;

struct Served {
    child: Child,
    socket: PathBuf,
    /// What is printed for each disk.
    uris: Vec<String>,
}

impl Served {
    /// Serves until the test ends it; `disks` lines are waited for.
    fn start(lab: &Lab, checkpoint: &str, disks: usize, options: &str) -> Self {
        let socket = lab.beside("nbd.sock");
        let line = format!("checkpoint serve {checkpoint} --socket {} {options}", socket.display());
        let mut command = lab.home.command(line.split_ascii_whitespace());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let uris = lines.take(disks).collect::<Result<Vec<_>, _>>().unwrap();
        assert_eq!(uris.len(), disks, "{uris:?}");
        Self { child, socket, uris }
    }

    /// How it ended.
    fn end(mut self, signal: i32) -> Option<i32> {
        send_signal(self.child.id() as i32, signal);
        let code = self.child.wait().unwrap().code();
        assert!(!self.socket.exists(), "the socket is left");
        code
    }

    fn hostile(&self, bytes: &[u8]) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        // It may hang up before it has read all of it.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
}

fn has_qemu() -> bool {
    let found = Command::new("qemu-img").arg("--version").output().is_ok();
    if !found {
        skip("qemu-img is not there");
    }
    found
}

#[track_caller]
fn qemu_img(args: &[&str]) -> String {
    let mut command = Command::new("qemu-img");
    command.args(args);
    Finished::run(command).ok()
}

/// Its third disk is large, ends within a block, and holds 1 MiB of seed 1 at 8 MiB.
fn boot_with_large_disk() -> (Lab, Vm) {
    let lab = Lab::new();
    let big = lab.image("big.raw", 64 * MIB + 512);
    let mut vm = lab.boot(&format!("--memory 64M --disk {big},id=big"));
    vm.ok("blk 2 write 8M 1M 1");
    (lab, vm)
}

#[test]
fn qemu_reads_a_checkpoint_while_its_vm_runs() {
    if !has_qemu() {
        return;
    }
    let (lab, mut vm) = boot_with_large_disk();
    vm.ok("blk 0 write 0 256K 1");
    lab.create("zero");
    vm.ok("blk 2 write 32M 64K 2");
    vm.ok("blk 2 discard 8M 512K");
    lab.create("one");
    let served = Served::start(&lab, "demo@one", 3, "");
    assert_eq!(fs::metadata(&served.socket).unwrap().permissions().mode() & 0o777, 0o600);
    vm.ok("blk 2 write 8M 1M 3");
    let seq = vm.journal();
    let raw = |name: &str| lab.beside(&format!("{name}.copy")).to_str().unwrap().to_owned();
    for (name, uri) in ["a", "b", "big"].iter().zip(&served.uris) {
        assert!(uri.starts_with(&format!("nbd+unix:///{name}?socket=")), "{uri}");
        qemu_img(&["convert", "-f", "raw", "-O", "raw", uri, &raw(name)]);
        qemu_img(&["compare", "-f", "raw", "-F", "raw", uri, &raw(name)]);
    }
    let map: Value =
        serde_json::from_str(&qemu_img(&["map", "--output=json", "-f", "raw", &served.uris[2]])).unwrap();
    let data: Vec<(u64, u64)> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["data"] == true)
        .map(|extent| (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap()))
        .collect();
    assert!(
        data.contains(&(8 * MIB + (512 << 10), 512 << 10)) && data.contains(&(32 * MIB, 64 << 10)),
        "{map}"
    );
    let all: u64 = data.iter().map(|(_, length)| length).sum();
    assert!(all < 2 * MIB, "holes are told: {map}");
    // Nothing is written.
    let mut write = Command::new("qemu-io");
    write.args(["-f", "raw", "-c", "write 0 512", &served.uris[0]]);
    assert_ne!(Finished::run(write).code, Some(0));

    // Several at once, and some who do not know how to behave.
    served.hostile(b"GET / HTTP/1.1\r\n\r\n");
    served.hostile(&[0xff; 5000]);
    let go =
        [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes(), &6u32.to_be_bytes(), &[0; 6]].concat();
    served.hostile(&[&go[..], &[0x25, 0x60, 0x95, 0x13], &[0xff; 24]].concat());
    let readers: Vec<Child> = (0..4)
        .map(|n| {
            let copy = raw(&format!("many{n}"));
            Command::new("qemu-img")
                .args(["convert", "-f", "raw", "-O", "raw", &served.uris[2], &copy])
                .spawn()
                .unwrap()
        })
        .collect();
    for (n, mut reader) in readers.into_iter().enumerate() {
        assert!(reader.wait().unwrap().success());
        same("a copy", &fs::read(raw("big")).unwrap(), &fs::read(raw(&format!("many{n}"))).unwrap());
    }
    vm.journal_goes_on(seq);
    assert_eq!(served.end(libc::SIGTERM), Some(0));
    vm.power_off();
    let node = &lab.nodes()["one"];
    for name in ["a", "b", "big"] {
        // qemu-img rounds no size: the last sector is there, too.
        same(name, &node.disks[name], &fs::read(raw(name)).unwrap());
    }
    lab.tidy();
}

#[test]
fn libnbd_reads_a_checkpoint() {
    if Command::new("nbdcopy").arg("--version").output().is_err() {
        return skip("nbdcopy is not there");
    }
    let (lab, mut vm) = boot_with_large_disk();
    lab.create("one");
    vm.ok("blk 2 write 8M 1M 2");
    let served = Served::start(&lab, "demo@one", 3, "");
    let run = |tool: &str, args: &[&str]| {
        let mut command = Command::new(tool);
        command.args(args);
        Finished::run(command)
    };
    for (name, uri) in ["a", "b", "big"].iter().zip(&served.uris) {
        let info = run("nbdinfo", &["--json", uri]).json();
        let export = &info["exports"][0];
        let size = fs::metadata(lab.beside(&format!("{name}.raw"))).unwrap().len();
        assert_eq!((&export["export-size"], &export["is_read_only"]), (&size.into(), &true.into()), "{info}");
        assert_eq!(run("nbdinfo", &["--size", uri]).ok().trim(), size.to_string());
        assert_eq!(export["export-name"], **name, "{info}");
        let copy = lab.beside(&format!("{name}.nbdcopy"));
        run("nbdcopy", &[uri, copy.to_str().unwrap()]).ok();
        run("nbdcopy", &["--synchronous", "--connections=1", uri, copy.to_str().unwrap()]).ok();
    }
    // All that is served.
    let listed = run("nbdinfo", &["--list", "--json", &served.uris[0]]).json();
    let mut names: Vec<_> =
        listed["exports"].as_array().unwrap().iter().map(|one| &one["export-name"]).collect();
    names.sort_by_key(|name| name.as_str());
    assert_eq!(names, ["a", "b", "big"], "{listed}");
    let map = run("nbdinfo", &["--map", "--json", &served.uris[2]]).json();
    let holes = map.as_array().unwrap().iter().filter(|extent| extent["type"].as_u64().unwrap() & 1 == 1);
    let holes: u64 = holes.map(|extent| extent["length"].as_u64().unwrap()).sum();
    assert!(holes > 60 * MIB && holes < 64 * MIB, "{map}");
    // It is no disk of this server.
    let wrong = served.uris[0].replace("///a?", "///nothing?");
    assert_ne!(run("nbdinfo", &[&wrong]).code, Some(0));
    assert_eq!(served.end(libc::SIGTERM), Some(0));
    vm.power_off();
    let node = lab.node("one");
    for (name, content) in &node.disks {
        same(name, content, &fs::read(lab.beside(&format!("{name}.nbdcopy"))).unwrap());
    }
    lab.tidy();
}

#[test]
fn what_is_read_is_neither_deleted_nor_merged() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.ok("blk 0 write 0 1M 1");
    lab.create("one");
    vm.ok("blk 0 write 0 512K 2");
    lab.create("two");
    vm.ok("blk 0 write 0 256K 3");
    lab.create("three");
    let before = lab.nodes();
    let served = Served::start(&lab, "demo@two", 1, "--disk a");
    lab.cp("delete demo@two --yes").fails(3, &["piton checkpoint serve", "process", "being read"]);
    lab.cp("delete demo@one --subtree --yes").fails(3, &["piton checkpoint serve"]);
    // Another one may go; its layers stay as long as they are read through.
    lab.cp("delete demo@one --yes").ok();
    let layers = lab.deltas("a").len();
    vm.ok("blk 0 flush");
    vm.power_off();
    lab.ended();
    assert_eq!(lab.deltas("a").len(), layers);
    same("disk `a` of `two`", &before["two"].disks["a"], &lab.node("two").disks["a"]);
    let refused = lab.piton("doctor demo --repair");
    assert_eq!(refused.code, Some(3), "{refused}");
    assert!(refused.stderr.contains("piton checkpoint serve"), "{refused}");
    assert_eq!(served.end(libc::SIGINT), Some(0));
    lab.piton("doctor demo --repair").ok();
    assert_eq!(lab.deltas("a").len(), layers - 1, "merged at last");
    // Its memory image was merged, too, and is another file now; `node` verifies it.
    for (name, node) in lab.nodes() {
        for (disk, content) in &node.disks {
            same(&format!("disk `{disk}` of `{name}`"), &before[&name].disks[disk], content);
        }
    }
    lab.tidy();
    // Killed, a server is in nobody's way.
    let mut killed = Served::start(&lab, "demo@two", 2, "");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(killed.socket.exists());
    let again = Served::start(&lab, "demo@two", 2, "");
    assert_eq!(again.end(libc::SIGTERM), Some(0));
    lab.delete("two");
    lab.tidy();
}

#[test]
fn bad_input_is_told() {
    let lab = Lab::new();
    let mut vm = lab.boot("--memory 64M");
    vm.journal();
    lab.create("one");
    let socket = lab.beside("s");
    let serve = |checkpoint: &str, socket: &Path, more: &str| {
        lab.cp(&format!("serve {checkpoint} --socket {} {more}", socket.display()))
    };
    serve("demo@nothing", &socket, "").fails(3, &["nothing"]);
    serve("demo@one", &socket, "--disk zz").fails(3, &["no disk `zz`", "a, b"]);
    serve("demo@one", &lab.beside(&"x".repeat(100)), "").fails(3, &["107", "shorter"]);
    serve("demo@one", &lab.beside("no/where"), "").fails(1, &["no/where", "cannot set up"]);
    lab.cp("serve demo@one").fails(2, &["required"]);
    let mine = lab.file("mine", b"x");
    serve("demo@one", Path::new(&mine), "").fails(3, &["mine", "already exists"]);
    assert_eq!(fs::read(&mine).unwrap(), b"x");
    let served = Served::start(&lab, "demo@one", 2, "");
    serve("demo@one", &served.socket, "").fails(3, &["already exists"]);
    assert_eq!(served.end(libc::SIGTERM), Some(0));
    assert!(!socket.exists());
    vm.power_off();
    lab.tidy();
}
