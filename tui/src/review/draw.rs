//! Paints the review screen from the state machine's state. Sixteen colours at most, and nothing that only a colour
//! tells; every string that could come from a stranger goes through [`crate::text`].

use super::app::{App, Mode, Page};
use super::desk::Form;
use super::edit::LineEdit;
use super::facts::{self, CAPTION};
use super::keymap::Action;
use super::layout::{self, Panes};
use super::pick::Picker;
use super::{draw_answer, hints};
use crate::paint::{Paint, nth, put, put_right, rule};
use crate::progress::{bar, count, percent};
use crate::text::{self, Row};
use ratatui::Frame;
use ratatui::layout::{Position, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use unicode_width::UnicodeWidthStr;

/// Paints `app`, which must have been fitted to the frame's size.
pub fn draw(app: &App, colour: bool, frame: &mut Frame<'_>) {
    let paint = Paint { colour };
    let area = frame.area();
    if layout::too_small(app.size) || area.as_size() != app.size {
        let min = layout::minimum();
        let text = format!("too small: {} x {} needed", min.width, min.height);
        put(frame, Rect { height: area.height.min(1), ..area }, Line::raw(text::fit(&text, area.width.into())));
        return;
    }
    let panes = layout::panes(app);
    title(app, paint, panes.title, frame);
    progress(app, paint, panes.bar, frame);
    keys(app, paint, panes.keys, frame);
    if let Some(notice) = &app.notice {
        let style = if notice.grave { paint.alarm() } else { paint.quiet() };
        for (i, row) in layout::notice(app, panes.notice.width).iter().enumerate() {
            let mut spans = vec![Span::raw(" ")];
            spans.extend(runs(row, style, paint));
            put(frame, nth(panes.notice, i), Line::from(spans));
        }
    }
    let whole = Rect { height: panes.notice.y - 3, y: 3, ..panes.top_rule };
    if let Mode::Page(page) = &app.mode {
        rule(paint, panes.top_rule, page.title, "any other key goes back", frame);
        return read(page, paint, whole, frame);
    }
    if app.at.is_none() {
        rule(paint, panes.top_rule, "done", "", frame);
        finished(app, whole, frame);
        // One may still filter, search and jump.
        let below = Rect { y: whole.y + 6.min(whole.height), height: whole.height.saturating_sub(6), ..whole };
        return match &app.mode {
            Mode::Filter(picker) => picks(app, picker, "view", paint, below, frame),
            Mode::Search(edit) => input("search", edit, paint, nth(below, 0), frame),
            Mode::Jump(edit) => input("jump to", edit, paint, nth(below, 0), frame),
            _ => {}
        };
    }
    message(app, paint, &panes, frame);
    draw_answer::answer(app, paint, &panes, frame);
    for (i, row) in facts::rows(app, panes.facts.width).iter().take(panes.facts.height.into()).enumerate() {
        let style = draw_answer::tone(row.tone, paint);
        let mut spans = vec![Span::styled(format!(" {:<1$}", row.caption, CAPTION - 1), paint.quiet())];
        spans.extend(runs(&row.value, style, paint));
        put(frame, nth(panes.facts, i), Line::from(spans));
    }
    let place = if panes.side.height > 0 { panes.side } else { panes.panel };
    match &app.mode {
        Mode::Correct(picker) => picks(app, picker, "correct to", paint, place, frame),
        Mode::Reject(picker) => picks(app, picker, "reject as", paint, place, frame),
        Mode::Filter(picker) => picks(app, picker, "view", paint, place, frame),
        Mode::Note(edit) | Mode::Search(edit) | Mode::Jump(edit) => {
            let caption = match app.mode {
                Mode::Note(_) => "note",
                Mode::Search(_) => "search",
                _ => "jump to",
            };
            input(caption, edit, paint, panes.panel, frame);
            side_labels(app, paint, panes.side, frame);
        }
        _ => side_labels(app, paint, panes.side, frame),
    }
}

fn title(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let skipped = match app.skipped() {
        0 => String::new(),
        n => format!(", {} skipped", count(n as u64)),
    };
    let right = format!("{} of {} reviewed{skipped} ", count(app.reviewed() as u64), count(app.total() as u64));
    let room = usize::from(area.width).saturating_sub(right.width() + 9);
    let left = vec![Span::styled(" review  ", paint.bold()), Span::raw(text::fit(&app.name, room))];
    put(frame, area, Line::from(left));
    put_right(frame, area, Line::raw(right));
}

fn progress(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let (done, total) = (app.reviewed() as u64, app.total() as u64);
    let pace = match app.pace.per_minute() {
        Some(rate) if done < total => {
            let minutes = (total - done) as f64 / rate;
            let left = match minutes {
                m if m < 1.0 => "under a minute".to_string(),
                m if m < 90.0 => format!("about {:.0} min", m.ceil()),
                m => format!("about {:.0} h", m / 60.0),
            };
            format!("{rate:.1} a minute, {left} left ")
        }
        Some(rate) => format!("{rate:.1} a minute "),
        None => String::new(),
    };
    let mut right = format!("{}  {pace:<36}", percent(done, total));
    if pace.is_empty() || usize::from(area.width) < right.width() + 12 {
        right = format!("{} ", percent(done, total));
    }
    let width = usize::from(area.width).saturating_sub(right.width() + 2);
    let cells = bar(done, total, width);
    put(frame, area, Line::styled(format!(" {cells}"), paint.with(Color::Green, Modifier::empty())));
    put_right(frame, area, Line::raw(right));
}

fn message(app: &App, paint: Paint, panes: &Panes, frame: &mut Frame<'_>) {
    let (Some(at), Some(item)) = (app.at, app.item()) else { return };
    let about = item.about.iter().map(|part| text::one_line(part)).collect::<Vec<_>>().join(", ");
    let at = app.order.place(at);
    let mut caption = format!("item {} of {}", count(at as u64 + 1), count(app.total() as u64));
    if let Some(view) = &app.view {
        let place = view.items.partition_point(|item| app.order.place(*item) < at) as u64 + 1;
        caption = format!(
            "{caption}  {} of {} in view {}",
            count(place),
            count(view.items.len() as u64),
            text::fit(&view.name, 24)
        );
    }
    rule(paint, panes.top_rule, &caption, &about, frame);

    let page = usize::from(panes.message.height);
    if item.message.trim().is_empty() {
        put(frame, nth(panes.message, 0), Line::styled(" (an empty message)", paint.quiet()));
    }
    let scroll = app.scroll.min(app.last_of_message());
    for (i, row) in app.body.iter().skip(scroll).take(page).enumerate() {
        put(frame, nth(panes.message, i), draw_answer::message_row(app, row, paint));
    }
    let (first, last, rows) = (scroll + 1, (scroll + page).min(app.body.len()), app.body.len());
    let answer = match answer_caption(app) {
        caption if caption.is_empty() => caption,
        caption => {
            text::fit(&(caption + &draw_answer::part(app, panes)), usize::from(panes.low_rule.width).saturating_sub(8))
        }
    };
    match rows > page {
        true => {
            let more = match (first > 1, last < rows) {
                (true, true) => "↑↓ more",
                (false, true) => "↓ more",
                _ => "↑ more, end",
            };
            let lines = format!("lines {first}-{last} of {rows}  {more}");
            match answer.is_empty() {
                true => rule(paint, panes.low_rule, &lines, &app.gauge.short, frame),
                // Whose lines they are must be clear then.
                false => rule(paint, panes.low_rule, &answer, &format!("message {lines}"), frame),
            }
        }
        false => rule(paint, panes.low_rule, &answer, &app.gauge.short, frame),
    }
}

/// Over the answer where it is more than a label: whose it is, and whether it is being corrected.
fn answer_caption(app: &App) -> String {
    let Some(item) = app.item().filter(|_| app.form != Form::Labels) else { return String::new() };
    match &app.mode {
        Mode::Fill(filling) if filling.changed() => "your correction, not saved yet".to_string(),
        Mode::Write(writing) if writing.changed() => "your correction, not saved yet".to_string(),
        Mode::Fill(_) | Mode::Write(_) => "the answer, to be corrected".to_string(),
        _ if item.answered_by.is_empty() => "recorded answer".to_string(),
        _ => format!("recorded answer of {}", text::fit(&item.answered_by, 24)),
    }
}

/// The list one types to narrow, with what is typed on top.
fn picks(app: &App, picker: &Picker, caption: &str, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let (area, first) = column(paint, area, frame);
    input(caption, &picker.edit, paint, first, frame);
    let list = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    let answer = app.item().map_or("", |item| item.answer.as_str());
    let height = usize::from(list.height);
    if picker.matches().len() == 0 {
        let text = if picker.free() { "   enter takes what is typed" } else { "   no label matches" };
        return put(frame, nth(list, 0), Line::styled(text, paint.quiet()));
    }
    let from = picker.chosen().map_or(0, |chosen| (chosen + 1).saturating_sub(height));
    for (i, label) in picker.matches().enumerate().skip(from).take(height) {
        let chosen = picker.chosen() == Some(i);
        let is_answer = label == answer;
        let tail = if is_answer { " (the answer)" } else { "" };
        let room = usize::from(list.width).saturating_sub(4 + tail.len());
        let style = if chosen { paint.chosen() } else { Style::new() };
        let marker = if chosen { " > " } else { "   " };
        let line = Line::from(vec![
            Span::raw(marker),
            Span::styled(text::fit(label, room), style),
            Span::styled(tail, paint.quiet()),
        ]);
        put(frame, nth(list, i - from), line);
    }
    let n = picker.matches().len();
    if n > height && height > 0 {
        put_right(frame, nth(list, height - 1), Line::styled(format!("{n} in all "), paint.quiet()));
    }
}

/// On a wide screen the labels stay in sight.
fn side_labels(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    if area.height == 0 {
        return;
    }
    let (area, first) = column(paint, area, frame);
    put(frame, first, Line::styled(format!(" labels ({})", app.labels.len()), paint.quiet()));
    let answer = app.item().map_or("", |item| item.answer.as_str());
    let room = usize::from(area.height).saturating_sub(1);
    let cut = app.labels.len() > room;
    for (i, label) in app.labels.iter().take(if cut { room.saturating_sub(1) } else { room }).enumerate() {
        let (marker, style) = if label == answer { (" * ", paint.bold()) } else { ("   ", Style::new()) };
        let text = text::fit(label, usize::from(area.width).saturating_sub(4));
        put(frame, nth(area, i + 1), Line::from(vec![Span::raw(marker), Span::styled(text, style)]));
    }
    if cut {
        put(frame, nth(area, room), Line::styled("   … c to search them all", paint.quiet()));
    }
}

/// A column's ground: its rule at the left if it stands beside something, and its first row.
fn column(paint: Paint, area: Rect, frame: &mut Frame<'_>) -> (Rect, Rect) {
    let mut inner = area;
    if area.x > 0 {
        for y in 0..area.height {
            put(frame, Rect { y: area.y + y, height: 1, width: 1, ..area }, Line::styled("│", paint.quiet()));
        }
        inner = Rect { x: area.x + 1, width: area.width - 1, ..area };
    }
    (inner, nth(inner, 0))
}

fn input(caption: &str, edit: &LineEdit, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let lead = format!(" {caption}: ");
    let room = usize::from(area.width).saturating_sub(lead.width() + 1);
    if area.height == 0 || room == 0 {
        return;
    }
    let (shown, cursor) = edit.window(room);
    let x = area.x + (lead.width() + cursor) as u16;
    let line = Line::from(vec![Span::styled(lead, paint.key()), Span::raw(shown)]);
    put(frame, area, line);
    frame.set_cursor_position(Position { x: x.min(area.right().saturating_sub(1)), y: area.y });
}

/// Text in place of the item.
fn read(page: &Page, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let rows = text::wrap(&page.text, usize::from(area.width).saturating_sub(2));
    let from = page.scroll.min(rows.len().saturating_sub(1));
    for (i, row) in rows.iter().skip(from).take(area.height.into()).enumerate() {
        let mut spans = vec![Span::raw(" ")];
        spans.extend(runs(row, Style::new(), paint));
        put(frame, nth(area, i), Line::from(spans));
    }
    let hidden = rows.len().saturating_sub(from + usize::from(area.height));
    if hidden > 0 && area.height > 0 {
        let last = nth(area, usize::from(area.height) - 1);
        put_right(frame, last, Line::styled(format!(" ↓ {hidden} more lines "), paint.chosen()));
    }
}

fn finished(app: &App, area: Rect, frame: &mut Frame<'_>) {
    let (reviewed, skipped) = (count(app.reviewed() as u64), app.skipped());
    let mut lines = match (app.total(), skipped) {
        (0, _) => vec!["The queue is empty: there is nothing to review.".to_string()],
        (_, 0) => vec![format!("All {reviewed} items are reviewed, and every decision is on disk.")],
        (_, n) => vec![
            format!("{reviewed} items are reviewed, {} skipped; every decision is on disk.", count(n as u64)),
            format!("{} goes through the skipped ones again.", app.keys.shown(Action::Again)),
        ],
    };
    if app.total() > 0 {
        lines.push(format!(
            "{} takes the latest decision back, {} looks at the last item.",
            app.keys.shown(Action::Undo),
            app.keys.shown(Action::Previous)
        ));
    }
    lines.push(format!("{} quits.", app.keys.shown(Action::Quit)));
    for (i, line) in lines.iter().take(usize::from(area.height).saturating_sub(1)).enumerate() {
        put(
            frame,
            nth(area, i + 1),
            Line::raw(format!(" {}", text::fit(line, usize::from(area.width).saturating_sub(2)))),
        );
    }
}

fn keys(app: &App, paint: Paint, area: Rect, frame: &mut Frame<'_>) {
    let keys = hints::hints(app);
    let (mut row, mut used) = (0, 1);
    let mut spans = vec![Span::raw(" ")];
    for (key, what) in &keys {
        let width = key.width() + 1 + what.width() + 2;
        if used + width > usize::from(area.width) + 1 {
            put(frame, nth(area, row), Line::from(std::mem::replace(&mut spans, vec![Span::raw(" ")])));
            (row, used) = (row + 1, 1);
        }
        spans.push(Span::styled(key.clone(), paint.key()));
        spans.push(Span::raw(format!(" {what}  ")));
        used += width;
    }
    put(frame, nth(area, row), Line::from(spans));
}

fn runs<'a>(row: &'a Row, style: Style, paint: Paint) -> impl Iterator<Item = Span<'a>> {
    row.iter().map(move |span| Span::styled(span.text.as_str(), if span.escaped { paint.escaped() } else { style }))
}
