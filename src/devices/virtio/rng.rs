//! Entropy device (virtio 1.2, section 5.4): fills what the guest offers from the host's
//! random number generator.

use std::io::Write;

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Chain, Device, NotServed, Violation};
use crate::memory::GuestMemory;

/// Most bytes that one request gets; a driver that wants more asks again.
const MOST: usize = 4096;

pub struct Rng;

impl Device for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[64]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn activate(&mut self, _: u64) {}

    fn reset(&mut self) {}

    fn serve(&mut self, _: usize, memory: &GuestMemory, chain: Chain<'_>) -> Result<u32, NotServed> {
        let mut writer = chain.writer(memory).map_err(Violation::from_error("a random number request"))?;
        let mut bytes = [0; MOST];
        let wanted = &mut bytes[..writer.available_bytes().min(MOST)];
        // SAFETY: the pointer and length are those of one live, writable slice.
        let got = unsafe { libc::getrandom(wanted.as_mut_ptr().cast(), wanted.len(), 0) };
        // Fewer bytes than asked for are a valid answer; an error is answered with none.
        let got = usize::try_from(got).unwrap_or(0);
        writer.write_all(&wanted[..got]).map_err(|e| Violation(format!("a random number request: {e}")))?;
        Ok(got as u32)
    }
}
