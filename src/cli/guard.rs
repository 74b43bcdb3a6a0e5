//! Commands that read what others may have written do it with no more rights than that takes.

use super::args::GuardArgs;
use crate::seccomp::{self, SeccompError, Thread};

/// Binds this process, for good: to be called before it starts a thread or opens such a file, and
/// after it has asked a running VM, which it cannot any more.
pub fn enter(args: &GuardArgs, kind: Thread) -> Result<(), SeccompError> {
    if !args.no_seccomp {
        seccomp::enable()?;
        seccomp::confine(kind);
    }
    Ok(())
}
