//! Entries as files, and kernels that are entries themselves. Source: the UAPI Group's Boot Loader Specification.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::entry::{Entry, File, Origin};
use super::error::Result;
use super::survey::Survey;
use super::uki::{self, Uki};
use super::{os_release, version};

/// On a partition of boot files, and in a root.
const FOLDERS: [&str; 2] = ["/loader", "/boot/loader"];
/// Of unified kernel images.
const UNIFIED: &str = "/EFI/Linux";
const ENTRIES_MAX: usize = 256;

/// All entries, best first; `variables` are what their options may name.
pub fn entries(survey: &Survey, variables: &BTreeMap<String, String>) -> Result<Vec<Entry>> {
    let mut found = Vec::new();
    for (number, volume) in survey.volumes.iter().enumerate() {
        if volume.is_broken_fat() {
            continue;
        }
        for folder in FOLDERS {
            let entries = format!("{folder}/entries");
            for name in volume.names(&entries)? {
                let Some(id) = name.strip_suffix(".conf").filter(|_| found.len() < ENTRIES_MAX) else {
                    continue;
                };
                let Some(text) = volume.text(&format!("{entries}/{name}"))? else { continue };
                if let Some(one) = parse(&text, id, number, variables) {
                    found.push(one);
                }
            }
        }
        for name in volume.names(UNIFIED)? {
            if found.len() < ENTRIES_MAX && name.to_ascii_lowercase().ends_with(".efi") {
                let path = format!("{UNIFIED}/{name}");
                found.extend(uki::read(volume, &path)?.map(|image| unified(image, &name, number, &path)));
            }
        }
    }
    found.sort_by(|a, b| a.order(b));
    Ok(found.into_iter().map(|one| one.entry).collect())
}

/// What systemd-boot's configuration says is booted: an entry's id, with `*` for anything.
pub fn configured_default(survey: &Survey, entries: &[Entry]) -> Result<Option<usize>> {
    for volume in survey.volumes.iter().filter(|volume| !volume.is_broken_fat()) {
        for folder in FOLDERS {
            let Some(text) = volume.text(&format!("{folder}/loader.conf"))? else { continue };
            let fields = text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace));
            let wanted =
                fields.filter(|(key, _)| *key == "default").map(|(_, value)| value.trim()).next_back();
            if let Some(wanted) = wanted {
                let wanted = wanted.strip_suffix(".conf").unwrap_or(wanted);
                return Ok(entries.iter().position(|entry| fits(&entry.id, wanted)));
            }
        }
    }
    Ok(None)
}

/// Whether a name is what a pattern with `*` says.
fn fits(name: &str, pattern: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

struct One {
    entry: Entry,
    sort_key: Option<String>,
    version: String,
}

impl One {
    /// Those with a sort key first, by it; then the newest version first.
    fn order(&self, other: &Self) -> Ordering {
        let newest = || version::compare(&other.version, &self.version);
        match (&self.sort_key, &other.sort_key) {
            (Some(a), Some(b)) => a.cmp(b).then_with(newest),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => version::compare(&other.entry.id, &self.entry.id),
        }
    }
}

/// Called by its file, ordered by the system in it.
fn unified(image: Uki, name: &str, volume: usize, path: &str) -> One {
    let system = os_release::parse(&image.os_release);
    let named = !image.os_release.is_empty();
    let file = |section| File { volume, path: path.to_owned(), section: Some(section) };
    let entry = Entry {
        title: if named { system.name } else { name.to_owned() },
        id: name.to_owned(),
        origin: Origin::UnifiedKernel,
        volume,
        kernel: file(image.linux),
        initrds: image.initrds.into_iter().map(file).collect(),
        cmdline: image.cmdline.split_whitespace().collect::<Vec<_>>().join(" "),
    };
    One { entry, sort_key: named.then_some(system.id), version: system.version.unwrap_or_default() }
}

/// None: it boots something else than a kernel with a command line.
fn parse(text: &str, id: &str, volume: usize, variables: &BTreeMap<String, String>) -> Option<One> {
    let fields: Vec<(&str, &str)> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_once(char::is_whitespace))
        .map(|(key, value)| (key, value.trim()))
        .collect();
    let all =
        |key: &'static str| fields.iter().filter(move |(name, _)| *name == key).map(|(_, value)| *value);
    let last = |key| all(key).next_back().map(str::to_owned);
    let file = |path: &str| File::whole(volume, path);
    let options: Vec<String> = all("options").map(|text| expand(text, variables)).collect();
    let initrds: Vec<String> = all("initrd").map(|text| expand(text, variables)).collect();
    let entry = Entry {
        title: last("title").unwrap_or_else(|| id.to_owned()),
        id: id.to_owned(),
        origin: Origin::LoaderEntry,
        volume,
        kernel: file(&last("linux")?),
        // Fedora's name several in one line.
        initrds: initrds.iter().flat_map(|line| line.split_whitespace()).map(file).collect(),
        cmdline: options.join(" ").split_whitespace().collect::<Vec<_>>().join(" "),
    };
    Some(One { entry, sort_key: last("sort-key"), version: last("version").unwrap_or_default() })
}

/// `$name` and `${name}` as grubenv has them; unknown ones are nothing.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut parts = text.split('$');
    let mut expanded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, rest) = match part.strip_prefix('{').and_then(|part| part.split_once('}')) {
            Some(found) => found,
            None => {
                let end = part.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(part.len());
                part.split_at(end)
            }
        };
        expanded.push_str(variables.get(name).map_or("", String::as_str));
        expanded.push_str(rest);
    }
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_order() {
        let variables = BTreeMap::from([("kernelopts".to_owned(), "root=UUID=1 ro".to_owned())]);
        let text = "title Fedora\nversion 6.2\nlinux /vmlinuz-6.2\ninitrd /a.img $tuned_initrd\noptions $kernelopts quiet\n\
                    options ${kernelopts}x\n";
        let newer = parse(text, "m-6.2", 0, &variables).unwrap();
        assert_eq!(newer.entry.cmdline, "root=UUID=1 ro quiet root=UUID=1 rox");
        assert_eq!(newer.entry.initrds.len(), 1);
        let older = parse(&text.replace("6.2", "6.1"), "m-6.1", 0, &variables).unwrap();
        assert_eq!(newer.order(&older), Ordering::Less);
        assert!(parse("title UKI\nefi /EFI/Linux/a.efi", "a", 0, &variables).is_none());
    }

    #[test]
    fn patterns() {
        for (name, pattern, expected) in [
            ("a-6.1", "a-*", true),
            ("a-6.1", "*", true),
            ("a-6.1", "*6*1", true),
            ("a-6.1", "a", false),
            ("a", "a", true),
            ("a", "a*a", false),
        ] {
            assert_eq!(fits(name, pattern), expected, "{name} {pattern}");
        }
    }
}
