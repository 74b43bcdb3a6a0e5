use proptest::prelude::*;

use super::BaseRole::{Fixed, Mergeable};
use super::*;

fn id(n: u64) -> Id {
    Id::from_bytes(u128::from(n).to_be_bytes())
}

fn layer(n: u64) -> Parent {
    if n == 0 { Parent::Base } else { Parent::Delta(id(n)) }
}

/// Layers as (number, parent), users as the layers of checkpoints 1, 2 and so on, and of Now.
fn graph(base: BaseRole, layers: &[(u64, u64)], checkpoints: &[u64], now: u64) -> LayerGraph {
    let users = (1..).zip(checkpoints).map(|(n, on)| (User::Checkpoint(id(n)), layer(*on)));
    LayerGraph::new(
        base,
        layers.iter().map(|(n, parent)| (id(*n), layer(*parent))),
        users.chain([(User::Now, layer(now))]),
        true,
    )
}

fn merge(lower: u64, upper: u64, children: &[u64], upper_is_top: bool) -> Step {
    let children = children.iter().map(|n| id(*n)).collect();
    Step::Merge { lower: layer(lower), upper: id(upper), children, upper_is_top }
}

#[test]
fn what_is_needed_apart_stays() {
    // base (cp1) <- 1 (cp2) <- 2 (Now)
    let whole = graph(Mergeable, &[(1, 0), (2, 1)], &[0, 1], 2);
    assert_eq!(whole.plan(), []);
    // Several layers on one that nobody is on.
    assert_eq!(graph(Mergeable, &[(1, 0), (2, 1), (3, 1)], &[0, 2], 3).plan(), []);
    // A fixed base with one layer on it.
    assert_eq!(graph(Fixed, &[(1, 0)], &[], 1).plan(), []);
}

#[test]
fn the_first_checkpoint_goes_and_the_base_takes_the_layer() {
    let mut graph = graph(Mergeable, &[(1, 0), (2, 1)], &[0, 1], 2);
    graph.forget(User::Checkpoint(id(1)));
    let step = graph.next_step().unwrap();
    assert_eq!(step, merge(0, 1, &[2], false));
    assert!(step.allows(Direction::Commit) && !step.allows(Direction::Pull));
    let done = graph.apply(&step, Direction::Commit);
    assert_eq!(done, Done { gone: id(1), moved: BTreeMap::from([(User::Checkpoint(id(2)), Parent::Base)]) });
    assert_eq!(graph.layers(), &BTreeMap::from([(id(2), Parent::Base)]));
    graph.forget(User::Checkpoint(id(2)));
    assert_eq!(graph.plan(), [merge(0, 2, &[], true)]);
}

#[test]
fn the_survivor_is_the_file_that_the_direction_leaves() {
    let start = graph(Fixed, &[(1, 0), (2, 1), (3, 2), (4, 2)], &[2], 3);
    let step = merge(1, 2, &[3, 4], false);
    // 4 is nobody's.
    assert_eq!(start.next_step(), Some(Step::Remove { layer: id(4) }));
    let mut start = start;
    start.apply(&Step::Remove { layer: id(4) }, Direction::Commit);
    assert_eq!(start.next_step(), Some(merge(1, 2, &[3], false)));
    let mut commit = start.clone();
    let done = commit.apply(&step, Direction::Commit);
    assert_eq!(done, Done { gone: id(2), moved: BTreeMap::from([(User::Checkpoint(id(1)), layer(1))]) });
    assert_eq!(commit.chain(User::Now), Ok(vec![id(3), id(1)]));
    let mut pull = start;
    assert_eq!(pull.apply(&step, Direction::Pull), Done { gone: id(1), moved: BTreeMap::new() });
    assert_eq!(pull.chain(User::Now), Ok(vec![id(3), id(2)]));
}

#[test]
fn a_discarded_branch_goes_before_anything_is_copied() {
    // 1 and 2 were Now, and an apply of the checkpoint on the base went to 3.
    let graph = graph(Mergeable, &[(1, 0), (2, 1), (3, 0)], &[0], 3);
    assert_eq!(graph.plan(), [Step::Remove { layer: id(2) }, Step::Remove { layer: id(1) }]);
}

