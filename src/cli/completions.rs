//! Completion of command lines, and manual pages: both are made of the words that piton knows.

use std::any::TypeId;
use std::ffi::OsStr;
use std::path::Path;

use anyhow::Context;
use clap::{Arg, Command, CommandFactory};
use clap_complete::engine::{ArgValueCompleter, CompletionCandidate};
use clap_complete::env::{CompleteEnv, Shells};

use super::args::{CheckpointRef, Cli, Shell, StateRef};
use super::error::usage;
use super::{named, out};
use crate::folder::VmName;
use crate::history::Catalog;

/// Names that are to be new ones: nothing that exists completes them.
const NEW: [(&str, &str); 4] =
    [("run", "name"), ("rename", "new_name"), ("import", "name"), ("clone", "new")];
/// The variable that the shells' functions ask with.
const VARIABLE: &str = "COMPLETE";

/// Answers a shell that asks what a word could be; true if one did.
pub fn answer() -> bool {
    if std::env::var_os(VARIABLE).is_none() {
        return false;
    }
    let args = std::env::args_os();
    let here = std::env::current_dir().ok();
    // What cannot be completed is left to the user.
    CompleteEnv::with_factory(words).var(VARIABLE).try_complete(args, here.as_deref()).unwrap_or(true)
}

/// All words, each with what can stand for it.
fn words() -> Command {
    with_values(Cli::command())
}

fn with_values(command: Command) -> Command {
    let name = command.get_name().to_owned();
    command.mut_args(|arg| with_value(&name, arg)).mut_subcommands(with_values)
}

fn with_value(command: &str, arg: Arg) -> Arg {
    if NEW.contains(&(command, arg.get_id().as_str())) {
        return arg;
    }
    let kind = arg.get_value_parser().type_id();
    if kind == TypeId::of::<VmName>() {
        arg.add(ArgValueCompleter::new(vms))
    } else if kind == TypeId::of::<CheckpointRef>() || kind == TypeId::of::<StateRef>() {
        arg.add(ArgValueCompleter::new(checkpoints))
    } else {
        arg
    }
}

fn names() -> Vec<VmName> {
    let all = named::home().and_then(|home| home.all());
    all.unwrap_or_default().iter().map(|folder| folder.name().clone()).collect()
}

fn candidates(values: impl Iterator<Item = String>, begun: &OsStr) -> Vec<CompletionCandidate> {
    let begun = begun.to_string_lossy();
    values.filter(|value| value.starts_with(&*begun)).map(CompletionCandidate::new).collect()
}

fn vms(begun: &OsStr) -> Vec<CompletionCandidate> {
    candidates(names().iter().map(ToString::to_string), begun)
}

/// `VM@` until a VM is chosen, then its checkpoints.
fn checkpoints(begun: &OsStr) -> Vec<CompletionCandidate> {
    let text = begun.to_string_lossy();
    let Some((vm, _)) = text.split_once('@') else {
        return candidates(names().iter().map(|name| format!("{name}@")), begun);
    };
    candidates(checkpoints_of(vm).unwrap_or_default().iter().map(|name| format!("{vm}@{name}")), begun)
}

fn checkpoints_of(vm: &str) -> anyhow::Result<Vec<String>> {
    let folder = named::existing(&vm.parse()?)?;
    let definition = folder.load()?;
    let (shown, _) = Catalog::new(&folder, &definition).shown(&definition)?;
    Ok(shown.iter().map(|manifest| manifest.name.to_string()).collect())
}

/// Prints what makes a shell ask this program.
pub fn print(shell: Shell) -> anyhow::Result<()> {
    let name = match shell {
        Shell::Bash => "bash",
        Shell::Zsh => "zsh",
        Shell::Fish => "fish",
    };
    let shells = Shells::builtins();
    let shell = shells.completer(name).with_context(|| format!("nothing is known of {name}"))?;
    let mut script = Vec::new();
    // By name: the program that is found first is the one that is run.
    shell.write_registration(VARIABLE, "piton", "piton", "piton", &mut script)?;
    out::to_stdout(&String::from_utf8(script)?);
    Ok(())
}

/// Writes a manual page for each command into a folder that exists.
pub fn manual(dir: &Path) -> anyhow::Result<()> {
    if !dir.is_dir() {
        return Err(usage(format!("{} is not a folder", dir.display())));
    }
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write the manual pages to {}", dir.display()))
}
