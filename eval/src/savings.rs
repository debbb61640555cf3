//! What it saves to put the candidate in the frontier's place, by the month: measured accuracy decides who is served, measured
//! time how many machines it takes, and the rest is the price table's. Escalated calls are paid twice.

use crate::cost::PriceTable;
use crate::report::Report;
use limbeck_artifact::economics::{Assumptions, Economics, Host, economics};
use serde::{Deserialize, Serialize};

/// Calls a month for which the report says what is saved, beside the user's own number.
const VOLUMES: [f64; 3] = [10_000.0, 100_000.0, 1_000_000.0];

/// Payback and break-even.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Savings {
    pub currency: String,
    pub host: Host,
    /// Coverage, latency and reviews are measured ones here; the rest is the price table's, or its defaults.
    pub assumptions: Assumptions,
    /// Review, training and putting it to use, once.
    pub one_off: f64,
    /// Calls a month from which on it loses at no volume; none where it never pays ([`Savings::why_never`]).
    pub break_even_calls: Option<f64>,
    pub at: Vec<Volume>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    pub calls_per_month: f64,
    /// The number in the price table.
    pub own: bool,
    pub economics: Economics,
}

impl Savings {
    /// Why it pays at no volume; None where it does.
    pub(crate) fn why_never(&self) -> Option<&'static str> {
        let per_call = self.at.first().map_or(0.0, |at| at.economics.per_call_now);
        match self.break_even_calls {
            Some(_) => None,
            None if self.assumptions.coverage <= 0.0 => {
                Some("Nothing is served, so nothing is saved: every call would be paid twice.")
            }
            None if per_call <= 0.0 => Some("A call costs nothing now, so there is nothing to save."),
            None => {
                Some("It pays at no volume: a machine costs more than it saves with all the calls that it can take.")
            }
        }
    }
}

/// None where the frontier's calls or a machine have no price, or nothing is known of what would be served.
pub(crate) fn savings(prices: &PriceTable, report: &Report) -> Option<Savings> {
    let host = prices.self_hosted?;
    let per_call = report.frontier_arm()?.cost.as_ref()?.per_1k_calls / 1000.0;
    let reviews = report.lineage.splits.iter().map(|split| split.reviewed).sum::<u64>();
    let assumptions = Assumptions {
        coverage: report.routing.as_ref()?.served.coverage,
        latency_ms: report.candidate_arm()?.latency.as_ref()?.mean_ms,
        reviews: reviews as f64,
        ..prices.assumptions
    };
    let own = assumptions.calls_per_month;
    let mut calls: Vec<f64> = VOLUMES.into_iter().chain(own).collect();
    calls.sort_by(f64::total_cmp);
    calls.dedup();
    let volume = |calls_per_month: f64| Volume {
        calls_per_month,
        own: own == Some(calls_per_month),
        economics: economics(calls_per_month, per_call, host, &assumptions),
    };
    let at: Vec<Volume> = calls.into_iter().map(volume).collect();
    let first = at.first()?.economics;
    Some(Savings {
        currency: prices.currency.clone(),
        host,
        assumptions,
        one_off: first.one_off,
        break_even_calls: first.break_even_calls,
        at,
    })
}
