/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    Main,
    Vcpu,
    Disk,
    Devices,
    Console,
    Control,
    /// Fills memory of a restored guest.
    Fill,
    /// Moves frames between a guest and its network.
    Net,
    /// Plugs networks in.
    Network,
    /// Moves bytes between programs of a guest and of the host.
    Vsock,
    /// Connects to programs that a guest calls. It begins before all others are confined.
    VsockCalls,
    /// Talks with the guest's agent.
    Agent,
    Signals,
    Terminal,
    /// All of a command without a machine that reads what others may have written: it works on files.
    Files,
    /// The same for an import, which also looks at the processor.
    Import,
    /// The same for what moves checkpoints to and from a depot on the network.
    Depot,
    /// The same for a server of disks.
    Serve,
    /// All that browsers reach of the web manager.
    Manager,
    /// Rotates the VMM's log.
    Log,
}

impl Thread {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Main => "main",
            Self::Vcpu => "vcpu",
            Self::Disk => "disk",
            Self::Devices => "devices",
            Self::Console => "console",
            Self::Control => "control",
            Self::Fill => "fill",
            Self::Net => "net",
            Self::Network => "network",
            Self::Vsock => "vsock",
            Self::VsockCalls => "vsock-calls",
            Self::Agent => "agent",
            Self::Signals => "signals",
            Self::Terminal => "terminal",
            Self::Files => "files",
            Self::Import => "import",
            Self::Depot => "depot",
            Self::Serve => "serve",
            Self::Manager => "manager",
            Self::Log => "log",
        }
    }
}
