//! Frames in a stream of bytes, each after its length (4 bytes, big-endian).

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::ops::Range;

use super::backend::{Lost, MOST_FRAME};

const LENGTH: usize = 4;
/// Shortest frame: an Ethernet header.
const LEAST_FRAME: usize = 14;
/// Bytes that are read ahead.
const BUFFER: usize = 256 << 10;
/// Frames up to this many bytes are gathered and sent together. With one more they fit into the 48 KiB
/// that Linux puts into a Unix socket at once (`unix_stream_sendmsg`): passt loses its place in the stream
/// if a read of its ends within a length.
const GATHER: usize = 24 << 10;
/// Frames from this length on are sent from where they are.
const LARGE: usize = 8 << 10;

/// What came in, and how far it was looked at.
pub struct Incoming {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Default for Incoming {
    fn default() -> Self {
        Self { buffer: vec![0; BUFFER].into(), start: 0, end: 0 }
    }
}

impl Incoming {
    /// Where the next frame lies, if it is there whole.
    fn next(&self) -> Result<Option<Range<usize>>, Lost> {
        let Some(length) = self.buffer[self.start..self.end].first_chunk::<LENGTH>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if !(LEAST_FRAME..=MOST_FRAME).contains(&length) {
            return Err(Lost(format!("it sent a frame of {length} bytes")));
        }
        let begin = self.start + LENGTH;
        Ok((self.end - begin >= length).then(|| begin..begin + length))
    }

    /// The next frame, read from `source` if need be.
    pub fn peek(&mut self, source: &mut impl Read) -> Result<Option<&[u8]>, Lost> {
        let mut range = self.next()?;
        if range.is_none() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            match source.read(&mut self.buffer[self.end..]) {
                Ok(0) => return Err(Lost("it has exited".into())),
                Ok(count) => self.end += count,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(e) => return Err(Lost::io("reading from it failed")(e)),
            }
            range = self.next()?;
        }
        Ok(range.map(|range| &self.buffer[range]))
    }

    /// The next frame, if it was read already.
    pub fn ready(&self) -> Result<Option<&[u8]>, Lost> {
        Ok(self.next()?.map(|range| &self.buffer[range]))
    }

    pub fn drop_frame(&mut self) {
        if let Ok(Some(range)) = self.next() {
            self.start = range.end;
        }
    }
}

/// What was not sent yet: whole frames, and the rest of one of which a part is sent already.
#[derive(Default)]
pub struct Outgoing {
    buffer: Vec<u8>,
    sent: usize,
    blocked: bool,
}

impl Outgoing {
    /// While it is, nothing may be put: what waits is bounded.
    pub fn is_blocked(&self) -> bool {
        self.blocked
    }

    pub fn put(&mut self, frame: &[u8], sink: &mut impl Write) -> Result<(), Lost> {
        let length = u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes();
        let mut done = 0;
        if frame.len() >= LARGE {
            self.flush(sink)?;
            if !self.blocked {
                done = written(sink.write_vectored(&[IoSlice::new(&length), IoSlice::new(frame)]))?;
                self.blocked = done < length.len() + frame.len();
            }
        }
        self.buffer.extend_from_slice(&length[done.min(LENGTH)..]);
        self.buffer.extend_from_slice(&frame[done.saturating_sub(LENGTH)..]);
        if self.buffer.len() >= GATHER && !self.blocked { self.flush(sink) } else { Ok(()) }
    }

    pub fn flush(&mut self, sink: &mut impl Write) -> Result<(), Lost> {
        while self.sent < self.buffer.len() {
            let count = written(sink.write(&self.buffer[self.sent..]))?;
            self.sent += count;
            if count == 0 {
                self.blocked = true;
                return Ok(());
            }
        }
        self.buffer.clear();
        self.sent = 0;
        self.blocked = false;
        Ok(())
    }
}

