//! A tree of checkpoints drawn as a graph of branches, as git draws one: what leads to Now goes straight
//! down, however long it is, and only branches go to the right.

use crate::checkpoint::tree::{RowItem, Tree};
use crate::id::Id;

struct Row {
    what: RowItem,
    column: usize,
    /// It begins a branch: its parent is in the column to the left.
    branches: bool,
}

/// The lines before each row of the tree, from the oldest root down; Now is the last row.
pub fn of(tree: &Tree) -> Vec<(String, RowItem)> {
    let trunk: Vec<Id> =
        tree.now().into_iter().flat_map(|now| std::iter::once(now).chain(tree.ancestors(now))).collect();
    let trunk: std::collections::BTreeSet<Id> = trunk.into_iter().collect();
    let mut rows = Vec::new();
    // A stack of our own: a chain may be as deep as there are checkpoints.
    let mut open = Vec::new();
    open_below(tree, &trunk, None, 0, &mut open);
    while let Some(Row { what, column, branches }) = open.pop() {
        let mark = if what == RowItem::Now { "○" } else { "●" };
        let lines = match (branches, column.checked_sub(1)) {
            (true, Some(left)) => format!("{}├─{mark}", "│ ".repeat(left)),
            _ => format!("{}{mark}", "│ ".repeat(column)),
        };
        rows.push((lines, what));
        if let RowItem::Checkpoint(id) = what {
            open_below(tree, &trunk, Some(id), column, &mut open);
        }
    }
    rows
}

/// Branches come first, so that the line beside them has an end: what goes on in this column.
fn open_below(
    tree: &Tree,
    trunk: &std::collections::BTreeSet<Id>,
    parent: Option<Id>,
    column: usize,
    open: &mut Vec<Row>,
) {
    let ids = parent.map_or(tree.roots(), |id| tree.children(id));
    let now = tree.now() == parent;
    let straight = match ids.iter().find(|id| trunk.contains(id)).or(ids.last()) {
        _ if now => RowItem::Now,
        Some(id) => RowItem::Checkpoint(*id),
        None => return,
    };
    open.push(Row { what: straight, column, branches: false });
    let branches = ids.iter().map(|id| RowItem::Checkpoint(*id)).filter(|what| *what != straight);
    open.extend(branches.rev().map(|what| Row { what, column: column + 1, branches: true }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::tree::Node;
    use chrono::DateTime;

    fn id(n: usize) -> Id {
        Id::from_bytes((n as u128).to_be_bytes())
    }

    /// Of the parents of 0, 1, 2 and so on.
    fn drawn(parents: &[Option<usize>], now: Option<usize>) -> Vec<String> {
        let node = |(n, parent): (usize, &Option<usize>)| Node {
            id: id(n),
            name: n.to_string(),
            parent: parent.map(id),
            created: DateTime::from_timestamp(n as i64, 0).unwrap(),
        };
        let tree = Tree::new(parents.iter().enumerate().map(node), now.map(id));
        let name = |what| match what {
            RowItem::Checkpoint(id) => tree.get(id).unwrap().name.clone(),
            RowItem::Now => "Now".into(),
        };
        of(&tree).into_iter().map(|(lines, what)| format!("{lines} {}", name(what))).collect()
    }

    #[test]
    fn what_leads_to_now_is_straight() {
        let parents: Vec<_> = (0..50usize).map(|n| n.checked_sub(1)).collect();
        let lines = drawn(&parents, Some(49));
        assert_eq!((lines.len(), &*lines[49], &*lines[50]), (51, "● 49", "○ Now"));
        assert_eq!(drawn(&[], None), ["○ Now"]);
    }

    #[test]
    fn branches_go_to_the_right() {
        // 0 has 1, 2 and 3; Now comes from 2. 1 has 4 and 5.
        let lines = drawn(&[None, Some(0), Some(0), Some(0), Some(1), Some(1)], Some(2));
        assert_eq!(lines, ["● 0", "├─● 1", "│ ├─● 4", "│ ● 5", "├─● 3", "● 2", "○ Now"]);
        // Two roots; Now has none.
        assert_eq!(drawn(&[None, None], None), ["├─● 0", "├─● 1", "○ Now"]);
    }
}
