//! Disk images that users bring.

use piton::disk::base_sums::{self, BaseSums};
use piton::disk::foreign::{HEAD, TAIL, recognise};
use piton::disk::qcow2_header;
use piton::disk::qcow2_write::write_qcow2;
use piton::disk::{Backing, ImageFormat, open_base, probe};
use piton::progress::Progress;
use piton::storage::Storage;

use crate::files::folder;
use crate::{Shape, Target};

/// What a file is by its first and last bytes.
pub fn kind() -> Target {
    let marked = |at: usize, mark: &[u8]| {
        let mut bytes = vec![0; HEAD + TAIL];
        bytes[at..at + mark.len()].copy_from_slice(mark);
        bytes
    };
    let seeds = vec![
        marked(0, b"KDMV"),
        marked(0, b"vhdxfile"),
        marked(0, b"BZh91AY&SY"),
        marked(0, b"\x1f\x8b\x08"),
        marked(0x40, &[0x7f, 0x10, 0xda, 0xbe]),
        marked(0x8001, b"CD001"),
        marked(HEAD, b"conectix"),
        marked(HEAD, b"koly"),
    ];
    let dir = folder();
    Target {
        name: "image-kind",
        shape: Shape::Fixed,
        seeds,
        mend: Box::new(|_| {}),
        run: Box::new(move |bytes| {
            let head = &bytes[..bytes.len().min(HEAD)];
            let found = recognise(head, &bytes[bytes.len().saturating_sub(TAIL)..]);
            let path = dir.path().join("image");
            std::fs::write(&path, bytes).unwrap();
            let probed = probe(&Storage::os(), &path, true);
            match found {
                Some(what) => {
                    assert!(probed.is_err() || bytes.is_empty());
                    assert!(!what.help(&path).is_empty() && !what.to_string().is_empty());
                }
                None => assert!(probed.is_ok() || bytes.starts_with(b"PITON")),
            }
            found.is_some()
        }),
    }
}

/// A whole image: what is opened is read from end to end.
pub fn qcow2() -> Target {
    let dir = folder();
    let storage = Storage::os();
    let raw = dir.path().join("raw");
    let mut bytes = vec![0; 300 << 10];
    bytes[70_000..140_000].fill(7);
    std::fs::write(&raw, &bytes).unwrap();
    let seed = dir.path().join("seed");
    let disk = open_base(&storage, &raw, ImageFormat::Raw).unwrap();
    write_qcow2(&storage, &seed, &disk, &Progress::default()).unwrap();
    // The clusters of data say nothing: small ones leave room for the tables.
    let whole = std::fs::read(&seed).unwrap();
    Target {
        name: "qcow2",
        shape: Shape::Fixed,
        seeds: vec![whole],
        mend: Box::new(|_| {}),
        run: Box::new(move |bytes| {
            let header = &bytes[..bytes.len().min(qcow2_header::LEN)];
            let fit = qcow2_header::check(header);
            if let Err(unfit) = &fit {
                assert!(!unfit.text(&seed).is_empty());
            }
            let path = dir.path().join("image");
            std::fs::write(&path, bytes).unwrap();
            let Ok(image) = open_base(&storage, &path, ImageFormat::Qcow2) else { return false };
            assert_eq!(fit, Ok(()));
            // A disk of petabytes takes long to read, whoever made it.
            let end = image.len().min(64 << 20);
            let mut at = 0;
            let mut buf = vec![0; 64 << 10];
            while at < end {
                let Ok(Some(data)) = image.next_data(at) else { break };
                assert!(data.start >= at && data.end > data.start && data.end <= image.len());
                let len = (data.end - data.start).min(buf.len() as u64);
                let _ = image.read_at(&mut buf[..len as usize], data.start);
                at = data.start + len;
            }
            true
        }),
    }
}

/// Checksums of a base image.
pub fn base_sums() -> Target {
    let dir = folder();
    let storage = Storage::os();
    let (raw, sums) = (dir.path().join("raw"), dir.path().join("sums"));
    std::fs::write(&raw, vec![7; 300 << 10]).unwrap();
    let disk = open_base(&storage, &raw, ImageFormat::Raw).unwrap();
    base_sums::seal(&storage, &sums, &disk, &|_| Ok(())).unwrap();
    Target {
        name: "base-sums",
        shape: Shape::Bytes,
        seeds: vec![std::fs::read(&sums).unwrap()],
        mend: Box::new(|bytes| {
            if bytes.len() >= 16 {
                let crc = crc32fast::hash(&[&bytes[..12], &bytes[16..]].concat());
                bytes[12..16].copy_from_slice(&crc.to_le_bytes());
            }
        }),
        run: Box::new(move |bytes| {
            let _keep = &dir;
            std::fs::write(&sums, bytes).unwrap();
            let base = open_base(&storage, &raw, ImageFormat::Raw).unwrap();
            if base.attach_sums(&storage, &sums).is_ok() {
                let _ = base.verify(&|_| Ok(()));
                let _ = base.next_data(0);
            }
            BaseSums::decode(bytes).is_ok()
        }),
    }
}
