//! What a file's code says: the paths that it names, in `use`, in types and expressions, and among
//! the words handed to macros and attributes; and where it gives up.

use proc_macro2::{Delimiter, Ident, Spacing, TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, ItemMod, ItemUse, Macro, UseTree, Visibility};

use crate::source::{File, ModulePath, Tests, attributes, only_for_tests};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mention {
    /// The module, perhaps one written inside the file, from which it is seen.
    pub from: ModulePath,
    pub path: Vec<String>,
    pub line: usize,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Import,
    ReExport,
    /// Anywhere else in the code. The last name is that of a thing, never of a module.
    Code,
}

#[derive(Default)]
pub struct Code {
    pub mentions: Vec<Mention>,
    /// Lines with `unwrap` or `expect`, and which of them.
    pub gives_up: Vec<(usize, String)>,
}

impl Code {
    pub fn of(file: &File, tests: Tests) -> Code {
        let mut finder = Finder { module: file.module.clone(), tests, found: Code::default() };
        finder.visit_file(&file.syntax);
        finder.found
    }
}

struct Finder {
    module: ModulePath,
    tests: Tests,
    found: Code,
}

fn is_giving_up(name: &Ident) -> bool {
    name == "unwrap" || name == "expect"
}

impl Finder {
    fn add(&mut self, path: Vec<String>, line: usize, kind: Kind) {
        self.found.mentions.push(Mention { from: self.module.clone(), path, line, kind });
    }

    fn gives_up(&mut self, name: &Ident) {
        self.found.gives_up.push((name.span().start().line, name.to_string()));
    }

    fn counts(&self, attributes: &[Attribute]) -> bool {
        self.tests == Tests::Too || !only_for_tests(attributes)
    }

    fn add_tree(&mut self, tree: &UseTree, prefix: &mut Vec<String>, kind: Kind) {
        match tree {
            UseTree::Path(path) => {
                prefix.push(path.ident.to_string());
                self.add_tree(&path.tree, prefix, kind);
                prefix.pop();
            }
            UseTree::Group(group) => group.items.iter().for_each(|tree| self.add_tree(tree, prefix, kind)),
            UseTree::Glob(glob) => {
                let line = glob.star_token.spans[0].start().line;
                self.add(prefix.clone(), line, kind);
            }
            UseTree::Name(syn::UseName { ident, .. }) | UseTree::Rename(syn::UseRename { ident, .. }) => {
                let mut path = prefix.clone();
                if ident != "self" {
                    path.push(ident.to_string());
                }
                self.add(path, ident.span().start().line, kind);
            }
        }
    }

    /// Paths among tokens that have not been parsed: names with `::` between them. A name after a
    /// dot is a field's or a method's.
    fn add_tokens(&mut self, tokens: TokenStream) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let sign =
            |i: usize, sign: char| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.as_char() == sign);
        let joint =
            |i: usize| matches!(tokens.get(i), Some(TokenTree::Punct(p)) if p.spacing() == Spacing::Joint);
        let separator = |i: usize| sign(i, ':') && joint(i) && sign(i + 1, ':');
        let mut i = 0;
        while i < tokens.len() {
            match &tokens[i] {
                TokenTree::Group(group) => {
                    self.add_tokens(group.stream());
                    i += 1;
                }
                TokenTree::Ident(first) => {
                    let field = i > 0 && sign(i - 1, '.') && !(i > 1 && sign(i - 2, '.'));
                    // Behind `$crate` or a generic type.
                    let tail = i > 1 && separator(i - 2);
                    let (mut path, mut grouped) = (vec![first.to_string()], false);
                    i += 1;
                    if field && is_giving_up(first) && matches!(tokens.get(i), Some(TokenTree::Group(_))) {
                        self.gives_up(first);
                    }
                    while separator(i) {
                        match tokens.get(i + 2) {
                            Some(TokenTree::Ident(name)) => path.push(name.to_string()),
                            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Brace => {
                                self.add_group(&path, group.stream());
                                grouped = true;
                            }
                            _ => {}
                        }
                        i += 3;
                    }
                    if !field && !tail && !grouped {
                        self.add(path, first.span().start().line, Kind::Code);
                    }
                }
                _ => i += 1,
            }
        }
    }

    /// A group of a `use` inside a macro.
    fn add_group(&mut self, prefix: &[String], tokens: TokenStream) {
        let Ok(trees) = syn::parse::Parser::parse2(
            syn::punctuated::Punctuated::<UseTree, syn::Token![,]>::parse_terminated,
            tokens,
        ) else {
            return;
        };
        for tree in &trees {
            self.add_tree(tree, &mut prefix.to_vec(), Kind::Import);
        }
    }
}

