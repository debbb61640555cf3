//! A run's events as lines for a person: on a terminal one live line with bar, rate and time left under the lines that
//! stay, elsewhere plain lines at a bounded rate. It only makes text from events, so a live run, a replayed journal and
//! a test all read the same; the caller writes it to stderr.

mod figures;

pub use figures::{bar, bytes, count, duration, percent, spark, time_left};

use crate::text;
pub(crate) use figures::DECADES;
use figures::{Course, Pace};
use limbeck_artifact::event::{EventKind, Stage};
use std::time::Duration;
use unicode_width::UnicodeWidthStr;

/// The live line is redrawn at most this often.
const REDRAW: Duration = Duration::from_millis(80);
/// Without a terminal, a stage's countable work is reported at most this often, and only when the percentage moved.
const REPORT: Duration = Duration::from_secs(5);
/// Slow work is reported this often all the same.
const ALIVE: Duration = Duration::from_secs(60);
const STAGE_WIDTH: usize = 9;

/// How to write. The caller asks the terminal and the environment (`NO_COLOR`, `TERM=dumb`); this module asks nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Redraw one line in place; without it every line stays and no control sequence is written.
    pub live: bool,
    pub colour: bool,
    /// Columns of the terminal; a live line never wraps. Ignored without `live`.
    pub width: u16,
}

/// Turns events into text. Feed it every event in order, write what it returns.
pub struct Lines {
    style: Style,
    /// The live line on the screen now, without control sequences.
    live: Option<String>,
    drawn_at: Option<Duration>,
    /// Without a terminal: when this stage's work began or was last reported, and the percentage told.
    reported_at: Option<Duration>,
    reported: Option<String>,
    stage: Option<Stage>,
    pace: Pace,
    losses: Course,
    step: u64,
    /// What the work under way has cost, in words.
    spent: Option<String>,
}

impl Lines {
    pub fn new(style: Style) -> Self {
        Lines {
            style,
            live: None,
            drawn_at: None,
            reported_at: None,
            reported: None,
            stage: None,
            pace: Pace::default(),
            losses: Course::default(),
            step: 0,
            spent: None,
        }
    }

    pub fn set_width(&mut self, width: u16) {
        self.style.width = width;
    }

    /// The text to write for one event, empty when there is nothing to show. `at` is the time since the run began.
    pub fn show(&mut self, at: Duration, stage: Option<Stage>, kind: &EventKind) -> String {
        if stage != self.stage {
            self.stage = stage;
            (self.drawn_at, self.reported_at, self.reported, self.spent) = (None, None, None, None);
        }
        match kind {
            EventKind::Spent { amount, currency } => {
                self.spent = Some(format!("{} {} spent", text::one_line(currency), money(*amount)));
                String::new()
            }
            EventKind::StageStarted {} if self.style.live => self.redraw(at, format!("{}started", self.stage_name())),
            EventKind::Progress { done, total, unit } => {
                let rate = self.pace.rate(at, stage, unit, *done);
                let spent = self.spent.clone().map_or(String::new(), |spent| format!(" · {spent}"));
                self.advance(at, *done, *total, |bar| progress_line(bar, *done, *total, unit, rate) + &spent)
            }
            EventKind::TrainStep { step, total, loss, .. } => {
                if *step <= self.step {
                    self.losses = Course::default();
                }
                self.step = *step;
                self.losses.push(*loss);
                if self.style.live {
                    return self.live_training(at, *step >= *total, kind);
                }
                self.advance(at, *step, *total, |_| training(kind))
            }
            EventKind::StageFinished { .. } | EventKind::RunFinished { .. } => {
                let cleared = self.clear();
                cleared + &self.stays(self.lasting(kind))
            }
            _ => self.stays(self.lasting(kind)),
        }
    }

    /// Takes the live line off the screen; call it before anything else writes to the terminal and at the end.
    pub fn clear(&mut self) -> String {
        match self.live.take() {
            Some(_) => "\r\x1b[K".to_string(),
            None => String::new(),
        }
    }

