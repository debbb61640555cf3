//! What callers wait when calls come at times of their own, whatever the server does (an open loop): percentiles with intervals from
//! a histogram of high dynamic range. Times count from when a call was due, so that a server which makes callers wait before
//! they can ask hides nothing.
//!
//! Calls that wait behind one another are not independent. How much less they tell than independent ones would is estimated from
//! means of consecutive blocks (the design effect), and the exact binomial bounds are taken over as many calls fewer, as Korn and
//! Graubard (1998) do for clustered samples.

use crate::report::Fact;
use crate::special::{beta_quantile, binomial_cdf};
use crate::statistics::Interval;
use hdrhistogram::Histogram;
use limbeck_artifact::random::SplitMix64;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// With fewer answers the 99th percentile is one of a handful of calls, and is not said.
pub const ENOUGH_FOR_P99: u64 = 1000;
/// Of consecutive calls, for the design effect: few and long, so that a busy spell lies within one. In simulated queues (up to 85 %
/// busy) thirty let a server exactly on a gate's demand pass in 10 to 26 % of tests, eight in 2 to 6 %.
const BLOCKS: usize = 8;
/// How much calls tell of one another shows at these quantiles better than in the tail, where few calls are late and a test that
/// saw fewer would also look less correlated.
const CORRELATED_AT: [f64; 3] = [0.5, 0.75, 0.9];
/// Shorter ones than this say nothing of a queue.
const LEAST_IN_BLOCK: usize = 5;
/// The histogram keeps times to three digits, from a microsecond to an hour.
const DIGITS: u8 = 3;
const LONGEST_US: u64 = 3_600_000_000;

/// One call of a load test; a test's calls are in the order in which they were due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadCall {
    /// Seconds after the test began.
    pub due_s: f64,
    /// From when it was due until it was sent: what the asking side lags behind.
    pub late_ms: f64,
    /// From when it was due to the end of the answer, or to its failure.
    pub latency_ms: f64,
    /// From when it was due to the first piece of the answer; None where answers do not come in pieces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_token_ms: Option<f64>,
    /// Of the answer, where the server counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_tokens: Option<u64>,
    /// Why there is no answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// A percentile and where the true one lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentile {
    pub ms: f64,
    /// None on a side on which too few calls lie.
    pub low_ms: Option<f64>,
    pub high_ms: Option<f64>,
}

/// Times of calls that were answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    pub calls: u64,
    pub mean_ms: f64,
    pub p50: Percentile,
    pub p95: Percentile,
    /// None below [`ENOUGH_FOR_P99`] calls.
    pub p99: Option<Percentile>,
    pub max_ms: f64,
    /// How many calls of this test tell as much as one independent call would, at the 95th percentile.
    pub design_effect: f64,
}

/// What a load test found, for a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Calls a second that were asked for, at random times (Poisson); None where callers ask as fast as they are answered.
    pub rate: Option<f64>,
    /// Two-sided, of the percentiles' intervals.
    pub confidence: f64,
    /// From the first call that was due to the last end.
    pub seconds: f64,
    pub calls: u64,
    pub answered: u64,
    /// By reason.
    pub failed: BTreeMap<String, u64>,
    pub answered_per_second: f64,
    /// Of answers, where the server counts them.
    pub tokens_per_second: Option<f64>,
    /// None where nothing was answered.
    pub latency: Option<Percentiles>,
    pub first_token: Option<Percentiles>,
    /// How late the last of a hundred calls was sent, in milliseconds: all callers were busy, and it waited.
    pub late_p99_ms: f64,
    /// The most that the server's process held, where it is one of ours.
    pub peak_memory_bytes: Option<u64>,
    /// What was asked, of whom, under which bounds.
    pub facts: Vec<Fact>,
}

/// A load test with every call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadTest {
    pub summary: Load,
    pub calls: Vec<LoadCall>,
}

