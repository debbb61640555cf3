//! What is counted of one call site, in bounded memory whatever its volume.

use super::sketch::{Common, Distinct, Quantiles};
use crate::redact::Redactor;
use crate::text::{hash, mix, normal_form};
use crate::trace::{Trace, visible_message};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// Different answers and words of a site that are counted apart.
const ANSWERS: usize = 1024;
const WORDS: usize = 2048;
/// Words that make up a site's vocabulary: see [`Site::vocabulary`].
pub const VOCABULARY: usize = 512;
/// Fewer words say nothing about a vocabulary.
const MIN_WORDS: u64 = 2000;
/// An answer is kept for show up to so many characters.
const SHOWN: usize = 120;
/// Of a site's calls, the first so many are searched for personal data and grounding, and one in [`SAMPLE_EVERY`] after.
const SAMPLE_FIRST: u64 = 200;
const SAMPLE_EVERY: u64 = 16;
/// Models of a site that are told apart.
const MAX_MODELS: usize = 16;
/// An answer that came so often is one of a set, not free text.
pub const RECURS: u64 = 3;

/// Calls of one model, and their tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ModelCalls {
    pub calls: u64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
}

pub struct Site {
    pub calls: u64,
    pub models: BTreeMap<String, ModelCalls>,
    /// Calls whose tokens were not recorded: four characters are taken for one.
    pub estimated_tokens: u64,
    pub latency_ms: Quantiles,
    pub prompt_tokens: Quantiles,
    pub completion_tokens: Quantiles,
    pub answers: Common<String>,
    /// Sets of keys of answers that are JSON objects.
    pub keys: Common<()>,
    /// Answers that are JSON objects and no tool's call.
    pub objects: u64,
    inputs: Distinct,
    words: Common<()>,
    pub positive: u64,
    pub negative: u64,
    pub sampled: u64,
    pub personal: u64,
    /// Of the sampled: answers that recur, or whose words the prompt has.
    pub grounded: u64,
    pub cut_off: u64,
    pub first_at: Option<String>,
    pub last_at: Option<String>,
    pub customers: Distinct,
}

impl Default for Site {
    fn default() -> Site {
        Site {
            calls: 0,
            models: BTreeMap::new(),
            estimated_tokens: 0,
            latency_ms: Quantiles::default(),
            prompt_tokens: Quantiles::default(),
            completion_tokens: Quantiles::default(),
            answers: Common::new(ANSWERS),
            keys: Common::new(64),
            objects: 0,
            inputs: Distinct::default(),
            words: Common::new(WORDS),
            positive: 0,
            negative: 0,
            sampled: 0,
            personal: 0,
            grounded: 0,
            cut_off: 0,
            first_at: None,
            last_at: None,
            customers: Distinct::default(),
        }
    }
}

/// An answer without what does not matter: dress as the taxonomy's, see [`crate::taxonomy`].
pub fn bare(answer: &str) -> &str {
    answer.trim_matches(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '.' | '*'))
}

impl Site {
    pub fn add(&mut self, trace: &Trace, redactor: &Redactor) {
        self.calls += 1;
        let message = visible_message(&trace.messages);
        self.count_tokens(trace);
        if let Some(ms) = trace.latency_ms {
            self.latency_ms.add(ms);
        }
        let answer = bare(&trace.answer);
        let answer_hash = hash(answer.to_lowercase().as_bytes());
        self.answers.add(answer_hash, || answer.chars().take(SHOWN).collect());
        if let Some((keys, is_call)) = keys(answer) {
            self.keys.add(keys, || ());
            self.objects += u64::from(!is_call);
        }
        let normal = normal_form(&message);
        self.inputs.add(hash(normal.as_bytes()));
        normal.split(' ').filter(|w| w.chars().count() >= 3).for_each(|w| self.words.add(hash(w.as_bytes()), || ()));
        match trace.feedback.as_deref().and_then(liked) {
            Some(true) => self.positive += 1,
            Some(false) => self.negative += 1,
            None => {}
        }
        self.cut_off += u64::from(trace.finish_reason.as_deref() == Some("length"));
        if let Some(customer) = &trace.customer {
            self.customers.add(hash(customer.as_bytes()));
        }
        if let Some(at) = &trace.at {
            self.first_at = self.first_at.take().map(|first| first.min(at.clone())).or(Some(at.clone()));
            self.last_at = self.last_at.take().map(|last| last.max(at.clone())).or(Some(at.clone()));
        }
        if self.calls <= SAMPLE_FIRST || self.calls.is_multiple_of(SAMPLE_EVERY) {
            self.sampled += 1;
            self.personal += u64::from(!trace.clone().redact(redactor).is_empty());
            self.grounded += u64::from(self.answers.count(answer_hash) >= RECURS || grounded(trace, answer));
        }
    }

