//! Lines broken to rows of a width, at spaces where there are any, with or without the offsets that they came from.

use super::hostile::{Kind, Unit, plain_width, push_grapheme, units};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

/// More than this of one message is never laid out; the last row says how much is missing.
pub const MAX_CHARS: usize = 100_000;

/// Narrower than this nothing is wrapped.
const LEAST_WIDTH: usize = 12;

/// A stretch of one row. `escaped` marks what stands for a character that can't be shown as itself, so that a message
/// which spells out `\u{202e}` looks different from one that holds the character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub text: String,
    pub escaped: bool,
}

pub type Row = Vec<Span>;

/// A row's width in terminal columns.
pub fn row_width(row: &Row) -> usize {
    row.iter().map(|span| span.text.width()).sum()
}

/// Wraps `text` to rows of at most `width` columns, at spaces where there are any. Never empty.
pub fn wrap(text: &str, width: usize) -> Vec<Row> {
    let ((shown, hidden), width) = (bounded(text), width.max(LEAST_WIDTH));
    let mut rows: Vec<Row> = Vec::new();
    for line in shown.split_inclusive('\n') {
        match printable(line) {
            Some(plain) => rows.extend(plain_rows(plain, width).into_iter().map(|range| {
                let row = plain[range].trim_end_matches(' ');
                if row.is_empty() { Row::new() } else { vec![Span { text: row.to_owned(), escaped: false }] }
            })),
            None => rows.extend(break_rows(units(line), width, 0).iter().map(|(_, line)| join(line))),
        }
    }
    if rows.is_empty() {
        rows.push(Row::new());
    }
    if let Some(hidden) = hidden {
        rows.push(vec![Span { text: hidden, escaped: true }]);
    }
    rows
}

/// A row that knows where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Laid {
    /// Byte offset in the text of what stands first; a row reaches to the next one's.
    pub from: usize,
    pub pieces: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    pub text: String,
    /// Byte offset of what it shows, or before which it was put.
    pub from: usize,
    pub kind: PieceKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PieceKind {
    Plain,
    Escaped,
    /// Not of the text.
    Put,
}

/// [`wrap`] with offsets. A piece never goes over one of `cuts`, ascending offsets; what is put at one stands before it.
/// The row after a last line break is there, for a cursor may be in it.
pub fn lay(text: &str, width: usize, cuts: &[(usize, String)]) -> Vec<Laid> {
    let ((shown, hidden), width) = (bounded(text), width.max(LEAST_WIDTH));
    let mut rows = Vec::new();
    let (mut begins, mut cut) = (0, 0);
    // The row after the last line break is a line, too.
    let after = if shown.is_empty() || shown.ends_with('\n') { Some("") } else { None };
    for line in shown.split_inclusive('\n').chain(after) {
        let end = begins + line.len();
        let first = cut;
        while cuts
            .get(cut)
            .is_some_and(|(at, _)| *at < end || end == shown.len() && after.is_none_or(|_| line.is_empty()))
        {
            cut += 1;
        }
        match printable(line).filter(|_| first == cut) {
            Some(plain) => rows.extend(plain_rows(plain, width).into_iter().map(|range| Laid {
                from: begins + range.start,
                pieces: match plain[range.clone()].to_owned() {
                    text if text.is_empty() => Vec::new(),
                    text => vec![Piece { text, from: begins + range.start, kind: PieceKind::Plain }],
                },
            })),
            None => rows.extend(lay_line(line, begins, width, &cuts[first..cut])),
        }
        begins = end;
    }
    if let Some(hidden) = hidden {
        let piece = Piece { text: hidden, from: text.len(), kind: PieceKind::Escaped };
        rows.push(Laid { from: text.len(), pieces: vec![piece] });
    }
    rows
}

