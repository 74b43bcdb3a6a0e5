//! Which layers of one disk are needed apart, and which may merge or go. No files here.
//!
//! A *user* is a checkpoint, or Now: it reads a disk from the layer it is on down to the base. A
//! layer that no user is on has to stay only while several layers lie on it. With one, the two
//! become one; with none, it goes. The base counts as a layer, if it may be written.

use std::collections::{BTreeMap, BTreeSet};

use crate::disk::delta_format::{LayerId, Parent};
use crate::disk::merge::Direction;
use crate::id::Id;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum User {
    Checkpoint(Id),
    Now,
}

/// Whether layers may be merged down into the base itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseRole {
    /// Raw, and this VM's own.
    Mergeable,
    /// qcow2, a template (`overlay`), read-only, or another VM rests on it.
    Fixed,
}

/// One thing to do to the files of a disk. Whatever is read by any user stays the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A layer that nobody needs.
    Remove { layer: LayerId },
    /// Two that nobody needs apart.
    Merge {
        lower: Parent,
        upper: LayerId,
        /// Layers on `upper`: those that a commit relinks.
        children: Vec<LayerId>,
        /// Now is on `upper`: a running guest writes to it.
        upper_is_top: bool,
    },
}

impl Step {
    /// A base is never pulled up: the VM is to run on it.
    pub fn allows(&self, direction: Direction) -> bool {
        match self {
            Self::Remove { .. } => false,
            Self::Merge { lower: Parent::Base, .. } => direction == Direction::Commit,
            Self::Merge { .. } => true,
        }
    }
}

/// What the users are on after a step, and which layer is gone: to be recorded before its file is
/// removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    pub gone: LayerId,
    /// Users whose layer is another now.
    pub moved: BTreeMap<User, Parent>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayerProblem {
    #[error("layer {layer}, which {} needs, is missing", named(.user))]
    Missing { user: User, layer: LayerId },
    #[error("layer {layer}, which {} needs, is its own parent", named(.user))]
    Ring { user: User, layer: LayerId },
}

fn named(user: &User) -> String {
    match user {
        User::Now => "the current state".into(),
        User::Checkpoint(id) => format!("checkpoint {id}"),
    }
}

/// The layers of one disk and who is on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerGraph {
    base: BaseRole,
    parents: BTreeMap<LayerId, Parent>,
    users: BTreeMap<User, Parent>,
    /// Layers that others read, too.
    shared: BTreeSet<LayerId>,
    /// Layers that do not go into the base now.
    held: BTreeSet<LayerId>,
    complete: bool,
}

impl LayerGraph {
    /// `complete`: these are all users. With a manifest that could not be read they are not, and
    /// then nothing may go: it could be what that checkpoint is made of.
    pub fn new(
        base: BaseRole,
        layers: impl IntoIterator<Item = (LayerId, Parent)>,
        users: impl IntoIterator<Item = (User, Parent)>,
        complete: bool,
    ) -> Self {
        let (parents, users) = (layers.into_iter().collect(), users.into_iter().collect());
        Self { base, parents, users, shared: BTreeSet::new(), held: BTreeSet::new(), complete }
    }

    /// `layers` are files that another VM has, too: nothing is merged into them, nor are they
    /// given another parent. Nor is anything merged out of them: a copy would cost more than it
    /// saves.
    pub fn share(mut self, layers: impl IntoIterator<Item = LayerId>) -> Self {
        self.shared.extend(layers);
        self
    }

    /// `layers` are not to be merged into the base for now.
    pub fn hold(mut self, layers: impl IntoIterator<Item = LayerId>) -> Self {
        self.held.extend(layers);
        self
    }

    pub fn layers(&self) -> &BTreeMap<LayerId, Parent> {
        &self.parents
    }

    pub fn users(&self) -> &BTreeMap<User, Parent> {
        &self.users
    }

    /// A user is gone, as after a delete.
    pub fn forget(&mut self, user: User) {
        self.users.remove(&user);
    }

    /// What a user reads through, the top first.
    pub fn chain(&self, user: User) -> Result<Vec<LayerId>, LayerProblem> {
        let mut chain = Vec::new();
        let mut seen = BTreeSet::new();
        let mut next = self.users.get(&user).copied().unwrap_or(Parent::Base);
        while let Parent::Delta(layer) = next {
            if !seen.insert(layer) {
                return Err(LayerProblem::Ring { user, layer });
            }
            next = *self.parents.get(&layer).ok_or(LayerProblem::Missing { user, layer })?;
            chain.push(layer);
        }
        Ok(chain)
    }

