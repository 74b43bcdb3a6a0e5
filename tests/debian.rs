//! A stock Debian image as clouds use it, booted with the kernel in it, and a day's work with it. Only
//! where stock Linux can run, see tests/linux.rs. One guest for much: a boot takes minutes there.

mod common;

use std::process::Stdio;

use common::{Finished, Home, Vm, debian_image, is_long, until};

/// A pair of keys; the path of the private one.
fn keys(home: &Home) -> String {
    let path = home.beside("id");
    let told = std::process::Command::new("ssh-keygen")
        .args(["-q", "-t", "ed25519", "-N", "", "-C", "me@here", "-f", path.to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(told.status.success(), "{told:?}");
    path.to_str().unwrap().to_owned()
}

fn boot(home: &Home, key: &str, more: &[&str]) -> Option<Vm> {
    // Before the image: it may not even be built where this is not wanted.
    let image = is_long().then(debian_image)??;
    let mut words =
        vec!["run", "demo", "--memory", "512M", "--image", image.to_str().unwrap(), "--ssh-key", key];
    words.extend(more);
    Some(home.args_vm(&words))
}

fn exec(home: &Home, script: &str) -> Finished {
    home.args(["exec", "demo", "--", "sh", "-c", script])
}

/// Up to its agent; what the console has of its login is mixed with what else is said there. `former`
/// is the boot before, if there was one. Returns which boot it is.
fn is_up(home: &Home, former: Option<&str>) -> String {
    until("the guest's agent", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let told = exec(home, "cat /proc/sys/kernel/random/boot_id");
        (told.code == Some(0) && Some(told.stdout.as_str()) != former).then_some(told.stdout)
    })
}

fn cloud_init_did_as_told(home: &Home) {
    let status = until("cloud-init to end", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let told = exec(home, "cloud-init status --long").stdout;
        (told.contains("status: done") || told.contains("status: error")).then_some(told)
    });
    let log = exec(home, "grep -h WARNING /var/log/cloud-init.log").stdout;
    // The image lacks a locale; all else is well.
    assert!(!log.contains("cloud config part"), "{status}{log}");
    assert_eq!(exec(home, "hostname").ok(), "web\n");
    let keys = exec(home, "cat /home/debian/.ssh/authorized_keys").ok();
    assert!(keys.contains("me@here"), "{keys}");
    assert_eq!(exec(home, "cat /sys/block/vda/size").ok().trim(), (3u64 << 21).to_string());
}

fn commands_and_copies(home: &Home) {
    let told = exec(home, "echo out; echo err >&2; exit 7");
    assert_eq!((told.code, told.stdout.as_str(), told.stderr.as_str()), (Some(7), "out\n", "err\n"));
    let told =
        home.args(["exec", "demo", "--user", "debian", "--workdir", "/tmp", "--", "sh", "-c", "id -un; pwd"]);
    assert_eq!(told.ok(), "debian\n/tmp\n");
    let here = home.beside("site");
    std::fs::create_dir(&here).unwrap();
    std::fs::write(here.join("page"), vec![b'x'; 300_000]).unwrap();
    home.args(["copy", here.to_str().unwrap(), "demo:/srv/"]).ok();
    assert_eq!(exec(home, "stat -c %s /srv/site/page").ok(), "300000\n");
    home.args(["copy", "demo:/usr/lib/os-release", here.to_str().unwrap()]).ok();
    assert!(std::fs::read_to_string(here.join("os-release")).unwrap().contains("bookworm"));
}

fn ssh(home: &Home, key: &str, command: &str) -> Finished {
    home.args(["ssh", "demo", "-l", "debian", "-i", key, "--", command])
}

/// The next kernel is another file, and the former one is gone, as after an upgrade.
const UPGRADE: &str = "set -e; now=$(uname -r); next=$(echo $now | sed 's/^\\([0-9.]*\\)-[0-9]*/\\1-9999/'); \
    mv /boot/vmlinuz-$now /boot/vmlinuz-$next; mv /boot/initrd.img-$now /boot/initrd.img-$next; \
    sed -i 's/^GRUB_CMDLINE_LINUX=\"/&upgraded=1 /' /etc/default/grub; update-grub; sync; echo $next";

