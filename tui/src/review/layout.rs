//! Where things are on the screen, for any size; pure arithmetic that the state machine and the drawing share.

use super::app::{App, Mode};
use super::desk::Form;
use super::{facts, table};
use crate::text;
use ratatui::layout::{Rect, Size};

const MIN: Size = Size { width: 40, height: 12 };
/// From here on the label list has a column of its own.
const WIDE: u16 = 110;
const SIDE: u16 = 38;
/// Longer lines are hard to read.
const TEXT: u16 = 100;
const MIN_MESSAGE: u16 = 3;
const LOW: u16 = 18;
/// Shorter messages take this many rows all the same, so that the answer beneath keeps its place from item to item.
const MESSAGE: u16 = 6;
/// Rows of the longest notice: an error that names a path and what to try.
const NOTICE: u16 = 3;
/// The line typed into, and this many matches, if they fit.
const PANEL: u16 = 9;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Panes {
    pub title: Rect,
    pub bar: Rect,
    pub top_rule: Rect,
    pub message: Rect,
    pub low_rule: Rect,
    /// The form of fields, or the text, read or written; empty where answers are labels.
    pub answer: Rect,
    /// The changes of a text that is written, with their rule.
    pub changes_rule: Rect,
    pub changes: Rect,
    pub facts: Rect,
    /// Where one types, beneath the facts.
    pub panel: Rect,
    /// The label list of a wide screen; empty on a narrow one.
    pub side: Rect,
    pub notice: Rect,
    pub keys: Rect,
}

/// The notice, wrapped for a column of `width`.
pub fn notice(app: &App, width: u16) -> Vec<text::Row> {
    let text = app.notice.as_ref().map_or(String::new(), |notice| text::one_line(&notice.text));
    text::wrap(&text, usize::from(width.saturating_sub(2)))
}

pub fn too_small(size: Size) -> bool {
    size.width < MIN.width || size.height < MIN.height
}

pub fn minimum() -> Size {
    MIN
}

pub fn panes(app: &App) -> Panes {
    let Size { width, height } = app.size;
    if too_small(app.size) {
        return Panes::default();
    }
    let has_side = width >= WIDE && !app.labels.is_empty() && app.at.is_some();
    let side_width = if has_side { SIDE } else { 0 };
    let main_width = width - side_width;
    let picking = matches!(app.mode, Mode::Correct(_) | Mode::Reject(_) | Mode::Filter(_));

    // From the edges inwards: what is left is the message's.
    let keys_rows = if main_width < 130 && height >= 20 { 2 } else { 1 };
    let top = 3;
    let notice_rows = (notice(app, main_width).len() as u16).clamp(1, NOTICE);
    let room = height - top - keys_rows - notice_rows - 1; // 1: the lower rule
    // What one types into, and a few matches, come before the facts; on a low screen before most of the message too.
    let needed = match app.mode {
        Mode::Note(_) | Mode::Search(_) | Mode::Jump(_) => 1,
        _ if picking && !has_side => 4,
        _ => 0,
    };
    let least_message = if needed > 0 && height < LOW { 1 } else { MIN_MESSAGE };
    let message = (app.body.len().min(usize::from(u16::MAX)) as u16).max(MESSAGE);
    let answer = Answer::of(app, main_width, room.saturating_sub(needed), least_message);
    let room = room - answer.rows - answer.changes;
    let most_facts = room.saturating_sub(least_message + needed);
    let most_facts = if answer.rows == 0 { most_facts.max(1) } else { most_facts };
    let facts_rows = if answer.alone { 0 } else { facts::height(app, main_width).min(most_facts) };
    let room = room - facts_rows;
    let wanted = message.min(room);
    let panel_rows = match app.mode {
        Mode::Note(_) | Mode::Search(_) | Mode::Jump(_) => 1.max(room - wanted),
        _ if picking && !has_side => PANEL.max(room - wanted),
        _ => 0,
    }
    .min(room.saturating_sub(least_message));
    let message_rows = wanted.min(room - panel_rows);

    let row = |y: u16, rows: u16| Rect { x: 0, y, width: main_width, height: rows };
    let mut y = top;
    let mut next = |rows: u16| {
        let rect = row(y, rows);
        y += rows;
        rect
    };
    let mut message = next(message_rows);
    message.width = message.width.min(TEXT + 2);
    let low_rule = next(1);
    let answer_pane = next(answer.rows);
    let (changes_rule, changes) = (next(answer.changes.min(1)), next(answer.changes.saturating_sub(1)));
    let (facts, panel) = (next(facts_rows), next(panel_rows));
    let foot = height - keys_rows;
    Panes {
        title: Rect { x: 0, y: 0, width, height: 1 },
        bar: Rect { x: 0, y: 1, width, height: 1 },
        top_rule: row(2, 1),
        message,
        low_rule,
        answer: Rect { width: answer_pane.width.min(TEXT + 2), ..answer_pane },
        changes_rule,
        changes: Rect { width: changes.width.min(TEXT + 2), ..changes },
        facts,
        panel,
        notice: row(foot - notice_rows, notice_rows),
        keys: row(foot, keys_rows),
        side: Rect { x: main_width, y: 2, width: side_width, height: if has_side { height - 2 } else { 0 } },
    }
}

/// Rows of the answer where it is no label.
#[derive(Clone, Copy, Default)]
struct Answer {
    rows: u16,
    /// With their rule.
    changes: u16,
    /// There is no room for facts beside it.
    alone: bool,
}

impl Answer {
    /// Out of `room` rows, of which the message needs `least`.
    fn of(app: &App, width: u16, room: u16, least: u16) -> Answer {
        if app.at.is_none() {
            return Answer::default();
        }
        let some = |rows: usize| rows.min(usize::from(u16::MAX)) as u16;
        let most = room.saturating_sub(least);
        match (&app.form, &app.mode) {
            (Form::Labels, _) => Answer::default(),
            (Form::Fields(_), _) => {
                Answer { rows: some(table::table(app, width).rows.len()).min(most), ..Answer::default() }
            }
            (Form::Text, Mode::Write(writing)) => {
                let message = some(app.body.len()).min(room / 3).max(least);
                let room = room.saturating_sub(message).max(1);
                let changes = (some(writing.changes.len()) + 1).clamp(room / 3, room / 2).max(2).min(room - 1);
                Answer { rows: room - changes, changes, alone: true }
            }
            // It needs as much as there is when the message has its share, and half of the room in any case.
            (Form::Text, _) => {
                let room = room.saturating_sub(facts::height(app, width).min(room / 4));
                let message = some(app.body.len()).max(MESSAGE);
                let rows = some(app.answer.len()).min(room.saturating_sub(message).max(room / 2));
                Answer { rows: rows.clamp(1, most.max(1)), ..Answer::default() }
            }
        }
    }
}
