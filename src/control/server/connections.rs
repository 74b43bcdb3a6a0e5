//! Who may connect, how many at one time, and for how long without a word.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::seats::{Seat, Seats};

/// How long a client may take for the head of a request, or for none after the one before.
const HEAD: Duration = Duration::from_secs(10);
/// Between two tries where no connection can be accepted.
const RETRY: Duration = Duration::from_millis(20);

/// How long a client waits for a place.
const SEATING: Duration = Duration::from_secs(1);

/// Waits until the server is told to end, which is when the sender goes.
pub async fn ended(mut stopped: watch::Receiver<()>) {
    while stopped.changed().await.is_ok() {}
}

/// Where clients come from.
pub trait Door: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next client; none: it may not ask, and was shown out.
    fn client(&self) -> impl Future<Output = io::Result<Option<Self::Stream>>> + Send;
}

impl Door for UnixListener {
    type Stream = UnixStream;

    /// One of the user that this process runs as, or of root. The modes of socket and folder say the
    /// same; this holds should somebody change them.
    async fn client(&self) -> io::Result<Option<UnixStream>> {
        let (stream, _) = self.accept().await?;
        match stream.peer_cred() {
            Ok(peer) if [nix::unistd::geteuid().as_raw(), 0].contains(&peer.uid()) => Ok(Some(stream)),
            Ok(peer) => {
                log::warn!("rejected a client: user {} may not use the socket", peer.uid());
                Ok(None)
            }
            Err(e) => {
                log::warn!("rejected a client: cannot tell its user: {e}");
                Ok(None)
            }
        }
    }
}

impl Door for TcpListener {
    type Stream = TcpStream;

    async fn client(&self) -> io::Result<Option<TcpStream>> {
        let (stream, _) = self.accept().await?;
        stream.set_nodelay(true)?;
        Ok(Some(stream))
    }
}

/// Serves until it is told to end and all that was asked is answered.
pub async fn serve(door: impl Door, app: Router, seats: Seats, stopped: watch::Receiver<()>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = ended(stopped.clone()) => break,
            Some(_) = connections.join_next() => {}
            stream = accept(&door, &seats) => {
                let leave = Arc::new(Notify::new());
                if let Some(seat) = seat(&seats, &leave).await {
                    connections.spawn(converse(stream, app.clone(), seat, leave, stopped.clone()));
                } else {
                    log::warn!("rejected a client: too many are waiting for responses");
                }
            }
        }
    }
    while connections.join_next().await.is_some() {}
}

/// A place, if one is free in time; who is told to `leave` makes room.
async fn seat(seats: &Seats, leave: &Arc<Notify>) -> Option<Seat> {
    let deadline = Instant::now() + SEATING;
    loop {
        let told = leave.clone();
        let seat = seats.take(move || told.notify_one());
        if seat.is_some() || Instant::now() >= deadline {
            return seat;
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// The next client that may ask.
async fn accept<D: Door>(door: &D, seats: &Seats) -> D::Stream {
    loop {
        match door.client().await {
            Ok(Some(stream)) => return stream,
            Ok(None) => {}
            Err(e) => {
                log::debug!("cannot accept a client: {e}");
                // No file descriptor is left, most likely.
                seats.free_one();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Answers one client until it goes, is silent for too long, or has to make room for another.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    app: Router,
    seat: Seat,
    leave: Arc<Notify>,
    stopped: watch::Receiver<()>,
) {
    let (app, seat) = (TowerToHyperService::new(app), Arc::new(seat));
    let service = service_fn(move |request| {
        let (answer, seat) = (app.call(request), seat.clone());
        async move {
            let _working = seat.work();
            answer.await
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::pin!(connection);
    let mut ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => {
                if let Err(e) = result {
                    log::debug!("a connection broke off: {e}");
                }
                return;
            }
            () = leave.notified() => return,
            () = ended(stopped.clone()), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
