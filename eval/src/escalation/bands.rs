//! What is done with an answer by its score: served, served and queued for a person to look at, or escalated. The middle band
//! is a budget of reviews: the share of served answers that the model is least sure of.

use super::Scored;
use crate::statistics::{Interval, wilson};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    Serve,
    /// Served at once, and looked at later.
    ServeAndReview,
    Escalate,
}

impl Action {
    pub fn name(self) -> &'static str {
        match self {
            Action::Serve => "serve",
            Action::ServeAndReview => "serve_and_review",
            Action::Escalate => "escalate",
        }
    }
}

/// A range of scores on the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Band {
    pub action: Action,
    /// Scores from this on, up to the band above. None: whatever is left, and what is not valid.
    pub from: Option<f64>,
    pub rows: u64,
    pub share: f64,
    pub share_interval: Interval,
    /// Answers of the model that are wrong, served or not.
    pub wrong: u64,
}

/// The score below which a served answer goes to review too, so that about `share` of the served `unlabelled` rows do. None
/// where nothing does: no share, nothing served, or scores that are all alike.
pub fn review_below(unlabelled: &[Option<f64>], threshold: f64, share: f64) -> Option<f64> {
    let mut served: Vec<f64> = unlabelled.iter().flatten().copied().filter(|score| *score >= threshold).collect();
    served.sort_by(f64::total_cmp);
    let below = *served.get((share * served.len() as f64).round() as usize).or(served.last())?;
    (share > 0.0 && below > threshold).then_some(below)
}

/// The bands of `rows`; without a threshold all escalate.
pub fn bands(rows: &[Scored], threshold: Option<f64>, review_below: Option<f64>, confidence: f64) -> Vec<Band> {
    let action = |row: &Scored| match (threshold, review_below) {
        (Some(threshold), _) if !row.passes(threshold) => Action::Escalate,
        (None, _) => Action::Escalate,
        (_, Some(below)) if !row.passes(below) => Action::ServeAndReview,
        _ => Action::Serve,
    };
    let band = |wanted: Action, from: Option<f64>| {
        let inside = || rows.iter().filter(|row| action(row) == wanted);
        let n = inside().count() as u64;
        Band {
            action: wanted,
            from,
            rows: n,
            share: n as f64 / rows.len().max(1) as f64,
            share_interval: wilson(n, rows.len() as u64, confidence),
            wrong: inside().filter(|row| !row.right).count() as u64,
        }
    };
    let mut out = Vec::new();
    if threshold.is_some() {
        out.push(band(Action::Serve, review_below.or(threshold)));
    }
    if review_below.is_some() {
        out.push(band(Action::ServeAndReview, threshold));
    }
    out.push(band(Action::Escalate, None));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_what_is_served_is_reviewed_and_every_row_is_in_one_band() {
        let rows: Vec<Scored> =
            (0..100).map(|i| Scored { score: (i >= 5).then_some(f64::from(i) / 100.0), right: i % 10 != 0 }).collect();
        let scores: Vec<Option<f64>> = rows.iter().map(|row| row.score).collect();
        let below = review_below(&scores, 0.4, 0.1).unwrap();
        let bands = bands(&rows, Some(0.4), Some(below), 0.95);
        let rows: Vec<(&str, u64, u64)> = bands.iter().map(|b| (b.action.name(), b.rows, b.wrong)).collect();
        assert_eq!(rows, [("serve", 54, 5), ("serve_and_review", 6, 1), ("escalate", 40, 4)]);
        assert_eq!((bands[0].from, bands[1].from, bands[2].from), (Some(0.46), Some(0.4), None));
    }

    #[test]
    fn no_share_no_band_and_nothing_certified_escalates_all() {
        let rows = vec![Scored { score: Some(1.0), right: true }; 10];
        assert_eq!(review_below(&[Some(1.0); 10], 1.0, 0.5), None, "scores that are all alike");
        assert_eq!(review_below(&[Some(0.5), Some(0.9)], 0.1, 0.0), None);
        assert_eq!(review_below(&[Some(0.5), Some(0.9)], 0.95, 0.5), None);
        let all = bands(&rows, None, None, 0.95);
        assert_eq!((all.len(), all[0].action, all[0].rows), (1, Action::Escalate, 10));
    }
}
