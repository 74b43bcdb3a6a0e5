//! Block requests, each kind well formed and not.

use std::sync::atomic::Ordering;

use super::disk::{MemDisk, Op};
use super::driver::*;
use crate::devices::virtio::rng::Rng;
use Piece::{Readable, Writable};

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

#[test]
fn data_go_both_ways_in_one_piece_and_in_many() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    for (round, indirect) in [false, true, false, true].into_iter().enumerate() {
        let data = pattern(4 * SECTOR + round * SECTOR);
        let sector = 8 + round as u64 * 16;
        let cuts = if round < 2 { vec![data.len()] } else { vec![1, 700, 3, data.len() - 704] };
        let mut rest = &data[..];
        let mut pieces = Vec::new();
        for &cut in &cuts {
            pieces.push(Readable(rest[..cut].to_vec()));
            rest = &rest[cut..];
        }
        let reply = driver.submit(&block_request(OUT, sector, &pieces), indirect);
        assert_eq!((reply.status, reply.used_len), (OK, 1));
        let at = sector as usize * SECTOR;
        assert_eq!(disk.contents(at..at + data.len()), data);

        let pieces: Vec<_> = cuts.iter().map(|&cut| Writable(cut)).collect();
        let reply = driver.submit(&block_request(IN, sector, &pieces), indirect);
        assert_eq!(reply.data, data);
        assert_eq!((reply.status, reply.used_len), (OK, data.len() as u32 + 1));
    }
}

#[test]
fn header_and_data_may_share_descriptors() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    let Some(Readable(header)) = block_request(OUT, 3, &[]).into_iter().next() else { panic!() };
    let data = pattern(SECTOR);
    let all = [&header[..], &data].concat();
    let pieces = [Readable(all[..7].to_vec()), Readable(all[7..].to_vec()), Writable(1)];
    assert_eq!(driver.submit(&pieces, false).status, OK);
    assert_eq!(disk.contents(3 * SECTOR..4 * SECTOR), data);
    // Data and status of a read in one descriptor.
    let Some(Readable(header)) = block_request(IN, 3, &[]).into_iter().next() else { panic!() };
    let reply = driver.submit(&[Readable(header), Writable(SECTOR + 1)], true);
    assert_eq!((reply.status, reply.data), (OK, data));
}

#[test]
fn data_larger_than_the_buffer() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    let data = pattern(700 << 10);
    assert_eq!(driver.request(OUT, 1, &[Readable(data.clone())]).status, OK);
    assert_eq!(driver.request(IN, 1, &[Writable(data.len())]).data, data);
}

#[test]
fn the_other_requests() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    assert_eq!(driver.request(FLUSH, 0, &[]), Reply { status: OK, data: vec![], used_len: 1 });
    assert_eq!(disk.take_ops(), [Op::Flush]);

    let reply = driver.request(GET_ID, 0, &[Writable(20)]);
    assert_eq!((reply.status, reply.used_len), (OK, 21));
    assert_eq!(reply.data, *b"disk-id\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(driver.request(GET_ID, 0, &[Writable(19)]).status, IOERR);

    let two = [segment(8, 8, 0), segment(24, 1, 0)].concat();
    assert_eq!(driver.request(DISCARD, 0, &[Readable(two.clone())]).status, OK);
    assert_eq!(disk.take_ops(), [Op::Discard(4096, 4096), Op::Discard(24 * 512, 512)]);
    assert_eq!(driver.request(WRITE_ZEROES, 0, &[Readable(two)]).status, OK);
    assert_eq!(disk.take_ops(), [Op::Zero(4096, 4096), Op::Zero(24 * 512, 512)]);
    assert_eq!(driver.request(WRITE_ZEROES, 0, &[Readable(segment(0, 1, 1))]).status, OK);
    assert_eq!(disk.contents(0..512), [0; 512]);

    for kind in [2, 3, 7, 14, u32::MAX] {
        assert_eq!(driver.request(kind, 0, &[Writable(512)]).status, UNSUPP, "{kind}");
    }
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}

