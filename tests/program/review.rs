//! The review from outside, without its screen: the plan, many reviewers on one store at once, other tools, hand-over.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod mini;

use mini::Mini;
use serde_json::{Value, json};
use std::process::Stdio;

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// The open items as tasks of Label Studio.
fn tasks(mini: &Mini) -> Vec<Value> {
    mini.expect(0, &["review", "mini", "--export", "tasks.json", "--format", "label-studio"]);
    parsed(&std::fs::read_to_string(mini.path().join("tasks.json")).unwrap()).as_array().unwrap().clone()
}

fn answered(tasks: &[Value], who: u64, label: impl Fn(&Value) -> String) -> String {
    let answer = |task: &Value| {
        let result =
            json!([{"from_name": "label", "to_name": "text", "type": "choices", "value": {"choices": [label(task)]}}]);
        let mut task = task.clone();
        task["annotations"] = json!([{"completed_by": who, "lead_time": 3.5, "result": result}]);
        task
    };
    Value::Array(tasks.iter().map(answer).collect()).to_string()
}

#[test]
fn a_team_reviews_one_store_at_once() {
    let mini = Mini::new(0.01, false);
    let plan = parsed(&mini.expect(0, &["review", "mini", "--plan", "--json"]));
    assert!(plan["population"].as_u64().unwrap() > 60, "{plan}");
    assert_eq!(plan["once"][0], json!({"reviews": 59, "accept": 0}));
    assert!(mini.expect(0, &["review", "mini", "--plan"]).contains("Looking as one goes"));

    // Four people answer in another tool; their answers arrive in four processes at once.
    let tasks = tasks(&mini);
    assert!(
        std::fs::read_to_string(mini.path().join("tasks.config.xml"))
            .unwrap()
            .contains("<Choice value=\"atm_support\"/>")
    );
    let recorded =
        |task: &Value| task["predictions"][0]["result"][0]["value"]["choices"][0].as_str().map(str::to_owned);
    let children: Vec<_> = (0..4_u64)
        .map(|who| {
            let part: Vec<Value> = tasks.iter().skip(who as usize).step_by(4).cloned().collect();
            let file = format!("answers-{who}.json");
            let text = answered(&part, who, |task| recorded(task).unwrap_or_else(|| "age_limit".to_owned()));
            std::fs::write(mini.path().join(&file), text).unwrap();
            mini.command(&["review", "mini", "--import", &file]).stdout(Stdio::null()).spawn().unwrap()
        })
        .collect();
    children.into_iter().for_each(|mut child| assert!(child.wait().unwrap().success()));
    let status = parsed(&mini.expect(0, &["review", "mini", "--status", "--json"]));
    assert_eq!(status["status"]["reviewed"].as_u64().unwrap(), tasks.len() as u64, "{status}");
    assert_eq!(status["decisions"].as_array().unwrap().len(), 5, "the recipe's own file and a stream each");
    assert_eq!(status["status"]["void"], json!({}));
    // The whole random share is reviewed: the first look that passes is told.
    assert!(status["certificate"]["reviews"].as_u64().unwrap() > 60);

    // A fifth answers the same items: what differs is disputed, and reading the file twice changes nothing.
    let text = answered(&tasks[..20], 9, |_| "age_limit".to_owned());
    std::fs::write(mini.path().join("fifth.json"), text).unwrap();
    let taken = parsed(&mini.expect(0, &["review", "mini", "--import", "fifth.json", "--json"]));
    assert_eq!(taken["taken"], json!(20));
    let again = parsed(&mini.expect(0, &["review", "mini", "--import", "fifth.json", "--json"]));
    assert_eq!((again["taken"].clone(), again["known"].clone()), (json!(0), json!(20)));
    let tally = parsed(&mini.expect(0, &["review", "mini", "--tally", "--json"]));
    assert_eq!(tally["agreement"]["items"], json!(20));
    assert!(tally["agreement"]["krippendorff_alpha"].as_f64().unwrap() < 0.5, "{tally}");
    assert_eq!(tally["reviewers"].as_array().unwrap().len(), 5);
    assert!(mini.expect(0, &["review", "mini", "--tally"]).contains("poor: sharpen the guidelines"));
    let status = mini.expect(5, &["review", "mini", "--status"]);
    assert!(status.contains(" disputed") && status.contains("--adjudicate"), "{status}");
    // Disputed rows are no reviewed rows: the run stops here.
    mini.expect(5, &["run", "mini"]);
}

#[test]
fn half_a_queue_is_handed_over_and_mistakes_are_told() {
    let mini = Mini::new(0.01, false);
    let handed = parsed(&mini.expect(0, &["review", "mini", "--reviewer", "ann", "--hand-over", "ben", "--json"]));
    let (from, to) = (handed["open"]["from"].as_u64().unwrap(), handed["open"]["to"].as_u64().unwrap());
    assert!(from + to > 100 && from.abs_diff(to) < (from + to) / 4, "{handed}");
    let text = mini.expect(0, &["review", "mini", "--reviewer", "ben", "--hand-over", "cat=1"]);
    assert!(text.contains(&format!("{to} are cat's now and 0 ben's")), "{text}");
    mini.expect(2, &["review", "mini", "--reviewer", "ann", "--hand-over", "ann"]);
    mini.expect(2, &["review", "mini", "--hand-over", "ben=2"]);
    std::fs::write(mini.path().join("keys.toml"), "acept = \"y\"\n").unwrap();
    let out = mini.limbeck(&["review", "mini", "--keys", "keys.toml"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("there is no action `acept`"));
    std::fs::write(mini.path().join("no.json"), "[{\"text\": 1}]").unwrap();
    let out = mini.limbeck(&["review", "mini", "--import", "no.json"]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("neither `data` (Label Studio) nor `fields` (Argilla)"));
}

/// A screen needs a terminal, and another's lock on the run is no reason to keep a reviewer waiting.
#[test]
fn a_run_at_work_does_not_lock_reviewers_out() {
    let mini = Mini::new(0.01, true);
    mini.expect(0, &["curate", "mini"]);
    let journal = limbeck_artifact::journal::Journal::open(&mini.run_dir().join("journal.jsonl"), "mini").unwrap();
    let status = mini.expect(0, &["review", "mini", "--status"]);
    assert!(status.contains("items decided"), "{status}");
    drop(journal);
    assert_eq!(mini.limbeck(&["review", "mini"]).status.code(), Some(1), "there is no terminal");
}
