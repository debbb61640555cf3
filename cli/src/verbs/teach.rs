//! `limbeck teach`: live models answer messages that nobody answered. What their draws agree on and the verifiers accept becomes
//! traces, which `import` reads like any; the rest goes to the reviewers, or to a file that says why.

mod batch;
mod messages;
mod sort;

use crate::args::Teach;
use crate::exit::{Exit, Failure, Result};
use crate::live::{Live, Task, estimate, kept_in};
use crate::output::{self, Terminal};
use crate::prices;
use crate::progress::Sink;
use crate::settings::{Recording, Settings};
use crate::stages::{Run, cannot};
use limbeck_artifact::dataset::{Dataset, Message, Split};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::untrusted::visible_line;
use limbeck_data_curation::taxonomy::Fields;
use limbeck_distill::endpoint::{Asked, Endpoint, Question, Stopped, Taken};
use limbeck_recipes::{ArmKind, EndpointArm};
use serde_json::{Value, json};
use sort::{End, Written, reasons, sort_in};
use std::collections::BTreeMap;

/// Of several draws where nobody says otherwise: at 0 they would be the same.
const WARM: f64 = 0.7;

/// An arm that is asked, with all that it is to be asked.
struct Teacher {
    live: Live,
    endpoint: Endpoint,
    questions: Vec<Question>,
}

pub fn teach(settings: &Settings, args: &Teach) -> Result<Exit> {
    let recording = Recording { record: args.record.clone(), replay: args.replay.clone() };
    let settings = &Settings { recording, ..settings.clone() };
    let run = Run::look(settings, settings.recipe(&args.recipe.recipe)?)?;
    let lives = lives(settings, &run, args)?;
    let mut written = Written::default();
    let unanswered = messages::read(&run, args, &mut written.rejected)?;
    let unreadable = written.rejected.len();
    if unanswered.is_empty() {
        let message = format!("there is no message to answer: {unreadable} lines could not be read");
        return Err(Failure::new(Exit::Usage, message).help("a line is {\"text\": \"...\"} or {\"messages\": [...]}"));
    }
    let prompts: Vec<&[Message]> = unanswered.iter().map(|u| u.messages.as_slice()).collect();
    let with_questions = |live: Live| Ok(Teacher { endpoint: live.open()?, questions: live.questions(&prompts), live });
    let mut teachers = lives.into_iter().map(with_questions).collect::<Result<Vec<Teacher>>>()?;
    if args.dry_run {
        return planned(settings, &teachers, unanswered.len());
    }
    if let Some(file) = args.batch_write.as_ref().filter(|_| args.batch_read.is_empty()) {
        batch::tell(settings, &batch::write(&teachers, file, args)?, [unanswered.len(), unreadable])?;
        return Ok(Exit::Ok);
    }
    let sink = Sink::new(None, &Terminal::of_stderr());
    let (asked, taken) = match args.batch_read.as_slice() {
        [] => (ask(&mut teachers, args, unanswered.len() as u64, &sink)?, None),
        files => {
            let taken = batch::read(&mut teachers, files, &sink)?;
            let kept = teachers.iter().map(|t| t.live.kept(&t.endpoint, &t.questions));
            (kept.collect::<Result<Vec<Asked>>>()?, Some(taken))
        }
    };
    sink.clear();
    let fields = match &teachers[0].live.task {
        Task::Fields(_, text) => Some(Fields::parse(text)?),
        Task::Labels(_) => None,
    };
    for (i, one) in unanswered.iter().enumerate() {
        let of = |(teacher, asked): (&Teacher, _)| draws_of(teacher, asked, i);
        let ends: Vec<&[End]> = teachers.iter().zip(&asked).map(of).collect();
        // What another batch may answer is not decided by the draws that came with this one.
        match batch::unfinished(&one.id, &ends).filter(|_| taken.is_some()) {
            Some(rejected) => written.rejected.push(rejected),
            None => sort_in(&teachers, fields.as_ref(), one, &ends, args.min_agreement, &mut written),
        }
    }
    let all = written.traces.len() + written.queue.len() + written.rejected.len();
    assert_eq!(all, unanswered.len() + unreadable, "each message ends in one file");
    save(args, &written)?;
    let rest = match (&args.batch_write, &taken) {
        (Some(file), Some(_)) => batch::write(&teachers, file, args)?,
        _ => Vec::new(),
    };
    tell(settings, args, &teachers, &asked, &written, taken.as_ref().map(|taken| (taken, rest.as_slice())))?;
    Ok(Exit::Ok)
}

