//! GRUB's menu: which entries it has, and which one it boots.

mod condition;
pub mod env;
mod lex;
mod parse;
mod run;

use super::entry::{Entry, Origin};
use super::error::Result;
use super::survey::Survey;
use run::{MenuItem, Run};

/// Where distributions put it: in the root, or on a partition of its own.
pub const PATHS: [&str; 4] =
    ["/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/grub/grub.cfg", "/grub2/grub.cfg"];
/// Menus inside menus that are looked into.
const DEPTH_MAX: usize = 4;
/// Entries that are looked into.
const ENTRIES_MAX: usize = 256;

/// A menu that was followed.
pub struct Found {
    pub entries: Vec<Entry>,
    /// An index into the entries, or why there is none.
    pub default: std::result::Result<usize, String>,
    /// Its entries are files of the Boot Loader Specification.
    pub blscfg: bool,
    /// What those may use, and which of them it boots.
    pub variables: std::collections::BTreeMap<String, String>,
}

/// An entry with the numbers that lead to it.
struct Place {
    numbers: Vec<usize>,
    titles: Vec<String>,
    id: Option<String>,
    entry: std::result::Result<usize, String>,
}

/// Follows the menu `text` of the file `path` on `volume`.
pub fn menu(survey: &Survey, volume: usize, path: &str, text: &str) -> Result<Found> {
    let mut run = Run::new(survey, volume, path);
    run.script(text)?;
    let mut walk = Walk { volume, entries: Vec::new(), places: Vec::new() };
    walk.items(&run, &run.items, &[], &[])?;
    let wanted = run.variables.get("default").map_or("0", String::as_str);
    let default = walk.choose(wanted);
    Ok(Found { entries: walk.entries, default, blscfg: run.blscfg, variables: run.variables.clone() })
}

struct Walk {
    volume: usize,
    entries: Vec<Entry>,
    places: Vec<Place>,
}

impl Walk {
    fn items(&mut self, run: &Run, items: &[MenuItem], numbers: &[usize], titles: &[String]) -> Result<()> {
        for (number, item) in items.iter().enumerate() {
            if self.places.len() >= ENTRIES_MAX {
                return Ok(());
            }
            let numbers = [numbers, &[number]].concat();
            let titles = [titles, std::slice::from_ref(&item.title)].concat();
            // One entry that is a maze is none of the others' business.
            let inside = run.enter(item);
            if let (true, Ok(inside)) = (item.submenu && numbers.len() < DEPTH_MAX, &inside) {
                self.items(inside, &inside.items, &numbers, &titles)?;
            }
            if item.submenu {
                continue;
            }
            let entry = match inside {
                Err(e) => Err(e.to_string()),
                Ok(inside) => match inside.boots.kernel {
                    None => {
                        Err(format!("`{}` (line {}) does not load a Linux kernel", item.title, item.line))
                    }
                    Some(kernel) => {
                        self.entries.push(Entry {
                            title: titles.join(" > "),
                            id: item.id.clone().unwrap_or_else(|| titles.join(">")),
                            origin: Origin::Grub,
                            volume: self.volume,
                            kernel,
                            initrds: inside.boots.initrds,
                            cmdline: inside.boots.cmdline,
                        });
                        Ok(self.entries.len() - 1)
                    }
                },
            };
            self.places.push(Place { numbers, titles, id: item.id.clone(), entry });
        }
        Ok(())
    }

    /// `default` is a number, a title or an id, of an entry or, with `>` between, of menus and an entry.
    fn choose(&self, wanted: &str) -> std::result::Result<usize, String> {
        let steps: Vec<&str> =
            if wanted.is_empty() { vec!["0"] } else { wanted.split('>').map(str::trim).collect() };
        let fits = |place: &Place, exact: bool| {
            let last = steps.last().copied().unwrap_or_default();
            if place.id.as_deref() == Some(last)
                || place.titles.join(">") == wanted
                || place.titles.last().is_some_and(|title| title == wanted)
            {
                return true;
            }
            let each = |(step, (number, title)): (&&str, (&usize, &String))| {
                title == step || step.parse() == Ok(*number)
            };
            let along = steps.iter().zip(place.numbers.iter().zip(&place.titles)).all(each);
            // A menu's own number leads to its first entry.
            along && (place.numbers.len() == steps.len() || !exact && place.numbers.len() > steps.len())
        };
        let place = self.places.iter().find(|place| fits(place, true));
        let place = place.or_else(|| self.places.iter().find(|place| fits(place, false)));
        // As GRUB: without the one that is wanted, the first.
        let place = place.or(self.places.first()).ok_or("the GRUB menu has no entries")?;
        place.entry.clone()
    }
}