#[test]
fn nothing_goes_while_anything_is_unknown() {
    let layers = [(id(1), layer(0)), (id(2), layer(1)), (id(9), layer(1))];
    let incomplete = LayerGraph::new(Mergeable, layers, [(User::Now, layer(2))], false);
    assert_eq!(incomplete.plan(), []);
    let mut missing = graph(Mergeable, &[(1, 0), (2, 1)], &[7], 2);
    assert_eq!(missing.problems(), [LayerProblem::Missing { user: User::Checkpoint(id(1)), layer: id(7) }]);
    assert_eq!(missing.plan(), []);
    // Its checkpoint deleted, all is known again.
    missing.forget(User::Checkpoint(id(1)));
    assert_eq!(missing.plan().len(), 2);
    let ring = graph(Mergeable, &[(1, 2), (2, 1)], &[], 1);
    assert!(matches!(ring.problems()[..], [LayerProblem::Ring { user: User::Now, .. }]));
    assert_eq!(ring.plan(), []);
    // Rings and loose ends that nobody needs are no reason to copy anything.
    assert_eq!(graph(Mergeable, &[(1, 2), (2, 1), (4, 8), (5, 4), (6, 5)], &[], 0).plan().len(), 3);
    let text = missing_text();
    assert!(text.contains("the current state") && text.contains("missing"), "{text}");
}

fn missing_text() -> String {
    graph(Fixed, &[], &[], 1).problems()[0].to_string()
}

/// A disk of a few blocks, done in full: what the files hold, and who reads what.
struct Model {
    files: BTreeMap<Parent2, BTreeMap<u8, u64>>,
    graph: LayerGraph,
    next: u64,
}

/// [`Parent`] with an order.
type Parent2 = Option<Id>;

fn key(parent: Parent) -> Parent2 {
    match parent {
        Parent::Base => None,
        Parent::Delta(id) => Some(id),
    }
}

impl Model {
    fn new(base: BaseRole, overlay: bool) -> Self {
        let mut model = Self {
            files: BTreeMap::from([(None, (0..6).map(|block| (block, u64::from(block))).collect())]),
            graph: LayerGraph::new(base, [], [(User::Now, Parent::Base)], true),
            next: 100,
        };
        if overlay {
            model.push(Parent::Base);
        }
        model
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Now gets a fresh layer on this one.
    fn push(&mut self, on: Parent) {
        let layer = id(self.fresh());
        self.files.insert(Some(layer), BTreeMap::new());
        self.graph.parents.insert(layer, on);
        self.graph.users.insert(User::Now, Parent::Delta(layer));
    }

    fn on(&self, user: User) -> Parent {
        self.graph.users[&user]
    }

    fn read(&self, user: User) -> BTreeMap<u8, u64> {
        let mut disk = self.files[&None].clone();
        for layer in self.graph.chain(user).unwrap().iter().rev() {
            disk.extend(&self.files[&Some(*layer)]);
        }
        disk
    }

    fn all(&self) -> BTreeMap<User, BTreeMap<u8, u64>> {
        self.graph.users.keys().map(|user| (*user, self.read(*user))).collect()
    }

    fn checkpoints(&self) -> Vec<User> {
        self.graph.users.keys().copied().filter(|user| *user != User::Now).collect()
    }

    fn run(&mut self, act: &Act) {
        match act {
            Act::Write(block) => {
                let value = self.fresh();
                let top = self.on(User::Now);
                self.files.get_mut(&key(top)).unwrap().insert(*block, value);
            }
            Act::Create => {
                let (user, top) = (User::Checkpoint(id(self.fresh())), self.on(User::Now));
                self.graph.users.insert(user, top);
                self.push(top);
            }
            Act::Apply(at) => {
                if let Some(user) = pick(&self.checkpoints(), *at) {
                    let top = self.on(user);
                    self.push(top);
                }
            }
            Act::Delete(at, ways) => {
                if let Some(user) = pick(&self.checkpoints(), *at) {
                    self.graph.forget(user);
                    self.settle(*ways);
                }
            }
        }
    }

    /// Does what may be done, each merge in a way of its own, and looks at every reader after it.
    fn settle(&mut self, ways: u64) {
        let before = self.all();
        let mut count = 0;
        while let Some(step) = self.graph.next_step() {
            let way = if ways >> (count % 64) & 1 == 0 { Direction::Commit } else { Direction::Pull };
            let way = if step.allows(way) { way } else { Direction::Commit };
            self.execute(&step, way);
            assert_eq!(self.all(), before, "{step:?} {way:?}");
            count += 1;
        }
    }

    fn execute(&mut self, step: &Step, way: Direction) {
        if let Step::Merge { lower, upper, .. } = step {
            let (low, up) = (self.files[&key(*lower)].clone(), self.files[&Some(*upper)].clone());
            let merged = low.into_iter().chain(up).collect();
            let survivor = if way == Direction::Commit { key(*lower) } else { Some(*upper) };
            self.files.insert(survivor, merged);
        }
        let done = self.graph.apply(step, way);
        self.files.remove(&Some(done.gone)).expect("a layer goes once");
    }
}

fn pick<T: Copy>(from: &[T], at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[at % from.len()])
}

