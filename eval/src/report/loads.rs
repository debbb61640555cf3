//! A load test in words: the same lines on the page, in the terminal and behind `limbeck bench serve`.

use crate::load::{ENOUGH_FOR_P99, Load, Percentile, Percentiles};
use crate::report::Fact;
use crate::words::{milliseconds, percent, significant, thousands};

/// Behind which the asking side is said to have been too slow itself.
const LATE_MS: f64 = 5.0;

/// What was asked and what callers waited, line by line.
pub fn load_facts(load: &Load) -> Vec<Fact> {
    let calls = format!("{} in {:.0} s", thousands(load.calls), load.seconds);
    let asked = match load.rate {
        Some(rate) => format!("{} calls a second at random times (Poisson), {calls}", significant(rate)),
        None => format!("as fast as answers come, {calls}"),
    };
    let tokens =
        load.tokens_per_second.map_or(String::new(), |n| format!(", {} tokens a second in answers", significant(n)));
    let answered = format!(
        "{} of {}, {} a second{tokens}",
        thousands(load.answered),
        thousands(load.calls),
        significant(load.answered_per_second)
    );
    let mut facts = vec![Fact::new("asked", asked), Fact::new("answered", answered)];
    if !load.failed.is_empty() {
        let failed: Vec<String> = load.failed.iter().map(|(why, n)| format!("{} {why}", thousands(*n))).collect();
        facts.push(Fact::new("failed", failed.join(", ")));
    }
    if let Some(times) = &load.latency {
        facts.extend([Fact::new("p50", within(&times.p50)), Fact::new("p95", within(&times.p95))]);
        facts.push(Fact::new("p99", p99(times)));
        facts.push(Fact::new("longest", milliseconds(times.max_ms)));
    }
    facts.push(Fact::new(
        "first token",
        match &load.first_token {
            Some(times) => {
                let some = match times.calls < load.answered {
                    true => format!(", of the {} answers that had one", thousands(times.calls)),
                    false => String::new(),
                };
                format!("p50 {}, p95 {}{some}", within(&times.p50), within(&times.p95))
            }
            None if load.answered == 0 => "no answer".to_owned(),
            None => "answers did not come in pieces".to_owned(),
        },
    ));
    if let Some(bytes) = load.peak_memory_bytes {
        facts.push(Fact::new("memory", format!("{} MB at most, the server's process", thousands(bytes / 1_000_000))));
    }
    if let Some(times) = &load.latency {
        let alike = match times.design_effect {
            effect if effect > 1.05 => format!(
                "; calls wait behind one another, so that {} of them tell as much at p95 as one alone would",
                significant(effect)
            ),
            _ => String::new(),
        };
        facts.push(Fact::new("in brackets", format!("{} intervals{alike}", percent(load.confidence))));
    }
    if load.late_p99_ms > LATE_MS {
        let text =
            format!("one call in a hundred by {} or more, which counts as waiting", milliseconds(load.late_p99_ms));
        facts.push(Fact::new("sent late", text));
    }
    facts.extend(load.facts.iter().cloned());
    facts
}

fn p99(times: &Percentiles) -> String {
    match &times.p99 {
        Some(p99) => within(p99),
        None => {
            format!("not said of {} answers: it takes {}", thousands(times.calls), thousands(ENOUGH_FOR_P99))
        }
    }
}

fn within(percentile: &Percentile) -> String {
    let interval = match (percentile.low_ms, percentile.high_ms) {
        (Some(low), Some(high)) => format!("{} – {}", milliseconds(low), milliseconds(high)),
        (Some(low), None) => format!("from {}", milliseconds(low)),
        (None, Some(high)) => format!("to {}", milliseconds(high)),
        (None, None) => return milliseconds(percentile.ms),
    };
    format!("{} ({interval})", milliseconds(percentile.ms))
}
