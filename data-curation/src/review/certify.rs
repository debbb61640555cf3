//! How many reviews certify that at most so many labels are wrong: Clopper–Pearson accept numbers over the random share of
//! the queue, with the level of each inspection lowered so that looking often costs no honesty: α·6/(π²t²) at the t-th.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// One minus the confidence of a certificate.
pub const ALPHA: f64 = 0.05;
/// Each inspection comes after so many times the reviews of the one before.
const GROWTH: f64 = 1.5;

/// P(X <= c) of a binomial of n trials with chance p; in logarithms, so that no n underflows.
pub fn binomial_cdf(c: u64, n: u64, p: f64) -> f64 {
    if c >= n || p <= 0.0 {
        return 1.0;
    }
    if p >= 1.0 {
        return 0.0;
    }
    let (odds, mut term) = ((p / (1.0 - p)).ln(), n as f64 * (-p).ln_1p());
    let mut sum = term.exp();
    for i in 0..c {
        term += ((n - i) as f64 / (i + 1) as f64).ln() + odds;
        sum += term.exp();
    }
    sum.min(1.0)
}

/// The most errors among n reviews that still certify a rate of at most `rate` at level `alpha`: the largest c for which
/// the Clopper–Pearson upper bound is at most `rate`. None where even no error is too little evidence.
pub fn accept_number(n: u64, rate: f64, alpha: f64) -> Option<u64> {
    if binomial_cdf(0, n, rate) > alpha || n == 0 {
        return None;
    }
    // The bound grows with c, and c = n·rate never passes at a level below one half.
    let (mut low, mut high) = (0, (n as f64 * rate).ceil() as u64 + 1);
    while high - low > 1 {
        let middle = low.midpoint(high);
        match binomial_cdf(middle, n, rate) <= alpha {
            true => low = middle,
            false => high = middle,
        }
    }
    Some(low)
}

/// The Clopper–Pearson upper bound, one-sided at level `alpha`: the largest rate under which so few errors are no rarer.
pub fn upper_bound(errors: u64, n: u64, alpha: f64) -> f64 {
    if errors >= n {
        return 1.0;
    }
    let (mut low, mut high) = (errors as f64 / n as f64, 1.0);
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        match binomial_cdf(errors, n, middle) > alpha {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

/// The fewest reviews, looked at once, that certify `rate` with `errors` among them.
pub fn reviews_for(errors: u64, rate: f64, alpha: f64) -> u64 {
    let enough = |n: u64| binomial_cdf(errors, n, rate) <= alpha;
    let (mut low, mut high) = (errors, errors.max(1) * 2);
    while !enough(high) && high < 1 << 40 {
        (low, high) = (high, high * 2);
    }
    while high - low > 1 {
        let middle = low.midpoint(high);
        match enough(middle) {
            true => high = middle,
            false => low = middle,
        }
    }
    high
}

/// A moment at which the certificate is judged. Between inspections it is not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inspection {
    /// Reviews of the random share.
    pub reviews: u64,
    /// What this inspection spends of the level.
    pub alpha: f64,
    /// The most errors among them that certify.
    pub accept: u64,
}

/// The inspections for a bound of `rate` on a share of at most `population` reviews. Fixed before the first review: the level is
/// spent on them and on no others. Empty where the share is too small to certify anything.
pub fn inspections(rate: f64, alpha: f64, population: u64) -> Vec<Inspection> {
    let mut inspections: Vec<Inspection> = Vec::new();
    for t in 1..=40_u32 {
        let level = alpha * 6.0 / (PI * PI * f64::from(t) * f64::from(t));
        let least = reviews_for(0, rate, level);
        let reviews = inspections.last().map_or(least, |last| least.max((last.reviews as f64 * GROWTH).ceil() as u64));
        match accept_number(reviews, rate, level) {
            Some(accept) if reviews <= population => inspections.push(Inspection { reviews, alpha: level, accept }),
            _ => break,
        }
    }
    inspections
}

/// The chance that one of the inspections certifies when the true rate is `actual`: exact, by following the number of errors
/// from inspection to inspection.
pub fn power(inspections: &[Inspection], actual: f64) -> Vec<f64> {
    // chance[c]: c errors so far and no inspection has certified.
    let mut chance = vec![1.0_f64];
    let (mut done, mut passed) = (0, 0.0);
    inspections
        .iter()
        .map(|inspection| {
            let added = inspection.reviews - done;
            let mut next = vec![0.0; chance.len() + added as usize];
            for (errors, from) in chance.iter().enumerate().filter(|(_, p)| **p > 1e-15) {
                let mut log = added as f64 * (-actual).ln_1p();
                for more in 0..=added {
                    let p = if actual <= 0.0 { f64::from(u8::from(more == 0)) } else { log.exp() };
                    next[errors + more as usize] += from * p;
                    log += ((added - more) as f64 / (more + 1) as f64).ln() + (actual / (1.0 - actual)).ln();
                }
            }
            let accept = (inspection.accept as usize + 1).min(next.len());
            passed += next[..accept].iter().sum::<f64>();
            next[..accept].fill(0.0);
            (chance, done) = (next, inspection.reviews);
            passed
        })
        .collect()
}

/// Where the certificate stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    /// The bound that is asked for.
    pub rate: f64,
    /// Reviews of the random share, without a gap from the first drawn on, and the errors among them.
    pub reviews: u64,
    pub errors: u64,
    /// The inspection that certified it.
    pub reached: Option<Inspection>,
    /// The inspection that is next, and how many errors may still come until then.
    pub next: Option<Inspection>,
}

