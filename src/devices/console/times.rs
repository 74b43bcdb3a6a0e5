//! console.times: when what is in console.log came. A record for each piece of output in which a line
//! begins: where the piece begins in the log, and the time. It is rotated with the log.
//!
//! A record is written before its piece, so whoever reads a line finds its time. Nothing is synced, as
//! nothing of the log is: what a crash left of the file is judged by [`push`], and the worst that can
//! be lost are times.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

/// Offset and milliseconds since 1970, little-endian.
const RECORD: usize = 16;
/// The log is rotated when its times have grown to this, in bytes: a guest that prints little, but all the
/// time, must not fill the host's disk with times.
pub const TIMES_LIMIT: u64 = 4 << 20;
/// What comes within this time of a record gets none of its own, in milliseconds.
const APART: u64 = 10;

/// Of the log at `log`.
pub fn path_of(log: &Path) -> PathBuf {
    log.with_extension("times")
}

/// Of the one before that, `console.log.1`.
pub fn former_path_of(log: &Path) -> PathBuf {
    log.with_extension("times.1")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    offset: u64,
    millis: u64,
}

impl Record {
    fn encode(self) -> [u8; RECORD] {
        let mut bytes = [0; RECORD];
        bytes[..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..].copy_from_slice(&self.millis.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; RECORD]) -> Self {
        let half = |at: usize| {
            let mut half = [0; 8];
            half.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(half)
        };
        Self { offset: half(0), millis: half(8) }
    }
}

/// Appends to the file.
pub struct Writer {
    file: File,
    len: u64,
    /// Of the last record; 0: there is none of this process.
    last: u64,
    /// The next byte begins a line.
    line_begins: bool,
}

impl Writer {
    pub fn open(log: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let file = options.open(path_of(log))?;
        let len = file.metadata()?.len();
        let whole = len - len % RECORD as u64;
        if whole < len {
            file.set_len(whole)?;
        }
        Ok(Self { file, len: whole, last: 0, line_begins: true })
    }

    pub fn is_full(&self) -> bool {
        self.len >= TIMES_LIMIT
    }

    /// To be told of each piece before it goes to `offset` of the log.
    pub fn tell(&mut self, piece: &[u8], offset: u64, now: DateTime<Utc>) -> io::Result<()> {
        let begins = self.line_begins || piece.contains(&b'\n');
        self.line_begins = piece.last().map_or(self.line_begins, |last| *last == b'\n');
        let millis = u64::try_from(now.timestamp_millis()).unwrap_or(1).max(1);
        if !begins || (self.last > 0 && millis.abs_diff(self.last) < APART) {
            return Ok(());
        }
        self.file.write_all(&Record { offset, millis }.encode())?;
        self.len += RECORD as u64;
        self.last = millis;
        Ok(())
    }
}

/// The times of one log, as they come.
pub struct Times {
    path: PathBuf,
    file: Option<File>,
    records: Vec<Record>,
    /// What was read of the next one.
    rest: Vec<u8>,
}

impl Times {
    /// Of the file at `path`, which may come later.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, records: Vec::new(), rest: Vec::new() }
    }

    /// Reads what there is more.
    pub fn refresh(&mut self) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
                match options.open(&self.path) {
                    Ok(file) => self.file.insert(file),
                    Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
                    Err(e) => return Err(e),
                }
            }
        };
        file.take(TIMES_LIMIT).read_to_end(&mut self.rest)?;
        let whole = self.rest.len() - self.rest.len() % RECORD;
        for bytes in self.rest[..whole].as_chunks::<RECORD>().0 {
            push(&mut self.records, Record::decode(bytes));
        }
        self.rest.drain(..whole);
        Ok(())
    }

    /// When the line that begins at `offset` did; none: it is not known.
    pub fn at(&self, offset: u64) -> Option<DateTime<Utc>> {
        let after = self.records.partition_point(|record| record.offset <= offset);
        let record = self.records.get(after.checked_sub(1)?)?;
        DateTime::from_timestamp_millis(i64::try_from(record.millis).ok()?)
    }

    /// Where what came at `time` or later begins, if something did: in the middle of a line perhaps.
    pub fn since(&self, time: DateTime<Utc>) -> Option<u64> {
        let millis = u64::try_from(time.timestamp_millis()).unwrap_or(0);
        self.records.iter().find(|record| record.millis >= millis).map(|record| record.offset)
    }

    /// Where that begins of which times are known.
    pub fn first(&self) -> Option<u64> {
        self.records.first().map(|record| record.offset)
    }
}

/// Of records for one place the last one counts: what came of the others never was in the log. What goes
/// back before others does so because of a crash.
fn push(records: &mut Vec<Record>, record: Record) {
    if record.millis == 0 {
        return;
    }
    while records.last().is_some_and(|last| last.offset >= record.offset) {
        records.pop();
    }
    records.push(record);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn time(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_800_000_000_000 + millis).unwrap()
    }

    fn read(log: &Path) -> Times {
        let mut times = Times::new(path_of(log));
        times.refresh().unwrap();
        times
    }

    #[test]
    fn lines_have_the_time_at_which_they_began() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        let mut writer = Writer::open(&log).unwrap();
        let mut offset = 0;
        let pieces =
            [("one\ntwo ", 0), ("go", 100), ("es on\nthree\n", 200), ("four\n", 205), ("five\n", 1000)];
        for (piece, at) in pieces {
            writer.tell(piece.as_bytes(), offset, time(at)).unwrap();
            offset += piece.len() as u64;
        }
        let times = read(&log);
        for (begins, at) in [(0, 0), (4, 0), (16, 200), (22, 200), (27, 1000)] {
            assert_eq!(times.at(begins), Some(time(at)), "{begins}");
        }
        assert_eq!(times.records.len(), 3, "in the middle of a line there is no need for one");
        assert_eq!(times.since(time(1)), Some(10));
        assert_eq!((times.since(time(1000)), times.since(time(1001))), (Some(27), None));
    }

    #[test]
    fn what_a_crash_left_is_got_over() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("console.log");
        assert_eq!((read(&log).at(0), read(&log).first()), (None, None));
        let mut writer = Writer::open(&log).unwrap();
        for n in 0..4 {
            writer.tell(b"x\n", n * 2, time(n as i64 * 100)).unwrap();
        }
        // Of the log only two pieces got to the disk, and half a record more.
        writer.file.write_all(b"torn").unwrap();
        let mut writer = Writer::open(&log).unwrap();
        writer.tell(b"y\n", 4, time(5000)).unwrap();
        let times = read(&log);
        assert_eq!([0, 2, 4, 6].map(|at| times.at(at)), [0, 100, 5000, 5000].map(|at| Some(time(at))));
    }

    proptest! {
        #[test]
        fn whatever_is_in_it(bytes: Vec<u8>, at: u64, when in 0..i64::MAX / 4) {
            let dir = tempfile::tempdir().unwrap();
            let log = dir.path().join("console.log");
            std::fs::write(path_of(&log), &bytes).unwrap();
            let times = read(&log);
            prop_assert!(times.records.is_sorted_by_key(|record| record.offset));
            times.at(at);
            times.since(DateTime::from_timestamp_millis(when).unwrap_or_default());
        }
    }
}
