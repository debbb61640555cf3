//! Type-I error and power of every kind of gate. A candidate is drawn that lies exactly on the demand: to pass it is the one
//! error, to fail it the other, and both may happen at most alpha of the time. Power is that of "examples needed".

use super::{Claim, Figure, Job, Setting, binomial, job};
use crate::bootstrap::macro_f1_bounds;
use crate::calibrator::Calibrator;
use crate::cost::Cost;
use crate::gates::{Costs, Evidence, Gate, Measured, Metric, Rule, Verdict, decide};
use crate::metrics::{Confusion, Prediction};
use crate::slices::By;
use crate::special::normal_quantile;
use crate::statistics::{Paired, examples_for_difference, examples_for_proportion};
use crate::texts::Likeness;
use limbeck_artifact::random::SplitMix64;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// Rows of a simulated test split.
const ROWS: u64 = 300;

/// Tango's test is asymptotic. Where the candidate alone is right on a handful of rows its tail of fails is a little fat: 5.9 %
/// at three such rows of 300.
const TANGO_SLACK: f64 = 0.015;

pub(super) fn jobs() -> Vec<Job> {
    let mut jobs = vec![
        job("floors", |setting| {
            let floor = |metric, min| Rule::Floor { metric, min };
            [
                ("floor of accuracy, 80 %", floor(Metric::Accuracy, 0.8), 0.8),
                ("floor of accuracy, 97 %", floor(Metric::Accuracy, 0.97), 0.97),
                ("floor of valid answers, 99 %", floor(Metric::Validity, 0.99), 0.99),
                ("latency, 95 % of calls in time", Rule::Latency { p95_ms: 50.0 }, 0.95),
                (
                    "cell, taken for another at most 5 %",
                    Rule::Cell { gold: "yes".into(), predicted: "no".into(), max: 0.05 },
                    0.95,
                ),
                (
                    "quantization, same answer on 95 %",
                    Rule::Quantization {
                        against: "other".into(),
                        max_agreement_loss: 0.05,
                        max_accuracy_loss: None,
                        max_kl: None,
                    },
                    0.95,
                ),
            ]
            .into_iter()
            .flat_map(|(what, rule, rate)| of_rate(what, &rule, rate, setting))
            .collect()
        }),
        job("recall of every class", per_class),
        job("macro-F1", macro_f1),
        job("ROUGE-L", likeness),
        job("calibration error", calibration),
        job("cost", cost),
        job("examples needed", power),
    ];
    for (what, delta, discordance) in [
        ("non-inferiority, 3 points, 5 % discordant", -0.03, 0.05),
        ("non-inferiority, 3 points, 15 % discordant", -0.03, 0.15),
        ("improvement by 0 points, 10 % discordant", 0.0, 0.10),
        ("improvement by 40 points, 50 % discordant", 0.4, 0.50),
    ] {
        jobs.push(job(what, move |setting| of_difference(what, delta, discordance, setting)));
    }
    jobs
}

/// How often a gate passed and failed.
#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn add(&mut self, verdict: Verdict) {
        self.passed += u32::from(verdict == Verdict::Pass);
        self.failed += u32::from(verdict == Verdict::Fail);
    }

    fn figures(&self, what: &str, setting: &Setting, trials: u32) -> Vec<Figure> {
        self.figures_with(what, setting, trials, 0.0)
    }

    /// `slack`: what a needless fail may take above alpha.
    fn figures_with(&self, what: &str, setting: &Setting, trials: u32, slack: f64) -> Vec<Figure> {
        let alpha = setting.risk.alpha;
        vec![
            Figure::of("type I error", what.to_owned(), Claim::AtMost(alpha), self.passed, trials),
            Figure::of("needless fail", what.to_owned(), Claim::AtMost(alpha + slack), self.failed, trials),
        ]
    }
}

