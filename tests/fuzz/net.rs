//! Networks: a guest that sends anything through its card, and a passt that says anything.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use piton::config::{NetArg, networks};
use piton::devices::virtio::net::Net;
use piton::net::{Backend, HEADER, Link, MOST_FRAME, User};

use crate::driver::Driver;
use crate::{Shape, Target};

const TO_GUEST: u16 = 0;
const FROM_GUEST: u16 = 1;
const CONTROL: u16 = 2;

const LENGTH: usize = 4;
const LEAST_FRAME: usize = 14;
/// What passt takes.
const MOST_TO_PASST: usize = 65535;

/// Of the card's features: its checksums and those of the guest, buffers that are put together, the
/// status, the control queue and announcements.
const FEATURES: u32 = 1 | 1 << 1 | 1 << 15 | 1 << 16 | 1 << 17 | 1 << 21;

/// A record of an input: what is done, three numbers, and a packet: its header and a frame.
const RECORD: usize = 4 + HEADER + 60;
const SEND: u8 = 0;
const BUFFER: u8 = 1;
const COMMAND: u8 = 2;
const PASST_SENDS: u8 = 3;
const PASST_READS: u8 = 4;
const PASST_ENDS: u8 = 5;
const GO_BACK: u8 = 6;
const RESTART: u8 = 7;

/// passt's end of the line, and what came of a frame that is not there whole yet.
struct Passt {
    socket: UnixStream,
    left: Vec<u8>,
    whole: usize,
}

impl Passt {
    fn new(isolated: bool) -> (User, Self) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        theirs.set_nonblocking(true).unwrap();
        (User::new(ours, isolated).unwrap(), Self { socket: theirs, left: Vec::new(), whole: 0 })
    }

    /// Reads some; whatever the guest said, it is whole frames.
    fn reads(&mut self) {
        let mut some = vec![0; 96 << 10];
        match self.socket.read(&mut some) {
            Ok(count) => self.left.extend_from_slice(&some[..count]),
            Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
        }
        let mut rest = &self.left[..];
        while let Some((length, behind)) = rest.split_first_chunk::<LENGTH>() {
            let length = u32::from_be_bytes(*length) as usize;
            assert!(
                (LEAST_FRAME..=MOST_TO_PASST).contains(&length),
                "passt is sent a frame of {length} bytes"
            );
            let Some(behind) = behind.get(length..) else { break };
            self.whole += 1;
            rest = behind;
        }
        self.left = rest.to_vec();
    }
}

struct Guest {
    driver: Driver<Net>,
    link: Arc<Link>,
    passt: Option<Passt>,
}

impl Guest {
    fn new() -> Self {
        let link = Arc::new(Link::new().unwrap());
        let config = networks(&[NetArg::USER], &[], &[[1, 2, 3]]).unwrap().remove(0);
        let mut guest = Self { driver: Driver::new(Net::new(config, link.clone())), link, passt: None };
        guest.driver.start(FEATURES);
        guest.plug(false);
        guest
    }

    fn plug(&mut self, isolated: bool) {
        let (user, passt) = Passt::new(isolated);
        self.link.plug(Box::new(user), Box::new(|_| {}));
        self.passt = Some(passt);
        self.serve();
    }

    /// What the device's thread does.
    fn serve(&self) {
        {
            let device = &mut self.driver.rig.backend.lock().device;
            device.follow_link(true, Instant::now());
            device.note_readable();
        }
        self.driver.rig.backend.ring();
        self.driver.rig.serve();
    }