impl Certificate {
    /// `outcomes`: whether each review of the random share found an error, in the order of the draw.
    pub fn of(outcomes: &[bool], rate: f64, inspections: &[Inspection]) -> Certificate {
        let errors_among = |n: u64| outcomes.iter().take(n as usize).filter(|error| **error).count() as u64;
        let n = outcomes.len() as u64;
        let reached = inspections
            .iter()
            .find(|inspection| inspection.reviews <= n && errors_among(inspection.reviews) <= inspection.accept);
        let next = inspections.iter().find(|inspection| inspection.reviews > n);
        Certificate {
            rate,
            reviews: n,
            errors: errors_among(n),
            reached: reached.copied(),
            next: next.filter(|_| reached.is_none()).copied(),
        }
    }

    /// The error rate found, and its upper bound when looked at once, now.
    pub fn estimate(&self) -> Option<(f64, f64)> {
        let rate = self.errors as f64 / self.reviews.max(1) as f64;
        (self.reviews > 0).then(|| (rate, upper_bound(self.errors, self.reviews, ALPHA)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// scipy.stats: binom.cdf and beta.ppf(0.95, c + 1, n - c).
    #[test]
    fn tails_and_bounds_are_scipys() {
        let cases = [
            (0, 59, 0.05, 0.04849452524942322, 0.04950760988822693),
            (2, 150, 0.05, 0.018154055021944306, 0.041374969893577085),
            (16, 500, 0.05, 0.034290186598394896, 0.048198148669046995),
            (1, 500, 0.01, 0.03975474083238734, 0.00945228220807518),
        ];
        for (c, n, p, cdf, upper) in cases {
            assert!((binomial_cdf(c, n, p) - cdf).abs() < 1e-10, "{c} {n} {p}: {}", binomial_cdf(c, n, p));
            assert!((upper_bound(c, n, 0.05) - upper).abs() < 1e-10, "{c} {n}: {}", upper_bound(c, n, 0.05));
        }
        assert!((binomial_cdf(5_000, 100_000, 0.05) - 0.5037624048).abs() < 1e-7);
    }

    #[test]
    fn accept_numbers_are_those_of_the_tables() {
        let table = [
            (0.05, 59, Some(0)),
            (0.05, 58, None),
            (0.05, 150, Some(2)),
            (0.05, 300, Some(8)),
            (0.05, 500, Some(16)),
            (0.02, 149, Some(0)),
            (0.02, 300, Some(1)),
            (0.02, 500, Some(4)),
            (0.01, 299, Some(0)),
            (0.01, 500, Some(1)),
        ];
        for (rate, n, accept) in table {
            assert_eq!(accept_number(n, rate, 0.05), accept, "{rate} {n}");
        }
        for errors in 0..20 {
            let n = reviews_for(errors, 0.05, 0.05);
            assert!(accept_number(n, 0.05, 0.05) >= Some(errors) && accept_number(n - 1, 0.05, 0.05) < Some(errors));
        }
    }

    /// At the very rate that must not be certified, any of the inspections certifies in at most 5 of 100 reviews; a plain slow
    /// simulation agrees with the exact chance.
    #[test]
    fn looking_often_keeps_the_level() {
        let inspections = inspections(0.05, ALPHA, 5_000);
        assert!(
            inspections.len() > 5 && inspections.windows(2).all(|w| w[0].reviews < w[1].reviews),
            "{inspections:?}"
        );
        let exact = *power(&inspections, 0.05).last().unwrap();
        assert!(exact <= 0.05, "{exact}");
        let mut rng = crate::text::Rng::new(7);
        let most = inspections.last().unwrap().reviews;
        let passes = |rate: f64, rng: &mut crate::text::Rng| {
            let outcomes: Vec<bool> = (0..most).map(|_| rng.chance(rate)).collect();
            Certificate::of(&outcomes, 0.05, &inspections).reached.is_some()
        };
        let share =
            |rate: f64, rng: &mut crate::text::Rng| (0..2_000).filter(|_| passes(rate, rng)).count() as f64 / 2_000.0;
        assert!((share(0.05, &mut rng) - exact).abs() < 0.015);
        assert!((share(0.03, &mut rng) - power(&inspections, 0.03).last().unwrap()).abs() < 0.03);
    }

    #[test]
    fn between_looks_nothing_is_certified() {
        let inspections = inspections(0.05, ALPHA, 5_000);
        let first = inspections[0].reviews as usize;
        let at = |n: usize| Certificate::of(&vec![false; n], 0.05, &inspections);
        assert_eq!((at(first - 1).reached, at(first - 1).next), (None, Some(inspections[0])));
        assert_eq!((at(first).reached, at(first).next), (Some(inspections[0]), None));
        // An error after the inspection does not take the certificate back, one before it does.
        let late: Vec<bool> = (0..first + 1).map(|i| i == first).collect();
        assert!(Certificate::of(&late, 0.05, &inspections).reached.is_some());
        let early: Vec<bool> = (0..first).map(|i| i == 3).collect();
        assert_eq!(Certificate::of(&early, 0.05, &inspections).next, Some(inspections[1]));
        assert_eq!(super::inspections(0.05, ALPHA, 30), []);
    }
}
