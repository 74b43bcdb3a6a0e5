//! Layers as real files: locks, errors that name files, checksums.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::disk::chain::Chain;
use crate::disk::delta::{Delta, FrozenDelta};
use crate::disk::delta_format::{BLOCK, Parent};
use crate::disk::frozen::FrozenChain;
use crate::disk::layer::{LayerSpec, inspect};
use crate::disk::merge::{Direction, Plan};
use crate::disk::{Backing, Disk, DiskError, ImageFormat, open_base, probe, sums};
use crate::storage::{Storage, StorageError};

const SIZE: u64 = 1 << 20;

struct Folder {
    dir: tempfile::TempDir,
    storage: Storage,
}

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("base"), vec![9; SIZE as usize]).unwrap();
        Self { dir, storage: Storage::os() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn base(&self) -> crate::disk::Base {
        open_base(&self.storage, &self.path("base"), ImageFormat::Raw).unwrap()
    }

    fn chain(&self) -> Chain {
        let top = Delta::create(&self.storage, &self.path("a"), SIZE, Parent::Base).unwrap();
        let below = FrozenChain::open(&self.storage, self.base(), &[]).unwrap();
        Chain::new(below, top).unwrap()
    }

    fn push(&self, chain: &Chain, name: &str) -> std::sync::Arc<FrozenDelta> {
        let fresh = chain.prepare_overlay(&self.storage, &self.path(name)).unwrap();
        chain.push_overlay(fresh)
    }
}

