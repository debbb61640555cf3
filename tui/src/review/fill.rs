//! The form of an answer that is fields: going from field to field, typing into one, taking words out of the message, and
//! saving when nothing is wrong any more.

use super::app::{App, Effect, Mode};
use super::buffer::Buffer;
use super::desk::Verdict;
use super::keymap::{Action, Place};
use super::sheet::{self, Sheet};
use super::words::Words;
use limbeck_artifact::schema::Kind;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::Value;
use std::ops::Range;

/// Begins the remark that keeps a correction which the terminal did not let one finish; JSON follows.
pub const DRAFT: &str = "unfinished: ";

#[derive(Clone, Debug, PartialEq)]
pub struct Filling {
    pub sheet: Sheet,
    /// The row one is on.
    pub at: usize,
    pub typing: Option<Typing>,
    pub words: Option<Words>,
    /// Values before each change, with their rows.
    past: Vec<(usize, Value)>,
    /// The answer when the form was opened.
    begun: String,
}

/// A field that is typed into. Its value follows letter by letter, so that the checks do.
#[derive(Clone, Debug, PartialEq)]
pub struct Typing {
    pub buffer: Buffer,
    /// As shown, and as it was.
    shown: String,
    before: Value,
}

impl Filling {
    fn new(sheet: Sheet, at: usize) -> Filling {
        Filling { begun: sheet.label(), at, sheet, typing: None, words: None, past: Vec::new() }
    }

    /// Whether something would be lost without it.
    pub fn changed(&self) -> bool {
        self.sheet.label() != self.begun
    }

    fn set(&mut self, value: Value) {
        let row = &mut self.sheet.rows[self.at];
        if row.value != value {
            self.past.push((self.at, std::mem::replace(&mut row.value, value)));
            row.who = "yours".to_string();
        }
    }

    fn begin_typing(&mut self, text: Option<&str>) {
        let before = self.sheet.rows[self.at].value.clone();
        let shown = sheet::shown(&before);
        self.typing = Some(Typing { buffer: Buffer::new(text.unwrap_or(&shown), false), shown, before });
        self.follow();
    }

    /// The value that is typed, as it stands.
    fn follow(&mut self) {
        let Some(typing) = &self.typing else { return };
        // What was not touched stays what it was, though it may read differently.
        let value = match typing.buffer.text() == typing.shown {
            true => typing.before.clone(),
            false => sheet::read(self.sheet.field(self.at), typing.buffer.text()),
        };
        self.sheet.rows[self.at].value = value;
    }

    fn end_typing(&mut self, take: bool) {
        let Some(typing) = self.typing.take() else { return };
        let row = &mut self.sheet.rows[self.at];
        let typed = std::mem::replace(&mut row.value, typing.before);
        if take {
            self.set(typed);
        }
    }

    fn step(&mut self, by: isize) {
        let n = self.sheet.rows.len() as isize;
        self.at = (self.at as isize + by).rem_euclid(n) as usize;
    }

    /// Goes through the values there are to choose from.
    fn turn(&mut self, by: isize) -> bool {
        let Some(field) = self.sheet.field(self.at).filter(|field| field.list.is_none()) else { return false };
        let mut choices = if field.required { Vec::new() } else { vec![Value::Null] };
        match field.kind() {
            _ if !field.choices().is_empty() => choices.extend(field.choices().iter().cloned()),
            Kind::Boolean => choices.extend([Value::Bool(true), Value::Bool(false)]),
            _ => return false,
        }
        let n = choices.len() as isize;
        let at = choices.iter().position(|choice| *choice == self.sheet.rows[self.at].value);
        let to = at.map_or(if by > 0 { 0 } else { n - 1 }, |at| (at as isize + by).rem_euclid(n));
        self.set(choices.swap_remove(to as usize));
        true
    }

    /// The next of what others say; after the last comes what was there first.
    fn other(&mut self) -> bool {
        let row = &mut self.sheet.rows[self.at];
        if row.others.is_empty() {
            return false;
        }
        let (next, who) = row.others.remove(0);
        row.others.push((row.value.clone(), row.who.clone()));
        self.set(next);
        self.sheet.rows[self.at].who = who;
        true
    }

    fn undo(&mut self) -> bool {
        let Some((row, value)) = self.past.pop() else { return false };
        self.sheet.rows[row].value = value;
        self.at = row;
        true
    }
}

