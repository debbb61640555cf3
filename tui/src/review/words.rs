//! Taking words out of a message with the arrows: one stretch of whole words, moved, extended, or found by its first letters.

use crate::text::{self, Laid};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

#[derive(Clone, Debug, PartialEq)]
pub struct Words {
    /// Bytes of the message. Never empty.
    words: Vec<Range<usize>>,
    /// Where the stretch is held; the other end moves.
    held: Option<usize>,
    at: usize,
    /// Letters that look for a word.
    pub typed: String,
}

impl Words {
    /// None where the message has no word. Begins at the word where `from` bytes are.
    pub fn new(message: &str, from: usize) -> Option<Words> {
        let words = words(message);
        let at = words.iter().position(|word| word.end > from).unwrap_or(0);
        (!words.is_empty()).then_some(Words { words, held: None, at, typed: String::new() })
    }

    /// Bytes of what is chosen.
    pub fn chosen(&self) -> Range<usize> {
        let held = self.held.unwrap_or(self.at);
        self.words[held.min(self.at)].start..self.words[held.max(self.at)].end
    }

    /// Whether the next arrow extends.
    pub fn extends(&self) -> bool {
        self.held.is_some()
    }

    /// Whether the key was one of its own; rows are the message's on the screen.
    pub fn handle(&mut self, key: KeyEvent, message: &str, rows: &[Laid]) -> bool {
        let shift = key.modifiers.contains(KeyModifiers::SHIFT);
        let arrow = matches!(
            key.code,
            KeyCode::Left | KeyCode::Right | KeyCode::Up | KeyCode::Down | KeyCode::Home | KeyCode::End
        );
        if arrow {
            self.typed.clear();
            if shift && self.held.is_none() {
                self.held = Some(self.at);
            }
        }
        let last = self.words.len() - 1;
        match key.code {
            KeyCode::Left => self.at = self.at.saturating_sub(1),
            KeyCode::Right => self.at = (self.at + 1).min(last),
            KeyCode::Home => self.at = 0,
            KeyCode::End => self.at = last,
            KeyCode::Up => self.vertical(message, rows, -1),
            KeyCode::Down => self.vertical(message, rows, 1),
            KeyCode::Char(' ') => {
                self.held = if self.held.is_some() { None } else { Some(self.at) };
                self.typed.clear();
            }
            KeyCode::Backspace => {
                self.typed.pop();
            }
            KeyCode::Char(c) if !key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) => {
                self.typed.push(c);
                self.look(message);
            }
            _ => return false,
        }
        true
    }

    /// Goes to the next word that begins with what was typed; a letter that leads nowhere begins anew.
    fn look(&mut self, message: &str) {
        let begins =
            |typed: &str, i: usize| message[self.words[i].clone()].to_lowercase().starts_with(&typed.to_lowercase());
        let n = self.words.len();
        // One letter moves on, more letters may stay.
        let first = usize::from(self.typed.chars().count() == 1);
        let find =
            |typed: &str, first: usize| (first..n + first).map(|by| (self.at + by) % n).find(|i| begins(typed, *i));
        match find(&self.typed, first) {
            Some(to) => self.at = to,
            None => {
                let alone: String = self.typed.chars().last().into_iter().collect();
                match find(&alone, 1) {
                    Some(to) => (self.at, self.typed) = (to, alone),
                    None => self.typed.clear(),
                }
            }
        }
    }

    fn vertical(&mut self, message: &str, rows: &[Laid], by: isize) {
        let place = |i: usize| text::place_of(message, rows, self.words[i].start);
        let (row, column) = place(self.at);
        let order: Vec<usize> =
            if by < 0 { (0..self.at).rev().collect() } else { (self.at + 1..self.words.len()).collect() };
        // The next row that has a word, and in it the word nearest to the column.
        let Some(to) = order.iter().map(|i| place(*i).0).find(|other| *other != row) else { return };
        let near =
            order.into_iter().take_while(|i| place(*i).0 == to || place(*i).0 == row).filter(|i| place(*i).0 == to);
        self.at = near.min_by_key(|i| place(*i).1.abs_diff(column)).unwrap_or(self.at);
    }
}

/// Words as one takes them: what stands between blanks, without the quotes, brackets and full stops around it; in scripts
/// without blanks, what Unicode takes for a word.
fn words(message: &str) -> Vec<Range<usize>> {
    const BEFORE: &[char] = &['"', '\'', '(', '[', '{', '<', '“', '‘', '«', '„', '¿', '¡'];
    const AFTER: &[char] = &[
        '"', '\'', ')', ']', '}', '>', '”', '’', '»', '.', ',', ';', ':', '!', '?', '…', '。', '，', '、', '！', '？',
    ];
    let mut out = Vec::new();
    let mut begin = None;
    let ends = message.char_indices().chain([(message.len(), ' ')]);
    for (at, c) in ends {
        match (c.is_whitespace(), begin) {
            (false, None) => begin = Some(at),
            (true, Some(from)) => {
                let word = &message[from..at];
                let inner = word.trim_start_matches(BEFORE).trim_end_matches(AFTER);
                let from = from + (word.len() - word.trim_start_matches(BEFORE).len());
                if inner.chars().any(|c| matches!(c as u32, 0xe00..=0xe7f | 0x3040..=0x30ff | 0x3400..=0x9fff)) {
                    out.extend(inner.unicode_word_indices().map(|(i, w)| from + i..from + i + w.len()));
                } else if !inner.is_empty() {
                    out.push(from..from + inner.len());
                }
                begin = None;
            }
            _ => {}
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = "Hi! A table for four,\nat 7pm \"tomorrow\" (Ann Smith) please.";

    fn chosen(keys: &[KeyCode]) -> String {
        let rows = text::lay(MESSAGE, 30, &[]);
        let mut words = Words::new(MESSAGE, 0).unwrap();
        for key in keys {
            words.handle(KeyEvent::from(*key), MESSAGE, &rows);
        }
        MESSAGE[words.chosen()].to_string()
    }

    #[test]
    fn words_are_chosen_by_arrows_and_letters() {
        use KeyCode::{Backspace, Char, Down, End, Home, Left, Right, Up};
        assert_eq!(chosen(&[]), "Hi");
        assert_eq!(chosen(&[Right, Right, Right, Right]), "four");
        assert_eq!(chosen(&[Down, Right, Right]), "tomorrow");
        assert_eq!(chosen(&[End]), "please");
        assert_eq!(chosen(&[End, Up, Home]), "Hi");
        assert_eq!(chosen(&[Char('7')]), "7pm");
        assert_eq!(chosen(&[Char('f')]), "for");
        assert_eq!(chosen(&[Char('f'), Char('o'), Char('u')]), "four");
        assert_eq!(chosen(&[Char('f'), Char('f')]), "four", "the letter again goes on");
        assert_eq!(chosen(&[Char('a'), Char('n'), Char(' '), Right]), "Ann Smith");
        assert_eq!(chosen(&[Char('s'), Char(' '), Left]), "Ann Smith");
        assert_eq!(chosen(&[Char('z'), Backspace]), "Hi");
        assert_eq!(chosen(&[Char(' '), End, Home]), "Hi");
    }

    #[test]
    fn a_message_without_words_has_none() {
        assert_eq!(Words::new(" \n ?! ", 0), None);
        let message = "明天晚上7点";
        assert!(Words::new(message, 0).unwrap().words.len() > 2);
    }
}
