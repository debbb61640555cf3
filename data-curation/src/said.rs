//! What a message says in other words than an answer: "two" is 2, "half past seven" 19:30, "the 7th of February" 2025-02-07.
//! English only; of another language nothing is found, and a value stays as doubtful as it was.

use std::ops::Range;
use time::format_description::well_known::Rfc3339;
use time::{Date, Duration, Month, OffsetDateTime};

/// A word or a number of a text, in lower case, and its bytes there.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Token {
    text: String,
    at: Range<usize>,
}

impl Token {
    fn number(&self) -> Option<u32> {
        self.text.parse().ok().filter(|_| self.text.len() <= 8)
    }

    fn is(&self, any: &[&str]) -> bool {
        any.contains(&self.text.as_str())
    }
}

/// A message, prepared to be asked what it says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spoken {
    /// Letters and digits apart, number words as digits.
    tokens: Vec<Token>,
    /// When it was sent, where that is known.
    sent: Option<Date>,
}

impl Spoken {
    /// `sent` as RFC 3339.
    pub fn new(message: &str, sent: Option<&str>) -> Spoken {
        let sent = sent.and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok()).map(OffsetDateTime::date);
        Spoken { tokens: tokens(message), sent }
    }

    /// The bytes of the message that say the value: the first that do.
    pub fn place_of(&self, value: &str) -> Option<Range<usize>> {
        let value = tokens(value);
        let words = |from: usize| {
            let here = self.tokens.get(from..from + value.len())?;
            here.iter().zip(&value).all(|(a, b)| a.text == b.text).then_some(value.len())
        };
        let date = date_of(&value);
        // A bare number is no time of day.
        let bare = value.len() == 1 && value[0].number().is_some_and(|n| n < 100);
        let time = time_of(&value, 0).filter(|(_, n)| *n == value.len() && !bare).map(|(time, _)| time);
        let says = |from: usize| {
            if let Some(date) = date {
                return self.date_at(from, date);
            }
            if let Some(time) = time
                && let Some((said, n)) = time_of(&self.tokens, from)
                && said.may_be(time)
            {
                return Some(n);
            }
            words(from).filter(|_| !value.is_empty())
        };
        let (from, n) = (0..self.tokens.len()).find_map(|from| Some((from, says(from)?)))?;
        Some(self.tokens[from].at.start..self.tokens[from + n - 1].at.end)
    }

    /// How many tokens from there on say the date.
    fn date_at(&self, from: usize, date: Date) -> Option<usize> {
        let token = |i: usize| self.tokens.get(from + i);
        let number = |i: usize| token(i).and_then(Token::number);
        let word = |i: usize, any: &[&str]| token(i).is_some_and(|t| t.is(any));
        let day = |n: Option<u32>| n == Some(u32::from(date.day()));
        let month = |i: usize| token(i).and_then(month) == Some(date.month());
        let year = |i: usize| number(i).is_none_or(|y| y < 100 || y == date.year() as u32);
        // 2025-02-07, 7/2/2025, 2/7.
        if let (Some(a), Some(b)) = (number(0), number(1)) {
            let own = (u32::from(date.month() as u8), u32::from(date.day()));
            if a == date.year() as u32 && (b, number(2).unwrap_or(0)) == own {
                return Some(3);
            }
            if ((a, b) == own || (b, a) == own) && year(2) {
                return Some(2);
            }
        }
        if day(number(0)) {
            let suffix = usize::from(word(1, &["st", "nd", "rd", "th"]));
            let of = suffix + usize::from(word(1 + suffix, &["of"]));
            if month(1 + of) {
                return year(2 + of).then_some(2 + of);
            }
            if suffix > 0 && token(1 + of).and_then(self::month).is_none() {
                return Some(1 + suffix);
            }
        }
        if month(0) && day(number(1)) {
            return year(2 + usize::from(word(2, &["st", "nd", "rd", "th"]))).then_some(2);
        }
        if word(0, &["day"]) && word(1, &["after"]) && word(2, TOMORROW) {
            return self.in_days(date, 2).then_some(3);
        }
        if word(0, TOMORROW) {
            return self.in_days(date, 1).then_some(1);
        }
        if word(0, &["today", "tonight"]) {
            return self.in_days(date, 0).then_some(1);
        }
        let weekday = date.weekday().to_string().to_lowercase();
        let named = token(0).is_some_and(|t| t.text.len() >= 3 && weekday.starts_with(&t.text));
        let soon = self.sent.is_none_or(|sent| (-1..=14).contains(&(date - sent).whole_days()));
        (named && soon).then_some(1)
    }

    /// So many days after it was sent, by a clock somewhere on earth.
    fn in_days(&self, date: Date, days: i64) -> bool {
        self.sent.is_none_or(|sent| (date - sent - Duration::days(days)).whole_days().abs() <= 1)
    }
}

