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
    Signals,
    Terminal,
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
            Self::Signals => "signals",
            Self::Terminal => "terminal",
        }
    }
}
