//! Makes demonstration traces out of a labelled data set (text and category), because nobody's production log can be
//! published: a simulated frontier model answers, simulated customers write and react. Seeded, and only basic
//! arithmetic, so that the same seed gives the same bytes on every machine.

pub mod booking;
pub mod bulk;
mod disturb;
mod frontier;

use crate::Error;
use crate::redact::Redactor;
use crate::review::{Decision, Verdict};
use crate::text::Rng;
use crate::trace::{self, Trace};
use frontier::Frontier;
use serde_json::{Value, json};
use std::path::Path;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// What to make.
#[derive(Clone, Debug, PartialEq)]
pub struct SimulatePlan {
    /// The first so many categories in byte order; 0 takes all.
    pub classes: usize,
    /// Messages a category; 0 takes all.
    pub per_class: usize,
    pub customers: usize,
    /// Share of answers that name another category; those that name none come on top, some 0.7 in 100.
    pub error_rate: f64,
    pub seed: u64,
    /// Who is named as the reviewer of the gold labels.
    pub reviewer: String,
}

impl Default for SimulatePlan {
    /// The quickstart's.
    fn default() -> SimulatePlan {
        SimulatePlan {
            classes: 12,
            per_class: 87,
            customers: 160,
            error_rate: 0.075,
            seed: 17,
            reviewer: "banking77-gold".to_string(),
        }
    }
}

/// A message of the source and the category that people gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labelled {
    pub text: String,
    pub category: String,
}

/// Both files' content: one JSON object a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulated {
    pub traces: String,
    pub decisions: String,
    pub labels: Vec<String>,
}

/// The name in every trace: nobody should take these answers for a real model's.
pub const MODEL: &str = "frontier-large-1 (simulated)";

/// Days over which the calls are spread.
const DAYS: i64 = 42;
/// 2025-02-03T00:00:00Z, a Monday: well in the past, so that a real reviewer's decisions come after the simulated ones.
const START: i64 = 1_738_540_800;

/// A call before it becomes a line.
struct Call {
    at: OffsetDateTime,
    customer: usize,
    text: String,
    gold: usize,
    answer: String,
    finish_reason: &'static str,
    damage: Option<disturb::Damage>,
}

/// Makes traces and the decisions on them. `source` is in the order of its files; equal texts count once.
pub fn simulate(plan: &SimulatePlan, source: &[Labelled]) -> Result<Simulated, Error> {
    let mut labels: Vec<String> = source.iter().map(|l| l.category.clone()).collect();
    labels.sort();
    labels.dedup();
    if plan.classes > 0 {
        labels.truncate(plan.classes);
    }
    if labels.len() < 2 || plan.customers == 0 {
        return Err(Error::Source { why: "it needs two categories and a customer at least".to_string() });
    }
    let mut rng = Rng::new(plan.seed);
    let chosen = choose(plan, source, &labels, &mut rng);
    let frontier = Frontier::new(&chosen, labels.len(), plan.error_rate);
    let mut calls = calls(plan, &chosen, &labels, &frontier, &mut rng);
    calls.sort_by_key(|c| c.at);
    write(plan, &calls, labels, &mut rng)
}

/// Balanced: so many a category, drawn without replacement. Pairs of text and index of its label.
fn choose(plan: &SimulatePlan, source: &[Labelled], labels: &[String], rng: &mut Rng) -> Vec<(String, usize)> {
    let mut chosen = Vec::new();
    for (label, name) in labels.iter().enumerate() {
        let mut seen = std::collections::BTreeSet::new();
        let mut texts: Vec<&str> =
            source.iter().filter(|l| l.category == *name).map(|l| l.text.trim()).filter(|t| seen.insert(*t)).collect();
        rng.shuffle(&mut texts);
        let n = if plan.per_class == 0 { texts.len() } else { plan.per_class.min(texts.len()) };
        chosen.extend(texts[..n].iter().map(|t| (t.to_string(), label)));
    }
    chosen
}

