//! What is shipped beside the program: the package, its units, and the helpers that they run.

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Finished, Home, Vm, skip, until};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn has(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok()
}

/// The program without what only debuggers want: it is packed several times.
fn program(home: &Home) -> PathBuf {
    let path = home.beside("piton");
    let stripped = Command::new("strip").arg("-o").arg(&path).arg(env!("CARGO_BIN_EXE_piton")).status();
    if !stripped.is_ok_and(|status| status.success()) {
        std::fs::copy(env!("CARGO_BIN_EXE_piton"), &path).unwrap();
    }
    path
}

fn script(name: &str, binary: &Path) -> Command {
    let mut command = Command::new(repository().join("scripts").join(name));
    command.arg("--binary").arg(binary).env("PITON_DEB_COMPRESS", "none");
    command
}

fn files(dir: &Path) -> BTreeSet<String> {
    if !dir.exists() {
        return BTreeSet::new();
    }
    let entries = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| !entry.file_type().is_dir());
    files.map(|entry| entry.path().strip_prefix(dir).unwrap().to_str().unwrap().to_owned()).collect()
}

#[test]
fn two_packages_are_equal_and_install() {
    if !has("dpkg-deb") {
        return skip("dpkg-deb is not installed");
    }
    let home = Home::new();
    let binary = program(&home);
    let [one, two] = ["one", "two"].map(|name| {
        let mut command = script("package", &binary);
        command.arg(home.beside(name)).env("SOURCE_DATE_EPOCH", "1000000000");
        if name == "two" {
            // Neither depends on whose shell it is.
            command.env("LC_ALL", "C.UTF-8").env("TZ", "Asia/Tokyo").env("HOME", home.beside("nowhere"));
        }
        PathBuf::from(Finished::run(command).ok().trim())
    });
    assert_ne!(one, two);
    assert!(std::fs::read(&one).unwrap() == std::fs::read(&two).unwrap(), "{one:?} and {two:?} differ");

    // Into a system of its own, and out again.
    let root = home.beside("root");
    std::fs::create_dir_all(root.join("var/lib/dpkg/updates")).unwrap();
    std::fs::create_dir_all(root.join("var/lib/dpkg/info")).unwrap();
    std::fs::write(root.join("var/lib/dpkg/status"), "").unwrap();
    let dpkg = |words: &[&str]| {
        let mut command = Command::new("dpkg");
        command.arg(format!("--root={}", root.display())).args(["--force-not-root", "--force-bad-path"]);
        command.args(["--force-script-chrootless", "--log=/dev/null"]).args(words);
        Finished::run(command).ok()
    };
    dpkg(&["--install", one.to_str().unwrap()]);
    let usr = root.join("usr");
    let installed = files(&usr);
    for file in [
        "bin/piton",
        "lib/piton/service-start",
        "lib/systemd/system/piton@.service",
        "lib/systemd/user/piton@.service",
        "lib/sysusers.d/piton.conf",
        "lib/udev/rules.d/60-piton.rules",
        "share/bash-completion/completions/piton",
        "share/doc/piton/changelog.gz",
        "share/doc/piton/metrics.md",
        "share/man/man1/piton.1.gz",
        "share/man/man1/piton-checkpoint-create.1.gz",
    ] {
        assert!(installed.contains(file), "{file} is missing: {installed:#?}");
    }
    let hidden = |file: &&String| file.contains("keep-network") || file.contains("piton-man.1");
    assert_eq!(installed.iter().find(hidden), None);
    let mut version = Command::new(usr.join("bin/piton"));
    version.arg("--version");
    assert!(Finished::run(version).ok().starts_with("piton "));
    let mut bash = Command::new("bash");
    let completions = usr.join("share/bash-completion/completions/piton");
    bash.arg("-c").arg(". \"$0\" && complete -p piton").arg(&completions);
    assert!(Finished::run(bash).ok().contains("piton"));
    dpkg(&["--remove", "piton"]);
    assert_eq!(files(&usr), BTreeSet::new());
}

