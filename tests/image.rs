//! What is inside disk images: partitions, systems, kernels.

#[path = "image_common/mod.rs"]
mod image_common;

mod common;

use common::Home;
use image_common::{Root, fat, gpt, image, mbr, uki};

const GRUB: &str = include_str!("image_common/grub.cfg");

fn show(home: &Home, file: &str) -> serde_json::Value {
    home.args(["image", "show", file, "--json"]).json()
}

#[test]
fn a_menu_of_grub_is_followed_as_grub_would() {
    let home = Home::new();
    let root = Root::new(&home, "root").system("Debian GNU/Linux 12").grub(GRUB);
    for version in ["6.1.0-9", "6.1.0-10"] {
        root.file(&format!("boot/vmlinuz-{version}"), format!("kernel {version}").as_bytes());
        root.file(&format!("boot/initrd.img-{version}"), format!("initrd {version}").as_bytes());
    }
    root.file("usr/sbin/qemu-ga", b"");
    let disk = gpt(&home, "disk.raw", &[&root.ext4()]);
    let shown = show(&home, &disk);
    assert_eq!((&shown["table"], &shown["format"]), (&"gpt".into(), &"raw".into()), "{shown:#}");
    let volume = &shown["volumes"][0];
    assert_eq!(volume["system"]["name"], "Debian GNU/Linux 12");
    assert_eq!((&volume["system"]["agent"], &volume["system"]["cloud_init"]), (&true.into(), &false.into()));
    assert_eq!(volume["uuid"], Root::UUID);
    let titles: Vec<&str> =
        shown["entries"].as_array().unwrap().iter().map(|entry| entry["title"].as_str().unwrap()).collect();
    let more = "Advanced options for Debian GNU/Linux > Debian GNU/Linux, with Linux";
    assert_eq!(titles, ["Debian GNU/Linux", &format!("{more} 6.1.0-10"), &format!("{more} 6.1.0-9")]);
    let boots = |shown: &serde_json::Value| {
        let number = shown["default"].as_u64().unwrap_or_else(|| panic!("{shown:#}")) as usize;
        let entry = &shown["entries"][number - 1];
        (entry["kernel"].as_str().unwrap().to_owned(), entry["cmdline"].as_str().unwrap().to_owned())
    };
    let cmdline = format!("root=UUID={} ro quiet console=ttyS0", Root::UUID);
    assert_eq!(boots(&shown), ("/boot/vmlinuz-6.1.0-10".into(), cmdline));
    // Another default is saved in the guest.
    root.file(
        "boot/grub/grubenv",
        b"# GRUB Environment Block\nsaved_entry=gnulinux-advanced>gnulinux-6.1.0-9\n##",
    );
    let saved = gpt(&home, "saved.raw", &[&root.ext4()]);
    assert_eq!(boots(&show(&home, &saved)).0, "/boot/vmlinuz-6.1.0-9");

    // The same in qcow2, and what people read.
    let qcow2 = image::qcow2(&home, &saved);
    let text = home.args(["image", "show", &qcow2]).ok();
    for part in ["qcow2, virtual size", "GPT", "ext4 `root`", "guest agent installed, cloud-init not", "*  3"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }

    // Its files come out as they are, once.
    std::fs::create_dir(home.beside("out")).unwrap();
    let out = home.beside("out");
    let words = ["image", "extract", &qcow2, out.to_str().unwrap()];
    let told = home.args(words).ok();
    assert!(told.contains(&format!("cmdline  root=UUID={} ro quiet console=ttyS0", Root::UUID)), "{told}");
    assert_eq!(std::fs::read(out.join("kernel")).unwrap(), b"kernel 6.1.0-9");
    assert_eq!(std::fs::read(out.join("initrd")).unwrap(), b"initrd 6.1.0-9");
    home.args(words).fails(3, &["out/kernel already exists", "another folder"]);
    std::fs::remove_file(out.join("kernel")).unwrap();
    std::fs::remove_file(out.join("initrd")).unwrap();
    home.args([&words[..], &["--entry", "2"]].concat()).ok();
    assert_eq!(std::fs::read(out.join("kernel")).unwrap(), b"kernel 6.1.0-10");
    home.args(["image", "extract", &qcow2, "/nowhere/at/all"]).fails(3, &["/nowhere/at/all does not exist"]);
    home.args(["image", "extract", &qcow2, "--entry", "9"]).fails(3, &["no entry 9", "lists 3"]);
}

