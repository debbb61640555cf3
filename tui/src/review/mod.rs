//! The review screen: a message, the model's answer, and one key for what a person thinks of it. Every judgement is on
//! disk before the next item is shown.

mod act;
mod app;
mod buffer;
mod desk;
mod diff;
mod draw;
mod draw_answer;
mod edit;
mod facts;
mod fill;
mod fit;
mod hints;
mod keymap;
mod later;
mod layout;
mod order;
mod pace;
mod pick;
mod queue_desk;
mod rehearse;
mod sheet;
mod spans;
mod table;
pub mod tally;
mod view;
mod words;
mod write;

pub use act::REASONS;
pub use app::{App, Effect};
pub use desk::{Alike, Desk, DeskError, Form, Gauge, Item, Judgement, Marks, Seen, State, Verdict};
pub use draw::draw;
pub use keymap::KeyMap;
pub use later::{Later, Ranked};
pub use queue_desk::{QueueDesk, Role, Setup};
pub use rehearse::{Rehearsal, rehearse};

use crate::Error;
use crate::terminal::{Input, Screen, Signals, input};
use ratatui::crossterm::event::{Event, KeyEventKind, MouseEventKind};
use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

/// Signals and the clock are looked at this often while nobody types.
const TICK: Duration = Duration::from_millis(250);
/// What others did is looked at this often.
const POLL: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether colours may be used; the caller has asked `NO_COLOR`. The screen reads well without.
    pub colour: bool,
    /// Whether the wheel scrolls; then the terminal's own selecting of text needs its shift key.
    pub mouse: bool,
    pub keys: KeyMap,
}

/// What was done when the screen was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub total: usize,
    /// Accepted, corrected or rejected, in this session or before.
    pub reviewed: usize,
    pub skipped: usize,
    /// Reviewed in this session.
    pub this_session: usize,
    /// Told to stop from outside (SIGTERM, SIGHUP); nothing is lost.
    pub interrupted: bool,
}

/// Opens the screen and returns when the reviewer leaves it.
///
/// # Errors
/// When input or output is no terminal, or when the terminal fails. A judgement that can't be saved is shown on the
/// screen and is no error here.
pub fn run(desk: &mut dyn Desk, options: &Options) -> Result<Outcome, Error> {
    if !std::io::stdin().is_terminal() || !std::io::stdout().is_terminal() {
        return Err(Error::NotATerminal);
    }
    let mut app = App::new(desk, options.keys.clone());
    let signals = Signals::listen().map_err(|source| Error::Terminal { attempt: "listen to signals of", source })?;
    let mut screen = Screen::open_with(options.mouse)?;
    let opened = Instant::now();
    let mut polled = Instant::now();
    let interrupted = loop {
        if signals.told_to_end() {
            break true;
        }
        if signals.told_to_stop() {
            screen = screen.suspend(&signals)?;
        }
        app.tick(opened.elapsed());
        if polled.elapsed() >= POLL {
            hear(&mut app, desk);
            polled = Instant::now();
        }
        attend(&mut app, desk);
        screen.draw(|frame| {
            app.fit(frame.area().as_size());
            draw(&app, options.colour, frame);
        })?;
        let effect = match input(TICK)? {
            Input::Event(Event::Key(key)) if key.kind != KeyEventKind::Release => {
                app.tick(opened.elapsed());
                app.handle(key)
            }
            Input::Event(Event::Paste(text)) => {
                app.paste(&text);
                Effect::None
            }
            Input::Event(Event::Mouse(mouse)) => {
                match mouse.kind {
                    MouseEventKind::ScrollDown => app.wheel(1),
                    MouseEventKind::ScrollUp => app.wheel(-1),
                    _ => {}
                }
                Effect::None
            }
            Input::Event(_) | Input::Nothing => Effect::None,
            Input::Gone => break true,
        };
        match effect {
            Effect::Quit => break false,
            Effect::Suspend => screen = screen.suspend(&signals)?,
            Effect::Redraw => screen.repaint()?,
            effect => carry_out(&mut app, desk, effect),
        }
    };
    // A remark that was being typed is worth more than its last words; a correction even where one quits in the middle of it.
    let effect = if interrupted { app.half_typed() } else { app.half_corrected() };
    carry_out(&mut app, desk, effect);
    match screen.close() {
        // There may be no terminal left to restore.
        Err(error) if !interrupted => return Err(error),
        _ => {}
    }
    Ok(Outcome {
        total: app.total(),
        reviewed: app.reviewed(),
        skipped: app.skipped(),
        this_session: app.this_session(),
        interrupted,
    })
}

/// Does on disk what the state machine asked for, and tells it how that went.
pub fn carry_out(app: &mut App, desk: &mut dyn Desk, effect: Effect) {
    match effect {
        Effect::Decide { item, judgement, seen } => match desk.decide(item, &judgement, &seen) {
            Ok(()) => app.recorded(item, judgement, desk.state(item)),
            Err(error) => app.failed(&format!("not saved: {error}")),
        },
        Effect::Undo { item } => match desk.undo(item) {
            Ok(()) => app.undone(desk.state(item)),
            Err(error) => app.failed(&format!("not taken back: {error}")),
        },
        Effect::Report => app.read_page("tally", desk.report().join("\n")),
        Effect::None | Effect::Suspend | Effect::Redraw | Effect::Quit => {}
    }
}

/// Puts beside the item what the desk knows of it and of the whole.
pub fn attend(app: &mut App, desk: &mut dyn Desk) {
    if let Some(item) = app.alone()
        && let Some(alike) = desk.similar(item)
    {
        app.accompany(item, alike);
    }
    app.set_gauge(desk.gauge());
}

fn hear(app: &mut App, desk: &mut dyn Desk) {
    let (changed, trouble) = desk.poll();
    if desk.rearranged() {
        app.rearrange(desk.items(), &desk.order());
    }
    for item in changed {
        app.changed(item, desk.state(item));
    }
    if let Some(trouble) = trouble {
        app.tell(&trouble);
    }
}

#[cfg(test)]
mod tests;
