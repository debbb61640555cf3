//! The third kind of task from outside: a text for a message, the whole way, reviewed in another tool.

use crate::mini::Mini;
use crate::{parsed, said};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const GATES: &str = "kind = \"floor\"\nmin = 0.01\n[[eval.gate]]\nkind = \"floor\"\nmetric = \"validity\"\nmin = 0.01";

/// People take three in four answers as they are and write the others anew; returns how many were judged.
fn review(mini: &Mini) -> usize {
    mini.expect(5, &["run", "mini", "--offline"]);
    mini.expect(0, &["review", "mini", "--export", "tasks.json", "--format", "label-studio"]);
    let config = std::fs::read_to_string(mini.path().join("tasks.config.xml")).unwrap();
    assert!(
        config.contains("<Header value=\"The answer\"/>") && config.contains("<TextArea name=\"label\""),
        "{config}"
    );
    let mut tasks = parsed(&std::fs::read_to_string(mini.path().join("tasks.json")).unwrap());
    for (i, task) in tasks.as_array_mut().unwrap().iter_mut().enumerate() {
        let message = task["data"]["text"].as_str().unwrap().to_owned();
        let number = message.split_whitespace().find(|word| word.bytes().all(|b| b.is_ascii_digit())).unwrap();
        let text = if i % 4 == 0 { format!("Thanks.\n\n{number} is due.") } else { format!("Sorry for {number}.") };
        let value = json!({"text": [text]});
        task["annotations"] = json!([{
            "completed_by": 1,
            "result": [{"from_name": "label", "to_name": "text", "type": "textarea", "value": value}],
        }]);
    }
    std::fs::write(mini.path().join("answers.json"), tasks.to_string()).unwrap();
    let taken = parsed(&mini.expect(0, &["review", "mini", "--import", "answers.json", "--json"]));
    assert_eq!(taken["taken"], json!(tasks.as_array().unwrap().len()), "{taken}");
    tasks.as_array().unwrap().len()
}

