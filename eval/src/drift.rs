//! Whether new traffic is still what a model was measured on: its scores and answers against the reference in the policy.
//! Population stability (PSI) of scores and of answers and the Kolmogorov–Smirnov distance of scores, each with a p value by
//! permutation; how the labels have shifted, if only they have (BBSE, Lipton et al. 2018); a verdict and what to do.

use crate::mmd::mmd;
use crate::policy::Reference;
use limbeck_artifact::random::SplitMix64;
use serde::{Deserialize, Serialize};

/// Bins of the scores' PSI: tenths of the reference.
const BINS: usize = 10;
/// Permutations behind a p value; the smallest one is 1 / (this + 1).
pub const PERMUTATIONS: u32 = 1_000;
/// Fewer new rows than this say nothing.
pub const LEAST_ROWS: usize = 100;
/// A confusion matrix this badly conditioned turns the noise of a few rows into labels.
const WORST_CONDITION: f64 = 200.0;
/// The usual rule of thumb for PSI. It knows nothing of sample sizes, so a p value stands beside it.
const WATCH: f64 = 0.10;
const DRIFTED: f64 = 0.25;
const SIGNIFICANT: f64 = 0.01;

/// What a model answers to one new row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Observed {
    /// None: not valid.
    pub score: Option<f64>,
    /// The answer's place among the reference's labels, where answers are labels.
    pub label: Option<usize>,
}

/// A statistic and how often chance makes it as large.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tested {
    pub value: f64,
    pub p: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriftVerdict {
    Stable,
    /// Too few rows to say.
    TooFew,
    /// Something moved, not far.
    Watch,
    Drifted,
}

impl DriftVerdict {
    pub fn name(self) -> &'static str {
        match self {
            DriftVerdict::Stable => "stable",
            DriftVerdict::TooFew => "too few rows",
            DriftVerdict::Watch => "watch",
            DriftVerdict::Drifted => "drifted",
        }
    }
}

/// How often a label is asked for now, by its share before and its estimated share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shift {
    pub label: String,
    pub before: f64,
    pub now: f64,
    /// Share of the answers before and now.
    pub answered_before: f64,
    pub answered_now: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    pub verdict: DriftVerdict,
    pub rows: u64,
    pub reference_rows: u64,
    /// PSI and KS of the scores; None without scores on both sides.
    pub score_psi: Option<Tested>,
    pub score_ks: Option<Tested>,
    /// PSI of the answers, invalid ones included; where answers are fields, of valid and invalid ones.
    pub answer_psi: Option<Tested>,
    /// MMD² of the messages' embeddings; None where the reference, or who asks, has none.
    #[serde(default)]
    pub messages_mmd: Option<Tested>,
    pub invalid_before: f64,
    pub invalid_now: f64,
    /// Labels by how much more or less they are asked for, most first.
    pub shifts: Vec<Shift>,
    /// Why there are no shifts.
    pub no_shifts: Option<String>,
    /// Accuracy that is to be expected if only the shares of the labels have moved.
    pub expected_accuracy: Option<f64>,
    pub accuracy_before: Option<f64>,
    /// What to do, the most pressing first.
    pub advice: Vec<String>,
}

