//! Whether messages themselves are others than before: maximum mean discrepancy (Gretton et al. 2012) of text embeddings, with
//! a p value by permutation. An embedding is 64 small numbers that a message's words and letters are hashed into: enough to tell
//! two kinds of traffic apart, too little to read a message from.

use crate::drift::Tested;
use limbeck_artifact::random::{SplitMix64, mix};

/// Numbers of an embedding.
const DIMENSIONS: usize = 64;
/// Messages of either side that are compared: the kernel's matrix has the square of twice as many entries.
pub const ROWS: usize = 256;
const CHARS: usize = 1_000;

/// A message's embedding, a byte a number in hexadecimal: words, pairs of words and runs of three letters, each hashed to a place
/// and a sign, the root of its count, over the length of the whole.
pub fn embedding(text: &str) -> String {
    let lower: String = text.chars().take(CHARS).flat_map(char::to_lowercase).collect();
    let mut counts = std::collections::BTreeMap::<u64, f64>::new();
    let hash = |seed: u64, bytes: &[u8]| bytes.iter().fold(mix(seed), |h, b| mix(h ^ u64::from(*b)));
    let words: Vec<&str> = lower.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    for (i, word) in words.iter().enumerate() {
        *counts.entry(hash(1, word.as_bytes())).or_default() += 1.0;
        if let Some(next) = words.get(i + 1) {
            *counts.entry(hash(2, format!("{word} {next}").as_bytes())).or_default() += 1.0;
        }
        let letters: Vec<char> = std::iter::once(' ').chain(word.chars()).chain(std::iter::once(' ')).collect();
        for run in letters.windows(3) {
            *counts.entry(hash(3, run.iter().collect::<String>().as_bytes())).or_default() += 1.0;
        }
    }
    let mut sums = [0.0_f64; DIMENSIONS];
    for (hash, count) in counts {
        let sign = if hash >> 63 == 0 { 1.0 } else { -1.0 };
        sums[(hash % DIMENSIONS as u64) as usize] += sign * f64::sqrt(count);
    }
    let length = sums.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-9);
    let bytes: Vec<u8> = sums.iter().map(|x| (x / length * 127.0).round() as i8 as u8).collect();
    limbeck_artifact::digest::hex(&bytes)
}

fn read(embedding: &str) -> Option<Vec<f64>> {
    let byte = |at: usize| Some(f64::from(u8::from_str_radix(embedding.get(at..at + 2)?, 16).ok()? as i8));
    (embedding.len() == 2 * DIMENSIONS).then(|| (0..DIMENSIONS).map(|i| byte(2 * i)).collect())?
}

/// So many rows of `n`, spread evenly and drawn by nothing but their place.
pub fn spread(n: usize) -> impl Iterator<Item = usize> {
    let kept = n.min(ROWS);
    (0..kept).map(move |i| ((2 * i + 1) * n) / (2 * kept))
}

/// MMD² of two sets of embeddings (unbiased, a Gaussian kernel as wide as the middle distance of all pairs), and how often a deal
/// of the same rows has one as large. None where a side has fewer than two rows, or one of them is no embedding.
pub fn mmd(before: &[String], after: &[String], permutations: u32, seed: u64) -> Option<Tested> {
    let rows: Vec<Vec<f64>> = before.iter().chain(after).map(|e| read(e)).collect::<Option<_>>()?;
    let (n, m) = (before.len(), after.len());
    if n < 2 || m < 2 {
        return None;
    }
    let kernel = kernel(&rows);
    let mut order: Vec<usize> = (0..n + m).collect();
    let seen = statistic(&kernel, &order, n);
    let mut rng = SplitMix64::new(seed);
    let mut as_large = 0_u32;
    for _ in 0..permutations {
        for i in (1..order.len()).rev() {
            order.swap(i, rng.below(i + 1));
        }
        as_large += u32::from(statistic(&kernel, &order, n) >= seen - 1e-12);
    }
    Some(Tested { value: seen, p: f64::from(as_large + 1) / f64::from(permutations + 1) })
}

/// `[rows][rows]`, zeros where a row meets itself: no term of the unbiased statistic has them.
fn kernel(rows: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let square = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>();
    let mut kernel: Vec<Vec<f64>> = rows.iter().map(|x| rows.iter().map(|y| square(x, y)).collect()).collect();
    let mut squares: Vec<f64> = (0..rows.len()).flat_map(|i| kernel[i][i + 1..].to_vec()).collect();
    squares.sort_by(f64::total_cmp);
    let middle = squares.get(squares.len() / 2).copied().unwrap_or(0.0).max(1e-9);
    for (i, row) in kernel.iter_mut().enumerate() {
        row.iter_mut().for_each(|square| *square = (-*square / middle).exp());
        row[i] = 0.0;
    }
    kernel
}

