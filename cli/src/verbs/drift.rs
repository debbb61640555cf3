//! `limbeck drift`: whether new traffic is still what an artifact was measured on. The artifact answers a draw of the new calls;
//! what its answers look like is held against the reference in its policy.

use crate::args::Drift as Args;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal};
use crate::replay::{self, Calls};
use crate::settings::Settings;
use crate::verbs::score::{Scorer, find};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::untrusted::visible_line;
use limbeck_eval::{Drift, DriftVerdict, Observed, PERMUTATIONS, Policy, Tested, drift, embedding, spread, text_of};
use serde_json::json;
use std::collections::BTreeSet;

/// Calls that are answered at once.
const AT_ONCE: usize = 32;
/// Labels in the table of shifts.
const SHIFTS: usize = 8;

pub fn run(settings: &Settings, args: &Args) -> Result<Exit> {
    let (dir, manifest) = find(&args.of)?;
    let policy = manifest.file(&dir, "policy").map_err(|e| {
        Failure::of(Exit::Usage, &e).help("only artifacts of this version on carry a reference; package it again")
    })?;
    let policy = Policy::load(&policy)?;
    let redaction = replay::redactor(&dir, &manifest, args.no_redact)?;
    let scorer = Scorer::open(&dir, manifest, settings, None, None)?;
    let calls =
        replay::draw(&args.traces, &args.reading, redaction.redactor.as_ref(), args.limit, args.seed)?.some()?;
    let live = Terminal::of_stderr().live;
    let mut observed = Vec::with_capacity(calls.asked.len());
    let mut unanswered = 0u64;
    for calls_now in calls.asked.chunks(AT_ONCE) {
        let questions: Vec<&[Message]> = calls_now.iter().map(|call| call.messages.as_slice()).collect();
        for answer in scorer.answer_all(&questions) {
            match answer {
                Ok(answer) => observed.push(Observed {
                    score: answer.score,
                    label: answer
                        .label
                        .and_then(|label| policy.reference.labels.iter().position(|known| *known == label)),
                }),
                Err(_) => unanswered += 1,
            }
        }
        if live {
            let done = observed.len() as u64 + unanswered;
            output::stderr(&format!("\ranswered {done} of {}", calls.asked.len()));
        }
    }
    if live {
        output::stderr("\r\x1b[K");
    }
    let found = drift(&policy.reference, &observed, PERMUTATIONS, args.seed);
    // The reference's rows are no two alike; neither are these.
    let mut known = BTreeSet::new();
    let embedded = calls.asked.iter().map(|call| embedding(&text_of(&call.messages)));
    let embedded: Vec<String> = embedded.filter(|embedding| known.insert(embedding.clone())).collect();
    let messages: Vec<String> = spread(embedded.len()).map(|i| embedded[i].clone()).collect();
    let found = found.and_messages(&policy.reference, &messages, PERMUTATIONS, args.seed);
    if settings.json {
        let mut value = serde_json::to_value(&found)?;
        value["calls"] = json!(calls.seen);
        value["rejected"] = json!(calls.rejected);
        value["unanswered"] = json!(unanswered);
        value["recertify_by"] = json!(policy.validity.recertify_by);
        output::json(&value)?;
    } else {
        output::stdout(&text(&policy, &found, &calls, unanswered, redaction.told.as_deref()))?;
    }
    Ok(match found.verdict {
        DriftVerdict::Stable | DriftVerdict::Watch => Exit::Ok,
        DriftVerdict::TooFew => Exit::Inconclusive,
        DriftVerdict::Drifted => Exit::GateFailed,
    })
}

fn text(policy: &Policy, found: &Drift, calls: &Calls, unanswered: u64, redaction: Option<&str>) -> String {
    let percent = |x: f64| format!("{:.1} %", x * 100.0);
    let mut out = format!(
        "{}: {} {} on {} of {} calls, against {} reference rows\n\n",
        found.verdict.name().to_uppercase(),
        visible_line(&policy.name),
        visible_line(&policy.version),
        found.rows,
        calls.seen,
        found.reference_rows
    );
    let mut line = |what: &str, tested: &Option<Tested>| {
        let said = match tested {
            None => "–".to_owned(),
            Some(t) if t.p <= 0.001 => format!("{:.3}  p ≤ 0.001", t.value),
            Some(t) => format!("{:.3}  p = {:.3}", t.value, t.p),
        };
        out.push_str(&format!("  {what:<26} {said}\n"));
    };
    line("scores, PSI", &found.score_psi);
    line("scores, largest distance", &found.score_ks);
    line("answers, PSI", &found.answer_psi);
    line("messages, MMD²", &found.messages_mmd);
    out.push_str(&format!(
        "  {:<26} {} of {}\n",
        "not valid",
        percent(found.invalid_now),
        percent(found.invalid_before)
    ));
    if let (Some(now), Some(before)) = (found.expected_accuracy, found.accuracy_before) {
        let what = "accuracy, by label shift";
        out.push_str(&format!("  {what:<26} {} where it was {}\n", percent(now), percent(before)));
    }
    if let Some(why) = &found.no_shifts {
        out.push_str(&format!("  {:<26} {}\n", "label shift", visible_line(why)));
    }
    if !found.shifts.is_empty() && found.verdict > DriftVerdict::TooFew {
        let width = found.shifts.iter().take(SHIFTS).map(|s| visible_line(&s.label).chars().count()).max().unwrap_or(0);
        out.push_str("\n  labels that moved most, estimated share before and now\n");
        for shift in found.shifts.iter().take(SHIFTS) {
            let label = visible_line(&shift.label);
            let pad = " ".repeat(width - label.chars().count());
            out.push_str(&format!("    {label}{pad}  {:>7}  {:>7}\n", percent(shift.before), percent(shift.now)));
        }
    }
    out.push('\n');
    for advice in &found.advice {
        out.push_str(&format!("  {}\n", visible_line(advice)));
    }
    if let Some(day) = &policy.validity.recertify_by {
        out.push_str(&format!("  The policy asks to be certified again by {day}.\n"));
    }
    for (n, what) in [(calls.rejected, "records were no calls"), (unanswered, "calls could not be answered")] {
        if n > 0 {
            out.push_str(&format!("  {n} {what}.\n"));
        }
    }
    if let Some(told) = redaction {
        out.push_str(&format!("  {told}\n"));
    }
    out
}
