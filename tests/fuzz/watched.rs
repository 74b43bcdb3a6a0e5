//! What is kept and told for those who watch.

use piton::control::exposition::{Page, Type, merge};
use piton::folder::{Happened, Home, What};
use piton::storage::Storage;

use crate::files::folder;
use crate::{Shape, Target};

/// A file of events: what can be read of it is, and one more is the last.
pub fn events() -> Target {
    let dir = folder();
    let vm = Home::at(dir.path().join("home"), Storage::os()).folder(&"demo".parse().unwrap());
    let lock = vm.create().unwrap();
    for what in [What::Started, What::OutOfRoom, What::Stopped] {
        vm.record(&lock, &Happened::now(what, "some \u{e4} \"text\"")).unwrap();
    }
    let [_, path] = vm.event_files();
    let seed = std::fs::read(&path).unwrap();
    Target {
        name: "events",
        shape: Shape::Bytes,
        seeds: vec![seed, Vec::new()],
        mend: Box::new(|_| {}),
        run: Box::new(move |bytes| {
            let _ = &dir;
            std::fs::write(&path, bytes).unwrap();
            let before = vm.events().unwrap().len();
            let last = Happened::now(What::Paused, "the last");
            vm.record(&lock, &last).unwrap();
            let after = vm.events().unwrap();
            assert_eq!((after.len(), after.last()), (before + 1, Some(&last)));
            before > 0
        }),
    }
}

/// What a VM says of itself: no line comes twice or from nowhere.
pub fn exposition() -> Target {
    let mut page = Page::new("demo");
    page.one("piton_a", Type::Gauge, "A.", 1);
    page.family("piton_b", Type::Counter, "B.").sample(&[("x", "y")], 2).sample(&[("x", "z")], 3);
    Target {
        name: "exposition",
        shape: Shape::Bytes,
        seeds: vec![page.finish().into_bytes(), Vec::new()],
        mend: Box::new(|_| {}),
        run: Box::new(|bytes| {
            let Ok(text) = std::str::from_utf8(bytes) else { return false };
            let merged = merge([text, text]);
            let known: std::collections::HashSet<&str> = text.lines().collect();
            assert!(merged.lines().all(|line| known.contains(line) || line.ends_with('\r')), "{merged:?}");
            assert!(merged.lines().count() <= 2 * text.lines().count());
            !merged.is_empty()
        }),
    }
}
