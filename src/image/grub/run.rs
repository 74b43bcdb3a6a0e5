//! Following a menu's script as far as that goes without a GRUB: variables, conditions, functions,
//! files of the image. What asks the machine or the user gets the answer of one where nobody is.

use std::collections::BTreeMap;

use super::condition::{self, Files};
use super::env;
use super::lex::{Piece, Word, tokens};
use super::parse::{Statement, parse};
use crate::image::entry::File;
use crate::image::error::{ImageError, Result};
use crate::image::survey::Survey;

/// Commands of one script: those of distributions have some hundred.
const COMMANDS_MAX: usize = 50_000;
/// Bytes of a variable, or of a command's words.
const TEXT_MAX: usize = 64 << 10;
const ENTRIES_MAX: usize = 1000;
/// Functions and files inside each other.
const DEPTH_MAX: usize = 16;

/// An entry of the menu, not looked into yet.
#[derive(Debug, Clone)]
pub struct MenuItem {
    pub title: String,
    pub id: Option<String>,
    pub line: usize,
    pub submenu: bool,
    body: Vec<Statement>,
}

/// What an entry boots.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Boots {
    pub kernel: Option<File>,
    pub initrds: Vec<File>,
    pub cmdline: String,
}

#[derive(Clone)]
pub struct Run<'a> {
    survey: &'a Survey,
    /// The file, for messages, and the volume that it is on.
    path: &'a str,
    home: usize,
    pub variables: BTreeMap<String, String>,
    functions: BTreeMap<String, Vec<Statement>>,
    pub items: Vec<MenuItem>,
    pub boots: Boots,
    /// It takes its entries from files of the Boot Loader Specification.
    pub blscfg: bool,
    commands: usize,
    line: usize,
}

impl<'a> Run<'a> {
    /// `path` is the file's on the volume `home`.
    pub fn new(survey: &'a Survey, home: usize, path: &'a str) -> Self {
        let folder = path.rsplit_once('/').map_or("/", |(folder, _)| folder);
        let root = device(survey, home);
        let known = [
            ("root", root.as_str()),
            ("prefix", folder),
            ("config_directory", folder),
            ("grub_platform", "pc"),
            ("grub_cpu", "x86_64"),
            ("feature_menuentry_id", "y"),
            ("feature_timeout_style", "y"),
            ("feature_platform_search_hint", "y"),
            ("feature_default_font_path", "y"),
            ("feature_all_video_module", "y"),
            ("feature_chainloader_bpb", "y"),
            ("feature_ntldr", "y"),
            ("feature_200_final", "y"),
            ("?", "0"),
        ];
        Self {
            survey,
            path,
            home,
            variables: known.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
            functions: BTreeMap::new(),
            items: Vec::new(),
            boots: Boots::default(),
            blscfg: false,
            commands: 0,
            line: 1,
        }
    }

    pub fn script(&mut self, text: &str) -> Result<()> {
        self.text(text, 0)
    }

    /// Follows an entry's body, in a copy of all that is known.
    pub fn enter(&self, item: &MenuItem) -> Result<Self> {
        let mut inside = self.clone();
        inside.items.clear();
        inside.variables.insert("chosen".into(), item.title.clone());
        inside.block(&item.body, 1)?;
        Ok(inside)
    }

    fn text(&mut self, text: &str, depth: usize) -> Result<()> {
        let tokens = tokens(text).map_err(|line| self.maze_at(line, "a quote has no end"))?;
        let statements = parse(&tokens).map_err(|(line, what)| self.maze_at(line, what))?;
        self.block(&statements, depth)?;
        Ok(())
    }

    fn maze_at(&self, line: usize, what: &str) -> ImageError {
        let volume = self.survey.volumes[self.home].name();
        ImageError::Maze { volume, path: self.path.to_owned(), line, what: what.to_owned() }
    }

    fn maze(&self, what: &str) -> ImageError {
        self.maze_at(self.line, what)
    }

    /// Whether the last command went well.
    fn block(&mut self, statements: &[Statement], depth: usize) -> Result<bool> {
        if depth > DEPTH_MAX {
            return Err(self.maze("functions or files are nested too deeply"));
        }
        let mut well = true;
        for statement in statements {
            well = self.statement(statement, depth)?;
            self.variables.insert("?".into(), if well { "0" } else { "1" }.into());
        }
        Ok(well)
    }

    fn statement(&mut self, statement: &Statement, depth: usize) -> Result<bool> {
        self.commands += 1;
        if self.commands > COMMANDS_MAX {
            return Err(self.maze("it has no end"));
        }
        match statement {
            Statement::Command(words) => self.command(words, depth),
            Statement::If { branches, otherwise } => {
                for (condition, body) in branches {
                    if self.block(condition, depth + 1)? {
                        return self.block(body, depth + 1);
                    }
                }
                self.block(otherwise, depth + 1)
            }
            Statement::Function { name, body } => {
                self.functions.insert(name.clone(), body.clone());
                Ok(true)
            }
            Statement::Entry { submenu, words, body, line } => {
                self.line = *line;
                let words = self.expand(words)?;
                if self.items.len() >= ENTRIES_MAX {
                    return Err(self.maze("it has too many entries"));
                }
                let (title, id) = title_and_id(&words);
                let item = MenuItem { title, id, line: *line, submenu: *submenu, body: body.clone() };
                self.items.push(item);
                Ok(true)
            }
            Statement::Loop { line } => {
                self.line = *line;
                Err(self.maze("it has a loop"))
            }
        }
    }

