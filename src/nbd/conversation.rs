use std::io;

use super::export::Export;
use super::wire::Broken;
use super::{handshake, transmission};

/// Talks with one client until it goes. `rest` is called where it may be silent for as long as it
/// likes.
pub(super) fn converse<S: io::Read + io::Write>(
    stream: &mut S,
    exports: &[Export],
    rest: impl Fn(&mut S),
) -> Result<(), Broken> {
    let Some(agreed) = handshake::negotiate(stream, exports)? else { return Ok(()) };
    loop {
        rest(stream);
        match transmission::Request::read(stream)? {
            Some(request) => transmission::answer(stream, &agreed, &request)?,
            None => return Ok(()),
        }
    }
}
