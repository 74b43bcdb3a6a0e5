use std::io::Write;
use std::os::unix::net::UnixStream;

use super::*;

fn frame(kind: u8) -> Vec<u8> {
    [&[kind; 12][..], &[0x88, 0xb5], &[kind; 50]].concat()
}

fn user() -> (User, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (User::new(ours, false).unwrap(), theirs)
}

#[test]
fn what_passt_sends_is_seen_until_it_is_dropped() {
    let (mut user, mut passt) = user();
    assert!(user.peek().unwrap().is_none());
    for kind in [1, 2] {
        passt.write_all(&62u32.to_be_bytes()).unwrap();
        passt.write_all(&frame(kind)[..62]).unwrap();
    }
    for kind in [1, 2] {
        for _ in 0..2 {
            assert_eq!(user.peek().unwrap().unwrap().frame, &frame(kind)[..62]);
        }
        user.drop_frame();
    }
    assert!(user.peek().unwrap().is_none());
    drop(passt);
    assert!(user.peek().is_err());
}

#[test]
fn nobody_who_reads_makes_it_wait_and_no_frame_is_cut() {
    let (mut user, passt) = user();
    let mut packet = [&[0; HEADER][..], &frame(7).repeat(500)].concat();
    let mut sent = 0;
    while !user.is_blocked() {
        user.send(&mut packet).unwrap();
        user.flush().unwrap();
        sent += 1;
        assert!(sent < 10_000, "a socket without end");
    }
    let length = packet.len() - HEADER;
    passt.set_nonblocking(true).unwrap();
    let mut incoming = frames::Incoming::default();
    let (mut got, mut source) = (0, &passt);
    while got < sent {
        let there = incoming.peek(&mut source).unwrap().map(<[u8]>::len);
        match there {
            Some(there) => {
                assert_eq!(there, length);
                incoming.drop_frame();
                got += 1;
            }
            None => user.flush().unwrap(),
        }
    }
    assert!(!user.is_blocked());
}
