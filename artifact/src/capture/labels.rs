//! A row of posteriors: behind the key, the log-probability of each of the header's labels, in their order, as an IEEE half. So a
//! row takes `16 + 2 · labels` bytes.

use super::half::{from_half, to_half};
use super::{Answer, Header, KEY};
use crate::dataset::Message;
use crate::digest::{canonical_json, hex};
use crate::{Error, Result};
use serde_json::json;
use sha2::{Digest, Sha256};

/// [`Header::kind`] of posteriors over labels.
pub const LABEL_POSTERIORS: &str = "label_posteriors";

/// A teacher's answer to a prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub key: String,
    /// Of the header's labels, at temperature 1; their exponentials sum to 1 but for rounding.
    pub log_probs: Vec<f32>,
}

impl Row {
    /// Probabilities that sum to 1.
    pub fn posterior(&self) -> Vec<f32> {
        let max = self.log_probs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let exps: Vec<f64> = self.log_probs.iter().map(|l| f64::from(l - max).exp()).collect();
        let sum: f64 = exps.iter().sum();
        exps.iter().map(|e| (e / sum) as f32).collect()
    }
}

/// What a row goes by: 32 hex digits of the SHA-256 of the prompt's canonical JSON. Rows of equal prompts have one answer.
pub fn prompt_key(messages: &[Message]) -> String {
    hex(&Sha256::digest(canonical_json(&json!(messages)).as_bytes())[..KEY])
}

impl Answer for Row {
    const KIND: &'static str = LABEL_POSTERIORS;

    fn key(&self) -> &str {
        &self.key
    }

    fn put(&self, header: &Header, out: &mut Vec<u8>) -> Result<()> {
        if self.log_probs.len() != header.labels.len() {
            return Err(Error::refused("a row that is not of all labels", "this is a defect of what captures"));
        }
        if self.log_probs.iter().any(|l| l.is_nan()) {
            let reason = format!("the teacher's answer to {} is not a number", self.key);
            return Err(Error::refused(reason, "look at the teacher: its weights or its adapter are damaged"));
        }
        out.extend(self.log_probs.iter().flat_map(|l| to_half(*l).to_le_bytes()));
        Ok(())
    }

    fn take(key: String, header: &Header, bytes: &mut &[u8]) -> Option<Row> {
        let (values, rest) = bytes.split_at_checked(2 * header.labels.len())?;
        *bytes = rest;
        let log_probs = values.as_chunks::<2>().0.iter().map(|half| from_half(u16::from_le_bytes(*half))).collect();
        Some(Row { key, log_probs })
    }
}
