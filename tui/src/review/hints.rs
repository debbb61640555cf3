//! The keys shown under the screen: of each mode those that do something there, the likeliest first.

use super::app::{App, Mode};
use super::desk::Form;
use super::fill::Filling;
use super::keymap::Action;

/// Key and word, in order.
pub fn hints(app: &App) -> Vec<(String, &'static str)> {
    match &app.mode {
        Mode::Page(_) => fixed(&[("↑↓", "scroll"), ("any other key", "back")]),
        Mode::Correct(_) => fixed(&[("enter", "take"), ("↑↓", "choose"), ("esc", "back"), ("type", "to narrow")]),
        Mode::Filter(_) => fixed(&[("enter", "view"), ("↑↓", "choose"), ("esc", "back"), ("type", "to narrow")]),
        Mode::Reject(_) => fixed(&[("enter", "reject"), ("↑↓", "choose"), ("esc", "back"), ("type", "another reason")]),
        Mode::Note(_) => fixed(&[("enter", "save the note"), ("esc", "back")]),
        Mode::Search(_) => fixed(&[("enter", "search"), ("esc", "back")]),
        Mode::Jump(_) => fixed(&[("enter", "go"), ("esc", "back"), ("type", "a number or an id")]),
        Mode::Fill(filling) => form(app, filling),
        Mode::Write(_) => {
            let own = of(app, &[Action::EditorSave, Action::EditorUndo, Action::EditorRedo]);
            let rest = fixed(&[
                ("esc", "leave"),
                ("ctrl-←→", "words"),
                ("ctrl-w", "cut a word"),
                ("ctrl-↑↓", "scroll the message"),
            ]);
            own.into_iter().chain(rest).collect()
        }
        Mode::Read if app.at.is_none() => {
            let again = if app.skipped() > 0 { of(app, &[Action::Again]) } else { Vec::new() };
            let rest = of(app, &[Action::Undo, Action::Filter, Action::Report, Action::Help, Action::Quit]);
            let back = (app.keys.shown(Action::Previous), "look back");
            again.into_iter().chain([back]).chain(rest).collect()
        }
        Mode::Read => reading(app),
    }
}

fn fixed(keys: &[(&str, &'static str)]) -> Vec<(String, &'static str)> {
    keys.iter().map(|(key, what)| ((*key).to_string(), *what)).collect()
}

fn of(app: &App, actions: &[Action]) -> Vec<(String, &'static str)> {
    actions.iter().map(|a| app.keys.hint(*a)).filter(|(key, _)| !key.is_empty()).collect()
}

fn form(app: &App, filling: &Filling) -> Vec<(String, &'static str)> {
    let (save, undo) = (app.keys.shown(Action::EditorSave), app.keys.shown(Action::EditorUndo));
    if filling.words.is_some() {
        return fixed(&[
            ("enter", "take"),
            ("←→↑↓", "move"),
            ("blank, shift-←→", "extend"),
            ("a-z", "next word with it"),
            ("esc", "back"),
        ]);
    }
    if filling.typing.is_some() {
        let own = vec![(save, "save"), (undo, "undo")];
        let keys = fixed(&[("enter", "take"), ("tab", "take, next"), ("esc", "as it was"), ("ctrl-u", "empty")]);
        return keys.into_iter().chain(own.into_iter().filter(|(key, _)| !key.is_empty())).collect();
    }
    let turns = filling.sheet.field(filling.at).is_some_and(|field| {
        field.list.is_none() && (!field.choices().is_empty() || field.kind() == limbeck_artifact::schema::Kind::Boolean)
    });
    let mut keys = of(app, &[Action::FieldSave, Action::FieldEdit, Action::FieldWords, Action::FieldClear]);
    if !filling.sheet.rows[filling.at].others.is_empty() {
        keys.extend(of(app, &[Action::FieldOther]));
    }
    if turns {
        keys.extend(fixed(&[("←→", "choose")]));
    }
    keys.extend(of(app, &[Action::FieldUndo]));
    keys.extend(fixed(&[("↑↓ 1-9", "field"), ("esc", "leave")]));
    keys.extend(of(app, &[Action::Guidelines, Action::Help]));
    keys
}

fn reading(app: &App) -> Vec<(String, &'static str)> {
    let offered = app.item().map_or(0, |item| item.instead.len().min(9));
    let digits = match (&app.form, offered) {
        (Form::Fields(_), _) => {
            let fields = app.sheet.as_ref().map_or(1, |sheet| sheet.rows.len().min(9));
            Some((format!("1-{fields}"), "field"))
        }
        (_, 0) => None,
        (_, 1) => Some(("1".to_string(), "instead")),
        (_, n) => Some((format!("1-{n}"), "instead")),
    };
    let first = of(app, &[Action::Accept, Action::Correct]);
    let rest = of(
        app,
        &[
            Action::Skip,
            Action::Reject,
            Action::Note,
            Action::Flag,
            Action::Undo,
            Action::Help,
            Action::Quit,
            Action::Search,
            Action::Filter,
            Action::Jump,
            Action::Guidelines,
            Action::Report,
        ],
    );
    let around = format!("{}{}", app.keys.shown(Action::Previous), app.keys.shown(Action::Next));
    first.into_iter().chain(digits).chain(rest).chain([(around, "look around")]).collect()
}
