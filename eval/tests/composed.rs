//! Arms made of other arms' answers: that they say what a plain recount of those answers says, cost what was asked, and that
//! nobody is asked anew.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use limbeck_artifact::event::Silent;
use limbeck_eval::{Answerer, Arm, ArmKind, ArmResult, Composition, EvalError, Prediction, Report, evaluate};
use std::cell::Cell;
use std::path::Path;
use support::{Data, LABELS, Model, plan};

const THRESHOLD: f64 = 0.7;

fn arms<'a>(asked: &'a Cell<u32>, composed: &[(&str, Composition, &[&str])]) -> Vec<Arm<'a>> {
    let model = |name: &str, accuracy, seed| {
        Arm::model(name, name, name, move || Ok(Box::new(Model { accuracy, seed, asked }) as Box<dyn Answerer>))
    };
    let mut arms = vec![
        Arm::recorded("frontier", "frontier-large, as recorded in the traces"),
        model("base", 0.10, 3),
        model("tuned", 0.80, 5),
        model("other", 0.75, 7),
        model("q8_0", 0.85, 9),
    ];
    arms.extend(
        composed
            .iter()
            .map(|(name, how, of)| Arm::composed(name, name, *how, of.iter().map(|name| (*name).to_owned()).collect())),
    );
    arms
}

fn run(dir: &Path, data: &Data, composed: &[(&str, Composition, &[&str])]) -> Result<(Report, u32), EvalError> {
    let asked = Cell::new(0);
    let report = evaluate(&plan(dir), arms(&asked, composed), data.rows(), &Silent)?;
    Ok((report, asked.get()))
}

fn answers(dir: &Path, arm: &str) -> Vec<Prediction> {
    let text = std::fs::read_to_string(dir.join(format!("predictions/{arm}.jsonl"))).unwrap();
    let lines = text.lines().skip(1).map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.filter(|line| line["split"] == "test").map(|line| serde_json::from_value(line).unwrap()).collect()
}

/// A row's calibrated probabilities by the definition: p^(1/T) over their sum.
fn calibrated(arm: &ArmResult, prediction: &Prediction) -> Vec<f64> {
    let temperature = arm.calibration.as_ref().unwrap().temperature;
    let powers: Vec<f64> =
        prediction.posterior.as_ref().unwrap().iter().map(|p| f64::from(*p).powf(1.0 / temperature)).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

fn greatest(values: &[f64]) -> usize {
    (0..values.len()).max_by(|a, b| values[*a].total_cmp(&values[*b])).unwrap()
}

#[test]
fn a_cascade_to_the_frontier_is_what_routing_says_of_the_same_threshold() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let cascade = ("cheap-first", Composition::Cascade { threshold: THRESHOLD }, &["q8_0", "frontier"][..]);
    let (report, asked) = run(dir.path(), &data, &[cascade]).unwrap();
    assert_eq!(asked, 4 * 550, "nobody was asked anew");
    let (arm, routing) = (report.arm("cheap-first").unwrap(), report.routing.as_ref().unwrap());
    assert_eq!(arm.kind, ArmKind::Composed);
    assert_eq!(Some(arm.scores.accuracy), routing.system_accuracy);
    assert_eq!(
        arm.latency.as_ref().map(|l| (l.p95_ms, l.calls)),
        routing.latency.as_ref().map(|l| (l.p95_ms, l.calls))
    );
    let (own, blended) = (arm.cost.as_ref().unwrap().per_1k_calls, routing.cost.as_ref().unwrap().per_1k_calls);
    assert!((own - blended).abs() < 1e-12, "{own} {blended}");
    let coverage = routing.served.coverage;
    assert!(coverage > 0.2 && coverage < 0.95, "both answer some: {coverage}");
    let escalated = ((1.0 - coverage) * 300.0).round();
    assert!(arm.facts[0].value.contains(&format!("frontier {escalated} of 300 rows")), "{}", arm.facts[0].value);
    assert!(report.versus_frontier("cheap-first").is_some() && arm.calibration.is_none());
}

