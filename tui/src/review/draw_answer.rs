//! Paints answers that are no labels: the message with the fields' values marked in it, the form, the text, its editor and
//! its changes. Marks and changes have signs of their own, so that nothing hangs on a colour.

use super::app::{App, Mode};
use super::desk::Form;
use super::diff::Change;
use super::facts::Tone;
use super::layout::Panes;
use super::table::{self, TableRow};
use super::write::Writing;
use crate::paint::{Paint, nth, put, rule};
use crate::text::{Laid, Piece, PieceKind};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

pub fn tone(tone: Tone, paint: Paint) -> Style {
    match tone {
        Tone::Plain => Style::new(),
        Tone::Answer => paint.with(Color::Green, Modifier::BOLD),
        Tone::Alarm => paint.alarm(),
        Tone::Quiet => paint.quiet(),
    }
}

/// A row of the message; values of fields are underlined between brackets with their field's sign.
pub fn message_row<'a>(app: &App, row: &'a Laid, paint: Paint) -> Line<'a> {
    let taken = app.taking();
    let chosen = if let Mode::Fill(filling) = &app.mode { Some(filling.at) } else { None };
    let style = |piece: &Piece| {
        if taken.as_ref().is_some_and(|range| range.contains(&piece.from)) && piece.kind != PieceKind::Put {
            return paint.chosen();
        }
        if piece.kind == PieceKind::Put {
            return paint.key();
        }
        match app.places.iter().find(|(range, _)| range.contains(&piece.from)) {
            Some((_, row)) if chosen == Some(*row) => {
                paint.with(Color::Green, Modifier::BOLD | Modifier::UNDERLINED | Modifier::REVERSED)
            }
            Some(_) => paint.with(Color::Green, Modifier::BOLD | Modifier::UNDERLINED),
            None => Style::new(),
        }
    };
    line(row, paint, style)
}

fn line<'a>(row: &'a Laid, paint: Paint, style: impl Fn(&Piece) -> Style) -> Line<'a> {
    let mut spans = vec![Span::raw(" ")];
    spans.extend(row.pieces.iter().map(|piece| match piece.kind {
        PieceKind::Escaped => Span::styled(piece.text.as_str(), paint.escaped()),
        _ => Span::styled(piece.text.as_str(), style(piece)),
    }));
    Line::from(spans)
}

/// The answer in its pane, and what belongs to it.
pub fn answer(app: &App, paint: Paint, panes: &Panes, frame: &mut Frame<'_>) {
    match (&app.form, &app.mode) {
        (Form::Labels, _) => {}
        (Form::Fields(_), _) => form(app, paint, panes.answer, frame),
        (Form::Text, Mode::Write(writing)) => editor(writing, paint, panes, frame),
        (Form::Text, _) => text(app, paint, panes.answer, frame),
    }
}

fn form(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let table = table::table(app, area.width);
    let height = usize::from(area.height);
    let from = form_from(&table, height);
    for (i, row) in table.rows.iter().skip(from).take(height).enumerate() {
        put(frame, nth(area, i), form_row(row, &table, paint));
    }
    if let Some((row, column)) = table.cursor
        && (from..from + height).contains(&row)
    {
        let x = area.x + (table::LEFT + table.name + column) as u16;
        frame.set_cursor_position(Position {
            x: x.min(area.right().saturating_sub(1)),
            y: area.y + (row - from) as u16,
        });
    }
}

/// The first row shown: the field under the hand stays in sight, the cursor first of all.
fn form_from(table: &table::Table, height: usize) -> usize {
    let last = table.cursor.map_or(table.chosen.end, |(row, _)| row + 1);
    last.saturating_sub(height).min(table.rows.len().saturating_sub(height))
}

/// Which part of the answer is in sight, where it is not the whole.
pub fn part(app: &App, panes: &Panes) -> String {
    let height = usize::from(panes.answer.height);
    let (from, rows) = match (&app.form, &app.mode) {
        (Form::Labels, _) => return String::new(),
        (Form::Fields(_), _) => {
            let table = table::table(app, panes.answer.width);
            (form_from(&table, height), table.rows.len())
        }
        (Form::Text, Mode::Write(writing)) => (writing.scroll, writing.rows.len()),
        (Form::Text, _) => (text_from(app, height), app.answer.len()),
    };
    seen(from, height, rows)
}

