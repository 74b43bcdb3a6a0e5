//! What can be asked over HTTP/1.1.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /vm` | | the VM ([`VmInfo`](crate::control::VmInfo)) |
//! | `PATCH /vm` | [`SetBody`](crate::control::SetBody) | the VM |
//! | `POST /vm/pause`, `POST /vm/resume` | | the VM |
//! | `POST /vm/stop` | `{"force": bool, "timeout": seconds}` or none | the VM; it may still be shutting down |
//! | `POST /vm/kill` | | the VM, stopped |
//! | `GET /vm/checkpoints/{checkpoint}` | | the checkpoint |
//! | `GET /vm/checkpoints` | | the tree ([`TreeInfo`](crate::control::TreeInfo)) |
//! | `POST /vm/checkpoints` | [`CreateBody`](crate::control::CreateBody) or none | the new checkpoint ([`CheckpointInfo`](crate::control::CheckpointInfo)) |
//! | `PATCH /vm/checkpoints/{checkpoint}` | [`ChangeBody`](crate::control::ChangeBody) | the checkpoint |
//! | `POST /vm/checkpoints/{checkpoint}/apply` | [`ApplyBody`](crate::control::ApplyBody) | the VM |
//! | `DELETE /vm/checkpoints/{checkpoint}` | [`DeleteBody`](crate::control::DeleteBody) or none | what went ([`DeletedInfo`](crate::control::DeletedInfo)) |
//! | `POST /vm/checkpoints/{checkpoint}/clone` | [`CloneBody`](crate::control::CloneBody) | the VM |
//! | `POST /vm/revert` | [`RevertBody`](crate::control::RevertBody) or none | the VM |
//! | `GET /vm/trash` | | what can be taken back ([`TrashInfo`](crate::control::trash::TrashInfo)) |
//! | `POST /vm/prune` | [`PruneBody`](crate::control::upkeep::PruneBody) or none | what went by the rules ([`PrunedInfo`](crate::control::upkeep::PrunedInfo)) |
//! | `POST /vm/undo` | [`UndoBody`](crate::control::trash::UndoBody) or none | what came back ([`UndoneInfo`](crate::control::trash::UndoneInfo)) |
//! | `POST /vm/trash/{entry}/restore` | the same | the same |
//! | `DELETE /vm/trash`, `DELETE /vm/trash/{entry}` | | what is gone for good ([`EmptiedInfo`](crate::control::trash::EmptiedInfo)) |
//! | `GET /vm/jobs` | | long work ([`JobList`](crate::control::jobs::JobList)) |
//! | `GET /vm/jobs/{job}` | | one job ([`JobInfo`](crate::control::jobs::JobInfo)) |
//! | `DELETE /vm/jobs/{job}` | | the job, asked to stop |
//! | `POST /vm/agent` | [`AgentBody`] | the agent's answer ([`AgentReply`](crate::control::agent::AgentReply)) |
//! | `GET /metrics` | | what is measured of the VM, as Prometheus reads it |
//! | `GET /vm/console` with `Upgrade: piton-console` | | 101, then the console's bytes both ways |
//!
//! Making, going back, deleting and undoing are jobs: their bodies may also hold
//! [`Waiting`](crate::control::jobs::Waiting), and with `no_wait` the answer is 202 and the job. Requests
//! about jobs are answered at once, whatever the owner of the machine is busy with.
//!
//! Errors are `{"error": "one sentence"}`: 400 for a malformed request, 404, 405, 409 where nothing was tried,
//! 500 where it was tried and undone, also because it was cancelled. Those of a call to the agent are in
//! [`agent::status`](crate::control::agent::status).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path as UrlPath, Query, State};
use axum::http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, UPGRADE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use super::relay::relay;
use crate::control::agent::{self, AgentAsked, AgentBody};
use crate::control::exposition;
use crate::control::jobs::{Job, JobError, Jobs, Waiting};
use crate::control::metrics::Metrics;
use crate::control::{Answer, CONSOLE_PAST, CONSOLE_PROTOCOL, ErrorBody, NoBody, Request, RequestError};
use crate::devices::console::Console;

/// How long a client may take for the body of a request.
const BODY: Duration = Duration::from_secs(10);
/// Most bytes of a body: as much as a command line can hold, however it is written down.
const BODY_MAX: usize = 1 << 20;
/// What who attaches to the console is shown of the past unless it says otherwise, in bytes.
const PAST: usize = 4 << 10;

