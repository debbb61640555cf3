//! A sweep gives the better trials more steps, on the schedule of the whole training; killed anywhere, it goes on to the
//! same result; and its winner is what a plain run with the same `--set` makes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::Value;
use std::process::Stdio;
use std::time::{Duration, Instant};

const SWEEP: [&str; 6] = ["sweep", "mini", "--offline", "--json", "--param", "train.learning_rate=1e-4,3e-3,0.010"];

/// The result without what measures time.
fn result(text: &str) -> Value {
    let mut json: Value = serde_json::from_str(text).unwrap();
    for trial in json["trials"].as_array_mut().unwrap() {
        assert!(trial["wall_ms"].take().is_u64());
    }
    json
}

#[test]
fn a_sweep_chooses_by_valid_loss_and_its_winner_can_be_made_again() {
    let mini = Mini::new(0.0001, true);
    let json = result(&mini.expect(0, &SWEEP));
    let trials = json["trials"].as_array().unwrap();
    assert_eq!(trials.len(), 3);
    let rungs: Vec<u64> = trials.iter().map(|t| t["rung"].as_u64().unwrap()).collect();
    assert_eq!(rungs, [2, 1, 1], "one of three goes on");
    let (best, others) = trials.split_first().unwrap();
    assert_eq!(best["step"], best["total"]);
    let total = best["total"].as_u64().unwrap();
    assert!(others.iter().all(|t| t["step"].as_u64().unwrap() == total.div_ceil(3)));
    assert!(others[0]["valid_loss"].as_f64() <= others[1]["valid_loss"].as_f64());
    assert_eq!(json["command"], format!("limbeck run mini --set {}", best["set"][0].as_str().unwrap()));

    // It was the best of the first round, too.
    let first_rung = |trial: &Value| -> f64 {
        let path =
            mini.path().join(trial["run"].as_str().unwrap()).join(format!("rungs/step-{:08}.json", total.div_ceil(3)));
        serde_json::from_str::<Value>(&std::fs::read_to_string(path).unwrap()).unwrap()["valid_loss"].as_f64().unwrap()
    };
    assert!(others.iter().all(|t| first_rung(best) <= first_rung(t)));

    // The data was read, curated and frozen once.
    for trial in trials {
        let run = mini.path().join(trial["run"].as_str().unwrap());
        let journal = std::fs::read_to_string(run.join("journal.jsonl")).unwrap();
        for stage in ["import", "curate", "review"] {
            assert!(!journal.contains(&format!("\"stage\":\"{stage}\",\"event\":\"stage_started\"")), "{stage}");
        }
        assert_eq!(run.join("train/adapter").exists(), trial["rung"] == 2, "an adapter comes of a whole training");
    }
    // A trial is a run like any other.
    let name = best["run"].as_str().unwrap();
    let watched: Value = serde_json::from_str(&mini.expect(0, &["watch", name, "--json"])).unwrap();
    assert_eq!(watched["train"]["losses"].as_array().unwrap().len() as u64, total);

    // Stopped and gone on with, it is the bytes of a training that nobody stopped.
    let set = best["set"][0].as_str().unwrap();
    mini.expect(0, &["train", "mini", "--offline", "--set", set, "--runs-dir", "plain"]);
    for file in ["train/adapter/adapter_model.safetensors", "train/loss.jsonl"] {
        let plain = std::fs::read(mini.path().join("plain/mini").join(file)).unwrap();
        assert_eq!(std::fs::read(mini.path().join(name).join(file)).unwrap(), plain, "{file}");
    }

    let words: Vec<&str> = SWEEP.into_iter().filter(|word| *word != "--json").collect();
    let text = mini.expect(0, &words);
    assert!(text.contains("the test split was not read") && text.contains("Use it"), "{text}");
}

#[test]
fn killed_anywhere_it_goes_on_to_the_same_result() {
    let unbroken = Mini::new(0.0001, true);
    let want = result(&unbroken.expect(0, &SWEEP));
    let broken = Mini::new(0.0001, true);
    let mut killed = 0;
    for wait_ms in [300, 500, 700, 900, 1100, 1300] {
        let mut child = broken.command(&SWEEP).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_millis(wait_ms);
        while Instant::now() < until && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(5));
        }
        killed += usize::from(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(killed >= 2, "only {killed} kills hit a running process");
    assert_eq!(result(&broken.expect(0, &SWEEP)), want);
    assert_eq!(result(&broken.expect(0, &SWEEP)), want, "and once more, all of it done before");
}

#[test]
fn mistakes_are_told_before_the_first_trial() {
    let mini = Mini::new(0.0001, true);
    let sweep = |param: &str| mini.limbeck(&["sweep", "mini", "--offline", "--param", param]);
    for (param, code, said) in [
        ("train.learning_rate=1e-4..1e-2", 2, "--samples"),
        ("data.min_chars=1,2", 2, "train"),
        ("train.learning_rate=1e-3,7", 3, "learning_rate"),
        ("train.lerning_rate=1e-3", 3, "learning_rate"),
    ] {
        let out = sweep(param);
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(code), "{param}: {stderr}");
        assert!(stderr.contains(said), "{param}: {stderr}");
    }
    assert!(!mini.run_dir().exists());
}
