//! The rows that a form of fields is shown in: sign, name, value, and beside it what is wrong with it or where it comes
//! from. Pure arithmetic that layout and drawing share.

use super::app::{App, Mode};
use super::facts::Tone;
use super::fill::Filling;
use super::sheet::{self, Sheet};
use crate::text::{self, Row};

/// Rows of a value before it is cut; of the one under the hand.
const ROWS: usize = 3;
const CHOSEN_ROWS: usize = 6;
/// Of an answer that can't be read.
const RAW_ROWS: usize = 3;
/// Columns of the arrow, the sign and the blanks around them.
pub const LEFT: usize = 5;
/// Narrower than this, what is beside a value goes beneath it.
const BESIDE: usize = 46;
const NAME: usize = 18;
const MOST: usize = 100;

pub struct Table {
    pub rows: Vec<TableRow>,
    /// Columns of names and of values.
    pub name: usize,
    pub value: usize,
    /// Of the row under the hand: its rows here.
    pub chosen: std::ops::Range<usize>,
    /// Row and column of the cursor, in the values' column.
    pub cursor: Option<(usize, usize)>,
}

#[derive(Default)]
pub struct TableRow {
    /// On the first row of a field.
    pub sign: Option<char>,
    pub name: String,
    pub value: Row,
    pub tone: Tone,
    pub remark: String,
    pub remark_tone: Tone,
    pub chosen: bool,
}

pub fn table(app: &App, width: u16) -> Table {
    let width = usize::from(width).min(MOST);
    let mut table = Table { rows: Vec::new(), name: 0, value: 0, chosen: 0..0, cursor: None };
    let Some(sheet) = app.shown_sheet() else { return table };
    let widest = sheet.rows.iter().map(|row| text::row_width(&span(&text::one_line(&row.name)))).max().unwrap_or(0);
    table.name = widest.clamp(4, NAME.min(width / 3)) + 2;
    let room = width.saturating_sub(LEFT + table.name + 1);
    table.value = if room < BESIDE { room } else { (room * 11 / 20).max(room.saturating_sub(40)) };
    let beside = room - table.value;
    if let Some(fault) = &sheet.unreadable {
        raw(&mut table, app, &fault.what, room);
    }
    let faults = sheet.faults();
    for i in 0..sheet.rows.len() {
        let fault = faults.iter().find(|fault| fault.field == sheet.rows[i].name).map(|fault| fault.what.as_str());
        push(&mut table, app, sheet, i, fault, beside);
    }
    table
}

/// The answer as it was recorded, where it is no JSON.
fn raw(table: &mut Table, app: &App, fault: &str, room: usize) {
    let answer = app.item().map_or("", |item| item.answer.as_str());
    let end = answer.char_indices().nth(RAW_ROWS * room + 100).map_or(answer.len(), |(i, _)| i);
    let mut rows = text::wrap(&answer[..end], room);
    cut(&mut rows, RAW_ROWS, room);
    for (i, value) in rows.into_iter().enumerate() {
        let name = if i == 0 { "recorded".to_string() } else { String::new() };
        table.rows.push(TableRow { name, value, tone: Tone::Alarm, ..TableRow::default() });
    }
    for value in text::wrap(fault, room).into_iter().take(2) {
        table.rows.push(TableRow { value, tone: Tone::Alarm, ..TableRow::default() });
    }
}

