//! `piton logs`.

use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

use super::args::LogsArgs;
use super::named;
use crate::control::client::{self, ClientError};

/// Between two looks at what was printed since.
const LOOK: Duration = Duration::from_millis(100);
/// Looks between two at whether the VM runs.
const LOOKS: u32 = 5;
const PIECE: usize = 64 << 10;

/// Prints what the guest printed, as it stands in console.log and the log before that.
pub fn run(args: &LogsArgs) -> anyhow::Result<()> {
    let folder = named::existing(&args.name)?;
    let path = folder.console_log();
    match print(&path, args, &|| matches!(client::get(&folder.socket()), Err(ClientError::NotRunning))) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        done => done.with_context(|| format!("{} cannot be shown", path.display())),
    }
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn print(path: &Path, args: &LogsArgs, is_off: &dyn Fn() -> bool) -> io::Result<()> {
    let former = open(&path.with_extension("log.1"))?;
    let mut now = open(path)?;
    let mut files: Vec<&mut File> = Vec::new();
    let mut former = former;
    files.extend(former.as_mut());
    files.extend(now.as_mut());
    if let Some(lines) = args.tail {
        skip(&mut files, lines)?;
    }
    for file in files {
        copy(file)?;
    }
    if !args.follow {
        return Ok(());
    }
    let mut looks = 0;
    loop {
        looks += 1;
        let off = looks % LOOKS == 0 && is_off();
        if let Some(file) = &mut now {
            copy(file)?;
        }
        // It was rotated: what there was of the former one has been printed.
        let changed = match (&now, std::fs::metadata(path)) {
            (Some(file), Ok(there)) => file.metadata()?.ino() != there.ino(),
            (None, there) => there.is_ok(),
            (Some(_), Err(_)) => false,
        };
        if changed {
            if let Some(file) = &mut now {
                copy(file)?;
            }
            now = open(path)?;
        } else if off {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
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

/// The rest of a file to standard output.
fn copy(file: &mut File) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        let count = file.read(&mut piece)?;
        if count == 0 {
            return Ok(());
        }
        let mut stdout = io::stdout().lock();
        stdout.write_all(&piece[..count])?;
        stdout.flush()?;
    }
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
