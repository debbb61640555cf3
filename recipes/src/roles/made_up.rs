//! Made-up calls: a role's patterns with their slots filled in, one pattern after another, and the large model's answers, a few of
//! which are slips, so that there is something to find in review.

use super::{Answers, Role};
use serde_json::json;
use std::fmt::Write;

const SLOTS: &[(&str, &[&str])] = &[
    (
        "{item}",
        &[
            "kettle",
            "rain coat",
            "desk lamp",
            "bicycle tyre",
            "backpack",
            "toaster",
            "garden hose",
            "monitor",
            "yoga mat",
            "drill",
        ],
    ),
    (
        "{name}",
        &[
            "Ann Novak",
            "Ben Okafor",
            "Carla Ruiz",
            "Dmitri Ivanov",
            "Eve Lindqvist",
            "Farid Aziz",
            "Gina Rossi",
            "Hugo Meyer",
        ],
    ),
    ("{city}", &["Graz", "Porto", "Leeds", "Tallinn", "Lyon", "Izmir", "Cork", "Brno", "Ghent"]),
    ("{day}", &["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]),
    (
        "{topic}",
        &[
            "refund rules",
            "delivery times",
            "warranty",
            "opening hours",
            "account security",
            "gift cards",
            "data export",
        ],
    ),
    ("{table}", &["orders", "customers", "invoices", "sessions", "shipments"]),
];
/// One call in so many is answered wrongly.
const SLIP: u64 = 19;

/// Chat completions, one a line.
pub(super) fn calls(role: &Role, n: usize) -> String {
    let mut out = String::new();
    let mut draw = Draw(0x6c69_6d62 ^ role.name.bytes().fold(0, |h, b| h * 31 + u64::from(b)));
    for i in 0..n {
        let pattern = &role.patterns[i % role.patterns.len()];
        let (mut message, mut answer) = (pattern.message.to_owned(), pattern.answer.to_owned());
        for (slot, words) in SLOTS {
            let word = words[draw.below(words.len() as u64) as usize];
            message = message.replace(slot, word);
            answer = answer.replace(slot, word);
        }
        for slot in ["{n}", "{m}"] {
            let number = (1_000 + draw.below(89_000)).to_string();
            message = message.replace(slot, &number);
            answer = answer.replace(slot, &number);
        }
        let slips = draw.below(SLIP) == 0;
        if slips {
            answer = slip(role, &answer, &mut draw);
        }
        let id = format!("{}-{i}{}", role.name, if slips { "-slip" } else { "" });
        let day = 1 + i * 27 / n.max(1);
        let call = json!({
            "id": id,
            "time": format!("2026-09-{day:02}T{:02}:{:02}:00Z", 8 + i % 10, i % 60),
            "request": {"model": "frontier-large-1", "messages": [
                {"role": "system", "content": role.system}, {"role": "user", "content": message},
            ]},
            "response": {
                "model": "frontier-large-1",
                "choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 60 + message.len() / 4, "completion_tokens": 1 + answer.len() / 4},
            },
            "latency_ms": 700 + draw.below(900),
        });
        let _ = writeln!(out, "{call}");
    }
    out
}

/// Another label, or fields with a preface that makes them no JSON.
fn slip(role: &Role, answer: &str, draw: &mut Draw) -> String {
    match role.answers {
        Answers::Labels(labels) => {
            let others: Vec<&&str> = labels.iter().filter(|label| **label != answer).collect();
            (*others[draw.below(others.len() as u64) as usize]).to_owned()
        }
        Answers::Fields(_) => format!("Sure! Here is the JSON: {answer}"),
    }
}

/// A linear congruential generator (Knuth's constants): the same calls everywhere, for ever.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n.max(1)
    }
}
