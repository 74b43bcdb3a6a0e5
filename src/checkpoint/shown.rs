//! Which checkpoints users see.

use crate::checkpoint::Manifest;
use crate::id::Id;

/// Checkpoints as users see them: those in the trash are not among them, and what descends from one
/// of those descends from its nearest ancestor that is there. The manifests in their folder keep the
/// parent that they had, so a checkpoint that comes back is where it was.
pub fn shown(all: &[Manifest], now: Option<Id>) -> (Vec<Manifest>, Option<Id>) {
    let find = |id: Id| all.iter().find(|manifest| manifest.id == id);
    let nearest = |from: Option<Id>| {
        let mut next = from;
        // Were they a ring, it ends.
        for _ in 0..all.len() {
            match next.and_then(find) {
                Some(manifest) if manifest.is_in_trash() => next = manifest.parent,
                _ => break,
            }
        }
        next.filter(|id| !find(*id).is_some_and(Manifest::is_in_trash))
    };
    let seen = all.iter().filter(|manifest| !manifest.is_in_trash()).cloned();
    (seen.map(|manifest| Manifest { parent: nearest(manifest.parent), ..manifest }).collect(), nearest(now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Trashed;
    use crate::checkpoint::manifest::tests::sample;
    use crate::moment::Moment;

    fn id(n: u8) -> Id {
        Id::from_bytes([n; 16])
    }

    fn trashed(mut manifest: Manifest) -> Manifest {
        let when = Moment::now();
        let why = "delete".into();
        let (entry, number) = (manifest.id, 1);
        manifest.keeping.trash =
            Some(Trashed { entry, number, when, was_now: false, ran: false, by_undo: false, why });
        manifest
    }

    #[test]
    fn who_descends_from_the_trash_descends_from_what_is_above_it() {
        let all = [
            sample(id(1), "a", None),
            trashed(sample(id(2), "b", Some(id(1)))),
            trashed(sample(id(3), "c", Some(id(2)))),
            sample(id(4), "d", Some(id(3))),
        ];
        let (seen, now) = shown(&all, Some(id(3)));
        let parents: Vec<_> = seen.iter().map(|manifest| (manifest.id, manifest.parent)).collect();
        assert_eq!((parents, now), (vec![(id(1), None), (id(4), Some(id(1)))], Some(id(1))));
        // One that is missing altogether is for others to complain of.
        assert_eq!(shown(&all[3..], None).0[0].parent, Some(id(3)));
        // A ring ends.
        let ring = [trashed(sample(id(1), "a", Some(id(2)))), trashed(sample(id(2), "b", Some(id(1))))];
        assert_eq!(shown(&ring, Some(id(1))), (vec![], None));
    }

    #[test]
    fn it_is_part_of_the_manifest() {
        let manifest = trashed(sample(id(2), "b", None));
        let bytes = manifest.encode().unwrap();
        assert_eq!(Manifest::decode(&bytes, id(2)).unwrap(), manifest);
        let plain = sample(id(2), "b", None).encode().unwrap();
        let text = String::from_utf8(plain).unwrap();
        assert!(!text.contains("pinned") && !text.contains("trash") && !text.contains("keeping"), "{text}");
    }
}
