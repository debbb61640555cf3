//! `limbeck teach`: a live model answers messages that nobody answered. What its draws agree on and the verifiers accept becomes
//! traces, which `import` reads like any; the rest goes to the reviewers, or to a file that says why.

use crate::args::Teach;
use crate::exit::{Exit, Failure, Result};
use crate::live::{Live, Task, estimate};
use crate::output::{self, Terminal};
use crate::prices;
use crate::progress::Sink;
use crate::settings::{Recording, Settings};
use crate::stages::import::redact_key;
use crate::stages::{Run, cannot};
use limbeck_artifact::dataset::{Dataset, Message, Split};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::untrusted::visible_line;
use limbeck_data_curation::redact::{RedactOptions, Redactor};
use limbeck_data_curation::review::TEACHER_DISAGREEMENT;
use limbeck_data_curation::taxonomy::Fields;
use limbeck_data_curation::trace::visible_message;
use limbeck_distill::best::{Best, Draw, best_fields, best_label, best_text};
use limbeck_distill::endpoint::{Rejection, Reply};
use limbeck_eval::rouge_l;
use limbeck_recipes::{ArmKind, EndpointArm};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// Of several draws where nobody says otherwise: at 0 they would be the same.
const WARM: f64 = 0.7;
const MAX_LINE_BYTES: usize = 1 << 20;

#[derive(Deserialize)]
struct Line {
    id: Option<Value>,
    customer: Option<String>,
    thread: Option<String>,
    time: Option<String>,
    text: Option<String>,
    messages: Option<Vec<Message>>,
}

/// A message that is to be answered.
struct Unanswered {
    id: String,
    customer: Option<String>,
    thread: Option<String>,
    time: Option<String>,
    messages: Vec<Message>,
}

/// The lines of the files that are written.
#[derive(Default)]
struct Written {
    traces: Vec<Value>,
    queue: Vec<Value>,
    rejected: Vec<Value>,
}

pub fn teach(settings: &Settings, args: &Teach) -> Result<Exit> {
    let recording = Recording { record: args.record.clone(), replay: args.replay.clone() };
    let settings = &Settings { recording, ..settings.clone() };
    let run = Run::look(settings, settings.recipe(&args.recipe.recipe)?)?;
    let live = live(settings, &run, args)?;
    let mut written = Written::default();
    let unanswered = read(&run, args, &mut written.rejected)?;
    let unreadable = written.rejected.len();
    if unanswered.is_empty() {
        let message = format!("there is no message to answer: {unreadable} lines could not be read");
        return Err(Failure::new(Exit::Usage, message).help("a line is {\"text\": \"...\"} or {\"messages\": [...]}"));
    }
    let sink = Sink::new(None, &Terminal::of_stderr());
    if live.plan.is_exposed() {
        let text = format!("the key crosses the network in the clear: {}", live.plan.url);
        sink.emit(EventKind::Warning { text });
    }
    let mut endpoint = live.open()?;
    let prompts: Vec<&[Message]> = unanswered.iter().map(|u| u.messages.as_slice()).collect();
    let questions = live.questions(&prompts);
    if args.dry_run {
        let (requests, prompt, completion) = endpoint.estimate(&questions, &live.sampling);
        return planned(settings, &live, [unanswered.len(), requests], [prompt, completion]);
    }
    estimate(&live, &endpoint, &questions, &sink);
    let total = unanswered.len() as u64;
    let asked = live.ask(&mut endpoint, &questions, &sink, &mut |done| {
        sink.emit(EventKind::Progress { done: done as u64, total, unit: "messages".to_owned() });
    })?;
    sink.clear();
    if let Some(failure) = live.stopped(&asked) {
        return Err(failure);
    }
    let fields = match &live.task {
        Task::Fields(_, text) => Some(Fields::parse(text)?),
        Task::Labels(_) => None,
    };
    for (one, draws) in unanswered.iter().zip(asked.ends.chunks(live.samples as usize)) {
        sort_in(&live, fields.as_ref(), one, draws, args.min_agreement, &mut written);
    }
    let all = written.traces.len() + written.queue.len() + written.rejected.len();
    assert_eq!(all, unanswered.len() + unreadable, "each message ends in one file");
    std::fs::create_dir_all(&args.out).map_err(|e| cannot("make", &args.out, &e))?;
    for (name, lines) in
        [("traces.jsonl", &written.traces), ("queue.jsonl", &written.queue), ("rejected.jsonl", &written.rejected)]
    {
        let path = args.out.join(name);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    }
    let facts = live.facts(&asked, endpoint.spent());
    if settings.json {
        let facts: BTreeMap<&str, &str> = facts.iter().map(|f| (f.what.as_str(), f.value.as_str())).collect();
        output::json(&json!({
            "out": args.out, "messages": unanswered.len() + unreadable, "taught": written.traces.len(),
            "queued": written.queue.len(), "rejected": written.rejected.len(),
            "reasons": reasons(&written), "spent": endpoint.spent(), "teacher": facts,
        }))?;
    } else {
        let mut out = format!(
            "{} of {all} messages are answered, {} go to the reviewers, {} are rejected\n",
            written.traces.len(),
            written.queue.len(),
            written.rejected.len()
        );
        for (reason, n) in reasons(&written) {
            out.push_str(&format!("  {n:>6}  {}\n", visible_line(&reason)));
        }
        for fact in facts {
            out.push_str(&format!("  {}: {}\n", fact.what, visible_line(&fact.value)));
        }
        let dir = args.out.display();
        out.push_str(&format!(
            "\nNext, in the recipe: data.traces with {dir}/traces.jsonl, and {dir}/queue.jsonl for the reviewers\n"
        ));
        output::stdout(&out)?;
    }
    Ok(Exit::Ok)
}

