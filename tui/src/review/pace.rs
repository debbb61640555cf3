//! How fast this session's reviewing goes, with breaks left out.

use std::time::Duration;

/// A longer wait for one decision is a break, and counts as this much.
const BREAK: Duration = Duration::from_secs(120);
/// Fewer decisions say nothing about speed.
const ENOUGH: u32 = 3;

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pace {
    now: Duration,
    since: Duration,
    active: Duration,
    decided: u32,
    /// When the item on the screen came up.
    shown: Duration,
}

impl Pace {
    pub fn tick(&mut self, now: Duration) {
        self.now = now;
    }

    /// Another item is on the screen.
    pub fn appeared(&mut self) {
        self.shown = self.now;
    }

    /// How long the item has been on the screen.
    pub fn dwell(&self) -> Duration {
        self.now.saturating_sub(self.shown)
    }

    pub fn decided(&mut self, counted: bool) {
        self.active += self.now.saturating_sub(self.since).min(BREAK);
        self.since = self.now;
        self.decided += u32::from(counted);
    }

    pub fn taken_back(&mut self) {
        self.decided = self.decided.saturating_sub(1);
    }

    /// Decisions of this session.
    pub fn count(&self) -> u32 {
        self.decided
    }

    /// Items a minute, once there is enough to tell.
    pub fn per_minute(&self) -> Option<f64> {
        let minutes = self.active.as_secs_f64() / 60.0;
        (self.decided >= ENOUGH && minutes > 0.0).then(|| f64::from(self.decided) / minutes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_break_does_not_spoil_the_rate() {
        let mut pace = Pace::default();
        for s in [5, 10, 15, 3600] {
            pace.tick(Duration::from_secs(s));
            pace.decided(true);
        }
        let rate = pace.per_minute().unwrap_or_default();
        assert!((rate - 4.0 / (135.0 / 60.0)).abs() < 1e-9, "{rate}");
    }
}
