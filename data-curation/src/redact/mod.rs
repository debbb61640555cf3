//! Takes what identifies a person or opens a door out of a text before it is stored, leaving typed placeholders.
//! Structured kinds only (pattern, then checksum or context): names and addresses need a model, and pass through.

mod checks;
mod hmac;
pub mod measure;
mod patterns;

pub use checks::{iban_checks, luhn_checks, ssn_checks};

use checks::{PHONE_WORDS, SECRET_WORDS, SSN_WORDS};
use patterns::{Patterns, Seen};
use regex::Regex;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// In order of precedence: where two overlap, the earlier kind wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The recipe's own pattern, by its name in lower case.
    Custom(&'static str),
    Secret,
    Email,
    Iban,
    Card,
    Ssn,
    Ip,
    Phone,
}

impl Kind {
    /// The kinds that every redactor knows.
    pub const BUILT_IN: [Kind; 7] =
        [Kind::Secret, Kind::Email, Kind::Iban, Kind::Card, Kind::Ssn, Kind::Ip, Kind::Phone];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Custom(name) => name,
            Kind::Secret => "secret",
            Kind::Email => "email",
            Kind::Iban => "iban",
            Kind::Card => "card",
            Kind::Ssn => "ssn",
            Kind::Ip => "ip",
            Kind::Phone => "phone",
        }
    }
}

/// How to redact, beside the kinds that are always taken out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RedactOptions {
    /// `NAME=REGEX`: what else is to go, as `<NAME_1>`.
    pub patterns: Vec<String>,
    /// With a key, a value has one placeholder in all documents: `<EMAIL_3f9a01b2c4d5>`, the first 12 hex digits of its
    /// HMAC-SHA256. Without one, placeholders count up in each document.
    pub key: Option<Vec<u8>>,
}

/// The compiled patterns; cheap to share, costly to build.
pub struct Redactor {
    patterns: Patterns,
    custom: Vec<(Kind, Regex)>,
    key: Option<Vec<u8>>,
}

impl Redactor {
    pub fn new() -> Result<Redactor, regex::Error> {
        Ok(Redactor { patterns: Patterns::new()?, custom: Vec::new(), key: None })
    }

    /// Errors with the pattern that is none: `NAME=REGEX`, the name of letters, digits and `_`, the regex never empty.
    pub fn with(options: &RedactOptions) -> Result<Redactor, String> {
        let mut redactor = Redactor::new().map_err(|e| e.to_string())?;
        for pattern in &options.patterns {
            redactor.custom.push(custom(pattern)?);
        }
        redactor.key = options.key.clone();
        Ok(redactor)
    }