    /// Users that cannot be read. While there are any, nothing goes or merges: what the missing
    /// layer lies on is not known.
    pub fn problems(&self) -> Vec<LayerProblem> {
        self.users.keys().filter_map(|user| self.chain(*user).err()).collect()
    }

    fn on(&self, parent: Parent) -> Vec<LayerId> {
        self.parents.iter().filter(|(_, below)| **below == parent).map(|(layer, _)| *layer).collect()
    }

    fn is_used(&self, layer: Parent) -> bool {
        self.users.values().any(|on| *on == layer)
    }

    /// What can be done first, if anything. Removals come before merges, so that nothing is
    /// copied for the sake of a layer that goes.
    pub fn next_step(&self) -> Option<Step> {
        if !self.complete || !self.problems().is_empty() {
            return None;
        }
        let unused = |layer: &LayerId| {
            !self.is_used(Parent::Delta(*layer)) && self.on(Parent::Delta(*layer)).is_empty()
        };
        if let Some(layer) = self.parents.keys().copied().find(unused) {
            return Some(Step::Remove { layer });
        }
        let base = (self.base == BaseRole::Mergeable).then_some(Parent::Base);
        let lowers = base.into_iter().chain(self.parents.keys().map(|layer| Parent::Delta(*layer)));
        let pairs = lowers.filter(|lower| !self.is_used(*lower)).filter_map(|lower| {
            // Two that form a ring, or lie on nothing, are for nobody to merge.
            let [upper] = self.on(lower)[..] else { return None };
            let is_held = lower == Parent::Base && self.held.contains(&upper);
            (self.is_grounded(upper) && !is_held && !self.is_shared(lower, upper)).then_some((lower, upper))
        });
        let is_top = |upper: LayerId| self.users.get(&User::Now) == Some(&Parent::Delta(upper));
        // What the guest writes to comes last: it is merged in rounds, each of which freezes a layer
        // that has to go first.
        let (lower, upper) = pairs.min_by_key(|(_, upper)| is_top(*upper))?;
        Some(Step::Merge {
            lower,
            upper,
            children: self.on(Parent::Delta(upper)),
            upper_is_top: is_top(upper),
        })
    }

    /// Whether a merge of these, whichever way it went, would touch what others have.
    fn is_shared(&self, lower: Parent, upper: LayerId) -> bool {
        let lower = match lower {
            Parent::Base => None,
            Parent::Delta(layer) => Some(layer),
        };
        let mut touched = lower.into_iter().chain([upper]).chain(self.on(Parent::Delta(upper)));
        touched.any(|layer| self.shared.contains(&layer))
    }

    fn is_grounded(&self, layer: LayerId) -> bool {
        let mut seen = BTreeSet::new();
        let mut next = Parent::Delta(layer);
        while let Parent::Delta(layer) = next {
            match self.parents.get(&layer) {
                Some(below) if seen.insert(layer) => next = *below,
                _ => return false,
            }
        }
        true
    }

    /// Takes a step as done. A merge that went in `direction` leaves the lower layer (commit) or
    /// the upper one (pull); who was on either is on that one.
    pub fn apply(&mut self, step: &Step, direction: Direction) -> Done {
        match step {
            Step::Remove { layer } => {
                self.parents.remove(layer);
                Done { gone: *layer, moved: BTreeMap::new() }
            }
            Step::Merge { lower, upper, .. } => match (direction, *lower) {
                (Direction::Pull, Parent::Delta(lower)) => {
                    let below = self.parents.remove(&lower).unwrap_or(Parent::Base);
                    self.parents.insert(*upper, below);
                    Done { gone: lower, moved: self.replace(Parent::Delta(lower), Parent::Delta(*upper)) }
                }
                (_, lower) => {
                    self.parents.remove(upper);
                    Done { gone: *upper, moved: self.replace(Parent::Delta(*upper), lower) }
                }
            },
        }
    }

    fn replace(&mut self, gone: Parent, by: Parent) -> BTreeMap<User, Parent> {
        self.parents.values_mut().filter(|below| **below == gone).for_each(|below| *below = by);
        let mut moved = BTreeMap::new();
        for (user, on) in self.users.iter_mut().filter(|(_, on)| **on == gone) {
            *on = by;
            moved.insert(*user, by);
        }
        moved
    }

    /// All steps up to the end, to be shown: which way a merge goes is known when it begins, so
    /// here it goes up, and into the base down.
    pub fn plan(&self) -> Vec<Step> {
        let mut graph = self.clone();
        let mut steps = Vec::new();
        // Every step takes a layer away, so this ends.
        while let Some(step) = graph.next_step() {
            graph.apply(&step, Direction::Pull);
            steps.push(step);
        }
        steps
    }
}

#[cfg(test)]
mod tests;
