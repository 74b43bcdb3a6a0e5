//! Archives of piton's, seen by GNU tar, and the other way about. Not among the unit tests: a process that is
//! being started holds the locks of whoever starts it for a moment, which other tests run into.

use std::fs;

use piton::inside::tar::{Entry, Event, Kind, Reader, TarError, end, header, padding};

type Read = Vec<(Entry, Vec<u8>)>;

fn read(bytes: &[u8]) -> (Read, bool) {
    let (mut reader, mut all): (_, Read) = (Reader::default(), Vec::new());
    for part in bytes.chunks(1000) {
        let pushed = reader.push(part, &mut |event| {
            match event {
                Event::Begin(entry) => all.push((entry.clone(), Vec::new())),
                Event::Data(data) => all.last_mut().unwrap().1.extend_from_slice(data),
                Event::End => {}
            }
            Ok::<(), TarError>(())
        });
        pushed.unwrap();
    }
    (all, reader.is_whole())
}

#[test]
fn gnu_tar_understands_it_and_is_understood() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, name) = (vec![b'x'; 120], vec![b'y'; 120]);
    let long = [&folder[..], &b"/"[..], &name[..]].concat();
    let mut bytes = Vec::new();
    for (path, kind, data) in [(&folder, Kind::Folder, &b""[..]), (&long, Kind::File, b"hello")] {
        let size = data.len() as u64;
        let entry = Entry { path: path.clone(), kind, mode: 0o755, size, target: Vec::new() };
        bytes.extend(header(&entry, 1_700_000_000));
        bytes.extend_from_slice(data);
        bytes.resize(bytes.len() + padding(size) as usize, 0);
    }
    bytes.extend(end());
    fs::write(dir.path().join("a.tar"), bytes).unwrap();
    let tar = |words: &[&str]| {
        let told = std::process::Command::new("tar").args(words).current_dir(&dir).output().unwrap();
        assert!(told.status.success(), "{told:?}");
        told.stdout
    };
    assert!(String::from_utf8_lossy(&tar(&["-tf", "a.tar"])).lines().any(|line| line.as_bytes() == long));
    tar(&["-xf", "a.tar"]);
    let file = dir.path().join(String::from_utf8(long).unwrap());
    assert_eq!(fs::read(file).unwrap(), b"hello");
    fs::write(dir.path().join("f"), "content").unwrap();
    for format in ["--format=gnu", "--format=pax", "--format=ustar"] {
        let (all, whole) = read(&tar(&[format, "-cf", "-", "f"]));
        assert!(whole, "{format}");
        let [(entry, data)] = &all[..] else { panic!("{all:?}") };
        assert_eq!((&entry.path[..], &data[..], entry.kind), (&b"f"[..], &b"content"[..], Kind::File));
    }
}
