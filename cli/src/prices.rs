//! The price table that a user keeps, read from its file.

use crate::exit::{Exit, Failure, Result};
use crate::stages::cannot;
use limbeck_eval::PriceTable;
use std::path::Path;

/// The table is small and a person's; a mistake in it is a recipe's mistake.
///
/// # Errors
/// When it can't be read, or holds what no price table holds.
pub fn read(path: &Path) -> Result<PriceTable> {
    let text = std::fs::read_to_string(path).map_err(|e| cannot("read the price table", path, &e))?;
    let bad = |why: &str, help: &str| {
        let message = format!("the price table {} can't be used: {why}", path.display());
        Failure::new(Exit::RecipeInvalid, message).help(help)
    };
    let table: PriceTable = toml::from_str(&text)
        .map_err(|e| bad(e.to_string().trim_end(), "see recipes/quickstart/prices.toml for one that can"))?;
    if let Some(problem) = table.self_hosted.and_then(|host| host.problem()) {
        return Err(bad("[self_hosted] is impossible", problem));
    }
    if let Some((model, _)) =
        table.models.iter().find(|(_, price)| price.batch_share.is_some_and(|s| !(0.0..=1.0).contains(&s)))
    {
        let why = format!("batch_share of `{model}` is no share");
        return Err(bad(&why, "it is what a call costs in a batch, of what it costs by itself: 0.5 is half"));
    }
    match table.assumptions.problem() {
        Some(problem) => Err(bad("[assumptions] holds an impossible number", problem)),
        None => Ok(table),
    }
}
