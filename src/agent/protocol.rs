//! The guest agent's wire: one JSON object a line in both directions. Pure; nothing here waits.
//!
//! Source: QEMU's docs/interop/qemu-ga-ref. A byte 0xFF stands for a parser's reset: the client
//! sends one to end whatever half a request an earlier client left, and the agent sends one before
//! the answer to `guest-sync-delimited`, behind which nothing is older than that request.

use serde_json::{Value, json};

/// Longest line that is kept: a command's output is the longest answer that there is.
pub const LINE_MAX: usize = 1 << 20;
/// Longest text of an agent's that is repeated to users.
const TOLD_MAX: usize = 200;

const RESET: u8 = 0xff;
pub const SYNC: &str = "guest-sync-delimited";

/// A request with the number that its answer must bear.
pub fn request(call: &str, arguments: Option<Value>, id: u64) -> Vec<u8> {
    let mut object = json!({ "execute": call, "id": id });
    if let (Some(arguments), Some(fields)) = (arguments, object.as_object_mut()) {
        fields.insert("arguments".into(), arguments);
    }
    let mut bytes = Vec::new();
    if call == SYNC {
        bytes.push(RESET);
    }
    bytes.extend_from_slice(object.to_string().as_bytes());
    bytes.push(b'\n');
    bytes
}

/// What the bytes of an agent are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// What follows is newer than the last sync.
    Reset,
    Line(Vec<u8>),
    /// A line that was too long to be kept has come to its end.
    TooLong,
}

/// Cuts a stream into lines. Keeps at most [`LINE_MAX`] bytes, whatever comes.
#[derive(Debug, Default)]
pub struct Lines {
    line: Vec<u8>,
    /// The line was too long and is thrown away to its end.
    skipping: bool,
}

impl Lines {
    pub fn push(&mut self, byte: u8) -> Option<Item> {
        match byte {
            RESET => {
                self.line.clear();
                self.skipping = false;
                Some(Item::Reset)
            }
            b'\n' => {
                let line = std::mem::take(&mut self.line);
                if std::mem::take(&mut self.skipping) {
                    return Some(Item::TooLong);
                }
                (!line.is_empty()).then_some(Item::Line(line))
            }
            _ if self.skipping => None,
            _ if self.line.len() == LINE_MAX => {
                self.line = Vec::new();
                self.skipping = true;
                None
            }
            _ => {
                self.line.push(byte);
                None
            }
        }
    }
}

/// An agent's answer to one call.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    Return(Value),
    /// The agent could not, or would not.
    Error {
        /// Its own words.
        why: String,
        /// It does not know the call, or is told not to do it.
        unsupported: bool,
    },
    /// It said more than is kept.
    TooLong,
}

/// Which answers are ours: those behind the reset that answers our sync, that bear the number of
/// the call. An agent too old to repeat numbers answers in order, one line a call.
#[derive(Debug)]
pub struct Matcher {
    lines: Lines,
    /// The number of the call that is waited for.
    id: u64,
    phase: Phase,
    /// Learnt from the answer to the sync.
    repeats_ids: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Old bytes may still come; a reset must be first.
    Lost,
    /// Behind a reset: the next line answers the sync, or it was the reset of an older one.
    Syncing,
    /// In step.
    Calling,
    /// The answer came, and no call is open: whatever comes is nobody's.
    Idle,
}

impl Matcher {
    /// Waits for the answer to the sync with this number.
    pub fn sync(id: u64) -> Self {
        Self { lines: Lines::default(), id, phase: Phase::Lost, repeats_ids: false }
    }

    /// Waits for the answer to the call with this number. The sync must have been answered.
    pub fn call(&mut self, id: u64) {
        self.id = id;
        self.phase = if self.phase == Phase::Idle { Phase::Calling } else { Phase::Lost };
    }

    /// Takes bytes up to the answer that is waited for; those behind it are nobody's.
    pub fn take(&mut self, bytes: &[u8]) -> Option<Answer> {
        bytes.iter().find_map(|byte| self.take_byte(*byte))
    }

    fn take_byte(&mut self, byte: u8) -> Option<Answer> {
        match (self.lines.push(byte)?, self.phase) {
            (Item::Reset, Phase::Lost | Phase::Syncing) => {
                self.phase = Phase::Syncing;
                None
            }
            (Item::Line(line), Phase::Syncing) => {
                let (answer, id) = parse(&line)?;
                if answer != Answer::Return(self.id.into()) || id.is_some_and(|id| id != self.id) {
                    self.phase = Phase::Lost;
                    return None;
                }
                self.repeats_ids = id.is_some();
                self.phase = Phase::Idle;
                Some(answer)
            }
            (Item::Line(line), Phase::Calling) => {
                let (answer, id) = parse(&line)?;
                let ours = if self.repeats_ids { id == Some(self.id) } else { id.is_none() };
                ours.then(|| {
                    self.phase = Phase::Idle;
                    answer
                })
            }
            // Which call it answers is not known; the next one begins with a sync.
            (Item::TooLong, Phase::Calling) => Some(Answer::TooLong),
            _ => None,
        }
    }
}

/// An answer and the number that it bears; none if it is no answer.
fn parse(line: &[u8]) -> Option<(Answer, Option<u64>)> {
    let value: Value = serde_json::from_slice(line).ok()?;
    // A number that we never send is that of no call.
    let id = value.get("id").map(|id| id.as_u64().unwrap_or(u64::MAX));
    if let Some(error) = value.get("error") {
        let text = error.get("desc").and_then(Value::as_str).unwrap_or("it gave no reason");
        let unsupported = error.get("class").and_then(Value::as_str) == Some("CommandNotFound");
        return Some((Answer::Error { why: told(text), unsupported }, id));
    }
    Some((Answer::Return(value.get("return")?.clone()), id))
}

