//! Spherical k-means of sparse vectors: rows by the direction they point in, seeded, the same clusters on every machine. What
//! mistakes have in common is read off its centres.

use limbeck_artifact::random::SplitMix64;

/// (feature, weight) by ascending feature, of length 1 or empty.
pub type Unit = Vec<(u32, f32)>;

const ROUNDS: usize = 50;
const STARTS: usize = 5;

/// A vector over its length.
pub fn unit(mut vector: Unit) -> Unit {
    let length = vector.iter().map(|(_, w)| f64::from(*w).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|(_, w)| *w = (f64::from(*w) / length) as f32);
    }
    vector
}

/// Cosine of a row with a centre.
pub fn cosine(row: &[(u32, f32)], centre: &[f64]) -> f64 {
    row.iter().map(|(feature, w)| f64::from(*w) * centre[*feature as usize]).sum()
}

/// Centres of length 1, `[clusters][features]`, at most `k` of them: none is without rows. The best of a few starts, by how near
/// rows are to their centres.
pub fn centres(rows: &[Unit], features: usize, k: usize, seed: u64) -> Vec<Vec<f64>> {
    let mut rng = SplitMix64::new(seed);
    let mut best = (f64::NEG_INFINITY, Vec::new());
    for _ in 0..STARTS {
        let found = settled(rows, begin(rows, features, k, &mut rng), features);
        let near = rows.iter().filter(|_| !found.is_empty()).map(|row| cosine(row, &found[nearest(row, &found)])).sum();
        if near > best.0 {
            best = (near, found);
        }
    }
    best.1
}

/// Lloyd's iteration: rows go to the nearest centre, centres to the middle of their rows, until nothing moves.
fn settled(rows: &[Unit], mut centres: Vec<Vec<f64>>, features: usize) -> Vec<Vec<f64>> {
    let mut of = Vec::new();
    for _ in 0..ROUNDS {
        let now: Vec<usize> = rows.iter().map(|row| nearest(row, &centres)).collect();
        if now == of {
            break;
        }
        of = now;
        let own = |cluster: usize| rows.iter().zip(&of).filter(move |(_, of)| **of == cluster).map(|(row, _)| row);
        centres = (0..centres.len()).filter_map(|cluster| mean(own(cluster), features)).collect();
    }
    centres
}

/// The first of those that are nearest.
pub fn nearest(row: &[(u32, f32)], centres: &[Vec<f64>]) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (i, centre) in centres.iter().enumerate() {
        let near = cosine(row, centre);
        if near > best.1 {
            best = (i, near);
        }
    }
    best.0
}

/// k-means++: each next centre is a row, likelier the further it is from those that are there.
fn begin(rows: &[Unit], features: usize, k: usize, rng: &mut SplitMix64) -> Vec<Vec<f64>> {
    let mut centres: Vec<Vec<f64>> = Vec::new();
    let mut apart = vec![1.0_f64; rows.len()];
    while centres.len() < k {
        let all: f64 = apart.iter().sum();
        if all <= 1e-9 {
            break;
        }
        let mut left = rng.unit() * all;
        let drawn = apart.iter().position(|apart| {
            left -= apart;
            left < 0.0 && *apart > 0.0
        });
        let Some(row) = drawn.or_else(|| apart.iter().rposition(|apart| *apart > 0.0)) else { break };
        let Some(centre) = mean(std::iter::once(&rows[row]), features) else {
            apart[row] = 0.0;
            continue;
        };
        for (apart, row) in apart.iter_mut().zip(rows) {
            *apart = apart.min((1.0 - cosine(row, &centre)).max(0.0));
        }
        apart[row] = 0.0;
        centres.push(centre);
    }
    centres
}

/// The mean's direction; None of nothing.
fn mean<'a>(rows: impl Iterator<Item = &'a Unit>, features: usize) -> Option<Vec<f64>> {
    let mut sum = vec![0.0; features];
    for (feature, w) in rows.flatten() {
        sum[*feature as usize] += f64::from(*w);
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    (length > 0.0).then(|| sum.iter().map(|x| x / length).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows around `k` axes of their own.
    fn planted(k: u32, each: usize, rng: &mut SplitMix64) -> Vec<Unit> {
        let one = |i: usize, rng: &mut SplitMix64| {
            let axis = i as u32 % k;
            let noise = |f: u32, rng: &mut SplitMix64| (f, if f == axis { 1.0 } else { 0.2 * rng.unit() as f32 });
            unit((0..k + 3).map(|f| noise(f, rng)).collect())
        };
        (0..each * k as usize).map(|i| one(i, rng)).collect()
    }

    #[test]
    fn planted_clusters_come_out_and_every_centre_is_the_mean_of_what_is_nearest() {
        let mut rng = SplitMix64::new(5);
        for k in [2_u32, 4] {
            let rows = planted(k, 25, &mut rng);
            let features = k as usize + 3;
            let found = centres(&rows, features, k as usize, 1);
            assert_eq!(found.len(), k as usize);
            assert_eq!(found, centres(&rows, features, k as usize, 1), "the same seed, the same bits");
            let of: Vec<usize> = rows.iter().map(|row| nearest(row, &found)).collect();
            for i in 0..rows.len() {
                assert_eq!(of[i], of[i % k as usize], "row {i} is with the others of its axis");
            }
            // Dense and slow: a fixed point of Lloyd's iteration.
            for (cluster, centre) in found.iter().enumerate() {
                let mut mean = vec![0.0_f64; features];
                for (row, _) in rows.iter().zip(&of).filter(|(_, of)| **of == cluster) {
                    row.iter().for_each(|(f, w)| mean[*f as usize] += f64::from(*w));
                }
                let length = mean.iter().map(|x| x * x).sum::<f64>().sqrt();
                assert!(mean.iter().zip(centre).all(|(x, y)| (x / length - y).abs() < 1e-12));
            }
        }
    }

    #[test]
    fn few_rows_and_empty_ones_make_few_clusters() {
        assert!(centres(&[], 3, 4, 1).is_empty());
        assert!(centres(&[Vec::new(), Vec::new()], 3, 4, 1).is_empty());
        let same = vec![unit(vec![(1, 3.0)]); 5];
        assert_eq!(centres(&same, 3, 4, 1), [vec![0.0, 1.0, 0.0]]);
    }
}