impl LoadTest {
    /// `rate` is None where callers asked as fast as they were answered.
    pub fn of(calls: Vec<LoadCall>, rate: Option<f64>, confidence: f64) -> LoadTest {
        let answered: Vec<&LoadCall> = calls.iter().filter(|call| call.failed.is_none()).collect();
        let mut failed = BTreeMap::new();
        for why in calls.iter().filter_map(|call| call.failed.clone()) {
            *failed.entry(why).or_default() += 1;
        }
        let first_due = calls.first().map_or(0.0, |call| call.due_s);
        let end = calls.iter().map(|call| call.due_s + call.latency_ms / 1e3).fold(first_due, f64::max);
        let seconds = end - first_due;
        let per_second = |n: f64| if seconds > 0.0 { n / seconds } else { 0.0 };
        let of = |time: &dyn Fn(&LoadCall) -> Option<f64>| -> Vec<f64> {
            answered.iter().filter_map(|call| time(call)).collect()
        };
        let tokens: Option<u64> = answered.iter().map(|call| call.completion_tokens).sum();
        // An empty answer has no first piece.
        let first = of(&|call| call.first_token_ms);
        let summary = Load {
            rate,
            confidence,
            seconds,
            calls: calls.len() as u64,
            answered: answered.len() as u64,
            failed,
            answered_per_second: per_second(answered.len() as f64),
            tokens_per_second: tokens.filter(|_| !answered.is_empty()).map(|n| per_second(n as f64)),
            latency: percentiles(&of(&|call| Some(call.latency_ms)), confidence),
            first_token: percentiles(&first, confidence),
            late_p99_ms: late(&calls),
            peak_memory_bytes: None,
            facts: Vec::new(),
        };
        LoadTest { summary, calls }
    }

    /// How many calls were answered within so many milliseconds, of how many; a call that failed was not. The second number is
    /// how many independent calls these are worth.
    pub fn within(&self, limit_ms: f64) -> (u64, f64) {
        let in_time: Vec<bool> =
            self.calls.iter().map(|call| call.failed.is_none() && call.latency_ms <= limit_ms).collect();
        let times: Vec<f64> = self.calls.iter().map(|call| call.latency_ms).collect();
        let hits = in_time.iter().filter(|within| **within).count() as u64;
        (hits, worth(&in_time).min(worth_of_times(&times)))
    }
}

/// Times of a Poisson process of `rate` a second, as many as asked for, the same for the same seed.
pub fn arrivals(rate: f64, calls: usize, seed: u64) -> Vec<f64> {
    let (mut random, mut at) = (SplitMix64::new(seed), 0.0);
    let next = |_| {
        at -= (1.0 - random.unit()).ln() / rate;
        at
    };
    (0..calls).map(next).collect()
}

/// Summarises times, given in the order in which the calls were due; None without any.
pub fn percentiles(times_ms: &[f64], confidence: f64) -> Option<Percentiles> {
    let mut histogram = Histogram::<u64>::new_with_bounds(1, LONGEST_US, DIGITS).ok()?;
    for ms in times_ms {
        histogram.saturating_record(((ms * 1e3).round() as u64).clamp(1, LONGEST_US));
    }
    let n = histogram.len();
    let at = |rank: u64| value(&histogram, rank);
    let of_all = worth_of_times(times_ms);
    let one = |p: f64| {
        let ms = at(rank(p, n))?;
        let slower: Vec<bool> = times_ms.iter().map(|time| *time > ms).collect();
        let worth = worth(&slower).min(of_all);
        let (low, high) = order_statistics(p, n, worth, confidence);
        let percentile = Percentile { ms, low_ms: low.and_then(at), high_ms: high.and_then(at) };
        Some((percentile, n as f64 / worth))
    };
    let (p95, design_effect) = one(0.95)?;
    Some(Percentiles {
        calls: n,
        mean_ms: times_ms.iter().sum::<f64>() / n as f64,
        p50: one(0.5)?.0,
        p95,
        p99: if n >= ENOUGH_FOR_P99 { Some(one(0.99)?.0) } else { None },
        max_ms: times_ms.iter().copied().fold(0.0, f64::max),
        design_effect,
    })
}

/// The nearest rank, from 1.
fn rank(p: f64, n: u64) -> u64 {
    // A hair less: 0.95 x 20 is a little more than 19 in floating point.
    ((p * n as f64 - 1e-9).ceil() as u64).clamp(1, n.max(1))
}

/// The time of a rank, in milliseconds.
fn value(histogram: &Histogram<u64>, rank: u64) -> Option<f64> {
    let mut seen = 0;
    for step in histogram.iter_recorded() {
        seen += step.count_since_last_iteration();
        if seen >= rank {
            return Some(histogram.median_equivalent(step.value_iterated_to()) as f64 / 1e3);
        }
    }
    None
}