/// The gate's verdict when of `n` rows the candidate gets the first `right` right, and the other arm those in `other`.
fn verdict(
    rule: &Rule,
    right: &dyn Fn(u64) -> bool,
    other: &dyn Fn(u64) -> bool,
    n: u64,
    setting: &Setting,
) -> Verdict {
    let gold = vec![0; n as usize];
    let labels = ["yes".to_owned(), "no".to_owned()];
    let arm = |is_right: &dyn Fn(u64) -> bool| -> Vec<Prediction> {
        let one = |i| {
            let right = is_right(i);
            Prediction {
                row: String::new(),
                // A floor of valid answers counts those without a label.
                label: if right { Some(0) } else { wrong_label(rule) },
                posterior: None,
                latency_ms: Some(if right { 10.0 } else { 100.0 }),
                said: None,
                tokens: None,
            }
        };
        (0..n).map(one).collect()
    };
    let (candidate, rival) = (arm(right), arm(other));
    let arms = BTreeMap::from([("candidate", candidate.as_slice()), ("other", rival.as_slice())]);
    let evidence = evidence(&labels, &gold, arms, setting);
    decide(&Gate { name: "gate".to_owned(), rule: rule.clone() }, &evidence).verdict
}

fn wrong_label(rule: &Rule) -> Option<usize> {
    (!matches!(rule, Rule::Floor { metric: Metric::Validity, .. })).then_some(1)
}

fn evidence<'a>(
    labels: &'a [String],
    gold: &'a [usize],
    arms: BTreeMap<&'a str, &'a [Prediction]>,
    setting: &Setting,
) -> Evidence<'a> {
    static NO_SLICES: BTreeMap<(By, String), Vec<usize>> = BTreeMap::new();
    Evidence {
        labels,
        in_words: false,
        likeness: no_likeness(),
        gold,
        arms,
        candidate: "candidate",
        risk: setting.risk,
        bootstrap_resamples: 500,
        seed: setting.seed,
        routing: None,
        fallback: &[],
        slices: &NO_SLICES,
        planted: &[],
        measured: Measured::default(),
    }
}

fn no_likeness() -> &'static Likeness {
    static NONE: OnceLock<Likeness> = OnceLock::new();
    NONE.get_or_init(Likeness::new)
}

/// Texts of which a tenth are of no use and some are word for word: the mean of values between 0 and 1, on the demand.
fn likeness(setting: &Setting) -> Vec<Figure> {
    const ROWS: usize = 150;
    // By tenths of ROUGE-L, how many of a hundred answers have it.
    const OF_HUNDRED: [usize; 11] = [10, 0, 4, 8, 12, 16, 14, 10, 8, 4, 14];
    let population: Vec<usize> = OF_HUNDRED.iter().enumerate().flat_map(|(tenth, n)| vec![tenth; *n]).collect();
    let truth = population.iter().sum::<usize>() as f64 / 1_000.0;
    let likeness: Likeness = (0..OF_HUNDRED.len()).map(|tenth| ((0, tenth), tenth as f64 / 10.0)).collect();
    let what = "floor of ROUGE-L, bootstrap of t, 150 rows";
    let gate = Gate { name: "gate".to_owned(), rule: Rule::Floor { metric: Metric::RougeL, min: truth } };
    let decided = |seed: &u64| {
        let mut rng = SplitMix64::new(*seed);
        let one = |_| answered(Some(population[rng.below(population.len())]), None);
        let candidate: Vec<Prediction> = (0..ROWS).map(one).collect();
        let arms = BTreeMap::from([("candidate", candidate.as_slice())]);
        let evidence = evidence(&[], &[0; ROWS], arms, setting);
        decide(&gate, &Evidence { likeness: &likeness, seed: *seed, ..evidence }).verdict
    };
    heavily(what, setting, decided)
}

/// Confidences that err by the demand: wherever they are, close to one where all of few may be right by luck, and in half of the
/// rows beside others that are beyond doubt.
fn calibration(setting: &Setting) -> Vec<Figure> {
    let mut figures =
        off_by(0.05, 600, "calibration error, 5 points, 600 rows", setting, |at| 0.6 + 0.4 * at, |said| said - 0.05);
    for rows in [150, 600] {
        let what = format!("calibration error, says 99 % and is right on 96 %, {rows} rows");
        figures.extend(off_by(0.03, rows, &what, setting, |_| 0.99, |_| 0.96));
    }
    let half = |at: f64| if at < 0.5 { 0.999 } else { 0.4 + 0.4 * at };
    let unsure = |said: f64| if said < 0.9 { said - 0.06 } else { said };
    figures.extend(off_by(0.03, 300, "calibration error, 6 points in one half, 300 rows", setting, half, unsure));
    figures
}

