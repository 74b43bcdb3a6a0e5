//! Text that is put together in a place of fixed size.

use core::fmt::{Error, Result, Write};

pub struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or("")
    }
}

impl<const N: usize> Write for Text<N> {
    /// What does not fit is an error, and nothing of it is written.
    fn write_str(&mut self, text: &str) -> Result {
        let end = self.len + text.len();
        self.bytes.get_mut(self.len..end).ok_or(Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}
