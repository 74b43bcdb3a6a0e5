//! Who may connect, how many at one time, and for how long without a word.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
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

/// Serves until it is told to end and all that was asked is answered.
pub async fn serve(
    listener: std::os::unix::net::UnixListener,
    app: Router,
    seats: Seats,
    stopped: watch::Receiver<()>,
) -> io::Result<()> {
    let listener = UnixListener::from_std(listener)?;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = ended(stopped.clone()) => break,
            Some(_) = connections.join_next() => {}
            stream = accept(&listener, &seats) => {
                let leave = Arc::new(Notify::new());
                if let Some(seat) = seat(&seats, &leave).await {
                    connections.spawn(converse(stream, app.clone(), seat, leave, stopped.clone()));
                } else {
                    log::warn!("rejected a client of the control socket: too many are waiting for responses");
                }
            }
        }
    }
    while connections.join_next().await.is_some() {}
    Ok(())
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

/// The next client that may ask: one of the user that the VM runs as, or of root. The modes of
/// socket and folder say the same; this holds should somebody change them.
async fn accept(listener: &UnixListener, seats: &Seats) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => match stream.peer_cred() {
                Ok(peer) if [nix::unistd::geteuid().as_raw(), 0].contains(&peer.uid()) => return stream,
                Ok(peer) => {
                    log::warn!("rejected a client of the control socket: user {} may not use it", peer.uid())
                }
                Err(e) => log::warn!("rejected a client of the control socket: cannot tell its user: {e}"),
            },
            Err(e) => {
                log::debug!("cannot accept a client of control socket: {e}");
                // No file descriptor is left, most likely.
                seats.free_one();
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Answers one client until it goes, is silent for too long, or has to make room for another.
async fn converse(
    stream: UnixStream,
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
                    log::debug!("a connection to the control socket failed: {e}");
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
