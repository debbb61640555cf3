//! A ladder of students: one recipe on a base and on smaller ones carved out of it, the largest teaching the others. What each
//! rung came to is compared on the same test rows, and the smallest that passes the gates is named.

mod bases;
pub mod rung;

pub use bases::{Carved, carve_all};

use limbeck_eval::statistics::Interval;
use limbeck_eval::{Cost, Verdict};
use serde::Serialize;
use std::path::PathBuf;

/// What a rung came to.
#[derive(Clone, Debug, Serialize)]
pub struct Rung {
    pub layers: usize,
    /// Of the base's layers, where not all are.
    pub kept: Option<Vec<usize>>,
    /// Loss on the train rows' answers before any training, in nats a token.
    pub loss_when_carved: Option<f64>,
    pub parameters: u64,
    /// Of the file that would be shipped.
    pub bytes: u64,
    pub rows: u64,
    /// Share of the test rows that are right.
    pub accuracy: f64,
    pub accuracy_interval: Interval,
    pub verdict: Verdict,
    /// The gates that were not passed.
    pub not_passed: Vec<String>,
    pub p50_ms: Option<f64>,
    pub p95_ms: Option<f64>,
    pub cost: Option<Cost>,
    /// Against the first rung, on the same rows; none of the first itself.
    pub beside_first: Option<Beside>,
    pub run: PathBuf,
    /// Keys and values that make a plain run of it.
    pub set: Vec<String>,
}

/// A rung against the first, row by row.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// Share of right answers, this rung's minus the first's, and Tango's interval.
    pub difference: f64,
    pub interval: Interval,
    pub p_mcnemar: f64,
    /// The first rung's median time a call over this one's.
    pub times_as_fast: Option<f64>,
}

/// How many layers each rung has, the most first: those that were asked for, or all, two thirds, two fifths and a fifth.
///
/// # Errors
/// In words for a person, when the base has not so many.
pub fn sizes(asked: &[usize], layers: usize) -> Result<Vec<usize>, String> {
    let mut sizes = match asked {
        [] => [(1, 1), (2, 3), (2, 5), (1, 5)].map(|(part, of)| (layers * part / of).max(1)).to_vec(),
        asked => asked.to_vec(),
    };
    if let Some(wrong) = sizes.iter().find(|n| **n == 0 || **n > layers) {
        return Err(format!("a rung of {wrong} layers can't be carved out of a base of {layers}"));
    }
    sizes.sort_unstable_by(|a, b| b.cmp(a));
    sizes.dedup();
    Ok(sizes)
}

/// The smallest file whose gates are all passed.
pub fn smallest(rungs: &[Rung]) -> Option<&Rung> {
    rungs.iter().filter(|rung| rung.verdict == Verdict::Pass).min_by_key(|rung| rung.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rungs_go_down_from_the_largest() {
        assert_eq!(sizes(&[], 30), Ok(vec![30, 20, 12, 6]));
        assert_eq!(sizes(&[], 2), Ok(vec![2, 1]));
        assert_eq!(sizes(&[6, 30, 12, 6], 30), Ok(vec![30, 12, 6]));
        assert!(sizes(&[31], 30).is_err() && sizes(&[0], 30).is_err());
    }

    #[test]
    fn the_smallest_that_passes_is_not_the_smallest_of_all() {
        let rung = |layers: usize, verdict| Rung {
            layers,
            kept: None,
            loss_when_carved: None,
            parameters: 0,
            bytes: layers as u64 * 10,
            rows: 0,
            accuracy: 0.0,
            accuracy_interval: Interval { low: 0.0, high: 1.0 },
            verdict,
            not_passed: Vec::new(),
            p50_ms: None,
            p95_ms: None,
            cost: None,
            beside_first: None,
            run: PathBuf::new(),
            set: Vec::new(),
        };
        let rungs =
            [rung(30, Verdict::Pass), rung(12, Verdict::Pass), rung(6, Verdict::Inconclusive), rung(3, Verdict::Fail)];
        assert_eq!(smallest(&rungs).map(|rung| rung.layers), Some(12));
        assert!(smallest(&rungs[2..]).is_none());
    }
}
