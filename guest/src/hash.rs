//! Pseudo-random content and a checksum; neither is meant to resist an attacker.

/// The word at a position of the content that a seed stands for. Every position
/// can be computed by itself, so any part can be written or verified alone.
#[inline]
pub fn word(seed: u64, index: u64) -> u64 {
    let mut x = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

pub fn fill(out: &mut [u64], seed: u64, first: u64) {
    for (i, w) in out.iter_mut().enumerate() {
        *w = word(seed, first + i as u64);
    }
}

/// The bytes from `at` on of a seed's content, each word with its least significant byte first.
pub fn bytes(out: &mut [u8], seed: u64, at: u64) {
    let (mut at, mut out) = (at, out);
    while !out.is_empty() {
        let word = word(seed, at / 8).to_le_bytes();
        let from = &word[(at % 8) as usize..];
        let len = from.len().min(out.len());
        let (now, rest) = out.split_at_mut(len);
        now.copy_from_slice(&from[..len]);
        at += len as u64;
        out = rest;
    }
}

pub const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

/// FNV-1a of more bytes.
pub fn fnv(sum: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(sum, |sum, &byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The index of the first word that differs from the seed's content.
pub fn differs(data: &[u64], seed: u64, first: u64) -> Option<usize> {
    data.iter().enumerate().position(|(i, &w)| w != word(seed, first + i as u64))
}

/// Four independent lanes, as one chain of multiplications would wait for itself.
pub struct Sum {
    lanes: [u64; 4],
    words: u64,
}

impl Sum {
    pub const fn new() -> Self {
        Self { lanes: [1, 2, 3, 4], words: 0 }
    }

    /// All calls but the last must bring a multiple of four words.
    pub fn add(&mut self, data: &[u64]) {
        let mut chunks = data.chunks_exact(4);
        for c in &mut chunks {
            for (lane, &w) in self.lanes.iter_mut().zip(c) {
                *lane = (*lane ^ w).wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(29);
            }
        }
        for (lane, &w) in self.lanes.iter_mut().zip(chunks.remainder()) {
            *lane = (*lane ^ w).wrapping_mul(0x2545_f491_4f6c_dd1d).rotate_left(29);
        }
        self.words += data.len() as u64;
    }

    pub fn finish(&self) -> u64 {
        self.lanes.iter().fold(self.words, |h, &lane| word(h ^ lane, 0))
    }
}

pub fn sum(data: &[u64]) -> u64 {
    let mut s = Sum::new();
    s.add(data);
    s.finish()
}
