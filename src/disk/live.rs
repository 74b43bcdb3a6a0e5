//! The disk of a VM that checkpoints are taken of: the raw image that the user brought, or a chain
//! above it. The guest keeps one handle while the layers under it change.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use super::chain::{Chain, PreparedOverlay};
use super::delta::{Delta, FrozenDelta};
use super::delta_format::{LayerId, Parent};
use super::frozen::FrozenChain;
use super::layer::LayerSpec;
use super::merge::{Lower, Merge};
use super::outlook::Outlook;
use super::raw::RawDisk;
use super::{Backing, Disk, DiskError, ImageFormat, Result, open_base};
use crate::storage::Storage;

pub struct LiveDisk {
    len: u64,
    inner: RwLock<Inner>,
    /// Told of each sync that failed, before anybody else is.
    on_loss: Option<OnLoss>,
}

/// A sync that has to be made before the guest runs.
pub type LaterSync = Box<dyn FnOnce() -> Result<()> + Send>;

/// What there is already of a disk that is opened.
#[derive(Default)]
pub struct Opening<'a> {
    pub shared: Option<&'a BTreeMap<LayerId, Arc<FrozenDelta>>>,
    /// The writable layer, which was made just now.
    pub top: Option<Delta>,
    /// Takes the syncs; none: they are made at once.
    pub later: Option<&'a dyn Fn(LaterSync)>,
}

/// With the file that could not be synced.
pub type OnLoss = Arc<dyn Fn(&Path, &DiskError) + Send + Sync>;

enum Inner {
    /// No layer yet: writes go into the image itself.
    Raw(RawDisk),
    Chain(Arc<Chain>),
    /// A switch failed half way, which only happens if the kernel cannot change a lock.
    Broken,
}

/// A fresh overlay on the file system, for [`LiveDisk::push`].
pub enum Prepared {
    OnRaw(Delta),
    OnChain(PreparedOverlay),
}

impl Prepared {
    pub fn spec(&self) -> LayerSpec {
        match self {
            Self::OnRaw(delta) => LayerSpec { path: delta.path().to_owned(), id: delta.id() },
            Self::OnChain(overlay) => overlay.spec(),
        }
    }
}

impl LiveDisk {
    /// Opens a base with the layers above it, from the lowest to the writable top; with none the
    /// base itself is written, which must be a raw image. Of a layer in `sums` every block is
    /// checked when it is first read.
    pub fn open(
        storage: &Storage,
        base: &Path,
        format: ImageFormat,
        layers: &[LayerSpec],
        sums: &BTreeMap<LayerId, u32>,
    ) -> Result<Self> {
        Self::open_with(storage, base, format, layers, sums, Opening::default())
    }

    /// See [`FrozenChain::open_sharing`].
    pub fn open_with(
        storage: &Storage,
        base: &Path,
        format: ImageFormat,
        layers: &[LayerSpec],
        sums: &BTreeMap<LayerId, u32>,
        opening: Opening,
    ) -> Result<Self> {
        let sync = |later: LaterSync| match opening.later {
            Some(queue) => {
                queue(later);
                Ok(())
            }
            None => later(),
        };
        let inner = match layers.split_last() {
            None => Inner::Raw(RawDisk::open(storage, base)?),
            Some((top, below)) => {
                let base = open_base(storage, base, format)?;
                let below = FrozenChain::open_sharing(storage, base, below, sums, opening.shared)?;
                // The guest's next flush is to cover what it wrote before a kill, wherever that is.
                if below.base().as_raw().is_some() {
                    let base = below.base().clone();
                    sync(Box::new(move || base.sync_former()))?;
                }
                // Checksums are taken of what is durable.
                for layer in below.deltas().iter().filter(|layer| !layer.has_sums()) {
                    let layer = layer.clone();
                    sync(Box::new(move || layer.sync_former()))?;
                }
                let top = opening.top.map_or_else(|| Delta::open(storage, top), Ok)?;
                Inner::Chain(Arc::new(Chain::new(below, top)?))
            }
        };
        let len = match &inner {
            Inner::Raw(disk) => disk.len(),
            Inner::Chain(chain) => chain.len(),
            Inner::Broken => 0,
        };
        Ok(Self { len, inner: RwLock::new(inner), on_loss: None })
    }

    pub fn on_loss(self, tell: OnLoss) -> Self {
        Self { on_loss: Some(tell), ..self }
    }

    /// What failed to be synced is lost, whatever a later sync says.
    fn lost<T>(&self, done: Result<T>) -> Result<T> {
        if let (Err(e), Some(tell)) = (&done, &self.on_loss)
            && let Some(path) = e.file_not_synced()
        {
            tell(path, e);
        }
        done
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, f: impl FnOnce(&dyn Disk) -> Result<T>) -> Result<T> {
        match &*self.read() {
            Inner::Raw(disk) => f(disk),
            Inner::Chain(chain) => f(&**chain),
            Inner::Broken => Err(DiskError::Broken),
        }
    }

