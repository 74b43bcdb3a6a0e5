//! The networks of a VM that begins at a checkpoint: those of the checkpoint, or others.

use super::{CheckpointError, Result};
use crate::config::{Mac, NetArg, NetConfig, networks, replug};
use crate::folder::{VmFolder, VmName};
use crate::id::Id;
use crate::net::{bridge_of, is_used};

/// Another VM that runs is on the same bridge with the same address.
#[derive(Debug, thiserror::Error)]
#[error(
    "the running VM `{vm}` has the same MAC address {mac} on the bridge `{bridge}`: stop it, or allow \
     this with --net tap={tap},shared-mac"
)]
pub struct MacInUse {
    mac: Mac,
    tap: String,
    bridge: String,
    vm: VmName,
}

/// Whether the VM in `folder` can have the addresses of these networks beside those that run.
pub fn check_addresses(folder: &VmFolder, nets: &[NetConfig]) -> std::result::Result<(), MacInUse> {
    let bridged = |net: &NetConfig| Some((net.tap()?.to_owned(), bridge_of(net.tap()?)?, net.mac));
    let ours: Vec<_> = nets.iter().filter(|net| !net.shared_mac).filter_map(bridged).collect();
    if ours.is_empty() {
        return Ok(());
    }
    // Of one that cannot be read nothing is known, and it does not run.
    for (vm, other) in folder.others().unwrap_or_default() {
        let theirs: Vec<_> = other.config.nets.iter().filter_map(bridged).collect();
        for (tap, bridge, mac) in &ours {
            let same = |(its_tap, its_bridge, its_mac): &(String, String, Mac)| {
                (its_bridge, its_mac) == (bridge, mac) && its_tap != tap && is_used(its_tap)
            };
            if theirs.iter().any(same) {
                return Err(MacInUse { mac: *mac, tap: tap.clone(), bridge: bridge.clone(), vm });
            }
        }
    }
    Ok(())
}

/// What becomes of the networks `before` if others are named. A guest `from_memory` keeps its
/// cards, and nothing that it knows of them changes.
pub fn renamed(args: &[NetArg], before: &[NetConfig], from_memory: bool) -> Result<Vec<NetConfig>> {
    if args.is_empty() {
        return Ok(before.to_vec());
    }
    let nets = if from_memory { replug(args, before) } else { networks(args, before, &random(args.len())?) };
    nets.map_err(|e| CheckpointError::Refused(e.to_string()))
}

/// The networks of `count` VMs that are made anew. Which tap device is theirs is not for where they
/// come from to say.
pub fn of_new(
    args: &[NetArg],
    before: &[NetConfig],
    from_memory: bool,
    count: usize,
) -> Result<Vec<NetConfig>> {
    let refuse = |text: String| Err(CheckpointError::Refused(text));
    if let Some(tap) = before.iter().find_map(NetConfig::tap).filter(|_| args.is_empty()) {
        return refuse(format!(
            "its network uses the tap device `{tap}`, which is not taken over: choose a network with \
             --net tap=NAME, --net user or --net none"
        ));
    }
    let nets = match args {
        // It boots, so its cards may be new ones.
        [_, ..] if !from_memory => renamed(args, &[], false)?,
        _ => renamed(args, before, from_memory)?,
    };
    if let Some(tap) = nets.iter().find_map(NetConfig::tap).filter(|_| count > 1) {
        return refuse(format!(
            "{count} VMs cannot share the tap device `{tap}`: create them one by one, or use --net user"
        ));
    }
    Ok(nets)
}

fn random(count: usize) -> Result<Vec<[u8; 3]>> {
    let each = (0..count).map(|_| {
        let id = Id::random().map_err(CheckpointError::Random)?;
        let [a, b, c, ..] = *id.as_bytes();
        Ok([a, b, c])
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(text: &[&str]) -> Vec<NetArg> {
        text.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_tap_device_is_said_anew_for_each_new_vm() {
        let before = renamed(&args(&["tap=t0"]), &[], false).unwrap();
        for from_memory in [true, false] {
            let refused = of_new(&[], &before, from_memory, 1).unwrap_err();
            assert!(refused.is_refusal() && refused.to_string().contains("`t0`"), "{refused}");
            let refused = of_new(&args(&["tap=t1"]), &before, from_memory, 2).unwrap_err();
            assert!(refused.to_string().contains("2 VMs cannot share"), "{refused}");
            let one = of_new(&args(&["tap=t1"]), &before, from_memory, 1).unwrap();
            assert_eq!(one[0].tap(), Some("t1"));
            // What boots is another card on the same bridge.
            assert_eq!(one[0].mac == before[0].mac, from_memory);
        }
        let user = renamed(&args(&["user"]), &[], false).unwrap();
        assert_eq!(of_new(&[], &user, false, 8).unwrap(), user);
    }

    #[test]
    fn without_memory_there_may_be_more_cards_or_none() {
        let before = renamed(&args(&["user"]), &[], false).unwrap();
        let two = renamed(&args(&["user", "user"]), &before, false).unwrap();
        assert_eq!((two.len(), two[0].mac), (2, before[0].mac));
        assert!(renamed(&args(&["user", "user"]), &before, true).unwrap_err().is_refusal());
        assert!(renamed(&args(&["none"]), &before, false).unwrap().is_empty());
        assert_eq!(renamed(&args(&["none"]), &before, true).unwrap().len(), 1);
    }
}