    /// A document is what shares placeholders: all messages and the answer of one trace.
    pub fn document(&self) -> Document<'_> {
        Document { redactor: self, numbers: BTreeMap::new(), counts: BTreeMap::new() }
    }

    pub fn has_email(&self, text: &str) -> bool {
        text.contains('@') && self.patterns.email.is_match(text)
    }

    /// What is to go, in the order of the text, without overlaps. One pass over the bytes says which patterns can match
    /// at all; most texts hold nothing and see no pattern.
    fn spans(&self, text: &str) -> Vec<Span> {
        let seen = Seen::of(text.as_bytes());
        let mut found = Vec::new();
        for (kind, regex) in &self.custom {
            let matches = regex.find_iter(text).filter(|m| !m.is_empty());
            found.extend(matches.map(|m| Span { kind: *kind, start: m.start(), end: m.end() }));
        }
        let mut add = |kind, start, end| found.push(Span { kind, start, end });
        if seen.secrets() {
            self.secrets(text, &mut add);
        }
        if seen.at {
            self.patterns.email.find_iter(text).for_each(|m| add(Kind::Email, m.start(), m.end()));
        }
        if seen.digits >= 7 {
            self.numbers(text, &seen, &mut add);
        }
        if seen.addresses() {
            self.addresses(text, &mut add);
        }
        found.retain(|span| !in_placeholder(text, span));
        without_overlaps(found)
    }

    fn secrets(&self, text: &str, add: &mut impl FnMut(Kind, usize, usize)) {
        self.patterns.secret.find_iter(text).for_each(|m| add(Kind::Secret, m.start(), m.end()));
        for m in self.patterns.run.find_iter(text) {
            let named = || checks::context(text, m.start(), SECRET_WORDS);
            if checks::looks_secret(m.as_str(), false) || checks::looks_secret(m.as_str(), true) && named() {
                add(Kind::Secret, m.start(), m.end());
            }
        }
        for found in self.patterns.password.captures_iter(text) {
            let Some(value) = found.get(1) else { continue };
            // "My password is incorrect" is no password.
            if value.as_str().bytes().any(|b| b.is_ascii_digit() || b"!#$%^&*+".contains(&b)) {
                add(Kind::Secret, value.start(), value.end());
            }
        }
    }

    fn numbers(&self, text: &str, seen: &Seen, add: &mut impl FnMut(Kind, usize, usize)) {
        if seen.digits >= 13 {
            for m in self.patterns.iban_start.find_iter(text) {
                if let Some(end) = checks::iban_end(text, m.start()) {
                    add(Kind::Iban, m.start(), end);
                }
            }
            for m in self.patterns.digits.find_iter(text) {
                let cards = checks::cards_in(m.as_str());
                cards.into_iter().for_each(|(s, e)| add(Kind::Card, m.start() + s, m.start() + e));
            }
        }
        for m in self.patterns.ssn.find_iter(text) {
            let bare = m.as_str().bytes().all(|b| b.is_ascii_digit());
            let said = !bare || checks::context(text, m.start(), SSN_WORDS);
            if said && ssn_checks(m.as_str()) && !touches_number(text, m.start(), m.end()) {
                add(Kind::Ssn, m.start(), m.end());
            }
        }
        for m in self.patterns.phone.find_iter(text) {
            let digits = m.as_str().bytes().filter(u8::is_ascii_digit).count();
            // A plus sign begins a number whatever stands before it.
            let from = if m.as_str().starts_with('+') { 0 } else { m.start() };
            if (8..=15).contains(&digits) && !touches_word(text, from, m.end()) {
                add(Kind::Phone, m.start(), m.end());
            }
        }
        for m in self.patterns.maybe_phone.find_iter(text) {
            let digits = m.as_str().bytes().filter(u8::is_ascii_digit).count();
            let said = (9..=11).contains(&digits) && checks::context(text, m.start(), PHONE_WORDS);
            if said && !touches_number(text, m.start(), m.end()) {
                add(Kind::Phone, m.start(), m.end());
            }
        }
    }

    fn addresses(&self, text: &str, add: &mut impl FnMut(Kind, usize, usize)) {
        for m in self.patterns.ipv4.find_iter(text) {
            if m.as_str().parse::<Ipv4Addr>().is_ok() {
                add(Kind::Ip, m.start(), m.end());
            }
        }
        for m in self.patterns.ipv6.find_iter(text) {
            let alone = !touches_word(text, m.start(), m.end());
            let groups = m.as_str().split(':').filter(|g| !g.is_empty()).count();
            if alone && groups >= 2 && m.as_str().parse::<Ipv6Addr>().is_ok() {
                add(Kind::Ip, m.start(), m.end());
            }
        }
    }
}

fn custom(pattern: &str) -> Result<(Kind, Regex), String> {
    let named = pattern.split_once('=').filter(|(name, regex)| {
        let plain = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.len() <= 40 && plain && !regex.is_empty()
    });
    let Some((name, regex)) = named else {
        return Err(format!("`{pattern}` is no NAME=REGEX, for example order=ORD-[0-9]{{8}}"));
    };
    let regex = Regex::new(regex).map_err(|e| format!("`{pattern}`: {e}"))?;
    // A recipe has a handful, once a process: a name that lives as long as the program keeps kinds cheap to copy.
    Ok((Kind::Custom(Box::leak(name.to_lowercase().into_boxed_str())), regex))
}

#[derive(Clone, Copy)]
struct Span {
    kind: Kind,
    start: usize,
    end: usize,
}

/// By precedence, then by place; in the order of the text.
fn without_overlaps(mut found: Vec<Span>) -> Vec<Span> {
    found.sort_by_key(|s| (s.kind, s.start, std::cmp::Reverse(s.end)));
    let mut kept: Vec<Span> = Vec::new();
    for span in found {
        if kept.iter().all(|k| span.end <= k.start || k.end <= span.start) {
            kept.push(span);
        }
    }
    kept.sort_by_key(|s| s.start);
    kept
}