/// One line, which begins at byte `begins` of its text, and the cuts in it.
fn lay_line(line: &str, begins: usize, width: usize, cuts: &[(usize, String)]) -> Vec<Laid> {
    let mut put = cuts.iter().filter(|(_, what)| !what.is_empty()).peekable();
    let mut all = Vec::new();
    for unit in units(line) {
        let unit = Unit { from: begins + unit.from, ..unit };
        while let Some((from, what)) = put.next_if(|(from, _)| *from <= unit.from) {
            all.push(Unit { from: *from, ..Unit::new(what.as_str(), Kind::Put) });
        }
        all.push(unit);
    }
    all.extend(put.map(|(from, what)| Unit { from: *from, ..Unit::new(what.as_str(), Kind::Put) }));
    let laid = |(from, line): (usize, Vec<Unit<'_>>)| {
        let mut pieces: Vec<Piece> = Vec::new();
        for unit in line {
            let kind = match unit.kind {
                Kind::Escape => PieceKind::Escaped,
                Kind::Put => PieceKind::Put,
                _ => PieceKind::Plain,
            };
            match pieces.last_mut() {
                Some(last)
                    if last.kind == kind && !cuts.iter().any(|(cut, _)| (last.from + 1..=unit.from).contains(cut)) =>
                {
                    last.text.push_str(&unit.text);
                }
                _ => pieces.push(Piece { text: unit.text.into_owned(), from: unit.from, kind }),
            }
        }
        Laid { from, pieces }
    };
    break_rows(all.into_iter(), width, begins).into_iter().map(laid).collect()
}

/// Row and column of a byte offset at a grapheme's beginning, in rows that were laid out of `text`.
pub fn place_of(text: &str, rows: &[Laid], at: usize) -> (usize, usize) {
    let row = rows.partition_point(|row| row.from <= at).saturating_sub(1);
    let from = rows.get(row).map_or(0, |row| row.from).min(at);
    // Rows of an older text lead nowhere in particular, but inside it.
    let before = text.get(from..at).unwrap_or_default();
    (row, units(before).filter(|unit| unit.kind != Kind::Break).map(|unit| unit.width).sum())
}

/// The offset in row `row` that is nearest to the column.
pub fn offset_at(text: &str, rows: &[Laid], row: usize, column: usize) -> usize {
    let from = rows[row].from;
    let end = rows.get(row + 1).map_or(text.len(), |next| next.from);
    let (mut best, mut used) = (from, 0);
    let Some(own) = text.get(from..end) else { return text.floor_char_boundary(from.min(text.len())) };
    for (i, grapheme) in own.grapheme_indices(true) {
        best = from + i;
        let mut pieces = Vec::new();
        push_grapheme(grapheme, 0, &mut pieces);
        if used >= column || pieces.iter().any(|unit| unit.kind == Kind::Break) {
            return best;
        }
        used += pieces.iter().map(|unit| unit.width).sum::<usize>();
    }
    if row + 1 == rows.len() { end } else { best }
}

/// As much of a text as is laid out, and what to say of the rest.
fn bounded(text: &str) -> (&str, Option<String>) {
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => {
            let hidden = text[end..].chars().count();
            (&text[..end], Some(format!("[{hidden} more characters are not shown]")))
        }
        None => (text, None),
    }
}

/// A line without its break, if all of it is plain: what most lines are, and what needs no look at graphemes, so that a
/// megabyte does not make a reviewer wait.
fn printable(line: &str) -> Option<&str> {
    let plain = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    plain.chars().all(|c| plain_width(c).is_some()).then_some(plain)
}

/// The rows of such a line, as [`break_rows`] makes them.
fn plain_rows(line: &str, width: usize) -> Vec<std::ops::Range<usize>> {
    let mut rows = Vec::with_capacity(line.len() / width + 1);
    // Of the row: where it begins and ends, its width; where it may be broken, and its width up to there.
    let (mut start, mut end, mut used) = (0, 0, 0);
    let (mut break_at, mut before) = (0, 0);
    for (i, c) in line.char_indices() {
        let own = plain_width(c).unwrap_or(1);
        while used + own > width && c != ' ' {
            match break_at > start {
                true => {
                    rows.push(start..break_at);
                    (start, used) = if break_at == end { (i, 0) } else { (break_at, used - before) };
                }
                false => {
                    rows.push(start..end);
                    (start, used) = (i, 0);
                }
            }
            (break_at, before) = (0, 0);
        }
        if used + own > width {
            // A space at the end of a full row is the line break itself.
            (break_at, before) = (end, used);
            continue;
        }
        end = i + c.len_utf8();
        used += own;
        if c == ' ' || own > 1 {
            (break_at, before) = (end, used);
        }
    }
    rows.push(start..end.max(start));
    rows
}

