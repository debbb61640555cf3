//! Which texts leak into protected ones: the test split, or files that no training row may repeat. Few texts are all
//! compared with each other; of many, those that share stretches of characters word for word are, so that time grows with
//! the texts and not with their square.

use crate::text::{Picked, hash, mix, shared, shingles};
use rayon::prelude::*;
use std::collections::HashMap;

/// How much of a protected text must recur in another for the other to contain it.
pub const CONTAINED: f64 = 0.9;
/// A text below this many shingles is too short to be told apart from a phrase.
const CONTAINED_MIN: usize = 20;
/// Up to so many pairs of candidate and protected text, every pair is looked at.
const ALL_PAIRS: u64 = 1_000_000_000;

/// For each candidate the first protected text that leaks into it: Jaccard similarity at least `threshold`, or
/// [`CONTAINED`] of the protected text's shingles in it ("Hello, I am new here. " put before a test message). No pair is
/// missed among few texts. Of more than [`ALL_PAIRS`] pairs, a leak is found that repeats a fifth of the protected text's
/// stretches of 12 characters: halves of a message do, single words that happen to recur do not.
pub fn leaks(candidates: Picked<'_>, protected: Picked<'_>, threshold: f64) -> Vec<Option<usize>> {
    if candidates.len() as u64 * protected.len() as u64 <= ALL_PAIRS {
        exhaustive(candidates, protected, threshold)
    } else {
        anchored(candidates, protected, threshold)
    }
}

fn is_leak(both: usize, own: usize, other: usize, threshold: f64) -> bool {
    let alike = both as f64 >= threshold * (own + other - both).max(1) as f64;
    both > 0 && (alike || other >= CONTAINED_MIN && both as f64 >= CONTAINED * other as f64)
}

fn exhaustive(candidates: Picked<'_>, protected: Picked<'_>, threshold: f64) -> Vec<Option<usize>> {
    let sets: Vec<Vec<u64>> = (0..protected.len()).into_par_iter().map(|i| shingles(protected.get(i))).collect();
    let mut index: HashMap<u64, Vec<u32>> = HashMap::new();
    for (i, set) in sets.iter().enumerate() {
        set.iter().for_each(|shingle| index.entry(*shingle).or_default().push(i as u32));
    }
    (0..candidates.len())
        .into_par_iter()
        .map_init(
            || vec![0u32; protected.len()],
            |counts, i| {
                let set = shingles(candidates.get(i));
                counts.fill(0);
                for i in set.iter().filter_map(|s| index.get(s)).flatten() {
                    counts[*i as usize] += 1;
                }
                let leak =
                    |(i, n): (usize, &u32)| is_leak(*n as usize, set.len(), sets[i].len(), threshold).then_some(i);
                counts.iter().enumerate().filter(|(_, n)| **n > 0).find_map(leak)
            },
        )
        .collect()
}

fn anchored(candidates: Picked<'_>, protected: Picked<'_>, threshold: f64) -> Vec<Option<usize>> {
    let index = Index::new(protected);
    (0..candidates.len())
        .into_par_iter()
        .map_init(Vec::new, |hits: &mut Vec<u32>, i| {
            hits.clear();
            stretches(candidates.get(i)).into_iter().for_each(|s| hits.extend(index.holding(s)));
            hits.sort_unstable();
            let enough =
                hits.chunk_by(|a, b| a == b).filter(|hit| hit.len() >= usize::from(index.need[hit[0] as usize]));
            let mut own: Option<Vec<u64>> = None;
            enough.map(|hit| hit[0] as usize).find(|p| {
                let own = own.get_or_insert_with(|| shingles(candidates.get(i)));
                let other = shingles(protected.get(*p));
                is_leak(shared(own, &other), own.len(), other.len(), threshold)
            })
        })
        .collect()
}

/// Bytes of a stretch, and how many follow one another of which one is taken.
const STRETCH: usize = 12;
const WINDOW: usize = 8;

