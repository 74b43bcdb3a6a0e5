//! A guest that breaks every rule. Whatever it does, the device serves or asks for a reset, stays
//! inside guest memory and disk (the test disk asserts that), and works again after a reset.

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::disk::MemDisk;
use super::driver::*;
use crate::bus::BusDevice;
use crate::devices::virtio::block::Block;
use crate::devices::virtio::rng::Rng;

/// Indirect tables of the hostile driver, and a page that it never gives to the device.
const TABLES: [u64; 2] = [0x6000, 0x8000];
const SECRET: u64 = 0x30_0000;

fn register() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => (0..0x42u64).prop_map(|register| register * 4),
        1 => 0..0x1000u64,
        1 => any::<u64>(),
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        4 => 0..4u32,
        2 => any::<u32>(),
        2 => (0..32u32).prop_map(|bit| 1 << bit),
        2 => Just(DESC as u32),
        1 => Just(0xffff_ffff),
        1 => Just(0x100_0000 - 16),
        3 => 0..16u32,
    ];
    prop_oneof![
        9 => word.prop_map(|word| word.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..9),
    ]
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        6 => 0x1_0000..0x4_0000u64,
        2 => DESC - 0x100..USED + 0x400,
        1 => HOLE - 64..HOLE + 64,
        1 => (24u64 << 20) - 64..(24u64 << 20) + 64,
        1 => u64::MAX - 4096..=u64::MAX,
        1 => any::<u64>(),
        1 => prop::sample::select(TABLES.to_vec()),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 8, 15, 16, 17, 32, 512, 513, 1024, 4096]),
        2 => 0..0x3_0000u32,
        1 => any::<u32>(),
        1 => u32::MAX - 64..=u32::MAX,
        1 => (0..70u32).prop_map(|count| count * 16),
        1 => Just(0xffff0),
    ]
}

type Desc = (u64, u32, u16, u16);

fn descriptor() -> impl Strategy<Value = Desc> {
    let flags = prop_oneof![
        6 => prop::sample::select(vec![0, NEXT, WRITE, NEXT | WRITE, NEXT, NEXT | WRITE]),
        2 => prop::sample::select(vec![INDIRECT, INDIRECT | NEXT, INDIRECT | WRITE]),
        1 => any::<u16>(),
    ];
    let next = prop_oneof![6 => 0..12u16, 1 => 60..70u16, 1 => any::<u16>()];
    (address(), length(), flags, next)
}

fn tables() -> impl Strategy<Value = [Vec<Desc>; 3]> {
    let table = || prop::collection::vec(descriptor(), 1..12);
    [table(), table(), table()]
}

