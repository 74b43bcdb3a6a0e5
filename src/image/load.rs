//! The kernel and all that it is booted with, as bytes.

use super::cmdline;
use super::entry::{Entry, File, Menu};
use super::error::{ImageError, Result};
use super::survey::Survey;

/// Bytes of a kernel, and of all initrds of an entry: those of distributions have some ten million.
const KERNEL_MAX: u64 = 256 << 20;
const INITRD_MAX: u64 = 1 << 30;

/// What an image boots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    pub title: String,
    /// Path in the image, for messages.
    pub kernel_path: String,
    pub kernel: Vec<u8>,
    pub initrd_path: String,
    pub initrd: Option<Vec<u8>>,
    pub cmdline: String,
}

/// The default entry, or the one of this number, counted from 1.
pub fn choose(menu: &Menu, number: Option<usize>) -> Result<&Entry> {
    let count = menu.entries.len();
    let at = match number {
        Some(number) => number.checked_sub(1).ok_or(ImageError::NoEntry { number, count })?,
        None => match &menu.default {
            Ok(at) => *at,
            Err(why) => return Err(ImageError::NoDefault(why.clone())),
        },
    };
    menu.entries.get(at).ok_or(ImageError::NoEntry { number: at.saturating_add(1), count })
}

pub fn load(survey: &Survey, entry: &Entry) -> Result<Payload> {
    let kernel = read(survey, entry, &entry.kernel, KERNEL_MAX)?;
    let mut initrd = Vec::new();
    for file in &entry.initrds {
        // Archives follow each other at multiples of four bytes.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        let room = INITRD_MAX.saturating_sub(initrd.len() as u64);
        initrd.append(&mut read(survey, entry, file, room)?);
    }
    Ok(Payload {
        title: entry.title.clone(),
        kernel_path: entry.kernel.path.clone(),
        kernel,
        initrd_path: entry.initrds.iter().map(|file| file.path.as_str()).collect::<Vec<_>>().join(" "),
        initrd: (!entry.initrds.is_empty()).then_some(initrd),
        cmdline: cmdline::of(survey, entry),
    })
}

fn read(survey: &Survey, entry: &Entry, file: &File, max: u64) -> Result<Vec<u8>> {
    let unbootable = |what: String| ImageError::Unbootable { title: entry.title.clone(), what };
    let volume = survey
        .volumes
        .get(file.volume)
        .ok_or_else(|| unbootable("is not on any of its partitions".into()))?;
    if let Some(section) = file.section {
        if section.len > max {
            let (volume, path) = (volume.name(), file.path.clone());
            return Err(ImageError::TooLarge { volume, path, len: section.len, max });
        }
        return volume.read_section(&file.path, section);
    }
    let found = volume.read(&file.path, max)?;
    found.ok_or_else(|| match volume.found.kind.hides_files() {
        true => unbootable(format!(
            "needs {}, but {} is {}, which piton cannot read",
            file.path,
            volume.name(),
            volume.found.kind.as_str()
        )),
        false => unbootable(format!("needs {}, but there is no such file on {}", file.path, volume.name())),
    })
}
