//! The command line: one short function a command.

mod args;
mod background;
mod checkpoint;
mod clone;
mod completions;
mod console;
mod copy;
mod depot;
mod df;
mod diff;
mod disk;
mod disks;
mod each;
mod error;
mod events;
mod exec;
mod going_back;
mod graph;
mod guard;
mod identity;
mod image;
mod limits;
mod log_file;
mod logging;
mod logs;
mod manage;
mod manager;
mod metrics;
mod named;
mod net;
mod notify;
mod offline;
mod out;
mod output;
mod paths;
mod proof;
mod prune;
mod removed;
mod run;
mod search;
mod seed;
mod set;
mod signals;
mod ssh;
mod stop;
mod temporary;
mod terminal;
mod title;
mod transfer;
mod trash;
mod units;
mod verdict;
mod verify;
mod wait;
mod words;
mod work;

use std::io::{self, ErrorKind};
use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use error::exit_code_of;
use verdict::tell;

use crate::control::ErrorBody;

/// Parses the command line, runs the command and says what went wrong.
pub fn main() -> ExitCode {
    if completions::answer() {
        return ExitCode::SUCCESS;
    }
    // clap exits with 2 on a wrong command line, and with 0 for --help and --version.
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return explain(&e),
    };
    let json = cli.json;
    if let Err(text) = logging::start() {
        tell(&error::usage(text), json);
        return leave(error::USAGE, out::finish());
    }
    if let Err(text) = crate::folder::default_trash() {
        tell(&error::usage(text), json);
        return leave(error::USAGE, out::finish());
    }
    limits::raise_open_files();
    if !cli.background {
        removed::tidy_before(&cli.command);
    }
    let result = match cli.command {
        Command::Run(args) => run::run(*args, cli.background, json),
        Command::Start(args) => run::start(args, cli.background, json),
        Command::Stop(args) => stop::stop(&args, json),
        Command::Kill { names } => stop::kill(&names, json),
        Command::Pause { names } => manage::pause(&names, json),
        Command::Resume { names } => manage::resume(&names, json),
        Command::Console(args) if args.no_json => Err(error::usage(
            "`piton console` does not support --json: it prints the guest's output as it is",
        )),
        Command::Console(args) => console::run(&args),
        Command::Ssh(args) if args.no_json => {
            Err(error::usage("`piton ssh` does not support --json: its output is that of ssh"))
        }
        Command::Ssh(args) => ssh::run(&args),
        Command::Logs(args) => logs::run(&args, json),
        Command::Wait(args) => wait::run(&args, json),
        Command::Copy(args) => copy::run(&args, json),
        Command::Exec(args) => exec::run(args, json),
        Command::Show { name } => manage::show(&name, json),
        Command::Rm(args) => removed::remove(&args, json),
        Command::Rename { name, new_name } => manage::rename(&name, &new_name, json),
        Command::List(args) => manage::list(&args, json),
        Command::Set(args) => set::run(args, json),
        Command::Checkpoint(command) => checkpoint::run(command, json),
        Command::Df => df::run(json),
        Command::Undo(args) => trash::undo(&args, json),
        Command::Trash(command) => trash::run(command, json),
        Command::Disk(command) => disk::run(command, json),
        Command::Image(command) => image::run(command, json),
        Command::Clone(args) => clone::run(&args, json),
        Command::Export(args) => transfer::export_now(&args, json),
        Command::Import(args) => transfer::import(&args, json),
        Command::Push(args) => depot::push(&args, json),
        Command::Pull(args) => depot::pull(&args, json),
        Command::Depot(command) => depot::run(&command, json),
        Command::Events(args) => events::run(&args, json),
        Command::Metrics(args) if args.no_json => {
            Err(error::usage("`piton metrics` does not support --json: it prints text for Prometheus"))
        }
        Command::Metrics(args) => metrics::run(&args),
        Command::Manager(args) => manager::run(args, json),
        Command::Api(args) => manager::api(args, json),
        Command::StartCommands => crate::manager::start_commands().map_err(Into::into),
        Command::Completions { shell } => completions::print(shell),
        Command::Man { dir } => completions::manual(&dir),
        Command::KeepNetwork => crate::net::keep().map_err(Into::into),
        Command::Doctor { name, repair, accept_unchecked } => {
            checkpoint::doctor(&name, repair, accept_unchecked, json)
        }
    };
    let code = match result {
        Ok(()) => 0,
        Err(error) => {
            tell(&error, json);
            exit_code_of(&error)
        }
    };
    leave(code, out::finish())
}

/// What clap has to say: its help and its version are what was asked for.
fn explain(message: &clap::Error) -> ExitCode {
    if message.use_stderr()
        && std::env::args_os().skip(1).take_while(|word| word != "--").any(|word| word == "--json")
    {
        let text = message.render().to_string();
        let sentence = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        out::json_line(&serde_json::json!(ErrorBody { error: sentence }));
    }
    let written = match message.print() {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written,
    };
    if let Some(hint) = words::hint(message) {
        out::note(&format!("piton: {hint}"));
    }
    leave(u8::try_from(message.exit_code()).unwrap_or(error::FAILED), written)
}

/// The exit code of a command; one that did what it was to do has failed if it could not say so.
fn leave(code: u8, written: io::Result<()>) -> ExitCode {
    match written {
        Err(e) if code == 0 => {
            output::complain(&format!(
                "cannot write to standard output ({e}), but the command was carried out"
            ));
            ExitCode::from(error::FAILED)
        }
        _ => ExitCode::from(code),
    }
}
