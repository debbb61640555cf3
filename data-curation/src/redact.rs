//! Takes what identifies a person or opens a door out of a text before it is stored, leaving typed placeholders that
//! are consistent within one document. Structured kinds only (pattern, then checksum): names and addresses need a
//! model, and pass through.

use regex::{Regex, RegexSet};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

/// In order of precedence: where two overlap, the earlier kind wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Secret,
    Email,
    Iban,
    Card,
    Ip,
    Phone,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Secret => "secret",
            Kind::Email => "email",
            Kind::Iban => "iban",
            Kind::Card => "card",
            Kind::Ip => "ip",
            Kind::Phone => "phone",
        }
    }
}

const SECRET: &str = r"(?x)
    \b(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}
  | \bgh[pousr]_[A-Za-z0-9]{20,} | \bgithub_pat_[A-Za-z0-9_]{20,} | \bglpat-[A-Za-z0-9_-]{16,}
  | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b | \bAIza[0-9A-Za-z_-]{30,}
  | \bxox[abeprs]-[A-Za-z0-9-]{10,} | \bhf_[A-Za-z0-9]{20,}
  | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}
  | (?i:\bbearer\x20+[A-Za-z0-9._~+/=-]{16,})
  | (?s:-----BEGIN\x20[A-Z\x20]*PRIVATE\x20KEY-----.*?(?:-----END\x20[A-Z\x20]*PRIVATE\x20KEY-----|\z))";
const EMAIL: &str = r"[\p{L}\p{N}][\p{L}\p{N}._%+'-]*@(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?\.)+\p{L}{2,24}";
const IBAN_START: &str = r"(?i)\b[a-z]{2}[0-9]{2}";
const DIGITS: &str = r"[0-9](?:[\x20\u{a0}.-]?[0-9]){12,}";
const IPV4: &str = r"\b[0-9]{1,3}(?:\.[0-9]{1,3}){3}\b";
const IPV6: &str = r"(?i)[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:\.[0-9]{1,3}){0,3}";
const PHONE: &str = r"(?x)
    (?:\+|\b00)[1-9][0-9]{0,2}(?:[\x20./-]{0,2}\(?[0-9]{1,5}\)?){2,6}
  | \b0[0-9]{2,4}[\x20./-]?[0-9]{3,4}[\x20./-]?[0-9]{3,4}\b
  | \(0?[0-9]{2,5}\)[\x20.-]?[0-9]{3,4}[\x20.-]?[0-9]{3,4}\b
  | \b[2-9][0-9]{2}[\x20.-][0-9]{3}[\x20.-][0-9]{4}\b";

/// Country codes of the IBAN registry with the length of the whole number.
const IBAN_LENGTHS: &str = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24\
FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24\
ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24\
TR26UA29VA22VG24XK20YE30";

/// The compiled patterns; cheap to share, costly to build.
pub struct Redactor {
    secret: Regex,
    email: Regex,
    iban_start: Regex,
    digits: Regex,
    ipv4: Regex,
    ipv6: Regex,
    phone: Regex,
    /// Most texts hold nothing at all; one pass says so.
    any: RegexSet,
}

impl Redactor {
    pub fn new() -> Result<Redactor, regex::Error> {
        Ok(Redactor {
            secret: Regex::new(SECRET)?,
            email: Regex::new(EMAIL)?,
            iban_start: Regex::new(IBAN_START)?,
            digits: Regex::new(DIGITS)?,
            ipv4: Regex::new(IPV4)?,
            ipv6: Regex::new(IPV6)?,
            phone: Regex::new(PHONE)?,
            any: RegexSet::new([SECRET, EMAIL, IBAN_START, DIGITS, IPV4, IPV6, PHONE])?,
        })
    }

    /// A document is what shares placeholders: all messages and the answer of one trace.
    pub fn document(&self) -> Document<'_> {
        Document { redactor: self, numbers: BTreeMap::new(), counts: BTreeMap::new() }
    }

    pub fn has_email(&self, text: &str) -> bool {
        self.email.is_match(text)
    }

    fn spans(&self, text: &str) -> Vec<Span> {
        let mut found = Vec::new();
        let mut add = |kind, start, end| found.push(Span { kind, start, end });
        self.secret.find_iter(text).for_each(|m| add(Kind::Secret, m.start(), m.end()));
        self.email.find_iter(text).for_each(|m| add(Kind::Email, m.start(), m.end()));
        for m in self.iban_start.find_iter(text) {
            if let Some(end) = iban_end(text, m.start()) {
                add(Kind::Iban, m.start(), end);
            }
        }
        for m in self.digits.find_iter(text) {
            cards_in(m.as_str()).into_iter().for_each(|(s, e)| add(Kind::Card, m.start() + s, m.start() + e));
        }
        for m in self.ipv4.find_iter(text) {
            if m.as_str().parse::<Ipv4Addr>().is_ok() {
                add(Kind::Ip, m.start(), m.end());
            }
        }
        for m in self.ipv6.find_iter(text) {
            let alone = !touches_word(text, m.start(), m.end());
            let groups = m.as_str().split(':').filter(|g| !g.is_empty()).count();
            if alone && groups >= 2 && m.as_str().parse::<Ipv6Addr>().is_ok() {
                add(Kind::Ip, m.start(), m.end());
            }
        }
        for m in self.phone.find_iter(text) {
            let digits = m.as_str().bytes().filter(u8::is_ascii_digit).count();
            // A plus sign begins a number whatever stands before it.
            let from = if m.as_str().starts_with('+') { 0 } else { m.start() };
            if (8..=15).contains(&digits) && !touches_word(text, from, m.end()) {
                add(Kind::Phone, m.start(), m.end());
            }
        }
        without_overlaps(found)
    }
}