    /// The writable layer; none while the base itself is written.
    pub fn top(&self) -> Option<LayerId> {
        match &*self.read() {
            Inner::Chain(chain) => Some(chain.layers().0.id),
            Inner::Raw(_) | Inner::Broken => None,
        }
    }

    /// Bytes in the writable layer; none while the base itself is written.
    pub fn overlay_bytes(&self) -> Result<u64> {
        match &*self.read() {
            Inner::Chain(chain) => chain.overlay_bytes(),
            Inner::Raw(_) | Inner::Broken => Ok(0),
        }
    }

    /// Whether the writable layer is of a larger disk than what lies below it: it cannot be folded.
    pub fn top_is_larger(&self) -> bool {
        match &*self.read() {
            Inner::Chain(chain) => chain.top_is_larger(),
            Inner::Raw(_) | Inner::Broken => false,
        }
    }

    /// Not under the lock of the disk: what is done with it may take long.
    fn chain(&self) -> Result<Arc<Chain>> {
        match &*self.read() {
            Inner::Chain(chain) => Ok(chain.clone()),
            Inner::Raw(_) | Inner::Broken => Err(DiskError::Broken),
        }
    }

    /// Whether a layer lies below the writable one.
    pub fn is_frozen_here(&self, layer: LayerId) -> bool {
        match &*self.read() {
            Inner::Chain(chain) => chain.layers().1.iter().any(|spec| spec.id == layer),
            Inner::Raw(_) | Inner::Broken => false,
        }
    }

    /// Checks what is read of its base against the checksums in a file, from here on.
    pub fn attach_base_sums(&self, storage: &Storage, path: &Path) -> Result<()> {
        self.chain()?.attach_base_sums(storage, path)
    }

    /// See [`Chain::sync_layer`].
    pub fn sync_layer(&self, layer: LayerId) -> Result<()> {
        self.lost(self.chain()?.sync_layer(layer))
    }

    /// See [`Chain::begin_merge`].
    pub fn begin_merge(
        &self,
        storage: &Storage,
        upper: LayerId,
        sums: Option<u32>,
        outlook: Option<&Outlook>,
    ) -> Result<Merge> {
        self.chain()?.begin_merge(storage, upper, None, sums, outlook)
    }

    /// See [`Chain::finish_merge`].
    pub fn finish_merge(
        &self,
        storage: &Storage,
        merge: Merge,
        others: &[LayerSpec],
        outlook: Option<&Outlook>,
    ) -> Result<()> {
        self.chain()?.finish_merge(storage, merge, others, outlook).map(|_| ())
    }

    /// The layers below the writable one.
    pub fn frozen(&self) -> Vec<Arc<FrozenDelta>> {
        match &*self.read() {
            Inner::Chain(chain) => chain.frozen(),
            Inner::Raw(_) | Inner::Broken => Vec::new(),
        }
    }

    /// See [`Chain::cancel_merge`].
    pub fn cancel_merge(&self, merge: Merge) -> Result<()> {
        self.chain()?.cancel_merge(merge)
    }

    /// The writable layer goes down into the one below it, or into the base, and the guest writes
    /// there. Its requests wait meanwhile, so the layer should hold little. `record` writes down
    /// durably that the layer is not needed any more; if it fails, all is as before.
    pub fn fold<E: From<DiskError>>(
        &self,
        storage: &Storage,
        record: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let Inner::Chain(chain) = &*inner else { return Err(DiskError::Broken.into()) };
        let lower = chain.fold(storage)?;
        if let Err(e) = record() {
            chain.keep_top(lower)?;
            return Err(e);
        }
        match lower {
            Lower::Delta(delta) => chain.drop_top(delta),
            Lower::Base(base) => *inner = Inner::Raw(base),
        }
        Ok(())
    }

    /// Makes the file of the next overlay: empty and durable, so that it can be named in vm.json
    /// before it is used.
    pub fn prepare(&self, storage: &Storage, path: &Path) -> Result<Prepared> {
        match &*self.read() {
            Inner::Raw(_) => Ok(Prepared::OnRaw(Delta::create(storage, path, self.len, Parent::Base)?)),
            Inner::Chain(chain) => Ok(Prepared::OnChain(chain.prepare_overlay(storage, path)?)),
            Inner::Broken => Err(DiskError::Broken),
        }
    }

    /// Freezes what was written so far and lets writes go to the overlay. Nobody may be writing:
    /// the device stands still. Returns the layer that was frozen, none if it was the base; a flush
    /// still has to sync it. Only a raw base can fail here, and the disk is broken then.
    pub fn push(&self, storage: &Storage, overlay: Prepared) -> Result<Option<Arc<FrozenDelta>>> {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        match (&*inner, overlay) {
            (Inner::Chain(chain), Prepared::OnChain(overlay)) => Ok(Some(chain.push_overlay(overlay))),
            (Inner::Raw(_), Prepared::OnRaw(delta)) => {
                let Inner::Raw(disk) = std::mem::replace(&mut *inner, Inner::Broken) else {
                    return Err(DiskError::Broken);
                };
                let below = FrozenChain::open(storage, disk.freeze()?.into(), &[])?;
                *inner = Inner::Chain(Arc::new(Chain::new(below, delta)?));
                Ok(None)
            }
            _ => Err(DiskError::Broken),
        }
    }
}

