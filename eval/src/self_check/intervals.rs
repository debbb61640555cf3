//! Whether intervals hold the truth as often as they say. Exact ones always do; Wilson's and Tango's do on average and may
//! miss by a point at a given rate, since counts are whole numbers.

use super::{Claim, Figure, Job, Setting, binomial, job};
use crate::statistics::{Interval, Paired, clopper_pearson, mcnemar_exact, tango_interval, wilson};
use std::collections::BTreeMap;

const CONFIDENCE: f64 = 0.95;
/// What an approximate interval may miss by at one rate.
const APPROXIMATE: f64 = 0.015;

/// An interval's name, its function and how often it holds the truth at least.
type Kind = (&'static str, fn(u64, u64, f64) -> Interval, f64);

pub(super) fn jobs() -> Vec<Job> {
    vec![job("intervals of rates", rates), job("intervals of differences", differences)]
}

fn rates(setting: &Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (n, rate) in [(300, 0.9), (60, 0.8), (300, 0.98)] {
        let kinds: [Kind; 2] =
            [("Clopper–Pearson", clopper_pearson, CONFIDENCE), ("Wilson", wilson, CONFIDENCE - APPROXIMATE)];
        for (name, interval, least) in kinds {
            let what = format!("{name}, {} of {n} rows", crate::words::percent(rate));
            let (mut rng, mut known, mut held) = (setting.rng(&what), BTreeMap::<u64, bool>::new(), 0);
            for _ in 0..setting.trials {
                let k = binomial(&mut rng, n, rate);
                let holds = || {
                    let interval = interval(k, n, CONFIDENCE);
                    interval.low <= rate && rate <= interval.high
                };
                held += u32::from(*known.entry(k).or_insert_with(holds));
            }
            figures.push(Figure::of("coverage", what, Claim::AtLeast(least), held, setting.trials));
        }
    }
    figures
}

fn differences(setting: &Setting) -> Vec<Figure> {
    let mut figures = Vec::new();
    for (delta, discordance) in [(0.0, 0.1), (-0.03, 0.06)] {
        let what = format!(
            "Tango, {}, {} discordant of 300 rows",
            crate::words::signed_points(delta),
            crate::words::percent(discordance)
        );
        let mcnemar = format!("exact McNemar, no difference, {} discordant", crate::words::percent(discordance));
        let (mut rng, mut known, mut held, mut found) =
            (setting.rng(&what), BTreeMap::<(u64, u64), (bool, bool)>::new(), 0, 0);
        for _ in 0..setting.trials {
            let mut pair = Paired { n: 300, b: 0, c: 0 };
            for _ in 0..pair.n {
                let u = rng.unit();
                let (p_b, p_c) = ((discordance + delta) / 2.0, (discordance - delta) / 2.0);
                pair.b += u64::from(u < p_b);
                pair.c += u64::from(u >= p_b && u < p_b + p_c);
            }
            let of = || {
                let interval = tango_interval(pair, CONFIDENCE);
                (interval.low <= delta && delta <= interval.high, mcnemar_exact(pair) <= 1.0 - CONFIDENCE)
            };
            let (holds, finds) = *known.entry((pair.b, pair.c)).or_insert_with(of);
            held += u32::from(holds);
            found += u32::from(finds);
        }
        figures.push(Figure::of("coverage", what, Claim::AtLeast(CONFIDENCE - APPROXIMATE), held, setting.trials));
        if delta == 0.0 {
            figures.push(Figure::of("type I error", mcnemar, Claim::AtMost(1.0 - CONFIDENCE), found, setting.trials));
        }
    }
    figures
}
