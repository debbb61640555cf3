//! Load tests: calls at a pace of their own to whatever answers at an address, timed from when they were due. Puts the client of
//! `limbeck_distill` and the statistics of `limbeck_eval` together.

mod served;

pub use served::Served;

use crate::exit::{Exit, Failure, Result};
use limbeck_distill::endpoint::{Endpoint, LoadError, LoadPlan, Pace, Question, Sampling, Stopped, Timed};
use limbeck_eval::{LoadCall, LoadTest, arrivals};
use std::time::Duration;

/// Calls before the clock starts: the first ones pay for what is set up once.
const WARM_UP: usize = 20;
/// Of the percentiles' intervals.
pub const CONFIDENCE: f64 = 0.95;

/// How calls come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Coming {
    /// So many, at random times at this rate a second.
    AtRate { rate: f64, calls: usize },
    /// As fast as answers come, for so long.
    Together { seconds: u64 },
}

/// Asks the questions in turn, over and over; tells `told` how many calls have ended.
///
/// # Errors
/// When the server is not there, refuses, or costs more than is allowed.
pub fn measure(
    endpoint: &mut Endpoint,
    questions: &[Question],
    sampling: &Sampling,
    coming: Coming,
    at_most: usize,
    told: &(dyn Fn(usize) + Sync),
) -> Result<LoadTest> {
    let (pace, rate) = match coming {
        Coming::AtRate { rate, calls } => {
            let due = arrivals(rate, calls, 0).into_iter().map(Duration::from_secs_f64).collect();
            (Pace::Due(due), Some(rate))
        }
        Coming::Together { seconds } => (Pace::Until(Duration::from_secs(seconds)), None),
    };
    let plan = LoadPlan { pace, at_most, warm_up: WARM_UP };
    let timed = endpoint.under_load(questions, sampling, &plan, told).map_err(|error| match error {
        LoadError::Stopped(stopped) => failure(endpoint, &stopped),
        LoadError::Reply(error) => error.into(),
    })?;
    Ok(LoadTest::of(timed.iter().map(call).collect(), rate, CONFIDENCE))
}

fn failure(endpoint: &Endpoint, stopped: &Stopped) -> Failure {
    let plan = endpoint.plan();
    let help = match stopped {
        Stopped::SpendCap { .. } => "raise max_spend, or ask for fewer calls",
        Stopped::Down { .. } => "look whether it is up",
        Stopped::Denied { .. } => "look at the address, the model's name and the key",
        Stopped::Offline { .. } => "run it without --offline",
    };
    Failure::new(Exit::Unexpected, format!("{} at {}: {stopped}", plan.model, plan.url)).help(help)
}

fn call(timed: &Timed) -> LoadCall {
    // Whole microseconds: what is written and read back is the very same number.
    let ms = |from: Duration, to: Duration| to.saturating_sub(from).as_micros() as f64 / 1e3;
    LoadCall {
        due_s: timed.due.as_micros() as f64 / 1e6,
        late_ms: ms(timed.due, timed.sent),
        latency_ms: ms(timed.due, timed.ended),
        first_token_ms: timed.first.map(|first| ms(timed.due, first)),
        completion_tokens: timed.end.as_ref().ok().copied().flatten(),
        failed: timed.end.as_ref().err().map(|reason| reason.name().to_owned()),
    }
}
