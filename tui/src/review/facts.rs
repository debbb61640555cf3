//! What is known about an item beside its text: the model's answer, why it is here, feedback, what was decided.

use super::app::{App, Mode, describe};
use super::desk::{Form, Verdict};
use super::fill::{DRAFT, Filling};
use super::sheet;
use crate::text::{self, Row};

/// Columns of the captions.
pub const CAPTION: usize = 11;
/// Rows of one fact before it is cut.
const ROWS: usize = 2;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    #[default]
    Plain,
    /// The one thing to look at.
    Answer,
    /// Something is wrong with it.
    Alarm,
    /// Beside the point, and there when wanted.
    Quiet,
}

#[derive(Clone, Debug, PartialEq)]
pub struct FactRow {
    /// Empty on a fact's second row.
    pub caption: &'static str,
    pub value: Row,
    pub tone: Tone,
}

/// The rows for a column of `width`.
pub fn rows(app: &App, width: u16) -> Vec<FactRow> {
    let Some((at, item)) = app.at.zip(app.item()) else { return Vec::new() };
    let width = usize::from(width).saturating_sub(CAPTION + 1).min(100);
    let mut out = Vec::new();
    let mut add = |caption, value: &str, tone, most| push(&mut out, caption, value, tone, width, most);
    let picking = matches!(app.mode, Mode::Correct(_) | Mode::Reject(_) | Mode::Filter(_));

    if let Mode::Fill(filling) = &app.mode {
        detail(filling, &mut add);
    }
    let by = if item.answered_by.is_empty() { String::new() } else { format!("  by {}", item.answered_by) };
    match (item.answer.trim().is_empty(), app.form == Form::Labels && app.acceptable(item)) {
        _ if app.form != Form::Labels => {}
        (true, _) => add("answer", "(none)", Tone::Alarm, 1),
        (false, true) => {
            add("answer", &format!("{}{by}", item.answer), Tone::Answer, 1);
        }
        (false, false) => {
            add("answer", &item.answer, Tone::Alarm, ROWS);
            add("", "not one of the labels", Tone::Alarm, 1);
        }
    }
    if !item.why.is_empty() {
        add("why here", &item.why.join("; "), Tone::Plain, if picking { 1 } else { ROWS });
    }
    if let Some(feedback) = item.feedback.as_deref().filter(|f| !f.trim().is_empty()) {
        add("feedback", feedback, Tone::Plain, if picking { 1 } else { ROWS });
    }
    let offered: Vec<String> =
        item.instead.iter().take(9).zip(1..).map(|((label, who), n)| format!("{n} {label} ({who})")).collect();
    // Of fields, each is offered beside its own.
    if !offered.is_empty() && !picking && app.schema.is_none() {
        add("instead", &offered.join("   "), Tone::Plain, ROWS);
    }
    if let Some(judgement) = &app.judgements[at] {
        match (&judgement.label, &app.form) {
            (Some(label), Form::Fields(_) | Form::Text) if judgement.verdict == Verdict::Correct => {
                add("decided", &format!("corrected to {label}"), Tone::Plain, ROWS + 1);
            }
            _ => add("decided", &describe(judgement), Tone::Plain, 1),
        }
        // A rejection's note is its reason, told already.
        if let (Some(note), Some(_)) = (&judgement.note, &judgement.label) {
            add("", note, Tone::Plain, 1);
        }
    }
    if let Some(marks) = app.marks.get(&at) {
        if !marks.votes.is_empty() {
            add("votes", &marks.votes.join("; "), Tone::Plain, ROWS);
        }
        if !marks.flags.is_empty() {
            add("flagged", &format!("by {}", marks.flags.join(", ")), Tone::Alarm, 1);
        }
        let told = marks.notes.iter().filter(|note| !note.starts_with(DRAFT));
        if app.judgements[at].is_none() && marks.notes.iter().any(|note| note.starts_with(DRAFT)) {
            add("unfinished", "a correction was left in the middle; correcting goes on with it", Tone::Plain, 1);
        }
        for (i, note) in told.enumerate().take(ROWS) {
            add(if i == 0 { "notes" } else { "" }, note, Tone::Plain, 1);
        }
    }
    if !picking {
        for (i, alike) in app.alike.iter().enumerate() {
            let who = if alike.decided { "" } else { " (unreviewed)" };
            // Of a megabyte a row shows the beginning.
            let message = &app.items[alike.item].message;
            let end = message.char_indices().nth(width + 1).map_or(message.len(), |(i, _)| i);
            let text = format!("{}{who}: {}", alike.label, &message[..end]);
            add(if i == 0 { "similar" } else { "" }, &text, Tone::Quiet, 1);
        }
    }
    out
}

/// What the field under the hand takes.
fn detail(filling: &Filling, add: &mut impl FnMut(&'static str, &str, Tone, usize)) {
    let Some(field) = filling.sheet.field(filling.at) else {
        return add("field", "the schema does not name it", Tone::Alarm, 1);
    };
    add("field", &format!("{}: {}", field.name, sheet::rules(field)), Tone::Plain, 1);
    if !field.description.is_empty() {
        add("", &field.description, Tone::Quiet, ROWS);
    }
}

/// How many rows there are; on a form as many as beside the item, so that nothing moves when it opens.
pub fn height(app: &App, width: u16) -> u16 {
    let rows = rows(app, width);
    let Mode::Fill(filling) = &app.mode else { return rows.len() as u16 };
    let width = usize::from(width).saturating_sub(CAPTION + 1).min(100);
    let mut own = Vec::new();
    detail(filling, &mut |caption, value: &str, tone, most| push(&mut own, caption, value, tone, width, most));
    rows.len().saturating_sub(own.len()).max(2) as u16
}

fn push(out: &mut Vec<FactRow>, caption: &'static str, value: &str, tone: Tone, width: usize, most: usize) {
    // More than is shown need not be laid out.
    let end = value.char_indices().nth(most * (width + 1) + 200).map_or(value.len(), |(i, _)| i);
    let mut rows = text::wrap(&value[..end].replace('\n', " "), width);
    if rows.len() > most {
        rows.truncate(most);
        if let Some(last) = rows.last_mut() {
            let joined: String = last.iter().map(|span| span.text.as_str()).collect();
            let cut = text::fit(&format!("{joined} …"), width);
            *last = vec![text::Span { text: cut, escaped: false }];
        }
    }
    for (i, value) in rows.into_iter().enumerate() {
        out.push(FactRow { caption: if i == 0 { caption } else { "" }, value, tone });
    }
}
