//! Text that strangers wrote, made safe and fit for a terminal: control, bidi and invisible characters become visible
//! escapes, stacked combining marks are cut, and lines are wrapped by display width.

use limbeck_artifact::untrusted;
use std::borrow::Cow;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// More than this of one message is never laid out; the last row says how much is missing.
pub const MAX_CHARS: usize = 100_000;

/// Combining marks kept on one base character; a tower of them would paint over the rows above.
const MAX_MARKS: usize = 4;

const TAB: &str = "    ";

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

/// One line for labels, answers, ids and notes: nothing in it moves the cursor, breaks the line or hides.
pub fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for unit in units(text) {
        match unit.kind {
            Kind::Break => out.push_str("\\n"),
            Kind::Tab => out.push_str("\\t"),
            _ => out.push_str(&unit.text),
        }
    }
    out
}

/// A word as a shell takes it: quoted where it holds more than letters, digits and harmless signs.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%:,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

/// [`one_line`], cut to `width` columns with an ellipsis.
pub fn fit(text: &str, width: usize) -> String {
    let line = one_line(text);
    if line.width() <= width {
        return line;
    }
    let mut out = String::new();
    let mut used = 0;
    for grapheme in line.graphemes(true) {
        let w = grapheme.width();
        if used + w + 1 > width {
            break;
        }
        out.push_str(grapheme);
        used += w;
    }
    if width > 0 {
        out.push('…');
    }
    out
}

/// Wraps `text` to rows of at most `width` columns, at spaces where there are any. Never empty.
pub fn wrap(text: &str, width: usize) -> Vec<Row> {
    let width = width.max(12);
    let (shown, hidden) = match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => (&text[..end], text[end..].chars().count()),
        None => (text, 0),
    };
    let mut rows = Vec::new();
    for line in shown.split_inclusive('\n') {
        let plain = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
        match plain.bytes().all(|b| (b' '..=b'~').contains(&b)) {
            true => wrap_plain(plain, width, &mut rows),
            false => wrap_units(line, width, &mut rows),
        }
    }
    if rows.is_empty() {
        rows.push(Row::new());
    }
    if hidden > 0 {
        rows.push(vec![Span { text: format!("[{hidden} more characters are not shown]"), escaped: true }]);
    }
    rows
}

/// A line of printable ASCII: what [`wrap_units`] makes of it, at a byte a character, so that a megabyte does not make a
/// reviewer wait.
fn wrap_plain(line: &str, width: usize, rows: &mut Vec<Row>) {
    let mut push = |row: &str| {
        let row = row.trim_end_matches(' ');
        rows.push(if row.is_empty() { Row::new() } else { vec![Span { text: row.to_owned(), escaped: false }] });
    };
    let (mut start, mut end, mut break_at) = (0, 0, 0);
    for (i, b) in line.bytes().enumerate() {
        if end - start == width {
            if b == b' ' {
                break_at = end;
                continue;
            }
            let cut = if break_at > start { break_at } else { end };
            push(&line[start..cut]);
            start = if cut == end { i } else { cut };
        }
        end = i + 1;
        if b == b' ' {
            break_at = end;
        }
    }
    push(&line[start..end]);
}

/// Any line, grapheme by grapheme.
fn wrap_units(text: &str, width: usize, rows: &mut Vec<Row>) {
    let mut line: Vec<Unit<'_>> = Vec::new();
    let mut used = 0;
    let mut break_at = 0;
    for unit in units(text).take_while(|unit| unit.kind != Kind::Break) {
        while used + unit.width > width && !line.is_empty() {
            if matches!(unit.kind, Kind::Space | Kind::Tab) {
                break_at = line.len();
                break;
            }
            let rest = if break_at > 0 { line.split_off(break_at) } else { Vec::new() };
            rows.push(join(&line));
            line = rest;
            used = line.iter().map(|u| u.width).sum();
            break_at = 0;
        }
        if used + unit.width > width && matches!(unit.kind, Kind::Space | Kind::Tab) {
            continue; // a space at the end of a full row is the line break itself
        }
        used += unit.width;
        let breaks = unit.kind != Kind::Letter;
        line.push(unit);
        if breaks {
            break_at = line.len();
        }
    }
    rows.push(join(&line));
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Letter,
    /// Two columns wide: a row may end after it, as in Chinese or Japanese.
    Wide,
    Space,
    Tab,
    Break,
    Escape,
}

struct Unit<'a> {
    text: Cow<'a, str>,
    width: usize,
    kind: Kind,
}

impl<'a> Unit<'a> {
    fn new(text: impl Into<Cow<'a, str>>, kind: Kind) -> Self {
        let text = text.into();
        Unit { width: text.width(), text, kind }
    }
}

/// The smallest pieces that are drawn as one: grapheme clusters, and escapes for what can't be shown.
fn units(text: &str) -> impl Iterator<Item = Unit<'_>> {
    text.graphemes(true).flat_map(|grapheme| {
        let simple = simple(grapheme);
        let mut rest = Vec::new();
        if simple.is_none() {
            push_grapheme(grapheme, &mut rest);
        }
        simple.into_iter().chain(rest)
    })
}

/// A grapheme that is one unit as it stands, told without a look at every table.
fn simple(grapheme: &str) -> Option<Unit<'_>> {
    let unit = |text, kind, width| Some(Unit { text: Cow::Borrowed(text), width, kind });
    match grapheme {
        "\n" | "\r\n" => return unit(grapheme, Kind::Break, 0),
        "\t" => return unit(TAB, Kind::Tab, TAB.len()),
        " " => return unit(" ", Kind::Space, 1),
        _ => {}
    }
    let mut chars = grapheme.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) if c.is_ascii_graphic() => unit(grapheme, Kind::Letter, 1),
        (Some(c), None) if c.is_alphanumeric() && !hides(c) => match c.width() {
            Some(1) => unit(grapheme, Kind::Letter, 1),
            Some(2) => unit(grapheme, Kind::Wide, 2),
            _ => None,
        },
        _ => None,
    }
}

