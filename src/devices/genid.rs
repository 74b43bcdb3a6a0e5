//! VM generation id: 16 bytes in guest memory that change when the VM goes back in time or becomes
//! another's copy, so that the guest can renew what must be unique: random numbers, identities,
//! sequence numbers of replication.
//!
//! Source: Microsoft, "Virtual Machine Generation ID" (2012). The ACPI tables name the page; the
//! generic event device says that it changed.

use vm_memory::{Bytes, GuestAddress};

use crate::id::Id;
use crate::layout::GENERATION_PAGE;
use crate::memory::GuestMemory;

#[derive(Debug, thiserror::Error)]
#[error("cannot write the VM generation id to guest memory at {GENERATION_PAGE:#x}: {0}")]
pub struct GenerationError(vm_memory::GuestMemoryError);

/// Puts the id where the guest looks for it. The guest must stand still: it may read the 16 bytes
/// one by one.
pub fn write(memory: &GuestMemory, generation: Id) -> Result<(), GenerationError> {
    memory.write_slice(generation.as_bytes(), GuestAddress(GENERATION_PAGE)).map_err(GenerationError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_finds_the_id_and_nothing_beside_it() {
        let memory = crate::memory::allocate(16 << 20).unwrap();
        write(&memory, Id::from_bytes([7; 16])).unwrap();
        let mut page = [0; 4096];
        memory.read_slice(&mut page, GuestAddress(GENERATION_PAGE)).unwrap();
        assert_eq!(page[..16], [7; 16]);
        assert!(page[16..].iter().all(|byte| *byte == 0));
    }
}
