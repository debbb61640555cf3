//! Traces come in from files by hand and from a folder that grows, and an audit of them ends in a recipe that can be run.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn repo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn run(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_limbeck")).current_dir(dir).args(args).env("NO_COLOR", "1").output().unwrap()
}

fn expect(dir: &Path, code: i32, args: &[&str]) -> (String, String) {
    let out = run(dir, args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&out.stdout), text(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "limbeck {args:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
    (stdout, stderr)
}

fn json(dir: &Path, args: &[&str]) -> Value {
    serde_json::from_str(&expect(dir, 0, args).0).unwrap()
}

#[test]
fn files_by_hand_are_imported_in_their_formats() {
    let dir = tempfile::tempdir().unwrap();
    let fixtures = repo().join("data-curation/tests/fixtures/formats");
    let file = |name: &str| fixtures.join(name).display().to_string();
    let (spans, runs) = (file("otel-spans.json"), file("langsmith.jsonl"));
    let made = json(dir.path(), &["import", &spans, &runs, "--out", "in", "--json"]);
    assert_eq!(made["formats"]["otel-spans.json"], "otel");
    assert_eq!(made["formats"]["langsmith.jsonl"], "langsmith");
    assert_eq!(made["traces_in"], made["accepted"].as_u64().unwrap() + rejects(&made));
    assert!(made["rejected"]["not_a_call"].as_u64().unwrap() >= 3);
    let log = std::fs::read_to_string(dir.path().join("in/rejected.jsonl")).unwrap();
    assert_eq!(log.lines().count() as u64, rejects(&made));

    let (own, tickets) = (file("own.jsonl"), file("tickets.csv"));
    let map = "input=payload.question,output=result.label";
    let (text, _) = expect(dir.path(), 0, &["import", &own, "--map", map, "--out", "t"]);
    assert!(text.contains("1 of 2 records accepted") && text.contains("missing_messages 1"), "{text}");
    let (_, stderr) = expect(dir.path(), 2, &["import", &tickets, "--map", "inputs=Text"]);
    assert!(stderr.contains("`inputs` is no field of a trace"), "{stderr}");
    let (_, stderr) = expect(dir.path(), 2, &["import", "nothing.jsonl"]);
    assert!(stderr.contains("there is no file nothing.jsonl"), "{stderr}");
    let (_, stderr) = expect(dir.path(), 1, &["import", &file("tickets.csv"), "--format", "openai"]);
    assert!(stderr.contains("holds no trace that can be used"), "{stderr}");
}

fn rejects(made: &Value) -> u64 {
    made["rejected"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum()
}

#[test]
fn a_watched_folder_becomes_a_recipes_traces() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let traces = std::fs::read_to_string(repo().join("recipes/quickstart/traces.jsonl")).unwrap();
    let lines: Vec<&str> = traces.split_inclusive('\n').take(400).collect();
    std::fs::write(logs.join("app.log"), lines[..150].concat()).unwrap();
    let look = || expect(dir.path(), 0, &["import", "--watch", "logs", "--once", "--out", "in", "--json"]).0;
    let first: Value = serde_json::from_str(&look()).unwrap();
    assert_eq!(look(), "", "nothing is read twice");
    std::fs::write(logs.join("app.log"), lines.concat()).unwrap();
    let second: Value = serde_json::from_str(&look()).unwrap();
    assert_eq!(second["traces_in"], 400);
    assert_eq!(second["segment"], 2);
    assert!(first["accepted"].as_u64() < second["accepted_in_all"].as_u64());

    // The same traces, whether they came through the watcher or not.
    std::fs::write(dir.path().join("all.jsonl"), lines.concat()).unwrap();
    let straight = json(dir.path(), &["import", "all.jsonl", "--out", "straight", "--json"]);
    assert_eq!(straight["accepted"], second["accepted_in_all"]);
    let again = json(dir.path(), &["import", "in", "--out", "again", "--json"]);
    assert_eq!((&again["accepted"], rejects(&again)), (&straight["accepted"], 0));
    std::fs::create_dir(dir.path().join("router")).unwrap();
    std::fs::write(
        dir.path().join("router/recipe.toml"),
        "name = \"router\"\n[task]\nlabels = [\"a\", \"b\"]\n[model]\nbase = \"base.gguf\"\n[data]\ntraces = [\"../in\"]\n",
    )
    .unwrap();
    expect(dir.path(), 0, &["import", "router"]);
    let (stdout, _) = expect(dir.path(), 0, &["explain", "router", "--set", "data.map.input=x", "--json"]);
    assert!(stdout.contains("data.map.input"), "{stdout}");
}

#[test]
fn every_format_that_import_knows_is_one_of_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("recipe.toml"),
        "name = \"x\"\n[task]\nlabels = [\"a\", \"b\"]\n[model]\nbase = \"base.gguf\"\n[data]\ntraces = [\"t.jsonl\"]\n",
    )
    .unwrap();
    for format in limbeck_data_curation::trace::Format::ALL {
        expect(dir.path(), 0, &["explain", "recipe.toml", "--set", &format!("data.format={}", format.name())]);
    }
    expect(dir.path(), 3, &["explain", "recipe.toml", "--set", "data.format=soup"]);
}

