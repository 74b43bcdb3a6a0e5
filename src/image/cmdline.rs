//! The command line that an entry is booted with: what it says, with a console and a root.

use super::entry::Entry;
use super::survey::Survey;

const CONSOLE: &str = "console=ttyS0";

/// Of an entry that says no root, `survey` tells it.
pub fn of(survey: &Survey, entry: &Entry) -> String {
    let mut words: Vec<String> = entry.cmdline.split_whitespace().map(as_virtio).collect();
    let has = |words: &[String], name: &str| words.iter().any(|word| word.starts_with(name));
    if !has(&words, "root=") {
        words.extend(root(survey, entry));
        if !words.iter().any(|word| word == "ro" || word == "rw") {
            words.push("ro".into());
        }
    }
    let is_console = |word: &String| word == CONSOLE || word.starts_with("console=ttyS0,");
    if !words.iter().any(is_console) {
        words.push(CONSOLE.into());
    }
    words.join(" ")
}

/// Names that the disk has on other hosts: its first one is `vda` here.
fn as_virtio(word: &str) -> String {
    for (name, other) in [
        ("root=/dev/sd", "root=/dev/vd"),
        ("root=/dev/hd", "root=/dev/vd"),
        ("root=/dev/xvd", "root=/dev/vd"),
    ] {
        if let Some(rest) = word.strip_prefix(name) {
            return format!("{other}{rest}");
        }
    }
    word.to_owned()
}

/// The volume with the system; a kernel without an initrd knows no UUIDs of file systems.
fn root(survey: &Survey, entry: &Entry) -> Option<String> {
    let here = survey.volumes.get(entry.volume).filter(|volume| volume.system().is_some());
    let volume = here.or_else(|| survey.volumes.iter().find(|volume| volume.system().is_some()));
    let volume = volume.or_else(|| survey.volumes.get(entry.volume))?;
    let by_uuid = volume.found.uuid.as_ref().filter(|_| !entry.initrds.is_empty());
    Some(match (by_uuid, volume.partition_uuid(), &volume.partition) {
        (Some(uuid), _, _) => format!("root=UUID={uuid}"),
        (None, Some(uuid), _) => format!("root=PARTUUID={uuid}"),
        (None, None, Some(partition)) => format!("root=/dev/vda{}", partition.number),
        (None, None, None) => "root=/dev/vda".into(),
    })
}
