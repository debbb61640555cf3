//! Which texts are nearly the same. MinHash proposes, the exact Jaccard similarity decides, union-find joins. Memory
//! holds a signature a text; shingles are made again where two texts are compared.

use crate::text::{Picked, jaccard, mix, shingles};
use rayon::prelude::*;
use std::collections::{HashMap, VecDeque};

/// Hash functions a signature; bands times rows is at most this.
const HASHES: usize = 120;
/// A pair at the threshold shares a bucket with at least this chance.
const RECALL: f64 = 0.995;
/// In a bucket, a text is compared with at most so many before it: a log of one template must not cost n².
const BUCKET: usize = 256;

/// Disjoint sets; the root of each is its smallest member.
pub struct UnionFind(Vec<u32>);

impl UnionFind {
    pub fn new(n: usize) -> UnionFind {
        UnionFind((0..n as u32).collect())
    }

    pub fn root(&mut self, i: usize) -> usize {
        let mut i = i as u32;
        while self.0[i as usize] != i {
            self.0[i as usize] = self.0[self.0[i as usize] as usize];
            i = self.0[i as usize];
        }
        i as usize
    }

    /// As [`UnionFind::root`], leaving the paths as they are, for many readers at once.
    fn peek(&self, i: u32) -> u32 {
        let mut i = i;
        while self.0[i as usize] != i {
            i = self.0[i as usize];
        }
        i
    }

    pub fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b) as u32;
    }
}

/// For each text the index of the first text of its cluster: texts joined by a chain of pairs whose Jaccard similarity
/// is at least `threshold`. `normal` are normal forms; at most 2³² of them.
pub fn clusters(normal: Picked<'_>, threshold: f64) -> Vec<usize> {
    let rows = band_rows(threshold);
    let bands = HASHES / rows;
    let signatures = signatures(normal, bands, rows);
    let mut joined = UnionFind::new(normal.len());
    for band in 0..bands {
        let mut keys: Vec<(u64, u32)> =
            (0..normal.len()).into_par_iter().map(|i| (signatures[i * bands + band], i as u32)).collect();
        keys.par_sort_unstable();
        let buckets: Vec<&[(u64, u32)]> = keys.chunk_by(|a, b| a.0 == b.0).filter(|bucket| bucket.len() > 1).collect();
        // Which pairs are compared depends on what earlier bands joined, what is joined in the end does not: a pair is
        // passed over only where its texts are joined already.
        let pairs: Vec<(u32, u32)> =
            buckets.par_iter().flat_map_iter(|bucket| alike(bucket, normal, threshold, &joined)).collect();
        pairs.into_iter().for_each(|(a, b)| joined.join(a as usize, b as usize));
    }
    (0..normal.len()).map(|i| joined.root(i)).collect()
}

/// `bands` numbers a text; two texts agree in one where `rows` of their minima do.
fn signatures(normal: Picked<'_>, bands: usize, rows: usize) -> Vec<u64> {
    let mut out = vec![0; normal.len() * bands];
    out.par_chunks_mut(bands).enumerate().for_each(|(i, signature)| {
        let minima = minima(&shingles(normal.get(i)));
        for (band, minima) in signature.iter_mut().zip(minima.chunks(rows)) {
            *band = minima.iter().fold(0, |h, minimum| mix(h ^ minimum));
        }
    });
    out
}

/// Permutations, and the bins that each one's values fall into: a minimum a bin costs a fifteenth of a permutation each.
const PERMUTATIONS: usize = 8;
const BINS: usize = HASHES / PERMUTATIONS;

