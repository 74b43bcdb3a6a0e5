//! The archives that go between a host and a guest's `tar`: ustar headers, with the long names and
//! long lengths of GNU and of pax. What comes in is a guest's; nothing of it is kept beyond one name.
//!
//! Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

pub const BLOCK: usize = 512;
/// Longest name, and longest extended header.
const META_MAX: u64 = 64 << 10;

const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const SUM: std::ops::Range<usize> = 148..156;
const KIND: usize = 156;
const TARGET: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..263;
const VERSION: std::ops::Range<usize> = 263..265;
const PREFIX: std::ops::Range<usize> = 345..500;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TarError {
    #[error("the guest's tar did not send an archive")]
    NoArchive,
    #[error("the guest's tar sent an invalid number")]
    Number,
    #[error("the guest's tar sent a name of more than 64 KiB")]
    Name,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Folder,
    Symlink,
    /// Another name of a file that came before.
    Link,
    /// A device or the like.
    Other,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: Vec<u8>,
    pub kind: Kind,
    pub mode: u32,
    /// Bytes of data that follow.
    pub size: u64,
    /// Of a link.
    pub target: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    Begin(&'a Entry),
    Data(&'a [u8]),
    /// All of the entry's data has come.
    End,
}

enum State {
    Header,
    /// A header about the next one.
    Meta {
        kind: u8,
        left: u64,
    },
    Data {
        left: u64,
    },
    /// Up to the end of the block.
    Padding(u64),
    Ended,
}

/// Reads an archive as it comes.
pub struct Reader {
    state: State,
    held: Vec<u8>,
    padding: u64,
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl Default for Reader {
    fn default() -> Self {
        Self { state: State::Header, held: Vec::new(), padding: 0, path: None, target: None, size: None }
    }
}

impl Reader {
    /// Whether the archive's end was seen.
    pub fn is_whole(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    pub fn push<E: From<TarError>>(
        &mut self,
        mut bytes: &[u8],
        tell: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Ended => return Ok(()),
                State::Header => {
                    let (part, rest) = bytes.split_at(bytes.len().min(BLOCK - self.held.len()));
                    self.held.extend_from_slice(part);
                    bytes = rest;
                    if self.held.len() == BLOCK {
                        let block = std::mem::take(&mut self.held);
                        self.header(&block, tell)?;
                    }
                }
                State::Meta { kind, left } => {
                    let (part, rest) = split(bytes, *left);
                    self.held.extend_from_slice(part);
                    *left -= part.len() as u64;
                    bytes = rest;
                    if *left == 0 {
                        let (kind, data) = (*kind, std::mem::take(&mut self.held));
                        self.meta(kind, &data)?;
                        self.state = State::Padding(self.padding);
                        self.skip_padding();
                    }
                }
                State::Data { left } => {
                    let (part, rest) = split(bytes, *left);
                    *left -= part.len() as u64;
                    let over = *left == 0;
                    bytes = rest;
                    tell(Event::Data(part))?;
                    if over {
                        tell(Event::End)?;
                        self.state = State::Padding(self.padding);
                        self.skip_padding();
                    }
                }
                State::Padding(left) => {
                    let (part, rest) = split(bytes, *left);
                    *left -= part.len() as u64;
                    bytes = rest;
                    self.skip_padding();
                }
            }
        }
        Ok(())
    }

    fn skip_padding(&mut self) {
        if matches!(self.state, State::Padding(0)) {
            self.state = State::Header;
        }
    }

    fn header<E: From<TarError>>(
        &mut self,
        block: &[u8],
        tell: &mut dyn FnMut(Event<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        if block.iter().all(|byte| *byte == 0) {
            self.state = State::Ended;
            return Ok(());
        }
        if number(&block[SUM]) != Ok(sum(block)) {
            return Err(TarError::NoArchive.into());
        }
        let size = number(&block[SIZE])?;
        let kind = block[KIND];
        if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            if size > META_MAX {
                return Err(TarError::Name.into());
            }
            self.padding = padding(size);
            self.state = State::Meta { kind, left: size };
            if size == 0 {
                self.state = State::Header;
            }
            return Ok(());
        }
        let kind = match kind {
            b'0' | 0 | b'7' => Kind::File,
            b'1' => Kind::Link,
            b'2' => Kind::Symlink,
            b'5' => Kind::Folder,
            _ => Kind::Other,
        };
        let mut path = text(&block[NAME]).to_vec();
        let prefix = text(&block[PREFIX]);
        if block[MAGIC].starts_with(b"ustar\0") && !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        // Of a link and a folder the length means nothing.
        let has_data = matches!(kind, Kind::File | Kind::Other);
        let size = if has_data { self.size.take().unwrap_or(size) } else { 0 };
        self.size = None;
        let entry = Entry {
            path: self.path.take().unwrap_or(path),
            kind,
            mode: u32::try_from(number(&block[MODE])? & 0o7777).unwrap_or(0),
            size,
            target: self.target.take().unwrap_or_else(|| text(&block[TARGET]).to_vec()),
        };
        self.padding = padding(size);
        tell(Event::Begin(&entry))?;
        if size == 0 {
            tell(Event::End)?;
        } else {
            self.state = State::Data { left: size };
        }
        Ok(())
    }

    /// What is told of the entry that comes next.
    fn meta(&mut self, kind: u8, data: &[u8]) -> Result<(), TarError> {
        match kind {
            b'L' => self.path = Some(text(data).to_vec()),
            b'K' => self.target = Some(text(data).to_vec()),
            b'x' => {
                let mut rest = data;
                // Each is `LENGTH KEY=VALUE\n`, with the length of all of it.
                while let Some(space) = rest.iter().position(|byte| *byte == b' ') {
                    let length = std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse().ok());
                    let length: usize = length.ok_or(TarError::Number)?;
                    if length <= space + 1 || length > rest.len() {
                        return Err(TarError::Number);
                    }
                    let (record, after) = rest.split_at(length);
                    let record = record[space + 1..].strip_suffix(b"\n").unwrap_or(&record[space + 1..]);
                    if let Some(path) = record.strip_prefix(b"path=") {
                        self.path = Some(path.to_vec());
                    } else if let Some(target) = record.strip_prefix(b"linkpath=") {
                        self.target = Some(target.to_vec());
                    } else if let Some(size) = record.strip_prefix(b"size=") {
                        let size = std::str::from_utf8(size).ok().and_then(|size| size.parse().ok());
                        self.size = Some(size.ok_or(TarError::Number)?);
                    }
                    rest = after;
                }
            }
            // For all entries: nothing of it is needed.
            _ => {}
        }
        Ok(())
    }
}

fn split(bytes: &[u8], left: u64) -> (&[u8], &[u8]) {
    bytes.split_at(usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len())))
}