const TOMORROW: &[&str] = &["tomorrow", "tmrw", "tmr", "tomorow", "tommorow", "tommorrow"];

/// Runs of letters and runs of digits; a run of number words becomes one number.
fn tokens(text: &str) -> Vec<Token> {
    let mut plain: Vec<Token> = Vec::new();
    let mut last = None;
    for (i, c) in text.char_indices() {
        let kind = if c.is_numeric() { Some(true) } else { c.is_alphabetic().then_some(false) };
        if let Some(numeric) = kind {
            match plain.last_mut() {
                Some(token) if last == Some(numeric) => {
                    token.text.extend(c.to_lowercase());
                    token.at.end = i + c.len_utf8();
                }
                _ => plain.push(Token { text: c.to_lowercase().collect(), at: i..i + c.len_utf8() }),
            }
        }
        last = kind;
    }
    let mut out = Vec::with_capacity(plain.len());
    let mut i = 0;
    while i < plain.len() {
        let (token, n) = match number_words(&plain[i..]) {
            Some((number, n)) => {
                (Token { text: number.to_string(), at: plain[i].at.start..plain[i + n - 1].at.end }, n)
            }
            None => (plain[i].clone(), 1),
        };
        out.push(token);
        i += n;
    }
    out
}

const UNITS: [&str; 20] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
];
const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];

/// The number that words begin with, and how many they are.
fn number_words(words: &[Token]) -> Option<(u32, usize)> {
    let at = |i: usize, any: &[&str]| words.get(i).is_some_and(|t| t.is(any));
    let unit = |i: usize| words.get(i).and_then(|t| UNITS.iter().position(|u| *u == t.text)).map(|n| n as u32);
    let ten = |i: usize| words.get(i).and_then(|t| TENS.iter().position(|u| *u == t.text)).map(|n| n as u32 * 10 + 20);
    if at(0, &["half"]) && at(1, &["a"]) && at(2, &["dozen"]) {
        return Some((6, 3));
    }
    let article = usize::from(at(0, &["a"]));
    if at(article, &["dozen"]) {
        return Some((12, article + 1));
    }
    if at(article, &["couple"]) {
        return Some((2, article + 1 + usize::from(at(article + 1, &["of"]))));
    }
    if let Some(ten) = ten(0) {
        return Some(match unit(1).filter(|n| (1..10).contains(n)) {
            Some(unit) => (ten + unit, 2),
            None => (ten, 1),
        });
    }
    unit(0).map(|n| (n, 1))
}

fn month(token: &Token) -> Option<Month> {
    let name = token.text.as_str();
    let months = (1..=12u8).filter_map(|n| Month::try_from(n).ok());
    let full = |month: &Month| month.to_string().to_lowercase();
    months
        .filter(|_| name.len() >= 3)
        .find(|month| full(month).starts_with(name) || name == "sept" && full(month) == "september")
}

/// A value of the form 2025-02-07.
fn date_of(value: &[Token]) -> Option<Date> {
    let [year, month, day] = value else { return None };
    let month = Month::try_from(u8::try_from(month.number()?).ok()?).ok()?;
    let year = year.number().filter(|_| year.text.len() == 4)?;
    Date::from_calendar_date(i32::try_from(year).ok()?, month, u8::try_from(day.number()?).ok()?).ok()
}

/// A time of day in minutes, of which it may not be known whether it is before noon or after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Time {
    minutes: u32,
    half_known: bool,
}

impl Time {
    fn may_be(self, other: Time) -> bool {
        let half = 12 * 60;
        self.minutes == other.minutes
            || self.minutes % half == other.minutes % half && !(self.half_known && other.half_known)
    }
}