fn calls(
    plan: &SimulatePlan,
    chosen: &[(String, usize)],
    labels: &[String],
    frontier: &Frontier,
    rng: &mut Rng,
) -> Vec<Call> {
    // A few write often, most seldom.
    let activity: Vec<f64> =
        (0..plan.customers).map(|rank| 1.0 / (rank as f64 + plan.customers as f64 / 20.0)).collect();
    let call = |index: usize, text: String, rng: &mut Rng| {
        let answer = frontier.answer(index, rng);
        Call {
            at: moment(rng),
            customer: rng.weighted(&activity),
            text,
            gold: chosen[index].1,
            answer: labels[answer].clone(),
            finish_reason: "stop",
            damage: None,
        }
    };
    let mut calls: Vec<Call> = (0..chosen.len()).map(|i| call(i, chosen[i].0.clone(), rng)).collect();

    // Duplicates and near-duplicates, answered anew: the frontier is not always of one mind.
    for _ in 0..chosen.len() / 42 {
        let i = rng.below(chosen.len());
        calls.push(call(i, disturb::same_but_for_looks(&chosen[i].0, rng), rng));
    }
    for _ in 0..chosen.len() / 22 {
        let i = rng.below(chosen.len());
        calls.push(call(i, disturb::slightly_edited(&chosen[i].0, rng), rng));
    }
    // People put into a chat what does not belong there.
    for _ in 0..chosen.len() / 22 {
        let i = rng.below(calls.len());
        let pii = disturb::personal(rng);
        calls[i].text = format!("{} {pii}", calls[i].text);
    }
    // Answers that no label is: they are the frontier's mistakes, and stay.
    for n in 0..chosen.len() / 150 {
        let i = rng.below(calls.len());
        if n % 3 == 2 {
            calls[i].answer = calls[i].answer.chars().take(9).collect();
            calls[i].finish_reason = "length";
        } else {
            calls[i].answer = disturb::outside_the_taxonomy(&calls[i].answer, rng);
        }
    }
    // Lines that no log should hold, as extra lines: they take no labelled message away.
    for n in 0..(chosen.len() / 100).max(disturb::Damage::ALL.len()) {
        let i = rng.below(chosen.len());
        let mut bad = call(i, chosen[i].0.clone(), rng);
        bad.damage = Some(disturb::Damage::ALL[n % disturb::Damage::ALL.len()]);
        calls.push(bad);
    }
    calls
}

/// Mostly in office hours of a weekday.
fn moment(rng: &mut Rng) -> OffsetDateTime {
    let mut day = rng.below(DAYS as usize) as i64;
    if day % 7 >= 5 && rng.chance(0.6) {
        day -= 5;
    }
    let hour = if rng.chance(0.8) { 8 + rng.below(11) } else { rng.below(24) } as i64;
    let start = OffsetDateTime::UNIX_EPOCH + Duration::seconds(START);
    start + Duration::seconds(day * 86_400 + hour * 3_600 + rng.below(3_600) as i64)
}

fn write(plan: &SimulatePlan, calls: &[Call], labels: Vec<String>, rng: &mut Rng) -> Result<Simulated, Error> {
    let system = format!("Classify the customer message. Answer with one of: {}.", labels.join(", "));
    let redactor = Redactor::new()?;
    let (mut traces, mut reviewed) = (String::new(), Reviewed::by(&plan.reviewer, 4));
    for call in calls {
        let line = line(call, &system, &labels, rng);
        // The decision is about what the importer will make of the line, so that is what is asked.
        if let Ok(mut read) = trace::parse(line.as_bytes()) {
            read.redact(&redactor);
            let gold = &labels[call.gold];
            let right = read.label(&labels) == Some(gold.as_str());
            reviewed.judge(&read, right, gold);
        }
        traces.push_str(&line);
        traces.push('\n');
    }
    Ok(Simulated { traces, decisions: reviewed.decisions, labels })
}

fn line(call: &Call, system: &str, labels: &[String], rng: &mut Rng) -> String {
    let right = call.answer == labels[call.gold];
    let feedback = match rng.unit() {
        u if u < if right { 0.14 } else { 0.03 } => Some("thumbs_up"),
        u if u > if right { 0.985 } else { 0.78 } => Some("thumbs_down"),
        _ => None,
    };
    let prompt_tokens = 14 + (system.len() + call.text.len()) / 4;
    let completion_tokens = 1 + call.answer.len() / 4;
    let messages =
        vec![json!({ "role": "system", "content": system }), json!({ "role": "user", "content": call.text })];
    let sent = Sent {
        at: call.at,
        customer: format!("cust-{:04}", call.customer + 1),
        messages,
        answer: &call.answer,
        finish_reason: call.finish_reason,
        tokens: [prompt_tokens, completion_tokens],
        feedback,
        damage: call.damage,
    };
    sent.record(rng)
}

