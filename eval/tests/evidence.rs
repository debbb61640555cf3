//! What the statistics promise: intervals hold their estimate and shrink, tests keep their error rate, "examples needed"
//! decides when it is followed, and every gate says pass, fail or inconclusive where it should.

use limbeck_artifact::dataset::Split;
use limbeck_eval::statistics::{
    MAX_EXAMPLES, Paired, Risk, clopper_pearson, examples_for_difference, examples_for_proportion, lower_bound,
    mcnemar_exact, tango_interval, tango_lower, tango_upper, tango_z, upper_bound, wilson,
};
use limbeck_eval::{
    Calibrator, Cost, Costs, Evidence, Gate, GateResult, Likeness, Measured, Metric, Prediction, Rule, SplitMix64,
    SplitRows, Stability, Verdict, decide, fit_temperature, nll, normal_quantile, stability, temper,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn counts() -> impl Strategy<Value = (u64, u64)> {
    (1_u64..2_000).prop_flat_map(|n| (0..=n, Just(n)))
}

fn pairs() -> impl Strategy<Value = Paired> {
    (1_u64..800)
        .prop_flat_map(|n| (Just(n), 0..=n))
        .prop_flat_map(|(n, b)| (Just(n), Just(b), 0..=n - b))
        .prop_map(|(n, b, c)| Paired { n, b, c })
}

proptest! {
    #[test]
    fn intervals_hold_the_estimate_and_grow_with_confidence((k, n) in counts(), confidence in 0.5..0.999_f64) {
        let p = k as f64 / n as f64;
        for interval in [wilson(k, n, confidence), clopper_pearson(k, n, confidence)] {
            prop_assert!(0.0 <= interval.low && interval.low <= p && p <= interval.high && interval.high <= 1.0);
        }
        let (narrow, wide) = (clopper_pearson(k, n, confidence), clopper_pearson(k, n, 0.9995));
        prop_assert!(wide.low <= narrow.low && narrow.high <= wide.high);
        prop_assert!(lower_bound(k, n, 0.95) <= p && p <= upper_bound(k, n, 0.95));
    }

    #[test]
    fn one_more_success_never_lowers_a_bound((k, n) in counts()) {
        if k < n {
            prop_assert!(lower_bound(k, n, 0.95) <= lower_bound(k + 1, n, 0.95));
            prop_assert!(upper_bound(k, n, 0.95) <= upper_bound(k + 1, n, 0.95));
            prop_assert!(wilson(k, n, 0.95).low <= wilson(k + 1, n, 0.95).low + 1e-12);
        }
    }

    #[test]
    fn tango_holds_the_difference_and_falls_with_the_margin(pair in pairs(), x in -0.99..0.99_f64, y in -0.99..0.99_f64) {
        let interval = tango_interval(pair, 0.95);
        let d = pair.difference();
        prop_assert!(-1.0 <= interval.low && interval.low <= d + 1e-9 && d <= interval.high + 1e-9 && interval.high <= 1.0);
        let (low, high) = (x.min(y), x.max(y));
        prop_assert!(tango_z(pair, low) >= tango_z(pair, high) - 1e-9, "{} {}", tango_z(pair, low), tango_z(pair, high));
        prop_assert!(!tango_z(pair, x).is_nan());
    }

    #[test]
    fn tango_is_antisymmetric(pair in pairs(), delta in -0.99..0.99_f64) {
        let swapped = Paired { n: pair.n, b: pair.c, c: pair.b };
        let (z, mirrored) = (tango_z(pair, delta), -tango_z(swapped, -delta));
        prop_assert!((z - mirrored).abs() <= 1e-6 * z.abs().max(1.0), "{z} {mirrored}");
    }

    #[test]
    fn mcnemar_is_a_probability_and_symmetric(pair in pairs()) {
        let p = mcnemar_exact(pair);
        prop_assert!((0.0..=1.0).contains(&p));
        prop_assert_eq!(p, mcnemar_exact(Paired { n: pair.n, b: pair.c, c: pair.b }));
    }

    #[test]
    fn examples_needed_are_more_than_there_are_and_never_past_the_cap(pair in pairs(), margin in 0.005..0.2_f64) {
        if let Some(needed) = examples_for_difference(pair, -margin, Risk::default()) {
            prop_assert!(needed > pair.n && needed <= MAX_EXAMPLES.max(pair.n + 1));
        }
    }

    #[test]
    fn the_fitted_temperature_is_the_best(seed in any::<u64>(), t in 0.06..15.0_f64) {
        let mut rng = SplitMix64::new(seed);
        let rows: Vec<Vec<f32>> = (0..40).map(|_| {
            let raw: Vec<f32> = (0..3).map(|_| rng.unit() as f32 + 0.01).collect();
            let sum: f32 = raw.iter().sum();
            raw.iter().map(|p| p / sum).collect()
        }).collect();
        let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
        let gold: Vec<usize> = (0..40).map(|_| rng.below(3)).collect();
        prop_assert!(nll(&rows, &gold, fit_temperature(&rows, &gold)) <= nll(&rows, &gold, t) + 1e-9);
        let tempered = temper(rows[0], t);
        prop_assert!((tempered.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }
}

#[test]
fn tango_without_discordant_rows() {
    // 88 rows on which both are always right or always wrong just exclude a loss of 3 points; 87 do not.
    let none = |n| Paired { n, b: 0, c: 0 };
    let z = normal_quantile(0.95);
    assert!(tango_z(none(88), -0.03) > z);
    assert!(tango_z(none(87), -0.03) < z);
    assert_eq!(tango_z(none(300), 0.0), 0.0);
    assert_eq!(tango_z(none(0), -0.03), 0.0);
    assert_eq!(examples_for_difference(none(50), -0.03, Risk::default()), Some(88));
    assert_eq!((tango_lower(none(0), 0.95), tango_upper(none(0), 0.95)), (-1.0, 1.0));
    // All rows discordant one way.
    let all = Paired { n: 20, b: 20, c: 0 };
    assert!(tango_z(all, 0.5) > z && (tango_upper(all, 0.95) - 1.0).abs() < 1e-9);
}

#[test]
fn tango_passes_a_candidate_on_the_margin_at_most_one_time_in_twenty() {
    let (n, margin, z, trials) = (300, 0.03, normal_quantile(0.95), 20_000);
    for discordance in [0.05, 0.10, 0.20] {
        let mut rng = SplitMix64::new(2_026);
        let (p_b, p_c) = ((discordance - margin) / 2.0, (discordance + margin) / 2.0);
        let passed = (0..trials).filter(|_| tango_z(Paired::drawn(&mut rng, n, p_b, p_c), -margin) > z).count();
        let rate = passed as f64 / f64::from(trials);
        assert!(rate <= 0.055, "type I error {rate} at discordance {discordance}");
        assert!(rate >= 0.035, "needlessly timid: {rate} at discordance {discordance}");
    }
}

#[test]
fn tango_error_rate_by_enumeration() {
    // Not simulated: every (b, c) with its probability, at the margin.
    let (n, margin, z) = (300_u64, 0.03, normal_quantile(0.95));
    let ln_factorial: Vec<f64> = (0..=n)
        .scan(0.0, |sum, i| {
            *sum += (i.max(1) as f64).ln();
            Some(*sum)
        })
        .collect();
    for discordance in [0.04, 0.08, 0.15] {
        let (p_b, p_c): (f64, f64) = ((discordance - margin) / 2.0, (discordance + margin) / 2.0);
        let mut error = 0.0;
        for b in 0..=n {
            for c in 0..=(n - b) {
                let rest = n - b - c;
                let ln_p = ln_factorial[n as usize]
                    - ln_factorial[b as usize]
                    - ln_factorial[c as usize]
                    - ln_factorial[rest as usize]
                    + b as f64 * p_b.ln()
                    + c as f64 * p_c.ln()
                    + rest as f64 * (1.0 - p_b - p_c).ln();
                if ln_p > -40.0 && tango_z(Paired { n, b, c }, -margin) > z {
                    error += ln_p.exp();
                }
            }
        }
        assert!(error <= 0.055, "type I error {error} at discordance {discordance}");
    }
}

#[test]
fn as_many_examples_as_asked_for_decide_four_times_in_five() {
    // Observed: no difference at 5 % discordance, 100 rows. Margin: 3 points.
    let seen = Paired { n: 200, b: 5, c: 5 };
    let needed = examples_for_difference(seen, -0.03, Risk::default()).unwrap();
    assert!((340..=460).contains(&needed), "{needed}");
    let mut rng = SplitMix64::new(7);
    let passed = (0..4_000)
        .filter(|_| tango_z(Paired::drawn(&mut rng, needed, 0.025, 0.025), -0.03) > normal_quantile(0.95))
        .count();
    let power = passed as f64 / 4_000.0;
    assert!((0.77..=0.87).contains(&power), "power {power} with {needed} rows");
}

#[test]
fn no_number_of_examples_decides_a_difference_that_lies_on_the_margin() {
    assert_eq!(examples_for_difference(Paired { n: 100, b: 5, c: 8 }, -0.03, Risk::default()), None);
    assert_eq!(examples_for_proportion(90, 100, 0.9, Risk::default()), None);
    assert_eq!(examples_for_proportion(10, 10, 0.95, Risk::default()), Some(59));
}

/// A gate's decision when the candidate got `right` of the rows right and the other arm `other`.
fn decided(rule: Rule, right: &[bool], other: &[bool]) -> GateResult {
    let gold = vec![0_usize; right.len()];
    let predictions = |flags: &[bool]| -> Vec<Prediction> {
        let one = |right: &bool| Prediction {
            row: String::new(),
            label: Some(usize::from(!right)),
            posterior: None,
            latency_ms: Some(if *right { 10.0 } else { 100.0 }),
            said: None,
            tokens: None,
        };
        flags.iter().map(one).collect()
    };
    let (candidate, rival) = (predictions(right), predictions(other));
    let labels = ["yes".to_owned(), "no".to_owned()];
    let evidence = Evidence {
        labels: &labels,
        in_words: false,
        likeness: &Likeness::new(),
        gold: &gold,
        arms: BTreeMap::from([("candidate", candidate.as_slice()), ("other", rival.as_slice())]),
        candidate: "candidate",
        risk: Risk::default(),
        bootstrap_resamples: 500,
        seed: 1,
        routing: None,
        fallback: &[],
        slices: &BTreeMap::new(),
        planted: &[],
        measured: Measured::default(),
    };
    decide(&Gate { name: "gate".into(), rule }, &evidence)
}

/// How the same gate decides on rows drawn anew, in groups of `size`.
fn steady(rule: Rule, right: &[bool], size: usize) -> Stability {
    let gold = vec![0_usize; right.len()];
    let one = |right: &bool| Prediction {
        row: String::new(),
        label: Some(usize::from(!right)),
        posterior: None,
        latency_ms: None,
        said: None,
        tokens: None,
    };
    let candidate: Vec<Prediction> = right.iter().map(one).collect();
    let labels = ["yes".to_owned(), "no".to_owned()];
    let evidence = Evidence {
        labels: &labels,
        in_words: false,
        likeness: &Likeness::new(),
        gold: &gold,
        arms: BTreeMap::from([("candidate", candidate.as_slice())]),
        candidate: "candidate",
        risk: Risk::default(),
        bootstrap_resamples: 100,
        seed: 1,
        routing: None,
        fallback: &[],
        slices: &BTreeMap::new(),
        planted: &[],
        measured: Measured::default(),
    };
    let names: Vec<String> = (0..right.len()).map(|i| format!("customer {}", i / size)).collect();
    let groups: Vec<&str> = names.iter().map(String::as_str).collect();
    let gate = Gate { name: "gate".into(), rule };
    let verdict = decide(&gate, &evidence).verdict;
    stability(&gate, verdict, &evidence, &groups, 2_000).expect("a floor depends on the rows")
}

#[test]
fn a_gate_far_from_its_demand_never_flips_and_one_near_it_does() {
    let floor = |min| Rule::Floor { metric: Metric::Accuracy, min };
    let sure = steady(floor(0.5), &first(270, 300), 1);
    assert_eq!((sure.passes, sure.same, sure.flip), (1.0, 1.0, 0.0));
    // Passes from 263 of 300 on: at 263 seen, a draw passes about as often as a coin shows heads.
    let bound = (0..=300).find(|k| lower_bound(*k, 300, 0.95) >= 0.84).unwrap();
    let near = steady(floor(0.84), &first(bound as usize, 300), 1);
    assert!((0.45..0.6).contains(&near.passes), "{near:?}");
    assert!((near.flip - 2.0 * near.passes * near.inconclusive).abs() < 0.01, "{near:?}");
    // P(a draw of 300 rows passes) is binomial: the repeats say the same.
    let p = bound as f64 / 300.0;
    let sd = (300.0 * p * (1.0 - p)).sqrt();
    let share = 1.0 - limbeck_eval::normal_cdf((bound as f64 - 0.5 - 300.0 * p) / sd);
    assert!((near.passes - share).abs() < 0.04, "{near:?} {share}");
    // Rows that come in tens of one kind vary more.
    let wide = steady(floor(0.80), &first(bound as usize / 10 * 10, 300), 10);
    assert!(wide.passes < steady(floor(0.80), &first(bound as usize / 10 * 10, 300), 1).passes, "{wide:?}");
}

/// `k` right rows, then wrong ones, `n` in all.
fn first(k: usize, n: usize) -> Vec<bool> {
    (0..n).map(|i| i < k).collect()
}

#[track_caller]
fn check(rule: Rule, right: &[bool], other: &[bool], verdict: Verdict, says: &str) -> GateResult {
    let result = decided(rule, right, other);
    assert_eq!(result.verdict, verdict, "{}", result.reason);
    assert!(result.reason.contains(says), "{}", result.reason);
    assert!(result.examples_needed.is_none() || verdict == Verdict::Inconclusive, "{result:?}");
    result
}

#[test]
fn a_floor_needs_its_bound_and_not_only_its_estimate() {
    let floor = |min| Rule::Floor { metric: Metric::Accuracy, min };
    let right = first(270, 300);
    check(floor(0.85), &right, &right, Verdict::Pass, "90 % (270 of 300); with 95 % confidence at least 86.7 %");
    check(floor(0.95), &right, &right, Verdict::Fail, "at most 92.7 %");
    let open = check(floor(0.88), &right, &right, Verdict::Inconclusive, "reviewed test rows");
    assert!(open.examples_needed.is_some_and(|n| (1_000..2_500).contains(&n)), "{open:?}");
    let open = check(floor(0.90), &right, &right, Verdict::Inconclusive, "no feasible number of rows");
    assert_eq!(open.examples_needed, None);
}

#[test]
fn macro_f1_floors_use_the_bootstrap() {
    let floor = |min| Rule::Floor { metric: Metric::MacroF1, min };
    let right = first(270, 300);
    check(floor(0.85), &right, &right, Verdict::Pass, "Macro-F1 is 94.7 %");
    check(floor(0.98), &right, &right, Verdict::Fail, "bootstrap");
}

#[test]
fn non_inferiority_is_decided_on_the_same_rows() {
    let rule = |margin| Rule::NonInferiority { against: "other".into(), margin };
    let frontier = first(276, 300);
    check(rule(0.03), &first(275, 300), &frontier, Verdict::Pass, "0 rows only candidate got right, 1 only other");
    check(rule(0.03), &first(240, 300), &frontier, Verdict::Fail, "−12 points");
    let mut shuffled = frontier.clone();
    shuffled.rotate_right(24);
    let open = check(rule(0.03), &shuffled, &frontier, Verdict::Inconclusive, "Not enough evidence: about");
    assert!(open.examples_needed.is_some_and(|n| n > 600), "{open:?}");
    assert!(open.numbers["p_mcnemar"] > 0.9);
}

#[test]
fn improvement_is_over_the_other_arm_by_so_many_points() {
    let rule = |min| Rule::Improvement { over: "other".into(), min };
    check(rule(0.4), &first(270, 300), &first(60, 300), Verdict::Pass, "+70 points");
    check(rule(0.4), &first(270, 300), &first(240, 300), Verdict::Fail, "+10 points");
    check(rule(0.0), &first(241, 300), &first(240, 300), Verdict::Inconclusive, "Not enough evidence");
}

#[test]
fn quantization_damage_is_disagreement_and_lost_accuracy() {
    let rule = |agreement, accuracy| Rule::Quantization {
        against: "other".into(),
        max_agreement_loss: agreement,
        max_accuracy_loss: accuracy,
        max_kl: None,
    };
    let tuned = first(270, 300);
    let passed = check(rule(0.03, None), &first(269, 300), &tuned, Verdict::Pass, "Agreement with other is 99.7 %");
    assert_eq!(passed.numbers["agreement_rows"], 300.0);
    check(rule(0.03, None), &first(200, 300), &tuned, Verdict::Fail, "76.7 %");
    // The agreement would do; one point of accuracy cannot be excluded on 300 rows with three losses.
    check(rule(0.05, Some(0.01)), &first(267, 300), &tuned, Verdict::Inconclusive, "Not enough evidence");
}

/// Rows of two labels, the other arm sure by 0.9, the candidate by what `sure` says of the row.
fn of_posteriors(max_kl: f64, rows: usize, sure: impl Fn(usize) -> Option<f32>) -> GateResult {
    let gold = vec![0; rows];
    let labels = ["yes".to_owned(), "no".to_owned()];
    let arm = |sure: &dyn Fn(usize) -> Option<f32>| -> Vec<Prediction> {
        let one = |row: usize| Prediction {
            row: row.to_string(),
            label: Some(0),
            posterior: sure(row).map(|p| vec![p, 1.0 - p]),
            latency_ms: None,
            said: None,
            tokens: None,
        };
        (0..rows).map(one).collect()
    };
    let (candidate, tuned) = (arm(&sure), arm(&|_| Some(0.9)));
    let slices = BTreeMap::new();
    let evidence = Evidence {
        labels: &labels,
        in_words: false,
        likeness: &Likeness::new(),
        gold: &gold,
        arms: BTreeMap::from([("candidate", candidate.as_slice()), ("tuned", tuned.as_slice())]),
        candidate: "candidate",
        risk: Risk { alpha: 0.05, power: 0.8 },
        bootstrap_resamples: 500,
        seed: 1,
        routing: None,
        fallback: &[],
        slices: &slices,
        planted: &[],
        measured: Measured::default(),
    };
    let rule = Rule::Quantization {
        against: "tuned".into(),
        max_agreement_loss: 0.02,
        max_accuracy_loss: None,
        max_kl: Some(max_kl),
    };
    let gate = Gate { name: "quantization".into(), rule };
    let result = decide(&gate, &evidence);
    let groups: Vec<String> = (0..rows).map(|row| row.to_string()).collect();
    let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
    let steady = stability(&gate, result.verdict, &evidence, &groups, 40);
    // Draws see the posteriors too: were they left behind, no draw would pass or fail.
    let same = steady.is_some_and(|steady| steady.same > 0.3);
    assert!(same || result.verdict == Verdict::Inconclusive, "{steady:?}");
    result
}

#[test]
fn posteriors_may_move_so_far_and_no_further() {
    // KL((.9, .1) ‖ (.8, .2)) = .9 ln(9/8) + .1 ln(1/2) = 0.0367; half of the rows have it.
    let half = |row: usize| Some(if row.is_multiple_of(2) { 0.8 } else { 0.9 });
    let passed = of_posteriors(0.03, 300, half);
    assert_eq!(passed.verdict, Verdict::Pass, "{}", passed.reason);
    assert!((passed.numbers["mean_kl_nats"] - 0.018344).abs() < 1e-5, "{:?}", passed.numbers);
    assert!(passed.demand.contains("mean KL divergence at most 0.03 nats"), "{}", passed.demand);
    assert!(passed.reason.contains("Mean KL divergence from tuned is 0.0183 nats"), "{}", passed.reason);
    let failed = of_posteriors(0.01, 300, half);
    assert_eq!(failed.verdict, Verdict::Fail, "{}", failed.reason);
    let open = of_posteriors(0.019, 200, half);
    assert_eq!(open.verdict, Verdict::Inconclusive, "{}", open.reason);
    assert!(open.examples_needed.is_some_and(|n| n > 200), "{open:?}");
    let none = of_posteriors(0.03, 300, |row| half(row).filter(|_| row > 0));
    assert_eq!(none.verdict, Verdict::Inconclusive);
    assert!(none.reason.contains("Not every row has a posterior of both arms"), "{}", none.reason);
}

#[test]
fn every_class_counts_and_an_untested_class_is_no_pass() {
    let rule = |min| Rule::PerClassRecall { min };
    let untested = check(rule(0.5), &first(270, 300), &first(1, 300), Verdict::Inconclusive, "Without a test row: no");
    assert!(untested.examples_needed.is_some_and(|n| n > 300));
    check(rule(0.95), &first(150, 300), &first(1, 300), Verdict::Fail, "Below the demand: yes");
}

#[test]
fn a_mistake_that_must_not_happen_is_bounded_among_its_own_rows() {
    let rule = |gold: &str, predicted: &str| Rule::Cell { gold: gold.into(), predicted: predicted.into(), max: 0.05 };
    // Of 0 or 1 mistakes in n, the least n whose 95 % upper bound is at most 5 %: 59 and 93, as sampling plans have it.
    for (wrong, least) in [(0, 59), (1, 93)] {
        check(rule("yes", "no"), &first(least - wrong, least), &[], Verdict::Pass, "with 95 % confidence at most 5 %");
        let fewer = first(least - 1 - wrong, least - 1);
        check(rule("yes", "no"), &fewer, &[], Verdict::Inconclusive, "Not enough evidence");
    }
    let one_short = check(rule("yes", "no"), &first(58, 58), &[], Verdict::Inconclusive, "(0 of 58)");
    assert_eq!(one_short.examples_needed, Some(59));
    let failed = check(rule("yes", "no"), &first(250, 300), &[], Verdict::Fail, "16.7 % of its rows (50 of 300)");
    assert_eq!(failed.demand, "yes answered as no at most 5 %");
    let none = check(rule("no", "yes"), &first(250, 300), &[], Verdict::Inconclusive, "No test row is no.");
    assert_eq!(none.examples_needed, Some(359));
    check(rule("yes", "maybe"), &first(300, 300), &[], Verdict::Inconclusive, "not both among the labels");
}

#[test]
fn latency_is_the_share_of_calls_in_time() {
    // The support gives 10 ms to right rows and 100 ms to wrong ones.
    let rule = Rule::Latency { p95_ms: 50.0 };
    check(rule.clone(), &first(292, 300), &[], Verdict::Pass, "p95 is 10 ms");
    check(rule.clone(), &first(291, 300), &[], Verdict::Inconclusive, "Not enough evidence");
    check(rule.clone(), &first(250, 300), &[], Verdict::Fail, "p95 is 100 ms");
    let few = check(rule, &first(58, 58), &[], Verdict::Inconclusive, "59 reviewed test rows (1 more)");
    assert_eq!(few.examples_needed, Some(59));
}

#[test]
fn the_worst_gate_is_the_verdict() {
    use Verdict::{Fail, Inconclusive, Pass};
    for (gates, overall) in [
        (vec![Pass, Pass], Pass),
        (vec![Pass, Inconclusive], Inconclusive),
        (vec![Inconclusive, Fail, Pass], Fail),
        (vec![], Inconclusive),
    ] {
        assert_eq!(Verdict::overall(gates.into_iter()), overall);
    }
}

/// Zero tolerance is a bound: sixty rows without the mistake show that it is rarer than one in twenty, fifty do not.
#[test]
fn a_cell_counts_one_mistake_of_one_label() {
    let labels = ["unsafe".to_owned(), "safe".to_owned(), "ask".to_owned()];
    let verdict = |n: usize, called_safe: usize, asked: usize| {
        // Rows of another label, all taken for unsafe, which is another cell.
        let gold: Vec<usize> = (0..n).map(|_| 0).chain((0..40).map(|_| 1)).collect();
        let said = |i: usize| match i {
            i if i >= n => 0,
            i if i < called_safe => 1,
            i if i < called_safe + asked => 2,
            _ => 0,
        };
        let candidate: Vec<Prediction> = (0..gold.len())
            .map(|i| Prediction {
                row: i.to_string(),
                label: Some(said(i)),
                posterior: None,
                latency_ms: None,
                said: None,
                tokens: None,
            })
            .collect();
        let rule = Rule::Cell { gold: "unsafe".into(), predicted: "safe".into(), max: 0.05 };
        let evidence = Evidence {
            labels: &labels,
            in_words: false,
            likeness: &Likeness::new(),
            gold: &gold,
            arms: BTreeMap::from([("candidate", candidate.as_slice())]),
            candidate: "candidate",
            risk: Risk::default(),
            bootstrap_resamples: 10,
            seed: 1,
            routing: None,
            fallback: &[],
            slices: &BTreeMap::new(),
            planted: &[],
            measured: Measured::default(),
        };
        decide(&Gate { name: "cell".into(), rule }, &evidence)
    };
    assert_eq!(verdict(60, 0, 0).verdict, Verdict::Pass);
    assert_eq!(verdict(60, 0, 30).verdict, Verdict::Pass, "another mistake is another cell");
    let open = verdict(50, 0, 0);
    assert_eq!(open.verdict, Verdict::Inconclusive);
    assert_eq!(open.examples_needed, Some(99), "59 of the label and the others as they are");
    assert_eq!(verdict(60, 12, 0).verdict, Verdict::Fail);
    assert_eq!(verdict(0, 0, 0).verdict, Verdict::Inconclusive);
}

/// A gate on what was measured beside the answers.
fn beside(rule: Rule, candidate: &[Prediction], measured: Measured<'_>) -> GateResult {
    with_evidence(candidate, measured, |evidence| decide(&Gate { name: "gate".into(), rule }, evidence))
}

/// How steady such a gate is, every row a group.
fn again(rule: Rule, candidate: &[Prediction], measured: Measured<'_>) -> Option<Stability> {
    let names: Vec<String> = (0..candidate.len()).map(|row| row.to_string()).collect();
    let groups: Vec<&str> = names.iter().map(String::as_str).collect();
    let gate = Gate { name: "gate".into(), rule };
    with_evidence(candidate, measured, |evidence| stability(&gate, Verdict::Pass, evidence, &groups, 20))
}

fn with_evidence<T>(candidate: &[Prediction], measured: Measured<'_>, then: impl FnOnce(&Evidence<'_>) -> T) -> T {
    let gold = vec![0_usize; candidate.len()];
    let labels = ["yes".to_owned(), "no".to_owned()];
    let evidence = Evidence {
        labels: &labels,
        in_words: false,
        likeness: &Likeness::new(),
        gold: &gold,
        arms: BTreeMap::from([("candidate", candidate)]),
        candidate: "candidate",
        risk: Risk::default(),
        bootstrap_resamples: 500,
        seed: 1,
        routing: None,
        fallback: &[],
        slices: &BTreeMap::new(),
        planted: &[],
        measured,
    };
    then(&evidence)
}

fn timed(ms: f64) -> Prediction {
    Prediction { row: String::new(), label: Some(0), posterior: None, latency_ms: Some(ms), said: None, tokens: None }
}

#[test]
fn sizes_and_reviewed_shares_are_counts_and_leave_no_doubt() {
    let rows = [timed(1.0), timed(2.0)];
    let size =
        |max_mb| beside(Rule::Size { max_mb }, &rows, Measured { bytes: Some(25_000_000), ..Measured::default() });
    assert_eq!((size(25.0).verdict, size(24.9).verdict), (Verdict::Pass, Verdict::Fail));
    assert_eq!(size(24.9).reason, "The file has 25,000,000 bytes, 25.0 MB, of 24.9 MB allowed.");
    assert_eq!(beside(Rule::Size { max_mb: 1.0 }, &rows, Measured::default()).verdict, Verdict::Inconclusive);

    let splits = [SplitRows { split: "train".into(), rows: 200, reviewed: 150 }];
    let reviewed =
        |of, min| beside(Rule::Reviewed { of, min }, &rows, Measured { reviewed: &splits, ..Measured::default() });
    assert_eq!(
        (reviewed(Split::Train, 0.75).verdict, reviewed(Split::Train, 0.76).verdict),
        (Verdict::Pass, Verdict::Fail)
    );
    assert_eq!(reviewed(Split::Train, 0.76).reason, "Of 200 train rows people reviewed 150, 75 %; demanded 76 %.");
    assert_eq!(reviewed(Split::Valid, 0.5).verdict, Verdict::Inconclusive);
}

#[test]
fn a_cost_is_as_sure_as_the_times_that_it_comes_from() {
    // A mean of 20 ms: half the calls take 10, half 30.
    let rows: Vec<Prediction> = (0..100).map(|i| timed(if i % 2 == 0 { 10.0 } else { 30.0 })).collect();
    let own = Cost { per_1k_calls: 0.20, currency: "USD".into(), basis: String::new() };
    let cost = |max| {
        let measured = Measured { costs: Some(Costs { own: &own, frontier: Err("no price") }), ..Measured::default() };
        beside(Rule::Cost { max_per_1k_calls: max }, &rows, measured)
    };
    // The standard error of the mean is 1 ms, or 0.01 USD; at 97.5 % some 0.02 to either side.
    assert_eq!(
        [0.25, 0.21, 0.19, 0.15].map(|max| cost(max).verdict),
        [Verdict::Pass, Verdict::Inconclusive, Verdict::Inconclusive, Verdict::Fail]
    );
    let open = cost(0.21);
    assert!((open.numbers["per_1k_calls_upper"] - 0.22).abs() < 0.002, "{open:?}");
    assert!(
        (350..=450).contains(&open.examples_needed.unwrap()),
        "twice as far as the demand takes four times the rows"
    );
    assert_eq!(beside(Rule::Cost { max_per_1k_calls: 1.0 }, &rows, Measured::default()).verdict, Verdict::Inconclusive);
}

#[test]
fn confidences_that_are_too_high_fail_and_few_rows_leave_it_open() {
    // Sure at 0.95 and right on so many of a hundred.
    let rows = |n: usize, right: usize| -> Vec<Prediction> {
        let one = |i: usize| Prediction {
            label: Some(usize::from(i % 100 >= right)),
            posterior: Some(if i % 100 < right { vec![0.95, 0.05] } else { vec![0.05, 0.95] }),
            ..timed(1.0)
        };
        (0..n).map(one).collect()
    };
    let calibrator = Calibrator::None;
    let gate = |rows: &[Prediction]| {
        let measured = Measured { calibrator: Some(&calibrator), ..Measured::default() };
        beside(Rule::Calibration { max_error: 0.05 }, rows, measured)
    };
    assert_eq!(gate(&rows(3_000, 95)).verdict, Verdict::Pass);
    assert_eq!(gate(&rows(3_000, 70)).verdict, Verdict::Fail);
    let open = gate(&rows(100, 95));
    assert_eq!(open.verdict, Verdict::Inconclusive);
    // Rows drawn anew would carry the noise of these rows and their own.
    let sure = rows(3_000, 95);
    let measured = Measured { calibrator: Some(&calibrator), ..Measured::default() };
    assert_eq!(again(Rule::Calibration { max_error: 0.05 }, &sure, measured), None);
    assert!(open.reason.contains("would be there by chance") && open.examples_needed.unwrap() > 100, "{}", open.reason);
}
