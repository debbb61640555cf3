//! What moving calls to a small model costs and saves. Plain formulas over plain figures: measured ones where there are any, and
//! assumptions, which every report shows and the user can change.

use serde::{Deserialize, Serialize};

/// Hours of a month: 365 · 24 / 12.
pub const HOURS_A_MONTH: f64 = 730.0;
/// Days of a month: 365 / 12.
pub const DAYS_A_MONTH: f64 = 365.0 / 12.0;

/// What nobody can measure beforehand. `[assumptions]` in the price table changes any of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Assumptions {
    /// Share of the calls that the small model answers; the rest goes on to the large one (φ).
    pub coverage: f64,
    /// What a call takes on the small model, one after another.
    pub latency_ms: f64,
    /// Examples that a reviewer decides.
    pub reviews: f64,
    pub reviews_per_hour: f64,
    pub reviewer_per_hour: f64,
    /// Of one training and its evaluation.
    pub training: f64,
    /// Of putting it to use, once.
    pub engineering: f64,
    pub monitoring_per_month: f64,
    /// Calls that the model would get, where that is known; traces tell it themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_per_month: Option<f64>,
}

impl Default for Assumptions {
    fn default() -> Assumptions {
        Assumptions {
            coverage: 0.8,
            latency_ms: 150.0,
            reviews: 1500.0,
            reviews_per_hour: 300.0,
            reviewer_per_hour: 50.0,
            training: 10.0,
            engineering: 2000.0,
            monitoring_per_month: 50.0,
            calls_per_month: None,
        }
    }
}

impl Assumptions {
    /// What is impossible about them, in words for a person.
    pub fn problem(&self) -> Option<&'static str> {
        let calls = self.calls_per_month.unwrap_or(0.0);
        let numbers = [
            self.coverage,
            self.latency_ms,
            self.reviews,
            self.reviews_per_hour,
            self.reviewer_per_hour,
            self.training,
            self.engineering,
            self.monitoring_per_month,
            calls,
        ];
        let possible = numbers.iter().all(|x| x.is_finite() && *x >= 0.0);
        (!possible || self.coverage > 1.0 || self.reviews_per_hour == 0.0)
            .then_some("all of them are at least 0, coverage is at most 1, reviews_per_hour is above 0")
    }

    /// Review, training, engineering.
    pub fn one_off(&self) -> f64 {
        self.reviews / self.reviews_per_hour * self.reviewer_per_hour + self.training + self.engineering
    }
}

/// A machine of one's own: its price an hour, and the share of the hour in which it answers calls.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub per_hour: f64,
    #[serde(default = "half")]
    pub utilisation: f64,
}

fn half() -> f64 {
    0.5
}

impl Host {
    /// What is impossible about it, in words for a person.
    pub fn problem(&self) -> Option<&'static str> {
        let price = self.per_hour.is_finite() && self.per_hour >= 0.0;
        let possible = price && self.utilisation > 0.0 && self.utilisation <= 1.0;
        (!possible).then_some("per_hour is at least 0, utilisation in (0, 1]")
    }
}

/// Money is in the price table's currency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Economics {
    /// Of a call, now: C.
    pub per_call_now: f64,
    pub per_month_now: f64,
    /// Escalated calls and what is fixed.
    pub per_month_after: f64,
    /// Machines and monitoring.
    pub fixed_per_month: f64,
    pub saving_per_month: f64,
    /// Review, training, engineering.
    pub one_off: f64,
    /// None when nothing is saved.
    pub payback_months: Option<f64>,
    /// Calls a month from which on it loses at no volume; none where it never pays: nothing is served, a call costs nothing now, or
    /// a machine costs more than it saves with all the calls that it can take.
    pub break_even_calls: Option<f64>,
}

/// A site with `calls` a month at `per_call` each.
///
/// - machines = ⌈calls · φ' · latency / (3600 s · 730 h · utilisation)⌉, at least one; every call goes through the small
///   model first, escalated or not, so φ' = 1
/// - fixed = machines · price an hour · 730 + monitoring
/// - after = fixed + (1 − φ) · C · calls
/// - saving = now − after; payback = one-off / saving
/// - break-even: φ · C · calls = fixed, with the fewest machines after which the next one pays for itself as soon as it is needed:
///   m · (calls a machine takes · φ · C − price of a machine) ≥ price of a machine + monitoring
pub fn economics(calls: f64, per_call: f64, host: Host, a: &Assumptions) -> Economics {
    let seconds = HOURS_A_MONTH * 3600.0 * host.utilisation;
    let machines = (calls * a.latency_ms / 1000.0 / seconds).ceil().max(1.0);
    let machine = host.per_hour * HOURS_A_MONTH;
    let fixed = machines * machine + a.monitoring_per_month;
    let now = calls * per_call;
    let after = fixed + (1.0 - a.coverage) * now;
    let one_off = a.one_off();
    let saving = now - after;
    Economics {
        per_call_now: per_call,
        per_month_now: now,
        per_month_after: after,
        fixed_per_month: fixed,
        saving_per_month: saving,
        one_off,
        payback_months: (saving > 0.0).then(|| one_off / saving),
        break_even_calls: break_even(
            seconds * 1000.0 / a.latency_ms,
            a.coverage * per_call,
            machine,
            a.monitoring_per_month,
        ),
    }
}