fn text<T>(result: Result<T, DiskError>) -> String {
    match result {
        Ok(_) => panic!("this has to fail"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn a_wrong_layer_or_parent_names_both() {
    let folder = Folder::new();
    let chain = folder.chain();
    folder.push(&chain, "b");
    chain.flush().unwrap();
    let (b, frozen) = chain.layers();
    let a = frozen[0].clone();
    drop(chain);
    let open = |deltas: &[LayerSpec], top: &LayerSpec| {
        text(Chain::open(&folder.storage, folder.base(), deltas, top))
    };
    let error = open(&[], &b);
    assert!(error.contains("/b") && error.contains("/base") && error.contains(&a.id.to_string()), "{error}");
    let swapped = LayerSpec { path: a.path.clone(), id: b.id };
    let error = open(&[swapped], &b);
    assert!(error.contains("/a") && error.contains(&b.id.to_string()), "{error}");
    fs::File::create(folder.path("base")).unwrap().set_len(SIZE * 2).unwrap();
    let error = open(std::slice::from_ref(&a), &b);
    assert!(error.contains("/a") && error.contains("/base") && error.contains("2097152"), "{error}");
    assert!(matches!(probe(&folder.storage, &a.path, true), Err(DiskError::IsDelta(_))));
    assert_eq!(inspect(&folder.storage, &b.path).unwrap().parent, Parent::Delta(a.id));
}

#[test]
fn a_spoiled_layer_is_refused() {
    let folder = Folder::new();
    let chain = folder.chain();
    chain.write_at(&[1; 512], 0).unwrap();
    chain.flush().unwrap();
    chain.write_at(&[1; 512], 5 * BLOCK).unwrap();
    chain.flush().unwrap();
    let (top, _) = chain.layers();
    drop(chain);
    let file = fs::OpenOptions::new().write(true).open(&top.path).unwrap();
    let open = || text(Chain::open(&folder.storage, folder.base(), &[], &top));
    // Both slots of the first bitmap page.
    file.write_all_at(&[0xff; 8], 8192 + 100).unwrap();
    file.write_all_at(&[0xff; 8], 12288 + 100).unwrap();
    let error = open();
    assert!(error.contains("bitmap page at offset 8192"), "{error}");
    file.set_len(1 << 20).unwrap();
    assert!(open().contains("bytes long"));
    file.write_all_at(&[0xff; 8], 64).unwrap();
    assert!(open().contains("checksum of the header"));
    file.write_all_at(b"nonsense", 0).unwrap();
    assert!(open().contains("not a delta layer"));
    file.set_len(0).unwrap();
    assert!(open().contains("not a delta layer"));
}

#[test]
fn a_live_merge_needs_the_lower_layer_for_itself() {
    let folder = Folder::new();
    let chain = folder.chain();
    chain.write_at(&[1; 8192], 0).unwrap();
    let a = folder.push(&chain, "b");
    chain.write_at(&[2; 4096], 4096).unwrap();
    let b = folder.push(&chain, "c");
    chain.write_at(&[3; 512], 8192).unwrap();
    chain.flush().unwrap();

    // A clone that reads the lower layer by itself.
    let clone = FrozenChain::open(&folder.storage, folder.base(), &[a.spec()]).unwrap();
    let refused = chain.begin_merge(&folder.storage, b.id(), None, None, None);
    assert!(matches!(refused, Err(DiskError::Storage(StorageError::InUse { .. }))));
    drop(clone);

    let merge = chain.begin_merge(&folder.storage, b.id(), Some(Direction::Commit), None, None).unwrap();
    let second = chain.begin_merge(&folder.storage, b.id(), None, None, None);
    assert!(matches!(second, Err(DiskError::Storage(StorageError::InUse { .. }))));
    let gone = chain.finish_merge(&folder.storage, merge, &[], None).unwrap();
    assert_eq!(gone, folder.path("b"));
    fs::remove_file(gone).unwrap();

    // And down into the base, which another VM may not read meanwhile.
    let other = folder.base();
    assert!(chain.begin_merge(&folder.storage, a.id(), None, None, None).is_err());
    drop(other);
    let merge = chain.begin_merge(&folder.storage, a.id(), None, None, None).unwrap();
    let gone = chain.finish_merge(&folder.storage, merge, &[], None).unwrap();
    assert_eq!(gone, folder.path("a"));
    drop(folder.base());

    let mut buf = vec![0; 12288];
    chain.read_at(&mut buf, 0).unwrap();
    let expected = [vec![1; 4096], vec![2; 4096], vec![3; 512], vec![9; 3584]].concat();
    assert!(buf == expected);
    let (top, frozen) = chain.layers();
    assert!(frozen.is_empty());
    chain.flush().unwrap();
    drop(chain);
    let chain = Chain::open(&folder.storage, folder.base(), &[], &top).unwrap();
    chain.read_at(&mut buf, 0).unwrap();
    assert!(buf == expected);
}

#[test]
fn rotten_data_is_named_and_not_returned() {
    let folder = Folder::new();
    let chain = folder.chain();
    chain.write_at(&[1; 8192], 300 << 10).unwrap();
    chain.write_at(&[1; 512], 0).unwrap();
    let a = folder.push(&chain, "b");
    a.sync().unwrap();
    let seal = a.seal(&folder.storage).unwrap();
    assert_eq!((seal.bytes, &seal.path), (3 * BLOCK, &sums::path_of(a.path(), seal.crc)));
    let spec = a.spec();
    a.attach_sums(&folder.storage, seal.crc).unwrap();
    a.verify(|_| Ok(())).unwrap();
    assert!(a.attach_sums(&folder.storage, seal.crc ^ 1).is_err());

    let open = || {
        let frozen = FrozenChain::open(&folder.storage, folder.base(), std::slice::from_ref(&spec)).unwrap();
        frozen.deltas()[0].attach_sums(&folder.storage, seal.crc).unwrap();
        frozen
    };
    let mut buf = [0; 512];
    open().read_at(&mut buf, 300 << 10).unwrap();
    let at = (1 << 20) + (300 << 10) + 4096;
    let file = fs::OpenOptions::new().write(true).open(&spec.path).unwrap();
    file.write_all_at(&[2], at).unwrap();
    let frozen = open();
    let error = text(frozen.read_at(&mut buf, 300 << 10));
    assert!(error.contains("/a is damaged") && error.contains(&(at >> 17 << 17).to_string()), "{error}");
    // Only what is touched.
    frozen.read_at(&mut buf, 0).unwrap();
    frozen.read_at(&mut buf, 200 << 10).unwrap();
    assert!(a.verify(|_| Ok(())).is_err());
}

#[test]
fn a_plan_moves_the_fewer_bytes() {
    let plan = |lower, upper| Plan::new(lower, upper, None);
    let (small, large) = (std::slice::from_ref(&(3..5)), &[0..4, 8..20][..]);
    let commit = plan(large, small);
    assert_eq!((commit.direction, commit.bytes()), (Direction::Commit, 2 * BLOCK));
    let pull = plan(small, large);
    assert_eq!((pull.direction, pull.runs.as_slice()), (Direction::Pull, std::slice::from_ref(&(4..5))));
    let forced = Plan::new(large, small, Some(Direction::Pull));
    assert_eq!(forced.runs, [0..3, 8..20]);
    assert_eq!(plan(&[], large).bytes(), 0);
}

#[test]
fn thirty_two_layers_read_as_one() {
    let folder = Folder::new();
    let chain = folder.chain();
    for layer in 1..=32u8 {
        chain.write_at(&[layer; 4096], u64::from(layer) * BLOCK).unwrap();
        chain.write_at(&[layer; 512], 100 * BLOCK + u64::from(layer) * 512).unwrap();
        folder.push(&chain, &format!("layer{layer}"));
    }
    chain.flush().unwrap();
    let mut before = vec![0; SIZE as usize];
    chain.read_at(&mut before, 0).unwrap();
    assert_eq!((before[4096], before[32 * 4096], before[100 * 4096 + 512]), (1, 32, 1));
    let (top, frozen) = chain.layers();
    drop(chain);
    let chain = Chain::open(&folder.storage, folder.base(), &frozen, &top).unwrap();
    let mut after = vec![0; SIZE as usize];
    chain.read_at(&mut after, 0).unwrap();
    assert!(before == after);
}