#[test]
fn an_audit_ends_in_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let quickstart = repo().join("recipes/quickstart");
    let traces = quickstart.join("traces.jsonl").display().to_string();
    let prices = quickstart.join("prices.toml").display().to_string();
    let args = ["audit", &traces, "--prices", &prices];
    let (text, _) =
        expect(dir.path(), 0, &[&args[..], &["--html", "audit.html", "--write-recipe", "my-router"]].concat());
    assert!(text.contains("classify the customer message"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 110), "{text}");
    let page = std::fs::read_to_string(dir.path().join("audit.html")).unwrap();
    assert!(page.starts_with("<!doctype html>") && !page.contains("<script") && !page.contains("http"), "{page}");
    let written = std::fs::read_to_string(dir.path().join("my-router/traces.jsonl")).unwrap();
    assert!(written.lines().count() > 1000 && !written.contains("@example.com"));

    let report = json(dir.path(), &[&args[..], &["--json"]].concat());
    let site = &report["sites"][0];
    let labels = site["labels"].as_array().unwrap();
    assert!(labels.len() >= 12 && labels.contains(&"age_limit".into()), "{labels:?}");
    assert_eq!(
        report["calls"].as_u64().unwrap(),
        site["calls"].as_u64().unwrap() + report["other_calls"].as_u64().unwrap()
    );
    // 3 and 15 USD a million tokens, from the log by hand.
    let mut spend = 0.0;
    for line in std::fs::read_to_string(&traces).unwrap().lines() {
        let Ok(call) = serde_json::from_str::<Value>(line) else { continue };
        let tokens = |key: &str| call["response"]["usage"][key].as_f64();
        let asked = call["request"]["messages"][1]["content"].as_str().is_some_and(|m| !m.trim().is_empty());
        let answered = call["response"]["choices"][0]["message"]["content"].is_string();
        if let (Some(input), Some(output), true, true) =
            (tokens("prompt_tokens"), tokens("completion_tokens"), asked, answered)
        {
            spend += (input * 3.0 + output * 15.0) / 1e6;
        }
    }
    assert!((site["spend"].as_f64().unwrap() / spend - 1.0).abs() < 1e-9, "{} for {spend}", site["spend"]);

    // The recipe is one: it explains itself, and its traces can be imported.
    let (stdout, _) = expect(dir.path(), 0, &["explain", "my-router"]);
    assert!(stdout.contains("prices.toml"), "{stdout}");
    expect(dir.path(), 0, &["curate", "my-router"]);
    let (_, stderr) = expect(dir.path(), 2, &[&args[..], &["--write-recipe", "my-router"]].concat());
    assert!(stderr.contains("is there already"), "{stderr}");
}

#[test]
fn an_audit_of_answers_that_are_fields_ends_in_a_recipe_with_a_schema() {
    let dir = tempfile::tempdir().unwrap();
    let traces = repo().join("recipes/booking-extractor/traces.jsonl").display().to_string();
    let (text, _) = expect(dir.path(), 0, &["audit", &traces, "--write-recipe", "bookings"]);
    assert!(text.contains("Wrote bookings/recipe.toml"), "{text}");
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(dir.path().join("bookings/schema.json")).unwrap()).unwrap();
    let fields: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
    for field in ["date", "time", "people", "first_name", "last_name"] {
        assert!(fields.iter().any(|name| *name == field), "{fields:?}");
    }
    let recipe = std::fs::read_to_string(dir.path().join("bookings/recipe.toml")).unwrap();
    assert!(recipe.contains("kind = \"extract\"") && recipe.contains("schema.json is drawn from"), "{recipe}");
    let (stdout, _) = expect(dir.path(), 0, &["explain", "bookings"]);
    assert!(stdout.contains("schema.json"), "{stdout}");
    expect(dir.path(), 0, &["curate", "bookings"]);
}

#[test]
fn an_audit_says_dont_where_there_are_too_few_calls() {
    let dir = tempfile::tempdir().unwrap();
    let traces = std::fs::read_to_string(repo().join("recipes/quickstart/traces.jsonl")).unwrap();
    let lines: Vec<&str> = traces.split_inclusive('\n').take(200).collect();
    std::fs::write(dir.path().join("few.jsonl"), lines.concat()).unwrap();
    let (text, _) = expect(dir.path(), 0, &["audit", "few.jsonl"]);
    assert!(text.contains("don't: too few calls") && text.contains("1,000 give a test split"), "{text}");
    std::fs::write(
        dir.path().join("p.toml"),
        "[models.x]\ninput_per_1m = 1\noutput_per_1m = 1\n[audit]\ncoverage = 2\n",
    )
    .unwrap();
    let (_, stderr) = expect(dir.path(), 3, &["audit", "few.jsonl", "--prices", "p.toml"]);
    assert!(stderr.contains("impossible number"), "{stderr}");
    std::fs::write(
        dir.path().join("p.toml"),
        "[models.x]\ninput_per_1m = 1\noutput_per_1m = 1\n[audit]\ncoverage = 0.9\n",
    )
    .unwrap();
    let (text, _) = expect(dir.path(), 0, &["audit", "few.jsonl", "--prices", "p.toml"]);
    assert!(text.contains("No price is known for frontier-large-1"), "{text}");
    std::fs::write(dir.path().join("none.jsonl"), "no json\n").unwrap();
    let (_, stderr) = expect(dir.path(), 1, &["audit", "none.jsonl"]);
    assert!(stderr.contains("holds no call that can be read"), "{stderr}");
}
