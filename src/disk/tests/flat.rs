//! Whole disks written anew read as they did.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use proptest::prelude::*;

use super::super::delta::Delta;
use super::super::delta_format::{BLOCK, Parent};
use super::super::flat::{Patched, Zeros, differences, write_changes, write_layer, write_raw};
use super::super::frozen::FrozenChain;
use super::super::layer::LayerSpec;
use super::super::live::LiveDisk;
use super::super::qcow2_write::write_qcow2;
use super::super::suspects::{suspects, union};
use super::super::{Backing, Disk, ImageFormat, open_base};
use crate::progress::Progress;
use crate::storage::Storage;

struct Ram(Vec<u8>);

impl Backing for Ram {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> super::super::Result<()> {
        buf.copy_from_slice(&self.0[offset as usize..offset as usize + buf.len()]);
        Ok(())
    }
    fn next_data(&self, offset: u64) -> super::super::Result<Option<std::ops::Range<u64>>> {
        let rest = &self.0[offset as usize..];
        let Some(start) = rest.iter().position(|byte| *byte != 0) else { return Ok(None) };
        let len = rest[start..].iter().position(|byte| *byte == 0).unwrap_or(rest.len() - start);
        Ok(Some(offset + start as u64..offset + (start + len) as u64))
    }
}

fn all(disk: &dyn Backing) -> Vec<u8> {
    let mut bytes = vec![1; disk.len() as usize];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn disk(sectors: u64, writes: &[(u64, u64, u8)]) -> Ram {
    let mut bytes = vec![0; sectors as usize * 512];
    for &(at, len, fill) in writes {
        let at = (at % sectors) as usize * 512;
        let end = (at + len as usize).min(bytes.len());
        bytes[at..end].fill(fill);
    }
    Ram(bytes)
}

fn writes() -> impl Strategy<Value = Vec<(u64, u64, u8)>> {
    prop::collection::vec((any::<u64>(), 1u64..200_000, 0u8..4), 0..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..Default::default() })]

    #[test]
    fn every_format_reads_the_same(sectors in 1u64..6000, before in writes(), after in writes()) {
        let dir = tempfile::tempdir().unwrap();
        let (storage, progress) = (Storage::os(), Progress::default());
        let (before, after) = (disk(sectors, &before), disk(sectors, &after));
        let path = |name: &str| dir.path().join(name);

        write_raw(&storage, &path("raw"), &after, &progress).unwrap();
        prop_assert!(fs::read(path("raw")).unwrap() == after.0);
        write_qcow2(&storage, &path("qcow2"), &after, &progress).unwrap();
        let image = open_base(&storage, &path("qcow2"), ImageFormat::Qcow2).unwrap();
        prop_assert!(all(&image) == after.0);
        let layer = write_layer(&storage, &path("layer"), &after, &progress).unwrap();
        prop_assert!(all(&Patched::new(Arc::new(Zeros(after.len())), layer).unwrap()) == after.0);

        let everything = [Range(0, after.len()).into()];
        let told = progress.snapshot().done;
        let layer = write_changes(&storage, &path("changes"), &after, &before, &everything, &progress).unwrap();
        prop_assert_eq!(progress.snapshot().done - told, after.len());
        let changed: u64 = after.0.chunks(4096).zip(before.0.chunks(4096)).filter(|(a, b)| a != b).count() as u64;
        prop_assert_eq!(layer.allocated_bytes().unwrap(), changed * BLOCK);
        let patched = Patched::new(Arc::new(before), layer).unwrap();
        prop_assert!(all(&patched) == after.0);
        // What is said to be no data is zeros.
        let (mut at, mut sparse) = (0, vec![0; after.0.len()]);
        while let Some(data) = (at < patched.len()).then(|| patched.next_data(at).unwrap()).flatten() {
            patched.read_at(&mut sparse[data.start as usize..data.end as usize], data.start).unwrap();
            at = data.end;
        }
        prop_assert!(sparse == after.0);
    }
}

#[test]
fn holes_stay_holes_and_sizes_must_agree() {
    let dir = tempfile::tempdir().unwrap();
    let (storage, progress) = (Storage::os(), Progress::default());
    let mut large = Ram(vec![0; 80 << 20]);
    large.0[70 << 20..][..5000].fill(7);
    write_raw(&storage, &dir.path().join("raw"), &large, &progress).unwrap();
    write_qcow2(&storage, &dir.path().join("qcow2"), &large, &progress).unwrap();
    let layer = write_layer(&storage, &dir.path().join("layer"), &large, &progress).unwrap();
    for name in ["raw", "qcow2", "layer"] {
        let taken = fs::metadata(dir.path().join(name)).unwrap().blocks() * 512;
        assert!(taken <= 512 << 10, "{name} takes {taken} bytes");
    }
    assert!(Patched::new(Arc::new(Zeros(4096)), layer).is_err());
    let cancelled = Progress::default();
    cancelled.cancel();
    let error = write_raw(&storage, &dir.path().join("none"), &large, &cancelled).unwrap_err();
    assert!(error.to_string().contains("cancelled"), "{error}");
}

#[test]
fn only_layers_of_one_side_are_suspected() {
    let dir = tempfile::tempdir().unwrap();
    let storage = Storage::os();
    let base = dir.path().join("base");
    fs::write(&base, vec![1; 1 << 20]).unwrap();
    let frozen = |layers: &[LayerSpec]| {
        FrozenChain::open(&storage, open_base(&storage, &base, ImageFormat::Raw).unwrap(), layers).unwrap()
    };
    let layer = |name: &str, below: &[LayerSpec], at: u64, fill: u8| {
        let path = dir.path().join(name);
        let parent = below.last().map_or(Parent::Base, |layer| Parent::Delta(layer.id));
        let id = Delta::create(&storage, &path, 1 << 20, parent).unwrap().id();
        let spec = LayerSpec { path, id };
        let chain = [below, std::slice::from_ref(&spec)].concat();
        let disk = LiveDisk::open(&storage, &base, ImageFormat::Raw, &chain, &Default::default()).unwrap();
        disk.write_at(&[fill; 8192], at).unwrap();
        disk.flush().unwrap();
        chain
    };
    let common = layer("common", &[], 0, 2);
    let left = layer("left", &common, 40960, 3);
    // Of these two blocks the second is written as it was.
    let right = layer("right", &common, 4096, 2);
    let (left, right, common) = (frozen(&left), frozen(&right), frozen(&common));
    assert_eq!(suspects(&common, &left).unwrap(), [Range(40960, 49152).into()]);
    let both = suspects(&left, &right).unwrap();
    assert_eq!(both, [Range(4096, 12288).into(), Range(40960, 49152).into()]);
    let mut found = Vec::new();
    let tell = |at, bytes: &[u8]| {
        found.push((at, bytes.len(), bytes[0]));
        Ok(())
    };
    differences(&left, &right, &both, &Progress::default(), tell).unwrap();
    assert_eq!(found, [(8192, 4096, 2), (40960, 8192, 1)]);
    assert_eq!(suspects(&left, &left).unwrap(), []);
    assert_eq!(union(vec![4..6, 0..2, 2..3, 5..9]), [0..3, 4..9]);
}

/// Clippy takes an array of one range for a mistake.
struct Range(u64, u64);

impl From<Range> for std::ops::Range<u64> {
    fn from(Range(start, end): Range) -> Self {
        start..end
    }
}
