//! From the figures of all rounds to rows with ratios and bars. A ratio is of medians over the rounds; where the rounds of
//! one side lie far apart, the report says that the machine is noisy.

use super::ours::median;
use super::{FinetuneFigures, StepFigures};
use limbeck_eval::statistics::wilson;
use serde::Serialize;

/// Rounds further apart than this share of their median are called noisy.
const NOISE: f64 = 0.15;

/// What a figure must reach.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind", content = "than")]
pub enum Bar {
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// Our figure itself.
    OursAtLeast(f64),
}

/// One figure of both sides, by round.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub work: String,
    pub figure: &'static str,
    /// Digits behind the point.
    #[serde(skip)]
    pub digits: usize,
    pub peer: Vec<f64>,
    pub ours: Vec<f64>,
    pub peer_median: f64,
    pub ours_median: f64,
    /// Ours over the peer's.
    pub ratio: f64,
    pub bar: Option<Bar>,
    pub met: Option<bool>,
}

impl Figure {
    pub(super) fn of(
        work: &str,
        figure: &'static str,
        digits: usize,
        peer: Vec<f64>,
        ours: Vec<f64>,
    ) -> Option<Figure> {
        if peer.is_empty() || ours.is_empty() {
            return None;
        }
        let (peer_median, ours_median) = (median(&peer), median(&ours));
        let ratio = ours_median / peer_median;
        let work = work.to_owned();
        Some(Figure { work, figure, digits, peer, ours, peer_median, ours_median, ratio, bar: None, met: None })
    }

    pub(super) fn with(self, bar: Bar) -> Figure {
        let met = match bar {
            Bar::RatioAtLeast(least) => self.ratio >= least,
            Bar::RatioAtMost(most) => self.ratio <= most,
            Bar::OursAtLeast(least) => self.ours_median >= least,
        };
        Figure { bar: Some(bar), met: Some(met), ..self }
    }

    /// How far apart the rounds of each side are, as a share of their median.
    fn spread(values: &[f64]) -> f64 {
        let (low, high) = values.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        (high - low) / median(values)
    }
}

/// One shape of the growth table; ours alone.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Growth {
    pub rows: usize,
    pub length: usize,
    pub tokens_per_s: f64,
    pub peak_rss_mib: Option<u64>,
    /// Of the rate of the first shape of its series.
    pub share: f64,
    /// What the share may fall to.
    pub allowed: f64,
    pub met: bool,
}

/// Of step runs. The bar on speed goes by the peer's dtype.
pub fn step(peer: &[StepFigures], ours: &[StepFigures]) -> Vec<Figure> {
    let Some(first) = peer.first() else { return Vec::new() };
    let work = format!("step {}x{}", first.bs, first.seq);
    let both = |figure, digits, of: &dyn Fn(&StepFigures) -> Option<f64>| {
        let all = |side: &[StepFigures]| side.iter().filter_map(of).collect();
        Figure::of(&work, figure, digits, all(peer), all(ours))
    };
    let speed = if first.dtype == "f32" { 1.3 } else { 2.0 };
    let rows = [
        both("tokens/s", 0, &|f| Some(f.tokens_per_s_median)).map(|f| f.with(Bar::RatioAtLeast(speed))),
        both("tokens/s, best step", 0, &|f| Some(f.tokens_per_s_best)),
        both("tokens/s, CPU-normalised", 0, &|f| f.tokens_per_s_cpu_normalised),
        both("peak memory, MiB", 0, &|f| f.peak_rss_mib.map(|m| m as f64)).map(|f| f.with(Bar::RatioAtMost(0.6))),
    ];
    rows.into_iter().flatten().collect()
}

