//! What the pages, and others, may ask over HTTP.
//!
//! | request | answer |
//! | --- | --- |
//! | `GET /api/vms`, `GET /api/vms/{vm}` | all VMs, or one |
//! | `GET /api/vms/{vm}/tree` | its checkpoints |
//! | `GET /api/vms/{vm}/checkpoints/{checkpoint}` | one of them |
//! | `GET /api/vms/{vm}/trash` | what can be taken back |
//! | `GET /api/removed` | VMs that were removed and can be restored |
//! | `DELETE /api/vms/{vm}/jobs/{job}` | 202 and the job, being cancelled |
//! | `GET /api/vms/{vm}/console` | a WebSocket |
//! | `GET /api/events`, with `?vm=NAME` | server-sent events ([`events`](super::events)) |
//! | `GET /api/actions`, `GET /api/actions/{action}` | all actions, or one |
//! | `POST /api/actions` | 202 and the action; the body is a [`Deed`] |
//! | `DELETE /api/actions/{action}` | 202 and the action, being cancelled |

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::{DefaultBodyLimit, FromRequest, Path as UrlPath, Query, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::actions::{ActionError, Actions};
use super::deed::Deed;
use super::vms::Looker;
use super::watch::Watch;
use super::{console, events, files};
use crate::control::client::{self, ClientError};
use crate::control::jobs::JobInfo;
use crate::control::{ErrorBody, RequestError};
use crate::folder::{FolderError, Home, VmFolder, VmName};
use crate::history::{self, Catalog, CheckpointError};
use crate::id::MIN_PREFIX;

/// How long a client may take for the body of a request.
const BODY: Duration = Duration::from_secs(10);
/// Most bytes of a body.
const BODY_MAX: usize = 64 << 10;
/// How long a VM may take to cancel a job, which it does beside its work.
const CANCEL: Duration = Duration::from_secs(3);

#[derive(Clone)]
pub struct Context {
    pub home: Home,
    pub watch: Watch,
    pub actions: Actions,
}

pub fn router(context: Context) -> Router {
    Router::new()
        .route("/api/vms", get(all))
        .route("/api/vms/{vm}", get(one))
        .route("/api/vms/{vm}/tree", get(tree))
        .route("/api/vms/{vm}/trash", get(trash))
        .route("/api/vms/{vm}/checkpoints/{checkpoint}", get(checkpoint))
        .route("/api/removed", get(removed))
        .route("/api/vms/{vm}/jobs/{job}", axum::routing::delete(cancel_job))
        .route("/api/vms/{vm}/console", get(attach))
        .route("/api/events", get(stream))
        .route(
            "/api/actions",
            post(begin).get(async |State(context): State<Context>| Json(context.actions.list())),
        )
        .route(
            "/api/actions/{action}",
            get(async |State(context): State<Context>, UrlPath(id): UrlPath<String>| {
                Answer::from(StatusCode::OK, context.actions.find(&id))
            })
            .delete(async |State(context): State<Context>, UrlPath(id): UrlPath<String>| {
                Answer::from(StatusCode::ACCEPTED, context.actions.cancel(&id))
            }),
        )
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "method not allowed for this path")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(context)
}

pub fn error(status: StatusCode, text: impl Into<String>) -> Response {
    (status, Json(ErrorBody { error: text.into() })).into_response()
}

/// Makes responses of results.
struct Answer;

impl Answer {
    fn from<T: Serialize, E: Into<Problem>>(status: StatusCode, result: Result<T, E>) -> Response {
        match result {
            Ok(value) => (status, Json(value)).into_response(),
            Err(e) => e.into().into_response(),
        }
    }
}

pub struct Problem(pub StatusCode, pub String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        error(self.0, self.1)
    }
}

impl From<ActionError> for Problem {
    fn from(e: ActionError) -> Self {
        let status = match e {
            ActionError::Deed(_) => StatusCode::BAD_REQUEST,
            ActionError::Unknown(_) => StatusCode::NOT_FOUND,
            ActionError::TooMany | ActionError::Over => StatusCode::CONFLICT,
            ActionError::Start(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, e.to_string())
    }
}

impl From<FolderError> for Problem {
    fn from(e: FolderError) -> Self {
        let status = match e {
            FolderError::Name(_) | FolderError::Missing { .. } => StatusCode::NOT_FOUND,
            FolderError::Storage(_) => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::CONFLICT,
        };
        Self(status, e.to_string())
    }
}

impl From<CheckpointError> for Problem {
    fn from(e: CheckpointError) -> Self {
        let status = match e {
            ref e if e.is_missing() => StatusCode::NOT_FOUND,
            ref e if e.is_refusal() => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, e.to_string())
    }
}

impl From<ClientError> for Problem {
    fn from(e: ClientError) -> Self {
        let status = match e {
            ClientError::Request(RequestError::Missing(_)) => StatusCode::NOT_FOUND,
            ClientError::Request(RequestError::Refused(_)) | ClientError::NotRunning => StatusCode::CONFLICT,
            ClientError::Silent { .. } | ClientError::Busy { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self(status, e.to_string())
    }
}

impl From<tokio::task::JoinError> for Problem {
    fn from(e: tokio::task::JoinError) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, e.to_string())
    }
}

pub type Outcome<T> = Result<T, Problem>;

/// Does what may wait for a file.
async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Outcome<T>
where
    T: Send + 'static,
    E: Into<Problem> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}

