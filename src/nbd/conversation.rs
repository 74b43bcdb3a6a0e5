use std::io;

use super::export::Export;
use super::wire::Broken;
use super::{handshake, transmission};

/// Talks with one client until it goes.
pub(super) fn converse(stream: &mut (impl io::Read + io::Write), exports: &[Export]) -> Result<(), Broken> {
    match handshake::negotiate(stream, exports)? {
        Some(agreed) => transmission::serve(stream, &agreed),
        None => Ok(()),
    }
}
