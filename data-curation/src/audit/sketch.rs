//! Counting a stream of any length in little memory: quantiles within one percent, the commonest values, how many are
//! distinct. Each sketch says how far off it can be.

use crate::text::mix;
use std::collections::{BTreeMap, HashMap};

/// Quantiles of positive numbers, each within 1 % of a value that really is at that rank: buckets whose bounds grow by a
/// constant factor (DDSketch, Masson et al. 2019, without its collapsing: 1 ms to 11 days are 1,040 buckets).
#[derive(Clone, Debug, Default)]
pub struct Quantiles {
    buckets: BTreeMap<i32, u64>,
    n: u64,
    sum: f64,
}

const GROWTH: f64 = 1.02;

impl Quantiles {
    pub fn add(&mut self, x: f64) {
        // Everything at or below 0.001 is one bucket.
        let bucket = (x.max(1e-3).ln() / GROWTH.ln()).ceil() as i32;
        *self.buckets.entry(bucket).or_default() += 1;
        self.n += 1;
        self.sum += x;
    }

    pub fn mean(&self) -> Option<f64> {
        (self.n > 0).then(|| self.sum / self.n as f64)
    }

    /// The smallest value that at least a share `q` of all are not above.
    pub fn at(&self, q: f64) -> Option<f64> {
        let rank = ((self.n as f64 * q).ceil() as u64).max(1);
        let mut below = 0;
        for (bucket, n) in &self.buckets {
            below += n;
            if below >= rank {
                // The middle of the bucket, so that the error is even on both sides.
                return Some(2.0 * GROWTH.powi(*bucket) / (1.0 + GROWTH));
            }
        }
        None
    }

    pub fn n(&self) -> u64 {
        self.n
    }
}

/// The commonest of many values (Misra and Gries 1982, in batches): with room for k, a count is too low by at most n/k,
/// and a value that makes up more than 1/k of all is among them.
#[derive(Clone, Debug)]
pub struct Common<T> {
    room: usize,
    counts: HashMap<u64, (u64, T)>,
    n: u64,
    /// Taken off every count so far: how far too low each may be.
    pub error: u64,
}

impl<T> Common<T> {
    pub fn new(room: usize) -> Common<T> {
        Common { room, counts: HashMap::new(), n: 0, error: 0 }
    }

    /// `value` is what stands for the hash; made when it is new.
    pub fn add(&mut self, hash: u64, value: impl FnOnce() -> T) {
        self.n += 1;
        self.counts.entry(hash).or_insert_with(|| (0, value())).0 += 1;
        if self.counts.len() > 2 * self.room {
            let mut counts: Vec<u64> = self.counts.values().map(|(n, _)| *n).collect();
            counts.sort_unstable_by(|a, b| b.cmp(a));
            let off = counts[self.room];
            self.error += off;
            self.counts.retain(|_, (n, _)| {
                *n = n.saturating_sub(off);
                *n > 0
            });
        }
    }

    /// All that are counted, the commonest first, equals by hash.
    pub fn most(&self) -> Vec<(u64, &T)> {
        let mut all: Vec<(&u64, &(u64, T))> = self.counts.iter().collect();
        all.sort_by(|a, b| b.1.0.cmp(&a.1.0).then(a.0.cmp(b.0)));
        all.into_iter().map(|(_, (n, value))| (*n, value)).collect()
    }

    pub fn n(&self) -> u64 {
        self.n
    }

    /// How many of a value were counted.
    pub fn count(&self, hash: u64) -> u64 {
        self.counts.get(&hash).map_or(0, |(n, _)| *n)
    }

    /// Shannon entropy of the values in bits. What was not counted is taken as all different, so that this is never too
    /// low: H = −Σ pᵢ log₂ pᵢ + (rest/n) log₂ n.
    pub fn entropy_bits(&self) -> f64 {
        let n = self.n as f64;
        if self.n == 0 {
            return 0.0;
        }
        let mut counts: Vec<u64> = self.counts.values().map(|(n, _)| *n).collect();
        // A sum of floats depends on its order, and a map's is random.
        counts.sort_unstable();
        let counted: u64 = counts.iter().sum();
        let known: f64 = counts.iter().map(|c| *c as f64 / n).map(|p| -p * p.log2()).sum();
        known + (self.n - counted) as f64 / n * n.log2()
    }
}

