//! The hub path against a small local server that speaks the hub's URLs and headers: a pinned revision, a token, a
//! repository that is missing or private, damage on the way, and a second run offline from the cache alone.

#![allow(clippy::unwrap_used, reason = "tests")]

use limbeck_artifact::digest::sha256_hex;
use limbeck_model::source::{HubOptions, ModelRef, resolve};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tiny_http::{Header, Request, Response, Server};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const INDEX: &str =
    r#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;

/// What the server is to get wrong.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    FlippedByte,
    EtagThatClimbs,
    OtherCommit,
    NoCommit,
    /// Takes the question for the repository, or for a file, and says nothing.
    SilentAtOnce,
    SilentLater,
}

struct Hub {
    server: Arc<Server>,
    thread: Option<JoinHandle<()>>,
    /// Method-less log: path and whether the token came along.
    asked: Arc<Mutex<Vec<(String, bool)>>>,
}

impl Hub {
    fn start(files: &[(&str, &str)], fault: Fault) -> Self {
        let server = Arc::new(Server::http("127.0.0.1:0").unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        let (on_thread, log) = (Arc::clone(&server), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            for request in on_thread.incoming_requests() {
                let token = header(&request, "authorization").as_deref() == Some("Bearer secret");
                log.lock().unwrap().push((request.url().to_owned(), token));
                answer(request, &files, token, fault);
            }
        });
        Hub { server, thread: Some(thread), asked }
    }

    fn options(&self, cache: &Path) -> HubOptions {
        HubOptions {
            endpoint: Some(format!("http://{}", self.server.server_addr())),
            cache_dir: Some(cache.to_path_buf()),
            ..HubOptions::default()
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(url, _)| url.clone()).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.server.unblock();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn header(request: &Request, name: &str) -> Option<String> {
    request.headers().iter().find(|h| h.field.as_str().as_str().eq_ignore_ascii_case(name)).map(|h| h.value.to_string())
}

fn field(name: &str, value: &str) -> Header {
    Header::from_bytes(name, value).unwrap()
}

/// `/api/models/OWNER/NAME/revision/REV` and `/OWNER/NAME/resolve/REV/FILE`, as the hub serves them.
fn answer(request: Request, files: &BTreeMap<String, Vec<u8>>, token: bool, fault: Fault) {
    let url = request.url().to_owned();
    if fault == Fault::SilentAtOnce || fault == Fault::SilentLater && url.contains("tokenizer.json") {
        // A request that is dropped would be answered.
        return std::mem::forget(request);
    }
    let status = |code: u16| Response::from_string("").with_status_code(code);
    if url.contains("/private") && !token {
        return request.respond(status(401)).unwrap();
    }
    if let Some(rest) = url.strip_prefix("/api/models/") {
        if !rest.starts_with("org/")
            || !["main", "v1.0", COMMIT].iter().any(|rev| rest.ends_with(&format!("/revision/{rev}")))
        {
            return request.respond(status(404)).unwrap();
        }
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        let sha = if fault == Fault::NoCommit { "../../main" } else { COMMIT };
        let body = serde_json::json!({"siblings": siblings, "sha": sha}).to_string();
        return request.respond(Response::from_string(body)).unwrap();
    }
    let file = url.split_once(&format!("/resolve/{COMMIT}/")).and_then(|(_, name)| files.get(name));
    let Some(bytes) = file else { return request.respond(status(404)).unwrap() };
    let etag = if fault == Fault::EtagThatClimbs { "../../../../climbed".to_owned() } else { sha256_hex(bytes) };
    let commit = if fault == Fault::OtherCommit { COMMIT.replace('0', "f") } else { COMMIT.to_owned() };
    let range = header(&request, "range").unwrap_or_else(|| "bytes=0-".into());
    let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let to = to.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let mut part = bytes[from..=to].to_vec();
    if fault == Fault::FlippedByte && part.len() > 1 {
        part[0] ^= 1;
    }
    let response = Response::from_data(part)
        .with_status_code(206)
        .with_header(field("etag", &format!("\"{etag}\"")))
        .with_header(field("x-repo-commit", &commit))
        .with_header(field("content-range", &format!("bytes {from}-{to}/{}", bytes.len())));
    request.respond(response).unwrap();
}

const SHARDED: [(&str, &str); 7] = [
    ("config.json", "{}"),
    ("tokenizer.json", "{\"t\": 1}"),
    ("chat_template.jinja", "hello"),
    ("model.safetensors.index.json", INDEX),
    ("model-00001-of-00002.safetensors", "first shard"),
    ("model-00002-of-00002.safetensors", "second shard"),
    ("pytorch_model.bin", "a pickle that nobody wants"),
];

fn org(name: &str) -> ModelRef {
    ModelRef::parse(&format!("hf:org/{name}")).unwrap()
}

#[test]
fn a_sharded_model_arrives_and_is_there_offline() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&SHARDED, Fault::None);
    let online = hub.options(cache.path());
    let folder = resolve(&org("model"), &online).unwrap();
    for (name, text) in SHARDED {
        let found = std::fs::read_to_string(folder.join(name)).ok();
        assert_eq!(found.as_deref(), (name != "pytorch_model.bin").then_some(text), "{name}");
    }
    assert!(folder.ends_with(format!("models--org--model/snapshots/{COMMIT}")), "{}", folder.display());
    assert!(hub.asked()[1..].iter().all(|url| url.contains(COMMIT)), "after the first question all go by commit");