/// The draws of the `i`th message.
fn draws_of<'a>(teacher: &Teacher, asked: &'a Asked, i: usize) -> &'a [End] {
    let n = teacher.live.samples as usize;
    &asked.ends[i * n..(i + 1) * n]
}

/// Asks one arm after another, under one cap where one was typed.
fn ask(teachers: &mut [Teacher], args: &Teach, messages: u64, sink: &Sink) -> Result<Vec<Asked>> {
    let mut all = Vec::with_capacity(teachers.len());
    for at in 0..teachers.len() {
        let of_others: f64 =
            teachers.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, teacher)| teacher.endpoint.spent()).sum();
        let Teacher { live, endpoint, questions } = &mut teachers[at];
        live.warn_if_exposed("arm", sink);
        if let Some(cap) = args.max_spend {
            endpoint.cap(Some((cap - of_others).max(0.0)));
        }
        estimate(live, endpoint, questions, sink);
        let asked = live.ask(endpoint, questions, sink, &mut |done| {
            sink.emit(EventKind::Progress { done: done as u64, total: messages, unit: "messages".to_owned() });
        })?;
        if let Some(failure) = live.stopped(&asked) {
            sink.clear();
            let capped = args.max_spend.is_some() && matches!(asked.stopped, Some(Stopped::SpendCap { .. }));
            let of_all = if teachers.len() > 1 { ", which is for all arms together" } else { "" };
            let help = format!(
                "raise --max-spend{of_all}; the same command goes on where it stopped; what was answered is kept"
            );
            return Err(if capped { failure.help(help) } else { failure });
        }
        all.push(asked);
    }
    Ok(all)
}

fn save(args: &Teach, written: &Written) -> Result<()> {
    std::fs::create_dir_all(&args.out).map_err(|e| cannot("make", &args.out, &e))?;
    for (name, lines) in
        [("traces.jsonl", &written.traces), ("queue.jsonl", &written.queue), ("rejected.jsonl", &written.rejected)]
    {
        let path = args.out.join(name);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    }
    Ok(())
}

fn tell(
    settings: &Settings,
    args: &Teach,
    teachers: &[Teacher],
    asked: &[Asked],
    written: &Written,
    batch: Option<(&Taken, &[batch::Requests])>,
) -> Result<()> {
    let facts = teachers.iter().zip(asked).map(|(t, asked)| t.live.facts(asked, t.endpoint.spent()));
    let all = written.traces.len() + written.queue.len() + written.rejected.len();
    if settings.json {
        let facts: Vec<BTreeMap<String, String>> =
            facts.map(|facts| facts.into_iter().map(|f| (f.what, f.value)).collect()).collect();
        let mut json = json!({
            "out": args.out, "messages": all, "taught": written.traces.len(), "queued": written.queue.len(),
            "rejected": written.rejected.len(), "reasons": reasons(written),
            "spent": teachers.iter().map(|t| t.endpoint.spent()).sum::<f64>(),
        });
        match facts.as_slice() {
            [alone] => json["teacher"] = json!(alone),
            several => {
                let named = teachers.iter().map(|t| t.live.name.clone()).zip(several);
                json["teachers"] = json!(named.collect::<BTreeMap<_, _>>());
            }
        }
        if let Some((taken, rest)) = batch {
            let fates: BTreeMap<&str, u64> = taken.fates.iter().map(|(fate, n)| (fate.name(), *n)).collect();
            json["results"] = json!({"lines": taken.lines(), "fates": fates, "missing": batch::missing(teachers)});
            json["batches"] = batch::json(rest);
        }
        return output::json(&json);
    }
    let mut out = String::new();
    if let Some((taken, _)) = batch {
        out.push_str(&batch::taken(taken, batch::missing(teachers)));
    }
    out.push_str(&format!(
        "{} of {all} messages are answered, {} go to the reviewers, {} are rejected\n",
        written.traces.len(),
        written.queue.len(),
        written.rejected.len()
    ));
    for (reason, n) in reasons(written) {
        out.push_str(&format!("  {n:>6}  {}\n", visible_line(&reason)));
    }
    for (teacher, facts) in teachers.iter().zip(facts) {
        let whose = if teachers.len() > 1 { format!("{} · ", teacher.live.name) } else { String::new() };
        for fact in facts {
            out.push_str(&format!("  {whose}{}: {}\n", fact.what, visible_line(&fact.value)));
        }
    }
    match batch {
        Some((_, rest)) if !rest.is_empty() => out.push_str(&format!("\n{}", batch::told(rest))),
        Some(_) if batch::missing(teachers) > 0 => out.push_str(
            "\nNext: the same command with --batch-write FILE writes what is missing as a smaller batch; without --batch-read it is \
             asked live\n",
        ),
        _ => {
            let dir = args.out.display();
            out.push_str(&format!(
                "\nNext, in the recipe: data.traces with {dir}/traces.jsonl, and {dir}/queue.jsonl for the reviewers\n"
            ));
        }
    }
    output::stdout(&out)
}