/// How many values are distinct, within some 1.6 % (HyperLogLog, Flajolet et al. 2007, 4096 registers, with linear counting
/// for small numbers).
#[derive(Clone, Debug)]
pub struct Distinct {
    registers: Box<[u8; REGISTERS]>,
}

const BITS: u32 = 12;
const REGISTERS: usize = 1 << BITS;

impl Default for Distinct {
    fn default() -> Distinct {
        Distinct { registers: Box::new([0; REGISTERS]) }
    }
}

impl Distinct {
    pub fn add(&mut self, hash: u64) {
        let hash = mix(hash ^ 0x9e37_79b9_7f4a_7c15);
        let register = (hash >> (64 - BITS)) as usize;
        let rank = ((hash << BITS).leading_zeros().min(64 - BITS) + 1) as u8;
        self.registers[register] = self.registers[register].max(rank);
    }

    pub fn count(&self) -> u64 {
        let m = REGISTERS as f64;
        let zeros = self.registers.iter().filter(|r| **r == 0).count();
        let sum: f64 = self.registers.iter().map(|r| 2f64.powi(-i32::from(*r))).sum();
        let raw = 0.7213 / (1.0 + 1.079 / m) * m * m / sum;
        let estimate = if raw <= 2.5 * m && zeros > 0 { m * (m / zeros as f64).ln() } else { raw };
        estimate.round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Rng;

    #[test]
    fn quantiles_are_those_of_the_sorted_list_within_a_percent() {
        let mut rng = Rng::new(3);
        let (mut sketch, mut all) = (Quantiles::default(), Vec::new());
        for _ in 0..5000 {
            let x = 900.0 * (3.0 * (rng.unit() + rng.unit() + rng.unit() - 1.5)).exp();
            sketch.add(x);
            all.push(x);
        }
        all.sort_by(f64::total_cmp);
        for q in [0.01, 0.5, 0.9, 0.95, 0.99, 1.0] {
            let exact = all[((all.len() as f64 * q).ceil() as usize - 1).min(all.len() - 1)];
            let got = sketch.at(q).unwrap();
            assert!((got / exact - 1.0).abs() <= 0.0101, "{q}: {got} for {exact}");
        }
        assert!((sketch.mean().unwrap() / (all.iter().sum::<f64>() / 5000.0) - 1.0).abs() < 1e-9);
        assert_eq!(Quantiles::default().at(0.5), None);
    }

    #[test]
    fn the_commonest_are_found_and_their_counts_are_near() {
        let mut rng = Rng::new(4);
        let weights: Vec<f64> = (1..=2000).map(|i| 1.0 / f64::from(i)).collect();
        let (mut sketch, mut exact) = (Common::new(100), HashMap::new());
        for _ in 0..40_000 {
            let value = rng.weighted(&weights) as u64;
            sketch.add(mix(value), || value);
            *exact.entry(value).or_insert(0u64) += 1;
        }
        assert!(sketch.error <= 40_000 / 100, "{}", sketch.error);
        for (value, n) in &exact {
            let got = sketch.count(mix(*value));
            assert!(got <= *n && *n - got <= sketch.error, "{value}: {got} of {n}");
        }
        assert_eq!(sketch.most().iter().take(3).map(|(_, v)| **v).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn entropy_is_the_sum_over_the_distribution() {
        let mut even = Common::new(100);
        let mut skewed = Common::new(100);
        for i in 0..800u64 {
            even.add(mix(i % 8), || ());
            skewed.add(mix(u64::from(i % 4 == 0)), || ());
        }
        assert!((even.entropy_bits() - 3.0).abs() < 1e-12);
        // Of 1/4 and 3/4: 0.25·2 + 0.75·log2(4/3)
        assert!((skewed.entropy_bits() - (0.5 + 0.75 * (4f64 / 3.0).log2())).abs() < 1e-12);
        let mut unique = Common::new(10);
        (0..1000u64).for_each(|i| unique.add(mix(i), || ()));
        assert!((unique.entropy_bits() - 1000f64.log2()).abs() < 1e-9, "all different, most of them forgotten");
    }

    #[test]
    fn distinct_values_are_counted_within_five_percent() {
        for n in [1u64, 10, 500, 5_000, 100_000] {
            let mut sketch = Distinct::default();
            (0..n).chain(0..n).for_each(|i| sketch.add(mix(i)));
            let got = sketch.count() as f64;
            assert!((got / n as f64 - 1.0).abs() < 0.05, "{got} for {n}");
        }
    }
}
