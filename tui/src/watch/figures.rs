//! The figures beside the curves, as caption and value, the most wanted first.

use super::state::{Life, Watched};
use crate::progress::{bytes, count, spark, time_left};

/// Columns of a small curve behind a figure.
const SPARK: usize = 7;

pub fn rows(run: &Watched, life: Life) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(s) = run.step {
        rows.push(("loss", loss(s.loss)));
        if let Some((_, smoothed)) = run.curve.smoothed().next_back() {
            rows.push(("smoothed", loss(smoothed)));
        }
    }
    if let Some(v) = run.valid.last() {
        let accuracies: Vec<f64> = run.valid.iter().map(|v| v.accuracy).collect();
        let curve = if accuracies.len() > 1 { format!(" {}", spark(&accuracies, SPARK)) } else { String::new() };
        rows.push(("valid", format!("{} {:.1} %{curve}", loss(v.loss), v.accuracy * 100.0)));
    }
    if let Some(s) = run.step {
        if life == Life::Live && s.step < s.total {
            rows.push(("left", time_left(s.eta_s)));
        }
        let rates: Vec<f64> = run.curve.points().map(|p| p.learning_rate).collect();
        rows.push(("rate", format!("{:.2e} {}", s.learning_rate, spark(&rates, SPARK))));
        rows.push(("speed", format!("{} tokens/s", count(s.tokens_per_s.max(0.0).round() as u64))));
        rows.push(("step", format!("{}/{}", count(s.step), count(s.total))));
        rows.push(("epoch", format!("{:.2}", s.epoch)));
        rows.push(("grad norm", format!("{:.3}", s.grad_norm)));
    }
    if let Some((step, _)) = run.checkpoints.last() {
        rows.push(("saved", format!("step {}", count(*step))));
    }
    if let Some(peak) = run.peak_rss_bytes {
        // Beside the speed: both say what the machine is doing.
        let at = rows.iter().position(|(name, _)| *name == "speed").map_or(rows.len(), |i| i + 1);
        rows.insert(at, ("memory", format!("{} peak", bytes(peak))));
    }
    rows
}

/// Three places, more for what is close to nothing.
fn loss(x: f64) -> String {
    if x.abs() < 0.01 && x != 0.0 || x.abs() >= 1e6 { format!("{x:.2e}") } else { format!("{x:.3}") }
}
