//! The checker itself, on samples that must pass and samples that must fail.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::code::Code;
use crate::graph::{circles, describe, edges};
use crate::picture;
use crate::rooms::{declared, imports, table, violations};
use crate::source::{Sources, Tests};

const LIB: &str = "//! | level | module | what |\n//! | --- | --- | --- |\n\
    //! | 3 | [`top`] | x |\n//! | 2 | [`left`] | x |\n//! | 2 | [`right`] | x |\n\
    //! | 1 | [`leaf`] | x |\npub mod leaf;\npub mod left;\nmod right;\n// mod gone;\npub mod top;\n";

fn load(files: &[(&str, &str)], tests: Tests) -> Result<Sources, String> {
    let files: BTreeMap<PathBuf, String> =
        files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
    Sources::load(Path::new("lib.rs"), tests, &|path| files.get(path).cloned())
}

/// What is wrong with the room `name` if this is its file, or that of its module `inner`.
fn found(name: &str, inner: bool, source: &str) -> Vec<String> {
    let mut files: BTreeMap<String, &str> =
        ["leaf", "left", "right", "top"].map(|name| (format!("{name}.rs"), "")).into();
    files.insert("lib.rs".into(), LIB);
    if inner {
        files.insert(format!("{name}.rs"), "mod inner;");
        files.insert(format!("{name}/inner.rs"), source);
    } else {
        files.insert(format!("{name}.rs"), source);
    }
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    violations(&table(LIB), &load(&files, Tests::Too).unwrap())
}

/// The circles of a crate, each as its chain of files.
fn chains(files: &[(&str, &str)]) -> Vec<String> {
    let sources = load(files, Tests::Not).unwrap();
    let edges = edges(&sources);
    let found = circles(&edges);
    found
        .iter()
        .map(|circle| describe(&sources, &edges, circle).split(" import each").next().unwrap().to_owned())
        .collect()
}

#[test]
fn reads_the_table() {
    let rooms = table(LIB);
    assert_eq!(
        rooms.iter().map(|room| format!("{}{}", room.name, room.level)).collect::<String>(),
        "top3left2right2leaf1"
    );
    let all = [("lib.rs", LIB), ("leaf.rs", ""), ("left.rs", ""), ("right.rs", ""), ("top.rs", "")];
    let sources = load(&all, Tests::Too).unwrap();
    assert_eq!(declared(&sources).into_iter().collect::<Vec<_>>(), ["leaf", "left", "right", "top"]);
}

#[test]
fn lets_good_imports_pass() {
    let good = [
        ("top", false, "use crate::left::A; use crate::{leaf::{self, right}, right};"),
        ("left", false, "use crate::left::own; fn f() { crate::leaf::g() }"),
        ("left", true, "use super::own; mod tests { use super::super::own; }"),
        ("left", false, "// crate::top\n/* crate::top /* */ */ const A: &str = \"crate::top\";"),
        ("left", false, "mod tests { use super::*; mod deeper { use super::super::*; } }"),
        ("left", false, "fn f() { say!(crate::leaf::g(), top, x.top::<u8>()) }"),
        ("left", false, "pub(in crate::left) fn f<T: Into<::top::A>>(top: T) { top.right() }"),
    ];
    for (room, inner, source) in good {
        assert_eq!(found(room, inner, source), [""; 0], "{source}");
    }
}

#[test]
fn finds_forbidden_imports() {
    let bad = [
        ("leaf", false, 1, "use crate::left::A;"),
        ("left", false, 1, "use crate::right;"),
        ("left", false, 1, "fn f() { crate::top::g() }"),
        ("left", false, 1, "fn f() -> Vec<crate::top::A> {}"),
        ("left", false, 1, "impl crate::top::T for A {}"),
        ("left", false, 1, "fn f() { say!(\"{}\", [crate::top::g()]) }"),
        ("left", false, 1, "macro_rules! m { () => { $crate::top::g() } }"),
        ("left", false, 2, "macro_rules! m { () => { use crate::top::{A, B}; } }"),
        ("left", false, 1, "#[error(\"{}\", crate::top::g())] struct A;"),
        ("left", false, 2, "use crate::{\n    leaf,\n    right::{A},\n    top,\n};"),
        ("left", false, 1, "use crate::nowhere;"),
        ("left", false, 1, "use super::top;"),
        ("left", false, 1, "#[cfg(test)] mod tests { use crate::top; }"),
        ("left", true, 1, "use super::super::top;"),
        ("left", false, 1, "mod a { use super::super::top; }\nuse super::leaf;"),
    ];
    for (room, inner, count, source) in bad {
        assert_eq!(found(room, inner, source).len(), count, "{source}: {:?}", found(room, inner, source));
    }
    assert_eq!(
        found("left", false, "\n\nuse crate::right::A;"),
        [
            "left.rs:3 imports crate::right::A: left is on level 2 and right on level 2, and a room imports from \
          lower levels only"
        ]
    );
}

