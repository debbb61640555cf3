//! Type-ahead over a list: what is typed narrows it, the arrows move, enter takes. Ranking goes from what was typed
//! exactly, over beginnings of words and substrings, to letters in order and, when nothing else is left, near misses.

use super::edit::LineEdit;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::sync::Arc;

/// Below this similarity a near miss is no suggestion (1 - edits per character, transpositions count once).
const NEAR: f64 = 0.6;
const PAGE: usize = 8;

#[derive(Clone, Debug, PartialEq)]
pub struct Picker {
    pub edit: LineEdit,
    choices: Arc<[String]>,
    matches: Vec<usize>,
    /// Place in `matches`. None until something is typed or an arrow pressed, so that a stray enter picks nothing.
    chosen: Option<usize>,
    /// What is typed may be taken as it stands.
    free: bool,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Picked {
    Nothing,
    Choice(usize),
    /// Only from a picker that takes free text.
    Typed(String),
}

impl Picker {
    pub fn new(choices: Arc<[String]>, free: bool) -> Self {
        let matches = (0..choices.len()).collect();
        Picker { edit: LineEdit::default(), choices, matches, chosen: None, free }
    }

    pub fn matches(&self) -> impl ExactSizeIterator<Item = &str> {
        self.matches.iter().map(|&i| self.choices[i].as_str())
    }

    pub fn chosen(&self) -> Option<usize> {
        self.chosen
    }

    pub fn free(&self) -> bool {
        self.free
    }

    pub fn picked(&self) -> Picked {
        match self.chosen.and_then(|at| self.matches.get(at)) {
            Some(&choice) => Picked::Choice(choice),
            None if self.free && !self.edit.text().trim().is_empty() => Picked::Typed(self.edit.text().trim().into()),
            None => Picked::Nothing,
        }
    }

    pub fn insert(&mut self, text: &str) {
        self.edit.insert(text);
        self.narrow();
    }

    pub fn handle(&mut self, key: KeyEvent) {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Down | KeyCode::Tab => self.step(1),
            KeyCode::Up | KeyCode::BackTab => self.step(-1),
            KeyCode::Char('n') if ctrl => self.step(1),
            KeyCode::Char('p') if ctrl => self.step(-1),
            KeyCode::PageDown => self.step(PAGE as isize),
            KeyCode::PageUp => self.step(-(PAGE as isize)),
            _ => {
                let before = self.edit.text().to_string();
                self.edit.handle(key);
                if self.edit.text() != before {
                    self.narrow();
                }
            }
        }
    }

    fn step(&mut self, by: isize) {
        let Some(last) = self.matches.len().checked_sub(1) else { return };
        self.chosen = match self.chosen {
            None if by > 0 => Some(0),
            None => Some(last),
            // Back over the top is what was typed itself, where that can be taken.
            Some(0) if by < 0 && self.free => None,
            Some(at) => Some(at.saturating_add_signed(by).min(last)),
        };
    }

    fn narrow(&mut self) {
        let query = self.edit.text();
        self.matches = match self.free {
            true => substrings(query, &self.choices),
            false => rank(query, &self.choices),
        };
        self.chosen = (!self.free && !query.trim().is_empty() && !self.matches.is_empty()).then_some(0);
    }
}