    fn expand(&self, words: &[Word]) -> Result<Vec<String>> {
        let mut expanded = Vec::new();
        for word in words {
            // Every unquoted value can end a word.
            let mut parts = vec![String::new()];
            let mut there = word.quoted;
            for piece in &word.pieces {
                match piece {
                    Piece::Text(text) => {
                        push(&mut parts, text);
                        there = true;
                    }
                    Piece::Var { name, quoted } => {
                        let value = self.variables.get(name).map_or("", String::as_str);
                        if *quoted {
                            push(&mut parts, value);
                        } else {
                            there |= !value.trim().is_empty();
                            split_into(&mut parts, value);
                        }
                    }
                }
                if parts.iter().map(String::len).sum::<usize>() > TEXT_MAX {
                    return Err(self.maze("a word is too long"));
                }
            }
            if there {
                expanded.append(&mut parts);
            }
        }
        if expanded.iter().map(String::len).sum::<usize>() > TEXT_MAX {
            return Err(self.maze("a command is too long"));
        }
        Ok(expanded)
    }

    fn set(&mut self, assignment: &str) {
        if let Some((name, value)) = assignment.split_once('=') {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
    }

    fn command(&mut self, words: &[Word], depth: usize) -> Result<bool> {
        if let Some(word) = words.first() {
            self.line = word.line;
        }
        let words = self.expand(words)?;
        let Some((name, arguments)) = words.split_first() else { return Ok(true) };
        if let Some(body) = self.functions.get(name).cloned() {
            return self.block(&body, depth + 1);
        }
        match name.as_str() {
            "[" | "test" => {
                let arguments = match arguments.split_last() {
                    Some((last, rest)) if name == "[" && last == "]" => rest,
                    _ => arguments,
                };
                return condition::holds(arguments, &Here(self))
                    .ok_or_else(|| self.maze("a condition is invalid"));
            }
            "!" => return Ok(!self.known(arguments, depth)?),
            "set" => arguments.iter().for_each(|assignment| self.set(assignment)),
            "unset" => arguments.iter().for_each(|name| {
                self.variables.remove(name);
            }),
            "load_env" => return self.load_env(arguments),
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                return Ok(self.search(name, arguments));
            }
            "source" | "." | "configfile" | "normal" => return self.include(arguments, depth),
            "blscfg" => self.blscfg = true,
            "linux" | "linux16" | "linuxefi" => return self.linux(arguments),
            "initrd" | "initrd16" | "initrdefi" => {
                let files = arguments.iter().map(|path| self.file(path)).collect::<Result<Vec<_>>>()?;
                self.boots.initrds = files;
            }
            "chainloader" | "multiboot" | "multiboot2" | "xen_hypervisor" | "module" | "module2" => {
                self.boots.kernel = None;
            }
            "insmod" | "echo" | "export" | "save_env" | "terminal_output" | "terminal_input" | "terminal"
            | "serial" | "true" | "clear" | "sleep" | "play" | "rmmod" | "background_image" => {}
            assignment if is_assignment(assignment) => self.set(assignment),
            // Whether a key is held down, a font is there, a device is of a kind: nobody says so.
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// A command whose words are expanded already.
    fn known(&mut self, words: &[String], depth: usize) -> Result<bool> {
        let as_word =
            |text: &String| Word { pieces: vec![Piece::Text(text.clone())], quoted: true, line: self.line };
        let words: Vec<Word> = words.iter().map(as_word).collect();
        if depth > DEPTH_MAX {
            return Err(self.maze("functions or files are nested too deeply"));
        }
        self.command(&words, depth + 1)
    }

    fn load_env(&mut self, arguments: &[String]) -> Result<bool> {
        let mut path = format!("{}/grubenv", self.variables.get("prefix").map_or("", String::as_str));
        let mut only = Vec::new();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "-f" | "--file" => path = arguments.next().cloned().unwrap_or_default(),
                option if option.starts_with("--file=") => path = option["--file=".len()..].to_owned(),
                option if option.starts_with('-') => {}
                name => only.push(name),
            }
        }
        let file = self.file(&path)?;
        let Some(text) = self.survey.volumes[file.volume].text(&file.path)? else { return Ok(false) };
        let found = env::parse(&text);
        self.variables
            .extend(found.into_iter().filter(|(name, _)| only.is_empty() || only.contains(&name.as_str())));
        Ok(true)
    }

