//! The tree of checkpoints: who descends from whom, and what a delete re-points. No files here.

mod resolve;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};

use crate::id::Id;

use super::manifest::Manifest;

pub use resolve::{ResolveError, short};

/// What the tree has to know of a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: Id,
    pub name: String,
    pub parent: Option<Id>,
    pub created: DateTime<Utc>,
}

impl From<&Manifest> for Node {
    fn from(manifest: &Manifest) -> Self {
        Self {
            id: manifest.id,
            name: manifest.name.as_str().to_owned(),
            parent: manifest.parent,
            created: manifest.created,
        }
    }
}

/// What is wrong with a tree; it is usable all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeProblem {
    #[error("the parent {parent} of checkpoint `{name}` ({id}) is missing: it is shown as a root")]
    ParentMissing { id: Id, name: String, parent: Id },
    #[error("checkpoint `{name}` ({id}) is its own ancestor through {parent}: it is shown as a root")]
    Ring { id: Id, name: String, parent: Id },
    #[error("the parent of the current state, {parent}, is missing")]
    NowParentMissing { parent: Id },
}

/// A line of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub what: RowItem,
    pub depth: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowItem {
    Checkpoint(Id),
    Now,
}

/// What a delete does to the tree. The memory and state of all that is `gone` is freed at once;
/// its layers are for [`super::layers::LayerGraph`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeletePlan {
    /// Children before their parents: cut short anywhere, no parent is missing.
    pub gone: Vec<Id>,
    /// Whose parent becomes which.
    pub reparent: BTreeMap<Id, Option<Id>>,
    /// The new parent of Now, if it gets another.
    pub now: Option<Option<Id>>,
}

#[derive(Clone, Debug, Default)]
pub struct Tree {
    nodes: BTreeMap<Id, Node>,
    /// By creation, then id; the roots under `None`.
    children: BTreeMap<Option<Id>, Vec<Id>>,
    now: Option<Id>,
    problems: Vec<TreeProblem>,
}

impl Tree {
    /// `now`: the checkpoint that the current state descends from.
    pub fn new(nodes: impl IntoIterator<Item = Node>, now: Option<Id>) -> Self {
        let mut tree = Self { now, ..Self::default() };
        tree.nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
        let present: BTreeSet<Id> = tree.nodes.keys().copied().collect();
        for node in tree.nodes.values_mut() {
            let Some(parent) = node.parent.filter(|parent| !present.contains(parent)) else { continue };
            let (id, name) = (node.id, node.name.clone());
            tree.problems.push(TreeProblem::ParentMissing { id, name, parent });
            node.parent = None;
        }
        if let Some(parent) = now.filter(|parent| !present.contains(parent)) {
            tree.problems.push(TreeProblem::NowParentMissing { parent });
            tree.now = None;
        }
        tree.break_rings();
        tree.link();
        tree
    }

