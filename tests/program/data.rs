//! `limbeck data` on a run's frozen dataset: what a person reads, what a script reads, and what other trainers are given.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod mini;

use mini::Mini;
use serde_json::Value;

fn frozen() -> Mini {
    let mini = Mini::new(0.001, true);
    // The dry run freezes in a place of its own, so train as little as there is.
    mini.expect(0, &["train", "mini", "--set", "train.num_epochs=1"]);
    mini
}

#[test]
fn a_dataset_is_shown_compared_traced_and_exported() {
    let mini = frozen();
    let shown = mini.expect(0, &["data", "show", "mini"]);
    for part in
        ["files checked", "240 in = ", "Classes", "card_acceptance", "a person's decision", "Names", "traces.jsonl"]
    {
        assert!(shown.contains(part), "no {part} in:\n{shown}");
    }
    let card: Value = serde_json::from_str(&mini.expect(0, &["data", "show", "runs/mini", "--json"])).unwrap();
    assert_eq!(card["traces_in"], 240);
    assert!(card["curation"]["redaction_recall"]["card"].as_f64().unwrap() > 0.97);

    let chat = mini.expect(0, &["data", "export", "mini", "--format", "chat", "--split", "test"]);
    let rows: Vec<Value> = chat.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(rows.len() as u64, card["splits"]["test"]["rows"].as_u64().unwrap());
    for row in &rows {
        let roles: Vec<&str> =
            row["messages"].as_array().unwrap().iter().map(|m| m["role"].as_str().unwrap()).collect();
        assert_eq!(roles, ["system", "user", "assistant"]);
    }
    mini.expect(0, &["data", "export", "mini", "--format", "dpo", "--out", "pairs.jsonl"]);
    let pairs = std::fs::read_to_string(mini.path().join("pairs.jsonl")).unwrap();
    let pairs: Vec<Value> = pairs.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert!(!pairs.is_empty());
    for pair in &pairs {
        assert_ne!(pair["chosen"][0]["content"], pair["rejected"][0]["content"]);
        assert_eq!(pair["prompt"][1]["role"], "user");
    }

    let train = std::fs::read_to_string(mini.run_dir().join("dataset/train.jsonl")).unwrap();
    let row: Value = serde_json::from_str(train.lines().next().unwrap()).unwrap();
    let told = mini.expect(0, &["data", "lineage", "mini", &row["id"].as_str().unwrap()[..12]]);
    for part in ["trace      call-", "traces.jsonl line ", "decision   ", "by banking77-gold", "which stands"] {
        assert!(told.contains(part), "no {part} in:\n{told}");
    }
    let left_out = std::fs::read_to_string(mini.run_dir().join("curate/left_out.jsonl")).unwrap();
    let left: Value = serde_json::from_str(left_out.lines().next().unwrap()).unwrap();
    let told = mini.expect(0, &["data", "lineage", "mini", left["id"].as_str().unwrap()]);
    assert!(told.contains("left out   by curate: "), "{told}");
    mini.expect(1, &["data", "lineage", "mini", "no-such-trace"]);
}

#[test]
fn two_datasets_are_compared_by_their_traces() {
    let mini = frozen();
    let copy = mini.path().join("before");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(mini.run_dir().join("dataset")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    assert!(mini.expect(0, &["data", "diff", "before", "mini"]).contains("the same dataset"));
    mini.expect(0, &["train", "mini", "--set", "train.num_epochs=1", "--set", "seed=9"]);
    let told = mini.expect(0, &["data", "diff", "before", "mini"]);
    assert!(told.contains("moved from test to another split") && told.contains("do not compare"), "{told}");
    let json: Value = serde_json::from_str(&mini.expect(0, &["data", "diff", "before", "mini", "--json"])).unwrap();
    assert!(json["rows"]["moved to another split"]["rows"].as_u64().unwrap() > 0);
    let path = copy.join("train.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("human", "HUMAN", 1)).unwrap();
    mini.expect(1, &["data", "show", "before"]);
    mini.expect(1, &["data", "show", "nowhere"]);
}
