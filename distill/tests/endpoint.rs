//! What the client does when the server misbehaves: every question ends answered or rejected with a reason, money stays under its
//! cap, and nothing that was answered is asked again. The server is a few lines on loopback that fail as told.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_artifact::dataset::Message;
use limbeck_distill::endpoint::{
    Asked, Budget, Endpoint, EndpointPlan, Key, LoadError, LoadPlan, MaxTokensKey, Pace, Price, Question, Reason,
    Replies, Sampling, Stopped, Timed,
};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// What the server does with a request.
enum Act {
    Say(u16, &'static str, String),
    /// Announces more than it sends.
    Cut,
    HangUp,
    Sleep(Duration),
    /// Pieces of an event stream, each after a while.
    Stream(Vec<(Duration, String)>),
}

struct Server {
    url: String,
    asked: Arc<AtomicUsize>,
    most_at_once: Arc<AtomicUsize>,
}

impl Server {
    /// `act` is told the question's text and how often that was asked before.
    fn start(act: impl Fn(&str, usize) -> Act + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let (asked, most_at_once) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (counter, most) = (Arc::clone(&asked), Arc::clone(&most_at_once));
        let (act, seen, now) = (Arc::new(act), Arc::new(Mutex::new(HashMap::new())), Arc::new(AtomicUsize::new(0)));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (act, seen, counter) = (Arc::clone(&act), Arc::clone(&seen), Arc::clone(&counter));
                let (most, now) = (Arc::clone(&most), Arc::clone(&now));
                std::thread::spawn(move || {
                    let Some((head, body)) = request(&stream) else { return };
                    counter.fetch_add(1, Ordering::SeqCst);
                    let text = body["messages"].as_array().unwrap().last().unwrap()["content"].as_str().unwrap();
                    let before = {
                        let mut seen: std::sync::MutexGuard<'_, HashMap<String, usize>> = seen.lock().unwrap();
                        let n = seen.entry(text.to_owned()).or_default();
                        *n += 1;
                        *n - 1
                    };
                    let act = match head.contains("authorization: Bearer sk-good") || !text.contains("key") {
                        true => act(text, before),
                        false => {
                            Act::Say(401, "", json!({"error": {"message": format!("bad key in {head}")}}).to_string())
                        }
                    };
                    // One that the client has given up is not among those that wait.
                    let waits = usize::from(!matches!(act, Act::Sleep(_)));
                    most.fetch_max(now.fetch_add(waits, Ordering::SeqCst) + waits, Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(2));
                    now.fetch_sub(waits, Ordering::SeqCst);
                    respond(stream, act);
                });
            }
        });
        Server { url, asked, most_at_once }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn request(stream: &TcpStream) -> Option<(String, Value)> {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
        if line.trim().is_empty() {
            break;
        }
        if let Some(n) = line.to_lowercase().strip_prefix("content-length:") {
            length = n.trim().parse().ok()?;
        }
        head += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((head, serde_json::from_slice(&body).ok()?))
}

fn respond(mut stream: TcpStream, act: Act) {
    let text = match act {
        Act::HangUp => return,
        Act::Cut => {
            "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nconnection: close\r\n\r\n{\"choices\": [{\"mess".to_owned()
        }
        Act::Sleep(time) => {
            std::thread::sleep(time);
            return;
        }
        Act::Stream(pieces) => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            let mut sent = stream.write_all(head.as_bytes());
            for (wait, piece) in pieces {
                std::thread::sleep(wait);
                sent = sent.and_then(|()| stream.write_all(piece.as_bytes())).and_then(|()| stream.flush());
            }
            drop(sent);
            return;
        }
        Act::Say(status, headers, body) => format!(
            "HTTP/1.1 {status} X\r\n{headers}content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        ),
    };
    let _ = stream.write_all(text.as_bytes()).and_then(|()| stream.flush());
}

