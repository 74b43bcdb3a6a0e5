//! Which checkpoints are made of a VM.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What kind of checkpoint `create` makes of a VM that runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointType {
    /// None at all, of a VM that is off neither: for guests that going back would corrupt.
    Disabled,
    /// With memory.
    Standard,
    /// Disks as the guest's agent quiesced them; a standard one where it cannot.
    #[default]
    Production,
    /// As `Production`, and an error where the agent cannot.
    ProductionOnly,
}

impl CheckpointType {
    const ALL: [Self; 4] = [Self::Disabled, Self::Standard, Self::Production, Self::ProductionOnly];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Disabled => "disabled",
            Self::Standard => "standard",
            Self::Production => "production",
            Self::ProductionOnly => "production-only",
        }
    }
}

impl std::fmt::Display for CheckpointType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for CheckpointType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|one| one.as_str() == text);
        found.ok_or_else(|| {
            format!(
                "`{text}` is not a checkpoint type: use disabled, standard, production or production-only"
            )
        })
    }
}
