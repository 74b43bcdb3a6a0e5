//! `piton copy`: with programs of this host behind the bundled guest's port, so that the guest's files
//! are this host's, and with the bundled guest's own files.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Finished, Home, HostAgent, Vm};
use serde_json::json;

fn boot() -> (Home, Vm, HostAgent) {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 64M --vsock");
    let agent = HostAgent::start(&home, &mut vm);
    (home, vm, agent)
}

fn copy(home: &Home, from: &Path, to: &str) -> Finished {
    home.args(["copy", from.to_str().unwrap(), to])
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

/// A folder with what is hard to copy.
fn tree(at: &Path) {
    std::fs::create_dir_all(at.join("sub/empty")).unwrap();
    std::fs::write(at.join("plain"), "hello\n").unwrap();
    std::fs::write(at.join("line\nbreak"), "odd").unwrap();
    std::fs::write(at.join("-dash"), "").unwrap();
    std::fs::write(at.join("sub").join("n".repeat(200)), vec![7; 300_000]).unwrap();
    std::fs::set_permissions(at.join("plain"), PermissionsExt::from_mode(0o750)).unwrap();
    std::fs::set_permissions(at.join("sub/empty"), PermissionsExt::from_mode(0o500)).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", at.join("link")).unwrap();
}

#[track_caller]
fn same(one: &Path, other: &Path) {
    let told =
        std::process::Command::new("diff").args(["-r", "--no-dereference"]).args([one, other]).output();
    let told = told.unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stdout));
    for name in ["plain", "sub/empty"] {
        assert_eq!(mode(&one.join(name)), mode(&other.join(name)), "{name}");
    }
}

#[test]
fn there_and_back() {
    let (home, mut vm, _agent) = boot();
    let (source, guest, back) = (home.beside("source"), home.beside("guest"), home.beside("back"));
    for folder in [&guest, &back] {
        std::fs::create_dir(folder).unwrap();
    }
    tree(&source);
    let there = format!("demo:{}", guest.display());
    // Into a folder that is there, and as a new name.
    let told = copy(&home, &source, &there).ok();
    assert_eq!(told, "copied 4 files, 293.0 KiB\n");
    same(&source, &guest.join("source"));
    copy(&home, &source, &format!("{there}/other")).ok();
    same(&source, &guest.join("other"));
    let told = home.args(["copy", "--json", &format!("{there}/source/"), back.to_str().unwrap()]).json();
    assert_eq!(told, json!({"files": 4, "bytes": 300_009, "left_out": 0}));
    same(&source, &back.join("source"));
    home.args(["copy", &format!("{there}/source"), back.join("new").to_str().unwrap()]).ok();
    same(&source, &back.join("new"));

    // Single files, onto files and into folders.
    copy(&home, &source.join("plain"), &format!("{there}/one")).ok();
    copy(&home, &source.join("line\nbreak"), &format!("{there}/one")).ok();
    assert_eq!(std::fs::read_to_string(guest.join("one")).unwrap(), "odd");
    home.args(["copy", &format!("{there}/source/line\nbreak"), back.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(back.join("line\nbreak")).unwrap(), "odd");

    // A link that is named is followed, whatever comes behind it; one in a folder stays a link.
    for (to, name) in
        [("one", "to-file"), ("source", "to-folder"), ("nothing", "to-nothing"), ("/", "to-root")]
    {
        std::os::unix::fs::symlink(to, guest.join(name)).unwrap();
    }
    let out = |name: &str| home.args(["copy", &format!("{there}/{name}"), back.to_str().unwrap()]);
    out("to-file").ok();
    assert!(back.join("to-file").symlink_metadata().unwrap().is_file());
    assert_eq!(std::fs::read_to_string(back.join("to-file")).unwrap(), "odd");
    for name in ["to-folder/", "to-folder"] {
        out(name).ok();
        same(&source, &back.join("to-folder"));
    }
    out("to-nothing").fails(3, &["leads nowhere"]);
    out("to-root").fails(3, &["leads to /"]);

    // What is not there, or not what it should be.
    copy(&home, &home.beside("nothing"), &there).fails(3, &["there is no ", "nothing"]);
    copy(&home, &source, &format!("{there}/no/such")).fails(3, &["there is no folder", "in the guest"]);
    copy(&home, &source, &format!("{there}/one")).fails(3, &["is not a folder"]);
    copy(&home, &source, "demo:relative").fails(3, &["not absolute"]);
    let gone = format!("{there}/nothing");
    home.args(["copy", &gone, back.to_str().unwrap()]).fails(3, &["there is no ", "in the guest"]);
    home.args(["copy", &format!("{there}/one"), "/no/such/place"]).fails(3, &["there is no folder /no/such"]);
    home.args(["copy", &there, &there]).fails(2, &["both paths are in a guest"]);
    home.args(["copy", "/a", "/b"]).fails(2, &["VM:/PATH"]);
    home.args(["copy", "demo:/dev/full/..", "/tmp"]).fails(3, &["does not end in a name"]);
    // What is no file is not replaced by one.
    let fifo = guest.join("fifo");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    copy(&home, &source.join("plain"), &format!("{there}/fifo")).fails(3, &["neither a file nor a folder"]);
    home.args(["copy", &format!("{there}/one"), fifo.to_str().unwrap()]).fails(1, &["fifo"]);
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&std::fs::metadata(&fifo).unwrap().file_type()));
    vm.power_off();
}

