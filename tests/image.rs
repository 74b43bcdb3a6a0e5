//! What is inside disk images: partitions, systems, kernels.

#[path = "image_common/mod.rs"]
mod image_common;

mod common;

use common::Home;
use image_common::{Root, gpt, image, mbr};

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
    for part in ["qcow2, a disk of", "GPT", "ext4 `root`", "guest agent installed, cloud-init not", "*  3"] {
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
    home.args(words).fails(3, &["out/kernel exists", "another folder"]);
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
    problem(&chained.ext4(), &["`Windows`", "no Linux kernel"]);
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
    assert!(shown["notes"][0].as_str().unwrap().contains("the second was read"), "{shown:#}");
    let last = bytes.len() - 512;
    bytes[last + 56] ^= 1;
    std::fs::write(&disk, &bytes).unwrap();
    let shown = show(&home, &disk);
    assert!(shown["problem"].as_str().unwrap().contains("damaged in both copies"), "{shown:#}");
}