    let before = hub.asked().len();
    assert_eq!(resolve(&org("model"), &online).unwrap(), folder);
    assert_eq!(hub.asked().len(), before + 1, "a second run asks only what the branch means now");

    drop(hub);
    let offline = HubOptions { offline: true, ..online };
    assert_eq!(resolve(&org("model"), &offline).unwrap(), folder);
    let pinned = HubOptions { revision: Some(COMMIT.into()), ..offline };
    assert_eq!(resolve(&org("model"), &pinned).unwrap(), folder);
}

#[test]
fn offline_without_a_cache_says_what_is_missing() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&SHARDED, Fault::None);
    let offline = HubOptions { offline: true, ..hub.options(cache.path()) };
    let error = resolve(&org("model"), &offline).unwrap_err().to_string();
    assert!(error.contains("config.json is missing; run once without --offline"), "{error}");
    assert!(hub.asked().is_empty(), "nothing was asked");

    let folder = resolve(&org("model"), &hub.options(cache.path())).unwrap();
    std::fs::remove_file(folder.join("model-00002-of-00002.safetensors")).unwrap();
    let error = resolve(&org("model"), &offline).unwrap_err().to_string();
    assert!(error.contains("model-00002-of-00002.safetensors is missing"), "{error}");
}

#[test]
fn a_revision_is_asked_for_by_name() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "w")], Fault::None);
    let at = |revision: &str| HubOptions { revision: Some(revision.into()), ..hub.options(cache.path()) };
    assert!(resolve(&org("model"), &at("v1.0")).is_ok());
    assert_eq!(hub.asked()[0], "/api/models/org/model/revision/v1.0");
    let error = resolve(&org("model"), &at("v9")).unwrap_err().to_string();
    assert!(error.contains("org/model@v9") && error.contains("404") && error.contains("check owner, name"), "{error}");
    assert!(resolve(&org("model"), &at("../../v1")).is_err());
}

#[test]
fn sentencepieces_own_file_stands_in_for_tokenizer_json() {
    let files =
        [("config.json", "{}"), ("tokenizer.model", "m"), ("added_tokens.json", "{}"), ("model.safetensors", "w")];
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&files, Fault::None);
    let options = hub.options(cache.path());
    let folder = resolve(&org("model"), &options).unwrap();
    assert!(files.iter().all(|(name, _)| folder.join(name).is_file()));
    assert_eq!(resolve(&org("model"), &HubOptions { offline: true, ..options }).unwrap(), folder);
    // Where there is a tokenizer.json, the other is not asked for.
    let both = [("config.json", "{}"), ("tokenizer.json", "{}"), ("tokenizer.model", "m"), ("model.safetensors", "w")];
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&both, Fault::None);
    resolve(&org("model"), &hub.options(cache.path())).unwrap();
    assert!(!hub.asked().iter().any(|url| url.contains("tokenizer.model")));
    let hub = Hub::start(&[("config.json", "{}"), ("model.safetensors", "w")], Fault::None);
    let error = resolve(&org("model"), &hub.options(tempfile::tempdir().unwrap().path())).unwrap_err().to_string();
    assert!(error.contains("it has no tokenizer.json"), "{error}");
}

