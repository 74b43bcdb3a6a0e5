//! Words that users of other tools try, and what piton calls it.

use clap::error::{ContextKind, ContextValue, ErrorKind};

const KNOWN: [(&[&str], &str); 12] = [
    (&["snapshot", "savevm", "save"], "`piton checkpoint create VM` creates a checkpoint"),
    (
        &["apply", "restore", "loadvm"],
        "`piton checkpoint apply VM@CHECKPOINT` goes back to a checkpoint, `piton checkpoint list VM` shows them",
    ),
    (&["rollback", "revert", "reset"], "`piton checkpoint revert VM` goes back to the last checkpoint"),
    (
        &["restart", "reboot"],
        "`piton stop VM`, then `piton start VM`; what is in the guest can reboot it, too",
    ),
    (&["create", "launch", "new", "up"], "`piton run NAME` creates a VM and boots it"),
    (&["down", "halt"], "`piton stop VM` shuts a VM down"),
    (&["shell", "enter"], "`piton exec VM -- sh` runs a shell in the guest, `piton ssh VM` logs in"),
    (
        &["top", "stats"],
        "`piton list` shows all VMs, `piton metrics` their numbers, `piton manager` both as they change",
    ),
    (&["mv"], "`piton rename VM NEW` renames a VM"),
    (&["attach", "connect"], "`piton console VM` attaches to the console"),
    (&["shutdown", "poweroff"], "`piton stop VM` shuts a VM down, `piton kill VM` cuts its power"),
    (&["destroy", "remove", "undefine"], "`piton kill VM` cuts the power of a VM, `piton rm VM` removes it"),
];

/// A second sentence for a subcommand that is none.
pub fn hint(error: &clap::Error) -> Option<&'static str> {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return None };
    KNOWN.iter().find(|(words, _)| words.contains(&word.as_str())).map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::Cli;
    use clap::Parser;

    #[test]
    fn words_of_others_lead_to_ours() {
        let hint = |words: &[&str]| hint(&Cli::try_parse_from(words).unwrap_err());
        assert!(hint(&["piton", "rollback", "web"]).unwrap().contains("piton checkpoint revert"));
        assert_eq!(hint(&["piton", "strat"]), None);
        assert_eq!(hint(&["piton", "stop", "--now"]), None);
    }
}