/// `said` makes a confidence of a draw from 0 to 1, `right` says how often it is right.
fn off_by(
    max_error: f64,
    rows: usize,
    what: &str,
    setting: &Setting,
    said: impl Fn(f64) -> f64 + Sync + Send,
    right: impl Fn(f64) -> f64 + Sync + Send,
) -> Vec<Figure> {
    let gate = Gate { name: "gate".to_owned(), rule: Rule::Calibration { max_error } };
    let decided = |seed: &u64| {
        let mut rng = SplitMix64::new(*seed);
        let (mut candidate, mut gold) = (Vec::with_capacity(rows), Vec::with_capacity(rows));
        for _ in 0..rows {
            let confidence = said(rng.unit());
            gold.push(usize::from(rng.unit() >= right(confidence)));
            let posterior = vec![confidence as f32, (1.0 - confidence) as f32];
            candidate.push(Prediction { posterior: Some(posterior), ..answered(Some(0), None) });
        }
        let (labels, arms) =
            (["yes".to_owned(), "no".to_owned()], BTreeMap::from([("candidate", candidate.as_slice())]));
        let measured = Measured { calibrator: Some(&Calibrator::None), ..Measured::default() };
        let evidence = Evidence { measured, seed: *seed, ..evidence(&labels, &gold, arms, setting) };
        decide(&gate, &evidence).verdict
    };
    heavily(what, setting, decided)
}

/// A hundred calls whose times are skewed (lognormal, sigma 0.6), on a machine that is paid by the hour: the mean is the demand.
fn cost(setting: &Setting) -> Vec<Figure> {
    const CALLS: usize = 100;
    const SIGMA: f64 = 0.6;
    let what = "cost by the time of 100 calls";
    let truth = (SIGMA * SIGMA / 2.0).exp();
    let gate = Gate { name: "gate".to_owned(), rule: Rule::Cost { max_per_1k_calls: truth } };
    let decided = |seed: &u64| {
        let mut rng = SplitMix64::new(*seed);
        let mut time = || (SIGMA * normal_quantile(rng.unit().clamp(1e-12, 1.0 - 1e-12))).exp();
        let candidate: Vec<Prediction> = (0..CALLS).map(|_| answered(Some(0), Some(time()))).collect();
        let mean = candidate.iter().filter_map(|p| p.latency_ms).sum::<f64>() / CALLS as f64;
        let own = Cost { per_1k_calls: mean, currency: "USD".to_owned(), basis: String::new() };
        let measured = Measured { costs: Some(Costs { own: &own, frontier: Err("no price") }), ..Measured::default() };
        let arms = BTreeMap::from([("candidate", candidate.as_slice())]);
        let evidence = Evidence { measured, seed: *seed, ..evidence(&[], &[0; CALLS], arms, setting) };
        decide(&gate, &evidence).verdict
    };
    heavily(what, setting, decided)
}

fn answered(label: Option<usize>, latency_ms: Option<f64>) -> Prediction {
    Prediction { row: String::new(), label, posterior: None, latency_ms, said: None, tokens: None }
}

/// What takes a bootstrap each, all threads at it.
fn heavily(what: &str, setting: &Setting, decided: impl Fn(&u64) -> Verdict + Send + Sync) -> Vec<Figure> {
    let seeds: Vec<u64> = {
        let mut rng = setting.rng(what);
        (0..setting.heavy_trials).map(|_| rng.next_u64()).collect()
    };
    let verdicts: Vec<Verdict> = seeds.par_iter().map(decided).collect();
    let mut tally = Tally::default();
    verdicts.into_iter().for_each(|verdict| tally.add(verdict));
    tally.figures(what, setting, setting.heavy_trials)
}

/// Gates whose evidence is a count of `ROWS`.
fn of_rate(what: &str, rule: &Rule, rate: f64, setting: &Setting) -> Vec<Figure> {
    let (mut rng, mut tally) = (setting.rng(what), Tally::default());
    let mut known = BTreeMap::<u64, Verdict>::new();
    for _ in 0..setting.trials {
        let k = binomial(&mut rng, ROWS, rate);
        let of = || verdict(rule, &|i| i < k, &|_| true, ROWS, setting);
        tally.add(*known.entry(k).or_insert_with(of));
    }
    tally.figures(what, setting, setting.trials)
}

