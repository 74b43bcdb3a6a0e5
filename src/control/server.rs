//! HTTP/1.1 on the control socket, in a thread of its own.
//!
//! | request | body | answer |
//! | --- | --- | --- |
//! | `GET /vm` | | the VM ([`VmInfo`](super::VmInfo)) |
//! | `PATCH /vm` | [`SetBody`](super::SetBody) | the VM |
//! | `POST /vm/pause`, `POST /vm/resume` | | the VM |
//! | `POST /vm/stop` | `{"force": bool}` or none | the VM; it may still be shutting down |
//! | `GET /vm/checkpoints/{checkpoint}` | | the checkpoint |
//! | `GET /vm/checkpoints` | | the tree ([`TreeInfo`](super::TreeInfo)) |
//! | `POST /vm/checkpoints` | [`CreateBody`](super::CreateBody) or none | the new checkpoint ([`CheckpointInfo`](super::CheckpointInfo)) |
//! | `PATCH /vm/checkpoints/{checkpoint}` | [`ChangeBody`](super::ChangeBody) | the checkpoint |
//! | `POST /vm/checkpoints/{checkpoint}/apply` | [`ApplyBody`](super::ApplyBody) | the VM |
//! | `DELETE /vm/checkpoints/{checkpoint}` | [`DeleteBody`](super::DeleteBody) or none | what went ([`DeletedInfo`](super::DeletedInfo)) |
//! | `POST /vm/checkpoints/{checkpoint}/clone` | [`CloneBody`](super::CloneBody) | the VM |
//! | `POST /vm/revert` | [`RevertBody`](super::RevertBody) or none | the VM |
//! | `GET /vm/jobs` | | long work ([`JobList`](super::jobs::JobList)) |
//! | `GET /vm/jobs/{job}` | | one job ([`JobInfo`](super::jobs::JobInfo)) |
//! | `DELETE /vm/jobs/{job}` | | the job, asked to stop |
//! | `GET /vm/console` with `Upgrade: piton-console` | | 101, then the console's bytes both ways |
//!
//! Making, going back and deleting are jobs: their bodies may also hold
//! [`Waiting`](super::jobs::Waiting), and with `no_wait` the answer is 202 and the job. Requests
//! about jobs are answered at once, whatever the owner of the machine is busy with.
//!
//! Errors are `{"error": "one sentence"}`: 400 for a malformed request, 404, 405, 409 where nothing was tried,
//! 413 for a body that is too large, 500 where it was tried and undone, also because it was cancelled.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, FromRequest, FromRequestParts, Path as UrlPath, State};
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, patch, post};
use axum::{Json, Router};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::jobs::{Job, JobError, Jobs, Waiting};
use super::{Answer, CONSOLE_PROTOCOL, ErrorBody, NoBody, Request, RequestError, StopBody};
use crate::devices::console::Console;
use crate::seccomp;

/// A request, the job that it is if it takes long, and where its answer goes.
pub struct Asked {
    pub request: Request,
    pub job: Option<Job>,
    pub reply: oneshot::Sender<Answer>,
}

/// Hands a request to the owner of the machine.
pub type Dispatch = Arc<dyn Fn(Asked) + Send + Sync>;

#[derive(Debug, thiserror::Error)]
#[error("the control socket {} cannot be set up: {error}", path.display())]
pub struct ServerError {
    path: PathBuf,
    error: io::Error,
}

#[derive(Clone)]
struct Context {
    dispatch: Dispatch,
    jobs: Jobs,
    console: Arc<Console>,
    /// Consoles that are attached now.
    relays: Arc<AtomicUsize>,
}

/// Most bytes of a body: as much as a command line can hold, however it is written down.
const BODY_MAX: usize = 1 << 20;