#[test]
fn loader_entries_and_kernels_without_a_loader() {
    let home = Home::new();
    // A partition of its own for /boot, as Fedora has it, whose root is of a kind that is not read.
    let boot = Root::new(&home, "boot");
    boot.file("grub2/grub.cfg", b"load_env\nset default=\"${saved_entry}\"\ninsmod blscfg\nblscfg\n");
    boot.file(
        "grub2/grubenv",
        b"# GRUB Environment Block\nsaved_entry=m-6.2\nkernelopts=rootflags=subvol=root\n#",
    );
    for version in ["6.2", "6.10"] {
        let entry = format!(
            "title Fedora ({version})\nversion {version}\nlinux /vmlinuz-{version}\ninitrd /initramfs-{version}.img $tuned_initrd\n\
             options root=UUID=1234 ro $kernelopts console=ttyS0,115200n8\n"
        );
        boot.file(&format!("loader/entries/m-{version}.conf"), entry.as_bytes());
        boot.file(&format!("vmlinuz-{version}"), version.as_bytes());
        boot.file(&format!("initramfs-{version}.img"), b"i");
    }
    let mut other = vec![0; 1 << 20];
    other[0x1_0040..][..8].copy_from_slice(b"_BHRfS_M");
    let btrfs = home.file("btrfs", &other);
    let disk = gpt(&home, "fedora.raw", &[&boot.ext4(), &btrfs]);
    let shown = show(&home, &disk);
    let entry = &shown["entries"][shown["default"].as_u64().unwrap() as usize - 1];
    assert_eq!(entry["kernel"], "/vmlinuz-6.2");
    assert_eq!(entry["cmdline"], "root=UUID=1234 ro rootflags=subvol=root console=ttyS0,115200n8");
    assert_eq!(shown["volumes"][1]["file_system"], "btrfs");
    // Nothing is saved: the newest.
    boot.file("grub2/grubenv", b"# GRUB Environment Block\n#");
    let disk = mbr(&home, "newest.raw", &[&boot.ext4(), &btrfs]);
    let shown = show(&home, &disk);
    let entry = &shown["entries"][shown["default"].as_u64().unwrap() as usize - 1];
    assert_eq!((&shown["table"], &entry["kernel"]), (&"mbr".into(), &"/vmlinuz-6.10".into()));

    // No loader, no partitions.
    let root = Root::new(&home, "alone").system("Alone");
    for version in ["5.9.0", "5.10.0"] {
        root.file(&format!("boot/vmlinuz-{version}"), b"k");
    }
    root.file("boot/initrd.img-5.10.0", b"i");
    root.link("boot/vmlinuz", "vmlinuz-5.10.0");
    let shown = show(&home, &root.ext4());
    let entry = &shown["entries"][0];
    assert_eq!((&shown["table"], &shown["default"]), (&"none".into(), &1.into()));
    assert_eq!(
        (&entry["kernel"], &entry["initrds"][0]),
        (&"/boot/vmlinuz-5.10.0".into(), &"/boot/initrd.img-5.10.0".into())
    );
    assert_eq!(entry["cmdline"], format!("root=UUID={} ro console=ttyS0", Root::UUID));
}

/// An EFI system partition, and a root that is not read.
fn with_esp(home: &Home, name: &str, files: &[(&str, &[u8])]) -> String {
    let mut other = vec![0; 1 << 20];
    other[0x1_0040..][..8].copy_from_slice(b"_BHRfS_M");
    let btrfs = home.file("root.btrfs", &other);
    gpt(home, &format!("{name}.raw"), &[&fat(home, &format!("{name}.fat"), 16 << 20, files), &btrfs])
}

fn default_of(shown: &serde_json::Value) -> serde_json::Value {
    let number = shown["default"].as_u64().unwrap_or_else(|| panic!("{shown:#}"));
    shown["entries"][number as usize - 1].clone()
}