/// The teacher: an arm of the recipe, with what was typed put over it.
fn live(settings: &Settings, run: &Run<'_>, args: &Teach) -> Result<Live> {
    let recipe = run.recipe();
    let endpoints: Vec<(&str, &EndpointArm)> = recipe
        .eval
        .arms
        .iter()
        .filter_map(|arm| match &arm.kind {
            ArmKind::Endpoint(endpoint) => Some((arm.name.as_str(), endpoint.as_ref())),
            ArmKind::FewShot { .. } | ArmKind::Cascade { .. } | ArmKind::Ensemble { .. } => None,
        })
        .collect();
    let Some((name, arm)) = endpoints.iter().find(|(name, _)| *name == args.arm) else {
        let message = format!("the recipe has no [[eval.arm]] of kind endpoint that is called `{}`", args.arm);
        let known: Vec<&str> = endpoints.iter().map(|(name, _)| *name).collect();
        let help = match known.is_empty() {
            true => "add one, with name, kind = \"endpoint\", url and model".to_owned(),
            false => format!("its endpoints are {}", known.join(", ")),
        };
        return Err(Failure::new(Exit::Usage, message).help(help));
    };
    let samples = args.samples.unwrap_or(arm.samples);
    let warm = if samples > 1 && arm.temperature == 0.0 { WARM } else { arm.temperature };
    let arm = EndpointArm {
        samples,
        temperature: args.temperature.unwrap_or(warm),
        max_spend: args.max_spend.or(arm.max_spend),
        ..(*arm).clone()
    };
    let task = match &run.resolved.schema {
        Some(file) => Task::Fields(file.schema.clone(), file.text.clone()),
        None => {
            let mut labels = recipe.task.labels.clone();
            labels.sort();
            Task::Labels(labels)
        }
    };
    let dataset = match arm.shots {
        0 => None,
        n => Some(Dataset::load(&run.dataset_dir()).map_err(|e| {
            let message = format!("the {n} examples in the prompt are rows of the train split, and there is none: {e}");
            Failure::new(Exit::Usage, message)
                .help("freeze it first (`limbeck review`), or --set eval.arm.NAME.shots=0")
        })?),
    };
    let train = dataset.as_ref().map_or(&[][..], |dataset| dataset.rows(Split::Train));
    let prices = recipe.eval.prices.as_deref().map(prices::read).transpose()?;
    let kept = args.out.join("replies.jsonl");
    Live::new(name, &arm, task, train, recipe, prices.as_ref(), kept, settings)
}

