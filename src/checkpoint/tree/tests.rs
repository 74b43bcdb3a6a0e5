use proptest::prelude::*;

use super::*;

fn id(n: usize) -> Id {
    Id::from_bytes((n as u128).to_be_bytes())
}

fn node(n: usize, parent: Option<usize>) -> Node {
    let created = DateTime::from_timestamp(n as i64, 0).unwrap();
    Node { id: id(n), name: format!("cp{n}"), parent: parent.map(id), created }
}

/// Of the parents of 0, 1, 2 and so on.
fn tree(parents: &[Option<usize>], now: Option<usize>) -> Tree {
    Tree::new(parents.iter().enumerate().map(|(n, parent)| node(n, *parent)), now.map(id))
}

fn text(tree: &Tree) -> Vec<String> {
    let line = |row: &Row| {
        let name = match row.what {
            RowItem::Checkpoint(id) => tree.get(id).unwrap().name.clone(),
            RowItem::Now => "Now".into(),
        };
        format!("{}{name}", "  ".repeat(row.depth))
    };
    tree.rows().iter().map(line).collect()
}

#[test]
fn rows_are_depth_first_with_now_last() {
    let tree = tree(&[None, Some(0), Some(0), Some(1), None], Some(0));
    assert_eq!(text(&tree), ["cp0", "  cp1", "    cp3", "  cp2", "  Now", "cp4"]);
    assert_eq!(tree.roots(), [id(0), id(4)]);
    assert_eq!(tree.children(id(0)), [id(1), id(2)]);
    assert_eq!(tree.ancestors(id(3)).collect::<Vec<_>>(), [id(1), id(0)]);
    assert_eq!(tree.subtree(id(0)), [id(0), id(1), id(3), id(2)]);
    assert!(tree.problems().is_empty() && tree.is_name_taken("cp4") && !tree.is_name_taken("cp5"));
    assert_eq!(text(&Tree::default()), ["Now"]);
}

#[test]
fn children_go_to_the_parent_of_the_deleted() {
    let tree = tree(&[None, Some(0), Some(1), Some(1)], Some(1));
    let plan = tree.plan_delete([id(1)]);
    assert_eq!(plan.gone, [id(1)]);
    assert_eq!(plan.reparent, BTreeMap::from([(id(2), Some(id(0))), (id(3), Some(id(0)))]));
    assert_eq!(plan.now, Some(Some(id(0))));
    assert_eq!(text(&tree.after(&plan)), ["cp0", "  cp2", "  cp3", "  Now"]);
    // The subtree, with the parent of Now in it.
    let plan = tree.plan_delete(tree.subtree(id(1)));
    assert_eq!((plan.gone[2], plan.reparent.len(), plan.now), (id(1), 0, Some(Some(id(0)))));
    let plan = tree.plan_delete(tree.subtree(id(0)));
    assert_eq!((plan.gone.len(), plan.now), (4, Some(None)));
    assert_eq!(tree.plan_delete([id(77)]).gone, []);
}

#[test]
fn damage_is_reported_and_survived() {
    let parents = [None, Some(9), Some(3), Some(4), Some(2), Some(4), Some(6)];
    let tree = tree(&parents, Some(50));
    let ids: Vec<String> = tree.problems().iter().map(ToString::to_string).collect();
    assert_eq!(ids.len(), 4, "{ids:?}");
    assert!(ids[0].contains("`cp1`") && ids[0].contains("is missing"));
    assert!(ids[1].contains("the current state"));
    assert!(ids[2].contains("`cp2`") && ids[3].contains("`cp6`"), "{ids:?}");
    assert_eq!(tree.rows().len(), 8);
    assert_eq!(tree.now(), None);
}

#[test]
fn a_deep_chain_is_no_deep_recursion() {
    let parents: Vec<_> = (0..20_000usize).map(|n| n.checked_sub(1)).collect();
    let tree = tree(&parents, Some(19_999));
    assert_eq!(tree.rows().last().map(|row| row.depth), Some(20_000));
    assert_eq!(tree.subtree(id(0)).len(), 20_000);
}

proptest! {
    /// Any parents at all: rings, missing ones, oneself.
    #[test]
    fn every_checkpoint_is_shown_once(
        parents in prop::collection::vec(prop::option::of(0..24usize), 0..20),
        now in prop::option::of(0..24usize),
        gone in prop::collection::btree_set(0..24usize, 0..12),
    ) {
        let tree = tree(&parents, now);
        let check = |tree: &Tree| {
            let rows = tree.rows();
            let shown: BTreeSet<Id> = rows.iter().filter_map(|row| match row.what {
                RowItem::Checkpoint(id) => Some(id),
                RowItem::Now => None,
            }).collect();
            assert_eq!(shown, tree.nodes().map(|node| node.id).collect());
            assert_eq!(rows.len(), tree.len() + 1);
            for row in rows {
                if let RowItem::Checkpoint(id) = row.what {
                    assert_eq!(tree.ancestors(id).count(), row.depth);
                }
            }
        };
        check(&tree);
        let plan = tree.plan_delete(gone.iter().map(|n| id(*n)));
        let after = tree.after(&plan);
        check(&after);
        prop_assert!(after.problems().is_empty());
        prop_assert_eq!(after.len() + plan.gone.len(), tree.len());
        // Those that are left have the ancestors that they had and that are left.
        for node in after.nodes() {
            let kept: Vec<Id> = tree.ancestors(node.id).filter(|id| after.get(*id).is_some()).collect();
            prop_assert_eq!(after.ancestors(node.id).collect::<Vec<_>>(), kept);
        }
        for (i, id) in plan.gone.iter().enumerate() {
            prop_assert!(plan.gone[..i].iter().all(|before| !tree.ancestors(*id).any(|a| a == *before)));
        }
    }
}
