//! What a call costs, from a price table that the user keeps and dates. Tokens are priced where a price per token is
//! known; a model of one's own is priced by the hour of the machine over its measured throughput.

use crate::metrics::Tokens;
use limbeck_artifact::economics::{Assumptions, Host};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The user's price table (`prices.toml`, parsed by the caller).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceTable {
    /// When these prices were read, as the user wrote it.
    #[serde(default)]
    pub as_of: String,
    /// A code such as USD; figures of one table are never converted.
    #[serde(default = "usd")]
    pub currency: String,
    /// By the model's name as the traces record it, or by an arm's name.
    #[serde(default)]
    pub models: BTreeMap<String, TokenPrice>,
    #[serde(default)]
    pub self_hosted: Option<Host>,
    /// `[audit]` in tables of earlier versions.
    #[serde(default, alias = "audit")]
    pub assumptions: Assumptions,
}

impl PriceTable {
    /// The price of a model, under its own name or under an arm's.
    pub fn price(&self, model: &str, arm: &str) -> Option<TokenPrice> {
        self.models.get(model).or_else(|| self.models.get(arm)).copied()
    }
}

fn usd() -> String {
    "USD".to_owned()
}

/// Price per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenPrice {
    pub input_per_1m: f64,
    pub output_per_1m: f64,
    /// What a call costs in a batch, of what it costs by itself: 0.5 with most providers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_share: Option<f64>,
}

/// Cost of a thousand calls and how it was reckoned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    pub per_1k_calls: f64,
    pub currency: String,
    pub basis: String,
}

/// How the calls of an arm are paid for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Charge {
    /// By the tokens that the traces tell.
    Recorded,
    /// By the tokens of the calls made here, at this model's price.
    Tokens { model: String },
    /// By the hour of one's own machine.
    Machine,
    /// Reckoned already.
    Known(Result<Cost, String>),
}

/// One recorded call's usage.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage<'a> {
    pub model: &'a str,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
}

/// Mean token cost of recorded calls. Err tells which price or figure is missing.
pub fn recorded_cost<'a>(calls: impl Iterator<Item = Usage<'a>>, prices: &PriceTable) -> Result<Cost, String> {
    let (mut total, mut priced, mut rows) = (0.0, 0_u64, 0_u64);
    let mut unpriced = BTreeMap::<&str, u64>::new();
    for call in calls {
        rows += 1;
        let (Some(input), Some(output)) = (call.prompt_tokens, call.completion_tokens) else { continue };
        let Some(price) = prices.models.get(call.model) else {
            *unpriced.entry(call.model).or_default() += 1;
            continue;
        };
        total += (input as f64 * price.input_per_1m + output as f64 * price.output_per_1m) / 1e6;
        priced += 1;
    }
    if let Some(model) = unpriced.keys().next() {
        return Err(format!("no price for model `{model}`; add [models.\"{model}\"] to the price table"));
    }
    if priced == 0 {
        return Err("no recorded call tells its token usage".to_owned());
    }
    let dated = if prices.as_of.is_empty() { String::new() } else { format!(", prices of {}", prices.as_of) };
    Ok(Cost {
        per_1k_calls: 1000.0 * total / priced as f64,
        currency: prices.currency.clone(),
        basis: format!("recorded tokens of {priced} of {rows} calls{dated}"),
    })
}

/// Mean token cost of calls that were made here, of the model `priced_as`; a price may stand under the `arm`'s name instead.
/// Err tells which price or figure is missing.
pub fn token_cost(
    calls: impl Iterator<Item = Option<Tokens>>,
    priced_as: &str,
    arm: &str,
    prices: &PriceTable,
) -> Result<Cost, String> {
    let Some(price) = prices.price(priced_as, arm) else {
        return Err(format!("no price for model `{priced_as}`; add [models.\"{priced_as}\"] to the price table"));
    };
    let (mut total, mut told, mut rows) = (0.0, 0_u64, 0_u64);
    for tokens in calls {
        rows += 1;
        if let Some(Tokens { prompt, completion }) = tokens {
            total += (prompt as f64 * price.input_per_1m + completion as f64 * price.output_per_1m) / 1e6;
            told += 1;
        }
    }
    if told == 0 {
        return Err("no call tells its token usage".to_owned());
    }
    let dated = if prices.as_of.is_empty() { String::new() } else { format!(", prices of {}", prices.as_of) };
    Ok(Cost {
        per_1k_calls: 1000.0 * total / told as f64,
        currency: prices.currency.clone(),
        basis: format!("tokens of {told} of {rows} calls made here{dated}"),
    })
}

/// Cost of one's own machine that answers one call after another, each taking `mean_ms`.
pub fn self_hosted_cost(mean_ms: f64, prices: &PriceTable) -> Result<Cost, String> {
    let Some(host) = prices.self_hosted else {
        return Err("no [self_hosted] per_hour in the price table".to_owned());
    };
    if let Some(problem) = host.problem() {
        return Err(format!("[self_hosted] is impossible: {problem}"));
    }
    let calls_an_hour = 3_600_000.0 / mean_ms.max(1e-3) * host.utilisation;
    Ok(Cost {
        per_1k_calls: 1000.0 * host.per_hour / calls_an_hour,
        currency: prices.currency.clone(),
        basis: format!(
            "{} {} an hour, one call after another at the measured mean, busy {} % of the time",
            host.per_hour,
            prices.currency,
            (host.utilisation * 100.0).round()
        ),
    })
}