impl App {
    /// Opens the form at a row, or at the first one that something is wrong with.
    pub(super) fn open_form(&mut self, row: Option<usize>) {
        let (Some(at), Some(recorded)) = (self.at, &self.sheet) else { return };
        if row.is_some_and(|row| row >= recorded.rows.len()) {
            return self.warn("no field has that number");
        }
        let of = |text: &str| {
            let mut sheet = Sheet::of(&recorded.schema, text);
            sheet.compare(&self.items[at].instead);
            sheet
        };
        let judged = self.judgements[at].as_ref().and_then(|judgement| judgement.label.as_deref());
        let mut filling = Filling::new(judged.map_or_else(|| recorded.clone(), of), 0);
        if let Some(draft) = self.draft_of(at) {
            let text = draft.to_string();
            let sheet = of(&text);
            for row in 0..filling.sheet.rows.len() {
                filling.at = row;
                let drafted = sheet.rows.iter().find(|drafted| drafted.name == filling.sheet.rows[row].name);
                filling.set(drafted.map_or(Value::Null, |drafted| drafted.value.clone()));
            }
            let undo = self.keys.shown(Action::FieldUndo);
            self.say(format!("your unfinished correction is back; {undo} takes its changes back one by one"));
        }
        let faults = filling.sheet.faults();
        let faulty = filling.sheet.rows.iter().position(|row| faults.iter().any(|fault| fault.field == row.name));
        filling.at = row.or(faulty).unwrap_or(0);
        self.mode = Mode::Fill(Box::new(filling));
    }

    /// What was left in the middle, here or before the terminal went away.
    pub(super) fn draft_of(&self, item: usize) -> Option<Value> {
        if let Some(draft) = self.drafts.get(&item) {
            return serde_json::from_str(draft).ok();
        }
        if self.judgements[item].is_some() {
            return None;
        }
        let kept = self.marks.get(&item)?.notes.iter().rev().find_map(|note| note.strip_prefix(DRAFT))?;
        // Its author's name may follow.
        serde_json::Deserializer::from_str(kept).into_iter::<Value>().next()?.ok()
    }

    /// A correction that is under way when the program ends: kept as a remark on the item, and taken up from there.
    pub fn half_corrected(&mut self) -> Effect {
        if let Mode::Page(page) = &mut self.mode {
            self.mode = *std::mem::take(&mut page.back);
        }
        let draft = match &mut self.mode {
            Mode::Fill(filling) => {
                filling.end_typing(true);
                filling.changed().then(|| filling.sheet.label())
            }
            Mode::Write(writing) => writing.changed().then(|| Value::from(writing.buffer.text()).to_string()),
            _ => None,
        };
        draft.map_or(Effect::None, |draft| self.decide(Verdict::Note, None, Some(format!("{DRAFT}{draft}"))))
    }

    /// What words are being taken, as bytes of the message.
    pub(super) fn taking(&self) -> Option<Range<usize>> {
        let Mode::Fill(filling) = &self.mode else { return None };
        filling.words.as_ref().map(Words::chosen)
    }

    pub(super) fn fill(&mut self, key: KeyEvent) -> Effect {
        let Mode::Fill(filling) = &self.mode else { return Effect::None };
        if filling.words.is_some() {
            self.choose_words(key);
            return Effect::None;
        }
        if self.keys.action_in(Place::Editor, key) == Some(Action::EditorSave) {
            return self.save_form();
        }
        if filling.typing.is_some() {
            self.type_field(key);
            return Effect::None;
        }
        self.go_through_form(key)
    }

    fn filling(&mut self) -> Option<&mut Filling> {
        if let Mode::Fill(filling) = &mut self.mode { Some(filling) } else { None }
    }