/// A guest whose tar sends what was not asked for.
#[test]
fn names_that_lead_elsewhere_are_not_written() {
    let (home, mut vm, mut agent) = boot();
    let (bin, guest, back) = (home.beside("bin"), home.beside("guest"), home.beside("back"));
    for folder in [&bin, &guest, &back] {
        std::fs::create_dir(folder).unwrap();
    }
    std::fs::write(guest.join("thing"), "x").unwrap();
    let bad = home.beside("bad.tar");
    // Instead of tar, what the guest sends.
    std::fs::write(bin.join("tar"), format!("#!/bin/sh\ncat '{}'\n", bad.display())).unwrap();
    std::fs::set_permissions(bin.join("tar"), PermissionsExt::from_mode(0o755)).unwrap();
    agent.die();
    vm.ok("agent off");
    let _agent = HostAgent::start_with_path(&home, &mut vm, &bin);
    let outside = home.beside("outside");
    std::fs::create_dir(&outside).unwrap();
    let archive = |script: &str| {
        let place = home.beside("make");
        let _ = std::fs::remove_dir_all(&place);
        std::fs::create_dir(&place).unwrap();
        let script = script.replace("OUT", outside.to_str().unwrap()).replace("BAD", bad.to_str().unwrap());
        let told =
            std::process::Command::new("sh").args(["-c", &script]).current_dir(&place).output().unwrap();
        assert!(told.status.success(), "{told:?}");
    };
    let from = format!("demo:{}/thing", guest.display());
    for (script, word) in [
        // Above, elsewhere, and another name than was asked for.
        (
            "echo evil >f; tar -cPf BAD --transform 's,f,thing/../../outside/evil,' f",
            "outside of the destination",
        ),
        ("echo evil >f; tar -cPf BAD --transform 's,f,OUT/evil,' f", "outside of the destination"),
        ("echo evil >other; tar -cf BAD other", "outside of the destination"),
        // Through a link that came before.
        (
            "mkdir thing; ln -s OUT thing/door; tar -cf BAD thing; rm thing/door; mkdir thing/door; \
             echo evil >thing/door/evil; tar -rf BAD thing/door/evil",
            "door",
        ),
        ("ln -s OUT/evil thing; tar -cf BAD thing; rm thing; echo evil >thing; tar -rf BAD thing", "thing"),
        ("head -c 4096 /dev/urandom >BAD", "did not send an archive"),
        (
            "mkdir thing; head -c 9000 /dev/zero >thing/f; tar -cf - thing | head -c 6000 >BAD",
            "stopped too early",
        ),
    ] {
        archive(script);
        let told = home.args(["copy", &from, back.to_str().unwrap()]);
        assert!(told.code.is_some_and(|code| code != 0), "{script}: {told}");
        assert!(told.stderr.contains(word), "{script}: {told}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0, "{script}");
        let _ = std::fs::remove_dir_all(back.join("thing"));
        let _ = std::fs::remove_file(back.join("thing"));
        assert_eq!(std::fs::read_dir(&back).unwrap().count(), 0, "{script}");
    }
    // A full disk in the guest.
    std::fs::write(
        bin.join("tar"),
        "#!/bin/sh\ncat >/dev/null; echo 'tar: f: No space left on device' >&2; exit 2\n",
    )
    .unwrap();
    let file = home.file("f", b"text");
    let there = format!("demo:{}", guest.display());
    copy(&home, Path::new(&file), &there).fails(1, &["tar in the guest failed", "No space left on device"]);
    vm.power_off();
}

#[test]
fn the_bundled_guests_own_files() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 64M");
    vm.ok("agent on");
    let file = home.file("text", b"hello there\n");
    let file = Path::new(&file);
    assert_eq!(copy(&home, file, "demo:/greeting").ok(), "copied 1 file, 12 B\n");
    vm.send("cat /greeting");
    vm.expect("hello there");
    let back = home.beside("back");
    home.args(["copy", "demo:/greeting", back.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read_to_string(&back).unwrap(), "hello there\n");
    home.args(["copy", "demo:/nothing", back.to_str().unwrap()]).fails(3, &["there is no /nothing"]);
    copy(&home, &home.beside(""), "demo:/folder").fails(3, &["only single files"]);
    // It has 96 KiB for a file.
    let large = home.image("large", 200 << 10);
    let told = copy(&home, Path::new(&large), "demo:/large");
    assert_eq!(told.code, Some(1), "{told}");
    assert!(told.stderr.contains("No space left on device"), "{told}");
    vm.ok("agent forbids");
    copy(&home, file, "demo:/greeting")
        .fails(3, &["the guest does not allow reading and writing files", "guest-file-open"]);
    vm.power_off();
}