fn push_grapheme<'a>(grapheme: &'a str, out: &mut Vec<Unit<'a>>) {
    let mut selected = false;
    let mut marks = 0;
    let mut cut = 0;
    let mut plain = String::new();
    for c in grapheme.chars() {
        // One variation selector after a character picks its emoji or text form: dropped, as the width of the two
        // forms is what terminals disagree about. A second one carries hidden data and is escaped below.
        if matches!(c, '\u{fe0e}' | '\u{fe0f}') && !plain.is_empty() && !selected {
            selected = true;
            continue;
        }
        if let Some(escape) = escape(c) {
            flush(&mut plain, out);
            out.push(Unit::new(escape, Kind::Escape));
            marks = 0;
            continue;
        }
        if c.width() == Some(0) {
            if plain.is_empty() {
                out.push(Unit::new(codepoint(c), Kind::Escape));
                continue;
            }
            marks += 1;
            if marks > MAX_MARKS {
                cut += 1;
                continue;
            }
        }
        plain.push(c);
    }
    flush(&mut plain, out);
    if cut > 0 {
        out.push(Unit::new(format!("[+{cut} marks]"), Kind::Escape));
    }
}

fn flush<'a>(plain: &mut String, out: &mut Vec<Unit<'a>>) {
    if plain.is_empty() {
        return;
    }
    let kind = if plain.width() > 1 { Kind::Wide } else { Kind::Letter };
    out.push(Unit::new(std::mem::take(plain), kind));
}

fn codepoint(c: char) -> String {
    format!("\\u{{{:x}}}", c as u32)
}

/// What stands for `c` when it can't be shown as itself.
fn escape(c: char) -> Option<String> {
    if invisible(c) {
        return Some(codepoint(c));
    }
    let mut buffer = [0; 4];
    let alone: &str = c.encode_utf8(&mut buffer);
    let visible = untrusted::visible(alone);
    (visible != alone).then(|| visible.into_owned())
}

/// Whether `c` can't be shown as itself.
pub fn hides(c: char) -> bool {
    escape(c).is_some()
}

/// Unicode's Default_Ignorable_Code_Point, line and paragraph separators, interlinear annotation, and blanks that pass
/// for letters: characters that take part in a string without being seen.
fn invisible(c: char) -> bool {
    matches!(c as u32,
        0xad | 0x34f | 0x61c | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
        | 0x2028..=0x202e | 0x2060..=0x206f | 0x2800 | 0x3164 | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xfffb
        | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a | 0xe0000..=0xe0fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(rows: &[Row]) -> Vec<String> {
        rows.iter().map(|row| row.iter().map(|span| span.text.as_str()).collect()).collect()
    }

    #[test]
    fn what_moves_the_cursor_or_hides_is_spelled_out() {
        let cases = [
            ("\u{1b}[2Jboo", "\\u{1b}[2Jboo"),
            ("a\u{202e}b", "a\\u{202e}b"),
            ("pay\u{200b}pal", "pay\\u{200b}pal"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("hi\u{e0041}", "hi\\u{e0041}"),
            ("a\u{ad}b", "a\\u{ad}b"),
            ("two\nlines\tand\r", "two\\nlines\\tand\\u{d}"),
            ("\u{301}start", "\\u{301}start"),
            ("caf\u{65}\u{301} ❤\u{fe0f}", "cafe\u{301} ❤"),
            ("x\u{fe0f}\u{fe0f}\u{fe0f}", "x\\u{fe0f}\\u{fe0f}"),
        ];
        for (input, expect) in cases {
            assert_eq!(one_line(input), expect, "{input:?}");
        }
    }

    #[test]
    fn a_tower_of_marks_is_cut_and_counted() {
        let tower = format!("z{}", "\u{335}".repeat(50));
        assert_eq!(one_line(&tower), format!("z{}[+46 marks]", "\u{335}".repeat(4)));
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
            for _ in 0..next(60) {
                text.push(if next(4) == 0 { ' ' } else { char::from(b'a' + next(26) as u8) });
            }
            let (mut fast, mut slow) = (Vec::new(), Vec::new());
            wrap_plain(&text, 12, &mut fast);
            wrap_units(&text, 12, &mut slow);
            assert_eq!(fast, slow, "{text:?}");
        }
        assert_eq!(plain(&wrap("a\r\nb\n", 12)), ["a", "b"]);
        assert_eq!(plain(&wrap("a\rb\n\tc", 12)), ["a\\u{d}b", "    c"]);
    }

    #[test]
    fn what_is_simple_is_what_the_tables_say() {
        for c in ('\0'..='\u{3000}').chain(['卡', '👍', '\u{e0041}', 'ｱ', '\u{ffa0}', '𝒳']) {
            let text = c.to_string();
            let Some(unit) = simple(&text).filter(|u| !matches!(u.kind, Kind::Break | Kind::Tab | Kind::Space)) else {
                continue;
            };
            let mut slow = Vec::new();
            push_grapheme(&text, &mut slow);
            let told: Vec<_> = slow.iter().map(|u| (u.text.clone(), u.width, u.kind)).collect();
            assert_eq!(told, [(unit.text.clone(), unit.width, unit.kind)], "{c:?}");
        }
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
    fn fit_cuts_at_the_column() {
        assert_eq!(fit("card_arrival", 20), "card_arrival");
        assert_eq!(fit("card_arrival", 6), "card_…");
        assert_eq!(fit("卡片还没", 5), "卡片…");
        assert_eq!(fit("x", 0), "");
    }
}
