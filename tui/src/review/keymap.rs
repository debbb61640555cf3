//! Which key does what on the message, on a form of fields and in an editor. Every action has a name under which a settings
//! file gives it other keys; the keys that edit text, leave a list or end the program are not up for change.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use std::collections::BTreeMap;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    Accept,
    Correct,
    Skip,
    Reject,
    Note,
    Flag,
    Undo,
    Next,
    Previous,
    Search,
    Filter,
    Jump,
    Guidelines,
    Report,
    Down,
    Up,
    PageDown,
    PageUp,
    Top,
    Bottom,
    Again,
    Help,
    Quit,
    FieldEdit,
    FieldWords,
    FieldOther,
    FieldClear,
    FieldUndo,
    FieldSave,
    EditorSave,
    EditorUndo,
    EditorRedo,
}

/// Where a key means something; each has its own keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    Message,
    Form,
    /// Where letters are text: only keys with ctrl or alt, and F keys.
    Editor,
}

impl Action {
    fn place(self) -> Place {
        match self {
            Action::FieldEdit
            | Action::FieldWords
            | Action::FieldOther
            | Action::FieldClear
            | Action::FieldUndo
            | Action::FieldSave => Place::Form,
            Action::EditorSave | Action::EditorUndo | Action::EditorRedo => Place::Editor,
            _ => Place::Message,
        }
    }
}

struct Key {
    action: Action,
    /// In a settings file.
    name: &'static str,
    default: &'static [&'static str],
    /// Under the screen.
    short: &'static str,
    help: &'static str,
}

const fn key(
    action: Action,
    name: &'static str,
    default: &'static [&'static str],
    short: &'static str,
    help: &'static str,
) -> Key {
    Key { action, name, default, short, help }
}

const KEYS: &[Key] = &[
    key(Action::Accept, "accept", &["enter", "a"], "accept", "accept the model's answer"),
    key(Action::Correct, "correct", &["c"], "correct", "correct: type some of the label, or edit what is written"),
    key(Action::Skip, "skip", &["s"], "skip", "skip: it stays in the queue"),
    key(Action::Reject, "reject", &["x"], "reject", "reject: unfit to train or test on; asks why"),
    key(Action::Note, "note", &["n"], "note", "note a remark"),
    key(Action::Flag, "flag", &["f"], "flag", "flag: somebody else should look too"),
    key(Action::Undo, "undo", &["u"], "undo", "take your latest entry back; as often as you like"),
    key(Action::Search, "search", &["/"], "search", "search messages, answers and ids"),
    key(Action::Filter, "filter", &["v"], "view", "view only: a source, a label, flagged, skipped, ..."),
    key(Action::Jump, "jump", &[":"], "jump", "jump to an item by number or id"),
    key(Action::Guidelines, "guidelines", &["g"], "guide", "guidelines for the answers"),
    key(Action::Report, "report", &["t"], "tally", "tally: certificate, agreement, reviewers"),
    key(Action::Previous, "previous", &["left", "["], "", "look at the item before"),
    key(Action::Next, "next", &["right", "]"], "", "look at the item after"),
    key(Action::Down, "down", &["down", "j"], "", "scroll down"),
    key(Action::Up, "up", &["up", "k"], "", "scroll up"),
    key(Action::PageDown, "page_down", &["pagedown", "space"], "", "a page down"),
    key(Action::PageUp, "page_up", &["pageup", "b"], "", "a page up"),
    key(Action::Top, "top", &["home"], "", "to the message's beginning"),
    key(Action::Bottom, "bottom", &["end", "G"], "", "to its end"),
    key(Action::Again, "again", &["r"], "skipped ones", "when all is done: go through skipped ones again"),
    key(Action::Help, "help", &["?", "f1"], "help", "this page"),
    key(Action::Quit, "quit", &["q"], "quit", "quit: everything is on disk already"),
    key(Action::FieldEdit, "field_edit", &["enter", "e"], "edit", "form: edit the field; enter again takes it"),
    key(Action::FieldWords, "field_words", &["w"], "words", "form: take words out of the message"),
    key(
        Action::FieldOther,
        "field_other",
        &["o"],
        "others'",
        "form: what others say in this field, one after the other",
    ),
    key(Action::FieldClear, "field_clear", &["d", "delete", "backspace"], "clear", "form: clear the field"),
    key(Action::FieldUndo, "field_undo", &["u"], "undo", "form: take the latest change of a field back"),
    key(Action::FieldSave, "field_save", &["s"], "save", "form: save the answer as it stands"),
    key(Action::EditorSave, "editor_save", &["ctrl-s", "f2"], "save", "typing: save the answer"),
    key(Action::EditorUndo, "editor_undo", &["alt-u", "ctrl-_"], "undo", "typing: take the latest change back"),
    key(Action::EditorRedo, "editor_redo", &["alt-e"], "redo", "typing: do again what was taken back"),
];

