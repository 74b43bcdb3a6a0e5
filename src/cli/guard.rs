//! Commands that read what others may have written do it with no more rights than that takes.

use std::path::Path;

use super::args::GuardArgs;
use crate::folder::Home;
use crate::sandbox::{self, Reach, Rules};
use crate::seccomp::{self, Thread};
use crate::storage::Storage;

/// Binds this process, for good: to be called before it starts a thread or opens such a file, and
/// after it has asked a running VM, which it cannot any more. It writes into the home, and to `writes`
/// or, of what is not there yet, beside it.
pub fn enter(args: &GuardArgs, kind: Thread, writes: &[&Path]) -> anyhow::Result<()> {
    if !args.no_landlock {
        sandbox::enable();
        sandbox::prepare(|| rules(kind, writes))?;
        sandbox::enter()?;
    }
    if !args.no_seccomp {
        seccomp::enable()?;
        seccomp::confine(kind);
    }
    Ok(())
}

fn rules(kind: Thread, writes: &[&Path]) -> Rules {
    let mut rules = Rules::default();
    // An image may be anywhere, and so may what it rests on.
    rules.allow(Reach::Read, "/");
    if let Ok(home) = Home::from_env(Storage::os()) {
        // It may have to be made.
        let there = home.root().ancestors().find(|path| path.is_dir());
        rules.allow(Reach::All, there.unwrap_or(home.root()));
    }
    for path in writes {
        rules.allow(Reach::Tree, *path);
        if let Some(parent) = path.parent().filter(|_| !path.is_dir()) {
            rules.allow(Reach::Tree, parent);
        }
    }
    if matches!(kind, Thread::Import | Thread::Depot) {
        rules.allow(Reach::Write, "/dev/kvm");
    }
    if kind == Thread::Depot {
        rules.allow_connections();
    }
    rules
}