/// `capacity` is the calls a month that one machine takes, `saved` what each call saves before it is paid for.
fn break_even(capacity: f64, saved: f64, machine: f64, monitoring: f64) -> Option<f64> {
    if saved <= 0.0 {
        return None;
    }
    let gain = capacity * saved - machine;
    let machines = ((machine + monitoring) / gain).ceil().max(1.0);
    (gain > 0.0).then(|| (machines * machine + monitoring) / saved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_site_by_hand() {
        let host = Host { per_hour: 0.1, utilisation: 0.5 };
        let a = Assumptions {
            coverage: 0.75,
            latency_ms: 200.0,
            reviews: 1200.0,
            reviews_per_hour: 300.0,
            reviewer_per_hour: 50.0,
            training: 10.0,
            engineering: 1000.0,
            monitoring_per_month: 27.0,
            calls_per_month: None,
        };
        let e = economics(1_000_000.0, 0.002, host, &a);
        // 200,000 s of work in 1,314,000 s: one machine, 73 a month.
        assert_eq!(e.fixed_per_month, 100.0);
        assert_eq!(e.per_month_now, 2000.0);
        assert_eq!(e.per_month_after, 600.0);
        assert_eq!(e.saving_per_month, 1400.0);
        assert_eq!(e.one_off, 1210.0);
        assert!((e.payback_months.unwrap() - 1210.0 / 1400.0).abs() < 1e-12);
        assert!((e.break_even_calls.unwrap() - 100.0 / 0.0015).abs() < 1e-6);
        // At that volume nothing is won and nothing lost.
        let at = economics(e.break_even_calls.unwrap(), 0.002, host, &a);
        assert!(at.saving_per_month.abs() < 1e-9);
        // Ten times the calls take two machines.
        assert_eq!(economics(10_000_000.0, 0.002, host, &a).fixed_per_month, 2.0 * 73.0 + 27.0);
        let dear = economics(1000.0, 0.002, host, &a);
        assert_eq!(dear.payback_months, None);
        assert_eq!(economics(1000.0, 0.0, host, &a).break_even_calls, None);
    }

    #[test]
    fn from_the_break_even_on_no_volume_loses() {
        let slow =
            Assumptions { coverage: 0.8, latency_ms: 2_000.0, monitoring_per_month: 50.0, ..Assumptions::default() };
        let host = Host { per_hour: 0.1, utilisation: 0.5 };
        // A machine of 73 a month takes 657,000 calls; they save 26.
        let never = economics(3.1e6, 0.05 / 1000.0, host, &slow);
        assert!(never.saving_per_month < -250.0 && never.break_even_calls.is_none(), "{never:?}");
        assert_eq!(economics(1e9, 0.05 / 1000.0, host, &slow).payback_months, None);
        // At prices from just above what a machine costs to many times that.
        for per_1k in [0.14, 0.15, 0.2, 0.5, 5.0] {
            let at = |calls: f64| economics(calls, per_1k / 1000.0, host, &slow);
            let from = at(1.0).break_even_calls.unwrap();
            assert!(at(from * (1.0 - 1e-6)).saving_per_month < 0.0, "{per_1k}: it pays earlier");
            let more = (0..2_000).map(|step| from * (1.0 + f64::from(step) / 100.0));
            let lost = more.map(|calls| (calls, at(calls).saving_per_month)).find(|(_, saved)| *saved < -1e-6);
            assert_eq!(lost, None, "{per_1k}");
        }
        let instant = Assumptions { latency_ms: 0.0, ..slow };
        assert_eq!(economics(1.0, 0.001, host, &instant).break_even_calls, Some((73.0 + 50.0) / 0.0008));
        assert_eq!(economics(1.0, 0.001, host, &Assumptions { coverage: 0.0, ..slow }).break_even_calls, None);
    }
}
