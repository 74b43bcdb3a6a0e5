//! The metrics of all VMs as one page: what each says of itself, and of those that say nothing, that.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::{Json, Router, routing::get};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::life;
use crate::control::client::{self, ClientError};
use crate::control::exposition::{Page, TEXT, merge};
use crate::control::metrics::state_of;
use crate::control::server::connections::serve as serve_clients;
use crate::control::server::descriptors;
use crate::control::{ErrorBody, State};
use crate::folder::{FolderError, Home, VmFolder};
use crate::seats::Seats;

/// How long a VM may take. Scrapers give up after 10 s.
const WITHIN: Duration = Duration::from_secs(2);
/// How many VMs are asked at one time; each takes a file descriptor.
const AT_ONCE: usize = 128;
/// Clients at one time, and how long a silent one keeps its place from others.
const CLIENTS_MAX: usize = 32;
const GRACE: Duration = Duration::from_millis(250);

#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("cannot listen on {at}: {error}")]
    Listen { at: SocketAddr, error: io::Error },
    #[error("cannot ask the VMs: {0}")]
    Start(io::Error),
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// What a VM says, or what is said of it.
async fn page_of(vm: String, socket: PathBuf) -> String {
    let state = match client::text(&socket, "/metrics", WITHIN).await {
        Ok(page) => return page,
        Err(ClientError::NotRunning) => State::Stopped,
        Err(e) => {
            log::debug!("the VM `{vm}`: {e}");
            State::Unresponsive
        }
    };
    let mut page = Page::new(&vm);
    state_of(&mut page, state);
    page.finish()
}

/// The pages of these VMs as one. A VM that does not answer holds up no other.
async fn gather(folders: &[VmFolder]) -> String {
    let mut pages = vec![String::new(); folders.len()];
    let mut asked = JoinSet::new();
    let mut folders = folders.iter().enumerate();
    loop {
        while asked.len() < AT_ONCE
            && let Some((n, folder)) = folders.next()
        {
            let (vm, socket) = (folder.name().to_string(), folder.socket());
            asked.spawn(async move { (n, page_of(vm, socket).await) });
        }
        match asked.join_next().await {
            Some(Ok((n, page))) => pages[n] = page,
            Some(Err(e)) => log::error!("a VM could not be asked: {e}"),
            None => return merge(pages.iter().map(String::as_str)),
        }
    }
}

/// The metrics of these VMs.
pub fn of(folders: &[VmFolder]) -> Result<String, MetricsError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build();
    Ok(runtime.map_err(MetricsError::Start)?.block_on(gather(folders)))
}

async fn answer(home: Home) -> Response {
    let folders = match tokio::task::spawn_blocking(move || home.all()).await {
        Ok(Ok(folders)) => folders,
        Ok(Err(e)) => return failed(e.to_string()),
        Err(e) => return failed(format!("cannot list the folder of VMs: {e}")),
    };
    ([(CONTENT_TYPE, TEXT)], gather(&folders).await).into_response()
}

fn failed(error: String) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, Json(ErrorBody { error })).into_response()
}

/// Serves `GET /metrics` until `stop` comes. `ready` is told where.
pub fn serve(
    home: Home,
    at: SocketAddr,
    ready: impl FnOnce(SocketAddr),
    stop: oneshot::Receiver<()>,
) -> Result<(), MetricsError> {
    let served = life::run(async {
        let failed = |error| MetricsError::Listen { at, error };
        let door = TcpListener::bind(at).await.map_err(failed)?;
        ready(door.local_addr().map_err(failed)?);
        let app = Router::new()
            .route("/metrics", get(move || answer(home.clone())))
            .fallback(async || (StatusCode::NOT_FOUND, "GET /metrics\n"));
        let seats = Seats::new((descriptors() / 8).clamp(4, CLIENTS_MAX), GRACE);
        life::until(stop, async |stopped| {
            serve_clients(door, app, seats, stopped).await;
            Ok(())
        })
        .await
    });
    served.map_err(MetricsError::Start)?
}
