//! Disks of checkpoints as plain files, to look at with tools that know no layers.

use std::path::{Path, PathBuf};
use std::process::Command;

use piton::disk::{Backing, ImageFormat, frozen::FrozenChain, layer, open_base};
use piton::storage::Storage;

use super::Home;

/// What checkpoint `name` of the VM `demo` holds of its disk `root`, whose base is `base`.
pub fn flatten(home: &Home, name: &str, base: &Path) -> PathBuf {
    let manifest = home.manifest("demo", name);
    let top = manifest["disks"]["root"]["layer"]["id"].as_str().unwrap().parse().unwrap();
    let storage = Storage::os();
    let files = std::fs::read_dir(home.vm("demo").join("disks")).unwrap();
    let layers: Vec<_> = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "delta"))
        .map(|path| layer::inspect(&storage, &path).unwrap())
        .collect();
    let chain = layer::ancestry(&layers, top).unwrap();
    let base = open_base(&storage, base, ImageFormat::Raw).unwrap();
    let chain = FrozenChain::open(&storage, base, &chain).unwrap();
    let image = home.beside("flat.ext4");
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(chain.len()).unwrap();
    let (mut at, mut buffer) = (0, vec![0; 1 << 20]);
    while at < chain.len() {
        let count = usize::try_from((chain.len() - at).min(1 << 20)).unwrap();
        chain.read_at(&mut buffer[..count], at).unwrap();
        if buffer[..count].iter().any(|byte| *byte != 0) {
            std::os::unix::fs::FileExt::write_all_at(&file, &buffer[..count], at).unwrap();
        }
        at += count as u64;
    }
    image
}

/// Exit code and output of e2fsck; none where there is none.
pub fn e2fsck(options: &str, image: &Path) -> Option<(i32, String)> {
    match Command::new("/sbin/e2fsck").arg(options).arg(image).output() {
        Ok(fsck) => {
            let text = [fsck.stdout, fsck.stderr].concat();
            Some((fsck.status.code().unwrap_or(99), String::from_utf8_lossy(&text).into_owned()))
        }
        Err(e) => {
            eprintln!("e2fsck: {e}");
            None
        }
    }
}