/// Whether a span lies in a placeholder that an earlier pass left: `<`, capitals, `_`, at most 12 hex digits, `>`.
fn in_placeholder(text: &str, span: &Span) -> bool {
    let bytes = text.as_bytes();
    let outside = |b: &u8| !(b.is_ascii_alphanumeric() || *b == b'_');
    // A pattern of the recipe may take the brackets with it.
    let (start, end) =
        (span.start + usize::from(bytes[span.start] == b'<'), span.end - usize::from(bytes[span.end - 1] == b'>'));
    let left = bytes[..start].iter().rposition(outside);
    let right = bytes[end..].iter().position(outside).map(|i| end + i);
    let (Some(left), Some(right)) = (left, right) else { return false };
    if bytes[left] != b'<' || bytes[right] != b'>' {
        return false;
    }
    let Some((name, number)) = text[left + 1..right].rsplit_once('_') else { return false };
    let capitals = name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
    let hex = number.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase());
    capitals && name.starts_with(|c: char| c.is_ascii_uppercase()) && hex && (1..=12).contains(&number.len())
}

/// One document being redacted: the same value gets the same placeholder in each of its texts.
pub struct Document<'r> {
    redactor: &'r Redactor,
    numbers: BTreeMap<(Kind, String), usize>,
    counts: BTreeMap<Kind, u64>,
}

/// Passes over one text; each takes something out, and only glued values need a second.
const PASSES: usize = 8;

impl Document<'_> {
    /// "mail me at a@b.example" becomes "mail me at <EMAIL_1>".
    pub fn redact(&mut self, text: &str) -> String {
        let Some(mut text) = self.pass(text) else { return text.to_string() };
        // Taking one value out can lay open another that was glued to it ("a@b.example07700900123").
        for _ in 1..PASSES {
            let Some(less) = self.pass(&text) else { break };
            text = less;
        }
        text
    }

    /// None when there is nothing to take out.
    fn pass(&mut self, text: &str) -> Option<String> {
        let spans = self.redactor.spans(text);
        if spans.is_empty() {
            return None;
        }
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for span in &spans {
            out.push_str(&text[done..span.start]);
            out.push_str(&self.placeholder(span.kind, &text[span.start..span.end]));
            done = span.end;
        }
        out.push_str(&text[done..]);
        Some(out)
    }

    /// Values taken out so far, by kind; a value that occurs twice counts twice.
    pub fn counts(&self) -> &BTreeMap<Kind, u64> {
        &self.counts
    }

    fn placeholder(&mut self, kind: Kind, value: &str) -> String {
        *self.counts.entry(kind).or_default() += 1;
        let value = match kind {
            Kind::Secret | Kind::Custom(_) => value.to_string(),
            Kind::Email | Kind::Ip => value.to_lowercase(),
            Kind::Iban | Kind::Card | Kind::Ssn | Kind::Phone => {
                value.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_uppercase()
            }
        };
        let name = kind.name().to_uppercase();
        if let Some(key) = &self.redactor.key {
            let mac = hmac::hmac_sha256(key, format!("{}\0{value}", kind.name()).as_bytes());
            return format!("<{name}_{}>", &limbeck_artifact::digest::hex(&mac)[..12]);
        }
        let next = 1 + self.numbers.keys().filter(|(k, _)| *k == kind).count();
        let number = *self.numbers.entry((kind, value)).or_insert(next);
        format!("<{name}_{number}>")
    }
}

fn touches_word(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text[..start].chars().next_back().is_some_and(word) || text[end..].chars().next().is_some_and(word)
}

/// As [`touches_word`], or part of a longer run of digits and separators ("12-536-90-4399").
fn touches_number(text: &str, start: usize, end: usize) -> bool {
    let before = text[..start].trim_end_matches(['-', '.', '/']);
    let after = text[end..].trim_start_matches(['-', '.', '/']);
    touches_word(text, start, end)
        || before.len() < start && before.ends_with(|c: char| c.is_ascii_digit())
        || after.len() < text.len() - end && after.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests;
