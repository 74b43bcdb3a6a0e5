//! Packs, in which chunks lie one after another, and their indexes: bytes only, no store here.

use super::keys::{CHUNK_MAX, STORED_MAX};
use super::name::Name;
use crate::id::Id;

const MAGIC: [u8; 8] = *b"PITONpck";
const INDEX_MAGIC: [u8; 8] = *b"PITONidx";
const VERSION: u32 = 1;
/// Magic, version, id.
const HEADER: usize = 28;
/// The same, bytes of the pack, number of chunks.
const INDEX_HEADER: usize = 40;
const ENTRY: usize = Name::LEN + 12;
const SUM: usize = 32;
/// A pack that has this many bytes gets no more.
const FULL: usize = 16 << 20;
/// Most bytes of a pack that is read: other versions may make larger ones.
const PACK_MAX: u64 = 64 << 20;
const CHUNKS_MAX: usize = 1 << 16;
pub const INDEX_MAX: u64 = (INDEX_HEADER + CHUNKS_MAX * ENTRY + SUM) as u64;

/// Where a chunk is in its pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub name: Name,
    pub offset: u32,
    pub stored: u32,
    /// Bytes of the chunk itself.
    pub len: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    pub pack: Id,
    /// Of all of the pack.
    pub bytes: u64,
    pub entries: Vec<Entry>,
}

impl Index {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(INDEX_HEADER + self.entries.len() * ENTRY + SUM);
        bytes.extend_from_slice(&INDEX_MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(self.pack.as_bytes());
        bytes.extend_from_slice(&self.bytes.to_le_bytes());
        bytes.extend_from_slice(&(self.entries.len() as u32).to_le_bytes());
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.name.0);
            for word in [entry.offset, entry.stored, entry.len] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        let sum = blake3::hash(&bytes);
        bytes.extend_from_slice(sum.as_bytes());
        bytes
    }

    /// Of the object that is named after `pack`; else what is wrong with it.
    pub fn decode(bytes: &[u8], pack: Id) -> Result<Self, String> {
        const SHORT: &str = "it is too short";
        let (body, sum) = bytes.len().checked_sub(SUM).map(|at| bytes.split_at(at)).ok_or(SHORT)?;
        let (header, entries) = body.split_at_checked(INDEX_HEADER).ok_or(SHORT)?;
        if header[..8] != INDEX_MAGIC {
            return Err("it is not the index of a pack".into());
        }
        let version = word(header, 8);
        if version != VERSION {
            return Err(format!("it has format {version}, and this version of piton reads {VERSION}"));
        }
        if blake3::hash(body).as_bytes() != sum {
            return Err("its checksum does not match".into());
        }
        if header[12..28] != *pack.as_bytes() {
            return Err("it is the index of another pack".into());
        }
        let size = u64::from(word(header, 28)) | u64::from(word(header, 32)) << 32;
        let count = word(header, 36) as usize;
        if size > PACK_MAX || count > CHUNKS_MAX || entries.len() != count * ENTRY {
            return Err("its lengths are impossible".into());
        }
        let entries = entries.chunks_exact(ENTRY).map(|bytes| {
            let mut name = Name::ZEROS;
            name.0.copy_from_slice(&bytes[..Name::LEN]);
            let [offset, stored, len] = [0, 4, 8].map(|at| word(bytes, Name::LEN + at));
            let end = u64::from(offset) + u64::from(stored);
            let fits = (HEADER as u32..).contains(&offset)
                && end <= size
                && (1..=STORED_MAX as u32).contains(&stored)
                && (1..=CHUNK_MAX as u32).contains(&len)
                && name != Name::ZEROS;
            fits.then_some(Entry { name, offset, stored, len })
        });
        let entries = entries.collect::<Option<_>>().ok_or("it names an impossible chunk")?;
        Ok(Self { pack, bytes: size, entries })
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// A pack in the making.
pub struct Builder {
    pack: Id,
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

/// A pack and its index, as objects.
pub struct Pack {
    pub id: Id,
    pub bytes: Vec<u8>,
    pub index: Vec<u8>,
}

impl Builder {
    pub fn new() -> std::io::Result<Self> {
        let pack = Id::random()?;
        let bytes = [MAGIC.as_slice(), &VERSION.to_le_bytes(), pack.as_bytes()].concat();
        Ok(Self { pack, bytes, entries: Vec::new() })
    }

    /// `stored` is what became of a chunk of `len` bytes.
    pub fn add(&mut self, name: Name, len: usize, stored: &[u8]) {
        // A pack ends long before 4 GiB.
        let offset = self.bytes.len() as u32;
        self.entries.push(Entry { name, offset, stored: stored.len() as u32, len: len as u32 });
        self.bytes.extend_from_slice(stored);
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.bytes.len() >= FULL || self.entries.len() >= CHUNKS_MAX
    }

    pub fn finish(self) -> Pack {
        let index = Index { pack: self.pack, bytes: self.bytes.len() as u64, entries: self.entries };
        Pack { id: self.pack, bytes: self.bytes, index: index.encode() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Pack {
        let mut builder = Builder::new().unwrap();
        for n in 1..=3u8 {
            builder.add(Name([n; 32]), 4096, &vec![n; usize::from(n) * 100]);
        }
        builder.finish()
    }

    #[test]
    fn an_index_says_where_the_chunks_are() {
        let pack = sample();
        let index = Index::decode(&pack.index, pack.id).unwrap();
        assert_eq!(index.bytes, pack.bytes.len() as u64);
        for (n, entry) in (1..).zip(&index.entries) {
            let part = &pack.bytes[entry.offset as usize..][..entry.stored as usize];
            assert_eq!((entry.name, part), (Name([n; 32]), vec![n; usize::from(n) * 100].as_slice()));
        }
        assert_eq!(index.encode(), pack.index);
    }

    #[test]
    fn every_changed_byte_and_every_other_length_is_noticed() {
        let pack = sample();
        for at in 0..pack.index.len() {
            let mut bad = pack.index.clone();
            bad[at] ^= 1;
            assert!(Index::decode(&bad, pack.id).is_err(), "{at}");
            assert!(Index::decode(&pack.index[..at], pack.id).is_err(), "{at}");
        }
        assert!(Index::decode(&pack.index, Id::from_bytes([9; 16])).is_err());
        // One that was made on purpose.
        let index = Index::decode(&pack.index, pack.id).unwrap();
        let wrong: [fn(&mut Index); 6] = [
            |index| index.bytes = 20,
            |index| index.bytes = u64::MAX,
            |index| index.entries[0].offset = u32::MAX,
            |index| index.entries[0].stored = 0,
            |index| index.entries[0].len = CHUNK_MAX as u32 + 1,
            |index| index.entries[0].name = Name::ZEROS,
        ];
        for change in wrong {
            let mut index = index.clone();
            change(&mut index);
            assert!(Index::decode(&index.encode(), pack.id).is_err());
        }
    }
}
