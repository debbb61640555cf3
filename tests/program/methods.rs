//! Ways to train beside plain LoRA, the whole way: trained, merged or taken over, quantized, measured and packaged.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use limbeck_model::safetensor::SafetensorsFile;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use mini::Mini;
use serde_json::Value;
use std::path::Path;

fn report(mini: &Mini) -> Value {
    serde_json::from_slice(&std::fs::read(mini.run_dir().join("eval/report.json")).unwrap()).unwrap()
}

fn accuracy(report: &Value, arm: &str) -> f64 {
    let arms = report["arms"].as_array().unwrap();
    arms.iter().find(|a| a["name"] == arm).unwrap()["scores"]["accuracy"].as_f64().unwrap()
}

#[test]
fn dora_goes_the_whole_way() {
    let mini = Mini::new(0.0001, true);
    mini.expect(0, &["run", "mini", "--offline", "--set", "train.use_dora=true"]);
    let adapter = mini.run_dir().join("package/adapter");
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    assert!(config.contains("\"use_dora\": true"), "{config}");
    // The merged file answers as base and adapter do side by side; Q8_0 rounds little.
    let report = report(&mini);
    let (tuned, shipped) = (accuracy(&report, "tuned"), accuracy(&report, "Q8_0"));
    assert!((tuned - shipped).abs() < 0.05, "{tuned} and {shipped}");
    let told = mini.expect(0, &["explain", "mini", "--set", "train.use_dora=true"]);
    let line = told.lines().find(|line| line.starts_with("use_dora")).unwrap();
    assert!(line.contains("true") && line.contains("--set"), "{line}");
}

