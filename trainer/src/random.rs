//! Random numbers whose whole state is one `u64`, so that a checkpoint can hold it. Each use has its own stream, named by a seed
//! and a purpose, so adding a use changes no other.

use limbeck_artifact::random::SplitMix64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Random(SplitMix64);

impl Random {
    /// A stream for one purpose of a seed.
    pub fn new(seed: u64, purpose: &str) -> Self {
        // FNV-1a over the purpose keeps the streams apart.
        let hash = purpose.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3));
        let mut random = Random(SplitMix64::new(seed ^ hash));
        random.next_u64();
        random
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// Uniform in [0, 1), 24 bits.
    pub fn unit(&mut self) -> f32 {
        (self.next_u64() >> 40) as f32 / (1u64 << 24) as f32
    }

    /// Uniform in `0..n`, without bias (Lemire's method).
    pub fn below(&mut self, n: usize) -> usize {
        let n = n.max(1) as u64;
        loop {
            let wide = self.next_u64() as u128 * n as u128;
            if (wide as u64) >= n.wrapping_neg() % n {
                return (wide >> 64) as usize;
            }
        }
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_purpose_and_repeat_by_seed() {
        let take = |seed, purpose| {
            let mut r = Random::new(seed, purpose);
            [r.next_u64(), r.next_u64(), r.next_u64()]
        };
        assert_eq!(take(1, "order"), take(1, "order"));
        assert_ne!(take(1, "order"), take(1, "init"));
        assert_ne!(take(1, "order"), take(2, "order"));
    }

    #[test]
    fn a_shuffle_is_a_permutation_and_every_place_is_reached() {
        let mut random = Random::new(7, "test");
        let mut first = [0usize; 5];
        for _ in 0..5000 {
            let mut items = [0, 1, 2, 3, 4];
            random.shuffle(&mut items);
            first[items[0]] += 1;
            items.sort();
            assert_eq!(items, [0, 1, 2, 3, 4]);
        }
        assert!(first.iter().all(|&n| (850..1150).contains(&n)), "{first:?}");
    }
}
