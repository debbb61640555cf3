//! The second and, in a file of its own, the third kind of task from outside: fields out of a message, the whole way, and what a person reads where something
//! is wrong with an answer, a decision, the schema or the recipe.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod generate;
mod mini;

use mini::Mini;
use serde_json::{Value, json};
use std::io::Write;
use std::process::Stdio;

const FAST: &str = "name = \"fast\"\nkind = \"latency\"\np95_ms = 60000";

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn said(mini: &Mini, code: i32, args: &[&str]) -> String {
    let out = mini.limbeck(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "limbeck {args:?}\n{said}");
    said
}

#[test]
fn fields_go_the_whole_way() {
    let mini = Mini::bookings(FAST);
    let text = mini.expect(0, &["run", "mini", "--offline"]);
    for part in ["exact match", "field F1", "valid", "hallucinated", "first_name", "all fields", "F1 of frontier"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    assert!(!text.contains("linear"), "no linear model has a say about fields:\n{text}");
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let both = ["Answers are kept to the schema while they are written: ", "The same model, answers written freely: "];
    assert!(both.iter().all(|part| plain.contains(part)), "what the schema does is told:\n{text}");

    let report = parsed(&std::fs::read_to_string(mini.run_dir().join("eval/report.json")).unwrap());
    assert_eq!(report["fields"], json!(["date", "time", "people", "first_name", "last_name"]));
    let arm = |name: &str| report["arms"].as_array().unwrap().iter().find(|a| a["name"] == name).unwrap().clone();
    let frontier = arm("frontier");
    let (exact, validity) = (&frontier["scores"]["accuracy"], &frontier["extraction"]["validity"]);
    assert!(exact.as_f64().unwrap() > 0.8 && exact.as_f64() <= validity.as_f64(), "{exact} {validity}");
    assert!(frontier["calibration"].is_null(), "a recorded answer has no confidence");
    assert_eq!(arm("tuned")["calibration"]["fitted_rows"], json!(0), "only the candidate answers the calibration rows");
    // The tiny base learns nothing; what it writes is measured all the same.
    assert_eq!(arm("base")["scores"]["rows"], frontier["scores"]["rows"]);

    // Whatever a model knows, what it is kept to is the beginning of a valid answer; cut off where there is no room.
    let answers = |arm: &str| -> Vec<String> {
        let text = std::fs::read_to_string(mini.run_dir().join(format!("eval/predictions/{arm}.jsonl"))).unwrap();
        text.lines().filter_map(|line| Some(parsed(line)["said"]["text"].as_str()?.to_owned())).collect()
    };
    let schema = limbeck_artifact::schema::Schema::parse(
        &std::fs::read_to_string(mini.path().join("mini/schema.json")).unwrap(),
    )
    .unwrap();
    let begins = |text: &String| {
        let mut grammar = schema.grammar("").unwrap();
        let start = Some(grammar.start());
        let bytes = text.trim_end_matches('\u{fffd}').bytes();
        bytes.fold(start, |at, byte| at.and_then(|at| grammar.after(at, byte))).is_some()
    };
    for name in ["base", "tuned", "Q8_0"] {
        let said = answers(name);
        assert!(!said.is_empty() && said.iter().all(begins), "{name}: {said:?}");
    }
    assert!(!answers("unconstrained").iter().all(begins), "written freely");
    assert_eq!(report["constraint"], json!({"constrained": true, "other": "unconstrained"}));
    let rivals = report["comparisons"].as_array().unwrap().iter();
    let told: Vec<&Value> =
        rivals.filter(|pair| pair["arm"] == "unconstrained" || pair["against"] == "unconstrained").collect();
    assert!(told.len() == 1 && told[0]["arm"] == "Q8_0", "compared to the candidate only: {told:?}");

    let card = parsed(&std::fs::read_to_string(mini.run_dir().join("dataset/dataset.json")).unwrap());
    let schema = std::fs::read_to_string(mini.path().join("mini/schema.json")).unwrap();
    assert_eq!((&card["labels"], card["schema"].as_str()), (&json!([]), Some(schema.as_str())));
    assert!(card["splits"]["train"]["labels"].as_object().unwrap().contains_key("people"), "{card:#}");
    let shown = mini.expect(0, &["data", "show", "mini"]);
    assert!(shown.contains("(no field)"), "{shown}");

    // No guest's words leave with the artifact.
    let lineage = std::fs::read_to_string(mini.run_dir().join("package/lineage/rows.jsonl")).unwrap();
    assert!(lineage.lines().all(|line| parsed(line)["target"].is_null()));
    let manifest = parsed(&std::fs::read_to_string(mini.run_dir().join("package/manifest.json")).unwrap());
    assert_eq!((&manifest["task"]["kind"], &manifest["task"]["max_new_tokens"]), (&json!("extract"), &json!(24)));
    assert_eq!(manifest["task"]["constrained"], json!(true), "served as it was evaluated");
    let answer = parsed(&mini.expect(0, &["score", "mini/staging", "a table for 4 at 6pm", "--json"]));
    assert!(
        answer["route"] == "escalate" && (answer["fields"].is_object() || answer["fault"] == "it was cut off"),
        "{answer}"
    );

    // A stream: answers in the order of the lines, those of one batch the same as one by one.
    let lines: Vec<String> = (0..7)
        .map(|i| match i {
            3 => "no question".to_owned(),
            i => json!({"id": i, "text": format!("a table for {i} at {i}pm")}).to_string(),
        })
        .collect();
    let stream = |batch: &str| {
        let mut command = mini.command(&["score", "mini/staging", "--jsonl", "--batch", batch]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(lines.join("\n").as_bytes()).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success());
        String::from_utf8(out.stdout).unwrap().lines().map(parsed).collect::<Vec<_>>()
    };
    let (alone, together) = (stream("1"), stream("64"));
    let bare = |answer: &Value| {
        let mut answer = answer.clone();
        assert!(answer["error"].is_string() || answer["latency_ms"].as_f64().unwrap() > 0.0);
        answer.as_object_mut().unwrap().retain(|key, _| key != "latency_ms" && key != "batch");
        answer
    };
    assert_eq!(alone.iter().map(bare).collect::<Vec<_>>(), together.iter().map(bare).collect::<Vec<_>>());
    let ids: Vec<&Value> = alone.iter().map(|a| &a["id"]).collect();
    assert_eq!(ids, [&json!(0), &json!(1), &json!(2), &Value::Null, &json!(4), &json!(5), &json!(6)]);
    assert!(alone[3]["error"].as_str().unwrap().contains("not a question") && alone[3]["line"] == 4, "{}", alone[3]);
    assert!(alone.iter().all(|answer| answer["batch"].is_null()));

    let again = parsed(&mini.expect(0, &["run", "mini", "--offline", "--json"]));
    assert!(again["stages"].as_array().unwrap().iter().take(7).all(|s| s["cached"] == true), "{again:#}");
    // Another schema is other data.
    std::fs::write(mini.path().join("mini/schema.json"), schema.replace("the day", "the very day")).unwrap();
    let curated = parsed(&mini.expect(0, &["curate", "mini", "--json"]));
    let cached: Vec<&Value> = curated["stages"].as_array().unwrap().iter().map(|s| &s["cached"]).collect();
    assert_eq!(cached, [&json!(true), &json!(false)], "{curated:#}");
}

#[test]
fn answers_are_written_freely_where_that_is_asked_for() {
    let mini = Mini::bookings(FAST);
    let free = ["--set", "task.constrained=false", "--set", "train.num_epochs=1"];
    let text = mini.expect(0, &[&["run", "mini", "--offline"], &free[..]].concat());
    let plain = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let both = ["Answers are written freely: ", "The same model, answers kept to the schema while they are written: "];
    assert!(both.iter().all(|part| plain.contains(part)), "{text}");
    let manifest = parsed(&std::fs::read_to_string(mini.run_dir().join("package/manifest.json")).unwrap());
    assert_eq!(manifest["task"]["constrained"], json!(false));
    let explained = mini.expect(0, &["explain", "mini"]);
    assert!(explained.contains("constrained                  true"), "{explained}");

    let path = mini.path().join("mini/schema.json");
    let schema = std::fs::read_to_string(&path).unwrap();
    std::fs::write(
        &path,
        schema.replacen("{\"type\": \"string\",", "{\"type\": \"string\", \"pattern\": \"\\\\b\",", 1),
    )
    .unwrap();
    let told = said(&mini, 3, &["explain", "mini"]);
    for part in ["properties.date.pattern", "looks around", "task.constrained = false", "recipe.toml:7"] {
        assert!(told.contains(part), "no {part} in:\n{told}");
    }
    mini.expect(0, &["explain", "mini", "--set", "task.constrained=false"]);
    // The cure leads to the end, and says what it can't measure.
    let told = said(&mini, 0, &["run", "mini", "--offline", "--set", "task.constrained=false"]);
    assert!(told.contains("what keeping answers to the schema would do is not measured"), "{told}");
    let told = said(&mini, 3, &["explain", "mini", "--set", "task.kind=generate"]);
    assert!(told.contains("`task.constrained`") || told.contains("`task.schema`"), "{told}");
}

#[test]
fn gates_of_fields_say_so() {
    let mini = Mini::bookings(
        "kind = \"floor\"\nmin = 0.9\n[[eval.gate]]\nkind = \"floor\"\nmetric = \"validity\"\nmin = 0.9",
    );
    let text = mini.expect(4, &["run", "mini", "--offline", "--set", "train.num_epochs=1"]);
    assert!(text.contains("exact match at least 90 %") && text.contains("valid answers at least 90 %"), "{text}");
}

#[test]
fn the_queue_begins_with_answers_that_are_not_valid() {
    let mini = Mini::bookings(FAST);
    mini.expect(5, &["review", "mini", "--status", "--set", "review.decisions=[]"]);
    let args = ["review", "mini", "--export", "tasks.json", "--format", "label-studio", "--set", "review.decisions=[]"];
    mini.expect(0, &args);
    let tasks = parsed(&std::fs::read_to_string(mini.path().join("tasks.json")).unwrap());
    let config = std::fs::read_to_string(mini.path().join("tasks.config.xml")).unwrap();
    assert!(config.contains("<TextArea name=\"label\"") && config.contains("first_name"), "{config}");
    let pool: Vec<&Value> = tasks
        .as_array()
        .unwrap()
        .iter()
        .filter(|t| t["data"]["split"] == "train" || t["data"]["split"] == "valid")
        .collect();
    let valid = |task: &&Value| !task["predictions"].as_array().unwrap().is_empty();
    let by_value: Vec<&&Value> = pool.iter().filter(|t| t["data"]["source"] != "random").collect();
    let invalid = by_value.iter().take_while(|t| !valid(t)).count();
    assert!(invalid > 0 && by_value[invalid..].iter().all(|t| valid(t)), "invalid answers come first: {invalid}");

    // Answers of another tool are held to the schema.
    let (id, mut tasks) = (tasks[0]["data"]["item"].clone(), tasks);
    let written =
        |text: &str| json!([{"from_name": "label", "to_name": "text", "type": "textarea", "value": {"text": [text]}}]);
    tasks[0]["annotations"] = json!([{"completed_by": 1, "result": written("{\"time\": \"6pm\", \"date\": null}")}]);
    tasks[1]["annotations"] = json!([{"completed_by": 1, "result": written("{\"party\": 2}")}]);
    std::fs::write(mini.path().join("answers.json"), tasks.to_string()).unwrap();
    let taken = parsed(&mini.expect(0, &["review", "mini", "--import", "answers.json", "--json"]));
    assert_eq!(taken["taken"], json!(1), "{taken}");
    assert!(taken.to_string().contains("not valid under the schema"), "{taken}");
    let mut files = Vec::new();
    mini::collect(&mini.run_dir().join("review"), &mut files);
    let streams: Vec<String> = files
        .iter()
        .filter(|f| f.extension().is_some_and(|e| e == "jsonl") && !f.ends_with("queue.jsonl"))
        .map(|f| std::fs::read_to_string(f).unwrap())
        .collect();
    let decision = streams.iter().flat_map(|s| s.lines()).map(parsed).find(|d| d["item"] == id).unwrap();
    assert_eq!(decision["label"], json!("{\"time\":\"6pm\"}"), "in canonical form");
}

#[test]
fn a_decision_that_the_schema_refuses_is_named() {
    let mini = Mini::bookings(FAST);
    let path = mini.path().join("mini/decisions.jsonl");
    let text = std::fs::read_to_string(&path).unwrap();
    let traces = std::fs::read_to_string(mini.path().join("mini/traces.jsonl")).unwrap();
    let wrong = text
        .lines()
        .find(|line| line.contains("\"correct\"") && traces.contains(parsed(line)["item"].as_str().unwrap()))
        .unwrap();
    let mut decision = parsed(wrong);
    decision["label"] = json!("{\"people\":4}");
    std::fs::write(&path, text.replace(wrong, &decision.to_string())).unwrap();
    let told = said(&mini, 5, &["run", "mini", "--offline"]);
    assert!(told.contains("people: a text is needed, not 4"), "{told}");
    assert!(told.contains(decision["item"].as_str().unwrap()) && told.contains("restaurant8k-gold"), "{told}");
    assert!(told.contains("its answer is not valid under the schema"), "{told}");
}

#[test]
fn a_schema_that_is_not_there_or_none_is_named_with_its_line() {
    let mini = Mini::bookings(FAST);
    let path = mini.path().join("mini/schema.json");
    std::fs::write(&path, "{\"type\": \"object\", \"properties\": {\"a\": {\"type\": \"strin\"}}}").unwrap();
    let told = said(&mini, 3, &["explain", "mini"]);
    assert!(told.contains("properties.a") && told.contains("recipe.toml:7"), "{told}");
    std::fs::remove_file(&path).unwrap();
    let told = said(&mini, 3, &["run", "mini"]);
    assert!(told.contains("schema.json, which can't be read") && told.contains("recipe.toml:7"), "{told}");
    assert!(told.contains("limbeck init NAME --fields"), "{told}");
}

#[test]
fn init_writes_a_recipe_and_a_schema_for_fields() {
    let mini = Mini::bookings(FAST);
    let text = mini.expect(0, &["init", "pulls", "--fields", "order,amount"]);
    assert!(text.contains("schema.json"), "{text}");
    let explained = mini.expect(0, &["explain", "pulls"]);
    for part in ["extract", "schema.json", "max_new_tokens               256", "default under task.kind = extract"] {
        assert!(explained.contains(part), "no {part} in:\n{explained}");
    }
    assert!(!explained.contains("labels"), "{explained}");
    said(&mini, 2, &["init", "pulls", "--fields", "a,a"]);
    said(&mini, 2, &["init", "pulls", "--fields", "a", "--labels", "b"]);
    let told = said(&mini, 3, &["explain", "mini", "--set", "task.kind=classify"]);
    assert!(
        told.contains("`task.labels` is missing") && told.contains("`task.schema` is for tasks of kind extract"),
        "{told}"
    );
}
