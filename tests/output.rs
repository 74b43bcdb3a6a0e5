//! What a command prints, and what becomes of it where that cannot be printed.

mod common;

use common::{Finished, Home};

/// Runs a line of shell with `$PITON`, for what only a shell can do to a command's output.
fn shell(home: &Home, line: &str) -> Finished {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", line]);
    home.equip(&mut command);
    command.env("PITON", env!("CARGO_BIN_EXE_piton"));
    Finished::run(command)
}

/// The exit code of a command whose output goes into a pipe that nobody reads from.
fn into_a_closed_pipe(home: &Home, line: &str) -> (Option<i32>, String) {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = home.command(line.split_ascii_whitespace());
    let output = command.stdout(writer).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_guest_runs_whoever_reads_its_console() {
    let home = Home::new();
    let finished = shell(&home, "$PITON run demo --cmdline piton.run=poweroff | true");
    assert!(!finished.stderr.contains("panicked"), "{finished}");
    assert!(home.console_log("demo").contains("evt poweroff"));
}

#[test]
fn a_closed_pipe_ends_a_command_quietly() {
    let home = Home::new();
    for line in ["--help", "--version", "list", "list --json", "run demo --detach", "show demo"] {
        assert_eq!(into_a_closed_pipe(&home, line), (Some(0), String::new()), "{line}");
    }
    // It has not ended, nor has it been left.
    assert_eq!(into_a_closed_pipe(&home, "console demo"), (Some(0), String::new()));
    // What was to be done is done.
    for line in ["checkpoint create demo one --type standard", "pause demo", "checkpoint list demo"] {
        assert_eq!(into_a_closed_pipe(&home, line), (Some(0), String::new()), "{line}");
    }
    assert_eq!(home.piton("checkpoint list demo --json").json()["checkpoints"][0]["name"], "one");
    assert_eq!(home.piton("show demo --json").json()["state"], "paused");
    // What went wrong still counts.
    let (code, stderr) = into_a_closed_pipe(&home, "start demo --json");
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.starts_with("piton: "), "{stderr}");
    let (code, stderr) = into_a_closed_pipe(&home, "stop demo --force");
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn output_that_has_no_room_is_an_error() {
    let home = Home::new();
    home.piton("run demo --detach").ok();
    for line in ["--help", "list", "show demo", "checkpoint create demo one --type standard", "pause demo"] {
        let finished = shell(&home, &format!("exec $PITON {line} > /dev/full"));
        assert_eq!(finished.code, Some(1), "{finished}");
        assert!(finished.stderr.starts_with("piton: cannot write to standard output"), "{finished}");
    }
    assert_eq!(home.piton("checkpoint list demo --json").json()["checkpoints"][0]["name"], "one");
    assert_eq!(home.piton("show demo --json").json()["state"], "paused");
    // Where nobody can be told at all, what was to be done is done.
    let finished = shell(&home, "exec $PITON stop demo --force > /dev/full 2> /dev/full");
    assert_eq!(finished.code, Some(1), "{finished}");
    assert_eq!(home.piton("show demo --json").json()["state"], "stopped");
}
