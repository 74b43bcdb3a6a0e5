//! The control socket, served in a thread of its own: [`api`] is what can be asked, [`connections`]
//! who may ask, and [`relay`] the console.

mod api;
pub mod connections;
mod relay;

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::jobs::Jobs;
use super::metrics::Metrics;
use crate::devices::console::Console;
use crate::seats::Seats;
use crate::seccomp;
use api::Context;
use connections::ended;

pub use api::{AskAgent, Asked, Dispatch};

#[derive(Debug, thiserror::Error)]
#[error("cannot set up the control socket {}: {error}", path.display())]
pub struct ServerError {
    path: PathBuf,
    error: io::Error,
}

/// How long those who wait for an answer, or for the last output, have to take it when the VM ends.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Connections, and consoles attached, at one time, where there are file descriptors enough.
const CONNECTIONS_MAX: usize = 256;
const CONSOLES_MAX: usize = 64;
/// A connection that said nothing for this long makes room for another if all are taken.
const GRACE: Duration = Duration::from_millis(250);

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
        agent: AskAgent,
        jobs: Jobs,
        metrics: Metrics,
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
        let descriptors = descriptors();
        let seats = Seats::new((descriptors / 4).clamp(4, CONNECTIONS_MAX), GRACE);
        let consoles_max = (descriptors / 8).clamp(4, CONSOLES_MAX);
        let context = Context::new(dispatch, agent, jobs, metrics, console, consoles_max);
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || {
                seccomp::confine(seccomp::Thread::Control);
                runtime.block_on(async {
                    let consoles = context.consoles.clone();
                    let patience = async {
                        ended(stopped.clone()).await;
                        tokio::time::sleep(LAST_WORDS).await;
                    };
                    let door = match tokio::net::UnixListener::from_std(listener) {
                        Ok(door) => door,
                        Err(e) => return log::error!("the control socket: {e}"),
                    };
                    tokio::select! {
                        () = connections::serve(door, api::router(context), seats, stopped.clone()) => {}
                        () = patience => {}
                    }
                    let deadline = Instant::now() + LAST_WORDS;
                    while consoles.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                });
            })
            .map_err(failed)?;
        Ok(Self { path: path.to_owned(), stop: Some(stop), thread: Some(thread) })
    }
}

/// How many files this process may have open; clients get a part of them.
pub fn descriptors() -> usize {
    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    limit.map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
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
