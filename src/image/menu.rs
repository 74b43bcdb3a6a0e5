//! What an image can boot, and which of it is: GRUB's menu, loader entries, or kernels that lie
//! there alone.

use std::collections::BTreeMap;

use super::entry::{Entry, Menu};
use super::error::{ImageError, Result};
use super::kind::Kind;
use super::survey::Survey;
use super::{bls, grub, kernels};

pub fn of(survey: &Survey) -> Result<Menu> {
    let mut menus = Vec::new();
    let mut trouble = None;
    for (number, volume) in survey.volumes.iter().enumerate() {
        if volume.is_broken_fat() {
            continue;
        }
        for path in grub::PATHS {
            let followed = match volume.text(path) {
                Ok(Some(text)) => grub::menu(survey, number, path, &text),
                Ok(None) => continue,
                Err(e) => Err(e),
            };
            match followed {
                Ok(menu) => menus.push((number, menu)),
                Err(e) => trouble = trouble.or(Some(e)),
            }
        }
    }
    if menus.len() > 1 {
        return several(survey, menus);
    }
    let grub = menus.pop().map(|(_, menu)| menu);
    let (mut entries, default, blscfg, variables) = match grub {
        Some(menu) => (menu.entries, Some(menu.default), menu.blscfg, menu.variables),
        None => (Vec::new(), None, false, BTreeMap::new()),
    };
    if let (Some(default), false) = (&default, blscfg)
        && (!entries.is_empty() || default.is_err())
    {
        return Ok(Menu { entries, default: default.clone() });
    }
    let own = entries.len();
    entries.extend(bls::entries(survey, &variables)?);
    if entries.len() > own {
        let chosen = match variables.get("default").or(variables.get("saved_entry")).filter(|_| blscfg) {
            Some(wanted) => chosen(&entries[own..], wanted),
            None => bls::configured_default(survey, &entries)?.unwrap_or(0),
        };
        return Ok(Menu { entries, default: Ok(own + chosen) });
    }
    if let Some(trouble) = trouble {
        return Err(trouble);
    }
    entries.extend(kernels::entries(survey)?);
    if entries.is_empty() {
        return Err(ImageError::NoKernel { because: because(survey) });
    }
    let systems = survey.volumes.iter().filter(|volume| volume.system().is_some()).count();
    let volumes: std::collections::BTreeSet<usize> = entries.iter().map(|entry| entry.volume).collect();
    if systems > 1 && volumes.len() > 1 {
        return Ok(Menu {
            default: Err(ImageError::Several { found: systems_in(survey) }.to_string()),
            entries,
        });
    }
    Ok(Menu { entries, default: Ok(0) })
}

/// Entries that GRUB reads from files are called by their names or numbers.
fn chosen(entries: &[Entry], wanted: &str) -> usize {
    let named = entries.iter().position(|entry| entry.id == wanted || entry.title == wanted);
    let numbered = || wanted.parse().ok().filter(|number| *number < entries.len());
    named.or_else(numbered).unwrap_or(0)
}

fn several(survey: &Survey, menus: Vec<(usize, grub::Found)>) -> Result<Menu> {
    let entries = menus.into_iter().flat_map(|(_, menu)| menu.entries).collect();
    let found = ImageError::Several { found: systems_in(survey) };
    Ok(Menu { entries, default: Err(found.to_string()) })
}

fn systems_in(survey: &Survey) -> String {
    let each = survey.volumes.iter().filter_map(|volume| Some((volume.name(), volume.system()?)));
    let each: Vec<String> = each.map(|(volume, system)| format!("{} on {volume}", system.name)).collect();
    if each.is_empty() { "GRUB menus on more than one partition".into() } else { each.join(", ") }
}

/// What may well hold the kernel that was not found.
fn because(survey: &Survey) -> String {
    if let Some(broken) = survey.volumes.iter().find_map(|volume| volume.broken()) {
        return format!(" ({broken})");
    }
    let hidden = survey.volumes.iter().filter(|volume| volume.found.kind.hides_files());
    let each: Vec<String> =
        hidden.map(|volume| format!("{} is {}", volume.name(), volume.found.kind.as_str())).collect();
    if !each.is_empty() {
        return format!(" ({}, which piton cannot read)", each.join(", "));
    }
    if survey.volumes.iter().any(|volume| volume.found.kind == Kind::Ext) {
        return " (neither GRUB's menu, nor loader entries, nor /boot/vmlinuz)".into();
    }
    survey
        .notes
        .first()
        .map_or_else(|| " (it has no file system that piton knows)".into(), |note| format!(" ({note})"))
}