/// The messages under the recipe's prompt, redacted as traces are; lines that can't be read go to `rejected`.
fn read(run: &Run<'_>, args: &Teach, rejected: &mut Vec<Value>) -> Result<Vec<Unanswered>> {
    let recipe = run.recipe();
    let key = recipe.data.redact_key.as_deref().map(redact_key).transpose()?;
    let options = RedactOptions { patterns: recipe.data.redact_patterns.clone(), key };
    let redactor = match recipe.data.redact && !args.no_redact {
        true => Some(Redactor::with(&options).map_err(|why| Failure::new(Exit::RecipeInvalid, why))?),
        false => None,
    };
    let mut ids = BTreeSet::new();
    let mut unanswered = Vec::new();
    for path in &args.messages {
        let bytes = std::fs::read(path).map_err(|e| cannot("read", path, &e))?;
        for (number, line) in bytes.split(|b| *b == b'\n').enumerate() {
            if line.trim_ascii().is_empty() {
                continue;
            }
            let found = unanswered_in(line, recipe.task.system.as_deref(), redactor.as_ref()).and_then(|one| {
                if ids.insert(one.id.clone()) {
                    Ok(one)
                } else {
                    Err(("repeated", "the id was there before".to_owned()))
                }
            });
            match found {
                Ok(one) => unanswered.push(one),
                Err((reason, detail)) => {
                    let file = path.file_name().map(|n| n.to_string_lossy().into_owned());
                    rejected.push(json!({"file": file, "line": number + 1, "reason": reason, "detail": detail}));
                }
            }
        }
    }
    Ok(unanswered)
}

type Why = (&'static str, String);

fn unanswered_in(
    line: &[u8],
    system: Option<&str>,
    redactor: Option<&Redactor>,
) -> std::result::Result<Unanswered, Why> {
    if line.len() > MAX_LINE_BYTES {
        return Err(("line_too_long", format!("more than {MAX_LINE_BYTES} bytes")));
    }
    let read: Line = serde_json::from_slice(line).map_err(|e| ("invalid_json", format!("column {}", e.column())))?;
    let mut messages = match (read.text, read.messages) {
        (Some(text), None) => vec![Message::new("user", &text)],
        (None, Some(messages)) => messages,
        _ => return Err(("missing_messages", "a line needs either text or messages".to_owned())),
    };
    if !messages.iter().any(|m| m.role == "user" && !m.content.trim().is_empty()) {
        return Err(("empty_message", "nothing is asked".to_owned()));
    }
    if let Some(system) = system {
        messages.retain(|m| m.role != "system" && m.role != "developer");
        messages.insert(0, Message::new("system", system));
    }
    if let Some(redactor) = redactor {
        let mut document = redactor.document();
        for message in &mut messages {
            message.content = document.redact(&message.content);
        }
    }
    let id = match read.id {
        Some(Value::String(id)) if !id.is_empty() => id,
        Some(Value::Number(n)) => n.to_string(),
        _ => format!("taught-{}", &sha256_hex(line)[..16]),
    };
    Ok(Unanswered { id, customer: read.customer, thread: read.thread, time: read.time, messages })
}

/// Puts a message where its draws say it belongs.
fn sort_in(
    live: &Live,
    fields: Option<&Fields>,
    one: &Unanswered,
    ends: &[Option<std::result::Result<Reply, Rejection>>],
    min_agreement: f64,
    written: &mut Written,
) {
    let replies: Vec<&Reply> = ends.iter().flatten().filter_map(|end| end.as_ref().ok()).collect();
    let Some(first) = replies.first() else {
        let rejection = ends.iter().flatten().find_map(|end| end.as_ref().err());
        let (reason, detail) = rejection.map_or(("not_asked", ""), |r| (r.reason.name(), r.detail.as_str()));
        written.rejected.push(json!({"id": one.id, "reason": reason, "detail": detail}));
        return;
    };
    let message = visible_message(&one.messages);
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let draws: Vec<Draw> = replies
        .iter()
        .map(|reply| {
            let answer = verified(live, fields, &message, one.time.as_deref(), reply).map_err(|fault| {
                *faults.entry(fault).or_default() += 1;
            });
            Draw { answer: answer.ok(), probability: reply.probability() }
        })
        .collect();
    let best = match live.task.schema() {
        None => best_label(&draws),
        Some(schema) if schema.is_text() => best_text(&draws, |a, b| rouge_l(a, b).f1),
        Some(schema) => best_fields(schema, &draws),
    };
    let valid = draws.iter().filter(|draw| draw.answer.is_some()).count();
    let told = json!({
        "arm": live.name, "prompt_sha256": live.prompt.sha256(), "draws": draws.len(), "valid": valid,
        "agreement": best.as_ref().map_or(0.0, |best| best.agreement), "faults": faults,
    });
    let trace = |answer: &str, feedback: Option<String>| trace(live, one, &replies, answer, feedback, &told);
    match best {
        Some(Best { answer, agreement }) if agreement >= min_agreement => written.traces.push(trace(&answer, None)),
        Some(Best { answer, agreement }) => {
            let feedback = format!("{TEACHER_DISAGREEMENT}: {:.0} % of {} draws agree", agreement * 100.0, draws.len());
            written.queue.push(trace(&answer, Some(feedback)));
        }
        // What no verifier accepts is shown as it was said.
        None => {
            let why = faults.keys().copied().collect::<Vec<_>>().join(", ");
            written.queue.push(trace(&first.text, Some(format!("{TEACHER_DISAGREEMENT}: no draw is valid ({why})"))));
        }
    }
}

/// The answer in canonical form, or the verifier that refuses it.
fn verified(
    live: &Live,
    fields: Option<&Fields>,
    message: &str,
    sent: Option<&str>,
    reply: &Reply,
) -> std::result::Result<String, &'static str> {
    if reply.text.trim().is_empty() {
        return Err("empty");
    }
    // Of a label nothing is missing where a model merely goes on talking.
    if fields.is_some() && reply.finish_reason.as_deref() == Some("length") {
        return Err("cut_off");
    }
    let answer = live.task.read(&reply.text, live.codes.as_ref());
    let answer = answer.ok_or(if fields.is_some() { "schema" } else { "outside_taxonomy" })?;
    match fields {
        Some(fields) if !fields.not_in(&answer, message, sent).is_empty() => Err("not_in_message"),
        _ => Ok(answer),
    }
}

