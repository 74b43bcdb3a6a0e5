//! Rooms: the modules of src/lib.rs, each on a level of the table there.

use std::collections::BTreeSet;
use std::path::Path;

use syn::Item;

use crate::code::{Code, Mention};
use crate::source::Sources;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Room {
    pub name: String,
    pub level: u32,
    pub what: String,
}

/// The table in the documentation of lib.rs.
pub fn table(lib: &str) -> Vec<Room> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | "));
    rows.filter_map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let level = cells.next()?.parse().ok()?;
        let name = cells.next()?.trim_matches(['[', ']', '`']).to_owned();
        Some(Room { name, level, what: cells.next()?.to_owned() })
    })
    .collect()
}

/// Modules that the crate's root declares.
pub fn declared(sources: &Sources) -> BTreeSet<String> {
    let modules = sources.files[0].syntax.items.iter().filter_map(|item| match item {
        Item::Mod(item) => Some(item.ident.to_string()),
        _ => None,
    });
    modules.collect()
}

/// The first name below the crate's root, if the path says where it begins and gets there.
fn room_of(mention: &Mention) -> Option<&str> {
    let mut depth = mention.from.len();
    let mut anchored = false;
    for (i, name) in mention.path.iter().enumerate() {
        match name.as_str() {
            "crate" if i == 0 => depth = 0,
            "self" if i == 0 => {}
            "super" => depth = depth.checked_sub(1)?,
            name => return (anchored && depth == 0).then_some(name),
        }
        anchored = true;
    }
    None
}

/// Which room names which other.
pub fn imports(sources: &Sources) -> BTreeSet<(String, String)> {
    mentions(sources).into_iter().map(|(_, mention, other)| (mention.from[0].clone(), other)).collect()
}

/// All places where a room names another.
fn mentions(sources: &Sources) -> Vec<(&Path, Mention, String)> {
    let mut found = Vec::new();
    for file in sources.files.iter().filter(|file| !file.module.is_empty()) {
        for mention in Code::of(file, sources.tests).mentions {
            if let Some(other) = room_of(&mention)
                && other != mention.from[0]
            {
                let other = other.to_owned();
                found.push((file.path.as_path(), mention, other));
            }
        }
    }
    found
}

/// What a room names although it must not, a sentence each.
pub fn violations(rooms: &[Room], sources: &Sources) -> Vec<String> {
    let level = |name: &str| rooms.iter().find(|room| room.name == name).map(|room| room.level);
    let mut wrong = Vec::new();
    for (file, mention, other) in mentions(sources) {
        let own = &mention.from[0];
        let why = match (level(own), level(&other)) {
            (Some(a), Some(b)) if b < a => continue,
            (Some(a), Some(b)) => format!(
                "{own} is on level {a} and {other} on level {b}, and a room imports from lower levels only"
            ),
            (None, _) => format!("{own} is not in the table of src/lib.rs"),
            (_, None) => format!("{other} is no room of the table of src/lib.rs"),
        };
        let path = mention.path.join("::");
        wrong.push(format!("{}:{} imports {path}: {why}", file.display(), mention.line));
    }
    wrong
}
