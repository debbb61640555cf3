//! Where a message belongs by what its draws say: what they agree on and the verifiers accept is a trace, the rest is for the
//! reviewers, and what no draw came for is rejected with a reason.

use super::Teacher;
use super::messages::Unanswered;
use crate::verifiers::{best_of, verified};
use limbeck_data_curation::review::TEACHER_DISAGREEMENT;
use limbeck_data_curation::taxonomy::Fields;
use limbeck_data_curation::trace::visible_message;
use limbeck_distill::best::{Best, Draw};
use limbeck_distill::endpoint::{Rejection, Reply};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The lines of the files that are written.
#[derive(Default)]
pub struct Written {
    pub traces: Vec<Value>,
    pub queue: Vec<Value>,
    pub rejected: Vec<Value>,
}

/// How a draw ended; none of one that was not asked.
pub type End = Option<Result<Reply, Rejection>>;

/// What one teacher said of a message.
struct Said<'t> {
    teacher: &'t Teacher,
    replies: Vec<&'t Reply>,
    draws: Vec<Draw>,
}

/// Puts a message where its draws say it belongs; `ends` are those of each teacher.
pub fn sort_in(
    teachers: &[Teacher],
    fields: Option<&Fields>,
    one: &Unanswered,
    ends: &[&[End]],
    min_agreement: f64,
    written: &mut Written,
) {
    let message = visible_message(&one.messages);
    let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
    let mut said = Vec::with_capacity(teachers.len());
    for (teacher, ends) in teachers.iter().zip(ends) {
        let replies: Vec<&Reply> = ends.iter().flatten().filter_map(|end| end.as_ref().ok()).collect();
        let draw = |reply: &&Reply| {
            let live = &teacher.live;
            let said = (reply.text.as_str(), reply.finish_reason.as_deref() == Some("length"));
            let answer = verified(&live.task, live.codes.as_ref(), fields, (&message, one.time.as_deref()), said);
            let answer = answer.map_err(|fault| *faults.entry(fault).or_default() += 1);
            Draw { answer: answer.ok(), probability: reply.probability() }
        };
        let draws = replies.iter().map(draw).collect();
        said.push(Said { teacher, replies, draws });
    }
    let Some(first) = said.iter().find_map(|said| said.replies.first()) else {
        let rejection = ends.iter().copied().flatten().flatten().find_map(|end| end.as_ref().err());
        let (reason, detail) = rejection.map_or(("not_asked", ""), |r| (r.reason.name(), r.detail.as_str()));
        written.rejected.push(json!({"id": one.id, "reason": reason, "detail": detail}));
        return;
    };
    // Each draw has a vote, whoever's it is.
    let draws: Vec<Draw> = said.iter().flat_map(|said| said.draws.iter().cloned()).collect();
    let best = best_of(&said[0].teacher.live.task, &draws);
    let valid = draws.iter().filter(|draw| draw.answer.is_some()).count();
    let mut told = json!({
        "draws": draws.len(), "valid": valid, "agreement": best.as_ref().map_or(0.0, |best| best.agreement), "faults": faults,
    });
    let who = |said: &Said| {
        let live = &said.teacher.live;
        json!({"arm": live.name, "prompt_sha256": live.prompt.sha256()})
    };
    match said.as_slice() {
        [alone] => {
            let who = who(alone);
            for key in ["arm", "prompt_sha256"] {
                told[key] = who[key].clone();
            }
        }
        several => {
            let member = |said: &Said| {
                let mut member = who(said);
                member["draws"] = json!(said.draws.len());
                member["answer"] = json!(best_of(&said.teacher.live.task, &said.draws).map(|best| best.answer));
                member
            };
            told["members"] = several.iter().map(member).collect();
        }
    }
    let trace = |answer: &str, feedback: Option<String>| trace(&said, one, answer, feedback, &told);
    match best {
        Some(Best { answer, agreement }) if agreement >= min_agreement => written.traces.push(trace(&answer, None)),
        Some(Best { answer, agreement }) => {
            let n = draws.len();
            let feedback =
                format!("{TEACHER_DISAGREEMENT}: {:.0} % of {n} draws agree{}", agreement * 100.0, members(&said));
            written.queue.push(trace(&answer, Some(feedback)));
        }
        // What no verifier accepts is shown as it was said.
        None => {
            let why = faults.keys().copied().collect::<Vec<_>>().join(", ");
            written.queue.push(trace(&first.text, Some(format!("{TEACHER_DISAGREEMENT}: no draw is valid ({why})"))));
        }
    }
}

/// Longer answers are not repeated in a line that a reviewer reads.
const SHORT: usize = 40;

/// What each of several teachers says, where that is short.
fn members(said: &[Said]) -> String {
    if said.len() < 2 {
        return String::new();
    }
    let answers: Vec<(&str, String)> = said
        .iter()
        .map(|said| {
            let live = &said.teacher.live;
            (
                live.name.as_str(),
                best_of(&live.task, &said.draws).map_or_else(|| "nothing".to_owned(), |best| best.answer),
            )
        })
        .collect();
    if answers.iter().any(|(_, answer)| answer.chars().count() > SHORT || answer.contains('\n')) {
        return String::new();
    }
    let answers: Vec<String> = answers.iter().map(|(name, answer)| format!("{name} says {answer}")).collect();
    format!("; {}", answers.join(", "))
}

/// A call as chat-completion logs have it. Its prompt is the recipe's, not what a teacher was told beside it.
fn trace(said: &[Said], one: &Unanswered, answer: &str, feedback: Option<String>, told: &Value) -> Value {
    let replies = || said.iter().flat_map(|said| said.replies.iter());
    let sum = |of: &dyn Fn(&Reply) -> Option<u64>| replies().filter_map(|reply| of(reply)).sum::<u64>();
    let joined = |names: Vec<&str>| names.join(" + ");
    let asked = joined(said.iter().map(|said| said.teacher.live.plan.model.as_str()).collect());
    let served = said.iter().map(|said| {
        let served = said.replies.iter().find_map(|reply| reply.model.as_deref());
        served.unwrap_or(&said.teacher.live.plan.model)
    });
    let mut trace = json!({
        "id": one.id,
        "request": {"model": asked, "messages": one.messages},
        "response": {
            "object": "chat.completion",
            "model": joined(served.collect()),
            "system_fingerprint": replies().find_map(|reply| reply.fingerprint.clone()),
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": sum(&|r| r.prompt_tokens), "completion_tokens": sum(&|r| r.completion_tokens)},
        },
        "limbeck_teacher": told,
    });
    // How long a call waits in a batch says nothing of the model.
    if let Some(latency_ms) = replies().filter(|reply| !reply.batch).map(|reply| reply.latency_ms).reduce(f64::max) {
        trace["latency_ms"] = json!(latency_ms);
    }
    let at = replies().next().map(|reply| reply.at.clone());
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
pub fn reasons(written: &Written) -> BTreeMap<String, u64> {
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
