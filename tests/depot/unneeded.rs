//! What no checkpoint needs is removed, and nothing else, whoever pushes meanwhile.

use serde_json::json;

use crate::ckpt_common::{Lab, MIB};
use crate::common::Home;
use crate::shared::{bytes, end, folder, restore, with_one};

#[test]
fn prune_removes_what_nothing_needs_and_a_push_does_not_count_on_it() {
    let lab = Lab::new();
    let depot = folder(&lab, "depot");
    let (mut vm, one) = with_one(&lab);
    lab.piton(&format!("push demo@one {depot}")).ok();
    // A pack of its own, of which nothing else is needed.
    vm.ok("fill 16 9");
    vm.ok("blk 0 write 2M 1M 8");
    let two = vm.ok("sum");
    lab.create("two");
    vm.power_off();
    let pushed = lab.piton(&format!("push demo@two {depot} --json")).json();
    let nothing = lab.piton(&format!("depot prune {depot} --alone --json")).json();
    assert_eq!((&nothing["removed"], &nothing["condemned"]), (&json!(0), &json!(0)), "{nothing}");
    lab.piton(&format!("depot rm {depot}/demo@two")).fails(3, &["--yes"]);
    lab.piton(&format!("depot rm {depot}/demo@two --yes")).ok();
    lab.piton(&format!("depot rm {depot}/demo@two --yes")).fails(3, &["no checkpoint"]);

    // Too young to be looked at, as it may belong to a push that is under way.
    let young = lab.piton(&format!("depot prune {depot} --json")).json();
    assert_eq!((&young["removed"], &young["condemned"]), (&json!(0), &json!(0)), "{young}");
    let dry = lab.piton(&format!("depot prune {depot} --alone --dry-run --json")).json();
    assert!(bytes(&dry, "condemned_bytes") > 0 && bytes(&dry, "unneeded_bytes") > 0, "{dry}");
    assert_eq!(lab.piton(&format!("depot prune {depot} --alone --dry-run --json")).json(), dry);

    // Condemned by hand, as a prune would that found it old: a push may not count on it.
    let packs = crate::ckpt_common::files(&lab.beside("depot/packs"));
    let needed: Vec<_> = packs.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
    let condemned = lab.beside("depot/condemned");
    std::fs::create_dir_all(&condemned).unwrap();
    for name in &needed {
        std::fs::write(condemned.join(name), b"").unwrap();
    }
    let again = lab.piton(&format!("push demo@two {depot} --json")).json();
    assert!(bytes(&again, "sent_bytes") >= bytes(&pushed, "sent_bytes"), "{again}");
    let pruned = lab.piton(&format!("depot prune {depot} --alone --json")).json();
    assert!(bytes(&pruned, "removed") >= 1, "{pruned}");
    let verified = lab.piton(&format!("depot verify {depot} --json")).json();
    assert_eq!((&verified["checkpoints"], &verified["damage"]), (&json!(2), &json!({})), "{verified}");
    // All that was condemned is gone, and what was needed of it is elsewhere.
    for name in &needed {
        assert!(!lab.beside("depot/packs").join(name).exists() && !condemned.join(name).exists());
    }
    let other = Home::new();
    for (title, name, sum) in [("demo@one", "x", &one), ("demo@two", "y", &two)] {
        other.piton(&format!("pull {depot}/{title} {name} --new-id")).ok();
        let mut guest = restore(&other, name);
        assert_eq!(guest.ok("sum"), *sum);
        end(&other, name);
    }
    lab.piton(&format!("depot rm {depot}/demo@two --yes")).ok();
    lab.piton(&format!("depot rm {depot}/demo@one --yes")).ok();
    lab.piton(&format!("depot prune {depot} --alone")).ok();
    let left = lab.piton(&format!("depot show {depot} --json")).json();
    assert_eq!((&left["packs"], bytes(&left, "bytes")), (&json!(0), 0), "{left}");
    assert!(bytes(&pushed, "bytes") > 64 * MIB);
}
