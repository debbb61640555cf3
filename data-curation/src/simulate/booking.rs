//! Demonstration traces of an extraction, out of restaurant8k: a simulated frontier model writes what guests' messages say
//! as JSON, and errs as such models do: a field left out, a span cut wrong, a value made up, no valid JSON at all.

use super::disturb::Damage;
use super::{Reviewed, Sent, moment};
use crate::redact::Redactor;
use crate::taxonomy::{Answers, Fields};
use crate::text::Rng;
use crate::{Error, trace};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::path::Path;
use time::OffsetDateTime;

/// The slots of the data set, in the order of the answer, and what an assistant asks for each.
const SLOTS: [(&str, &str); 5] = [
    ("date", "What day would you like to come?"),
    ("time", "What time would you like the table?"),
    ("people", "For how many people?"),
    ("first_name", "What is your first name?"),
    ("last_name", "And your last name?"),
];

/// What the recorded prompt says. Twice as long as needed, as prompts of frontier models are.
pub const SYSTEM: &str = "Extract the booking details from the guest's message. Answer with a JSON object that has \
                          any of date, time, people, first_name and last_name, each exactly as the guest wrote it. \
                          Leave out what the guest does not say. Answer with the JSON only.";

/// What to make.
#[derive(Clone, Debug, PartialEq)]
pub struct BookingPlan {
    /// Messages without a slot, with one, with two, and with more.
    pub messages: [usize; 4],
    pub customers: usize,
    /// Share of answers with a wrong value; those that are no valid JSON come on top, some 1.5 in 100.
    pub error_rate: f64,
    pub seed: u64,
    /// Who is named as the reviewer of the gold spans.
    pub reviewer: String,
}

impl Default for BookingPlan {
    /// The recipe's.
    fn default() -> BookingPlan {
        BookingPlan {
            messages: [180, 450, 270, 180],
            customers: 170,
            error_rate: 0.08,
            seed: 17,
            reviewer: "restaurant8k-gold".to_string(),
        }
    }
}

/// A message of the source: what was asked for before it, and the value of each slot that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booked {
    pub text: String,
    pub requested: Vec<String>,
    /// In the order of the answer.
    pub values: Vec<(&'static str, String)>,
}

#[derive(Clone)]
struct Call {
    at: OffsetDateTime,
    customer: usize,
    booked: Booked,
    answer: String,
    finish_reason: &'static str,
    damage: Option<Damage>,
}

/// Makes traces and the decisions on them; `schema` is the text of the answers' schema.
///
/// # Errors
/// When the schema is none, or the source has too few messages of a kind.
pub fn simulate_bookings(plan: &BookingPlan, source: &[Booked], schema: &str) -> Result<[String; 2], Error> {
    let fields = Fields::parse(schema).map_err(|e| Error::Source { why: format!("the schema: {e}") })?;
    let mut rng = Rng::new(plan.seed);
    let redactor = Redactor::new()?;
    let chosen = choose(plan, source, &redactor, &mut rng)?;
    let mut calls = calls(plan, &chosen, &mut rng);
    calls.sort_by_key(|c| c.at);
    write(plan, &calls, &Answers::Fields(fields), &redactor, &mut rng)
}

/// So many of each kind, drawn without replacement; equal messages after the same question count once. Messages that
/// redaction would change are left out: their gold values might be what it takes.
fn choose(plan: &BookingPlan, source: &[Booked], redactor: &Redactor, rng: &mut Rng) -> Result<Vec<Booked>, Error> {
    let mut chosen = Vec::new();
    for (kind, n) in plan.messages.into_iter().enumerate() {
        let mut seen = BTreeSet::new();
        let mut of_kind: Vec<&Booked> = source
            .iter()
            .filter(|b| b.values.len().min(3) == kind && seen.insert((&b.text, &b.requested)))
            .filter(|b| redactor.document().redact(&b.text) == b.text)
            .collect();
        rng.shuffle(&mut of_kind);
        if of_kind.len() < n {
            let why = format!("it has {} messages with {kind} slots, and {n} are asked for", of_kind.len());
            return Err(Error::Source { why });
        }
        chosen.extend(of_kind[..n].iter().map(|b| (*b).clone()));
    }
    Ok(chosen)
}

