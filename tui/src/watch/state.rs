//! A run as its journal tells it: a fold over the events, the same for a live run and a finished one. It reads no clock
//! and no file; strings are kept as they came and made safe where they are shown.

use crate::progress::{Lines, Style, count};
use crate::text::{one_line, shell_word};
use crate::watch::curve::{Curve, Point};
use limbeck_artifact::event::{Event, EventKind, Stage};
use limbeck_artifact::journal::unix_ms;
use std::collections::VecDeque;
use std::time::Duration;

/// Lines of what happened that are kept, warnings apart.
const RECENT: usize = 64;
/// Arms, gates, checkpoints and valid figures that are kept; a run has few of each.
const MOST: usize = 4096;

/// How a run is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// A process is writing the journal.
    Live,
    /// It came to its end, well or not.
    Finished,
    /// Nobody is writing and the end was never told.
    Interrupted,
}

impl Life {
    pub fn name(self) -> &'static str {
        match self {
            Life::Live => "live",
            Life::Finished => "finished",
            Life::Interrupted => "interrupted",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StageState {
    #[default]
    Pending,
    Running,
    Cached,
    Done,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct StageLine {
    pub state: StageState,
    pub started_ms: Option<i64>,
    pub wall_ms: Option<u64>,
    pub summary: String,
    /// Countable work under way: done, total, unit.
    pub progress: Option<(u64, u64, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Valid {
    pub step: u64,
    pub loss: f64,
    pub accuracy: f64,
}

/// The newest step's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Step {
    pub step: u64,
    pub total: u64,
    pub epoch: f64,
    pub loss: f64,
    pub learning_rate: f64,
    pub grad_norm: f64,
    pub tokens_per_s: f64,
    pub eta_s: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Arm {
    pub arm: String,
    pub n: u64,
    pub accuracy: f64,
    pub p50_ms: f64,
    pub p95_ms: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Gate {
    pub gate: String,
    pub verdict: String,
    pub reason: String,
}

/// Something that happened, as `run` prints it.
#[derive(Clone, Debug, PartialEq)]
pub struct Happened {
    pub text: String,
    pub warning: bool,
}

pub struct Watched {
    pub run: String,
    pub recipe: String,
    pub version: String,
    pub device: String,
    arguments: Vec<String>,
    pub started_ms: Option<i64>,
    pub last_ms: Option<i64>,
    /// Exit code and wall time, once told.
    pub finished: Option<(u8, u64)>,
    pub stages: [StageLine; Stage::ALL.len()],
    pub step: Option<Step>,
    pub curve: Curve,
    pub valid: Vec<Valid>,
    /// Step and path of each checkpoint that was written.
    pub checkpoints: Vec<(u64, String)>,
    pub arms: Vec<Arm>,
    pub gates: Vec<Gate>,
    pub recent: VecDeque<Happened>,
    pub warnings: Vec<String>,
    pub peak_rss_bytes: Option<u64>,
    /// Lines of the journal that are no events.
    pub bad_lines: u64,
    lines: Lines,
}

impl Default for Watched {
    fn default() -> Watched {
        Watched {
            run: String::new(),
            recipe: String::new(),
            version: String::new(),
            device: String::new(),
            arguments: Vec::new(),
            started_ms: None,
            last_ms: None,
            finished: None,
            stages: Default::default(),
            step: None,
            curve: Curve::default(),
            valid: Vec::new(),
            checkpoints: Vec::new(),
            arms: Vec::new(),
            gates: Vec::new(),
            recent: VecDeque::new(),
            warnings: Vec::new(),
            peak_rss_bytes: None,
            bad_lines: 0,
            lines: Lines::new(Style { live: false, colour: false, width: 0 }),
        }
    }
}

impl Watched {
    /// Takes the next event in.
    pub fn take(&mut self, event: &Event) {
        let at = unix_ms(&event.at);
        self.last_ms = at.or(self.last_ms);
        self.run.clone_from(&event.run);
        if let Some(stage) = event.stage {
            self.stage_event(stage, at, &event.kind);
        }
        match &event.kind {
            EventKind::RunStarted { recipe, version, device, arguments } => {
                self.begin(at);
                (self.recipe, self.version, self.device) = (recipe.clone(), version.clone(), device.clone());
                self.arguments.clone_from(arguments);
            }
            EventKind::RunFinished { exit_code, wall_ms } => self.finished = Some((*exit_code, *wall_ms)),
            EventKind::TrainStep { .. } => self.train_step(&event.kind),
            EventKind::Validated { step, loss, accuracy } => {
                self.valid.retain(|v| v.step < *step);
                push(&mut self.valid, Valid { step: *step, loss: *loss, accuracy: *accuracy });
            }
            EventKind::Checkpoint { step, path } => {
                self.checkpoints.retain(|(of, _)| of < step);
                push(&mut self.checkpoints, (*step, path.clone()));
            }
            EventKind::ArmScored { arm, n, accuracy, p50_ms, p95_ms } => {
                let of = |a: &Arm| a.arm != *arm;
                self.arms.retain(of);
                let (arm, n, accuracy, p50_ms, p95_ms) = (arm.clone(), *n, *accuracy, *p50_ms, *p95_ms);
                push(&mut self.arms, Arm { arm, n, accuracy, p50_ms, p95_ms });
            }
            EventKind::GateDecided { gate, verdict, reason } => {
                self.gates.retain(|g| g.gate != *gate);
                let (gate, verdict, reason) = (gate.clone(), verdict.clone(), reason.clone());
                push(&mut self.gates, Gate { gate, verdict, reason });
            }
            EventKind::Resources { peak_rss_bytes } => self.peak_rss_bytes = Some(*peak_rss_bytes),
            EventKind::Warning { text } => push(&mut self.warnings, text.clone()),
            _ => {}
        }
        self.happened(event);
    }

    /// Another process goes on with the run: its stages are gone through anew, what training has learnt stays until a
    /// step says otherwise.
    fn begin(&mut self, at: Option<i64>) {
        self.started_ms = at;
        self.finished = None;
        self.stages = Default::default();
        self.peak_rss_bytes = None;
        self.arms.clear();
        self.gates.clear();
        self.warnings.clear();
        self.recent.clear();
    }

    fn stage_event(&mut self, stage: Stage, at: Option<i64>, kind: &EventKind) {
        let Some(line) = Stage::ALL.iter().position(|s| *s == stage).map(|i| &mut self.stages[i]) else { return };
        match kind {
            EventKind::StageStarted {} => {
                *line = StageLine { state: StageState::Running, started_ms: at, ..StageLine::default() };
            }
            EventKind::StageCached { .. } => line.state = StageState::Cached,
            EventKind::StageFinished { wall_ms, summary } => {
                (line.state, line.wall_ms, line.progress) = (StageState::Done, Some(*wall_ms), None);
                line.summary.clone_from(summary);
            }
            EventKind::Progress { done, total, unit } => line.progress = Some((*done, *total, unit.clone())),
            _ => {}
        }
    }

    fn train_step(&mut self, kind: &EventKind) {
        let &EventKind::TrainStep { step, total, epoch, loss, learning_rate, grad_norm, tokens_per_s, eta_s } = kind
        else {
            return;
        };
        // A training that goes on from a checkpoint takes some steps again; one that begins anew takes all of them.
        if self.step.is_some_and(|last| step <= last.step) {
            self.curve.cut(step);
            self.valid.retain(|v| v.step < step);
            self.checkpoints.retain(|(of, _)| *of < step);
        }
        self.step = Some(Step { step, total, epoch, loss, learning_rate, grad_norm, tokens_per_s, eta_s });
        self.curve.push(Point { step, loss, learning_rate });
    }

    /// Keeps the line that `run` would print, and one for a checkpoint, which `run` is silent about.
    fn happened(&mut self, event: &Event) {
        let text = match &event.kind {
            EventKind::Progress { .. } | EventKind::TrainStep { .. } | EventKind::RunStarted { .. } => return,
            EventKind::Checkpoint { step, .. } => format!("train     checkpoint of step {}", count(*step)),
            kind => self.lines.show(Duration::ZERO, event.stage, kind),
        };
        let text = text.trim_end();
        if text.is_empty() {
            return;
        }
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        let warning = matches!(event.kind, EventKind::Warning { .. });
        self.recent.push_back(Happened { text: text.to_owned(), warning });
    }

    /// How the run is, given whether a process holds the journal.
    pub fn life(&self, held: bool) -> Life {
        match (self.finished, held) {
            (Some(_), _) => Life::Finished,
            (None, true) => Life::Live,
            (None, false) => Life::Interrupted,
        }
    }

    /// The command that goes on with the run.
    pub fn resume(&self) -> String {
        if !self.arguments.is_empty() {
            let words: Vec<String> = self.arguments.iter().map(|word| shell_word(&one_line(word))).collect();
            return format!("limbeck {}", words.join(" "));
        }
        let recipe = one_line(&self.recipe);
        let folder = recipe.strip_suffix("/recipe.toml").unwrap_or(&recipe);
        format!("limbeck run {}", shell_word(folder))
    }

    /// Milliseconds since the run began: until it ended, until now while it is live, else until its last sign.
    pub fn wall_ms(&self, life: Life, now_ms: i64) -> u64 {
        let until = if life == Life::Live { Some(now_ms) } else { self.last_ms };
        match (self.finished, self.started_ms, until) {
            (Some((_, wall_ms)), ..) => wall_ms,
            (None, Some(from), Some(to)) => u64::try_from(to.saturating_sub(from)).unwrap_or(0),
            _ => 0,
        }
    }

    /// The stage at work, or the one that the run stopped in.
    pub fn current(&self) -> Option<Stage> {
        Stage::ALL.into_iter().zip(&self.stages).find(|(_, line)| line.state == StageState::Running).map(|(s, _)| s)
    }

    /// The stages that a person is shown: a run without a teacher captures nothing.
    pub fn shown_stages(&self) -> impl Iterator<Item = (Stage, &StageLine)> {
        let all = Stage::ALL.into_iter().zip(&self.stages);
        all.filter(|(stage, line)| *stage != Stage::Capture || line.state != StageState::Pending)
    }

    pub fn stage(&self, stage: Stage) -> &StageLine {
        &self.stages[Stage::ALL.iter().position(|s| *s == stage).unwrap_or(0)]
    }
}

/// Pushes where there is room: a journal may be anyone's.
fn push<T>(list: &mut Vec<T>, item: T) {
    if list.len() < MOST {
        list.push(item);
    }
}