/// Of fine-tunings: time, memory, accuracy.
pub fn finetune(peer: &[FinetuneFigures], ours: &[FinetuneFigures]) -> Vec<Figure> {
    let Some(first) = peer.first() else { return Vec::new() };
    let work = format!("fine-tune, {} classes, {} rows", first.classes, first.train);
    let both = |figure, digits, of: &dyn Fn(&FinetuneFigures) -> Option<f64>| {
        let all = |side: &[FinetuneFigures]| side.iter().filter_map(of).collect();
        Figure::of(&work, figure, digits, all(peer), all(ours))
    };
    // The peer's own interval, of its median accuracy.
    let accuracy = both("accuracy, %", 1, &|f| Some(f.tuned.accuracy * 100.0)).map(|f| {
        let n = first.tuned.n;
        let right = (f.peer_median / 100.0 * n as f64).round() as u64;
        f.with(Bar::OursAtLeast(wilson(right.min(n), n, 0.95).low * 100.0))
    });
    let rows = [
        both("training, s", 1, &|f| Some(f.wall_s)).map(|f| f.with(Bar::RatioAtMost(0.2))),
        both("tokens/s", 0, &|f| Some(f.tokens_per_s)),
        both("tokens/s, CPU-normalised", 0, &|f| f.tokens_per_s_cpu_normalised),
        both("peak memory, MiB", 0, &|f| f.peak_rss_mib.map(|m| m as f64)).map(|f| f.with(Bar::RatioAtMost(0.6))),
        both("loss, last 20 steps", 3, &|f| Some(f.loss_last20)),
        accuracy,
    ];
    rows.into_iter().flatten().collect()
}

/// Of the accuracy loops after the fine-tunings.
pub fn score(peer: &[FinetuneFigures], ours: &[FinetuneFigures]) -> Vec<Figure> {
    let Some(first) = peer.first() else { return Vec::new() };
    let rate = |side: &[FinetuneFigures]| side.iter().map(|f| f.tuned.n as f64 / f.tuned.seconds.max(1e-9)).collect();
    let work = format!("score, {} labels", first.classes);
    Figure::of(&work, "examples/s", 1, rate(peer), rate(ours))
        .map(|f| f.with(Bar::RatioAtLeast(5.0)))
        .into_iter()
        .collect()
}

/// Of shapes in a series: more rows must keep the rate within 15 %, and longer rows may slow it by what attention adds.
/// A step takes a frozen weight's product twice, forward and for its input's gradient; attention's two products become six,
/// for both of their sides have gradients. What is worked out again to save memory is nobody's share.
pub fn growth(series: &[StepFigures]) -> Vec<Growth> {
    let Some(first) = series.first() else { return Vec::new() };
    let cost = |f: &StepFigures| 2.0 * f.linear_flops + 3.0 * f.attention_flops;
    let fastest = series.iter().map(|f| f.tokens_per_s_median).fold(0.0, f64::max);
    let longer = series.iter().any(|f| f.seq != first.seq);
    series
        .iter()
        .map(|f| {
            let (base, allowed) = match longer {
                true => (first.tokens_per_s_median, cost(first) / cost(f)),
                false => (fastest, 0.85),
            };
            let share = f.tokens_per_s_median / base;
            Growth {
                rows: f.bs,
                length: f.seq,
                tokens_per_s: f.tokens_per_s_median,
                peak_rss_mib: f.peak_rss_mib,
                share,
                allowed,
                met: share >= allowed,
            }
        })
        .collect()
}

/// Where the rounds of one side disagree by more than 15 %.
pub fn noise(figures: &[Figure]) -> Vec<String> {
    let mut notes = Vec::new();
    for f in figures.iter().filter(|f| !f.figure.starts_with("loss")) {
        for (side, values) in [("the peer's", &f.peer), ("our", &f.ours)] {
            let spread = Figure::spread(values);
            if values.len() > 1 && spread > NOISE {
                let Figure { work, figure, .. } = f;
                notes.push(format!("{side} rounds differ by {:.0} % in {work}: {figure}", spread * 100.0));
            }
        }
    }
    notes
}
