//! The review screen as a state machine: keys in, effects out, nothing drawn and nothing written. A judgement moves on
//! to the next item only in [`App::recorded`], which the caller calls when it is on disk.

use super::desk::{Alike, Desk, Gauge, Item, Judgement, Marks, Seen, State, Verdict};
use super::edit::LineEdit;
use super::keymap::{Action, KeyMap};
use super::layout;
use super::order::Order;
use super::pace::Pace;
use super::pick::{Picked, Picker};
use super::view::{self, Known, View};
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
struct Step {
    item: usize,
    /// The item was here for a second look.
    again: bool,
    /// Counted in this session's rate.
    counted: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub struct App {
    pub(super) name: String,
    pub(super) items: Arc<[Item]>,
    /// The items in the order in which they are gone through, and where each is in it.
    pub(super) order: Order,
    pub(super) labels: Arc<[String]>,
    pub(super) keys: KeyMap,
    pub(super) judgements: Vec<Option<Judgement>>,
    closed: Vec<bool>,
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
    pub(super) body: Vec<Row>,
    pub(super) size: Size,
    pub(super) pace: Pace,
    /// Items like the one on the screen.
    pub(super) alike: Vec<Alike>,
    alike_of: Option<usize>,
    pub(super) gauge: Gauge,
    guidelines: String,
    /// Names of the filters, from the first time that they are asked for.
    filters: Option<Arc<[String]>>,
    body_of: Option<(usize, u16)>,
    page: usize,
    /// Skipped items that are gone through once more.
    again: BTreeSet<usize>,
    history: Vec<Step>,
}

impl App {
    pub fn new(desk: &dyn Desk, keys: KeyMap) -> Self {
        let items = desk.items();
        let mut app = App {
            name: desk.name().to_string(),
            order: Order::new(desk.order().to_vec()),
            labels: desk.labels(),
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
            Mode::Read => self.read(key),
            Mode::Page(_) => self.turn(key),
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
            Mode::Read | Mode::Page(_) => self.warn("pasted text is ignored here: correct or note first"),
        }
    }

    /// The wheel: by rows, down is positive.
    pub fn wheel(&mut self, by: isize) {
        let key = KeyEvent::from(if by > 0 { KeyCode::Down } else { KeyCode::Up });
        match &mut self.mode {
            Mode::Correct(picker) | Mode::Reject(picker) | Mode::Filter(picker) => picker.handle(key),
            Mode::Page(page) => page.scroll = page.scroll.saturating_add_signed(by),
            _ => self.scroll_by(by),
        }
    }

    /// A half-typed remark when the terminal goes away, and what enter does with a whole one: a note on the item.
    pub fn half_typed(&mut self) -> Effect {
        let Mode::Note(edit) = &self.mode else { return Effect::None };
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
        self.mode = Mode::Page(Page { title, text, scroll: 0 });
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

    fn read(&mut self, key: KeyEvent) -> Effect {
        if key.code == KeyCode::Esc {
            if self.view.take().is_some() {
                self.say("all items again".to_string());
            }
            return Effect::None;
        }
        let Some(action) = self.keys.action(key) else {
            if let (KeyCode::Char(c), false) =
                (key.code, key.modifiers.intersects(KeyModifiers::CONTROL | KeyModifiers::ALT))
            {
                match c.to_digit(10) {
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
                let mut rows = self.keys.help();
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
                let filters = self.filters.get_or_insert_with(|| view::filters(&self.items).into());
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
                let answer = item.answer.clone();
                return self.decide(Verdict::Accept, Some(answer), None);
            }
            Action::Accept => {
                let (correct, reject) = (self.keys.shown(Action::Correct), self.keys.shown(Action::Reject));
                self.warn(&format!(
                    "the answer is not one of the labels: correct it ({correct}) or reject the item ({reject})"
                ));
            }
            Action::Correct if self.labels.is_empty() => {
                self.warn("answers are free text here: accept, skip or reject");
            }
            Action::Correct => self.mode = Mode::Correct(Picker::new(self.labels.clone(), false)),
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

    fn filtered(&mut self, picked: &Picked) {
        let Picked::Choice(choice) = picked else {
            return self.warn("type a few letters of a view, or use the arrows");
        };
        let known = Known {
            items: &self.items,
            order: &self.order,
            judgements: &self.judgements,
            closed: &self.closed,
            marks: &self.marks,
        };
        let Some(filters) = &self.filters else { return };
        match known.filtered(&filters[*choice]) {
            Ok(view) => self.look_at(view),
            Err(why) => self.warn(&why),
        }
    }

    fn searched(&mut self, typed: &str) {
        if typed.is_empty() {
            return self.look_at(None);
        }
        let known = Known {
            items: &self.items,
            order: &self.order,
            judgements: &self.judgements,
            closed: &self.closed,
            marks: &self.marks,
        };
        match known.found(typed) {
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

    fn decide(&self, verdict: Verdict, label: Option<String>, note: Option<String>) -> Effect {
        let Some(item) = self.at else { return Effect::None };
        let offered = self.items[item].instead.iter().map(|(label, who)| format!("{label} ({who})"));
        let alike = self.alike.iter().filter(|_| self.alike_of == self.at);
        let alike = alike.map(|a| format!("like {}: {}", self.items[a.item].id, a.label));
        let votes = self.marks.get(&item).into_iter().flat_map(|m| m.votes.iter().cloned());
        let seen = Seen { dwell: self.pace.dwell(), suggested: offered.chain(alike).chain(votes).collect() };
        Effect::Decide { item, judgement: Judgement { verdict, label, note }, seen }
    }

    fn open(&self, item: usize) -> bool {
        !self.closed[item] || self.again.contains(&item)
    }

    /// The first open item of the view from the place `from` on.
    fn next_open(&self, from: usize) -> Option<usize> {
        match &self.view {
            None => (from..self.items.len()).map(|place| self.order.item(place)).find(|&item| self.open(item)),
            Some(view) => view.items.iter().copied().find(|&item| self.order.place(item) >= from && self.open(item)),
        }
    }

    fn look_again(&mut self) {
        let skipped = |j: &Option<Judgement>| j.as_ref().is_some_and(|j| j.verdict == Verdict::Skip);
        self.again = (0..self.items.len()).filter(|&item| skipped(&self.judgements[item])).collect();
        self.go(self.next_open(0));
    }

    fn browse(&mut self, by: isize) {
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

    fn go(&mut self, to: Option<usize>) {
        if self.at != to {
            self.pace.appeared();
        }
        self.at = to;
        self.scroll = 0;
        self.fit(self.size);
    }

    fn turn(&mut self, key: KeyEvent) -> Effect {
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
            _ => self.mode = Mode::Read,
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

/// Keys that are not up for change.
const FIXED: [(&str, &str); 5] = [
    ("1 to 9", "take the label that is offered under the digit"),
    ("esc", "leave a list, a note or a view as it was"),
    ("ctrl-z", "suspend; fg comes back"),
    ("ctrl-c, ctrl-l", "quit; draw the screen again"),
    ("", "\\u{..} in reverse: a character not to be shown"),
];

/// An entry in a few words; may hold text from strangers.
pub fn describe(judgement: &Judgement) -> String {
    let label = judgement.label.as_deref().unwrap_or_default();
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