#[test]
fn kernels_on_an_efi_system_partition() {
    let home = Home::new();
    let entry = |version: &str| {
        format!(
            "title System {version}\nversion {version}\nlinux /m/{version}/linux\ninitrd /m/{version}/initrd-with-a-long-name\noptions root=UUID=1 rw\n"
        )
    };
    let (old, new) = (entry("6.2"), entry("6.10"));
    let initrd = vec![7; 100_000];
    let files: Vec<(&str, &[u8])> = vec![
        ("loader/entries/m-6.2.conf", old.as_bytes()),
        ("loader/entries/m-6.10.conf", new.as_bytes()),
        ("M/6.2/linux", b"old"),
        ("M/6.10/LINUX", b"new"),
        ("M/6.10/initrd-with-a-long-name", &initrd),
        ("M/6.2/initrd-with-a-long-name", b"i"),
    ];
    let disk = with_esp(&home, "entries", &files);
    let shown = show(&home, &disk);
    let entry = default_of(&shown);
    assert_eq!((&entry["kernel"], &entry["origin"]), (&"/m/6.10/linux".into(), &"loader-entry".into()));
    assert_eq!(entry["cmdline"], "root=UUID=1 rw console=ttyS0");
    let volume = &shown["volumes"][0];
    assert_eq!((&volume["file_system"], &volume["uuid"]), (&"fat".into(), &"1234-ABCD".into()));
    let out = home.beside("out");
    std::fs::create_dir(&out).unwrap();
    home.args(["image", "extract", &disk, out.to_str().unwrap()]).ok();
    assert_eq!(std::fs::read(out.join("kernel")).unwrap(), b"new");
    assert!(std::fs::read(out.join("initrd")).unwrap() == initrd);
    let chosen = [&files[..], &[("loader/loader.conf", b"timeout 3\ndefault m-6.2*\n")]].concat();
    assert_eq!(default_of(&show(&home, &with_esp(&home, "chosen", &chosen)))["kernel"], "/m/6.2/linux");
    // A kernel that lies there alone.
    let alone: &[(&str, &[u8])] = &[("vmlinuz-linux", b"k"), ("initramfs-linux.img", b"i")];
    let entry = default_of(&show(&home, &with_esp(&home, "alone", alone)));
    assert_eq!(
        (&entry["kernel"], &entry["initrds"][0]),
        (&"/vmlinuz-linux".into(), &"/initramfs-linux.img".into())
    );
}

#[test]
fn a_unified_kernel_image_boots() {
    let home = Home::new();
    let image = |version: &str, word: &str| {
        uki(&[
            (
                ".osrel",
                format!("PRETTY_NAME=\"System {version}\"\nID=test\nVERSION_ID={version}\n").as_bytes(),
            ),
            (".cmdline", format!("root=UUID=1 {word}\n\0").as_bytes()),
            (".initrd", b"nothing that it looks at"),
            (".ucode", b"microcode"),
            (".linux", common::GUEST),
            (".profile", b"ID=other"),
            (".cmdline", b"of another profile"),
        ])
    };
    let (one, two) = (image("9", "word=one"), image("10", "word=two"));
    let files: &[(&str, &[u8])] = &[
        ("EFI/Linux/system-9.efi", &one),
        ("EFI/Linux/system-10.efi", &two),
        ("EFI/Linux/loader.efi", &uki(&[(".text", b"no kernel")])),
        ("EFI/Linux/text.efi", b"no program"),
        ("EFI/BOOT/BOOTX64.EFI", b"MZ"),
    ];
    let disk = with_esp(&home, "uki", files);
    let shown = show(&home, &disk);
    assert_eq!(shown["entries"].as_array().unwrap().len(), 2, "{shown:#}");
    let entry = default_of(&shown);
    assert_eq!((&entry["title"], &entry["origin"]), (&"System 10".into(), &"unified-kernel".into()));
    assert_eq!(entry["kernel"], "/EFI/Linux/system-10.efi");
    let out = home.beside("out");
    std::fs::create_dir(&out).unwrap();
    home.args(["image", "extract", &disk, out.to_str().unwrap(), "--entry", "2"]).ok();
    assert!(std::fs::read(out.join("kernel")).unwrap() == common::GUEST);
    assert_eq!(std::fs::read(out.join("initrd")).unwrap(), b"microcode\0\0\0nothing that it looks at");
    let mut vm = home.boot(&format!("run demo --memory 64M --image {disk}"));
    let told = vm.ok("info");
    assert!(told.contains("cmdline=\"root=UUID=1 word=two console=ttyS0\""), "{told}");
    vm.power_off();
    // An EFI system partition that is damaged is in nobody's way.
    let root = Root::new(&home, "root").system("Root");
    root.file("boot/vmlinuz-1", b"k");
    let mut damaged = std::fs::read(fat(&home, "damaged.fat", 4 << 20, files)).unwrap();
    damaged[11..13].fill(0xff);
    let damaged = home.file("damaged.fat", &damaged);
    let shown = show(&home, &gpt(&home, "damaged.raw", &[&damaged, &root.ext4()]));
    assert_eq!(default_of(&shown)["kernel"], "/boot/vmlinuz-1");
    assert!(shown["volumes"][0]["problem"].as_str().unwrap().contains("partition 1"), "{shown:#}");
}

