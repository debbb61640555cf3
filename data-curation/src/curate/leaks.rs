//! Which texts leak into protected ones: the test split, or files that no training row may repeat. Exhaustive, unlike
//! MinHash: a protected text is indexed by its rarest shingles, so many that a leak has to share some of them.

use crate::text::{Picked, shared, shingles};
use rayon::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};

/// How much of a protected text must recur in another for the other to contain it.
pub const CONTAINED: f64 = 0.9;
/// A text below this many shingles is too short to be told apart from a phrase.
const CONTAINED_MIN: usize = 20;
/// Rare shingles that a leak must share before it is compared; each costs one more entry of the index a text.
const SHARED_MIN: usize = 3;

/// For each candidate the first protected text that leaks into it: Jaccard similarity at least `threshold`, or
/// [`CONTAINED`] of the protected text's shingles in it ("Hello, I am new here. " put before a test message).
pub fn leaks(candidates: Picked<'_>, protected: Picked<'_>, threshold: f64) -> Vec<Option<usize>> {
    let index = Index::new(protected, threshold);
    (0..candidates.len())
        .into_par_iter()
        .map_init(Vec::new, |hits, i| {
            let set = shingles(candidates.get(i));
            hits.clear();
            set.iter().for_each(|s| hits.extend(index.holding(*s)));
            hits.sort_unstable();
            let enough = hits.chunk_by(|a, b| a == b).filter(|hit| hit.len() >= index.need[hit[0] as usize] as usize);
            enough.map(|hit| hit[0] as usize).find(|p| is_leak(&set, &shingles(protected.get(*p)), threshold))
        })
        .collect()
}

fn is_leak(set: &[u64], protected: &[u64], threshold: f64) -> bool {
    let (n, own, other) = (shared(set, protected), set.len(), protected.len());
    let alike = n as f64 >= threshold * (own + other - n).max(1) as f64;
    n > 0 && (alike || other >= CONTAINED_MIN && n as f64 >= CONTAINED * other as f64)
}

/// Rare shingles of the protected texts.
struct Index {
    /// Shingle and text, sorted; found through the first entry of each slot of the shingle's leading bits.
    entries: Vec<(u64, u32)>,
    starts: Vec<u32>,
    shift: u32,
    /// Entries of a text that a leak has in common with it at least.
    need: Vec<u8>,
}

/// Counters for how often a shingle occurs; shingles that fall together only make the order of rareness less sharp.
const COUNTERS: usize = 1 << 22;

impl Index {
    fn new(protected: Picked<'_>, threshold: f64) -> Index {
        let counters: Vec<AtomicU32> = (0..COUNTERS).map(|_| AtomicU32::new(0)).collect();
        let counter = |s: u64| &counters[s as usize % COUNTERS];
        let all = || (0..protected.len()).into_par_iter();
        all().for_each(|i| {
            shingles(protected.get(i)).into_iter().for_each(|s| {
                counter(s).fetch_add(1, Ordering::Relaxed);
            });
        });
        let rare = |i: usize| {
            let mut set = shingles(protected.get(i));
            set.sort_unstable_by_key(|s| (counter(*s).load(Ordering::Relaxed), *s));
            // A leak shares `least` of them at least, so of any `len - least + k` it shares k.
            let part = if set.len() >= CONTAINED_MIN { threshold.min(CONTAINED) } else { threshold };
            let least = ((part * set.len() as f64 - 1e-9).ceil() as usize).clamp(1, set.len());
            let need = SHARED_MIN.min(least);
            set.truncate(set.len() - least + need);
            (set, need as u8)
        };
        let need: Vec<u8> = all().map(|i| rare(i).1).collect();
        let mut entries: Vec<(u64, u32)> =
            all().flat_map_iter(|i| rare(i).0.into_iter().map(move |s| (s, i as u32))).collect();
        entries.par_sort_unstable();
        let bits = (entries.len().max(2)).ilog2().min(26);
        let shift = 64 - bits;
        let mut starts = vec![0u32; (1 << bits) + 1];
        entries.iter().for_each(|(s, _)| starts[(s >> shift) as usize + 1] += 1);
        (1..starts.len()).for_each(|i| starts[i] += starts[i - 1]);
        Index { entries, starts, shift, need }
    }

    fn holding(&self, shingle: u64) -> impl Iterator<Item = u32> {
        let slot = (shingle >> self.shift) as usize;
        let entries = &self.entries[self.starts[slot] as usize..self.starts[slot + 1] as usize];
        entries.iter().filter(move |(s, _)| *s == shingle).map(|(_, i)| *i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Rng, Texts, normal_form};

    fn of_all(candidates: &Texts, protected: &Texts, threshold: f64) -> Vec<Option<usize>> {
        let rows = |texts: &Texts| (0..texts.len() as u32).collect::<Vec<u32>>();
        let (a, b) = (rows(candidates), rows(protected));
        leaks(Picked { texts: candidates, rows: &a }, Picked { texts: protected, rows: &b }, threshold)
    }

    fn normal(texts: &[&str]) -> Texts {
        texts.iter().map(|t| normal_form(t)).collect()
    }

    #[test]
    fn a_leak_is_alike_or_contains() {
        let test = normal(&["why was my refund not shown in the app", "card"]);
        let train = normal(&[
            "Why was my refund not shown in the app?!",
            "Good morning to you all there, I hope that you are well. Why was my refund not shown in the app? Many thanks.",
            "my card is gone",
            "why was my transfer refused",
        ]);
        assert_eq!(of_all(&train, &test, 0.8), [Some(0), Some(0), None, None]);
        assert_eq!(of_all(&train, &Texts::default(), 0.8), [None, None, None, None]);
        assert_eq!(of_all(&Texts::default(), &test, 0.8), []);
    }

    /// Against comparing each with each, on texts of few words, so that many share much.
    #[test]
    fn no_leak_is_missed() {
        let mut rng = Rng::new(8);
        let words =
            ["card", "my", "transfer", "is", "gone", "why", "not", "the", "app", "x", "refund", "please", "now"];
        let mut made = |n: usize, most: usize| -> Vec<String> {
            (0..n).map(|_| (0..1 + rng.below(most)).map(|_| *rng.pick(&words)).collect::<Vec<_>>().join(" ")).collect()
        };
        let protected = made(300, 12);
        let mut candidates = made(500, 20);
        let wrapped = protected.iter().take(100).enumerate().map(|(i, p)| format!("{} {p} thanks {i}", candidates[i]));
        let wrapped: Vec<String> = wrapped.collect();
        candidates.extend(wrapped);
        let (candidates, protected): (Texts, Texts) = (candidates.iter().collect(), protected.iter().collect());
        for threshold in [0.3, 0.6, 0.8, 1.0] {
            let want: Vec<Option<usize>> = (0..candidates.len())
                .map(|i| {
                    let set = shingles(candidates.get(i));
                    (0..protected.len()).find(|p| is_leak(&set, &shingles(protected.get(*p)), threshold))
                })
                .collect();
            assert_eq!(of_all(&candidates, &protected, threshold), want, "at {threshold}");
            assert!(want.iter().flatten().count() > 50);
        }
    }
}
