//! Where the candidate fails: slices of the test rows whose error is above that of all rows by more than chance. Known ones by
//! what a row is (its class, length, month, customer, source, script), found ones by a word that its message holds or by what
//! mistakes have in common, and the answers that are taken for one another. Each comes with examples and with what may be done about it.

mod clusters;
mod known;
mod remedy;

use crate::floor::text_of;
use crate::metrics::Prediction;
use crate::multiple::benjamini_hochberg;
use crate::special::binomial_cdf;
use crate::statistics::{Interval, clopper_pearson};
use limbeck_artifact::dataset::Example;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Smaller slices say nothing.
pub const LEAST_ROWS: usize = 30;
/// Share of the finds that may be false.
pub const FALSE_DISCOVERIES: f64 = 0.10;
/// Of a slice, in the report.
const EXAMPLES: usize = 3;
const SHOWN_CHARS: usize = 160;
/// Confusions fewer than this are single mistakes, not a pattern.
const LEAST_CONFUSED: u64 = 3;
const CONFUSIONS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    Class,
    Length,
    Time,
    Customer,
    Source,
    Script,
    /// Of rows whose language can be told from the message.
    Language,
    /// Found: a word that the message holds.
    Word,
    /// Found: messages like those of some mistakes. Counted on the half of the rows that it was not found in.
    Cluster,
}

impl By {
    pub fn name(self) -> &'static str {
        match self {
            By::Class => "class",
            By::Length => "length",
            By::Time => "time",
            By::Customer => "customer",
            By::Source => "source",
            By::Script => "script",
            By::Language => "language",
            By::Word => "word",
            By::Cluster => "likeness",
        }
    }
}

/// A wrong answer of a slice.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SliceExample {
    pub row: String,
    pub text: String,
    pub gold: String,
    /// None: no valid answer.
    pub answer: Option<String>,
}

/// A part of the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    pub by: By,
    pub name: String,
    pub rows: u64,
    pub wrong: u64,
    pub error: f64,
    /// Exact, two-sided at the report's confidence.
    pub interval: Interval,
    /// One-sided exact binomial, of "errs no more than all rows do".
    pub p: f64,
    /// Errs more than all rows do, at a false discovery rate of [`FALSE_DISCOVERIES`].
    pub worse: bool,
    /// Of a slice that is worse.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<SliceExample>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub remedy: String,
}

/// Rows of one truth that get one wrong answer, again and again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Confused {
    pub gold: String,
    pub answer: String,
    pub rows: u64,
    pub of: u64,
    pub examples: Vec<SliceExample>,
    pub remedy: String,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Slices {
    /// Of all test rows.
    pub error: f64,
    /// Those with at least [`LEAST_ROWS`] rows: worse ones first, then by kind and name. What was found only where it is worse;
    /// clusters, of which half the rows are counted, with at least half as many.
    pub slices: Vec<Slice>,
    /// How many were tested, words included.
    pub tested: u64,
    /// Slices of too few rows.
    pub too_small: u64,
    pub confused: Vec<Confused>,
}

/// What slices are made of.
pub(crate) struct Material<'a> {
    pub test: &'a [&'a Example],
    pub train: &'a [&'a Example],
    pub gold: &'a [usize],
    pub candidate: &'a [Prediction],
    pub frontier: Option<&'a [Prediction]>,
    /// Whether routing serves a row.
    pub served: Option<&'a [bool]>,
    /// The label, or the fields as JSON.
    pub name: &'a dyn Fn(usize) -> String,
    /// Answers are labels.
    pub labels: bool,
    pub confidence: f64,
    pub seed: u64,
}

impl Material<'_> {
    fn wrong(&self, row: usize) -> bool {
        self.candidate[row].label != Some(self.gold[row])
    }

    fn example(&self, row: usize) -> SliceExample {
        let text = text_of(&self.test[row].messages);
        let cut: String = text.chars().take(SHOWN_CHARS).collect();
        SliceExample {
            row: self.test[row].id.clone(),
            text: if cut.len() < text.len() { cut + "…" } else { cut },
            gold: (self.name)(self.gold[row]),
            answer: self.candidate[row].label.map(|label| (self.name)(label)),
        }
    }

    fn examples(&self, rows: &[usize]) -> Vec<SliceExample> {
        rows.iter().copied().filter(|row| self.wrong(*row)).take(EXAMPLES).map(|row| self.example(row)).collect()
    }
}

/// P(at least `wrong` of `rows`) at error rate `error`.
pub fn p_worse(wrong: u64, rows: u64, error: f64) -> f64 {
    if wrong == 0 { 1.0 } else { 1.0 - binomial_cdf(wrong - 1, rows, error) }
}

