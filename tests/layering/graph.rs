//! Which file imports which, and circles among them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::code::{Code, Kind, Mention};
use crate::source::{ModulePath, Name, Sources};

/// Edges from file to file, each with the line and the path of the first import.
pub type Edges = BTreeMap<(usize, usize), (usize, String)>;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The module that has it, or that it is.
    pub module: ModulePath,
    pub is_module: bool,
}

/// A chain of `use` that is longer than this goes round.
const MOST_HOPS: usize = 32;

/// The thing that `path`, seen from `from`, names, through all re-exports; nothing if it is not of
/// this crate.
pub fn resolve(sources: &Sources, from: &[String], path: &[String]) -> Option<Target> {
    follow(sources, from, path, 0)
}

fn follow(sources: &Sources, from: &[String], path: &[String], hops: usize) -> Option<Target> {
    if hops > MOST_HOPS {
        return None;
    }
    let mut module = from.to_vec();
    let mut rest = path;
    let mut anchored = false;
    while let Some(first) = rest.first() {
        match first.as_str() {
            "crate" if !anchored => module.clear(),
            "self" if !anchored => {}
            "super" => {
                module.pop()?;
            }
            _ => break,
        }
        anchored = true;
        rest = &rest[1..];
    }
    for (i, name) in rest.iter().enumerate() {
        let inside = [&module[..], std::slice::from_ref(name)].concat();
        if sources.modules.contains_key(&inside) {
            module = inside;
            continue;
        }
        let here = sources.modules.get(&module)?;
        let behind = &rest[i + 1..];
        match here.names.get(name) {
            Some(Name::Own) => return Some(Target { module, is_module: false }),
            // `use x as x` and a crate's name: not of this crate.
            Some(Name::Use(path)) if path.first() == Some(name) && path.len() == 1 => return None,
            Some(Name::Use(path)) => {
                return follow(sources, &module, &[path, behind].concat(), hops + 1);
            }
            None => {}
        }
        if let Some(module) = sources.exported.get(name).filter(|_| module.is_empty()) {
            return Some(Target { module: module.clone(), is_module: false });
        }
        let through = here.globs.iter().find_map(|glob| {
            let target = follow(sources, &module, glob, hops + 1)?;
            // `use super::*` of a module whose parent says `use child::*`.
            (target.is_module && target.module != module).then_some(())?;
            follow(sources, &target.module, &[std::slice::from_ref(name), behind].concat(), hops + 1)
        });
        if through.is_some() || (i == 0 && !anchored) {
            return through;
        }
        // A thing that no item declares here: made by a macro, or of a type that was re-exported.
        return Some(Target { module, is_module: false });
    }
    Some(Target { module, is_module: true })
}

/// What a file's mention leads to, if it counts as an import at all.
pub fn import(sources: &Sources, file: usize, mention: &Mention) -> Option<Target> {
    let target = resolve(sources, &mention.from, &mention.path)?;
    if mention.kind == Kind::Code && target.is_module {
        return None;
    }
    let own = &sources.files[file].module;
    // What a parent passes on of its children is theirs.
    if mention.kind == Kind::ReExport && target.module.len() > own.len() && target.module.starts_with(own) {
        return None;
    }
    Some(target)
}

pub fn edges(sources: &Sources) -> Edges {
    let mut edges = Edges::new();
    for file in 0..sources.files.len() {
        for mention in Code::of(&sources.files[file], sources.tests).mentions {
            let Some(target) = import(sources, file, &mention) else { continue };
            let other = sources.modules[&target.module].file;
            if other != file {
                edges.entry((file, other)).or_insert_with(|| (mention.line, mention.path.join("::")));
            }
        }
    }
    edges
}

/// Every edge that lies on a circle is on one of these: files in the order of their imports.
pub fn circles(edges: &Edges) -> Vec<Vec<usize>> {
    let mut found = BTreeSet::new();
    for (from, to) in edges.keys() {
        if let Some(mut circle) = way(edges, *to, *from) {
            let least = (0..circle.len()).min_by_key(|i| circle[*i]).unwrap_or(0);
            circle.rotate_left(least);
            found.insert((circle.len(), circle));
        }
    }
    found.into_iter().map(|(_, circle)| circle).collect()
}

/// The shortest way along the edges.
fn way(edges: &Edges, from: usize, to: usize) -> Option<Vec<usize>> {
    let mut before = BTreeMap::from([(from, from)]);
    let mut next = VecDeque::from([from]);
    while let Some(file) = next.pop_front() {
        if file == to {
            let mut way = vec![to];
            while way[way.len() - 1] != from {
                way.push(before[&way[way.len() - 1]]);
            }
            way.reverse();
            return Some(way);
        }
        for (_, other) in edges.range((file, 0)..=(file, usize::MAX)).map(|(edge, _)| edge) {
            if !before.contains_key(other) {
                before.insert(*other, file);
                next.push_back(*other);
            }
        }
    }
    None
}

/// `a.rs -> b.rs -> a.rs`, with the import of each step.
pub fn describe(sources: &Sources, edges: &Edges, circle: &[usize]) -> String {
    let name = |file: usize| sources.files[file].path.display().to_string();
    let closed: Vec<usize> = circle.iter().chain(&circle[..1]).copied().collect();
    let chain: Vec<String> = closed.iter().map(|file| name(*file)).collect();
    let mut text = format!("{} import each other in a circle:", chain.join(" -> "));
    for step in closed.windows(2) {
        let (line, path) = &edges[&(step[0], step[1])];
        text += &format!("\n    {}:{line} names {path}, which is in {}", name(step[0]), name(step[1]));
    }
    text
}
