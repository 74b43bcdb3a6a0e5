//! Which layer of a chain holds each block: one lookup however long the chain.
//!
//! Leaves of 4096 blocks. A leaf all of one layer is one byte; any other has a
//! palette of the layers that occur in it and 1, 2, 4 or 8 bits per block. A
//! 64 GiB disk is 4096 leaves: 2 MiB where every leaf mixes two layers, 8 MiB
//! where every one mixes sixteen.

use std::ops::Range;

/// Index of a layer, 0 the base.
pub(super) type Layer = u8;

const LEAF: u64 = 4096;

#[derive(Clone, Debug)]
pub(super) struct BlockMap {
    blocks: u64,
    leaves: Vec<Leaf>,
}

#[derive(Clone, Debug)]
enum Leaf {
    Uniform(Layer),
    Mixed(Box<Mixed>),
}

#[derive(Clone, Debug)]
struct Mixed {
    /// May name a layer twice after layers were merged.
    palette: Vec<Layer>,
    bits: u32,
    words: Box<[u64]>,
}

impl BlockMap {
    pub fn new(blocks: u64, layer: Layer) -> Self {
        Self { blocks, leaves: vec![Leaf::Uniform(layer); blocks.div_ceil(LEAF) as usize] }
    }

    pub fn get(&self, block: u64) -> Layer {
        match &self.leaves[(block / LEAF) as usize] {
            Leaf::Uniform(layer) => *layer,
            Leaf::Mixed(leaf) => leaf.get((block % LEAF) as usize),
        }
    }

    /// The layer of the first block of `blocks`, and how many from there on it holds.
    pub fn run(&self, blocks: Range<u64>) -> (Layer, u64) {
        let layer = self.get(blocks.start);
        let mut at = blocks.start;
        while at < blocks.end {
            let leaf_end = ((at / LEAF + 1) * LEAF).min(blocks.end);
            match &self.leaves[(at / LEAF) as usize] {
                Leaf::Uniform(other) if *other == layer => at = leaf_end,
                Leaf::Uniform(_) => break,
                Leaf::Mixed(leaf) => {
                    let end = at + (leaf_end - at);
                    while at < end && leaf.get((at % LEAF) as usize) == layer {
                        at += 1;
                    }
                    if at < end {
                        break;
                    }
                }
            }
        }
        (layer, at - blocks.start)
    }

    pub fn set(&mut self, blocks: Range<u64>, layer: Layer) {
        let mut at = blocks.start;
        while at < blocks.end {
            let index = at / LEAF;
            let leaf_end = ((index + 1) * LEAF).min(self.blocks);
            let end = leaf_end.min(blocks.end);
            let leaf = &mut self.leaves[index as usize];
            if at == index * LEAF && end == leaf_end {
                *leaf = Leaf::Uniform(layer);
            } else {
                leaf.set((at % LEAF) as usize, (end - at) as usize, layer);
            }
            at = end;
        }
    }

    /// More blocks at the end, of layer 0.
    pub fn grow(&mut self, blocks: u64) {
        let former = self.blocks;
        self.blocks = blocks.max(former);
        self.leaves.resize(self.blocks.div_ceil(LEAF) as usize, Leaf::Uniform(0));
        // What the last leaf says past the former end was never meant.
        self.set(former..former.next_multiple_of(LEAF).min(self.blocks), 0);
    }

    /// Layers `upper` and the one below it have become one.
    pub fn collapse(&mut self, upper: Layer) {
        let rename = |layer: &mut Layer| {
            if *layer >= upper {
                *layer -= 1;
            }
        };
        for leaf in &mut self.leaves {
            match leaf {
                Leaf::Uniform(layer) => rename(layer),
                Leaf::Mixed(leaf) => leaf.palette.iter_mut().for_each(rename),
            }
        }
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        let mixed = self.leaves.iter().map(|leaf| match leaf {
            Leaf::Uniform(_) => 0,
            Leaf::Mixed(m) => size_of::<Mixed>() + m.palette.capacity() + m.words.len() * 8,
        });
        self.leaves.len() * size_of::<Leaf>() + mixed.sum::<usize>()
    }
}

impl Leaf {
    fn set(&mut self, at: usize, count: usize, layer: Layer) {
        match self {
            Leaf::Uniform(old) if *old == layer => {}
            Leaf::Uniform(old) => {
                let mut mixed = Mixed {
                    palette: vec![*old],
                    bits: 1,
                    words: vec![0; LEAF as usize / 64].into_boxed_slice(),
                };
                mixed.set(at, count, layer);
                *self = Leaf::Mixed(Box::new(mixed));
            }
            Leaf::Mixed(mixed) => mixed.set(at, count, layer),
        }
    }
}

