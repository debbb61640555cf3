//! The price table that a user keeps: what the evaluation needs of it, and what the audit assumes.

use crate::exit::{Exit, Failure, Result};
use crate::stages::cannot;
use limbeck_data_curation::audit::Assumptions;
use limbeck_eval::PriceTable;
use std::path::Path;

pub struct Prices {
    pub table: PriceTable,
    pub assumptions: Assumptions,
}

/// The table is small and a person's; a mistake in it is a recipe's mistake.
///
/// # Errors
/// When it can't be read, or holds what no price table holds.
pub fn read(path: &Path) -> Result<Prices> {
    let text = std::fs::read_to_string(path).map_err(|e| cannot("read the price table", path, &e))?;
    let bad = |e: toml::de::Error| {
        let message = format!("the price table {} can't be used: {}", path.display(), e.to_string().trim_end());
        Failure::new(Exit::RecipeInvalid, message).help("see recipes/quickstart/prices.toml for one that can")
    };
    let mut whole: toml::Table = toml::from_str(&text).map_err(bad)?;
    let assumptions: Assumptions = match whole.remove("audit") {
        Some(found) => found.try_into().map_err(bad)?,
        None => Assumptions::default(),
    };
    // From the text where that is possible: its mistakes are told with their line.
    let table = match toml::from_str(&text) {
        Ok(table) => table,
        Err(e) if text.contains("[audit]") => whole.try_into().map_err(|_| bad(e))?,
        Err(e) => return Err(bad(e)),
    };
    let a = &assumptions;
    let numbers = [
        a.coverage,
        a.latency_ms,
        a.reviews,
        a.reviews_per_hour,
        a.reviewer_per_hour,
        a.training,
        a.engineering,
        a.monitoring_per_month,
    ];
    if numbers.iter().any(|x| !x.is_finite() || *x < 0.0) || a.coverage > 1.0 || a.reviews_per_hour == 0.0 {
        let message = format!("the price table {} can't be used: [audit] holds an impossible number", path.display());
        let help = "all of them are at least 0, coverage is at most 1, reviews_per_hour is above 0";
        return Err(Failure::new(Exit::RecipeInvalid, message).help(help));
    }
    Ok(Prices { table, assumptions })
}
