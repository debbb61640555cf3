//! Texts and rankings against rouge-score and scikit-learn (tests/reference/texts_golden.py makes the file).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_eval::{ndcg, recall_at, rouge_l};
use serde_json::Value;

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/texts.json")).unwrap()
}

#[test]
fn rouge_l_is_rouge_scores() {
    for row in golden()["rouge_l"].as_array().unwrap() {
        let found = rouge_l(row["target"].as_str().unwrap(), row["said"].as_str().unwrap());
        for (name, found) in [("precision", found.precision), ("recall", found.recall), ("f1", found.f1)] {
            assert!((found - row[name].as_f64().unwrap()).abs() < 1e-12, "{name} {found}: {row}");
        }
    }
}

#[test]
fn rankings_are_scikit_learns() {
    for row in golden()["ranking"].as_array().unwrap() {
        let ranked: Vec<f64> = row["ranked"].as_array().unwrap().iter().map(|r| r.as_f64().unwrap()).collect();
        let k = row["k"].as_u64().unwrap() as usize;
        assert!((ndcg(&ranked, k) - row["ndcg"].as_f64().unwrap()).abs() < 1e-12, "{row}");
        assert_eq!(recall_at(&ranked, k), row["recall"].as_f64(), "{row}");
    }
}
