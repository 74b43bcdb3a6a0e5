//! How long a server of this process lives: until it is told to stop.

use std::future::Future;
use std::io;
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::control::server::connections::ended;

/// How long those who wait for an answer have when it ends.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Runs `work` with two threads: one that waits for a disk holds up nobody.
pub fn run<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_io().enable_time().build()?;
    let done = runtime.block_on(work);
    // A look at a folder that does not answer is not waited for.
    runtime.shutdown_background();
    Ok(done)
}

/// Serves until `stop` comes, which `serve` is told of.
pub async fn until<E, F: Future<Output = Result<(), E>>>(
    stop: oneshot::Receiver<()>,
    serve: impl FnOnce(watch::Receiver<()>) -> F,
) -> Result<(), E> {
    let (end, stopped) = watch::channel(());
    let patience = async {
        ended(stopped.clone()).await;
        tokio::time::sleep(LAST_WORDS).await;
    };
    tokio::select! {
        served = serve(stopped.clone()) => served,
        () = patience => Ok(()),
        // Who may stop it has gone, or has done so.
        never = async { let _ = stop.await; drop(end); std::future::pending().await } => never,
    }
}
