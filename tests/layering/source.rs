//! A crate's sources: its files, found by following `mod`, each with the modules written in it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use syn::punctuated::Punctuated;
use syn::{Attribute, Item, ItemMod, Meta, Token, UseTree};

/// Names of modules from the crate's root down.
pub type ModulePath = Vec<String>;

pub struct File {
    pub path: PathBuf,
    /// Where it hangs in the tree of modules.
    pub module: ModulePath,
    pub syntax: syn::File,
}

/// What a name in a module stands for.
pub enum Name {
    /// Something that the module itself has.
    Own,
    /// What a `use` brought in: this path, as seen from the module.
    Use(Vec<String>),
}

#[derive(Default)]
pub struct Module {
    /// Index of the file that it is written in.
    pub file: usize,
    pub names: BTreeMap<String, Name>,
    /// Paths of `use ...::*`.
    pub globs: Vec<Vec<String>>,
}

/// Whether code that only tests are compiled with counts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Tests {
    Too,
    Not,
}

/// One crate.
pub struct Sources {
    pub tests: Tests,
    pub files: Vec<File>,
    pub modules: BTreeMap<ModulePath, Module>,
    /// Macros with `#[macro_export]`, and the modules that they are written in.
    pub exported: BTreeMap<String, ModulePath>,
}

type Read<'a> = &'a dyn Fn(&Path) -> Option<String>;

impl Sources {
    /// The crate whose root is the file `root`. `read` gives the text of a file, if there is one.
    pub fn load(root: &Path, tests: Tests, read: Read<'_>) -> Result<Sources, String> {
        let mut sources =
            Sources { tests, files: Vec::new(), modules: BTreeMap::new(), exported: BTreeMap::new() };
        sources.add(root, Vec::new(), &root.with_file_name(""), read)?;
        Ok(sources)
    }

    /// The file `path` as `module`, and the files that it declares; they lie in `folder`.
    fn add(&mut self, path: &Path, module: ModulePath, folder: &Path, read: Read<'_>) -> Result<(), String> {
        let text = read(path).ok_or_else(|| format!("{} is declared and not there", path.display()))?;
        let syntax = syn::parse_file(&text)
            .map_err(|error| format!("{}:{}: {error}", path.display(), error.span().start().line))?;
        let mut below = Vec::new();
        self.enter(&module, &syntax.items, &mut below);
        let inside = |child: &ModulePath| child[module.len()..].iter().collect::<PathBuf>();
        let below: Vec<_> = below.into_iter().map(|(child, at)| (inside(&child), child, at)).collect();
        self.files.push(File { path: path.to_owned(), module, syntax });
        for (inside, child, at) in below {
            let (flat, nested) = match at {
                Some(at) => (path.with_file_name(&at), path.with_file_name(at)),
                None => (folder.join(&inside).with_extension("rs"), folder.join(&inside).join("mod.rs")),
            };
            let found = if read(&nested).is_some() { nested } else { flat };
            self.add(&found, child, &folder.join(inside), read)?;
        }
        Ok(())
    }

    /// The modules that are written in the file that comes next, and those that it declares, with
    /// what `#[path]` says.
    fn enter(&mut self, path: &[String], items: &[Item], below: &mut Vec<(ModulePath, Option<String>)>) {
        let file = self.files.len();
        let mut module = Module { file, ..Module::default() };
        for item in items {
            if self.tests == Tests::Not && only_for_tests(attributes(item)) {
                continue;
            }
            match item {
                Item::Use(item) if item.leading_colon.is_none() => {
                    bind(&item.tree, &mut Vec::new(), &mut module);
                }
                Item::Macro(item) if item.attrs.iter().any(|a| a.path().is_ident("macro_export")) => {
                    // At the crate's root, but of this file.
                    if let Some(name) = &item.ident {
                        self.exported.insert(name.to_string(), path.to_owned());
                    }
                }
                Item::Mod(ItemMod { ident, content, attrs, .. }) => {
                    let child = [path, &[ident.to_string()]].concat();
                    match content {
                        Some((_, inner)) => self.enter(&child, inner, below),
                        None => below.push((child, path_attribute(attrs))),
                    }
                }
                _ => {}
            }
            if let Some(name) = name_of(item) {
                module.names.insert(name, Name::Own);
            }
        }
        self.modules.insert(path.to_owned(), module);
    }
}

fn path_attribute(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().filter(|attribute| attribute.path().is_ident("path")).find_map(|attribute| {
        let value = &attribute.meta.require_name_value().ok()?.value;
        let syn::Expr::Lit(syn::ExprLit { lit: syn::Lit::Str(path), .. }) = value else { return None };
        Some(path.value())
    })
}

fn bind(tree: &UseTree, prefix: &mut Vec<String>, module: &mut Module) {
    match tree {
        UseTree::Path(path) => {
            prefix.push(path.ident.to_string());
            bind(&path.tree, prefix, module);
            prefix.pop();
        }
        UseTree::Group(group) => group.items.iter().for_each(|tree| bind(tree, prefix, module)),
        UseTree::Glob(_) => module.globs.push(prefix.clone()),
        UseTree::Name(name) => {
            let last = name.ident.to_string();
            let path = if last == "self" { prefix.clone() } else { [&prefix[..], &[last]].concat() };
            if let Some(name) = path.last().cloned() {
                module.names.insert(name, Name::Use(path));
            }
        }
        UseTree::Rename(rename) => {
            let last = rename.ident.to_string();
            let path = if last == "self" { prefix.clone() } else { [&prefix[..], &[last]].concat() };
            module.names.insert(rename.rename.to_string(), Name::Use(path));
        }
    }
}

fn name_of(item: &Item) -> Option<String> {
    Some(
        match item {
            Item::Const(item) => &item.ident,
            Item::Enum(item) => &item.ident,
            Item::Fn(item) => &item.sig.ident,
            Item::Macro(item) => item.ident.as_ref()?,
            Item::Mod(item) => &item.ident,
            Item::Static(item) => &item.ident,
            Item::Struct(item) => &item.ident,
            Item::Trait(item) => &item.ident,
            Item::Type(item) => &item.ident,
            Item::Union(item) => &item.ident,
            _ => return None,
        }
        .to_string(),
    )
}

pub fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// Whether there is a `#[cfg(test)]`, by itself or as one of several conditions.
pub fn only_for_tests(attributes: &[Attribute]) -> bool {
    fn requires(condition: &Meta) -> bool {
        if condition.path().is_ident("test") {
            return true;
        }
        let Meta::List(list) = condition else { return false };
        let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
        list.path.is_ident("all") && parts.is_ok_and(|parts| parts.iter().any(requires))
    }
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<Meta>().is_ok_and(|condition| requires(&condition))
    })
}