fn calls(plan: &BookingPlan, chosen: &[Booked], rng: &mut Rng) -> Vec<Call> {
    // A few write often, most seldom.
    let activity: Vec<f64> =
        (0..plan.customers).map(|rank| 1.0 / (rank as f64 + plan.customers as f64 / 20.0)).collect();
    let call = |booked: Booked, rng: &mut Rng| Call {
        at: moment(rng),
        customer: rng.weighted(&activity),
        answer: answer(&booked, plan.error_rate, rng),
        booked,
        finish_reason: "stop",
        damage: None,
    };
    let mut calls: Vec<Call> = chosen.iter().map(|b| call(b.clone(), rng)).collect();
    for n in 0..chosen.len() / 18 {
        let copy = if n % 2 == 0 { same_but_for_looks } else { slightly_edited };
        let booked = copy(rng.pick(chosen), rng);
        calls.push(call(booked, rng));
    }
    for _ in 0..chosen.len() / 36 {
        let i = rng.below(calls.len());
        let contact = contact(rng);
        calls[i].booked.text = format!("{} {contact}", calls[i].booked.text);
    }
    for n in 0..chosen.len() / 65 {
        let i = rng.below(calls.len());
        (calls[i].answer, calls[i].finish_reason) = invalid(&calls[i].answer, n);
    }
    let plain: Vec<&Booked> = chosen.iter().filter(|b| b.requested.is_empty()).collect();
    for n in 0..Damage::ALL.len() + 3 {
        let mut bad = call((*rng.pick(&plain)).clone(), rng);
        bad.damage = Some(Damage::ALL[n % Damage::ALL.len()]);
        calls.push(bad);
    }
    calls
}

/// The frontier's answer: as models write JSON, mostly bare, sometimes in a fence, sometimes with nulls.
fn answer(booked: &Booked, error_rate: f64, rng: &mut Rng) -> String {
    let mut values = booked.values.clone();
    if rng.chance(error_rate) {
        err(&mut values, rng);
    }
    let nulls = rng.chance(0.06);
    let said = SLOTS.iter().filter_map(|(slot, _)| {
        let value = values.iter().find(|(name, _)| name == slot).map(|(_, value)| json!(value));
        value.or(nulls.then_some(Value::Null)).map(|value| format!("\"{slot}\": {value}"))
    });
    let text = format!("{{{}}}", said.collect::<Vec<_>>().join(", "));
    if rng.chance(0.05) { format!("```json\n{text}\n```") } else { text }
}