/// A request, the job that it is if it takes long, and where its answer goes.
pub struct Asked {
    pub request: Request,
    pub job: Option<Job>,
    /// None: nobody waits for it.
    pub reply: Option<oneshot::Sender<Answer>>,
}

impl Asked {
    /// Who asked has left before it was begun.
    pub fn is_withdrawn(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Ends what is withdrawn.
    pub fn withdraw(self) {
        if let Some(job) = self.job {
            job.finish(&Err(RequestError::Cancelled(
                "the client disconnected before this was started".into(),
            )));
        }
    }
}

/// Hands a request to the owner of the machine.
pub type Dispatch = Arc<dyn Fn(Asked) + Send + Sync>;

/// Hands a call to the agent's thread.
pub type AskAgent = Arc<dyn Fn(AgentAsked) + Send + Sync>;

#[derive(Clone)]
pub struct Context {
    dispatch: Dispatch,
    agent: AskAgent,
    jobs: Jobs,
    metrics: Metrics,
    console: Arc<Console>,
    /// Consoles that are attached now.
    pub consoles: Arc<AtomicUsize>,
    consoles_max: usize,
}

impl Context {
    pub fn new(
        dispatch: Dispatch,
        agent: AskAgent,
        jobs: Jobs,
        metrics: Metrics,
        console: Arc<Console>,
        consoles_max: usize,
    ) -> Self {
        Self { dispatch, agent, jobs, metrics, console, consoles: Arc::default(), consoles_max }
    }
}

pub fn router(context: Context) -> Router {
    Router::new()
        .route("/vm", get(|context| ask(context, Request::Show)))
        .route(
            "/vm",
            patch(|context, body: Sent| with_body(context, body, |body| Request::Set(Box::new(body)))),
        )
        .route("/vm/pause", post(|context, body: Sent| with_body(context, body, |NoBody {}| Request::Pause)))
        .route(
            "/vm/resume",
            post(|context, body: Sent| with_body(context, body, |NoBody {}| Request::Resume)),
        )
        .route("/vm/stop", post(|context, body: Sent| with_body(context, body, Request::Stop)))
        .route("/vm/kill", post(|context, body: Sent| with_body(context, body, |NoBody {}| Request::Kill)))
        .route("/vm/checkpoints", get(|context| ask(context, Request::Checkpoints)))
        .route(
            "/vm/checkpoints",
            post(|context, body: Sent| with_job(context, body, Request::CreateCheckpoint)),
        )
        .route(
            "/vm/checkpoints/{checkpoint}",
            get(|context, Reference(path): Reference| ask(context, Request::Checkpoint(path))),
        )
        .route(
            "/vm/checkpoints/{checkpoint}",
            patch(|context, Reference(path): Reference, body: Sent| {
                with_body(context, body, |body| Request::ChangeCheckpoint(path, body))
            }),
        )
        .route(
            "/vm/checkpoints/{checkpoint}",
            delete(|context, Reference(path): Reference, body: Sent| {
                with_job(context, body, |body| Request::DeleteCheckpoint(path, body))
            }),
        )
        .route(
            "/vm/checkpoints/{checkpoint}/apply",
            post(|context, Reference(path): Reference, body: Sent| {
                with_job(context, body, |body| Request::ApplyCheckpoint(path, body))
            }),
        )
        .route(
            "/vm/checkpoints/{checkpoint}/clone",
            post(|context, Reference(path): Reference, body: Sent| {
                with_job(context, body, |body| Request::CloneCheckpoint(path, body))
            }),
        )
        .route("/vm/revert", post(|context, body: Sent| with_job(context, body, Request::Revert)))
        .route("/vm/trash", get(|context| ask(context, Request::Trash)))
        .route(
            "/vm/trash",
            delete(|context, body: Sent| with_job(context, body, |NoBody {}| Request::EmptyTrash(None))),
        )
        .route(
            "/vm/trash/{entry}",
            delete(|context, Reference(entry): Reference, body: Sent| {
                with_job(context, body, |NoBody {}| Request::EmptyTrash(Some(entry)))
            }),
        )
        .route(
            "/vm/trash/{entry}/restore",
            post(|context, Reference(entry): Reference, body: Sent| {
                with_job(context, body, |body| Request::RestoreTrash(entry, body))
            }),
        )
        .route("/vm/prune", post(|context, body: Sent| with_job(context, body, Request::Prune)))
        .route("/vm/undo", post(|context, body: Sent| with_job(context, body, Request::Undo)))
        .route("/vm/jobs", get(async |State(context): State<Context>| Json(context.jobs.list())))
        .route(
            "/vm/jobs/{job}",
            get(async |State(context): State<Context>, Reference(job): Reference| {
                about_job(StatusCode::OK, context.jobs.find(&job))
            }),
        )
        .route(
            "/vm/jobs/{job}",
            delete(async |State(context): State<Context>, Reference(job): Reference| {
                about_job(StatusCode::ACCEPTED, context.jobs.cancel(&job))
            }),
        )
        .route("/metrics", get(metrics))
        .route("/vm/agent", post(call_agent))
        .route("/vm/console", get(console))
        .fallback(async || error(StatusCode::NOT_FOUND, "no such path; GET /vm shows the VM"))
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed for this path")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(context)
}

fn error(status: StatusCode, text: impl Into<String>) -> Response {
    (status, Json(ErrorBody { error: text.into() })).into_response()
}

/// The last part of a path. axum's own complaints are plain text.
struct Reference(String);

impl<S: Send + Sync> FromRequestParts<S> for Reference {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match UrlPath::from_request_parts(parts, state).await {
            Ok(UrlPath(reference)) => Ok(Self(reference)),
            Err(e) => Err(error(StatusCode::BAD_REQUEST, format!("invalid path: {}", e.body_text()))),
        }
    }
}