fn seen(from: usize, height: usize, rows: usize) -> String {
    match rows > height {
        true => format!(
            ", rows {}-{} of {rows}{}",
            from + 1,
            (from + height).min(rows),
            if from + height < rows { " ↓" } else { "" }
        ),
        false => String::new(),
    }
}

fn text_from(app: &App, height: usize) -> usize {
    app.scroll.saturating_sub(app.last_of_message()).min(app.answer.len().saturating_sub(height))
}

fn form_row<'a>(row: &'a TableRow, table: &table::Table, paint: Paint) -> Line<'a> {
    let arrow = if row.chosen { " > " } else { "   " };
    let sign = row.sign.map_or("  ".to_string(), |sign| format!("{sign} "));
    let name_style = if row.chosen { paint.chosen() } else { Style::new() };
    let pad = |used: usize, width: usize| Span::raw(" ".repeat(width.saturating_sub(used)));
    let mut spans =
        vec![Span::raw(arrow), Span::styled(sign, paint.key()), Span::styled(row.name.as_str(), name_style)];
    spans.push(pad(unicode_width::UnicodeWidthStr::width(row.name.as_str()), table.name));
    let style = tone(row.tone, paint);
    spans.extend(
        row.value
            .iter()
            .map(|span| Span::styled(span.text.as_str(), if span.escaped { paint.escaped() } else { style })),
    );
    if !row.remark.is_empty() {
        spans.push(pad(crate::text::row_width(&row.value), table.value + 1));
        spans.push(Span::styled(row.remark.as_str(), tone(row.remark_tone, paint)));
    }
    Line::from(spans)
}

/// A recorded text; a long one is scrolled when the message is at its end.
fn text(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    if app.item().is_some_and(|item| item.answer.trim().is_empty()) {
        return put(frame, nth(area, 0), Line::styled(" (no answer)", paint.alarm()));
    }
    let height = usize::from(area.height);
    let from = text_from(app, height);
    let style = tone(Tone::Answer, paint);
    for (i, row) in app.answer.iter().skip(from).take(height).enumerate() {
        put(frame, nth(area, i), line(row, paint, |_| style));
    }
}

fn editor(writing: &Writing, paint: Paint, panes: &Panes, frame: &mut Frame<'_>) {
    let area = panes.answer;
    let height = usize::from(area.height);
    for (i, row) in writing.rows.iter().skip(writing.scroll).take(height).enumerate() {
        put(frame, nth(area, i), line(row, paint, |_| Style::new()));
    }
    let (row, column) = crate::text::place_of(writing.buffer.text(), &writing.rows, writing.buffer.at());
    let (x, y) = (area.x + 1 + column as u16, area.y + row.saturating_sub(writing.scroll) as u16);
    frame.set_cursor_position(Position {
        x: x.min(area.right().saturating_sub(1)),
        y: y.min(area.bottom().saturating_sub(1)),
    });

    let (out, new) = writing.counts;
    let caption = match (out, new) {
        _ if writing.kinds.iter().all(|(_, kind)| *kind == Change::Stayed) => "no changes yet".to_string(),
        (out, 0) => format!("changes  [-{}-]", words(out)),
        (0, new) => format!("changes  {{+{}+}}", words(new)),
        _ => format!("changes  [-{}-] {{+{}+}}", words(out), words(new)),
    };
    let caption = caption + &seen(writing.changes_scroll, panes.changes.height.into(), writing.changes.len());
    rule(paint, panes.changes_rule, &caption, "", frame);
    let kind = |at: usize| {
        let i = writing.kinds.partition_point(|(from, _)| *from <= at).saturating_sub(1);
        writing.kinds.get(i).map_or(Change::Stayed, |(_, kind)| *kind)
    };
    let style = |piece: &Piece| match (piece.kind, kind(piece.from)) {
        (PieceKind::Put, _) => paint.key(),
        (_, Change::Stayed) => Style::new(),
        (_, Change::Out) => paint.with(Color::Red, Modifier::DIM),
        (_, Change::In) => paint.with(Color::Green, Modifier::BOLD),
    };
    let height = usize::from(panes.changes.height);
    for (i, row) in writing.changes.iter().skip(writing.changes_scroll).take(height).enumerate() {
        put(frame, nth(panes.changes, i), line(row, paint, style));
    }
}

fn words(n: usize) -> String {
    if n == 1 { "1 word".to_string() } else { format!("{n} words") }
}
