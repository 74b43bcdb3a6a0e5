//! Holds the sources against the rules of the house: the table of rooms and levels in src/lib.rs, no
//! two files that import each other, straight or round about, the length of files, and that no code
//! outside tests gives up with `unwrap` or `expect`.

mod code;
mod graph;
mod picture;
mod rooms;
#[cfg(test)]
mod samples;
mod source;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use code::Code;
use source::{Sources, Tests};
use walkdir::WalkDir;

const MOST_LINES: usize = 600;
/// The roots of the crates, and the folders that their files lie in.
const CRATES: [(&str, &str); 3] =
    [("src/lib.rs", "src"), ("guest/src/main.rs", "guest/src"), ("bench/src/main.rs", "bench/src")];
/// The program: it only calls the crate.
const PROGRAM: &str = "src/main.rs";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> Option<String> {
    std::fs::read_to_string(root().join(path)).ok()
}

fn load(crate_root: &str, tests: Tests) -> Sources {
    Sources::load(crate_root.as_ref(), tests, &read).unwrap()
}

/// All Rust files below a folder of the repository.
fn files(folder: &str) -> BTreeSet<PathBuf> {
    let entries = WalkDir::new(root().join(folder)).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "rs"));
    files.map(|entry| entry.path().strip_prefix(root()).unwrap().to_owned()).collect()
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn rooms_import_from_lower_levels_only() {
    let rooms = rooms::table(&read("src/lib.rs".as_ref()).unwrap());
    let sources = load("src/lib.rs", Tests::Too);
    let listed: BTreeSet<String> = rooms.iter().map(|room| room.name.clone()).collect();
    assert_eq!(listed, rooms::declared(&sources), "the table and the modules of src/lib.rs");
    assert_none(&rooms::violations(&rooms, &sources));
}

/// docs/ARCHITECTURE.md tells more of each room, and nothing else about where it is.
#[test]
fn the_docs_have_the_same_levels() {
    let rooms = rooms::table(&read("src/lib.rs".as_ref()).unwrap());
    let docs = read("docs/ARCHITECTURE.md".as_ref()).unwrap();
    let on = |level: u32, name: &str| {
        let row = |line: &&str| line.starts_with(&format!("| {level} |"));
        let names = [format!("`{name}/`"), format!("`{name}.rs`")];
        docs.lines().filter(row).any(|line| names.iter().any(|name| line.contains(name)))
    };
    let lost = rooms.iter().filter(|room| !on(room.level, &room.name));
    let wrong: Vec<_> = lost
        .map(|room| format!("docs/ARCHITECTURE.md has no row of level {} with {}", room.level, room.name))
        .collect();
    assert_none(&wrong);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    for (crate_root, _) in CRATES {
        let sources = load(crate_root, Tests::Not);
        let edges = graph::edges(&sources);
        let circles = graph::circles(&edges);
        let wrong: Vec<_> = circles.iter().map(|circle| graph::describe(&sources, &edges, circle)).collect();
        assert_none(&wrong);
    }
}

#[test]
fn every_file_belongs_to_a_crate() {
    for (crate_root, folder) in CRATES {
        let known: BTreeSet<_> =
            load(crate_root, Tests::Too).files.into_iter().map(|file| file.path).collect();
        let lost = files(folder).into_iter().filter(|file| !known.contains(file));
        let lost = lost.filter(|file| file != Path::new(PROGRAM));
        let wrong: Vec<_> =
            lost.map(|file| format!("{}: no `mod` declares this file", file.display())).collect();
        assert_none(&wrong);
    }
}

#[test]
fn files_are_short() {
    let mut wrong = Vec::new();
    for (_, folder) in CRATES {
        for file in files(folder) {
            let lines = read(&file).unwrap().lines().count();
            if lines > MOST_LINES {
                wrong.push(format!("{} has {lines} lines, {MOST_LINES} are allowed", file.display()));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn nothing_gives_up() {
    let mut wrong = Vec::new();
    for crate_root in [PROGRAM, "src/lib.rs", "guest/src/main.rs"] {
        let sources = load(crate_root, Tests::Not);
        for file in &sources.files {
            for (line, name) in Code::of(file, sources.tests).gives_up {
                wrong.push(format!("{}:{line} calls {name}: return an error", file.path.display()));
            }
        }
    }
    assert_none(&wrong);
}

#[test]
fn the_picture_of_the_rooms_is_up_to_date() {
    let drawn = picture::draw(
        &rooms::table(&read("src/lib.rs".as_ref()).unwrap()),
        &rooms::imports(&load("src/lib.rs", Tests::Not)),
    );
    let path = Path::new("docs/rooms.svg");
    if std::env::var_os("PITON_DRAW_ROOMS").is_some() {
        std::fs::write(root().join(path), &drawn).unwrap();
    }
    assert!(
        read(path).as_ref() == Some(&drawn),
        "docs/rooms.svg shows other rooms or imports than there are; scripts/lib/rooms-picture draws it anew"
    );
}
