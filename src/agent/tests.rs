//! Agents good and bad, played by a function from each call to what comes back.

use std::cell::RefCell;
use std::collections::VecDeque;

use super::*;

const SHORT: Duration = Duration::from_millis(120);

type Play = Box<dyn FnMut(&Heard) -> Back>;

/// A request as the agent reads it.
#[derive(Debug, Clone)]
struct Heard {
    call: String,
    /// What goes behind `{"return": ..` of the answer to it.
    id: u64,
}

#[derive(Debug)]
enum Back {
    /// In the order in which the pieces are read; an empty one is a silence.
    Pieces(Vec<Vec<u8>>),
    Close,
}

struct Fake {
    play: RefCell<Play>,
    state: RefCell<State>,
}

#[derive(Default)]
struct State {
    open: bool,
    listening: bool,
    thaw_due: bool,
    ready: VecDeque<Vec<u8>>,
    calls: Vec<String>,
}

impl Fake {
    fn new(play: impl FnMut(&Heard) -> Back + 'static) -> Self {
        Self {
            play: RefCell::new(Box::new(play)),
            state: RefCell::new(State { open: true, ..State::default() }),
        }
    }

    fn calls(&self) -> Vec<String> {
        self.state.borrow().calls.iter().filter(|call| *call != SYNC).cloned().collect()
    }

    fn thaw_due(&self) -> bool {
        self.state.borrow().thaw_due
    }
}

impl Channel for Fake {
    fn claim(&self, _: bool, _: Duration) -> bool {
        true
    }
    fn release(&self) {}
    fn is_still(&self) -> bool {
        false
    }
    fn is_open(&self) -> bool {
        self.state.borrow().open
    }
    fn listen(&self) {
        self.state.borrow_mut().listening = true;
    }
    fn hang_up(&self) {
        let mut state = self.state.borrow_mut();
        state.listening = false;
        state.ready.clear();
    }
    fn send(&self, bytes: &[u8]) {
        let text: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != 0xff).collect();
        let value: Value = serde_json::from_slice(&text).unwrap();
        let heard =
            Heard { call: value["execute"].as_str().unwrap().to_owned(), id: value["id"].as_u64().unwrap() };
        self.state.borrow_mut().calls.push(heard.call.clone());
        match (self.play.borrow_mut())(&heard) {
            Back::Pieces(pieces) => self.state.borrow_mut().ready.extend(pieces),
            Back::Close => self.state.borrow_mut().open = false,
        }
    }
    fn receive(&self, patience: Duration) -> Received {
        let mut state = self.state.borrow_mut();
        assert!(state.listening);
        match state.ready.pop_front() {
            Some(bytes) if !bytes.is_empty() => Received::Bytes(bytes),
            None if !state.open => Received::Closed,
            _ => {
                std::thread::sleep(patience);
                Received::Nothing
            }
        }
    }
    fn set_thaw_due(&self, due: bool) {
        self.state.borrow_mut().thaw_due = due;
    }
}

fn says(heard: &Heard, value: &str) -> Vec<u8> {
    format!("{{\"return\": {value}, \"id\": {}}}\n", heard.id).into_bytes()
}

/// What a good agent says.
fn good(heard: &Heard) -> Vec<u8> {
    let commands: Vec<Value> = [FREEZE, STATUS, THAW, "guest-ping"]
        .iter()
        .map(|name| json!({ "name": name, "enabled": true, "success-response": true }))
        .collect();
    match heard.call.as_str() {
        SYNC => [b"\xff".to_vec(), says(heard, &heard.id.to_string())].concat(),
        INFO => says(heard, &json!({ "version": "7.2", "supported_commands": commands }).to_string()),
        FREEZE | THAW => says(heard, "2"),
        STATUS => says(heard, "\"frozen\""),
        other => panic!("nobody needs {other}"),
    }
}

fn answers(heard: &Heard) -> Back {
    Back::Pieces(vec![good(heard)])
}

fn silent() -> Back {
    Back::Pieces(Vec::new())
}

fn connect<'a>(fake: &'a Fake, progress: &'a Progress) -> Result<Agent<'a>, AgentError> {
    let mut agent = Agent::begin(fake, progress, SHORT)?;
    agent.check_abilities()?;
    Ok(agent)
}

/// Connects and freezes; returns what came of it and whether the switch was made.
fn freeze(fake: &Fake) -> (Frozen<(), ()>, bool) {
    let progress = Progress::default();
    let mut agent = connect(fake, &progress).unwrap();
    let mut switched = false;
    let frozen = agent.while_frozen(SHORT, || {
        switched = true;
        Ok(())
    });
    drop(agent);
    assert!(!fake.state.borrow().listening, "it was hung up");
    (frozen, switched)
}