/// An answer that says what was asked, of 10 and 5 tokens.
fn answer(text: &str) -> Act {
    let body = json!({"model": "m-2026", "system_fingerprint": "fp", "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        "choices": [{"message": {"role": "assistant", "content": format!("to {text}")}, "finish_reason": "stop"}]});
    Act::Say(200, "", body.to_string())
}

fn fault(kind: usize) -> Act {
    match kind {
        0 => Act::Say(429, "retry-after-ms: 1\r\n", String::new()),
        1 => Act::Say(500, "", "oops".to_owned()),
        2 => Act::Cut,
        3 => Act::Say(200, "", "<html>not a model</html>".to_owned()),
        4 => Act::Say(200, "", json!({"choices": []}).to_string()),
        5 => Act::HangUp,
        6 => Act::Sleep(Duration::from_millis(1500)),
        _ => Act::Say(400, "", json!({"error": {"message": "this one is not allowed"}}).to_string()),
    }
}

const REASONS: [Reason; 8] = [
    Reason::Busy,
    Reason::ServerError,
    Reason::CutOff,
    Reason::NoJson,
    Reason::NoChoice,
    Reason::CutOff,
    Reason::Timeout,
    Reason::Refused,
];

fn plan(url: &str) -> EndpointPlan {
    EndpointPlan {
        concurrency: 4,
        max_retries: 2,
        timeout: Duration::from_millis(800),
        backoff: Duration::from_millis(2),
        ..EndpointPlan::plain(url, "m", || "2026-11-22T00:00:00.000Z".to_owned())
    }
}

fn sampling() -> Sampling {
    Sampling {
        temperature: 0.0,
        max_tokens: 20,
        max_tokens_key: MaxTokensKey::MaxTokens,
        logprobs: Some(1),
        grammar: None,
    }
}

fn questions(texts: impl Iterator<Item = String>) -> Vec<Question> {
    texts.map(|text| Question { messages: vec![Message::new("user", &text)], sample: 0 }).collect()
}

fn ask(plan: EndpointPlan, kept: Option<&Path>, questions: &[Question]) -> (Asked, f64) {
    let replies = kept.map_or_else(Replies::default, |path| Replies::open(path).unwrap());
    let mut endpoint = Endpoint::new(plan, replies);
    let asked = endpoint.ask_all(questions, &sampling(), &mut |_| ()).unwrap();
    (asked, endpoint.spent())
}

#[test]
fn faults_that_pass_are_retried_until_each_question_is_answered() {
    let server = Server::start(|text, before| match (text.parse::<usize>().unwrap(), before) {
        // The first one is answered at once: after it all threads ask.
        (n, 0) if n > 0 => fault(n % 7),
        _ => answer(text),
    });
    let questions = questions((0..36).map(|n| n.to_string()));
    let (asked, _) = ask(plan(&server.url), None, &questions);
    assert_eq!(asked.stopped, None);
    for (n, end) in asked.ends.iter().enumerate() {
        let reply = end.as_ref().unwrap().as_ref().unwrap();
        assert_eq!((reply.text.as_str(), reply.retries), (format!("to {n}").as_str(), u32::from(n > 0)), "{reply:?}");
        assert_eq!((reply.model.as_deref(), reply.fingerprint.as_deref()), (Some("m-2026"), Some("fp")));
        assert!(reply.latency_ms > 0.0 && reply.latency_ms < 800.0 && reply.at.starts_with("2026"));
    }
    assert_eq!(server.asked(), 36 + 35);
    let most = server.most_at_once.load(Ordering::SeqCst);
    assert!((2..=4).contains(&most), "{most} at once");
}

#[test]
fn faults_that_stay_are_rejections_with_a_reason_and_nothing_is_lost() {
    let server = Server::start(|text, _| match text.parse::<usize>().unwrap() {
        n if n % 2 == 0 => answer(text),
        n => fault(n / 2 % 8),
    });
    let questions = questions((0..64).map(|n| n.to_string()));
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("replies.jsonl");
    let (asked, _) = ask(plan(&server.url), Some(&kept), &questions);
    assert_eq!(asked.stopped, None, "half of them are answered: it is not down");
    for (n, end) in asked.ends.iter().enumerate() {
        match end.as_ref().unwrap() {
            Ok(reply) => assert_eq!((n % 2, reply.text.as_str()), (0, format!("to {n}").as_str())),
            Err(rejection) => {
                let reason = REASONS[n / 2 % 8];
                assert_eq!((n % 2, rejection.reason), (1, reason), "{rejection:?}");
                let is_refused = reason == Reason::Refused;
                assert_eq!((rejection.again, rejection.retries), (!is_refused, if is_refused { 0 } else { 2 }));
                assert!(rejection.detail.starts_with("it "), "{}", rejection.detail);
                assert!(!is_refused || rejection.detail.contains("this one is not allowed"), "{}", rejection.detail);
            }
        }
    }
    assert_eq!(asked.rejected().values().sum::<u64>(), 32);
    // Once more: what was answered or refused stays, and what the network kept away is asked again, until it seems to be down.
    let before = server.asked();
    let (again, _) = ask(plan(&server.url), Some(&kept), &questions);
    assert!(matches!(again.stopped, Some(Stopped::Down { .. })) && again.ends == asked.ends);
    assert!((3..=28 * 3).contains(&(server.asked() - before)), "{}", server.asked() - before);
}

#[test]
fn log_probabilities_that_are_wrong_cost_the_confidence_and_not_the_answer() {
    let server = Server::start(|text, _| {
        let logprob = if text == "good" { json!(-0.25) } else { json!(7.5) };
        let body = json!({"choices": [{"message": {"content": "yes"}, "logprobs": {"content": [
            {"token": "yes", "logprob": logprob, "top_logprobs": []}]}}]});
        Act::Say(200, "", body.to_string())
    });
    let (asked, _) = ask(plan(&server.url), None, &questions(["good", "bad"].into_iter().map(str::to_owned)));
    let [good, bad] = [0, 1].map(|i| asked.ends[i].clone().unwrap().unwrap());
    assert!((good.probability().unwrap() - (-0.25_f64).exp()).abs() < 1e-12);
    assert_eq!((bad.text.as_str(), bad.probability()), ("yes", None));
    assert!(bad.logprobs_fault.unwrap().contains("7.5"));
}

#[test]
fn a_server_that_is_not_there_ends_it_soon_and_says_how_much_is_left() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let begun = Instant::now();
    let (asked, _) = ask(plan(&format!("http://{closed}/v1")), None, &questions((0..9).map(|n| n.to_string())));
    let Some(Stopped::Down { why, left: 9 }) = &asked.stopped else { panic!("{:?}", asked.stopped) };
    assert!(why.contains("can't be reached"), "{why}");
    assert!(begun.elapsed() < Duration::from_secs(5) && asked.ends.iter().all(Option::is_none));

    // One that goes away in the middle: after some questions in a row nobody is asked any more.
    let server = Server::start(|text, _| if text.parse::<usize>().unwrap() < 10 { answer(text) } else { fault(1) });
    let (asked, _) = ask(plan(&server.url), None, &questions((0..100).map(|n| n.to_string())));
    let Some(Stopped::Down { left, .. }) = asked.stopped else { panic!("{:?}", asked.stopped) };
    assert!((80..=84).contains(&left), "{left}");
    assert!(server.asked() <= 10 + 3 * 10, "{}", server.asked());
}

#[test]
fn a_wrong_key_is_refused_once_and_is_written_nowhere() {
    let server = Server::start(|text, _| answer(text));
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("replies.jsonl");
    let questions = questions((0..20).map(|n| format!("key {n}")));
    let wrong = EndpointPlan { key: Some(Key::new("sk-wrong-1234".to_owned())), concurrency: 8, ..plan(&server.url) };
    let (asked, _) = ask(wrong, Some(&kept), &questions);
    let Some(Stopped::Denied { why, left: 20 }) = &asked.stopped else { panic!("{:?}", asked.stopped) };
    assert!(why.contains("401") && why.contains("(key)") && !why.contains("sk-wrong"), "{why}");
    assert_eq!(server.asked(), 1);
    let right = EndpointPlan { key: Some(Key::new("sk-good".to_owned())), ..plan(&server.url) };
    let (asked, _) = ask(right, Some(&kept), &questions);
    assert!(asked.stopped.is_none() && asked.ends.iter().all(|end| end.as_ref().unwrap().is_ok()));
    let text = std::fs::read_to_string(&kept).unwrap();
    assert!(!text.contains("sk-") && text.lines().count() == 20, "{text}");
}

#[test]
fn the_cap_holds_with_many_at_once_and_a_higher_one_goes_on() {
    let server = Server::start(|text, before| match text.parse::<usize>().unwrap() % 5 {
        // A broken response may have cost something.
        4 if before == 0 => Act::Cut,
        _ => answer(text),
    });
    let dir = tempfile::tempdir().unwrap();
    let kept = dir.path().join("replies.jsonl");
    let questions = questions((0..50).map(|n| n.to_string()));
    let price = Price { input_per_1m: 1e4, output_per_1m: 2e4 };
    let capped = |max_spend: f64| EndpointPlan {
        concurrency: 8,
        budget: Budget { price: Some(price), max_spend: Some(max_spend) },
        ..plan(&server.url)
    };
    // An answer costs .2, at most some .9; a broken one is charged in full.
    let (asked, spent) = ask(capped(5.0), Some(&kept), &questions);
    let Some(Stopped::SpendCap { cap, left, .. }) = asked.stopped else { panic!("{:?}", asked.stopped) };
    let answered = asked.ends.iter().flatten().count();
    assert_eq!((cap, left), (5.0, 50 - answered));
    assert!(spent <= 5.0 && spent > 3.5, "{spent} spent");
    let before = server.asked();
    let (asked, again) = ask(capped(5.0), Some(&kept), &questions);
    assert!(matches!(asked.stopped, Some(Stopped::SpendCap { .. })) && again <= 5.0, "what was spent before counts");
    assert!(server.asked() - before <= 1);
    let (asked, spent) = ask(capped(100.0), Some(&kept), &questions);
    assert!(asked.stopped.is_none() && asked.ends.iter().all(|end| end.as_ref().unwrap().is_ok()));
    assert_eq!(server.asked(), 60, "50 answers, 10 broken ones, none of them twice");
    let expected = 50.0 * 0.2 + 10.0 * price.of(5, 20);
    assert!((spent - expected).abs() < 0.5, "{spent}, expected about {expected}");
}

#[test]
fn a_torn_file_costs_what_was_in_flight_and_a_recording_needs_no_network() {
    let server = Server::start(|text, _| if text == "3" { fault(7) } else { answer(text) });
    let dir = tempfile::tempdir().unwrap();
    let (kept, recording) = (dir.path().join("replies.jsonl"), dir.path().join("recorded.jsonl"));
    // The same question twice is one request.
    let questions = questions((0..20).chain(0..20).map(|n| n.to_string()));
    let (whole, _) = ask(plan(&server.url), Some(&kept), &questions);
    assert_eq!(server.asked(), 20);
    let bytes = std::fs::read(&kept).unwrap();
    std::fs::write(&kept, &bytes[..bytes.len() / 2]).unwrap();
    let lost = 20 - bytes[..bytes.len() / 2].iter().filter(|b| **b == b'\n').count();
    let mut endpoint = Endpoint::new(plan(&server.url), Replies::open(&kept).unwrap());
    let resumed = endpoint.ask_all(&questions, &sampling(), &mut |_| ()).unwrap();
    let texts = |asked: &Asked| {
        let one = |end: &Option<Result<limbeck_distill::endpoint::Reply, _>>| {
            end.as_ref().and_then(|end| end.as_ref().ok()).map(|reply| reply.text.clone())
        };
        asked.ends.iter().map(one).collect::<Vec<_>>()
    };
    assert_eq!(texts(&resumed), texts(&whole));
    assert_eq!(server.asked(), 20 + lost);

    endpoint.record(&questions, &sampling(), &recording).unwrap();
    let offline = || EndpointPlan { online: false, ..plan(&server.url) };
    let mut replayed = Endpoint::new(offline(), Replies::read(&recording).unwrap());
    assert_eq!(replayed.ask_all(&questions, &sampling(), &mut |_| ()).unwrap(), resumed, "to the last digit");
    let (again, _) = (texts(&resumed), ());
    assert_eq!(again.iter().filter(|text| text.is_none()).count(), 2, "a refusal is recorded too");
    let mut other = questions.clone();
    other[0].messages[0].content = "new".to_owned();
    let missing = replayed.ask_all(&other, &sampling(), &mut |_| ()).unwrap();
    assert_eq!(missing.stopped, Some(Stopped::Offline { left: 1 }));
    assert_eq!(server.asked(), 20 + lost);
}

#[test]
fn a_busy_server_is_left_alone_as_long_as_it_asks() {
    let first: Arc<Mutex<Option<Instant>>> = Arc::default();
    let early = Arc::new(AtomicUsize::new(0));
    let (busy_since, too_early) = (Arc::clone(&first), Arc::clone(&early));
    let wait = Duration::from_millis(400);
    let server = Server::start(move |text, before| {
        if text == "1" && before == 0 {
            *busy_since.lock().unwrap() = Some(Instant::now());
            return Act::Say(429, "retry-after: 0.4\r\n", String::new());
        }
        // What was on its way when it said so may still come.
        let since = busy_since.lock().unwrap().map(|at| at.elapsed());
        if since.is_some_and(|since| since > Duration::from_millis(150) && since < wait) {
            too_early.fetch_add(1, Ordering::SeqCst);
        }
        std::thread::sleep(Duration::from_millis(20));
        answer(text)
    });
    let (asked, _) = ask(plan(&server.url), None, &questions((0..40).map(|n| n.to_string())));
    assert!(asked.stopped.is_none() && asked.ends.iter().all(|end| end.as_ref().unwrap().is_ok()));
    assert!(first.lock().unwrap().unwrap().elapsed() >= wait);
    assert_eq!(early.load(Ordering::SeqCst), 0);
}

/// An answer in two pieces: the first after 40 ms, the end 60 ms later.
fn in_pieces() -> Act {
    let event = |event: Value| format!("data: {event}\n\n");
    let piece = |text: &str| event(json!({"choices": [{"index": 0, "delta": {"content": text}}]}));
    let usage = json!({"choices": [], "usage": {"prompt_tokens": 10, "completion_tokens": 5}});
    Act::Stream(vec![
        // A first event without any text, as OpenAI's has.
        (Duration::ZERO, event(json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}))),
        (Duration::from_millis(40), piece("to ")),
        (Duration::from_millis(60), piece("it") + &event(usage) + "data: [DONE]\n\n"),
    ])
}

