//! `piton logs`.

mod lines;

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};

use super::args::LogsArgs;
use super::named;
use super::out::{self, note};
use crate::control::client::{self, ClientError};
use crate::devices::console::times::{self, Times};
use lines::{Form, Lines};

/// Between two looks at what was printed since.
const LOOK: Duration = Duration::from_millis(100);
/// Looks between two at whether the VM runs.
const LOOKS: u32 = 5;
const PIECE: usize = 64 << 10;

/// Prints what the guest printed, as it stands in console.log and the log before that.
pub fn run(args: &LogsArgs, json: bool) -> anyhow::Result<()> {
    let folder = named::existing(&args.name)?;
    let path = folder.console_log();
    let form = match (json, args.timestamps) {
        (true, _) => Form::Json,
        (false, true) => Form::Stamped,
        (false, false) => Form::Plain,
    };
    let is_off = || matches!(client::get(&folder.socket()), Err(ClientError::NotRunning));
    print(&path, args, form, &is_off).with_context(|| format!("{} cannot be shown", path.display()))
}

/// A log and its times.
struct Log {
    file: File,
    times: Times,
    /// Of what is read next.
    at: u64,
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Those that are there, the former one first, and whether the last one is that which is written to.
fn open_all(path: &Path) -> io::Result<(Vec<Log>, bool)> {
    let pairs =
        [(path.with_extension("log.1"), times::former_path_of(path)), (path.into(), times::path_of(path))];
    loop {
        let mut logs = Vec::new();
        let mut is_there = false;
        for (path, times) in &pairs {
            let file = open(path)?;
            is_there = file.is_some();
            logs.extend(file.map(|file| Log::new(file, times.clone())).transpose()?);
        }
        // If it was rotated meanwhile, the times may be those of another log.
        if !is_there || !is_other(logs.last(), path)? {
            return Ok((logs, is_there));
        }
    }
}

/// Whether the log that is written to is not this one.
fn is_other(log: Option<&Log>, path: &Path) -> io::Result<bool> {
    Ok(match (log, std::fs::metadata(path)) {
        (Some(log), Ok(there)) => log.file.metadata()?.ino() != there.ino(),
        (None, there) => there.is_ok(),
        (Some(_), Err(_)) => false,
    })
}

impl Log {
    fn new(file: File, times: PathBuf) -> io::Result<Self> {
        let mut times = Times::new(times);
        times.refresh()?;
        Ok(Self { file, times, at: 0 })
    }

    /// Goes on to where the first line begins that came at `since` or later. Returns whether there is
    /// output of which it is not known whether it did.
    fn begin_at(&mut self, since: DateTime<Utc>) -> io::Result<bool> {
        let end = self.file.metadata()?.len();
        let before = self.at;
        let found = self.times.since(since).filter(|found| *found < end);
        self.at = match found {
            Some(found) => self.line_begin(found)?,
            None => end,
        }
        .max(before);
        self.file.seek(SeekFrom::Start(self.at))?;
        let known = self.times.first().unwrap_or(end);
        Ok(before < known.min(end) && (self.times.first().is_none() || found == Some(known)))
    }

    /// Where at `at` or behind it a line begins.
    fn line_begin(&mut self, at: u64) -> io::Result<u64> {
        let Some(before) = at.checked_sub(1) else { return Ok(0) };
        self.file.seek(SeekFrom::Start(before))?;
        let mut reader = BufReader::new(&mut self.file);
        // The line's end may be the byte before.
        Ok(before + reader.skip_until(b'\n')? as u64)
    }

    /// Prints what there is more of it.
    fn copy(&mut self, lines: &mut Lines) -> io::Result<()> {
        let mut piece = vec![0; PIECE];
        while !out::is_closed() {
            let count = self.file.read(&mut piece)?;
            if count == 0 {
                break;
            }
            // They were written before.
            self.times.refresh()?;
            lines.print(&piece[..count], self.at, &self.times);
            self.at += count as u64;
        }
        Ok(())
    }
}

fn print(path: &Path, args: &LogsArgs, form: Form, is_off: &dyn Fn() -> bool) -> io::Result<()> {
    let (mut logs, mut is_there) = open_all(path)?;
    if let Some(lines) = args.tail {
        let mut files: Vec<&mut File> = logs.iter_mut().map(|log| &mut log.file).collect();
        skip(&mut files, lines)?;
        for log in &mut logs {
            log.at = log.file.stream_position()?;
        }
    }
    if let Some(since) = args.since {
        let mut unknown = false;
        for log in &mut logs {
            unknown |= log.begin_at(since)?;
        }
        if unknown {
            note(
                "piton: some of the output has no times, as an earlier version of piton recorded none: it is left out",
            );
        }
    }
    let mut lines = Lines::new(form);
    for log in &mut logs {
        log.copy(&mut lines)?;
    }
    let mut looks = 0;
    let mut now = logs.pop().filter(|_| is_there);
    while args.follow && !out::is_closed() {
        looks += 1;
        let off = looks % LOOKS == 0 && is_off();
        if let Some(log) = &mut now {
            log.copy(&mut lines)?;
        }
        // It was rotated: what there was of the former one has been printed.
        if is_other(now.as_ref(), path)? {
            if let Some(log) = &mut now {
                log.copy(&mut lines)?;
            }
            (logs, is_there) = open_all(path)?;
            now = logs.pop().filter(|_| is_there);
        } else if off {
            break;
        }
        std::thread::sleep(LOOK);
    }
    lines.end();
    Ok(())
}

/// Puts each file to where the last lines of all begin.
fn skip(files: &mut [&mut File], lines: usize) -> io::Result<()> {
    let mut left = lines;
    // The end of the last line is none of another one.
    let mut last = true;
    for file in files.iter_mut().rev() {
        let mut at = file.seek(SeekFrom::End(0))?;
        while left > 0 && at > 0 {
            let length = at.min(PIECE as u64);
            let mut piece = vec![0; length as usize];
            file.seek(SeekFrom::Start(at - length))?;
            file.read_exact(&mut piece)?;
            let end = piece.len() - usize::from(last && piece.ends_with(b"\n"));
            last = false;
            let mut start = None;
            for (n, _) in piece[..end].iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
                left -= 1;
                if left == 0 {
                    start = Some(n as u64 + 1);
                    break;
                }
            }
            at = at - length + start.unwrap_or(0);
            if start.is_some() {
                break;
            }
        }
        file.seek(SeekFrom::Start(at))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_over_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            File::open(path).unwrap()
        };
        let (mut one, mut two) = (write("1", "a\nb\nc"), write("2", "d\ne\nf\n"));
        for (lines, wanted) in [
            (0, ["", ""]),
            (1, ["", "f\n"]),
            (3, ["c", "d\ne\nf\n"]),
            (4, ["b\nc", "d\ne\nf\n"]),
            (99, ["a\nb\nc", "d\ne\nf\n"]),
        ] {
            skip(&mut [&mut one, &mut two], lines).unwrap();
            let read = [&mut one, &mut two].map(|file| io::read_to_string(file).unwrap());
            assert_eq!(read, wanted, "{lines}");
        }
    }
}
