//! LoRA dropout as PEFT has it: a module's adapter sees its input with some elements dropped and the rest scaled up, the
//! frozen matrix sees all of it. A mask follows from seed, step, module and the tokens up to a position, so resuming,
//! accumulating and sharing a prefix change no element of it.

use super::{Frozen, Lora, Ops};
use crate::layout::Packed;
use burn::tensor::{Tensor, TensorData};
use rayon::prelude::*;
use std::sync::Arc;

/// What one module drops in one micro-batch.
#[derive(Clone, Debug)]
pub struct Dropout {
    /// The chance of an element to be dropped, from 0 to below 1.
    pub p: f32,
    /// A key a token, from [`token_keys`].
    pub keys: Arc<Vec<u64>>,
    /// Tells the modules apart, from [`module_key`].
    pub module: u64,
}

impl Dropout {
    /// `x` with its mask.
    pub(super) fn apply(&self, ops: &dyn Ops, x: Tensor<2>) -> Tensor<2> {
        let [n, width] = x.dims();
        x * Tensor::from_data(TensorData::new(self.mask(width), [n, width]), &ops.device())
    }

    /// `[tokens, width]`: 0 where an element is dropped, 1/(1-p) elsewhere.
    pub fn mask(&self, width: usize) -> Vec<f32> {
        let kept = 1.0 / (1.0 - self.p);
        let threshold = (self.p as f64 * (1u64 << 32) as f64) as u64;
        let mut mask = vec![0f32; self.keys.len() * width];
        if width == 0 {
            return mask;
        }
        mask.par_chunks_mut(width).zip(self.keys.par_iter()).for_each(|(row, key)| {
            let stream = mix(key ^ self.module);
            for (i, pair) in row.chunks_mut(2).enumerate() {
                let bits = mix(stream.wrapping_add((i as u64 + 1).wrapping_mul(GOLDEN)));
                for (value, half) in pair.iter_mut().zip([bits >> 32, bits & 0xffff_ffff]) {
                    *value = if half >= threshold { kept } else { 0.0 };
                }
            }
        });
        mask
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finalizer (Steele, Lea and Flood, 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a of the module's path.
pub fn module_key(path: &str) -> u64 {
    path.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ b as u64).wrapping_mul(0x0100_0000_01b3))
}

/// A key for each token of a batch of chains: a hash of the seed, the step and the tokens of its row up to it, the shared
/// prefix among them. So a row gets the same masks whatever it is packed with.
pub fn token_keys(batch: &Packed, seed: u64, step: u64) -> Vec<u64> {
    let start = mix(mix(seed.wrapping_add(GOLDEN)) ^ step.wrapping_mul(GOLDEN));
    let next = |key: u64, token: u32| mix(key.wrapping_add(GOLDEN) ^ (token as u64 + 1));
    let mut keys = vec![start; batch.len()];
    let mut key = start;
    for (slot, token) in keys.iter_mut().zip(&batch.tokens).take(batch.prefix) {
        key = next(key, *token);
        *slot = key;
    }
    let after_prefix = key;
    for row in &batch.rows {
        key = after_prefix;
        for i in row.tokens.clone() {
            key = next(key, batch.tokens[i]);
            keys[i] = key;
        }
    }
    keys
}

/// [`Ops::linear`] with a dropout on the adapter's input, in plain burn over the op set's own frozen product.
pub(super) fn linear(ops: &dyn Ops, x: Tensor<2>, weight: &Frozen, lora: &Lora, dropout: &Dropout) -> Tensor<2> {
    let y = ops.linear(x.clone(), weight, None);
    let down = dropout.apply(ops, x).matmul(lora.a.clone().transpose());
    ops.add(y, down.matmul(lora.b.clone().transpose()) * lora.scaling)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> [Vec<u32>; 3] {
        [vec![1, 2, 3, 4, 5], vec![1, 2, 3, 9], vec![1, 2, 3, 4, 6, 7]]
    }

    #[test]
    fn a_row_keeps_its_keys_whatever_it_is_packed_with() {
        let mut shared = Packed::with_prefix(&[1, 2, 3], 0);
        let ranges: Vec<_> = rows().iter().map(|r| shared.push_chain(&r[3..], 3)).collect();
        let together = token_keys(&shared, 5, 7);
        for (row, range) in rows().iter().zip(ranges) {
            let mut alone = Packed::new();
            alone.push_chain(row, 0);
            let keys = token_keys(&alone, 5, 7);
            assert_eq!(keys[..3], together[..3]);
            assert_eq!(keys[3..], together[range]);
        }
        // Where two rows part, so do their keys; another step or seed has others everywhere.
        assert_ne!(together[3], together[5]);
        for other in [token_keys(&shared, 5, 8), token_keys(&shared, 6, 7)] {
            assert!(other.iter().zip(&together).all(|(a, b)| a != b));
        }
    }

    #[test]
    fn as_many_are_dropped_as_asked_and_the_mean_stays() {
        for p in [0.0f32, 0.1, 0.5, 0.9] {
            let keys = Arc::new((0..200u64).map(|i| mix(i + 1)).collect::<Vec<_>>());
            let mask = Dropout { p, keys, module: module_key("q_proj") }.mask(501);
            let n = mask.len() as f64;
            let dropped = mask.iter().filter(|m| **m == 0.0).count() as f64 / n;
            let spread = 4.0 * (p as f64 * (1.0 - p as f64) / n).sqrt();
            assert!((dropped - p as f64).abs() <= spread, "{dropped} of {p}");
            assert!(mask.iter().all(|m| *m == 0.0 || *m == 1.0 / (1.0 - p)));
        }
    }

    #[test]
    fn modules_drop_other_elements() {
        let keys = Arc::new(vec![mix(1), mix(2)]);
        let mask = |module: &str| Dropout { p: 0.5, keys: keys.clone(), module: module_key(module) }.mask(64);
        assert_eq!(mask("q_proj"), mask("q_proj"));
        let (q, k) = (mask("q_proj"), mask("k_proj"));
        let same = q.iter().zip(&k).filter(|(a, b)| a == b).count();
        assert!((30..98).contains(&same), "{same} of 128 are equal");
        assert_ne!(q[..64], q[64..]);
    }
}
