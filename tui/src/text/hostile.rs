//! What can't be shown as itself: control, bidi and invisible characters become visible escapes, and stacked combining marks
//! are cut. The rest of a text is its grapheme clusters, each with its width.

use limbeck_artifact::untrusted;
use std::borrow::Cow;
use unicode_segmentation::UnicodeSegmentation;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

/// Combining marks kept on one base character; a tower of them would paint over the rows above.
const MAX_MARKS: usize = 4;

const TAB: &str = "    ";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Letter,
    /// Two columns wide: a row may end after it, as in Chinese or Japanese.
    Wide,
    Space,
    Tab,
    Break,
    Escape,
    /// Not of the text.
    Put,
}

pub(super) struct Unit<'a> {
    pub text: Cow<'a, str>,
    pub width: usize,
    pub kind: Kind,
    /// Byte offset of its grapheme.
    pub from: usize,
}

impl<'a> Unit<'a> {
    pub fn new(text: impl Into<Cow<'a, str>>, kind: Kind) -> Self {
        let text = text.into();
        Unit { width: text.width(), text, kind, from: 0 }
    }
}

/// The smallest pieces that are drawn as one: grapheme clusters, and escapes for what can't be shown.
pub(super) fn units(text: &str) -> impl Iterator<Item = Unit<'_>> {
    text.grapheme_indices(true).flat_map(|(from, grapheme)| {
        let simple = simple(grapheme, from);
        let mut rest = Vec::new();
        if simple.is_none() {
            push_grapheme(grapheme, from, &mut rest);
        }
        simple.into_iter().chain(rest)
    })
}

/// The width of a character that is a grapheme of its own beside any other that has a width here, and is shown as it is:
/// printable ASCII, the letters of Europe, and those that are two columns wide, with their punctuation.
pub(super) fn plain_width(c: char) -> Option<usize> {
    match c {
        ' '..='~' => Some(1),
        '\u{c0}'..='\u{24f}' | 'Α'..='Ρ' | 'Σ'..='Ω' | 'ά'..='ώ' | 'Ѐ'..='ѯ' => Some(1),
        '、'..='〃'
        | '《'..='』'
        | 'ぁ'..='ゖ'
        | 'ァ'..='ヺ'
        | '㐀'..='䶿'
        | '一'..='鿿'
        | '가'..='힣'
        | '！'..='～' => Some(2),
        _ => None,
    }
}

/// A grapheme that is one unit as it stands, told without a look at every table.
fn simple(grapheme: &str, from: usize) -> Option<Unit<'_>> {
    let unit = |text, kind, width| Some(Unit { text: Cow::Borrowed(text), width, kind, from });
    match grapheme {
        "\n" | "\r\n" => return unit(grapheme, Kind::Break, 0),
        "\t" => return unit(TAB, Kind::Tab, TAB.len()),
        " " => return unit(" ", Kind::Space, 1),
        _ => {}
    }
    let mut chars = grapheme.chars();
    match (chars.next(), chars.next()) {
        (Some(c), None) => match plain_width(c).or_else(|| c.width().filter(|_| c.is_alphanumeric() && !hides(c))) {
            Some(1) => unit(grapheme, Kind::Letter, 1),
            Some(2) => unit(grapheme, Kind::Wide, 2),
            _ => None,
        },
        _ => None,
    }
}

pub(super) fn push_grapheme<'a>(grapheme: &'a str, from: usize, out: &mut Vec<Unit<'a>>) {
    let first = out.len();
    spell_grapheme(grapheme, out);
    out[first..].iter_mut().for_each(|unit| unit.from = from);
}

fn spell_grapheme<'a>(grapheme: &'a str, out: &mut Vec<Unit<'a>>) {
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

    #[test]
    fn what_is_simple_is_what_the_tables_say() {
        for c in '\0'..='\u{1ffff}' {
            let text = c.to_string();
            let Some(unit) = simple(&text, 0).filter(|u| !matches!(u.kind, Kind::Break | Kind::Tab | Kind::Space))
            else {
                continue;
            };
            let mut slow = Vec::new();
            push_grapheme(&text, 0, &mut slow);
            let told: Vec<_> = slow.iter().map(|u| (u.text.clone(), u.width, u.kind)).collect();
            assert_eq!(told, [(unit.text.clone(), unit.width, unit.kind)], "{c:?}");
        }
    }

    /// Any two of them, and each after a letter of every other kind, are two graphemes.
    #[test]
    fn what_is_plain_is_alone() {
        let all: Vec<char> = ('\0'..='\u{ffff}').filter(|c| plain_width(*c).is_some()).collect();
        assert!(all.len() > 39_000);
        for (i, c) in all.iter().enumerate() {
            for other in ['a', ' ', 'é', 'я', 'ω', '卡', '한', '，', all[(i * 7919 + 13) % all.len()]] {
                for pair in [[*c, other], [other, *c]] {
                    let text = String::from_iter(pair);
                    assert_eq!(text.graphemes(true).count(), 2, "{pair:?}");
                }
            }
            assert_eq!(c.width(), plain_width(*c), "{c:?}");
            assert!(!hides(*c), "{c:?}");
        }
    }
}