fn written(result: std::io::Result<usize>) -> Result<usize, Lost> {
    match result {
        Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Ok(0),
        other => other.map_err(Lost::io("writing to it failed")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Gives and takes as many bytes at a time as it is told, then nothing for once.
    struct Pipe {
        bytes: Vec<u8>,
        at: usize,
        steps: Vec<usize>,
        step: usize,
    }

    impl Pipe {
        fn new(bytes: Vec<u8>, steps: &[usize]) -> Self {
            Self { bytes, at: 0, steps: steps.to_vec(), step: 0 }
        }

        fn next(&mut self, most: usize) -> std::io::Result<usize> {
            self.step += 1;
            match self.steps[self.step % self.steps.len()].min(most) {
                0 => Err(ErrorKind::WouldBlock.into()),
                count => Ok(count),
            }
        }
    }

    impl Read for Pipe {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if self.at == self.bytes.len() {
                return Ok(0);
            }
            let count = self.next(buf.len().min(self.bytes.len() - self.at))?;
            buf[..count].copy_from_slice(&self.bytes[self.at..self.at + count]);
            self.at += count;
            Ok(count)
        }
    }

    impl Write for Pipe {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            let count = self.next(buf.len())?;
            self.bytes.extend_from_slice(&buf[..count]);
            Ok(count)
        }
        fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> std::io::Result<usize> {
            let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
            self.write(&all)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn frames() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let length = prop_oneof![LEAST_FRAME..100, LARGE - 2..LARGE + 2, MOST_FRAME - 1..=MOST_FRAME];
        let frame = (length, any::<u8>()).prop_map(|(len, seed)| {
            (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
        });
        prop::collection::vec(frame, 1..12)
    }

    fn steps() -> impl Strategy<Value = Vec<usize>> {
        let some = prop::collection::vec(prop_oneof![0..8usize, 1..4000usize, Just(1 << 20)], 1..8);
        some.prop_map(|mut steps| {
            steps.push(50_000);
            steps
        })
    }

    proptest! {
        #[test]
        fn frames_come_out_as_they_went_in(frames in frames(), out in steps(), back in steps()) {
            let mut sink = Pipe::new(Vec::new(), &out);
            let mut outgoing = Outgoing::default();
            for frame in &frames {
                while outgoing.is_blocked() {
                    outgoing.flush(&mut sink).unwrap();
                }
                outgoing.put(frame, &mut sink).unwrap();
                prop_assert!(outgoing.buffer.len() <= GATHER + LENGTH + MOST_FRAME);
            }
            for _ in 0..100_000 {
                outgoing.flush(&mut sink).unwrap();
            }
            let mut source = Pipe::new(sink.bytes, &back);
            let mut incoming = Incoming::default();
            let mut got = Vec::new();
            loop {
                match incoming.peek(&mut source) {
                    Ok(Some(frame)) => got.push(frame.to_vec()),
                    Ok(None) => continue,
                    Err(lost) => {
                        prop_assert_eq!(lost.0, "it has exited");
                        break;
                    }
                }
                incoming.drop_frame();
            }
            prop_assert_eq!(got, frames);
        }
    }

    /// Notes each write.
    struct Writes(Vec<Vec<u8>>);

    impl Write for Writes {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0.push(buf.to_vec());
            Ok(buf.len())
        }
        fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> std::io::Result<usize> {
            self.write(&bufs.iter().flat_map(|buf| buf.to_vec()).collect::<Vec<_>>())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn small_frames_go_out_whole_and_at_once() {
        let (mut sink, mut outgoing) = (Writes(Vec::new()), Outgoing::default());
        let lengths = (0..20_000).map(|n| [60, 1514, LARGE - 1, 60, MOST_FRAME][n % 5]);
        for length in lengths {
            outgoing.put(&vec![0; length], &mut sink).unwrap();
        }
        outgoing.flush(&mut sink).unwrap();
        for write in &sink.0 {
            let mut incoming = Incoming { buffer: write.clone().into(), start: 0, end: write.len() };
            let mut frames = 0;
            while incoming.ready().unwrap().is_some() {
                incoming.drop_frame();
                frames += 1;
            }
            assert_eq!(incoming.start, write.len(), "it ends within a frame");
            assert!(frames == 1 || write.len() < 48 << 10, "{frames} frames of {} bytes", write.len());
        }
    }

    #[test]
    fn lengths_that_cannot_be_end_it() {
        for length in [0, LEAST_FRAME as u32 - 1, MOST_FRAME as u32 + 1, u32::MAX] {
            let mut source = Pipe::new([&length.to_be_bytes()[..], &[0; 64]].concat(), &[1 << 20]);
            assert!(Incoming::default().peek(&mut source).is_err(), "{length}");
        }
    }
}
