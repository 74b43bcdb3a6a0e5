//! Calls to the guest's agent over the control socket: `POST /vm/agent`. They do not wait for the
//! owner of the machine, nor it for them.

use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::id::Id;
use crate::qga::{Call, CallError, Why};

/// Body of `POST /vm/agent`: the call as QEMU's protocol has it, and whom it is meant for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentBody {
    /// From an earlier answer: a call is refused if the guest is another one since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<Id>,
    pub execute: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Map<String, Value>>,
}

impl AgentBody {
    /// The call, if it is one of those that may be made; else a sentence.
    pub fn call(self) -> Result<Call, String> {
        let mut call = Map::from_iter([("execute".to_owned(), Value::String(self.execute))]);
        // Of a call without arguments, none and no fields are the same.
        if let Some(arguments) = self.arguments.filter(|arguments| !arguments.is_empty()) {
            call.insert("arguments".into(), Value::Object(arguments));
        }
        let call: Call = serde_json::from_value(Value::Object(call)).map_err(|e| e.to_string())?;
        call.allowed().map(|()| call)
    }
}

/// What a call that was done is answered with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AgentReply {
    /// The guest that answered: another one after going back, and after a restart.
    pub guest: Id,
    #[serde(rename = "return")]
    pub value: Value,
}

pub type AgentAnswer = Result<AgentReply, CallError>;

/// A call on its way, and where its answer goes.
pub struct AgentAsked {
    pub guest: Option<Id>,
    pub call: Call,
    pub reply: oneshot::Sender<AgentAnswer>,
}

/// The HTTP status that tells why a call was not done.
pub fn status(why: Why) -> StatusCode {
    match why {
        Why::Absent => StatusCode::SERVICE_UNAVAILABLE,
        Why::Broken => StatusCode::BAD_GATEWAY,
        Why::Silent => StatusCode::GATEWAY_TIMEOUT,
        Why::Refused => StatusCode::UNPROCESSABLE_ENTITY,
        Why::Forbidden => StatusCode::FORBIDDEN,
        Why::Locked => StatusCode::LOCKED,
        Why::WentBack => StatusCode::GONE,
    }
}

/// What such a status tells; none if it is another one.
pub fn why(told: StatusCode) -> Option<Why> {
    let all =
        [Why::Absent, Why::Broken, Why::Silent, Why::Refused, Why::Forbidden, Why::Locked, Why::WentBack];
    all.into_iter().find(|why| status(*why) == told)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(body: Value) -> Result<Call, String> {
        serde_json::from_value::<AgentBody>(body).map_err(|e| e.to_string())?.call()
    }

    #[test]
    fn a_body_is_a_call_of_those_that_may_be_made() {
        assert_eq!(call(json!({"execute": "guest-info"})), Ok(Call::Info));
        assert_eq!(call(json!({"execute": "guest-info", "arguments": {}})), Ok(Call::Info));
        let guest = "00112233445566778899aabbccddeeff";
        let exec = json!({"guest": guest, "execute": "guest-exec", "arguments": {"path": "/bin/ls"}});
        assert!(matches!(call(exec), Ok(Call::Exec(exec)) if exec.path == "/bin/ls"));
        for wrong in [
            json!({"execute": "guest-shutdown"}),
            json!({"execute": "guest-fsfreeze-freeze"}),
            json!({"execute": "guest-exec", "arguments": {}}),
            json!({"execute": "guest-info", "more": 1}),
            json!({"guest": 1, "execute": "guest-info"}),
            json!({"execute": "guest-file-read", "arguments": {"handle": 1, "count": 1 << 30}}),
        ] {
            assert!(call(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn each_reason_has_its_status() {
        assert_eq!(why(StatusCode::GONE), Some(Why::WentBack));
        assert_eq!(why(StatusCode::CONFLICT), None);
        for one in [Why::Absent, Why::Broken, Why::Silent, Why::Refused, Why::Forbidden, Why::Locked] {
            assert_eq!(why(status(one)), Some(one));
        }
    }
}