#[test]
fn what_cannot_be_booted_is_named() {
    let home = Home::new();
    let problem = |file: &str, parts: &[&str]| {
        let shown = show(&home, file);
        let problem = shown["problem"].as_str().unwrap_or_else(|| panic!("{shown:#}")).to_owned();
        for part in parts {
            assert!(problem.contains(part), "{part}: {problem}");
        }
        home.args(["image", "extract", file]).fails(3, parts);
        home.args(["image", "show", file]).ok();
    };
    problem(&home.image("empty.raw", 1 << 20), &["no kernel", "no file system that piton knows", "--kernel"]);
    problem(&Root::new(&home, "data").ext4(), &["no kernel", "/boot/vmlinuz"]);
    for (name, at, mark, kind) in [
        ("luks", 0, &b"LUKS\xba\xbe"[..], "partition 1 is LUKS (encrypted)"),
        ("lvm", 512, b"LABELONE", "partition 1 is LVM"),
        ("xfs", 0, b"XFSB", "partition 1 is XFS"),
    ] {
        let mut bytes = vec![0; 1 << 20];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        let disk = gpt(&home, &format!("{name}.raw"), &[&home.file(name, &bytes)]);
        problem(&disk, &[kind, "--kernel"]);
    }
    let maze = Root::new(&home, "maze").grub("menuentry 'a' {\n for x in 1 2; do linux /vmlinuz; done\n}\n");
    problem(&maze.ext4(), &["/boot/grub/grub.cfg", "line 2", "a loop"]);
    let broken = Root::new(&home, "broken").grub("menuentry 'a' {\n linux '/vmlinuz");
    problem(&broken.ext4(), &["/boot/grub/grub.cfg", "line 2", "a quote has no end"]);
    let chained = Root::new(&home, "chained").grub("menuentry 'Windows' {\n chainloader +1\n}\n");
    problem(&chained.ext4(), &["`Windows`", "not load a Linux kernel"]);
    let gone = Root::new(&home, "gone").grub("menuentry 'a' {\n linux /vmlinuz\n}\n");
    home.args(["image", "extract", &gone.ext4()]).fails(3, &["`a`", "/vmlinuz", "no such file", "--kernel"]);

    let one = Root::new(&home, "one").system("First").grub("menuentry 'a' {\n linux /vmlinuz\n}\n");
    one.file("vmlinuz", b"first");
    let two = Root::new(&home, "two").system("Second").grub("menuentry 'b' {\n linux /vmlinuz\n}\n");
    two.file("vmlinuz", b"second");
    let both = gpt(&home, "both.raw", &[&one.ext4(), &two.ext4()]);
    problem(&both, &["several systems", "First on partition 1", "Second on partition 2", "--entry N"]);
    let out = home.beside("chosen");
    std::fs::create_dir(&out).unwrap();
    home.args(["image", "extract", &both, out.to_str().unwrap(), "--entry", "2"]).ok();
    assert_eq!(std::fs::read(out.join("kernel")).unwrap(), b"second");

    home.args(["image", "show", "/nowhere"]).fails(3, &["/nowhere does not exist"]);
    let vmdk = home.file("a.vmdk", &[b"KDMV".as_slice(), &[0; 508]].concat());
    home.args(["image", "show", &vmdk]).fails(3, &["a VMDK image", "qemu-img convert"]);
}