/// A guest's words in a sentence of ours: short, and without anything that moves a cursor.
fn told(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(TOLD_MAX).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_step(id: u64, repeats: bool) -> Matcher {
        let mut matcher = Matcher::sync(id);
        let tail = if repeats { format!(", \"id\": {id}") } else { String::new() };
        let answer = matcher.take(b"\0old\n");
        assert_eq!(answer, None);
        let mut bytes = vec![RESET];
        bytes.extend(format!("{{\"return\": {id}{tail}}}\n").bytes());
        assert_eq!(matcher.take(&bytes), Some(Answer::Return(id.into())));
        matcher
    }

    #[test]
    fn requests_are_lines_and_a_sync_is_delimited() {
        let sync = request(SYNC, Some(json!({ "id": 5 })), 5);
        assert_eq!(sync[0], RESET);
        let value: Value = serde_json::from_slice(&sync[1..]).unwrap();
        assert_eq!(value, json!({ "execute": SYNC, "arguments": { "id": 5 }, "id": 5 }));
        let info = request("guest-info", None, 6);
        assert_eq!(info.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(*info.last().unwrap(), b'\n');
    }

    #[test]
    fn answers_of_earlier_clients_are_not_ours() {
        let mut matcher = Matcher::sync(7);
        // Without a reset before it even the right number is an old one.
        assert_eq!(matcher.take(b"{\"return\": 7, \"id\": 7}\n"), None);
        // An older sync, answered late.
        assert_eq!(matcher.take(b"\xff{\"return\": 6, \"id\": 6}\n{\"return\": 7, \"id\": 7}\n"), None);
        assert_eq!(matcher.take(b"{\"retu"), None);
        assert_eq!(matcher.take(b"\xff{\"return\": 7, \"id\": 7}\n"), Some(Answer::Return(7.into())));
        matcher.call(8);
        assert_eq!(matcher.take(b"{\"return\": 1, \"id\": 7}\n{\"return\": 1}\n{\"event\": 1}\n[]\n"), None);
        assert_eq!(matcher.take(b"{\"return\": 2, \"id\": 8}\n"), Some(Answer::Return(2.into())));
        assert_eq!(matcher.take(b"{\"return\": 2, \"id\": 8}\n"), None, "a second answer is nobody's");
    }

    #[test]
    fn an_old_agent_answers_in_order() {
        let mut matcher = in_step(1, false);
        matcher.call(2);
        assert_eq!(matcher.take(b"{\"return\": {}, \"id\": 2}\n"), None, "it never repeats numbers");
        let refused = matcher.take(b"{\"error\": {\"class\": \"X\", \"desc\": \"no\\u001b[2J way\"}}\n");
        assert_eq!(refused, Some(Answer::Error { why: "no[2J way".into(), unsupported: false }));
    }

    #[test]
    fn a_call_after_one_without_an_answer_needs_a_sync() {
        let mut matcher = in_step(1, true);
        matcher.call(2);
        matcher.call(3);
        assert_eq!(matcher.take(b"{\"return\": {}, \"id\": 2}\n{\"return\": {}, \"id\": 3}\n"), None);
    }

    #[test]
    fn a_line_without_end_takes_no_memory() {
        let mut lines = Lines::default();
        for _ in 0..2 * LINE_MAX + 9 {
            assert_eq!(lines.push(b'x'), None);
            assert!(lines.line.capacity() <= 2 * LINE_MAX);
        }
        assert_eq!(lines.push(b'\n'), Some(Item::TooLong), "it is thrown away");
        lines.push(b'y');
        assert_eq!(lines.push(b'\n'), Some(Item::Line(b"y".to_vec())));
    }

    /// Bytes as an agent, or one who plays an agent, could send them.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            (0..6u64, 0..6u64).prop_map(|(value, id)| json!({ "return": value, "id": id }).to_string()),
            (0..6u64).prop_map(|id| json!({ "error": { "desc": "no" }, "id": id }).to_string()),
            (0..6u64).prop_map(|value| json!({ "return": value }).to_string()),
            "[\\[{\"}:,0-9a-z]{0,12}",
        ];
        let piece = prop_oneof![
            6 => piece.prop_map(String::into_bytes),
            1 => prop::collection::vec(any::<u8>(), 0..20),
            2 => Just(vec![RESET]),
            6 => Just(vec![b'\n']),
        ];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        /// Numbers 100 and up are never in the stream: no answer in it is ours.
        #[test]
        fn no_answer_of_another_call_is_taken(bytes in stream(), cut in 0..400usize, repeats: bool) {
            let mut sync = Matcher::sync(100);
            prop_assert_eq!(sync.take(&bytes), None);
            prop_assert!(sync.lines.line.len() <= LINE_MAX);
            let mut matcher = in_step(100, repeats);
            matcher.call(101);
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let answer = matcher.take(a).or_else(|| matcher.take(b));
            if repeats {
                prop_assert_eq!(answer, None);
            }
        }

        /// However the bytes before it lie, the sync's answer is found.
        #[test]
        fn the_answer_to_our_sync_is_found(bytes in stream(), chunk in 1..50usize) {
            let mut matcher = Matcher::sync(100);
            let all = [&bytes[..], b"\xff{\"return\": 100, \"id\": 100}\n"].concat();
            let found = all.chunks(chunk).find_map(|chunk| matcher.take(chunk));
            prop_assert_eq!(found, Some(Answer::Return(100.into())));
        }
    }
}
