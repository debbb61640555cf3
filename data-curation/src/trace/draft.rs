//! A trace in the making: a reader fills in what its format has, and one place checks that a call came of it and that
//! no field holds what a table, a screen or another tool could not.

use super::{Reject, RejectReason, Trace, chat, reject};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::digest::sha256_hex;
use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use time::{OffsetDateTime, UtcOffset};

#[derive(Clone, Debug, Default)]
pub struct Draft {
    pub id: Option<String>,
    pub customer: Option<String>,
    pub thread: Option<String>,
    pub at: Option<String>,
    pub messages: Vec<Message>,
    pub answer: Option<String>,
    pub model: Option<String>,
    pub finish_reason: Option<String>,
    pub latency_ms: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    pub feedback: Option<String>,
    pub agreement: Option<f64>,
}

impl Draft {
    /// The trace; `raw` stands for the record where it has no id of its own.
    pub fn finish(self, raw: &[u8]) -> Result<Trace, Reject> {
        let Some(answer) = self.answer else {
            return reject(RejectReason::MissingResponse, "the record holds no answer");
        };
        if !self.messages.iter().any(|m| m.role == "user") {
            return reject(RejectReason::MissingMessages, "no message of the user");
        }
        if self.messages.iter().filter(|m| m.role == "user").all(|m| m.content.trim().is_empty()) {
            return reject(RejectReason::EmptyMessage, "the user's message is empty");
        }
        Ok(Trace {
            id: self.id.filter(|id| plain_id(id)).unwrap_or_else(|| format!("sha256:{}", &sha256_hex(raw)[..32])),
            customer: self.customer.filter(|c| !c.trim().is_empty()),
            thread: self.thread.filter(|t| !t.trim().is_empty()),
            at: self.at,
            messages: self.messages,
            answer,
            model: self.model.unwrap_or_default(),
            finish_reason: self.finish_reason.filter(|f| !f.is_empty()),
            latency_ms: self.latency_ms,
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.completion_tokens,
            feedback: self.feedback.filter(|f| !f.is_empty() && f != "none"),
            agreement: self.agreement.filter(|share| (0.0..=1.0).contains(share)),
        })
    }

    /// Takes a reply as the answer: its text, or the calls it makes.
    pub fn reply(&mut self, message: &Message) {
        self.answer = Some(chat::answer(message));
    }

    /// A conversation whose last turn is the assistant's: that is the answer, unless there is one already.
    pub fn answer_from_last_turn(&mut self) {
        if self.answer.is_none() && self.messages.last().is_some_and(|m| m.role == "assistant") {
            self.answer = self.messages.pop().map(|m| chat::answer(&m));
        }
    }
}

/// An id becomes part of file contents and screens: long ones and those with control characters are not taken over.
fn plain_id(id: &str) -> bool {
    (1..=200).contains(&id.len()) && id.chars().all(|c| !c.is_control() && !c.is_whitespace())
}

/// A text, or none for null; anything else is no text.
pub fn string(value: &Value, key: &str) -> Result<Option<String>, Reject> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => reject(RejectReason::WrongType, format!("{key} is no string")),
    }
}

/// The first of these fields that is a text or a number.
pub fn text_at(value: &Value, paths: &[&str]) -> Option<String> {
    paths.iter().find_map(|path| match dig(value, path)? {
        Value::String(s) if !s.is_empty() => Some(s.clone()),
        Value::Number(n) => Some(n.to_string()),
        _ => None,
    })
}

/// Names of a conversation's id; applications put it beside the call or into its metadata.
const THREADS: [&str; 10] = [
    "thread_id",
    "threadId",
    "conversation_id",
    "conversationId",
    "session_id",
    "sessionId",
    "chat_id",
    "thread",
    "conversation",
    "session",
];

/// The conversation that a call belongs to, where `metadata` or one like it names it.
pub fn thread_in(metadata: &Value) -> Option<String> {
    text_at(metadata, &THREADS)
}

/// The first of these fields that is a count. A table's cell may hold it as text.
pub fn count_at(value: &Value, paths: &[&str]) -> Option<u64> {
    paths.iter().find_map(|path| {
        let n = match dig(value, path)? {
            Value::String(s) => s.trim().parse().ok()?,
            // Spreadsheets and double attributes write 12.0.
            n => n.as_u64().or_else(|| n.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64))?,
        };
        // i64 is what the Parquet reader of any tool can hold.
        i64::try_from(n).is_ok().then_some(n)
    })
}