fn under_load(plan: EndpointPlan, pace: Pace, at_most: usize) -> (Result<Vec<Timed>, LoadError>, f64) {
    let mut endpoint = Endpoint::new(plan, Replies::default());
    let load = LoadPlan { pace, at_most, warm_up: 2 };
    let timed = endpoint.under_load(&questions((0..7).map(|i| i.to_string())), &sampling(), &load, &|_| ());
    (timed, endpoint.spent())
}

/// On a busy machine an answer takes its time.
fn patient(url: &str) -> EndpointPlan {
    EndpointPlan { timeout: Duration::from_secs(20), ..plan(url) }
}

fn every(gap: Duration, calls: u32) -> Pace {
    Pace::Due((0..calls).map(|i| gap * i).collect())
}

/// A server that answers one call at a time and stops for a second once. Whoever was due in that second waited, also those who
/// could not even ask because all callers were busy waiting.
#[test]
fn a_stall_is_felt_by_all_who_were_due() {
    let (turn, asked) = (Mutex::new(()), AtomicUsize::new(0));
    let server = Server::start(move |text, _| {
        let _one = turn.lock();
        if asked.fetch_add(1, Ordering::SeqCst) == 52 {
            std::thread::sleep(Duration::from_secs(1));
        }
        answer(text)
    });
    let (timed, _) = under_load(patient(&server.url), every(Duration::from_millis(10), 200), 3);
    let timed = timed.unwrap();
    assert_eq!((timed.len(), server.asked()), (200, 202), "each once, after two that warm up");
    assert!(timed.windows(2).all(|two| two[0].due <= two[1].due));
    let slow = |from: fn(&Timed) -> Duration| {
        timed.iter().filter(|call| call.ended - from(call) > Duration::from_millis(250)).count()
    };
    // Some 75 of the 100 that came in that second; a clock that starts when a call is sent sees three.
    assert!(slow(|call| call.due) > 60, "{}", slow(|call| call.due));
    assert!(slow(|call| call.sent) * 5 < slow(|call| call.due), "{}", slow(|call| call.sent));
    assert!(timed.iter().all(|call| call.first.is_none() && call.end == Ok(Some(5))), "answers came whole");
}

