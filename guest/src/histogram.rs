//! Durations, counted in buckets of a sixteenth of a power of two.

const STEPS: u64 = 16;
const BITS: u32 = STEPS.ilog2();
const BUCKETS: usize = 64 * STEPS as usize;

pub struct Histogram {
    counts: [u64; BUCKETS],
    total: u64,
}

impl Histogram {
    pub const fn new() -> Self {
        Self { counts: [0; BUCKETS], total: 0 }
    }

    pub fn add(&mut self, us: u64) {
        let us = us.max(STEPS);
        let power = us.ilog2();
        let step = (us >> (power - BITS)) % STEPS;
        self.counts[(u64::from(power) * STEPS + step) as usize] += 1;
        self.total += 1;
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    /// The upper end of the bucket that the percentile lies in.
    pub fn percentile(&self, percent: u64) -> u64 {
        let mut left = (self.total * percent).div_ceil(100);
        for (bucket, &count) in self.counts.iter().enumerate() {
            if left <= count {
                let (power, step) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
                return ((STEPS + step + 1) << power) >> BITS;
            }
            left -= count;
        }
        0
    }
}
