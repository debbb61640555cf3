//! The patterns, and the one pass over a text's bytes that says which of them can match.

use regex::Regex;

// Word boundaries are ASCII's: with Unicode's, a text that is not ASCII loses the fast matcher.
const SECRET: &str = r"(?x)
    (?-u:\b)(?:sk|pk|rk)[-_][A-Za-z0-9_-]{16,}
  | (?-u:\b)gh[pousr]_[A-Za-z0-9]{20,} | (?-u:\b)github_pat_[A-Za-z0-9_]{20,} | (?-u:\b)glpat-[A-Za-z0-9_-]{16,}
  | (?-u:\b)(?:AKIA|ASIA)[0-9A-Z]{16}(?-u:\b) | (?-u:\b)AIza[0-9A-Za-z_-]{30,}
  | (?-u:\b)xox[abeprs]-[A-Za-z0-9-]{10,} | (?-u:\b)hf_[A-Za-z0-9]{20,}
  | (?-u:\b)npm_[A-Za-z0-9]{20,} | (?-u:\b)pypi-[A-Za-z0-9_-]{20,} | (?-u:\b)SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}
  | (?-u:\b)eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}
  | (?i:(?-u:\b)bearer\x20+[A-Za-z0-9._~+/=-]{16,})
  | (?s:-----BEGIN\x20[A-Z\x20]*PRIVATE\x20KEY-----.*?(?:-----END\x20[A-Z\x20]*PRIVATE\x20KEY-----|\z))";
/// Token characters in a row, for entropy to judge.
const RUN: &str = r"[A-Za-z0-9_+/=-]{10,}";
const PASSWORD: &str = r#"(?i)(?-u:\b)(?:password|passwd|passphrase|passcode|pwd)(?:\x20+(?:is|was)(?-u:\b)|\x20*[:=])\x20*["']?([^\s"'<>]{6,})"#;
const EMAIL: &str = r"[\p{L}\p{N}][\p{L}\p{N}._%+'-]*@(?:[\p{L}\p{N}](?:[\p{L}\p{N}-]*[\p{L}\p{N}])?\.)+\p{L}{2,24}";
const IBAN_START: &str = r"(?i)(?-u:\b)[a-z]{2}[0-9]{2}";
const DIGITS: &str = r"[0-9](?:[\x20\u{a0}.-]?[0-9]){12,}";
const SSN: &str = r"(?-u:\b)[0-9]{3}(?:-[0-9]{2}-|\x20[0-9]{2}\x20|[0-9]{2})[0-9]{4}(?-u:\b)";
const IPV4: &str = r"(?-u:\b)[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?-u:\b)";
const IPV6: &str = r"(?i)[0-9a-f]{0,4}(?::[0-9a-f]{0,4}){2,7}(?:\.[0-9]{1,3}){0,3}";
const PHONE: &str = r"(?x)
    (?:\+|(?-u:\b)00)[1-9][0-9]{0,2}(?:[\x20./-]{0,2}\(?[0-9]{1,5}\)?){2,6}
  | (?-u:\b)0[0-9]{2,4}[\x20./-]?[0-9]{3,4}[\x20./-]?[0-9]{3,4}(?-u:\b)
  | (?-u:\b)0[1-9](?:[\x20.-]?[0-9]{2}){4}(?-u:\b)
  | \(0?[0-9]{2,5}\)[\x20.-]?[0-9]{3,4}[\x20.-]?[0-9]{3,4}(?-u:\b)
  | (?-u:\b)(?:1[\x20.-])?[2-9][0-9]{2}[\x20.-][0-9]{3}[\x20.-][0-9]{4}(?-u:\b)";
/// Nine to eleven digits, grouped or not: a telephone number only where a word before them says so.
const MAYBE_PHONE: &str = r"(?-u:\b)[0-9]{2,5}(?:[\x20.-]?[0-9]{2,5}){1,4}(?-u:\b)";

pub(super) struct Patterns {
    pub secret: Regex,
    pub run: Regex,
    pub password: Regex,
    pub email: Regex,
    pub iban_start: Regex,
    pub digits: Regex,
    pub ssn: Regex,
    pub ipv4: Regex,
    pub ipv6: Regex,
    pub phone: Regex,
    pub maybe_phone: Regex,
}

impl Patterns {
    pub fn new() -> Result<Patterns, regex::Error> {
        Ok(Patterns {
            secret: Regex::new(SECRET)?,
            run: Regex::new(RUN)?,
            password: Regex::new(PASSWORD)?,
            email: Regex::new(EMAIL)?,
            iban_start: Regex::new(IBAN_START)?,
            digits: Regex::new(DIGITS)?,
            ssn: Regex::new(SSN)?,
            ipv4: Regex::new(IPV4)?,
            ipv6: Regex::new(IPV6)?,
            phone: Regex::new(PHONE)?,
            maybe_phone: Regex::new(MAYBE_PHONE)?,
        })
    }
}