#[derive(Clone, Debug)]
enum Act {
    Write(u8),
    Create,
    Apply(usize),
    Delete(usize, u64),
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    prop::collection::vec(
        prop_oneof![
            4 => (0..6u8).prop_map(Act::Write),
            3 => Just(Act::Create),
            2 => any::<usize>().prop_map(Act::Apply),
            2 => (any::<usize>(), any::<u64>()).prop_map(|(at, ways)| Act::Delete(at, ways)),
        ],
        0..40,
    )
}

proptest! {
    #[test]
    fn no_surviving_checkpoint_ever_reads_differently(acts in acts(), fixed: bool, overlay: bool, ways: u64) {
        let base = if fixed { Fixed } else { Mergeable };
        // A template's base is never the writable top.
        let mut model = Model::new(base, overlay || fixed);
        for act in &acts {
            let before = model.all();
            model.run(act);
            for (user, disk) in model.all() {
                // Apart from Now, which the act may be about.
                if user != User::Now && before.contains_key(&user) {
                    prop_assert_eq!(&disk, &before[&user], "{:?} {:?}", user, act);
                }
            }
        }
        model.settle(ways);
        // As few layers as there can be: each is somebody's top or a fork.
        for layer in model.graph.layers().keys() {
            let parent = Parent::Delta(*layer);
            prop_assert!(model.graph.is_used(parent) || model.graph.on(parent).len() > 1);
        }
        prop_assert_eq!(model.graph.plan(), []);
        let files: BTreeSet<Id> = model.files.keys().flatten().copied().collect();
        prop_assert_eq!(files, model.graph.layers().keys().copied().collect());
        // Without checkpoints, the base alone, or one layer on a base that may not be written.
        for user in model.checkpoints() {
            model.graph.forget(user);
        }
        model.settle(ways.rotate_left(7));
        prop_assert_eq!(model.graph.layers().len(), usize::from(fixed));
    }

    #[test]
    fn the_plan_says_how_many_steps_there_will_be(acts in acts(), ways: u64) {
        let mut model = Model::new(Mergeable, false);
        acts.iter().filter(|act| !matches!(act, Act::Delete(..))).for_each(|act| model.run(act));
        for user in model.checkpoints().into_iter().step_by(2) {
            model.graph.forget(user);
        }
        let (plan, layers) = (model.graph.plan(), model.graph.layers().len());
        model.settle(ways);
        prop_assert_eq!(layers - model.graph.layers().len(), plan.len());
    }
}

#[test]
fn what_others_have_is_merged_with_nothing() {
    let [a, b, c] = [1, 2, 3].map(|n| Id::from_bytes([n; 16]));
    let layers = [(a, Parent::Base), (b, Parent::Delta(a)), (c, Parent::Delta(b))];
    let graph = |base| LayerGraph::new(base, layers, [(User::Now, Parent::Delta(c))], true);
    let lower = |graph: LayerGraph| match graph.next_step() {
        Some(Step::Merge { lower, .. }) => Some(lower),
        _ => None,
    };
    assert_eq!(lower(graph(BaseRole::Mergeable)), Some(Parent::Base));
    assert_eq!(lower(graph(BaseRole::Fixed)), Some(Parent::Delta(a)));
    assert_eq!(lower(graph(BaseRole::Mergeable).share([a])), Some(Parent::Delta(b)));
    assert_eq!(lower(graph(BaseRole::Mergeable).share([a, b])), None);
    assert_eq!(lower(graph(BaseRole::Mergeable).share([c])), Some(Parent::Base));
}

#[test]
fn the_layer_that_is_written_is_merged_last() {
    // Whichever has the lower id.
    for (lower, middle) in [(1, 9), (9, 1)] {
        let graph = graph(Fixed, &[(lower, 0), (middle, lower), (5, middle)], &[], 5);
        assert_eq!(graph.next_step(), Some(merge(lower, middle, &[5], false)));
    }
}