#[derive(Clone, Copy)]
struct Span {
    kind: Kind,
    start: usize,
    end: usize,
}

/// By precedence, then by place; in the order of the text.
fn without_overlaps(mut found: Vec<Span>) -> Vec<Span> {
    found.sort_by_key(|s| (s.kind, s.start));
    let mut kept: Vec<Span> = Vec::new();
    for span in found {
        if kept.iter().all(|k| span.end <= k.start || k.end <= span.start) {
            kept.push(span);
        }
    }
    kept.sort_by_key(|s| s.start);
    kept
}

/// One document being redacted: the same value gets the same placeholder in each of its texts.
pub struct Document<'r> {
    redactor: &'r Redactor,
    numbers: BTreeMap<(Kind, String), usize>,
    counts: BTreeMap<Kind, u64>,
}

impl Document<'_> {
    /// "mail me at a@b.example" becomes "mail me at <EMAIL_1>".
    pub fn redact(&mut self, text: &str) -> String {
        let mut text = text.to_string();
        // Taking one value out can lay open another that was glued to it ("a@b.example07700900123").
        while let Some(less) = self.pass(&text) {
            text = less;
        }
        text
    }

    /// None when there is nothing to take out. No placeholder is part of a match, so each pass leaves less of the
    /// original and passes come to an end.
    fn pass(&mut self, text: &str) -> Option<String> {
        if !self.redactor.any.is_match(text) {
            return None;
        }
        let spans = self.redactor.spans(text);
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for span in &spans {
            out.push_str(&text[done..span.start]);
            out.push_str(&self.placeholder(span.kind, &text[span.start..span.end]));
            done = span.end;
        }
        out.push_str(&text[done..]);
        (!spans.is_empty()).then_some(out)
    }

    /// Values taken out so far, by kind; a value that occurs twice counts twice.
    pub fn counts(&self) -> &BTreeMap<Kind, u64> {
        &self.counts
    }

    fn placeholder(&mut self, kind: Kind, value: &str) -> String {
        *self.counts.entry(kind).or_default() += 1;
        let value = match kind {
            Kind::Secret => value.to_string(),
            Kind::Email | Kind::Ip => value.to_lowercase(),
            Kind::Iban | Kind::Card | Kind::Phone => {
                value.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_uppercase()
            }
        };
        let next = 1 + self.numbers.keys().filter(|(k, _)| *k == kind).count();
        let number = *self.numbers.entry((kind, value)).or_insert(next);
        format!("<{}_{number}>", kind.name().to_uppercase())
    }
}

fn touches_word(text: &str, start: usize, end: usize) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text[..start].chars().next_back().is_some_and(word) || text[end..].chars().next().is_some_and(word)
}

/// Where an IBAN that starts here ends: as long as its country says, single spaces or hyphens between, mod 97 right.
fn iban_end(text: &str, start: usize) -> Option<usize> {
    let rest = text.get(start..)?;
    let country = rest.get(..2)?.to_ascii_uppercase();
    let at = (0..IBAN_LENGTHS.len()).step_by(4).find(|i| IBAN_LENGTHS[*i..*i + 2] == country)?;
    let length: usize = IBAN_LENGTHS[at + 2..at + 4].parse().ok()?;
    let mut number = Vec::with_capacity(length);
    let mut gap = false;
    for (i, b) in rest.bytes().enumerate() {
        if number.len() == length {
            return (!b.is_ascii_alphanumeric() && iban_checks(&number)).then_some(start + i);
        }
        match b {
            b if b.is_ascii_alphanumeric() => {
                number.push(b.to_ascii_uppercase());
                gap = false;
            }
            b' ' | b'-' if !gap => gap = true,
            _ => return None,
        }
    }
    (number.len() == length && iban_checks(&number)).then_some(text.len())
}

/// ISO 7064 mod 97-10: the first four characters moved to the end, letters as 10 to 35, remainder 1.
pub fn iban_checks(number: &[u8]) -> bool {
    if number.len() < 5 {
        return false;
    }
    let rest = number[4..].iter().chain(&number[..4]).fold(0u32, |r, b| {
        if b.is_ascii_digit() { (r * 10 + u32::from(b - b'0')) % 97 } else { (r * 100 + u32::from(b - b'A') + 10) % 97 }
    });
    rest == 1
}

