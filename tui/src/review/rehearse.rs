//! The screen without a terminal: a desk is gone through by itself, and every step from key to next picture is timed. It is
//! how the desk's speed is measured.

use super::app::Mode;
use super::{App, Desk, Effect, Form, KeyMap, attend, carry_out, draw};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Size;
use std::time::{Duration, Instant};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rehearsal {
    /// From the desk to the first picture.
    pub first: Duration,
    /// From a key that decides to the picture of the next item, the sync of the decision included; in order.
    pub decisions: Vec<Duration>,
    /// From a key that looks or types to its picture.
    pub looks: Vec<Duration>,
    /// The last picture.
    pub screen: String,
}

/// Decides `n` items: most are accepted, every fourth is corrected by typing or with words of its message, with some undone,
/// skipped and looked at in between.
pub fn rehearse(desk: &mut dyn Desk, n: usize, width: u16, height: u16) -> Rehearsal {
    let begun = Instant::now();
    let size = Size { width, height };
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let mut app = App::new(desk, KeyMap::default());
    let form = app.form.clone();
    let mut done = Rehearsal::default();
    let mut show = |app: &mut App, desk: &mut dyn Desk| {
        attend(app, desk);
        let drawn = terminal.draw(|frame| {
            app.fit(size);
            draw(app, true, frame);
        });
        if drawn.is_ok() { terminal.backend().to_string() } else { String::new() }
    };
    show(&mut app, desk);
    done.first = begun.elapsed();
    let mut i = 0;
    while done.decisions.len() < n && app.item().is_some() {
        i += 1;
        let keys: &str = match (i % 20, &form) {
            // Words of the message into the second field, and a word more in the text.
            (4 | 8 | 12 | 16, Form::Fields(_)) => "2w]\n\u{13}",
            (4 | 8 | 12 | 16, Form::Text) => "cand \u{13}",
            (n, _) => match n {
                4 | 8 | 16 => "ca\n",
                12 => "ce\n",
                7 => "s",
                11 => "u\n",
                13 => "]\n",
                18 => "nneeds a look\n\n",
                _ => "\n",
            },
        };
        let (acceptable, before) = (app.item().is_some_and(|item| app.acceptable(item)), done.decisions.len());
        for key in keys.chars().map(key) {
            let pressed = Instant::now();
            app.tick(begun.elapsed());
            let effect = app.handle(key);
            let decides = matches!(effect, Effect::Decide { .. } | Effect::Undo { .. });
            carry_out(&mut app, desk, effect);
            done.screen = show(&mut app, desk);
            if decides { &mut done.decisions } else { &mut done.looks }.push(pressed.elapsed());
        }
        let stuck = app.mode != Mode::Read || !acceptable;
        if stuck && done.decisions.len() == before {
            (0..3).for_each(|_| _ = app.handle(KeyEvent::from(KeyCode::Esc)));
            let effect = app.handle(KeyEvent::from(KeyCode::Char('s')));
            carry_out(&mut app, desk, effect);
        }
    }
    done
}

fn key(c: char) -> KeyEvent {
    match c {
        '\n' => KeyEvent::from(KeyCode::Enter),
        '\u{13}' => KeyEvent::new(KeyCode::Char('s'), KeyModifiers::CONTROL),
        c => KeyEvent::from(KeyCode::Char(c)),
    }
}