#[test]
fn texts_go_the_whole_way() {
    let mini = Mini::replies(GATES);
    assert!(review(&mini) > 50);
    let code = mini.limbeck(&["run", "mini", "--offline"]).status.code();
    assert!(matches!(code, Some(0 | 4 | 7)), "{code:?}: a base with made-up weights may fail a gate");
    let report = parsed(&std::fs::read_to_string(mini.run_dir().join("eval/report.json")).unwrap());
    let arm = |name: &str| report["arms"].as_array().unwrap().iter().find(|a| a["name"] == name).unwrap().clone();
    let (frontier, tuned) = (arm("frontier"), arm("tuned"));
    let (exact, rouge) = (&frontier["scores"]["accuracy"], &frontier["texts"]["rouge_l"]);
    assert!(
        exact.as_f64().unwrap() < 1.0 && rouge.as_f64() > exact.as_f64(),
        "edited answers are partly right: {frontier:#}"
    );
    assert!(frontier["texts"]["rouge_l_interval"]["low"].as_f64() < rouge.as_f64());
    assert!(tuned["extraction"].is_null() && tuned["texts"]["validity"].is_number(), "{tuned:#}");
    let text = mini.limbeck(&["eval", "mini", "--offline"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    for part in ["ROUGE-L", "exact match", "valid", "ROUGE-L at least 1 %", "valid answers at least 1 %", "texts"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    assert!(!text.contains("linear"), "no linear model has a say about texts:\n{text}");
    let page = std::fs::read_to_string(mini.run_dir().join("eval/report.html")).unwrap();
    assert!(page.contains("How like the wanted texts") && !page.contains("Field by field"));

    // What people wrote is learnt, line breaks and all, and is in no card.
    let card = std::fs::read_to_string(mini.run_dir().join("dataset/dataset.json")).unwrap();
    assert!(card.contains("(text)") && !card.contains("Sorry for"), "{card}");
    mini.expect(0, &["data", "export", "mini", "--format", "chat", "--split", "train", "--out", "chat.jsonl"]);
    let chat = std::fs::read_to_string(mini.path().join("chat.jsonl")).unwrap();
    assert!(chat.lines().map(parsed).any(|row| {
        row["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().starts_with("Thanks.\n\n")
    }));
}

/// Whatever the gates say, the packaged text artifact answers.
#[test]
fn an_artifact_of_texts_answers_with_texts() {
    let mini = Mini::replies("name = \"fast\"\nkind = \"latency\"\np95_ms = 60000");
    review(&mini);
    mini.expect(0, &["run", "mini", "--offline"]);
    let manifest = parsed(&std::fs::read_to_string(mini.run_dir().join("package/manifest.json")).unwrap());
    assert_eq!((&manifest["task"]["kind"], &manifest["task"]["labels"]), (&json!("generate"), &json!([])));
    let lineage = std::fs::read_to_string(mini.run_dir().join("package/lineage/rows.jsonl")).unwrap();
    assert!(lineage.lines().all(|line| parsed(line)["target"].is_null()), "nobody's words leave with the artifact");
    let answer: Value = parsed(&mini.expect(0, &["score", "mini/staging", "17 is late", "--json"]));
    match answer["text"].as_str() {
        Some(text) => assert!(!text.is_empty() && answer["route"] == "serve", "{answer}"),
        None => assert!(answer["route"] == "escalate" && answer["fault"].is_string(), "{answer}"),
    }
    let made = mini.expect(0, &["export", "mini/staging", "--form", "llama-server", "--out", "served"]);
    let request = parsed(&std::fs::read_to_string(mini.path().join("served/request.json")).unwrap());
    assert!(request["response_format"].is_null() && request["grammar"].is_null(), "{made}");
}

/// Prefers what reviewers wrote anew to what was recorded to anything else, and thinks of nothing but the texts; gives its address and
/// how often it was asked.
fn judge() -> (String, Arc<AtomicUsize>) {
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", server.server_addr().to_ip().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        while let Ok(mut request) = server.recv() {
            counter.fetch_add(1, Ordering::SeqCst);
            let mut body = String::new();
            request.as_reader().read_to_string(&mut body).unwrap();
            let shown = parsed(&body)["messages"][1]["content"].as_str().unwrap().to_owned();
            let between = |name: &str| shown.split(&format!("<{name}-")).nth(1).unwrap().split_once('\n').unwrap().1;
            let number =
                between("asked").split_whitespace().find(|word| word.bytes().all(|b| b.is_ascii_digit())).unwrap();
            // The right number: a small model may learn the phrase, and no more.
            let recorded = format!("Sorry for {number}.");
            let worth = |name: &str| {
                ["Thanks.", &recorded].iter().position(|begin| between(name).starts_with(begin)).unwrap_or(2)
            };
            let verdict = match worth("A").cmp(&worth("B")) {
                std::cmp::Ordering::Less => "A",
                std::cmp::Ordering::Equal => "T",
                std::cmp::Ordering::Greater => "**B**",
            };
            let reply = json!({"model": "big-1", "choices": [{"message": {"content": verdict}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 200, "completion_tokens": 1}});
            let _ = request.respond(tiny_http::Response::from_string(reply.to_string()));
        }
    });
    (url, asked)
}

#[test]
fn a_judge_compares_texts_in_both_orders_and_is_replayed() {
    let mini = Mini::replies("kind = \"floor\"\nmin = 0.01");
    assert!(review(&mini) > 50);
    let (url, asked) = judge();
    let path = mini.path().join("mini/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let judge = format!(
        "[[eval.judge]]\nname = \"big\"\nkind = \"pairwise\"\nurl = \"{url}\"\nmodel = \"big\"\n\n\
         [[eval.gate]]\nkind = \"judge\"\njudge = \"big\"\nmin = 0.9\n\n[promote]"
    );
    std::fs::write(&path, recipe.replace("[promote]", &judge)).unwrap();
    let code = mini.limbeck(&["eval", "mini", "--record", "replies.jsonl"]).status.code();
    assert_eq!(code, Some(4), "a base with made-up weights is no match for what was recorded");
    let read = || parsed(&std::fs::read_to_string(mini.run_dir().join("eval/report.json")).unwrap());
    let report = read();
    let judged = report["judged"][0].clone();
    let n = |of: &str| judged[of].as_u64().unwrap();
    assert_eq!(n("wins"), 0, "{judged:#}");
    assert!(n("losses") > 20 && n("losses") + n("ties") == n("rows"), "{judged:#}");
    // Who wrote an answer anew is preferred, in both orders: this judge has no liking for a place.
    assert!(judged["reviewers"]["rows"].as_u64().unwrap() > 5, "{judged:#}");
    assert_eq!(judged["reviewers"]["with"], judged["reviewers"]["rows"]);
    assert_eq!([&judged["position"]["always_first"], &judged["position"]["always_second"]], [0, 0]);
    let gate = report["gates"].as_array().unwrap().iter().find(|gate| gate["gate"] == "judge").unwrap().clone();
    assert_eq!(gate["verdict"], "fail", "{gate:#}");
    let page = std::fs::read_to_string(mini.run_dir().join("eval/report.html")).unwrap();
    assert!(page.contains("by the judge big") && page.contains("criteria: The better answer"));

    // Asked once, kept, and replayed to the last digit with nobody there.
    let before = asked.load(Ordering::SeqCst);
    assert!(before > 40, "{before}");
    std::fs::remove_file(mini.run_dir().join("eval/report.json")).unwrap();
    mini.expect(4, &["eval", "mini"]);
    std::fs::remove_dir_all(mini.run_dir().join("eval")).unwrap();
    mini.expect(4, &["eval", "mini", "--offline", "--replay", "replies.jsonl"]);
    assert_eq!((read()["judged"][0].clone(), asked.load(Ordering::SeqCst)), (judged, before));
    let told = said(&mini, 3, &["explain", "mini", "--set", "eval.judge.big.against=nobody"]);
    assert!(told.contains("expected one of \"frontier\""), "{told}");
}

#[test]
fn what_a_text_has_no_place_for_is_named() {
    let mini = Mini::replies("kind = \"per_class_recall\"\nmin = 0.5");
    let told = said(&mini, 3, &["explain", "mini"]);
    assert!(told.contains("a gate of kind per_class_recall asks for labels, and a generation has none"), "{told}");
    let mini = Mini::replies("kind = \"floor\"\nmetric = \"accuracy\"\nmin = 0.5");
    let told = said(&mini, 3, &["explain", "mini"]);
    assert!(told.contains("take one of rouge_l, exact_match, validity"), "{told}");
    let told = said(&mini, 3, &["explain", "mini", "--set", "task.schema=schema.json"]);
    assert!(told.contains("`task.schema` is for tasks of kind extract, and `task.kind` is \"generate\""), "{told}");

    let text = mini.expect(0, &["init", "letters", "--generate"]);
    assert!(!text.contains("labels") && !text.contains("schema.json"), "{text}");
    let explained = mini.expect(0, &["explain", "letters"]);
    for part in ["generate", "rouge_l", "default under task.kind = generate"] {
        assert!(explained.contains(part), "no {part} in:\n{explained}");
    }
    // An extraction wants fields.
    let bookings = Mini::bookings("kind = \"floor\"\nmin = 0.5");
    std::fs::write(bookings.path().join("mini/schema.json"), "{\"type\": \"string\"}").unwrap();
    let told = said(&bookings, 3, &["explain", "mini"]);
    assert!(told.contains("asks for a text") && told.contains("task.kind = \"generate\""), "{told}");
}

/// Every role goes as far as the review; two go the whole way, on a base with made-up weights that learns nothing.
#[test]
fn roles_are_recipes_that_run() {
    let mini = Mini::replies("kind = \"floor\"\nmin = 0.1");
    let help = mini.expect(0, &["init", "--help"]);
    let roles = ["router", "schema-enforcer", "context-pruner", "loop-controller", "retry-safety", "output-validator"];
    for role in roles {
        assert!(help.contains(role), "{help}");
        let text = mini.expect(0, &["init", role, "--role", role]);
        assert!(text.contains("made-up calls") && text.contains(&format!("limbeck review {role}")), "{text}");
        let base = ["--set", "model.base=../mini/base.gguf", "--set", "model.revision=x", "--offline"];
        let run = |code: &[i32], more: &[&str]| {
            let args: Vec<&str> = ["run", role].iter().chain(&base).chain(more).copied().collect();
            let out = mini.limbeck(&args);
            let said = String::from_utf8_lossy(&out.stderr).into_owned();
            assert!(out.status.code().is_some_and(|c| code.contains(&c)), "{role}: {:?}\n{said}", out.status);
        };
        run(&[5], &[]);
        if !["retry-safety", "schema-enforcer"].contains(&role) {
            continue;
        }
        mini.expect(0, &["review", role, "--export", "open.json", "--format", "argilla"]);
        let mut records = parsed(&std::fs::read_to_string(mini.path().join("open.json")).unwrap());
        for record in records.as_array_mut().unwrap() {
            let said = record["suggestions"]["label"]["value"].clone();
            let answer = match said {
                // Slips with a preface have no valid answer to accept.
                Value::Null => json!({"reject": [{"value": "unsure", "user_id": "ann"}]}),
                label => json!({"label": [{"value": label, "user_id": "ann"}]}),
            };
            record["responses"] = answer;
        }
        std::fs::write(mini.path().join("open.json"), records.to_string()).unwrap();
        mini.expect(0, &["review", role, "--import", "open.json"]);
        let small = ["--set", "train.num_epochs=1", "--set", "task.max_new_tokens=24"];
        run(&[4, 7], if role == "schema-enforcer" { &small } else { &small[..2] });
        let report = std::fs::read_to_string(mini.path().join("runs").join(role).join("eval/report.json")).unwrap();
        let gates: Vec<Value> = parsed(&report)["gates"].as_array().unwrap().clone();
        let named = |name: &str| gates.iter().any(|gate| gate["gate"] == name);
        assert!(if role == "retry-safety" { named("unsafe-called-safe") } else { named("valid") }, "{gates:#?}");
        assert!(report.contains("made up by `limbeck init --role"), "the report says what it stands on");
    }
    let told = said(&mini, 2, &["init", "router", "--role", "router"]);
    assert!(told.contains("is there already"), "{told}");
}