#[test]
fn what_a_disk_refuses() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    let end = (DISK_LEN / SECTOR) as u64;
    for sector in [end, end - 1, end + 7, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        assert_eq!(driver.request(IN, sector, &[Writable(1024)]).status, IOERR, "{sector:#x}");
        assert_eq!(driver.request(OUT, sector, &[Readable(vec![1; 1024])]).status, IOERR, "{sector:#x}");
        for kind in [DISCARD, WRITE_ZEROES] {
            assert_eq!(driver.request(kind, 0, &[Readable(segment(sector, 2, 0))]).status, IOERR);
        }
    }
    for len in [1, 511, 513] {
        assert_eq!(driver.request(IN, 0, &[Writable(len)]).status, IOERR, "{len}");
        assert_eq!(driver.request(OUT, 0, &[Readable(vec![1; len])]).status, IOERR, "{len}");
    }
    assert_eq!(driver.request(DISCARD, 0, &[Readable(segment(0, 8, 1))]).status, UNSUPP);
    assert_eq!(driver.request(WRITE_ZEROES, 0, &[Readable(segment(0, 8, 2))]).status, UNSUPP);
    assert_eq!(driver.request(DISCARD, 0, &[Readable(segment(0, u32::MAX, 0))]).status, IOERR);
    assert_eq!(driver.request(DISCARD, 0, &[]).status, IOERR, "no range");
    assert_eq!(driver.request(DISCARD, 0, &[Readable(vec![0; 15])]).status, IOERR, "half a range");
    assert_eq!(disk.take_ops(), [], "nothing reached the disk");

    let many = segment(8, 8, 0).repeat(1000);
    assert_eq!(driver.request(DISCARD, 0, &[Readable(many)]).status, IOERR);
    assert_eq!(disk.take_ops().len(), 64);
    assert_eq!(driver.status() & NEEDS_RESET, 0, "the guest may ask; it gets an answer");
}

#[test]
fn a_read_only_disk() {
    let disk = MemDisk::new(DISK_LEN, true);
    let mut driver = Driver::ready(&disk, 0);
    assert_eq!(driver.request(OUT, 0, &[Readable(vec![1; 512])]).status, IOERR);
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(driver.request(kind, 0, &[Readable(segment(0, 8, 0))]).status, IOERR);
    }
    assert_eq!(driver.request(IN, 0, &[Writable(512)]).status, OK);
    assert_eq!(driver.request(FLUSH, 0, &[]).status, OK);
}

#[test]
fn a_failing_disk() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    let requests = [
        (IN, Writable(512)),
        (OUT, Readable(vec![1; 512])),
        (DISCARD, Readable(segment(0, 8, 0))),
        (WRITE_ZEROES, Readable(segment(0, 8, 0))),
        (FLUSH, Readable(vec![])),
    ];
    for (kind, data) in &requests {
        disk.failing.store(true, Ordering::SeqCst);
        assert_eq!(driver.request(*kind, 0, std::slice::from_ref(data)).status, IOERR, "{kind}");
        disk.failing.store(false, Ordering::SeqCst);
        assert_eq!(driver.request(*kind, 0, std::slice::from_ref(data)).status, OK, "{kind}");
    }
}

#[test]
fn a_driver_that_never_flushes_is_flushed_for() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 1 << 9);
    driver.request(OUT, 0, &[Readable(vec![1; 512])]);
    driver.request(DISCARD, 0, &[Readable(segment(0, 1, 0))]);
    driver.request(WRITE_ZEROES, 0, &[Readable(segment(0, 1, 0))]);
    driver.request(IN, 0, &[Writable(512)]);
    let ops = disk.take_ops();
    let expected = [
        Op::Write(0, 512),
        Op::Flush,
        Op::Discard(0, 512),
        Op::Flush,
        Op::Zero(0, 512),
        Op::Flush,
        Op::Read(0, 512),
    ];
    assert_eq!(ops, expected);
    let features = driver.offered();
    driver.start(features);
    driver.request(OUT, 0, &[Readable(vec![1; 512])]);
    assert_eq!(disk.take_ops(), [Op::Write(0, 512)], "write-back once FLUSH is accepted");
}

#[test]
fn entropy() {
    let mut driver = Driver::new(Rng, memory());
    let features = driver.offered();
    driver.start(features);
    for (wanted, given) in [(1, 1), (64, 64), (4096, 4096), (10000, 4096)] {
        let posted = driver.post(&[Writable(wanted)], false);
        driver.kick();
        driver.serve();
        assert_eq!(driver.take_used(), [(posted.head, given)]);
        let bytes = driver.answer(&posted);
        assert!(wanted < 64 || bytes[..given as usize].iter().any(|&byte| byte != 0xee));
        assert!(bytes[given as usize..].iter().all(|&byte| byte == 0xee), "nothing more is written");
    }
    driver.post(&[Readable(vec![0; 8])], false);
    driver.kick();
    driver.serve();
    assert_eq!(driver.take_used()[0].1, 0);
    assert_eq!(driver.status() & NEEDS_RESET, 0);
}
