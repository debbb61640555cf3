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
    let mut line: Vec<Unit<'_>> = Vec::new();
    let mut used = 0;
    let mut break_at = 0;
    for unit in units(shown) {
        if unit.kind == Kind::Break {
            rows.push(join(&line));
            line.clear();
            (used, break_at) = (0, 0);
            continue;
        }
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
    if !line.is_empty() || rows.is_empty() {
        rows.push(join(&line));
    }
    if hidden > 0 {
        rows.push(vec![Span { text: format!("[{hidden} more characters are not shown]"), escaped: true }]);
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
        let mut out = Vec::with_capacity(1);
        push_grapheme(grapheme, &mut out);
        out
    })
}

fn push_grapheme<'a>(grapheme: &'a str, out: &mut Vec<Unit<'a>>) {
    match grapheme {
        "\n" | "\r\n" => return out.push(Unit::new(grapheme, Kind::Break)),
        "\t" => return out.push(Unit::new(TAB, Kind::Tab)),
        " " => return out.push(Unit::new(" ", Kind::Space)),
        _ => {}
    }
    if let [byte] = grapheme.as_bytes()
        && byte.is_ascii_graphic()
    {
        return out.push(Unit::new(grapheme, Kind::Letter));
    }
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
