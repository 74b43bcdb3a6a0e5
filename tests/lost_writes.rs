//! A flush that failed is not forgotten: what the kernel could not write it takes for written, and
//! shows it until it needs the memory.

mod ckpt_common;
mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_common::Lab;
use common::{Mount, Vm, is_root, skip};

/// A file system on a device that has less room than it says.
struct Thin {
    room: Mount,
    file: PathBuf,
    /// Dropped before what it lies on.
    mount: Option<Mount>,
    at: PathBuf,
}

impl Thin {
    fn new(lab: &Lab, at: &Path) -> Option<Self> {
        let room = Mount::tmpfs("60m", &lab.beside("room"));
        let file = lab.beside("room").join("thin");
        std::fs::File::create(&file).unwrap().set_len(200 << 20).unwrap();
        let options = ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard"];
        match Command::new("/sbin/mkfs.ext4").args(options).arg(&file).status() {
            Ok(status) => assert!(status.success()),
            Err(e) => {
                skip(&format!("mkfs.ext4: {e}"));
                return None;
            }
        }
        let mut thin = Self { room, file, mount: None, at: at.to_owned() };
        thin.remount();
        Some(thin)
    }

    /// As after a restart of the host: nothing of it is in memory.
    fn remount(&mut self) {
        if self.mount.take().is_some() {
            // It may be busy a moment longer; what is mounted over it has caches of its own.
            common::until("the file system to be unmounted", || {
                let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
                (!mounts.contains(self.at.to_str().unwrap())).then_some(())
            });
        }
        let file = self.file.to_str().unwrap();
        self.mount = Some(Mount::new(&["-o", "loop,errors=continue", file], &self.at));
    }
}

impl Drop for Thin {
    fn drop(&mut self) {
        drop(self.mount.take());
    }
}

/// Writes more than there is room for.
fn lose(vm: &mut Vm) {
    vm.ok("journal off");
    vm.ok("blk 0 write 0 80M 5");
    vm.send("blk 0 flush");
    let line = vm.line(&["ok", "err"]);
    assert!(line.starts_with("err"), "{line}");
    // Final for the open file.
    vm.send("blk 0 flush");
    let line = vm.line(&["ok", "err"]);
    assert!(line.starts_with("err"), "{line}");
}

/// What the guest finds of what it wrote; or that all of it is there.
fn found(vm: &mut Vm) -> String {
    vm.send("blk 0 verify 0 80M 5");
    vm.line(&["ok verified", "err reason=differs"])
}

fn is_refused(lab: &Lab, file: &Path) {
    let words = ["disk `disk0`", "flush", file.to_str().unwrap(), "--accept-lost-writes"];
    lab.piton("start demo").fails(3, &words);
    lab.cp("create demo").fails(3, &words);
    lab.piton(&format!("export demo {}", file.with_file_name("export").display())).fails(3, &words);
    let doctor = lab.piton("doctor demo --repair");
    assert_eq!(doctor.code, Some(1), "{doctor:?}");
    assert!(words.iter().all(|word| doctor.stdout.contains(word)), "{doctor:?}");
}

#[test]
fn a_raw_disk_that_lost_writes_is_not_taken_for_good() {
    if !is_root() {
        return skip("a file system is mounted as root only");
    }
    let lab = Lab::new();
    let at = lab.beside("thin");
    let Some(mut thin) = Thin::new(&lab, &at) else { return };
    for options in ["", ",passthrough"] {
        let image = at.join("root.raw");
        std::fs::File::create(&image).unwrap().set_len(100 << 20).unwrap();
        let mut vm = lab.home.boot(&format!("run demo --memory 32M --disk {}{options}", image.display()));
        lose(&mut vm);
        // Neither a reboot of the guest nor the end of the process makes it forgotten.
        vm.send("reboot");
        let exit = vm.exit();
        assert!(exit.stderr.contains("--accept-lost-writes"), "{exit:?}");
        thin.room.resize("300m");
        is_refused(&lab, &image);
        // It reads what the disk has: the same as after the host was restarted.
        let mut vm = lab.home.boot("start demo --attach --accept-lost-writes");
        vm.ok("journal off");
        let before = found(&mut vm);
        assert!(before.starts_with("err"), "nothing was lost: {before}");
        vm.ok("blk 0 flush");
        vm.power_off();
        thin.remount();
        let mut vm = lab.home.boot("start demo --attach");
        vm.ok("journal off");
        assert_eq!(found(&mut vm), before);
        // What is written now stays.
        vm.ok("blk 0 write 0 80M 5");
        vm.ok("blk 0 flush");
        vm.power_off();
        thin.remount();
        let mut vm = lab.home.boot("start demo --attach");
        vm.ok("journal off");
        vm.ok("blk 0 verify 0 80M 5");
        vm.power_off();
        lab.sound();
        lab.piton("rm demo --yes").ok();
        std::fs::remove_file(&image).unwrap();
        drop(thin);
        thin = Thin::new(&lab, &at).unwrap();
    }
}

#[test]
fn a_layer_that_lost_writes_is_not_taken_for_good() {
    if !is_root() {
        return skip("a file system is mounted as root only");
    }
    let lab = Lab::new();
    // The note of it lies on the same disk.
    let Some(mut thin) = Thin::new(&lab, &lab.root()) else { return };
    let base = lab.image("base.raw", 100 << 20);
    let mut vm = lab.home.boot(&format!("run demo --memory 32M --disk {base},overlay"));
    vm.ok("blk 0 write 0 4M 9");
    vm.ok("blk 0 flush");
    lose(&mut vm);
    // Nor can a checkpoint be made of it.
    let refused = lab.cp("create demo one");
    assert_eq!(refused.code, Some(1), "{refused:?}");
    vm.power_off();
    thin.room.resize("300m");
    let layers = lab.deltas("disk0");
    let refused = lab.piton("start demo");
    assert_eq!(refused.code, Some(3), "{refused:?}");
    assert!(layers.iter().any(|layer| refused.stderr.contains(layer.to_str().unwrap())), "{refused:?}");
    let mut vm = lab.home.boot("start demo --attach --accept-lost-writes");
    vm.ok("journal off");
    let before = found(&mut vm);
    vm.ok("blk 0 flush");
    lab.create("one");
    vm.power_off();
    lab.verify("one");
    thin.remount();
    let mut vm = lab.home.boot("start demo --attach");
    vm.ok("journal off");
    assert_eq!(found(&mut vm), before);
    vm.power_off();
    lab.verify("one");
    lab.tidy();
}
