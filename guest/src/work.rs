//! What the agent does for a host beside freezing: runs commands as programs, and keeps files in
//! memory.

use core::cell::UnsafeCell;

const FILES: usize = 8;
const HANDLES: usize = 8;
const PROGRAMS: usize = 4;
const NAME: usize = 64;
/// Bytes of a file.
const FILE: usize = 96 << 10;
const LINE: usize = 512;
/// Bytes of a program's output that are kept.
pub const OUTPUT: usize = 32 << 10;

/// The commands, each of which is a program.
const NAMES: &str = " help info echo generation time fill sum read dirty gaps agent blk journal net vsock smp \
     tick poweroff reboot crash hang cat sleep ";

/// Whether there is a program of this name.
pub fn is_program(name: &str) -> bool {
    !name.is_empty() && NAMES.split(' ').any(|one| one == name)
}

struct File {
    name: [u8; NAME],
    name_len: usize,
    bytes: [u8; FILE],
    len: usize,
}

#[derive(Clone, Copy)]
struct Handle {
    /// 0: free.
    number: i64,
    file: usize,
    at: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Free,
    Waiting,
    Running,
    Ended(u8),
}

struct Program {
    pid: i64,
    state: State,
    line: [u8; LINE],
    line_len: usize,
    output: [u8; OUTPUT],
    output_len: usize,
    truncated: bool,
}

pub struct Work {
    files: [File; FILES],
    handles: [Handle; HANDLES],
    programs: [Program; PROGRAMS],
    last: i64,
}

struct Place(UnsafeCell<Work>);
// SAFETY: reached only through `Work::take`, by the boot vCPU, which calls it once.
unsafe impl Sync for Place {}
static WORK: Place = Place(UnsafeCell::new(Work {
    files: [const { File { name: [0; NAME], name_len: 0, bytes: [0; FILE], len: 0 } }; FILES],
    handles: [Handle { number: 0, file: 0, at: 0 }; HANDLES],
    programs: [const {
        Program {
            pid: 0,
            state: State::Free,
            line: [0; LINE],
            line_len: 0,
            output: [0; OUTPUT],
            output_len: 0,
            truncated: false,
        }
    }; PROGRAMS],
    last: 0,
}));

/// What became of a program.
pub struct Ended<'a> {
    pub code: u8,
    pub output: &'a [u8],
    pub truncated: bool,
}

pub type Refusal = &'static str;
const NO_FILE: Refusal = "No such file or directory";
const NO_HANDLE: Refusal = "handle has not been found";

