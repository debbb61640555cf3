//! The sink of a run: every event goes to the journal first, then to whoever plots its numbers, then to stderr as a line
//! for a person.

use crate::memory::peak_rss_bytes;
use crate::output::{Terminal, stderr};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::journal::Journal;
use limbeck_artifact::scalars::{ScalarSink, Scalars};
use limbeck_tui::progress::{Lines, Style};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

pub struct Sink {
    /// None for verbs outside a run.
    journal: Option<Journal>,
    state: Mutex<State>,
    begun: Instant,
}

struct State {
    lines: Lines,
    /// Only work under way and warnings are shown.
    brief: bool,
    scalars: Scalars,
    sinks: Vec<Box<dyn ScalarSink>>,
    /// The largest resident set that was told, in bytes.
    peak_told: u64,
}

impl Sink {
    pub fn new(journal: Option<Journal>, terminal: &Terminal) -> Sink {
        let style = Style { live: terminal.live, colour: terminal.colour, width: terminal.width };
        let state = State {
            lines: Lines::new(style),
            brief: false,
            scalars: Scalars::default(),
            sinks: Vec::new(),
            peak_told: 0,
        };
        Sink { journal, state: Mutex::new(state), begun: Instant::now() }
    }

    pub fn stage(&self, stage: Stage) -> StageSink<'_> {
        StageSink { sink: self, stage }
    }

    /// Sends the numbers of what follows to `sinks` too.
    pub fn plot_to(&self, sinks: Vec<Box<dyn ScalarSink>>) {
        self.lock().sinks = sinks;
    }

    /// Shows a person only work under way and warnings; the journal keeps everything.
    pub fn be_brief(&self) {
        self.lock().brief = true;
    }

    fn tell(&self, stage: Option<Stage>, kind: EventKind) {
        let mut state = self.lock();
        let state = &mut *state;
        let measure = matches!(kind, EventKind::TrainStep { .. } | EventKind::StageFinished { .. });
        self.pass_on(state, stage, kind);
        // Told when it grew by more than a hundredth, so that it does not double the journal.
        if measure
            && self.journal.is_some()
            && let Some(peak_rss_bytes) = peak_rss_bytes()
            && peak_rss_bytes > state.peak_told + state.peak_told / 100
        {
            state.peak_told = peak_rss_bytes;
            self.pass_on(state, stage, EventKind::Resources { peak_rss_bytes });
        }
    }

    fn pass_on(&self, state: &mut State, stage: Option<Stage>, kind: EventKind) {
        let event = self.journal.as_ref().map(|journal| journal.record(stage, kind.clone()));
        let mut failed = Vec::new();
        if let Some(row) = event.and_then(|event| state.scalars.row(&event)) {
            state.sinks.retain_mut(|sink| match sink.write(&row) {
                Ok(()) => true,
                Err(e) => {
                    failed.push(format!("a training log is given up, the training goes on: {e}"));
                    false
                }
            });
        }
        let shown =
            matches!(kind, EventKind::TrainStep { .. } | EventKind::Progress { .. } | EventKind::Warning { .. });
        if shown || !state.brief {
            let text = state.lines.show(self.begun.elapsed(), stage, &kind);
            if !text.is_empty() {
                stderr(&text);
            }
        }
        for text in failed {
            self.pass_on(state, stage, EventKind::Warning { text });
        }
    }

    /// Takes the live line away, so that something else can be written.
    pub fn clear(&self) {
        stderr(&self.lock().lines.clear());
    }

    /// Why the journal has a hole, if it has one.
    pub fn journal_failure(&self) -> Option<String> {
        self.journal.as_ref()?.failure()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
