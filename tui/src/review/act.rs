//! What the keys do on the message and in the lists over it: judging, correcting, looking for other items, and the pages
//! that stand in the item's place.

use super::app::{App, Effect, Mode};
use super::desk::{Form, Judgement, Verdict};
use super::edit::LineEdit;
use super::keymap::Action;
use super::layout;
use super::pick::{Picked, Picker};
use super::sheet::Sheet;
use super::view::{self, Known, View};
use crate::text;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

/// Offered when an item is rejected, here and in other tools; any other reason can be typed.
pub const REASONS: [&str; 6] = [
    "not answerable from the text",
    "several requests at once",
    "outside the taxonomy",
    "unreadable or empty",
    "personal data left in",
    "test or spam",
];

/// Keys that are not up for change.
const FIXED: [(&str, &str); 5] = [
    ("1 to 9", "take what is offered under the digit; of a form, go to the field"),
    ("esc", "leave a list, a note or a view as it was"),
    ("ctrl-z", "suspend; fg comes back"),
    ("ctrl-c, ctrl-l", "quit; draw the screen again"),
    ("", "\\u{..} in reverse: a character not to be shown"),
];

impl App {
    pub(super) fn read(&mut self, key: KeyEvent) -> Effect {
        if key.code == KeyCode::Esc {
            if self.view.take().is_some() {
                self.say("all items again".to_string());
            }
            return Effect::None;
        }
        let Some(action) = self.keys.action(key) else {
            if key.code == KeyCode::Tab && self.schema.is_some() {
                self.open_form(None);
            }
            if let (KeyCode::Char(c), false) =
                (key.code, key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT))
            {
                match c.to_digit(10) {
                    Some(n) if n > 0 && self.schema.is_some() => {
                        self.open_form(Some(n as usize - 1));
                    }
                    Some(n) if n > 0 => return self.instead(n as usize - 1),
                    _ => {
                        let (c, help) = (text::one_line(c.encode_utf8(&mut [0; 4])), self.keys.shown(Action::Help));
                        self.warn(&format!("{c} is no key here; {help} shows the keys"));
                    }
                }
            }
            return Effect::None;
        };
        match action {
            Action::Quit => return Effect::Quit,
            Action::Report => return Effect::Report,
            Action::Undo => match self.history.last() {
                Some(step) => return Effect::Undo { item: step.item },
                None => self.warn("there is nothing of yours to take back"),
            },
            Action::Help => {
                let mut rows = self.keys.help(self.places());
                let fixed = FIXED.map(|(key, what)| (key.to_string(), what));
                rows.splice(2.min(rows.len())..2.min(rows.len()), fixed);
                let lines: Vec<String> = rows.iter().map(|(keys, what)| format!("{keys:<17} {what}")).collect();
                self.read_page("keys", lines.join("\n"));
            }
            Action::Guidelines if self.guidelines.trim().is_empty() => {
                self.warn("there are no guidelines: write them to a file and name it as task.guidelines in the recipe");
            }
            Action::Guidelines => {
                let text = self.guidelines.clone();
                self.read_page("guidelines", text);
                self.turn_to_label();
            }
            Action::Next => self.browse(1),
            Action::Previous => self.browse(-1),
            Action::Search => self.mode = Mode::Search(LineEdit::default()),
            Action::Jump => self.mode = Mode::Jump(LineEdit::default()),
            Action::Filter => {
                let by_answer = self.form == Form::Labels;
                let filters = self.filters.get_or_insert_with(|| view::filters(&self.items, by_answer).into());
                self.mode = Mode::Filter(Picker::new(filters.clone(), false));
            }
            Action::Again if self.at.is_none() => self.look_again(),
            _ => match self.at {
                Some(at) => return self.judge(action, at),
                None => self.warn("there is no item on the screen"),
            },
        }
        Effect::None
    }

    fn judge(&mut self, action: Action, at: usize) -> Effect {
        let item = &self.items[at];
        match action {
            Action::Accept if self.acceptable(item) => {
                let answer = self.sheet.as_ref().map_or_else(|| item.answer.clone(), Sheet::label);
                return self.decide(Verdict::Accept, Some(answer), None);
            }
            Action::Accept => {
                let (correct, reject) = (self.keys.shown(Action::Correct), self.keys.shown(Action::Reject));
                let why = match (&self.form, self.sheet.as_ref().and_then(|sheet| sheet.trouble())) {
                    (Form::Labels, _) => "the answer is not one of the labels".to_string(),
                    (_, Some(fault)) => fault.to_string(),
                    _ => "there is no answer".to_string(),
                };
                self.warn(&format!("{why}: correct it ({correct}) or reject the item ({reject})"));
            }
            Action::Correct => match self.form {
                Form::Labels => self.mode = Mode::Correct(Picker::new(self.labels.clone(), false)),
                Form::Fields(_) => self.open_form(None),
                Form::Text => self.open_editor(),
            },
            Action::Reject => {
                self.mode = Mode::Reject(Picker::new(REASONS.map(str::to_string).into(), true));
            }
            Action::Skip => return self.decide(Verdict::Skip, None, None),
            Action::Flag => return self.decide(Verdict::Flag, None, None),
            Action::Note => self.mode = Mode::Note(LineEdit::default()),
            Action::Down => self.scroll_by(1),
            Action::Up => self.scroll_by(-1),
            Action::PageDown => self.scroll_by(self.page.saturating_sub(1).max(1) as isize),
            Action::PageUp => self.scroll_by(-(self.page.saturating_sub(1).max(1) as isize)),
            Action::Top => self.scroll = 0,
            Action::Bottom => self.scroll = self.last_scroll(),
            Action::Again => self.warn("skipped items come again when all is done; filter for them to see them now"),
            _ => {}
        }
        Effect::None
    }

    /// Takes a label that is offered in place of the answer.
    fn instead(&mut self, n: usize) -> Effect {
        let Some((label, _)) = self.item().and_then(|item| item.instead.get(n)).cloned() else {
            self.warn("no label is offered under that digit");
            return Effect::None;
        };
        self.decide(Verdict::Correct, Some(label), None)
    }

    pub(super) fn corrected(&mut self) -> Effect {
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

    pub(super) fn rejected(&mut self) -> Effect {
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

    fn known(&self) -> Known<'_> {
        Known {
            items: &self.items,
            order: &self.order,
            judgements: &self.judgements,
            closed: &self.closed,
            marks: &self.marks,
        }
    }

    pub(super) fn filtered(&mut self, picked: &Picked) {
        let Picked::Choice(choice) = picked else {
            return self.warn("type a few letters of a view, or use the arrows");
        };
        let Some(filters) = &self.filters else { return };
        match self.known().filtered(&filters[*choice]) {
            Ok(view) => self.look_at(view),
            Err(why) => self.warn(&why),
        }
    }

    pub(super) fn searched(&mut self, typed: &str) {
        if typed.is_empty() {
            return self.look_at(None);
        }
        match self.known().found(typed) {
            Ok(view) => self.look_at(Some(view)),
            Err(why) => self.warn(&why),
        }
    }

    /// Shows a view from its first open item on, or from its first.
    fn look_at(&mut self, view: Option<View>) {
        self.mode = Mode::Read;
        let n = view.as_ref().map_or(self.items.len(), |v| v.items.len());
        let first = view.as_ref().and_then(|v| v.items.first().copied());
        self.view = view;
        self.go(self.next_open(0).or(first));
        if first.is_some() {
            self.say(format!("{n} items; esc shows all again"));
        }
    }

    fn look_again(&mut self) {
        let skipped = |j: &Option<Judgement>| j.as_ref().is_some_and(|j| j.verdict == Verdict::Skip);
        self.again = (0..self.items.len()).filter(|&item| skipped(&self.judgements[item])).collect();
        self.go(self.next_open(0));
    }

    pub(super) fn turn(&mut self, key: KeyEvent) -> Effect {
        let rows = usize::from(layout::panes(self).notice.y.saturating_sub(3)).max(1);
        let Mode::Page(page) = &mut self.mode else { return Effect::None };
        let last = text::wrap(&page.text, usize::from(self.size.width.saturating_sub(2))).len().saturating_sub(rows);
        match self.keys.action(key) {
            Some(Action::Down) => page.scroll = (page.scroll + 1).min(last),
            Some(Action::Up) => page.scroll = page.scroll.min(last).saturating_sub(1),
            Some(Action::PageDown) => page.scroll = (page.scroll + rows).min(last),
            Some(Action::PageUp) => page.scroll = page.scroll.min(last).saturating_sub(rows),
            Some(Action::Top) => page.scroll = 0,
            Some(Action::Bottom) => page.scroll = last,
            _ => self.mode = *std::mem::take(&mut page.back),
        }
        Effect::None
    }

    /// Opens the guidelines where they speak of the answer on the screen.
    fn turn_to_label(&mut self) {
        let Some(answer) = self.item().map(|item| item.answer.clone()).filter(|a| !a.is_empty()) else { return };
        let width = usize::from(self.size.width.saturating_sub(2));
        if let Mode::Page(page) = &mut self.mode
            && let Some(found) = page.text.find(&answer)
        {
            page.scroll = text::wrap(&page.text[..found], width).len().saturating_sub(1);
        }
    }
}
