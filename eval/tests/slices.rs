//! Slices, multiplicity and drift: against scipy and statsmodels, and on a whole evaluation with a failure planted in it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[allow(dead_code, reason = "answers are made here")]
mod support;

use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::Silent;
use limbeck_eval::multiple::{benjamini_hochberg, holm};
use limbeck_eval::{
    AnswerError, Answerer, Arm, By, DriftVerdict, EvalPlan, Gate, Observed, Reference, Report, Rule, SplitMix64,
    Verdict, cluster_difference, drift, evaluate, ks_distance, p_worse, render_html, score_psi, terminal_summary,
};
use serde_json::Value;
use std::path::Path;
use support::{Data, LABELS};

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/drift.json")).unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn bools(value: &Value) -> Vec<bool> {
    value.as_array().unwrap().iter().map(|x| x.as_bool().unwrap()).collect()
}

#[test]
fn many_tests_are_statsmodels_and_scipys() {
    let golden = golden();
    for case in golden["multiple"].as_array().unwrap() {
        let p = floats(&case["p"]);
        assert_eq!(benjamini_hochberg(&p, 0.1), bools(&case["bh"]), "{p:?}");
        for (ours, theirs) in holm(&p).into_iter().zip(floats(&case["holm"])) {
            assert!((ours - theirs).abs() < 1e-12, "{p:?}");
        }
    }
    assert!(benjamini_hochberg(&[], 0.1).is_empty() && holm(&[]).is_empty());
    for case in golden["worse"].as_array().unwrap() {
        let ours =
            p_worse(case["wrong"].as_u64().unwrap(), case["rows"].as_u64().unwrap(), case["error"].as_f64().unwrap());
        assert!((ours - case["p"].as_f64().unwrap()).abs() < 1e-10, "{case}: {ours}");
    }
}

#[test]
fn the_cluster_bootstrap_is_scipys() {
    let case = &golden()["cluster"];
    let names: Vec<&str> = case["groups"].as_array().unwrap().iter().map(|g| g.as_str().unwrap()).collect();
    let (first, second) = (bools(&case["first"]), bools(&case["second"]));
    let ours = cluster_difference(&first, &second, &names, 0.95, 40_000, 1).unwrap();
    // Two bootstraps of 40,000 draws each.
    assert!((ours.low - case["low"].as_f64().unwrap()).abs() < 0.004, "{ours:?} {} {}", case["low"], case["high"]);
    assert!((ours.high - case["high"].as_f64().unwrap()).abs() < 0.004, "{ours:?} {} {}", case["low"], case["high"]);
    assert_eq!(cluster_difference(&first, &second, &vec!["one"; first.len()], 0.95, 100, 1), None);
}

#[test]
fn distances_of_scores_are_scipys_and_numpys() {
    for case in golden()["samples"].as_array().unwrap() {
        let (before, after) = (floats(&case["before"]), floats(&case["after"]));
        assert!((ks_distance(&before, &after) - case["ks"].as_f64().unwrap()).abs() < 1e-12);
        let ours = score_psi(&before, &after);
        assert!((ours - case["psi"].as_f64().unwrap()).abs() < 1e-10, "{ours} {}", case["psi"]);
    }
}

/// Sure and right on everything but: messages about `exchange` from number 100 on, and one label taken for another.
struct Careless;

impl Answerer for Careless {
    fn answer(&mut self, messages: &[Message]) -> Result<Vec<f32>, AnswerError> {
        let text = &messages[1].content;
        let hint = LABELS.iter().position(|label| text.contains(&label.replace('_', " "))).unwrap();
        let answer = match LABELS[hint] {
            "exchange_rate" => 0,
            "lost_or_stolen_card" if text.len().is_multiple_of(2) => 5,
            _ => hint,
        };
        Ok((0..LABELS.len()).map(|label| if label == answer { 0.89 } else { 0.01 }).collect())
    }
}

