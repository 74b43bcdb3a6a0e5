//! What checkpoints take on disk: what each reads, what it alone reads, and so what is free once it
//! has gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::disks::Layers;
use super::{Catalog, Result};
use crate::checkpoint::Manifest;
use crate::checkpoint::layers::User;
use crate::checkpoint::manifest::DiskPoint;
use crate::control::{SharedInfo, SizeInfo};
use crate::folder::Definition;
use crate::id::Id;
use crate::storage::Storage;

/// The files of a VM's checkpoints, and who needs which.
pub struct Sizes {
    /// Bytes that they occupy, as far as removing them frees these.
    files: BTreeMap<PathBuf, File>,
    /// All names here of one file.
    names: BTreeMap<Inode, Vec<PathBuf>>,
    needs: BTreeMap<User, BTreeSet<PathBuf>>,
}

/// Device and number.
type Inode = (u64, u64);

struct File {
    ino: Inode,
    bytes: u64,
    names: u64,
}

impl Sizes {
    /// Of all checkpoints, in the trash or not. What cannot be read counts for nothing.
    pub fn read(catalog: &Catalog, definition: &Definition, manifests: &[Manifest]) -> Result<Self> {
        let storage = catalog.folder.storage();
        let layers = Layers::read(catalog.folder)?;
        let mut sizes = Self { files: BTreeMap::new(), names: BTreeMap::new(), needs: BTreeMap::new() };
        let chain = |top: Id| layers.chain(top).unwrap_or_default().into_iter().map(|layer| layer.path);
        for manifest in manifests {
            let store = &catalog.store;
            let mut paths: Vec<PathBuf> = Vec::new();
            for point in manifest.disks.values() {
                if let DiskPoint::Layer { id, .. } = point {
                    paths.extend(chain(*id));
                }
            }
            let images = store.images(manifest).unwrap_or_default();
            paths.extend(images.into_iter().map(|image| image.spec.path));
            paths.extend(store.flat_image(manifest).map(|flat| flat.path));
            paths.extend([store.manifest_path(manifest.id), store.state_path(manifest.id)]);
            sizes.add(storage, User::Checkpoint(manifest.id), paths);
        }
        let tops = definition.now.tops.values().flat_map(|top| chain(*top)).collect();
        sizes.add(storage, User::Now, tops);
        Ok(sizes)
    }

    fn add(&mut self, storage: &Storage, user: User, paths: Vec<PathBuf>) {
        let needs = self.needs.entry(user).or_default();
        for path in paths {
            if !self.files.contains_key(&path) {
                let Ok(found) = storage.metadata(&path) else { continue };
                let (ino, bytes, names) = ((found.dev, found.ino), found.allocated, found.links);
                self.files.insert(path.clone(), File { ino, bytes, names });
                self.names.entry(ino).or_default().push(path.clone());
            }
            needs.insert(path);
        }
    }

    fn sum<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> u64 {
        let mut seen = BTreeSet::new();
        let files = paths.into_iter().filter_map(|path| self.files.get(path));
        files.filter(|file| seen.insert(file.ino)).map(|file| file.bytes).sum()
    }

    /// Bytes of all that a checkpoint, or Now, is read from; without base images.
    pub fn holds(&self, user: User) -> u64 {
        self.needs.get(&user).map_or(0, |paths| self.sum(paths.iter().map(PathBuf::as_path)))
    }

    /// Bytes of the files that both are read from.
    pub fn shared(&self, a: User, b: User) -> u64 {
        let (Some(a), Some(b)) = (self.needs.get(&a), self.needs.get(&b)) else { return 0 };
        self.sum(a.intersection(b).map(PathBuf::as_path))
    }

    /// Bytes of the files of a user that have names elsewhere.
    fn shared_abroad(&self, user: User) -> u64 {
        let is_abroad = |path: &&Path| {
            self.files.get(*path).is_some_and(|file| {
                self.names.get(&file.ino).map_or(0, |names| names.len() as u64) < file.names
            })
        };
        self.needs
            .get(&user)
            .map_or(0, |paths| self.sum(paths.iter().map(PathBuf::as_path).filter(is_abroad)))
    }

    /// What is told of a checkpoint's size.
    pub fn of(&self, id: Id) -> SizeInfo {
        let user = User::Checkpoint(id);
        SizeInfo {
            held: self.holds(user),
            freed: self.frees(&[id]),
            shared_with_now: self.shared(user, User::Now),
            shared_with_vms: self.shared_abroad(user),
            shared: Vec::new(),
        }
    }

    /// And which others it shares with.
    pub fn in_detail(&self, id: Id, manifests: &[Manifest]) -> SizeInfo {
        let shared = manifests.iter().filter(|other| other.id != id).map(|other| SharedInfo {
            checkpoint: other.id,
            name: other.name.clone(),
            bytes: self.shared(User::Checkpoint(id), User::Checkpoint(other.id)),
            in_trash: other.is_in_trash(),
        });
        SizeInfo { shared: shared.filter(|shared| shared.bytes > 0).collect(), ..self.of(id) }
    }

    /// Bytes that are free once all of these have gone, at least: merging what is left may free more.
    pub fn frees(&self, going: &[Id]) -> u64 {
        let goes = |user: &User| matches!(user, User::Checkpoint(id) if going.contains(id));
        let needed = |goes_too: bool| -> BTreeSet<&Path> {
            let users = self.needs.iter().filter(|(user, _)| goes(user) == goes_too);
            users.flat_map(|(_, paths)| paths).map(PathBuf::as_path).collect()
        };
        let (gone, stays) = (needed(true), needed(false));
        // A file with another name is somebody else's as well: a clone's, or a link's of our own.
        let is_freed = |path: &&Path| {
            self.files.get(*path).is_some_and(|file| {
                let names = self.names.get(&file.ino).map_or(&[][..], Vec::as_slice);
                names.len() as u64 >= file.names && names.iter().all(|name| !stays.contains(name.as_path()))
            })
        };
        self.sum(gone.into_iter().filter(is_freed))
    }
}
