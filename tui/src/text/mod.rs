//! Text that strangers wrote, made safe and fit for a terminal: what can't be shown as itself is spelled out (`hostile`), and
//! lines are wrapped by display width (`wrap`). Here is what stands in one line.

mod hostile;
mod wrap;

pub use hostile::hides;
pub use wrap::{Laid, MAX_CHARS, Piece, PieceKind, Row, Span, lay, offset_at, place_of, row_width, wrap};

use hostile::{Kind, units};
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::UnicodeWidthStr;

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

#[cfg(test)]
mod tests {
    use super::*;

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
    fn fit_cuts_at_the_column() {
        assert_eq!(fit("card_arrival", 20), "card_arrival");
        assert_eq!(fit("card_arrival", 6), "card_…");
        assert_eq!(fit("卡片还没", 5), "卡片…");
        assert_eq!(fit("x", 0), "");
    }
}