fn told(n: usize) -> Data {
    let mut data = Data::new(n);
    for (i, row) in data.calibration.iter_mut().chain(&mut data.test).enumerate() {
        let text = &row.messages[1].content;
        row.target = (*LABELS.iter().find(|label| text.contains(&label.replace('_', " "))).unwrap()).to_owned();
        row.recorded.at = Some(format!("2026-{:02}-03T00:00:00Z", i % 3 + 7));
    }
    data
}

fn report(dir: &Path, data: &Data, gates: Vec<Gate>) -> Report {
    let plan = EvalPlan { gates, candidate: "careless".into(), ..support::plan(dir) };
    let open = || Ok(Box::new(Careless) as Box<dyn Answerer>);
    let arms = vec![Arm::recorded("frontier", "recorded"), Arm::model("careless", "sure", "1", open)];
    evaluate(&plan, arms, data.rows(), &Silent).unwrap()
}

#[test]
fn a_planted_failure_is_found_with_examples_and_a_remedy() {
    let (dir, data) = (tempfile::tempdir().unwrap(), told(600));
    let gate = |name: &str, by| Gate { name: name.into(), rule: Rule::SliceFloor { by, min: 0.5 } };
    let report = report(
        dir.path(),
        &data,
        vec![gate("classes", By::Class), gate("months", By::Time), gate("people", By::Customer)],
    );
    let slices = report.slices.as_ref().unwrap();
    let worse: Vec<&str> = slices.slices.iter().filter(|s| s.worse).map(|s| s.name.as_str()).collect();
    assert!(worse.contains(&"exchange_rate") && worse.contains(&"says “exchange”"), "{worse:?}");
    assert!(slices.slices.iter().filter(|s| s.by == By::Time).all(|s| !s.worse), "months are all alike");
    assert!(
        slices.slices.iter().all(|s| s.rows >= if s.by == By::Cluster { 15 } else { 30 }) && slices.too_small > 0,
        "customers have two rows each"
    );
    let class = slices.slices.iter().find(|s| s.name == "exchange_rate").unwrap();
    assert_eq!((class.wrong, class.error, class.examples.len()), (class.rows, 1.0, 3));
    assert!(class.remedy.contains("training"), "{}", class.remedy);
    assert!(class.p < 1e-10 && class.interval.low > 0.8);
    assert_eq!((slices.confused[0].gold.as_str(), slices.confused[0].answer.as_str()), ("exchange_rate", LABELS[0]));

    let verdicts: Vec<Verdict> = report.gates.iter().map(|gate| gate.verdict).collect();
    assert_eq!(verdicts[..2], [Verdict::Fail, Verdict::Pass], "{:?}", report.gates);
    assert!(report.gates[0].reason.contains("Lowest accuracy: exchange_rate, 0 %"), "{}", report.gates[0].reason);
    assert_eq!(verdicts[2], Verdict::Inconclusive);
    assert!(report.gates[2].reason.contains("No slice by customer has 30 test rows"), "{}", report.gates[2].reason);

    let page = render_html(&report).unwrap();
    for part in ["Where it fails", "says “exchange”", "Taken for one another", "not worse than chance", "2026-08"] {
        assert!(page.contains(part), "no {part}");
    }
    let text = terminal_summary(&report);
    assert!(text.contains("worse by class: exchange_rate, 100 % wrong"), "{text}");
    // Two rows a customer: the interval by group stands beside Tango's.
    let versus = report.versus_frontier("careless").unwrap();
    let by_group = versus.cluster_interval.unwrap();
    assert!(by_group.low < versus.difference && versus.difference < by_group.high);
    assert_eq!(versus.p_holm, Some(versus.p_mcnemar), "one rival needs no adjustment");
}