    pub fn of<'a>(manifests: impl IntoIterator<Item = &'a Manifest>, now: Option<Id>) -> Self {
        Self::new(manifests.into_iter().map(Node::from), now)
    }

    fn break_rings(&mut self) {
        // Known to lead up to a root.
        let mut sound = BTreeSet::new();
        let mut oldest_first: Vec<Id> = self.nodes.keys().copied().collect();
        oldest_first.sort_by_key(|id| self.order(*id));
        for id in oldest_first {
            let mut path = BTreeSet::new();
            let mut next = Some(id);
            while let Some(at) = next.filter(|at| !sound.contains(at)) {
                if !path.insert(at) {
                    self.cut(at);
                    break;
                }
                next = self.parent(at);
            }
            sound.extend(path);
        }
    }

    /// Makes the oldest of a ring a root.
    fn cut(&mut self, from: Id) {
        let (mut oldest, mut at) = (from, from);
        while let Some(parent) = self.parent(at).filter(|parent| *parent != from) {
            at = parent;
            if self.order(at) < self.order(oldest) {
                oldest = at;
            }
        }
        if let Some(node) = self.nodes.get_mut(&oldest)
            && let Some(parent) = node.parent.take()
        {
            self.problems.push(TreeProblem::Ring { id: oldest, name: node.name.clone(), parent });
        }
    }

    fn order(&self, id: Id) -> (Option<DateTime<Utc>>, Id) {
        (self.nodes.get(&id).map(|node| node.created), id)
    }

    fn link(&mut self) {
        let mut children: BTreeMap<Option<Id>, Vec<Id>> = BTreeMap::new();
        for node in self.nodes.values() {
            children.entry(node.parent).or_default().push(node.id);
        }
        for ids in children.values_mut() {
            ids.sort_by_key(|id| self.order(*id));
        }
        self.children = children;
    }

    pub fn problems(&self) -> &[TreeProblem] {
        &self.problems
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn get(&self, id: Id) -> Option<&Node> {
        self.nodes.get(&id)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    pub fn parent(&self, id: Id) -> Option<Id> {
        self.nodes.get(&id)?.parent
    }

    /// The parent of Now.
    pub fn now(&self) -> Option<Id> {
        self.now
    }

    pub fn is_name_taken(&self, name: &str) -> bool {
        self.nodes.values().any(|node| node.name == name)
    }

    pub fn roots(&self) -> &[Id] {
        self.below(None)
    }

    pub fn children(&self, id: Id) -> &[Id] {
        self.below(Some(id))
    }

    fn below(&self, parent: Option<Id>) -> &[Id] {
        self.children.get(&parent).map_or(&[], Vec::as_slice)
    }

    /// The nearest first.
    pub fn ancestors(&self, id: Id) -> impl Iterator<Item = Id> + '_ {
        std::iter::successors(self.parent(id), |id| self.parent(*id))
    }

    /// It and all that descends from it, parents before children.
    pub fn subtree(&self, id: Id) -> Vec<Id> {
        let mut found = Vec::new();
        // A stack of our own: a chain may be as deep as there are checkpoints.
        let mut open = vec![id];
        while let Some(id) = open.pop() {
            found.push(id);
            open.extend(self.children(id).iter().rev());
        }
        found
    }

    /// All checkpoints and Now, each parent before its children, Now after its siblings.
    pub fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        let mut open = Vec::new();
        self.open_below(None, 0, &mut open);
        while let Some(row) = open.pop() {
            rows.push(row);
            if let RowItem::Checkpoint(id) = row.what {
                self.open_below(Some(id), row.depth + 1, &mut open);
            }
        }
        rows
    }

    fn open_below(&self, parent: Option<Id>, depth: usize, open: &mut Vec<Row>) {
        // The stack gives them back from its end.
        if self.now == parent {
            open.push(Row { what: RowItem::Now, depth });
        }
        let ids = self.below(parent).iter().rev();
        open.extend(ids.map(|id| Row { what: RowItem::Checkpoint(*id), depth }));
    }

    /// What it means to delete these; ids that are not here are passed over.
    pub fn plan_delete(&self, ids: impl IntoIterator<Item = Id>) -> DeletePlan {
        let gone: BTreeSet<Id> = ids.into_iter().filter(|id| self.nodes.contains_key(id)).collect();
        let survivor = |parent: Option<Id>| {
            let mut at = parent;
            while let Some(id) = at.filter(|id| gone.contains(id)) {
                at = self.parent(id);
            }
            at
        };
        let reparent = self
            .nodes
            .values()
            .filter(|node| !gone.contains(&node.id))
            .map(|node| (node.id, node.parent, survivor(node.parent)))
            .filter(|(_, before, after)| before != after)
            .map(|(id, _, after)| (id, after))
            .collect();
        let now = survivor(self.now);
        let mut gone: Vec<Id> = gone.iter().copied().collect();
        gone.sort_by_cached_key(|id| Reverse(self.ancestors(*id).count()));
        DeletePlan { gone, reparent, now: (now != self.now).then_some(now) }
    }

    /// The tree after a plan.
    pub fn after(&self, plan: &DeletePlan) -> Self {
        let kept = self.nodes.values().filter(|node| !plan.gone.contains(&node.id)).cloned();
        let moved = kept.map(|mut node| {
            if let Some(parent) = plan.reparent.get(&node.id) {
                node.parent = *parent;
            }
            node
        });
        Self::new(moved, plan.now.unwrap_or(self.now))
    }
}

#[cfg(test)]
mod tests;