/// Paired gates at a true difference of exactly `delta`.
fn of_difference(what: &str, delta: f64, discordance: f64, setting: &Setting) -> Vec<Figure> {
    let rule = match delta {
        d if d < 0.0 => Rule::NonInferiority { against: "other".into(), margin: -d },
        d => Rule::Improvement { over: "other".into(), min: d },
    };
    let (p_b, p_c) = ((discordance + delta) / 2.0, (discordance - delta) / 2.0);
    let (mut rng, mut tally) = (setting.rng(what), Tally::default());
    let mut known = BTreeMap::<(u64, u64), Verdict>::new();
    for _ in 0..setting.trials {
        let pair = Paired::drawn(&mut rng, ROWS, p_b, p_c);
        tally.add(*known.entry((pair.b, pair.c)).or_insert_with(|| of_pair(&rule, pair, setting)));
    }
    tally.figures_with(what, setting, setting.trials, TANGO_SLACK)
}

/// The first b rows only the candidate gets right, the next c only the other arm, the rest both.
fn of_pair(rule: &Rule, pair: Paired, setting: &Setting) -> Verdict {
    let (b, c) = (pair.b, pair.c);
    verdict(rule, &|i| i < b || i >= b + c, &|i| i >= b, pair.n, setting)
}

/// A pass is worst where one class lies on the demand and the others are perfect, a fail where all lie on it.
fn per_class(setting: &Setting) -> Vec<Figure> {
    const CLASSES: usize = 8;
    const EACH: u64 = 60;
    let (min, rule) = (0.85, Rule::PerClassRecall { min: 0.85 });
    let labels: Vec<String> = (0..CLASSES).map(|class| format!("class {class}")).collect();
    let gold: Vec<usize> = (0..CLASSES).flat_map(|class| vec![class; EACH as usize]).collect();
    let decided = |counts: &[u64]| {
        let one = |(i, class): (usize, &usize)| {
            let right = (i as u64 % EACH) < counts[*class];
            let label = if right { *class } else { (class + 1) % CLASSES };
            Prediction {
                row: String::new(),
                label: Some(label),
                posterior: None,
                latency_ms: None,
                said: None,
                tokens: None,
            }
        };
        let candidate: Vec<Prediction> = gold.iter().enumerate().map(one).collect();
        let arms = BTreeMap::from([("candidate", candidate.as_slice())]);
        let gate = Gate { name: "gate".to_owned(), rule: rule.clone() };
        decide(&gate, &evidence(&labels, &gold, arms, setting)).verdict
    };
    let what = "recall of every class, 85 %, 8 classes of 60 rows";
    let mut rng = setting.rng(what);
    let mut known = BTreeMap::<u64, Verdict>::new();
    let mut passed = 0;
    for _ in 0..setting.trials {
        let k = binomial(&mut rng, EACH, min);
        let of = || decided(&[k, EACH, EACH, EACH, EACH, EACH, EACH, EACH]);
        passed += u32::from(*known.entry(k).or_insert_with(of) == Verdict::Pass);
    }
    let draws: Vec<Vec<u64>> =
        (0..setting.heavy_trials).map(|_| (0..CLASSES).map(|_| binomial(&mut rng, EACH, min)).collect()).collect();
    let failed = draws.par_iter().filter(|counts| decided(counts) == Verdict::Fail).count() as u32;
    let claim = Claim::AtMost(setting.risk.alpha);
    vec![
        Figure::of("type I error", what.to_owned(), claim, passed, setting.trials),
        Figure::of("needless fail", what.to_owned(), claim, failed, setting.heavy_trials),
    ]
}

