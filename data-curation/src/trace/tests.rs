use super::*;

const USER: &str = r#"{"role":"user","content":"hello"}"#;

fn line(request: &str, response: &str) -> String {
    format!(r#"{{"id":"t1","request":{request},"response":{response}}}"#)
}

fn reason(line: &str) -> RejectReason {
    parse(line.as_bytes()).unwrap_err().reason
}

#[test]
fn reads_a_recorded_call() {
    let trace = parse(
        br#"{"id":"t1","time":"2026-02-03T10:00:00+01:00","customer":"c1","request":{"model":"m","messages":
        [{"role":"system","content":"s"},{"role":"user","content":[{"type":"text","text":"hi"}]}]},"response":{"model":"m-1",
        "choices":[{"message":{"role":"assistant","content":"a"},"finish_reason":"stop"}],
        "usage":{"prompt_tokens":12,"completion_tokens":3}},"latency_ms":812.5,"feedback":"thumbs_up"}"#,
    )
    .unwrap();
    assert_eq!(trace.at.as_deref(), Some("2026-02-03T09:00:00Z"));
    assert_eq!(visible_message(&trace.messages), "hi");
    assert_eq!((trace.answer.as_str(), trace.model.as_str()), ("a", "m-1"));
    assert_eq!((trace.prompt_tokens, trace.latency_ms), (Some(12), Some(812.5)));
}

#[test]
fn reads_a_conversation_whose_last_turn_is_the_answer() {
    let trace = parse(format!(r#"{{"messages":[{USER},{{"role":"assistant","content":"a"}}]}}"#).as_bytes()).unwrap();
    assert_eq!((trace.messages.len(), trace.answer.as_str()), (1, "a"));
    assert!(trace.id.starts_with("sha256:"));
}

#[test]
fn tool_calls_are_read_shown_and_redacted() {
    let call =
        r#"{"id":"c1","type":"function","function":{"name":"find","arguments":"{\"mail\":\"anna@example.com\"}"}}"#;
    let object = r#"{"function":{"name":"tell","arguments":{"to":["anna@example.com"],"n":1}}}"#;
    let line = format!(
        r#"{{"messages":[{USER},{{"role":"assistant","content":null,"tool_calls":[{call},{object}]}},
        {{"role":"tool","tool_call_id":"c1","name":"find","content":"found"}},{{"role":"assistant","content":"a"}}]}}"#
    );
    let mut trace = parse(line.as_bytes()).unwrap();
    assert_eq!(trace.messages.len(), 3);
    assert_eq!(trace.messages[2].tool_call_id.as_deref(), Some("c1"));
    trace.redact(&Redactor::new().unwrap());
    let shown = visible_message(&trace.messages);
    assert!(shown.contains("tell({\"to\":[\"<EMAIL_1>\"],\"n\":1})") && shown.contains("tool: found"), "{shown}");
    assert!(!serde_json::to_string(&trace.messages).unwrap().contains("anna"));
    let bad = line.replace(&format!("[{call},{object}]"), "[1]");
    assert_eq!(reason(&bad), RejectReason::WrongType);
}

#[test]
fn every_bad_line_has_its_reason() {
    use RejectReason::*;
    let ok = r#"{"choices":[{"message":{"content":"a"}}]}"#;
    let deep = "[".repeat(100_000);
    for (line, want) in [
        ("{\"id\": \"t1\", \"req".to_string(), InvalidJson),
        ("not json".to_string(), InvalidJson),
        (deep, TooDeep),
        ("[1]".to_string(), WrongType),
        (line("{}", ok), MissingMessages),
        (line(r#"{"messages":"hello"}"#, ok), WrongType),
        (line(r#"{"messages":[1]}"#, ok), WrongType),
        (line(r#"{"messages":[]}"#, ok), MissingMessages),
        (line(r#"{"messages":[{"role":"user","content":" \n"}]}"#, ok), EmptyMessage),
        (line(r#"{"messages":[{"role":"user","content":7}]}"#, ok), WrongType),
        (line(&format!(r#"{{"messages":[{USER}]}}"#), "null"), MissingResponse),
        (line(&format!(r#"{{"messages":[{USER}]}}"#), r#"{"choices":[]}"#), MissingResponse),
        (
            line(&format!(r#"{{"messages":[{USER}]}}"#), r#"{"choices":[{"message":{"content":null}}]}"#),
            MissingResponse,
        ),
        (line(&format!(r#"{{"messages":[{USER}]}}"#), r#"{"choices":[{"message":{"content":4}}]}"#), WrongType),
    ] {
        assert_eq!(reason(&line), want, "{}", &line[..line.len().min(120)]);
    }
    assert_eq!(parse(b"{\"id\": \"\xff\"}").unwrap_err().reason, InvalidUtf8);
}

#[test]
fn a_reason_never_repeats_what_the_line_holds() {
    let e =
        parse(br#"{"request":{"messages":[{"role":"anna@example.com","content":"4111111111111111"}]}}"#).unwrap_err();
    assert!(!e.detail.contains("anna") && !e.detail.contains("4111"), "{}", e.detail);
}

#[test]
fn redaction_reaches_message_answer_and_customer() {
    let mut trace = parse(
        br#"{"id":"call-022378070604","customer":"anna@example.com","messages":[{"role":"user","content":"I am anna@example.com"},
        {"role":"assistant","content":"hello anna@example.com"}]}"#,
    )
    .unwrap();
    let counts = trace.redact(&Redactor::new().unwrap());
    assert_eq!(trace.messages[0].content, "I am <EMAIL_1>");
    assert_eq!(trace.answer, "hello <EMAIL_1>");
    assert!(trace.customer.unwrap().starts_with("sha256:"));
    assert_eq!(trace.id, "call-022378070604");
    assert_eq!(counts[&Kind::Email], 3);
}

/// Thousands of damaged copies of a good line: each is a trace or a reason, redaction holds twice, and no detail
/// repeats what the line said.
#[test]
fn damaged_lines_never_stop_the_import() {
    let good = r#"{"id":"t1","time":"2026-02-03T10:00:00Z","customer":"c1","request":{"messages":[{"role":"user",
        "content":"mail anna@example.com, call +44 7700 900123, card 4111 1111 1111 1111 é"}]},"response":{"choices":[
        {"message":{"content":"x"},"finish_reason":"stop"}],"usage":{"prompt_tokens":12}},"latency_ms":1e3}"#;
    let pieces =
        [&b"\""[..], b"{", b"}", b"[", b"null", b"-1e999", b"\xff", b"\\ud800", b"@", b"+", b"4", b"\xc3", b":", b"<"];
    let redactor = Redactor::new().unwrap();
    let mut rng = crate::text::Rng::new(11);
    let (mut read, mut rejected) = (0, 0);
    for _ in 0..6000 {
        let mut line = good.as_bytes().to_vec();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(line.len());
            let until = (at + rng.below(9)).min(line.len());
            line.splice(at..until, rng.pick(&pieces).iter().copied());
        }
        match parse(&line) {
            Ok(mut trace) => {
                read += 1;
                trace.redact(&redactor);
                let once = trace.clone();
                trace.redact(&redactor);
                assert_eq!(trace, once);
            }
            Err(reject) => {
                rejected += 1;
                assert!(!reject.detail.contains("anna") && !reject.detail.contains("4111"), "{}", reject.detail);
            }
        }
    }
    assert!(read > 500 && rejected > 500, "{read} read, {rejected} rejected");
}