    /// A step of countable work: redrawn in place on a terminal, else reported now and then and at its end.
    fn advance(&mut self, at: Duration, done: u64, total: u64, line: impl Fn(&str) -> String) -> String {
        let last = done >= total;
        if self.style.live {
            if !last && self.drawn_at.is_some_and(|drawn_at| at.saturating_sub(drawn_at) < REDRAW) {
                return String::new();
            }
            let room = usize::from(self.style.width).saturating_sub(STAGE_WIDTH + 56).clamp(8, 24);
            let bar = format!("{} {} ", bar(done, total, room), percent(done, total));
            return self.redraw(at, format!("{}{}", self.stage_name(), line(&bar)));
        }
        // Short work is over before its first report is due: the stage's own lines tell of it.
        let begun_at = *self.reported_at.get_or_insert(at);
        let (waited, percent) = (at.saturating_sub(begun_at), percent(done, total));
        let due = waited >= ALIVE || (waited >= REPORT && self.reported.as_ref() != Some(&percent));
        if !(due || (last && self.reported.is_some())) {
            return String::new();
        }
        let out = format!("{}{percent} {}\n", self.stage_name(), line(""));
        (self.reported_at, self.reported) = (Some(at), (!last).then_some(percent));
        out
    }

    /// One line of training: what it says first is kept on a narrow terminal; on a wide one the loss has its curve and the
    /// work its bar.
    fn live_training(&mut self, at: Duration, last: bool, kind: &EventKind) -> String {
        let EventKind::TrainStep { step, total, epoch, loss, tokens_per_s, eta_s, .. } = kind else {
            return String::new();
        };
        if !last && self.drawn_at.is_some_and(|drawn_at| at.saturating_sub(drawn_at) < REDRAW) {
            return String::new();
        }
        let head = format!("{} step {}/{} · loss {loss:.3}", percent(*step, *total), count(*step), count(*total));
        let left = if step < total { format!(" · {} left", time_left(*eta_s)) } else { String::new() };
        let mut tail = format!(" · {} tokens/s{left}", count(tokens_per_s.max(0.0).round() as u64));
        let epoch = format!(" · epoch {epoch:.1}");
        let begun = self.stage_name().width() + head.width();
        if begun + tail.width() >= usize::from(self.style.width) {
            tail = left;
        }
        let used = begun + tail.width();
        let mut room = usize::from(self.style.width).saturating_sub(used + 1);
        let mut take = |least: usize, most: usize| match room >= least {
            true => {
                let taken = room.min(most);
                room -= taken;
                taken
            }
            false => 0,
        };
        // A cell for the blank before the curve and after the bar.
        let curve = take(5, 13).saturating_sub(1);
        let epoch = if take(epoch.width(), epoch.width()) > 0 { epoch } else { String::new() };
        let bar_width = take(9, 25).saturating_sub(1);
        let curve = if curve > 0 { format!(" {}", self.losses.spark(curve + take(0, 12))) } else { String::new() };
        let bar = if bar_width > 0 { format!("{} ", bar(*step, *total, bar_width)) } else { String::new() };
        self.redraw(at, format!("{}{bar}{head}{curve}{epoch}{tail}", self.stage_name()))
    }

    fn redraw(&mut self, at: Duration, line: String) -> String {
        self.drawn_at = Some(at);
        let line = text::fit(&line, usize::from(self.style.width.max(20)) - 1);
        let out = format!("\r{}\x1b[K", self.paint_stage(&line));
        self.live = Some(line);
        out
    }

    /// A line that stays: above the live line on a terminal.
    fn stays(&self, line: Option<String>) -> String {
        let Some(line) = line else { return String::new() };
        let line = self.paint_stage(&line);
        if !self.style.live {
            return format!("{line}\n");
        }
        match &self.live {
            Some(live) => format!("\r\x1b[K{line}\n{}", self.paint_stage(live)),
            None => format!("{line}\n"),
        }
    }