/// Bounds against the macro-F1 of the population that the rows were drawn from.
fn macro_f1(setting: &Setting) -> Vec<Figure> {
    const CLASSES: usize = 5;
    const EACH: usize = 60;
    let recall = [0.95, 0.9, 0.85, 0.9, 0.8];
    let gold: Vec<usize> = (0..CLASSES).flat_map(|class| vec![class; EACH]).collect();
    // Rows of the population: 10,000 a class, wrong ones spread evenly.
    let mut population = Confusion { counts: vec![vec![0; CLASSES]; CLASSES], invalid: vec![0; CLASSES] };
    for (class, recall) in recall.iter().enumerate() {
        let wrong = ((1.0 - recall) * 10_000.0_f64).round() as u64;
        for answer in 0..CLASSES {
            population.counts[class][answer] =
                if answer == class { 10_000 - wrong } else { wrong / (CLASSES as u64 - 1) };
        }
    }
    let truth = population.macro_f1();
    let what = "macro-F1, BCa bootstrap, 5 classes of 60 rows";
    let seeds: Vec<u64> = {
        let mut rng = setting.rng(what);
        (0..setting.heavy_trials).map(|_| rng.next_u64()).collect()
    };
    let confidence = 1.0 - setting.risk.alpha;
    let verdicts: Vec<(bool, bool)> = seeds
        .par_iter()
        .map(|seed| {
            let mut rng = SplitMix64::new(*seed);
            let answers: Vec<Option<usize>> = gold
                .iter()
                .map(|class| {
                    let right = rng.unit() < recall[*class];
                    Some(if right { *class } else { (class + 1 + rng.below(CLASSES - 1)) % CLASSES })
                })
                .collect();
            let bounds = macro_f1_bounds(&gold, &answers, CLASSES, confidence, 400, rng.next_u64());
            (bounds.lower >= truth, bounds.upper < truth)
        })
        .collect();
    let mut tally = Tally::default();
    for (passes, fails) in verdicts {
        tally.passed += u32::from(passes);
        tally.failed += u32::from(fails);
    }
    tally.figures(what, setting, setting.heavy_trials)
}

/// As many rows as a gate asks for decide it as often as it says. The number is a normal approximation, which the exact
/// bounds pay for with a few points.
fn power(setting: &Setting) -> Vec<Figure> {
    const LOSS: f64 = 0.05;
    let claim = Claim::AtLeast(setting.risk.power - LOSS);
    let mut figures = Vec::new();
    for (rate, min) in [(0.92, 0.88), (0.85, 0.89)] {
        let what = format!("floor of {}, truly {}", crate::words::percent(min), crate::words::percent(rate));
        let seen = (rate * 100.0_f64).round() as u64;
        let Some(n) = examples_for_proportion(seen, 100, min, setting.risk) else { continue };
        let rule = Rule::Floor { metric: Metric::Accuracy, min };
        let wanted = if rate > min { Verdict::Pass } else { Verdict::Fail };
        let (mut rng, mut known, mut decided) = (setting.rng(&what), BTreeMap::<u64, Verdict>::new(), 0);
        for _ in 0..setting.heavy_trials {
            let k = binomial(&mut rng, n, rate);
            let of = || verdict(&rule, &|i| i < k, &|_| true, n, setting);
            decided += u32::from(*known.entry(k).or_insert_with(of) == wanted);
        }
        figures.push(Figure::of("power", format!("{what}, {n} rows"), claim, decided, setting.heavy_trials));
    }
    for (b, c, margin) in [(5, 5, 0.03), (10, 12, 0.05)] {
        let seen = Paired { n: 200, b, c };
        let what = format!("non-inferiority by {}, {} % discordant", crate::words::points(margin), (b + c) / 2);
        let Some(n) = examples_for_difference(seen, -margin, setting.risk) else { continue };
        let rule = Rule::NonInferiority { against: "other".into(), margin };
        let (mut rng, mut known, mut decided) = (setting.rng(&what), BTreeMap::<(u64, u64), Verdict>::new(), 0);
        for _ in 0..setting.heavy_trials {
            let pair = Paired::drawn(&mut rng, n, b as f64 / 200.0, c as f64 / 200.0);
            let of = || of_pair(&rule, pair, setting);
            decided += u32::from(*known.entry((pair.b, pair.c)).or_insert_with(of) == Verdict::Pass);
        }
        figures.push(Figure::of("power", format!("{what}, {n} rows"), claim, decided, setting.heavy_trials));
    }
    figures
}