/// All of a body. axum's own limits are told in plain text, and it waits without end.
struct Sent(Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        let too_large = || {
            error(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the request body is too large: at most {BODY_MAX} bytes are accepted"),
            )
        };
        let announced = request.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
        if announced.is_some_and(|len: u64| len > BODY_MAX as u64) {
            return Err(too_large());
        }
        match tokio::time::timeout(BODY, Bytes::from_request(request, state)).await {
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
            Ok(Err(e)) => Err(error(e.status(), format!("cannot read the request body: {}", e.body_text()))),
            Err(_) => Err(error(
                StatusCode::REQUEST_TIMEOUT,
                format!("the request body did not arrive within {} s", BODY.as_secs()),
            )),
        }
    }
}

async fn ask(State(context): State<Context>, request: Request) -> Response {
    wait(&context, request, None).await
}

/// Waits for the answer of a request.
async fn wait(context: &Context, request: Request, job: Option<Job>) -> Response {
    let (reply, answer) = oneshot::channel();
    let id = job.as_ref().map(Job::id);
    (context.dispatch)(Asked { request, job, reply: Some(reply) });
    let answer = answer.await;
    if let (Some(id), Ok(Err(RequestError::Refused(_) | RequestError::Missing(_)))) = (id, &answer) {
        // Who asked is told, and nothing was done that others would look for.
        context.jobs.forget(id);
    }
    match answer {
        Ok(Ok(reply)) => Json(reply).into_response(),
        Ok(Err(e @ RequestError::Missing(_))) => error(StatusCode::NOT_FOUND, e.to_string()),
        Ok(Err(e @ RequestError::Refused(_))) => error(StatusCode::CONFLICT, e.to_string()),
        Ok(Err(e @ (RequestError::Failed(_) | RequestError::Cancelled(_)))) => {
            error(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())
        }
        Err(_) => error(StatusCode::CONFLICT, "the VM is stopping"),
    }
}

fn about_job<T: serde::Serialize>(status: StatusCode, found: Result<T, JobError>) -> Response {
    match found {
        Ok(job) => (status, Json(job)).into_response(),
        Err(e @ JobError::Unknown(_)) => error(StatusCode::NOT_FOUND, e.to_string()),
        Err(e) => error(StatusCode::CONFLICT, e.to_string()),
    }
}

/// The fields of a body; without a body there are none.
fn fields(body: &[u8]) -> serde_json::Result<Map<String, Value>> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    // `null` is how clients without a body say so.
    let fields: Option<Map<String, Value>> = serde_json::from_slice(body)?;
    Ok(fields.unwrap_or_default())
}

fn typed<T: DeserializeOwned>(fields: Map<String, Value>) -> serde_json::Result<T> {
    serde_json::from_value(Value::Object(fields))
}