/// What may stand where the device looks for a request's header or its ranges.
fn contents() -> impl Strategy<Value = Vec<u8>> {
    let words = prop::collection::vec(prop_oneof![3 => 0..20u32, 1 => any::<u32>()], 4..40);
    words.prop_map(|words| words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn check_state<D: crate::devices::virtio::Device>(driver: &Driver<D>) {
    if driver.status() & (NEEDS_RESET | DRIVER_OK) == NEEDS_RESET | DRIVER_OK {
        assert_ne!(driver.read(0x60) & 2, 0, "a broken device tells its driver");
        assert_ne!(driver.take_interrupts(), 0);
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(256))]

    #[test]
    fn any_register_writes(
        start in any::<bool>(),
        writes in prop::collection::vec((register(), value(), any::<bool>()), 0..60),
        junk in prop::collection::vec(any::<u8>(), 0..256),
    ) {
        let disk = MemDisk::new(DISK_LEN, false);
        let mut driver = Driver::block(&disk);
        if start {
            let features = driver.offered();
            driver.start(features);
        }
        driver.memory.write_slice(&junk, GuestAddress(DESC)).unwrap();
        driver.memory.write_slice(&junk, GuestAddress(0)).unwrap();
        for (offset, bytes, serve) in writes {
            driver.transport.write(offset, &bytes);
            let mut back = bytes;
            driver.transport.read(offset, &mut back);
            if serve {
                driver.kick();
                driver.serve();
            }
        }
        driver.assert_alive(&disk);
    }

    #[test]
    fn any_descriptors(
        tables in tables(),
        heads in prop::collection::vec(prop_oneof![9 => 0..12u16, 1 => any::<u16>()], 1..8),
        contents in contents(),
        read_only in any::<bool>(),
        event_idx in any::<bool>(),
    ) {
        let disk = MemDisk::new(DISK_LEN, read_only);
        let mut driver = Driver::block(&disk);
        let features = driver.offered() & if event_idx { !0 } else { !EVENT_IDX };
        driver.start(features);
        let secret = vec![0x5e; 4096];
        driver.memory.write_slice(&secret, GuestAddress(SECRET)).unwrap();
        for at in (0x1_0000..0x4_0000u64).step_by(contents.len().max(512)) {
            driver.memory.write_slice(&contents, GuestAddress(at)).unwrap();
        }
        for (table, descs) in [DESC, TABLES[0], TABLES[1]].into_iter().zip(&tables) {
            (0..).zip(descs).for_each(|(index, &desc)| driver.put_desc(table, index, desc));
        }
        for &head in &heads {
            driver.offer(head);
            driver.kick();
        }
        driver.serve();
        check_state(&driver);
        let named = tables.iter().flatten().any(|&(at, len, flags, _)| {
            flags & WRITE != 0 && at <= SECRET + 4096 && at.saturating_add(len.into()) >= SECRET
        });
        if !named {
            let mut now = vec![0; 4096];
            driver.memory.read_slice(&mut now, GuestAddress(SECRET)).unwrap();
            prop_assert!(now == secret, "the device wrote where nobody told it to");
        }
        driver.assert_alive(&disk);
    }

    #[test]
    fn any_rings(
        size in prop::sample::select(vec![1u16, 2, 8, 64, 256]),
        places in [address(), address(), address()],
        junk in prop::collection::vec(any::<u8>(), 0..2048),
        at in address(),
        rounds in 1..4usize,
    ) {
        let disk = MemDisk::new(DISK_LEN, false);
        let mut driver = Driver::block(&disk);
        driver.size = size;
        driver.add_status(ACKNOWLEDGE | DRIVER);
        driver.accept(driver.offered());
        driver.add_status(FEATURES_OK);
        let _ = driver.memory.write_slice(&junk, GuestAddress(at));
        let _ = driver.memory.write_slice(&junk, GuestAddress(places[1] & !1));
        driver.place_queue(places[0] & !15, places[1] & !1, places[2] & !3);
        driver.write(0x44, 1);
        driver.add_status(DRIVER_OK);
        for _ in 0..rounds {
            driver.kick();
            driver.serve();
        }
        check_state(&driver);
        driver.assert_alive(&disk);
    }

    #[test]
    fn any_available_index(
        jump in prop_oneof![0..5u16, 60..70u16, any::<u16>()],
        before in 0..3u16,
    ) {
        let disk = MemDisk::new(DISK_LEN, false);
        let mut driver = Driver::ready(&disk, 0);
        for _ in 0..before {
            driver.request(FLUSH, 0, &[]);
        }
        driver.take_interrupts();
        driver.memory.write_obj(before.wrapping_add(jump), GuestAddress(AVAIL + 2)).unwrap();
        driver.kick();
        driver.serve();
        let broken = driver.status() & NEEDS_RESET != 0;
        if jump > driver.size {
            prop_assert!(broken && driver.take_used().is_empty());
        } else {
            // Ring entries that were never written name descriptor 0: a flush, if there was one.
            prop_assert_eq!(broken, before == 0 && jump > 0);
            prop_assert_eq!(driver.take_used().len(), if before == 0 { 0 } else { jump.into() });
        }
        check_state(&driver);
        driver.assert_alive(&disk);
    }

    #[test]
    fn any_entropy_request(tables in tables(), heads in prop::collection::vec(0..12u16, 1..8)) {
        let mut driver = Driver::new(Rng, memory());
        let features = driver.offered();
        driver.start(features);
        for (table, descs) in [DESC, TABLES[0], TABLES[1]].into_iter().zip(&tables) {
            (0..).zip(descs).for_each(|(index, &desc)| driver.put_desc(table, index, desc));
        }
        heads.iter().for_each(|&head| driver.offer(head));
        driver.kick();
        driver.serve();
        check_state(&driver);
        driver.start(features);
        let posted = driver.post(&[Piece::Writable(16)], false);
        driver.kick();
        driver.serve();
        prop_assert_eq!(driver.take_used(), [(posted.head, 16)]);
    }
}

/// Each of these alone must leave the device broken, and alive after a reset.
#[test]
fn requests_that_break_the_device() {
    let (header, data, status) = (0x1_0000, 0x1_1000, 0x1_2000);
    let cases: [(&str, &[Desc]); 12] = [
        ("no status", &[(header, 16, 0, 0)]),
        ("an empty place for it", &[(header, 16, NEXT, 1), (status, 0, WRITE, 0)]),
        ("a header to write", &[(header, 16, WRITE | NEXT, 1), (status, 1, WRITE, 0)]),
        ("half a header", &[(header, 15, NEXT, 1), (status, 1, WRITE, 0)]),
        ("a header in the hole", &[(HOLE, 16, NEXT, 1), (status, 1, WRITE, 0)]),
        (
            "data into the hole",
            &[(header, 16, NEXT, 1), (HOLE - 1, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)],
        ),
        ("data that wrap", &[(header, 16, NEXT, 1), (u64::MAX, 512, WRITE | NEXT, 2), (status, 1, WRITE, 0)]),
        ("4 GiB of data", &[(header, 16, NEXT, 1), (data, u32::MAX, WRITE | NEXT, 2), (status, 1, WRITE, 0)]),
        ("next out of range", &[(header, 16, NEXT, 64), (status, 1, WRITE, 0)]),
        ("a loop of its own", &[(header, 16, NEXT, 0)]),
        ("an odd indirect table", &[(header, 17, INDIRECT, 0)]),
        ("an empty indirect table", &[(header, 0, INDIRECT, 0)]),
    ];
    for (what, descriptors) in cases {
        let disk = MemDisk::new(DISK_LEN, false);
        let mut driver = Driver::ready(&disk, 0);
        driver.take_interrupts();
        (0..).zip(descriptors).for_each(|(index, &desc)| driver.put_desc(DESC, index, desc));
        driver.offer(0);
        driver.kick();
        driver.serve();
        assert_ne!(driver.status() & NEEDS_RESET, 0, "{what}");
        assert_eq!((driver.take_interrupts(), driver.acknowledge()), (1, 2), "{what}");
        assert_eq!(driver.take_used(), [], "{what}");
        driver.assert_alive(&disk);
    }
}

#[test]
fn long_chains_and_deep_tables_end() {
    let disk = MemDisk::new(DISK_LEN, false);
    let mut driver = Driver::ready(&disk, 0);
    // A table that holds itself.
    driver.put_desc(DESC, 0, (TABLES[0], 32, INDIRECT, 0));
    driver.put_desc(TABLES[0], 0, (TABLES[0], 32, INDIRECT | NEXT, 1));
    driver.offer(0);
    driver.kick();
    driver.serve();
    check_state(&driver);
    driver.assert_alive(&disk);

    // The largest indirect table there can be, in one long loop of writable bytes.
    let features = driver.offered();
    driver.start(features);
    let table = 0x10_0000;
    driver.put_desc(DESC, 0, (table, 0xffff * 16, INDIRECT, 0));
    driver.put_desc(table, 0, (0x1_0000, 16, NEXT, 1));
    driver.put_desc(table, 1, (0x1_1000, 1, WRITE | NEXT, 1));
    driver.memory.write_slice(&[0; 16], GuestAddress(0x1_0000)).unwrap();
    driver.offer(0);
    driver.kick();
    driver.serve();
    assert_eq!(driver.take_used().len(), 1, "65533 bytes are no whole sectors, which is answered");
    driver.assert_alive(&disk);
}

#[test]
fn rings_on_top_of_each_other_and_of_the_data() {
    let disk = MemDisk::new(DISK_LEN, false);
    for [desc, avail, used] in [[DESC, DESC, DESC], [DESC, DESC + 64, DESC], [DESC, USED, USED]] {
        let mut driver = Driver::<Block>::block(&disk);
        driver.add_status(ACKNOWLEDGE | DRIVER);
        driver.accept(driver.offered());
        driver.add_status(FEATURES_OK);
        driver.place_queue(desc, avail, used);
        driver.write(0x44, 1);
        driver.add_status(DRIVER_OK);
        driver.memory.write_slice(&[1; 64], GuestAddress(avail)).unwrap();
        (0..3).for_each(|_| {
            driver.kick();
            driver.serve();
        });
        driver.assert_alive(&disk);
    }
    // Data of a read over the rings that it came from.
    let mut driver = Driver::ready(&disk, 0);
    for target in [DESC, AVAIL, USED] {
        let features = driver.offered();
        driver.start(features);
        driver.memory.write_slice(&[0; 16], GuestAddress(0x1_0000)).unwrap();
        driver.put_desc(DESC, 0, (0x1_0000, 16, NEXT, 1));
        driver.put_desc(DESC, 1, (target, 4096, NEXT | WRITE, 2));
        driver.put_desc(DESC, 2, (0x1_2000, 1, WRITE, 0));
        driver.offer(0);
        (0..3).for_each(|_| {
            driver.kick();
            driver.serve();
        });
        driver.take_interrupts();
        driver.assert_alive(&disk);
    }
}
