//! How fast a model may be asked: requests and tokens a minute, spread evenly after a short burst, and a pause for all where
//! the server asks for one. Times are given, not read, so that it can be tested without waiting.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What is not used is kept for so long.
const BURST: Duration = Duration::from_secs(2);

/// A meter that lets `per_minute` through: the generic cell rate algorithm.
#[derive(Debug)]
struct Meter {
    per_minute: u32,
    /// When all that was let through is paid for.
    paid_at: Duration,
}

impl Meter {
    fn ready_at(&self, now: Duration) -> Duration {
        if self.per_minute == 0 { now } else { self.paid_at.saturating_sub(BURST).max(now) }
    }

    fn take(&mut self, now: Duration, n: f64) {
        if self.per_minute > 0 {
            let takes = Duration::from_secs_f64((n * 60.0 / f64::from(self.per_minute)).clamp(0.0, 3600.0));
            self.paid_at = self.paid_at.max(now) + takes;
        }
    }

    /// It came to fewer or more.
    fn correct(&mut self, by: f64) {
        if self.per_minute == 0 {
            return;
        }
        let time = Duration::from_secs_f64((by.abs() * 60.0 / f64::from(self.per_minute)).clamp(0.0, 3600.0));
        self.paid_at = if by < 0.0 { self.paid_at.saturating_sub(time) } else { self.paid_at + time };
    }
}

pub(crate) struct Limits(Mutex<State>);

struct State {
    requests: Meter,
    tokens: Meter,
    paused_until: Duration,
}

impl Limits {
    pub fn new(requests_per_minute: u32, tokens_per_minute: u32) -> Limits {
        let meter = |per_minute| Meter { per_minute, paid_at: Duration::ZERO };
        let state = State {
            requests: meter(requests_per_minute),
            tokens: meter(tokens_per_minute),
            paused_until: Duration::ZERO,
        };
        Limits(Mutex::new(state))
    }

    /// Takes a request of some tokens now, or says how long to wait before asking again.
    pub fn take(&self, now: Duration, tokens: u64) -> Result<(), Duration> {
        let mut state = self.lock();
        let ready = state.requests.ready_at(now).max(state.tokens.ready_at(now)).max(state.paused_until);
        if ready > now {
            return Err(ready - now);
        }
        state.requests.take(now, 1.0);
        state.tokens.take(now, tokens as f64);
        Ok(())
    }

    /// What was reckoned with `reckoned` tokens came to `tokens`.
    pub fn correct(&self, reckoned: u64, tokens: u64) {
        self.lock().tokens.correct(tokens as f64 - reckoned as f64);
    }

    /// Nobody asks before then.
    pub fn pause(&self, until: Duration) {
        let mut state = self.lock();
        state.paused_until = state.paused_until.max(until);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many requests of `tokens` get through in `seconds`, asked for again as soon as told.
    fn through(limits: &Limits, tokens: u64, seconds: u64) -> u32 {
        let (mut now, mut n) = (Duration::ZERO, 0);
        while now < Duration::from_secs(seconds) {
            match limits.take(now, tokens) {
                Ok(()) => n += 1,
                Err(wait) => now += wait,
            }
        }
        n
    }

    #[test]
    fn rates_hold_over_minutes() {
        let n = through(&Limits::new(120, 0), 1_000_000, 300);
        assert!((600..=605).contains(&n), "{n} requests in 5 minutes at 120 a minute");
        let n = through(&Limits::new(0, 6_000), 100, 300);
        assert!((300..=304).contains(&n), "{n} requests of 100 tokens in 5 minutes at 6,000 tokens a minute");
        assert_eq!(Limits::new(0, 0).take(Duration::ZERO, u64::MAX), Ok(()));
    }

    #[test]
    fn tokens_that_did_not_come_are_given_back_and_a_pause_is_for_all() {
        let limits = Limits::new(0, 6_000);
        limits.take(Duration::ZERO, 1_000).unwrap();
        assert_eq!(limits.take(Duration::ZERO, 1), Err(Duration::from_secs(8)));
        limits.correct(1_000, 100);
        assert_eq!(limits.take(Duration::ZERO, 1), Ok(()));
        limits.pause(Duration::from_secs(30));
        assert_eq!(limits.take(Duration::from_secs(10), 1), Err(Duration::from_secs(20)));
        assert_eq!(limits.take(Duration::from_secs(30), 1), Ok(()));
    }
}
