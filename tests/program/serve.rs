//! What a caller of `limbeck serve` relies on: an answer where the artifact is sure, the fallback's where it is not, an
//! error that says what happened where there is neither; a log that imports; a server that outlives bad callers, a bad
//! fallback and many at once.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod mini;

use mini::Mini;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// One run for all tests: what is served is the same.
fn mini() -> &'static Mini {
    static MINI: OnceLock<Mini> = OnceLock::new();
    MINI.get_or_init(|| {
        let mini = Mini::new(0.0001, true);
        mini.expect(0, &["run", "mini", "--offline"]);
        mini
    })
}

/// One that takes an error's status for an answer.
fn agent() -> ureq::Agent {
    ureq::Agent::config_builder().http_status_as_error(false).build().new_agent()
}

struct Server {
    child: Child,
    address: SocketAddr,
    _stdout: BufReader<ChildStdout>,
}

impl Server {
    fn start(args: &[&str], secrets: &[(&str, &str)]) -> Server {
        let mut command = mini().command(&["serve", "mini/staging", "--listen", "127.0.0.1:0", "--json"]);
        command.args(args).envs(secrets.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        Server { child, address: said["address"].as_str().unwrap().parse().unwrap(), _stdout: stdout }
    }

    fn ask(&self, body: &Value) -> (u16, Value) {
        self.ask_with(body, None)
    }

    fn ask_with(&self, body: &Value, key: Option<&str>) -> (u16, Value) {
        let mut request = agent().post(format!("http://{}/v1/chat/completions", self.address));
        if let Some(key) = key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body.to_string()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    fn get(&self, path: &str) -> (u16, String) {
        let mut response = agent().get(format!("http://{}{path}", self.address)).call().unwrap();
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// As a service manager stops it; all that was logged is on disk afterwards.
    fn stop(mut self) {
        assert!(Command::new("kill").arg(self.child.id().to_string()).status().unwrap().success());
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn question(text: &str) -> Value {
    json!({"model": "any", "user": "cust-7", "messages": [
        {"role": "system", "content": "The long prompt of production."}, {"role": "user", "content": text}]})
}

/// A fallback that misbehaves as told; counts how often it was asked.
struct Fallback {
    url: String,
    asked: Arc<AtomicUsize>,
}

fn fallback(answer: impl Fn(tiny_http::Request) + Send + 'static) -> Fallback {
    let server = tiny_http::Server::http("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", server.server_addr().to_ip().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    std::thread::spawn(move || {
        for request in server.incoming_requests() {
            counter.fetch_add(1, Ordering::SeqCst);
            answer(request);
        }
    });
    Fallback { url, asked }
}

fn says(request: tiny_http::Request, status: u16, body: &str) {
    let _ = request.respond(tiny_http::Response::from_string(body).with_status_code(status));
}

fn completion(text: &str) -> String {
    json!({"id": "up-1", "object": "chat.completion", "model": "frontier", "choices": [
        {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]})
    .to_string()
}

#[test]
fn what_is_sure_is_answered_as_score_answers_whole_and_as_a_stream() {
    let server = Server::start(&["--threshold", "0"], &[]);
    let scored = mini().expect(0, &["score", "mini/staging", "where is my refund?", "--json"]);
    let scored: Value = serde_json::from_str(&scored).unwrap();
    let (status, said) = server.ask(&question("where is my refund?"));
    assert_eq!(status, 200, "{said}");
    assert_eq!(said["choices"][0]["message"]["content"], scored["label"]);
    assert_eq!(said["limbeck"]["confidence"], scored["confidence"]);
    assert_eq!(
        (said["limbeck"]["route"].as_str(), said["limbeck"]["outcome"].as_str()),
        (Some("serve"), Some("served"))
    );
    assert!(said["usage"]["prompt_tokens"].as_u64().unwrap() > 5, "{said}");
    assert_eq!(said["model"], "mini@0.1.0");

    let mut streamed = question("where is my refund?");
    streamed["stream"] = json!(true);
    let (status, events) = server.ask(&streamed);
    let events = events.as_str().unwrap().to_owned();
    assert_eq!(status, 200);
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    let first: Value = serde_json::from_str(events.lines().next().unwrap().strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(first["choices"][0]["delta"]["content"], scored["label"]);

    assert_eq!(server.get("/health").0, 200);
    assert!(server.get("/v1/models").1.contains("\"mini\""));
    let metrics = server.get("/metrics").1;
    assert!(metrics.contains("limbeck_requests_total{outcome=\"served\"} 2"), "{metrics}");
    server.stop();
}

#[test]
fn what_is_no_request_is_told_and_costs_nobody_else() {
    let server = Server::start(&["--threshold", "0", "--max-body", "2000"], &[]);
    for (body, status, code) in [
        (json!({"messages": []}), 400, "invalid_request"),
        (json!({"model": "x"}), 400, "invalid_request"),
        (json!({"messages": [{"role": "user", "content": "x"}], "n": 3}), 400, "unsupported"),
        (question(&"long ".repeat(1000)), 413, "too_long"),
    ] {
        let (got, said) = server.ask(&body);
        assert_eq!((got, said["error"]["code"].as_str()), (status, Some(code)), "{said}");
        assert!(said["error"]["message"].as_str().is_some_and(|m| m.len() > 10));
    }
    let (status, said) = server.get("/v2/nothing");
    assert!(status == 404 && said.contains("/v1/chat/completions"), "{said}");
    assert_eq!(server.get("/v1/chat/completions").0, 405);
    // Callers that send nonsense, nothing, or leave.
    for bytes in [
        b"\x16\x03\x01 not http\r\n\r\n".as_slice(),
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: 99\r\n\r\n{",
    ] {
        TcpStream::connect(server.address).unwrap().write_all(bytes).unwrap();
    }
    let _idle: Vec<TcpStream> = (0..50).map(|_| TcpStream::connect(server.address).unwrap()).collect();
    assert_eq!(server.ask(&question("where is my refund?")).0, 200);
}

#[test]
fn without_a_fallback_an_unsure_answer_is_an_error_that_a_gateway_can_act_on() {
    let server = Server::start(&["--threshold", "1"], &[]);
    let (status, said) = server.ask(&question("where is my refund?"));
    assert_eq!((status, said["error"]["code"].as_str()), (422, Some("escalate")), "{said}");
    assert!(said["error"]["limbeck"]["confidence"].as_f64().unwrap() < 1.0);
    let lax = Server::start(&["--threshold", "1", "--escalated", "answer"], &[]);
    let (status, said) = lax.ask(&question("where is my refund?"));
    assert_eq!((status, said["limbeck"]["outcome"].as_str()), (200, Some("escalated")), "{said}");
}

#[test]
fn a_fallback_answers_what_is_escalated_and_the_log_imports() {
    let upstream = fallback(|mut request| {
        let mut body = String::new();
        request.as_reader().read_to_string(&mut body).unwrap();
        let asked: Value = serde_json::from_str(&body).unwrap();
        let key = request.headers().iter().find(|h| h.field.equiv("authorization")).map(|h| h.value.to_string());
        // The caller's own prompt, under the fallback's name, never as a stream, with the fallback's own key.
        assert_eq!(asked["messages"][0]["content"], "The long prompt of production.");
        assert_eq!((&asked["model"], asked.get("stream")), (&json!("frontier-1"), None));
        assert_eq!(key.as_deref(), Some("Bearer up-secret"));
        says(request, 200, &completion("age_limit"));
    });
    let logs = mini().path().join("decisions");
    let logs_arg = logs.display().to_string();
    let args =
        ["--threshold", "1", "--upstream", &upstream.url, "--upstream-model", "frontier-1", "--decisions", &logs_arg];
    let server = Server::start(&args, &[("LIMBECK_UPSTREAM_API_KEY", "up-secret"), ("LIMBECK_API_KEY", "mine")]);
    assert_eq!(server.ask(&question("how old must I be?")).0, 401);
    assert_eq!(server.ask_with(&question("how old must I be?"), Some("not mine")).0, 401);
    for n in 0..3 {
        let mut asked = question(&format!("how old must I be, question {n}?"));
        asked["stream"] = json!(n == 2);
        let (status, said) = server.ask_with(&asked, Some("mine"));
        assert_eq!(status, 200, "{said}");
        assert!(said.to_string().contains("age_limit") && said.to_string().contains("upstream"), "{said}");
    }
    server.stop();
    let imported = mini().expect(0, &["import", &logs_arg, "--out", "imported", "--json"]);
    let imported: Value = serde_json::from_str(&imported).unwrap();
    let file = std::fs::read_dir(&logs).unwrap().next().unwrap().unwrap().path();
    let lines: Vec<Value> =
        std::fs::read_to_string(file).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 3, "{imported}");
    for line in &lines {
        assert_eq!((line["feedback"].as_str(), line["customer"].as_str()), (Some("escalated"), Some("cust-7")));
        assert_eq!(line["response"]["choices"][0]["message"]["content"], "age_limit");
        assert!(line["limbeck"]["confidence"].is_f64() && line["response"].get("limbeck").is_none());
    }
    assert_eq!(imported["accepted"], 3, "{imported}");
}

#[test]
fn a_fallback_that_is_down_slow_or_lies_is_survived_and_left_alone_for_a_while() {
    type Misbehaviour = Box<dyn Fn(tiny_http::Request) + Send>;
    let broken: [(&str, Misbehaviour); 4] = [
        ("500", Box::new(|request| says(request, 500, "oops"))),
        ("no JSON", Box::new(|request| says(request, 200, "<html>welcome</html>"))),
        ("no chat completion", Box::new(|request| says(request, 200, r#"{"choices":[]}"#))),
        (
            "slow",
            Box::new(|request| {
                std::thread::sleep(Duration::from_secs(3));
                says(request, 200, &completion("too late"));
            }),
        ),
    ];
    for (what, answer) in broken {
        let upstream = fallback(answer);
        let args = ["--threshold", "1", "--upstream", &upstream.url, "--upstream-timeout", "1"];
        let server = Server::start(&args, &[]);
        let (status, said) = server.ask(&question("how old must I be?"));
        assert_eq!((status, said["error"]["code"].as_str()), (502, Some("upstream_failed")), "{what}: {said}");
        if what != "slow" {
            assert!(said["error"]["message"].as_str().unwrap().contains(what), "{what}: {said}");
            for _ in 0..8 {
                server.ask(&question("how old must I be?"));
            }
            // Five failures in a row, and it is left alone.
            assert_eq!(upstream.asked.load(Ordering::SeqCst), 5, "{what}");
            let (status, said) = server.ask(&question("how old must I be?"));
            assert_eq!((status, said["error"]["code"].as_str()), (503, Some("upstream_down")), "{what}: {said}");
            assert!(server.get("/metrics").1.contains("limbeck_upstream_cut_off 1"));
        }
    }
    // Nobody listens there at all, and the operator would rather have the unsure answer.
    let args = ["--threshold", "1", "--upstream", "http://127.0.0.1:9/v1", "--escalated", "answer"];
    let (status, said) = Server::start(&args, &[]).ask(&question("how old must I be?"));
    assert_eq!((status, said["limbeck"]["outcome"].as_str()), (200, Some("escalated")), "{said}");
    // A full house is told on, and is no failure.
    let full = fallback(|request| says(request, 429, "{}"));
    let server = Server::start(&["--threshold", "1", "--upstream", &full.url], &[]);
    for _ in 0..7 {
        let (status, said) = server.ask(&question("how old must I be?"));
        assert_eq!((status, said["error"]["code"].as_str()), (429, Some("upstream_busy")), "{said}");
    }
    assert_eq!(full.asked.load(Ordering::SeqCst), 7);
}

#[test]
fn two_hundred_at_once_are_all_answered() {
    let server = Arc::new(Server::start(&["--threshold", "0"], &[]));
    let begun = Instant::now();
    let callers: Vec<_> = (0..200)
        .map(|i| {
            let server = Arc::clone(&server);
            std::thread::spawn(move || {
                (0..3).map(|n| server.ask(&question(&format!("caller {i} asks {n}"))).0).collect::<Vec<_>>()
            })
        })
        .collect();
    let statuses: Vec<u16> = callers.into_iter().flat_map(|caller| caller.join().unwrap()).collect();
    assert_eq!(statuses.len(), 600);
    assert!(statuses.iter().all(|s| *s == 200), "{statuses:?} after {:?}", begun.elapsed());
    assert!(server.get("/metrics").1.contains("limbeck_requests_total{outcome=\"served\"} 600"));
}

#[test]
fn more_than_the_queue_holds_are_refused_at_once() {
    let server = Arc::new(Server::start(&["--threshold", "0", "--workers", "1", "--queue", "1"], &[]));
    let callers: Vec<_> = (0..60)
        .map(|i| {
            let server = Arc::clone(&server);
            std::thread::spawn(move || server.ask(&question(&format!("caller {i}"))))
        })
        .collect();
    let answers: Vec<(u16, Value)> = callers.into_iter().map(|caller| caller.join().unwrap()).collect();
    assert!(answers.iter().any(|(status, _)| *status == 200));
    let refused =
        answers.iter().filter(|(status, said)| *status == 503 && said["error"]["code"] == "queue_full").count();
    assert_eq!(refused + answers.iter().filter(|(status, _)| *status == 200).count(), 60);
    assert!(refused > 0, "sixty callers at once found room in a queue of one");
}

#[test]
fn what_would_be_unsafe_is_refused_before_it_listens() {
    let refused = |args: &[&str], secrets: &[(&str, &str)], says: &str| {
        let mut command = mini().command(&["serve", "mini/staging"]);
        let out = command.args(args).envs(secrets.iter().copied()).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(out.status.code() == Some(2) && stderr.contains(says), "{stderr}");
    };
    refused(&["--listen", "0.0.0.0:0"], &[], "LIMBECK_API_KEY");
    let key = [("LIMBECK_UPSTREAM_API_KEY", "secret")];
    refused(&["--upstream", "http://api.example.com/v1"], &key, "unencrypted");
    refused(&["--upstream", "https://me:pw@api.example.com/v1"], &[], "no name or password");
    refused(&["--upstream", "ftp://x"], &[], "begins with https://");
    refused(&["--upstream", "https://api.example.com/v1", "--offline"], &[], "--offline");
    refused(&["--listen", "nowhere"], &[], "HOST:PORT");
}
