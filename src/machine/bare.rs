use std::thread::JoinHandle;

use super::MachineError;
use super::builder::{BareMachine, bare};
use crate::config::VmConfig;

/// A [`BareMachine`] that is made beside other work.
pub struct Bare {
    config: VmConfig,
    thread: Option<JoinHandle<Result<BareMachine, MachineError>>>,
}

impl Bare {
    pub fn begin(config: &VmConfig) -> Self {
        let wanted = config.clone();
        // Where no thread can be had, it is made when it is needed.
        let thread = std::thread::Builder::new().name("kvm".into()).spawn(move || bare(&wanted)).ok();
        Self { config: config.clone(), thread }
    }

    /// One for `config`, whatever it was begun for.
    pub fn end(mut self, config: &VmConfig) -> Result<BareMachine, MachineError> {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(made)) if self.config == *config => made,
            _ => bare(config),
        }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
