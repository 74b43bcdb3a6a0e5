use chrono::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::checkpoint::stamp::Part;
use crate::config::{DiskConfig, DiskFormat};

/// A whole manifest of a VM with three disks.
pub(crate) fn sample(id: Id, name: &str, parent: Option<Id>) -> Manifest {
    let disk = |id: &str| DiskConfig {
        id: id.into(),
        path: format!("/images/{id}").into(),
        format: DiskFormat::Raw,
        readonly: id == "cd",
        passthrough: false,
        overlay: false,
    };
    let time = Utc.with_ymd_and_hms(2026, 11, 22, 18, 40, 12).unwrap();
    Manifest {
        id,
        name: name.parse().unwrap(),
        note: "a \"note\"\nof two lines".into(),
        parent,
        kind: Kind::Standard,
        created: time,
        vm: "demo".into(),
        config: VmConfig {
            cpus: 2,
            memory: 64 << 20,
            kernel: Some("/boot/bzImage".into()),
            initrd: None,
            cmdline: "console=ttyS0".into(),
            disks: vec![disk("root"), disk("data"), disk("cd")],
            nets: Vec::new(),
            vsock: false,
            boot_disk: None,
        },
        kernel: Some(FileStamp { path: "/boot/bzImage".into(), len: 9, modified: time, crc: 4 }),
        initrd: None,
        disks: BTreeMap::from([
            ("root".into(), DiskPoint::Base(stamp(time))),
            ("data".into(), DiskPoint::Layer { id: Id::from_bytes([9; 16]), sums: Some(3) }),
        ]),
        bases: BTreeMap::from([("root".into(), stamp(time))]),
        left_out: vec![LeftOut { disk: "cd".into(), why: LeftOutWhy::ReadOnly }],
        memory: Some(MemoryInfo { guest_bytes: 64 << 20, stored_bytes: 4096, crc: 5, ..Default::default() }),
        state: Some(StateInfo { bytes: 100, crc: 6 }),
        capture: None,
        frozen_us: None,
        fallback: None,
        automatic: false,
        keeping: Keeping::default(),
        pause_us: Some(210),
        disk_bytes: 8192,
        piton: "0.1.0".into(),
        warnings: Vec::new(),
        unknown: Default::default(),
    }
}

fn stamp(modified: DateTime<Utc>) -> BaseStamp {
    BaseStamp { top: Part { len: 512, modified, sample: 7 }, below: Vec::new() }
}

const ID: Id = Id::from_bytes([1; 16]);

#[test]
fn a_manifest_is_text_and_back() {
    let manifest = sample(ID, "before", Some(Id::from_bytes([2; 16])));
    let bytes = manifest.encode().unwrap();
    assert_eq!(Manifest::decode(&bytes, ID).unwrap(), manifest);
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("{\n  \"format\": 1,\n  \"id\": \"0101"), "{text}");
    // Laid out otherwise, and in another order, it says the same.
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(Manifest::decode(value.to_string().as_bytes(), ID).unwrap(), manifest);
    let other = Id::from_bytes([3; 16]);
    assert!(matches!(Manifest::decode(text.as_bytes(), other), Err(ManifestError::WrongId { .. })));
}

#[test]
fn the_version_is_looked_at_first() {
    let newer = br#"{"format": 2, "id": [], "entirely": "other"}"#;
    let error = Manifest::decode(newer, ID).unwrap_err();
    assert!(matches!(error, ManifestError::Newer { found: 2 }));
    assert!(error.to_string().contains("newer version of piton"));
    for text in
        ["", "{", "[]", "null", "{}", r#"{"format": "1"}"#, r#"{"format": 1}"#, r#"{"format": 1, "crc": 0}"#]
    {
        let error = Manifest::decode(text.as_bytes(), ID).unwrap_err().to_string();
        assert!(error.contains("damaged"), "{text}: {error}");
    }
}

#[test]
fn parts_that_do_not_agree_are_refused() {
    let refused = |change: &dyn Fn(&mut Manifest)| {
        let mut manifest = sample(ID, "a", None);
        change(&mut manifest);
        assert!(manifest.encode().is_err());
        manifest.validate().unwrap_err().to_string()
    };
    assert!(refused(&|m| m.parent = Some(ID)).contains("own parent"));
    assert!(refused(&|m| m.memory = None).contains("without memory"));
    assert!(refused(&|m| m.kind = Kind::Offline).contains("offline with memory"));
    assert!(refused(&|m| m.config.memory = 128 << 20).contains("bytes of memory"));
    assert!(refused(&|m| m.config.cpus = 0).contains("configuration"));
    assert!(refused(&|m| m.left_out.clear()).contains("not mention disk `cd`"));
    assert!(refused(&|m| m.left_out[0].disk = "root".into()).contains("`root` twice"));
    assert!(
        refused(&|m| m.left_out.push(LeftOut { disk: "x".into(), why: LeftOutWhy::Passthrough }))
            .contains("`x`")
    );
    let mut offline = sample(ID, "a", None);
    (offline.kind, offline.memory, offline.state) = (Kind::Offline, None, None);
    offline.validate().unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Found, or without meaning: a space that became another.
    #[test]
    fn a_flipped_bit_is_found(at: prop::sample::Index, bit in 0..8u32) {
        let manifest = sample(ID, "before", None);
        let mut bytes = manifest.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(read) = Manifest::decode(&bytes, ID) {
            prop_assert_eq!(read, manifest);
        }
    }
}

#[test]
fn what_a_later_piton_says_besides_is_kept() {
    let manifest = sample(Id::from_bytes([1; 16]), "a", None);
    let mut value: Value = serde_json::from_slice(&manifest.encode().unwrap()).unwrap();
    let more = serde_json::json!({ "of": ["a", "later"], "version": 1 });
    value["novelty"] = more.clone();
    value.as_object_mut().unwrap().remove("crc");
    value["crc"] = crc_of(value.clone()).into();
    let read = Manifest::decode(&serde_json::to_vec(&value).unwrap(), manifest.id).unwrap();
    assert_eq!(read.unknown, [("novelty".to_owned(), more.clone())].into());
    let again = Manifest { note: "another".into(), ..read };
    let bytes = again.encode().unwrap();
    assert_eq!(Manifest::decode(&bytes, manifest.id).unwrap(), again);
    let text = String::from_utf8(bytes).unwrap();
    assert_eq!((text.matches("\n  \"format\"").count(), text.matches("novelty").count()), (1, 1), "{text}");
}