/// All slices of the candidate's answers.
pub(crate) fn find(material: &Material<'_>) -> Slices {
    let rows = material.test.len();
    let all_wrong = (0..rows).filter(|row| material.wrong(*row)).count();
    let error = all_wrong as f64 / rows.max(1) as f64;
    let (mut slices, mut too_small) = (Vec::new(), 0);
    let known = tested(known::slices(material), LEAST_ROWS, error, material, &mut too_small);
    let words = tested(known::words(material, LEAST_ROWS), LEAST_ROWS, error, material, &mut 0);
    let (clusters, error_there) = clusters::slices(material);
    let clusters = tested(clusters, clusters::LEAST_ROWS, error_there, material, &mut 0);
    let count = known.len() + words.len() + clusters.len();
    slices.extend(known);
    slices.extend(words.into_iter().chain(clusters).filter(|slice| slice.worse));
    slices.sort_by(|x, y| {
        y.worse
            .cmp(&x.worse)
            .then_with(|| if x.worse { x.p.total_cmp(&y.p) } else { x.by.cmp(&y.by) })
            .then_with(|| (x.by, &x.name).cmp(&(y.by, &y.name)))
    });
    Slices { error, slices, tested: count as u64, too_small, confused: confused(material) }
}

/// Tests one family of slices. Words that stand in the same rows are one slice.
fn tested(
    family: BTreeMap<(By, String), Vec<usize>>,
    least: usize,
    error: f64,
    material: &Material<'_>,
    too_small: &mut u64,
) -> Vec<Slice> {
    let mut seen = BTreeSet::new();
    let (large, small): (Vec<_>, Vec<_>) = family.into_iter().partition(|(_, rows)| rows.len() >= least);
    *too_small += small.len() as u64;
    let large: Vec<((By, String), Vec<usize>)> = large
        .into_iter()
        // A slice of all rows is no slice.
        .filter(|((by, _), rows)| rows.len() < material.test.len() && (*by != By::Word || seen.insert(rows.clone())))
        .collect();
    let wrong = |rows: &[usize]| rows.iter().filter(|row| material.wrong(**row)).count() as u64;
    let p: Vec<f64> = large.iter().map(|(_, rows)| p_worse(wrong(rows), rows.len() as u64, error)).collect();
    let finds = benjamini_hochberg(&p, FALSE_DISCOVERIES);
    large
        .into_iter()
        .zip(p)
        .zip(finds)
        .map(|((((by, name), rows), p), worse)| {
            let (n, k) = (rows.len() as u64, wrong(&rows));
            Slice {
                error: k as f64 / n as f64,
                interval: clopper_pearson(k, n, material.confidence),
                examples: if worse { material.examples(&rows) } else { Vec::new() },
                remedy: if worse { remedy::of_slice(by, &name, &rows, material) } else { String::new() },
                by,
                name,
                rows: n,
                wrong: k,
                p,
                worse,
            }
        })
        .collect()
}

/// The rows of each slice that is large enough, for gates; words are none of them.
pub(crate) fn rows_by(material: &Material<'_>) -> BTreeMap<(By, String), Vec<usize>> {
    known::slices(material).into_iter().filter(|(_, rows)| rows.len() >= LEAST_ROWS).collect()
}

fn confused(material: &Material<'_>) -> Vec<Confused> {
    if !material.labels {
        return Vec::new();
    }
    let mut pairs = BTreeMap::<(usize, usize), Vec<usize>>::new();
    for (row, prediction) in material.candidate.iter().enumerate() {
        if let Some(answer) = prediction.label.filter(|answer| *answer != material.gold[row]) {
            pairs.entry((material.gold[row], answer)).or_default().push(row);
        }
    }
    let mut pairs: Vec<((usize, usize), Vec<usize>)> =
        pairs.into_iter().filter(|(_, rows)| rows.len() as u64 >= LEAST_CONFUSED).collect();
    pairs.sort_by_key(|(pair, rows)| (std::cmp::Reverse(rows.len()), *pair));
    let one = |((gold, answer), rows): ((usize, usize), Vec<usize>)| Confused {
        gold: (material.name)(gold),
        answer: (material.name)(answer),
        rows: rows.len() as u64,
        of: material.gold.iter().filter(|g| **g == gold).count() as u64,
        examples: material.examples(&rows),
        remedy: remedy::of_confusion(gold, answer, &rows, material),
    };
    pairs.into_iter().take(CONFUSIONS).map(one).collect()
}