/// What a text holds, byte by byte: necessary for a pattern to match, and cheap.
#[derive(Default)]
pub(super) struct Seen {
    pub at: bool,
    pub digits: usize,
    dots: usize,
    colons: usize,
    /// A run of token characters as long as the shortest secret, with more in it than small letters and underscores.
    run: bool,
    dashes: bool,
    /// "passw", "passph", "passc", "pwd": what the password pattern begins with.
    password: bool,
    bearer: bool,
}

/// The shortest that any secret pattern matches (`xoxb-` and ten more), and the shortest that a word can name.
const RUN_MIN: usize = 10;

impl Seen {
    pub fn of(bytes: &[u8]) -> Seen {
        let mut seen = Seen::default();
        // The run being read: its length, and whether it has a digit, a capital or a prefix's mark.
        let (mut length, mut marked, mut dashes) = (0usize, false, 0usize);
        for (i, b) in bytes.iter().enumerate() {
            dashes = if *b == b'-' { dashes + 1 } else { 0 };
            seen.dashes |= dashes >= 5;
            match b {
                b'a'..=b'z' | b'_' | b'+' | b'/' | b'=' | b'~' => length += 1,
                b'0'..=b'9' => {
                    seen.digits += 1;
                    length += 1;
                    marked = true;
                }
                b'A'..=b'Z' | b'-' => {
                    length += 1;
                    marked = true;
                }
                b'.' => {
                    seen.dots += 1;
                    length += 1;
                }
                _ => {
                    seen.at |= *b == b'@';
                    seen.colons += usize::from(*b == b':');
                    (length, marked) = (0, false);
                }
            }
            seen.run |= marked && length >= RUN_MIN;
            if *b == b'_' {
                // Keys of small letters alone have a prefix with an underscore.
                let before = |n: usize| i.checked_sub(n).map(|from| &bytes[from..i]);
                seen.run |= before(2).is_some_and(|w| [&b"sk"[..], b"pk", b"rk", b"hf"].contains(&w));
                let three: &[&[u8]] = &[b"ghp", b"gho", b"ghu", b"ghs", b"ghr", b"npm", b"pat"];
                seen.run |= before(3).is_some_and(|w| three.contains(&w));
            }
            if matches!(b, b'p' | b'P') {
                let next = bytes.get(i + 1..i + 5).unwrap_or_default();
                let is = |word: &[u8]| next.len() >= word.len() && next[..word.len()].eq_ignore_ascii_case(word);
                seen.password |= is(b"assw") || is(b"assp") || is(b"assc") || is(b"wd");
            }
            if matches!(b, b'b' | b'B') {
                seen.bearer |= bytes.get(i + 1..i + 6).is_some_and(|next| next.eq_ignore_ascii_case(b"earer"));
            }
        }
        seen
    }

    pub fn secrets(&self) -> bool {
        self.run || self.dashes || self.password || self.bearer
    }

    pub fn addresses(&self) -> bool {
        self.colons >= 2 || self.dots >= 3 && self.digits >= 4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On random texts of the characters that matter: where a pattern matches, the pass said that it can.
    #[test]
    fn no_pattern_matches_where_the_pass_said_that_none_can() {
        let patterns = Patterns::new().unwrap();
        let pieces = [
            "a",
            "b",
            "sk-",
            "sk_",
            "ghp_",
            "xoxb-",
            "hf_",
            "AKIA",
            "eyJ",
            ".",
            "-",
            "--",
            "@",
            "x.org",
            ":",
            "::",
            "1",
            "42",
            "700",
            "0770",
            " ",
            "+",
            "(",
            ")",
            "bearer ",
            "password ",
            "pwd=",
            "is ",
            "abcdefghij",
            "KLMNOPQRST",
            "é",
            "GB82",
            "\n",
        ];
        let mut rng = crate::text::Rng::new(11);
        let mut matched = [0; 4];
        for _ in 0..60_000 {
            let text: String = (0..1 + rng.below(14)).map(|_| *rng.pick(&pieces)).collect();
            let seen = Seen::of(text.as_bytes());
            let any = |of: &[&Regex]| of.iter().any(|p| p.is_match(&text));
            let checks = [
                (any(&[&patterns.secret, &patterns.password]), seen.secrets()),
                (any(&[&patterns.email]), seen.at),
                (
                    any(&[&patterns.ssn]) || patterns.phone.find_iter(&text).any(|m| digits(m.as_str()) >= 8),
                    seen.digits >= 7,
                ),
                (any(&[&patterns.ipv4, &patterns.ipv6]), seen.addresses()),
            ];
            for (i, (matches, can)) in checks.into_iter().enumerate() {
                assert!(can || !matches, "{text:?}, check {i}");
                matched[i] += usize::from(matches);
            }
        }
        assert!(matched.iter().all(|n| *n > 50), "{matched:?}");
    }

    fn digits(text: &str) -> usize {
        text.bytes().filter(u8::is_ascii_digit).count()
    }
}