#[test]
fn without_a_package_manager_it_is_installed_and_removed() {
    let home = Home::new();
    let binary = program(&home);
    let prefix = home.beside("prefix");
    let install = |words: &[&str]| {
        let mut command = Command::new(repository().join("scripts/install"));
        command.arg("--prefix").arg(&prefix).args(words);
        // As a user does, into the home.
        command.env("HOME", prefix.parent().unwrap());
        Finished::run(command)
    };
    assert_ne!(install(&["--uninstall"]).code, Some(0));
    let binary = binary.to_str().unwrap();
    install(&["--binary", binary]).ok();
    let installed = files(&prefix);
    assert!(installed.contains("bin/piton") && installed.contains("share/man/man1/piton.1.gz"));
    assert!(!installed.iter().any(|file| file.contains("systemd/system") || file.contains("udev")));
    let helper = std::fs::read_to_string(prefix.join("lib/piton/service-lib.sh")).unwrap();
    assert!(helper.contains(&format!("{}/bin/piton", prefix.display())), "{helper}");
    // Once more over it, with a file that is somebody else's.
    std::fs::write(prefix.join("share/man/man1/other.1"), "").unwrap();
    install(&["--binary", binary]).ok();
    assert_eq!(files(&prefix).len(), installed.len() + 1);
    install(&["--uninstall"]).ok();
    assert_eq!(files(&prefix), BTreeSet::from(["share/man/man1/other.1".to_owned()]));
}

/// What a group of systemd's filters stands for.
fn calls(word: &str, found: &mut BTreeSet<String>) {
    if !word.starts_with('@') {
        found.insert(word.to_owned());
        return;
    }
    let mut command = Command::new("systemd-analyze");
    command.args(["--no-pager", "syscall-filter", word]);
    let text = Finished::run(command).ok();
    for line in text.lines().skip(1).map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        calls(line, found);
    }
}

#[test]
fn the_units_are_sound_and_tight() {
    if !has("systemd-analyze") {
        return skip("systemd-analyze is not installed");
    }
    let home = Home::new();
    let system = repository().join("dist/systemd/system");
    for unit in ["piton@.service", "piton-prune.service", "piton-verify.service"] {
        let mut command = Command::new("systemd-analyze");
        command.args(["security", "--no-pager", "--offline=true", "--threshold=29"]).arg(system.join(unit));
        Finished::run(command).ok();
    }
    // With helpers that are there.
    for (kind, words) in [("system", [].as_slice()), ("user", ["--user"].as_slice())] {
        let (dir, run) = (home.beside(kind), home.beside(&format!("run-{kind}")));
        std::fs::create_dir(&dir).unwrap();
        std::fs::create_dir(&run).unwrap();
        for entry in std::fs::read_dir(repository().join("dist/systemd").join(kind)).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.replace("/usr/lib/piton", repository().join("dist").to_str().unwrap());
            let name = path.file_name().unwrap().to_str().unwrap().replace("piton@", "piton@demo");
            std::fs::write(dir.join(name), text).unwrap();
        }
        let mut command = Command::new("systemd-analyze");
        command.args(words).args(["verify", "--man=no", "--recursive-errors=no"]);
        command.args(files(&dir).iter().map(|name| dir.join(name)));
        command.env("XDG_RUNTIME_DIR", &run);
        Finished::run(command).ok();
    }
    // What piton's own filters allow, the units that run VMs do, too.
    let tables = std::fs::read_to_string(repository().join("src/seccomp/tables.rs")).unwrap();
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let used = tables.split("libc::SYS_").skip(1).map(|rest| rest.split(|c| !is_name(c)).next().unwrap());
    let used: BTreeSet<&str> = used.collect();
    for name in ["piton@.service", "piton-verify.service"] {
        let unit = std::fs::read_to_string(system.join(name)).unwrap();
        let mut allowed = BTreeSet::new();
        for words in unit.lines().filter_map(|line| line.strip_prefix("SystemCallFilter=")) {
            let mut named = BTreeSet::new();
            words.trim_start_matches('~').split(' ').for_each(|word| calls(word, &mut named));
            match words.starts_with('~') {
                true => allowed.retain(|call| !named.contains(call)),
                false => allowed.append(&mut named),
            }
        }
        calls("@default", &mut allowed);
        let missing: BTreeSet<&&str> = used.iter().filter(|call| !allowed.contains(**call)).collect();
        assert_eq!(missing, BTreeSet::new(), "{name} does not allow these");
    }
}

