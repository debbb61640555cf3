//! What `limbeck watch` says of a run is what its journal holds: finished, failed or killed, as lines, as JSON and in other
//! tools' formats. And it leaves the run's folder as it was.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Without the reports of slow work, which follow the clock.
fn lasting(text: &str) -> Vec<&str> {
    let report = |line: &&str| line.chars().skip(10).take(5).collect::<String>().trim().ends_with('%');
    text.lines().filter(|line| !report(line)).collect()
}

/// Every file with its length and time of change.
fn files(dir: &Path) -> Vec<(PathBuf, u64, std::time::SystemTime)> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let meta = entry.metadata().unwrap();
        match meta.is_dir() {
            true => out.extend(files(&entry.path())),
            false => out.push((entry.path(), meta.len(), meta.modified().unwrap())),
        }
    }
    out.sort();
    out
}

#[test]
fn a_finished_run_is_shown_replayed_and_exported() {
    let mini = Mini::new(0.999, true);
    let args = ["run", "mini", "--offline", "--tensorboard", "boards", "--metrics", "logs/metrics.jsonl"];
    let out = mini.limbeck(&args);
    assert_eq!(out.status.code(), Some(4), "the gate can't be reached");
    let before = files(&mini.run_dir());

    let stderr = String::from_utf8(out.stderr).unwrap();
    let told = lasting(&stderr);
    assert_eq!(lasting(&mini.expect(0, &["watch", "mini"])), told, "the lines that run printed");
    assert_eq!(lasting(&mini.expect(0, &["watch", "--follow"])), told, "the newest run, which has ended");

    let summary = json(&mini.expect(0, &["watch", "runs/mini", "--json"]));
    assert_eq!((&summary["state"], &summary["exit_code"]), (&"finished".into(), &4.into()));
    assert_eq!(summary["gates"][0]["verdict"], "fail");
    let losses = summary["train"]["losses"].as_array().unwrap();
    assert_eq!(summary["train"]["step"], summary["train"]["total"]);
    assert_eq!(losses.len() as u64, summary["train"]["total"].as_u64().unwrap());
    if cfg!(target_os = "linux") {
        assert!(summary["peak_rss_bytes"].as_u64().unwrap() > 1 << 20);
    }

    let metrics = std::fs::read_to_string(mini.path().join("logs/metrics.jsonl")).unwrap();
    let steps: Vec<Value> = metrics.lines().map(json).filter(|row| row["train/loss"].is_number()).collect();
    let pairs: Vec<Value> = steps.iter().map(|row| serde_json::json!([row["step"], row["train/loss"]])).collect();
    assert_eq!(&pairs, losses);
    mini.expect(0, &["watch", "mini", "--export-metrics", "again.jsonl", "--export-tensorboard", "exported"]);
    assert_eq!(std::fs::read_to_string(mini.path().join("again.jsonl")).unwrap(), metrics);
    let event_file = |dir: &str| -> Vec<u8> {
        let mut files = files(&mini.path().join(dir).join("mini"));
        assert_eq!(files.len(), 1, "{files:?}");
        std::fs::read(files.remove(0).0).unwrap()
    };
    assert_eq!(event_file("exported"), event_file("boards"), "live and from the journal");

    assert_eq!(files(&mini.run_dir()), before, "watching changes nothing");
}

#[test]
fn a_killed_run_is_interrupted_and_the_command_it_names_goes_on() {
    let mini = Mini::new(0.0001, true);
    let journal = mini.run_dir().join("journal.jsonl");
    let args = ["run", "mini", "--offline", "--set", "train.num_epochs=2", "--metrics", "metrics.jsonl"];
    let mut child = mini.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while std::fs::read_to_string(&journal).unwrap_or_default().matches("\"train_step\"").count() < 5 {
        assert!(Instant::now() < deadline, "the training never began");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(json(&mini.expect(0, &["watch", "mini", "--json"]))["state"], "live");
    child.kill().unwrap();
    child.wait().unwrap();

    let summary = json(&mini.expect(0, &["watch", "--json"]));
    assert_eq!(summary["state"], "interrupted");
    let command = summary["resume"].as_str().unwrap().to_owned();
    assert_eq!(command, format!("limbeck {}", args.join(" ")));
    let lines = mini.expect(0, &["watch", "mini"]);
    assert!(
        lines.ends_with(&format!("interrupted: no process writes this journal. Go on with: {command}\n")),
        "{lines}"
    );

    let words: Vec<&str> = command.split(' ').skip(1).collect();
    mini.expect(0, &words);
    let summary = json(&mini.expect(0, &["watch", "mini", "--json"]));
    assert_eq!((&summary["state"], &summary["exit_code"]), (&"finished".into(), &0.into()));
    let total = summary["train"]["total"].as_u64().unwrap();
    let steps: Vec<u64> =
        summary["train"]["losses"].as_array().unwrap().iter().map(|pair| pair[0].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=total).collect::<Vec<_>>(), "each step once, though some were taken twice");

    // The same of the loss log: the last line of a step is the trainer's.
    let log = std::fs::read_to_string(mini.run_dir().join("train/loss.jsonl")).unwrap();
    let mut last = std::collections::BTreeMap::new();
    let metrics = std::fs::read_to_string(mini.path().join("metrics.jsonl")).unwrap();
    for row in metrics.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        if row["train/loss"].is_number() {
            last.insert(row["step"].as_u64().unwrap(), row["train/loss"].clone());
        }
    }
    let wanted: Vec<Value> = log.lines().map(|line| json(line)["loss"].clone()).collect();
    assert_eq!(last.into_values().collect::<Vec<_>>(), wanted);
}

#[test]
fn what_is_neither_run_nor_recipe_is_said() {
    let mini = Mini::new(0.0001, true);
    for (args, said) in [
        (&["watch"][..], "nothing has run yet"),
        (&["watch", "mini"], "has not run yet"),
        (&["watch", "nowhere"], "neither a run nor a recipe"),
    ] {
        let out = mini.limbeck(args);
        assert_eq!(out.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&out.stderr).contains(said), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
