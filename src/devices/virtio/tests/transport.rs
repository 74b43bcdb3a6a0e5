//! Registers, features and status.

use super::disk::MemDisk;
use super::driver::*;
use crate::bus::BusDevice;
use crate::devices::virtio::rng::Rng;

fn disk() -> std::sync::Arc<MemDisk> {
    MemDisk::new(DISK_LEN, false)
}

#[test]
fn it_says_what_it_is() {
    let driver = Driver::block(&disk());
    assert_eq!(driver.read(0x00), 0x7472_6976);
    assert_eq!((driver.read(0x04), driver.read(0x08)), (2, 2));
    assert_eq!(driver.read(0x34), 256);
    driver.write(0x30, 1);
    assert_eq!((driver.read(0x34), driver.read(0x44)), (0, 0), "there is no second queue");
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|at| driver.read(at)), [u32::MAX; 4], "no shared memory");
    let rng = Driver::new(Rng, memory());
    assert_eq!((rng.read(0x08), rng.read(0x34), rng.read(0x100)), (4, 64, 0));
    assert_eq!(rng.offered() & 0xff_ffff, 0);
}

#[test]
fn only_whole_aligned_registers_answer() {
    let driver = Driver::block(&disk());
    for (offset, width) in [(0, 1), (0, 2), (0, 8), (2, 4), (1, 1), (0xfc, 8), (0x70, 3)] {
        let mut data = vec![0xaa; width];
        driver.transport.read(offset, &mut data);
        assert_eq!(data, vec![0; width], "{offset:#x} {width}");
        driver.transport.write(offset, &data);
    }
    driver.add_status(ACKNOWLEDGE);
    driver.transport.write(0x70, &[0]);
    driver.transport.write(0x70, &[0; 8]);
    assert_eq!(driver.status(), ACKNOWLEDGE, "a narrow or wide write is no reset");
}

#[test]
fn block_configuration() {
    let driver = Driver::block(&disk());
    let read = |offset, width| {
        let mut data = vec![0xaa; width];
        driver.transport.read(0x100 + offset, &mut data);
        data
    };
    assert_eq!(read(0, 8), (DISK_LEN as u64 / 512).to_le_bytes());
    assert_eq!(read(12, 4), 254u32.to_le_bytes());
    assert_eq!(read(20, 4), 512u32.to_le_bytes());
    assert_eq!(read(24, 1), [3]);
    assert_eq!(read(1, 2), (DISK_LEN as u32 / 512).to_le_bytes()[1..3]);
    assert_eq!(read(36, 24).len(), 24);
    assert_eq!(read(56, 8), [1, 0, 0, 0, 0, 0, 0, 0], "zeros beyond the end");
    assert_eq!(read(0xe00, 4), [0; 4]);
    assert_eq!(read(u64::MAX - 0x100, 4), [0; 4]);
    let before = read(0, 60);
    (0..64).for_each(|offset| driver.transport.write(0x100 + offset, &[0xff; 4]));
    assert_eq!(read(0, 60), before);
}

#[test]
fn features_by_kind_of_disk() {
    let features = |read_only| Driver::block(&MemDisk::new(DISK_LEN, read_only)).offered();
    let (writable, read_only) = (features(false), features(true));
    let has = |features: u64, bit: u32| features >> bit & 1 == 1;
    for bit in [2, 6, 9, 10, 28, 29, 32] {
        assert!(has(writable, bit) && has(read_only, bit), "{bit}");
    }
    for bit in [13, 14] {
        assert!(has(writable, bit) && !has(read_only, bit), "{bit}");
    }
    assert!(!has(writable, 5) && has(read_only, 5));
    let driver = Driver::block(&disk());
    driver.write(0x14, 2);
    assert_eq!(driver.read(0x10), 0, "there are 64 bits");
}

