//! The disk for cloud-init of a VM that is made.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::args::SeedArgs;
use super::error::{refused, usage};
use crate::config::{DiskConfig, DiskFormat, VmConfig};
use crate::disk::open_base;
use crate::folder::{VmFolder, VmName};
use crate::history::contents::Contents;
use crate::id::Id;
use crate::image::{self, Survey};
use crate::seed::{self, Seed};
use crate::storage::Storage;

/// Bytes of a file that is read for it; what is longer is refused by its content's rules.
const FILE_MAX: u64 = 2 << 20;

/// What cloud-init is to be told, if anything: what was asked for, and of an image with cloud-init at
/// least who it is, so that it does not look for a cloud.
pub fn wanted(args: &SeedArgs, name: &VmName, config: &VmConfig) -> anyhow::Result<Option<Seed>> {
    let hostname = match &args.hostname {
        Some(name) => {
            seed::check_hostname(name).map_err(usage)?;
            name.clone()
        }
        None => hostname_of(name),
    };
    if let Some(hash) = &args.password_hash {
        seed::check_password(hash).map_err(|e| usage(format!("--password-hash: {e}")))?;
    }
    let keys = args.ssh_keys.iter().map(|path| {
        let text = String::from_utf8_lossy(&read(path)?).into_owned();
        seed::check_key(&text).map_err(|e| refused(format!("{}: {e}", path.display())))
    });
    let keys = keys.collect::<anyhow::Result<Vec<_>>>()?;
    let user_data = match &args.user_data {
        None => None,
        Some(path) => {
            let text = seed::user_data(&read(path)?);
            Some(text.map_err(|e| refused(format!("{}: {e}", path.display())))?)
        }
    };
    let found = software(config)?;
    match (args.is_given(), found) {
        (true, Some(Software { cloud_init: false, .. })) => {
            return Err(refused(
                "the image has no cloud-init, which --ssh-key, --hostname, --password-hash and --user-data are \
                 for: leave them out, or use a cloud image",
            ));
        }
        (false, None | Some(Software { cloud_init: false, .. })) => return Ok(None),
        _ => {}
    }
    let lacks_agent = found.is_some_and(|found| !found.agent);
    let install_agent = lacks_agent && !args.no_agent && !config.nets.is_empty() && user_data.is_none();
    Ok(Some(Seed { hostname, keys, user_data, password_hash: args.password_hash.clone(), install_agent }))
}

/// Puts it into a VM's folder, as the last of its disks.
pub fn make(folder: &VmFolder, config: &mut VmConfig, seed: Option<&Seed>) -> anyhow::Result<()> {
    let Some(seed) = seed else { return Ok(()) };
    let bytes = seed.disk(Id::random().context("no random bytes are available")?)?;
    let storage = folder.storage();
    let disks = folder.make_disks_folder()?;
    let path = disks.join(format!("{}.raw", seed::DISK));
    storage.remove_file_if_exists(&path)?;
    let file = storage.create_new(&path)?;
    file.write_at(&bytes, 0)?;
    file.sync_data()?;
    storage.sync_dir(&disks)?;
    config.disks.push(DiskConfig {
        id: seed::DISK.into(),
        path: path.strip_prefix(folder.path()).unwrap_or(&path).to_owned(),
        format: DiskFormat::Raw,
        readonly: true,
        passthrough: false,
        overlay: false,
    });
    config.validate().map_err(usage)
}

/// What the image's system has, as far as it can be told.
#[derive(Clone, Copy)]
struct Software {
    agent: bool,
    cloud_init: bool,
}

fn software(config: &VmConfig) -> anyhow::Result<Option<Software>> {
    let Some(disk) = config.disks.iter().find(|disk| config.boot_disk.as_ref() == Some(&disk.id)) else {
        return Ok(None);
    };
    let base = open_base(&Storage::os(), &disk.path, disk.format).map_err(|e| refused(e.to_string()))?;
    // What is wrong with it is said by the boot.
    let Ok(survey) = Survey::of(Arc::new(Contents(Arc::new(base)))) else { return Ok(None) };
    let root = survey.volumes.iter().find(|volume| volume.system().is_some());
    Ok(root.map(|root| Software { agent: image::has_agent(root), cloud_init: image::has_cloud_init(root) }))
}

/// The VM's name with what host names cannot have replaced.
fn hostname_of(name: &VmName) -> String {
    let fits = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let text: String = name.as_str().chars().map(fits).take(63).collect();
    let text = text.trim_matches('-');
    if text.is_empty() { "guest".into() } else { text.to_owned() }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let failed = |e: std::io::Error| refused(format!("{} cannot be read: {e}", path.display()));
    // A FIFO would be waited for.
    let file =
        std::fs::File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(refused(format!("{} is not a regular file", path.display())));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
