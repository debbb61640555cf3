//! The vote over a teacher's draws against values from tests/reference/agreement_golden.py.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use limbeck_distill::best::{Draw, best_label};
use serde_json::Value;
use std::path::Path;

#[test]
fn the_vote_and_its_share_are_the_references() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data-curation/tests/fixtures/agreement/golden.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let rows = golden["rows"].as_array().unwrap();
    assert!(rows.len() > 100);
    for row in rows {
        let draw = |answer: &Value| Draw { answer: answer.as_str().map(str::to_owned), probability: None };
        let draws: Vec<Draw> = row["draws"].as_array().unwrap().iter().map(draw).collect();
        let best = best_label(&draws).unwrap();
        assert_eq!(Some(best.answer.as_str()), row["answer"].as_str(), "{row}");
        assert!((best.agreement - row["agreement"].as_f64().unwrap()).abs() < 1e-12, "{row}");
    }
}