#[test]
fn an_image_boots_and_is_worked_with() {
    let home = Home::new();
    let key = keys(&home);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let forward = format!("127.0.0.1:{port}:22");
    let public = format!("{key}.pub");
    let more = ["--disk-size", "3G", "--hostname", "web", "--cmdline-extra", "quiet", "--forward", &forward];
    let Some(mut vm) = boot(&home, &public, &more) else { return };
    let first = is_up(&home, None);
    cloud_init_did_as_told(&home);
    commands_and_copies(&home);
    until("sshd", || exec(&home, "systemctl is-active ssh").stdout.starts_with("active").then_some(()));
    assert_eq!(ssh(&home, &key, "hostname").ok(), "web\n");
    assert_eq!(ssh(&home, &key, "exit 5").code, Some(5));

    // Its file systems are frozen by the agent.
    home.piton("checkpoint create demo before").ok();
    assert_eq!(home.manifest("demo", "before")["kind"], "production");
    let next = exec(&home, UPGRADE).ok();
    let next = next.lines().last().unwrap();
    assert!(next.contains("-9999"), "{next}");
    exec(&home, "systemctl reboot");
    is_up(&home, Some(&first));
    let line = exec(&home, "cat /proc/cmdline").ok();
    assert!(line.contains("upgraded=1") && line.contains("quiet"), "{line}");

    // One without memory is booted, with the kernel that was on the disk then.
    home.piton("checkpoint apply demo@before --discard-current --run").ok();
    vm.exits_well();
    is_up(&home, Some(&first));
    let line = exec(&home, "cat /proc/cmdline; ls /boot").ok();
    assert!(!line.contains("upgraded=1") && !line.contains("-9999"), "{line}");
    home.piton("stop demo --timeout 600").ok();
    home.ended("demo");
}

/// Waits for longer than a single command may take.
fn comes(home: &Home, what: &str) {
    until("the VM", || (home.piton("show demo").code == Some(0)).then_some(()));
    let wait = || home.args(["wait", "demo", "--for", what, "--timeout", "150"]);
    assert!((0..6).any(|_| wait().code == Some(0)), "waited in vain for {what}");
}

/// What an agent's commands print, and that they succeed.
fn inside(home: &Home, vm: &str, script: &str) -> String {
    home.args(["exec", vm, "--", "sh", "-c", script]).ok()
}

#[test]
fn a_clone_gets_an_identity_of_its_own() {
    let home = Home::new();
    // A busy host is no reason for it to give up on its own console.
    let cmdline = "quiet systemd.default_timeout_start_sec=900";
    let key = format!("{}.pub", keys(&home));
    let Some(_vm) = boot(&home, &key, &["--hostname", "web", "--cmdline-extra", cmdline, "--net", "user"])
    else {
        return;
    };
    comes(&home, "agent");
    // Keys are made, and the network is there.
    comes(&home, "exec=test -e /var/lib/cloud/instance/boot-finished");
    const ALL: &str = "hostname; cat /etc/machine-id; cat /etc/ssh/ssh_host_*_key.pub; \
        grep -o '127.0.1.1.*' /etc/hosts || true";
    let before = inside(&home, "demo", ALL);
    home.piton("checkpoint create demo warm --type standard").ok();
    // Its time is the clone's now.
    home.piton("pause demo").ok();
    let clone = home.piton("clone demo@warm other --run --new-identity --identity-timeout 900 --json").json()
        [0]
    .clone();
    let steps = clone["new_identity"].as_array().unwrap();
    assert_eq!(steps.len(), 5, "{clone}");
    assert!(steps.iter().all(|step| step["outcome"] == "done"), "{clone}");
    let after = inside(&home, "other", ALL);
    assert_eq!(after.lines().next(), Some("other"));
    // What runs has it, too.
    assert_eq!(inside(&home, "other", "hostnamectl hostname").trim(), "other");
    inside(&home, "other", "systemctl is-active ssh systemd-networkd");
    let address = inside(&home, "other", "ip -4 -o address show scope global");
    assert!(address.contains("inet "), "{address}");
    for line in after.lines() {
        assert!(!before.lines().any(|other| other == line), "{line}: {before}");
    }
    // Its original is as it was.
    home.piton("resume demo").ok();
    assert_eq!(inside(&home, "demo", ALL), before);
    for name in ["other", "demo"] {
        home.piton(&format!("kill {name}")).ok();
    }
}

