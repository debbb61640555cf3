//! What the looks at the valid split say: which model is the best so far, and whether to go on. Everything follows from
//! the list of looks, so a checkpoint that holds the list holds the decision.

use serde::{Deserialize, Serialize};

/// By what the best model is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Metric {
    /// Mean negative log-likelihood of the valid split, lower is better.
    Loss,
    /// Share of the valid rows whose most probable label is the right one.
    Accuracy,
}

/// One look at the valid split. No clock in it: two runs of the same plan write the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ValidLog {
    /// Steps taken before the look.
    pub step: u64,
    pub loss: f64,
    /// None where there are no labels to choose from.
    pub accuracy: Option<f64>,
}

impl ValidLog {
    /// Higher is better; what is not finite is never better than anything.
    fn score(&self, metric: Metric) -> Option<f64> {
        let score = match metric {
            Metric::Loss => Some(-self.loss),
            Metric::Accuracy => self.accuracy,
        };
        score.filter(|s| s.is_finite())
    }
}

/// The best look's place in the list; of equals the earlier. None where no look has a finite value.
fn best_index(looks: &[ValidLog], metric: Metric) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (i, look) in looks.iter().enumerate() {
        if let Some(score) = look.score(metric)
            && best.is_none_or(|(_, known)| score > known)
        {
            best = Some((i, score));
        }
    }
    best.map(|(i, _)| i)
}

/// The best look; of equals the earlier.
pub fn best(looks: &[ValidLog], metric: Metric) -> Option<&ValidLog> {
    best_index(looks, metric).map(|i| &looks[i])
}

/// Whether the last `patience` looks were all no better than the best before them; 0 never stops.
pub fn should_stop(looks: &[ValidLog], metric: Metric, patience: u64) -> bool {
    let since = match best_index(looks, metric) {
        Some(i) => looks.len() - 1 - i,
        None => looks.len(),
    };
    patience > 0 && since as u64 >= patience
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(of: &[(f64, f64)]) -> Vec<ValidLog> {
        let look = |(i, (loss, accuracy)): (usize, &(f64, f64))| ValidLog {
            step: 10 * (i as u64 + 1),
            loss: *loss,
            accuracy: Some(*accuracy),
        };
        of.iter().enumerate().map(look).collect()
    }

    #[test]
    fn of_equals_the_earlier_is_the_best() {
        let all = looks(&[(0.9, 0.5), (0.4, 0.7), (0.4, 0.7), (0.6, 0.8)]);
        assert_eq!(best(&all, Metric::Loss).unwrap().step, 20);
        assert_eq!(best(&all, Metric::Accuracy).unwrap().step, 40);
        assert_eq!(best(&all[..3], Metric::Accuracy).unwrap().step, 20);
        assert!(best(&[], Metric::Loss).is_none());
    }

    #[test]
    fn stops_once_patience_is_spent_and_not_before() {
        let all = looks(&[(0.9, 0.0), (0.5, 0.0), (0.6, 0.0), (0.5, 0.0), (0.4, 0.0), (0.7, 0.0)]);
        let stops = |n: usize, patience| should_stop(&all[..n], Metric::Loss, patience);
        assert!(!stops(3, 2) && stops(4, 2), "an equal look does not reset patience");
        assert!(stops(3, 1) && !stops(5, 1) && stops(6, 1));
        assert!(!stops(6, 0) && !should_stop(&[], Metric::Loss, 1));
    }

    #[test]
    fn what_is_not_finite_is_never_the_best() {
        let all = looks(&[(f64::NAN, 0.1), (2.0, f64::NAN), (f64::INFINITY, 0.2)]);
        assert_eq!(best(&all, Metric::Loss).unwrap().step, 20);
        assert_eq!(best(&all, Metric::Accuracy).unwrap().step, 30);
        assert!(should_stop(&all[..1], Metric::Loss, 1));
        let no_labels = [ValidLog { step: 1, loss: 1.0, accuracy: None }];
        assert!(best(&no_labels, Metric::Accuracy).is_none());
    }
}