fn error<T>(result: Result<T, AgentError>) -> AgentError {
    result.err().expect("an error")
}

#[test]
fn a_good_agent_freezes_and_thaws() {
    let fake = Fake::new(answers);
    let (frozen, switched) = freeze(&fake);
    assert!(switched && matches!(frozen.outcome, Outcome::Switched(Ok(()))));
    assert_eq!((frozen.stayed, frozen.thawed), (Ok(()), Ok(())));
    assert_eq!(fake.calls(), [INFO, FREEZE, STATUS, THAW]);
    assert!(!fake.thaw_due());
}

#[test]
fn one_that_is_absent_is_not_waited_for() {
    let fake = Fake::new(|heard| panic!("{heard:?}"));
    fake.state.borrow_mut().open = false;
    assert_eq!(error(Agent::connect(&fake, &Progress::default())), AgentError::Absent);
}

#[test]
fn one_that_never_answers_is_given_up() {
    let fake = Fake::new(|_| silent());
    let progress = Progress::default();
    assert_eq!(error(connect(&fake, &progress)), AgentError::Silent { call: INFO, within: SHORT });
    assert!(!fake.thaw_due(), "nothing was frozen");
}

#[test]
fn one_that_talks_without_end_is_given_up() {
    for garbage in [&b"\xff\xff{}[\n"[..], b"{\"return\": 1}\n", &[b'x'; 5000], b"\n\n\0\xff"] {
        let fake = Fake::new(move |_| Back::Pieces(vec![garbage.to_vec(); 100_000]));
        // Never the end of the pieces, but of the patience.
        let progress = Progress::default();
        let begun = Instant::now();
        assert!(matches!(error(connect(&fake, &progress)), AgentError::Silent { .. }));
        assert!(begun.elapsed() >= SHORT);
    }
}

#[test]
fn garbage_around_the_answers_does_not_matter() {
    let fake = Fake::new(|heard| {
        let mut pieces: Vec<Vec<u8>> = vec![b"{\"error\": {}}\nhalf a li".to_vec(), b"ne\n{\"ret".to_vec()];
        pieces.push(b"\n{\"return\": 4711, \"id\": 1}\n\n".to_vec());
        pieces.extend(good(heard).chunks(7).map(<[u8]>::to_vec));
        pieces.push(b"{\"return\": {}, \"id\": 99}\n".to_vec());
        Back::Pieces(pieces)
    });
    let (frozen, switched) = freeze(&fake);
    assert!(switched);
    assert_eq!((frozen.stayed, frozen.thawed), (Ok(()), Ok(())));
}

#[test]
fn one_that_dies_frozen_is_remembered() {
    let mut dead = false;
    let fake = Fake::new(move |heard| {
        dead |= heard.call == STATUS;
        if dead { Back::Close } else { answers(heard) }
    });
    let (frozen, switched) = freeze(&fake);
    assert!(switched);
    assert_eq!(frozen.stayed, Err(AgentError::Gone(STATUS)));
    assert_eq!(frozen.thawed, Err(AgentError::Gone(THAW)));
    assert!(fake.thaw_due());
    // It comes back.
    fake.state.borrow_mut().open = true;
    *fake.play.borrow_mut() = Box::new(answers);
    thaw_again(&fake).unwrap();
    assert!(!fake.thaw_due());
    assert_eq!(fake.calls().last().unwrap(), THAW);
}

#[test]
fn one_that_freezes_too_late_is_thawed_and_nothing_switched() {
    let mut freeze_id = None;
    let fake = Fake::new(move |heard| {
        if heard.call == FREEZE {
            freeze_id = Some(heard.clone());
            return silent();
        }
        // The late answer comes first, before that to the sync of the thaw.
        let late = freeze_id.take().map(|freeze| good(&freeze)).unwrap_or_default();
        Back::Pieces(vec![[late, good(heard)].concat()])
    });
    let (frozen, switched) = freeze(&fake);
    assert!(!switched);
    let Outcome::NotFrozen(why) = frozen.outcome else { panic!("{frozen:?}") };
    assert_eq!(why, AgentError::Silent { call: FREEZE, within: SHORT });
    assert_eq!(frozen.thawed, Ok(()), "the late answer was not taken for that of the thaw");
    assert_eq!(fake.calls(), [INFO, FREEZE, THAW]);
    assert!(!fake.thaw_due());
}

