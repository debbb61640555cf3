//! Numbers as people read them: grouped counts, bytes, durations, bars, and a rate over the last seconds.

use limbeck_artifact::event::Stage;
pub use limbeck_artifact::figures::thousands as count;
use std::collections::VecDeque;
use std::time::Duration;

/// The rate is taken over this much of the past, so that it follows a change of speed but not every hiccup.
const WINDOW: Duration = Duration::from_secs(10);
const SAMPLES: u32 = 256;
/// A value that fell by this factor lies flat on a linear scale.
pub(crate) const DECADES: f64 = 30.0;

/// Decimal units, as disks and downloads are counted.
pub fn bytes(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n < 1e3 => format!("{n:.0} B"),
        _ if n < 1e6 => format!("{:.1} kB", n / 1e3),
        _ if n < 1e9 => format!("{:.1} MB", n / 1e6),
        _ => format!("{:.2} GB", n / 1e9),
    }
}

/// A wall time that is over, from milliseconds.
pub fn duration(ms: u64) -> String {
    let s = ms / 1000;
    match s {
        _ if ms < 1000 => format!("{ms} ms"),
        _ if ms < 9_950 => format!("{:.1} s", ms as f64 / 1000.0),
        _ if ms < 59_500 => format!("{:.0} s", ms as f64 / 1000.0),
        _ if s < 3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s % 3600 / 60),
    }
}

/// A time still to come, from seconds, as a clock shows it: `0:32`, `12:03`, `2:05:00`.
pub fn time_left(s: f64) -> String {
    if !s.is_finite() || s > 359_999.0 {
        return "long".to_string();
    }
    let s = s.max(0.0).ceil() as u64;
    match s >= 3600 {
        true => format!("{}:{:02}:{:02}", s / 3600, s % 3600 / 60, s % 60),
        false => format!("{}:{:02}", s / 60, s % 60),
    }
}

/// A whole percentage, never rounded up to 100, right-aligned in five columns.
pub fn percent(done: u64, total: u64) -> String {
    let whole = if total == 0 { 100 } else { (u128::from(done) * 100 / u128::from(total)).min(100) };
    format!("{whole:>3} %")
}

/// `width` cells, full only when the work is done.
pub fn bar(done: u64, total: u64, width: usize) -> String {
    let full =
        if total == 0 { width } else { (u128::from(done.min(total)) * width as u128 / u128::from(total)) as usize };
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

/// The heights of a cell, lowest first.
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// `values` as at most `width` cells between the least and the greatest: a cell is the mean of its share of the values.
/// What is not finite is left out.
pub fn spark(values: &[f64], width: usize) -> String {
    let values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
    let cells = width.min(values.len());
    let mean = |i: usize| {
        let share = &values[i * values.len() / cells..(i + 1) * values.len() / cells];
        share.iter().sum::<f64>() / share.len() as f64
    };
    let means: Vec<f64> = (0..cells).map(mean).collect();
    let (low, high) = means.iter().fold((f64::MAX, f64::MIN), |(low, high), m| (low.min(*m), high.max(*m)));
    let level = |m: &f64| match high > low {
        true => LEVELS[(((m - low) / (high - low) * 8.0) as usize).min(7)],
        false => LEVELS[3],
    };
    means.iter().map(level).collect()
}

/// The course of a value from its beginning on, in bounded room: neighbours are averaged when it fills up.
#[derive(Default)]
pub(super) struct Course {
    means: Vec<f64>,
    /// Values a mean is made of, as a power of two.
    doublings: u32,
    sum: f64,
    n: u64,
}

impl Course {
    pub(super) fn push(&mut self, value: f64) {
        (self.sum, self.n) = (self.sum + value, self.n + 1);
        if self.n >> self.doublings == 0 {
            return;
        }
        self.means.push(self.sum / self.n as f64);
        (self.sum, self.n) = (0.0, 0);
        if self.means.len() >= SAMPLES as usize {
            self.means = self.means.chunks(2).map(|two| two.iter().sum::<f64>() / two.len() as f64).collect();
            self.doublings += 1;
        }
    }

    /// The course in `width` cells; by decades where it fell so far that all but its start would be the lowest cell.
    pub(super) fn spark(&self, width: usize) -> String {
        let finite = || self.means.iter().filter(|m| m.is_finite());
        let (low, high) = finite().fold((f64::MAX, 0.0f64), |(low, high), m| (low.min(*m), high.max(*m)));
        match low > 0.0 && high >= low * DECADES {
            true => spark(&self.means.iter().map(|m| m.log10()).collect::<Vec<_>>(), width),
            false => spark(&self.means, width),
        }
    }
}

/// Work a second over the last seconds of one stage's one kind of work.
#[derive(Default)]
pub(super) struct Pace {
    of: Option<(Option<Stage>, String)>,
    samples: VecDeque<(Duration, u64)>,
}

impl Pace {
    /// Notes that `done` was reached `at`; `None` until there is enough to tell.
    pub(super) fn rate(&mut self, at: Duration, stage: Option<Stage>, unit: &str, done: u64) -> Option<f64> {
        let of = Some((stage, unit.to_string()));
        let began_again = self.samples.back().is_some_and(|&(_, before)| done < before);
        if self.of != of || began_again {
            self.of = of;
            self.samples.clear();
        }
        // Dense reports are thinned: the oldest and the newest sample are what the rate is made of.
        let n = self.samples.len();
        if n > 1 && self.samples[n - 1].0.saturating_sub(self.samples[n - 2].0) < WINDOW / SAMPLES {
            self.samples.pop_back();
        }
        self.samples.push_back((at, done));
        while self.samples.len() > 2 && at.saturating_sub(self.samples[1].0) > WINDOW {
            self.samples.pop_front();
        }
        let &(since, from) = self.samples.front()?;
        let elapsed = at.saturating_sub(since).as_secs_f64();
        (elapsed >= 0.2).then(|| (done - from) as f64 / elapsed)
    }
}