/// One mistake: a field left out, a value cut wrong or under the wrong name, a value that nobody said.
fn err(values: &mut Vec<(&'static str, String)>, rng: &mut Rng) {
    let absent: Vec<&'static str> =
        SLOTS.iter().map(|s| s.0).filter(|slot| !values.iter().any(|(name, _)| name == slot)).collect();
    let made_up = |slot: &str| match slot {
        "date" => "today",
        "time" => "7pm",
        "people" => "2 people",
        "first_name" => "John",
        _ => "Smith",
    };
    let kind = if values.is_empty() { 3 } else { rng.below(4) };
    let at = rng.below(values.len().max(1));
    match kind {
        0 => {
            values.remove(at);
        }
        1 | 2 => match values[at].1.rsplit_once(' ') {
            // "5 people" becomes "5", "Friday the 3rd" "Friday the".
            Some((shorter, _)) => values[at].1 = shorter.to_string(),
            None if kind == 1 && !absent.is_empty() => values[at].0 = *rng.pick::<&str>(&absent),
            None => values[at].1 = format!("at {}", values[at].1),
        },
        _ if absent.is_empty() => {
            values.pop();
        }
        _ => {
            let slot = *rng.pick(&absent);
            values.push((slot, made_up(slot).to_string()));
        }
    }
}

/// What is no answer under the schema, and why it ended.
fn invalid(answer: &str, n: usize) -> (String, &'static str) {
    match n % 5 {
        0 => (answer.chars().take(answer.chars().count().saturating_sub(2) / 2 + 1).collect(), "length"),
        1 => (format!("Sure! Here are the details: {answer}"), "stop"),
        2 => ("I'm sorry, I can't find a booking in this message.".to_string(), "stop"),
        3 => ("{\"party_size\": 4, \"when\": \"evening\"}".to_string(), "stop"),
        _ => ("{\"people\": 4}".to_string(), "stop"),
    }
}

fn same_but_for_looks(booked: &Booked, rng: &mut Rng) -> Booked {
    match rng.below(3) {
        0 => booked.clone(),
        1 => Booked {
            text: booked.text.to_lowercase(),
            values: booked.values.iter().map(|(name, value)| (*name, value.to_lowercase())).collect(),
            ..booked.clone()
        },
        _ => Booked { text: format!("{} !", booked.text), ..booked.clone() },
    }
}

fn slightly_edited(booked: &Booked, rng: &mut Rng) -> Booked {
    let text = &booked.text;
    let text = match rng.below(3) {
        0 => format!("Hi, {text}"),
        1 => format!("Hello. {text}"),
        _ => format!("{text} thx"),
    };
    Booked { text, ..booked.clone() }
}

/// Numbers that Ofcom keeps for drama, and addresses at a name kept for examples.
fn contact(rng: &mut Rng) -> String {
    match rng.below(2) {
        0 => format!("My number is +44 7700 900{:03}.", rng.below(1000)),
        _ => format!("You can reach me at guest{}@example.com.", rng.below(90) + 10),
    }
}

fn write(
    plan: &BookingPlan,
    calls: &[Call],
    answers: &Answers,
    redactor: &Redactor,
    rng: &mut Rng,
) -> Result<[String; 2], Error> {
    let (mut traces, mut reviewed) = (String::new(), Reviewed::by(&plan.reviewer, 6));
    for call in calls {
        let gold: Map<String, Value> =
            call.booked.values.iter().map(|(name, value)| (name.to_string(), json!(value))).collect();
        let gold = answers.read(&Value::Object(gold).to_string()).map_err(|why| Error::Source { why })?;
        let line = line(call, rng);
        // The decision is about what the importer will make of the line, so that is what is asked.
        if let Ok(mut read) = trace::parse(line.as_bytes()) {
            read.redact(redactor);
            let right = read.read(answers).is_ok_and(|said| said == gold);
            reviewed.judge(&read, right, &gold);
        }
        traces.push_str(&line);
        traces.push('\n');
    }
    Ok([traces, reviewed.decisions])
}

fn line(call: &Call, rng: &mut Rng) -> String {
    let mut messages = vec![json!({ "role": "system", "content": SYSTEM })];
    let asked = SLOTS.iter().filter(|(slot, _)| call.booked.requested.iter().any(|r| r == slot));
    let asked: Vec<&str> = asked.map(|(_, question)| *question).collect();
    if !asked.is_empty() {
        messages.push(json!({ "role": "assistant", "content": asked.join(" ") }));
    }
    messages.push(json!({ "role": "user", "content": call.booked.text }));
    let prompt_tokens = 20 + (SYSTEM.len() + asked.concat().len() + call.booked.text.len()) / 4;
    let completion_tokens = 1 + call.answer.len() / 3;
    let sent = Sent {
        at: call.at,
        customer: format!("guest-{:04}", call.customer + 1),
        messages,
        answer: &call.answer,
        finish_reason: call.finish_reason,
        tokens: [prompt_tokens, completion_tokens],
        feedback: None,
        damage: call.damage,
    };
    sent.record(rng)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Turn {
    user_input: Input,
    #[serde(default)]
    context: Context,
    #[serde(default)]
    labels: Vec<Span>,
}

#[derive(Deserialize)]
struct Input {
    text: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Context {
    #[serde(default)]
    requested_slots: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Span {
    slot: String,
    value_span: Range,
}

/// In characters; what is 0 is left out in the files.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Range {
    #[serde(default)]
    start_index: usize,
    #[serde(default)]
    end_index: usize,
}

/// Reads restaurant8k's `train_0.json` and `test.json` from a folder.
///
/// # Errors
/// When a file can't be read, or a span lies outside its text.
pub fn read_restaurant8k(dir: &Path) -> Result<Vec<Booked>, Error> {
    let mut out = Vec::new();
    for name in ["train_0.json", "test.json"] {
        let path = dir.join(name);
        let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let turns: Vec<Turn> = serde_json::from_str(&text)
            .map_err(|e| Error::Source { why: format!("{} is not restaurant8k's: {e}", path.display()) })?;
        for turn in turns {
            out.push(booked(turn).map_err(|why| Error::Source { why: format!("{}: {why}", path.display()) })?);
        }
    }
    Ok(out)
}

fn booked(turn: Turn) -> Result<Booked, String> {
    let chars: Vec<char> = turn.user_input.text.chars().collect();
    let mut values = Vec::new();
    for (slot, _) in SLOTS {
        // A slot that is there twice keeps its first value: the answer has one of each.
        let Some(span) = turn.labels.iter().find(|l| l.slot == slot) else { continue };
        let range = span.value_span.start_index..span.value_span.end_index;
        let value = chars.get(range).ok_or_else(|| format!("a span outside of {:?}", turn.user_input.text))?;
        let value: String = value.iter().collect();
        if !value.trim().is_empty() {
            values.push((slot, value.trim().to_string()));
        }
    }
    Ok(Booked { text: turn.user_input.text.trim().to_string(), requested: turn.context.requested_slots, values })
}
