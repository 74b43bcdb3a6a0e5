//! From what somebody typed to a checkpoint.

use crate::id::Id;

use super::{Node, Tree};

/// Most names that an error speaks of.
const SHOWN: usize = 5;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("there is no checkpoint `{}`{}", reference.escape_debug(), hint(.near))]
    Unknown { reference: String, near: Vec<String> },
    #[error("`{reference}` matches several checkpoints ({}): give more digits of the id", list(.candidates))]
    Ambiguous { reference: String, candidates: Vec<(Id, String)> },
}

/// The start of an id, as it is shown to people.
pub fn short(id: Id) -> String {
    let mut text = id.to_string();
    text.truncate(8);
    text
}

fn hint(near: &[String]) -> String {
    if near.is_empty() {
        return ": `piton checkpoint list` shows all checkpoints".to_owned();
    }
    let names: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
    format!("; did you mean {}?", names.join(" or "))
}

fn list(candidates: &[(Id, String)]) -> String {
    let mut shown: Vec<_> =
        candidates.iter().take(SHOWN).map(|(id, name)| format!("`{name}` ({id})")).collect();
    if candidates.len() > SHOWN {
        shown.push(format!("{} more", candidates.len() - SHOWN));
    }
    shown.join(", ")
}

impl Tree {
    /// By name, by id, or by the start of an id; a name goes first.
    pub fn resolve(&self, reference: &str) -> Result<Id, ResolveError> {
        let mut found: Vec<&Node> = self.nodes().filter(|node| node.name == reference).collect();
        if found.is_empty() {
            found = self.nodes().filter(|node| node.id.begins_with(reference)).collect();
        }
        match found.as_slice() {
            [node] => Ok(node.id),
            [] => Err(ResolveError::Unknown { reference: reference.to_owned(), near: self.near(reference) }),
            several => Err(ResolveError::Ambiguous {
                reference: reference.to_owned(),
                candidates: several.iter().map(|node| (node.id, node.name.clone())).collect(),
            }),
        }
    }

    /// Names that somebody may have meant, the nearest first.
    fn near(&self, reference: &str) -> Vec<String> {
        let wanted: Vec<char> = reference.to_lowercase().chars().collect();
        if wanted.is_empty() {
            return Vec::new();
        }
        let mut found: Vec<(usize, &str)> = self
            .nodes()
            .filter_map(|node| {
                let name: Vec<char> = node.name.to_lowercase().chars().collect();
                let begun = name.starts_with(&wanted) || wanted.starts_with(&name);
                let apart = if begun { 1 } else { distance(&wanted, &name) };
                (apart <= 1 + wanted.len() / 4).then_some((apart, node.name.as_str()))
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found.into_iter().take(3).map(|(_, name)| name.to_owned()).collect()
    }
}

/// How many characters have to be put in, left out, changed or swapped with the next.
fn distance(a: &[char], b: &[char]) -> usize {
    let mut before_last = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, y) in b.iter().enumerate() {
            let mut best = (last[j] + usize::from(x != y)).min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *x == b[j - 1] && a[i - 1] == *y {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    fn tree() -> Tree {
        let node = |first: u8, last: u8, name: &str| {
            let mut id = [first; 16];
            id[15] = last;
            let created = DateTime::UNIX_EPOCH;
            Node { id: Id::from_bytes(id), name: name.into(), parent: None, created }
        };
        let nodes = [node(0xab, 1, "before-upgrade"), node(0xab, 2, "beef"), node(0xbe, 3, "clean")];
        Tree::new(nodes, None)
    }

    #[test]
    fn references() {
        let tree = tree();
        let name = |reference: &str| tree.resolve(reference).map(|id| tree.get(id).unwrap().name.clone());
        assert_eq!(name("before-upgrade").unwrap(), "before-upgrade");
        // A name that looks like the start of an id is a name.
        assert_eq!(name("beef").unwrap(), "beef");
        assert_eq!(name("bebe").unwrap(), "clean");
        assert_eq!(name("BEBEBEBE").unwrap(), "clean");
        assert_eq!(
            name("abababababababababababababababab").unwrap_err().to_string().matches("abab").count(),
            8
        );
        assert_eq!(name("ababababababababababababababab01").unwrap(), "before-upgrade");
        assert!(matches!(name("beb"), Err(ResolveError::Unknown { .. })), "too short for an id");
        let error = name("abab").unwrap_err().to_string();
        assert!(error.contains("`before-upgrade` (") && error.contains("`beef` ("), "{error}");
    }

    #[test]
    fn a_wrong_name_is_met_with_near_ones() {
        let near = |reference: &str| match tree().resolve(reference) {
            Err(ResolveError::Unknown { near, .. }) => near,
            other => panic!("{reference}: {other:?}"),
        };
        assert_eq!(near("claen"), ["clean"]);
        assert_eq!(near("CLEAN"), ["clean"]);
        assert_eq!(near("before"), ["before-upgrade"]);
        assert_eq!(near("befor-upgade"), ["before-upgrade"]);
        assert_eq!(near("something else"), [""; 0]);
        assert_eq!(near(""), [""; 0]);
        let error = tree().resolve("claen").unwrap_err().to_string();
        assert_eq!(error, "there is no checkpoint `claen`; did you mean `clean`?");
    }

    #[test]
    fn distances() {
        let d = |a: &str, b: &str| distance(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>());
        assert_eq!((d("", "abc"), d("abc", ""), d("abc", "abc")), (3, 3, 0));
        assert_eq!((d("abc", "acb"), d("abc", "abd"), d("kitten", "sitting")), (1, 1, 3));
    }
}