impl Work {
    /// To be called once.
    pub fn take() -> &'static mut Self {
        // SAFETY: called once, so no other reference is made.
        unsafe { &mut *WORK.0.get() }
    }

    fn file(&self, name: &[u8]) -> Option<usize> {
        self.files.iter().position(|file| file.name_len > 0 && &file.name[..file.name_len] == name)
    }

    pub fn read_all(&self, name: &[u8]) -> Option<&[u8]> {
        self.file(name).map(|n| &self.files[n].bytes[..self.files[n].len])
    }

    pub fn open(&mut self, name: &[u8], mode: &str) -> Result<i64, Refusal> {
        let found = match (self.file(name), mode.starts_with('r')) {
            (Some(n), _) => n,
            (None, true) => return Err(NO_FILE),
            (None, false) => {
                if name.is_empty() || name.len() > NAME || name.ends_with(b"/") {
                    return Err("Invalid argument");
                }
                let free = self.files.iter().position(|file| file.name_len == 0);
                let n = free.ok_or("No space left on device")?;
                self.files[n].name[..name.len()].copy_from_slice(name);
                (self.files[n].name_len, self.files[n].len) = (name.len(), 0);
                n
            }
        };
        if mode.starts_with('w') {
            self.files[found].len = 0;
        }
        let free = self.handles.iter().position(|handle| handle.number == 0);
        let free = free.ok_or("Too many open files")?;
        self.last += 1;
        let at = if mode.starts_with('a') { self.files[found].len } else { 0 };
        self.handles[free] = Handle { number: self.last, file: found, at };
        Ok(self.last)
    }

    fn handle(&mut self, number: i64) -> Result<(&mut Handle, &mut File), Refusal> {
        let found = self.handles.iter_mut().find(|handle| number > 0 && handle.number == number);
        let handle = found.ok_or(NO_HANDLE)?;
        let file = &mut self.files[handle.file];
        Ok((handle, file))
    }

    /// The bytes, and whether that is the end.
    pub fn read(&mut self, number: i64, count: usize) -> Result<(&[u8], bool), Refusal> {
        let (handle, file) = self.handle(number)?;
        let start = handle.at.min(file.len);
        let end = file.len.min(start + count);
        handle.at = end;
        Ok((&file.bytes[start..end], end - start < count))
    }

    /// `fill` puts the bytes into the room that there is, or has no room.
    pub fn write(
        &mut self,
        number: i64,
        fill: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<usize, Refusal> {
        let (handle, file) = self.handle(number)?;
        let count = fill(&mut file.bytes[handle.at..]).ok_or("No space left on device")?;
        handle.at += count;
        file.len = file.len.max(handle.at);
        Ok(count)
    }

    pub fn seek(&mut self, number: i64, offset: i64, whence: &str) -> Result<usize, Refusal> {
        let (handle, file) = self.handle(number)?;
        let base = match whence {
            "set" => 0,
            "cur" => handle.at,
            _ => file.len,
        };
        let at = base as i64 + offset;
        handle.at =
            usize::try_from(at).ok().filter(|at| *at <= file.len).ok_or("Invalid argument")?;
        Ok(handle.at)
    }

    pub fn close(&mut self, number: i64) -> Result<(), Refusal> {
        self.handle(number).map(|(handle, _)| handle.number = 0)
    }

    /// A program that is to run soon: the words of its line, and what it reads, come from `fill`.
    pub fn start(
        &mut self,
        fill_line: impl FnOnce(&mut [u8]) -> Option<usize>,
        fill_input: impl FnOnce(&mut [u8]) -> Option<usize>,
    ) -> Result<i64, Refusal> {
        let free = self.programs.iter_mut().find(|program| program.state == State::Free);
        let program = free.ok_or("Resource temporarily unavailable")?;
        program.line_len = fill_line(&mut program.line).ok_or("Argument list too long")?;
        program.output_len = fill_input(&mut program.output).ok_or("Argument list too long")?;
        self.last += 1;
        (program.pid, program.state, program.truncated) = (self.last, State::Waiting, false);
        Ok(program.pid)
    }

    /// The next program that waits, now running: its number, its line, and what it reads.
    pub fn next(
        &mut self,
        line: &mut [u8; LINE],
        input: &mut [u8; OUTPUT],
    ) -> Option<(usize, usize, usize)> {
        let n = self.programs.iter().position(|program| program.state == State::Waiting)?;
        let program = &mut self.programs[n];
        program.state = State::Running;
        *line = program.line;
        *input = program.output;
        Some((n, program.line_len, core::mem::take(&mut program.output_len)))
    }

    pub fn end(&mut self, n: usize, code: u8, output: &[u8], truncated: bool) {
        let program = &mut self.programs[n];
        program.output[..output.len()].copy_from_slice(output);
        (program.output_len, program.truncated) = (output.len(), truncated);
        program.state = State::Ended(code);
    }

    /// None: it runs still. What has ended is told once, and `tell` is how.
    pub fn status(
        &mut self,
        pid: i64,
        tell: impl FnOnce(Option<Ended<'_>>),
    ) -> Result<(), Refusal> {
        let found = self.programs.iter_mut().find(|one| one.state != State::Free && one.pid == pid);
        let program = found.ok_or("Invalid parameter 'pid'")?;
        let State::Ended(code) = program.state else {
            tell(None);
            return Ok(());
        };
        let output = &program.output[..program.output_len];
        tell(Some(Ended { code, output, truncated: program.truncated }));
        program.state = State::Free;
        Ok(())
    }
}
