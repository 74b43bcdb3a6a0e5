//! The VM's networks: what is at the other end of its cards, whichever machine runs.

use std::process::Command;
use std::time::Duration;

use super::{Message, Vmm, VmmError};
use crate::checkpoint::Manifest;
use crate::config::{Forward, NetConfig};
use crate::control::{NetworkInfo, RequestError, Traffic};
use crate::history::CheckpointError;
use crate::history::networks::check_addresses;
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
        if !nets.iter().any(NetConfig::is_connected) || self.network.is_some() {
            return Ok(());
        }
        if nets.iter().any(NetConfig::is_user) {
            check_free(&self.definition.forwards, PORT_PATIENCE)?;
        }
        check_addresses(&self.folder, nets)?;
        let program = std::env::current_exe().map_err(SetupError::Keeper)?;
        let mut keeper = Command::new(program);
        keeper.arg("keep-network");
        let sender = self.sender.clone();
        let listener = Box::new(move |news| {
            // After the VM's end nobody needs to know.
            let _ = sender.send(Message::Network(news));
        });
        self.network = Some(Network::start(nets, keeper, listener)?);
        Ok(())
    }

    /// Plugs a fresh machine in, and waits for it: what cannot be is said before its guest runs.
    pub(super) fn plug_in(&mut self) -> Result<(), VmmError> {
        let Some(machine) = &self.machine else { return Ok(()) };
        if !self.definition.config.nets.iter().any(NetConfig::is_connected) {
            return Ok(());
        }
        let network = self.network.as_ref().ok_or(SetupError::TooLate)?;
        let nets = self.definition.config.nets.clone();
        Ok(network.attach_all(machine.links(), nets, self.definition.forwards.clone())?)
    }

    /// Takes what the networks of `manifest` need beside what the VM has, before anything is done:
    /// what cannot be had is an error.
    pub(super) fn reserve_networks(&self, manifest: &Manifest) -> Result<(), CheckpointError> {
        let nets = &manifest.config.nets;
        if manifest.memory.is_none() || !nets.iter().any(NetConfig::is_connected) {
            return Ok(());
        }
        let take = || -> Result<(), VmmError> {
            let network = self.network.as_ref().ok_or(SetupError::TooLate)?;
            check_addresses(&self.folder, nets)?;
            Ok(network.reserve(nets.clone())?)
        };
        take().map_err(|e| match self.with_a_way_out(e, manifest) {
            VmmError::Network(e @ SetupError::Failed(_)) => CheckpointError::Network(e.to_string()),
            e => CheckpointError::Refused(e.to_string()),
        })
    }

    /// Gives back what was taken for a checkpoint that the VM did not go to.
    pub(super) fn keep_networks(&self) {
        if let Some(network) = &self.network {
            // What is left is given back with the next machine.
            let _ = network.reserve(Vec::new());
        }
    }

    /// The error of a network that is not to be had here, with what helps.
    pub(super) fn with_a_way_out(&self, error: VmmError, manifest: &Manifest) -> VmmError {
        match error {
            VmmError::Address(_) | VmmError::Network(SetupError::User(_) | SetupError::Tap(_)) => {
                VmmError::Elsewhere {
                    error: Box::new(error),
                    checkpoint: format!("{}@{}", self.folder.name(), manifest.name),
                }
            }
            error => error,
        }
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
