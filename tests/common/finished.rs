//! A command that ran to its end.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Instant;

use super::patience;

#[derive(Debug)]
pub struct Finished {
    pub command: String,
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Runs a command to its end; one that takes too long is killed and shown.
    pub fn run(mut command: Command) -> Self {
        let shown = format!("{command:?}");
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{shown}: {e}"));
        let read = |output: Option<Box<dyn Read + Send>>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                if let Some(mut output) = output {
                    let _ = output.read_to_end(&mut bytes);
                }
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
        let stderr = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
        let deadline = Instant::now() + patience();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= deadline {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        let finished = Self {
            command: shown,
            code: status.and_then(|status| status.code()),
            stdout: stdout.join().unwrap(),
            stderr: stderr.join().unwrap(),
        };
        assert!(status.is_some(), "took too long: {finished}");
        finished
    }

    /// Asserts success; returns what was printed.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self}");
        self.stdout
    }

    #[track_caller]
    pub fn json(self) -> serde_json::Value {
        let shown = self.to_string();
        serde_json::from_str(&self.ok()).unwrap_or_else(|e| panic!("no JSON ({e}): {shown}"))
    }

    /// Asserts a failure that is told in one sentence with each of `words` in it.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) {
        self.fails_saying(code, words);
    }

    /// As `fails`; returns the sentence.
    #[track_caller]
    pub fn fails_saying(self, code: i32, words: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self}");
        assert_eq!(self.stdout, "", "{self}");
        let mut lines = self.stderr.lines().filter(|line| !line.is_empty());
        let sentence = lines.next().unwrap_or_default();
        if code == 2 {
            // clap's, which adds how to get help.
            assert!(sentence.starts_with("error: "), "{self}");
        } else {
            assert!(sentence.starts_with("piton: "), "{self}");
            assert_eq!(lines.next(), None, "more than one sentence: {self}");
        }
        for word in words {
            assert!(sentence.contains(word), "`{word}` is not said: {self}");
        }
        // clap repeats what was typed, however long.
        assert!(code == 2 || sentence.len() < 400, "{self}");
        sentence.to_owned()
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, stdout, stderr } = self;
        write!(f, "{command}\nexit code {code:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}
