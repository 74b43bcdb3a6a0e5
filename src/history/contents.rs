//! A disk as `image/` reads it.

use std::sync::Arc;

use crate::disk::Backing;
use crate::image::ReadAt;

pub struct Contents<B: ?Sized>(pub Arc<B>);

impl<B: Backing + ?Sized> ReadAt for Contents<B> {
    fn len(&self) -> u64 {
        self.0.len()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), String> {
        self.0.read_at(buf, offset).map_err(|e| e.to_string())
    }
}