#[test]
fn one_that_will_not_thaw_is_asked_again_and_remembered() {
    let fake = Fake::new(|heard| if heard.call == THAW { silent() } else { answers(heard) });
    let (frozen, switched) = freeze(&fake);
    assert!(switched && frozen.stayed.is_ok());
    assert_eq!(frozen.thawed, Err(AgentError::Silent { call: THAW, within: SHORT }));
    assert_eq!(fake.calls(), [INFO, FREEZE, STATUS, THAW, THAW]);
    assert!(fake.thaw_due());
}

#[test]
fn freezes_that_are_none_are_thawed() {
    let cases: [(&str, &str, AgentError); 3] = [
        (FREEZE, "0", AgentError::NothingFrozen),
        (FREEZE, "\"yes\"", AgentError::Senseless(FREEZE)),
        (FREEZE, "-1", AgentError::Senseless(FREEZE)),
    ];
    for (call, value, expected) in cases {
        let fake = Fake::new(move |heard| {
            Back::Pieces(vec![if heard.call == call { says(heard, value) } else { good(heard) }])
        });
        let (frozen, switched) = freeze(&fake);
        assert!(!switched);
        assert!(matches!(frozen.outcome, Outcome::NotFrozen(why) if why == expected));
        assert_eq!(fake.calls(), [INFO, FREEZE, THAW]);
    }
    let refuses = |heard: &Heard| {
        let error = format!("{{\"error\": {{\"desc\": \"hook failed\"}}, \"id\": {}}}\n", heard.id);
        Back::Pieces(vec![if heard.call == FREEZE { error.into_bytes() } else { good(heard) }])
    };
    let (frozen, switched) = freeze(&Fake::new(refuses));
    assert!(!switched);
    let Outcome::NotFrozen(why) = frozen.outcome else { panic!("{frozen:?}") };
    assert!(why.to_string().contains("hook failed"));
}

#[test]
fn a_thaw_behind_our_back_is_noticed() {
    let fake = Fake::new(|heard| {
        Back::Pieces(vec![if heard.call == STATUS { says(heard, "\"thawed\"") } else { good(heard) }])
    });
    let (frozen, switched) = freeze(&fake);
    assert!(switched);
    assert_eq!(frozen.stayed, Err(AgentError::ThawedEarly));
    assert_eq!(frozen.thawed, Ok(()));
}

#[test]
fn a_switch_that_fails_is_followed_by_a_thaw() {
    let fake = Fake::new(answers);
    let progress = Progress::default();
    let mut agent = connect(&fake, &progress).unwrap();
    let frozen: Frozen<(), &str> = agent.while_frozen(SHORT, || Err("disk full"));
    assert!(matches!(frozen.outcome, Outcome::Switched(Err("disk full"))));
    assert_eq!(fake.calls(), [INFO, FREEZE, THAW]);
    assert!(!fake.thaw_due());
}

#[test]
fn a_cancel_is_heeded_but_for_the_thaw() {
    let progress = Progress::default();
    let cancel = progress.clone();
    let fake = Fake::new(move |heard| {
        if heard.call == FREEZE {
            cancel.cancel();
        }
        answers(heard)
    });
    let mut agent = connect(&fake, &progress).unwrap();
    let frozen: Frozen<(), ()> = agent.while_frozen(SHORT, || panic!("it was cancelled"));
    assert!(matches!(frozen.outcome, Outcome::NotFrozen(AgentError::CalledOff)));
    assert_eq!(frozen.thawed, Ok(()));
    assert_eq!(fake.calls(), [INFO, FREEZE, THAW]);
}

#[test]
fn one_that_cannot_freeze_is_not_asked_to() {
    for (name, enabled) in [("guest-other", true), (FREEZE, false)] {
        let fake = Fake::new(move |heard| {
            let commands: Vec<Value> = [name, STATUS, THAW]
                .iter()
                .map(|one| json!({ "name": one, "enabled": *one != name || enabled }))
                .collect();
            let info = json!({ "supported_commands": commands }).to_string();
            Back::Pieces(vec![if heard.call == INFO { says(heard, &info) } else { good(heard) }])
        });
        let progress = Progress::default();
        assert_eq!(error(connect(&fake, &progress)), AgentError::Lacks(FREEZE));
    }
    for info in ["{}", "{\"supported_commands\": 3}", "[]", "null"] {
        let fake = Fake::new(move |heard| {
            Back::Pieces(vec![if heard.call == INFO { says(heard, info) } else { good(heard) }])
        });
        let progress = Progress::default();
        assert_eq!(error(connect(&fake, &progress)), AgentError::Senseless(INFO));
    }
}
