//! What a running machine reports to its owner.

use std::sync::Arc;

/// Something the guest did, or that happened to it, that ends or changes its run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineEvent {
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked to be reset.
    Reset,
    /// The guest cannot go on; the text says why.
    Crash(String),
    /// A device cannot serve a request until somebody helps the host; the device says why.
    Stuck,
    /// The guest's agent is there again, and file systems may be frozen since it went.
    AgentBack,
}

/// Takes events from any thread of the machine; must not block.
pub type EventSink = Arc<dyn Fn(MachineEvent) + Send + Sync>;
