//! Batch files: what is written is what would be sent, what comes back ends as live replies do, and nothing in a file of results is
//! taken for what it is not.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_artifact::dataset::Message;
use limbeck_distill::endpoint::{
    Api, Batched, Budget, Endpoint, EndpointPlan, Fate, MaxTokensKey, Price, Question, Reason, Replies, Sampling,
    Taken, read_batch,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn plan() -> EndpointPlan {
    EndpointPlan {
        budget: Budget { price: Some(Price { input_per_1m: 10.0, output_per_1m: 100.0 }), max_spend: None },
        batch_share: 0.5,
        ..EndpointPlan::plain("https://api.example.com/v1", "m", || "2026-11-23T00:00:00.000Z".to_owned())
    }
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 0.7,
        max_tokens: 20,
        max_tokens_key: MaxTokensKey::MaxCompletionTokens,
        logprobs: None,
        grammar: None,
    }
}

/// Two draws of each of so many messages.
fn questions(n: usize) -> Vec<Question> {
    let of = |i: usize| (0..2).map(move |sample| (i, sample));
    let question = |(i, sample)| Question { messages: vec![Message::new("user", &format!("message {i}"))], sample };
    (0..n).flat_map(of).map(question).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn answer(request: &Value, text: &str) -> Value {
    json!({"id": "batch_req_1", "custom_id": request["custom_id"], "error": null, "response": {"status_code": 200,
        "request_id": "r", "body": {"model": "m-2026", "created": 1_795_316_267, "system_fingerprint": "fp",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 10, "completion_tokens": 2}}}})
}

fn write(path: &Path, lines: &[Value]) -> PathBuf {
    std::fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    path.to_owned()
}

fn take(endpoint: &mut Endpoint, questions: &[Question], paths: &[PathBuf]) -> Taken {
    let sampling = sampling();
    read_batch(&mut [Batched { endpoint, questions, sampling: &sampling }], paths).unwrap()
}

#[test]
fn a_batch_is_what_would_be_sent_and_its_results_are_replies() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, batch) = (dir.path().join("replies.jsonl"), dir.path().join("batch.jsonl"));
    let questions = questions(3);
    let mut endpoint = Endpoint::new(plan(), Replies::open(&kept).unwrap());
    let files = endpoint.write_batch(&questions, &sampling(), &batch, 50_000).unwrap();
    assert_eq!((files.len(), files[0].requests), (1, 6));
    assert_eq!(files[0].bytes, std::fs::metadata(&batch).unwrap().len());
    let requests = lines(&batch);
    assert_eq!(
        requests[2]["body"],
        json!({"model": "m", "messages": [{"role": "user", "content": "message 1"}], "max_completion_tokens": 20, "temperature": 0.7})
    );
    assert_eq!((&requests[0]["method"], &requests[0]["url"]), (&json!("POST"), &json!("/v1/chat/completions")));
    let mut ids: Vec<&str> = requests.iter().map(|r| r["custom_id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert!(
        ids.len() == 6 && ids.iter().all(|id| id.len() == 64),
        "draws are told apart, and every provider takes the ids"
    );
    // Again it is the same file; another in its place is left alone.
    endpoint.write_batch(&questions, &sampling(), &batch, 50_000).unwrap();
    let refused = endpoint.write_batch(&questions[..2], &sampling(), &batch, 50_000).unwrap_err();
    assert!(refused.to_string().contains("holds another batch"), "{refused}");

    let results: Vec<Value> = requests.iter().rev().map(|r| answer(r, &format!("to {}", r["custom_id"]))).collect();
    let results = write(&dir.path().join("results.jsonl"), &results);
    let taken = take(&mut endpoint, &questions, std::slice::from_ref(&results));
    assert_eq!((taken.of(Fate::Answered), taken.lines()), (6, 6));
    // 6 · (10 · 10 + 2 · 100) / 1M, and half of it.
    assert!((endpoint.spent() - 0.0009).abs() < 1e-12, "{}", endpoint.spent());
    let asked = endpoint.kept(&questions, &sampling());
    for (end, request) in asked.ends.iter().zip(&requests) {
        let reply = end.as_ref().unwrap().as_ref().unwrap();
        assert_eq!(reply.text, format!("to {}", request["custom_id"]), "each result finds its question");
        assert_eq!((reply.at.as_str(), reply.batch, reply.latency_ms), ("2026-11-22T02:57:47.000Z", true, 0.0));
        assert_eq!((reply.model.as_deref(), reply.fingerprint.as_deref()), (Some("m-2026"), Some("fp")));
    }
    // What a batch answered is not asked live, nor reckoned otherwise later; reading twice changes nothing.
    let before = std::fs::read(&kept).unwrap();
    let mut later = Endpoint::new(plan(), Replies::open(&kept).unwrap());
    assert!((later.spent() - 0.0009).abs() < 1e-12);
    assert_eq!(later.estimate(&questions, &sampling()).0, 0);
    assert_eq!(later.ask_all(&questions, &sampling(), &mut |_| ()).unwrap().ends, asked.ends);
    assert_eq!(take(&mut later, &questions, &[results]).of(Fate::Known), 6);
    assert_eq!(std::fs::read(&kept).unwrap(), before);
    assert!(later.write_batch(&questions, &sampling(), &dir.path().join("rest.jsonl"), 9).unwrap().is_empty());
}