#[test]
fn features_are_refused_or_kept() {
    let mut driver = Driver::block(&disk());
    let offered = driver.offered();
    for wrong in [0, offered & !VERSION_1, VERSION_1 | 1 << 5, VERSION_1 | 1 << 63] {
        driver.write(0x70, 0);
        driver.add_status(ACKNOWLEDGE | DRIVER);
        driver.accept(wrong);
        assert_eq!(driver.add_status(FEATURES_OK), ACKNOWLEDGE | DRIVER, "{wrong:#x}");
        assert_eq!(driver.add_status(DRIVER_OK), ACKNOWLEDGE | DRIVER, "{wrong:#x}");
    }
    // A driver may think again after a refusal, but not after FEATURES_OK.
    driver.accept(VERSION_1);
    assert_ne!(driver.add_status(FEATURES_OK) & FEATURES_OK, 0);
    driver.accept(1 << 63);
    driver.write(0x24, 7);
    driver.write(0x20, u32::MAX);
    assert_eq!(driver.add_status(DRIVER_OK), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert_eq!(driver.start(VERSION_1) & NEEDS_RESET, 0);
}

#[test]
fn status_bits_only_grow() {
    let driver = Driver::block(&disk());
    driver.add_status(ACKNOWLEDGE);
    driver.write(0x70, DRIVER);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER);
    driver.write(0x70, NEEDS_RESET);
    assert_eq!(driver.status(), ACKNOWLEDGE | DRIVER, "only the device says that");
    driver.write(0x70, 0);
    assert_eq!(driver.status(), 0);
}

/// What a driver gets for a queue that breaks the rules.
fn with_queue(
    place: impl FnOnce(&mut Driver<super::super::block::Block>),
) -> Driver<super::super::block::Block> {
    let mut driver = Driver::block(&disk());
    driver.add_status(ACKNOWLEDGE | DRIVER);
    driver.accept(driver.offered());
    driver.add_status(FEATURES_OK);
    place(&mut driver);
    driver.write(0x44, 1);
    driver.add_status(DRIVER_OK);
    driver
}

#[test]
fn a_misplaced_queue_needs_a_reset() {
    let top = (24 << 20) - 16;
    let broken: [(&str, u16, [u64; 3]); 10] = [
        ("size 0", 0, [DESC, AVAIL, USED]),
        ("no power of two", 100, [DESC, AVAIL, USED]),
        ("too large", 512, [DESC, AVAIL, USED]),
        ("descriptors misaligned", 64, [DESC + 8, AVAIL, USED]),
        ("available ring misaligned", 64, [DESC, AVAIL + 1, USED]),
        ("used ring misaligned", 64, [DESC, AVAIL, USED + 2]),
        ("in the hole", 64, [HOLE, AVAIL, USED]),
        ("into the hole", 64, [DESC, HOLE - 16, USED]),
        ("past the end", 64, [DESC, AVAIL, top]),
        ("wrapping", 64, [u64::MAX - 15, AVAIL, USED]),
    ];
    for (what, size, [desc, avail, used]) in broken {
        let mut driver = with_queue(|driver| {
            driver.size = size;
            driver.place_queue(desc, avail, used);
        });
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{what}");
        assert_eq!((driver.take_interrupts(), driver.acknowledge()), (1, 2), "{what}");
        driver.kick();
        assert!(driver.serve());
        driver.assert_alive(&disk());
    }
}

#[test]
fn a_queue_is_checked_whenever_it_becomes_ready() {
    let driver = with_queue(|driver| driver.place_queue(DESC, AVAIL, USED));
    assert_eq!(driver.status() & NEEDS_RESET, 0);
    driver.place_queue(DESC, AVAIL, HOLE);
    assert_eq!(driver.status() & NEEDS_RESET, 0, "a ready queue stays where it is");
    driver.write(0x44, 0);
    driver.place_queue(DESC, AVAIL, HOLE);
    driver.write(0x44, 1);
    assert_ne!(driver.status() & NEEDS_RESET, 0);
    assert_eq!((driver.take_interrupts(), driver.acknowledge()), (1, 2));
}

#[test]
fn a_device_without_a_queue_stands_still() {
    let mut driver = with_queue(|_| {});
    driver.kick();
    assert!(driver.serve());
    let driver_without = with_queue(|driver| driver.write(0x44, 0));
    driver_without.write(0x44, 0);
    driver_without.kick();
    assert!(driver_without.serve());
    driver.assert_alive(&disk());
}
