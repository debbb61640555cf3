//! The review screen as a state machine: keys in, effects out, nothing drawn and nothing written. A judgement moves on
//! to the next item only in [`App::recorded`], which the caller calls when it is on disk.

use super::desk::{Alike, Desk, Form, Gauge, Item, Judgement, Marks, Seen, State, Verdict};
use super::edit::LineEdit;
use super::fill::Filling;
use super::keymap::{KeyMap, Place};
use super::layout;
use super::order::Order;
use super::pace::Pace;
use super::pick::Picker;
use super::sheet::Sheet;
use super::spans::Haystack;
use super::view::{self, View};
use super::write::Writing;
use crate::text::{self, Laid};
use limbeck_artifact::schema::Schema;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Size;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug, Default, PartialEq)]
pub enum Mode {
    #[default]
    Read,
    Correct(Picker),
    /// A form of fields is filled in.
    Fill(Box<Filling>),
    /// A text is written.
    Write(Box<Writing>),
    Reject(Picker),
    Filter(Picker),
    Note(LineEdit),
    Search(LineEdit),
    Jump(LineEdit),
    /// Something to read in place of the item: help, guidelines, the tally.
    Page(Page),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    pub title: &'static str,
    pub text: String,
    pub scroll: usize,
    /// What one comes back to.
    pub back: Box<Mode>,
}

/// What the caller must do now.
#[derive(Debug, PartialEq)]
pub enum Effect {
    None,
    /// Put it on disk, then call [`App::recorded`], or [`App::failed`].
    Decide {
        item: usize,
        judgement: Judgement,
        seen: Seen,
    },
    /// Take it back on disk, then call [`App::undone`], or [`App::failed`].
    Undo {
        item: usize,
    },
    /// Call [`App::read_page`] with the desk's report.
    Report,
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

/// An entry that can be taken back.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Step {
    pub(super) item: usize,
    /// The item was here for a second look.
    again: bool,
    /// Counted in this session's rate.
    counted: bool,
}

/// What is put into the message, and before which byte.
pub(super) type Cuts = Vec<(usize, String)>;

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub(super) name: String,
    pub(super) items: Arc<[Item]>,
    /// The items in the order in which they are gone through, and where each is in it.
    pub(super) order: Order,
    pub(super) labels: Arc<[String]>,
    pub(super) form: Form,
    /// Of a form of fields.
    pub(super) schema: Option<Arc<Schema>>,
    /// The recorded answer's fields, of the item on the screen.
    pub(super) sheet: Option<Sheet>,
    /// Where values of the fields stand in the message: bytes, and the field's row.
    pub(super) places: Vec<(Range<usize>, usize)>,
    /// Rows of fields of which some value is not in the message.
    pub(super) absent: BTreeSet<usize>,
    pub(super) haystack: Haystack,
    /// The recorded text, laid out; empty where answers are no text.
    pub(super) answer: Vec<Laid>,
    /// Corrections that were left in the middle, by item.
    pub(super) drafts: BTreeMap<usize, String>,
    pub(super) keys: KeyMap,
    pub(super) judgements: Vec<Option<Judgement>>,
    pub(super) closed: Vec<bool>,
    /// Of the judgements; kept, since every picture asks and a queue is long.
    reviewed: usize,
    skipped: usize,
    pub(super) marks: BTreeMap<usize, Marks>,
    /// The item on the screen; none when there is no item left to judge.
    pub(super) at: Option<usize>,
    pub(super) mode: Mode,
    pub(super) view: Option<View>,
    pub(super) notice: Option<Notice>,
    pub(super) scroll: usize,
    /// The message, laid out for the screen's width.
    pub(super) body: Vec<Laid>,
    pub(super) size: Size,
    pub(super) pace: Pace,
    /// Items like the one on the screen.
    pub(super) alike: Vec<Alike>,
    alike_of: Option<usize>,
    pub(super) gauge: Gauge,
    pub(super) guidelines: String,
    /// Names of the filters, from the first time that they are asked for.
    pub(super) filters: Option<Arc<[String]>>,
    /// What the body was laid out for: the item, the width, and what is put into it.
    pub(super) body_of: Option<(usize, u16, Cuts)>,
    pub(super) sheet_of: Option<usize>,
    pub(super) page: usize,
    /// Skipped items that are gone through once more.
    pub(super) again: BTreeSet<usize>,
    pub(super) history: Vec<Step>,
}