/// Rows are inserted one by one for as long as it runs.
const INSERTS: &str =
    "do 'begin loop insert into t default values; commit; perform pg_sleep(0.05); end loop; end'";

/// As the database's own user.
fn sql(home: &Home, text: &str) -> String {
    home.args(["exec", "demo", "--user", "postgres", "--workdir", "/", "--", "psql", "-qAtc", text]).ok()
}

fn rows(home: &Home) -> u64 {
    sql(home, "select count(*) from t").trim().parse().unwrap()
}

/// Every row up to the last one is there, and no index or table is damaged.
fn is_whole(home: &Home) -> u64 {
    let told = sql(
        home,
        "set enable_indexscan = off; set enable_bitmapscan = off; select count(*), min(n), max(n) from t",
    );
    let numbers: Vec<u64> = told.trim().split('|').map(|number| number.parse().unwrap()).collect();
    assert!(numbers[0] > 0 && numbers[1] == 1, "{told}");
    // A number may be lost with a crash, as sequences are logged ahead; a row that was seen may not.
    assert!(numbers[2] >= numbers[0], "{told}");
    // Not where a PATH looks.
    let check = "/usr/lib/postgresql/*/bin/pg_amcheck --install-missing -d postgres";
    home.args(["exec", "demo", "--user", "postgres", "--workdir", "/", "--", "sh", "-c", check]).ok();
    numbers[0]
}

#[test]
fn a_database_is_whole_in_every_checkpoint() {
    let home = Home::new();
    let key = format!("{}.pub", keys(&home));
    // What waits for a network at boot has one.
    let cmdline = "quiet systemd.default_timeout_start_sec=900";
    let more = ["--disk-size", "3G", "--cmdline-extra", cmdline, "--net", "user"];
    let Some(mut vm) = boot(&home, &key, &more) else { return };
    let first = is_up(&home, None);
    until("the database", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        (exec(&home, "pg_isready").code == Some(0)).then_some(())
    });
    sql(&home, "create table t(n serial primary key, at timestamptz default clock_timestamp())");
    exec(&home, &format!("systemd-run --quiet --unit inserts --uid postgres psql -qc \"{INSERTS}\"")).ok();
    until("rows", || (rows(&home) > 3).then_some(()));

    // In the middle of it, with memory and without.
    let before_warm = rows(&home);
    home.piton("checkpoint create demo warm --type standard").ok();
    let before_cold = rows(&home);
    exec(&home, "rm -f /run/hooks").ok();
    // Its hooks are programs, which take their time here.
    home.piton("checkpoint create demo cold --type production-only --freeze-timeout 30").ok();
    assert_eq!(exec(&home, "cat /run/hooks").ok(), "freeze\nthaw\n");
    let after_cold = rows(&home);
    sql(&home, "create table later()");
    // The file system was made as large as the disk at the first boot.
    let size = exec(&home, "df --output=size -k / | tail -n 1").ok();
    assert!(size.trim().parse::<u64>().unwrap() > 2_700_000, "{size}");

    let is_former = || assert_eq!(sql(&home, "select to_regclass('later') is null").trim(), "t");
    home.piton("checkpoint apply demo@warm --discard-current --run").ok();
    // On a busy host its agent may be silent for longer than a call waits.
    until("its agent", || (exec(&home, "true").code == Some(0)).then_some(()));
    is_former();
    let there = rows(&home);
    assert!(there >= before_warm, "{there} rows of {before_warm}");
    // What was inserting goes on.
    until("more rows", || (rows(&home) > there).then_some(()));
    exec(&home, "systemctl stop inserts").ok();
    is_whole(&home);

    home.piton("checkpoint apply demo@cold --discard-current --run").ok();
    vm.exits_well();
    is_up(&home, Some(&first));
    until("the database", || {
        std::thread::sleep(std::time::Duration::from_secs(1));
        (exec(&home, "pg_isready").code == Some(0)).then_some(())
    });
    is_former();
    let there = is_whole(&home);
    assert!((before_cold..=after_cold).contains(&there), "{there} rows of {before_cold} to {after_cold}");
    home.piton("kill demo").ok();
    home.ended("demo");
}
