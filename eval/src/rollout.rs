//! How long a rollout must last before a difference would be seen: the new model gets a share of the requests, the old one the
//! rest, and two error rates are told apart. What that costs where the new one is worse is the error budget.

use crate::special::normal_quantile;
use crate::statistics::Risk;
use serde::{Deserialize, Serialize};

/// Shares of a usual rollout.
pub const SHARES: [f64; 3] = [0.01, 0.05, 0.25];

/// One step of a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct RolloutStep {
    /// Of the requests that the new model answers.
    pub share: f64,
    /// Requests in all whose outcome must be known.
    pub requests: u64,
    /// Those of them that the new model answers.
    pub by_new: u64,
    /// Wrong answers more than the old model would have given, by then, if the new one is worse by the difference.
    pub extra_errors: u64,
}

/// Requests until an error rate of `error + difference` instead of `error` is seen with the risk's power at its level, one-sided:
/// normal approximation of two independent proportions, each with its own variance. `difference` above 0, rates below 1.
pub fn rollout(error: f64, difference: f64, share: f64, risk: Risk) -> RolloutStep {
    let variance = |p: f64| p * (1.0 - p);
    let z = normal_quantile(1.0 - risk.alpha) + normal_quantile(risk.power);
    let spread = variance(error + difference) / share + variance(error) / (1.0 - share);
    // The least of the cells must have a few errors for the approximation to hold.
    let few = 5.0 / (share * (error + difference));
    let requests = (z * z * spread / (difference * difference)).max(few).ceil();
    let by_new = (requests * share).ceil();
    RolloutStep {
        share,
        requests: requests as u64,
        by_new: by_new as u64,
        extra_errors: (by_new * difference).ceil() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::random::SplitMix64;

    /// Against statsmodels 0.14's formula by hand: z = 1.644854 + 0.841621, equal halves, 5 % against 7 %.
    #[test]
    fn equal_halves_are_the_textbooks() {
        let step = rollout(0.05, 0.02, 0.5, Risk::default());
        let textbook = 2.0 * (1.644_854_f64 + 0.841_621).powi(2) * (0.05 * 0.95 + 0.07 * 0.93) / 0.02_f64.powi(2);
        assert_eq!(step.requests, textbook.ceil() as u64);
        assert_eq!(
            (step.by_new, step.extra_errors),
            (step.requests.div_ceil(2), (step.requests as f64 / 2.0 * 0.02).ceil() as u64)
        );
    }

    /// Drawn and tested: the power is what was asked for, and a model that is no worse is seldom blamed.
    #[test]
    fn the_power_is_the_one_that_was_asked_for() {
        let risk = Risk { alpha: 0.05, power: 0.8 };
        let mut rng = SplitMix64::new(3);
        for share in SHARES {
            let step = rollout(0.10, 0.06, share, risk);
            let mut seen = |error_new: f64| {
                let mut draw = |n: u64, p: f64| (0..n).filter(|_| rng.unit() < p).count() as f64 / n as f64;
                let old_n = step.requests - step.by_new;
                let (new, old) = (draw(step.by_new, error_new), draw(old_n, 0.10));
                let spread = new * (1.0 - new) / step.by_new as f64 + old * (1.0 - old) / old_n as f64;
                new - old > 1.644_854 * spread.sqrt()
            };
            let trials = 400;
            let power = (0..trials).filter(|_| seen(0.16)).count() as f64 / f64::from(trials);
            assert!((0.74..0.88).contains(&power), "{share}: {power}");
            let blamed = (0..trials).filter(|_| seen(0.10)).count() as f64 / f64::from(trials);
            assert!(blamed < 0.09, "{share}: {blamed}");
        }
        let [slow, _, fast] = SHARES.map(|share| rollout(0.10, 0.02, share, risk).requests);
        assert!(slow > 10 * fast, "a small share takes long: {slow} {fast}");
    }
}
