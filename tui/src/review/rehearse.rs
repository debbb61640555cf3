//! The screen without a terminal: a desk is gone through by itself, and every step from key to next picture is timed. It is
//! how the desk's speed is measured.

use super::app::Mode;
use super::{App, Desk, Effect, Form, KeyMap, POLL, attend, carry_out, draw, hear};
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

/// Decides `n` items, a key at most every `pause`: most are accepted, every fourth is corrected by typing or with words of its
/// message, with some undone, skipped and looked at in between.
pub fn rehearse(desk: &mut dyn Desk, n: usize, pause: Duration, width: u16, height: u16) -> Rehearsal {
    let begun = Instant::now();
    let size = Size { width, height };
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let mut app = App::new(desk, KeyMap::default());
    let (form, labels) = (app.form.clone(), desk.labels());
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
    let (mut i, mut polled) = (0, Instant::now());
    while done.decisions.len() < n && app.item().is_some() {
        i += 1;
        let keys = match (i % 20, &form) {
            // Words of the message into the second field, and a word more in the text.
            (4 | 8 | 12 | 16, Form::Fields(_)) => "2w]\n\u{13}".to_owned(),
            (4 | 8 | 12 | 16, Form::Text) => "cand \u{13}".to_owned(),
            (4 | 8 | 12 | 16, Form::Labels) => {
                let first = labels.get(i % labels.len().max(1)).and_then(|label| label.chars().next());
                format!("c{}\n", first.unwrap_or_default())
            }
            (7, _) => "s".to_owned(),
            (11, _) => "u\n".to_owned(),
            (13, _) => "]\n".to_owned(),
            (18, _) => "nneeds a look\n\n".to_owned(),
            _ => "\n".to_owned(),
        };
        let before = done.decisions.len();
        for key in keys.chars().map(key) {
            let pressed = Instant::now();
            app.tick(begun.elapsed());
            // Between keys it costs as much as during one.
            if polled.elapsed() >= POLL {
                hear(&mut app, desk);
                polled = Instant::now();
            }
            let effect = app.handle(key);
            let decides = matches!(effect, Effect::Decide { .. } | Effect::Undo { .. });
            carry_out(&mut app, desk, effect);
            done.screen = show(&mut app, desk);
            if decides { &mut done.decisions } else { &mut done.looks }.push(pressed.elapsed());
            std::thread::sleep(pause.saturating_sub(pressed.elapsed()));
        }
        // Nothing was decided: the answer is none to accept, no label begins like that, or a fault stands in a field.
        if app.mode != Mode::Read || done.decisions.len() == before {
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
