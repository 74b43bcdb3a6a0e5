//! What a look at a VM's folder finds.

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    pub text: String,
    /// Whether piton mends it by itself; what it cannot mend is damage.
    pub mended: bool,
}

impl Finding {
    pub(super) fn mended(text: impl Into<String>) -> Self {
        Self { text: text.into(), mended: true }
    }

    pub(super) fn damage(text: impl Into<String>) -> Self {
        Self { text: text.into(), mended: false }
    }
}