#[test]
fn the_first_piece_is_timed_and_what_breaks_off_is_a_failure() {
    let server = Server::start(|text, before| match (text, before) {
        ("3", 0) => {
            Act::Stream(vec![(Duration::ZERO, "data: {\"choices\": [{\"delta\": {\"content\": \"t".to_owned())])
        }
        ("4", 0) => {
            Act::Stream(vec![(Duration::ZERO, "data: {\"error\": {\"message\": \"overloaded\"}}\n\n".to_owned())])
        }
        ("5", 0) => Act::Say(429, "", String::new()),
        _ => in_pieces(),
    });
    let (timed, _) = under_load(patient(&server.url), every(Duration::from_millis(5), 7), 7);
    let timed = timed.unwrap();
    assert_eq!(server.asked(), 9, "what failed is not asked again");
    let failed: Vec<Reason> = timed.iter().filter_map(|call| call.end.as_ref().err().copied()).collect();
    assert_eq!(failed.len(), 3, "{timed:?}");
    for reason in [Reason::Refused, Reason::Busy] {
        assert!(failed.contains(&reason), "{failed:?}");
    }
    for call in timed.iter().filter(|call| call.end.is_ok()) {
        let (first, whole) = (call.first.unwrap() - call.due, call.ended - call.due);
        assert!(first >= Duration::from_millis(40) && whole >= Duration::from_millis(100), "{call:?}");
        assert!(whole - first >= Duration::from_millis(50), "{call:?}");
        assert_eq!(call.end, Ok(Some(5)));
    }
}