/// A VM that exists.
pub async fn existing(context: &Context, name: &str) -> Outcome<VmFolder> {
    let name: VmName = name.parse().map_err(FolderError::from)?;
    let folder = context.home.folder(&name);
    blocking(move || folder.must_exist().map(|()| folder)).await
}

pub async fn all(State(context): State<Context>) -> Outcome<Response> {
    let folders = blocking(move || context.home.all()).await?;
    let mut asked: JoinSet<_> = folders
        .into_iter()
        .map(|folder| async move { (folder.name().clone(), Looker::new(folder).look().await) })
        .collect();
    let mut found = std::collections::BTreeMap::new();
    while let Some(one) = asked.join_next().await {
        let (name, view) = one?;
        found.insert(name, view);
    }
    Ok(Json(found.into_values().collect::<Vec<_>>()).into_response())
}

pub async fn one(State(context): State<Context>, UrlPath(vm): UrlPath<String>) -> Outcome<Response> {
    let folder = existing(&context, &vm).await?;
    Ok(Json(Looker::new(folder).look().await).into_response())
}

pub async fn tree(State(context): State<Context>, UrlPath(vm): UrlPath<String>) -> Outcome<Response> {
    let folder = existing(&context, &vm).await?;
    Ok(Json(blocking(move || files::tree(&folder)).await?).into_response())
}

pub async fn trash(State(context): State<Context>, UrlPath(vm): UrlPath<String>) -> Outcome<Response> {
    let folder = existing(&context, &vm).await?;
    Ok(Json(blocking(move || files::trash(&folder)).await?).into_response())
}

pub async fn checkpoint(
    State(context): State<Context>,
    UrlPath((vm, reference)): UrlPath<(String, String)>,
) -> Outcome<Response> {
    let folder = existing(&context, &vm).await?;
    let found = blocking(move || {
        let definition = folder.load()?;
        let catalog = Catalog::new(&folder, &definition);
        let manifest = catalog.resolve(&definition, &reference)?;
        history::details(&catalog, &definition, &manifest)
    });
    Ok(Json(found.await?).into_response())
}

async fn removed(State(context): State<Context>) -> Outcome<Response> {
    Ok(Json(blocking(move || files::removed(&context.home)).await?).into_response())
}

async fn cancel_job(
    State(context): State<Context>,
    UrlPath((vm, job)): UrlPath<(String, String)>,
) -> Outcome<Response> {
    let folder = existing(&context, &vm).await?;
    // It goes into a path.
    if !(MIN_PREFIX..=32).contains(&job.len()) || !job.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(Problem(StatusCode::NOT_FOUND, "no such job".into()));
    }
    let path = format!("/vm/jobs/{job}");
    let job: JobInfo = client::ask_once(&folder.socket(), Method::DELETE, &path, CANCEL).await?;
    Ok((StatusCode::ACCEPTED, Json(job)).into_response())
}

async fn attach(
    State(context): State<Context>,
    UrlPath(vm): UrlPath<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Outcome<Response> {
    let folder = existing(&context, &vm).await?;
    let upgrade = upgrade.map_err(|e| Problem(StatusCode::BAD_REQUEST, e.body_text()))?;
    let upgrade = upgrade.max_message_size(console::MESSAGE_MAX).max_frame_size(console::MESSAGE_MAX);
    Ok(upgrade.on_upgrade(|page| console::relay(page, folder)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    vm: Option<VmName>,
}

async fn stream(
    State(context): State<Context>,
    query: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
) -> Outcome<Response> {
    let Query(EventsQuery { vm }) =
        query.map_err(|e| Problem(StatusCode::BAD_REQUEST, format!("invalid query: {}", e.body_text())))?;
    let folder = vm.map(|vm| context.home.folder(&vm));
    let (sender, body) = http_body_util::channel::Channel::new(1);
    tokio::spawn(events::tell(sender, context.watch, context.actions, folder));
    let mut response = Response::new(Body::new(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn begin(State(context): State<Context>, request: Request) -> Outcome<Response> {
    let body = json_body(request).await?;
    let deed: Deed = serde_json::from_slice(&body)
        .map_err(|e| Problem(StatusCode::BAD_REQUEST, format!("invalid request body: {e}")))?;
    let action = blocking(move || context.actions.begin(&deed)).await?;
    Ok((StatusCode::ACCEPTED, Json(action)).into_response())
}

/// All of a body, which says that it is JSON: a form of another page could not.
async fn json_body(request: Request) -> Outcome<Bytes> {
    let is_json = |headers: &HeaderMap| {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
    };
    if !is_json(request.headers()) {
        let text = "the request body must be JSON, with `Content-Type: application/json`";
        return Err(Problem(StatusCode::UNSUPPORTED_MEDIA_TYPE, text.into()));
    }
    let too_large = || {
        let text = format!("the request body is too large: at most {BODY_MAX} bytes are accepted");
        Problem(StatusCode::PAYLOAD_TOO_LARGE, text)
    };
    let len = request.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse().ok());
    if len.is_some_and(|len: u64| len > BODY_MAX as u64) {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large()),
        Ok(Err(e)) => Err(Problem(e.status(), format!("cannot read the request body: {}", e.body_text()))),
        Err(_) => {
            let text = format!("the request body did not arrive within {} s", BODY.as_secs());
            Err(Problem(StatusCode::REQUEST_TIMEOUT, text))
        }
    }
}
