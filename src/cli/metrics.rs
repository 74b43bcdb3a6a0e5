//! `piton metrics`.

use super::args::MetricsArgs;
use super::named::{self, must_exist};
use super::out::{self, outln};
use super::signals;
use crate::folder::VmFolder;
use crate::manager::metrics;

pub fn run(args: &MetricsArgs) -> anyhow::Result<()> {
    let home = named::home()?;
    let Some(at) = args.listen else {
        let folders = match &args.names[..] {
            [] => home.all()?,
            names => {
                let folders: Vec<VmFolder> = names.iter().map(|name| home.folder(name)).collect();
                folders.iter().try_for_each(must_exist)?;
                folders
            }
        };
        out::to_stdout(&metrics::of(&folders)?);
        return Ok(());
    };
    if !at.ip().is_loopback() {
        log::warn!("others on the network can read the metrics: there is neither a password nor encryption");
    }
    let stopped = signals::first()?;
    let ready = |at| {
        outln!("http://{at}/metrics");
        super::notify::ready();
    };
    Ok(metrics::serve(home, at, ready, stopped)?)
}
