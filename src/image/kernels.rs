//! Kernels in /boot that no boot loader speaks of: the newest is booted, with the initrd beside it.

use super::entry::{Entry, File, Origin};
use super::error::Result;
use super::survey::{Survey, Volume};
use super::version;

const KERNEL: &str = "vmlinuz";

pub fn entries(survey: &Survey) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for (number, volume) in survey.volumes.iter().enumerate() {
        if volume.is_broken_fat() {
            continue;
        }
        for folder in ["/boot", ""] {
            let names = volume.names(if folder.is_empty() { "/" } else { folder })?;
            let mut kernels: Vec<&str> = names
                .iter()
                .filter_map(|name| name.strip_prefix(KERNEL))
                .filter(|rest| !rest.ends_with(".old"))
                .collect();
            kernels.sort_by(|a, b| version::compare(b, a));
            // A link without a version leads to one of them: of use only if it is alone.
            let versioned = kernels.iter().any(|rest| rest.starts_with('-'));
            for rest in
                kernels.into_iter().filter(|rest| rest.starts_with('-') || rest.is_empty() && !versioned)
            {
                let path = format!("{folder}/{KERNEL}{rest}");
                if !volume.has(&path) {
                    continue;
                }
                let version = rest.trim_start_matches('-');
                found.push(Entry {
                    title: format!("Linux {version}").trim_end().to_owned(),
                    id: path.clone(),
                    origin: Origin::KernelFile,
                    volume: number,
                    initrds: initrd(volume, folder, rest)
                        .map(|path| File::whole(number, path))
                        .into_iter()
                        .collect(),
                    kernel: File::whole(number, path),
                    // Which root it is, is said when it is booted.
                    cmdline: String::new(),
                });
            }
        }
    }
    Ok(found)
}

fn initrd(volume: &Volume, folder: &str, rest: &str) -> Option<String> {
    let names = [
        format!("initrd.img{rest}"),
        format!("initramfs{rest}.img"),
        format!("initrd{rest}"),
        format!("initramfs{rest}"),
    ];
    names.iter().map(|name| format!("{folder}/{name}")).find(|path| volume.has(path))
}
