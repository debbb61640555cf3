//! Which texts are nearly the same. MinHash proposes, the exact Jaccard similarity decides, union-find joins; a second,
//! exhaustive search finds what reaches from one split into another.

use crate::text::{hash, jaccard, mix, shared};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// Hash functions a signature; bands times rows is at most this.
const HASHES: usize = 120;
/// A pair at the threshold shares a bucket with at least this chance.
const RECALL: f64 = 0.995;
/// In a bucket, a text is compared with at most so many before it: a log of one template must not cost n².
const BUCKET: usize = 256;

/// Disjoint sets; the root of each is its smallest member.
pub struct UnionFind(Vec<usize>);

impl UnionFind {
    pub fn new(n: usize) -> UnionFind {
        UnionFind((0..n).collect())
    }

    pub fn root(&mut self, mut i: usize) -> usize {
        while self.0[i] != i {
            self.0[i] = self.0[self.0[i]];
            i = self.0[i];
        }
        i
    }

    pub fn join(&mut self, a: usize, b: usize) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b)] = a.min(b);
    }
}

/// For each text the index of the first text of its cluster: texts joined by a chain of pairs whose Jaccard similarity
/// is at least `threshold`. `shingles` are sorted sets, see [`crate::text::shingles`].
pub fn clusters(shingles: &[Vec<u64>], threshold: f64) -> Vec<usize> {
    let rows = band_rows(threshold);
    let bands = HASHES / rows;
    let seeds: Vec<u64> = (0..(bands * rows) as u64).map(|k| mix(k.wrapping_mul(0x9e37_79b9_7f4a_7c15) + 1)).collect();
    let signatures: Vec<Vec<u64>> = shingles
        .par_iter()
        .map(|set| {
            let minimum = |seed: &u64| set.iter().map(|s| mix(s ^ seed)).min().unwrap_or(*seed);
            let minima: Vec<u64> = seeds.iter().map(minimum).collect();
            minima
                .chunks(rows)
                .map(|band| hash(&band.iter().flat_map(|m| m.to_le_bytes()).collect::<Vec<u8>>()))
                .collect()
        })
        .collect();
    let mut joined = UnionFind::new(shingles.len());
    for band in 0..bands {
        let mut buckets: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (i, signature) in signatures.iter().enumerate() {
            buckets.entry(signature[band]).or_default().push(i);
        }
        for bucket in buckets.into_values().filter(|b| b.len() > 1) {
            for (n, i) in bucket.iter().enumerate() {
                for j in &bucket[n.saturating_sub(BUCKET)..n] {
                    if joined.root(*i) != joined.root(*j) && jaccard(&shingles[*i], &shingles[*j]) >= threshold {
                        joined.join(*i, *j);
                    }
                }
            }
        }
    }
    (0..shingles.len()).map(|i| joined.root(i)).collect()
}

/// The most rows a band (fewest false candidates) that still find a pair at the threshold with [`RECALL`].
fn band_rows(threshold: f64) -> usize {
    let recall = |rows: usize| 1.0 - (1.0 - threshold.powi(rows as i32)).powi((HASHES / rows) as i32);
    (1..=12).rev().find(|rows| recall(*rows) >= RECALL).unwrap_or(1)
}

/// How much of a protected text must recur in another for the other to contain it.
pub const CONTAINED: f64 = 0.9;
/// A text below this many shingles is too short to be told apart from a phrase.
const CONTAINED_MIN: usize = 20;

/// For each candidate the first protected text that leaks into it: Jaccard similarity at least `threshold`, or
/// [`CONTAINED`] of the protected text's shingles in it ("Hello, I am new here. " put before a test message).
/// Exhaustive through an inverted index: no pair is missed, unlike with MinHash.
pub fn leaks(candidates: &[Vec<u64>], protected: &[Vec<u64>], threshold: f64) -> Vec<Option<usize>> {
    let mut index: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
    for (i, set) in protected.iter().enumerate() {
        for shingle in set {
            index.entry(*shingle).or_default().push(i as u32);
        }
    }
    candidates
        .par_iter()
        .map_init(
            || vec![0u32; protected.len()],
            |counts, set| {
                counts.fill(0);
                for i in set.iter().filter_map(|s| index.get(s)).flatten() {
                    counts[*i as usize] += 1;
                }
                counts.iter().enumerate().find_map(|(i, n)| {
                    let (n, own, other) = (*n as usize, set.len(), protected[i].len());
                    let alike = n as f64 >= threshold * (own + other - n).max(1) as f64;
                    let contains = other >= CONTAINED_MIN && n as f64 >= CONTAINED * other as f64;
                    debug_assert_eq!(n, shared(set, &protected[i]));
                    (n > 0 && (alike || contains)).then_some(i)
                })
            },
        )
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Rng, normal_form, shingles};

    fn sets(texts: &[&str]) -> Vec<Vec<u64>> {
        texts.iter().map(|t| shingles(&normal_form(t))).collect()
    }

    #[test]
    fn clusters_are_chains_of_similar_texts() {
        let texts = sets(&[
            "Where can I find an ATM that takes this card?",
            "how do I activate my new card",
            "Hi, where can I find an ATM that takes this card?",
            "Hi, where can I find an ATM that takes this card, thx",
            "how do I cancel my transfer",
        ]);
        assert_eq!(clusters(&texts, 0.8), [0, 1, 0, 0, 4]);
        assert_eq!(clusters(&[], 0.8), [0usize; 0]);
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
            let found = clusters(&sets, threshold);
            let missed = want.iter().zip(&found).filter(|(a, b)| a != b).count();
            assert!(missed <= 2, "{missed} of {} at {threshold}", sets.len());
            assert!(want.iter().enumerate().any(|(i, r)| i != *r));
        }
    }

    #[test]
    fn a_leak_is_alike_or_contains() {
        let test = sets(&["why was my refund not shown in the app", "card"]);
        let train = sets(&[
            "Why was my refund not shown in the app?!",
            "Good morning to you all there, I hope that you are well. Why was my refund not shown in the app? Many thanks.",
            "my card is gone",
            "why was my transfer refused",
        ]);
        assert_eq!(leaks(&train, &test, 0.8), [Some(0), Some(0), None, None]);
        assert_eq!(leaks(&train, &[], 0.8), [None, None, None, None]);
    }
}