/// Keys of actions: the defaults, or what a settings file says instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyMap {
    keys: BTreeMap<(Place, Code), Action>,
    names: BTreeMap<Action, Vec<String>>,
}

/// With ctrl they end or suspend the program, draw the screen again, or are enter, tab and backspace to a terminal.
const RESERVED: &str = "czlmihj";

/// What of a key code can be mapped, in an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Code {
    Char(char),
    F(u8),
    Named(&'static str),
    Ctrl(char),
    Alt(char),
}

const NAMED: &[(&str, KeyCode)] = &[
    ("enter", KeyCode::Enter),
    ("tab", KeyCode::Tab),
    ("backspace", KeyCode::Backspace),
    ("delete", KeyCode::Delete),
    ("insert", KeyCode::Insert),
    ("left", KeyCode::Left),
    ("right", KeyCode::Right),
    ("up", KeyCode::Up),
    ("down", KeyCode::Down),
    ("home", KeyCode::Home),
    ("end", KeyCode::End),
    ("pageup", KeyCode::PageUp),
    ("pagedown", KeyCode::PageDown),
];

fn code(key: KeyEvent) -> Option<Code> {
    let (ctrl, alt) = (key.modifiers.contains(KeyModifiers::CONTROL), key.modifiers.contains(KeyModifiers::ALT));
    match (key.code, ctrl, alt) {
        // Terminals send one byte for all three.
        (KeyCode::Char('7' | '/' | '_'), true, false) => Some(Code::Ctrl('_')),
        (KeyCode::Char(c), true, false) => Some(Code::Ctrl(c.to_ascii_lowercase())),
        (KeyCode::Char(c), false, true) => Some(Code::Alt(c.to_ascii_lowercase())),
        (_, true, _) | (_, _, true) => None,
        (KeyCode::Char(c), ..) => Some(Code::Char(c)),
        (KeyCode::F(n), ..) => Some(Code::F(n)),
        (other, ..) => NAMED.iter().find(|(_, key)| *key == other).map(|(name, _)| Code::Named(name)),
    }
}

/// A key as a settings file writes it: a character, `space`, `f1`, `enter`, `pagedown`, ...; for an editor `ctrl-s`, `alt-u`.
fn parse(text: &str, place: Place) -> Option<Code> {
    if place == Place::Editor {
        let lower = text.to_lowercase();
        let one = |rest: &str| rest.parse().ok().filter(|c: &char| c.is_ascii_lowercase() || *c == '_');
        let ctrl = lower.strip_prefix("ctrl-").and_then(one).filter(|c| !RESERVED.contains(*c)).map(Code::Ctrl);
        let alt = lower.strip_prefix("alt-").and_then(one).map(Code::Alt);
        return ctrl.or(alt).or(lower.strip_prefix('f').and_then(function_key));
    }
    let mut chars = text.chars();
    if let (Some(c), None) = (chars.next(), chars.next()) {
        // Digits take what is offered instead.
        return (!c.is_ascii_digit() && !crate::text::hides(c)).then_some(Code::Char(c));
    }
    let lower = text.to_lowercase();
    if lower == "space" {
        return Some(Code::Char(' '));
    }
    if let Some(key) = lower.strip_prefix('f').and_then(function_key) {
        return Some(key);
    }
    NAMED.iter().find(|(name, _)| *name == lower).map(|(name, _)| Code::Named(name))
}