#[test]
fn what_mistakes_have_in_common_is_found_on_one_half_and_tested_on_the_other() {
    let (dir, data) = (tempfile::tempdir().unwrap(), told(600));
    let report = report(dir.path(), &data, Vec::new());
    let found: Vec<_> = report.slices.as_ref().unwrap().slices.iter().filter(|s| s.by == By::Cluster).collect();
    let exchange = found.iter().find(|slice| slice.name.contains("exchange")).expect("every such message is wrong");
    let all = data.test.iter().filter(|row| row.target == "exchange_rate").count() as u64;
    assert!(exchange.worse && exchange.p < 1e-6 && exchange.error > 0.8, "{exchange:?}");
    assert!((15..all).contains(&exchange.rows), "of {all} rows those of one half: {}", exchange.rows);
    assert!(exchange.examples.len() == 3 && exchange.remedy.contains("rule on these words"), "{exchange:?}");
    let page = render_html(&report).unwrap();
    assert!(page.contains(&exchange.name) && page.contains("by likeness"), "{}", exchange.name);
}

/// Mistakes that have nothing in common are hardly ever taken for a cluster, though the best of many cuts is tried.
#[test]
fn clusters_of_nothing_are_not_found() {
    let data = Data::new(400);
    let finds = |seed: &u64| {
        let (dir, asked) = (tempfile::tempdir().unwrap(), std::cell::Cell::new(0));
        let plan = EvalPlan { gates: Vec::new(), seed: *seed, frontier: None, ..support::plan(dir.path()) };
        let open = || Ok(Box::new(support::Model { accuracy: 0.7, seed: *seed, asked: &asked }) as Box<dyn Answerer>);
        let arms = vec![Arm::model("q8_0", "wrong at random", "1", open)];
        let report = evaluate(&plan, arms, data.rows(), &Silent).unwrap();
        report.slices.unwrap().slices.iter().any(|slice| slice.by == By::Cluster && slice.worse)
    };
    let false_finds = (0..80).filter(finds).count();
    // One in ten, and three standard errors.
    assert!(false_finds <= 16, "{false_finds} of 80");
}

/// Scores and labels of `n` rows as the reference has them, or shifted.
fn observed(n: usize, seed: u64, labels: &[f64], lower: f64) -> Vec<Observed> {
    let mut rng = SplitMix64::new(seed);
    (0..n)
        .map(|_| {
            let (mut u, mut label) = (rng.unit(), 0);
            while label + 1 < labels.len() && u >= labels[label] {
                u -= labels[label];
                label += 1;
            }
            Observed { score: Some((rng.unit().sqrt() - lower).max(0.0)), label: Some(label) }
        })
        .collect()
}

fn reference(rows: &[Observed], confusion: Vec<Vec<u64>>) -> Reference {
    let mut scores: Vec<f64> = rows.iter().filter_map(|row| row.score).map(|s| (s * 1e6).round() / 1e6).collect();
    scores.sort_by(f64::total_cmp);
    let k = confusion.len();
    Reference {
        rows: rows.len() as u64,
        scores,
        labels: (0..k).map(|i| format!("label {i}")).collect(),
        answers: (0..k).map(|i| rows.iter().filter(|row| row.label == Some(i)).count() as u64).collect(),
        invalid: 0,
        confusion,
        messages: Vec::new(),
    }
}

