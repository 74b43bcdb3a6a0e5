//! Which files this process can reach: a Landlock ruleset that holds for threads, and for all that
//! they start. What was open before stays open. No TCP port can be bound or, unless that is allowed, connected to, and from
//! kernels that know of it no other process be signalled and no abstract socket reached.

mod rules;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, Ruleset, RulesetAttr, RulesetCreated,
    RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use rules::Kind;

pub use rules::{Reach, Rules};

/// What is forbidden: what kernels up to this version know. What later ones add is left alone.
const KNOWN: ABI = ABI::V7;
/// Before, no file could be renamed or linked to another folder.
const LOWEST: u32 = 2;

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("cannot restrict the files that piton can reach (Landlock): {0}")]
    Ruleset(#[from] RulesetError),
    #[error("cannot restrict the files that piton can reach (Landlock): {0}")]
    Io(#[from] io::Error),
}

/// Rules that threads can be bound by.
pub struct Confinement {
    ruleset: RulesetCreated,
    version: u32,
    /// Folders that the kernel would otherwise forget, and the rules for them.
    _kept: Vec<OwnedFd>,
}

impl Confinement {
    /// None: this kernel has no Landlock, or one that is too old. Paths that are not there now are not
    /// reached later either.
    pub fn new(rules: &Rules) -> Result<Option<Self>, SandboxError> {
        let Some(version) = version() else { return Ok(None) };
        let net = if rules.connects() { AccessNet::BindTcp.into() } else { AccessNet::from_all(KNOWN) };
        let mut ruleset = Ruleset::default()
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(net)?
            .scope(Scope::from_all(KNOWN))?
            .create()?;
        let mut kept = Vec::new();
        for rule in rules.open() {
            let access = granted(rule.reach, rule.kind);
            ruleset = ruleset.add_rule(PathBeneath::new(&rule.file, access))?;
            if rule.reach == Reach::Kernel {
                kept.push(rule.file);
            }
        }
        Ok(Some(Self { ruleset, version, _kept: kept }))
    }

    /// Binds the calling thread, and those that it starts from now on, for good.
    pub fn bind(&self) -> Result<(), SandboxError> {
        let status = self.ruleset.try_clone()?.restrict_self()?;
        if status.ruleset != RulesetStatus::NotEnforced {
            ACTIVE.store(self.version, Ordering::SeqCst);
        }
        Ok(())
    }
}

static ENABLED: AtomicBool = AtomicBool::new(false);
static PREPARED: OnceLock<Confinement> = OnceLock::new();
/// The version that a thread was bound by; 0: none was.
static ACTIVE: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static BOUND: Cell<bool> = const { Cell::new(false) };
}

/// From now on [`prepare`] and [`enter`] do something.
pub fn enable() {
    ENABLED.store(true, Ordering::SeqCst);
}

/// The version of Landlock that this kernel has; none: too old a one, or none.
pub fn version() -> Option<u32> {
    const ASK_VERSION: libc::c_uint = 1;
    let nothing = std::ptr::null::<libc::c_void>();
    // SAFETY: asked for its version the call reads no memory.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, nothing, 0usize, ASK_VERSION) };
    u32::try_from(version).ok().filter(|version| *version >= LOWEST)
}

/// The version by which this process is bound.
pub fn in_force() -> Option<u32> {
    Some(ACTIVE.load(Ordering::SeqCst)).filter(|version| *version > 0)
}

/// Makes `rules` those that threads will be bound by. The first ones stay.
pub fn prepare(rules: impl FnOnce() -> Rules) -> Result<(), SandboxError> {
    if ENABLED.load(Ordering::SeqCst) && PREPARED.get().is_none() {
        match Confinement::new(&rules())? {
            Some(prepared) => drop(PREPARED.set(prepared)),
            None => log::debug!("this kernel has no Landlock of version {LOWEST} or later"),
        }
    }
    Ok(())
}

/// Binds the calling thread, and those that it starts from now on, for good. Does nothing before
/// [`prepare`], and to a thread that called it before.
pub fn enter() -> Result<(), SandboxError> {
    if let Some(prepared) = PREPARED.get().filter(|_| !BOUND.get()) {
        prepared.bind()?;
        BOUND.set(true);
    }
    Ok(())
}

/// [`enter`], for a thread that runs all the same if it cannot be bound.
pub fn enter_thread() {
    if let Err(e) = enter() {
        log::warn!("{e}: it runs without");
    }
}

/// An error as it is told: what the sandbox may have refused says so.
pub fn told(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EACCES | libc::EXDEV) if in_force().is_some() => format!(
            "{error}. This process can reach only the files that it needed when it was started: stop and \
             start it again if it needs others, or start it with --no-landlock"
        ),
        _ => error.to_string(),
    }
}

/// What a kind of reach allows below a folder, or to a file.
fn granted(reach: Reach, kind: Kind) -> BitFlags<AccessFs> {
    use AccessFs::{
        IoctlDev, MakeDir, MakeReg, MakeSock, MakeSym, ReadDir, ReadFile, Refer, RemoveDir, RemoveFile,
        Truncate, WriteFile,
    };
    let access = match reach {
        Reach::Tree => granted(Reach::All, Kind::Folder) | MakeSym,
        Reach::All => {
            ReadFile
                | WriteFile
                | Truncate
                | ReadDir
                | MakeReg
                | MakeDir
                | MakeSock
                | RemoveFile
                | RemoveDir
                | Refer
        }
        Reach::Read | Reach::Kernel => ReadFile | ReadDir,
        Reach::Write => ReadFile | WriteFile | Truncate,
        // What is moved to a folder may not gain by it, so others cannot be moved out of this one.
        Reach::MoveInto => ReadDir | MakeDir | Refer,
    };
    match kind {
        Kind::Folder => access,
        Kind::File => access & AccessFs::from_file(KNOWN),
        // Its size is asked for so, also of one that is only read.
        Kind::Device => (access & AccessFs::from_file(KNOWN)) | IoctlDev,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_may_run_a_program_or_make_a_device() {
        use AccessFs::{Execute, MakeBlock, MakeChar, MakeFifo, MakeSym};
        let never = Execute | MakeChar | MakeBlock | MakeFifo | MakeSym;
        for reach in [Reach::All, Reach::Read, Reach::Kernel, Reach::Write, Reach::MoveInto] {
            for kind in [Kind::Folder, Kind::File, Kind::Device] {
                assert!((granted(reach, kind) & never).is_empty(), "{reach:?}");
            }
        }
    }

    #[test]
    fn what_lies_beside_a_vm_can_be_neither_moved_nor_read() {
        let (all, beside) = (granted(Reach::All, Kind::Folder), granted(Reach::MoveInto, Kind::Folder));
        // Landlock refuses a move that gains rights, so a clone can leave a VM's folder only so.
        assert!(all.contains(beside));
        let others = AccessFs::RemoveDir | AccessFs::RemoveFile | AccessFs::ReadFile | AccessFs::WriteFile;
        assert!((beside & others).is_empty());
    }

    #[test]
    fn without_a_sandbox_errors_are_told_as_they_are() {
        let error = io::Error::from_raw_os_error(libc::EACCES);
        assert_eq!(told(&error), error.to_string());
    }
}
