//! Whether the statistics keep what they claim, by simulation through the very code that decides gates: how often each gate
//! passes a candidate that just misses its demand, how often it fails one that just meets it, whether "examples needed"
//! decide as often as said, how often a certified threshold breaks its promise, and whether intervals hold the truth.
//! Seeded: the same seed gives the same figures.

mod gates;
mod intervals;
mod promises;

use crate::statistics::Risk;
use limbeck_artifact::random::SplitMix64;
use serde::{Deserialize, Serialize};

/// The groups of figures, in the order in which they are told.
const GROUPS: [&str; 5] = ["type I error", "needless fail", "power", "certificate", "coverage"];

/// What a figure must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Claim {
    AtMost(f64),
    AtLeast(f64),
}

/// One simulated figure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// `type I error`, `needless fail`, `power`, `certificate` or `coverage`.
    pub group: String,
    /// What was simulated.
    pub what: String,
    pub claim: Claim,
    pub observed: f64,
    pub trials: u32,
    /// The claim, widened by three standard errors of the simulation.
    pub limit: f64,
    pub holds: bool,
}

/// How much is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Seconds.
    Full,
    /// A fraction of a second a figure, with wider limits: for tests.
    Short,
}

/// What the simulations share.
#[derive(Clone, Copy)]
pub(crate) struct Setting {
    pub risk: Risk,
    pub seed: u64,
    /// Trials where a trial is a few counts.
    pub trials: u32,
    /// Trials where a trial is a calibration set or a bootstrap.
    pub heavy_trials: u32,
}

impl Setting {
    /// A generator of its own for each figure, so that none changes when another is added.
    pub fn rng(&self, what: &str) -> SplitMix64 {
        let of_name = what.bytes().fold(self.seed, |hash, byte| hash.wrapping_mul(0x100_0000_01b3) ^ u64::from(byte));
        SplitMix64::new(of_name)
    }
}

impl Figure {
    /// `hits` of `trials` under a claim.
    pub(crate) fn of(group: &str, what: String, claim: Claim, hits: u32, trials: u32) -> Figure {
        let observed = f64::from(hits) / f64::from(trials.max(1));
        let noise = |p: f64| 3.0 * (p * (1.0 - p) / f64::from(trials.max(1))).sqrt();
        let (limit, holds) = match claim {
            Claim::AtMost(p) => (p + noise(p), observed <= p + noise(p)),
            Claim::AtLeast(p) => (p - noise(p), observed >= p - noise(p)),
        };
        Figure { group: group.to_owned(), what, claim, observed, trials, limit, holds }
    }
}

/// Simulates everything; `progress` hears the name of each figure and how many are done of how many.
pub fn self_check(seed: u64, effort: Effort, progress: &mut dyn FnMut(&str, usize, usize)) -> Vec<Figure> {
    let (trials, heavy_trials) = match effort {
        Effort::Full => (20_000, 2_000),
        Effort::Short => (2_000, 200),
    };
    let setting = Setting { risk: Risk::default(), seed, trials, heavy_trials };
    let mut jobs: Vec<Job> = Vec::new();
    jobs.extend(gates::jobs());
    jobs.extend(promises::jobs());
    jobs.extend(intervals::jobs());
    let all = jobs.len();
    let mut figures = Vec::new();
    for (i, (what, job)) in jobs.into_iter().enumerate() {
        progress(&what, i, all);
        figures.extend(job(&setting));
    }
    progress("", all, all);
    let rank = |figure: &Figure| GROUPS.iter().position(|group| *group == figure.group);
    figures.sort_by_key(rank);
    figures
}

/// A simulation's name and what it makes of a setting.
pub(crate) type Job = (String, Box<dyn Fn(&Setting) -> Vec<Figure>>);

pub(crate) fn job(what: &str, run: impl Fn(&Setting) -> Vec<Figure> + 'static) -> Job {
    (what.to_owned(), Box::new(run))
}

/// How many of `n` happen at probability `p`.
pub(crate) fn binomial(rng: &mut SplitMix64, n: u64, p: f64) -> u64 {
    (0..n).filter(|_| rng.unit() < p).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_holds_and_a_seed_is_its_figures() {
        let mut heard = Vec::new();
        let figures = self_check(17, Effort::Short, &mut |what, done, all| heard.push((what.to_owned(), done, all)));
        let off: Vec<&Figure> = figures.iter().filter(|figure| !figure.holds).collect();
        assert!(off.is_empty(), "{off:#?}");
        for group in GROUPS {
            assert!(figures.iter().any(|figure| figure.group == group), "no {group}");
        }
        assert!(heard.len() > 10 && heard.last().is_some_and(|(_, done, all)| done == all));
        // Half of it again, which is enough to see the seed at work.
        let again = self_check(17, Effort::Short, &mut |_, _, _| ());
        assert_eq!(figures, again);
    }

    #[test]
    fn a_figure_that_is_off_is_told() {
        assert!(Figure::of("g", "w".into(), Claim::AtMost(0.05), 55, 1_000).holds);
        assert!(!Figure::of("g", "w".into(), Claim::AtMost(0.05), 90, 1_000).holds);
        assert!(Figure::of("g", "w".into(), Claim::AtLeast(0.8), 790, 1_000).holds);
        assert!(!Figure::of("g", "w".into(), Claim::AtLeast(0.8), 700, 1_000).holds);
    }
}
