//! The review screen as a state machine: keys in, effects out, nothing drawn and nothing written. A judgement moves on
//! to the next item only in [`App::recorded`], which the caller calls when it is on disk.

use super::desk::{Desk, Item, Judgement, Verdict};
use super::edit::LineEdit;
use super::layout;
use super::pace::Pace;
use super::pick::{Picked, Picker};
use crate::text::{self, Row};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Size;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Offered when an item is rejected; any other reason can be typed.
const REASONS: [&str; 6] = [
    "not answerable from the text",
    "several requests at once",
    "outside the taxonomy",
    "unreadable or empty",
    "personal data left in",
    "test or spam",
];

#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    Read,
    Correct(Picker),
    Reject(Picker),
    Note(LineEdit),
    Help,
}

/// What the caller must do now.
#[derive(Debug, PartialEq)]
pub enum Effect {
    None,
    /// Put it on disk, then call [`App::recorded`], or [`App::failed`].
    Decide {
        item: usize,
        judgement: Judgement,
    },
    /// Take it back on disk, then call [`App::undone`], or [`App::failed`].
    Undo {
        item: usize,
    },
    /// Give the terminal back to the shell until the process is continued.
    Suspend,
    /// Draw every cell again.
    Redraw,
    Quit,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub text: String,
    /// Nothing happened and the person should know why.
    pub grave: bool,
}

/// A judgement that can be taken back.
#[derive(Clone, Debug, PartialEq)]
struct Step {
    item: usize,
    /// The item was here for a second look.
    again: bool,
    /// The note as typed, to be restored.
    note: String,
    /// Counted in this session's rate.
    counted: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub(super) name: String,
    pub(super) items: Arc<[Item]>,
    pub(super) labels: Arc<[String]>,
    pub(super) judgements: Vec<Option<Judgement>>,
    /// The item on the screen; none when there is no item left to judge.
    pub(super) at: Option<usize>,
    pub(super) mode: Mode,
    /// Typed, not yet on disk: each goes with the next judgement of its item.
    notes: BTreeMap<usize, String>,
    pub(super) notice: Option<Notice>,
    pub(super) scroll: usize,
    /// The message, laid out for the screen's width.
    pub(super) body: Vec<Row>,
    pub(super) size: Size,
    pub(super) pace: Pace,
    body_of: Option<(usize, u16)>,
    page: usize,
    /// Skipped items that are gone through once more.
    again: BTreeSet<usize>,
    history: Vec<Step>,
    quit_armed: bool,
}

impl App {
    pub fn new(desk: &dyn Desk) -> Self {
        let items = desk.items();
        let judgements = (0..items.len()).map(|item| desk.judgement(item)).collect();
        let earlier = |item| Step { item, again: false, note: String::new(), counted: false };
        let mut app = App {
            name: desk.name().to_string(),
            labels: desk.labels(),
            judgements,
            at: None,
            mode: Mode::Read,
            notes: BTreeMap::new(),
            notice: None,
            scroll: 0,
            body: Vec::new(),
            size: Size::default(),
            pace: Pace::default(),
            body_of: None,
            page: 1,
            again: BTreeSet::new(),
            history: desk.history().into_iter().filter(|item| *item < items.len()).map(earlier).collect(),
            quit_armed: false,
            items,
        };
        app.at = app.next_open(0);
        app
    }

    /// Takes the terminal's size and lays the message out for it. Call it before drawing.
    pub fn fit(&mut self, size: Size) {
        self.size = size;
        let width = layout::panes(self).message.width.saturating_sub(2);
        if let Some(at) = self.at
            && self.body_of != Some((at, width))
        {
            self.body = text::wrap(&self.items[at].message, usize::from(width));
            self.body_of = Some((at, width));
        }
        self.page = usize::from(layout::panes(self).message.height).max(1);
        self.scroll = self.scroll.min(self.last_scroll());
    }

    /// Tells the time since the screen was opened.
    pub fn tick(&mut self, now: Duration) {
        self.pace.tick(now);
    }

    /// Accepted, corrected or rejected items; a skipped one is still to be reviewed.
    pub fn reviewed(&self) -> usize {
        self.judgements.iter().flatten().filter(|judgement| judgement.verdict != Verdict::Skip).count()
    }

    pub fn skipped(&self) -> usize {
        self.judgements.iter().flatten().filter(|judgement| judgement.verdict == Verdict::Skip).count()
    }

    /// Items reviewed since the screen was opened.
    pub fn this_session(&self) -> usize {
        self.pace.count() as usize
    }

    pub fn total(&self) -> usize {
        self.items.len()
    }

    pub fn item(&self) -> Option<&Item> {
        self.at.map(|at| &self.items[at])
    }

    /// What will be noted with this item's judgement.
    pub fn note(&self) -> &str {
        self.at.and_then(|at| self.notes.get(&at)).map_or("", String::as_str)
    }

    /// Whether the model's answer may be accepted: it is one of the labels, or there are none to be one of.
    pub fn acceptable(&self, item: &Item) -> bool {
        self.labels.is_empty() || self.labels.contains(&item.answer)
    }

