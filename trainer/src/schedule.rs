//! Learning rate by step: linear warm-up, then constant, linear or cosine decay to zero. As in transformers'
//! `get_scheduler`, except that the first step already has a rate above zero.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    Constant,
    Linear,
    Cosine,
}

#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub kind: Scheduler,
    pub peak: f64,
    pub warmup_steps: u64,
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let decaying = self.total_steps.saturating_sub(self.warmup_steps).max(1);
        let t = ((step - self.warmup_steps) as f64 / decaying as f64).min(1.0);
        self.peak
            * match self.kind {
                Scheduler::Constant => 1.0,
                Scheduler::Linear => 1.0 - t,
                Scheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_then_falls() {
        let s = Schedule { kind: Scheduler::Linear, peak: 1.0, warmup_steps: 2, total_steps: 6 };
        let rates: Vec<f64> = (0..7).map(|i| s.rate(i)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        let s = Schedule { kind: Scheduler::Cosine, peak: 2.0, warmup_steps: 0, total_steps: 4 };
        assert!((s.rate(2) - 1.0).abs() < 1e-12);
        let s = Schedule { kind: Scheduler::Constant, peak: 2.0, warmup_steps: 0, total_steps: 0 };
        assert_eq!(s.rate(9), 2.0);
    }
}