impl App {
    pub fn new(desk: &dyn Desk, keys: KeyMap) -> Self {
        let (items, labels) = (desk.items(), desk.labels());
        let form = match desk.form() {
            Form::Labels if labels.is_empty() => Form::Text,
            form => form,
        };
        let schema = if let Form::Fields(schema) = &form { Some(Arc::new(schema.clone())) } else { None };
        let mut app = App {
            name: desk.name().to_string(),
            order: Order::new(desk.order().to_vec()),
            labels,
            form,
            schema,
            sheet: None,
            places: Vec::new(),
            absent: BTreeSet::new(),
            haystack: Haystack::default(),
            answer: Vec::new(),
            drafts: BTreeMap::new(),
            keys,
            judgements: vec![None; items.len()],
            closed: vec![false; items.len()],
            reviewed: 0,
            skipped: 0,
            marks: BTreeMap::new(),
            at: None,
            mode: Mode::Read,
            view: None,
            notice: None,
            scroll: 0,
            body: Vec::new(),
            size: Size::default(),
            pace: Pace::default(),
            alike: Vec::new(),
            alike_of: None,
            gauge: Gauge::default(),
            guidelines: desk.guidelines().to_string(),
            filters: None,
            body_of: None,
            sheet_of: None,
            page: 1,
            again: BTreeSet::new(),
            history: Vec::new(),
            items,
        };
        (0..app.items.len()).for_each(|item| app.know(item, desk.state(item)));
        let earlier = |item| Step { item, again: false, counted: false };
        app.history = desk.history().into_iter().filter(|item| *item < app.items.len()).map(earlier).collect();
        app.at = app.next_open(0);
        app
    }

