//! Holds the sources against the rules of the house: the table of levels in src/lib.rs, the length
//! of files, and that no code outside tests gives up with `unwrap` or `expect`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const MOST_LINES: usize = 600;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Token {
    text: String,
    line: usize,
}

/// Words and signs of Rust code; comments are left out, and of literals only that there is one.
fn tokens(source: &str) -> Vec<Token> {
    let chars: Vec<char> = source.chars().collect();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let at = |i: usize| chars.get(i).copied().unwrap_or('\0');
    let (mut found, mut i, mut line) = (Vec::new(), 0, 1);
    while i < chars.len() {
        let start = i;
        let mut text = None;
        match at(i) {
            '/' if at(i + 1) == '/' => {
                while i < chars.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            '/' if at(i + 1) == '*' => {
                let mut depth = 0;
                while i < chars.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            '"' => {
                i += 1;
                while i < chars.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
                text = Some("\"\"".to_owned());
            }
            '\'' if at(i + 1) == '\\' || at(i + 2) == '\'' => {
                i += if at(i + 1) == '\\' { 3 } else { 2 };
                while i < chars.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
                text = Some("''".to_owned());
            }
            c if is_word(c) => {
                while is_word(at(i)) {
                    i += 1;
                }
                let word: String = chars[start..i].iter().collect();
                let hashes = (i..).take_while(|&i| at(i) == '#').count();
                if ["r", "br", "cr"].contains(&word.as_str()) && at(i + hashes) == '"' {
                    let end = format!("\"{}", "#".repeat(hashes));
                    let end: Vec<char> = end.chars().collect();
                    i += hashes + 1;
                    while i < chars.len() && !chars[i..].starts_with(&end) {
                        i += 1;
                    }
                    i += end.len();
                    text = Some("\"\"".to_owned());
                } else {
                    text = Some(word);
                }
            }
            ':' if at(i + 1) == ':' => {
                i += 2;
                text = Some("::".to_owned());
            }
            c => {
                i += 1;
                text = (!c.is_whitespace()).then(|| c.to_string());
            }
        }
        if let Some(text) = text {
            found.push(Token { text, line });
        }
        line += chars[start..i.min(chars.len())].iter().filter(|c| **c == '\n').count();
    }
    found
}

fn starts_with(tokens: &[Token], words: &[&str]) -> bool {
    tokens.len() >= words.len() && tokens.iter().zip(words).all(|(token, word)| token.text == *word)
}

/// Behind the group that begins with the bracket at the start.
fn group_end(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (i, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return i + 1;
        }
    }
    tokens.len()
}

const TEST_ONLY: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

/// The code without what is there for tests only, and the names of modules in files of their own
/// that are.
fn without_tests(tokens: &[Token]) -> (Vec<Token>, Vec<String>) {
    let (mut kept, mut modules, mut i) = (Vec::new(), Vec::new(), 0);
    while i < tokens.len() {
        if !starts_with(&tokens[i..], &TEST_ONLY) {
            kept.push(tokens[i].clone());
            i += 1;
            continue;
        }
        i += TEST_ONLY.len();
        while i < tokens.len() {
            if starts_with(&tokens[i..], &["mod"])
                && starts_with(&tokens[(i + 2).min(tokens.len())..], &[";"])
            {
                modules.push(tokens[i + 1].text.clone());
            }
            let text = tokens[i].text.as_str();
            i += if ["(", "[", "{"].contains(&text) { group_end(&tokens[i..]) } else { 1 };
            if [";", "{"].contains(&text) {
                break;
            }
        }
    }
    (kept, modules)
}

fn gives_up(tokens: &[Token]) -> Vec<String> {
    let calls = tokens.windows(3).filter(|w| {
        w[0].text == "." && ["unwrap", "expect"].contains(&w[1].text.as_str()) && w[2].text == "("
    });
    calls.map(|w| format!("{}: .{}()", w[1].line, w[1].text)).collect()
}

/// Modules below the crate's root that are named, each with its line. `depth` is how many modules
/// deep the file is: `super` as often as that is the root, too.
fn imports(tokens: &[Token], depth: usize) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    // Behind which token each module written out in this file ends.
    let mut inner: Vec<usize> = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        inner.retain(|end| i < *end);
        if starts_with(&tokens[i..], &["mod"]) && starts_with(&tokens[(i + 2).min(tokens.len())..], &["{"]) {
            inner.push(i + 2 + group_end(&tokens[i + 2..]));
        }
        let starts_path = i == 0 || tokens[i - 1].text != "::";
        let mut root = None;
        if starts_path && starts_with(&tokens[i..], &["crate", "::"]) && (i == 0 || tokens[i - 1].text != "$")
        {
            root = Some(i + 2);
        } else if starts_path {
            let supers =
                (0..).take_while(|n| starts_with(&tokens[(i + 2 * n).min(tokens.len())..], &["super", "::"]));
            if supers.count() > depth - 1 + inner.len() {
                root = Some(i + 2 * (depth + inner.len()));
            }
        }
        if let Some(root) = root {
            found.extend(first_names(&tokens[root..]));
        }
        i += 1;
    }
    found
}