/// Bytes from the end of so much data to the end of its block.
pub fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

/// Up to the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal, or after a first byte of 0x80 binary.
fn number(field: &[u8]) -> Result<u64, TarError> {
    if field[0] == 0x80 {
        let (high, low) = field.split_at(field.len().saturating_sub(8));
        let fits = high.iter().skip(1).all(|byte| *byte == 0);
        let low = low.try_into().map(u64::from_be_bytes);
        return low.ok().filter(|low| fits && *low < 1 << 62).ok_or(TarError::Number);
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| TarError::Number)?.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| TarError::Number)
}

fn sum(block: &[u8]) -> u64 {
    let bytes = block.iter().enumerate();
    bytes.map(|(at, byte)| u64::from(if SUM.contains(&at) { b' ' } else { *byte })).sum()
}

fn block(path: &[u8], kind: u8, mode: u32, size: u64, mtime: u64, target: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |range: std::ops::Range<usize>, bytes: &[u8]| {
        let len = bytes.len().min(range.len());
        block[range.start..range.start + len].copy_from_slice(&bytes[..len]);
    };
    put(NAME, path);
    put(MODE, format!("{:07o}", mode & 0o7777).as_bytes());
    put(108..116, b"0000000");
    put(116..124, b"0000000");
    if size < 1 << 33 {
        put(SIZE, format!("{size:011o}").as_bytes());
    } else {
        put(SIZE, &[&[0x80, 0, 0, 0][..], &size.to_be_bytes()].concat());
    }
    put(MTIME, format!("{:011o}", mtime.min((1 << 33) - 1)).as_bytes());
    put(KIND..KIND + 1, &[kind]);
    put(TARGET, target);
    put(MAGIC, b"ustar\0");
    put(VERSION, b"00");
    let sum = sum(&block);
    block[SUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn long(kind: u8, text: &[u8]) -> Vec<u8> {
    let size = text.len() as u64 + 1;
    let mut bytes = block(b"././@LongLink", kind, 0o644, size, 0, b"");
    bytes.extend_from_slice(text);
    bytes.resize(bytes.len() + 1 + padding(size) as usize, 0);
    bytes
}

/// The header of an entry, which its data follow, and their [`padding`].
pub fn header(entry: &Entry, mtime: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if entry.path.len() > NAME.len() {
        bytes.extend(long(b'L', &entry.path));
    }
    if entry.target.len() > TARGET.len() {
        bytes.extend(long(b'K', &entry.target));
    }
    let kind = match entry.kind {
        Kind::File | Kind::Other => b'0',
        Kind::Link => b'1',
        Kind::Symlink => b'2',
        Kind::Folder => b'5',
    };
    bytes.extend(block(&entry.path, kind, entry.mode, entry.size, mtime, &entry.target));
    bytes
}

/// What stands at the end of an archive.
pub fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &[u8], kind: Kind, size: u64, target: &[u8]) -> Entry {
        Entry { path: path.into(), kind, mode: 0o640, size, target: target.into() }
    }

    fn archive(entries: &[(Entry, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (entry, data) in entries {
            bytes.extend(header(entry, 1_700_000_000));
            bytes.extend_from_slice(data);
            bytes.resize(bytes.len() + padding(entry.size) as usize, 0);
        }
        bytes.extend(end());
        bytes
    }

    type Read = Vec<(Entry, Vec<u8>)>;

    fn read(bytes: &[u8], chunk: usize) -> Result<(Read, bool), TarError> {
        let mut reader = Reader::default();
        let mut all: Read = Vec::new();
        for part in bytes.chunks(chunk) {
            reader.push(part, &mut |event| {
                match event {
                    Event::Begin(entry) => all.push((entry.clone(), Vec::new())),
                    Event::Data(data) => all.last_mut().unwrap().1.extend_from_slice(data),
                    Event::End => {}
                }
                Ok::<(), TarError>(())
            })?;
        }
        Ok((all, reader.is_whole()))
    }

    #[test]
    fn what_is_written_is_read_however_it_is_cut() {
        let long = vec![b'n'; 300];
        let entries = [
            (entry(b"d", Kind::Folder, 0, b""), &b""[..]),
            (entry(b"d/a\nb", Kind::File, 5, b""), b"hello"),
            (entry(b"d/whole", Kind::File, 512, b""), &[7; 512]),
            (entry(&long, Kind::Symlink, 0, &long), b""),
            (entry(b"d/empty", Kind::File, 0, b""), b""),
        ];
        let bytes = archive(&entries);
        for chunk in [1, 7, 511, 512, 513, bytes.len()] {
            let (all, whole) = read(&bytes, chunk).unwrap();
            assert!(whole);
            let wanted: Read = entries.iter().map(|(entry, data)| (entry.clone(), data.to_vec())).collect();
            assert_eq!(all, wanted, "chunks of {chunk}");
        }
        assert!(!read(&bytes[..bytes.len() - 1024], 100).unwrap().1, "its end is missing");
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        assert_eq!(read(&[b'x'; 1024], 1024), Err(TarError::NoArchive));
        let mut huge = block(b"././@LongLink", b'L', 0, 1 << 40, 0, b"");
        assert_eq!(read(&huge, 512), Err(TarError::Name));
        huge = header(&entry(b"f", Kind::File, 1 << 40, b""), 0);
        let (all, whole) = read(&huge, 512).unwrap();
        assert_eq!((all[0].0.size, whole), (1 << 40, false));
        let pax = |text: &[u8]| {
            let mut bytes = block(b"x", b'x', 0, text.len() as u64, 0, b"");
            bytes.extend_from_slice(text);
            bytes.resize(2 * BLOCK, 0);
            bytes
        };
        for wrong in [&b"99 path=x\n"[..], b"2 path=x\n", b"x path=x\n", b"15 size=-1aaaaa\n"] {
            assert_eq!(read(&pax(wrong), 512), Err(TarError::Number), "{wrong:?}");
        }
    }
}
