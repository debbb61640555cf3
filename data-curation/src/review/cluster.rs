//! Which messages are about the same: k-means on sketches of their shingles. The queue takes of each cluster in turn.

use crate::text::{Rng, mix, normal_form, shingles};
use rayon::prelude::*;

/// Numbers of the vector that stands for a message.
const DIMENSIONS: usize = 64;
const LANES: usize = 16;
/// Rows that the centres are found on; the rest is only assigned.
const SAMPLE: usize = 8_192;
const ROUNDS: usize = 6;
const MOST_CHARS: usize = 1_000;

type Sketch = [f32; DIMENSIONS];

/// A random projection of the message's shingles, of length 1: near vectors, like messages.
fn sketch(message: &str) -> Sketch {
    let end = message.char_indices().nth(MOST_CHARS).map_or(message.len(), |(i, _)| i);
    let mut sums = [0_i32; DIMENSIONS];
    for shingle in shingles(&normal_form(&message[..end])) {
        let bits = mix(shingle);
        for (d, sum) in sums.iter_mut().enumerate() {
            *sum += (bits >> d & 1) as i32 * 2 - 1;
        }
    }
    let norm = sums.iter().map(|s| (s * s) as f32).sum::<f32>().sqrt().max(1e-9);
    sums.map(|s| s as f32 / norm)
}

/// Summed in lanes, which the processor adds at once.
fn dot(a: &Sketch, b: &Sketch) -> f32 {
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.as_chunks::<LANES>().0.iter().zip(b.as_chunks::<LANES>().0) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum()
}

fn nearest(sketch: &Sketch, centres: &[Sketch]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, centre) in centres.iter().enumerate() {
        let likeness = dot(centre, sketch);
        if likeness > best.1 {
            best = (i, likeness);
        }
    }
    best.0
}

/// Spherical k-means with k = √n on sketches: each message's cluster. The same on any number of threads.
pub fn clusters(messages: &[&str], seed: u64) -> Vec<usize> {
    let k = (messages.len() as f64).sqrt().round() as usize;
    if k < 2 {
        return vec![0; messages.len()];
    }
    let sketches: Vec<Sketch> = messages.par_iter().map(|m| sketch(m)).collect();
    let mut sample: Vec<usize> = (0..messages.len()).collect();
    Rng::new(seed).shuffle(&mut sample);
    sample.truncate(SAMPLE.max(k));
    let mut centres: Vec<Sketch> = sample[..k].iter().map(|i| sketches[*i]).collect();
    for _ in 0..ROUNDS {
        let of: Vec<usize> = sample.par_iter().map(|i| nearest(&sketches[*i], &centres)).collect();
        let mut sums = vec![[0.0_f32; DIMENSIONS]; k];
        for (i, cluster) in sample.iter().zip(of) {
            sums[cluster].iter_mut().zip(&sketches[*i]).for_each(|(s, x)| *s += x);
        }
        for (centre, sum) in centres.iter_mut().zip(sums) {
            let norm = sum.iter().map(|x| x * x).sum::<f32>().sqrt();
            if norm > 0.0 {
                *centre = sum.map(|x| x / norm);
            }
        }
    }
    sketches.par_iter().map(|s| nearest(s, &centres)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn like_messages_share_a_cluster() {
        let mut messages = Vec::new();
        for n in 0..40 {
            messages.push(format!("my card has not arrived after {n} weeks"));
            messages.push(format!("what is the exchange rate for {n} euros today"));
        }
        let texts: Vec<&str> = messages.iter().map(String::as_str).collect();
        let found = clusters(&texts, 1);
        let (cards, rates): (Vec<usize>, Vec<usize>) = (0..40).map(|n| (found[2 * n], found[2 * n + 1])).unzip();
        assert!(!cards.iter().any(|c| rates.contains(c)), "{found:?}");
    }

    #[test]
    fn the_nearest_is_that_of_a_plain_search() {
        let texts: Vec<String> = (0..60).map(|n| format!("message {} about thing {}", n * 37 % 11, n)).collect();
        let all: Vec<Sketch> = texts.iter().map(|t| sketch(t)).collect();
        for s in &all {
            let plain = |c: &Sketch| c.iter().zip(s).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let best = all[..20].iter().map(&plain).fold(f64::NEG_INFINITY, f64::max);
            assert!((plain(&all[nearest(s, &all[..20])]) - best).abs() < 1e-6);
        }
    }
}
