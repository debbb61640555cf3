//! What a model that was not trained for the task is told beside the message: how to answer, and some answers as examples. A
//! teacher, an endpoint under evaluation and the untuned base are told the same words.

use crate::endpoint::Codes;
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use serde_json::json;
use std::collections::BTreeMap;

/// What counts as an answer.
#[derive(Clone, Debug)]
pub enum Wanted<'a> {
    Labels(&'a [String]),
    /// The labels by codes of one token each, so that one place in the answer tells them all apart.
    Codes(&'a [String], Codes),
    /// Fields under a JSON Schema.
    Fields(&'a str),
    /// A text.
    Text,
}

/// What stands around the messages of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Prompt {
    /// Added to the system prompt.
    instruction: Option<String>,
    /// Turns of the user and the assistant.
    shots: Vec<Message>,
}

impl Prompt {
    /// With `guided`, how to answer is told in words; else the row's own prompt has to do. `shots` are examples with their
    /// answers.
    pub fn new(wanted: &Wanted<'_>, guided: bool, shots: &[&Example]) -> Prompt {
        let turns = shots.iter().flat_map(|row| {
            let answer = Message::new("assistant", &as_answer(wanted, &row.target));
            row.messages.iter().filter(|m| !is_system(m)).cloned().chain([answer])
        });
        Prompt { instruction: guided.then(|| instruction(wanted)), shots: turns.collect() }
    }

    /// The row's messages with what was added.
    pub fn around(&self, asked: &[Message]) -> Vec<Message> {
        let own = asked.iter().filter(|m| is_system(m)).map(|m| m.content.as_str());
        let system: Vec<&str> = own.chain(self.instruction.as_deref()).filter(|text| !text.is_empty()).collect();
        let mut messages = Vec::with_capacity(asked.len() + self.shots.len() + 1);
        if !system.is_empty() {
            messages.push(Message::new("system", &system.join("\n\n")));
        }
        messages.extend(self.shots.iter().cloned());
        messages.extend(asked.iter().filter(|m| !is_system(m)).cloned());
        messages
    }

    /// The digest of all that was added.
    pub fn sha256(&self) -> String {
        sha256_hex(canonical_json(&json!({"instruction": self.instruction, "shots": self.shots})).as_bytes())
    }
}

fn is_system(message: &Message) -> bool {
    matches!(message.role.as_str(), "system" | "developer")
}

fn as_answer(wanted: &Wanted<'_>, target: &str) -> String {
    match wanted {
        Wanted::Codes(labels, codes) => labels
            .iter()
            .position(|label| label == target)
            .map_or_else(|| target.to_owned(), |i| codes.get(i).to_string()),
        _ => target.to_owned(),
    }
}

fn instruction(wanted: &Wanted<'_>) -> String {
    match wanted {
        Wanted::Labels(labels) => {
            let list: Vec<String> = labels.iter().map(|label| format!("- {label}")).collect();
            format!("Answer with exactly one of these labels and nothing else:\n{}", list.join("\n"))
        }
        Wanted::Codes(labels, codes) => {
            let list: Vec<String> =
                labels.iter().enumerate().map(|(i, label)| format!("{}: {label}", codes.get(i))).collect();
            format!("Answer with the letter of the one label that fits and nothing else:\n{}", list.join("\n"))
        }
        Wanted::Fields(schema) => format!(
            "Answer with one JSON object under this JSON Schema and nothing else. Leave out what the message does not \
             say.\n{}",
            schema.trim()
        ),
        Wanted::Text => "Answer with the text alone: no preface, no remarks about it.".to_owned(),
    }
}

/// `k` rows as examples, one class after another so that as many as possible are shown; drawn by `seed` and the rows' own
/// digests, so that the order of the rows and those that are not taken change nothing.
pub fn pick_shots<'r>(
    rows: impl Iterator<Item = &'r Example>,
    class: impl Fn(&Example) -> String,
    k: usize,
    seed: u64,
) -> Vec<&'r Example> {
    let mut classes: BTreeMap<String, Vec<(String, &Example)>> = BTreeMap::new();
    for row in rows {
        classes.entry(class(row)).or_default().push((sha256_hex(format!("{seed} {}", row.id).as_bytes()), row));
    }
    let mut drawn: Vec<(usize, String, &Example)> = Vec::new();
    for rows in classes.values_mut() {
        rows.sort_by(|a, b| a.0.cmp(&b.0));
        drawn.extend(rows.drain(..).enumerate().map(|(round, (digest, row))| (round, digest, row)));
    }
    drawn.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
    drawn.into_iter().take(k).map(|(_, _, row)| row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::{LabelSource, Recorded, TraceRef, example_id};

    fn row(text: &str, target: &str) -> Example {
        let messages = vec![Message::new("system", "Long."), Message::new("user", text)];
        Example {
            id: example_id(&messages, target),
            messages,
            target: target.to_owned(),
            target_tool_calls: Vec::new(),
            label_source: LabelSource::Human,
            weight: 1.0,
            group: text.to_owned(),
            recorded: Recorded::default(),
            trace: TraceRef { id: text.to_owned(), file: "t".to_owned(), line: 1 },
            decision: None,
        }
    }

    #[test]
    fn a_prompt_says_how_to_answer_and_shows_it() {
        let labels = ["refund".to_owned(), "card".to_owned()];
        let shot = row("where is my card", "card");
        let asked = [Message::new("system", "Classify."), Message::new("user", "hello")];
        let codes = Wanted::Codes(&labels, Codes::for_labels(2).unwrap());
        let prompt = Prompt::new(&codes, true, &[&shot]);
        let messages = prompt.around(&asked);
        let told: Vec<(&str, &str)> = messages.iter().map(|m| (m.role.as_str(), m.content.as_str())).collect();
        let system =
            "Classify.\n\nAnswer with the letter of the one label that fits and nothing else:\nA: refund\nB: card";
        assert_eq!(told, [("system", system), ("user", "where is my card"), ("assistant", "B"), ("user", "hello")]);
        assert_eq!(Prompt::new(&Wanted::Labels(&labels), false, &[]).around(&asked), asked);
        let other = Prompt::new(&codes, true, &[]);
        assert_ne!(prompt.sha256(), other.sha256());
    }

    #[test]
    fn shots_show_each_class_before_any_twice_whatever_the_order() {
        let rows: Vec<Example> = (0..30).map(|i| row(&format!("m{i}"), ["a", "b", "c"][i % 7 % 3])).collect();
        let class = |row: &Example| row.target.clone();
        let picked = pick_shots(rows.iter(), class, 6, 7);
        let mut classes: Vec<&str> = picked.iter().take(3).map(|row| row.target.as_str()).collect();
        classes.sort_unstable();
        assert_eq!(classes, ["a", "b", "c"]);
        assert_eq!(picked.len(), 6);
        assert_eq!(pick_shots(rows.iter().rev(), class, 6, 7), picked);
        assert_ne!(pick_shots(rows.iter(), class, 6, 8), picked);
        assert_eq!(pick_shots(rows.iter(), class, 99, 7).len(), 30);
    }
}
