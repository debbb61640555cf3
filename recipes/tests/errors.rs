//! The shelf of bad recipes: what a person reads for each of them. Read the snapshots as prose.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_recipes::load_text;
use std::path::{Path, PathBuf};

fn shelf() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/recipes/invalid");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|f| f.extension().is_some_and(|e| e == "toml"));
    files.sort();
    files
}

#[test]
fn every_bad_recipe_is_explained() {
    let files = shelf();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        let errors = load_text(Path::new(name), &text, &[]).expect_err(name);
        insta::assert_snapshot!(name, errors.to_string());
    }
}

const GOOD: &str = r#"
name = "good"
[task]
labels = ["yes", "no"]
[model]
base = "base.gguf"
[data]
traces = ["traces.jsonl"]
[[eval.gate]]
kind = "floor"
min = 0.8
[[eval.gate]]
name = "fast"
kind = "latency"
p95_ms = 50
"#;

fn set_errors(sets: &[(&str, &str)]) -> String {
    let sets: Vec<(String, String)> = sets.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    load_text(Path::new("recipe.toml"), GOOD, &sets).expect_err("these overrides are wrong").to_string()
}

#[test]
fn bad_overrides_are_explained() {
    let sets = [
        ("train.lerning_rate", "1e-3"),
        ("train.r", "0"),
        ("train.lr_scheduler", "cosin"),
        ("task.labels", "[yes, no]"),
        ("eval.gate.flor.min", "0.9"),
        ("eval.gate.fast.min", "0.9"),
        ("eval.gate.0.min", "2"),
        ("model", "tiny.gguf"),
        ("", "1"),
    ];
    insta::assert_snapshot!(set_errors(&sets));
}

#[test]
fn a_recipe_that_is_not_there_says_what_to_do() {
    let error = limbeck_recipes::load(Path::new("no/such/recipe"), &[]).unwrap_err().to_string();
    assert!(error.contains("no/such/recipe") && error.contains("limbeck init"), "{error}");
}