#[test]
fn one_gguf_file_of_a_repository() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&[("README.md", "x"), ("m.Q8_0.gguf", "GGUF8"), ("m.Q4_0.gguf", "GGUF4")], Fault::None);
    let options = hub.options(cache.path());
    let path = resolve(&org("model/m.Q4_0.gguf"), &options).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "GGUF4");
    assert_eq!(resolve(&org("model/m.Q4_0.gguf"), &HubOptions { offline: true, ..options.clone() }).unwrap(), path);
    assert!(!hub.asked().iter().any(|url| url.contains("Q8_0")));
    for unnamed in [org("model"), org("model/m.Q2_K.gguf")] {
        let error = resolve(&unnamed, &options).unwrap_err().to_string();
        assert!(error.contains("it has m.Q4_0.gguf, m.Q8_0.gguf: name one"), "{error}");
    }
}

#[test]
fn a_private_model_needs_a_token() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::start(&SHARDED, Fault::None);
    let without = hub.options(cache.path());
    let error = resolve(&org("private"), &without).unwrap_err().to_string();
    assert!(error.contains("401") && error.contains("give a token"), "{error}");
    let wrong = HubOptions { token: Some("old".into()), ..without.clone() };
    let error = resolve(&org("private"), &wrong).unwrap_err().to_string();
    assert!(error.contains("the token has no access") && !error.contains("old"), "{error}");
    let with = HubOptions { token: Some("secret".into()), ..without };
    assert!(resolve(&org("private"), &with).is_ok());
}

#[test]
fn what_a_bad_server_may_not_do() {
    for (fault, because) in [
        (Fault::FlippedByte, "arrived damaged"),
        (Fault::EtagThatClimbs, "unusable etag"),
        (Fault::OtherCommit, "another commit"),
        (Fault::NoCommit, "which is no commit"),
    ] {
        let outer = tempfile::tempdir().unwrap();
        let cache = outer.path().join("a/b/c");
        let hub = Hub::start(&SHARDED, fault);
        let error = resolve(&org("model"), &hub.options(&cache)).unwrap_err().to_string();
        assert!(error.contains(because), "'{error}' does not say '{because}'");
        assert!(!outer.path().join("climbed").exists());
        let offline = HubOptions { offline: true, ..hub.options(&cache) };
        assert!(resolve(&org("model"), &offline).is_err(), "nothing of it may count as cached");
    }
}

#[test]
fn a_server_that_falls_silent_is_given_up() {
    for (fault, what) in [(Fault::SilentAtOnce, "main from"), (Fault::SilentLater, "tokenizer.json: ")] {
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::start(&SHARDED, fault);
        let options = HubOptions { silence: Some(Duration::from_millis(500)), ..hub.options(cache.path()) };
        let started = Instant::now();
        let error = resolve(&org("model"), &options).unwrap_err().to_string();
        assert!(started.elapsed() < Duration::from_secs(20));
        assert!(error.contains("nothing came for 0.5 s; check the network") && error.contains(what), "{error}");
        std::mem::forget(hub);
    }
}

#[test]
fn a_dead_endpoint_is_an_error_with_a_way_out() {
    let cache = tempfile::tempdir().unwrap();
    let options = HubOptions {
        endpoint: Some("http://127.0.0.1:9".into()),
        cache_dir: Some(cache.path().into()),
        ..HubOptions::default()
    };
    let error = resolve(&org("model"), &options).unwrap_err().to_string();
    assert!(error.contains("http://127.0.0.1:9") && error.contains("--offline"), "{error}");
}

#[test]
fn references() {
    for good in ["hf:a/b", "hf:HuggingFaceTB/SmolLM2-135M-Instruct", "hf:a/b/c.gguf", "hf:a/b/sub/c.gguf"] {
        assert!(matches!(ModelRef::parse(good).unwrap(), ModelRef::Hub { .. }), "{good}");
    }
    for bad in [
        "",
        "hf:",
        "hf:a",
        "hf:a/",
        "hf:/b",
        "hf:../b",
        "hf:a/..",
        "hf:a b/c",
        "hf:a/b/c.bin",
        "hf:a/b/../c.gguf",
        "hf:a?/b",
    ] {
        assert!(ModelRef::parse(bad).is_err(), "{bad}");
    }
    assert_eq!(ModelRef::parse("models/x.gguf").unwrap(), ModelRef::Path("models/x.gguf".into()));
    let error = resolve(&ModelRef::Path("no/such".into()), &HubOptions::default()).unwrap_err().to_string();
    assert!(error.contains("hf:OWNER/NAME"), "{error}");
}
