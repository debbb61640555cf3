//! Counters as Prometheus scrapes them. Counting is a few relaxed additions; no request waits for it.

use super::Serving;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The artifact's answer, sure enough.
    Served,
    /// The fallback's answer.
    Upstream,
    /// The artifact's answer although it was not sure enough, marked so.
    Escalated,
    /// An error.
    Refused,
}

impl Outcome {
    const ALL: [Outcome; 4] = [Outcome::Served, Outcome::Upstream, Outcome::Escalated, Outcome::Refused];

    pub fn name(self) -> &'static str {
        match self {
            Outcome::Served => "served",
            Outcome::Upstream => "upstream",
            Outcome::Escalated => "escalated",
            Outcome::Refused => "refused",
        }
    }
}

/// Upper bounds of the time to an answer, in seconds.
const SECONDS: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const CONFIDENCE: [f64; 10] = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];

#[derive(Default)]
pub struct Metrics {
    outcomes: [AtomicU64; 4],
    seconds: Histogram<13>,
    confidence: Histogram<11>,
    upstream_failures: AtomicU64,
}

/// The last bucket takes what is above all bounds.
struct Histogram<const N: usize> {
    buckets: [AtomicU64; N],
    /// In millionths.
    sum: AtomicU64,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Histogram { buckets: [const { AtomicU64::new(0) }; N], sum: AtomicU64::new(0) }
    }
}

impl<const N: usize> Histogram<N> {
    fn add(&self, bounds: &[f64], value: f64) {
        let at = bounds.iter().position(|bound| value <= *bound).unwrap_or(bounds.len());
        self.buckets[at].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add((value * 1e6) as u64, Ordering::Relaxed);
    }

    fn render(&self, text: &mut String, name: &str, bounds: &[f64]) {
        let mut total = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound = bounds.get(i).map_or("+Inf".to_owned(), f64::to_string);
            let _ = writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = self.sum.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(text, "{name}_sum {sum}\n{name}_count {total}");
    }
}

impl Metrics {
    pub fn answered(&self, outcome: Outcome, took: Duration) {
        self.outcomes[outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.seconds.add(&SECONDS, took.as_secs_f64());
    }

    pub fn sure(&self, confidence: f64) {
        self.confidence.add(&CONFIDENCE, confidence);
    }

    pub fn upstream_failed(&self) {
        self.upstream_failures.fetch_add(1, Ordering::Relaxed);
    }

    /// Prometheus' text format, 0.0.4.
    pub fn render(&self, serving: &Serving) -> String {
        let mut text = String::new();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        };
        head(&mut text, "limbeck_artifact_info", "gauge", "The artifact that is served.");
        let (name, version, digest) = (escape(&serving.name), escape(&serving.version), &serving.manifest_digest);
        let _ = writeln!(
            text,
            "limbeck_artifact_info{{name=\"{name}\",version=\"{version}\",manifest_sha256=\"{digest}\"}} 1"
        );
        head(&mut text, "limbeck_requests_total", "counter", "Requests for completions, by what became of them.");
        for outcome in Outcome::ALL {
            let n = self.outcomes[outcome as usize].load(Ordering::Relaxed);
            let _ = writeln!(text, "limbeck_requests_total{{outcome=\"{}\"}} {n}", outcome.name());
        }
        head(&mut text, "limbeck_request_seconds", "histogram", "Time from a request's headers to its answer.");
        self.seconds.render(&mut text, "limbeck_request_seconds", &SECONDS);
        head(&mut text, "limbeck_confidence", "histogram", "The artifact's confidence, whoever answered in the end.");
        self.confidence.render(&mut text, "limbeck_confidence", &CONFIDENCE);
        head(&mut text, "limbeck_queue_depth", "gauge", "Requests that wait for the model.");
        let _ = writeln!(text, "limbeck_queue_depth {}", serving.workers.waiting());
        head(&mut text, "limbeck_upstream_failures_total", "counter", "Escalations that the fallback did not answer.");
        let _ = writeln!(text, "limbeck_upstream_failures_total {}", self.upstream_failures.load(Ordering::Relaxed));
        head(&mut text, "limbeck_upstream_cut_off", "gauge", "1 while the fallback is not asked because it failed.");
        let open = serving.upstream.as_ref().is_some_and(super::Upstream::is_open);
        let _ = writeln!(text, "limbeck_upstream_cut_off {}", u8::from(open));
        if let Some(log) = &serving.decisions {
            head(&mut text, "limbeck_decisions_written_total", "counter", "Lines in the decision log.");
            let _ = writeln!(text, "limbeck_decisions_written_total {}", log.written());
            head(&mut text, "limbeck_decisions_lost_total", "counter", "Lines that could not be written.");
            let _ = writeln!(text, "limbeck_decisions_lost_total {}", log.lost());
        }
        text
    }
}

fn escape(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulative_and_what_is_above_all_bounds_counts_too() {
        let histogram = Histogram::<4>::default();
        for value in [0.5, 1.0, 2.5, 99.0] {
            histogram.add(&[1.0, 2.0, 3.0], value);
        }
        let mut text = String::new();
        histogram.render(&mut text, "x", &[1.0, 2.0, 3.0]);
        let expected = "x_bucket{le=\"1\"} 2\nx_bucket{le=\"2\"} 2\nx_bucket{le=\"3\"} 3\nx_bucket{le=\"+Inf\"} 4\nx_sum 103\nx_count 4\n";
        assert_eq!(text, expected);
    }
}
