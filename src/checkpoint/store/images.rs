//! Which memory images a checkpoint reads through, and where they lie.
//!
//! | name in a checkpoint's folder | what it is |
//! | --- | --- |
//! | `memory`, `memory-<n>` | its own image; the manifest says which |
//! | `memory-flat` | all of its memory once more, in a file that can be mapped, if the manifest says so |
//! | `memory.<id>` | the image of another checkpoint that it lies on, if the manifest says so |
//!
//! What an image lies on is looked for in the folder that the image itself was found in, and then
//! in that of the checkpoint that it was made for.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use crate::capture::chain::{ImageSpec, MAX_IMAGES};
use crate::checkpoint::Manifest;
use crate::checkpoint::manifest::KeptImage;
use crate::id::Id;
use crate::storage::Storage;

use super::names::{FLAT, MEMORY, kept_name, own_name};
use super::{Result, Store, StoreError};

/// An image of a chain, and in whose folder it lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundImage {
    pub holder: Id,
    pub spec: ImageSpec,
    /// What it lies on; none: it is full.
    pub parent: Option<Id>,
}

impl Store {
    /// Where checkpoint `holder` keeps the image of another one.
    pub fn kept_path(&self, holder: Id, image: Id) -> PathBuf {
        self.path(holder).join(kept_name(image))
    }

    /// The images that a checkpoint's memory is read through, its own first; none without memory.
    pub fn images(&self, manifest: &Manifest) -> Result<Vec<FoundImage>> {
        self.images_by(manifest, |id| self.load(id))
    }

    fn images_by(
        &self,
        manifest: &Manifest,
        find: impl Fn(Id) -> Result<Manifest>,
    ) -> Result<Vec<FoundImage>> {
        let Some(own) = self.own_image(manifest) else { return Ok(Vec::new()) };
        let mut found = vec![own];
        let mut holder = manifest.clone();
        while let Some(id) = found.last().and_then(|last| last.parent) {
            let missing = || StoreError::NoImage { id: manifest.id, image: id };
            let kept = holder.memory.as_ref().and_then(|memory| memory.kept(id)).copied();
            let next = match kept {
                Some(kept) => self.kept_image(holder.id, kept),
                None => {
                    holder = find(id).map_err(|e| match e {
                        StoreError::Missing { .. } => missing(),
                        e => e,
                    })?;
                    self.own_image(&holder).ok_or_else(missing)?
                }
            };
            // A ring is as bad as a gap.
            if found.len() >= MAX_IMAGES || found.iter().any(|image| image.spec.path == next.spec.path) {
                return Err(missing());
            }
            found.push(next);
        }
        Ok(found)
    }

    /// [`Store::images`] for [`crate::capture::chain::MemoryChain::open`], where `known` are manifests that
    /// need not be read again.
    pub fn memory_chain_of(&self, manifest: &Manifest, known: &[Manifest]) -> Result<Vec<ImageSpec>> {
        let find = |id: Id| {
            let found = known.iter().find(|manifest| manifest.id == id).cloned();
            found.map_or_else(|| self.load(id), Ok)
        };
        Ok(self.images_by(manifest, find)?.into_iter().map(|image| image.spec).collect())
    }

    /// The same, of which all are read.
    pub fn memory_chain(&self, manifest: &Manifest) -> Result<Vec<ImageSpec>> {
        Ok(self.images(manifest)?.into_iter().map(|image| image.spec).collect())
    }

    fn own_image(&self, manifest: &Manifest) -> Option<FoundImage> {
        let memory = manifest.memory.as_ref()?;
        let spec = ImageSpec { path: self.memory_path(manifest), id: manifest.id, crc: memory.crc };
        Some(FoundImage { holder: manifest.id, spec, parent: memory.parent })
    }

    fn kept_image(&self, holder: Id, kept: KeptImage) -> FoundImage {
        let spec = ImageSpec { path: self.kept_path(holder, kept.id), id: kept.id, crc: kept.crc };
        FoundImage { holder, spec, parent: kept.parent }
    }

