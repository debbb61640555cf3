//! The editor of an answer that is free text, with the changes against the recorded one beneath it.

use super::app::{App, Effect, Mode};
use super::buffer::Buffer;
use super::desk::Verdict;
use super::diff::{self, Change};
use super::keymap::{Action, Place};
use super::layout;
use crate::text::{self, Laid};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;

#[derive(Clone, Debug, PartialEq)]
pub struct Writing {
    pub buffer: Buffer,
    /// The buffer's text, laid out for the screen.
    pub rows: Vec<Laid>,
    /// Rows above the editor's window.
    pub scroll: usize,
    /// The changes, laid out, and rows above their window.
    pub changes: Vec<Laid>,
    pub changes_scroll: usize,
    /// Bytes of what was laid out as changes, with what each is.
    pub kinds: Vec<(usize, Change)>,
    /// Words that went out and came in.
    pub counts: (usize, usize),
    old: String,
    begun: String,
    laid_for: Option<(u16, String, usize)>,
}

impl Writing {
    fn new(old: &str, begun: &str) -> Writing {
        Writing {
            buffer: Buffer::new(begun, true),
            rows: Vec::new(),
            scroll: 0,
            changes: Vec::new(),
            changes_scroll: 0,
            kinds: Vec::new(),
            counts: (0, 0),
            old: old.to_string(),
            begun: begun.to_string(),
            laid_for: None,
        }
    }

    /// Whether something would be lost without it.
    pub fn changed(&self) -> bool {
        self.buffer.text() != self.begun
    }

    pub fn wheel(&mut self, by: isize) {
        let key = KeyEvent::from(if by > 0 { KeyCode::Down } else { KeyCode::Up });
        let rows = std::mem::take(&mut self.rows);
        self.buffer.handle(key, &rows, 1);
        self.rows = rows;
    }

    /// Lays text and changes out, and scrolls to the cursor.
    fn fit(&mut self, width: u16, height: u16, changes_height: u16) {
        let (text, at) = (self.buffer.text(), self.buffer.at());
        let laid_for = (width, text.to_string(), at);
        if self.laid_for.as_ref() != Some(&laid_for) {
            if self.laid_for.as_ref().is_none_or(|(w, t, _)| *w != width || t != text) {
                self.rows = text::lay(text, usize::from(width), &[]);
            }
            self.lay_changes(width, changes_height);
            self.laid_for = Some(laid_for);
        }
        let (row, _) = text::place_of(self.buffer.text(), &self.rows, at);
        let height = usize::from(height).max(1);
        self.scroll = self.scroll.max((row + 1).saturating_sub(height)).min(row);
    }

    fn lay_changes(&mut self, width: u16, height: u16) {
        let (new, at) = (self.buffer.text(), self.buffer.at());
        let mut shown = String::new();
        let mut cuts = Vec::new();
        let mut cursor = None;
        self.kinds.clear();
        self.counts = (0, 0);
        for part in diff::diff(&self.old, new) {
            let begins = shown.len();
            let of = if part.change == Change::Out { &self.old[part.of.clone()] } else { &new[part.of.clone()] };
            if part.change != Change::Out && at <= part.of.end && cursor.is_none() {
                cursor = Some(begins + at.saturating_sub(part.of.start));
            }
            self.kinds.push((begins, part.change));
            let words = unicode_segmentation::UnicodeSegmentation::unicode_words(of).count();
            let (opens, closes) = match part.change {
                Change::Stayed => {
                    shown.push_str(of);
                    continue;
                }
                Change::Out => {
                    self.counts.0 += words;
                    ("[-", "-]")
                }
                Change::In => {
                    self.counts.1 += words;
                    ("{+", "+}")
                }
            };
            // A line break that came or went is seen as a sign, too.
            shown.push_str(&of.replace('\n', "↵\n"));
            cuts.extend([(begins, opens.to_string()), (shown.len(), closes.to_string())]);
        }
        self.changes = text::lay(&shown, usize::from(width), &cuts);
        let row = self.changes.partition_point(|row| row.from <= cursor.unwrap_or(0)).saturating_sub(1);
        let height = usize::from(height).max(1);
        self.changes_scroll = row.saturating_sub(height / 2).min(self.changes.len().saturating_sub(height));
    }
}

impl App {
    /// Opens the editor on the recorded answer, on what was decided, or on what was left in the middle.
    pub(super) fn open_editor(&mut self) {
        let Some(at) = self.at else { return };
        let recorded = &self.items[at].answer;
        if recorded.chars().count() > text::MAX_CHARS {
            return self.warn("this answer is too long to be edited here: skip it, or reject the item");
        }
        let judged = self.judgements[at].as_ref().and_then(|judgement| judgement.label.as_deref());
        let mut writing = Writing::new(recorded, judged.unwrap_or(recorded));
        if let Some(Value::String(draft)) = self.draft_of(at) {
            writing.buffer.replace_all(&draft);
            writing.buffer.to_start();
            let undo = self.keys.shown(Action::EditorUndo);
            self.say(format!("your unfinished correction is back; {undo} takes it back"));
        } else {
            // One reads from the beginning.
            writing.buffer.to_start();
        }
        self.mode = Mode::Write(Box::new(writing));
    }

    pub(super) fn fit_editor(&mut self) {
        let panes = layout::panes(self);
        if let Mode::Write(writing) = &mut self.mode {
            writing.fit(panes.answer.width.saturating_sub(3), panes.answer.height, panes.changes.height);
        }
    }

    pub(super) fn write(&mut self, key: KeyEvent) -> Effect {
        let action = self.keys.action_in(Place::Editor, key);
        let page = usize::from(layout::panes(self).answer.height);
        let Mode::Write(writing) = &mut self.mode else { return Effect::None };
        match (action, key.code) {
            (Some(Action::EditorSave), _) => return self.save_text(),
            (Some(Action::EditorUndo), _) if !writing.buffer.undo() => self.warn("there is nothing to take back"),
            (Some(Action::EditorRedo), _) if !writing.buffer.redo() => self.warn("nothing was taken back"),
            (Some(_), _) => {}
            (None, KeyCode::Esc) => self.leave_editor(),
            (None, KeyCode::Up) if key.modifiers.contains(KeyModifiers::CONTROL) => self.scroll_by(-1),
            (None, KeyCode::Down) if key.modifiers.contains(KeyModifiers::CONTROL) => self.scroll_by(1),
            (None, _) => {
                let rows = std::mem::take(&mut writing.rows);
                writing.buffer.handle(key, &rows, page.saturating_sub(1));
                writing.rows = rows;
            }
        }
        self.fit_editor();
        Effect::None
    }

    fn leave_editor(&mut self) {
        let Some(at) = self.at else { return };
        if let Mode::Write(writing) = &self.mode
            && writing.changed()
        {
            let draft = Value::from(writing.buffer.text()).to_string();
            self.drafts.insert(at, draft);
            self.say("nothing is saved; what you wrote is there when you come back to it".to_string());
        }
        self.mode = Mode::Read;
    }

    fn save_text(&mut self) -> Effect {
        let Some(at) = self.at else { return Effect::None };
        let Mode::Write(writing) = &self.mode else { return Effect::None };
        let text = writing.buffer.text().to_string();
        if text.trim().is_empty() {
            self.warn("not saved: the answer is empty; leave with esc and reject the item if there is none");
            return Effect::None;
        }
        let verdict = if text == self.items[at].answer { Verdict::Accept } else { Verdict::Correct };
        // A full disk must not cost what was written.
        self.drafts.insert(at, Value::from(text.as_str()).to_string());
        self.decide(verdict, Some(text), None)
    }
}
