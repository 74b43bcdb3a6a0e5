//! What is inside disk images.

use std::process::Command;
use std::sync::Arc;

use piton::image::{self, At, NodeKind, Survey, Walk};

use crate::files::folder;
use crate::image_common::{fat_of, uki};
use crate::{Shape, Target};

const UUID: &str = "11111111-2222-4333-8444-555555555555";
const MENU: &str = include_str!("../image_common/grub.cfg");
const MIB: usize = 1 << 20;

/// A disk with a partition table and an ext4 file system with a journal, in which an input changes
/// places: each six bytes are an offset and what is written there. Checksums of metadata are off, so
/// that what is behind them is reached.
pub fn image() -> Target {
    let disk = disk();
    // Where there is anything at all, since most of it is empty.
    let places: Vec<usize> =
        (0..disk.len()).step_by(16).filter(|at| disk[*at..*at + 16] != [0; 16]).collect();
    let seed = |number: usize| (0..60).map(|at| (at * 7 + number * 31) as u8).collect();
    Target {
        name: "image",
        shape: Shape::Bytes,
        seeds: vec![Vec::new(), seed(1), seed(2)],
        mend: Box::new(|bytes| bytes.truncate(96)),
        run: Box::new(move |bytes| {
            let mut disk = disk.clone();
            for change in bytes.chunks_exact(6) {
                let place = u32::from_le_bytes(change[..4].try_into().unwrap()) as usize;
                let at = places[place % places.len()] + place / places.len() % 15;
                disk[at..at + 2].copy_from_slice(&change[4..]);
            }
            let Ok(survey) = Survey::of(Arc::new(disk)) else { return false };
            for volume in &survey.volumes {
                for path in ["/boot/vmlinuz-6.1.0-10", "/boot", "/../etc/os-release"] {
                    let Ok(Some(node)) = volume.node(path) else { continue };
                    let mut got = 0;
                    let read = volume.stream(path, &node, &mut |bytes| {
                        got += bytes.len() as u64;
                        true
                    });
                    assert!(got <= volume.part.len && (read.is_err() || got == node.len()));
                }
                let _ = (volume.system(), volume.broken(), image::has_agent(volume));
                // All that is below the root, as far as it can be read; it ends.
                let (mut walk, mut folders, mut left) = (Walk::default(), vec![At::default()], 2000);
                while let Some(at) = folders.pop() {
                    for (name, node) in volume.folder(&mut walk, &at).unwrap_or_default() {
                        assert!(!name.is_empty() && !name.contains(&b'/') && name != b"..");
                        let at = at.below(&name);
                        match node.kind() {
                            NodeKind::Folder if left > 0 => folders.push(at),
                            NodeKind::File => drop(volume.stream_at(&at, &node, &mut |_| true)),
                            NodeKind::Link => drop(volume.target(&at)),
                            _ => {}
                        }
                        left -= 1;
                    }
                }
            }
            let Ok(menu) = image::menu_of(&survey) else { return false };
            for entry in &menu.entries {
                assert!(image::cmdline_of(&survey, entry).contains("console=ttyS0"));
            }
            image::choose(&menu, None).is_ok_and(|entry| image::load(&survey, entry).is_ok())
        }),
    }
}