/// Byte ranges of card numbers in a run of digits and separators. A card may sit between other numbers ("order 12
/// 4111 …"), so every stretch of 13 to 19 digits that begins and ends at a separator is tried, longest first.
fn cards_in(run: &str) -> Vec<(usize, usize)> {
    let digits: Vec<(usize, u8)> =
        run.bytes().enumerate().filter(|(_, b)| b.is_ascii_digit()).map(|(i, b)| (i, b - b'0')).collect();
    let begins = |i: usize| i == 0 || digits[i].0 != digits[i - 1].0 + 1;
    let ends = |i: usize| i == digits.len() || begins(i);
    let mut out = Vec::new();
    let mut i = 0;
    while i + 13 <= digits.len() {
        let card = (13..=19usize).rev().map(|n| i + n).find(|&end| {
            end <= digits.len()
                && begins(i)
                && ends(end)
                && digits[i].1 != 0
                && luhn_checks(digits[i..end].iter().map(|d| d.1))
        });
        match card {
            Some(end) => {
                out.push((digits[i].0, digits[end - 1].0 + 1));
                i = end;
            }
            None => i += 1,
        }
    }
    out
}

/// Every second digit from the right doubled, digit sums added: divisible by ten.
pub fn luhn_checks(digits: impl DoubleEndedIterator<Item = u8>) -> bool {
    let sum: u32 = digits
        .rev()
        .enumerate()
        .map(|(i, d)| {
            let d = u32::from(d) << (i % 2);
            if d > 9 { d - 9 } else { d }
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redact(text: &str) -> String {
        Redactor::new().unwrap().document().redact(text)
    }

    #[test]
    fn each_kind_becomes_a_typed_placeholder_and_the_rest_stays() {
        for (text, want) in [
            ("mail Anna.Kowalska+bank@mail.example.co.uk, please", "mail <EMAIL_1>, please"),
            ("card 4111 1111 1111 1111 was eaten", "card <CARD_1> was eaten"),
            ("378282246310005.", "<CARD_1>."),
            ("order 12 4111-1111-1111-1111 1", "order 12 <CARD_1> 1"),
            ("iban GB82 WEST 1234 5698 7654 32 I think", "iban <IBAN_1> I think"),
            ("de89370400440532013000", "<IBAN_1>"),
            ("from 203.0.113.7 and 2001:db8::ff00:42:8329", "from <IP_1> and <IP_2>"),
            ("call +44 7700 900123 or 07700 900456", "call <PHONE_1> or <PHONE_2>"),
            ("phone:07700900123", "phone:<PHONE_1>"),
            ("a@x.org+44 7700 900123", "<EMAIL_1><PHONE_1>"),
            ("a@x.org07700900123", "<EMAIL_1><PHONE_1>"),
            ("(020) 7946 0018; 212-555-0123", "<PHONE_1>; <PHONE_2>"),
            ("key sk-simulated-AbCdEf0123456789", "key <SECRET_1>"),
            ("Bearer abcdefghijklmnop012345", "<SECRET_1>"),
        ] {
            assert_eq!(redact(text), want, "{text}");
        }
    }

    #[test]
    fn a_wrong_checksum_and_ordinary_numbers_stay() {
        for text in [
            "card 4111 1111 1111 1112",
            "iban GB82 WEST 1234 5698 7654 33",
            "on 2026-02-03 at 10:32:05 I paid 1,250.00",
            "version 1.2.3, 999.1.1.1, std::io",
            "I was charged 120 pounds 3 times in 2025",
            "is it @ the shop?",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    #[test]
    fn one_value_has_one_placeholder_in_all_texts_of_a_document() {
        let redactor = Redactor::new().unwrap();
        let mut document = redactor.document();
        assert_eq!(document.redact("a@x.org b@x.org"), "<EMAIL_1> <EMAIL_2>");
        assert_eq!(document.redact("B@X.ORG 4111111111111111"), "<EMAIL_2> <CARD_1>");
        assert_eq!(document.counts()[&Kind::Email], 3);
        assert_eq!(redactor.document().redact("b@x.org"), "<EMAIL_1>");
    }

    #[test]
    fn redacting_twice_changes_nothing_more() {
        let once = redact("a@x.org, +44 7700 900123, 4111 1111 1111 1111, GB82WEST12345698765432");
        assert_eq!(redact(&once), once);
    }

    #[test]
    fn no_card_of_hundreds_of_valid_numbers_gets_through() {
        let mut rng = crate::text::Rng::new(3);
        let redactor = Redactor::new().unwrap();
        for n in 0..300 {
            let mut digits: Vec<u8> = (0..15).map(|i| if i == 0 { 4 } else { rng.below(10) as u8 }).collect();
            let check = (0..10).find(|c| luhn_checks(digits.iter().copied().chain([*c]))).unwrap();
            digits.push(check);
            let gap = ["", " ", "-"][n % 3];
            let number: Vec<String> =
                digits.chunks(4).map(|c| c.iter().map(|d| char::from(b'0' + d)).collect()).collect();
            let text = format!("my card {} is blocked", number.join(gap));
            assert_eq!(redactor.document().redact(&text), "my card <CARD_1> is blocked", "{text}");
        }
    }
}