/// The ranks of `n` times between which the p quantile lies with at least this confidence, if they tell as much as `worth`
/// independent ones: by the binomial distribution of how many lie below it.
fn order_statistics(p: f64, n: u64, worth: f64, confidence: f64) -> (Option<u64>, Option<u64>) {
    let (tail, of) = ((1.0 - confidence) / 2.0, (worth.floor() as u64).clamp(1, n.max(1)));
    let scaled = |rank: u64| ((rank as f64 / of as f64 * n as f64).round() as u64).clamp(1, n);
    // The largest rank that at most a tail's share of samples puts above the quantile: P(B < rank) <= tail.
    let low = (1..=of).take_while(|rank| binomial_cdf(rank - 1, of, p) <= tail).last();
    let high = (1..=of).find(|rank| binomial_cdf(rank - 1, of, p) >= 1.0 - tail);
    (low.map(scaled), high.map(scaled))
}

/// How many independent calls these are worth, for the share of those that are true.
fn worth(flags: &[bool]) -> f64 {
    let n = flags.len();
    let blocks = BLOCKS.min(n / LEAST_IN_BLOCK);
    let hits = flags.iter().filter(|flag| **flag).count();
    if blocks < 4 || hits == 0 || hits == n {
        return n as f64;
    }
    let share = hits as f64 / n as f64;
    let mean = |i: usize| {
        let block = &flags[i * n / blocks..(i + 1) * n / blocks];
        block.iter().filter(|flag| **flag).count() as f64 / block.len() as f64
    };
    let squares: f64 = (0..blocks).map(|i| (mean(i) - share).powi(2)).sum();
    let of_mean = squares / (blocks as f64 - 1.0) / blocks as f64;
    let design_effect = of_mean / (share * (1.0 - share) / n as f64);
    if design_effect <= 1.0 {
        return n as f64;
    }
    // The effect itself is an estimate: Student's t of the blocks over that of the calls.
    let t = |freedom: usize| student_quantile(0.975, freedom as f64);
    (n as f64 / design_effect * (t(n - 1) / t(blocks - 1)).powi(2)).max(1.0)
}

/// How many independent calls these are worth, wherever in their distribution they tell most of one another.
fn worth_of_times(times: &[f64]) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |p: f64| {
        let limit = sorted.get((rank(p, sorted.len() as u64) as usize).saturating_sub(1)).copied().unwrap_or(0.0);
        worth(&times.iter().map(|time| *time > limit).collect::<Vec<_>>())
    };
    CORRELATED_AT.into_iter().map(at).fold(times.len() as f64, f64::min)
}

/// The t that a share p > 1/2 of Student's distribution lies below.
fn student_quantile(p: f64, freedom: f64) -> f64 {
    let x = beta_quantile(2.0 * (1.0 - p), freedom / 2.0, 0.5);
    (freedom * (1.0 - x) / x).sqrt()
}

/// Clopper and Pearson's one-sided bounds of a share, of as many calls as `worth` says.
pub(crate) fn bounds_of_share(hits: u64, n: u64, worth: f64, confidence: f64) -> Interval {
    let k = hits as f64 / n.max(1) as f64 * worth;
    let low = if hits == 0 { 0.0 } else { beta_quantile(1.0 - confidence, k, worth - k + 1.0) };
    let high = if hits == n { 1.0 } else { beta_quantile(confidence, k + 1.0, worth - k) };
    Interval { low, high }
}

