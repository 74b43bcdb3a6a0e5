//! Commands that end VMs.

use std::time::Duration;

use anyhow::{Context, anyhow};

use super::args::StopArgs;
use super::each::each;
use super::error::sentence;
use super::manage::{BUSY, LAST_BREATH, has_ended, info, other_command};
use super::output;
use crate::control::client::{self, ClientError};
use crate::control::{StopBody, VmInfo};
use crate::folder::{VmFolder, VmName};

/// How long a VM that is cut off may take to end; its work is cancelled first.
const FORCED: Duration = Duration::from_secs(10);

pub fn stop(args: &StopArgs, json: bool) -> anyhow::Result<()> {
    each(&args.names, json, |folder| stop_one(folder, args), output::state)
}

fn stop_one(folder: &VmFolder, args: &StopArgs) -> anyhow::Result<VmInfo> {
    match ask_to_stop(folder, args) {
        Ok(()) => {}
        // Its socket does not do what it should: there is a way that needs none.
        Err(e) if args.force && e.downcast_ref::<ClientError>().is_some_and(is_no_help) => {
            log::warn!("{}", sentence(&e));
            kill_process(folder)?;
        }
        Err(e) => return Err(e),
    }
    info(folder)
}

/// Cuts the power of VMs at once.
pub fn kill(names: &[VmName], json: bool) -> anyhow::Result<()> {
    let kill_one = |folder: &VmFolder| {
        match cut(folder) {
            Err(e) if e.downcast_ref::<ClientError>().is_some_and(is_no_help) => {
                log::warn!("{}", sentence(&e));
                kill_process(folder)?;
            }
            cut => cut?,
        }
        info(folder)
    };
    each(names, json, kill_one, output::state)
}

/// Ends the VM at once, and waits until its process is gone.
fn cut(folder: &VmFolder) -> anyhow::Result<()> {
    match client::post_within::<VmInfo>(&folder.socket(), "/vm/kill", &(), FORCED) {
        Ok(_) | Err(ClientError::NotRunning | ClientError::Ended) => {}
        Err(e) => return Err(e.into()),
    }
    ends_by_itself(folder, true, FORCED)
}

fn is_no_help(error: &ClientError) -> bool {
    matches!(error, ClientError::Silent { .. } | ClientError::Busy { .. } | ClientError::Broken(_))
}

/// Asks the guest to shut down, and with --force the VM to end, until its process is gone.
fn ask_to_stop(folder: &VmFolder, args: &StopArgs) -> anyhow::Result<()> {
    let (socket, name) = (folder.socket(), folder.name());
    let body = StopBody { force: args.force, timeout: Some(args.timeout) };
    match client::post_within::<VmInfo>(&socket, "/vm/stop", &body, BUSY) {
        Err(ClientError::NotRunning) => return ends_by_itself(folder, args.force, LAST_BREATH),
        Ok(_) | Err(ClientError::Ended) => {}
        Err(e) => return Err(e.into()),
    }
    // What its process does after the guest is off has a while, too.
    let last = if args.force { FORCED } else { Duration::ZERO };
    if has_ended(folder, Duration::from_secs(args.timeout.into()) + last) {
        return Ok(());
    }
    if matches!(client::get(&socket), Err(ClientError::NotRunning)) {
        return ends_by_itself(folder, args.force, Duration::ZERO);
    }
    if args.force {
        return cut(folder);
    }
    Err(anyhow!(
        "the guest of `{name}` did not shut down within {} s: wait longer (--timeout), or cut its \
         power with `piton kill {name}`",
        args.timeout,
    ))
}

/// Waits for a process that has closed its socket, or was told to end. With `force` what it is still
/// at has a while, and then it is ended.
fn ends_by_itself(folder: &VmFolder, force: bool, patience: Duration) -> anyhow::Result<()> {
    if has_ended(folder, patience) {
        return Ok(());
    }
    match folder.holder() {
        Ok(Some(holder)) if !holder.runs_a_vm() => Err(other_command(folder, &holder)),
        _ if force && has_ended(folder, FORCED) => Ok(()),
        _ if force => kill_process(folder),
        _ => Err(anyhow!(
            "the guest of `{name}` has shut down, but its process is still working on the disks, which \
             can take a while; `piton kill {name}` ends it without losing data",
            name = folder.name()
        )),
    }
}

/// Ends a VM's process, whatever it is at. Its files are made for that.
fn kill_process(folder: &VmFolder) -> anyhow::Result<()> {
    let name = folder.name();
    let holder = folder.holder().context("cannot list processes")?;
    let Some(holder) = holder else {
        if has_ended(folder, LAST_BREATH) {
            return Ok(());
        }
        return Err(anyhow!("cannot find the process of the VM `{name}`: does it run as another user?"));
    };
    if !holder.runs_a_vm() {
        return Err(other_command(folder, &holder));
    }
    let pid = holder.pid();
    holder.kill().with_context(|| format!("cannot kill process {pid}"))?;
    if !holder.has_ended(FORCED).with_context(|| format!("cannot wait for process {pid}"))? {
        return Err(anyhow!(
            "process {pid} of the VM `{name}` was killed but has not exited yet: it is waiting for the host, most likely for a disk"
        ));
    }
    output::complain(&format!("the VM `{name}` did not stop on its own: its process {pid} was killed"));
    Ok(())
}