/// How long those who wait for an answer, or for the last output, have to take it when the VM ends.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The serving thread; dropping it closes the socket and removes its file.
pub struct Server {
    path: PathBuf,
    stop: Option<watch::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Listens on `path`, in place of the socket that a killed process may have left there. The
    /// caller holds the VM's lock, so that process is gone.
    pub fn start(
        path: &Path,
        dispatch: Dispatch,
        jobs: Jobs,
        console: Arc<Console>,
    ) -> Result<Self, ServerError> {
        let failed = |error| ServerError { path: path.to_owned(), error };
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .map_err(failed)?;
        let (stop, stopped) = watch::channel(());
        let relays = Arc::new(AtomicUsize::new(0));
        let context = Context { dispatch, jobs, console, relays: relays.clone() };
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                seccomp::confine(seccomp::Thread::Control);
                runtime.block_on(async {
                    let patience = async {
                        ended(stopped.clone()).await;
                        tokio::time::sleep(LAST_WORDS).await;
                    };
                    tokio::select! {
                        result = serve(listener, context, stopped.clone()) => {
                            if let Err(e) = result {
                                log::error!("the control socket: {e}");
                            }
                        }
                        () = patience => {}
                    }
                    let deadline = Instant::now() + LAST_WORDS;
                    while relays.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                });
                // Console readers may sit in blocking calls.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Removed first: who finds no socket knows that the VM is stopping.
        let _ = std::fs::remove_file(&self.path);
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Waits until the server is told to end, which is when the sender goes.
async fn ended(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

/// Who may connect: the user that the VM runs as, and root. The modes of socket and folder say the
/// same; this holds should somebody change them.
struct OwnersOnly(UnixListener);

impl axum::serve::Listener for OwnersOnly {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        loop {
            // It waits a little where the process has no file descriptor left.
            let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) if [nix::unistd::geteuid().as_raw(), 0].contains(&peer.uid()) => {
                    return (stream, address);
                }
                Ok(peer) => log::warn!("the control socket was closed to user {}", peer.uid()),
                Err(e) => log::warn!("the control socket was closed to an unknown user: {e}"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

async fn serve(
    listener: std::os::unix::net::UnixListener,
    context: Context,
    stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let listener = OwnersOnly(UnixListener::from_std(listener)?);
    let app = Router::new()
        .route("/vm", get(|context| ask(context, Request::Show)))
        .route("/vm", patch(|context, body: Sent| with_body(context, body, Request::Set)))
        .route("/vm/pause", post(|context, body: Sent| with_body(context, body, |NoBody {}| Request::Pause)))
        .route(
            "/vm/resume",
            post(|context, body: Sent| with_body(context, body, |NoBody {}| Request::Resume)),
        )
        .route(
            "/vm/stop",
            post(|context, body: Sent| {
                with_body(context, body, |StopBody { force }| Request::Stop { force })
            }),
        )
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
                with_body(context, body, |body| Request::CloneCheckpoint(path, body))
            }),
        )
        .route("/vm/revert", post(|context, body: Sent| with_job(context, body, Request::Revert)))
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
        .route("/vm/console", get(console))
        .fallback(async || {
            error(StatusCode::NOT_FOUND, "there is nothing at this path; GET /vm shows the VM")
        })
        .method_not_allowed_fallback(async || {
            error(StatusCode::METHOD_NOT_ALLOWED, "this path takes another method")
        })
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(context);
    axum::serve(listener, app).with_graceful_shutdown(ended(stopped)).await
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
            Err(e) => Err(error(
                StatusCode::BAD_REQUEST,
                format!("the path is not as documented: {}", e.body_text()),
            )),
        }
    }
}

/// The body of a request. axum's own complaints are plain text.
struct Sent(Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = Response;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Response> {
        match Bytes::from_request(request, state).await {
            Ok(bytes) => Ok(Self(bytes)),
            Err(e) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(error(e.status(), format!("the body is too large: at most {BODY_MAX} bytes are taken")))
            }
            Err(e) => Err(error(e.status(), format!("the body cannot be read: {}", e.body_text()))),
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
    (context.dispatch)(Asked { request, job, reply });
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
        Err(_) => error(StatusCode::CONFLICT, "the VM is ending"),
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
    error(StatusCode::BAD_REQUEST, format!("the body is not as documented: {e}"))
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
    let (reply, _) = oneshot::channel();
    (context.dispatch)(Asked { request, job: Some(job), reply });
    (StatusCode::ACCEPTED, Json(info)).into_response()
}

async fn console(
    State(context): State<Context>,
    headers: HeaderMap,
    request: axum::extract::Request,
) -> Response {
    if headers.get(UPGRADE).is_none_or(|value| value != CONSOLE_PROTOCOL) {
        return error(
            StatusCode::UPGRADE_REQUIRED,
            format!(
                "the console is a byte stream: ask with `Connection: upgrade` and `Upgrade: {CONSOLE_PROTOCOL}`"
            ),
        );
    }
    context.relays.fetch_add(1, Ordering::SeqCst);
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(stream) => relay(TokioIo::new(stream), context.console).await,
            Err(e) => log::debug!("a console connection broke off: {e}"),
        }
        context.relays.fetch_sub(1, Ordering::SeqCst);
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(CONNECTION, axum::http::HeaderValue::from_static("upgrade"));
    response.headers_mut().insert(UPGRADE, axum::http::HeaderValue::from_static(CONSOLE_PROTOCOL));
    response
}

async fn relay(stream: TokioIo<hyper::upgrade::Upgraded>, console: Arc<Console>) {
    let (mut from_user, mut to_user) = tokio::io::split(stream);
    let reader = console.attach();
    let (chunks, mut output) = mpsc::channel::<Arc<[u8]>>(1);
    // The console's side blocks, so it gets a thread of its own.
    tokio::task::spawn_blocking(move || {
        while let Ok(chunk) = reader.recv() {
            if chunks.blocking_send(chunk).is_err() {
                return;
            }
        }
    });
    let print = async {
        while let Some(chunk) = output.recv().await {
            if to_user.write_all(&chunk).await.is_err() {
                return;
            }
        }
        let _ = to_user.shutdown().await;
    };
    let type_in = async {
        let mut buffer = [0; 1024];
        while let Ok(count @ 1..) = from_user.read(&mut buffer).await {
            let (console, bytes) = (console.clone(), buffer[..count].to_vec());
            if tokio::task::spawn_blocking(move || console.input(&bytes)).await.is_err() {
                return;
            }
        }
        // A user who only closed the sending side goes on reading.
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = print => {}
        () = type_in => {}
    }
}
