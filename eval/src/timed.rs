//! Single calls with a clock beside them: an arm that answers many rows at once says how fast it can be, and these say how long a
//! call takes.

use crate::arms::microseconds;
use crate::error::EvalError;
use limbeck_artifact::dataset::Example;
use limbeck_artifact::random::SplitMix64;
use std::time::{Duration, Instant};

/// Test rows that are timed, drawn at random: enough for a 95th percentile and its gate. A slow arm is timed for a minute.
const TIMED: usize = 100;
const AT_LEAST: usize = 10;
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks about some rows one by one: `told` gets each row's number, what `ask` gave, and how many milliseconds that took. Gives
/// the number of calls.
pub(crate) fn some<T>(
    test: &[&Example],
    mut ask: impl FnMut(&Example) -> T,
    mut told: impl FnMut(usize, T, f64) -> Result<(), EvalError>,
) -> Result<usize, EvalError> {
    let mut rng = SplitMix64::new(0);
    let mut order: Vec<usize> = (0..test.len()).collect();
    order.sort_by_cached_key(|_| rng.next_u64());
    let (since, mut calls) = (Instant::now(), 0);
    for at in order.into_iter().take(TIMED) {
        if calls >= AT_LEAST && since.elapsed() > PATIENCE {
            break;
        }
        let begun = Instant::now();
        let answer = ask(test[at]);
        told(at, answer, microseconds(begun.elapsed().as_secs_f64() * 1e3))?;
        calls += 1;
    }
    Ok(calls)
}
