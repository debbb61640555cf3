//! Several trainings that differ by their seed alone: the same data, the recipe's own among them and not trained twice, and how
//! far their answers are apart.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::Value;

#[test]
fn seeds_are_trained_on_the_same_data_and_told_apart() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["train", "mini", "--offline"]);
    let words = ["seeds", "mini", "--offline", "--seeds", "3"];
    let json: Value = serde_json::from_str(&mini.expect(0, &[&words[..], &["--json"]].concat())).unwrap();
    let trainings = json["trainings"].as_array().unwrap();
    let seeds: Vec<u64> = trainings.iter().map(|t| t["seed"].as_u64().unwrap()).collect();
    assert_eq!(seeds, [seeds[0], seeds[0] + 1, seeds[0] + 2]);
    let adapters: Vec<Vec<u8>> = trainings
        .iter()
        .map(|training| {
            let run = mini.path().join(training["run"].as_str().unwrap());
            let journal = std::fs::read_to_string(run.join("journal.jsonl")).unwrap();
            for stage in ["import", "curate", "review"] {
                assert!(!journal.contains(&format!("\"stage\":\"{stage}\",\"event\":\"stage_started\"")), "{stage}");
            }
            let trained = journal.contains("\"stage\":\"train\",\"event\":\"stage_started\"");
            assert_eq!(trained, training["seed"] != seeds[0], "the recipe's own was trained already");
            std::fs::read(run.join("train/adapter/adapter_model.safetensors")).unwrap()
        })
        .collect();
    assert!(adapters[0] != adapters[1] && adapters[1] != adapters[2]);
    let spread = &json["spread"];
    let right: Vec<f64> = trainings.iter().map(|t| t["accuracy"].as_f64().unwrap()).collect();
    assert!((spread["mean"].as_f64().unwrap() - right.iter().sum::<f64>() / 3.0).abs() < 1e-12);
    assert_eq!(spread["rows"], trainings[0]["rows"]);

    // Again, for a person: nothing is done twice.
    let journal = mini.path().join(trainings[2]["run"].as_str().unwrap()).join("journal.jsonl");
    let started = || std::fs::read_to_string(&journal).unwrap().matches("\"stage_started\"").count();
    let before = started();
    let text = mini.expect(0, &words);
    assert_eq!(started(), before);
    assert!(text.contains("3 trainings that differ by their seed") && text.contains("may be the seed"), "{text}");
}

#[test]
fn a_gate_that_hangs_on_the_seed_is_named() {
    // A floor that the tiny model reaches with some seeds: undecided or failed is what it says of the others.
    let mini = Mini::new(0.9999, true);
    let out = mini.limbeck(&["seeds", "mini", "--offline", "--seeds", "2"]);
    assert!([4, 7].contains(&out.status.code().unwrap()), "{out:?}");
}

#[test]
fn a_training_that_the_recipe_has_left_behind_is_not_taken_over() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["train", "mini", "--offline"]);
    let words = ["seeds", "mini", "--offline", "--seeds", "2", "--set", "train.learning_rate=5e-3", "--json"];
    let json: Value = serde_json::from_str(&mini.expect(0, &words)).unwrap();
    let trainings: Vec<_> = json["trainings"].as_array().unwrap().iter().map(|t| t["run"].as_str().unwrap()).collect();
    let started = || {
        let journal = |run: &&str| std::fs::read_to_string(mini.path().join(run).join("journal.jsonl")).unwrap();
        trainings.iter().map(|run| journal(run).matches("\"stage_started\"").count()).sum::<usize>()
    };
    let before = started();
    mini.expect(0, &words);
    assert_eq!(started(), before, "the same again is nothing to do");
}

#[test]
fn every_seed_is_a_look_at_the_test_split() {
    let mini = Mini::new(0.0001, true);
    let words = ["seeds", "mini", "--offline", "--seeds", "2", "--json"];
    let json: Value = serde_json::from_str(&mini.expect(0, &words)).unwrap();
    let (second, run) = (&json["trainings"][1]["seed"], json["run"].as_str().unwrap());
    // Who ships the better one has chosen it by what the test rows said.
    mini.expect(0, &["eval", "mini", "--offline", "--set", &format!("train.seed={second}")]);
    let path = mini.path().join(run).join("eval/report.json");
    let report: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let looks = &report["test"]["looks"];
    assert_eq!((&looks["candidates"], &looks["number"]), (&2.into(), &2.into()), "{looks}");
    assert!(!looks["corrected"].is_null(), "{looks}");
}