    fn count_tokens(&mut self, trace: &Trace) {
        let characters = |text: &str| (text.chars().count() as u64).div_ceil(4);
        let asked = || trace.messages.iter().map(|m| characters(&m.content)).sum::<u64>();
        if trace.prompt_tokens.is_none() || trace.completion_tokens.is_none() {
            self.estimated_tokens += 1;
        }
        let prompt = trace.prompt_tokens.unwrap_or_else(asked);
        let completion = trace.completion_tokens.unwrap_or_else(|| characters(&trace.answer));
        self.prompt_tokens.add(prompt as f64);
        self.completion_tokens.add(completion as f64);
        let known = self.models.contains_key(&trace.model) || self.models.len() < MAX_MODELS;
        let model = if known { trace.model.as_str() } else { "(other models)" };
        let entry = self.models.entry(model.to_string()).or_default();
        entry.calls += 1;
        entry.prompt_tokens += prompt;
        entry.completion_tokens += completion;
    }

    /// Different inputs, up to looks.
    pub fn distinct_inputs(&self) -> u64 {
        self.inputs.count().min(self.calls)
    }

    /// Share of the calls whose input was there before: 1 − distinct / calls.
    pub fn repetition(&self) -> f64 {
        1.0 - self.distinct_inputs() as f64 / self.calls.max(1) as f64
    }

    /// Share of the inputs' words (three letters or more) that are among the site's [`VOCABULARY`] commonest. None when too
    /// few were seen to say.
    pub fn vocabulary(&self) -> Option<f64> {
        if self.words.n() < MIN_WORDS {
            return None;
        }
        let top: u64 = self.words.most().iter().take(VOCABULARY).map(|(n, ())| n).sum();
        Some(top as f64 / self.words.n() as f64)
    }

    /// Share of the calls whose answer is a JSON object with the commonest set of keys.
    pub fn same_keys(&self) -> f64 {
        self.keys.most().first().map_or(0, |(n, ())| *n) as f64 / self.calls.max(1) as f64
    }

    /// The answers that look like labels: on one line, short, recurring, and together nine tenths of the calls. Empty when
    /// the site answers otherwise.
    pub fn labels(&self) -> Vec<String> {
        let least = RECURS.max(self.calls / 1000);
        let label = |text: &str| {
            let plain = !text.is_empty() && text.chars().count() <= 64 && !text.contains(['\n', '{', '[']);
            plain && text.trim() == text && limbeck_artifact::untrusted::visible_line(text) == text
        };
        let most = self.answers.most();
        let found: Vec<&(u64, &String)> =
            most.iter().filter(|(n, text)| *n >= least && label(text)).take(512).collect();
        let covered: u64 = found.iter().map(|(n, _)| n).sum();
        if found.len() < 2 || (covered as f64) < 0.9 * self.calls as f64 {
            return Vec::new();
        }
        let mut labels: Vec<String> = found.into_iter().map(|(_, text)| (*text).clone()).collect();
        labels.sort();
        labels.dedup();
        labels
    }
}

/// What stands for the set of keys of a JSON object, and whether it is a tool's call.
fn keys(answer: &str) -> Option<(u64, bool)> {
    if !answer.starts_with('{') {
        return None;
    }
    let value: Value = serde_json::from_str(answer).ok()?;
    let keys: BTreeSet<&String> = value.as_object()?.keys().collect();
    let is_call = keys.iter().map(|key| key.as_str()).eq(["arguments", "name"]) && !value["arguments"].is_null();
    Some((keys.into_iter().fold(1, |h, key| mix(h ^ hash(key.as_bytes()))), is_call))
}

/// Whether six tenths of an answer's words are in the prompt: those of four letters or more, and of JSON all words of its
/// values.
fn grounded(trace: &Trace, answer: &str) -> bool {
    let words = |text: &str, least: usize| -> Vec<u64> {
        let normal = normal_form(text);
        normal.split(' ').filter(|w| w.chars().count() >= least).map(|w| hash(w.as_bytes())).collect()
    };
    let (answered, least) = match values(answer) {
        Some(values) => (words(&values, 1), 1),
        None => (words(answer, 4), 4),
    };
    let asked: HashSet<u64> = trace.messages.iter().flat_map(|m| words(&m.content, least)).collect();
    let found = answered.iter().filter(|w| asked.contains(w)).count();
    answered.is_empty() || found as f64 >= 0.6 * answered.len() as f64
}