/// Compares `rows` with `reference`. The same seed gives the same p values.
pub fn drift(reference: &Reference, rows: &[Observed], permutations: u32, seed: u64) -> Drift {
    let mut now: Vec<f64> = rows.iter().filter_map(|row| row.score).collect();
    // As the reference keeps them.
    now.iter_mut().for_each(|score| *score = (*score * 1e6).round() / 1e6);
    let both = !now.is_empty() && !reference.scores.is_empty();
    let (score_psi, score_ks) = match both {
        true => {
            let (psi, ks) = of_scores(&reference.scores, &now, permutations, seed);
            (Some(psi), Some(ks))
        }
        false => (None, None),
    };
    let k = reference.labels.len();
    let category = |label: Option<usize>, valid: bool| match (k, label) {
        (0, _) => usize::from(!valid),
        (_, Some(label)) if label < k => label,
        _ => k,
    };
    let mut before: Vec<usize> =
        reference.answers.iter().enumerate().flat_map(|(label, n)| vec![label; *n as usize]).collect();
    if k == 0 {
        before = vec![0; (reference.rows - reference.invalid) as usize];
    }
    before.extend(vec![if k == 0 { 1 } else { k }; reference.invalid as usize]);
    let after: Vec<usize> = rows.iter().map(|row| category(row.label, row.score.is_some())).collect();
    let categories = if k == 0 { 2 } else { k + 1 };
    let answer_psi = (!before.is_empty() && !after.is_empty())
        .then(|| of_answers(&before, &after, categories, permutations, seed ^ 1));

    let n = rows.len().max(1) as f64;
    let invalid_now = after.iter().filter(|c| **c == categories - 1).count() as f64 / n;
    let invalid_before = reference.invalid as f64 / reference.rows.max(1) as f64;
    let counts = counted(&after, categories);
    let shares: Vec<f64> = counts.iter().take(k).map(|c| *c as f64 / n).collect();
    let (shifts, expected, accuracy, no_shifts) = match shifted(reference, &shares) {
        Ok((shifts, expected, accuracy)) => (shifts, Some(expected), Some(accuracy), None),
        Err(why) => (Vec::new(), None, None, Some(why)),
    };
    let statistics = [score_psi, answer_psi];
    let moved = |least: f64| statistics.iter().flatten().any(|t| t.p <= SIGNIFICANT && t.value >= least);
    let verdict = match rows.len() {
        n if n < LEAST_ROWS => DriftVerdict::TooFew,
        _ if moved(DRIFTED) => DriftVerdict::Drifted,
        _ if moved(WATCH) || score_ks.is_some_and(|t| t.p <= SIGNIFICANT && t.value >= WATCH) => DriftVerdict::Watch,
        _ => DriftVerdict::Stable,
    };
    Drift {
        verdict,
        rows: rows.len() as u64,
        reference_rows: reference.rows,
        score_psi,
        score_ks,
        answer_psi,
        messages_mmd: None,
        invalid_before,
        invalid_now,
        advice: advice(verdict, &shifts, expected.zip(accuracy), rows.len()),
        shifts,
        no_shifts,
        expected_accuracy: expected,
        accuracy_before: accuracy,
    }
}

impl Drift {
    /// Holds the messages themselves against the reference's, too. Messages that are others than before are something to watch,
    /// not yet a harm: scores and answers say whether there is one.
    pub fn and_messages(mut self, reference: &Reference, now: &[String], permutations: u32, seed: u64) -> Drift {
        self.messages_mmd = mmd(&reference.messages, now, permutations, seed ^ 2);
        let moved = self.messages_mmd.is_some_and(|tested| tested.p <= SIGNIFICANT);
        if moved && self.verdict != DriftVerdict::TooFew {
            if self.verdict == DriftVerdict::Stable {
                self.verdict = DriftVerdict::Watch;
                self.advice = advice(self.verdict, &[], None, self.rows as usize);
            }
            self.advice
                .push("The messages are others than those it was measured on: read a draw of the new ones.".to_owned());
        }
        self
    }
}

fn advice(verdict: DriftVerdict, shifts: &[Shift], accuracy: Option<(f64, f64)>, rows: usize) -> Vec<String> {
    let mut out: Vec<String> = match verdict {
        DriftVerdict::TooFew => vec![format!("Come back with at least {LEAST_ROWS} rows; there are {rows}.")],
        DriftVerdict::Stable => {
            vec!["Nothing to do: go on auditing one or two in a hundred of the served answers.".to_owned()]
        }
        DriftVerdict::Watch => vec![
            "Raise eval.escalation.review_share, to 0.2 say, and look at what is queued.".to_owned(),
            "Compare again with more rows, in a week.".to_owned(),
        ],
        DriftVerdict::Drifted => vec![
            "Escalate more until it is certified anew: what the certificate promises was measured on other traffic."
                .to_owned(),
            "Review a random draw of the new rows (`limbeck import`, `limbeck review`) and certify again on them."
                .to_owned(),
            "Train again with the new rows if the certificate serves less than before.".to_owned(),
        ],
    };
    if let Some((expected, before)) = accuracy.filter(|(expected, before)| before - expected > 0.02)
        && verdict > DriftVerdict::TooFew
    {
        out.push(format!(
            "If only the shares of the labels moved, expect {} right where it was {}.",
            crate::words::percent(expected),
            crate::words::percent(before)
        ));
    }
    let grown: Vec<&str> = shifts
        .iter()
        .filter(|s| s.now > 2.0 * s.before && s.now - s.before > 0.03)
        .map(|s| s.label.as_str())
        .take(3)
        .collect();
    if verdict > DriftVerdict::TooFew && !grown.is_empty() {
        out.push(format!("Label rows of what is asked for more: {}.", grown.join(", ")));
    }
    out
}

