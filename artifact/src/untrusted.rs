//! Text from outside (traces, model files, other people's recipes) on its way to a person. Characters that move the
//! cursor, change colours, hide or reorder what follows are shown as escapes, so that what is read is what is there.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Spells C0 controls (all but line feed and tab), DEL, C1 controls, bidirectional controls, zero-width and other
/// invisible format characters as `\u{..}`. Borrows where there is nothing to spell.
pub fn visible(text: &str) -> Cow<'_, str> {
    let Some(first) = text.find(is_hidden) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        if is_hidden(c) {
            let _ = write!(out, "\\u{{{:x}}}", c as u32);
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

/// As [`visible`], with line feeds and tabs spelled too: for one line of a terminal.
pub fn visible_line(text: &str) -> Cow<'_, str> {
    match visible(text) {
        v if v.contains(['\n', '\t']) => Cow::Owned(v.replace('\n', "\\n").replace('\t', "\\t")),
        v => v,
    }
}

/// JSON with such characters in JSON's own escapes: the same value to a program, and nothing that a terminal obeys.
pub fn visible_json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_hidden) {
        return Cow::Borrowed(json);
    }
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_hidden(c) {
            c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| {
                let _ = write!(out, "\\u{unit:04x}");
            });
        } else {
            out.push(c);
        }
    }
    Cow::Owned(out)
}

fn is_hidden(c: char) -> bool {
    matches!(c,
        '\u{0}'..='\u{8}' | '\u{b}'..='\u{1f}' | '\u{7f}'..='\u{9f}'
        | '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{180e}'
        // Zero width, and the marks of direction.
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
        // Tags: a second, invisible ASCII.
        | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_obey_is_spelled() {
        let check = |text: &str, shown: &str| assert_eq!(visible(text), shown);
        check("plain, ünïcode 語 🙂\n\tindented", "plain, ünïcode 語 🙂\n\tindented");
        check("\u{1b}]0;pwn\u{7}\u{1b}[2J", "\\u{1b}]0;pwn\\u{7}\\u{1b}[2J");
        check("\u{9b}31m", "\\u{9b}31m");
        check("a\rb\u{8}\u{7f}", "a\\u{d}b\\u{8}\\u{7f}");
        check("user\u{202e}gpj.exe\u{2066}", "user\\u{202e}gpj.exe\\u{2066}");
        check("ze\u{200b}ro\u{feff}", "ze\\u{200b}ro\\u{feff}");
        assert_eq!(visible_line("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert!(matches!(visible("plain"), Cow::Borrowed(_)));
    }

    #[test]
    fn hidden_characters_are_json_escapes_in_json() {
        assert_eq!(
            visible_json("{\n\"a\u{202e}\": \"\u{9b}31m\u{e0041}\"\n}"),
            "{\n\"a\\u202e\": \"\\u009b31m\\udb40\\udc41\"\n}"
        );
        assert!(matches!(visible_json("{\"a\": 1}"), Cow::Borrowed(_)));
    }

    proptest! {
        #[test]
        fn json_means_the_same_to_a_program(text in any::<String>()) {
            let json = serde_json::to_string(&text).unwrap();
            let shown = visible_json(&json);
            prop_assert!(!shown.contains(is_hidden));
            prop_assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
        }

        #[test]
        fn shown_text_is_inert_and_showing_it_twice_changes_nothing(text in any::<String>()) {
            let shown = visible(&text).into_owned();
            prop_assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'));
            prop_assert_eq!(visible(&shown).into_owned(), shown);
        }
    }
}
