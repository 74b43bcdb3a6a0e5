//! A console under the test's hands: reads all that the guest prints, types into it.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use super::patience;

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    ended: bool,
}

/// What was read so far of a stream.
#[derive(Clone, Default)]
pub struct Watched(Arc<(Mutex<Output>, Condvar)>);

impl Watched {
    pub fn start(mut stream: impl Read + Send + 'static) -> Self {
        let watched = Self::default();
        let reader = watched.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = stream.read(&mut buffer).unwrap_or(0);
                let (output, changed) = &*reader.0;
                let mut output = output.lock().unwrap();
                output.bytes.extend(&buffer[..count]);
                output.ended = count == 0;
                changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        watched
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().unwrap().bytes).into_owned()
    }

    /// Waits until the stream has ended, and returns all of it; None if it does not end.
    pub fn all(&self) -> Option<String> {
        self.wait_for(|output| output.ended.then_some(())).map(|()| self.text()).ok()
    }

    /// Waits until `find` finds something. The error says what there is instead.
    fn wait_for<T>(&self, mut find: impl FnMut(&Output) -> Option<T>) -> Result<T, &'static str> {
        let deadline = Instant::now() + patience();
        let (output, changed) = &*self.0;
        let mut output = output.lock().unwrap();
        loop {
            if let Some(found) = find(&output) {
                return Ok(found);
            }
            if output.ended {
                return Err("it ended");
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err("it did not come in time");
            }
            output = changed.wait_timeout(output, left).unwrap().0;
        }
    }
}

pub struct Terminal {
    output: Watched,
    input: Option<Box<dyn Write + Send>>,
    /// All before this was looked at.
    at: usize,
    name: String,
}

impl Terminal {
    pub fn new(name: &str, output: impl Read + Send + 'static, input: Option<Box<dyn Write + Send>>) -> Self {
        Self { output: Watched::start(output), input, at: 0, name: name.to_owned() }
    }

    /// All that was printed so far.
    pub fn text(&self) -> String {
        self.output.text()
    }

    /// Waits for `text` in what was not looked at yet.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let at = self.at;
        let found = self.output.wait_for(|output| {
            let new = &output.bytes[at..];
            new.windows(text.len()).position(|window| window == text.as_bytes())
        });
        match found {
            Ok(found) => self.at += found + text.len(),
            Err(why) => panic!("`{text}` was waited for on the console of {}: {why}", self.name),
        }
    }

    /// Waits for a whole line that begins with one of `starts`.
    #[track_caller]
    pub fn line(&mut self, starts: &[&str]) -> String {
        let at = &mut self.at;
        let found = self.output.wait_for(|output| {
            while let Some(len) = output.bytes[*at..].iter().position(|&byte| byte == b'\n') {
                let line = String::from_utf8_lossy(&output.bytes[*at..*at + len]).into_owned();
                *at += len + 1;
                let line = line.trim_matches('\r');
                if starts.iter().any(|start| line.starts_with(start)) {
                    return Some(line.to_owned());
                }
            }
            None
        });
        found.unwrap_or_else(|why| {
            panic!("a line with {starts:?} was waited for on the console of {}: {why}", self.name)
        })
    }

    /// Waits for the end of the output.
    #[track_caller]
    pub fn end(&mut self) -> String {
        self.output.all().unwrap_or_else(|| panic!("the console of {} does not end", self.name))
    }

    pub fn send(&mut self, line: &str) {
        let input = self.input.as_mut().expect("the console's input is open");
        // The VM may end while it is typed to.
        let _ = input.write_all(format!("{line}\n").as_bytes()).and_then(|()| input.flush());
    }

    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Waits until the bundled guest takes commands.
    #[track_caller]
    pub fn ready(&mut self) -> String {
        let ready = self.line(&["evt piton guest ready"]);
        self.line(&["type help"]);
        ready
    }

    /// Gives the bundled guest a command; returns the line that answers it.
    #[track_caller]
    pub fn ask(&mut self, command: &str) -> String {
        self.send(command);
        self.line(&["ok", "err"])
    }

    #[track_caller]
    pub fn ok(&mut self, command: &str) -> String {
        let answer = self.ask(command);
        assert!(answer.starts_with("ok"), "{command}: {answer}");
        answer
    }

    #[track_caller]
    pub fn err(&mut self, command: &str) -> String {
        let answer = self.ask(command);
        assert!(answer.starts_with("err"), "{command}: {answer}");
        answer
    }

    /// Asserts that memory and disks belong together; returns the step they are at.
    #[track_caller]
    pub fn journal(&mut self) -> u64 {
        let status = self.ok("journal check");
        assert_eq!(field(&status, "errors"), 0, "{status}");
        let text = self.text();
        assert!(!text.contains("MISMATCH") && !text.contains("journal error"), "the journal complained");
        field(&status, "seq")
    }

    /// Waits until the journal has gone on from `seq`.
    #[track_caller]
    pub fn journal_goes_on(&mut self, seq: u64) -> u64 {
        super::until("the journal to go on", || Some(self.journal()).filter(|now| *now > seq))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- console of {}\n{}\n---", self.name, self.text());
        }
    }
}

/// The number behind `name=` in an answer.
#[track_caller]
pub fn field(answer: &str, name: &str) -> u64 {
    let value = answer.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let value = value.unwrap_or_else(|| panic!("no {name}= in `{answer}`"));
    value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number in `{answer}`"))
}

pub fn has_word(answer: &str, word: &str) -> bool {
    answer.split_ascii_whitespace().any(|found| found == word)
}
