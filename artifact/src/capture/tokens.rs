//! A row of distributions over tokens, one for each token that a row of training predicts, of which only a part is kept: the
//! likeliest tokens and the sum of all others, or draws.
//!
//! Behind the key: the positions as u32, then each position:
//!
//! ```text
//! n u8        tokens that follow (1 to 127); bit 7: the teacher's likeliest token is the one that comes next
//! ids         n of them, ascending, each less the one before and 1 (the first as it is), as LEB128
//! top_k       n log-probabilities and that of all other tokens together, as IEEE halves
//! sampling    n counts, u8
//! ```
//!
//! Of `top_k` the token that comes next is always among them, so n may be one more than k. With a vocabulary of 49,152 and k = 20
//! that is some 83 bytes a position, with 50 draws some 3 for each token that was drawn, and one.
//!
//! Top-k is biased, the ghost outcome tells the student how much it misses (DistillKit). Draws are unbiased for what is linear in
//! the teacher's probabilities, as the forward KL is: a token counts by its share of the draws (Anshumann et al., "Sparse Logit
//! Sampling", arXiv 2503.16870, with a proposal that is the teacher's own distribution). All is at temperature 1, for no other
//! can be made of a part.

use super::half::{from_half, to_half};
use super::{Answer, Header, KEY};
use crate::digest::hex;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// [`Header::kind`] of distributions over tokens.
pub const TOKEN_LOGITS: &str = "token_logits";

/// Positions of one row; no row of a training is longer.
const MOST: usize = 1 << 24;
/// Tokens of one position.
const TOKENS: usize = 127;

/// What is kept of a distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "snake_case")]
pub enum Sparse {
    /// The likeliest tokens.
    TopK { k: u8 },
    /// Draws, with replacement; the seed is mixed with a row's key and the position.
    Sampling { draws: u8, seed: u64 },
}

impl std::fmt::Display for Sparse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Sparse::TopK { k } => write!(f, "top {k} and the rest's sum"),
            Sparse::Sampling { draws, .. } => write!(f, "{draws} draws"),
        }
    }
}

/// A teacher's distributions along a row.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenRow {
    pub key: String,
    /// One for each token that carries loss, in their order.
    pub positions: Vec<Position>,
}

/// What a teacher expected next.
#[derive(Clone, Debug, PartialEq)]
pub struct Position {
    /// Its likeliest token is the one that came next.
    pub agrees: bool,
    /// Ascending.
    pub tokens: Vec<u32>,
    pub told: Told,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    TopK { log_probs: Vec<f32>, log_tail: f32 },
    Drawn(Vec<u8>),
}

impl Position {
    /// Of its tokens, so that these and what is left for all others sum to 1.
    pub fn log_probs(&self) -> Vec<f32> {
        match &self.told {
            Told::TopK { log_probs, log_tail } => {
                let exp = |l: &f32| f64::from(*l).exp();
                let sum = (log_probs.iter().map(exp).sum::<f64>() + exp(log_tail)).ln();
                log_probs.iter().map(|l| (f64::from(*l) - sum) as f32).collect()
            }
            Told::Drawn(counts) => {
                let all: f64 = counts.iter().map(|n| f64::from(*n)).sum();
                counts.iter().map(|n| (f64::from(*n) / all).ln() as f32).collect()
            }
        }
    }
}

/// What a row goes by: 32 hex digits of the SHA-256 of its tokens and of which of them are predicted. So a row answers for
/// tokenizer, template, prompt and answer at once.
pub fn tokens_key(ids: &[u32], predicted: &[bool]) -> String {
    let mut bytes = Vec::with_capacity(ids.len() * 5);
    for (id, predicted) in ids.iter().zip(predicted) {
        bytes.extend(id.to_le_bytes());
        bytes.push(u8::from(*predicted));
    }
    hex(&Sha256::digest(&bytes)[..KEY])
}

impl Answer for TokenRow {
    const KIND: &'static str = TOKEN_LOGITS;

