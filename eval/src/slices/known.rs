//! Which slices a test row is in: what is known of it, and the words of its message.

use super::{By, Material};
use crate::floor::text_of;
use limbeck_artifact::dataset::Example;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// Rows by slice, in row order.
pub(super) fn slices(material: &Material<'_>) -> BTreeMap<(By, String), Vec<usize>> {
    let mut out = BTreeMap::<(By, String), Vec<usize>>::new();
    let mut add = |by: By, name: String, row: usize| out.entry((by, name)).or_default().push(row);
    let lengths: Vec<usize> = material.test.iter().map(|row| text_of(&row.messages).chars().count()).collect();
    let bounds = quartiles(&lengths);
    for (row, example) in material.test.iter().enumerate() {
        for name in classes(example, material, row) {
            add(By::Class, name, row);
        }
        add(By::Length, length(lengths[row], &bounds), row);
        if let Some(month) = example.recorded.at.as_deref().and_then(|at| at.get(..7)) {
            add(By::Time, month.to_owned(), row);
        }
        add(By::Customer, example.group.clone(), row);
        if !example.recorded.model.is_empty() {
            add(By::Source, format!("recorded of {}", example.recorded.model), row);
        }
        add(By::Source, example.trace.file.clone(), row);
        let text = text_of(&example.messages);
        add(By::Script, script(&text).to_owned(), row);
        if let Some(language) = language(&text) {
            add(By::Language, language.to_owned(), row);
        }
    }
    out
}

/// The label; of fields, each that the answer has.
fn classes(example: &Example, material: &Material<'_>, row: usize) -> Vec<String> {
    if material.labels {
        return vec![(material.name)(material.gold[row])];
    }
    match serde_json::from_str(&example.target) {
        Ok(Value::Object(fields)) if fields.is_empty() => vec!["no field".to_owned()],
        Ok(Value::Object(fields)) => fields.keys().map(|field| format!("has {field}")).collect(),
        _ => Vec::new(),
    }
}

/// Upper bounds, inclusive, of four equal parts; fewer where lengths repeat.
fn quartiles(lengths: &[usize]) -> Vec<usize> {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let mut bounds: Vec<usize> =
        (1..=4).filter_map(|i| sorted.get((i * sorted.len()).div_ceil(4).checked_sub(1)?).copied()).collect();
    bounds.dedup();
    bounds
}

fn length(chars: usize, bounds: &[usize]) -> String {
    let part = bounds.iter().position(|bound| chars <= *bound).unwrap_or(0);
    match part.checked_sub(1) {
        None => format!("up to {} characters", bounds.first().copied().unwrap_or(chars)),
        // Zeros in front, so that names sort as lengths do, would be read aloud; five digits are enough of an order.
        Some(below) => format!("{} to {} characters", bounds[below] + 1, bounds[part]),
    }
}

/// From here on a language is told. Of Banking77's 3,080 test messages, which are English, half are, 1 % of these as another; of
/// the others nearly half would be.
const SURE: f64 = 0.5;

/// The language, where the message is long and plain enough for it to be told: many short ones are not, and are in no slice of
/// this kind.
fn language(text: &str) -> Option<&'static str> {
    whatlang::detect(text).filter(|found| found.confidence() > SURE).map(|found| found.lang().eng_name())
}

/// The script of most letters: what can be told of a language without guessing.
fn script(text: &str) -> &'static str {
    let mut counts = BTreeMap::<&'static str, usize>::new();
    for c in text.chars().filter(|c| c.is_alphabetic()) {
        let of = match c {
            '\u{0}'..='\u{24f}' | '\u{1e00}'..='\u{1eff}' => "Latin",
            '\u{370}'..='\u{3ff}' => "Greek",
            '\u{400}'..='\u{52f}' => "Cyrillic",
            '\u{590}'..='\u{5ff}' => "Hebrew",
            '\u{600}'..='\u{77f}' | '\u{8a0}'..='\u{8ff}' => "Arabic",
            '\u{900}'..='\u{97f}' => "Devanagari",
            '\u{e00}'..='\u{e7f}' => "Thai",
            '\u{3040}'..='\u{30ff}' => "Japanese kana",
            '\u{ac00}'..='\u{d7af}' | '\u{1100}'..='\u{11ff}' => "Hangul",
            '\u{4e00}'..='\u{9fff}' | '\u{3400}'..='\u{4dbf}' => "Han",
            _ => "another script",
        };
        *counts.entry(of).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map_or("no letters", |(script, _)| script)
}

/// The distinct words of a text of two letters or more.
pub(super) fn words_of(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '\'').filter(|word| word.chars().count() > 1).collect()
}

/// Words of at least `least` rows, in lower case, that not nearly all rows hold.
pub(super) fn words(material: &Material<'_>, least: usize) -> BTreeMap<(By, String), Vec<usize>> {
    let mut out = BTreeMap::<String, Vec<usize>>::new();
    for (row, example) in material.test.iter().enumerate() {
        let text = text_of(&example.messages).to_lowercase();
        for word in words_of(&text) {
            out.entry(word.to_owned()).or_default().push(row);
        }
    }
    let most = material.test.len() * 9 / 10;
    let fits = |(_, rows): &(String, Vec<usize>)| rows.len() >= least && rows.len() <= most;
    out.into_iter().filter(fits).map(|(word, rows)| ((By::Word, format!("says “{word}”")), rows)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_fall_into_four_parts_and_scripts_are_told() {
        let bounds = quartiles(&(1..=100).collect::<Vec<_>>());
        assert_eq!(bounds, [25, 50, 75, 100]);
        assert_eq!(
            (length(25, &bounds), length(26, &bounds)),
            ("up to 25 characters".into(), "26 to 50 characters".into())
        );
        assert_eq!(quartiles(&[7, 7, 7]), [7]);
        assert!(quartiles(&[]).is_empty());
        for (text, expected) in [
            ("Wo ist mein Geld?", "Latin"),
            ("где мои деньги, ok", "Cyrillic"),
            ("卡片还没有到", "Han"),
            ("カードが届きません", "Japanese kana"),
            ("12:30!", "no letters"),
        ] {
            assert_eq!(script(text), expected, "{text}");
        }
    }

    #[test]
    fn a_language_is_told_where_there_is_enough_of_it_and_left_open_elsewhere() {
        for (text, expected) in [
            (
                "Could you please tell me why the transfer that I made yesterday has not arrived in the account of my friend",
                Some("English"),
            ),
            (
                "Ich habe meine neue Karte noch immer nicht bekommen, obwohl ich sie vor einer Woche bestellt habe",
                Some("German"),
            ),
            (
                "Je n'ai toujours pas reçu ma nouvelle carte, je l'ai commandée il y a plus d'une semaine",
                Some("French"),
            ),
            ("где мои деньги, почему перевод до сих пор не пришёл на мой счёт", None),
            ("ok", None),
            ("", None),
        ] {
            assert_eq!(language(text), expected, "{text}");
        }
    }
}