/// The texts and numbers of an answer that is JSON; of a tool's call, its arguments'. Names of fields are the schema's.
fn values(answer: &str) -> Option<String> {
    if !answer.starts_with(['{', '[']) {
        return None;
    }
    let mut out = String::new();
    gather(&serde_json::from_str(answer).ok()?, &mut out);
    Some(out)
}

fn gather(value: &Value, out: &mut String) {
    match value {
        // Arguments are often JSON in a text.
        Value::String(text) => match values(text) {
            Some(inner) => out.push_str(&inner),
            None => {
                out.push_str(text);
                out.push(' ');
            }
        },
        Value::Number(n) => {
            out.push_str(&n.to_string());
            out.push(' ');
        }
        Value::Array(items) => items.iter().for_each(|item| gather(item, out)),
        Value::Object(fields) => match (fields.get("name"), fields.get("arguments")) {
            (Some(Value::String(_)), Some(arguments)) => gather(arguments, out),
            _ => fields.values().for_each(|field| gather(field, out)),
        },
        Value::Null | Value::Bool(_) => {}
    }
}

/// What feedback says, where it says it plainly: a word, or a score (`name=value`, 0 to 1 or true).
pub fn liked(feedback: &str) -> Option<bool> {
    let value = feedback.rsplit_once('=').map_or(feedback, |(_, value)| value).trim().to_lowercase();
    match value.as_str() {
        "thumbs_up" | "thumbsup" | "up" | "positive" | "good" | "like" | "liked" | "accepted" | "correct" | "yes"
        | "true" | "👍" => Some(true),
        "thumbs_down" | "thumbsdown" | "down" | "negative" | "bad" | "dislike" | "disliked" | "rejected"
        | "incorrect" | "wrong" | "no" | "false" | "👎" => Some(false),
        number => number.parse::<f64>().ok().filter(|x| x.is_finite()).map(|x| x > 0.5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::Message;

    fn call(n: u64, input: &str, answer: &str) -> Trace {
        Trace {
            id: n.to_string(),
            customer: Some(format!("c{}", n % 7)),
            thread: None,
            at: Some(format!("2026-01-{:02}T00:00:00Z", 1 + n % 28)),
            messages: vec![Message::new("user", input)],
            answer: answer.to_string(),
            model: "m".to_string(),
            finish_reason: None,
            latency_ms: Some(100.0),
            prompt_tokens: Some(10),
            completion_tokens: Some(2),
            feedback: (n == 0).then(|| "thumbs_down".to_string()),
            agreement: None,
        }
    }

    #[test]
    fn labels_are_the_answers_that_recur_and_cover_nearly_all() {
        let redactor = Redactor::new().unwrap();
        let (mut site, mut free) = (Site::default(), Site::default());
        for n in 0..300 {
            let label = ["refund", " `Refund`. ", "card", "other"][n as usize % 4];
            site.add(
                &call(n, &format!("message {}", n % 150), if n % 50 == 49 { "who knows?" } else { label }),
                &redactor,
            );
            free.add(
                &call(n, &format!("message {n} of anna@example.com"), &format!("Dear customer {n}, no.")),
                &redactor,
            );
        }
        assert_eq!(site.labels(), ["card", "other", "refund", "who knows?"]);
        assert_eq!(free.labels(), Vec::<String>::new());
        assert!((site.repetition() - 0.5).abs() < 0.03, "{}", site.repetition());
        assert!(free.repetition() < 0.03);
        assert_eq!((site.negative, site.personal, free.personal), (1, 0, free.sampled));
        assert_eq!(site.vocabulary(), None);
        assert_eq!(site.first_at.as_deref(), Some("2026-01-01T00:00:00Z"));
        assert!(site.grounded > site.sampled / 2 && free.grounded == 0, "{} {}", site.grounded, free.grounded);
    }

    #[test]
    fn an_answer_is_grounded_when_the_prompt_has_its_words() {
        let asked = "a table for 4 people at 19:00 under Anna, thank you";
        for (answer, want) in [
            (r#"{"name":"book_table","arguments":{"people":4,"time":"19:00","guest":"Anna"}}"#, true),
            (r#"{"people":4,"time":"19:00","guest":null}"#, true),
            (r#"{"people":7,"time":"20:30","guest":"Bob"}"#, false),
            ("table people under anna", true),
            ("the restaurant serves excellent seafood", false),
        ] {
            assert_eq!(grounded(&call(0, asked, answer), answer), want, "{answer}");
        }
    }

    #[test]
    fn feedback_is_read_where_it_is_plain() {
        for (text, want) in [
            ("thumbs_up", Some(true)),
            ("user_score=0", Some(false)),
            ("quality=0.9", Some(true)),
            ("helpful=true", Some(true)),
            ("hm, well", None),
        ] {
            assert_eq!(liked(text), want, "{text}");
        }
    }
}