fn function_key(number: &str) -> Option<Code> {
    number.parse().ok().filter(|n| (1..=24).contains(n)).map(Code::F)
}

impl Default for KeyMap {
    fn default() -> Self {
        let names = KEYS.iter().map(|k| (k.action, k.default.iter().map(|s| (*s).to_string()).collect())).collect();
        // The defaults are distinct and legible; a test says so.
        KeyMap::build(names).unwrap_or(KeyMap { keys: BTreeMap::new(), names: BTreeMap::new() })
    }
}

impl KeyMap {
    /// The defaults with some actions' keys replaced: action names to keys.
    ///
    /// # Errors
    /// An unknown action or key, two actions with one key, and leaving no key for what one can't do without; each says
    /// what there is to choose from.
    pub fn with(changes: &BTreeMap<String, Vec<String>>) -> Result<KeyMap, String> {
        let mut names = KeyMap::default().names;
        for (name, keys) in changes {
            let Some(known) = KEYS.iter().find(|k| k.name == name) else {
                let all: Vec<&str> = KEYS.iter().map(|k| k.name).collect();
                return Err(format!("there is no action `{name}`; there are {}", all.join(", ")));
            };
            names.insert(known.action, keys.clone());
        }
        let map = KeyMap::build(names)?;
        for action in [Action::Quit, Action::Help] {
            if !map.keys.values().any(|a| *a == action) {
                return Err(format!("`{}` needs a key", name_of(action)));
            }
        }
        Ok(map)
    }

    fn build(names: BTreeMap<Action, Vec<String>>) -> Result<KeyMap, String> {
        let mut keys: BTreeMap<(Place, Code), Action> = BTreeMap::new();
        for (action, texts) in &names {
            let place = action.place();
            for text in texts {
                let code = parse(text, place).ok_or_else(|| match place {
                    Place::Editor => format!(
                        "`{text}` (for {}) is no key to map where letters are text; write ctrl-s, alt-s (other letters too; \
                         ctrl not with any of {}) or f1 to f24",
                        name_of(*action),
                        RESERVED.chars().map(String::from).collect::<Vec<_>>().join(", ")
                    ),
                    _ => format!(
                        "`{text}` (for {}) is no key to map; write one character (no digit), space, f1 to f24, {}",
                        name_of(*action),
                        NAMED.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
                    ),
                })?;
                if let Some(other) = keys.insert((place, code), *action)
                    && other != *action
                {
                    return Err(format!("`{text}` is the key of both {} and {}", name_of(other), name_of(*action)));
                }
            }
        }
        Ok(KeyMap { keys, names })
    }

    /// What the key does on the message.
    pub(super) fn action(&self, key: KeyEvent) -> Option<Action> {
        self.action_in(Place::Message, key)
    }

    pub(super) fn action_in(&self, place: Place, key: KeyEvent) -> Option<Action> {
        self.keys.get(&(place, code(key)?)).copied()
    }

    /// The first key of an action, as the screen writes it; empty when it has none.
    pub(super) fn shown(&self, action: Action) -> String {
        self.names.get(&action).and_then(|keys| keys.first()).map(|k| glyph(k)).unwrap_or_default()
    }

    /// Key and word for the line under the screen.
    pub(super) fn hint(&self, action: Action) -> (String, &'static str) {
        (self.shown(action), KEYS.iter().find(|k| k.action == action).map_or("", |k| k.short))
    }