/// The teachers: arms of the recipe, with what was typed put over them.
fn lives(settings: &Settings, run: &Run<'_>, args: &Teach) -> Result<Vec<Live>> {
    let mut names: Vec<&String> = Vec::new();
    for name in &args.arm {
        if names.contains(&name) {
            let message = format!("arm `{name}` is named twice");
            return Err(Failure::new(Exit::Usage, message).help("--samples has one arm answer several times"));
        }
        names.push(name);
    }
    if names.len() > 1 && args.replay.is_some() {
        let message = "a recording of several arms does not tell who spent what";
        return Err(Failure::new(Exit::Usage, message)
            .help("leave --replay away: what is kept under --out is not asked again, with --offline neither"));
    }
    names.into_iter().map(|name| live(settings, run, args, name)).collect()
}

fn live(settings: &Settings, run: &Run<'_>, args: &Teach, name: &str) -> Result<Live> {
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
    let Some((_, arm)) = endpoints.iter().find(|(known, _)| *known == name) else {
        let message = format!("the recipe has no [[eval.arm]] of kind endpoint that is called `{name}`");
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
    Live::new(name, &arm, task, train, recipe, prices.as_ref(), kept_in(&args.out, name), settings)
}

/// What would be asked, without asking.
fn planned(settings: &Settings, teachers: &[Teacher], messages: usize) -> Result<Exit> {
    let (mut sums, mut cost, mut text) = ([0u64; 3], Some(0.0), String::new());
    for Teacher { live, endpoint, questions } in teachers {
        let (requests, prompt, completion) = endpoint.estimate(questions, &live.sampling);
        let own = live.plan.budget.price.map(|price| price.of(prompt, completion));
        cost = cost.zip(own).map(|(sum, own)| sum + own);
        sums = [sums[0] + requests as u64, sums[1] + prompt, sums[2] + completion];
        let own = match own {
            Some(own) => format!("about {} at most", live.money(own)),
            None => {
                format!("at no known price: the recipe's eval.prices has none for {}", visible_line(&live.plan.model))
            }
        };
        text.push_str(&format!(
            "{messages} messages, {requests} requests to {} at {}\nsome {prompt} tokens in prompts, at most {completion} in answers: {own}\n",
            visible_line(&live.plan.model),
            visible_line(&live.plan.url)
        ));
    }
    if settings.json {
        let max_spend: Vec<Value> = teachers.iter().map(|t| json!(t.live.plan.budget.max_spend)).collect();
        output::json(&json!({
            "messages": messages, "requests": sums[0], "prompt_tokens": sums[1], "completion_tokens_at_most": sums[2],
            "cost_at_most": cost, "max_spend": max_spend[0],
        }))?;
    } else {
        output::stdout(&text)?;
    }
    Ok(Exit::Ok)
}