#[test]
fn label_shift_is_numpys_and_a_bad_matrix_is_refused() {
    let case = &golden()["bbse"];
    let confusion: Vec<Vec<u64>> = serde_json::from_value(case["confusion"].clone()).unwrap();
    let rows: u64 = confusion.iter().flatten().sum();
    let answered = floats(&case["answered"]);
    let before: Vec<f64> =
        (0..4).map(|a| confusion.iter().map(|row| row[a]).sum::<u64>() as f64 / rows as f64).collect();
    let reference = reference(&observed(rows as usize, 1, &before, 0.0), confusion.clone());
    // Exactly the answered shares, of a thousand rows.
    let now: Vec<Observed> = answered
        .iter()
        .enumerate()
        .flat_map(|(label, share)| {
            vec![Observed { score: Some(0.7), label: Some(label) }; (share * 1_000.0).round() as usize]
        })
        .collect();
    let found = drift(&reference, &now, 200, 1);
    assert_eq!(found.rows, 1_000);
    for (label, moved) in floats(&case["moved"]).into_iter().enumerate() {
        let shift = found.shifts.iter().find(|s| s.label == format!("label {label}")).unwrap();
        assert!((shift.now - moved).abs() < 1e-9, "{shift:?} {moved}");
    }
    assert!((found.expected_accuracy.unwrap() - case["expected_accuracy"].as_f64().unwrap()).abs() < 1e-9);
    assert!((found.accuracy_before.unwrap() - case["accuracy"].as_f64().unwrap()).abs() < 1e-9);
    assert!(
        found.shifts[0].now > found.shifts[0].before,
        "the label that grew most comes first: {:?}",
        found.shifts[0]
    );

    let mut bad = reference.clone();
    bad.confusion = vec![vec![500, 500, 0, 0], vec![500, 501, 0, 0], vec![0, 0, 50, 0], vec![0, 0, 0, 50]];
    let found = drift(&bad, &now, 10, 1);
    assert!(found.shifts.is_empty() && found.no_shifts.unwrap().contains("badly conditioned"));
    bad.confusion[3] = vec![0; 4];
    assert!(drift(&bad, &now, 10, 1).no_shifts.unwrap().contains("label 3 has no reference row"));
}

#[test]
fn drift_is_told_from_chance() {
    let labels = [0.4, 0.3, 0.2, 0.1];
    let diagonal = vec![vec![160, 0, 0, 0], vec![0, 120, 0, 0], vec![0, 0, 80, 0], vec![0, 0, 0, 40]];
    let reference = reference(&observed(400, 5, &labels, 0.0), diagonal);
    // The same traffic: no more alarms than chance has. References are drawn anew too: an odd one would see drift everywhere.
    let alarm = |seed: &u64| {
        let reference = self::reference(&observed(400, 1_000 + seed, &labels, 0.0), reference.confusion.clone());
        drift(&reference, &observed(300, 100 + seed, &labels, 0.0), 200, 1).verdict != DriftVerdict::Stable
    };
    let alarms = (0..60).filter(alarm).count();
    assert!(alarms <= 5, "three statistics at one in a hundred each: {alarms} of 60");
    let unsure = drift(&reference, &observed(300, 7, &labels, 0.25), 200, 1);
    assert_eq!(unsure.verdict, DriftVerdict::Drifted, "{unsure:?}");
    assert!(unsure.score_psi.unwrap().p < 0.01 && unsure.answer_psi.unwrap().p > 0.01);
    assert!(unsure.advice[0].contains("Escalate more"), "{:?}", unsure.advice);
    let other = drift(&reference, &observed(300, 7, &[0.1, 0.2, 0.3, 0.4], 0.0), 200, 1);
    assert_eq!(other.verdict, DriftVerdict::Drifted, "{other:?}");
    assert!(other.answer_psi.unwrap().p < 0.01 && other.score_psi.unwrap().p > 0.01);
    assert!(other.advice.iter().any(|line| line.contains("label 3")), "{:?}", other.advice);
    let few = drift(&reference, &observed(60, 7, &labels, 0.3), 50, 1);
    assert_eq!(few.verdict, DriftVerdict::TooFew);
    assert_eq!(drift(&reference, &observed(300, 7, &labels, 0.25), 200, 1), unsure, "the same seed, the same figures");
    // Fields: valid or not is all that there is to count.
    let mut fields = reference.clone();
    (fields.labels, fields.answers, fields.confusion, fields.invalid) = (Vec::new(), Vec::new(), Vec::new(), 20);
    let broken: Vec<Observed> = observed(300, 9, &labels, 0.0)
        .into_iter()
        .enumerate()
        .map(|(i, row)| Observed { label: None, score: row.score.filter(|_| i % 3 > 0) })
        .collect();
    let found = drift(&fields, &broken, 200, 1);
    assert_eq!(found.verdict, DriftVerdict::Drifted);
    assert!((found.invalid_now - 1.0 / 3.0).abs() < 1e-9 && (found.invalid_before - 0.05).abs() < 1e-9);
    assert!(found.no_shifts.unwrap().contains("fields"));
}
