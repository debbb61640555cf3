//! Confident learning: which recorded labels are probably wrong, from probabilities that were computed without them
//! (out-of-fold). Whose probabilities they are does not matter here: the linear floor's, or a model's.
//!
//! Northcutt, Jiang, Chuang, "Confident Learning" (2021); as cleanlab's `compute_confident_joint`, uncalibrated.

/// What the probabilities say about the labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Noise {
    /// The probability of each row's own label.
    pub self_confidence: Vec<f32>,
    /// Rows that the confident joint counts off its diagonal.
    pub suspect: Vec<bool>,
    /// Share of wrong labels, by the joint scaled to the labels' counts. Slightly off where classes are hard to tell
    /// apart: a sign of how much to expect, no certificate.
    pub estimate: f64,
}

/// `given[i]` is a label in 0..k, `posteriors[i]` [k] its out-of-fold distribution.
pub fn noise(given: &[usize], posteriors: &[&[f32]], k: usize) -> Noise {
    let thresholds = thresholds(given, posteriors, k);
    let mut joint = vec![vec![0_u64; k]; k];
    let mut suspect = vec![false; given.len()];
    for (i, (label, posterior)) in given.iter().zip(posteriors).enumerate() {
        let confident = (0..k).filter(|j| f64::from(posterior[*j]) >= thresholds[*j] - 1e-6);
        // The first of equals, as numpy's argmax.
        let top = confident.fold(None, |best: Option<usize>, j| match best {
            Some(b) if posterior[b] >= posterior[j] => Some(b),
            _ => Some(j),
        });
        if let Some(top) = top {
            joint[*label][top] += 1;
            suspect[i] = top != *label;
        }
    }
    let self_confidence = given.iter().zip(posteriors).map(|(label, p)| p[*label]).collect();
    Noise { self_confidence, suspect, estimate: estimate(&joint, given) }
}

/// The mean probability of a class over the rows that carry it. A class that nobody carries is never confident.
fn thresholds(given: &[usize], posteriors: &[&[f32]], k: usize) -> Vec<f64> {
    let (mut sums, mut counts) = (vec![0.0_f64; k], vec![0_u64; k]);
    for (label, posterior) in given.iter().zip(posteriors) {
        sums[*label] += f64::from(posterior[*label]);
        counts[*label] += 1;
    }
    // cleanlab clamps below, so that a class whose probabilities all vanish does not make everyone confident of it.
    sums.iter().zip(&counts).map(|(sum, n)| if *n == 0 { 2.0 } else { (sum / *n as f64).max(1e-6) }).collect()
}

/// The off-diagonal mass of the joint with its rows scaled to the labels' counts.
fn estimate(joint: &[Vec<u64>], given: &[usize]) -> f64 {
    let mut wrong = 0.0;
    for (label, row) in joint.iter().enumerate() {
        let counted: u64 = row.iter().sum();
        let carried = given.iter().filter(|g| **g == label).count();
        if counted > 0 {
            wrong += (counted - row[label]) as f64 / counted as f64 * carried as f64;
        }
    }
    wrong / given.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Against cleanlab: tests/reference/review_golden.py.
    #[test]
    fn suspects_are_cleanlabs() {
        let golden: Value = serde_json::from_str(include_str!("golden/noise.json")).unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let numbers = |v: &Value| v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect::<Vec<_>>();
            let given: Vec<usize> = numbers(&case["given"]).iter().map(|x| *x as usize).collect();
            let posteriors: Vec<Vec<f32>> = case["posteriors"]
                .as_array()
                .unwrap()
                .iter()
                .map(|row| numbers(row).iter().map(|x| *x as f32).collect())
                .collect();
            let rows: Vec<&[f32]> = posteriors.iter().map(Vec::as_slice).collect();
            let found = noise(&given, &rows, rows[0].len());
            let suspects: Vec<usize> = (0..given.len()).filter(|i| found.suspect[*i]).collect();
            let expect: Vec<usize> = numbers(&case["suspects"]).iter().map(|x| *x as usize).collect();
            assert_eq!(suspects, expect, "{}", case["name"]);
            for (ours, theirs) in found.self_confidence.iter().zip(numbers(&case["self_confidence"])) {
                assert!((f64::from(*ours) - theirs).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn a_class_without_rows_confuses_nobody() {
        let rows: [&[f32]; 3] = [&[0.6, 0.0, 0.4], &[0.7, 0.0, 0.3], &[0.1, 0.0, 0.9]];
        let found = noise(&[0, 0, 2], &rows, 3);
        assert_eq!(found.suspect, [false, false, false]);
        assert_eq!(noise(&[], &[], 3).estimate, 0.0);
    }
}
