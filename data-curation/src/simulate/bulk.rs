//! Logs of any length with the truth written beside them: near-duplicate pairs of known similarity, exact copies, copies
//! answered otherwise, things people should not have typed. Every trace comes from its own number, so any thread may
//! make it and the bytes are the same.

use super::disturb;
use crate::Error;
use crate::redact::Redactor;
use crate::review::{Decision, Verdict};
use crate::text::{Rng, jaccard, mix, normal_form, shingles};
use crate::trace;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::Write;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BulkPlan {
    pub count: u64,
    pub seed: u64,
}

/// Two traces of which the later is an edit of the earlier; a line of the pairs file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pair {
    pub a: String,
    pub b: String,
    /// Of their messages' shingles.
    pub jaccard: f64,
}

/// What was planted, in all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Planted {
    pub traces: u64,
    pub bytes: u64,
    pub pairs: u64,
    pub exact_copies: u64,
    /// Of pairs and copies, those that were answered otherwise.
    pub conflicts: u64,
    pub personal: u64,
    pub decisions: u64,
}

/// The labels of such a log.
pub fn labels() -> Vec<String> {
    let topics = ["account", "card", "delivery", "invoice", "login", "refund"];
    let kinds = ["missing", "question", "wrong"];
    topics.iter().flat_map(|t| kinds.iter().map(move |k| format!("{t}_{k}"))).collect()
}

const BLOCK: u64 = 8192;
const WORDS: usize = 6000;

/// Traces, pairs and decisions (of every twentieth trace), each as JSON lines.
pub fn bulk(
    plan: &BulkPlan,
    traces: &mut dyn Write,
    pairs: &mut dyn Write,
    decisions: &mut dyn Write,
) -> Result<Planted, Error> {
    let failed = |e: std::io::Error| Error::Source { why: format!("writing the log: {e}") };
    let (words, labels, redactor) = (words(), labels(), Redactor::new()?);
    let mut planted = Planted::default();
    for from in (0..plan.count).step_by(BLOCK as usize) {
        let numbers: Vec<u64> = (from..(from + BLOCK).min(plan.count)).collect();
        let make = |n: &u64| Made::of(*n, plan, &words, &labels, &redactor);
        for made in numbers.par_iter().map(make).collect::<Vec<Made>>() {
            planted.traces += 1;
            planted.bytes += made.line.len() as u64;
            planted.exact_copies += u64::from(made.exact);
            planted.conflicts += u64::from(made.conflict);
            planted.personal += u64::from(made.personal);
            traces.write_all(made.line.as_bytes()).map_err(failed)?;
            if let Some(pair) = made.pair {
                planted.pairs += 1;
                writeln!(pairs, "{}", json!(pair)).map_err(failed)?;
            }
            if let Some(decision) = made.decision {
                planted.decisions += 1;
                writeln!(decisions, "{decision}").map_err(failed)?;
            }
        }
    }
    Ok(planted)
}

struct Made {
    line: String,
    pair: Option<Pair>,
    exact: bool,
    conflict: bool,
    personal: bool,
    decision: Option<String>,
}

/// What a trace is, by its number alone.
enum Origin {
    Own,
    /// An edit of, or the same as, an earlier trace of its own.
    EditOf(u64),
    CopyOf(u64),
}

/// Of every twenty traces, the last three: two edits and a copy of one of those before.
fn origin(n: u64, seed: u64) -> Origin {
    let (block, at) = (n / 20 * 20, n % 20);
    // Not the first, which may hold something personal.
    let earlier = |salt: u64| block + 1 + mix(seed ^ n ^ salt) % 16;
    match at {
        17 => Origin::EditOf(earlier(1)),
        18 => Origin::EditOf(earlier(2)),
        19 => Origin::CopyOf(earlier(3)),
        _ => Origin::Own,
    }
}