/// [`HASHES`] numbers that two sets share with the chance of their Jaccard similarity: one-permutation hashing (Li et al.
/// 2012), an empty bin taking the value of the next one that is not (Shrivastava and Li 2014). Neighbours are of different
/// permutations, so that the minima of a band are independent.
fn minima(set: &[u64]) -> [u64; HASHES] {
    let mut out = [0; HASHES];
    for permutation in 0..PERMUTATIONS {
        let seed = mix((permutation as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1);
        let mut bins = [u64::MAX; BINS];
        for shingle in set {
            let value = mix(shingle ^ seed);
            let bin = &mut bins[(((value >> 32) * BINS as u64) >> 32) as usize];
            if value < *bin {
                *bin = value;
            }
        }
        for (at, value) in bins.iter().enumerate() {
            let taken = (0..BINS).find(|far| bins[(at + far) % BINS] != u64::MAX).unwrap_or(0);
            let value = if taken == 0 { *value } else { mix(bins[(at + taken) % BINS] ^ taken as u64) };
            out[at * PERMUTATIONS + permutation] = value;
        }
    }
    out
}

/// The pairs of a bucket that are alike and not joined yet.
fn alike(bucket: &[(u64, u32)], normal: Picked<'_>, threshold: f64, joined: &UnionFind) -> Vec<(u32, u32)> {
    let mut local = UnionFind::new(bucket.len());
    let mut first: HashMap<u32, usize> = HashMap::new();
    for (at, (_, i)) in bucket.iter().enumerate() {
        let before = *first.entry(joined.peek(*i)).or_insert(at);
        local.join(before, at);
    }
    let mut pairs = Vec::new();
    if first.len() == 1 {
        return pairs;
    }
    let mut window: VecDeque<Vec<u64>> = VecDeque::new();
    for (at, (_, i)) in bucket.iter().enumerate() {
        let set = shingles(normal.get(*i as usize));
        let from = at - window.len();
        for (k, other) in window.iter().enumerate() {
            let (small, large) = (set.len().min(other.len()), set.len().max(other.len()));
            let can = small as f64 >= threshold * large as f64;
            if can && local.root(from + k) != local.root(at) && jaccard(&set, other) >= threshold {
                local.join(from + k, at);
                pairs.push((bucket[from + k].1, *i));
            }
        }
        window.push_back(set);
        if window.len() > BUCKET {
            window.pop_front();
        }
    }
    pairs
}

/// The most rows a band (fewest false candidates) that still find a pair at the threshold with [`RECALL`].
fn band_rows(threshold: f64) -> usize {
    let recall = |rows: usize| 1.0 - (1.0 - threshold.powi(rows as i32)).powi((HASHES / rows) as i32);
    (1..=12).rev().find(|rows| recall(*rows) >= RECALL).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Rng, Texts, normal_form};

    fn of_all(texts: &Texts, threshold: f64) -> Vec<usize> {
        let rows: Vec<u32> = (0..texts.len() as u32).collect();
        clusters(Picked { texts, rows: &rows }, threshold)
    }

    /// The share of equal minima is an estimate of the similarity, for short sets too.
    #[test]
    fn minima_agree_as_often_as_sets_are_alike() {
        let mut rng = Rng::new(6);
        for (size, similarity) in [(400usize, 0.8), (100, 0.5), (40, 0.8), (12, 0.5)] {
            let mut agree = 0;
            for _ in 0..400 {
                let both = (2.0 * size as f64 * similarity / (1.0 + similarity)).round() as usize;
                let shared: Vec<u64> = (0..both).map(|_| rng.next_u64()).collect();
                let mut own = || [shared.clone(), (both..size).map(|_| rng.next_u64()).collect()].concat();
                let (a, b) = (minima(&own()), minima(&own()));
                agree += a.iter().zip(&b).filter(|(a, b)| a == b).count();
            }
            let found = agree as f64 / (400 * HASHES) as f64;
            let both = (2.0 * size as f64 * similarity / (1.0 + similarity)).round();
            let want = both / (2.0 * size as f64 - both);
            assert!((found - want).abs() < 0.02, "{found} for {want} with {size}");
        }
    }

    #[test]
    fn clusters_are_chains_of_similar_texts() {
        let texts: Texts = [
            "Where can I find an ATM that takes this card?",
            "how do I activate my new card",
            "Hi, where can I find an ATM that takes this card?",
            "Hi, where can I find an ATM that takes this card, thx",
            "how do I cancel my transfer",
        ]
        .map(normal_form)
        .into_iter()
        .collect();
        assert_eq!(of_all(&texts, 0.8), [0, 1, 0, 0, 4]);
        assert_eq!(of_all(&Texts::default(), 0.8), [0usize; 0]);
    }

    /// Against the quadratic search, on random texts with random edits.
    #[test]
    fn banding_finds_what_comparing_all_pairs_finds() {
        let mut rng = Rng::new(5);
        let words =
            ["card", "transfer", "money", "when", "please", "arrive", "atm", "top", "up", "refund", "limit", "why"];
        let mut texts: Vec<String> = Vec::new();
        for _ in 0..150 {
            let base: Vec<&str> = (0..8 + rng.below(8)).map(|_| *rng.pick(&words)).collect();
            texts.push(base.join(" "));
            let mut edited = base.clone();
            let at = rng.below(edited.len());
            edited[at] = *rng.pick(&words);
            texts.push(edited.join(" "));
        }
        let sets: Vec<Vec<u64>> = texts.iter().map(|t| shingles(t)).collect();
        let texts: Texts = texts.iter().collect();
        for threshold in [0.6, 0.7, 0.8, 0.9] {
            let mut want = UnionFind::new(sets.len());
            for i in 0..sets.len() {
                for j in 0..i {
                    if jaccard(&sets[i], &sets[j]) >= threshold {
                        want.join(i, j);
                    }
                }
            }
            let want: Vec<usize> = (0..sets.len()).map(|i| want.root(i)).collect();
            let found = of_all(&texts, threshold);
            let missed = want.iter().zip(&found).filter(|(a, b)| a != b).count();
            assert!(missed <= 2, "{missed} of {} at {threshold}", sets.len());
            assert!(want.iter().enumerate().any(|(i, r)| i != *r));
            let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
            assert_eq!(one.install(|| of_all(&texts, threshold)), found);
        }
    }
}
