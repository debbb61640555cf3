//! The escalation certificate: how often what it certifies errs more than promised, over calibration sets, for risks that
//! fall with the score, rise with it, or neither; and whether as many accepted rows as it asks for certify.

use super::{Claim, Figure, Job, Setting, binomial, job};
use crate::escalation::{Scored, Target, accepted_needed, certified_threshold};
use crate::special::binomial_cdf;
use limbeck_artifact::random::SplitMix64;
use rayon::prelude::*;

const TARGET: Target = Target { max_error: 0.05, confidence: 0.95 };
const CALIBRATION: usize = 500;
const UNLABELLED: usize = 300;

type Risk = fn(f64) -> f64;

pub(super) fn jobs() -> Vec<Job> {
    let shapes: [(&'static str, Risk); 4] = [
        ("risk that falls with the score", |s| 0.25 * (1.0 - s)),
        ("risk at the limit everywhere", |_| 0.050_001),
        ("risk that rises with the score", |s| 0.1 * s),
        ("risk with a bump", |s| if (0.55..0.8).contains(&s) { 0.16 } else { 0.01 }),
    ];
    let mut jobs: Vec<Job> =
        shapes.into_iter().map(|(what, risk)| job(what, move |setting| vec![broken(what, risk, setting)])).collect();
    jobs.push(job("accepted rows needed", needed));
    jobs
}

/// Scores are uniform; what is served from `from` on errs by the mean of the risk there.
fn error_from(risk: Risk, from: f64) -> f64 {
    const PARTS: u32 = 2_000;
    let at = |i: u32| from + (1.0 - from) * (f64::from(i) + 0.5) / f64::from(PARTS);
    (0..PARTS).map(|i| risk(at(i))).sum::<f64>() / f64::from(PARTS)
}

fn broken(what: &str, risk: Risk, setting: &Setting) -> Figure {
    let mut rng = setting.rng(what);
    let seeds: Vec<u64> = (0..setting.heavy_trials).map(|_| rng.next_u64()).collect();
    let breaks = |seed: &u64| {
        let mut rng = SplitMix64::new(*seed);
        let mut one = || {
            let score = rng.unit();
            Scored { score: Some(score), right: rng.unit() >= risk(score) }
        };
        let calibration: Vec<Scored> = (0..CALIBRATION).map(|_| one()).collect();
        let unlabelled: Vec<Option<f64>> = (0..UNLABELLED).map(|_| one().score).collect();
        let certified = certified_threshold(&calibration, &unlabelled, TARGET);
        certified.is_some_and(|threshold| error_from(risk, threshold) > TARGET.max_error)
    };
    let hits = seeds.par_iter().filter(|seed| breaks(seed)).count() as u32;
    let what = format!("certificate of 5 % broken, {what}");
    Figure::of("certificate", what, Claim::AtMost(1.0 - TARGET.confidence), hits, setting.heavy_trials)
}

fn needed(setting: &Setting) -> Vec<Figure> {
    [0.01, 0.025]
        .into_iter()
        .filter_map(|rate| {
            let n = accepted_needed(rate, TARGET, setting.risk.power)?;
            let what = format!("certificate of 5 %, truly {}, {n} accepted rows", crate::words::percent(rate));
            let mut rng = setting.rng(&what);
            let certifies = |errors| binomial_cdf(errors, n, TARGET.max_error) <= 1.0 - TARGET.confidence;
            let hits = (0..setting.heavy_trials).filter(|_| certifies(binomial(&mut rng, n, rate))).count() as u32;
            Some(Figure::of("power", what, Claim::AtLeast(setting.risk.power), hits, setting.heavy_trials))
        })
        .collect()
}