#[test]
fn a_cascade_of_three_asks_each_where_those_before_are_unsure() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let of = ["other", "tuned", "frontier"];
    let (report, _) = run(dir.path(), &data, &[("three", Composition::Cascade { threshold: 0.9 }, &of)]).unwrap();
    let rows: Vec<Vec<Prediction>> = of.iter().map(|name| answers(dir.path(), name)).collect();
    let mut asked = [0; 3];
    let expected: Vec<Option<usize>> = (0..300)
        .map(|row| {
            for at in 0..2 {
                asked[at] += 1;
                let p = calibrated(report.arm(of[at]).unwrap(), &rows[at][row]);
                if p[greatest(&p)] >= 0.9 {
                    return rows[at][row].label;
                }
            }
            asked[2] += 1;
            rows[2][row].label
        })
        .collect();
    let made = answers(dir.path(), "three");
    assert_eq!(made.iter().map(|p| p.label).collect::<Vec<_>>(), expected);
    assert!(asked[1] > 10 && asked[2] > 10 && asked[2] < asked[1], "{asked:?}");
    let cost = |name: &str| report.arm(name).unwrap().cost.as_ref().unwrap().per_1k_calls;
    let reckoned: f64 = of.iter().zip(asked).map(|(name, n)| cost(name) * f64::from(n) / 300.0).sum();
    assert!((cost("three") - reckoned).abs() < 1e-9);
    assert_eq!(made.iter().filter(|made| made.latency_ms.is_some()).count(), 100, "as many as are timed alone");
    for (row, made) in made.iter().enumerate().filter(|(_, made)| made.latency_ms.is_some()) {
        let one = |at: usize| rows[at][row].latency_ms.unwrap();
        let sums = [one(0), one(0) + one(1), one(0) + one(1) + one(2)];
        assert!(sums.iter().any(|sum| (sum - made.latency_ms.unwrap()).abs() < 1e-9));
    }
}

#[test]
fn an_ensemble_adds_up_calibrated_probabilities() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let of = ["tuned", "other", "q8_0"];
    let (report, _) = run(dir.path(), &data, &[("all", Composition::Ensemble, &of)]).unwrap();
    let arm = report.arm("all").unwrap();
    let rows: Vec<Vec<Prediction>> = of.iter().map(|name| answers(dir.path(), name)).collect();
    let made = answers(dir.path(), "all");
    for (row, made) in made.iter().enumerate() {
        let mut sum = vec![0.0; LABELS.len()];
        for (at, name) in of.iter().enumerate() {
            let p = calibrated(report.arm(name).unwrap(), &rows[at][row]);
            sum.iter_mut().zip(p).for_each(|(sum, p)| *sum += p / 3.0);
        }
        assert_eq!(made.label, Some(greatest(&sum)));
        for (p, wanted) in made.posterior.as_ref().unwrap().iter().zip(&sum) {
            assert!((f64::from(*p) - wanted).abs() < 1e-6);
        }
    }
    assert_eq!(arm.calibration.as_ref().unwrap().fitted_rows, 150, "made for the calibration split too");
    let right = |name: &str| report.arm(name).unwrap().scores.accuracy;
    assert!(right("all") > of.iter().map(|name| right(name)).fold(0.0, f64::max), "they err on other rows");
    let cost = |name: &str| report.arm(name).unwrap().cost.as_ref().unwrap().per_1k_calls;
    assert!((cost("all") - of.iter().map(|name| cost(name)).sum::<f64>()).abs() < 1e-12);
}

#[test]
fn an_arm_without_a_word_on_how_sure_it_is_counts_as_sure() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let composed: [(&str, Composition, &[&str]); 2] = [
        ("two", Composition::Ensemble, &["base", "frontier"]),
        ("of-composed", Composition::Cascade { threshold: 0.5 }, &["two", "frontier"]),
    ];
    let (report, _) = run(dir.path(), &data, &composed).unwrap();
    // The base is nowhere sure of anything, so a whole vote goes against less than one.
    assert_eq!(report.comparison("two", "frontier").unwrap().agreement, 1.0);
    assert!(report.arm("two").unwrap().calibration.as_ref().unwrap().fitted_rows == 0, "the frontier has no such rows");
    assert!(report.arm("of-composed").is_some());
}

#[test]
fn what_can_not_be_made_is_refused() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(40));
    let told = |name: &str, how, of: &[&str]| run(dir.path(), &data, &[(name, how, of)]).unwrap_err().to_string();
    let cascade = Composition::Cascade { threshold: 0.5 };
    assert!(told("late", Composition::Ensemble, &["tuned", "late"]).contains("no arm of that name comes before it"));
    assert!(told("first", cascade, &["frontier", "tuned"]).contains("recorded answers don't say"));
    assert!(told("one", cascade, &["tuned"]).contains("two at least"));
    assert!(!dir.path().join("predictions").exists(), "before anybody is asked");
}
