//! Damage in a depot is named, and never becomes a VM.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::ckpt_common::{Lab, files};
use crate::common::Home;
use crate::shared::{end, folder, restore, with_one};

/// The largest object of a kind.
fn object(depot: &str, kind: &str) -> PathBuf {
    let found = files(&Path::new(depot).join(kind));
    found.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn damage_is_named_and_never_pulled() {
    let lab = Lab::new();
    let depot = folder(&lab, "depot");
    let (mut vm, one) = with_one(&lab);
    vm.power_off();
    lab.piton(&format!("push demo@one {depot}")).ok();
    let other = Home::new();
    let pull = format!("pull {depot}/demo@one");
    for kind in ["checkpoints", "index", "packs"] {
        let path = object(&depot, kind);
        let good = fs::read(&path).unwrap();
        let name = path.file_name().unwrap().to_str().unwrap();
        let flipped = {
            let mut bytes = good.clone();
            let at = bytes.len() / 3;
            bytes[at] ^= 0x10;
            bytes
        };
        for bad in [Some(flipped), Some(good[..good.len() / 2].to_vec()), Some(Vec::new()), None] {
            match &bad {
                Some(bytes) => fs::write(&path, bytes).unwrap(),
                None => fs::remove_file(&path).unwrap(),
            }
            let failed = other.piton(&pull);
            // A manifest that is not there is no checkpoint; all else is damage.
            let code = if kind == "checkpoints" && bad.is_none() { 3 } else { 1 };
            assert_eq!(failed.code, Some(code), "{kind}: {failed}");
            let about_it = failed.stderr.contains(name) || failed.stderr.contains("missing");
            assert!(about_it || code == 3, "{kind}: {failed}");
            assert_eq!(failed.stderr.lines().count(), 1, "{failed}");
            other.is_empty();
            let verified = lab.piton(&format!("depot verify {depot} --json"));
            let code = if kind == "checkpoints" && bad.is_none() { 0 } else { 1 };
            assert_eq!(verified.code, Some(code), "{kind}: {verified}");
            let is_flip = bad.as_ref().is_some_and(|bad| bad.len() == good.len());
            if code == 1 && !(kind == "packs" && is_flip) {
                // Nothing is removed from what is not understood.
                assert_ne!(lab.piton(&format!("depot prune {depot} --alone")).code, Some(0));
            }
        }
        fs::write(&path, &good).unwrap();
    }
    let verified = lab.piton(&format!("depot verify {depot} --json")).json();
    assert_eq!(verified["damage"], json!({}));
    // A link out of the depot is not followed.
    let path = object(&depot, "packs");
    let elsewhere = lab.beside("elsewhere");
    fs::rename(&path, &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
    assert_eq!(other.piton(&pull).code, Some(1));
    other.is_empty();
    fs::rename(&elsewhere, &path).unwrap();
    other.piton(&pull).ok();
    let mut guest = restore(&other, "demo");
    assert_eq!(guest.ok("sum"), one);
    end(&other, "demo");
}

#[test]
fn a_newer_format_is_not_touched() {
    let lab = Lab::new();
    let depot = folder(&lab, "depot");
    let (mut vm, _) = with_one(&lab);
    vm.power_off();
    lab.piton(&format!("push demo@one {depot}")).ok();
    let header = Path::new(&depot).join("depot.json");
    let newer = fs::read_to_string(&header).unwrap().replace("\"format\": 1", "\"format\": 2");
    fs::write(&header, newer).unwrap();
    for line in
        [format!("push demo@one {depot}"), format!("depot prune {depot}"), format!("pull {depot}/demo@one x")]
    {
        lab.piton(&line).fails(3, &["format 2"]);
    }
}