/// The first of these fields that is a number of at least 0.
pub fn number_at(value: &Value, paths: &[&str]) -> Option<f64> {
    paths.iter().find_map(|path| {
        let x = match dig(value, path)? {
            Value::String(s) => s.trim().parse().ok()?,
            n => n.as_f64()?,
        };
        (x.is_finite() && x >= 0.0).then_some(x)
    })
}

/// What stands at a dotted path. Keys may hold dots themselves (`llm.model_name` is one key or two levels), and a
/// number is a place in a list.
pub fn dig<'v>(value: &'v Value, path: &str) -> Option<&'v Value> {
    let found = match value {
        Value::Object(fields) => fields.get(path).or_else(|| {
            let mut dots = path.match_indices('.').map(|(i, _)| i);
            dots.find_map(|dot| dig(fields.get(&path[..dot])?, &path[dot + 1..]))
        }),
        Value::Array(items) => {
            let (index, rest) = path.split_once('.').map_or((path, None), |(index, rest)| (index, Some(rest)));
            let item = items.get(index.parse::<usize>().ok()?)?;
            rest.map_or(Some(item), |rest| dig(item, rest))
        }
        _ => None,
    };
    found.filter(|v| !v.is_null())
}

/// A structure, or the JSON text of one, as table exports and span attributes write it; other text stays text.
pub fn structured(value: &Value) -> Value {
    match value {
        Value::String(text) if text.trim_start().starts_with(['{', '[']) => {
            serde_json::from_str(text).unwrap_or_else(|_| value.clone())
        }
        other => other.clone(),
    }
}

/// RFC 3339, `YYYY-MM-DD hh:mm:ss` (UTC where no offset is told), or a number of seconds, milliseconds, microseconds or
/// nanoseconds since 1970, told apart by size; anything else is no time that can be trusted and stays out.
pub fn time(value: &Value) -> Option<OffsetDateTime> {
    match value {
        Value::Number(n) => match n.as_i64() {
            Some(n) => since_1970(i128::from(n)),
            None => n.as_f64().filter(|x| x.abs() < 1e11).map(|x| (x * 1e9) as i128).and_then(from_nanos),
        },
        Value::String(text) => {
            let text = text.trim();
            if let Ok(number) = text.parse::<i128>() {
                return since_1970(number);
            }
            let mut text = text.replacen(' ', "T", 1);
            // An offset comes after the date's own two dashes.
            if !text.ends_with(['Z', 'z']) && !text.get(10..).is_some_and(|clock| clock.contains(['+', '-'])) {
                text.push('Z');
            }
            OffsetDateTime::parse(&text, &Rfc3339).ok()
        }
        _ => None,
    }
}

fn since_1970(n: i128) -> Option<OffsetDateTime> {
    // Below 1e11 are seconds (until the year 5138), below 1e14 milliseconds, below 1e17 microseconds.
    let scale = match n.unsigned_abs() {
        0..100_000_000_000 => 1_000_000_000,
        100_000_000_000..100_000_000_000_000 => 1_000_000,
        100_000_000_000_000..100_000_000_000_000_000 => 1_000,
        _ => 1,
    };
    from_nanos(n.checked_mul(scale)?)
}

fn from_nanos(nanos: i128) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()
}

/// As a trace holds it.
pub fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.checked_to_offset(UtcOffset::UTC)?.format(&Rfc3339).ok()
}

/// The first of these fields that is a time.
pub fn time_at(value: &Value, paths: &[&str]) -> Option<OffsetDateTime> {
    paths.iter().find_map(|path| time(dig(value, path)?))
}

/// From begin to end; none where the clock went backwards.
pub fn between(begin: Option<OffsetDateTime>, end: Option<OffsetDateTime>) -> Option<f64> {
    let ms = (end? - begin?).whole_microseconds() as f64 / 1000.0;
    (ms >= 0.0).then_some(ms)
}

/// A score that people or programs gave, as a trace's feedback: `name=value`.
pub fn score(name: &str, value: &Value) -> Option<String> {
    let value = match value {
        Value::String(s) => s.clone(),
        Value::Number(n) => n.to_string(),
        Value::Bool(b) => b.to_string(),
        _ => return None,
    };
    (!name.is_empty() && !value.is_empty()).then(|| format!("{name}={value}"))
}