/// Hashes of some stretches of [`STRETCH`] bytes, sorted, each once: of every [`WINDOW`] that follow one another the one
/// with the smallest hash (winnowing, Schleimer et al. 2003), so that two texts with 19 bytes in common have one in common.
fn stretches(normal: &str) -> Vec<u64> {
    let bytes = normal.as_bytes();
    if bytes.len() < STRETCH {
        return vec![hash(bytes)];
    }
    let at = |w: &[u8]| {
        let long = w.iter().take(8).fold(0u64, |x, b| x << 8 | u64::from(*b));
        let short = w.iter().skip(8).fold(0u64, |x, b| x << 8 | u64::from(*b));
        mix(long ^ mix(short ^ 0x5eed))
    };
    let all: Vec<u64> = bytes.windows(STRETCH).map(at).collect();
    let smallest = |w: &[u64]| w.iter().fold(u64::MAX, |m, h| if *h < m { *h } else { m });
    let mut out: Vec<u64> = all.windows(WINDOW.min(all.len())).map(smallest).collect();
    out.dedup();
    out.sort_unstable();
    out.dedup();
    out
}

/// Stretches of the protected texts.
struct Index {
    /// Stretch and text, sorted; found through the first entry of each slot of the stretch's leading bits.
    entries: Vec<(u64, u32)>,
    starts: Vec<u32>,
    shift: u32,
    /// Entries of a text that a leak has in common with it at least.
    need: Vec<u16>,
}

/// A stretch that more protected texts have is a phrase of many; it counts only for texts that have little else.
const COMMON: usize = 200;
/// Entries that every text has, its rarest.
const LEAST: usize = 3;

impl Index {
    fn new(protected: Picked<'_>) -> Index {
        let mut all: Vec<(u64, u32)> = (0..protected.len())
            .into_par_iter()
            .flat_map_iter(|i| stretches(protected.get(i)).into_iter().map(move |s| (s, i as u32)))
            .collect();
        all.par_sort_unstable();
        let mut kept = vec![0u16; protected.len()];
        let mut entries = Vec::new();
        let mut common: Vec<(u32, u32, u64)> = Vec::new();
        for run in all.chunk_by(|a, b| a.0 == b.0) {
            if run.len() <= COMMON {
                run.iter().for_each(|(_, i)| kept[*i as usize] = kept[*i as usize].saturating_add(1));
                entries.extend_from_slice(run);
            } else {
                common.extend(run.iter().map(|(s, i)| (*i, run.len() as u32, *s)));
            }
        }
        drop(all);
        common.retain(|(i, _, _)| usize::from(kept[*i as usize]) < LEAST);
        common.par_sort_unstable();
        for (i, _, stretch) in common {
            if usize::from(kept[i as usize]) < LEAST {
                kept[i as usize] += 1;
                entries.push((stretch, i));
            }
        }
        entries.par_sort_unstable();
        let bits = entries.len().max(2).ilog2().min(26);
        let shift = 64 - bits;
        let mut starts = vec![0u32; (1 << bits) + 1];
        entries.iter().for_each(|(s, _)| starts[(s >> shift) as usize + 1] += 1);
        (1..starts.len()).for_each(|i| starts[i] += starts[i - 1]);
        let need = kept.into_iter().map(|n| n.div_ceil(5)).collect();
        Index { entries, starts, shift, need }
    }