    fn obey(&mut self, record: &[u8]) {
        let [what, a, b, c] = [record[0] % 8, record[1], record[2], record[3]];
        let packet = &record[4..];
        match what {
            SEND => {
                let first = HEADER as u32 + if b & 1 == 1 { u32::from(c) } else { 60 };
                let mut lengths = vec![first];
                if b & 2 == 2 {
                    // The rest is whatever lies there.
                    lengths.push(u32::from(a) << 9);
                }
                if b & 4 == 4 {
                    lengths = vec![u32::from(c), u32::from(a)];
                }
                self.driver.give(FROM_GUEST, &lengths, b & 24 == 24, packet);
            }
            BUFFER => {
                let lengths = [u32::from(a) + 1, u32::from(c) << 6];
                self.driver.give(TO_GUEST, &lengths[..1 + usize::from(b & 1)], b & 24 != 24, &[]);
            }
            COMMAND => {
                let lengths = [u32::from(a % 8), 1];
                self.driver.give(CONTROL, &lengths[..1 + usize::from(b & 1)], b & 2 == 2, &packet[..16]);
            }
            PASST_SENDS => {
                let frame = &packet[HEADER..];
                let length = if b & 7 == 7 { u32::from(a) << (c % 24) } else { frame.len() as u32 };
                if let Some(passt) = &mut self.passt {
                    let _ = passt.socket.write(&[&length.to_be_bytes(), frame].concat());
                }
            }
            PASST_READS => self.passt.iter_mut().for_each(Passt::reads),
            PASST_ENDS => self.passt = None,
            GO_BACK => {
                let state = self.driver.rig.backend.lock().device.save();
                let json = serde_json::to_vec(&state).unwrap();
                self.driver.rig.backend.lock().device.restore(serde_json::from_slice(&json).unwrap());
                self.plug(b & 1 == 1);
            }
            RESTART => {
                let features = u32::from_le_bytes(packet[..4].try_into().unwrap());
                self.driver.start(if b & 1 == 1 { FEATURES } else { features });
            }
            _ => unreachable!(),
        }
        self.serve();
    }

    /// A device that was reset, with a fresh passt, passes frames on in both directions.
    fn is_alive(&mut self) -> bool {
        self.driver.start(0);
        self.plug(false);
        self.passt.as_mut().unwrap().reads();
        let before = self.passt.as_ref().unwrap().whole;
        self.driver.give(TO_GUEST, &[2048], true, &[]);
        self.driver.give(FROM_GUEST, &[HEADER as u32 + 60], false, &[0; HEADER + 60]);
        let passt = self.passt.as_mut().unwrap();
        passt.socket.write_all(&[&60_u32.to_be_bytes()[..], &[1; 60]].concat()).unwrap();
        self.serve();
        let passt = self.passt.as_mut().unwrap();
        passt.reads();
        // It may have been given an end of one of its former connections first.
        self.driver.used(TO_GUEST) == 1 && passt.whole == before + 1
    }
}

fn record(what: u8, a: u8, b: u8, packet: &[u8]) -> Vec<u8> {
    let mut bytes = vec![what, a, b, 60];
    bytes.extend_from_slice(packet);
    bytes.resize(RECORD, 0);
    bytes
}