/// Σ (a − e) ln(a / e) over categories, with half a row added to each so that an empty one does not make it infinite.
pub fn psi(expected: &[u64], actual: &[u64]) -> f64 {
    let share = |counts: &[u64]| -> Vec<f64> {
        let total: f64 = counts.iter().map(|c| *c as f64 + 0.5).sum();
        counts.iter().map(|c| (*c as f64 + 0.5) / total).collect()
    };
    share(expected).into_iter().zip(share(actual)).map(|(e, a)| (a - e) * (a / e).ln()).sum()
}

/// Upper edges, inclusive, of tenths of the sorted scores; fewer where scores repeat. The last bin is open.
fn edges(sorted: &[f64]) -> Vec<f64> {
    let mut edges: Vec<f64> =
        (1..BINS).filter_map(|i| sorted.get((i * sorted.len()).div_ceil(BINS).checked_sub(1)?).copied()).collect();
    edges.dedup();
    edges
}

fn binned(edges: &[f64], scores: &[f64]) -> Vec<u64> {
    let mut counts = vec![0; edges.len() + 1];
    for score in scores {
        counts[edges.partition_point(|edge| edge < score)] += 1;
    }
    counts
}

/// PSI of scores over tenths of `before`, which is sorted.
pub fn score_psi(before: &[f64], after: &[f64]) -> f64 {
    let edges = edges(before);
    psi(&binned(&edges, before), &binned(&edges, after))
}

/// The largest distance between two empirical distribution functions; both sorted.
pub fn ks_distance(first: &[f64], second: &[f64]) -> f64 {
    let (mut i, mut j, mut most) = (0, 0, 0.0_f64);
    while i < first.len() && j < second.len() {
        let at = first[i].min(second[j]);
        i += first[i..].iter().take_while(|x| **x <= at).count();
        j += second[j..].iter().take_while(|x| **x <= at).count();
        most = most.max((i as f64 / first.len() as f64 - j as f64 / second.len() as f64).abs());
    }
    most
}

/// Both statistics of scores, each under the same permutations: which part a row is in is dealt anew, and everything, bins
/// too, is worked out again.
fn of_scores(before: &[f64], after: &[f64], permutations: u32, seed: u64) -> (Tested, Tested) {
    let mut rng = SplitMix64::new(seed);
    let mut after = after.to_vec();
    after.sort_by(f64::total_cmp);
    let (seen_psi, seen_ks) = (score_psi(before, &after), ks_distance(before, &after));
    let mut pool: Vec<f64> = before.iter().chain(&after).copied().collect();
    pool.sort_by(f64::total_cmp);
    let (mut as_psi, mut as_ks) = (0_u32, 0_u32);
    for _ in 0..permutations {
        let (first, second) = dealt(&pool, before.len(), &mut rng);
        as_psi += u32::from(score_psi(&first, &second) >= seen_psi - 1e-12);
        as_ks += u32::from(ks_distance(&first, &second) >= seen_ks - 1e-12);
    }
    let p = |as_large: u32| f64::from(as_large + 1) / f64::from(permutations + 1);
    (Tested { value: seen_psi, p: p(as_psi) }, Tested { value: seen_ks, p: p(as_ks) })
}

/// A random choice of `first` values and the rest, both in the pool's order (selection sampling).
fn dealt<T: Copy>(pool: &[T], first: usize, rng: &mut SplitMix64) -> (Vec<T>, Vec<T>) {
    let (mut chosen, mut rest) = (Vec::with_capacity(first), Vec::with_capacity(pool.len() - first));
    for (i, value) in pool.iter().enumerate() {
        if rng.below(pool.len() - i) < first - chosen.len() { chosen.push(*value) } else { rest.push(*value) }
    }
    (chosen, rest)
}

fn counted(answers: &[usize], categories: usize) -> Vec<u64> {
    let mut counts = vec![0; categories];
    for answer in answers {
        counts[*answer] += 1;
    }
    counts
}

