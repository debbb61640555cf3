//! The dashboard of a run, from its journal alone: it follows a live run, replays a finished one and tells an interrupted
//! one how to go on. It never writes, neither to the journal nor to the run's folder.

mod curve;
mod draw;
mod figures;
mod plot;
mod state;
mod summary;

pub use curve::EMA;
pub use draw::draw;
pub use state::{Arm, Gate, Happened, Life, StageLine, StageState, Step, Valid, Watched};
pub use summary::summary;

use crate::Error;
use crate::progress::{Lines, Style, duration};
use crate::terminal::{Input, Screen, Signals, input};
use limbeck_artifact::event::Event;
use limbeck_artifact::journal::{self, Tail, unix_ms};
use ratatui::crossterm::event::{Event as Typed, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The journal, the clock and signals are looked at this often while nobody types.
const TICK: Duration = Duration::from_millis(250);
/// Reads between two looks at the keyboard, of some megabytes each.
const READS: usize = 8;

/// A run's journal and what it has told so far.
pub struct Watch {
    path: PathBuf,
    tail: Tail,
    pub run: Watched,
    pub life: Life,
}

impl Watch {
    /// Will read the journal at `path` from its beginning.
    pub fn new(path: &Path) -> Watch {
        Watch { path: path.to_path_buf(), tail: Tail::new(path), run: Watched::default(), life: Life::Interrupted }
    }

    /// Reads on, for a while at most; `each` sees every new event. True where there is more to read at once.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn look(&mut self, mut each: impl FnMut(&Event)) -> Result<bool, Error> {
        // The lock first: a run that ends between the two has told its end by the time of the reading.
        let held = journal::is_live(&self.path)?;
        let mut more = true;
        for _ in 0..READS {
            let news = self.tail.poll()?;
            if news.began_again {
                self.run = Watched::default();
            }
            self.run.bad_lines += news.bad_lines;
            for event in &news.events {
                self.run.take(event);
                each(event);
            }
            more = news.more;
            if !more {
                break;
            }
        }
        self.life = self.run.life(held);
        Ok(more)
    }

    /// Reads all that is there now.
    ///
    /// # Errors
    /// Where the journal can't be read.
    pub fn catch_up(&mut self, mut each: impl FnMut(&Event)) -> Result<(), Error> {
        while self.look(&mut each)? {}
        Ok(())
    }
}

/// Opens the dashboard and returns when it is left.
///
/// # Errors
/// When the terminal fails, or the journal can't be read.
pub fn run(watch: &mut Watch, colour: bool, now: fn() -> String) -> Result<(), Error> {
    let signals = Signals::listen().map_err(|source| Error::Terminal { attempt: "listen to signals of", source })?;
    watch.look(|_| {})?;
    let mut screen = Screen::open()?;
    loop {
        if signals.told_to_end() {
            break;
        }
        if signals.told_to_stop() {
            screen = screen.suspend(&signals)?;
        }
        let more = watch.look(|_| {})?;
        let now_ms = unix_ms(&now()).unwrap_or(0);
        screen.draw(|frame| draw(&watch.run, watch.life, now_ms, colour, frame))?;
        match input(if more { Duration::ZERO } else { TICK })? {
            Input::Event(Typed::Key(key)) if key.kind != KeyEventKind::Release => match asked(key) {
                Asked::Quit => break,
                Asked::Suspend => screen = screen.suspend(&signals)?,
                Asked::Repaint => screen.repaint()?,
                Asked::Nothing => {}
            },
            Input::Event(_) | Input::Nothing => {}
            Input::Gone => return Ok(()),
        }
    }
    screen.close()
}

#[derive(Debug, PartialEq, Eq)]
enum Asked {
    Quit,
    Suspend,
    Repaint,
    Nothing,
}

fn asked(key: KeyEvent) -> Asked {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if control => Asked::Quit,
        KeyCode::Char('z') if control => Asked::Suspend,
        KeyCode::Char('l') if control => Asked::Repaint,
        KeyCode::Char('q') | KeyCode::Esc => Asked::Quit,
        _ => Asked::Nothing,
    }
}

/// The lines that `run` prints where there is no terminal, made again from the journal.
pub struct Plain {
    lines: Lines,
    began_ms: Option<i64>,
}

impl Default for Plain {
    fn default() -> Plain {
        Plain { lines: Lines::new(Style { live: false, colour: false, width: 0 }), began_ms: None }
    }
}

impl Plain {
    /// What one event says, often nothing.
    pub fn show(&mut self, event: &Event) -> String {
        let at = unix_ms(&event.at).unwrap_or(0);
        let began = *self.began_ms.get_or_insert(at);
        let since = Duration::from_millis(u64::try_from(at.saturating_sub(began)).unwrap_or(0));
        self.lines.show(since, event.stage, &event.kind)
    }
}

/// What is said under the lines of a run that did not come to its end by itself.
pub fn closing(run: &Watched, life: Life, now_ms: i64) -> Option<String> {
    match life {
        Life::Finished => None,
        Life::Live => Some(format!("running for {}", duration(run.wall_ms(life, now_ms)))),
        Life::Interrupted => {
            let (said, command) = interrupted(run);
            Some(format!("{said} {command}").trim_end().to_owned())
        }
    }
}

/// What is said of an interrupted run, and the command that goes on with it.
fn interrupted(run: &Watched) -> (String, String) {
    match run.started_ms {
        None => ("nothing has run here yet".to_owned(), String::new()),
        Some(_) => ("interrupted: no process writes this journal. Go on with:".to_owned(), run.resume()),
    }
}

#[cfg(test)]
mod tests;