/// A call as chat-completion logs have it. Its prompt is the recipe's, not what the teacher was told beside it.
fn trace(
    live: &Live,
    one: &Unanswered,
    replies: &[&Reply],
    answer: &str,
    feedback: Option<String>,
    told: &Value,
) -> Value {
    let sum = |of: &dyn Fn(&Reply) -> Option<u64>| replies.iter().filter_map(|reply| of(reply)).sum::<u64>();
    let served = replies.iter().find_map(|reply| reply.model.clone());
    let mut trace = json!({
        "id": one.id,
        "request": {"model": live.plan.model, "messages": one.messages},
        "response": {
            "object": "chat.completion",
            "model": served.unwrap_or_else(|| live.plan.model.clone()),
            "system_fingerprint": replies.iter().find_map(|reply| reply.fingerprint.clone()),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": sum(&|r| r.prompt_tokens), "completion_tokens": sum(&|r| r.completion_tokens)},
        },
        "latency_ms": replies.iter().map(|reply| reply.latency_ms).fold(0.0, f64::max),
        "limbeck_teacher": told,
    });
    let at = replies.first().map(|reply| reply.at.clone());
    for (key, value) in [
        ("customer", one.customer.clone()),
        ("thread_id", one.thread.clone()),
        ("time", one.time.clone().or(at)),
        ("feedback", feedback),
    ] {
        if let Some(value) = value {
            trace[key] = json!(value);
        }
    }
    trace
}

/// Why messages are not among the traces, with how many of them.
fn reasons(written: &Written) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for line in &written.rejected {
        *counts.entry(format!("rejected: {}", line["reason"].as_str().unwrap_or("?"))).or_default() += 1;
    }
    for line in &written.queue {
        let valid = line["limbeck_teacher"]["valid"].as_u64().unwrap_or(0);
        let why = match valid {
            0 => {
                let faults = line["limbeck_teacher"]["faults"].as_object();
                let names: Vec<&str> = faults.into_iter().flatten().map(|(name, _)| name.as_str()).collect();
                format!("queued: no draw is valid ({})", names.join(", "))
            }
            _ => "queued: the draws disagree".to_owned(),
        };
        *counts.entry(why).or_default() += 1;
    }
    counts
}

/// What would be asked, without asking.
fn planned(
    settings: &Settings,
    live: &Live,
    [messages, requests]: [usize; 2],
    [prompt, completion]: [u64; 2],
) -> Result<Exit> {
    let cost = live.plan.budget.price.map(|price| price.of(prompt, completion));
    if settings.json {
        output::json(&json!({
            "messages": messages, "requests": requests, "prompt_tokens": prompt, "completion_tokens_at_most": completion,
            "cost_at_most": cost, "max_spend": live.plan.budget.max_spend,
        }))?;
        return Ok(Exit::Ok);
    }
    let cost = match cost {
        Some(cost) => format!("about {cost:.4} in the price table's currency at most"),
        None => format!("at no known price: the recipe's eval.prices has none for {}", visible_line(&live.plan.model)),
    };
    output::stdout(&format!(
        "{messages} messages, {requests} requests to {} at {}\nsome {prompt} tokens in prompts, at most {completion} in answers: {cost}\n",
        visible_line(&live.plan.model),
        visible_line(&live.plan.url)
    ))?;
    Ok(Exit::Ok)
}