    fn go_through_form(&mut self, key: KeyEvent) -> Effect {
        let action = self.keys.action_in(Place::Form, key);
        let message_action = self.keys.action(key);
        let plain = !key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT);
        let Some(filling) = self.filling() else { return Effect::None };
        match action {
            Some(Action::FieldSave) => return self.save_form(),
            Some(Action::FieldEdit) => filling.begin_typing(None),
            Some(Action::FieldWords) => self.begin_words(),
            Some(Action::FieldOther) if !filling.other() => self.warn("nobody says anything else in this field"),
            Some(Action::FieldClear) => filling.set(Value::Null),
            Some(Action::FieldUndo) if !filling.undo() => self.warn("nothing on this form was changed"),
            Some(_) => {}
            None => match key.code {
                KeyCode::Esc => self.leave_form(),
                KeyCode::Up | KeyCode::BackTab => filling.step(-1),
                KeyCode::Down | KeyCode::Tab => filling.step(1),
                KeyCode::Left | KeyCode::Right => {
                    let by = if key.code == KeyCode::Left { -1 } else { 1 };
                    if !filling.turn(by) {
                        let edit = self.keys.shown(Action::FieldEdit);
                        self.warn(&format!("there is no list to choose from in this field; {edit} edits it"));
                    }
                }
                KeyCode::Char(c) if plain && c.is_ascii_digit() && c != '0' => {
                    let row = c as usize - '1' as usize;
                    match row < filling.sheet.rows.len() {
                        true => filling.at = row,
                        false => self.warn("no field has that number"),
                    }
                }
                _ => match message_action {
                    Some(Action::PageDown) => self.scroll_by(self.page.saturating_sub(1).max(1) as isize),
                    Some(Action::PageUp) => self.scroll_by(-(self.page.saturating_sub(1).max(1) as isize)),
                    Some(Action::Guidelines | Action::Help) => return self.read(key),
                    _ => {
                        let keys = [Action::FieldSave, Action::Help].map(|action| self.keys.shown(action));
                        self.warn(&format!(
                            "no key of the form; {} saves, esc leaves it, {} shows the keys",
                            keys[0], keys[1]
                        ));
                    }
                },
            },
        }
        Effect::None
    }

    fn type_field(&mut self, key: KeyEvent) {
        let action = self.keys.action_in(Place::Editor, key);
        let Some(filling) = self.filling() else { return };
        let Some(typing) = &mut filling.typing else { return };
        match (action, key.code) {
            (Some(Action::EditorUndo), _) => {
                typing.buffer.undo();
            }
            (Some(Action::EditorRedo), _) => {
                typing.buffer.redo();
            }
            (_, KeyCode::Esc) => return filling.end_typing(false),
            (_, KeyCode::Enter) => return filling.end_typing(true),
            (_, KeyCode::Tab | KeyCode::Down) => {
                filling.end_typing(true);
                return filling.step(1);
            }
            (_, KeyCode::BackTab | KeyCode::Up) => {
                filling.end_typing(true);
                return filling.step(-1);
            }
            _ => {
                typing.buffer.handle(key, &[], 1);
            }
        }
        filling.follow();
    }

    /// Into the field one types in; into the one that one is on, it replaces what is there.
    pub(super) fn paste_into_field(&mut self, text: &str) {
        let Some(filling) = self.filling() else { return };
        match &mut filling.typing {
            Some(typing) => typing.buffer.insert(text),
            None if filling.words.is_some() => return,
            None => {
                filling.begin_typing(Some(""));
                if let Some(typing) = &mut filling.typing {
                    typing.buffer.insert(text.trim());
                }
            }
        }
        filling.follow();
    }

    fn begin_words(&mut self) {
        let Some(message) = self.item().map(|item| item.message.clone()) else { return };
        let Mode::Fill(filling) = &self.mode else { return };
        // Where the field's value stands already, or else where one looks.
        let place = self.places.iter().find(|(_, row)| *row == filling.at).map(|(range, _)| range.start);
        let top = self.body.get(self.scroll).map_or(0, |row| row.from);
        match Words::new(&message, place.unwrap_or(top)) {
            Some(words) => {
                if let Some(filling) = self.filling() {
                    filling.words = Some(words);
                }
            }
            None => self.warn("the message has no words to take"),
        }
    }

    fn choose_words(&mut self, key: KeyEvent) {
        let Some(message) = self.at.map(|at| self.items[at].message.clone()) else { return };
        let rows = std::mem::take(&mut self.body);
        if let Some(filling) = self.filling()
            && let Some(words) = &mut filling.words
        {
            match key.code {
                KeyCode::Esc => filling.words = None,
                KeyCode::Enter => {
                    let taken = message[words.chosen()].split_whitespace().collect::<Vec<_>>().join(" ");
                    filling.words = None;
                    filling.take(&taken);
                }
                _ => {
                    words.handle(key, &message, &rows);
                }
            }
        }
        self.body = rows;
    }

    /// Scrolls to the words that are being chosen.
    pub(super) fn show_chosen(&mut self) {
        let Some(range) = self.taking() else { return };
        let row = |at: usize| self.body.partition_point(|row| row.from <= at).saturating_sub(1);
        let (first, last) = (row(range.start), row(range.end.saturating_sub(1)));
        self.scroll = self.scroll.max((last + 1).saturating_sub(self.page)).min(first);
    }

    /// Leaves the form; what was changed is there when it is opened again.
    fn leave_form(&mut self) {
        let Some(at) = self.at else { return };
        let Some(filling) = self.filling() else { return };
        if filling.changed() {
            let draft = filling.sheet.label();
            self.drafts.insert(at, draft);
            self.say("nothing is saved; what you changed is there when you come back to it".to_string());
        }
        self.mode = Mode::Read;
    }

    fn save_form(&mut self) -> Effect {
        let Some(at) = self.at else { return Effect::None };
        let Some(filling) = self.filling() else { return Effect::None };
        filling.end_typing(true);
        if let Some(fault) = filling.sheet.faults().into_iter().next() {
            if let Some(row) = filling.sheet.rows.iter().position(|row| row.name == fault.field) {
                filling.at = row;
            }
            self.warn(&format!("not saved: {fault}"));
            return Effect::None;
        }
        let label = filling.sheet.label();
        let recorded = self.sheet.as_ref().filter(|sheet| sheet.trouble().is_none()).map(Sheet::label);
        let verdict = if recorded.as_ref() == Some(&label) { Verdict::Accept } else { Verdict::Correct };
        // A full disk must not cost what was typed.
        self.drafts.insert(at, label.clone());
        self.decide(verdict, Some(label), None)
    }
}

impl Filling {
    /// Words of the message as the field's value, or as one more item of its list.
    fn take(&mut self, text: &str) {
        let value = match self.sheet.field(self.at) {
            Some(field) if field.list.is_some() => {
                let mut items = self.sheet.rows[self.at].value.as_array().cloned().unwrap_or_default();
                // One item, though it may hold a comma.
                let one = limbeck_artifact::schema::Field { list: None, ..field.clone() };
                items.push(sheet::read(Some(&one), text));
                Value::from(items)
            }
            field => sheet::read(field, text),
        };
        self.set(value);
    }
}
