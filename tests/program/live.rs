//! A live model as an arm and as a teacher, from outside: a server on loopback that counts what it is asked. The evaluation goes on
//! after a kill, is replayed without a network, and never writes the key; a teacher's answers come back as traces.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

const KEY: &str = "sk-live-test-0123456789";

struct Server {
    url: String,
    asked: Arc<AtomicUsize>,
    /// Milliseconds before it answers.
    slow: Arc<AtomicU64>,
}

/// Answers with what `says` makes of the last message and of how often it was asked, status and all.
fn serve(says: impl Fn(&str, usize) -> (u16, String) + Send + Sync + 'static) -> Server {
    let server = Arc::new(tiny_http::Server::http("127.0.0.1:0").unwrap());
    let url = format!("http://{}/v1", server.server_addr().to_ip().unwrap());
    let (asked, slow) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
    let (counter, delay, says) = (Arc::clone(&asked), Arc::clone(&slow), Arc::new(says));
    let seen = Arc::new(std::sync::Mutex::new(std::collections::HashMap::<String, usize>::new()));
    for _ in 0..4 {
        let (server, counter, delay, says) =
            (Arc::clone(&server), Arc::clone(&counter), Arc::clone(&delay), Arc::clone(&says));
        let seen = Arc::clone(&seen);
        std::thread::spawn(move || {
            while let Ok(mut request) = server.recv() {
                counter.fetch_add(1, Ordering::SeqCst);
                std::thread::sleep(Duration::from_millis(delay.load(Ordering::SeqCst)));
                let bearer = format!("Bearer {KEY}");
                let known =
                    request.headers().iter().any(|h| h.field.equiv("authorization") && h.value == bearer.as_str());
                let mut body = String::new();
                request.as_reader().read_to_string(&mut body).unwrap();
                let body: Value = serde_json::from_str(&body).unwrap();
                let text = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap().to_owned();
                let before = {
                    let mut seen = seen.lock().unwrap();
                    let n = seen.entry(text.clone()).or_default();
                    *n += 1;
                    *n - 1
                };
                let (status, answer) = if known { says(&text, before) } else { (401, format!("no such key: {body}")) };
                let reply = match status {
                    200 => json!({"model": "live-2026-11", "system_fingerprint": "fp_7",
                        "choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
                        "usage": {"prompt_tokens": 100, "completion_tokens": 4}}),
                    _ => json!({"error": {"message": answer}}),
                };
                let _ = request.respond(tiny_http::Response::from_string(reply.to_string()).with_status_code(status));
            }
        });
    }
    Server { url, asked, slow }
}

impl Server {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// The recipe with a live arm and a gate on it.
fn add_arms(mini: &Mini, url: &str, more: &str) {
    let path = mini.path().join("mini/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let arms = format!(
        "[[eval.arm]]\nname = \"live\"\nkind = \"endpoint\"\nurl = \"{url}\"\nmodel = \"live\"\nkey_env = \"MINI_LIVE_KEY\"\n\
         shots = 2\nconcurrency = 3\nmax_spend = 5\n{more}\n\n\
         [[eval.gate]]\nname = \"like-live\"\nkind = \"non_inferiority\"\nagainst = \"live\"\nmargin = 0.9\n\n[promote]"
    );
    std::fs::write(&path, recipe.replace("[promote]", &arms)).unwrap();
    let prices = mini.path().join("mini/prices.toml");
    let table = std::fs::read_to_string(&prices).unwrap();
    std::fs::write(&prices, table + "\n[models.live]\ninput_per_1m = 10.0\noutput_per_1m = 20.0\n").unwrap();
}

fn limbeck(mini: &Mini, code: i32, args: &[&str]) -> (String, String) {
    let out = mini.command(args).env("MINI_LIVE_KEY", KEY).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!(out.status.code(), Some(code), "limbeck {args:?}\n--- stdout\n{stdout}\n--- stderr\n{stderr}");
    (stdout.into_owned(), stderr.into_owned())
}

fn report(mini: &Mini) -> Value {
    serde_json::from_slice(&std::fs::read(mini.run_dir().join("eval/report.json")).unwrap()).unwrap()
}

fn arm(report: &Value, name: &str) -> Value {
    report["arms"].as_array().unwrap().iter().find(|arm| arm["name"] == name).unwrap().clone()
}

fn fact(arm: &Value, what: &str) -> String {
    let found = arm["facts"].as_array().unwrap().iter().find(|fact| fact["what"] == what);
    found.map_or(String::new(), |fact| fact["value"].as_str().unwrap().to_owned())
}

/// No file under `path` holds the key.
fn never_written(path: &Path) {
    let mut files = Vec::new();
    mini::collect(path, &mut files);
    assert!(files.len() > 10);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|w| w == KEY.as_bytes()), "{}", file.display());
    }
}

