//! Statistics, metrics, calibration and the linear floor against scipy, statsmodels and scikit-learn
//! (tests/reference/eval_golden.py makes the files).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use limbeck_eval::statistics::{
    Paired, clopper_pearson, lower_bound, mcnemar_exact, tango_interval, tango_z, upper_bound, wilson,
};
use limbeck_eval::{
    FloorRow, LinearFloor, aurc, calibration_scores, confidences, fit_temperature, latency, macro_f1_bounds,
    normal_cdf, normal_quantile, score,
};
use serde_json::Value;

fn golden(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn f(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

fn u(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(f).collect()
}

#[track_caller]
fn near(ours: f64, theirs: f64, tolerance: f64, what: impl std::fmt::Display) {
    assert!((ours - theirs).abs() <= tolerance * theirs.abs().max(1.0), "{what}: {ours} against {theirs}");
}

#[test]
fn intervals_are_statsmodels() {
    let golden = golden(include_str!("golden/intervals.json"));
    for row in golden["intervals"].as_array().unwrap() {
        let (k, n, confidence) = (u(&row["k"]), u(&row["n"]), f(&row["confidence"]));
        let (ours, theirs) = (wilson(k, n, confidence), floats(&row["wilson"]));
        near(ours.low, theirs[0], 1e-10, format!("wilson low of {row}"));
        near(ours.high, theirs[1], 1e-10, format!("wilson high of {row}"));
        let (ours, theirs) = (clopper_pearson(k, n, confidence), floats(&row["clopper_pearson"]));
        near(ours.low, theirs[0], 1e-10, format!("exact low of {row}"));
        near(ours.high, theirs[1], 1e-10, format!("exact high of {row}"));
        near(lower_bound(k, n, confidence), f(&row["lower"]), 1e-10, format!("lower of {row}"));
        near(upper_bound(k, n, confidence), f(&row["upper"]), 1e-10, format!("upper of {row}"));
    }
    for row in golden["normal"].as_array().unwrap() {
        near(normal_quantile(f(&row["p"])), f(&row["quantile"]), 1e-10, row);
        near(normal_cdf(f(&row["quantile"])), f(&row["p"]), 1e-12, row);
    }
}

#[test]
fn mcnemar_is_statsmodels_and_tango_is_a_numerical_maximisation() {
    for row in golden(include_str!("golden/paired.json"))["paired"].as_array().unwrap() {
        let pair = Paired { n: u(&row["n"]), b: u(&row["b"]), c: u(&row["c"]) };
        near(mcnemar_exact(pair), f(&row["mcnemar"]), 1e-10, format!("mcnemar of {pair:?}"));
        for z in row["z"].as_array().unwrap() {
            near(tango_z(pair, f(&z["delta"])), f(&z["z"]), 2e-6, format!("z of {pair:?} at {}", z["delta"]));
        }
        let (ours, theirs) = (tango_interval(pair, 0.95), floats(&row["interval95"]));
        near(ours.low, theirs[0], 1e-6, format!("interval of {pair:?}"));
        near(ours.high, theirs[1], 1e-6, format!("interval of {pair:?}"));
    }
}

#[test]
fn classification_metrics_are_scikit_learn() {
    let golden = golden(include_str!("golden/classification.json"));
    let labels: Vec<String> = (0..u(&golden["labels"])).map(|i| format!("label {i}")).collect();
    let gold: Vec<usize> = golden["gold"].as_array().unwrap().iter().map(|g| u(g) as usize).collect();
    let answers: Vec<Option<usize>> =
        golden["answer"].as_array().unwrap().iter().map(|a| a.as_u64().map(|a| a as usize)).collect();
    let scores = score(&gold, &answers, &labels, 0.95);
    near(scores.accuracy, f(&golden["accuracy"]), 1e-12, "accuracy");
    near(scores.macro_f1, f(&golden["macro_f1"]), 1e-12, "macro-F1");
    assert_eq!(scores.zero_support, ["label 5"], "a class without gold rows is named, and left out");
    assert!(scores.invalid > 0, "the golden set holds invalid answers");
    for (class, (precision, recall)) in floats(&golden["precision"]).iter().zip(floats(&golden["recall"])).enumerate() {
        near(scores.per_class[class].precision.unwrap(), *precision, 1e-12, format!("precision of {class}"));
        near(scores.per_class[class].recall.unwrap(), recall, 1e-12, format!("recall of {class}"));
    }
    let confusion: Vec<Vec<u64>> = serde_json::from_value(golden["confusion"].clone()).unwrap();
    let invalid: Vec<u64> = serde_json::from_value(golden["invalid"].clone()).unwrap();
    assert_eq!((&scores.confusion.counts, &scores.confusion.invalid), (&confusion, &invalid));

    let times = latency(&floats(&golden["times"])).unwrap();
    assert_eq!((times.p50_ms, times.p95_ms), (f(&golden["p50"]), f(&golden["p95"])));
}

#[test]
fn calibration_is_numpy_and_scikit_learn() {
    let golden = golden(include_str!("golden/classification.json"));
    let gold: Vec<usize> = golden["gold"].as_array().unwrap().iter().map(|g| u(g) as usize).collect();
    let posteriors: Vec<Vec<f32>> = serde_json::from_value(golden["posterior"].clone()).unwrap();
    let posteriors: Vec<&[f32]> = posteriors.iter().map(Vec::as_slice).collect();
    let temperature = fit_temperature(&posteriors, &gold);
    near(temperature, f(&golden["temperature"]), 1e-5, "temperature");
    for (t, golden) in [(1.0, &golden["raw"]), (f(&golden["temperature"]), &golden["tempered"])] {
        let ours = calibration_scores(&posteriors, &gold, t);
        near(ours.ece, f(&golden["ece"]), 1e-6, "ECE");
        near(ours.brier, f(&golden["brier"]), 1e-6, "Brier");
        near(ours.nll, f(&golden["nll"]), 1e-6, "NLL");
        near(aurc(&confidences(&posteriors, &gold, t)), f(&golden["aurc"]), 1e-6, "AURC");
    }
}

#[test]
fn bootstrap_bounds_agree_with_a_slow_bca() {
    let golden = golden(include_str!("golden/bootstrap.json"));
    let index = |key: &str| golden[key].as_array().unwrap().iter().map(|g| u(g) as usize).collect::<Vec<_>>();
    let answers: Vec<Option<usize>> = index("answer").into_iter().map(Some).collect();
    let bounds = macro_f1_bounds(&index("gold"), &answers, 4, 0.95, 10_000, 5);
    near(bounds.estimate, f(&golden["estimate"]), 1e-12, "estimate");
    near(bounds.standard_error, f(&golden["standard_error"]), 1e-3, "standard error");
    near(bounds.lower, f(&golden["lower"]), 3e-3, "lower");
    near(bounds.upper, f(&golden["upper"]), 3e-3, "upper");
}

#[test]
fn the_linear_floor_is_scikit_learns() {
    let golden = golden(include_str!("golden/floor.json"));
    let rows: Vec<FloorRow> = golden["train"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| FloorRow { text: row[0].as_str().unwrap(), label: u(&row[1]) as usize, weight: 1.0 })
        .collect();
    let floor = LinearFloor::train(&rows, 4);
    assert_eq!(floor.features() as u64, u(&golden["features"]));
    for (text, theirs) in golden["test"].as_array().unwrap().iter().zip(golden["posterior"].as_array().unwrap()) {
        for (ours, theirs) in floor.posterior(text.as_str().unwrap()).iter().zip(floats(theirs)) {
            near(f64::from(*ours), theirs, 2e-3, text);
        }
    }
}