#[test]
fn the_second_copy_of_a_partition_table_makes_up_for_the_first() {
    let home = Home::new();
    let root = Root::new(&home, "root").system("Whole");
    let disk = gpt(&home, "disk.raw", &[&root.ext4()]);
    let mut bytes = std::fs::read(&disk).unwrap();
    bytes[512 + 56] ^= 1;
    std::fs::write(&disk, &bytes).unwrap();
    let shown = show(&home, &disk);
    assert_eq!(shown["volumes"][0]["system"]["name"], "Whole");
    assert!(shown["notes"][0].as_str().unwrap().contains("using the second one"), "{shown:#}");
    let last = bytes.len() - 512;
    bytes[last + 56] ^= 1;
    std::fs::write(&disk, &bytes).unwrap();
    let shown = show(&home, &disk);
    assert!(shown["problem"].as_str().unwrap().contains("damaged in both copies"), "{shown:#}");
}

/// A disk whose kernel is the bundled guest; its command line says `word`, which has as many letters as
/// any other that is to take its place.
fn bootable(home: &Home, word: &str) -> String {
    let menu = format!(
        "menuentry 'Test' {{\n linux /boot/vmlinuz root=LABEL=root word={word}\n initrd /boot/initrd\n}}\n"
    );
    let root = Root::new(home, "bootable").system("Test").grub(&menu);
    root.file("boot/vmlinuz", common::GUEST);
    root.file("boot/initrd", b"nothing that it looks at");
    gpt(home, "bootable.raw", &[&root.ext4()])
}

/// Writes to a disk of a VM that is off, as its guest would: above all its layers.
fn write_as_guest(home: &Home, vm: &str, find: &str, put: &str) {
    use piton::disk::{Backing, Disk};
    use piton::folder::Home as Vms;
    use piton::history::disks;
    use piton::storage::Storage;
    let folder = Vms::at(home.root(), Storage::os()).folder(&vm.parse().unwrap());
    let _lock = folder.lock().unwrap();
    let definition = folder.load().unwrap();
    let (config, tops) = (&definition.config, &definition.now.tops);
    let open = disks::open(&folder, config, tops, &Default::default(), &Default::default()).unwrap();
    let disk = &open.machine[0].disk;
    let mut bytes = vec![0; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    let at = bytes.windows(find.len()).position(|part| part == find.as_bytes()).expect("it is there");
    disk.write_at(put.as_bytes(), at as u64).unwrap();
    disk.flush().unwrap();
}

#[test]
fn a_vm_boots_what_its_disk_says_at_each_start() {
    let home = Home::new();
    let base = bootable(&home, "one");
    let image = image::qcow2(&home, &base);
    let before = std::fs::read(&image).unwrap();
    let boots = |line: &str, expected: &str| {
        let mut vm = home.boot(line);
        let told = vm.ok("info");
        assert!(told.contains(&format!("cmdline=\"root=LABEL=root word={expected}\"")), "{told}");
        vm.power_off();
    };
    boots(&format!("run demo --memory 64M --image {image} --cmdline-extra more"), "one console=ttyS0 more");
    let shown = home.piton("show demo").ok();
    assert!(shown.contains("the one on disk `root`, read at each boot"), "{shown}");
    let json = home.piton("show demo --json").json();
    assert_eq!(
        (&json["config"]["boot_disk"], &json["config"]["disks"][0]["overlay"]),
        (&"root".into(), &true.into())
    );
    home.piton("checkpoint create demo former").ok();
    // Its guest puts another kernel in place.
    write_as_guest(&home, "demo", "word=one", "word=two");
    boots("start demo --attach", "two console=ttyS0 more");
    // Going back boots the former one, and so does a clone of it.
    home.piton("checkpoint create demo latter").ok();
    home.piton("checkpoint apply demo@former --discard-current").ok();
    boots("start demo --attach", "one console=ttyS0 more");
    home.piton("clone demo@latter other").ok();
    boots("start other --attach", "two console=ttyS0 more");
    let out = home.beside("export");
    home.args(["export", "other", out.to_str().unwrap()]).ok();
    home.args(["import", out.to_str().unwrap(), "--name", "third"]).ok();
    boots("start third --attach", "two console=ttyS0 more");
    assert!(std::fs::read(&image).unwrap() == before, "the image was written");
    // A menu that is no more: nothing else is lost.
    write_as_guest(&home, "third", "linux /boot/vmlinuz", "linux /boot/vmlinux");
    home.piton("start third").fails(3, &["disk `root`", "`Test`", "/boot/vmlinux", "no such file"]);
    home.piton("show third").ok();
}

#[test]
fn what_is_no_image_to_boot_is_refused_and_leaves_nothing() {
    let home = Home::new();
    let disk = bootable(&home, "one");
    let run = |words: &str| home.piton(&format!("run demo --memory 64M {words}"));
    run(&format!("--image {disk} --kernel {disk}")).fails(2, &["--image", "--kernel"]);
    run(&format!("--image {disk} --cmdline x")).fails(2, &["--image", "--cmdline"]);
    run(&format!("--image {disk},readonly")).fails(2, &["--image", "readonly"]);
    run("--cmdline-extra x").fails(2, &["required"]);
    run("--image /nowhere/at/all").fails(3, &["/nowhere/at/all does not exist"]);
    run(&format!("--image {}", home.image("empty.raw", 1 << 20)))
        .fails(3, &["empty.raw", "no kernel", "--kernel"]);
    let vmdk = home.file("a.vmdk", &[b"KDMV".as_slice(), &[0; 508]].concat());
    run(&format!("--image {vmdk}")).fails(3, &["a VMDK image", "qemu-img convert"]);
    let mut disc = vec![0; 1 << 20];
    disc[0x8001..0x8006].copy_from_slice(b"CD001");
    run(&format!("--image {}", home.file("cd.iso", &disc))).fails(3, &["the disk is ISO 9660"]);
    for (name, kernel, parts) in [
        ("gz", &b"\x1f\x8b\x08"[..], &["/vmlinuz", "gzip -dc"][..]),
        ("arm", &[&b"MZ"[..], &[0; 0x36], b"ARM\x64"].concat(), &["/vmlinuz", "64-bit ARM"]),
        ("text", b"#!/bin/sh", &["/vmlinuz", "neither an ELF file"]),
    ] {
        let root = Root::new(&home, name).grub("menuentry 'a' {\n linux /vmlinuz\n}\n");
        root.file("vmlinuz", kernel);
        run(&format!("--image {}", root.ext4())).fails(3, parts);
    }
    home.is_empty();
    // Somebody writes to it.
    let mut vm = home.boot(&format!("run writer --memory 64M --disk {disk}"));
    run(&format!("--image {disk}")).fails(3, &["bootable.raw is in use"]);
    home.args(["image", "show", &disk]).fails(3, &["bootable.raw is in use"]);
    vm.power_off();
}

const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGbAvv1234567890123456789012345678901234 me@here";

/// The disk for cloud-init of a VM, as text.
fn seed(home: &Home, vm: &str) -> String {
    String::from_utf8_lossy(&std::fs::read(home.vm(vm).join("disks/cidata.raw")).unwrap()).into_owned()
}

#[track_caller]
fn holds(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part}: {}", text.replace('\0', ""));
    }
}