    /// Every action's keys and what it does; without those of places that there are not.
    pub(super) fn help(&self, places: &[Place]) -> Vec<(String, &'static str)> {
        let keys = |action: Action| {
            let names = self.names.get(&action).map_or(&[][..], Vec::as_slice);
            names.iter().map(|k| glyph(k)).collect::<Vec<_>>().join(", ")
        };
        let known = KEYS.iter().filter(|k| places.contains(&k.action.place()));
        known.map(|k| (keys(k.action), k.help)).filter(|(keys, _)| !keys.is_empty()).collect()
    }
}

fn name_of(action: Action) -> &'static str {
    KEYS.iter().find(|k| k.action == action).map_or("", |k| k.name)
}

fn glyph(key: &str) -> String {
    match key.to_lowercase().as_str() {
        "left" => "←".to_string(),
        "right" => "→".to_string(),
        "up" => "↑".to_string(),
        "down" => "↓".to_string(),
        "pagedown" => "page down".to_string(),
        "pageup" => "page up".to_string(),
        _ => key.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(changes: &[(&str, &[&str])]) -> Result<KeyMap, String> {
        let owned = |keys: &[&str]| keys.iter().map(|k| (*k).to_string()).collect();
        KeyMap::with(&changes.iter().map(|(name, keys)| ((*name).to_string(), owned(keys))).collect())
    }

    #[test]
    fn the_defaults_are_distinct_and_every_action_has_one() {
        let names = KEYS.iter().map(|k| (k.action, k.default.iter().map(|s| (*s).to_string()).collect())).collect();
        let map = KeyMap::build(names).unwrap();
        assert_eq!(map, KeyMap::default());
        assert!(KEYS.iter().all(|k| map.keys.values().any(|a| *a == k.action)));
    }

    #[test]
    fn a_settings_file_moves_keys() {
        let map = with(&[("accept", &["y", "f5"]), ("skip", &["a"])]).unwrap();
        let of = |code| map.action(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(of(KeyCode::Char('y')), Some(Action::Accept));
        assert_eq!(of(KeyCode::F(5)), Some(Action::Accept));
        assert_eq!(of(KeyCode::Enter), None);
        assert_eq!(of(KeyCode::Char('a')), Some(Action::Skip));
        assert_eq!(map.shown(Action::Accept), "y");
        assert_eq!(map.action(KeyEvent::new(KeyCode::Char('y'), KeyModifiers::CONTROL)), None);
        let map = with(&[("editor_save", &["ctrl-o", "alt-s"]), ("field_save", &["y"])]).unwrap();
        let of = |place, c, modifiers| map.action_in(place, KeyEvent::new(KeyCode::Char(c), modifiers));
        assert_eq!(of(Place::Editor, 'o', KeyModifiers::CONTROL), Some(Action::EditorSave));
        assert_eq!(of(Place::Editor, 's', KeyModifiers::ALT), Some(Action::EditorSave));
        assert_eq!(of(Place::Editor, '7', KeyModifiers::CONTROL), Some(Action::EditorUndo), "as terminals send ctrl-_");
        assert_eq!(
            (of(Place::Form, 'y', KeyModifiers::NONE), of(Place::Message, 'y', KeyModifiers::NONE)),
            (Some(Action::FieldSave), None)
        );
    }

    #[test]
    fn a_mistake_says_what_there_is() {
        for (changes, says) in [
            (&[("acept", &["y"][..])][..], "there is no action `acept`; there are accept, correct"),
            (&[("skip", &["c"])], "`c` is the key of both correct and skip"),
            (&[("skip", &["ctrl-x"])], "`ctrl-x` (for skip) is no key to map; write one character"),
            (&[("skip", &["3"])], "no digit"),
            (&[("quit", &[])], "`quit` needs a key"),
            (&[("editor_save", &["s"])], "`s` (for editor_save) is no key to map where letters are text; write ctrl-s"),
            (&[("editor_save", &["ctrl-c"])], "ctrl not with any of c, z"),
            (&[("field_save", &["w"])], "`w` is the key of both field_words and field_save"),
        ] {
            let error = with(changes).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