    /// The places whose keys there are.
    pub(super) fn places(&self) -> &'static [Place] {
        match self.form {
            Form::Labels => &[Place::Message],
            Form::Fields(_) => &[Place::Message, Place::Form, Place::Editor],
            Form::Text => &[Place::Message, Place::Editor],
        }
    }

    /// Tells the time since the screen was opened.
    pub fn tick(&mut self, now: Duration) {
        self.pace.tick(now);
    }

    /// Accepted, corrected or rejected items; a skipped one is still to be reviewed.
    pub fn reviewed(&self) -> usize {
        self.reviewed
    }

    pub fn skipped(&self) -> usize {
        self.skipped
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

    /// Whether the model's answer may be accepted: it is one of the labels, or its fields fit the schema, or there is a text.
    pub fn acceptable(&self, item: &Item) -> bool {
        match (&self.form, &self.schema) {
            (_, Some(schema)) => Sheet::of(schema, &item.answer).trouble().is_none(),
            (Form::Labels, _) => self.labels.contains(&item.answer),
            _ => !item.answer.trim().is_empty(),
        }
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
            Mode::Read => self.read(key),
            Mode::Page(_) => self.turn(key),
            Mode::Fill(_) => self.fill(key),
            Mode::Write(_) => self.write(key),
            _ if key.code == KeyCode::Esc => {
                self.mode = Mode::Read;
                Effect::None
            }
            Mode::Correct(picker) | Mode::Reject(picker) | Mode::Filter(picker) if key.code != KeyCode::Enter => {
                picker.handle(key);
                Effect::None
            }
            Mode::Note(edit) | Mode::Search(edit) | Mode::Jump(edit) if key.code != KeyCode::Enter => {
                edit.handle(key);
                Effect::None
            }
            Mode::Correct(_) => self.corrected(),
            Mode::Reject(_) => self.rejected(),
            Mode::Note(_) => self.half_typed(),
            Mode::Filter(picker) => {
                let picked = picker.picked();
                self.filtered(&picked);
                Effect::None
            }
            Mode::Search(edit) => {
                let typed = edit.text().trim().to_string();
                self.searched(&typed);
                Effect::None
            }
            Mode::Jump(edit) => {
                let typed = edit.text().trim().to_string();
                match view::place_of(&typed, &self.items, &self.order) {
                    Ok(place) => {
                        self.mode = Mode::Read;
                        self.go(Some(place));
                    }
                    Err(why) => self.warn(&why),
                }
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
            Mode::Correct(picker) | Mode::Reject(picker) | Mode::Filter(picker) => picker.insert(text),
            Mode::Note(edit) | Mode::Search(edit) | Mode::Jump(edit) => edit.insert(text),
            Mode::Write(writing) => {
                writing.buffer.insert(text);
                // The next key may come before the next picture.
                self.fit_editor();
            }
            Mode::Fill(_) => self.paste_into_field(text),
            Mode::Read | Mode::Page(_) => self.warn("pasted text is ignored here: correct or note first"),
        }
    }

    /// The wheel: by rows, down is positive.
    pub fn wheel(&mut self, by: isize) {
        let key = KeyEvent::from(if by > 0 { KeyCode::Down } else { KeyCode::Up });
        match &mut self.mode {
            Mode::Correct(picker) | Mode::Reject(picker) | Mode::Filter(picker) => picker.handle(key),
            Mode::Page(page) => page.scroll = page.scroll.saturating_add_signed(by),
            Mode::Write(writing) => writing.wheel(by),
            _ => self.scroll_by(by),
        }
    }

    /// A half-typed remark when the terminal goes away, and what enter does with a whole one: a note on the item.
    pub fn half_typed(&mut self) -> Effect {
        let Mode::Note(edit) = &self.mode else { return self.half_corrected() };
        let note = edit.text().trim().to_string();
        match self.at.filter(|_| !note.is_empty()) {
            Some(_) => self.decide(Verdict::Note, None, Some(note)),
            None => {
                self.mode = Mode::Read;
                Effect::None
            }
        }
    }

    /// The entry is on disk: on to the next item, if it was a judgement.
    pub fn recorded(&mut self, item: usize, judgement: Judgement, state: State) {
        if judgement.verdict.judges() {
            self.drafts.remove(&item);
        }
        let (judges, counted) =
            (judgement.verdict.judges(), judgement.verdict.judges() && judgement.verdict != Verdict::Skip);
        let again = judges && self.again.remove(&item);
        self.history.push(Step { item, again, counted });
        self.say(format!("saved: {}", describe(&judgement)));
        self.know(item, state);
        self.mode = Mode::Read;
        if judges {
            self.pace.decided(counted);
            let after = self.order.place(item) + 1;
            match self.next_open(after).or_else(|| self.next_open(0)) {
                None if self.view.is_some() => {
                    self.view = None;
                    self.go(self.next_open(after).or_else(|| self.next_open(0)));
                    self.say(format!("saved: {}; the view is done, back to all", describe(&judgement)));
                }
                next => self.go(next),
            }
        }
    }

    /// The latest entry is taken back on disk; `state` is what stands for the item now.
    pub fn undone(&mut self, state: State) {
        let Some(step) = self.history.pop() else { return };
        if step.again {
            self.again.insert(step.item);
        }
        if step.counted {
            self.pace.taken_back();
        }
        self.know(step.item, state);
        self.mode = Mode::Read;
        self.go(Some(step.item));
        self.say("taken back: the item is as it was".to_string());
    }

    /// What was asked for is not on disk; the item stays.
    pub fn failed(&mut self, why: &str) {
        self.mode = Mode::Read;
        self.warn(why);
    }

    /// Others did something to an item.
    pub fn changed(&mut self, item: usize, state: State) {
        let closed_before = self.closed[item];
        self.know(item, state);
        if self.at == Some(item) && self.closed[item] && !closed_before {
            self.say("somebody decided this one meanwhile: what you decide replaces it".to_string());
        }
    }

    /// The rest takes a new order; what is done, and the item on the screen, come before it. Numbers of items stay.
    pub fn rearrange(&mut self, items: Arc<[Item]>, order: &[u32]) {
        self.items = items;
        let closed = |item: &u32| !self.open(*item as usize);
        let first: Vec<u32> = self.order.items.iter().copied().filter(closed).collect();
        let on_screen = self.at.map(|at| at as u32).filter(|at| !closed(at));
        let rest = order.iter().copied().filter(|item| !closed(item) && Some(*item) != on_screen);
        self.order = Order::new(first.into_iter().chain(on_screen).chain(rest).collect());
        if let Some(view) = &mut self.view {
            view.items.sort_unstable_by_key(|item| self.order.place(*item));
        }
        // What there is to filter by may be other things now.
        self.filters = None;
        if self.mode == Mode::Read {
            // What is offered in place of fields came with the ranking.
            self.sheet_of = None;
        }
        if self.mode == Mode::Read && self.notice.as_ref().is_none_or(|notice| !notice.grave) {
            self.say("the queue is ranked: from the next item on, what looks wrong comes first".to_string());
        }
    }

    /// The item that [`App::accompany`] is due for.
    pub fn alone(&self) -> Option<usize> {
        self.at.filter(|at| self.alike_of != Some(*at))
    }

    /// Puts like items beside the one on the screen.
    pub fn accompany(&mut self, item: usize, alike: Vec<Alike>) {
        (self.alike, self.alike_of) = (alike, Some(item));
    }

    pub fn set_gauge(&mut self, gauge: Gauge) {
        self.gauge = gauge;
    }

    pub fn read_page(&mut self, title: &'static str, text: String) {
        let back = Box::new(std::mem::take(&mut self.mode));
        self.mode = Mode::Page(Page { title, text, scroll: 0, back });
    }

    /// Something the person must know that no key of theirs caused.
    pub fn tell(&mut self, why: &str) {
        self.warn(why);
    }

    fn know(&mut self, item: usize, state: State) {
        let skip = |j: &Judgement| j.verdict == Verdict::Skip;
        if let Some(old) = &self.judgements[item] {
            *(if skip(old) { &mut self.skipped } else { &mut self.reviewed }) -= 1;
        }
        if let Some(new) = &state.judgement {
            *(if skip(new) { &mut self.skipped } else { &mut self.reviewed }) += 1;
        }
        self.judgements[item] = state.judgement;
        self.closed[item] = state.closed;
        match state.marks.is_empty() {
            true => self.marks.remove(&item),
            false => self.marks.insert(item, state.marks),
        };
    }

    pub(super) fn decide(&self, verdict: Verdict, label: Option<String>, note: Option<String>) -> Effect {
        let Some(item) = self.at else { return Effect::None };
        let offered = self.items[item].instead.iter().map(|(label, who)| format!("{label} ({who})"));
        let alike = self.alike.iter().filter(|_| self.alike_of == self.at);
        let alike = alike.map(|a| format!("like {}: {}", self.items[a.item].id, a.label));
        let votes = self.marks.get(&item).into_iter().flat_map(|m| m.votes.iter().cloned());
        let seen = Seen { dwell: self.pace.dwell(), suggested: offered.chain(alike).chain(votes).collect() };
        Effect::Decide { item, judgement: Judgement { verdict, label, note }, seen }
    }

    pub(super) fn open(&self, item: usize) -> bool {
        !self.closed[item] || self.again.contains(&item)
    }

    /// The first open item of the view from the place `from` on.
    pub(super) fn next_open(&self, from: usize) -> Option<usize> {
        match &self.view {
            None => (from..self.items.len()).map(|place| self.order.item(place)).find(|&item| self.open(item)),
            Some(view) => view.items.iter().copied().find(|&item| self.order.place(item) >= from && self.open(item)),
        }
    }

    pub(super) fn browse(&mut self, by: isize) {
        let (order, all) = (&self.order, self.items.len());
        let to = match (&self.view, self.at.map(|at| order.place(at))) {
            (None, None) => all.checked_sub(1).filter(|_| by < 0).map(|place| order.item(place)),
            (None, Some(at)) => at.checked_add_signed(by).filter(|to| *to < all).map(|place| order.item(place)),
            (Some(view), None) => view.items.last().copied().filter(|_| by < 0),
            (Some(view), Some(at)) if by < 0 => view.items.iter().rev().copied().find(|item| order.place(*item) < at),
            (Some(view), Some(at)) => view.items.iter().copied().find(|item| order.place(*item) > at),
        };
        match (to, self.view.is_some()) {
            (Some(to), _) => self.go(Some(to)),
            (None, true) => self.warn("that is all of this view; esc shows all items"),
            (None, false) => self.warn(if by < 0 { "this is the first item" } else { "this is the last item" }),
        }
    }

    pub(super) fn go(&mut self, to: Option<usize>) {
        if self.at != to {
            self.pace.appeared();
        }
        self.at = to;
        self.scroll = 0;
        self.fit(self.size);
    }

    pub(super) fn say(&mut self, text: String) {
        self.notice = Some(Notice { text, grave: false });
    }

    pub(super) fn warn(&mut self, text: &str) {
        self.notice = Some(Notice { text: text.to_string(), grave: true });
    }
}

/// An entry in a few words; may hold text from strangers.
pub fn describe(judgement: &Judgement) -> String {
    let label = text::fit(judgement.label.as_deref().unwrap_or_default(), 54);
    let note = judgement.note.as_deref().unwrap_or_default();
    match judgement.verdict {
        Verdict::Accept => format!("accepted {label}"),
        Verdict::Correct => format!("corrected to {label}"),
        Verdict::Reject => format!("rejected ({note})"),
        Verdict::Skip => "skipped".to_string(),
        Verdict::Flag => "flagged for somebody else".to_string(),
        Verdict::Note => "noted".to_string(),
    }
}