fn disk() -> Vec<u8> {
    let dir = folder();
    let at = |name: &str| dir.path().join(name);
    let write = |name: &str, text: &str| {
        let path = at("root").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("etc/os-release", "PRETTY_NAME=Fuzzed\n");
    write("boot/grub/grub.cfg", MENU);
    write("boot/grub/grubenv", "saved_entry=gnulinux-advanced>gnulinux-6.1.0-9\n");
    write("boot/vmlinuz-6.1.0-9", &"kernel".repeat(300));
    write("boot/initrd.img-6.1.0-9", "initrd");
    write("loader/entries/a.conf", "title a\nlinux /vmlinuz\noptions root=UUID=1\n");
    std::os::unix::fs::symlink("vmlinuz-6.1.0-9", at("root/boot/vmlinuz-6.1.0-10")).unwrap();
    let tool = |program: &str, words: &[&str]| {
        let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
        let done = Command::new(program).env("PATH", path).args(words).output();
        let done = done.unwrap_or_else(|e| panic!("{program}: {e}"));
        assert!(done.status.success(), "{program}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let (root, file) = (at("root"), at("ext4"));
    let words = ["-q", "-F", "-b", "1024", "-O", "^metadata_csum", "-U", UUID, "-d", root.to_str().unwrap()];
    tool("mkfs.ext4", &[&words[..], &[file.to_str().unwrap(), "4M"]].concat());
    let file = std::fs::read(file).unwrap();
    let mut disk = vec![0; file.len() + 2 * MIB];
    let path = at("disk");
    std::fs::write(&path, &disk).unwrap();
    let script = format!(
        "printf 'label: gpt\\nstart=2048, size={}\\n' | sfdisk -q {}",
        file.len() / 512,
        path.display()
    );
    tool("sh", &["-c", &script]);
    disk = std::fs::read(&path).unwrap();
    disk[MIB..MIB + file.len()].copy_from_slice(&file);
    disk
}

/// The menu as text.
pub fn grub() -> Target {
    let survey = Survey::of(Arc::new(vec![0u8; MIB])).unwrap();
    let more = "if test ! -f (hd0,gpt1)/a -a \"$x\" = 'y' ; then source /b; elif true; then set a=\\${b}; fi\n\
                for i in a b; do echo; done\nfunction f { f; }\nmenuentry \"x$y\" --id z { f; search -l a; linux a b; initrd c d; }";
    let loops = "function f { f }\nmenuentry a { f; linux /x; }";
    Target {
        name: "grub",
        shape: Shape::Bytes,
        seeds: vec![MENU.into(), more.into(), loops.into(), "linux /a\n".into()],
        mend: Box::new(|_| {}),
        run: Box::new(move |bytes| {
            let text = String::from_utf8_lossy(bytes);
            match image::grub::menu(&survey, 0, "/boot/grub/grub.cfg", &text) {
                Ok(found) => found.default.is_ok_and(|at| at < found.entries.len()),
                Err(e) => e.to_string().is_empty(),
            }
        }),
    }
}

/// A FAT file system as EFI system partitions have it, with a loader's entries and a unified kernel image.
pub fn fat() -> Target {
    let entry = b"title a\nlinux /a/linux\ninitrd /a/initrd of a long name\noptions root=UUID=1\n";
    let image =
        uki(&[(".osrel", b"ID=a"), (".cmdline", b"root=UUID=1"), (".linux", &[7; 2000]), (".initrd", b"i")]);
    let files: &[(&str, &[u8])] = &[
        ("loader/entries/a.conf", entry),
        ("loader/loader.conf", b"default a*\n"),
        ("a/linux", &[1; 1500]),
        ("a/initrd of a long name", b"initrd"),
        ("EFI/Linux/a.efi", &image),
    ];
    // FAT32 is large, but for what is at its begin.
    let mut large = fat_of(34 * MIB, files);
    let used = large.iter().rposition(|byte| *byte != 0).unwrap();
    large.truncate((used + 1).next_multiple_of(4096));
    let disks = [fat_of(128 << 10, files), large].map(|disk| {
        let used = |at: &usize| disk[*at..*at + 16] != [0; 16];
        let places: Vec<usize> = (0..disk.len()).step_by(16).filter(used).collect();
        (disk, places)
    });
    let seed = |number: usize| (0..61).map(|at| (at * 7 + number * 31) as u8).collect();
    Target {
        name: "fat",
        shape: Shape::Bytes,
        seeds: vec![vec![0], vec![1], seed(1), seed(2), seed(3)],
        mend: Box::new(|bytes| bytes.truncate(97)),
        run: Box::new(move |bytes| {
            // As in `image`, behind a byte that says which disk it is.
            let Some((which, changes)) = bytes.split_first() else { return false };
            let (mut bytes, places) = disks[usize::from(*which) % disks.len()].clone();
            for change in changes.chunks_exact(6) {
                let place = u32::from_le_bytes(change[..4].try_into().unwrap()) as usize;
                let at = places[place % places.len()] + place / places.len() % 15;
                bytes[at..at + 2].copy_from_slice(&change[4..]);
            }
            let Ok(survey) = Survey::of(Arc::new(bytes)) else { return false };
            for volume in &survey.volumes {
                for path in ["/a/linux", "/EFI", "/", "/a/../a/INITRD OF A LONG NAME"] {
                    let _ = volume.names(path);
                    let Ok(Some(node)) = volume.node(path) else { continue };
                    let mut got = 0;
                    let read = volume.stream(path, &node, &mut |bytes| {
                        got += bytes.len() as u64;
                        true
                    });
                    assert!(got <= volume.part.len && (read.is_err() || got == node.len()));
                }
            }
            let Ok(menu) = image::menu_of(&survey) else { return false };
            image::choose(&menu, None).is_ok_and(|entry| image::load(&survey, entry).is_ok())
        }),
    }
}