fn of_answers(before: &[usize], after: &[usize], categories: usize, permutations: u32, seed: u64) -> Tested {
    let mut rng = SplitMix64::new(seed);
    let seen = psi(&counted(before, categories), &counted(after, categories));
    let pool: Vec<usize> = before.iter().chain(after).copied().collect();
    let mut as_large = 0_u32;
    for _ in 0..permutations {
        let (first, second) = dealt(&pool, before.len(), &mut rng);
        as_large += u32::from(psi(&counted(&first, categories), &counted(&second, categories)) >= seen - 1e-12);
    }
    Tested { value: seen, p: f64::from(as_large + 1) / f64::from(permutations + 1) }
}

type Shifted = (Vec<Shift>, f64, f64);

/// Label shares now by BBSE: C w = μ, where C is the joint distribution of answer and truth before and μ that of answers now;
/// a label's share is multiplied by its w. Negative weights are noise and become 0.
fn shifted(reference: &Reference, answered: &[f64]) -> Result<Shifted, String> {
    let k = reference.labels.len();
    if k == 0 {
        return Err("answers are fields: there are no label shares to estimate".to_owned());
    }
    let total = reference.rows.max(1) as f64;
    let joint: Vec<Vec<f64>> =
        (0..k).map(|answer| (0..k).map(|truth| reference.confusion[truth][answer] as f64 / total).collect()).collect();
    let truth: Vec<f64> = reference.confusion.iter().map(|row| row.iter().sum::<u64>() as f64 / total).collect();
    if let Some(label) = (0..k).find(|label| truth[*label] == 0.0) {
        return Err(format!("label {} has no reference row", reference.labels[label]));
    }
    let (inverse, condition) = inverted(&joint).ok_or("the confusion matrix cannot be inverted")?;
    if condition > WORST_CONDITION {
        return Err(format!(
            "the confusion matrix is too badly conditioned ({condition:.0}): label shares would be noise"
        ));
    }
    let weights: Vec<f64> =
        inverse.iter().map(|row| row.iter().zip(answered).map(|(c, m)| c * m).sum::<f64>().max(0.0)).collect();
    let sum: f64 = weights.iter().zip(&truth).map(|(w, t)| w * t).sum();
    if sum <= 0.0 {
        return Err("no label share fits the answers".to_owned());
    }
    let now: Vec<f64> = weights.iter().zip(&truth).map(|(w, t)| w * t / sum).collect();
    let recall = |label: usize| reference.confusion[label][label] as f64 / (truth[label] * total);
    let accuracy = |shares: &[f64]| shares.iter().enumerate().map(|(label, share)| share * recall(label)).sum::<f64>();
    let before_all: f64 = truth.iter().sum();
    let before: Vec<f64> = truth.iter().map(|t| t / before_all).collect();
    let mut shifts: Vec<Shift> = (0..k)
        .map(|label| Shift {
            label: reference.labels[label].clone(),
            before: before[label],
            now: now[label],
            answered_before: reference.answers[label] as f64 / total,
            answered_now: answered[label],
        })
        .collect();
    shifts.sort_by(|x, y| (y.now - y.before).abs().total_cmp(&(x.now - x.before).abs()).then(x.label.cmp(&y.label)));
    Ok((shifts, accuracy(&now), accuracy(&before)))
}

/// The inverse by Gauss and Jordan with pivots, and the condition number ‖C‖₁ ‖C⁻¹‖₁. None where it is singular.
fn inverted(matrix: &[Vec<f64>]) -> Option<(Vec<Vec<f64>>, f64)> {
    let k = matrix.len();
    let norm = |m: &[Vec<f64>]| (0..k).map(|j| m.iter().map(|row| row[j].abs()).sum::<f64>()).fold(0.0, f64::max);
    let mut left = matrix.to_vec();
    let mut right: Vec<Vec<f64>> = (0..k).map(|i| (0..k).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for column in 0..k {
        let pivot = (column..k).max_by(|x, y| left[*x][column].abs().total_cmp(&left[*y][column].abs()))?;
        if left[pivot][column].abs() < 1e-12 {
            return None;
        }
        left.swap(column, pivot);
        right.swap(column, pivot);
        let scale = left[column][column];
        left[column].iter_mut().chain(right[column].iter_mut()).for_each(|x| *x /= scale);
        for row in (0..k).filter(|row| *row != column) {
            let factor = left[row][column];
            if factor != 0.0 {
                for j in 0..k {
                    left[row][j] -= factor * left[column][j];
                    right[row][j] -= factor * right[column][j];
                }
            }
        }
    }
    let condition = norm(matrix) * norm(&right);
    Some((right, condition))
}
