//! A ladder makes students of several sizes, each taught by the first, and names the smallest that passes; killed anywhere it goes
//! on to the same result.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use limbeck_model::gguf::GgmlType;
use mini::{Mini, tiny_base};
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

const LADDER: [&str; 6] = ["ladder", "mini", "--offline", "--json", "--rungs", "5,3,1"];

fn mini(min: f64) -> Mini {
    let mini = Mini::new(min, true);
    tiny_base::write(&mini.path().join("mini/base.gguf"), 5, GgmlType::F32, 1);
    mini
}

/// The result without what measures time.
fn result(text: &str) -> Value {
    let mut json: Value = serde_json::from_str(text).unwrap();
    for rung in json["rungs"].as_array_mut().unwrap() {
        for key in ["p50_ms", "p95_ms", "cost"] {
            assert!(!rung[key].take().is_null(), "{key}");
        }
        if let Some(beside) = rung["beside_first"].as_object_mut() {
            beside.remove("times_as_fast").unwrap().as_f64().unwrap();
        }
    }
    json
}

#[test]
fn rungs_are_carved_taught_and_compared() {
    let mini = mini(0.0001);
    let json = result(&mini.expect(0, &LADDER));
    let rungs = json["rungs"].as_array().unwrap();
    let of = |key: &str| rungs.iter().map(|rung| rung[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("layers"), [5, 3, 1]);
    assert_eq!((&json["smallest"], of("verdict")), (&Value::from(1), vec![Value::from("pass"); 3]));
    let bytes: Vec<u64> = of("bytes").iter().map(|b| b.as_u64().unwrap()).collect();
    assert!(bytes.is_sorted_by(|a, b| a > b), "{bytes:?}");
    assert!(rungs[0]["kept"].is_null() && rungs[0]["beside_first"].is_null());
    assert_eq!(rungs[1]["kept"].as_array().unwrap().len(), 3);
    assert!(rungs[1]["loss_when_carved"].as_f64().unwrap() > 0.0);
    let beside = &rungs[2]["beside_first"];
    let gap = rungs[2]["accuracy"].as_f64().unwrap() - rungs[0]["accuracy"].as_f64().unwrap();
    assert!((beside["difference"].as_f64().unwrap() - gap).abs() < 1e-9, "the same rows");

    // The first teaches the others, and the data was read once.
    for rung in rungs {
        let run = mini.path().join(rung["run"].as_str().unwrap());
        let journal = std::fs::read_to_string(run.join("journal.jsonl")).unwrap();
        for stage in ["import", "curate", "review"] {
            assert!(!journal.contains(&format!("\"stage\":\"{stage}\",\"event\":\"stage_started\"")), "{stage}");
        }
        assert_eq!(run.join("capture/teacher.capture").exists(), rung["layers"] != 5);
    }
    // What is named can be made.
    let command = json["command"].as_str().unwrap();
    assert!(command.starts_with("limbeck run mini --set ") && command.contains("layers-1.gguf"), "{command}");
    let words: Vec<&str> = command.split(' ').skip(1).chain(["--offline", "--runs-dir", "made"]).collect();
    mini.expect(0, &words);

    let words: Vec<&str> = LADDER.into_iter().filter(|word| *word != "--json").collect();
    let started = || -> usize {
        let journal = |rung: &Value| mini.path().join(rung["run"].as_str().unwrap()).join("journal.jsonl");
        let count = |rung| std::fs::read_to_string(journal(rung)).unwrap().matches("\"stage_started\"").count();
        rungs.iter().map(count).sum()
    };
    let before = started();
    let text = mini.expect(0, &words);
    assert!(text.contains("the smallest that passes") && text.contains("Make it"), "{text}");
    assert!(before > 0 && started() == before, "all of it was done before");
}

#[test]
fn killed_anywhere_it_goes_on_to_the_same_result() {
    let unbroken = mini(0.0001);
    let want = result(&unbroken.expect(0, &LADDER));
    let broken = mini(0.0001);
    let mut killed = 0;
    for wait_ms in [300, 600, 900, 1300, 1700] {
        let mut child = broken.command(&LADDER).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_millis(wait_ms);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "only {killed} kills hit a running process");
    let paths = |mini: &Mini, json: &Value| json.to_string().replace(&mini.path().display().to_string(), "");
    assert_eq!(paths(&broken, &result(&broken.expect(0, &LADDER))), paths(&unbroken, &want));
}

#[test]
fn gates_that_nobody_passes_and_mistakes_are_told() {
    let strict = mini(0.9999);
    let json: Value =
        serde_json::from_str(&strict.expect(4, &["ladder", "mini", "--offline", "--json", "--rungs", "2,1"])).unwrap();
    assert!(json["smallest"].is_null() && json["command"].is_null());
    assert_eq!(json["rungs"][0]["not_passed"], serde_json::json!(["accuracy"]));
    assert_eq!(json["rungs"][0]["kept"].as_array().unwrap().len(), 2, "the first may be carved too");
    let mini = mini(0.0001);
    let out = mini.limbeck(&["ladder", "mini", "--offline", "--rungs", "9"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(2) && said.contains("a base of 5"), "{said}");
    let out = mini.limbeck(&["ladder", "mini", "--offline", "--heal", "train.num_epoch=3"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.code() == Some(3) && said.contains("did you mean `num_epochs`?"), "{said}");
    assert!(!mini.run_dir().join("train").exists(), "told before anything is trained");
}

#[test]
fn carve_tells_what_layers_do_on_a_tasks_prompts() {
    let mini = mini(0.0001);
    mini.expect(0, &["train", "mini", "--offline"]);
    let told = mini.expect(0, &["carve", "mini/base.gguf", "--prompts", "runs/mini/dataset"]);
    assert!(told.contains("layer   4") && told.contains("loss on the answers"), "{told}");
    assert!(!told.contains("kept") && !mini.path().join("small.gguf").exists(), "nothing is chosen or written");
    let args = ["carve", "mini/base.gguf", "--prompts", "runs/mini/dataset", "--keep", "3", "--out", "small.gguf"];
    for by in ["influence", "window", "loss"] {
        let json: Value =
            serde_json::from_str(&mini.expect(0, &[&args[..], &["--by", by, "--json"]].concat())).unwrap();
        assert_eq!((&json["layers"], &json["source_layers"]), (&Value::from(3), &Value::from(5)), "{by}");
        assert!(json["measured"]["choices"][0]["loss"]["carved"].as_f64().unwrap() > 0.0);
    }
    let told = mini.expect(0, &args);
    assert!(told.contains("goes") && told.contains("before any training") && told.contains("SHA-256"), "{told}");
    // Messages without answers have influence and no loss.
    std::fs::write(mini.path().join("calls.txt"), "where is my card\nI want my money back\n").unwrap();
    let told = mini.expect(0, &["carve", "mini/base.gguf", "--prompts", "calls.txt"]);
    assert!(told.contains("2 prompts") && !told.contains("loss"), "{told}");
    for (args, says) in [
        (&["carve", "mini/base.gguf", "--out", "x.gguf"][..], "--layers"),
        (&["carve", "mini/base.gguf", "--keep", "3", "--out", "x.gguf"], "--prompts"),
        (&["carve", "mini/base.gguf", "--layers", "0,1"], "--out"),
        (&["carve", "mini/base.gguf", "--prompts", "calls.txt", "--keep", "9", "--out", "x.gguf"], "1 to 5"),
        (
            &["carve", "mini/base.gguf", "--prompts", "calls.txt", "--keep", "3", "--by", "loss", "--out", "x.gguf"],
            "frozen dataset",
        ),
        (&["carve", "mini/base.gguf", "--prompts", "mini", "--out", "x.gguf"], "no frozen dataset"),
    ] {
        let out = mini.limbeck(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success() && said.contains(says), "{args:?}: {said}");
    }
}