/// The first name of a path, or of each path of a group.
fn first_names(tokens: &[Token]) -> Vec<(String, usize)> {
    let Some(first) = tokens.first() else { return Vec::new() };
    if first.text != "{" {
        return vec![(first.text.clone(), first.line)];
    }
    let (mut names, mut i, mut expected) = (Vec::new(), 1, true);
    while i < tokens.len() && tokens[i].text != "}" {
        if expected {
            names.push((tokens[i].text.clone(), tokens[i].line));
        }
        expected = tokens[i].text == ",";
        i += if tokens[i].text == "{" { group_end(&tokens[i..]) } else { 1 };
    }
    names
}

type Levels = BTreeMap<String, u32>;

/// The table in the documentation of src/lib.rs.
fn levels(lib: &str) -> Levels {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | "));
    rows.filter_map(|row| {
        let mut cells = row.split('|').map(str::trim);
        let level = cells.next()?.parse().ok()?;
        Some((cells.next()?.trim_matches(['[', ']', '`']).to_owned(), level))
    })
    .collect()
}

/// Modules that lib.rs declares.
fn declared(lib: &str) -> Vec<String> {
    let tokens = tokens(lib);
    let modules = tokens.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";");
    modules.map(|w| w[1].text.clone()).collect()
}

/// What `module`, in a file `depth` modules deep, names although it must not.
fn violations(levels: &Levels, module: &str, depth: usize, source: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, line) in imports(&tokens(source), depth) {
        match (levels.get(module), levels.get(&name)) {
            _ if name == module => {}
            (Some(own), Some(other)) if other < own => {}
            (Some(own), Some(other)) => {
                wrong.push(format!("{line}: {module} ({own}) names {name} ({other})"))
            }
            (None, _) => wrong.push(format!("{module} is not in the table")),
            (_, None) => wrong.push(format!("{line}: {name} is not in the table")),
        }
    }
    wrong
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below a folder of the repository, with their paths relative to it.
fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let top = root().join(dir);
    let (mut found, mut folders) = (Vec::new(), vec![top.clone()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(&top).unwrap().to_owned(), source));
            }
        }
    }
    assert!(!found.is_empty(), "{dir} has no sources");
    found.sort();
    found
}

/// The path of modules that a file of src/ is.
fn module_path(file: &Path) -> Vec<String> {
    let mut parts: Vec<String> =
        file.with_extension("").iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if parts.last().is_some_and(|last| last == "mod") {
        parts.pop();
    }
    parts
}

