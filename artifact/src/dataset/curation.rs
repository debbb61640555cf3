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
    /// Agreement of reviewers over the random share: mean pairwise Cohen's κ and Krippendorff's α (nominal), where items were
    /// judged twice without sight of each other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kappa: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub krippendorff_alpha: Option<f64>,
    /// What these are made from, or why there are none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub agreement_note: String,
    /// Upper bound (95 %, however often it was looked at) on the share of recorded answers in train and valid that are wrong,
    /// from the random share of the review alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_error_at_most: Option<f64>,
    /// What it is made from, or why there is none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub label_error_note: String,
    /// The same rows in other formats: file name and SHA-256.
    pub tables: BTreeMap<String, String>,
}

impl Curation {
    /// Whether it says nothing, as in cards of earlier versions.
    pub fn is_empty(&self) -> bool {
        *self == Curation::default()
    }

    /// What the review says of the labels, as lines for a person; none in cards of earlier versions.
    pub fn review_lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let figure = |x: Option<f64>| x.map_or("unknown".to_owned(), |x| format!("{x:.2}"));
        if self.kappa.is_some() || self.krippendorff_alpha.is_some() {
            let (kappa, alpha) = (figure(self.kappa), figure(self.krippendorff_alpha));
            let note = &self.agreement_note;
            lines.push(format!("agreement of reviewers: Cohen's kappa {kappa}, Krippendorff's alpha {alpha} ({note})"));
        } else if !self.agreement_note.is_empty() {
            lines.push(format!("agreement of reviewers: not known, {}", self.agreement_note));
        }
        match self.label_error_at_most {
            Some(most) => lines.push(format!(
                "at most {:.1} % of the recorded answers of train and valid are wrong, at 95 % confidence ({})",
                most * 100.0,
                self.label_error_note
            )),
            None if !self.label_error_note.is_empty() => {
                lines.push(format!("wrong recorded answers: no bound, {}", self.label_error_note));
            }
            None => {}
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_says_why() {
        assert!(Curation::default().review_lines().is_empty(), "cards of earlier versions say nothing");
        let mut curation = Curation {
            agreement_note: "nothing was judged twice".into(),
            label_error_note: "7 reviews of 69".into(),
            ..Curation::default()
        };
        let text = curation.review_lines().join("\n");
        assert_eq!(
            text,
            "agreement of reviewers: not known, nothing was judged twice\nwrong recorded answers: no bound, 7 reviews of 69"
        );
        let null = serde_json::to_value(&curation).unwrap();
        assert!(null.get("kappa").is_none() && null.get("label_error_at_most").is_none());
        curation = Curation { kappa: Some(0.8), label_error_at_most: Some(0.0484), ..curation };
        let text = curation.review_lines().join("\n");
        assert!(text.contains("kappa 0.80, Krippendorff's alpha unknown") && text.contains("at most 4.8 %"), "{text}");
    }
}