/// A helper of the service, with this program and home.
fn helper(home: &Home, name: &str, stop: &str) -> Command {
    let mut command = Command::new(repository().join("dist").join(name));
    home.equip(&mut command);
    command.arg("demo").env("PITON", env!("CARGO_BIN_EXE_piton")).env("PITON_STOP", stop);
    command
}

#[test]
fn a_service_that_is_stopped_with_a_checkpoint_goes_on_there_once() {
    let home = Home::new();
    let mut vm = home.boot("run demo --memory 32M");
    vm.power_off();
    let start = |home: &Home| Vm::spawn(helper(home, "service-start", ""));
    let run = |name: &str, stop: &str| Finished::run(helper(&home, name, stop)).ok();
    let checkpoints = || {
        let tree = home.piton("checkpoint list demo --json").json();
        tree["checkpoints"].as_array().unwrap().len()
    };
    let mut vm = start(&home);
    vm.ready();
    run("service-started", "");
    let past = vm.journal();
    run("service-stop", "checkpoint");
    vm.exit();
    assert!(home.vm("demo").join("service-stop").exists() && checkpoints() == 1);

    let mut vm = start(&home);
    until("the VM to go on", || {
        let running = home.piton("show demo --json").json()["state"] == "running";
        running.then_some(())
    });
    assert!(vm.journal_goes_on(past) >= past, "its guest did not boot anew");
    run("service-started", "");
    assert_eq!(checkpoints(), 0);
    // What came after that checkpoint is not given up for it.
    vm.signal(libc::SIGKILL);
    vm.exit();
    let mut vm = start(&home);
    vm.ready();
    // Nor what came of a run that was nobody's service.
    run("service-stop", "checkpoint");
    vm.exit();
    let mut own = home.boot("start demo --attach");
    own.power_off();
    let mut vm = start(&home);
    vm.ready();
    assert!(vm.stderr().contains("ran since it was saved"), "{}", vm.stderr());
    assert!(checkpoints() == 1 && !home.vm("demo").join("service-from").exists());
    // A stop with a shutdown leaves it to the signal.
    run("service-stop", "shutdown");
    assert!(vm.is_running());
    vm.signal(libc::SIGTERM);
    vm.exit();
    assert_eq!(home.piton("show demo --json").json()["last_run"]["how"], "off");
    assert!(checkpoints() == 1 && !home.vm("demo").join("service-stop").exists());
}

#[test]
fn all_vms_that_are_off_are_pruned() {
    let home = Home::new();
    for name in ["kept", "demo"] {
        home.piton(&format!("run {name} --memory 32M --detach")).ok();
        for checkpoint in ["one", "two", "three"] {
            home.piton(&format!("checkpoint create {name} {checkpoint}")).ok();
        }
        home.piton(&format!("kill {name}")).ok();
    }
    home.piton("set demo --keep last=1 --keep-all on").ok();
    let mut command = helper(&home, "prune-all", "");
    command.env("PITON", env!("CARGO_BIN_EXE_piton"));
    Finished::run(command).ok();
    let count = |vm: &str| {
        let tree = home.piton(&format!("checkpoint list {vm} --json")).json();
        tree["checkpoints"].as_array().unwrap().len()
    };
    assert_eq!((count("demo"), count("kept")), (1, 3));
}