#[test]
fn modules_import_from_lower_levels_only() {
    let lib = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let levels = levels(&lib);
    let mut listed: Vec<&String> = levels.keys().collect();
    let mut declared = declared(&lib);
    declared.sort();
    listed.sort();
    assert_eq!(listed, declared.iter().collect::<Vec<_>>(), "the table and the modules of src/lib.rs");
    let mut wrong = Vec::new();
    for (file, source) in sources("src") {
        let path = module_path(&file);
        if ["lib", "main"].contains(&path[0].as_str()) {
            continue;
        }
        for violation in violations(&levels, &path[0], path.len(), &source) {
            wrong.push(format!("src/{}:{violation}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_are_short() {
    for dir in ["src", "guest/src"] {
        for (file, source) in sources(dir) {
            let lines = source.lines().count();
            assert!(
                lines <= MOST_LINES,
                "{dir}/{} has {lines} lines, {MOST_LINES} are allowed",
                file.display()
            );
        }
    }
}

#[test]
fn nothing_gives_up() {
    let mut wrong = Vec::new();
    for dir in ["src", "guest/src"] {
        let sources = sources(dir);
        let mut for_tests: Vec<Vec<String>> = Vec::new();
        for (file, source) in &sources {
            for module in without_tests(&tokens(source)).1 {
                let mut path = module_path(file);
                if path == ["lib"] || path == ["main"] {
                    path.clear();
                }
                path.push(module);
                for_tests.push(path);
            }
        }
        for (file, source) in &sources {
            if for_tests.iter().any(|path| module_path(file).starts_with(path)) {
                continue;
            }
            for call in gives_up(&without_tests(&tokens(source)).0) {
                wrong.push(format!("{dir}/{}:{call}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

mod the_checker_itself {
    use super::*;

    const LIB: &str = "//! | level | module | what |\n//! | --- | --- | --- |\n\
        //! | 3 | [`top`] | x |\n//! | 2 | [`left`] | x |\n//! | 2 | [`right`] | x |\n\
        //! | 1 | [`leaf`] | x |\npub mod leaf;\npub mod left;\nmod right;\n// mod gone;\npub mod top;\n";

    fn found(module: &str, depth: usize, source: &str) -> usize {
        violations(&levels(LIB), module, depth, source).len()
    }

    #[test]
    fn reads_the_table() {
        assert_eq!(
            levels(LIB).into_iter().map(|(name, level)| format!("{name}{level}")).collect::<String>(),
            "leaf1left2right2top3"
        );
        assert_eq!(declared(LIB), ["leaf", "left", "right", "top"]);
    }

    #[test]
    fn lets_the_good_pass() {
        assert_eq!(found("top", 1, "use crate::left::A; use crate::{leaf::{self, right}, right};"), 0);
        assert_eq!(found("left", 1, "use crate::left::own; fn f() { crate::leaf::g() }"), 0);
        assert_eq!(found("left", 2, "use super::own; mod tests { use super::super::own; }"), 0);
        assert_eq!(
            found("left", 1, "// crate::top\n/* crate::top /* */ */ const A: &str = \"crate::top\";"),
            0
        );
        assert_eq!(
            found("left", 1, "const A: &str = r#\"\" crate::top\"#; const B: char = '\"'; // crate::top"),
            0
        );
        assert_eq!(found("left", 1, "fn f<'a>(x: &'a str) -> char { '\\'' }"), 0);
        assert_eq!(found("left", 1, "mod tests { use super::*; mod deeper { use super::super::*; } }"), 0);
    }

    #[test]
    fn finds_the_bad() {
        assert_eq!(found("leaf", 1, "use crate::left::A;"), 1);
        assert_eq!(found("left", 1, "use crate::right;"), 1);
        assert_eq!(found("left", 1, "fn f() { crate::top::g() }"), 1);
        assert_eq!(found("left", 1, "use crate::{\n    leaf,\n    right::{A, B},\n    top,\n};"), 2);
        assert_eq!(found("left", 1, "use crate::nowhere;"), 1);
        assert_eq!(found("nowhere", 1, "use crate::leaf;"), 1);
        assert_eq!(found("left", 1, "use super::top;"), 1);
        assert_eq!(found("left", 2, "use super::super::top;"), 1);
        assert_eq!(found("left", 1, "mod a { use super::super::top; }\nuse super::leaf;"), 1);
        assert_eq!(found("left", 1, "const Q: char = '\"'; use crate::top; const R: char = '\"';"), 1);
        let message = &violations(&levels(LIB), "left", 1, "\n\nuse crate::right;")[0];
        assert_eq!(message, "3: left (2) names right (2)");
    }

    #[test]
    fn tells_tests_from_the_rest() {
        let source = "fn a() { b.unwrap(); }\n#[cfg(test)]\nmod tests { fn c() { d.unwrap(); } }\n\
            #[cfg(test)] mod model;\n#[cfg(test)]\n#[allow(x)]\nfn e() { f.expect(\"\") }\nfn g() { h.expect(\"\"); }\n\
            // i.unwrap()\nfn j() { k.unwrap_or(1); expect(2); }";
        let (kept, modules) = without_tests(&tokens(source));
        assert_eq!(gives_up(&kept), ["1: .unwrap()", "8: .expect()"]);
        assert_eq!(modules, ["model"]);
    }
}