    fn holding(&self, stretch: u64) -> impl Iterator<Item = u32> {
        let slot = (stretch >> self.shift) as usize;
        let entries = &self.entries[self.starts[slot] as usize..self.starts[slot + 1] as usize];
        entries.iter().filter(move |(s, _)| *s == stretch).map(|(_, i)| *i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::{Rng, Texts, normal_form};

    type Search = fn(Picked<'_>, Picked<'_>, f64) -> Vec<Option<usize>>;

    fn of_all(search: Search, candidates: &Texts, protected: &Texts, threshold: f64) -> Vec<Option<usize>> {
        let rows = |texts: &Texts| (0..texts.len() as u32).collect::<Vec<u32>>();
        let (a, b) = (rows(candidates), rows(protected));
        search(Picked { texts: candidates, rows: &a }, Picked { texts: protected, rows: &b }, threshold)
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
        for search in [leaks, exhaustive, anchored] {
            assert_eq!(of_all(search, &train, &test, 0.8), [Some(0), Some(0), None, None]);
            assert_eq!(of_all(search, &train, &Texts::default(), 0.8), [None, None, None, None]);
            assert_eq!(of_all(search, &Texts::default(), &test, 0.8), []);
        }
    }

    fn made(rng: &mut Rng, n: usize, words: usize, most: usize) -> Vec<String> {
        let word = |rng: &mut Rng| format!("{:x}", mix(rng.below(words) as u64) >> 40);
        (0..n).map(|_| (0..1 + rng.below(most)).map(|_| word(rng)).collect::<Vec<_>>().join(" ")).collect()
    }

    /// Against comparing each with each, on texts of few words, so that many share much.
    #[test]
    fn among_few_texts_no_leak_is_missed() {
        let mut rng = Rng::new(8);
        let protected = made(&mut rng, 300, 13, 12);
        let mut candidates = made(&mut rng, 500, 13, 20);
        let wrap = |(i, p): (usize, &String)| format!("{} {p} thanks {i}", candidates[i]);
        let wrapped: Vec<String> = protected.iter().take(100).enumerate().map(wrap).collect();
        candidates.extend(wrapped);
        let (candidates, protected): (Texts, Texts) = (candidates.iter().collect(), protected.iter().collect());
        for threshold in [0.3, 0.6, 0.8, 1.0] {
            let want: Vec<Option<usize>> = (0..candidates.len())
                .map(|i| {
                    let set = shingles(candidates.get(i));
                    (0..protected.len()).find(|p| {
                        let other = shingles(protected.get(*p));
                        is_leak(shared(&set, &other), set.len(), other.len(), threshold)
                    })
                })
                .collect();
            assert_eq!(of_all(leaks, &candidates, &protected, threshold), want, "at {threshold}");
            assert!(want.iter().flatten().count() > 50);
        }
    }

    /// Planted leaks of a long log: a message inside another, one with a word exchanged, one with a typing error.
    #[test]
    fn among_many_texts_planted_leaks_are_found_and_nothing_else_is() {
        let mut rng = Rng::new(2);
        let protected: Vec<String> = made(&mut rng, 2000, 3000, 20)
            .into_iter()
            .filter(|p| p.len() > 40)
            .map(|p| format!("hello there my {p}"))
            .collect();
        let mut candidates: Vec<String> =
            made(&mut rng, 500, 3000, 20).iter().map(|c| format!("hello there my {c}")).collect();
        let strangers = candidates.len();
        for (i, p) in protected.iter().enumerate().take(900) {
            candidates.push(match i % 3 {
                0 => format!("good morning and {p} many thanks for all"),
                1 => p.replacen(' ', " so ", 5).replacen(" so ", " ", 4),
                _ => format!("{} q{}", &p[..p.len() / 2], &p[p.len() / 2..]),
            });
        }
        let (candidates, protected): (Texts, Texts) = (candidates.iter().collect(), protected.iter().collect());
        let all = of_all(exhaustive, &candidates, &protected, 0.8);
        let found = of_all(anchored, &candidates, &protected, 0.8);
        let (planted, missed) = (all.iter().flatten().count(), all.iter().zip(&found).filter(|(a, b)| a != b).count());
        assert!(planted > 850 && missed * 200 < planted, "{missed} of {planted} missed");
        assert!(found[..strangers].iter().all(Option::is_none));
        assert!(found.iter().zip(&all).all(|(f, a)| f.is_none() || a.is_some()), "what is found is a leak");
    }
}
