//! `piton copy`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::args::CopyArgs;
use super::error::usage;
use super::exec::connect;
use super::out::{self, outln};
use super::units::size;
use super::{named, work};
use crate::folder::VmName;
use crate::inside::copy::{self, Copied};

pub(super) const NEEDED: [&str; 4] =
    ["guest-file-open", "guest-file-read", "guest-file-write", "guest-file-close"];

/// `VM:/path`. A file of the host with a colon in its name is written with a `./` before it.
pub(super) fn in_guest(word: &OsStr) -> Option<(VmName, &str)> {
    let (vm, path) = word.to_str()?.split_once(':')?;
    Some((vm.parse().ok()?, path))
}

pub fn run(args: &CopyArgs, json: bool) -> anyhow::Result<()> {
    let (name, guest_path, host_path, into) = match (in_guest(&args.from), in_guest(&args.to)) {
        (Some((vm, path)), None) => (vm, path, Path::new(&args.to), false),
        (None, Some((vm, path))) => (vm, path, Path::new(&args.from), true),
        (Some(_), Some(_)) => {
            return Err(usage("both paths are in a guest: copy to this host first, then to the other guest"));
        }
        (None, None) => return Err(usage("one of the paths must be in a guest: VM:/PATH")),
    };
    if host_path.as_os_str().as_bytes().is_empty() {
        return Err(usage("the path on this host is empty"));
    }
    let folder = named::existing(&name)?;
    let mut guest = connect(&folder, &NEEDED, "reading and writing files from the host")?;
    let Copied { files, bytes, left_out } = work::here(|progress| match into {
        true => copy::to_guest(&mut guest, host_path, guest_path, progress),
        false => copy::from_guest(&mut guest, guest_path, host_path, progress),
    })??;
    if left_out > 0 {
        log::warn!("skipped {left_out} devices, sockets or pipes");
    }
    match json {
        true => out::json_line(&serde_json::json!({ "files": files, "bytes": bytes, "left_out": left_out })),
        false => outln!("copied {files} file{}, {}", if files == 1 { "" } else { "s" }, size(bytes)),
    }
    Ok(())
}