fn statistic(kernel: &[Vec<f64>], order: &[usize], n: usize) -> f64 {
    let (first, second) = order.split_at(n);
    let sum =
        |from: &[usize], to: &[usize]| from.iter().map(|i| to.iter().map(|j| kernel[*i][*j]).sum::<f64>()).sum::<f64>();
    let (n, m) = (first.len() as f64, second.len() as f64);
    sum(first, first) / (n * (n - 1.0)) + sum(second, second) / (m * (m - 1.0)) - 2.0 * sum(first, second) / (n * m)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(topics: &[&str], n: usize, seed: u64) -> Vec<String> {
        let mut rng = SplitMix64::new(seed);
        let fill = ["please", "today", "again", "quickly", "now", "sir", "hello", "thanks"];
        let mut one = |_: usize| {
            let word = |rng: &mut SplitMix64| fill[rng.below(fill.len())];
            let topic = topics[rng.below(topics.len())];
            embedding(&format!("{} {topic} {} {}", word(&mut rng), word(&mut rng), word(&mut rng)))
        };
        (0..n).map(&mut one).collect()
    }

    /// By the definition, pair by pair, from the embeddings as they are written.
    #[test]
    fn the_statistic_is_the_definitions() {
        let (before, after) =
            (messages(&["my card is lost"], 7, 1), messages(&["what is the rate", "my card is lost"], 5, 2));
        let floats = |all: &[String]| -> Vec<Vec<f64>> { all.iter().map(|e| read(e).unwrap()).collect() };
        let (x, y) = (floats(&before), floats(&after));
        let all: Vec<&Vec<f64>> = x.iter().chain(&y).collect();
        let distance = |a: &[f64], b: &[f64]| (0..DIMENSIONS).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>();
        let mut pairs = Vec::new();
        for i in 0..all.len() {
            for j in i + 1..all.len() {
                pairs.push(distance(all[i], all[j]));
            }
        }
        pairs.sort_by(f64::total_cmp);
        let k = |a: &[f64], b: &[f64]| (-distance(a, b) / pairs[pairs.len() / 2]).exp();
        let within = |a: &[Vec<f64>]| {
            let n = a.len();
            let pairs = (0..n).flat_map(|i| (0..n).filter(move |j| *j != i).map(move |j| (i, j)));
            pairs.map(|(i, j)| k(&a[i], &a[j])).sum::<f64>() / (n * (n - 1)) as f64
        };
        let across = x.iter().flat_map(|a| y.iter().map(move |b| (a, b))).map(|(a, b)| k(a, b)).sum::<f64>();
        let wanted = within(&x) + within(&y) - 2.0 * across / (x.len() * y.len()) as f64;
        let found = mmd(&before, &after, 50, 1).unwrap();
        assert!((found.value - wanted).abs() < 1e-12, "{found:?} {wanted}");
    }

    #[test]
    fn other_messages_are_told_from_the_same_ones() {
        let known = ["my card is lost", "where is my transfer", "top up failed"];
        let before = messages(&known, 120, 1);
        let alarms = (0..60).filter(|seed| mmd(&before, &messages(&known, 100, 50 + seed), 99, 1).unwrap().p <= 0.05);
        assert!(alarms.count() <= 9, "one in twenty, and three standard errors");
        let some = mmd(
            &before,
            &messages(&["my card is lost", "where is my transfer", "cancel my subscription"], 100, 9),
            199,
            1,
        );
        assert!(some.unwrap().p <= 0.01, "{some:?}");
        assert_eq!(
            some,
            mmd(
                &before,
                &messages(&["my card is lost", "where is my transfer", "cancel my subscription"], 100, 9),
                199,
                1
            )
        );
        assert_eq!(mmd(&before, &before[..1], 9, 1), None);
        assert_eq!(mmd(&before, &["zz".to_owned(), String::new()], 9, 1), None, "what is no embedding");
        assert_eq!(spread(1_000).count(), ROWS);
        assert_eq!(spread(3).collect::<Vec<_>>(), [0, 1, 2]);
    }
}
