//! The sink of a run: every event goes to the journal first, then to stderr as a line for a person.

use crate::output::{Terminal, stderr};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::journal::Journal;
use limbeck_tui::progress::{Lines, Style};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

pub struct Sink {
    /// None for verbs outside a run.
    journal: Option<Journal>,
    lines: Mutex<Lines>,
    begun: Instant,
}

impl Sink {
    pub fn new(journal: Option<Journal>, terminal: &Terminal) -> Sink {
        let style = Style { live: terminal.live, colour: terminal.colour, width: terminal.width };
        Sink { journal, lines: Mutex::new(Lines::new(style)), begun: Instant::now() }
    }

    pub fn stage(&self, stage: Stage) -> StageSink<'_> {
        StageSink { sink: self, stage }
    }

    fn tell(&self, stage: Option<Stage>, kind: EventKind) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(journal) = &self.journal {
            journal.record(stage, kind.clone());
        }
        let text = lines.show(self.begun.elapsed(), stage, &kind);
        if !text.is_empty() {
            stderr(&text);
        }
    }

    /// Takes the live line away, so that something else can be written.
    pub fn clear(&self) {
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        stderr(&lines.clear());
    }

    /// Why the journal has a hole, if it has one.
    pub fn journal_failure(&self) -> Option<String> {
        self.journal.as_ref()?.failure()
    }
}

impl Emit for Sink {
    fn emit(&self, kind: EventKind) {
        self.tell(None, kind);
    }
}

pub struct StageSink<'a> {
    sink: &'a Sink,
    stage: Stage,
}

impl Emit for StageSink<'_> {
    fn emit(&self, kind: EventKind) {
        self.sink.tell(Some(self.stage), kind);
    }
}