/// A TCP segment over IPv4 between the guest and a peer, without checksums.
fn segment(from_guest: bool, flags: u8) -> Vec<u8> {
    let (guest, peer) = ([10, 0, 2, 15], [192, 0, 2, 1]);
    let (from, to) = if from_guest { (guest, peer) } else { (peer, guest) };
    let (from_port, to_port) = if from_guest { ([16, 0], [0, 80]) } else { ([0, 80], [16, 0]) };
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
    frame.extend_from_slice(&[0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    frame.extend_from_slice(&[from, to].concat());
    frame.extend_from_slice(&[from_port, to_port].concat());
    frame.extend_from_slice(&[0, 0, 0, 9, 0, 0, 0, 7, 5 << 4, flags, 0, 0, 0, 0, 0, 0]);
    frame.resize(60, 0);
    frame
}

const SYN: u8 = 2;
const ACK: u8 = 16;
const FIN: u8 = 1;

fn with_header(needs_csum: bool, frame: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    if needs_csum {
        // The TCP header begins at byte 34, its checksum is at its 16th.
        (packet[0], packet[6], packet[8]) = (1, 34, 16);
    }
    packet.extend_from_slice(frame);
    packet
}

pub fn device() -> Target {
    let say = |flags| record(SEND, 0, 0, &with_header(true, &segment(true, flags)));
    let hear = |flags| record(PASST_SENDS, 0, 0, &with_header(false, &segment(false, flags)));
    let buffers = || [record(BUFFER, 255, 1, &[]), record(BUFFER, 80, 0, &[])].concat();
    let reads = || record(PASST_READS, 0, 0, &[]);
    let connects = [buffers(), say(SYN), hear(SYN | ACK), say(ACK), reads(), say(FIN | ACK), hear(FIN | ACK)];
    let back = [say(SYN), say(ACK), record(GO_BACK, 0, 0, &[]), buffers(), say(ACK), buffers(), reads()];
    let isolated = [record(GO_BACK, 0, 1, &[]), buffers(), say(SYN), hear(SYN), say(SYN | ACK), reads()];
    let control = [
        record(COMMAND, 2, 1, &[3, 0]),
        record(COMMAND, 2, 1, &[0, 0]),
        record(RESTART, 0, 1, &[]),
        say(SYN),
    ];
    let large = |a, b, c| {
        let mut large = record(SEND, a, b, &with_header(false, &segment(true, SYN)));
        large[3] = c;
        [large, reads(), reads()].concat()
    };
    let lost = [buffers(), hear(SYN), record(PASST_ENDS, 0, 0, &[]), say(SYN), record(GO_BACK, 0, 0, &[])];
    Target {
        name: "net",
        shape: Shape::Bytes,
        seeds: vec![
            connects.concat(),
            back.concat(),
            isolated.concat(),
            control.concat(),
            large(120, 2, 0),
            // A little longer than passt takes.
            large(128, 3, 10),
            lost.concat(),
        ],
        mend: Box::new(|_| {}),
        run: Box::new(|input| {
            let mut guest = Guest::new();
            for record in input.chunks_exact(RECORD).take(256) {
                guest.obey(record);
            }
            let accepted = guest.driver.used(FROM_GUEST) > 0;
            assert!(guest.is_alive(), "a reset device does not serve");
            accepted
        }),
    }
}

/// The frames of a stream, up to what is impossible or not there whole; and whether it was impossible.
fn frames(mut stream: &[u8]) -> (Vec<&[u8]>, bool) {
    let mut found = Vec::new();
    while let Some((length, rest)) = stream.split_first_chunk::<LENGTH>() {
        let length = u32::from_be_bytes(*length) as usize;
        if !(LEAST_FRAME..=MOST_FRAME).contains(&length) {
            return (found, true);
        }
        let Some((frame, rest)) = rest.split_at_checked(length) else { break };
        found.push(frame);
        stream = rest;
    }
    (found, false)
}

/// What passt says comes in pieces, whose sizes are as the first bytes say.
pub fn passt() -> Target {
    let stream = |frames: &[Vec<u8>]| {
        let each = frames.iter().map(|frame| [&(frame.len() as u32).to_be_bytes(), &frame[..]].concat());
        each.collect::<Vec<_>>().concat()
    };
    let seed = |steps: [u8; 4], frames: &[Vec<u8>]| [&steps[..], &stream(frames)].concat();
    let mut large = segment(false, ACK);
    large.resize(MOST_FRAME, 3);
    let talk = [segment(false, SYN), segment(true, SYN | ACK), segment(false, ACK), segment(false, FIN)];
    Target {
        name: "passt",
        shape: Shape::Bytes,
        seeds: vec![
            seed([1, 2, 3, 5], &talk),
            seed([255, 64, 0, 9], &[talk[0].clone(), large, talk[2].clone()]),
            seed([60, 4, 60, 4], &vec![segment(false, SYN); 20]),
        ],
        mend: Box::new(|_| {}),
        run: Box::new(|input| {
            let Some((steps, stream)) = input.split_first_chunk::<4>() else { return false };
            let (mut user, mut passt) = Passt::new(false);
            let (expected, impossible) = frames(stream);
            let (mut got, mut lost, mut rest) = (0, false, stream);
            let mut steps = steps.iter().cycle();
            loop {
                let step = usize::from(*steps.next().unwrap()).pow(2) + 1;
                let (now, _) = rest.split_at(step.min(rest.len()));
                let written = match passt.socket.write(now) {
                    Ok(count) => count,
                    Err(e) => {
                        assert_eq!(e.kind(), ErrorKind::WouldBlock);
                        0
                    }
                };
                rest = &rest[written..];
                loop {
                    match user.peek() {
                        Ok(Some(incoming)) => {
                            assert_eq!(Some(&incoming.frame), expected.get(got).as_ref().copied());
                            user.drop_frame();
                            got += 1;
                        }
                        Ok(None) => break,
                        Err(_) => {
                            lost = true;
                            break;
                        }
                    }
                }
                if lost || rest.is_empty() {
                    break;
                }
            }
            assert_eq!((got, lost), (expected.len(), impossible));
            // Its connections are saved, and the next one tells the guest so.
            let saved = serde_json::to_vec(&user.flows()).unwrap();
            let (mut next, _passt) = Passt::new(false);
            next.end_flows(serde_json::from_slice(&saved).unwrap());
            while let Some(incoming) = next.peek().unwrap() {
                assert!(incoming.frame.len() >= LEAST_FRAME + 40);
                next.drop_frame();
            }
            got > 0
        }),
    }
}