#[test]
fn full_fine_tuning_goes_the_whole_way() {
    let mini = Mini::new(0.0001, true);
    // The mini recipe's rate is an adapter's.
    let sets = ["--set", "train.method=full", "--set", "train.learning_rate=2e-3"];
    let with = |args: &[&str]| -> Vec<String> { args.iter().chain(&sets).map(|s| s.to_string()).collect() };
    let run = |code: i32, args: &[&str]| {
        let args = with(args);
        mini.expect(code, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };

    let told = run(0, &["train", "mini", "--offline", "--dry-run"]);
    assert!(told.contains("0.00 M frozen") && told.contains("for what is trained: masters, moments"), "{told}");
    assert!(told.contains("a checkpoint, at most"), "{told}");
    assert!(!mini.run_dir().join("train").exists());

    run(0, &["run", "mini", "--offline"]);
    let made = mini.run_dir().join("train");
    assert!(made.join("model/model.safetensors").is_file() && !made.join("adapter").exists());
    let open = |path: &Path| Weights::open(path).unwrap();
    let base = open(&mini.path().join("mini/base.gguf"));
    let tuned = open(&mini.path().join("mini/base.gguf")).with_tuned(&made.join("model")).unwrap();
    let file = open(&mini.run_dir().join("quantize/mini-Q8_0.gguf"));
    for name in base.names() {
        let (from, to, written) =
            (base.load(&name).unwrap().data, tuned.load(&name).unwrap().data, file.load(&name).unwrap().data);
        assert_ne!(from, to, "{name} was trained");
        // Q8_0 has 127 steps to a block's largest value.
        let size = to.iter().fold(0f32, |m, x| m.max(x.abs()));
        let gap = to.iter().zip(&written).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(gap <= size / 127.0, "{name}: {gap} of {size}");
    }
    let report = report(&mini);
    assert!((accuracy(&report, "tuned") - accuracy(&report, "Q8_0")).abs() < 0.05);
    assert!(report.to_string().contains("the base with all its weights trained"));
    // One thread or all: the same bytes.
    let alone = Mini::new(0.0001, true);
    let args = with(&["train", "mini", "--offline"]);
    let mut command = alone.command(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let out = command.env("RAYON_NUM_THREADS", "1").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("learning_rate is 2e-3, which suits an adapter"), "{said}");
    for path in ["train/model/model.safetensors", "train/loss.jsonl", "train/valid.jsonl"] {
        let bytes = |mini: &Mini| std::fs::read(mini.run_dir().join(path)).unwrap();
        assert!(bytes(&alone) == bytes(&mini), "{path}");
    }
    // The package serves the file and has no adapter.
    assert!(!mini.run_dir().join("package/adapter").exists());
    assert!(mini.run_dir().join("package/mini-Q8_0.gguf").is_file());
    let package = mini.run_dir().join("package").display().to_string();
    let answer = mini.expect(0, &["score", &package, "my card was stolen", "--no-verify", "--json"]);
    assert!(answer.contains("confidence"), "{answer}");

    let told = run(0, &["explain", "mini"]);
    let line = told.lines().find(|line| line.starts_with("weight_decay")).unwrap();
    assert!(line.contains("0.01") && line.contains("default under train.method = full"), "{line}");
    let out = mini.limbeck(&["train", "mini", "--set", "train.method=full", "--set", "train.use_dora=true"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("`train.use_dora` is for adapters"), "{said}");
}

#[test]
fn a_classification_head_goes_the_whole_way() {
    let mini = Mini::new(0.0001, true);
    let sets = ["--set", "train.head=classification"];
    let with = |args: &[&str]| -> Vec<String> { args.iter().chain(&sets).map(|s| s.to_string()).collect() };
    let run = |code: i32, args: &[&str]| {
        let args = with(args);
        mini.expect(code, &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    run(0, &["run", "mini", "--offline"]);
    let adapter = mini.run_dir().join("package/adapter");
    let config = std::fs::read_to_string(adapter.join("adapter_config.json")).unwrap();
    assert!(config.contains("SEQ_CLS") && config.contains("\"score\""), "{config}");
    let labels: Vec<String> = serde_json::from_slice(&std::fs::read(adapter.join("labels.json")).unwrap()).unwrap();
    let report = report(&mini);
    let (tuned, shipped) = (accuracy(&report, "tuned"), accuracy(&report, "Q8_0"));
    assert!((tuned - shipped).abs() < 0.05, "{tuned} and {shipped}");
    assert!(report.to_string().contains("the base under its adapter and head"));

    // What answers is the packaged file alone, whose tokenizer has a token a label.
    let tokenizer = ChatTokenizer::open(&mini.run_dir().join("package/tokenizer")).unwrap();
    assert!(labels.len() > 2 && labels.iter().all(|label| tokenizer.label_id(label).is_some()), "{labels:?}");
    let package = mini.run_dir().join("package").display().to_string();
    let answer = mini.expect(0, &["score", &package, "my card was stolen", "--no-verify", "--json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(labels.iter().any(|label| answer["label"] == label.as_str()), "{answer}");
    let card = std::fs::read_to_string(mini.run_dir().join("package/README.md")).unwrap();
    assert!(card.contains("<|label:NAME|>") || card.contains("label:NAME"), "{card}");

    let told = run(0, &["explain", "mini", "--masks"]);
    assert!(told.contains("The head reads the last token's state"), "{told}");
    let with = ["--set", "train.head=classification", "--set", "train.train_on=all_assistant"];
    let out = mini.limbeck(&[&["train", "mini"], &with[..]].concat());
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("answers the last turn only"), "{said}");
}

/// As ladders heal a carved student over all its weights.
#[test]
fn so_does_a_head_over_all_weights() {
    let mini = Mini::new(0.0001, true);
    let sets = ["train.head=classification", "train.method=full", "train.learning_rate=2e-3"];
    let sets: Vec<&str> = sets.iter().flat_map(|set| ["--set", set]).collect();
    let told = mini.expect(0, &[&["train", "mini", "--offline", "--dry-run"], &sets[..]].concat());
    assert!(told.contains("0.00 M frozen"), "{told}");
    mini.expect(0, &[&["run", "mini", "--offline"], &sets[..]].concat());
    let made = mini.run_dir().join("train/model");
    let labels: Vec<String> = serde_json::from_slice(&std::fs::read(made.join("labels.json")).unwrap()).unwrap();
    let report = report(&mini);
    let (tuned, shipped) = (accuracy(&report, "tuned"), accuracy(&report, "Q8_0"));
    assert!((tuned - shipped).abs() < 0.05, "{tuned} and {shipped}");
    assert!(report.to_string().contains("all its weights trained, under a head"));
    // The head's rows are the last of the served file's own, whose blocks have 127 steps to their largest value.
    let file = Weights::open(&mini.run_dir().join("quantize/mini-Q8_0.gguf")).unwrap();
    let score = SafetensorsFile::open(&made.join("model.safetensors")).unwrap().load("score.weight").unwrap();
    let rows = file.load("model.embed_tokens.weight").unwrap().data;
    let served = &rows[rows.len() - score.len()..];
    let size = score.iter().fold(0f32, |m, x| m.max(x.abs()));
    let gap = score.iter().zip(served).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    assert!(size > 1e-3 && gap <= size / 127.0, "{gap} of {size}");

    // What is served is one file with a token a label; the weights in float32 stay in the run.
    let package = mini.run_dir().join("package");
    assert!(!package.join("adapter").exists());
    let tokenizer = ChatTokenizer::open(&package.join("tokenizer")).unwrap();
    assert!(labels.len() > 2 && labels.iter().all(|label| tokenizer.label_id(label).is_some()), "{labels:?}");
    let answer =
        mini.expect(0, &["score", &package.display().to_string(), "my card was stolen", "--no-verify", "--json"]);
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert!(labels.iter().any(|label| answer["label"] == label.as_str()), "{answer}");
    let card = std::fs::read_to_string(package.join("README.md")).unwrap();
    assert!(card.contains("label:NAME"), "{card}");

    // Without its labels nobody could tell which row is which.
    std::fs::remove_file(made.join("labels.json")).unwrap();
    let again = mini.expect(0, &[&["run", "mini", "--offline"], &sets[..]].concat());
    assert!(made.join("labels.json").is_file(), "{again}");
}

/// The artifact says in which arithmetic its file was judged, and answers in it.
#[test]
fn quantized_files_are_judged_and_answer_as_they_are_served_or_in_float32() {
    let mini = Mini::new(0.0001, true);
    let package = mini.run_dir().join("package");
    let arithmetic = || -> Value {
        let manifest: Value = serde_json::from_slice(&std::fs::read(package.join("manifest.json")).unwrap()).unwrap();
        manifest["arithmetic"].clone()
    };
    let folder = package.display().to_string();
    let confidence = |more: &[&str]| -> f64 {
        let args = [&["score", &folder, "my card was stolen", "--no-verify", "--json"], more].concat();
        serde_json::from_str::<Value>(&mini.expect(0, &args)).unwrap()["confidence"].as_f64().unwrap()
    };
    let title = || -> String {
        let report = report(&mini);
        let arms = report["arms"].as_array().unwrap();
        arms.iter().find(|a| a["name"] == "Q4_0").unwrap()["title"].as_str().unwrap().to_owned()
    };

    mini.expect(0, &["run", "mini", "--offline"]);
    assert_eq!(arithmetic(), "served");
    assert_eq!(title(), "the Q4_0 file itself, computed from its blocks as it is served");
    let [served, expanded] = [confidence(&["--arithmetic", "served"]), confidence(&["--arithmetic", "f32"])];
    assert_eq!(confidence(&[]), served);
    assert!(served != expanded && (served - expanded).abs() < 0.05, "{served} and {expanded}");

    mini.expect(0, &["run", "mini", "--offline", "--set", "eval.arithmetic=f32"]);
    assert_eq!(arithmetic(), "f32");
    assert_eq!(title(), "the Q4_0 file itself, read back");
    // Calibrated on its own posteriors, not on those that were computed from blocks.
    assert!((confidence(&[]) - expanded).abs() < 1e-3);
}
