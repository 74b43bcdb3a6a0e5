//! `piton df`: what VMs take on disk.

use super::named::home;
use super::out::{self, outln};
use super::units::size;
use crate::history::usage::{self, VmUsage};

pub fn run(json: bool) -> anyhow::Result<()> {
    let usage = usage::of(&home()?)?;
    if json {
        out::json(&serde_json::json!(usage));
        return Ok(());
    }
    let name = |vm: &VmUsage| match vm.removed {
        Some(_) => format!("{} (removed)", vm.name),
        None => vm.name.to_string(),
    };
    let width = usage.vms.iter().map(|vm| name(vm).len()).max().unwrap_or(0).max(2);
    outln!(
        "{:<width$}  {:>9}  {:>9}  {:>9}  {:>11}  {:>10}  {:>9}  {:>9}",
        "VM",
        "TOTAL",
        "IMAGES",
        "LAYERS",
        "CHECKPOINTS",
        "FOR CLONES",
        "SHARED",
        "TRASH"
    );
    for vm in &usage.vms {
        let trash = if vm.removed.is_some() { "all".into() } else { size(vm.trash) };
        outln!(
            "{:<width$}  {:>9}  {:>9}  {:>9}  {:>11}  {:>10}  {:>9}  {trash:>9}",
            name(vm),
            size(vm.bytes),
            size(vm.images),
            size(vm.layers),
            size(vm.checkpoints),
            size(vm.flat),
            size(vm.shared)
        );
    }
    for image in &usage.images {
        let users: Vec<&str> = image.used_by.iter().map(|name| name.as_str()).collect();
        outln!("image {}  {}  used by {}", image.path.display(), size(image.bytes), users.join(", "));
    }
    outln!(
        "VMs take {} in all, what they share counted once; images elsewhere take {}",
        size(usage.bytes),
        size(usage.image_bytes)
    );
    if usage.trash > 0 {
        outln!("emptying the trash would free {}", size(usage.trash));
    }
    Ok(())
}
