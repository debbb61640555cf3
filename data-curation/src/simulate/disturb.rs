//! What real logs hold and clean data sets do not: copies, edits, things people should not have typed, and lines that
//! are no record at all. Every number here is from a range set aside for examples, with a checksum that passes.

use crate::redact::{iban_checks, luhn_checks};
use crate::text::Rng;
use serde_json::{Value, json};

/// A copy that differs in case, spacing or closing punctuation only, or not at all.
pub fn same_but_for_looks(text: &str, rng: &mut Rng) -> String {
    match rng.below(5) {
        0 => text.to_string(),
        1 => text.to_lowercase(),
        2 => format!("{}!", text.trim_end_matches(['.', '?', '!'])),
        3 => text.replacen(' ', "  ", 2),
        _ => format!("{} ...", text.trim_end_matches(['.', '?', '!'])),
    }
}

/// A copy with a greeting, a closing word or a typing error.
pub fn slightly_edited(text: &str, rng: &mut Rng) -> String {
    match rng.below(if text.len() >= 60 { 5 } else { 3 }) {
        0 => format!("Hi, {text}"),
        1 => format!("Hello. {text}"),
        2 => format!("{text} thx"),
        _ => typo(text, rng),
    }
}

/// Two neighbouring letters swapped.
fn typo(text: &str, rng: &mut Rng) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..20 {
        let i = rng.below(chars.len().max(2) - 1);
        if chars.len() > 2
            && chars[i].is_ascii_lowercase()
            && chars[i + 1].is_ascii_lowercase()
            && chars[i] != chars[i + 1]
        {
            chars.swap(i, i + 1);
            break;
        }
    }
    chars.into_iter().collect()
}

/// A sentence with an address or a number in it.
pub fn personal(rng: &mut Rng) -> String {
    const FIRST: [&str; 8] = ["anna", "b.okoro", "chen.wei", "dmitri", "elif", "f.rossi", "grace", "j.novak"];
    match rng.below(10) {
        0..=2 => format!("You can reach me at {}{}@example.com.", rng.pick(&FIRST), rng.below(90) + 10),
        // Ofcom keeps 07700 900000 to 900999 for drama.
        3 => format!("My number is +44 7700 900{:03}.", rng.below(1000)),
        4 => format!("Call me on 07700 900{:03} please.", rng.below(1000)),
        5 => format!("The card is {}.", card(rng, " ")),
        6 => format!("Card number {}", card(rng, "")),
        7 | 8 => format!("My IBAN is {}.", iban(rng)),
        // RFC 5737 keeps 203.0.113.0/24 for documentation.
        _ => format!("I was logged in from 203.0.113.{}.", rng.below(254) + 1),
    }
}

/// 4111 11, the test range of every payment terminal, then random digits and the Luhn digit.
fn card(rng: &mut Rng, gap: &str) -> String {
    let mut digits = vec![4, 1, 1, 1, 1, 1];
    digits.extend((0..9).map(|_| rng.below(10) as u8));
    let check = (0..10).find(|c| luhn_checks(digits.iter().copied().chain([*c]))).unwrap_or(0);
    digits.push(check);
    let groups: Vec<String> = digits.chunks(4).map(|g| g.iter().map(|d| char::from(b'0' + d)).collect()).collect();
    groups.join(gap)
}

/// A British number of a bank that does not exist ("LIMB"), check digits computed.
fn iban(rng: &mut Rng) -> String {
    let account: String = (0..14).map(|_| char::from(b'0' + rng.below(10) as u8)).collect();
    let with = |check: u32| format!("GB{check:02}LIMB{account}");
    let number = (2..99).map(with).find(|n| iban_checks(n.as_bytes())).unwrap_or_default();
    let groups: Vec<&str> = (0..number.len()).step_by(4).map(|i| &number[i..(i + 4).min(number.len())]).collect();
    groups.join(" ")
}

/// What models say when they do not keep to the list.
pub fn outside_the_taxonomy(answer: &str, rng: &mut Rng) -> String {
    match rng.below(4) {
        0 => "other".to_string(),
        1 => format!("I'm not sure, but this could be about {}.", answer.replace('_', " ")),
        2 => format!("{answer}_issue"),
        _ => "I can't help with that request.".to_string(),
    }
}

/// How a line is broken.
#[derive(Clone, Copy)]
pub enum Damage {
    CutOff,
    NoResponse,
    EmptyMessage,
    MessagesIsText,
    ContentIsNumber,
    NotAnObject,
    NoChoice,
    TooDeep,
    NoUser,
}

impl Damage {
    pub const ALL: [Damage; 9] = [
        Damage::CutOff,
        Damage::NoResponse,
        Damage::EmptyMessage,
        Damage::MessagesIsText,
        Damage::ContentIsNumber,
        Damage::NotAnObject,
        Damage::NoChoice,
        Damage::TooDeep,
        Damage::NoUser,
    ];

    /// The damaged line.
    pub fn apply(self, mut record: Value) -> String {
        match self {
            Damage::CutOff => {
                let line = record.to_string();
                let end = line.char_indices().map(|(i, _)| i).nth(line.chars().count() * 2 / 3).unwrap_or(0);
                return line[..end].to_string();
            }
            Damage::NotAnObject => return json!(["upstream connect error", 503]).to_string(),
            Damage::TooDeep => return "[".repeat(200) + &"]".repeat(200),
            Damage::NoResponse => record["response"] = Value::Null,
            Damage::EmptyMessage => record["request"]["messages"][1]["content"] = json!("  "),
            Damage::MessagesIsText => record["request"]["messages"] = json!("Classify the customer message."),
            Damage::ContentIsNumber => record["response"]["choices"][0]["message"]["content"] = json!(7),
            Damage::NoChoice => record["response"]["choices"] = json!([]),
            Damage::NoUser => {
                if let Some(messages) = record["request"]["messages"].as_array_mut() {
                    messages.truncate(1);
                }
            }
        }
        record.to_string()
    }
}
