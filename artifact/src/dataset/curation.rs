//! What a card says of how its rows came about: whose labels they are and what these weigh, the slices they fall into,
//! what redaction finds, what reviewers made of it.

use super::LabelSource;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Rows of one label source and the sum of their weights in the loss.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    pub rows: u64,
    pub weight: f64,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Curation {
    /// Who said what the targets are.
    pub labels_by: BTreeMap<LabelSource, Provenance>,
    /// Rows by slice ("model", "month", "feedback") and value.
    pub slices: BTreeMap<String, BTreeMap<String, u64>>,
    /// Share of made-up values that this version's rules find, by kind, and their precision among look-alikes.
    pub redaction_recall: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redaction_precision: Option<f64>,
    /// What no figure of redaction covers.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub redaction_note: String,
    /// Curated rows that show a sign of bad quality, by sign.
    pub signs: BTreeMap<String, u64>,
    /// Curated rows of which a copy was answered otherwise.
    pub disagreements: u64,
    /// Rows whose recorded answer a person replaced: the pairs of a preference export.
    pub corrected: u64,
    /// Agreement of reviewers, where items were reviewed twice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kappa: Option<f64>,
    /// Upper bound (95 %) on the share of wrong labels, where the review gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_error_at_most: Option<f64>,
    /// The same rows in other formats: file name and SHA-256.
    pub tables: BTreeMap<String, String>,
}

impl Curation {
    /// Whether it says nothing, as in cards of earlier versions.
    pub fn is_empty(&self) -> bool {
        *self == Curation::default()
    }
}
