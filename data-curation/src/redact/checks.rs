//! What tells a number from a number: checksums, reserved ranges, shapes and entropy. A pattern proposes, these decide.

/// Country codes of the IBAN registry with the length of the whole number.
const IBAN_LENGTHS: &str = "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24\
FI18FK18FO18FR27GB22GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24\
ME22MK19MN20MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24\
TR26UA29VA22VG24XK20YE30";

/// The registry as pairs of country and length.
pub(super) fn iban_countries() -> impl Iterator<Item = (&'static str, usize)> {
    (0..IBAN_LENGTHS.len())
        .step_by(4)
        .map(|i| (&IBAN_LENGTHS[i..i + 2], IBAN_LENGTHS[i + 2..i + 4].parse().unwrap_or(0)))
}

/// Where an IBAN that starts here ends: as long as its country says, single spaces or hyphens between, mod 97 right.
pub(super) fn iban_end(text: &str, start: usize) -> Option<usize> {
    let rest = text.get(start..)?;
    let country = rest.get(..2)?.to_ascii_uppercase();
    let (_, length) = iban_countries().find(|(c, _)| *c == country)?;
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
pub(super) fn cards_in(run: &str) -> Vec<(usize, usize)> {
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

/// Whether nine digits can be a US social security number: the administration never gives out area 000, 666 and 900
/// to 999, group 00, serial 0000, nor the numbers that it printed in advertisements.
pub fn ssn_checks(number: &str) -> bool {
    let digits: String = number.chars().filter(char::is_ascii_digit).collect();
    if digits.len() != 9 {
        return false;
    }
    let (area, group, serial) = (&digits[..3], &digits[3..5], &digits[5..]);
    let never = ["078051120", "219099999"].contains(&digits.as_str());
    !(never || area == "000" || area == "666" || area.starts_with('9') || group == "00" || serial == "0000")
}

/// Words before a value that say what it is; the window is [`CONTEXT_WORDS`].
pub(super) const SSN_WORDS: &[&str] = &["ssn", "social", "security"];
pub(super) const PHONE_WORDS: &[&str] = &[
    "phone",
    "mobile",
    "cell",
    "call",
    "tel",
    "telephone",
    "sms",
    "whatsapp",
    "dial",
    "ring",
    "reach",
    "fax",
    "contact",
];
pub(super) const SECRET_WORDS: &[&str] = &[
    "key",
    "apikey",
    "api_key",
    "token",
    "secret",
    "password",
    "passwd",
    "pwd",
    "credential",
    "credentials",
    "passphrase",
    "access_token",
    "auth",
];

/// How many words before a value count as its context (Presidio's default).
const CONTEXT_WORDS: usize = 5;

/// Whether one of the last words before `start` is one of `words`.
pub(super) fn context(text: &str, start: usize, words: &[&str]) -> bool {
    let mut from = start.saturating_sub(80);
    while !text.is_char_boundary(from) {
        from -= 1;
    }
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text[from..start]
        .split(|c| !word(c))
        .rev()
        .filter(|w| !w.is_empty())
        .take(CONTEXT_WORDS)
        .any(|w| words.contains(&w.to_lowercase().as_str()))
}

/// Shortest run of token characters that entropy alone may call a secret, and that a word before it may.
const SECRET_MIN: usize = 20;
pub(super) const NAMED_SECRET_MIN: usize = 10;

/// Whether a run of letters, digits and `_-+/=` looks random: it changes between small letters, capitals and digits far
/// more often than words, names of labels and numbered ids do. With `named` (a word such as "token" before it) a
/// shorter one is enough. A UUID is an id and stays.
pub(super) fn looks_secret(run: &str, named: bool) -> bool {
    let run = run.trim_matches(['-', '_', '/', '=', '+']);
    if run.len() < if named { NAMED_SECRET_MIN } else { SECRET_MIN } || is_uuid(run) {
        return false;
    }
    let (mut lower, mut upper, mut digits, mut changes, mut last) = (0usize, 0usize, 0usize, 0usize, 0u8);
    for b in run.bytes() {
        let class = match b {
            b'a'..=b'z' => 1,
            b'A'..=b'Z' => 2,
            b'0'..=b'9' => 3,
            _ => continue,
        };
        [&mut lower, &mut upper, &mut digits][usize::from(class) - 1].add_one();
        changes += usize::from(last != 0 && last != class);
        last = class;
    }
    let letters = lower + upper;
    if named {
        return letters >= 2 && digits >= 2 && changes * 5 >= run.len();
    }
    let hex = run.bytes().all(|b| b.is_ascii_hexdigit()) && (lower == 0 || upper == 0);
    if hex {
        return run.len() >= 32 && letters >= 4 && digits >= 4 && entropy(run) >= 3.0;
    }
    let mixed = lower >= 2 && upper >= 2 && digits >= 2;
    let long = run.len() >= 24 && letters >= 4 && digits >= 4;
    (mixed && changes * 20 >= run.len() * 7 || long && changes * 10 >= run.len() * 3) && entropy(run) >= 3.5
}

trait AddOne {
    fn add_one(self);
}

impl AddOne for &mut usize {
    fn add_one(self) {
        *self += 1;
    }
}

fn is_uuid(run: &str) -> bool {
    run.len() == 36
        && run.bytes().enumerate().all(|(i, b)| match i {
            8 | 13 | 18 | 23 => b == b'-',
            _ => b.is_ascii_hexdigit(),
        })
}

/// Shannon entropy of the characters, in bits a character.
fn entropy(run: &str) -> f64 {
    let mut counts = [0u32; 256];
    run.bytes().for_each(|b| counts[usize::from(b)] += 1);
    let n = run.len() as f64;
    counts.iter().filter(|c| **c > 0).map(|c| f64::from(*c) / n).map(|p| -p * p.log2()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_are_never_given_out_are_none() {
        assert!(ssn_checks("536-90-4399") && ssn_checks("001 01 0001"));
        for never in ["000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000", "078-05-1120", "12-34"]
        {
            assert!(!ssn_checks(never), "{never}");
        }
    }

    #[test]
    fn random_runs_are_told_from_names_and_ids() {
        for secret in [
            "kJ8sQ2xV9bNwR4tLzP0c",
            "9f86d081884c7d659a2feaa0c55ad015",
            "AbC1dEf2GhI3jKl4MnO5pQr6StU7vWx8",
            "q7w2e9r4t1y6u3i8o5p0a7s2d9f4",
        ] {
            assert!(looks_secret(secret, false), "{secret}");
        }
        for plain in [
            "balance_not_updated_after_bank_transfer",
            "550e8400-e29b-41d4-a716-446655440000",
            "ORD-2025-11-0000123456",
            "Donaudampfschifffahrtsgesellschaft",
            "MyAccountStatement2025Report",
            "2025-03-20-statement-final-v2",
            "11111111111111111111111111111111",
        ] {
            assert!(!looks_secret(plain, false), "{plain}");
        }
        assert!(looks_secret("a1b2c3d4e5", true) && !looks_secret("expired2025", true));
    }

    #[test]
    fn context_is_the_five_words_before() {
        let text = "my SSN, as you asked: 536904399";
        assert!(context(text, 22, SSN_WORDS));
        assert!(!context("ssn a b c d e 536904399", 14, SSN_WORDS));
        assert!(!context("ö".repeat(60).as_str(), 100, SSN_WORDS));
    }
}
