//! The command line: one short function a command.

mod args;
mod checkpoint;
mod clone;
mod error;
mod manage;
mod offline;
mod output;
mod paths;
mod run;
mod set;
mod terminal;
mod transfer;
mod units;
mod verify;
mod work;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use error::{Told, exit_code, sentence};

use crate::control::ErrorBody;

/// Parses the command line, runs the command and says what went wrong.
pub fn main() -> ExitCode {
    output::start_logging();
    // clap exits with 2 on a wrong command line, and with 0 for --help and --version.
    let cli = Cli::parse();
    let json = cli.json;
    let result = match cli.command {
        Command::Run(args) => run::run(args, json),
        Command::Start(args) => run::start(args, json),
        Command::Stop(args) => manage::stop(args, json),
        Command::Pause { name } => manage::pause(&name, json),
        Command::Resume { name } => manage::resume(&name, json),
        Command::Console { name } => manage::console(&name),
        Command::Show { name } => manage::show(&name, json),
        Command::Rm(args) => manage::remove(args, json),
        Command::List => manage::list(json),
        Command::Set(args) => set::run(args, json),
        Command::Checkpoint(command) => checkpoint::run(command, json),
        Command::Clone(args) => clone::run(&args, json),
        Command::Export(args) => transfer::export_now(&args, json),
        Command::Import(args) => transfer::import(&args, json),
        Command::Doctor { name, repair } => checkpoint::doctor(&name, repair, json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            if !error.is::<Told>() {
                let text = sentence(&error);
                if json {
                    println!("{}", serde_json::json!(ErrorBody { error: text.clone() }));
                }
                output::complain(&text);
            }
            exit_code(&error)
        }
    }
}