    /// Memory images among the `names` in a checkpoint's folder that its manifest does not name.
    pub(super) fn unneeded_images(&self, id: Id, names: &[OsString]) -> Result<Vec<PathBuf>> {
        let is_image = |name: &str| {
            name.strip_prefix(MEMORY).is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
        };
        let folder = self.path(id);
        let images: Vec<&str> =
            names.iter().filter_map(|name| name.to_str()).filter(|name| is_image(name)).collect();
        if images.len() < 2 {
            // The one that there has to be.
            return Ok(Vec::new());
        }
        // One that cannot be read is damaged, and a listing says so.
        let Ok(manifest) = self.load(id) else { return Ok(Vec::new()) };
        let mut named = BTreeSet::new();
        if let Some(memory) = &manifest.memory {
            named.insert(own_name(memory.file));
            named.extend(memory.flat.as_ref().map(|_| FLAT.to_owned()));
            named.extend(memory.kept.iter().map(|kept| kept_name(kept.id)));
        }
        Ok(images.iter().filter(|name| !named.contains(**name)).map(|name| folder.join(name)).collect())
    }

    /// Gives a checkpoint the images that it reads through and that lie in the folders of `gone`:
    /// afterwards it does not need those. Nothing is read or copied; after a crash it has some of
    /// them. `all` are all manifests.
    pub fn keep_images(&self, manifest: &Manifest, all: &[Manifest], gone: &[Id]) -> Result<()> {
        let find = |id: Id| {
            let found = all.iter().find(|manifest| manifest.id == id).cloned();
            // One that is damaged is not among them.
            found.map_or_else(|| self.load(id), Ok)
        };
        let images = self.images_by(manifest, find)?;
        let folder = self.path(manifest.id);
        let mut kept = Vec::new();
        let mut links = Links { storage: &self.storage, made: Vec::new() };
        // Behind another one that stays it is for that one to keep them.
        let own =
            images.iter().take_while(|image| image.holder == manifest.id || gone.contains(&image.holder));
        for image in own.filter(|image| image.holder != manifest.id) {
            let path = self.kept_path(manifest.id, image.spec.id);
            // One that no manifest names: left by a crash.
            self.storage.remove_file_if_exists(&path)?;
            self.storage.link(&image.spec.path, &path).map_err(|e| self.refine(e))?;
            links.made.push(path);
            kept.push(KeptImage { id: image.spec.id, crc: image.spec.crc, parent: image.parent });
        }
        if kept.is_empty() {
            return Ok(());
        }
        self.storage.sync_dir(&folder)?;
        let named = self.update(manifest.id, |manifest| {
            if let Some(memory) = &mut manifest.memory {
                memory.kept.extend(kept.iter().copied());
            }
        });
        // It may say so although that failed at its end.
        let found = self.load(manifest.id).ok().and_then(|found| found.memory);
        if found.is_none_or(|memory| kept.iter().any(|kept| memory.kept(kept.id).is_some())) {
            links.made.clear();
        }
        named.map(drop)
    }

    /// A checkpoint has the images of others again that it had `before` they were kept.
    pub fn unkeep_images(&self, before: &Manifest) -> Result<()> {
        let Some(former) = before.memory.as_ref() else { return Ok(()) };
        let mut kept = Vec::new();
        self.update(before.id, |manifest| {
            if let Some(memory) = &mut manifest.memory {
                kept = std::mem::replace(&mut memory.kept, former.kept.clone());
            }
        })?;
        for image in kept.iter().filter(|image| former.kept(image.id).is_none()) {
            self.storage.remove_file_if_exists(&self.kept_path(before.id, image.id))?;
        }
        Ok(())
    }
}

/// Links that go again unless somebody names them.
struct Links<'a> {
    storage: &'a Storage,
    made: Vec<PathBuf>,
}

impl Drop for Links<'_> {
    fn drop(&mut self) {
        for path in &self.made {
            if let Err(e) = self.storage.remove_file_if_exists(path) {
                log::warn!("{e}");
            }
        }
    }
}