/// The time that tokens say from there on, and how many they are.
fn time_of(tokens: &[Token], from: usize) -> Option<(Time, usize)> {
    let token = |i: usize| tokens.get(from + i);
    let word = |i: usize, any: &[&str]| token(i).is_some_and(|t| t.is(any));
    let number = |i: usize| token(i).and_then(Token::number);
    let minute = |i: usize| number(i).filter(|n| *n < 60 && token(i).is_some_and(|t| t.text.len() == 2));
    if word(0, &["noon", "midday"]) {
        return Some((Time { minutes: 12 * 60, half_known: true }, 1));
    }
    if word(0, &["midnight"]) {
        return Some((Time { minutes: 0, half_known: true }, 1));
    }
    // Half past seven, half seven, a quarter to eight, ten past 7.
    let before = match number(0) {
        Some(n) if n < 60 => Some(n),
        _ if word(0, &["half"]) => Some(30),
        _ if word(0, &["quarter"]) => Some(15),
        _ => None,
    };
    if let Some(minutes) = before {
        let unit = usize::from(word(1, &["minutes", "mins", "min"]));
        let (past, to) = (word(1 + unit, &["past", "after"]), word(1 + unit, &["to", "before", "till"]));
        if let Some(hour) = number(2 + unit).filter(|h| (1..=12).contains(h))
            && (past || to)
        {
            let minutes = if past { hour * 60 + minutes } else { (hour + 12) * 60 - minutes };
            return Some(of_half(minutes % (12 * 60), tokens, from + 3 + unit, 3 + unit));
        }
        if word(0, &["half"])
            && let Some(hour) = number(1).filter(|h| (1..=12).contains(h))
        {
            return Some(of_half((hour * 60 + 30) % (12 * 60), tokens, from + 2, 2));
        }
    }
    let hour = number(0)?;
    let written = token(0).map_or(0, |t| t.text.len());
    // 1930, 730.
    if (3..=4).contains(&written) && hour / 100 < 24 && hour % 100 < 60 {
        return Some(of_day(hour / 100, hour % 100, written == 4, tokens, from + 1, 1));
    }
    if hour > 24 {
        return None;
    }
    // 19:30, 7.30 pm, seven thirty; seconds are read over.
    if let Some(minutes) = minute(1) {
        let seconds = usize::from(written == 2 && minute(2).is_some());
        return Some(of_day(hour, minutes, written == 2, tokens, from + 2 + seconds, 2 + seconds));
    }
    let marked = half_of(tokens, from + 1).is_some() || word(1, &["o", "oclock"]);
    let led =
        from > 0 && tokens[from - 1].is(&["at", "by", "around", "about", "from", "until", "till", "before", "after"]);
    (marked || led || hour > 12).then(|| of_day(hour, 0, false, tokens, from + 1, 1))
}

/// Before noon (false) or after, as said at `at`, and how many tokens that is.
fn half_of(tokens: &[Token], at: usize) -> Option<(bool, usize)> {
    let word = |i: usize, any: &[&str]| tokens.get(at + i).is_some_and(|t| t.is(any));
    let clock = match (word(0, &["o"]), word(0, &["oclock"])) {
        (true, _) => 1 + usize::from(word(1, &["clock"])),
        (_, true) => 1,
        _ => 0,
    };
    let word = |i: usize, any: &[&str]| word(i + clock, any);
    match () {
        _ if word(0, &["am"]) => Some((false, clock + 1)),
        _ if word(0, &["pm"]) => Some((true, clock + 1)),
        _ if word(0, &["a"]) && word(1, &["m"]) => Some((false, clock + 2)),
        _ if word(0, &["p"]) && word(1, &["m"]) => Some((true, clock + 2)),
        _ if word(0, &["tonight"]) => Some((true, clock + 1)),
        _ if word(0, &["in"]) && word(1, &["the"]) && word(2, &["morning"]) => Some((false, clock + 3)),
        _ if word(0, &["in"]) && word(1, &["the"]) && word(2, &["evening", "afternoon"]) => Some((true, clock + 3)),
        _ => None,
    }
}

/// From a time on the clock's twelve hours.
fn of_half(minutes: u32, tokens: &[Token], at: usize, n: usize) -> (Time, usize) {
    match half_of(tokens, at) {
        None => (Time { minutes, half_known: false }, n),
        Some((after, more)) => (Time { minutes: minutes + u32::from(after) * 12 * 60, half_known: true }, n + more),
    }
}