impl<'a> Visit<'a> for Finder {
    fn visit_item(&mut self, item: &'a syn::Item) {
        if self.counts(attributes(item)) {
            visit::visit_item(self, item);
        }
    }

    fn visit_item_mod(&mut self, item: &'a ItemMod) {
        self.module.push(item.ident.to_string());
        visit::visit_item_mod(self, item);
        self.module.pop();
    }

    fn visit_item_use(&mut self, item: &'a ItemUse) {
        if item.leading_colon.is_none() {
            let kind = match item.vis {
                Visibility::Inherited => Kind::Import,
                _ => Kind::ReExport,
            };
            self.add_tree(&item.tree, &mut Vec::new(), kind);
        }
    }

    fn visit_expr_method_call(&mut self, call: &'a syn::ExprMethodCall) {
        if is_giving_up(&call.method) {
            self.gives_up(&call.method);
        }
        visit::visit_expr_method_call(self, call);
    }

    fn visit_path(&mut self, path: &'a syn::Path) {
        if path.leading_colon.is_none() {
            let names = path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.add(names, path.segments[0].ident.span().start().line, Kind::Code);
        }
        if let Some(last) = path.segments.last()
            && path.segments.len() > 1
            && is_giving_up(&last.ident)
        {
            self.gives_up(&last.ident);
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::room)` and `pub(super)` import nothing.
    fn visit_visibility(&mut self, _: &'a Visibility) {}

    fn visit_macro(&mut self, call: &'a Macro) {
        self.visit_path(&call.path);
        self.add_tokens(call.tokens.clone());
    }

    fn visit_attribute(&mut self, attribute: &'a Attribute) {
        if let syn::Meta::List(list) = &attribute.meta {
            self.add_tokens(list.tokens.clone());
        }
    }

    fn visit_impl_item(&mut self, item: &'a syn::ImplItem) {
        let attributes = match item {
            syn::ImplItem::Const(item) => &item.attrs,
            syn::ImplItem::Fn(item) => &item.attrs,
            syn::ImplItem::Type(item) => &item.attrs,
            syn::ImplItem::Macro(item) => &item.attrs,
            _ => return,
        };
        if self.counts(attributes) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_field(&mut self, field: &'a syn::Field) {
        if self.counts(&field.attrs) {
            visit::visit_field(self, field);
        }
    }

    fn visit_field_value(&mut self, field: &'a syn::FieldValue) {
        if self.counts(&field.attrs) {
            visit::visit_field_value(self, field);
        }
    }

    fn visit_variant(&mut self, variant: &'a syn::Variant) {
        if self.counts(&variant.attrs) {
            visit::visit_variant(self, variant);
        }
    }

    fn visit_arm(&mut self, arm: &'a syn::Arm) {
        if self.counts(&arm.attrs) {
            visit::visit_arm(self, arm);
        }
    }

    fn visit_local(&mut self, local: &'a syn::Local) {
        if self.counts(&local.attrs) {
            visit::visit_local(self, local);
        }
    }

    fn visit_expr_block(&mut self, block: &'a syn::ExprBlock) {
        if self.counts(&block.attrs) {
            visit::visit_expr_block(self, block);
        }
    }
}
