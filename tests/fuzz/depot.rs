//! What lies in a depot, to which others can write.

use piton::depot::keys::{CHUNK_MAX, Keys};
use piton::depot::manifest::Manifest;
use piton::depot::name::Name;
use piton::depot::pack::{Builder, Index};
use piton::id::Id;
use serde_json::json;

use crate::files::mend_json;
use crate::{Shape, Target};

/// The index of a pack: what is accepted lies in the pack, and has no impossible lengths.
pub fn index() -> Target {
    let mut builder = Builder::new().unwrap();
    for n in 1..=5u8 {
        builder.add(Name([n; 32]), 4096 * usize::from(n), &vec![n; usize::from(n) * 100]);
    }
    let pack = builder.finish();
    let id = pack.id;
    Target {
        name: "depot-index",
        shape: Shape::Fixed,
        seeds: vec![pack.index],
        mend: Box::new(|bytes| {
            if let Some(at) = bytes.len().checked_sub(32) {
                let sum = blake3::hash(&bytes[..at]);
                bytes[at..].copy_from_slice(sum.as_bytes());
            }
        }),
        run: Box::new(move |bytes| {
            let Ok(index) = Index::decode(bytes, id) else { return false };
            for entry in &index.entries {
                assert!(u64::from(entry.offset) + u64::from(entry.stored) <= index.bytes);
                assert!((1..=CHUNK_MAX).contains(&(entry.len as usize)) && entry.name != Name::ZEROS);
            }
            true
        }),
    }
}

/// A manifest: what is accepted can be written again, and its streams are as long as they say.
pub fn manifest() -> Target {
    let zeros = Name::ZEROS.to_string();
    let stream = |bytes: u64| json!({ "bytes": bytes, "chunk": 131_072, "map": [zeros] });
    let seed = |kind: &str, memory: bool| {
        let mut value = json!({
            "format": 1, "depot": Id::from_bytes([2; 16]), "title_vm": "demo", "title": "one",
            "pushed": "2026-01-01T00:00:00Z", "id": Id::from_bytes([1; 16]), "name": "one", "kind": kind,
            "created": "2026-01-01T00:00:00Z", "vm": "demo", "piton": "0",
            "config": { "cpus": 1, "memory": 64 << 20, "kernel": "kernel",
                        "disks": [{ "id": "a", "path": "disks/a.raw", "format": "raw" }] },
            "checkpoint_type": "standard", "disks": { "a": stream(1 << 20) }, "kernel": stream(5),
        });
        if memory {
            value["memory"] = json!({ "ranges": [[0, 64 << 20]], "compressed": false, "stream": {
                "bytes": 64 << 20, "chunk": 262_144, "map": [zeros] } });
            value["state"] = stream(100);
        }
        let mut bytes = serde_json::to_vec(&value).unwrap();
        mend_json(&mut bytes);
        assert!(Manifest::decode(&bytes).is_ok(), "{:?}", Manifest::decode(&bytes));
        bytes
    };
    Target {
        name: "depot-manifest",
        shape: Shape::Json,
        seeds: vec![seed("offline", false), seed("standard", true)],
        mend: Box::new(mend_json),
        run: Box::new(|bytes| {
            let Ok(manifest) = Manifest::decode(bytes) else { return false };
            assert_eq!(Manifest::decode(&manifest.encode().unwrap()).as_ref(), Ok(&manifest));
            for (_, stream) in manifest.streams() {
                let names: u64 = (0..stream.map.len()).map(|part| stream.names_in(part) as u64).sum();
                assert_eq!(names, stream.chunks());
                assert!(stream.len_of(0) > 0 && stream.len_of(stream.chunks() - 1) <= CHUNK_MAX);
            }
            true
        }),
    }
}

/// A chunk as it lies in a pack: what is accepted is the chunk of that name.
pub fn chunk() -> Target {
    let plain: Vec<u8> = (0..65_536u32).flat_map(|word| (word / 7).to_le_bytes()).collect();
    let name = Keys::PLAIN.name(&plain);
    let packed = Keys::PLAIN.pack(&name, &plain).unwrap();
    Target {
        name: "depot-chunk",
        shape: Shape::Bytes,
        seeds: vec![packed, [[0].as_slice(), &plain].concat()],
        mend: Box::new(|_| {}),
        run: Box::new(move |bytes| {
            if let Ok(found) = Keys::PLAIN.unpack(&name, plain.len(), bytes) {
                assert!(found == plain);
                return true;
            }
            // What is not packed is the chunk that it says, whatever its name is to be.
            match bytes.split_first() {
                Some((0, rest)) if !rest.is_empty() && rest.len() <= CHUNK_MAX => {
                    let own = Keys::PLAIN.name(rest);
                    let found = Keys::PLAIN.unpack(&own, rest.len(), bytes);
                    assert!(found.as_deref() == Ok(rest) || own == Name::ZEROS);
                    true
                }
                _ => false,
            }
        }),
    }
}