#[test]
fn a_live_arm_survives_a_kill_and_is_replayed_without_a_network() {
    let mini = Mini::new(0.0001, true);
    let server = serve(|text, _| match text.len() % 10 {
        // Invalid, and not retried: the model's own doing.
        9 => (200, "I can't say".to_owned()),
        8 => (400, "this message is not allowed".to_owned()),
        n if n % 2 == 0 => (200, "age_limit".to_owned()),
        _ => (200, "card_acceptance.".to_owned()),
    });
    add_arms(&mini, &server.url, "");
    limbeck(&mini, 0, &["quantize", "mini", "--offline"]);

    // Offline there is nothing to go by.
    let (_, said) = limbeck(&mini, 1, &["eval", "mini", "--offline"]);
    assert!(said.contains("no kept reply") && said.contains("without --offline"), "{said}");
    let out = mini.command(&["eval", "mini"]).env_remove("MINI_LIVE_KEY").output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(said.contains("needs a key") && said.contains("export MINI_LIVE_KEY"), "{said}");
    assert_eq!(out.status.code(), Some(1));
    assert_eq!(server.asked(), 0);

    // Killed in the middle, it asks again at most what was in flight.
    server.slow.store(60, Ordering::SeqCst);
    let mut child = mini
        .command(&["eval", "mini"])
        .env("MINI_LIVE_KEY", KEY)
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    for _ in 0..600 {
        if server.asked() >= 12 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let killed_at = server.asked();
    assert!(killed_at >= 12, "{killed_at}");
    server.slow.store(0, Ordering::SeqCst);
    let recording = mini.path().join("replies.jsonl");
    let recorded = recording.to_str().unwrap();
    let (stdout, said) = limbeck(&mini, 0, &["eval", "mini", "--record", recorded]);
    let whole = report(&mini);
    let live = arm(&whole, "live");
    let rows = live["scores"]["rows"].as_u64().unwrap() as usize;
    assert!(rows > killed_at + 5, "the kill came too late to tell: {rows} rows, {killed_at} asked");
    // What was asked when the kill came may have been answered to nobody: three at a time.
    assert!(server.asked() <= rows + 3, "{} requests for {rows} rows", server.asked());
    assert!(said.contains("requests") && said.contains("kept from before"), "{said}");
    assert!(stdout.contains("live") && stdout.contains("spent USD"), "{stdout}");

    // Who answered, how often, for how much.
    assert_eq!(fact(&live, "model"), format!("live at {}", server.url));
    assert_eq!((fact(&live, "answered as"), fact(&live, "fingerprint")), ("live-2026-11".into(), "fp_7".into()));
    assert!(fact(&live, "prompt").starts_with("guided, 2 examples, SHA-256 "));
    assert!(fact(&live, "requests").contains("rejected: ") && fact(&live, "requests").contains(" refused"));
    assert!((live["cost"]["per_1k_calls"].as_f64().unwrap() - 1.08).abs() < 1e-9, "{}", live["cost"]);
    assert!(live["latency"]["p50_ms"].as_f64().unwrap() > 0.0);
    let invalid = live["scores"]["invalid"].as_u64().unwrap();
    assert!(invalid > 0 && (invalid as usize) < rows, "{invalid}");
    assert!(whole["gates"].as_array().unwrap().iter().any(|g| g["gate"] == "like-live" && g["verdict"] == "pass"));
    let page = std::fs::read_to_string(mini.run_dir().join("eval/report.html")).unwrap();
    assert!(page.contains("live, a live model") && page.contains("fp_7"));

    // Replayed elsewhere and with nobody there, the arm is the same to the last digit.
    let asked = server.asked();
    std::fs::remove_dir_all(mini.run_dir().join("eval")).unwrap();
    limbeck(&mini, 0, &["eval", "mini", "--offline", "--replay", recorded]);
    assert_eq!((arm(&report(&mini), "live"), server.asked()), (live, asked));
    // A recording of other questions is told from the network's faults.
    std::fs::remove_dir_all(mini.run_dir().join("eval")).unwrap();
    let other = ["eval", "mini", "--replay", recorded, "--set", "eval.arm.live.shots=3"];
    let (_, said) = limbeck(&mini, 1, &other);
    assert!(said.contains("recorded from other questions"), "{said}");
    never_written(mini.path());
}

#[test]
fn what_is_asked_again_tells_how_flaky_an_endpoint_is() {
    let mini = Mini::new(0.0001, true);
    // Asked once more, it says the other thing of every message of even length.
    let server = serve(|text, before| match (before > 0 && text.len() % 2 == 0, text.len() % 4 < 2) {
        (false, true) | (true, false) => (200, "age_limit".to_owned()),
        (false, false) | (true, true) => (200, "card_acceptance".to_owned()),
    });
    add_arms(&mini, &server.url, "asked_again = 10");
    limbeck(&mini, 0, &["eval", "mini"]);
    let first = report(&mini);
    let (live, rows) = (arm(&first, "live"), arm(&first, "live")["scores"]["rows"].as_u64().unwrap() as usize);
    assert_eq!(server.asked(), rows + 10);
    let told = fact(&live, "asked again");
    let others: u64 = told.split(' ').next().unwrap().parse().unwrap();
    assert!(told.contains(" of 10 rows answered otherwise (") && (1..10).contains(&others), "{told}");

    // What it is right on is the first answer's doing alone.
    limbeck(&mini, 0, &["eval", "mini", "--set", "eval.arm.live.asked_again=0"]);
    let second = arm(&report(&mini), "live");
    assert_eq!((&second["scores"], server.asked()), (&live["scores"], rows + 10), "what was answered is kept");
    assert_eq!(fact(&second, "asked again"), "");
}

#[test]
fn trainings_with_other_seeds_ask_nothing_twice() {
    let mini = Mini::new(0.0001, true);
    let server = serve(|_, _| (200, "age_limit".to_owned()));
    add_arms(&mini, &server.url, "");
    let (stdout, _) = limbeck(&mini, 0, &["seeds", "mini", "--seeds", "2", "--json"]);
    let json: Value = serde_json::from_str(&stdout).unwrap();
    let rows = json["spread"]["rows"].as_u64().unwrap() as usize;
    assert_eq!(server.asked(), rows);
    // Nor does the run itself, which has not been evaluated yet.
    limbeck(&mini, 0, &["eval", "mini", "--offline"]);
    assert_eq!((server.asked(), arm(&report(&mini), "live")["scores"]["rows"].as_u64()), (rows, Some(rows as u64)));
}

#[test]
fn a_teachers_answers_are_traces_and_what_it_is_not_sure_of_is_for_the_reviewers() {
    let mini = Mini::new(0.0001, true);
    let server = serve(|text, before| match text {
        t if t.starts_with("sure") => (200, "age_limit".to_owned()),
        t if t.starts_with("torn") => (200, ["age_limit", "atm_support", "card_acceptance"][before % 3].to_owned()),
        t if t.starts_with("odd") => (200, "no idea".to_owned()),
        t if t.starts_with("banned") => (400, "not allowed".to_owned()),
        _ => (200, "atm_support".to_owned()),
    });
    add_arms(&mini, &server.url, "");
    let mut lines: Vec<String> = (0..8).map(|i| json!({"id": i, "text": format!("sure {i}")}).to_string()).collect();
    lines.push(json!({"id": "mail", "customer": "c9", "text": "write to ann@example.org about my card"}).to_string());
    lines.extend([r#"{"id": "t", "text": "torn"}"#, r#"{"id": "o", "text": "odd"}"#].map(str::to_owned));
    lines.extend([r#"{"id": "b", "text": "banned"}"#, "not json", r#"{"id": 3, "text": "again"}"#].map(str::to_owned));
    std::fs::write(mini.path().join("unlabeled.jsonl"), lines.join("\n")).unwrap();
    let teach = ["teach", "mini", "--arm", "live", "--messages", "unlabeled.jsonl", "--set", "eval.arm.live.shots=0"];
    let with = |more: &[&'static str]| [&teach[..], more].concat();

    let (told, _) = limbeck(&mini, 0, &with(&["--samples", "3", "--dry-run"]));
    assert!(told.starts_with("12 messages, 36 requests to live at http://"), "{told}");
    assert_eq!(server.asked(), 0);
    // 36 requests at some .001 each: the cap stops it, and a higher one goes on.
    let (_, said) = limbeck(&mini, 1, &with(&["--samples", "3", "--max-spend", "0.02"]));
    assert!(said.contains("exceed the cap of 0.02") && said.contains("raise --max-spend"), "{said}");
    assert!(!mini.path().join("taught/traces.jsonl").exists());
    let (stdout, _) = limbeck(&mini, 0, &with(&["--samples", "3", "--json"]));
    let told: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!([&told["messages"], &told["taught"], &told["queued"], &told["rejected"]], [14, 9, 2, 3], "{told}");
    assert!(told["spent"].as_f64().unwrap() < 0.05);
    assert_eq!(server.asked(), 36, "no request twice; a refusal is kept like an answer");

    let read = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(mini.path().join("taught").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mail = read("traces.jsonl").into_iter().find(|trace| trace["id"] == "mail").unwrap();
    assert_eq!(mail["response"]["choices"][0]["message"]["content"], "atm_support");
    let messages = mail["request"]["messages"].as_array().unwrap();
    assert_eq!(
        (messages.len(), &messages[0]["content"]),
        (2, &json!("Classify.")),
        "the recipe's prompt, not the teacher's"
    );
    assert!(!messages[1]["content"].as_str().unwrap().contains("ann@"), "{}", messages[1]);
    let queue = read("queue.jsonl");
    assert!(queue.iter().all(|trace| trace["feedback"].as_str().unwrap().starts_with("teacher_disagreement")));
    let reasons: Vec<String> =
        read("rejected.jsonl").iter().map(|r| r["reason"].as_str().unwrap().to_owned()).collect();
    assert_eq!(reasons, ["invalid_json", "repeated", "refused"]);

    // What it wrote is read like any trace, and with a weight for unreviewed rows only what was agreed on is learnt from.
    let path = mini.path().join("mini/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let traces = "traces = [\"../taught/traces.jsonl\", \"../taught/queue.jsonl\"]";
    let recipe = recipe.replace("traces = [\"traces.jsonl\"]", traces).replace(
        "[review]\n",
        "[distill]\nunreviewed_weight = 0.5\n\n[review]\nmin_reviewed = { train = 0.0, valid = 0.0, calibration = 0.0, test = 0.0 }\n",
    );
    std::fs::write(&path, recipe).unwrap();
    let (stdout, _) = limbeck(&mini, 0, &["curate", "mini", "--json", "--set", "data.near_dup_threshold=1.0"]);
    assert!(stdout.contains("\"curate\"") || stdout.contains("curate"), "{stdout}");
    let accepted = std::fs::read(mini.run_dir().join("import/import.json")).unwrap();
    let accepted: Value = serde_json::from_slice(&accepted).unwrap();
    assert_eq!(accepted["accepted"], 11, "{accepted}");
    never_written(mini.path());
}

/// A provider's batch, by hand: what is sent is what would be asked, and what comes back ends as live answers do.
#[test]
fn a_batch_teaches_as_live_answers_do() {
    let mini = Mini::new(0.0001, true);
    let answer = |text: &str| match text {
        t if t.starts_with("odd") => "no idea".to_owned(),
        t if t.ends_with("1 ?") => "card_acceptance".to_owned(),
        _ => "age_limit".to_owned(),
    };
    let server = serve(move |text, _| match text.starts_with("banned") {
        true => (400, "not allowed".to_owned()),
        false => (200, answer(text)),
    });
    add_arms(&mini, &server.url, "");
    let prices = mini.path().join("mini/prices.toml");
    std::fs::write(&prices, std::fs::read_to_string(&prices).unwrap() + "batch_share = 0.5\n").unwrap();
    let mut texts: Vec<String> = (0..8).map(|i| format!("hello {i} ?")).collect();
    texts.extend(["odd", "banned"].map(str::to_owned));
    let lines: Vec<String> = texts.iter().map(|text| json!({"id": text, "text": text}).to_string()).collect();
    std::fs::write(mini.path().join("unlabeled.jsonl"), lines.join("\n") + "\nno json\n").unwrap();
    let with = |more: &[&'static str]| {
        let teach = ["teach", "mini", "--arm", "live", "--messages", "unlabeled.jsonl", "--samples", "2"];
        [&teach[..], &["--set", "eval.arm.live.shots=0"], more].concat()
    };
    let read = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(mini.path().join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };

    let (_, said) = limbeck(&mini, 1, &with(&["--batch-write", "batch.jsonl", "--max-spend", "0.001"]));
    assert!(said.contains("could cost about") && said.contains("raise --max-spend"), "{said}");
    // No key is needed for what is not sent.
    let out = mini.command(&with(&["--batch-write", "batch.jsonl", "--offline"])).env_remove("MINI_LIVE_KEY").output();
    let told = String::from_utf8(out.unwrap().stdout).unwrap();
    for part in ["1 lines could not be read", "20 requests to live", "at a batch's price", "batch.jsonl: 20 requests"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    let requests = read("batch.jsonl");

    // All but the last three requests, with one that failed and an error beside them.
    let result = |request: &Value| {
        let text = request["body"]["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
        let (status, body) = match text {
            "banned" => (400, json!({"error": {"message": "not allowed"}})),
            text => (
                200,
                json!({"model": "live-2026-11", "system_fingerprint": "fp_7", "usage": {"prompt_tokens": 100, "completion_tokens": 4},
                "choices": [{"message": {"role": "assistant", "content": answer(text)}, "finish_reason": "stop"}]}),
            ),
        };
        json!({"id": "batch_req", "custom_id": request["custom_id"], "response": {"status_code": status, "body": body}, "error": null})
    };
    let mut results: Vec<String> = requests[..17].iter().map(|request| result(request).to_string()).collect();
    results[4] = json!({"custom_id": requests[4]["custom_id"], "response": null,
        "error": {"code": "batch_expired", "message": "This request could not be executed."}})
    .to_string();
    results.push("{\"custom_id".to_owned());
    std::fs::write(mini.path().join("results.jsonl"), results.join("\n")).unwrap();
    let (told, said) =
        limbeck(&mini, 0, &with(&["--batch-read", "results.jsonl", "--batch-write", "rest.jsonl", "--json"]));
    assert!(said.contains("results.jsonl:5: batch_expired") && said.contains("results.jsonl:18: no JSON"), "{said}");
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["results"]["fates"], json!({"answered": 16, "failed": 1, "illegible": 1}), "{told}");
    assert_eq!([&told["results"]["missing"], &told["batches"][0]["requests"]], [4, 4]);
    assert_eq!([&told["messages"], &told["taught"], &told["rejected"]], [11, 7, 4], "{told}");
    assert_eq!(told["reasons"]["rejected: no_result"], 3);
    assert_eq!(read("rest.jsonl").len(), 4);

    // Results of something else are told from a batch that failed.
    let (_, said) = limbeck(&mini, 2, &with(&["--batch-read", "results.jsonl", "--temperature", "0.3"]));
    assert!(said.contains("none of the 18 lines is a result") && said.contains("same recipe"), "{said}");

    let rest: Vec<String> = read("rest.jsonl").iter().map(|request| result(request).to_string()).collect();
    std::fs::write(mini.path().join("more.jsonl"), rest.join("\n")).unwrap();
    let (told, _) = limbeck(&mini, 0, &with(&["--batch-read", "more.jsonl"]));
    for part in [
        "4 lines of results: 2 answered, 2 refused; none is missing",
        "8 of 11 messages are answered",
        "18 answered, in a batch",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(told.contains("spent: USD 0.0097"), "half of 18 calls at .00108: {told}");
    assert_eq!(server.asked(), 0);

    // Live, elsewhere: the same answers in the same files, but for what only a live call tells.
    limbeck(&mini, 0, &with(&["--out", "live"]));
    assert_eq!(server.asked(), 20);
    for name in ["traces.jsonl", "queue.jsonl", "rejected.jsonl"] {
        let told = |folder: &str| -> Vec<Value> {
            let mut lines = read(&format!("{folder}/{name}"));
            for line in &mut lines {
                line.as_object_mut().unwrap().retain(|key, _| !["time", "latency_ms"].contains(&key.as_str()));
            }
            lines
        };
        assert_eq!(told("taught"), told("live"), "{name}");
    }
    assert!(read("taught/traces.jsonl").iter().all(|trace| trace.get("latency_ms").is_none()));
    // And nothing is asked twice, whichever way it was answered.
    limbeck(&mini, 0, &with(&[]));
    assert_eq!(server.asked(), 20);
    never_written(mini.path());
}

/// Two models that vote: what they agree on is a trace, where they differ a person decides, and who said what is kept.
#[test]
fn several_arms_teach_together() {
    let mini = Mini::new(0.0001, true);
    let first = serve(|text, _| (200, if text.contains("torn") { "age_limit" } else { "atm_support" }.to_owned()));
    let second =
        serve(|text, _| (200, if text.contains("torn") { "card_acceptance" } else { "atm_support" }.to_owned()));
    add_arms(&mini, &first.url, "");
    let path = mini.path().join("mini/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let other = format!(
        "[[eval.arm]]\nname = \"other\"\nkind = \"endpoint\"\nurl = \"{}\"\nmodel = \"live\"\nkey_env = \"MINI_LIVE_KEY\"\n\n[promote]",
        second.url
    );
    std::fs::write(&path, recipe.replace("[promote]", &other)).unwrap();
    let lines: Vec<String> = (0..6)
        .map(|i| json!({"id": i, "text": format!("{} {i}", if i < 2 { "torn" } else { "clear" })}).to_string())
        .collect();
    std::fs::write(mini.path().join("unlabeled.jsonl"), lines.join("\n")).unwrap();
    let with = |more: &[&'static str]| {
        let teach = ["teach", "mini", "--arm", "live", "--arm", "other", "--messages", "unlabeled.jsonl"];
        [&teach[..], &["--set", "eval.arm.live.shots=0"], more].concat()
    };
    let (_, said) = limbeck(&mini, 2, &with(&["--arm", "live"]));
    assert!(said.contains("named twice"), "{said}");
    let (told, _) = limbeck(&mini, 0, &with(&["--dry-run", "--json"]));
    assert_eq!(serde_json::from_str::<Value>(&told).unwrap()["requests"], 12);
    // A cap that is typed holds for all of them together: some of twelve calls at .00108, and what the next might cost.
    let (_, said) = limbeck(&mini, 1, &with(&["--max-spend", "0.012"]));
    assert!(said.contains("exceed the cap") && said.contains("raise --max-spend"), "{said}");
    assert!(first.asked() == 6 && second.asked() < 6, "{} and {}", first.asked(), second.asked());
    let (told, _) = limbeck(&mini, 0, &with(&[]));
    for part in ["4 of 6 messages are answered, 2 go to the reviewers", "live · model", "other · model"] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert_eq!((first.asked(), second.asked()), (6, 6));
    let read = |name: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(mini.path().join("taught").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let torn = &read("queue.jsonl")[0];
    assert_eq!(
        torn["feedback"],
        "teacher_disagreement: 50 % of 2 draws agree; live says age_limit, other says card_acceptance"
    );
    let members = torn["limbeck_teacher"]["members"].as_array().unwrap();
    assert_eq!((&members[0]["arm"], &members[1]["answer"]), (&json!("live"), &json!("card_acceptance")));
    let clear = &read("traces.jsonl")[0];
    assert_eq!(
        (&clear["request"]["model"], &clear["limbeck_teacher"]["agreement"]),
        (&json!("live + live"), &json!(1.0))
    );

    // A batch has one model, so each arm has a file of its own; results are told apart by themselves.
    let (told, _) = limbeck(&mini, 0, &with(&["--batch-write", "batch.jsonl", "--out", "new"]));
    assert!(told.contains("batch-live.jsonl: 6 requests") && told.contains("batch-other.jsonl: 6 requests"), "{told}");
    never_written(mini.path());
}

/// The file as it would be served and a live arm under calls that come at random times; what was measured is kept, decides a gate and is
/// in the report.
#[test]
fn arms_are_tested_under_load_once() {
    let mini = Mini::new(0.0001, true);
    let server = serve(|_, _| (200, "age_limit".to_owned()));
    add_arms(&mini, &server.url, "\n[eval.load]\nrate = 40.0\ncalls = 120\narms = [\"live\"]\n");
    let path = mini.path().join("mini/recipe.toml");
    let recipe = std::fs::read_to_string(&path).unwrap();
    let gate = "[[eval.gate]]\nname = \"busy\"\nkind = \"latency\"\np95_ms = 60000\nunder_load = true\n\n[promote]";
    std::fs::write(&path, recipe.replace("[promote]", gate)).unwrap();
    // On a machine that others use a hundred calls may be worth too few; none of them is late.
    let eval = |more: &[&str]| {
        let out = mini.command(&[&["eval", "mini"], more].concat()).env("MINI_LIVE_KEY", KEY).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(matches!(out.status.code(), Some(0 | 7)), "{}", text(&out.stderr));
        (text(&out.stdout), text(&out.stderr))
    };
    let (stdout, said) = eval(&[]);
    assert!(
        said.contains("under load: 120 calls, 40 a second") && stdout.contains("Q8_0 under load"),
        "{said}\n{stdout}"
    );
    let first = report(&mini);
    let load = |name: &str| arm(&first, name)["load"].clone();
    let own = load("Q8_0");
    assert_eq!([&own["calls"], &own["answered"]], [120, 120], "{own:#}");
    assert!(own["latency"]["p95"]["ms"].as_f64() >= own["latency"]["p50"]["ms"].as_f64());
    assert!(own["latency"]["p99"].is_null(), "of 120 calls nobody knows it");
    assert!(own["first_token"]["p50"]["ms"].as_f64().unwrap() > 0.0, "{own:#}");
    assert_eq!(own["peak_memory_bytes"].as_u64() > Some(1 << 20), cfg!(target_os = "linux"), "{own:#}");
    let live = load("live");
    assert!(
        live["first_token"].is_null() && live["peak_memory_bytes"].is_null() && live["answered"] == 120,
        "{live:#}"
    );
    assert!(arm(&first, "base")["load"].is_null());
    let busy = first["gates"].as_array().unwrap().iter().find(|gate| gate["gate"] == "busy").unwrap().clone();
    assert!(busy["verdict"] != "fail" && busy["numbers"]["observed"] == 1.0, "{busy:#}");
    assert!(busy["reason"].as_str().unwrap().contains("At 40 calls a second"), "{busy:#}");

    // Its calls are paid for under the arm's cap, and are no answers: each row was asked once more.
    let rows = arm(&first, "live")["scores"]["rows"].as_u64().unwrap() as usize;
    assert_eq!(server.asked(), rows + 120 + 20, "rows, calls, and what warms up");
    std::fs::remove_file(mini.run_dir().join("eval/report.json")).unwrap();
    let (_, said) = eval(&[]);
    assert!(said.contains("the load test kept from before is used"), "{said}");
    assert_eq!(report(&mini), first);
    // Computed otherwise it is another server; the live model is not asked again.
    let (_, said) = eval(&["--set", "eval.arithmetic=f32"]);
    assert!(said.contains("arm Q8_0 under load: 120") && said.contains("arm live: the load test kept"), "{said}");
    let (_, said) =
        limbeck(&mini, 1, &["eval", "mini", "--set", "eval.load.calls=121", "--set", "eval.arm.live.max_spend=0.1"]);
    assert!(said.contains("exceed the cap of 0.1"), "{said}");
    never_written(mini.path());
}