    fn search(&mut self, command: &str, arguments: &[String]) -> bool {
        let mut by = command.strip_prefix("search.").unwrap_or("file");
        let (mut target, mut wanted) = (None, None);
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--fs-uuid" | "-u" => by = "fs_uuid",
                "--label" | "-l" | "--fs-label" => by = "fs_label",
                "--file" | "-f" => by = "file",
                "--set" => target = Some("root".to_owned()),
                "-s" => target = arguments.next().cloned(),
                option if option.starts_with("--set=") => target = Some(option["--set=".len()..].to_owned()),
                option if option.starts_with('-') => {}
                value if wanted.is_none() => wanted = Some(value),
                // search.fs_uuid UUID VARIABLE HINTS
                value if command != "search" && target.is_none() => target = Some(value.to_owned()),
                _ => {}
            }
        }
        let Some(wanted) = wanted else { return false };
        let found = match by {
            "fs_uuid" => self.survey.by_uuid(wanted),
            "fs_label" => self.survey.by_label(wanted),
            _ => self.survey.volumes.iter().position(|volume| volume.has(wanted)),
        };
        let Some(found) = found else { return false };
        if let Some(target) = target {
            self.variables.insert(target, device(self.survey, found));
        }
        true
    }

    fn include(&mut self, arguments: &[String], depth: usize) -> Result<bool> {
        let Some(path) = arguments.first() else { return Ok(false) };
        let file = self.file(path)?;
        let Some(text) = self.survey.volumes[file.volume].text(&file.path)? else { return Ok(false) };
        if depth > DEPTH_MAX {
            return Err(self.maze("functions or files are nested too deeply"));
        }
        self.text(&text, depth + 1)?;
        Ok(true)
    }

    fn linux(&mut self, arguments: &[String]) -> Result<bool> {
        let Some((path, options)) = arguments.split_first() else { return Ok(false) };
        let kernel = self.file(path)?;
        self.boots = Boots { kernel: Some(kernel), initrds: Vec::new(), cmdline: options.join(" ") };
        Ok(true)
    }

    /// `/path` on the root, or `(device)/path`.
    fn file(&self, path: &str) -> Result<File> {
        let (device, path) = match path.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            Some((device, path)) => (device, path),
            None => (self.variables.get("root").map_or("", String::as_str), path),
        };
        let found = self.volume(device);
        let volume = found.ok_or_else(|| self.maze(&format!("the image has no `{device}`")))?;
        Ok(File::whole(volume, path))
    }

    /// A device as GRUB calls it; which disk it is on is not looked at, there is one.
    fn volume(&self, device: &str) -> Option<usize> {
        if device.is_empty() {
            return Some(self.home);
        }
        match device.split_once(',') {
            None => (self.survey.volumes.len() == 1).then_some(0),
            Some((_, partition)) => {
                let digits = partition.trim_start_matches(|c: char| !c.is_ascii_digit());
                self.survey.by_number(digits.parse().ok()?)
            }
        }
    }
}

struct Here<'r, 'a>(&'r Run<'a>);

impl Here<'_, '_> {
    fn at(&self, path: &str) -> Option<File> {
        self.0.file(path).ok()
    }
}

impl Files for Here<'_, '_> {
    fn is_file(&self, path: &str) -> bool {
        self.at(path).is_some_and(|file| self.0.survey.volumes[file.volume].has(&file.path))
    }

    fn is_filled(&self, path: &str) -> bool {
        let len = |file: File| self.0.survey.volumes[file.volume].len(&file.path).ok().flatten();
        self.at(path).and_then(len).is_some_and(|len| len > 0)
    }

    fn is_folder(&self, path: &str) -> bool {
        let names = |file: File| self.0.survey.volumes[file.volume].names(&file.path).ok();
        self.at(path).and_then(names).is_some_and(|names| !names.is_empty())
    }
}

fn device(survey: &Survey, volume: usize) -> String {
    match survey.volumes.get(volume).and_then(|volume| volume.partition.as_ref()) {
        Some(partition) => format!("hd0,{}", partition.number),
        None => "hd0".into(),
    }
}

fn is_assignment(word: &str) -> bool {
    let name = word.split_once('=').map_or("", |(name, _)| name);
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn push(parts: &mut [String], text: &str) {
    if let Some(last) = parts.last_mut() {
        last.push_str(text);
    }
}

fn split_into(parts: &mut Vec<String>, value: &str) {
    let begins_apart = value.starts_with(char::is_whitespace);
    let mut words = value.split_whitespace();
    if let Some(first) = words.next() {
        if begins_apart && parts.last().is_some_and(|last| !last.is_empty()) {
            parts.push(String::new());
        }
        push(parts, first);
        parts.extend(words.map(str::to_owned));
    }
}

/// The first word is the title, `--id` names what a saved default calls the entry. Other options have
/// a value each.
fn title_and_id(words: &[String]) -> (String, Option<String>) {
    let (mut title, mut id) = (None, None);
    let mut rest = words.iter();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "--id" => id = rest.next().cloned(),
            "--class" | "--users" | "--hotkey" | "--source" => {
                rest.next();
            }
            option if option.starts_with("--id=") => id = Some(option["--id=".len()..].to_owned()),
            option if option.starts_with("--") => {}
            word if title.is_none() => title = Some(word.to_owned()),
            // What an empty `$menuentry_id_option` leaves.
            word => id = id.or_else(|| Some(word.to_owned())),
        }
    }
    (title.unwrap_or_default(), id)
}
