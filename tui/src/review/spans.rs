//! Where the values of an answer stand in its message: case and kinds of white space do not matter, whole words are
//! preferred, and of several places the leftmost that no other value has taken is a value's own. What is said in other words
//! ("two" for 2) has a place, too.

use limbeck_data_curation::said::Spoken;
use std::ops::Range;

/// Shorter values are looked for as whole words only: a 4 within a telephone number is no evidence.
const PART: usize = 3;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Bytes of the message.
    At(Range<usize>),
    /// It is there, and another value's place is all that there is of it.
    Shared,
    Absent,
}

/// A message, prepared to be searched.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Haystack {
    /// Lower case, white space of any length as one blank.
    chars: Vec<char>,
    /// Bytes of the message that each char stands for.
    bytes: Vec<Range<usize>>,
    spoken: Spoken,
}

impl Haystack {
    pub fn new(message: &str) -> Haystack {
        let (chars, bytes) = folded(message);
        Haystack { chars, bytes, spoken: Spoken::new(message, None) }
    }

    /// A place for each value, in its own words or in others that mean it.
    pub fn places_of(&self, values: &[String]) -> Vec<Found> {
        let mut found = self.find(values);
        for i in 0..values.len() {
            if found[i] == Found::Absent
                && let Some(at) = self.spoken.place_of(&values[i])
            {
                let taken = |f: &Found| matches!(f, Found::At(t) if at.start < t.end && t.start < at.end);
                found[i] = if found.iter().any(taken) { Found::Shared } else { Found::At(at) };
            }
        }
        found
    }

    /// A place for each value. Longer values choose first, for a part of theirs may be another's whole.
    pub fn find(&self, values: &[String]) -> Vec<Found> {
        let needles: Vec<Vec<char>> = values.iter().map(|value| folded(value.trim()).0).collect();
        let mut order: Vec<usize> = (0..values.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(needles[*i].len()));
        let mut found = vec![Found::Absent; values.len()];
        let mut taken: Vec<Range<usize>> = Vec::new();
        for i in order {
            let needle = &needles[i];
            let places = self.places(needle);
            let free = |at: &&(usize, u8)| !taken.iter().any(|t| at.0 < t.end && t.start < at.0 + needle.len());
            // The best tier that has a free place; within it the leftmost.
            if let Some((at, _)) = places.iter().filter(free).min_by_key(|(at, tier)| (*tier, *at)) {
                found[i] = Found::At(self.bytes[*at].start..self.bytes[at + needle.len() - 1].end);
                taken.push(*at..at + needle.len());
            } else if !places.is_empty() {
                found[i] = Found::Shared;
            }
        }
        found
    }

    /// Every place that counts, with how good it is: 0 a whole word, 1 up to a change from letters to digits, 2 a part.
    fn places(&self, needle: &[char]) -> Vec<(usize, u8)> {
        let (Some(first), Some(last)) = (needle.first(), needle.last()) else { return Vec::new() };
        let windows = self.chars.windows(needle.len()).enumerate().filter(|(_, window)| *window == needle);
        let tier = |at: usize| {
            let before = at.checked_sub(1).map(|i| seam(self.chars[i], *first));
            let after = self.chars.get(at + needle.len()).map(|next| seam(*last, *next));
            before.unwrap_or(0).max(after.unwrap_or(0))
        };
        let counts = |tier: u8| tier < 2 || tier == 2 && needle.len() >= PART;
        windows.map(|(at, _)| (at, tier(at))).filter(|(_, tier)| counts(*tier)).collect()
    }
}

/// How much two neighbours belong together: 0 not at all, 1 as in 7pm, 2 within a word, 3 within a number.
fn seam(a: char, b: char) -> u8 {
    let own_word = |c: char| {
        // Scripts without spaces, or with particles that cling to words.
        matches!(c as u32, 0xe00..=0xe7f | 0x3040..=0x30ff | 0x3400..=0x9fff | 0xac00..=0xd7af | 0xf900..=0xfaff | 0x20000..=0x3ffff)
    };
    if !a.is_alphanumeric() || !b.is_alphanumeric() || own_word(a) || own_word(b) {
        return 0;
    }
    match (a.is_numeric(), b.is_numeric()) {
        (true, true) => 3,
        (false, false) => 2,
        _ => 1,
    }
}

