//! A text that is being typed: a cursor that stands between graphemes, the keys of an editor, and undo without limit. What
//! is typed or pasted is data: nothing of it acts as a key, and controls that only a terminal would obey are left out.

use crate::text::{self, Laid};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Buffer {
    text: String,
    /// Byte offset of the cursor, always between graphemes.
    at: usize,
    /// The column that going up and down keeps to.
    goal: Option<usize>,
    /// Whether there may be line breaks.
    lines: bool,
    past: Vec<Edit>,
    future: Vec<Edit>,
    /// What is typed next belongs to the latest edit.
    going_on: bool,
}

/// `out` at `at` was replaced by `new`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edit {
    at: usize,
    out: String,
    new: String,
    cursor: usize,
}

impl Buffer {
    /// Holds `text` as it is, the cursor at its end.
    pub fn new(text: &str, lines: bool) -> Buffer {
        Buffer { at: text.len(), text: text.to_string(), lines, ..Buffer::default() }
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn at(&self) -> usize {
        self.at
    }

    pub fn go_to_start(&mut self) {
        self.go(0);
    }

    /// Types or pastes at the cursor.
    pub fn insert(&mut self, text: &str) {
        let broken = text.replace("\r\n", "\n").replace('\r', "\n");
        let kept = |c: char| match c {
            '\n' | '\t' if !self.lines => Some(' '),
            '\n' | '\t' => Some(c),
            c if c.is_control() => None,
            c => Some(c),
        };
        let new: String = broken.chars().filter_map(kept).collect();
        let room = text::MAX_CHARS.saturating_sub(self.text.chars().count());
        let end = new.char_indices().nth(room).map_or(new.len(), |(i, _)| i);
        let ends_word = new.ends_with(char::is_whitespace);
        self.replace(self.at..self.at, &new[..end], true);
        self.going_on &= !ends_word && text.chars().count() == 1;
    }

    /// Another text in place of the whole; one edit.
    pub fn replace_all(&mut self, text: &str) {
        self.replace(0..self.text.len(), text, false);
    }

    /// Whether the key was one of its own. Up and down go by the rows that the text is shown in.
    pub fn handle(&mut self, key: KeyEvent, rows: &[Laid], page: usize) -> bool {
        let has = |modifier| key.modifiers.contains(modifier);
        let (ctrl, alt) = (has(KeyModifiers::CONTROL), has(KeyModifiers::ALT));
        let word = ctrl || alt;
        match key.code {
            KeyCode::Left if word => self.go(self.word_left()),
            KeyCode::Right if word => self.go(self.word_right()),
            KeyCode::Char('b') if alt => self.go(self.word_left()),
            KeyCode::Char('f') if alt => self.go(self.word_right()),
            KeyCode::Left => self.go(left(&self.text, self.at)),
            KeyCode::Right => self.go(right(&self.text, self.at)),
            KeyCode::Char('b') if ctrl => self.go(left(&self.text, self.at)),
            KeyCode::Char('f') if ctrl => self.go(right(&self.text, self.at)),
            KeyCode::Home if ctrl => self.go(0),
            KeyCode::End if ctrl => self.go(self.text.len()),
            KeyCode::Home => self.go(self.line().start),
            KeyCode::End => self.go(self.line().end),
            KeyCode::Char('a') if ctrl => self.go(self.line().start),
            KeyCode::Char('e') if ctrl => self.go(self.line().end),
            KeyCode::Up if self.lines => self.vertical(rows, -1),
            KeyCode::Down if self.lines => self.vertical(rows, 1),
            KeyCode::Char('p') if ctrl && self.lines => self.vertical(rows, -1),
            KeyCode::Char('n') if ctrl && self.lines => self.vertical(rows, 1),
            KeyCode::PageUp if self.lines => self.vertical(rows, -(page.max(1) as isize)),
            KeyCode::PageDown if self.lines => self.vertical(rows, page.max(1) as isize),
            KeyCode::Char('u') if ctrl => self.replace(self.line().start..self.at, "", false),
            KeyCode::Char('k') if ctrl => self.cut_line(),
            KeyCode::Char('w') if ctrl => self.replace(self.word_left()..self.at, "", false),
            KeyCode::Backspace if word => self.replace(self.word_left()..self.at, "", false),
            KeyCode::Delete if word => self.replace(self.at..self.word_right(), "", false),
            KeyCode::Char('d') if alt => self.replace(self.at..self.word_right(), "", false),
            KeyCode::Char('h') if ctrl => self.replace(left(&self.text, self.at)..self.at, "", false),
            KeyCode::Char('d') if ctrl => self.replace(self.at..right(&self.text, self.at), "", false),
            KeyCode::Backspace => self.replace(left(&self.text, self.at)..self.at, "", false),
            KeyCode::Delete => self.replace(self.at..right(&self.text, self.at), "", false),
            KeyCode::Enter if self.lines => self.insert("\n"),
            KeyCode::Char('j') if ctrl && self.lines => self.insert("\n"),
            KeyCode::Tab if self.lines => self.insert("\t"),
            KeyCode::Char(c) if !ctrl && !alt => self.insert(c.encode_utf8(&mut [0; 4])),
            _ => return false,
        }
        true
    }

    /// Whether there was something to take back.
    pub fn undo(&mut self) -> bool {
        let Some(edit) = self.past.pop() else { return false };
        self.text.replace_range(edit.at..edit.at + edit.new.len(), &edit.out);
        self.at = edit.cursor;
        self.future.push(edit);
        (self.going_on, self.goal) = (false, None);
        true
    }

    /// Whether there was something taken back to do again.
    pub fn redo(&mut self) -> bool {
        let Some(edit) = self.future.pop() else { return false };
        self.text.replace_range(edit.at..edit.at + edit.out.len(), &edit.new);
        self.at = boundary_from(&self.text, edit.at + edit.new.len());
        self.past.push(edit);
        (self.going_on, self.goal) = (false, None);
        true
    }

    fn replace(&mut self, range: Range<usize>, new: &str, typed: bool) {
        let out = self.text[range.clone()].to_string();
        self.goal = None;
        if out == new {
            return;
        }
        self.text.replace_range(range.clone(), new);
        self.future.clear();
        match self.past.last_mut() {
            Some(last) if typed && self.going_on && last.at + last.new.len() == range.start && out.is_empty() => {
                last.new.push_str(new);
            }
            _ => self.past.push(Edit { at: range.start, out, new: new.to_string(), cursor: self.at }),
        }
        self.going_on = typed;
        // A combining mark may have joined the character beside it.
        self.at = boundary_from(&self.text, range.start + new.len());
    }

    fn go(&mut self, to: usize) {
        self.at = to;
        (self.going_on, self.goal) = (false, None);
    }

    fn vertical(&mut self, rows: &[Laid], by: isize) {
        let (row, column) = text::place_of(&self.text, rows, self.at);
        let column = self.goal.unwrap_or(column);
        match row.checked_add_signed(by).map(|to| to.min(rows.len().saturating_sub(1))) {
            Some(to) if to != row => self.at = text::offset_at(&self.text, rows, to, column),
            // Beyond the first and the last row are the text's ends.
            _ => self.at = if by < 0 { 0 } else { self.text.len() },
        }
        (self.going_on, self.goal) = (false, Some(column));
    }

    fn cut_line(&mut self) {
        let line = self.line();
        let end = if self.at == line.end { right(&self.text, self.at) } else { line.end };
        self.replace(self.at..end, "", false);
    }

    /// The line that the cursor is in, without its break.
    fn line(&self) -> Range<usize> {
        let start = self.text[..self.at].rfind('\n').map_or(0, |i| i + 1);
        start..self.text[self.at..].find('\n').map_or(self.text.len(), |i| self.at + i)
    }

    fn word_left(&self) -> usize {
        let mut words = self.text[..self.at].unicode_word_indices();
        words.next_back().map_or(0, |(i, _)| i)
    }

    fn word_right(&self) -> usize {
        let mut words = self.text[self.at..].unicode_word_indices();
        words.next().map_or(self.text.len(), |(i, word)| boundary_from(&self.text, self.at + i + word.len()))
    }
}

/// The first place between graphemes from `at` on.
pub(super) fn boundary_from(text: &str, at: usize) -> usize {
    let boundaries = text.grapheme_indices(true).map(|(i, _)| i).chain([text.len()]);
    boundaries.into_iter().find(|&i| i >= at).unwrap_or(text.len())
}

/// One grapheme before `at`.
pub(super) fn left(text: &str, at: usize) -> usize {
    text[..at].grapheme_indices(true).next_back().map_or(0, |(i, _)| i)
}

/// One grapheme behind `at`.
pub(super) fn right(text: &str, at: usize) -> usize {
    text[at..].graphemes(true).next().map_or(at, |g| at + g.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NONE: KeyModifiers = KeyModifiers::NONE;
    const CTRL: KeyModifiers = KeyModifiers::CONTROL;
    const ALT: KeyModifiers = KeyModifiers::ALT;

    fn press(buffer: &mut Buffer, keys: &[(KeyCode, KeyModifiers)]) {
        for &(code, modifiers) in keys {
            let rows = text::lay(buffer.text(), 20, &[]);
            buffer.handle(KeyEvent::new(code, modifiers), &rows, 3);
        }
    }

    fn typed(buffer: &mut Buffer, text: &str) {
        text.chars().for_each(|c| press(buffer, &[(KeyCode::Char(c), NONE)]));
    }

    #[test]
    fn it_edits_as_an_editor_does() {
        let mut b = Buffer::new("We open at nine.", true);
        press(&mut b, &[(KeyCode::Left, CTRL), (KeyCode::Delete, ALT)]);
        typed(&mut b, "ten");
        assert_eq!(b.text(), "We open at ten.");
        press(&mut b, &[(KeyCode::Home, NONE), (KeyCode::Char('k'), CTRL), (KeyCode::Enter, NONE)]);
        typed(&mut b, "x y");
        press(&mut b, &[(KeyCode::Backspace, CTRL)]);
        assert_eq!((b.text(), b.at()), ("\nx ", 3));
        press(&mut b, &[(KeyCode::Up, NONE), (KeyCode::Char('d'), CTRL)]);
        assert_eq!((b.text(), b.at()), ("x ", 0));
        while b.undo() {}
        assert_eq!(b.text(), "We open at nine.");
        while b.redo() {}
        assert_eq!(b.text(), "x ");
    }

    #[test]
    fn undo_takes_words_and_typing_again_forgets_what_was_undone() {
        let mut b = Buffer::new("", true);
        typed(&mut b, "one two");
        assert!(b.undo());
        assert_eq!(b.text(), "one ");
        typed(&mut b, "x");
        assert!(!b.redo());
        b.undo();
        b.undo();
        assert_eq!(b.text(), "");
        assert!(!b.undo());
    }

    #[test]
    fn up_and_down_keep_to_their_column() {
        let mut b = Buffer::new("a long line that is wrapped here\nab\nanother long one", true);
        let at = |b: &Buffer| text::place_of(b.text(), &text::lay(b.text(), 20, &[]), b.at());
        press(&mut b, &[(KeyCode::Up, NONE)]);
        assert_eq!(at(&b), (2, 2), "to the short line's end");
        press(&mut b, &[(KeyCode::Up, NONE)]);
        assert_eq!(at(&b), (1, 12), "and back to where it was, as far as there is text");
        press(&mut b, &[(KeyCode::PageUp, NONE), (KeyCode::Up, NONE)]);
        assert_eq!(b.at(), 0);
        press(&mut b, &[(KeyCode::PageDown, NONE), (KeyCode::Down, NONE), (KeyCode::Down, NONE)]);
        assert_eq!(b.at(), b.text().len());
    }

    #[test]
    fn what_is_pasted_is_data() {
        let mut b = Buffer::new("", true);
        b.insert("a\u{1b}[2J\r\nb\rc\u{7}\u{9b}d \u{200d}\t");
        assert_eq!(b.text(), "a[2J\nb\ncd \u{200d}\t");
        b.undo();
        assert_eq!(b.text(), "", "one paste is one edit");
        let mut line = Buffer::new("", false);
        line.insert("two\nlines\t");
        assert_eq!(line.text(), "two lines ");
        line.insert(&"x".repeat(2 * text::MAX_CHARS));
        assert_eq!(line.text().chars().count(), text::MAX_CHARS);
    }

    #[test]
    fn the_cursor_goes_over_what_is_seen_as_one() {
        let mut b = Buffer::new("👩\u{200d}👩\u{200d}👧e\u{301}卡", true);
        press(&mut b, &[(KeyCode::Left, NONE), (KeyCode::Backspace, NONE)]);
        assert_eq!(b.text(), "👩\u{200d}👩\u{200d}👧卡");
        press(&mut b, &[(KeyCode::Backspace, NONE)]);
        assert_eq!(b.text(), "卡");
        typed(&mut b, "e");
        press(&mut b, &[(KeyCode::Left, NONE), (KeyCode::Right, NONE)]);
        typed(&mut b, "\u{301}");
        assert_eq!((b.text(), b.at()), ("e\u{301}卡", 3));
    }

    fn any_key() -> impl Strategy<Value = KeyEvent> {
        let named = vec![
            KeyCode::Left,
            KeyCode::Right,
            KeyCode::Up,
            KeyCode::Down,
            KeyCode::Home,
            KeyCode::End,
            KeyCode::PageUp,
            KeyCode::PageDown,
            KeyCode::Backspace,
            KeyCode::Delete,
            KeyCode::Enter,
            KeyCode::Tab,
        ];
        let code = prop_oneof![
            prop::sample::select(named),
            prop::sample::select("abdefhjknpuw é\u{301}\u{200d}👩卡".chars().collect::<Vec<_>>())
                .prop_map(KeyCode::Char),
        ];
        (code, prop::sample::select(vec![NONE, NONE, CTRL, ALT])).prop_map(|(code, m)| KeyEvent::new(code, m))
    }

    proptest! {
        #[test]
        fn the_cursor_is_always_between_graphemes_and_undo_goes_all_the_way(
            start in "[ab\n é卡\u{200d}]{0,20}", keys in prop::collection::vec(any_key(), 0..60), lines in any::<bool>(),
        ) {
            let mut b = Buffer::new(&start, lines);
            for key in keys {
                let rows = text::lay(b.text(), 14, &[]);
                b.handle(key, &rows, 3);
                let boundary = b.text().grapheme_indices(true).any(|(i, _)| i == b.at()) || b.at() == b.text().len();
                prop_assert!(boundary, "{:?} {}", b.text(), b.at());
            }
            let end = b.text().to_string();
            while b.undo() {}
            prop_assert_eq!(b.text(), &start);
            while b.redo() {}
            prop_assert_eq!(b.text(), &end);
        }
    }
}
