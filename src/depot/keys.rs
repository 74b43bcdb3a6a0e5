//! How chunks are named, packed and encrypted. All of it is the format: docs/depot.md.

use std::path::Path;

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{Key, XChaCha20Poly1305, XNonce};

use super::name::Name;
use super::{DepotError, Result};
use crate::id::Id;
use crate::storage::Storage;

/// Most bytes of a chunk: of memory; disks have half of it.
pub const CHUNK_MAX: usize = 256 << 10;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Most bytes that a chunk takes: it is not packed where that makes it longer.
pub const STORED_MAX: usize = 1 + CHUNK_MAX + NONCE + TAG;

const RAW: u8 = 0;
const ZSTD: u8 = 1;
const LEVEL: i32 = 3;

const NAMES: &str = "piton depot v1: names of chunks";
const CONTENTS: &str = "piton depot v1: contents";

/// The user's key: 32 bytes, in a file as 64 hexadecimal digits.
#[derive(Clone)]
pub struct Secret([u8; 32]);

impl Secret {
    pub fn random() -> Result<Self> {
        let mut bytes = [0; 32];
        for half in bytes.chunks_exact_mut(16) {
            half.copy_from_slice(Id::random().map_err(DepotError::Random)?.as_bytes());
        }
        Ok(Self(bytes))
    }

    pub fn read(storage: &Storage, path: &Path) -> Result<Self> {
        const MOST: u64 = 4096;
        let bytes = storage.read_at_most(path, MOST)?;
        let text = std::str::from_utf8(&bytes).unwrap_or_default();
        let name: Name = text.trim().parse().map_err(|_| {
            DepotError::Refused(format!(
                "{} is not a key file: it has to hold 64 hexadecimal digits, as `piton depot key` writes them",
                path.display()
            ))
        })?;
        Ok(Self(name.0))
    }

    /// A new file that nobody else can read.
    pub fn write(&self, storage: &Storage, path: &Path) -> Result<()> {
        let text = format!("{}\n", Name(self.0));
        storage.publish(path, false, |file| file.write_at(text.as_bytes(), 0)).map_err(|e| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                DepotError::Refused(format!("{} already exists: choose another file", path.display()))
            }
            _ => e.into(),
        })
    }
}

/// What an object is, so that none can stand in for another.
#[derive(Clone, Copy)]
pub enum Role<'a> {
    Chunk(&'a Name),
    /// By the name of its object.
    Manifest(&'a str),
}

impl Role<'_> {
    fn text(&self) -> Vec<u8> {
        match self {
            Self::Chunk(name) => [b"chunk:".as_slice(), &name.0].concat(),
            Self::Manifest(object) => [b"manifest:", object.as_bytes()].concat(),
        }
    }
}

struct Sealed {
    names: [u8; 32],
    contents: XChaCha20Poly1305,
}

/// Keys of one depot; none where it is not encrypted.
pub struct Keys(Option<Sealed>);

impl Keys {
    pub const PLAIN: Self = Self(None);

    pub fn new(secret: &Secret, depot: Id) -> Self {
        let material = [secret.0.as_slice(), depot.as_bytes()].concat();
        let contents = Key::from(blake3::derive_key(CONTENTS, &material));
        Self(Some(Sealed {
            names: blake3::derive_key(NAMES, &material),
            contents: XChaCha20Poly1305::new(&contents),
        }))
    }

    pub fn are_plain(&self) -> bool {
        self.0.is_none()
    }

    fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        match &self.0 {
            None => *blake3::hash(bytes).as_bytes(),
            Some(keys) => *blake3::keyed_hash(&keys.names, bytes).as_bytes(),
        }
    }

    pub fn name(&self, chunk: &[u8]) -> Name {
        if is_zero(chunk) { Name::ZEROS } else { Name(self.hash(chunk)) }
    }

    /// What the object of a manifest is called, which tells no more than a chunk's name does.
    pub fn object(&self, name: &str) -> String {
        Name(self.hash(name.as_bytes())).to_string()
    }

    /// A chunk as it lies in a pack.
    pub fn pack(&self, name: &Name, chunk: &[u8]) -> Result<Vec<u8>> {
        let packed = zstd::bulk::compress(chunk, LEVEL).ok().filter(|packed| packed.len() < chunk.len());
        let (how, bytes) = match &packed {
            Some(packed) => (ZSTD, packed.as_slice()),
            None => (RAW, chunk),
        };
        let mut stored = Vec::with_capacity(1 + bytes.len());
        stored.push(how);
        stored.extend_from_slice(bytes);
        self.seal(Role::Chunk(name), stored)
    }

    /// The chunk of this name and length again; else what is wrong with `stored`.
    pub fn unpack(
        &self,
        name: &Name,
        len: usize,
        stored: &[u8],
    ) -> std::result::Result<Vec<u8>, &'static str> {
        if len > CHUNK_MAX {
            return Err("a chunk is too long");
        }
        let opened = self.open(Role::Chunk(name), stored)?;
        let chunk = match opened.split_first() {
            Some((&RAW, bytes)) => bytes.to_vec(),
            Some((&ZSTD, bytes)) => {
                zstd::bulk::decompress(bytes, len).map_err(|_| "a chunk cannot be unpacked")?
            }
            _ => return Err("a chunk is packed in an unknown way"),
        };
        if chunk.len() != len || self.name(&chunk) != *name {
            return Err("the contents of a chunk are not those that it is named after");
        }
        Ok(chunk)
    }

    pub fn seal(&self, role: Role, bytes: Vec<u8>) -> Result<Vec<u8>> {
        let Some(keys) = &self.0 else { return Ok(bytes) };
        let mut nonce = [0; NONCE];
        for part in nonce.chunks_mut(16) {
            part.copy_from_slice(&Id::random().map_err(DepotError::Random)?.as_bytes()[..part.len()]);
        }
        let payload = Payload { msg: &bytes, aad: &role.text() };
        let sealed = keys.contents.encrypt(&XNonce::from(nonce), payload);
        let sealed = sealed.map_err(|_| DepotError::Refused("too much to encrypt at once".into()))?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub fn open(&self, role: Role, stored: &[u8]) -> std::result::Result<Vec<u8>, &'static str> {
        const WRONG: &str = "it cannot be decrypted: it was changed, or belongs elsewhere";
        let Some(keys) = &self.0 else { return Ok(stored.to_vec()) };
        let (nonce, sealed) = stored.split_at_checked(NONCE).ok_or(WRONG)?;
        let nonce = <[u8; NONCE]>::try_from(nonce).map_err(|_| WRONG)?;
        let payload = Payload { msg: sealed, aad: &role.text() };
        keys.contents.decrypt(&XNonce::from(nonce), payload).map_err(|_| WRONG)
    }
}

pub fn is_zero(bytes: &[u8]) -> bool {
    // Every byte equals the one before it, and the first is 0.
    matches!(bytes, [0, rest @ ..] if *rest == bytes[..rest.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> [Keys; 2] {
        [Keys::PLAIN, Keys::new(&Secret([7; 32]), Id::from_bytes([1; 16]))]
    }

    fn chunks() -> [Vec<u8>; 3] {
        let noise = (0..CHUNK_MAX as u64).map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8);
        [b"x".to_vec(), vec![5; CHUNK_MAX], noise.collect()]
    }

    #[test]
    fn chunks_come_back_and_every_flipped_bit_is_noticed() {
        for keys in keys() {
            for chunk in chunks() {
                let name = keys.name(&chunk);
                let stored = keys.pack(&name, &chunk).unwrap();
                assert!(stored.len() <= STORED_MAX);
                assert_eq!(keys.unpack(&name, chunk.len(), &stored).as_ref(), Ok(&chunk));
                for at in (0..stored.len()).step_by(stored.len().div_ceil(97)) {
                    for bit in 0..8 {
                        let mut bad = stored.clone();
                        bad[at] ^= 1 << bit;
                        // zstd has bits that mean nothing; what comes out is right or an error.
                        if let Ok(found) = keys.unpack(&name, chunk.len(), &bad) {
                            assert_eq!(found, chunk);
                        }
                    }
                }
                assert!(keys.unpack(&name, chunk.len(), &stored[..stored.len() - 1]).is_err());
                assert!(keys.unpack(&name, chunk.len() + 1, &stored).is_err());
                assert!(keys.unpack(&name, chunk.len(), &[]).is_err());
                let other = keys.name(b"another");
                assert!(keys.unpack(&other, chunk.len(), &stored).is_err());
            }
        }
    }

    #[test]
    fn what_is_encrypted_tells_nothing_and_cannot_stand_in() {
        let [plain, sealed] = keys();
        let chunk = vec![9; 4096];
        assert_ne!(plain.name(&chunk), sealed.name(&chunk));
        let elsewhere = Keys::new(&Secret([7; 32]), Id::from_bytes([2; 16]));
        assert_ne!(elsewhere.name(&chunk), sealed.name(&chunk));
        let bytes = sealed.seal(Role::Manifest("one"), chunk.clone()).unwrap();
        assert!(!bytes.windows(32).any(|part| part == &chunk[..32]));
        assert_eq!(sealed.open(Role::Manifest("one"), &bytes).as_ref(), Ok(&chunk));
        assert!(sealed.open(Role::Manifest("two"), &bytes).is_err());
        assert!(sealed.open(Role::Chunk(&Name([0; 32])), &bytes).is_err());
        assert!(elsewhere.open(Role::Manifest("one"), &bytes).is_err());
        // Never the same twice.
        assert_ne!(sealed.seal(Role::Manifest("one"), chunk.clone()).unwrap(), bytes);
        for keys in [plain, sealed] {
            assert_eq!(keys.name(&[0; 4096]), Name::ZEROS);
        }
    }
}