impl Backing for LiveDisk {
    fn len(&self) -> u64 {
        self.len
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.with(|disk| disk.read_at(buf, offset))
    }
    fn next_data(&self, offset: u64) -> Result<Option<Range<u64>>> {
        self.with(|disk| disk.next_data(offset))
    }
}

impl Disk for LiveDisk {
    fn is_read_only(&self) -> bool {
        false
    }
    fn write_at(&self, buf: &[u8], offset: u64) -> Result<()> {
        self.with(|disk| disk.write_at(buf, offset))
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<()> {
        self.with(|disk| disk.write_zeroes(offset, len))
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.with(|disk| disk.discard(offset, len))
    }
    fn flush(&self) -> Result<()> {
        self.lost(self.with(|disk| disk.flush()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_disk_becomes_a_chain_under_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let base = dir.path().join("base");
        std::fs::write(&base, vec![1; 1 << 20]).unwrap();
        let disk = LiveDisk::open(&storage, &base, ImageFormat::Raw, &[], &BTreeMap::new()).unwrap();
        disk.write_at(&[2; 512], 0).unwrap();
        assert_eq!(disk.top(), None);
        let mut layers = Vec::new();
        for (name, byte) in [("a", 3), ("b", 4)] {
            let prepared = disk.prepare(&storage, &dir.path().join(name)).unwrap();
            layers.push(prepared.spec());
            disk.push(&storage, prepared).unwrap();
            assert_eq!(disk.top(), Some(layers[layers.len() - 1].id));
            disk.write_at(&[byte; 512], 512).unwrap();
        }
        let mut sector = [0; 1024];
        disk.read_at(&mut sector, 0).unwrap();
        assert_eq!((sector[0], sector[512]), (2, 4));
        disk.flush().unwrap();
        drop(disk);
        assert_eq!(std::fs::read(&base).unwrap()[..1024], [vec![2; 512], vec![1; 512]].concat());
        let disk = LiveDisk::open(&storage, &base, ImageFormat::Raw, &layers[..1], &BTreeMap::new()).unwrap();
        disk.read_at(&mut sector, 0).unwrap();
        assert_eq!((sector[0], sector[512]), (2, 3));
    }

    #[test]
    fn a_chain_becomes_a_raw_disk_again_under_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let storage = Storage::os();
        let base = dir.path().join("base");
        // The last block is cut short.
        let size = (1 << 20) + 512;
        std::fs::write(&base, vec![1; size]).unwrap();
        let disk = LiveDisk::open(&storage, &base, ImageFormat::Raw, &[], &BTreeMap::new()).unwrap();
        let mut expected = vec![1; size];
        let mut layers = Vec::new();
        let write = |expected: &mut Vec<u8>, byte: u8, at: usize, len: usize| {
            disk.write_at(&vec![byte; len], at as u64).unwrap();
            expected[at..at + len].fill(byte);
        };
        for (name, byte) in [("a", 2), ("b", 3), ("c", 4)] {
            let prepared = disk.prepare(&storage, &dir.path().join(name)).unwrap();
            layers.push(prepared.spec());
            disk.push(&storage, prepared).unwrap();
            write(&mut expected, byte, 4096 * usize::from(byte), 6000);
            write(&mut expected, byte, size - 512, 512);
        }
        disk.write_zeroes(0, 4096).unwrap();
        expected[..4096].fill(0);
        let check = |expected: &[u8]| {
            let mut found = vec![9; size];
            disk.read_at(&mut found, 0).unwrap();
            assert!(found == expected);
        };
        // A record that cannot be made leaves everything as it is.
        let refused = disk.fold(&storage, || Err(DiskError::Broken));
        assert!(matches!(refused, Err(DiskError::Broken)));
        assert_eq!(disk.top(), Some(layers[2].id));
        write(&mut expected, 5, 40960, 512);
        check(&expected);
        // Down into the delta below, which is written from then on.
        disk.fold(&storage, || Ok::<_, DiskError>(())).unwrap();
        assert_eq!(disk.top(), Some(layers[1].id));
        write(&mut expected, 6, 45056 + 512, 1024);
        check(&expected);
        assert!(disk.is_frozen_here(layers[0].id) && !disk.is_frozen_here(layers[1].id));
        disk.fold(&storage, || Ok::<_, DiskError>(())).unwrap();
        disk.fold(&storage, || Ok::<_, DiskError>(())).unwrap();
        assert_eq!(disk.top(), None);
        write(&mut expected, 7, 1024, 512);
        check(&expected);
        assert!(matches!(disk.fold(&storage, || Ok::<_, DiskError>(())), Err(DiskError::Broken)));
        disk.flush().unwrap();
        drop(disk);
        assert!(std::fs::read(&base).unwrap() == expected);
    }
}