impl Mixed {
    fn get(&self, at: usize) -> Layer {
        self.palette[self.index(at)]
    }

    fn index(&self, at: usize) -> usize {
        let bit = at * self.bits as usize;
        let mask = (1u64 << self.bits) - 1;
        (self.words[bit / 64] >> (bit % 64) & mask) as usize
    }

    fn put(&mut self, at: usize, index: usize) {
        let bit = at * self.bits as usize;
        let mask = (1u64 << self.bits) - 1;
        let word = &mut self.words[bit / 64];
        *word = *word & !(mask << (bit % 64)) | (index as u64) << (bit % 64);
    }

    fn set(&mut self, at: usize, count: usize, layer: Layer) {
        let known = self.palette.iter().position(|l| *l == layer);
        let index = known.unwrap_or_else(|| self.add(layer));
        for at in at..at + count {
            self.put(at, index);
        }
    }

    fn add(&mut self, layer: Layer) -> usize {
        if self.palette.len() == 1 << self.bits {
            self.rebuild();
        }
        self.palette.push(layer);
        self.palette.len() - 1
    }

    /// Only the layers that still occur, and room for one more. At 8 bits
    /// there always is some: a layer that is new to the leaf is not among the
    /// at most 255 that occur.
    fn rebuild(&mut self) {
        let layers: Vec<Layer> = (0..LEAF as usize).map(|at| self.get(at)).collect();
        let mut palette = layers.clone();
        palette.sort_unstable();
        palette.dedup();
        palette.shrink_to_fit();
        let bits = [1, 2, 4].into_iter().find(|bits| palette.len() < 1 << bits);
        self.bits = bits.unwrap_or(8);
        self.words = vec![0; LEAF as usize * self.bits as usize / 64].into_boxed_slice();
        let mut indices = [0; 256];
        for (index, layer) in palette.iter().enumerate() {
            indices[*layer as usize] = index;
        }
        self.palette = palette;
        for (at, layer) in layers.into_iter().enumerate() {
            self.put(at, indices[layer as usize]);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn layers_are_those_of_a_model(
            ops in prop::collection::vec((0u64..10_000, 0u64..6000, 0u8..40, any::<u8>()), 1..80)
        ) {
            const BLOCKS: u64 = 10_000;
            let mut map = BlockMap::new(BLOCKS, 0);
            let mut model = vec![0u8; BLOCKS as usize];
            for (start, len, layer, kind) in ops {
                if kind >= 250 {
                    let blocks = model.len() as u64 + len % 900;
                    map.grow(blocks);
                    model.resize(blocks as usize, 0);
                } else if kind < 10 && layer > 0 {
                    map.collapse(layer);
                    for l in &mut model {
                        *l -= u8::from(*l >= layer);
                    }
                } else {
                    let len = if kind % 2 == 0 { len % 9 } else { len };
                    let end = (start + len).min(model.len() as u64);
                    map.set(start..end, layer);
                    model[start as usize..end as usize].fill(layer);
                }
            }
            let mut at = 0;
            let blocks = model.len() as u64;
            while at < blocks {
                let (layer, len) = map.run(at..blocks);
                prop_assert!(len > 0);
                prop_assert!(model[at as usize..(at + len) as usize].iter().all(|l| *l == layer));
                at += len;
                prop_assert!(at == blocks || model[at as usize] != layer);
            }
        }
    }

    #[test]
    fn all_layers_fit_in_one_leaf() {
        let mut map = BlockMap::new(4096, 0);
        for round in 0..3u64 {
            for layer in 0..=255u8 {
                map.set(u64::from(layer) + round..u64::from(layer) + round + 1, layer);
            }
        }
        assert_eq!((map.get(2), map.get(257)), (0, 255));
    }

    #[test]
    fn the_map_of_a_large_disk_is_small() {
        let blocks = (64u64 << 30) / 4096;
        let mut map = BlockMap::new(blocks, 0);
        assert!(map.memory() < 128 << 10);
        for block in (0..blocks).step_by(512) {
            for layer in 1..16 {
                map.set(block + u64::from(layer)..block + u64::from(layer) + 1, layer);
            }
        }
        assert!(map.memory() < 9 << 20, "{}", map.memory());
    }
}
