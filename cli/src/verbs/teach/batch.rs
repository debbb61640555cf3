//! `teach` through a provider's batch files: requests are written instead of sent, and results are taken in as if they had been
//! replies. Nothing here uses the network.

use super::Teacher;
use super::sort::End;
use crate::args::Teach;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::Settings;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::untrusted::visible_line;
use limbeck_distill::endpoint::{BatchFile, Batched, Fate, MAX_REQUESTS, Taken, read_batch};
use limbeck_tui::progress::{bytes, count};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What was written for one teacher.
pub struct Requests<'t> {
    teacher: &'t Teacher,
    files: Vec<BatchFile>,
    requests: usize,
    prompt_tokens: u64,
    completion_tokens: u64,
    cost: Option<f64>,
}

/// Writes what is still to be asked of each teacher, under the spend cap as estimated.
///
/// # Errors
/// Where it could cost more than is allowed, or the files can't be written.
pub fn write<'t>(teachers: &'t [Teacher], file: &Path, args: &Teach) -> Result<Vec<Requests<'t>>> {
    let most = args.batch_requests.unwrap_or(MAX_REQUESTS);
    let mut all = Vec::new();
    for teacher in teachers {
        let Teacher { live, endpoint, questions } = teacher;
        let (requests, prompt_tokens, completion_tokens) = endpoint.estimate_batch(questions, &live.sampling);
        let plan = &live.plan;
        let cost = plan.budget.price.map(|price| price.of(prompt_tokens, completion_tokens) * plan.batch_share);
        all.push(Requests { teacher, files: Vec::new(), requests, prompt_tokens, completion_tokens, cost });
    }
    // One cap that was typed holds for all of them; a recipe's for its arm.
    let of = |r: &Requests| (r.cost.unwrap_or(0.0), r.teacher.endpoint.spent());
    match args.max_spend {
        Some(cap) => {
            let (cost, spent) = all.iter().map(of).fold((0.0, 0.0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
            under(cap, cost, spent, "--max-spend")?;
        }
        None => {
            for requests in &all {
                if let Some(cap) = requests.teacher.live.plan.budget.max_spend {
                    let (cost, spent) = of(requests);
                    under(
                        cap,
                        cost,
                        spent,
                        &format!("max_spend of arm `{}`, or --max-spend", requests.teacher.live.name),
                    )?;
                }
            }
        }
    }
    for requests in &mut all {
        let Teacher { live, endpoint, questions } = requests.teacher;
        let path = if teachers.len() > 1 { of_arm(file, &live.name) } else { file.to_owned() };
        requests.files = endpoint.write_batch(questions, &live.sampling, &path, most)?;
    }
    Ok(all)
}

fn under(cap: f64, cost: f64, spent: f64, what: &str) -> Result<()> {
    if spent + cost <= cap {
        return Ok(());
    }
    let beside = if spent > 0.0 { format!(" beside {spent:.4} spent already") } else { String::new() };
    let message = format!("the batch could cost about {cost:.4}{beside}, and no more than {cap} may be spent");
    Err(Failure::new(Exit::Unexpected, message)
        .help(format!("raise {what}, ask fewer messages, or have fewer --samples")))
}

/// `batch.jsonl` of the arm `big` as `batch-big.jsonl`: a batch has one model.
fn of_arm(path: &Path, arm: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let end = path.extension().map_or_else(String::new, |end| format!(".{}", end.to_string_lossy()));
    path.with_file_name(format!("{stem}-{arm}{end}"))
}

/// What was written, in words that are put after others.
pub fn told(all: &[Requests]) -> String {
    let mut out = String::new();
    for Requests { teacher, files, requests, prompt_tokens, completion_tokens, cost } in all {
        let live = &teacher.live;
        let (model, kept) = (visible_line(&live.plan.model), teacher.questions.len() - requests);
        if *requests == 0 {
            out.push_str(&format!(
                "all {} requests to {model} have their end already; nothing is written\n",
                count(kept as u64)
            ));
            continue;
        }
        let beside = if kept > 0 { format!(" ({} have their end already)", count(kept as u64)) } else { String::new() };
        let cost = match cost {
            Some(cost) if live.plan.batch_share < 1.0 => format!("about {} at a batch's price", live.money(*cost)),
            Some(cost) => format!("about {}", live.money(*cost)),
            None => "at no known price".to_owned(),
        };
        out.push_str(&format!(
            "{} requests to {model}{beside}: some {prompt_tokens} tokens in prompts, at most {completion_tokens} in answers, {cost}\n",
            count(*requests as u64)
        ));
        for file in files {
            out.push_str(&format!(
                "  {}: {} requests, {}\n",
                file.path.display(),
                count(file.requests as u64),
                bytes(file.bytes)
            ));
        }
    }
    if all.iter().any(|requests| requests.requests > 0) {
        out.push_str(
            "\nNext: have the provider run each file as a batch, then give its results, and its errors, to the same command with \
             --batch-read FILE in the place of --batch-write\n",
        );
    }
    out
}

pub fn json(all: &[Requests]) -> Value {
    let one = |r: &Requests| {
        let files = |file: &BatchFile| json!({"file": file.path, "requests": file.requests, "bytes": file.bytes});
        json!({
            "arm": r.teacher.live.name, "model": r.teacher.live.plan.model, "requests": r.requests,
            "prompt_tokens": r.prompt_tokens, "completion_tokens_at_most": r.completion_tokens, "cost_at_most": r.cost,
            "max_spend": r.teacher.live.plan.budget.max_spend, "files": r.files.iter().map(files).collect::<Vec<_>>(),
        })
    };
    all.iter().map(one).collect()
}

/// Says what was written and nothing else.
///
/// # Errors
/// When stdout is closed.
pub fn tell(settings: &Settings, all: &[Requests], [messages, unreadable]: [usize; 2]) -> Result<()> {
    if settings.json {
        return output::json(&json!({"messages": messages, "unreadable": unreadable, "batches": json(all)}));
    }
    let left = match unreadable {
        0 => String::new(),
        n => format!("{} lines could not be read, and are in no batch\n", count(n as u64)),
    };
    output::stdout(&(left + &told(all)))
}

/// Takes the results in, and tells lines that are out of order.
///
/// # Errors
/// When a file can't be read or a reply can't be kept; when nothing in the files answers what is asked here.
pub fn read(teachers: &mut [Teacher], paths: &[PathBuf], emit: &dyn Emit) -> Result<Taken> {
    let mut asked: Vec<Batched> = teachers
        .iter_mut()
        .map(|Teacher { live, endpoint, questions }| Batched { endpoint, questions, sampling: &live.sampling })
        .collect();
    let taken = read_batch(&mut asked, paths)?;
    if taken.lines() > 0 && taken.of(Fate::Unknown) + taken.of(Fate::Illegible) == taken.lines() {
        let message = format!("none of the {} lines is a result of what is asked here", count(taken.lines()));
        return Err(Failure::new(Exit::Usage, message).help(
            "a result belongs to one model, prompt, temperature and message: give the same recipe, --arm, --messages, --samples and \
             --temperature as when the batch was written",
        ));
    }
    for (fate, places) in &taken.shown {
        let why = match fate {
            Fate::Refused => "were refused, and are not asked again",
            Fate::Failed => "failed, and can be asked again",
            Fate::Repeated => "answer what a line before answered, and are left out",
            Fate::Unknown => "answer nothing that is asked here, and are left out",
            Fate::Illegible => "can't be read as results",
            Fate::Answered | Fate::Known => continue,
        };
        let (n, shown) = (taken.of(*fate), places.len() as u64);
        let more = if n > shown { format!("; and {} more", count(n - shown)) } else { String::new() };
        let lines = if n == 1 { "line" } else { "lines" };
        emit.emit(EventKind::Warning { text: format!("{} {lines} {why}: {}{more}", count(n), places.join("; ")) });
    }
    Ok(taken)
}

/// What is said of a message some of whose draws can still be asked.
pub fn unfinished(id: &str, ends: &[&[End]]) -> Option<Value> {
    let draws = || ends.iter().copied().flatten();
    let lacks = |end: &&End| match end {
        None => true,
        Some(end) => end.as_ref().is_err_and(|rejection| rejection.again),
    };
    let lacking = draws().filter(lacks).count();
    if lacking == 0 {
        return None;
    }
    let why = draws().flatten().find_map(|end| end.as_ref().err()).map_or("", |rejection| rejection.detail.as_str());
    let colon = if why.is_empty() { "" } else { ": " };
    let detail = format!("{lacking} of {} draws have no result{colon}{}", draws().count(), visible_line(why));
    Some(json!({"id": id, "reason": "no_result", "detail": detail}))
}

/// Requests that have no result, or failed for no fault of theirs.
pub fn missing(teachers: &[Teacher]) -> usize {
    teachers.iter().map(|t| t.endpoint.estimate_batch(&t.questions, &t.live.sampling).0).sum()
}

/// What the files held, in words.
pub fn taken(taken: &Taken, missing: usize) -> String {
    let counts: Vec<String> = taken.fates.iter().map(|(fate, n)| format!("{} {}", count(*n), fate.name())).collect();
    let missing = match missing {
        0 => "none is missing".to_owned(),
        n => format!("{} requests still have no result", count(n as u64)),
    };
    format!("{} lines of results: {}; {missing}\n", count(taken.lines()), counts.join(", "))
}