#[test]
fn finds_circles() {
    let two =
        [("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "fn f() { super::a::g() }")];
    assert_eq!(chains(&two), ["a.rs -> b.rs -> a.rs"]);
    let sources = load(&two, Tests::Not).unwrap();
    let edges = edges(&sources);
    assert_eq!(
        describe(&sources, &edges, &circles(&edges)[0]),
        "a.rs -> b.rs -> a.rs import each other in a circle:\n    \
         a.rs:1 names crate::b::B, which is in b.rs\n    b.rs:1 names super::a::g, which is in a.rs"
    );
    let lib = ("lib.rs", "mod a;");
    // Round about.
    assert_eq!(
        chains(&[
            ("lib.rs", "mod a; mod b; mod c;"),
            ("a.rs", "use crate::b;"),
            ("b.rs", "use super::c::{self};"),
            ("c.rs", "type A = Vec<crate::a::A>;"),
        ]),
        ["a.rs -> b.rs -> c.rs -> a.rs"]
    );
    // A child that wants its parent's own, and the parent's code wants the child.
    let parents = [
        "mod c; pub struct Own; fn f() { c::g() }",
        "mod c; pub struct Own; use c::C;",
        "mod c; pub struct Own; pub use c::C; fn f(x: C) {}",
        "mod c; pub struct Own; pub use c::*; fn f() { C::new() }",
        "mod c; pub struct Own; fn f() { vec![c::g()] }",
    ];
    for parent in parents {
        assert_eq!(
            chains(&[lib, ("a.rs", parent), ("a/c.rs", "use super::Own; pub struct C; pub fn g() {}")]),
            ["a.rs -> a/c.rs -> a.rs"],
            "{parent}"
        );
    }
    // Through what a parent passes on: the file that has it is meant.
    assert_eq!(
        chains(&[
            lib,
            ("a/mod.rs", "mod b; mod c; pub use b::B as Renamed; pub use c::C;"),
            ("a/b.rs", "use super::C; pub struct B;"),
            ("a/c.rs", "use crate::a::Renamed; pub struct C;"),
        ]),
        ["a/b.rs -> a/c.rs -> a/b.rs"]
    );
    // A macro at the crate's root is of the file that it is written in.
    assert_eq!(
        chains(&[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "#[macro_export] macro_rules! say { () => { $crate::b::f() } }"),
            ("b.rs", "use crate::say; fn f() {}"),
        ]),
        ["a.rs -> b.rs -> a.rs"]
    );
}

#[test]
fn lets_one_way_imports_pass() {
    let good: [&[(&str, &str)]; 5] = [
        &[("lib.rs", "mod a; mod b;"), ("a.rs", "use crate::b::B;"), ("b.rs", "pub struct B; // crate::a")],
        // Passing on is no import.
        &[("lib.rs", "mod a;"), ("a.rs", "mod c; pub use c::C; struct Own;"), ("a/c.rs", "use super::Own;")],
        &[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod b; mod c; pub use b::B; pub use c::C;"),
            ("a/b.rs", "pub struct B;"),
            ("a/c.rs", "use super::B; pub struct C;"),
        ],
        // Nor is what only tests are compiled with.
        &[
            ("lib.rs", "mod a; mod b;"),
            ("a.rs", "use crate::b::B; pub struct A;"),
            (
                "b.rs",
                "pub struct B; #[cfg(test)] mod tests; #[cfg(test)] use crate::a::A; \
              #[cfg(all(test, unix))] mod inner { use crate::a; } impl B { #[cfg(test)] fn f() { crate::a::g() } }",
            ),
            ("b/tests.rs", "use crate::a::A;"),
        ],
        // A name in the function is not the module of that name.
        &[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod c; pub struct Own; fn f(c: u8) -> u8 { say!(c); c }"),
            ("a/c.rs", "use super::Own;"),
        ],
    ];
    for files in good {
        assert_eq!(chains(files), [""; 0], "{files:?}");
    }
}

#[test]
fn finds_where_code_gives_up() {
    let source = "fn a() { b.unwrap(); }\n#[cfg(test)]\nmod tests { fn c() { d.unwrap(); } }\n\
        #[cfg(test)]\n#[allow(x)]\nfn e() { f.expect(\"\") }\nfn g() { h.expect(\"\"); }\n\
        // i.unwrap()\nfn j() { k.unwrap_or(1); expect(2); say!(l.unwrap()); m.map(Option::unwrap) }";
    let sources = load(&[("lib.rs", source)], Tests::Not).unwrap();
    let found: Vec<_> = Code::of(&sources.files[0], Tests::Not).gives_up;
    let found: Vec<_> = found.iter().map(|(line, name)| format!("{line} {name}")).collect();
    assert_eq!(found, ["1 unwrap", "7 expect", "9 unwrap", "9 unwrap"]);
}

#[test]
fn says_where_a_file_is_missing_or_broken() {
    assert_eq!(load(&[("lib.rs", "mod a;")], Tests::Too).err().unwrap(), "a.rs is declared and not there");
    let broken = load(&[("lib.rs", "\nfn f( {}")], Tests::Too).err().unwrap();
    assert!(broken.starts_with("lib.rs:2: "), "{broken}");
    let placed = [("lib.rs", "mod a;"), ("a/mod.rs", "#[path = \"else.rs\"] mod c;"), ("a/else.rs", "")];
    assert_eq!(load(&placed, Tests::Too).unwrap().files[2].module, ["a", "c"]);
}

#[test]
fn draws_each_room_and_no_import_twice() {
    let files = [
        ("lib.rs", LIB),
        ("leaf.rs", ""),
        ("left.rs", "use crate::leaf;"),
        ("right.rs", ""),
        ("top.rs", "use crate::left; use crate::leaf::A;"),
    ];
    let sources = load(&files, Tests::Not).unwrap();
    let drawn = picture::draw(&table(LIB), &imports(&sources));
    assert_eq!(drawn.matches("class=\"room\"").count(), 4);
    // From top to leaf there is a way by left, and leaf lies on the lowest level.
    assert_eq!(drawn.matches("<path").count(), 1, "{drawn}");
}
