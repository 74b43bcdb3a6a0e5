//! The HTTP that the S3 client speaks: at the pace that was asked for, with a limit on what an
//! answer may hold, and with an end for connections on which nothing moves.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use http::Request;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connect, HttpConnector};
use hyper_util::rt::TokioExecutor;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector as StoreConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse,
    HttpResponseBody, HttpService,
};
use tokio::time::{Sleep, sleep};

use super::pace::Pace;

const CONNECT: Duration = Duration::from_secs(10);
/// Most bytes of an answer: the largest pack, and what lists may have.
const ANSWER_MAX: u64 = 80 << 20;
/// Bytes that go at once where the pace is limited.
const STEP: usize = 32 << 10;

/// After so long without a byte in either direction a request is given up.
fn stall() -> Duration {
    // For tests of the real binary.
    #[cfg(debug_assertions)]
    if let Some(ms) = std::env::var("PITON_TEST_STALL_MS").ok().and_then(|ms| ms.parse().ok()) {
        return Duration::from_millis(ms);
    }
    Duration::from_secs(30)
}

#[derive(Debug)]
pub struct Connector(HttpClient);

impl Connector {
    /// `plain`: only without TLS, as the endpoint is this host.
    pub fn new(pace: Arc<Pace>, plain: bool) -> Result<Self, String> {
        let mut http = HttpConnector::new();
        http.set_connect_timeout(Some(CONNECT));
        http.set_nodelay(true);
        if plain {
            return Ok(Self(HttpClient::new(Service::new(http, pace))));
        }
        http.enforce_http(false);
        let https = HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(|e| {
                format!("this host's certificates cannot be read, without which no server is trusted: {e}")
            })?
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        Ok(Self(HttpClient::new(Service::new(https, pace))))
    }
}

impl StoreConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

struct Service<C> {
    client: Client<C, Sending>,
    pace: Arc<Pace>,
}

impl<C> fmt::Debug for Service<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Service")
    }
}

impl<C: Connect + Clone + Send + Sync + 'static> Service<C> {
    fn new(connector: C, pace: Arc<Pace>) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build(connector), pace }
    }
}

#[derive(Debug, thiserror::Error)]
enum Wire {
    #[error("nothing was heard for {0:?}")]
    Stalled(Duration),
    #[error("the answer is larger than {ANSWER_MAX} bytes")]
    TooLong,
}

#[async_trait]
impl<C: Connect + Clone + Send + Sync + 'static> HttpService for Service<C> {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let bytes = body.collect().await?.to_bytes();
        let moved = Arc::new(Moved::new());
        let body = Sending { bytes, pace: self.pace.clone(), pause: None, moved: moved.clone() };
        let answer = self.client.request(Request::from_parts(parts, body));
        let answer = tokio::select! {
            answer = answer => answer.map_err(|e| {
                let kind = if e.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Interrupted };
                HttpError::new(kind, e)
            })?,
            error = moved.stalled() => return Err(error),
        };
        let (parts, body) = answer.into_parts();
        let pause = Box::pin(sleep(Duration::ZERO));
        let body = Receiving { body, pace: self.pace.clone(), pause, held: None, watch: None, bytes: 0 };
        Ok(HttpResponse::from_parts(parts, HttpResponseBody::new(body)))
    }
}

/// When something moved last.
struct Moved {
    began: Instant,
    at: AtomicU64,
}

impl Moved {
    fn new() -> Self {
        Self { began: Instant::now(), at: AtomicU64::new(0) }
    }

    fn note(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(now, Ordering::Relaxed);
    }

    /// Returns once nothing has moved for too long.
    async fn stalled(&self) -> HttpError {
        let most = stall();
        loop {
            let still =
                self.began.elapsed().saturating_sub(Duration::from_millis(self.at.load(Ordering::Relaxed)));
            match most.checked_sub(still) {
                Some(left) if !left.is_zero() => sleep(left).await,
                _ => return HttpError::new(HttpErrorKind::Timeout, Wire::Stalled(most)),
            }
        }
    }
}

/// The body of a request.
struct Sending {
    bytes: Bytes,
    pace: Arc<Pace>,
    pause: Option<Pin<Box<Sleep>>>,
    moved: Arc<Moved>,
}

impl Body for Sending {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        self.moved.note();
        if self.bytes.is_empty() {
            return Poll::Ready(None);
        }
        let len = self.bytes.len().min(self.pace.step(STEP));
        if self.pause.is_none() && self.pace.is_limited() {
            self.pause = Some(Box::pin(sleep(self.pace.take(len as u64))));
        }
        if let Some(pause) = &mut self.pause {
            std::task::ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        self.moved.note();
        let part = self.bytes.split_to(len);
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}

/// The body of an answer.
struct Receiving {
    body: Incoming,
    pace: Arc<Pace>,
    pause: Pin<Box<Sleep>>,
    /// Came, and is passed on when its time has come.
    held: Option<Bytes>,
    /// Ends when nothing has come for too long.
    watch: Option<Pin<Box<Sleep>>>,
    bytes: u64,
}

impl Body for Receiving {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if this.held.is_none() {
            let watch = this.watch.get_or_insert_with(|| Box::pin(sleep(stall())));
            let frame = match Pin::new(&mut this.body).poll_frame(cx) {
                Poll::Pending => {
                    std::task::ready!(watch.as_mut().poll(cx));
                    return Poll::Ready(Some(Err(HttpError::new(
                        HttpErrorKind::Timeout,
                        Wire::Stalled(stall()),
                    ))));
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(e))) => {
                    return Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Interrupted, e))));
                }
                Poll::Ready(Some(Ok(frame))) => frame,
            };
            this.watch = None;
            let Ok(data) = frame.into_data() else { return Poll::Ready(None) };
            this.bytes += data.len() as u64;
            if this.bytes > ANSWER_MAX {
                return Poll::Ready(Some(Err(HttpError::new(HttpErrorKind::Decode, Wire::TooLong))));
            }
            if !this.pace.is_limited() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.pause = Box::pin(sleep(this.pace.take(data.len() as u64)));
            this.held = Some(data);
        }
        std::task::ready!(this.pause.as_mut().poll(cx));
        Poll::Ready(this.held.take().map(|data| Ok(Frame::data(data))))
    }
}
