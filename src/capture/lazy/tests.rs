use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, channel};

use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::capture::chain::ImageSpec;
use crate::capture::image::ImageWriter;
use crate::id::Id;
use crate::storage::Storage;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 24 * MIB;

struct Lab {
    dir: tempfile::TempDir,
    memory: GuestMemory,
    filling: Filling,
    events: Receiver<MachineEvent>,
}

/// What the first byte of a page has to be: some are zeros, most are the delta's or its parent's.
fn byte(page: u64) -> u8 {
    match page % 16 {
        0 => 0,
        1..4 => 7,
        _ => (page % 250) as u8 + 1,
    }
}

fn chain(dir: &std::path::Path) -> Vec<ImageSpec> {
    let (storage, ram) = (Storage::os(), [(0, SIZE)]);
    let ids = [1, 2].map(|n| Id::from_bytes([n; 16]));
    let paths = ["full", "delta"].map(|name| dir.join(name));
    let mut full = ImageWriter::create(&storage, &paths[0], ids[0], &ram).unwrap();
    let mut delta = ImageWriter::create_delta(&storage, &paths[1], ids[1], ids[0], &ram).unwrap();
    for page in 0..SIZE / PAGE_SIZE {
        let at = page * PAGE_SIZE;
        match byte(page) {
            7 => {
                full.write(at, &[9; PAGE_SIZE as usize]).unwrap();
                delta.write(at, &[7; PAGE_SIZE as usize]).unwrap();
            }
            byte => full.write(at, &[byte; PAGE_SIZE as usize]).unwrap(),
        }
    }
    let crcs = [full.finish().unwrap().crc, delta.finish().unwrap().crc];
    let specs = (0..2).map(|n| ImageSpec { path: paths[n].clone(), id: ids[n], crc: crcs[n] });
    specs.rev().collect()
}

/// `damaged`: a page whose contents are not as they were written.
fn lab(damaged: Option<u64>) -> Lab {
    let dir = tempfile::tempdir().unwrap();
    let specs = chain(dir.path());
    if let Some(page) = damaged {
        let file = std::fs::OpenOptions::new().write(true).open(&specs[1].path).unwrap();
        file.write_all_at(&[0xee; 8], page * PAGE_SIZE + 16).unwrap();
    }
    let chain = MemoryChain::open(&Storage::os(), &specs).unwrap();
    let memory = crate::memory::allocate(SIZE).unwrap();
    let (sender, events) = channel();
    let sender = Mutex::new(sender);
    let sink: EventSink = Arc::new(move |event| sender.lock().unwrap().send(event).unwrap());
    let uffd =
        Uffd::new().expect("these tests need userfaultfd for the kernel's faults too: run them as root");
    let filling = Filling::lazy(uffd, chain, &memory, sink).unwrap();
    Lab { dir, memory, filling, events }
}

fn until(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain");
        std::thread::yield_now();
    }
}

fn read(memory: &GuestMemory, page: u64) -> u8 {
    let bytes: [u8; 8] = memory.read_obj(GuestAddress(page * PAGE_SIZE + 64)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]));
    bytes[0]
}

/// Pages that are in memory.
fn resident(memory: &GuestMemory) -> u64 {
    let region = memory.iter().next().unwrap();
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let mut bytes = vec![0; (SIZE / PAGE_SIZE * 8) as usize];
    pagemap.read_exact_at(&mut bytes, region.as_ptr() as u64 / PAGE_SIZE * 8).unwrap();
    bytes.chunks(8).filter(|entry| entry[7] & 0x80 != 0).count() as u64
}

#[test]
fn a_paused_machine_has_the_pages_that_were_touched_and_no_more() {
    let lab = lab(None);
    for page in [0, 1, 5, 100, SIZE / PAGE_SIZE - 1] {
        assert_eq!(read(&lab.memory, page), byte(page));
    }
    // What was written before the rest comes is not lost to it.
    lab.memory.write_obj(0x55u8, GuestAddress(5 * PAGE_SIZE + 9)).unwrap();
    assert_eq!(resident(&lab.memory), 5);
    assert!(lab.filling.pending().is_some());
}

#[test]
fn all_comes_however_it_is_touched() {
    let Lab { memory, mut filling, dir, events, .. } = lab(None);
    // Nothing is opened again.
    drop(dir);
    memory.write_obj(0x55u8, GuestAddress(5 * PAGE_SIZE + 9)).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let memory = &memory;
            scope.spawn(move || {
                let pages = SIZE / PAGE_SIZE;
                for n in 0..pages {
                    // Forwards, backwards, and all over the place.
                    let page = [n, pages - 1 - n, n * 2654435761 % pages][thread as usize];
                    assert_eq!(read(memory, page), byte(page));
                    memory.write_obj(thread as u8, GuestAddress(page * PAGE_SIZE + thread)).unwrap();
                }
            });
        }
        filling.fetch();
    });
    until(|| filling.pending().is_none());
    for page in 0..SIZE / PAGE_SIZE {
        assert_eq!(read(&memory, page), byte(page));
        let written: [u8; 3] = memory.read_obj(GuestAddress(page * PAGE_SIZE)).unwrap();
        assert_eq!(written, [0, 1, 2]);
    }
    assert_eq!(memory.read_obj::<u8>(GuestAddress(5 * PAGE_SIZE + 9)).unwrap(), 0x55);
    drop(filling);
    assert!(events.try_recv().is_err());
}

#[test]
fn what_nobody_touches_is_fetched_and_zeros_cost_nothing() {
    let Lab { memory, mut filling, .. } = lab(None);
    filling.fetch();
    until(|| filling.pending().is_none());
    let zeros = (0..SIZE / PAGE_SIZE).filter(|page| byte(*page) == 0).count() as u64;
    assert_eq!(resident(&memory), SIZE / PAGE_SIZE - zeros);
    (0..SIZE / PAGE_SIZE).for_each(|page| assert_eq!(read(&memory, page), byte(page)));
}

#[test]
fn it_ends_at_once_in_the_middle() {
    for delay in [0, 100, 1000, 5000] {
        let Lab { mut filling, .. } = lab(None);
        filling.fetch();
        std::thread::sleep(Duration::from_micros(delay));
        drop(filling);
    }
}

#[test]
fn damage_reaches_nobody() {
    let damaged = 1029;
    let lab = lab(Some(damaged));
    let mut filling = lab.filling;
    filling.fetch();
    let memory = lab.memory.clone();
    // Its neighbours are whole.
    assert_eq!(read(&memory, damaged + 1), byte(damaged + 1));
    assert_eq!(read(&memory, damaged - 1), byte(damaged - 1));
    assert!(lab.events.try_recv().is_err());
    let (sender, touched) = channel();
    std::thread::spawn(move || {
        let got = read(&memory, damaged);
        // Never comes here: the test's process ends first.
        let _ = sender.send(got);
    });
    let MachineEvent::Crash(text) = lab.events.recv().unwrap() else { panic!("no crash") };
    let place = format!("offset {}", damaged * PAGE_SIZE);
    assert!(text.contains(&place) && text.contains("full"), "{text}");
    assert!(filling.is_broken() && filling.pending().is_some());
    assert!(touched.try_recv().is_err(), "somebody was given a damaged page");
    filling.abandon();
    assert!(touched.try_recv().is_err());
}
