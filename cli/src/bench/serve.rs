//! `limbeck bench serve`: an artifact's server in a process of its own, or a live endpoint, and callers that all ask at once (closed
//! loop) or arrive at random times whatever the server does (open loop, Poisson). Times are from when a request was due, so
//! that a server that makes callers wait before they ask hides nothing.

use crate::bench::args::BenchServe;
use crate::exit::{Exit, Failure, Result};
use crate::live::authorities;
use crate::load::{Coming, Served, measure};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::{Settings, named_secret};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::journal;
use limbeck_data_curation::trace;
use limbeck_distill::endpoint::{Endpoint, EndpointPlan, Key, MaxTokensKey, Question, Replies, Sampling};
use limbeck_eval::load_facts;
use serde_json::json;
use std::path::Path;
use std::time::Duration;

/// A caller who has waited so long has gone.
const PATIENCE: Duration = Duration::from_secs(120);

pub fn bench(settings: &Settings, args: &BenchServe) -> Result<Exit> {
    let questions = questions(&args.messages)?;
    let artifact = &args.of.artifact;
    let live = artifact.starts_with("http://") || artifact.starts_with("https://");
    let served = if live { None } else { Some(start(settings, args)?) };
    let url = served.as_ref().map_or(artifact, |served| &served.url);
    let secret = args.key_env.as_deref().map(|name| {
        named_secret(name).ok_or_else(|| {
            Failure::new(Exit::Usage, format!("the environment variable {name} is not set"))
                .help(format!("export {name}=…"))
        })
    });
    let plan = EndpointPlan {
        key: secret.transpose()?.map(Key::new),
        ca: args.ca_file.as_deref().map(authorities).transpose()?,
        concurrency: usize::from(args.clients),
        timeout: PATIENCE,
        online: served.is_some() || !settings.offline,
        ..EndpointPlan::plain(url, &args.model, journal::now)
    };
    if let Some(problem) = plan.problem() {
        let message = format!("{url} can't be asked: {problem}");
        return Err(Failure::new(Exit::Usage, message).help("write it as http://127.0.0.1:8080/v1"));
    }
    let sampling = Sampling {
        temperature: 0.0,
        max_tokens: args.max_tokens,
        max_tokens_key: MaxTokensKey::MaxTokens,
        logprobs: None,
        grammar: None,
    };
    let coming = match args.rate {
        Some(rate) => Coming::AtRate { rate, calls: ((rate * args.seconds as f64).round() as usize).max(1) },
        None => Coming::Together { seconds: args.seconds },
    };
    let total = match coming {
        Coming::AtRate { calls, .. } => calls as u64,
        Coming::Together { .. } => 0,
    };
    let sink = Sink::new(None, &Terminal::of_stderr());
    let told = |done: usize| {
        let done = done as u64;
        sink.emit(EventKind::Progress { done, total: total.max(done), unit: "calls".to_owned() });
    };
    let mut endpoint = Endpoint::new(plan, Replies::default());
    let mut load = measure(&mut endpoint, &questions, &sampling, coming, usize::from(args.clients), &told)?.summary;
    sink.clear();
    load.peak_memory_bytes = served.as_ref().and_then(Served::peak_memory);
    if settings.json {
        output::json(&json!({"asked": url, "callers": args.clients, "load": load}))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("{}, at most {} callers at once\n", if live { url } else { artifact }, args.clients);
    for fact in load_facts(&load) {
        text += &format!("  {:<11}  {}\n", fact.what, fact.value);
    }
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn start(settings: &Settings, args: &BenchServe) -> Result<Served> {
    let which = &args.of;
    let mut artifact = vec![which.artifact.clone(), "--store".to_owned(), which.store.display().to_string()];
    match &which.key {
        _ if which.no_verify => artifact.push("--no-verify".to_owned()),
        Some(key) => artifact.extend(["--key".to_owned(), key.display().to_string()]),
        None => {}
    }
    Served::start(&artifact, args.workers, settings.device.as_deref())
}

/// The messages of a log of traces.
fn questions(path: &Path) -> Result<Vec<Question>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| Failure::new(Exit::Usage, format!("failed to read {}: {e}", path.display())))?;
    let question = |line: &str| Some(Question { messages: trace::parse(line.as_bytes()).ok()?.messages, sample: 0 });
    let questions: Vec<Question> = text.lines().filter_map(question).collect();
    match questions.is_empty() {
        true => Err(Failure::new(Exit::Usage, format!("{} holds no traces", path.display()))
            .help("name a log of chat completions, such as recipes/quickstart/traces.jsonl")),
        false => Ok(questions),
    }
}
