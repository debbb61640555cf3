//! Signs that a recorded call is no good example. Each is counted and shown with samples; rows go only where the recipe
//! says so, since a doubtful answer to a sound message is just what a reviewer mends.

use crate::table::Row;
use crate::text::hash;
use std::collections::HashSet;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quality {
    Refusal,
    Truncated,
    OutsideTaxonomy,
    RepeatedNgrams,
    TemplateLeakage,
    CutByCollector,
}

impl Quality {
    pub const ALL: [Quality; 6] = [
        Quality::Refusal,
        Quality::Truncated,
        Quality::OutsideTaxonomy,
        Quality::RepeatedNgrams,
        Quality::TemplateLeakage,
        Quality::CutByCollector,
    ];

    /// As recipes and reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Quality::Refusal => "refusal",
            Quality::Truncated => "truncated",
            Quality::OutsideTaxonomy => "outside_taxonomy",
            Quality::RepeatedNgrams => "repeated_ngrams",
            Quality::TemplateLeakage => "template_leakage",
            Quality::CutByCollector => "cut_by_collector",
        }
    }

    pub fn named(name: &str) -> Option<Quality> {
        Quality::ALL.into_iter().find(|q| q.name() == name)
    }

    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }

    /// All signs that a row shows, as bits. `in_taxonomy` says whether the answer is one of the labels.
    pub(super) fn of(row: &Row, message: &str, in_taxonomy: bool) -> u8 {
        let trace = &row.trace;
        let system = trace.messages.iter().find(|m| m.role == "system" || m.role == "developer");
        let mut bits = 0;
        let mut note = |shown: bool, quality: Quality| bits |= if shown { quality.bit() } else { 0 };
        note(!in_taxonomy && refuses(&trace.answer), Quality::Refusal);
        note(stopped_early(trace.finish_reason.as_deref()), Quality::Truncated);
        note(!in_taxonomy, Quality::OutsideTaxonomy);
        note(repeats(message) || repeats(&trace.answer), Quality::RepeatedNgrams);
        note(leaks_template(message, system.map(|m| m.content.as_str())), Quality::TemplateLeakage);
        note(cut(message), Quality::CutByCollector);
        bits
    }
}

/// What refusals begin with; looked for in the first characters of an answer that is no label.
const REFUSALS: [&str; 10] = [
    "i'm sorry",
    "i am sorry",
    "sorry, ",
    "i can't",
    "i cannot",
    "i can not",
    "as an ai",
    "i'm unable",
    "i am unable",
    "i won't",
];

fn refuses(answer: &str) -> bool {
    let start: String = answer.chars().take(120).collect::<String>().to_lowercase().replace('’', "'");
    REFUSALS.iter().any(|r| start.contains(r))
}

/// Anything but an end that the model chose.
fn stopped_early(finish_reason: Option<&str>) -> bool {
    finish_reason.is_some_and(|r| {
        !matches!(r, "" | "stop" | "end_turn" | "stop_sequence" | "tool_calls" | "function_call" | "tool_use" | "eos")
    })
}

/// Words in a row that count as one, and the share of them that may be repetitions.
const NGRAM: usize = 3;
const REPEATED: f64 = 0.3;
/// Shorter texts repeat themselves by chance.
const REPEATED_MIN_WORDS: usize = 20;

fn repeats(text: &str) -> bool {
    if text.len() < 2 * REPEATED_MIN_WORDS {
        return false;
    }
    let words: Vec<u64> = text.split_whitespace().map(|w| hash(w.as_bytes())).collect();
    if words.len() < REPEATED_MIN_WORDS {
        return false;
    }
    let all = words.len() + 1 - NGRAM;
    let distinct = words.windows(NGRAM).collect::<HashSet<_>>().len();
    (all - distinct) as f64 > REPEATED * all as f64
}

/// Marks of prompt templates that belong around a message, not into it.
const TEMPLATE: [&str; 9] =
    ["{{", "}}", "<|", "[INST]", "[/INST]", "### Instruction", "### Response", "<<SYS>>", "</s>"];
/// So many characters of the system prompt in a message are no coincidence.
const PROMPT_CHARS: usize = 40;

fn leaks_template(message: &str, system: Option<&str>) -> bool {
    let start = system.and_then(|s| s.char_indices().nth(PROMPT_CHARS).map(|(end, _)| &s[..end]));
    TEMPLATE.iter().any(|mark| message.contains(mark)) || start.is_some_and(|start| message.contains(start))
}

/// What log collectors put where they cut.
const CUTS: [&str; 5] = ["[truncated]", "(truncated)", "<truncated>", "[...]", "… [+"];

fn cut(message: &str) -> bool {
    let end = message.trim_end();
    let tail: String = end.chars().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect();
    CUTS.iter().any(|c| tail.to_lowercase().contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::parse;

    fn signs(message: &str, answer: &str, finish: &str) -> Vec<&'static str> {
        let line = serde_json::json!({
            "request": {"messages": [
                {"role": "system", "content": "Classify the customer message. Answer with one of: a, b."},
                {"role": "user", "content": message}]},
            "response": {"choices": [{"message": {"content": answer}, "finish_reason": finish}]},
        });
        let row = Row { trace: parse(line.to_string().as_bytes()).unwrap(), file: "f".into(), line: 1 };
        let bits = Quality::of(&row, message, answer == "a");
        Quality::ALL.into_iter().filter(|q| bits & q.bit() != 0).map(Quality::name).collect()
    }

    #[test]
    fn each_sign_is_seen_and_a_sound_row_shows_none() {
        assert_eq!(signs("where is my card ...", "a", "stop"), [""; 0]);
        assert_eq!(signs("where is my card", "I’m sorry, I can’t say", "stop"), ["refusal", "outside_taxonomy"]);
        assert_eq!(signs("where is my card", "a", "length"), ["truncated"]);
        assert_eq!(signs("where", "a", "tool_calls"), [""; 0]);
        assert_eq!(signs("where", "sorry_label", "stop"), ["outside_taxonomy"]);
        assert_eq!(signs(&"buy this now ".repeat(9), "a", "stop"), ["repeated_ngrams"]);
        assert_eq!(signs("hello {{name}}", "a", "stop"), ["template_leakage"]);
        let copied = "Classify the customer message. Answer with one of my friends";
        assert_eq!(signs(copied, "a", "stop"), ["template_leakage"]);
        assert_eq!(signs("a long story [Truncated] ", "a", "stop"), ["cut_by_collector"]);
        let long: String = (0..60).map(|i| format!("word{i} ")).collect();
        assert_eq!(signs(&long, "a", "stop"), [""; 0]);
    }
}
