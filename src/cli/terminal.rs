//! The user's terminal as the guest's console: raw while attached, with an escape key.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;

use nix::sys::termios::{self, OutputFlags, SetArg, Termios};

use super::out::note;

/// Ctrl-A begins a command to piton, as in QEMU and screen.
const ESCAPE: u8 = 1;

/// Raw mode; dropping it gives the terminal back as it was.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// None where standard input is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(stdin.as_fd())?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        // piton's own lines still end where they should.
        raw.output_flags |= OutputFlags::OPOST;
        termios::tcsetattr(stdin.as_fd(), SetArg::TCSANOW, &raw)?;
        Ok(Some(Self { before }))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // The terminal may be gone.
        let _ = termios::tcsetattr(io::stdin().as_fd(), SetArg::TCSANOW, &self.before);
    }
}

/// What typed bytes mean.
#[derive(Debug, PartialEq, Eq)]
pub enum Typed {
    ForGuest(Vec<u8>),
    Leave,
    Help,
}

/// Tells the guest's bytes from commands to piton.
#[derive(Default)]
pub struct Keys {
    escaped: bool,
}

impl Keys {
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Typed> {
        let mut typed = Vec::new();
        let mut guest = Vec::new();
        for &byte in bytes {
            if !self.escaped {
                self.escaped = byte == ESCAPE;
                if !self.escaped {
                    guest.push(byte);
                }
                continue;
            }
            self.escaped = false;
            let command = match byte {
                b'x' | b'X' => Typed::Leave,
                b'h' | b'H' | b'?' => Typed::Help,
                // Twice is once for the guest; nothing else means anything.
                _ => {
                    guest.extend((byte == ESCAPE).then_some(ESCAPE));
                    continue;
                }
            };
            if !guest.is_empty() {
                typed.push(Typed::ForGuest(std::mem::take(&mut guest)));
            }
            typed.push(command);
        }
        if !guest.is_empty() {
            typed.push(Typed::ForGuest(guest));
        }
        typed
    }
}

/// Reads what is typed until the user leaves or the input ends, which is no leaving: a VM with
/// its input closed runs on. Returns true if the user left.
pub fn read_keys(help: &str, mut to_guest: impl FnMut(&[u8]) -> io::Result<()>) -> bool {
    let is_terminal = io::stdin().is_terminal();
    let mut keys = Keys::default();
    let mut buffer = [0; 256];
    loop {
        let count = match io::stdin().read(&mut buffer) {
            Ok(0) => return false,
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return false,
        };
        // Only people have an escape key: a pipe's bytes are all the guest's.
        let typed = if is_terminal {
            keys.take(&buffer[..count])
        } else {
            vec![Typed::ForGuest(buffer[..count].to_vec())]
        };
        for typed in typed {
            match typed {
                Typed::Leave => return true,
                Typed::Help => note(help),
                Typed::ForGuest(bytes) => {
                    if to_guest(&bytes).is_err() {
                        return false;
                    }
                }
            }
        }
    }
}

/// Shows console output.
pub fn print(bytes: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key() {
        let guest = |bytes: &[u8]| Typed::ForGuest(bytes.to_vec());
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"abc"), [guest(b"abc")]);
        assert_eq!(keys.take(b"a\x01xb"), [guest(b"a"), Typed::Leave, guest(b"b")]);
        assert_eq!(keys.take(b"\x01"), []);
        assert_eq!(keys.take(b"h"), [Typed::Help]);
        assert_eq!(keys.take(b"\x01\x01x"), [guest(b"\x01x")]);
        assert_eq!(keys.take(b"\x01qz"), [guest(b"z")]);
    }
}