#[test]
fn a_load_test_is_paid_for_under_the_cap_and_never_kept_as_answers() {
    let server = Server::start(|_, _| in_pieces());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("live.jsonl");
    let price = Some(Price { input_per_1m: 10_000.0, output_per_1m: 20_000.0 });
    let with = |cap: f64| EndpointPlan { budget: Budget { price, max_spend: Some(cap) }, ..patient(&server.url) };
    let mut endpoint = Endpoint::new(with(100.0), Replies::open(&path).unwrap());
    let load = LoadPlan { pace: every(Duration::from_millis(2), 10), at_most: 5, warm_up: 2 };
    let asked = questions((0..3).map(|i| i.to_string()));
    endpoint.under_load(&asked, &sampling(), &load, &|_| ()).unwrap();
    // Twelve calls of 10 and 5 tokens.
    assert!((endpoint.spent() - 2.4).abs() < 1e-9, "{}", endpoint.spent());
    drop(endpoint);
    let again = Endpoint::new(with(100.0), Replies::open(&path).unwrap());
    assert!((again.spent() - 2.4).abs() < 1e-9, "what was spent outlives the process");
    assert_eq!(again.estimate(&asked, &sampling()).0, 3, "nothing of it answers a question");
    let (stopped, spent) = under_load(with(3.0), every(Duration::from_millis(2), 50), 5);
    assert!(matches!(stopped, Err(LoadError::Stopped(Stopped::SpendCap { .. }))), "{stopped:?}");
    assert!(spent <= 3.0, "{spent}");
    let offline = EndpointPlan { online: false, ..plan(&server.url) };
    assert!(matches!(
        under_load(offline, every(Duration::ZERO, 1), 1).0,
        Err(LoadError::Stopped(Stopped::Offline { .. }))
    ));
    let nobody = plan("http://127.0.0.1:1/v1");
    assert!(matches!(under_load(nobody, every(Duration::ZERO, 1), 1).0, Err(LoadError::Stopped(Stopped::Down { .. }))));
}