    fn key(&self) -> &str {
        &self.key
    }

    fn put(&self, header: &Header, out: &mut Vec<u8>) -> Result<()> {
        let defect = |reason: &str| Error::refused(reason, "this is a defect of what captures");
        let no_number = || {
            let reason = format!("the teacher's answer to {} is not a number", self.key);
            Error::refused(reason, "look at the teacher: its weights or its adapter are damaged")
        };
        out.extend((self.positions.len() as u32).to_le_bytes());
        for position in &self.positions {
            let n = position.tokens.len();
            if n == 0 || n > TOKENS || !position.tokens.is_sorted_by(|a, b| a < b) {
                return Err(defect("a position whose tokens are none, too many or out of order"));
            }
            out.push(n as u8 | if position.agrees { 0x80 } else { 0 });
            let mut next = 0u32;
            for token in &position.tokens {
                leb128(token - next, out);
                next = token + 1;
            }
            match (&position.told, header.sparse) {
                (Told::TopK { log_probs, log_tail }, Some(Sparse::TopK { .. })) if log_probs.len() == n => {
                    if log_probs.iter().chain([log_tail]).any(|l| l.is_nan()) {
                        return Err(no_number());
                    }
                    out.extend(log_probs.iter().chain([log_tail]).flat_map(|l| to_half(*l).to_le_bytes()));
                }
                (Told::Drawn(counts), Some(Sparse::Sampling { .. })) if counts.len() == n => out.extend(counts),
                _ => return Err(defect("a position that is not as the header says")),
            }
        }
        Ok(())
    }

    fn take(key: String, header: &Header, bytes: &mut &[u8]) -> Option<TokenRow> {
        let positions = u32::from_le_bytes(*bytes.split_off(..4)?.as_array()?) as usize;
        // Each takes three bytes at least.
        if positions > MOST.min(bytes.len() / 3) {
            return None;
        }
        let positions = (0..positions).map(|_| position(header.sparse?, bytes)).collect::<Option<_>>()?;
        Some(TokenRow { key, positions })
    }
}

fn position(sparse: Sparse, bytes: &mut &[u8]) -> Option<Position> {
    let first = *bytes.split_off_first()?;
    let (n, agrees) = (usize::from(first & 0x7f), first & 0x80 != 0);
    let mut next = 0u32;
    let mut token = || {
        let token = next.checked_add(unleb128(bytes)?)?;
        next = token.checked_add(1)?;
        Some(token)
    };
    let tokens: Vec<u32> =
        (0..n).map(|_| token()).collect::<Option<_>>().filter(|tokens: &Vec<u32>| !tokens.is_empty())?;
    let told = match sparse {
        Sparse::TopK { .. } => {
            let halves = bytes.split_off(..2 * (n + 1))?.as_chunks::<2>().0;
            let mut values: Vec<f32> = halves.iter().map(|half| from_half(u16::from_le_bytes(*half))).collect();
            // A logarithm above 0 by rounding is one thing, another what no distribution has.
            if values.iter().any(|l| l.is_nan() || *l > 0.01) || values.iter().all(|l| *l == f32::NEG_INFINITY) {
                return None;
            }
            let log_tail = values.pop()?;
            Told::TopK { log_probs: values, log_tail }
        }
        Sparse::Sampling { .. } => {
            let counts = bytes.split_off(..n)?.to_vec();
            Told::Drawn((!counts.contains(&0)).then_some(counts)?)
        }
    };
    Some(Position { agrees, tokens, told })
}

fn leb128(mut x: u32, out: &mut Vec<u8>) {
    while x >= 0x80 {
        out.push(x as u8 | 0x80);
        x >>= 7;
    }
    out.push(x as u8);
}

fn unleb128(bytes: &mut &[u8]) -> Option<u32> {
    let mut x = 0u64;
    for shift in (0..35).step_by(7) {
        let byte = *bytes.split_off_first()?;
        x |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(x).ok();
        }
    }
    None
}