fn late(calls: &[LoadCall]) -> f64 {
    let mut late: Vec<f64> = calls.iter().map(|call| call.late_ms).collect();
    late.sort_by(f64::total_cmp);
    late.get((rank(0.99, late.len() as u64) as usize).saturating_sub(1)).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(times_ms: impl IntoIterator<Item = f64>) -> Vec<LoadCall> {
        let call = |(i, latency_ms): (usize, f64)| LoadCall {
            due_s: i as f64,
            late_ms: 0.0,
            latency_ms,
            first_token_ms: None,
            completion_tokens: Some(2),
            failed: None,
        };
        times_ms.into_iter().enumerate().map(call).collect()
    }

    #[test]
    fn arrivals_come_at_the_rate_and_at_random() {
        let times = arrivals(100.0, 5000, 0);
        // Five standard deviations of a sum of exponential gaps.
        let last = times.last().unwrap();
        assert!((last - 50.0).abs() < 5.0 * 5000f64.sqrt() / 100.0, "{last}");
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let long = gaps.iter().filter(|gap| **gap > 0.01).count() as f64 / gaps.len() as f64;
        // Of exponential gaps, 1/e are longer than their mean.
        assert!((long - (-1f64).exp()).abs() < 0.04, "{long}");
        assert_eq!(times, arrivals(100.0, 5000, 0));
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank_and_a_high_one_takes_calls() {
        let of = percentiles(&(1..=100).map(f64::from).collect::<Vec<_>>(), 0.95).unwrap();
        // Three digits: a histogram's answer, not the time itself.
        assert!((of.p50.ms - 50.0).abs() < 0.05 && (of.p95.ms - 95.0).abs() < 0.1, "{of:?}");
        assert!(of.p99.is_none() && of.max_ms == 100.0 && of.mean_ms == 50.5);
        assert!(percentiles(&vec![7.0; 1000], 0.95).unwrap().p99.is_some());
        assert!(percentiles(&[], 0.95).is_none());
        let one = percentiles(&[7.0], 0.95).unwrap();
        assert!((one.p50.ms - 7.0).abs() < 0.01 && one.p50.low_ms.is_none() && one.p95.high_ms.is_none());
        assert_eq!((rank(0.95, 20), rank(0.5, 1), rank(0.99, 1000)), (19, 1, 990));
    }

    #[test]
    fn ranks_of_an_interval_are_scipys() {
        // tests/reference/load_golden.py
        assert_eq!(order_statistics(0.95, 1000, 1000.0, 0.95), (Some(936), Some(964)));
        assert_eq!(order_statistics(0.99, 1000, 1000.0, 0.95), (Some(983), Some(997)));
        assert_eq!(order_statistics(0.5, 100, 100.0, 0.95), (Some(40), Some(61)));
        assert_eq!(order_statistics(0.95, 40, 40.0, 0.95), (Some(35), None));
        assert!((student_quantile(0.975, 29.0) - 2.045_229_642_132_703).abs() < 1e-9);
    }

    #[test]
    fn a_call_that_failed_is_not_in_time_and_has_no_percentile() {
        let mut all = calls(vec![10.0; 200]);
        for call in &mut all[..20] {
            call.failed = Some("timeout".to_owned());
        }
        let test = LoadTest::of(all, Some(1.0), 0.95);
        assert_eq!((test.summary.answered, test.summary.failed["timeout"]), (180, 20));
        assert_eq!(test.within(10.0).0, 180);
        assert_eq!(test.summary.latency.as_ref().unwrap().calls, 180);
        // The last call is due after 199 seconds and takes ten milliseconds.
        assert!((test.summary.seconds - 199.01).abs() < 1e-9);
        assert!((test.summary.tokens_per_second.unwrap() - 360.0 / 199.01).abs() < 1e-9);
        let none = LoadTest::of(Vec::new(), None, 0.95).summary;
        assert_eq!((none.calls, none.latency, none.answered_per_second), (0, None, 0.0));
    }

    /// Waiting times of a queue with one server (M/M/1) are known: the time from arrival to end is exponential with mean
    /// 1 / (1 - load). Calls in a row are far from independent, and intervals that take them for so are far too narrow.
    #[test]
    fn intervals_hold_the_truth_in_a_queue() {
        const LOAD: f64 = 0.7;
        let truth_ms = 20f64.ln() / (1.0 - LOAD) * 1e3;
        let (mut held, mut naive, mut passed, runs) = (0, 0, 0, 300);
        for seed in 0..runs {
            let mut random = SplitMix64::new(1000 + seed);
            let due = arrivals(LOAD, 3000, seed);
            let mut free = 0.0_f64;
            let times = due.iter().map(|due| {
                free = free.max(*due) - (1.0 - random.unit()).ln();
                (free - due) * 1e3
            });
            let test = LoadTest::of(calls(times), Some(LOAD), 0.95);
            let inside = |low: f64, high: f64| u32::from(low <= truth_ms && truth_ms <= high);
            let p95 = test.summary.latency.as_ref().unwrap().p95;
            held += inside(p95.low_ms.unwrap_or(0.0), p95.high_ms.unwrap_or(f64::INFINITY));
            let mut sorted: Vec<f64> = test.calls.iter().map(|call| call.latency_ms).collect();
            sorted.sort_by(f64::total_cmp);
            let (low, high) = order_statistics(0.95, 3000, 3000.0, 0.95);
            naive += inside(sorted[low.unwrap() as usize - 1], sorted[high.unwrap() as usize - 1]);
            // A server exactly on the demand of a gate: that it passes is a mistake.
            let (hits, worth) = test.within(truth_ms);
            passed += u32::from(bounds_of_share(hits, 3000, worth, 0.95).low >= 0.95);
        }
        let share = |n: u32| f64::from(n) / runs as f64;
        assert!(share(held) >= 0.9, "held in {}", share(held));
        assert!(share(naive) < 0.6, "independence is assumed in vain: {}", share(naive));
        assert!(share(passed) <= 0.075, "passed in {}", share(passed));
    }
}