#[test]
fn cloud_init_is_told_who_it_is() {
    let home = Home::new();
    let menu = "menuentry 'Test' {\n linux /boot/vmlinuz root=/dev/sda1\n}\n";
    let root = Root::new(&home, "cloud").system("Cloud").grub(menu);
    root.file("boot/vmlinuz", common::GUEST);
    root.file("usr/bin/cloud-init", b"");
    let disk = gpt(&home, "cloud.raw", &[&root.ext4()]);
    let key = home.file("id.pub", format!("{KEY}\n").as_bytes());
    let run = format!("run demo --memory 64M --image {disk}");
    let mut vm =
        home.boot(&format!("{run} --net user --ssh-key {key} --password-hash $6$salt$abc --hostname demo"));
    // As a guest reads it: a disk of its own that cannot be written.
    let told = vm.ok("info");
    assert!(told.contains("disks=2") && told.contains("root=/dev/vda1 console=ttyS0"), "{told}");
    vm.err("blk 1 write 0 4K 1");
    let text = seed(&home, "demo");
    holds(
        &text,
        &["CIDATA", "instance-id: piton-", "local-hostname: demo ", KEY, "password: \"$6$salt$abc\""],
    );
    holds(&text, &["packages: [qemu-guest-agent]"]);
    home.piton("checkpoint create demo one --type standard").ok();
    vm.power_off();
    // A clone is another host, an import the same one.
    home.piton("clone demo@one other").ok();
    let instance = |text: &str| text.split("instance-id: piton-").nth(1).unwrap()[..32].to_owned();
    let cloned = seed(&home, "other");
    holds(&cloned, &["local-hostname: other ", KEY]);
    assert_ne!(instance(&cloned), instance(&text));
    let out = home.beside("export");
    home.args(["checkpoint", "export", "demo@one", out.to_str().unwrap()]).ok();
    home.args(["import", out.to_str().unwrap(), "--name", "third"]).ok();
    assert_eq!(seed(&home, "third"), text);
    let mut third = home.boot("start third --attach");
    third.err("blk 1 write 0 4K 1");
    third.power_off();
    home.piton("stop other --force").ok();
    home.ended("other");
    for vm in ["demo", "other", "third"] {
        home.piton(&format!("rm {vm} --yes")).ok();
    }

    // Without any option it is told its name, so that it looks for no cloud; user data goes as it is.
    home.boot(&run).power_off();
    let text = seed(&home, "demo");
    holds(&text, &["local-hostname: demo ", "#cloud-config\n"]);
    assert!(!text.contains("packages"), "without a network nothing can be installed");
    home.piton("rm demo --yes").ok();
    let script = home.file("script", b"#!/bin/sh\necho hello\n");
    home.boot(&format!("{run} --net user --user-data {script}")).power_off();
    let text = seed(&home, "demo");
    holds(&text, &["#!/bin/sh\necho hello\n"]);
    assert!(!text.contains("packages"));
    home.piton("rm demo --yes").ok();

    let private = home.file("id", b"-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n");
    let yaml = home.file("yaml", b"a: [1\n");
    let other = home.file("other", b"hello\n");
    for (words, code, parts) in [
        (format!("--ssh-key {private}"), 3, &["a private key", "/id:", ".pub"][..]),
        (format!("--ssh-key {other}"), 3, &["not a public SSH key"]),
        ("--ssh-key /nowhere/at/all".into(), 3, &["/nowhere/at/all cannot be read"]),
        (format!("--user-data {yaml}"), 3, &["/yaml:", "not YAML", "line"]),
        (format!("--user-data {other}"), 3, &["/other:", "#cloud-config"]),
        (format!("--user-data {script} --password-hash $6$a$b"), 2, &["--user-data", "--password-hash"]),
        ("--password-hash secret".into(), 2, &["--password-hash", "openssl passwd -6"]),
        ("--hostname a_b".into(), 2, &["host name", "a_b"]),
        (
            format!("--hostname a --disk {other},id=cidata,format=raw,readonly"),
            2,
            &["two disks have the id `cidata`"],
        ),
    ] {
        home.piton(&format!("{run} {words}")).fails(code, parts);
    }
    let plain = bootable(&home, "one");
    home.piton(&format!("run demo --image {plain} --ssh-key {key}"))
        .fails(3, &["no cloud-init", "--ssh-key"]);
    home.is_empty();
}

