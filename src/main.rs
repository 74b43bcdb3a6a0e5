//! The `piton` command: parse, run, print what went wrong, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    piton::cli::main()
}