fn undocumented(e: &serde_json::Error) -> Response {
    error(StatusCode::BAD_REQUEST, format!("invalid request body: {e}"))
}

/// A request whose body may be left out where its default says enough.
async fn with_body<T: DeserializeOwned>(
    context: State<Context>,
    Sent(body): Sent,
    request: impl FnOnce(T) -> Request,
) -> Response {
    match fields(&body).and_then(typed) {
        Ok(body) => ask(context, request(body)).await,
        Err(e) => undocumented(&e),
    }
}

/// The same for one that takes long.
async fn with_job<T: DeserializeOwned>(
    State(context): State<Context>,
    Sent(body): Sent,
    request: impl FnOnce(T) -> Request,
) -> Response {
    let parsed = fields(&body).and_then(|mut fields| {
        let waiting = ["no_wait", "job"].iter().filter_map(|field| fields.remove_entry(*field)).collect();
        Ok((typed::<Waiting>(waiting)?, request(typed(fields)?)))
    });
    let (waiting, request) = match parsed {
        Ok(parsed) => parsed,
        Err(e) => return undocumented(&e),
    };
    let Some((kind, subject)) = request.job() else { return wait(&context, request, None).await };
    let job = match context.jobs.add(waiting.job, kind, subject) {
        Ok(job) => job,
        Err(e) => return error(StatusCode::CONFLICT, e.to_string()),
    };
    if !waiting.no_wait {
        return wait(&context, request, Some(job)).await;
    }
    let info = job.info();
    // Whoever wants the answer looks at the job.
    (context.dispatch)(Asked { request, job: Some(job), reply: None });
    (StatusCode::ACCEPTED, Json(info)).into_response()
}

/// Nobody else is asked: whatever the owner of the machine is busy with.
async fn metrics(State(context): State<Context>) -> Response {
    ([(CONTENT_TYPE, exposition::TEXT)], context.metrics.page(&context.jobs)).into_response()
}

async fn call_agent(State(context): State<Context>, Sent(body): Sent) -> Response {
    let body: AgentBody = match fields(&body).and_then(typed) {
        Ok(body) => body,
        Err(e) => return undocumented(&e),
    };
    let guest = body.guest;
    let call = match body.call() {
        Ok(call) => call,
        Err(e) => {
            return error(StatusCode::BAD_REQUEST, format!("invalid call: {e}"));
        }
    };
    let (reply, answer) = oneshot::channel();
    (context.agent)(AgentAsked { guest, call, reply });
    match answer.await {
        Ok(Ok(reply)) => Json(reply).into_response(),
        Ok(Err(e)) => error(agent::status(e.why), e.text),
        Err(_) => error(StatusCode::CONFLICT, "the VM is stopping"),
    }
}

/// Of `GET /vm/console`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsoleQuery {
    /// Bytes of the past at most.
    past: Option<usize>,
}

/// One more attached console, for as long as it lives.
struct Attached(Arc<AtomicUsize>);

impl Drop for Attached {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn console(
    State(context): State<Context>,
    query: Result<Query<ConsoleQuery>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
    request: axum::extract::Request,
) -> Response {
    let past = match query {
        Ok(Query(ConsoleQuery { past })) => past.unwrap_or(PAST),
        Err(e) => {
            let text = format!("invalid query: {}", e.body_text());
            return error(StatusCode::BAD_REQUEST, text);
        }
    };
    if headers.get(UPGRADE).is_none_or(|value| value != CONSOLE_PROTOCOL) {
        return error(
            StatusCode::UPGRADE_REQUIRED,
            format!(
                "the console is a byte stream: request it with `Connection: upgrade` and `Upgrade: {CONSOLE_PROTOCOL}`"
            ),
        );
    }
    let before = context.consoles.fetch_add(1, Ordering::SeqCst);
    let attached = Attached(context.consoles.clone());
    if before >= context.consoles_max {
        let text = format!("{before} consoles are already attached to this VM: close one first");
        return error(StatusCode::CONFLICT, text);
    }
    let reader = context.console.attach(past);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(CONSOLE_PROTOCOL));
    headers.insert(CONSOLE_PAST, HeaderValue::from(reader.past()));
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => relay(upgraded, reader, context.console).await,
            Err(e) => log::debug!("a console connection failed: {e}"),
        }
        drop(attached);
    });
    response
}