    fn lasting(&self, kind: &EventKind) -> Option<String> {
        let say = |text: String| Some(format!("{}{text}", self.stage_name()));
        match kind {
            EventKind::RunStarted { recipe, version, device, .. } => {
                Some(format!("{} {} on {}", text::one_line(recipe), text::one_line(version), text::one_line(device)))
            }
            EventKind::RunFinished { exit_code: 0, wall_ms } => Some(format!("finished in {}", duration(*wall_ms))),
            EventKind::RunFinished { exit_code, wall_ms } => {
                Some(format!("stopped after {} with exit code {exit_code}", duration(*wall_ms)))
            }
            EventKind::StageStarted {} => say("started".into()),
            EventKind::StageCached { .. } => say("already done with the same plan and inputs".into()),
            EventKind::StageResumed { from } => say(format!("resumes from {}", text::one_line(from))),
            EventKind::StageFinished { wall_ms, summary } => say(match summary.is_empty() {
                true => format!("done in {}", duration(*wall_ms)),
                false => format!("done in {}: {}", duration(*wall_ms), text::one_line(summary)),
            }),
            EventKind::Counted { n: 0, .. } => None,
            EventKind::Counted { what, n, reason } if reason.is_empty() => {
                say(format!("{} {}", count(*n), text::one_line(what)))
            }
            EventKind::Counted { what, n, reason } => {
                say(format!("{} {}: {}", count(*n), text::one_line(what), text::one_line(&reason.replace('_', " "))))
            }
            EventKind::Validated { step, loss, accuracy } => say(format!(
                "valid split after step {}: loss {loss:.3}, accuracy {:.1} %",
                count(*step),
                accuracy * 100.0
            )),
            EventKind::ArmScored { arm, n, accuracy, p50_ms, p95_ms } => {
                let speed = match *p50_ms > 0.0 {
                    true => format!(", latency p50 {} p95 {}", latency(*p50_ms), latency(*p95_ms)),
                    false => String::new(),
                };
                say(format!("{}: {:.1} % of {} rows right{speed}", text::one_line(arm), accuracy * 100.0, count(*n)))
            }
            EventKind::GateDecided { gate, verdict, reason } => {
                let word = self.paint_verdict(&text::one_line(verdict).to_uppercase());
                say(format!("gate {} {word}: {}", text::one_line(gate), text::one_line(reason)))
            }
            EventKind::Wrote { path, bytes: n } => say(format!("wrote {} ({})", text::one_line(path), bytes(*n))),
            EventKind::Note { text } => say(text::one_line(text)),
            EventKind::Warning { text } => say(format!("{} {}", self.paint("33", "warning:"), text::one_line(text))),
            // The journal keeps them; on the screen they would only push out what a person follows.
            EventKind::Checkpoint { .. }
            | EventKind::Spent { .. }
            | EventKind::Resources { .. }
            | EventKind::Progress { .. }
            | EventKind::TrainStep { .. } => None,
        }
    }

    fn stage_name(&self) -> String {
        self.stage.map_or(String::new(), |stage| format!("{:<STAGE_WIDTH$} ", stage.name()))
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.style.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn paint_verdict(&self, verdict: &str) -> String {
        match verdict {
            "PASS" => self.paint("32", verdict),
            "FAIL" => self.paint("31", verdict),
            _ => self.paint("33", verdict),
        }
    }

    /// The leading stage name in bold.
    fn paint_stage(&self, line: &str) -> String {
        match line.split_once(' ') {
            Some((name, rest)) if self.style.colour && self.stage.is_some_and(|stage| stage.name() == name) => {
                format!("{} {rest}", self.paint("1", name))
            }
            _ => line.to_string(),
        }
    }
}

/// A step of training where lines stay, behind its percentage.
fn training(kind: &EventKind) -> String {
    let EventKind::TrainStep { step, total, epoch, loss, tokens_per_s, eta_s, .. } = kind else { return String::new() };
    let left = if step < total { format!(" · {} left", time_left(*eta_s)) } else { String::new() };
    format!(
        "step {}/{} · loss {loss:.3} · epoch {epoch:.1} · {} tokens/s{left}",
        count(*step),
        count(*total),
        count(tokens_per_s.max(0.0).round() as u64)
    )
}

fn progress_line(bar: &str, done: u64, total: u64, unit: &str, rate: Option<f64>) -> String {
    let unit = text::one_line(unit);
    let mut line = format!("{bar}{}/{} {unit}", count(done), count(total));
    if let Some(rate) = rate.filter(|rate| *rate > 0.0) {
        line.push_str(&match rate >= 10.0 {
            true => format!(" · {}/s", count(rate.round() as u64)),
            false => format!(" · {rate:.1}/s"),
        });
        if done < total {
            line.push_str(&format!(" · {} left", time_left((total - done) as f64 / rate)));
        }
    }
    line
}

/// Small sums with the digits that say something.
fn money(amount: f64) -> String {
    if amount != 0.0 && amount.abs() < 0.1 { format!("{amount:.4}") } else { format!("{amount:.2}") }
}

fn latency(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.1} ms") } else { format!("{} ms", count(ms.round() as u64)) }
}

#[cfg(test)]
mod tests;