fn folded(text: &str) -> (Vec<char>, Vec<Range<usize>>) {
    let (mut chars, mut bytes): (Vec<char>, Vec<Range<usize>>) = (Vec::new(), Vec::new());
    for (at, c) in text.char_indices() {
        let of = at..at + c.len_utf8();
        if c.is_whitespace() {
            match (chars.last(), bytes.last_mut()) {
                (Some(' '), Some(blank)) => blank.end = of.end,
                _ => {
                    chars.push(' ');
                    bytes.push(of);
                }
            }
            continue;
        }
        // Phones write these where people mean the plain ones.
        let c = match c {
            '’' | '‘' => '\'',
            '“' | '”' => '"',
            '–' | '—' | '‑' => '-',
            c => c,
        };
        for lower in c.to_lowercase() {
            chars.push(lower);
            bytes.push(of.clone());
        }
    }
    (chars, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(message: &str, values: &[&str], want: &[Option<&str>]) {
        let values: Vec<String> = values.iter().map(|v| (*v).to_string()).collect();
        let found = Haystack::new(message).find(&values);
        let texts: Vec<Option<&str>> = found
            .iter()
            .map(|f| match f {
                Found::At(range) => Some(&message[range.clone()]),
                Found::Shared => Some("shared"),
                Found::Absent => None,
            })
            .collect();
        assert_eq!(texts, want, "{message:?} {values:?} {found:?}");
    }

    #[test]
    fn values_are_found_as_people_write_them() {
        check(
            "A table for FOUR at 7pm, Ann\n Smith",
            &["four", "7 pm", "7pm", "ann smith"],
            &[Some("FOUR"), None, Some("7pm"), Some("Ann\n Smith")],
        );
        check("for 4 at 4pm", &["4", "4pm"], &[Some("4"), Some("4pm")]);
        check("at 14:00 for 4", &["4"], &[Some("4")]);
        check("at 14:00", &["4"], &[None]);
        check("at 7pm", &["7"], &[Some("7")]);
        check("concatenate a cat", &["cat", "a"], &[Some("cat"), Some("a")]);
        check("concatenate", &["cat", "a", "ca"], &[Some("cat"), None, None]);
        check("STRASSE and Straße", &["straße"], &[Some("Straße")]);
        check("明天晚上七点", &["晚上", "七"], &[Some("晚上"), Some("七")]);
        check("Ms. O’Neill, 6–8 guests", &["o'neill", "6-8"], &[Some("O’Neill"), Some("6–8")]);
        check("İstanbul", &["istanbul"], &[None]);
        check("İstanbul", &["İSTANBUL"], &[Some("İstanbul")]);
        check("", &["x", ""], &[None, None]);
        check("x", &["", "  "], &[None, None]);
    }

    #[test]
    fn what_is_said_in_other_words_has_their_place() {
        let message = "two of us, half past seven";
        let places = Haystack::new(message).places_of(&["2".into(), "19:30".into(), "3".into(), "two".into()]);
        let at = |words: &str| message.find(words).map(|start| Found::At(start..start + words.len())).unwrap();
        assert_eq!(places, [Found::Shared, at("half past seven"), Found::Absent, at("two")]);
    }

    #[test]
    fn two_values_do_not_share_a_place_where_there_are_two() {
        check("4 people at 4", &["4", "4"], &[Some("4"), Some("4")]);
        let found = Haystack::new("4 people at 4").find(&["4".into(), "4".into()]);
        assert_eq!(found, [Found::At(0..1), Found::At(12..13)]);
        check("4 people", &["4", "4"], &[Some("4"), Some("shared")]);
        check("tomorrow at 7, or 7?", &["7", "tomorrow at 7"], &[Some("7"), Some("tomorrow at 7")]);
        let found = Haystack::new("tomorrow at 7, or 7?").find(&["7".into(), "tomorrow at 7".into()]);
        assert_eq!(found[0], Found::At(18..19), "the longer one chose first");
    }

    proptest! {
        #[test]
        fn what_is_found_says_the_same_and_overlaps_nothing(
            message in "[a-cA-C0-2 \n.é卡]{0,40}", values in prop::collection::vec("[a-c0-2 é卡]{0,4}", 0..5),
        ) {
            let found = Haystack::new(&message).find(&values);
            let fold = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ").to_lowercase();
            let mut taken: Vec<Range<usize>> = Vec::new();
            for (value, found) in values.iter().zip(&found) {
                match found {
                    Found::At(range) => {
                        prop_assert_eq!(fold(&message[range.clone()]), fold(value));
                        prop_assert!(!taken.iter().any(|t| range.start < t.end && t.start < range.end));
                        taken.push(range.clone());
                    }
                    Found::Absent => {
                        // Padded with blanks on both sides it would be a whole word.
                        let whole = format!(" {} ", fold(&message).replace('.', " "));
                        let inside = !value.trim().is_empty() && whole.contains(&format!(" {} ", fold(value)));
                        prop_assert!(!inside || message.contains('.'), "{:?} in {:?}", value, message);
                    }
                    Found::Shared => {}
                }
            }
        }
    }
}
