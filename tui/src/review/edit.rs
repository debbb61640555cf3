//! One line of typed text with a cursor, edited as in a shell.

use super::buffer::{boundary_from, left, right};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// A note is a remark, not a document.
const MAX_CHARS: usize = 400;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LineEdit {
    text: String,
    /// Byte offset of the cursor, always between graphemes.
    at: usize,
}

impl LineEdit {
    #[cfg(test)]
    pub fn new(text: &str) -> Self {
        let mut edit = LineEdit::default();
        edit.insert(text);
        edit
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// What to show in `width` columns, and the cursor's column in it.
    pub fn window(&self, width: usize) -> (&str, usize) {
        let before = &self.text[..self.at];
        let mut from = 0;
        for (i, _) in before.grapheme_indices(true) {
            from = i;
            if before[i..].width() < width {
                break;
            }
        }
        if before[from..].width() >= width {
            from = self.at;
        }
        let mut to = self.text.len();
        for (i, grapheme) in self.text[from..].grapheme_indices(true) {
            if self.text[from..from + i].width() + grapheme.width() > width {
                to = from + i;
                break;
            }
        }
        (&self.text[from..to], self.text[from..self.at].width())
    }

    /// Types or pastes; what can't be seen is left out, a line break becomes a space.
    pub fn insert(&mut self, text: &str) {
        for c in text.chars() {
            let c = if c.is_whitespace() { ' ' } else { c };
            let mut buffer = [0; 4];
            let alone: &str = c.encode_utf8(&mut buffer);
            if crate::text::hides(c) || self.text.chars().count() >= MAX_CHARS {
                continue;
            }
            self.text.insert_str(self.at, alone);
            self.at += alone.len();
        }
        // A combining mark may have joined the character that follows.
        self.at = boundary_from(&self.text, self.at);
    }

    /// Whether the key was one of its own.
    pub fn handle(&mut self, key: KeyEvent) -> bool {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('a') if ctrl => self.at = 0,
            KeyCode::Char('e') if ctrl => self.at = self.text.len(),
            KeyCode::Char('b') if ctrl => self.at = left(&self.text, self.at),
            KeyCode::Char('f') if ctrl => self.at = right(&self.text, self.at),
            KeyCode::Char('u') if ctrl => self.remove(0, self.at),
            KeyCode::Char('k') if ctrl => self.remove(self.at, self.text.len()),
            KeyCode::Char('w') if ctrl => self.remove(self.word_start(), self.at),
            KeyCode::Char('h') if ctrl => self.remove(left(&self.text, self.at), self.at),
            KeyCode::Char('d') if ctrl => self.remove(self.at, right(&self.text, self.at)),
            KeyCode::Char(c) if !ctrl && !key.modifiers.contains(KeyModifiers::ALT) => {
                self.insert(c.encode_utf8(&mut [0; 4]));
            }
            KeyCode::Backspace => self.remove(left(&self.text, self.at), self.at),
            KeyCode::Delete => self.remove(self.at, right(&self.text, self.at)),
            KeyCode::Left => self.at = left(&self.text, self.at),
            KeyCode::Right => self.at = right(&self.text, self.at),
            KeyCode::Home => self.at = 0,
            KeyCode::End => self.at = self.text.len(),
            _ => return false,
        }
        true
    }

    fn remove(&mut self, from: usize, to: usize) {
        self.text.replace_range(from..to, "");
        self.at = boundary_from(&self.text, from);
    }

    fn word_start(&self) -> usize {
        let before = self.text[..self.at].trim_end();
        before.rfind(' ').map_or(0, |i| i + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(edit: &mut LineEdit, keys: &[(KeyCode, KeyModifiers)]) {
        for &(code, modifiers) in keys {
            edit.handle(KeyEvent::new(code, modifiers));
        }
    }

    #[test]
    fn it_edits_like_a_shell() {
        let mut edit = LineEdit::new("card not arrived");
        press(&mut edit, &[(KeyCode::Char('w'), KeyModifiers::CONTROL)]);
        assert_eq!(edit.text(), "card not ");
        press(&mut edit, &[(KeyCode::Home, KeyModifiers::NONE), (KeyCode::Delete, KeyModifiers::NONE)]);
        press(&mut edit, &[(KeyCode::Char('C'), KeyModifiers::SHIFT), (KeyCode::Right, KeyModifiers::NONE)]);
        assert_eq!((edit.text(), edit.window(80).1), ("Card not ", 2));
        press(&mut edit, &[(KeyCode::Char('k'), KeyModifiers::CONTROL), (KeyCode::Char('u'), KeyModifiers::CONTROL)]);
        assert_eq!(edit.text(), "");
        press(&mut edit, &[(KeyCode::Backspace, KeyModifiers::NONE), (KeyCode::Left, KeyModifiers::NONE)]);
        assert_eq!(edit.text(), "");
    }

    #[test]
    fn pasted_text_is_one_visible_line() {
        let mut edit = LineEdit::new("a\u{1b}[31m\nb\u{202e}\u{200b}c");
        assert_eq!(edit.text(), "a[31m bc");
        edit.insert(&"x".repeat(10_000));
        assert_eq!(edit.text().chars().count(), MAX_CHARS);
    }

    #[test]
    fn the_cursor_stays_in_the_window() {
        let mut edit = LineEdit::new("卡片还没有到 and a long tail of words");
        for _ in 0..60 {
            for width in 1..12 {
                let (shown, cursor) = edit.window(width);
                assert!(shown.width() <= width && cursor <= width, "{shown:?} {cursor} {width}");
            }
            edit.handle(KeyEvent::new(KeyCode::Left, KeyModifiers::NONE));
        }
    }
}