/// Words without case, with `_`, `-`, `/` and `.` as good as a space.
fn words(text: &str) -> String {
    let spaced = text.to_lowercase().replace(['_', '-', '/', '.'], " ");
    spaced.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn substrings(query: &str, choices: &[String]) -> Vec<usize> {
    let query = words(query);
    (0..choices.len()).filter(|&i| words(&choices[i]).contains(&query)).collect()
}

/// The indices of the choices that match, best first; among equals the list's own order.
pub fn rank(query: &str, choices: &[String]) -> Vec<usize> {
    let query = words(query);
    if query.is_empty() {
        return (0..choices.len()).collect();
    }
    let mut found: Vec<(usize, usize, usize)> = Vec::new(); // tier, how loosely, index
    for (i, choice) in choices.iter().enumerate() {
        if let Some((tier, loose)) = matched(&query, &words(choice)) {
            found.push((tier, loose, i));
        }
    }
    if found.is_empty() {
        let near = |choice: &String| {
            let choice = words(choice);
            let parts = choice.split(' ').map(|word| strsim::normalized_damerau_levenshtein(&query, word));
            parts.fold(strsim::normalized_damerau_levenshtein(&query, &choice), f64::max)
        };
        let scored = choices.iter().map(near).enumerate().filter(|(_, near)| *near >= NEAR);
        found = scored.map(|(i, near)| (0, ((1.0 - near) * 1e6) as usize, i)).collect();
    }
    found.sort_unstable();
    found.into_iter().map(|(_, _, i)| i).collect()
}

/// How well `choice` matches, lower is better.
fn matched(query: &str, choice: &str) -> Option<(usize, usize)> {
    if choice == query {
        return Some((0, 0));
    }
    if choice.starts_with(query) {
        return Some((1, 0));
    }
    if query.split(' ').all(|part| choice.split(' ').any(|word| word.starts_with(part))) {
        return Some((2, 0));
    }
    if let Some(at) = choice.find(query) {
        return Some((3, at));
    }
    if query.split(' ').all(|part| choice.contains(part)) {
        return Some((4, 0));
    }
    in_order(query, choice).map(|span| (5, span))
}

/// The shortest stretch of `choice` that holds the query's letters in order, from one that begins a word.
fn in_order(query: &str, choice: &str) -> Option<usize> {
    let choice: Vec<char> = choice.chars().collect();
    let begins = (0..choice.len()).filter(|&i| i == 0 || choice[i - 1] == ' ');
    let span = |begin: usize| {
        let mut at = begin;
        for (nth, c) in query.chars().filter(|c| *c != ' ').enumerate() {
            at += choice[at..].iter().position(|&other| other == c)?;
            if nth == 0 && at != begin {
                return None;
            }
            at += 1;
        }
        Some(at - begin)
    };
    begins.filter_map(span).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        let names = "activate_my_card,balance_not_updated_after_bank_transfer,card_about_to_expire,card_arrival,\
            card_delivery_estimate,card_not_working,cash_withdrawal_charge,exchange_rate,lost_or_stolen_card,\
            pending_card_payment,Refund_not_showing_up";
        names.split(',').map(str::to_string).collect()
    }

    #[test]
    fn what_one_types_finds_the_label() {
        let labels = labels();
        let check = |query: &str, first: &str| {
            let ranked = rank(query, &labels);
            assert_eq!(ranked.first().map(|&i| labels[i].as_str()), Some(first), "{query:?}");
        };
        check("card_arrival", "card_arrival");
        check("card arr", "card_arrival");
        check("arrival", "card_arrival");
        check("stolen", "lost_or_stolen_card");
        check("payment pend", "pending_card_payment");
        check("refund", "Refund_not_showing_up");
        check("CARD-DEL", "card_delivery_estimate");
        check("cnw", "card_not_working");
        check("drawal", "cash_withdrawal_charge");
        check("exhcange", "exchange_rate");
        check("refnd", "Refund_not_showing_up");
        assert_eq!(rank("", &labels).len(), labels.len());
        assert_eq!(rank("zzzz", &labels), Vec::<usize>::new());
        assert_eq!(rank("card", &labels)[..2], [2, 3]);
    }

    #[test]
    fn a_stray_enter_picks_nothing() {
        let mut picker = Picker::new(labels().into(), false);
        assert_eq!(picker.picked(), Picked::Nothing);
        picker.insert("lost");
        assert_eq!(picker.picked(), Picked::Choice(8));
        picker.insert("zzz");
        assert_eq!(picker.picked(), Picked::Nothing);
    }

    #[test]
    fn free_text_is_taken_as_typed_unless_an_arrow_chose() {
        let mut picker = Picker::new(vec!["personal data".to_string(), "several requests".into()].into(), true);
        picker.insert("per");
        assert_eq!(picker.picked(), Picked::Typed("per".into()));
        picker.handle(KeyEvent::new(KeyCode::Down, KeyModifiers::NONE));
        assert_eq!(picker.picked(), Picked::Choice(0));
        picker.handle(KeyEvent::new(KeyCode::Up, KeyModifiers::NONE));
        assert_eq!(picker.picked(), Picked::Typed("per".into()));
    }
}