/// From hours and minutes as written; `of_24` where two digits say that the day has 24 hours.
fn of_day(hour: u32, minutes: u32, of_24: bool, tokens: &[Token], at: usize, n: usize) -> (Time, usize) {
    let (hour, known) = (hour % 24, hour == 0 || hour > 12);
    match half_of(tokens, at) {
        _ if known => (Time { minutes: hour * 60 + minutes, half_known: true }, n),
        None => (Time { minutes: hour * 60 + minutes, half_known: of_24 && hour < 10 }, n),
        Some(_) => of_half(hour % 12 * 60 + minutes, tokens, at, n),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The words that say the value, in a message sent on Monday, 2025-02-03.
    fn said<'m>(message: &'m str, value: &str) -> Option<&'m str> {
        Spoken::new(message, Some("2025-02-03T12:00:00Z")).place_of(value).map(|at| &message[at])
    }

    #[test]
    fn number_words_are_numbers_and_the_other_way_round() {
        for (message, value, want) in [
            ("a table for two please", "2", Some("two")),
            ("Twenty-five of us", "25", Some("Twenty-five")),
            ("thirty people", "30 people", Some("thirty people")),
            ("2 adults and 1 child", "two adults and one child", Some("2 adults and 1 child")),
            ("a couple of friends", "2", Some("a couple of")),
            ("half a dozen", "6", Some("half a dozen")),
            ("a dozen", "12", Some("a dozen")),
            ("for 12", "2", None),
            ("someone told me", "1", None),
            ("for two", "3", None),
            ("", "2", None),
            ("for two", "", None),
        ] {
            assert_eq!(said(message, value), want, "{message:?} {value:?}");
        }
    }

    #[test]
    fn times_of_day_are_told_by_the_clock() {
        for (message, value, want) in [
            ("at half past seven", "19:30", Some("half past seven")),
            ("half 7 in the evening then", "19:30", Some("half 7 in the evening")),
            ("half past seven in the morning", "19:30", None),
            ("a quarter to 8 pm", "19:45", Some("quarter to 8 pm")),
            ("ten past twelve", "12:10", Some("ten past twelve")),
            ("quarter to one", "12:45", Some("quarter to one")),
            ("make it 7.30pm", "19:30", Some("7.30pm")),
            ("7:30", "19:30:00", Some("7:30")),
            ("07:30", "19:30", None),
            ("seven thirty p.m.", "19:30", Some("seven thirty p.m")),
            ("730 pm", "19:30", Some("730 pm")),
            ("at seven", "19:00", Some("seven")),
            ("for seven", "19:00", None),
            ("8 o'clock tonight", "20:00", Some("8 o'clock tonight")),
            ("at noon", "12:00", Some("noon")),
            ("12am", "00:00", Some("12am")),
            ("at 19", "7pm", Some("19")),
            ("at 6", "19:00", None),
        ] {
            assert_eq!(said(message, value), want, "{message:?} {value:?}");
        }
    }

    #[test]
    fn days_are_counted_from_when_it_was_said() {
        for (message, value, want) in [
            ("tomorrow at 6", "2025-02-04", Some("tomorrow")),
            ("tomorrow at 6", "2025-02-14", None),
            ("the day after tomorrow", "2025-02-05", Some("day after tomorrow")),
            ("tonight?", "2025-02-03", Some("tonight")),
            ("next Friday", "2025-02-07", Some("Friday")),
            ("on fri", "2025-02-14", Some("fri")),
            ("on Friday", "2025-02-06", None),
            ("on Friday", "2025-04-04", None),
            ("the 7th of February", "2025-02-07", Some("7th of February")),
            ("Feb 7th", "2025-02-07", Some("Feb 7")),
            ("7 feb 2024", "2025-02-07", None),
            ("7/2/2025", "2025-02-07", Some("7/2")),
            ("02/07", "2025-02-07", Some("02/07")),
            ("the 7th", "2025-02-07", Some("7th")),
            ("the 7th of March", "2025-02-07", None),
            ("7 people", "2025-02-07", None),
        ] {
            assert_eq!(said(message, value), want, "{message:?} {value:?}");
        }
        assert!(Spoken::new("tomorrow", None).place_of("2031-01-01").is_some(), "any day may be somebody's tomorrow");
    }
}