/// A call and its answer, as a log has them.
struct Sent<'a> {
    at: OffsetDateTime,
    customer: String,
    messages: Vec<Value>,
    answer: &'a str,
    finish_reason: &'a str,
    /// Of the prompt and of the answer.
    tokens: [usize; 2],
    feedback: Option<&'a str>,
    damage: Option<disturb::Damage>,
}

impl Sent<'_> {
    fn record(self, rng: &mut Rng) -> String {
        let [prompt_tokens, completion_tokens] = self.tokens;
        // Lognormal, median 900 ms; a longer answer takes longer.
        let latency_ms = (frontier::lognormal(0.42, rng) * 900.0) + 9.0 * completion_tokens as f64;
        let record = json!({
            "id": format!("call-{:012x}", rng.next_u64() >> 16),
            "time": rfc3339(self.at),
            "customer": self.customer,
            "request": { "model": "frontier-large-1", "messages": self.messages, "temperature": 0 },
            "response": {
                "id": format!("chatcmpl-sim-{:012x}", rng.next_u64() >> 16),
                "model": MODEL,
                "choices": [{
                    "index": 0,
                    "message": { "role": "assistant", "content": self.answer },
                    "finish_reason": self.finish_reason,
                }],
                "usage": {
                    "prompt_tokens": prompt_tokens,
                    "completion_tokens": completion_tokens,
                    "total_tokens": prompt_tokens + completion_tokens,
                },
            },
            "latency_ms": latency_ms.round() as u64,
            "feedback": self.feedback,
        });
        match self.damage {
            Some(damage) => damage.apply(record),
            None => record.to_string(),
        }
    }
}

/// What the simulated reviewer says, a decision a line.
struct Reviewed<'a> {
    reviewer: &'a str,
    /// Seconds a decision takes.
    pace: i64,
    decided: i64,
    decisions: String,
}

impl<'a> Reviewed<'a> {
    fn by(reviewer: &'a str, pace: i64) -> Self {
        Reviewed { reviewer, pace, decided: 0, decisions: String::new() }
    }

    fn judge(&mut self, read: &Trace, right: bool, gold: &str) {
        let (verdict, label) = if right { (Verdict::Accept, None) } else { (Verdict::Correct, Some(gold)) };
        let at = rfc3339(reviewed_from() + Duration::seconds(self.pace * self.decided));
        let decision = Decision::new(&at, self.reviewer, &read.id, verdict, label, &read.shown_sha256(), None);
        self.decisions.push_str(&decision.to_line());
        self.decisions.push('\n');
        self.decided += 1;
    }
}

/// When the simulated reviewer begins: the morning after the last call.
fn reviewed_from() -> OffsetDateTime {
    OffsetDateTime::UNIX_EPOCH + Duration::seconds(START + DAYS * 86_400 + 9 * 3_600)
}

fn rfc3339(at: OffsetDateTime) -> String {
    // Whole seconds of this century always format.
    at.format(&Rfc3339).unwrap_or_default()
}

/// Reads Banking77's `train.csv` and `test.csv` (columns text, category) from a folder.
pub fn read_banking77(dir: &Path) -> Result<Vec<Labelled>, Error> {
    let mut out = Vec::new();
    for name in ["train.csv", "test.csv"] {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let records = crate::csv::parse(&text);
        if records.first().is_none_or(|head| *head != ["text", "category"]) {
            return Err(Error::Source { why: format!("{} does not begin with `text,category`", path.display()) });
        }
        for record in records.into_iter().skip(1) {
            match <[String; 2]>::try_from(record) {
                Ok([text, category]) => out.push(Labelled { text, category: category.trim().to_string() }),
                Err(r) => {
                    let why = format!("{} has a record of {} fields where 2 belong", path.display(), r.len());
                    return Err(Error::Source { why });
                }
            }
        }
    }
    Ok(out)
}