impl Made {
    fn of(n: u64, plan: &BulkPlan, words: &[String], labels: &[String], redactor: &Redactor) -> Made {
        let mut rng = Rng::new(mix(plan.seed) ^ mix(n ^ 0xb01c));
        let (text, own, kin) = match origin(n, plan.seed) {
            Origin::Own => (message(n, plan.seed, words), n, None),
            Origin::EditOf(of) => (edited(&message(of, plan.seed, words), words, &mut rng), of, Some(of)),
            Origin::CopyOf(of) => (disturb::same_but_for_looks(&message(of, plan.seed, words), &mut rng), of, None),
        };
        let exact = own != n && kin.is_none();
        let mut label = (mix(plan.seed ^ mix(own) ^ 7) % labels.len() as u64) as usize;
        let conflict = own != n && rng.chance(0.2);
        if conflict {
            label = (label + 1 + rng.below(labels.len() - 1)) % labels.len();
        }
        // Only what is no part of a pair: a redacted value would change the similarity that is written down.
        let personal = own == n && n.is_multiple_of(20);
        let pair = kin.map(|of| {
            let set = |text: &str| shingles(&normal_form(text));
            Pair {
                a: id(of, plan.seed),
                b: id(n, plan.seed),
                jaccard: jaccard(&set(&message(of, plan.seed, words)), &set(&text)),
            }
        });
        let text = if personal { format!("{text} {}", disturb::personal(&mut rng)) } else { text };
        let line = line(n, plan, &text, &labels[label], labels, &mut rng);
        let decision = (n % 20 == 5).then(|| decision(n, &line, redactor)).flatten();
        Made { line, pair, exact, conflict, personal, decision }
    }
}

fn id(n: u64, seed: u64) -> String {
    format!("call-{:010}-{:06x}", n, mix(n ^ seed) >> 40)
}

/// Some 250 characters: a greeting that many share, then sentences of words of which some are frequent and most rare.
fn message(n: u64, seed: u64, words: &[String]) -> String {
    let mut rng = Rng::new(mix(seed ^ 0x3e55) ^ mix(n));
    const OPENERS: [&str; 4] =
        ["Hello, I am writing to you about my account.", "Hi there,", "Good morning, I hope you can help me.", ""];
    let mut text = rng.pick(&OPENERS).to_string();
    for _ in 0..2 + rng.below(4) {
        for i in 0..5 + rng.below(9) {
            // Cubed: a tenth of the words makes half of the text.
            let rank = (rng.unit() * rng.unit() * rng.unit() * words.len() as f64) as usize;
            let word = &words[rank];
            if !text.is_empty() {
                text.push(' ');
            }
            if i == 0 {
                text.push_str(&word[..1].to_uppercase());
                text.push_str(&word[1..]);
            } else {
                text.push_str(word);
            }
        }
        text.push('.');
    }
    text
}

/// One to six words exchanged, added or dropped: similarities from 0.5 to nearly 1.
fn edited(text: &str, words: &[String], rng: &mut Rng) -> String {
    let mut parts: Vec<&str> = text.split(' ').collect();
    for _ in 0..1 + rng.below(6) {
        let at = rng.below(parts.len());
        match rng.below(3) {
            0 => parts[at] = &words[rng.below(words.len())],
            1 => parts.insert(at, &words[rng.below(words.len())]),
            _ if parts.len() > 8 => {
                parts.remove(at);
            }
            _ => {}
        }
    }
    parts.join(" ")
}

/// Pronounceable and distinct enough; the same on every machine.
fn words() -> Vec<String> {
    const ONSETS: [&str; 16] = ["b", "c", "d", "f", "g", "l", "m", "n", "p", "r", "s", "t", "v", "st", "tr", "ch"];
    const VOWELS: [&str; 7] = ["a", "e", "i", "o", "u", "ea", "ou"];
    const ENDS: [&str; 9] = ["", "", "n", "r", "s", "t", "ck", "ng", "ly"];
    let mut rng = Rng::new(77);
    (0..WORDS)
        .map(|_| {
            let mut word = String::new();
            for _ in 0..1 + rng.below(3) {
                word.push_str(ONSETS[rng.below(ONSETS.len())]);
                word.push_str(VOWELS[rng.below(VOWELS.len())]);
            }
            word + ENDS[rng.below(ENDS.len())]
        })
        .collect()
}

