//! The screen without a terminal: a desk is gone through by itself, and every step from key to next picture is timed. It is
//! how the desk's speed is measured.

use super::{App, Desk, Effect, KeyMap, POLL, attend, carry_out, draw, hear};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent};
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

/// Decides `n` items, a key at most every `pause`: most are accepted, every fourth is corrected by typing, with some undone, skipped and looked at in
/// between.
pub fn rehearse(desk: &mut dyn Desk, n: usize, pause: Duration, width: u16, height: u16) -> Rehearsal {
    let begun = Instant::now();
    let size = Size { width, height };
    let Ok(mut terminal) = Terminal::new(TestBackend::new(width, height));
    let mut app = App::new(desk, KeyMap::default());
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
        let keys: &str = match i % 20 {
            4 | 8 | 16 => "ci\n",
            12 => "c0\n",
            7 => "s",
            11 => "u\n",
            13 => "]\n",
            18 => "nneeds a look\n\n",
            _ => "\n",
        };
        let before = done.decisions.len();
        for c in keys.chars().map(|c| if c == '\n' { KeyCode::Enter } else { KeyCode::Char(c) }) {
            let pressed = Instant::now();
            app.tick(begun.elapsed());
            // Between keys it costs as much as during one.
            if polled.elapsed() >= POLL {
                hear(&mut app, desk);
                polled = Instant::now();
            }
            let effect = app.handle(KeyEvent::from(c));
            let decides = matches!(effect, Effect::Decide { .. } | Effect::Undo { .. });
            carry_out(&mut app, desk, effect);
            done.screen = show(&mut app, desk);
            if decides { &mut done.decisions } else { &mut done.looks }.push(pressed.elapsed());
            std::thread::sleep(pause.saturating_sub(pressed.elapsed()));
        }
        // Nothing was decided: the answer is none to accept, or no label begins like that.
        if done.decisions.len() == before {
            app.handle(KeyEvent::from(KeyCode::Esc));
            let effect = app.handle(KeyEvent::from(KeyCode::Char('s')));
            carry_out(&mut app, desk, effect);
        }
    }
    done
}