#[test]
fn what_is_out_of_order_is_told_by_line_and_what_is_missing_is_a_smaller_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (kept, batch) = (dir.path().join("replies.jsonl"), dir.path().join("batch.jsonl"));
    let questions = questions(6);
    let mut endpoint = Endpoint::new(plan(), Replies::open(&kept).unwrap());
    endpoint.write_batch(&questions, &sampling(), &batch, 50_000).unwrap();
    let requests = lines(&batch);
    let status = |i: usize, status: u16, message: &str| {
        json!({"custom_id": requests[i]["custom_id"], "error": null,
            "response": {"status_code": status, "body": {"error": {"message": message}}}})
    };
    let expired = |i: usize| {
        json!({"custom_id": requests[i]["custom_id"], "response": null,
            "error": {"code": "batch_expired", "message": "not run in\u{1b} time"}})
    };
    let other = Endpoint::new(EndpointPlan { model: "n".to_owned(), ..plan() }, Replies::default());
    let others = dir.path().join("other.jsonl");
    other.write_batch(&questions[..1], &sampling(), &others, 50_000).unwrap();
    let unusable = json!({"custom_id": requests[5]["custom_id"], "response": {"status_code": 200,
        "body": {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 0}}}});
    let results = write(
        &dir.path().join("results.jsonl"),
        &[
            answer(&requests[0], "a"),
            answer(&requests[0], "b"),
            answer(&lines(&others)[0], "of another model"),
            json!({"no": "id"}),
            json!([1]),
            status(1, 400, "not allowed"),
            status(2, 429, "slow down"),
            status(3, 403, "no such project"),
            expired(4),
            unusable,
            answer(&requests[6], "c"),
        ],
    );
    // A cut-off line, as a broken download leaves it, and one that is no text at all.
    let mut bytes = std::fs::read(&results).unwrap();
    bytes.extend_from_slice(b"\xff\xfe\x00\n\n{\"custom_id\": \"");
    std::fs::write(&results, bytes).unwrap();
    // An error file may come first; an answer is better than it.
    let errors = write(&dir.path().join("errors.jsonl"), &[status(6, 500, "broke"), expired(4)]);
    let taken = take(&mut endpoint, &questions, &[errors, results]);
    let fates: Vec<(&str, u64)> = taken.fates.iter().map(|(fate, n)| (fate.name(), *n)).collect();
    assert_eq!(
        fates,
        [("answered", 2), ("refused", 1), ("failed", 5), ("repeated", 2), ("unknown", 1), ("illegible", 4)],
        "{taken:#?}"
    );
    assert_eq!(taken.lines(), 15);
    let shown = |fate| taken.shown[&fate].join(" | ");
    assert_eq!(shown(Fate::Unknown), "results.jsonl:3: its custom_id is none of ours");
    assert_eq!(
        shown(Fate::Repeated),
        "results.jsonl:2: answered before | results.jsonl:9: batch_expired: not run in\\u{1b} time",
        "what a terminal would obey is shown"
    );
    assert!(
        shown(Fate::Illegible).contains("results.jsonl:4: it has no custom_id | results.jsonl:5: it has no custom_id")
    );
    assert!(
        shown(Fate::Illegible).contains("results.jsonl:12: no JSON") && shown(Fate::Illegible).contains(":14: no JSON")
    );
    assert_eq!(shown(Fate::Refused), "results.jsonl:6: it refused with 400: not allowed");

    let asked = endpoint.kept(&questions, &sampling());
    let text = |i: usize| asked.ends[i].as_ref().unwrap().as_ref().map(|reply| reply.text.clone());
    assert_eq!((text(0).unwrap(), text(6).unwrap()), ("a".to_owned(), "c".to_owned()), "the first answer stands");
    let rejected = |i: usize| {
        let rejection = text(i).unwrap_err();
        (rejection.reason, rejection.again)
    };
    assert_eq!(rejected(1), (Reason::Refused, false));
    assert_eq!([rejected(2), rejected(3)], [(Reason::Busy, true), (Reason::Refused, true)]);
    assert_eq!([rejected(4), rejected(5)], [(Reason::NoResult, true), (Reason::NoChoice, true)]);
    assert_eq!(asked.ends[7], None);
    // Two answers at half the price, and the tokens of the one that could not be used.
    assert!((endpoint.spent() - (2.0 * 0.00015 + 0.00009)).abs() < 1e-12, "{}", endpoint.spent());

    let rest = dir.path().join("rest.jsonl");
    let files = endpoint.write_batch(&questions, &sampling(), &rest, 50_000).unwrap();
    assert_eq!(files[0].requests, 12 - 3, "neither what is answered nor what was refused");
    assert!(lines(&rest).iter().all(|request| requests.contains(request)));
    let answers: Vec<Value> = lines(&rest).iter().map(|request| answer(request, "d")).collect();
    let answers = write(&dir.path().join("rest-results.jsonl"), &answers);
    assert_eq!(take(&mut endpoint, &questions, &[answers]).of(Fate::Answered), 9);
    assert_eq!(endpoint.estimate_batch(&questions, &sampling()).0, 0);
}

