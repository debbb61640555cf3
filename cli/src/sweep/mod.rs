//! Successive halving (Jamieson and Talwalkar, 2016): all trials take a share of their steps, the better part of them goes
//! on for a multiple of it, until one rung takes all steps. Judged by loss on the valid split; the test split is not read.

pub mod grid;
pub mod trial;

use serde::Serialize;
use trial::Rung;

/// One round: how many trials take part, and the part of its steps that each has taken after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Round {
    pub trials: usize,
    /// The share of the steps is 1 over this.
    pub divisor: u64,
}

/// The rounds for `trials` trials. The last takes all steps; each before it `eta` times fewer, no less than `min_share`
/// of them, and `eta` times as many trials.
pub fn rounds(trials: usize, eta: u64, min_share: f64) -> Vec<Round> {
    let mut divisor = 1u64;
    let mut left = trials as u64;
    while left >= eta && min_share * (divisor * eta) as f64 <= 1.0 + 1e-9 {
        (left, divisor) = (left / eta, divisor * eta);
    }
    let mut rounds = vec![Round { trials, divisor }];
    while let Some(last) = rounds.last().filter(|last| last.divisor > 1) {
        let trials = (last.trials / eta as usize).max(1);
        rounds.push(Round { trials, divisor: last.divisor / eta });
    }
    rounds
}

/// The step after which a round ends for a trial of `total` steps.
pub fn stop_at(round: Round, total: u64) -> u64 {
    total.div_ceil(round.divisor).max(1)
}

/// What a trial is judged by: loss on the valid split, then the smaller learning rate, then its place in the sweep. One
/// that diverged comes last.
pub fn better(a: (&Rung, f64, usize), b: (&Rung, f64, usize)) -> std::cmp::Ordering {
    let loss = |rung: &Rung| rung.valid_loss.filter(|loss| loss.is_finite()).unwrap_or(f64::INFINITY);
    loss(a.0).total_cmp(&loss(b.0)).then(a.1.total_cmp(&b.1)).then(a.2.cmp(&b.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_round_has_fewer_trials_and_more_steps() {
        let check = |trials, eta, min_share, expect: &[(usize, u64)]| {
            let rounds: Vec<(usize, u64)> =
                rounds(trials, eta, min_share).iter().map(|r| (r.trials, r.divisor)).collect();
            assert_eq!(rounds, expect, "{trials} {eta} {min_share}");
        };
        check(1, 3, 0.1, &[(1, 1)]);
        check(2, 3, 0.1, &[(2, 1)]);
        check(3, 3, 0.1, &[(3, 3), (1, 1)]);
        check(9, 3, 0.1, &[(9, 9), (3, 3), (1, 1)]);
        check(10, 3, 0.1, &[(10, 9), (3, 3), (1, 1)]);
        check(27, 3, 0.1, &[(27, 9), (9, 3), (3, 1)]);
        check(8, 2, 0.125, &[(8, 8), (4, 4), (2, 2), (1, 1)]);
        check(8, 2, 1.0, &[(8, 1)]);
        assert_eq!([1, 2, 3].map(|d| stop_at(Round { trials: 1, divisor: d }, 10)), [10, 5, 4]);
        assert_eq!(stop_at(Round { trials: 1, divisor: 100 }, 10), 1);
    }

    #[test]
    fn the_least_valid_loss_wins_then_the_smaller_rate_and_a_diverged_trial_never() {
        let rung = |valid_loss| Rung { valid_loss, ..Rung::default() };
        let (low, high, gone) = (rung(Some(0.5)), rung(Some(0.7)), rung(None));
        let mut trials = [(&gone, 1e-5, 0), (&high, 1e-4, 1), (&low, 1e-3, 2), (&low, 3e-4, 3), (&low, 3e-4, 4)];
        trials.sort_by(|a, b| better(*a, *b));
        assert_eq!(trials.map(|t| t.2), [3, 4, 2, 1, 0]);
        let not_a_number = rung(Some(f64::NAN));
        assert!(better((&not_a_number, 0.0, 0), (&high, 1.0, 1)).is_gt());
    }
}
