//! What a person and a CI job rely on: a run goes the whole way, a second one finds everything done, exit codes tell
//! what happened, and an artifact that was touched is refused.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use std::path::PathBuf;

fn find(dir: &std::path::Path, suffix: &str) -> PathBuf {
    fn walk(dir: &std::path::Path, suffix: &str) -> Option<PathBuf> {
        let mut entries: Vec<_> = std::fs::read_dir(dir).ok()?.flatten().map(|e| e.path()).collect();
        entries.sort();
        entries.into_iter().find_map(|path| match path.is_dir() {
            true => walk(&path, suffix),
            false => path.to_string_lossy().ends_with(suffix).then_some(path),
        })
    }
    walk(dir, suffix).unwrap_or_else(|| panic!("no {suffix} under {}", dir.display()))
}

#[test]
fn the_whole_way_then_nothing_to_do_then_tampering() {
    let mini = Mini::new(0.0001, true);
    let text = mini.expect(0, &["run", "mini", "--offline"]);
    assert!(text.contains("limbeck score"), "{text}");
    assert!(text.contains("accuracy"), "{text}");

    let before = mini.made();
    let json: serde_json::Value =
        serde_json::from_str(&mini.expect(0, &["run", "mini", "--offline", "--json"])).unwrap();
    let stages = json["stages"].as_array().unwrap();
    assert!(stages.len() >= 7 && stages.iter().take(7).all(|s| s["cached"] == true), "{json:#}");
    assert_eq!(before, mini.made());

    let artifact = find(&mini.run_dir().join("package"), "model.sig").parent().unwrap().to_path_buf();
    let artifact_arg = artifact.display().to_string();
    let key = ".limbeck/keys/signing.pub.pem";
    mini.expect(0, &["verify", &artifact_arg, "--key", key]);
    let answer: serde_json::Value =
        serde_json::from_str(&mini.expect(0, &["score", &artifact_arg, "where is my refund?", "--json"])).unwrap();
    let confidence = answer["confidence"].as_f64().unwrap();
    assert!((0.0..=1.0).contains(&confidence) && answer["label"].is_string(), "{answer}");
    assert!(answer["route"] == "serve" || answer["route"] == "escalate", "{answer}");
    let promoted = mini.expect(0, &["score", "mini/staging", "where is my refund?", "--json"]);
    let promoted: serde_json::Value = serde_json::from_str(&promoted).unwrap();
    assert_eq!(answer["label"], promoted["label"], "the channel answers as the package does");

    let gguf = find(&artifact, ".gguf");
    let mut permissions = std::fs::metadata(&gguf).unwrap().permissions();
    #[expect(clippy::permissions_set_readonly_false, reason = "the test's own temporary file")]
    permissions.set_readonly(false);
    std::fs::set_permissions(&gguf, permissions).unwrap();
    let mut bytes = std::fs::read(&gguf).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&gguf, bytes).unwrap();
    mini.expect(6, &["verify", &artifact_arg, "--key", key]);
    mini.expect(6, &["score", &artifact_arg, "where is my refund?"]);
}

#[test]
fn without_decisions_the_run_stops_and_says_what_to_do() {
    let mini = Mini::new(0.0001, false);
    let out = mini.limbeck(&["run", "mini", "--offline"]);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(5), "{stderr}");
    assert!(stderr.contains("limbeck review"), "{stderr}");
    assert!(!mini.run_dir().join("train/adapter").exists());
}

#[test]
fn a_failed_gate_is_exit_code_4_and_nothing_is_promoted() {
    let mini = Mini::new(0.999, true);
    mini.expect(4, &["run", "mini", "--offline"]);
    assert!(mini.run_dir().join("eval").exists(), "the report is there to be read");
    let out = mini.limbeck(&["score", "mini/staging", "hello"]);
    assert_ne!(out.status.code(), Some(0), "nothing was promoted");
}

#[test]
fn a_bad_recipe_is_exit_code_3_with_line_and_nearest_name() {
    let mini = Mini::new(0.0001, true);
    let path = mini.path().join("mini/recipe.toml");
    let text = std::fs::read_to_string(&path).unwrap().replace("learning_rate", "learing_rate");
    std::fs::write(&path, text).unwrap();
    let out = mini.limbeck(&["run", "mini"]);
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{stderr}");
    assert!(stderr.contains("learing_rate") && stderr.contains("learning_rate"), "{stderr}");
    assert_eq!(mini.limbeck(&["run"]).status.code(), Some(2), "usage");
}

#[test]
fn a_dry_run_says_what_a_training_takes_and_leaves_nothing() {
    let mini = Mini::new(0.0001, true);
    let args = ["train", "mini", "--offline", "--dry-run", "--price-per-hour", "3.6", "--json"];
    let rehearsed = || -> serde_json::Value { serde_json::from_str(&mini.expect(0, &args)).unwrap() };
    let found = rehearsed();
    assert!(!mini.path().join("runs").exists(), "no run folder was made");
    let of = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key}: {found:#}"));
    assert!(of("trained_parameters") > 0.0 && of("frozen_parameters") > of("trained_parameters"));
    assert!((of("cost") - of("total_s") / 1000.0).abs() < 1e-9);
    assert!(cfg!(not(target_os = "linux")) || of("peak_memory_bytes") > 1e6);

    // Beside a run that is there, it leaves every byte of it as it was.
    mini.expect(0, &["review", "mini", "--status"]);
    mini.expect(0, &["curate", "mini"]);
    let listed = || {
        let mut files = Vec::new();
        mini::collect(&mini.run_dir(), &mut files);
        files.sort();
        files.iter().map(|f| (f.clone(), std::fs::read(f).unwrap())).collect::<Vec<_>>()
    };
    let before = listed();
    assert!(!before.is_empty());
    assert_eq!(rehearsed()["steps"], found["steps"]);
    assert_eq!(listed(), before);
    let text = mini.expect(0, &["train", "mini", "--offline", "--dry-run"]);
    assert!(text.contains("trained") && text.contains("whole run") && !text.contains("cost"), "{text}");
    assert_eq!(mini.limbeck(&["train", "mini", "--price-per-hour", "1"]).status.code(), Some(2), "usage");
}

#[test]
fn an_order_of_items_needs_the_word_between_query_and_item() {
    let mini = Mini::new(0.0001, true);
    let eval = |code: i32, separator: &[&str]| {
        let words = ["eval", "mini", "--offline", "--set", "eval.ranking.positive=age_limit"];
        let out = mini.limbeck(&[&words[..], separator].concat());
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(code), "{said}");
        said
    };
    let said = eval(3, &[]);
    assert!(said.contains("no message of the test split holds \"Passage\""), "{said}");
    assert!(said.contains("set eval.ranking.separator to the word"), "{said}");
    let said = eval(0, &["--set", "eval.ranking.separator=my"]);
    assert!(said.contains("test messages do not hold \"my\" (eval.ranking.separator)"), "{said}");
}