#[test]
fn hardware_is_changed_while_off_and_checkpoints_bring_theirs_back() {
    let home = Home::new();
    let disk = bootable(&home, "one");
    let mut vm = home.boot(&format!("run demo --memory 64M --image {disk}"));
    for words in ["--memory 128M", "--cpus 2", "--cmdline x"] {
        home.piton(&format!("set demo {words}")).fails(3, &["while the VM is off", "piton stop demo"]);
    }
    home.http("demo", "PATCH", "/vm", "{\"cpus\": 2}").error(409);
    vm.power_off();
    home.piton("checkpoint create demo small").ok();
    let told = home.piton("set demo --memory 96M --cpus 2 --cmdline-extra more").ok();
    assert!(told.contains("boots with 96 MiB of memory, 2 CPUs, command line `more`"), "{told}");
    let mut vm = home.boot("start demo --attach");
    let info = vm.ok("info");
    assert!(info.contains("vcpus=2 memory=96") && info.contains("console=ttyS0 more\""), "{info}");
    vm.power_off();
    let told = home.piton("checkpoint apply demo@small --discard-current").ok();
    assert!(
        told.contains("the checkpoint's again: memory 64 MiB (was 96 MiB), CPUs 1 (was 2), command line"),
        "{told}"
    );
    let mut vm = home.boot("start demo --attach");
    let info = vm.ok("info");
    assert!(info.contains("vcpus=1 memory=64"), "{info}");
    vm.power_off();
    home.piton("set demo --memory 1M").fails(2, &["too little"]);
    home.piton("set demo --cpus 0").fails(2, &["CPUs"]);
    home.args(["set", "demo", "--cmdline", "a\nb"]).fails(3, &["printable ASCII"]);
}
