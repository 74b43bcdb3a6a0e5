//! The VM's networks: what is at the other end of its cards, whichever machine runs.

use std::process::Command;
use std::time::Duration;

use super::{Vmm, VmmError};
use crate::config::{Forward, NetConfig};
use crate::control::{NetworkInfo, RequestError, Traffic};
use crate::net::{Network, SetupError, check_free};

/// How long a port may be taken by who had it before: a process of this VM that was killed.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

impl Vmm {
    /// Begins what the networks need, of a VM that has any, before its process is confined. It goes
    /// on beside all else.
    pub(super) fn start_network(&mut self) -> Result<(), VmmError> {
        let nets = self.definition.config.nets.clone();
        self.start_network_for(&nets)
    }

    /// [`Self::start_network`], of a VM that goes to a checkpoint.
    pub(super) fn start_network_for(&mut self, nets: &[NetConfig]) -> Result<(), VmmError> {
        if nets.is_empty() || self.network.is_some() {
            return Ok(());
        }
        check_free(&self.definition.forwards, PORT_PATIENCE)?;
        let program = std::env::current_exe().map_err(SetupError::Keeper)?;
        let mut keeper = Command::new(program);
        keeper.arg("keep-network");
        self.network = Some(Network::start(nets, keeper)?);
        Ok(())
    }

    /// Plugs a fresh machine in, and waits for it: what cannot be is said before its guest runs.
    pub(super) fn plug_in(&mut self) -> Result<(), VmmError> {
        let Some(machine) = &self.machine else { return Ok(()) };
        if self.definition.config.nets.is_empty() {
            return Ok(());
        }
        let network = self.network.as_ref().ok_or(SetupError::TooLate)?;
        let nets = self.definition.config.nets.clone();
        Ok(network.attach_all(machine.links(), nets, self.definition.forwards.clone())?)
    }

    /// Plugs a machine in that took another one's place. Nobody waits for it: until it is done the
    /// link is down.
    pub(super) fn plug_over(&self) {
        if let (Some(machine), Some(network)) = (&self.machine, &self.network) {
            let nets = self.definition.config.nets.clone();
            network.attach(machine.links(), nets, self.definition.forwards.clone());
        }
    }

    /// Lets the ports of `next` lead to the guest from now on, in place of those of `now`. After an
    /// error those do still.
    pub(super) fn set_forwards(&self, now: &[Forward], next: &[Forward]) -> Result<(), RequestError> {
        let Some(network) = self.network.as_ref().filter(|_| now != next) else { return Ok(()) };
        network.set_forwards(next.to_vec()).map_err(|e| match e {
            SetupError::Failed(_) => RequestError::Failed(e.to_string()),
            _ => RequestError::Refused(e.to_string()),
        })
    }

    pub(super) fn network_info(&self) -> Vec<NetworkInfo> {
        let Some(machine) = &self.machine else { return Vec::new() };
        let each = machine.links().into_iter().map(|link| {
            let info = link.info();
            let traffic = |(frames, bytes)| Traffic { frames, bytes };
            NetworkInfo {
                up: info.up,
                addresses: info.addresses,
                received: traffic(info.received),
                sent: traffic(info.sent),
            }
        });
        each.collect()
    }
}