fn push(table: &mut Table, app: &App, sheet: &Sheet, i: usize, fault: Option<&str>, beside: usize) {
    let filling = if let Mode::Fill(filling) = &app.mode { Some(&**filling) } else { None };
    let here = filling.filter(|filling| filling.at == i);
    let row = &sheet.rows[i];
    let begins = table.rows.len();
    let (mut values, tone) = match here.and_then(|filling| under_hand(filling, app)) {
        Some(text) => {
            let laid = text::lay(&text, table.value.saturating_sub(1), &[]);
            if let Some(typing) = here.and_then(|filling| filling.typing.as_ref()) {
                let (row, column) = text::place_of(&text, &laid, typing.buffer.at());
                table.cursor = Some((begins + row, column));
            }
            (laid.into_iter().map(|row| row.pieces.iter().map(plain).collect()).collect(), Tone::Plain)
        }
        None => {
            let shown = sheet::shown(&row.value);
            let end = shown.char_indices().nth(CHOSEN_ROWS * table.value + 200).map_or(shown.len(), |(i, _)| i);
            match shown.is_empty() {
                true => (vec![span("-")], Tone::Quiet),
                false => (text::wrap(&shown[..end].replace('\n', "↵"), table.value), Tone::Answer),
            }
        }
    };
    if here.is_none_or(|filling| filling.typing.is_none()) {
        cut(&mut values, if here.is_some() { CHOSEN_ROWS } else { ROWS }, table.value);
    }
    let (remark, remark_tone) = remark(app, sheet, i, fault, here);
    let remarks = if remark.is_empty() {
        Vec::new()
    } else {
        text::wrap(&remark, if beside == 0 { table.value } else { beside - 1 })
    };
    let lines: Vec<String> = remarks.iter().take(3).map(|row| row.iter().map(|s| s.text.as_str()).collect()).collect();
    let n = if beside == 0 { values.len() + lines.len() } else { values.len().max(lines.len()) };
    for k in 0..n {
        let mut line = TableRow { tone, remark_tone, chosen: here.is_some() && k == 0, ..TableRow::default() };
        if k == 0 {
            (line.sign, line.name) = (Some(Sheet::mark(i)), text::fit(&row.name, table.name - 2));
        }
        if beside == 0 && k >= values.len() {
            (line.value, line.tone) = (span(&lines[k - values.len()]), remark_tone);
        } else {
            line.value = values.get(k).cloned().unwrap_or_default();
            line.remark = lines.get(k).filter(|_| beside > 0).cloned().unwrap_or_default();
        }
        table.rows.push(line);
    }
    if here.is_some() {
        table.chosen = begins..table.rows.len();
    }
}

/// What is being typed, or taken out of the message.
fn under_hand(filling: &Filling, app: &App) -> Option<String> {
    match (&filling.typing, &filling.words) {
        (Some(typing), _) => Some(typing.buffer.text().to_string()),
        (None, Some(words)) => {
            Some(app.item()?.message.get(words.chosen())?.split_whitespace().collect::<Vec<_>>().join(" "))
        }
        _ => None,
    }
}

fn remark(app: &App, sheet: &Sheet, i: usize, fault: Option<&str>, here: Option<&Filling>) -> (String, Tone) {
    if let Some(words) = here.and_then(|filling| filling.words.as_ref()) {
        let what = if words.extends() { "arrows extend" } else { "arrows or letters; blank extends" };
        return (format!("enter takes it; {what}"), Tone::Quiet);
    }
    // One who just begins to type knows that it is empty.
    let fresh = here.and_then(|filling| filling.typing.as_ref()).is_some_and(|typing| typing.buffer.text().is_empty());
    if let Some(fault) = fault.filter(|_| !fresh) {
        return (fault.to_string(), Tone::Alarm);
    }
    let others = sheet.rows[i].others.iter().take(3).map(|(value, who)| match sheet::shown(value).as_str() {
        "" => format!("{who}: left out"),
        shown => format!("{who}: {}", text::fit(shown, 24)),
    });
    let absent = app.absent.contains(&i).then(|| "not in the message".to_string());
    let parts: Vec<String> = absent.into_iter().chain(others).collect();
    (parts.join("; "), Tone::Quiet)
}

fn cut(rows: &mut Vec<Row>, most: usize, width: usize) {
    if rows.len() > most {
        rows.truncate(most);
        if let Some(last) = rows.last_mut() {
            let joined: String = last.iter().map(|span| span.text.as_str()).collect();
            *last = span(&text::fit(&format!("{joined} …"), width));
        }
    }
}

fn span(text: &str) -> Row {
    vec![text::Span { text: text.to_string(), escaped: false }]
}

fn plain(piece: &text::Piece) -> text::Span {
    text::Span { text: piece.text.clone(), escaped: piece.kind == text::PieceKind::Escaped }
}