    pub fn handle(&mut self, key: KeyEvent) -> Effect {
        let ctrl = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if ctrl => return Effect::Quit,
            KeyCode::Char('z') if ctrl => return Effect::Suspend,
            KeyCode::Char('l') if ctrl => return Effect::Redraw,
            _ => {}
        }
        if layout::too_small(self.size) {
            return if key.code == KeyCode::Char('q') { Effect::Quit } else { Effect::None };
        }
        self.notice = None;
        match &mut self.mode {
            Mode::Help => {
                self.mode = Mode::Read;
                Effect::None
            }
            _ if key.code == KeyCode::Esc => {
                self.mode = Mode::Read;
                Effect::None
            }
            Mode::Read => self.read(key),
            Mode::Correct(_) if key.code == KeyCode::Enter => self.corrected(),
            Mode::Reject(_) if key.code == KeyCode::Enter => self.rejected(),
            Mode::Note(edit) if key.code == KeyCode::Enter => {
                let note = edit.text().trim().to_string();
                self.mode = Mode::Read;
                self.keep_note(self.at, note);
                Effect::None
            }
            Mode::Correct(picker) | Mode::Reject(picker) => {
                picker.handle(key);
                Effect::None
            }
            Mode::Note(edit) => {
                edit.handle(key);
                Effect::None
            }
        }
    }

    /// Pasted text is typed text where text is typed; elsewhere it must not act as keys.
    pub fn paste(&mut self, text: &str) {
        if layout::too_small(self.size) {
            return;
        }
        match &mut self.mode {
            Mode::Correct(picker) | Mode::Reject(picker) => picker.insert(text),
            Mode::Note(edit) => edit.insert(text),
            Mode::Read | Mode::Help => self.warn("pasted text is ignored here: c corrects, n notes"),
        }
    }

    /// The judgement is on disk: on to the next item.
    pub fn recorded(&mut self, item: usize, judgement: Judgement) {
        let counted = judgement.verdict != Verdict::Skip;
        let note = self.notes.remove(&item).unwrap_or_default();
        self.history.push(Step { item, again: self.again.remove(&item), note, counted });
        self.pace.decided(counted);
        self.say(format!("saved: {}", describe(&judgement)));
        self.judgements[item] = Some(judgement);
        self.mode = Mode::Read;
        self.go(self.next_open(item + 1).or_else(|| self.next_open(0)));
    }

    /// The latest judgement is taken back on disk; `judgement` is what stands for the item now.
    pub fn undone(&mut self, judgement: Option<Judgement>) {
        let Some(step) = self.history.pop() else { return };
        if step.again {
            self.again.insert(step.item);
        }
        if step.counted {
            self.pace.taken_back();
        }
        self.judgements[step.item] = judgement;
        self.keep_note(Some(step.item), step.note);
        self.mode = Mode::Read;
        self.go(Some(step.item));
        self.say("taken back: the item is as it was".to_string());
    }

    /// What was asked for is not on disk; the item stays.
    pub fn failed(&mut self, why: &str) {
        self.mode = Mode::Read;
        self.warn(why);
    }

    fn read(&mut self, key: KeyEvent) -> Effect {
        let armed = std::mem::take(&mut self.quit_armed);
        if key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT) {
            return Effect::None;
        }
        match key.code {
            KeyCode::Char('q') if self.notes.is_empty() || armed => return Effect::Quit,
            KeyCode::Char('q') => {
                self.quit_armed = true;
                self.warn("a note is saved with its decision: decide first, or press q again to leave without it");
            }
            KeyCode::Char('?') | KeyCode::F(1) => self.mode = Mode::Help,
            KeyCode::Char('u') => match self.history.last() {
                Some(step) => return Effect::Undo { item: step.item },
                None => self.warn("there is nothing of yours to take back"),
            },
            KeyCode::Right | KeyCode::Char(']') => self.browse(1),
            KeyCode::Left | KeyCode::Char('[') => self.browse(-1),
            KeyCode::Char('r') if self.at.is_none() => self.look_again(),
            _ => {
                if let Some(at) = self.at {
                    return self.judge(key.code, at);
                }
            }
        }
        Effect::None
    }

    fn judge(&mut self, key: KeyCode, at: usize) -> Effect {
        let item = &self.items[at];
        match key {
            KeyCode::Enter | KeyCode::Char('a') if self.acceptable(item) => {
                let answer = item.answer.clone();
                return self.decide(Verdict::Accept, Some(answer), None);
            }
            KeyCode::Enter | KeyCode::Char('a') => {
                self.warn("the answer is not one of the labels: correct it (c) or reject the item (x)");
            }
            KeyCode::Char('c' | '/') if self.labels.is_empty() => {
                self.warn("answers are free text here: accept (a), skip (s) or reject (x)");
            }
            KeyCode::Char('c' | '/') => self.mode = Mode::Correct(Picker::new(self.labels.clone(), false)),
            KeyCode::Char('x') => {
                self.mode = Mode::Reject(Picker::new(REASONS.map(str::to_string).into(), true));
            }
            KeyCode::Char('s') => return self.decide(Verdict::Skip, None, None),
            KeyCode::Char('n') => self.mode = Mode::Note(LineEdit::new(self.note())),
            KeyCode::Down | KeyCode::Char('j') => self.scroll_by(1),
            KeyCode::Up | KeyCode::Char('k') => self.scroll_by(-1),
            KeyCode::PageDown | KeyCode::Char(' ') => self.scroll_by(self.page.saturating_sub(1).max(1) as isize),
            KeyCode::PageUp | KeyCode::Char('b') => self.scroll_by(-(self.page.saturating_sub(1).max(1) as isize)),
            KeyCode::Home | KeyCode::Char('g') => self.scroll = 0,
            KeyCode::End | KeyCode::Char('G') => self.scroll = self.last_scroll(),
            KeyCode::Char(c) => {
                self.warn(&format!("{} is no key here; ? shows the keys", text::one_line(c.encode_utf8(&mut [0; 4]))))
            }
            _ => {}
        }
        Effect::None
    }

    fn corrected(&mut self) -> Effect {
        let Mode::Correct(picker) = &self.mode else { return Effect::None };
        match (picker.picked(), self.item()) {
            (Picked::Choice(choice), Some(item)) => {
                let label = self.labels[choice].clone();
                let verdict = if label == item.answer { Verdict::Accept } else { Verdict::Correct };
                self.decide(verdict, Some(label), None)
            }
            _ => {
                let typed = !picker.edit.text().trim().is_empty();
                self.warn(if typed {
                    "no label matches; esc goes back"
                } else {
                    "type a few letters of the label, or use the arrows"
                });
                Effect::None
            }
        }
    }

    fn rejected(&mut self) -> Effect {
        let Mode::Reject(picker) = &self.mode else { return Effect::None };
        let reason = match picker.picked() {
            Picked::Choice(choice) => REASONS[choice].to_string(),
            Picked::Typed(reason) => reason,
            Picked::Nothing => {
                self.warn("say why: type a reason, or choose one with the arrows");
                return Effect::None;
            }
        };
        self.decide(Verdict::Reject, None, Some(reason))
    }

    fn decide(&self, verdict: Verdict, label: Option<String>, reason: Option<String>) -> Effect {
        let Some(item) = self.at else { return Effect::None };
        let parts: Vec<String> =
            reason.into_iter().chain(Some(self.note().to_string()).filter(|note| !note.is_empty())).collect();
        let note = (!parts.is_empty()).then(|| parts.join("; "));
        Effect::Decide { item, judgement: Judgement { verdict, label, note } }
    }

    fn keep_note(&mut self, item: Option<usize>, note: String) {
        let Some(item) = item else { return };
        match note.is_empty() {
            true => self.notes.remove(&item),
            false => self.notes.insert(item, note),
        };
    }

    fn open(&self, item: usize) -> bool {
        self.judgements[item].is_none() || self.again.contains(&item)
    }

    fn next_open(&self, from: usize) -> Option<usize> {
        (from..self.items.len()).find(|&item| self.open(item))
    }

    fn look_again(&mut self) {
        let skipped = |j: &Option<Judgement>| j.as_ref().is_some_and(|j| j.verdict == Verdict::Skip);
        self.again = (0..self.items.len()).filter(|&item| skipped(&self.judgements[item])).collect();
        self.go(self.next_open(0));
    }

    fn browse(&mut self, by: isize) {
        let to = match self.at {
            None => self.items.len().checked_sub(1).filter(|_| by < 0),
            Some(at) => at.checked_add_signed(by).filter(|to| *to < self.items.len()),
        };
        match to {
            Some(to) => self.go(Some(to)),
            None => self.warn(if by < 0 { "this is the first item" } else { "this is the last item" }),
        }
    }

    fn go(&mut self, to: Option<usize>) {
        self.at = to;
        self.scroll = 0;
        self.fit(self.size);
    }

    fn last_scroll(&self) -> usize {
        self.body.len().saturating_sub(self.page)
    }

    fn scroll_by(&mut self, by: isize) {
        self.scroll = self.scroll.saturating_add_signed(by).min(self.last_scroll());
    }

    fn say(&mut self, text: String) {
        self.notice = Some(Notice { text, grave: false });
    }

    fn warn(&mut self, text: &str) {
        self.notice = Some(Notice { text: text.to_string(), grave: true });
    }
}

/// A judgement in a few words; may hold text from strangers.
pub fn describe(judgement: &Judgement) -> String {
    let label = judgement.label.as_deref().unwrap_or_default();
    let note = judgement.note.as_deref().unwrap_or_default();
    match judgement.verdict {
        Verdict::Accept => format!("accepted {label}"),
        Verdict::Correct => format!("corrected to {label}"),
        Verdict::Reject => format!("rejected ({note})"),
        Verdict::Skip => "skipped".to_string(),
    }
}