/// Rows of a line's units, each with the offset at which it begins; `begins` is the line's.
fn break_rows<'a>(
    units: impl Iterator<Item = Unit<'a>>,
    width: usize,
    mut begins: usize,
) -> Vec<(usize, Vec<Unit<'a>>)> {
    let mut rows = Vec::new();
    let mut line: Vec<Unit<'a>> = Vec::new();
    let (mut used, mut break_at) = (0, 0);
    let start = |line: &[Unit<'a>], begins: usize| line.first().map_or(begins, |unit| unit.from);
    for unit in units {
        if unit.kind == Kind::Break {
            rows.push((start(&line, begins), std::mem::take(&mut line)));
            begins = unit.from + unit.text.len();
            (used, break_at) = (0, 0);
            continue;
        }
        while used + unit.width > width && !line.is_empty() {
            if matches!(unit.kind, Kind::Space | Kind::Tab) {
                break_at = line.len();
                break;
            }
            let rest = if break_at > 0 { line.split_off(break_at) } else { Vec::new() };
            rows.push((start(&line, begins), line));
            line = rest;
            used = line.iter().map(|u| u.width).sum();
            break_at = 0;
        }
        if used + unit.width > width && matches!(unit.kind, Kind::Space | Kind::Tab) {
            continue; // a space at the end of a full row is the line break itself
        }
        used += unit.width;
        let breaks = !matches!(unit.kind, Kind::Letter | Kind::Put);
        line.push(unit);
        if breaks {
            break_at = line.len();
        }
    }
    if !line.is_empty() || rows.is_empty() {
        rows.push((start(&line, begins), line));
    }
    rows
}

fn join(line: &[Unit<'_>]) -> Row {
    let end = line.iter().rposition(|u| u.kind != Kind::Space).map_or(0, |last| last + 1);
    let mut row: Row = Vec::new();
    for unit in &line[..end] {
        let escaped = unit.kind == Kind::Escape;
        match row.last_mut() {
            Some(span) if span.escaped == escaped => span.text.push_str(&unit.text),
            _ => row.push(Span { text: unit.text.to_string(), escaped }),
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(rows: &[Row]) -> Vec<String> {
        rows.iter().map(|row| row.iter().map(|span| span.text.as_str()).collect()).collect()
    }

    #[test]
    fn rows_break_at_spaces_and_never_exceed_the_width() {
        assert_eq!(plain(&wrap("my card has not arrived yet", 12)), ["my card has", "not arrived", "yet"]);
        assert_eq!(plain(&wrap("aaaaaaaaaaaaaaaaaaaaaaaaaaaa b", 12)), ["aaaaaaaaaaaa", "aaaaaaaaaaaa", "aaaa b"]);
        assert_eq!(plain(&wrap("exactly12col next", 12)), ["exactly12col", "next"]);
        assert_eq!(plain(&wrap("", 20)), [""]);
        assert_eq!(plain(&wrap("one\n\ntwo\n", 20)), ["one", "", "two"]);
        assert_eq!(plain(&wrap("卡片还没有到达我家里", 12)), ["卡片还没有到", "达我家里"]);
        for row in wrap("mixed 卡片 \u{202e}\u{1b}]0;title\u{7} 👩\u{200d}👩\u{200d}👧 tail\twith\ttabs", 14) {
            assert!(row_width(&row) <= 14, "{row:?}");
        }
    }

    #[test]
    fn plain_lines_are_wrapped_as_any_other() {
        let mut seed = 1_u64;
        for _ in 0..3_000 {
            let mut text = String::new();
            let mut next = |n: u64| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 33) % n
            };
            let alphabet: Vec<char> = ["abcdefgh   ", "a卡片，x 한", "жé ω、ok  "][next(3) as usize].chars().collect();
            for _ in 0..next(60) {
                text.push(alphabet[next(alphabet.len() as u64) as usize]);
            }
            let slow: Vec<Row> = break_rows(units(&text), 12, 0).iter().map(|(_, line)| join(line)).collect();
            assert_eq!(wrap(&text, 12), slow, "{text:?}");
            // The same with offsets: a cut in its beginning sends a line the long way.
            let text = format!("{text}\n{text}");
            assert_eq!(lay(&text, 12, &[]), lay_all(&text, 12), "{text:?}");
        }
        assert_eq!(plain(&wrap("a\r\nb\n", 12)), ["a", "b"]);
        assert_eq!(plain(&wrap("a\rb\n\tc", 12)), ["a\\u{d}b", "    c"]);
    }

    /// [`lay`], every line grapheme by grapheme.
    fn lay_all(text: &str, width: usize) -> Vec<Laid> {
        let mut begins = 0;
        let mut rows = Vec::new();
        for line in text.split('\n') {
            rows.extend(lay_line(line, begins, width, &[]));
            begins += line.len() + 1;
        }
        rows
    }

    #[test]
    fn escapes_are_told_from_text_that_spells_them() {
        let rows = wrap("\\u{7} \u{7}", 40);
        let escaped: Vec<_> = rows[0].iter().filter(|span| span.escaped).map(|span| span.text.as_str()).collect();
        assert_eq!(escaped, ["\\u{7}"]);
    }

    #[test]
    fn a_huge_message_is_bounded_and_says_so() {
        let rows = wrap(&"word ".repeat(40_000), 80);
        assert_eq!(plain(&rows).last().map(String::as_str), Some("[100000 more characters are not shown]"));
    }

    #[test]
    fn laid_rows_are_the_wrapped_ones_and_know_where_they_came_from() {
        let texts = [
            "my card has not arrived yet",
            "one\n\ntwo",
            "卡片还没有到达我家里",
            "a\tb \u{202e} c\u{65}\u{301}",
            "",
            "x  \n y",
        ];
        for text in texts {
            for width in [12, 14, 80] {
                let rows = lay(text, width, &[]);
                let shown: Vec<String> = rows
                    .iter()
                    .map(|row| {
                        row.pieces.iter().map(|p| p.text.as_str()).collect::<String>().trim_end_matches(' ').to_string()
                    })
                    .collect();
                assert_eq!(shown, plain(&wrap(text, width)), "{text:?} {width}");
                for (at, _) in text.grapheme_indices(true).chain([(text.len(), "")]) {
                    let (row, column) = place_of(text, &rows, at);
                    assert_eq!(offset_at(text, &rows, row, column), at, "{text:?} {width} {at}");
                }
            }
        }
        assert_eq!(lay("one\n", 20, &[]).len(), 2);
        assert_eq!(place_of("one\n", &lay("one\n", 20, &[]), 4), (1, 0));
    }

    #[test]
    fn what_is_put_into_a_text_is_told_from_it() {
        let cuts = [(10, "1[".to_string()), (14, "]".to_string())];
        let rows = lay("table for four please", 20, &cuts);
        let pieces: Vec<_> =
            rows.iter().flat_map(|row| &row.pieces).map(|p| (p.text.as_str(), p.from, p.kind)).collect();
        let (plain, put) = (PieceKind::Plain, PieceKind::Put);
        assert_eq!(
            pieces,
            [
                ("table for ", 0, plain),
                ("1[", 10, put),
                ("four", 10, plain),
                ("]", 14, put),
                (" ", 14, plain),
                ("please", 15, plain)
            ]
        );
    }
}