#[test]
fn a_large_batch_is_several_files_and_older_models_have_their_address() {
    let dir = tempfile::tempdir().unwrap();
    let batch = dir.path().join("deep/batch.jsonl");
    let endpoint = Endpoint::new(EndpointPlan { api: Api::Completions, ..plan() }, Replies::default());
    let files = endpoint.write_batch(&questions(5), &sampling(), &batch, 4).unwrap();
    let told: Vec<(String, usize)> =
        files.iter().map(|f| (f.path.file_name().unwrap().to_string_lossy().into_owned(), f.requests)).collect();
    assert_eq!(
        told,
        [("batch-001.jsonl", 4), ("batch-002.jsonl", 4), ("batch-003.jsonl", 2)].map(|(n, r)| (n.to_owned(), r))
    );
    let all: Vec<Value> = files.iter().flat_map(|file| lines(&file.path)).collect();
    assert_eq!((all.len(), &all[0]["url"]), (10, &json!("/v1/completions")));
    // Where one of them can't be written, none is.
    std::fs::write(dir.path().join("deep/other-003.jsonl"), "mine").unwrap();
    let refused = endpoint.write_batch(&questions(5), &sampling(), &dir.path().join("deep/other.jsonl"), 4);
    assert!(refused.is_err() && !dir.path().join("deep/other-001.jsonl").exists());
}

/// Prompts of a megabyte: no file has more than 200 MB.
#[test]
fn no_file_is_larger_than_providers_take() {
    let dir = tempfile::tempdir().unwrap();
    let long = "word ".repeat(200_000);
    let questions: Vec<Question> = (0..205)
        .map(|i| Question { messages: vec![Message::new("user", &format!("{i} {long}"))], sample: 0 })
        .collect();
    let endpoint = Endpoint::new(plan(), Replies::default());
    let files = endpoint.write_batch(&questions, &sampling(), &dir.path().join("b.jsonl"), 50_000).unwrap();
    assert_eq!(files.iter().map(|f| f.requests).collect::<Vec<_>>(), [199, 6]);
    assert!(files.iter().all(|f| f.bytes <= 200_000_000 && f.bytes == std::fs::metadata(&f.path).unwrap().len()));
}
