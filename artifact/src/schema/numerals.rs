//! Numbers within bounds as a regular language: the numerals of canonical texts, compared to a bound digit by digit. What a
//! text says in decimals is never less exact than the double that it is read as, so that a text within decimal bounds is
//! read as a value within them.

use derivre::RegexAst;
use serde_json::Number;

/// Digits before the point: those of the longest whole number that is no float.
const WHOLE: &str = "(?:0|[1-9][0-9]{0,19})";
/// Behind it: those of the smallest float that is written without an exponent.
const PART: &str = r"(?:\.[0-9]{0,21}[1-9])?";
/// Floats from 1e16 on, and below 1e-5, are written with an exponent.
const LARGE: &str = r"[1-9](?:\.[0-9]{0,15}[1-9])?e\+?(?:1[6-9]|[2-9][0-9]|[12][0-9][0-9]|30[0-7])";
const SMALL: &str = r"[1-9](?:\.[0-9]{0,15}[1-9])?e-(?:[6-9]|[1-9][0-9]|[12][0-9][0-9]|30[0-7])";

/// Numbers from `least` to `most`, whole ones unless `floats`. With an exponent only where the bounds let all such numbers of a
/// sign and size be.
pub(super) fn numerals(floats: bool, least: Option<&Number>, most: Option<&Number>) -> RegexAst {
    let (least, most) = (least.map(Decimal::of), most.map(Decimal::of));
    let plain = |zero: bool| {
        let all = if floats { format!("{WHOLE}{PART}") } else { WHOLE.to_owned() };
        let nonzero = RegexAst::Not(Box::new(RegexAst::Literal("0".to_owned())));
        let all = RegexAst::Regex(all);
        if zero { all } else { RegexAst::And(vec![all, nonzero]) }
    };
    let value = |bound: &Option<Decimal>| bound.as_ref().map(Decimal::value);
    let (low, high) = (value(&least), value(&most));
    let mut kinds = Vec::new();
    if high.is_none_or(|high| high >= 0.0) {
        let mut within = vec![plain(true)];
        within.extend(least.iter().filter(|least| !least.negative).map(Decimal::at_least));
        within.extend(most.iter().map(Decimal::at_most));
        kinds.push(RegexAst::And(within));
        if floats && high.is_none() && low.is_none_or(|low| low <= 1e16) {
            kinds.push(RegexAst::Regex(LARGE.to_owned()));
        }
        if floats && low.is_none_or(|low| low <= 0.0) && high.is_none_or(|high| high >= 1e-5) {
            kinds.push(RegexAst::Regex(SMALL.to_owned()));
        }
    }
    if low.is_none_or(|low| low < 0.0) {
        let mut within = vec![plain(false)];
        within.extend(most.iter().filter(|most| most.negative).map(Decimal::at_least));
        within.extend(least.iter().map(Decimal::at_most));
        let mut sizes = vec![RegexAst::And(within)];
        if floats && low.is_none() && high.is_none_or(|high| high >= -1e16) {
            sizes.push(RegexAst::Regex(LARGE.to_owned()));
        }
        if floats && high.is_none_or(|high| high >= 0.0) && low.is_none_or(|low| low <= -1e-5) {
            sizes.push(RegexAst::Regex(SMALL.to_owned()));
        }
        kinds.push(RegexAst::Concat(vec![RegexAst::Literal("-".to_owned()), RegexAst::Or(sizes)]));
    }
    RegexAst::Or(kinds)
}

/// A bound as digits.
struct Decimal {
    negative: bool,
    whole: Vec<u8>,
    /// Without zeros at the end.
    part: Vec<u8>,
}

impl Decimal {
    fn of(n: &Number) -> Decimal {
        // Rust writes a float's shortest digits, and never an exponent.
        let text = match n.as_f64() {
            Some(x) if n.is_f64() => format!("{x}"),
            _ => n.to_string(),
        };
        let size = text.trim_start_matches('-');
        let (whole, part) = size.split_once('.').unwrap_or((size, ""));
        let part = part.trim_end_matches('0');
        let zero = whole == "0" && part.is_empty();
        Decimal { negative: text.starts_with('-') && !zero, whole: whole.into(), part: part.into() }
    }

    fn value(&self) -> f64 {
        let text = |digits: &[u8]| String::from_utf8_lossy(digits).into_owned();
        let size: f64 = format!("{}.{}", text(&self.whole), text(&self.part)).parse().unwrap_or(f64::INFINITY);
        if self.negative { -size } else { size }
    }

    /// Numerals without a sign of no less than this, leaving its sign out of account.
    fn at_least(&self) -> RegexAst {
        let (whole, part) = (&self.whole, &self.part);
        let n = whole.len();
        let mut ways = vec![format!(r"[1-9][0-9]{{{n},}}(?:\.[0-9]+)?")];
        for (i, digit) in whole.iter().enumerate().filter(|(_, digit)| **digit < b'9') {
            ways.push(format!(
                r"{}[{}-9][0-9]{{{}}}(?:\.[0-9]+)?",
                shown(&whole[..i]),
                char::from(digit + 1),
                n - i - 1
            ));
        }
        if part.is_empty() {
            ways.push(format!(r"{}(?:\.[0-9]+)?", shown(whole)));
        }
        for (i, digit) in part.iter().enumerate().filter(|(_, digit)| **digit < b'9') {
            ways.push(format!(r"{}\.{}[{}-9][0-9]*", shown(whole), shown(&part[..i]), char::from(digit + 1)));
        }
        if !part.is_empty() {
            ways.push(format!(r"{}\.{}[0-9]*", shown(whole), shown(part)));
        }
        any_of(ways)
    }

    /// Numerals without a sign of no more than this, leaving its sign out of account.
    fn at_most(&self) -> RegexAst {
        let (whole, part) = (&self.whole, &self.part);
        let n = whole.len();
        let mut ways = vec![shown(whole)];
        if n > 1 {
            ways.push(format!(r"(?:0|[1-9][0-9]{{0,{}}})(?:\.[0-9]+)?", n - 2));
        }
        for (i, digit) in whole.iter().enumerate() {
            let lowest = if i == 0 && n > 1 { b'1' } else { b'0' };
            if *digit > lowest {
                let (from, to) = (char::from(lowest), char::from(digit - 1));
                ways.push(format!(r"{}[{from}-{to}][0-9]{{{}}}(?:\.[0-9]+)?", shown(&whole[..i]), n - i - 1));
            }
        }
        for (i, digit) in part.iter().enumerate() {
            ways.push(format!(r"{}\.{}", shown(whole), shown(&part[..=i])));
            if *digit > b'0' {
                ways.push(format!(r"{}\.{}[0-{}][0-9]*", shown(whole), shown(&part[..i]), char::from(digit - 1)));
            }
        }
        any_of(ways)
    }
}

fn shown(digits: &[u8]) -> String {
    digits.iter().map(|digit| char::from(*digit)).collect()
}

fn any_of(ways: Vec<String>) -> RegexAst {
    RegexAst::Or(ways.into_iter().map(RegexAst::Regex).collect())
}