fn line(n: u64, plan: &BulkPlan, text: &str, answer: &str, labels: &[String], rng: &mut Rng) -> String {
    let at =
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(super::START + (n * 3_600 * 24 * 42 / plan.count.max(1)) as i64);
    let system = format!(
        "You sort the messages that customers send to our support desk. Read the whole message, decide what it is mainly \
         about, and answer with exactly one of these labels and nothing else: {}.",
        labels.join(", ")
    );
    let record = json!({
        "id": id(n, plan.seed),
        "time": at.format(&Rfc3339).unwrap_or_default(),
        "customer": format!("cust-{:07}", mix(n ^ plan.seed ^ 5) % (plan.count / 8).max(50)),
        "request": {
            "model": "frontier-large-1",
            "messages": [{ "role": "system", "content": system }, { "role": "user", "content": text }],
            "temperature": 0,
        },
        "response": {
            "model": super::MODEL,
            "choices": [{
                "index": 0, "message": { "role": "assistant", "content": answer }, "finish_reason": "stop",
            }],
            "usage": { "prompt_tokens": 120 + text.len() / 4, "completion_tokens": 4 },
        },
        "latency_ms": 300 + rng.below(1500),
        "feedback": if rng.chance(0.1) { Some("thumbs_up") } else { None },
    });
    format!("{record}\n")
}

fn decision(n: u64, line: &str, redactor: &Redactor) -> Option<String> {
    let mut read = trace::parse(line.trim_end().as_bytes()).ok()?;
    read.redact(redactor);
    let at = OffsetDateTime::UNIX_EPOCH + Duration::seconds(super::START + super::DAYS * 86_400 + n as i64);
    let at = at.format(&Rfc3339).ok()?;
    let shown = read.shown_sha256();
    Some(Decision::new(&at, "simulated", &read.id, Verdict::Accept, None, &shown, None).to_line())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(count: u64) -> (String, Vec<Pair>, String, Planted) {
        let (mut traces, mut pairs, mut decisions) = (Vec::new(), Vec::new(), Vec::new());
        let planted = bulk(&BulkPlan { count, seed: 1 }, &mut traces, &mut pairs, &mut decisions).unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let pairs = text(pairs).lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        (text(traces), pairs, text(decisions), planted)
    }

    #[test]
    fn a_log_is_the_same_whatever_the_threads_and_holds_what_it_says() {
        let (traces, pairs, decisions, planted) = made(2000);
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one.install(|| made(2000)).0, traces);
        assert_eq!((planted.traces, planted.pairs, planted.exact_copies, planted.decisions), (2000, 200, 100, 100));
        assert!((700..1400).contains(&(traces.len() / 2000)), "{} bytes a trace", traces.len() / 2000);
        assert_eq!(decisions.lines().count(), 100);
        let similar = |from: f64, to: f64| pairs.iter().filter(|p| (from..to).contains(&p.jaccard)).count();
        assert!(similar(0.8, 1.0) >= 60 && similar(0.5, 0.8) >= 40, "{pairs:?}");
        let lines: Vec<serde_json::Value> = traces.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let message = |id: &str| {
            let line = lines.iter().find(|l| l["id"] == id).unwrap();
            line["request"]["messages"][1]["content"].as_str().unwrap().to_string()
        };
        for pair in &pairs[..20] {
            let set = |id: &str| shingles(&normal_form(&message(id)));
            assert_eq!(jaccard(&set(&pair.a), &set(&pair.b)), pair.jaccard);
        }
    }
}
