//! Files that a user, another program or a disk could have changed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;

use piton::capture::image::{Image, ImageWriter};
use piton::checkpoint::Manifest;
use piton::checkpoint::manifest::crc_of;
use piton::checkpoint::state::{StateInfo, read_state};
use piton::checkpoint::store::{Began, Verified};
use piton::disk::delta::Delta;
use piton::disk::delta_format::{Geometry, Header, PAGE, PAGE_WORDS, Parent, Slot, decode_page, encode_page};
use piton::disk::layer::{LayerSpec, inspect};
use piton::folder::Home;
use piton::history::whole::fit::Remap;
use piton::id::Id;
use piton::machine::MachineState;
use piton::progress::Progress;
use piton::storage::Storage;
use piton::transfer::format::{Export, FileSum};
use piton::transfer::import::{self, Wanted};
use serde_json::Value;

use crate::{Shape, Target};

pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap()
}

fn page(bytes: &[u8], number: usize) -> [u8; PAGE] {
    let mut page = [0; PAGE];
    if let Some(rest) = bytes.get(number * PAGE..) {
        let len = rest.len().min(PAGE);
        page[..len].copy_from_slice(&rest[..len]);
    }
    page
}

fn put(bytes: &mut [u8], at: usize, crc: u32) {
    bytes[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn id_at(bytes: &[u8], at: usize) -> Id {
    let mut id = [0; 16];
    id.copy_from_slice(&bytes[at..at + 16]);
    Id::from_bytes(id)
}

/// Two headers and the two slots of the first bitmap page.
pub fn delta() -> Target {
    let id = Id::from_bytes([7; 16]);
    let seed = |size: u64, parent| {
        let geometry = Geometry::new(size).unwrap();
        // The second is as after a merge with a smaller one.
        let below = |generation| if generation == 2 { size.min(4096) } else { size };
        let header = |generation| {
            Header { generation, size, below: below(generation), id, parent }.encode(geometry.data_offset)
        };
        let mut words = [0; PAGE_WORDS];
        words[0] = 0b1011;
        let slot = |generation| encode_page(id, 0, generation, &words);
        [header(1), header(2), slot(1), slot(2)].concat()
    };
    let seeds = vec![seed(64 * 4096, Parent::Base), seed(4096 + 512, Parent::Delta(Id::from_bytes([8; 16])))];
    let dir = folder();
    Target {
        name: "delta",
        shape: Shape::Fixed,
        seeds,
        mend: Box::new(|bytes| {
            for at in [0, PAGE] {
                let crc = crc32fast::hash(&bytes[at..at + PAGE - 4]);
                put(bytes, at + PAGE - 4, crc);
            }
            for at in [2 * PAGE, 3 * PAGE] {
                let crc = crc32fast::hash(&bytes[at + 4..at + PAGE]);
                put(bytes, at, crc);
            }
        }),
        run: Box::new(move |bytes| {
            let headers = [page(bytes, 0), page(bytes, 1)];
            let Ok((header, _)) = Header::newest([&headers[0], &headers[1]]) else { return false };
            let geometry = Geometry::new(header.size).unwrap();
            assert_eq!(Header::decode(&header.encode(geometry.data_offset)), Ok(header));
            for number in [2, 3] {
                let bytes = page(bytes, number);
                if let Slot::Valid { generation, words } = decode_page(&bytes, header.id, 0, &geometry) {
                    assert!(encode_page(header.id, 0, generation, &words) == bytes, "bits were lost");
                }
            }
            let path = dir.path().join("layer");
            std::fs::write(&path, bytes).unwrap();
            // A longer one is refused, which is tried as well.
            let len = geometry.file_len.min(4 << 20);
            std::fs::File::options().write(true).open(&path).unwrap().set_len(len).unwrap();
            let storage = Storage::os();
            let info = inspect(&storage, &path).unwrap();
            assert_eq!((info.id, info.size), (header.id, header.size));
            let Ok(layer) = Delta::open(&storage, &LayerSpec { path, id: header.id }) else { return false };
            let allocated = layer.allocated_bytes().unwrap();
            let runs = layer.freeze().runs().unwrap();
            assert!(runs.iter().all(|run| run.start < run.end && run.end <= geometry.blocks));
            assert!(allocated <= geometry.blocks * 4096);
            true
        }),
    }
}

/// JSON with a `crc` field over the rest of it.
pub fn mend_json(bytes: &mut Vec<u8>) {
    if let Ok(Value::Object(mut fields)) = serde_json::from_slice(bytes) {
        fields.remove("crc");
        let crc = crc_of(Value::Object(fields.clone()));
        fields.insert("crc".into(), crc.into());
        *bytes = Value::Object(fields).to_string().into_bytes();
    }
}

pub fn manifest() -> Target {
    Target {
        name: "manifest",
        shape: Shape::Json,
        seeds: Vec::new(),
        mend: Box::new(mend_json),
        run: Box::new(|bytes| {
            // The id is the name of its folder, which fits.
            let value: Option<Value> = serde_json::from_slice(bytes).ok();
            let id = value.and_then(|value| value.get("id")?.as_str()?.parse().ok());
            let id = id.unwrap_or(Id::from_bytes([1; 16]));
            let Ok(manifest) = Manifest::decode(bytes, id) else { return false };
            let again = manifest.encode().unwrap();
            assert_eq!(Manifest::decode(&again, id).unwrap(), manifest);
            true
        }),
    }
}

/// What came of trying a checkpoint.
pub fn verified() -> Target {
    let verified = Verified {
        when: "2026-11-27T12:00:00Z".parse().unwrap(),
        passed: false,
        began: Began::Resumed,
        until: "its guest agent answered".into(),
        took_ms: 1234,
        why: Some("it ended".into()),
        console: Some("login: \u{1b}[0m".into()),
    };
    Target {
        name: "verified",
        shape: Shape::Json,
        seeds: vec![verified.encode().unwrap()],
        mend: Box::new(|_| {}),
        run: Box::new(|bytes| {
            let Some(verified) = Verified::decode(bytes) else { return false };
            assert_eq!(Verified::decode(&verified.encode().unwrap()), Some(verified));
            true
        }),
    }
}

const STATE_HEADER: usize = 24;

/// The JSON in it; the header is put before it here, with its checksum.
pub fn state() -> Target {
    let dir = folder();
    let mut whole = crate::kept("state-file").remove(0);
    let seed = whole.split_off(STATE_HEADER);
    Target {
        name: "state",
        shape: Shape::Json,
        seeds: vec![seed],
        mend: Box::new(|_| {}),
        run: Box::new(move |json| {
            let mut bytes = b"PITONsta\x01\0\0\0\0\0\0\0".to_vec();
            bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
            bytes.extend_from_slice(json);
            let mut hasher = crc32fast::Hasher::new();
            hasher.update(&bytes[..12]);
            hasher.update(&bytes[16..]);
            let crc = hasher.finalize();
            put(&mut bytes, 12, crc);
            let path = dir.path().join("state");
            std::fs::write(&path, &bytes).unwrap();
            let info = StateInfo { bytes: bytes.len() as u64, crc };
            let read = read_state(&Storage::os(), &path, &info).unwrap();
            assert!(read == json);
            let Ok(state) = serde_json::from_slice::<MachineState>(&read) else { return false };
            crate::virtio::restore(&state.virtio);
            let again = serde_json::to_vec(&state).unwrap();
            let same: MachineState = serde_json::from_slice(&again).unwrap();
            assert!(serde_json::to_vec(&same).unwrap() == again);
            true
        }),
    }
}

const RAM_PAGES: usize = 72;
/// Checksums, bitmap, frames, table of groups, header.
const TAIL: usize = 5 * PAGE;

/// All of an image behind its pages.
pub fn memory_index() -> Target {
    let dir = folder();
    let storage = Storage::os();
    let id = Id::from_bytes([3; 16]);
    // The first chunk is of one range.
    let ranges = [(0, 69 * 4096), (80 * 4096, 3 * 4096)];
    let seed = |name: &str, delta: bool| {
        let path = dir.path().join(name);
        let mut writer = match delta {
            true => ImageWriter::create_delta(&storage, &path, id, Id::from_bytes([4; 16]), &ranges),
            false => ImageWriter::create(&storage, &path, id, &ranges),
        }
        .unwrap();
        writer.write(0, &[5; 20 * PAGE]).unwrap();
        writer.write(81 * 4096, &[6; PAGE]).unwrap();
        writer.compress_all(&Progress::default()).unwrap();
        writer.finish().unwrap();
        std::fs::read(&path).unwrap()
    };
    let (full, delta) = (seed("full", false), seed("delta", true));
    let pages = full[..full.len() - TAIL].to_vec();
    let seeds = [full, delta].map(|file| file[file.len() - TAIL..].to_vec()).to_vec();
    assert!(pages.len() >= RAM_PAGES * PAGE);
    let first_frame = pages[..PAGE].to_vec();
    Target {
        name: "memory-index",
        shape: Shape::Fixed,
        seeds,
        mend: Box::new(move |bytes| {
            // The number of pages follows from the ranges; ranges alone would never be believed.
            let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
            let count = (word(4 * PAGE + 80) as u32).min(8) as usize;
            let lens = (0..count).map(|i| word(4 * PAGE + 96 + i * 16));
            let pages = lens.fold(0u64, u64::wrapping_add) / 4096;
            let frame = word(2 * PAGE) as u32 as usize;
            bytes[4 * PAGE + 56..][..8].copy_from_slice(&pages.to_le_bytes());
            // What is no frame has to be found out by decompressing it.
            if (1..=PAGE).contains(&frame) {
                put(bytes, 2 * PAGE + 4, crc32fast::hash(&first_frame[..frame]));
            }
            let parts = [&bytes[PAGE..PAGE + 128], &bytes[..PAGE], &bytes[2 * PAGE..2 * PAGE + 128]];
            let group = crc32fast::hash(&parts.concat());
            put(bytes, 3 * PAGE, group);
            let table = crc32fast::hash(&bytes[3 * PAGE..4 * PAGE]);
            put(bytes, 4 * PAGE + 84, table);
            let header = crc32fast::hash(&bytes[4 * PAGE..5 * PAGE - 4]);
            put(bytes, 5 * PAGE - 4, header);
        }),
        run: Box::new(move |bytes| {
            let path = dir.path().join("image");
            std::fs::write(&path, [&pages[..], bytes].concat()).unwrap();
            let Some(last) = bytes.len().checked_sub(PAGE) else { return false };
            let id = id_at(bytes, last + 16);
            let crc = u32::from_le_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
            let Ok(image) = Image::open(&storage, &path, id, crc) else { return false };
            assert!(image.guest_bytes() <= 1 << 20, "the file is not as long as that");
            if let Ok(runs) = image.present() {
                let inside = |gpa: u64| image.ranges().iter().any(|r| (r.0..r.0 + r.1).contains(&gpa));
                assert!(runs.iter().all(|run| inside(run.start) && inside(run.end - 1)));
                assert_eq!(runs.iter().map(|run| run.end - run.start).sum::<u64>(), image.present_bytes());
            }
            for &(start, len) in image.ranges() {
                let _ = image.read(start, &mut vec![0; len as usize]);
            }
            let _ = image.verify(|_, _| ControlFlow::Continue(()));
            true
        }),
    }
}

/// `export.json` of a folder with a disk and a kernel. What is accepted leads nowhere else.
pub fn export() -> Target {
    let dir = folder();
    let (root, home) = (dir.path().join("export"), dir.path().join("home"));
    std::fs::create_dir_all(root.join("disks")).unwrap();
    std::fs::create_dir(&home).unwrap();
    let contents = [("kernel", vec![1; 512]), ("disks/a.raw", vec![2; 4096])];
    let mut sums = BTreeMap::new();
    for (name, bytes) in &contents {
        std::fs::write(root.join(name), bytes).unwrap();
        let sum = FileSum { bytes: bytes.len() as u64, crc: crc32fast::hash(bytes) };
        sums.insert((*name).to_owned(), sum);
    }
    let disk = |id: &str, path: &str| serde_json::json!({ "id": id, "path": path, "format": "raw", "passthrough": id == "p" });
    let seed = |kernel: &str, disks: Vec<Value>, left_out: Value| {
        let mut bytes = serde_json::to_vec(&serde_json::json!({
            "format": 1,
            "id": Id::from_bytes([1; 16]), "name": "one", "kind": "offline", "vm": "demo", "piton": "0",
            "created": "2026-01-01T00:00:00Z", "exported": "2026-01-01T00:00:00Z",
            "config": { "cpus": 1, "memory": 64 << 20, "kernel": kernel, "disks": disks },
            "checkpoint_type": "standard",
            "disks": { "a": { "file": "disks/a.raw", "format": "raw", "size": 4096 } },
            "left_out": left_out, "files": sums, "note": "", "warnings": [],
        }))
        .unwrap();
        mend_json(&mut bytes);
        bytes
    };
    let left_out = serde_json::json!([{ "disk": "p", "why": "passthrough" }]);
    let seeds = vec![
        seed("kernel", vec![disk("a", "disks/a.raw")], serde_json::json!([])),
        seed("/etc/passwd", vec![disk("a", "disks/a.raw"), disk("p", "/etc/passwd")], left_out),
    ];
    let (storage, path) = (Storage::os(), root.join("export.json"));
    Target {
        name: "export",
        shape: Shape::Json,
        seeds,
        mend: Box::new(mend_json),
        run: Box::new(move |bytes| {
            let _keep = &dir;
            std::fs::write(&path, bytes).unwrap();
            let remap = Remap::default();
            let dirs = [root.clone()];
            let wanted = Wanted { dirs: &dirs, name: None, new_id: false, remap: &remap };
            let home = Home::at(home.clone(), storage.clone());
            let Ok(Ok(_)) = import::run(&home, &storage, &wanted, false, &Progress::default()) else {
                return false;
            };
            let export = Export::decode(bytes, &path).unwrap();
            let boots = [&export.config.kernel, &export.config.initrd].into_iter().flatten();
            assert!(boots.into_iter().all(|path| path.is_relative()), "a file of the host is booted");
            assert!(export.config.disks.iter().all(|disk| export.disks.contains_key(&disk.id)));
            assert_eq!(Export::decode(&export.encode(&path).unwrap(), &path).unwrap(), export);
            true
        }),
    }
}

pub fn vm_json() -> Target {
    let dir = folder();
    let folder = Home::at(dir.path().to_owned(), Storage::os()).folder(&"demo".parse().unwrap());
    let lock = folder.create().unwrap();
    let path: PathBuf = folder.definition_path();
    Target {
        name: "vm.json",
        shape: Shape::Json,
        seeds: Vec::new(),
        mend: Box::new(mend_json),
        run: Box::new(move |bytes| {
            let _keep = &dir;
            std::fs::write(&path, bytes).unwrap();
            let Ok(definition) = folder.load() else { return false };
            folder.save(&lock, &definition).unwrap();
            assert_eq!(folder.load().unwrap(), definition);
            true
        }),
    }
}
