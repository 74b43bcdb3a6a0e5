//! What a program of the host says first: `CONNECT PORT`, as with other VMMs.

use std::io::{ErrorKind, Read};
use std::os::unix::net::UnixStream;

/// Longest line: the word, a blank, a port, and the line's end.
const LONGEST: usize = "CONNECT 4294967295\r\n".len();

pub struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// More is to come.
    Part,
    Port(u32),
    /// It said something else, or hung up.
    Nonsense,
}

impl Greeting {
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, line: Vec::with_capacity(LONGEST) }
    }

    pub fn into_stream(self) -> UnixStream {
        self.stream
    }

    /// Reads up to the line's end and no further: what follows is for the guest.
    pub fn hear(&mut self) -> Heard {
        loop {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Heard::Nonsense,
                Ok(_) if byte == *b"\n" => return parse(&self.line),
                Ok(_) if self.line.len() + 1 >= LONGEST => return Heard::Nonsense,
                Ok(_) => self.line.push(byte[0]),
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Heard::Part,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Heard::Nonsense,
            }
        }
    }
}

fn parse(line: &[u8]) -> Heard {
    let port = std::str::from_utf8(line).ok().and_then(|line| {
        let (word, port) = line.trim_end_matches('\r').split_once(' ')?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        (word.eq_ignore_ascii_case("connect") && digits).then(|| port.parse().ok())?
    });
    port.map_or(Heard::Nonsense, Heard::Port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn said(text: &[u8]) -> (Heard, UnixStream) {
        let (mut client, ours) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        client.write_all(text).unwrap();
        let mut greeting = Greeting::new(ours);
        let heard = greeting.hear();
        (heard, greeting.into_stream())
    }

    #[test]
    fn only_the_line_is_read() {
        let (heard, mut rest) = said(b"CONNECT 1024\nhello");
        assert_eq!(heard, Heard::Port(1024));
        let mut text = [0; 16];
        assert_eq!(rest.read(&mut text).unwrap(), 5);
    }

    #[test]
    fn ports() {
        assert_eq!(said(b"connect 4294967295\r\n").0, Heard::Port(u32::MAX));
        assert_eq!(said(b"CONNECT 10").0, Heard::Part);
        for wrong in
            ["CONNECT\n", "CONNECT -1\n", "CONNECT 4294967296\n", "CONNECT +1\n", "GET / HTTP/1.0\n", "\n"]
        {
            assert_eq!(said(wrong.as_bytes()).0, Heard::Nonsense, "{wrong}");
        }
        assert_eq!(said(&[b'x'; 100]).0, Heard::Nonsense);
    }
}
