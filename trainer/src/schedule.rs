//! Learning rate by step: linear warm-up, then constant, linear or cosine decay to zero, or warmup-stable-decay. As in
//! transformers' `get_scheduler`, except that warm-up is one step ahead: the first step already has a rate above zero.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    Constant,
    Linear,
    Cosine,
    /// The peak until the last `decay_steps`, then down: a run can be prolonged from before the decay.
    WarmupStableDecay,
}

/// How warmup-stable-decay comes down, by the share `t` of the decay that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Decay {
    /// 1 - t
    #[serde(rename = "linear")]
    Linear,
    /// (1 + cos πt) / 2
    #[serde(rename = "cosine")]
    Cosine,
    /// 1 - √t (Hägele et al., 2024)
    #[serde(rename = "1-sqrt")]
    OneMinusSqrt,
}

#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    pub kind: Scheduler,
    pub peak: f64,
    pub warmup_steps: u64,
    /// Of warmup-stable-decay only.
    pub decay_steps: u64,
    pub decay: Decay,
    pub total_steps: u64,
}

impl Schedule {
    /// The rate of step `step`, counted from 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.peak * (step + 1) as f64 / self.warmup_steps as f64;
        }
        let done = |from: u64, steps: u64| (step.saturating_sub(from) as f64 / steps.max(1) as f64).min(1.0);
        let whole = || done(self.warmup_steps, self.total_steps.saturating_sub(self.warmup_steps));
        let cosine = |t: f64| 0.5 * (1.0 + (std::f64::consts::PI * t).cos());
        self.peak
            * match self.kind {
                Scheduler::Constant => 1.0,
                Scheduler::Linear => 1.0 - whole(),
                Scheduler::Cosine => cosine(whole()),
                Scheduler::WarmupStableDecay => {
                    let stable_until = self.total_steps.saturating_sub(self.decay_steps).max(self.warmup_steps);
                    let t = done(stable_until, self.total_steps.saturating_sub(stable_until));
                    match self.decay {
                        // A step past the end has no rate, also where the decay has no steps.
                        _ if step >= self.total_steps => 0.0,
                        Decay::Linear => 1.0 - t,
                        Decay::Cosine => cosine(t),
                        Decay::OneMinusSqrt => 1.0 - t.sqrt(),
                    }
                }
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: Scheduler, peak: f64, warmup_steps: u64, total_steps: u64) -> Schedule {
        Schedule { kind, peak, warmup_steps, decay_steps: 0, decay: Decay::Cosine, total_steps }
    }

    #[test]
    fn rises_then_falls() {
        let s = of(Scheduler::Linear, 1.0, 2, 6);
        let rates: Vec<f64> = (0..7).map(|i| s.rate(i)).collect();
        assert_eq!(rates, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert!((of(Scheduler::Cosine, 2.0, 0, 4).rate(2) - 1.0).abs() < 1e-12);
        assert_eq!(of(Scheduler::Constant, 2.0, 0, 0).rate(9), 2.0);
    }

    #[test]
    fn stays_at_the_peak_until_the_decay() {
        let base = of(Scheduler::WarmupStableDecay, 1.0, 2, 10);
        let rates = |decay| -> Vec<f64> {
            let s = Schedule { decay_steps: 4, decay, ..base };
            (0..11).map(|i| s.rate(i)).collect()
        };
        assert_eq!(rates(Decay::Linear), [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]);
        assert_eq!(rates(Decay::OneMinusSqrt)[7], 0.5);
        // A decay longer than what warm-up leaves begins after it.
        assert_eq!(Schedule { decay_steps: 99, decay: Decay::Linear, ..base }.rate(6), 0.5);
    }
}
