//! How far a file's next-token distributions are from the exact model's: mean KL divergence, how often both expect the same
//! token most, and the ratio of perplexities. Errors are by document, for tokens of one text go wrong together.

use crate::exit::Result;
use limbeck_model::decoder::Decoder;
use limbeck_model::layout::Packed;
use limbeck_model::next_token::compare;
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

/// Tokens that go through a model at once.
const BATCH: usize = 2048;
/// Positions whose logits are held at once, of both models.
const POSITIONS: usize = 128;

/// A piece of text, or a row of a task.
#[derive(Clone, Debug)]
pub struct Piece {
    /// What goes wrong together: the number of its document.
    pub document: usize,
    pub tokens: Vec<u32>,
    /// Positions that are measured: what comes behind them is told by the piece itself.
    pub measured: Range<usize>,
}

impl Piece {
    /// Measured from the first token to the last but one.
    pub fn whole(document: usize, tokens: Vec<u32>) -> Piece {
        let measured = 0..tokens.len().saturating_sub(1);
        Piece { document, tokens, measured }
    }
}

/// The exact model's final states of all pieces.
pub struct Exact<'a> {
    decoder: &'a Decoder,
    pieces: &'a [Piece],
    states: Vec<Vec<f32>>,
}

impl<'a> Exact<'a> {
    /// # Errors
    /// When a piece does not fit the model.
    pub fn read(decoder: &'a Decoder, pieces: &'a [Piece]) -> Result<Exact<'a>> {
        let states = states(decoder, pieces)?;
        Ok(Exact { decoder, pieces, states })
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Divergence {
    /// Positions, and documents that they are from.
    pub positions: u64,
    pub documents: u64,
    /// In nats.
    pub mean_kl: f64,
    /// Of the mean, by documents.
    pub standard_error: Option<f64>,
    /// Share of positions.
    pub same_top: f64,
    /// The file's perplexity over the exact model's.
    pub perplexity_ratio: f64,
}

/// What the file's model makes of the same pieces.
///
/// # Errors
/// When a piece does not fit the model.
pub fn diverge(exact: &Exact<'_>, other: &Decoder) -> Result<Divergence> {
    let own = states(other, exact.pieces)?;
    let width = exact.decoder.config.hidden_size;
    let mut sums = BTreeMap::<usize, (f64, u64)>::new();
    let (mut same, mut lost) = (0u64, 0.0);
    for ((piece, exact_states), own_states) in exact.pieces.iter().zip(&exact.states).zip(&own) {
        for from in piece.measured.clone().step_by(POSITIONS) {
            let at = from..(from + POSITIONS).min(piece.measured.end);
            let rows = at.start * width..at.end * width;
            let p = exact.decoder.logits_behind(&exact_states[rows.clone()]);
            let q = other.logits_behind(&own_states[rows]);
            let next = &piece.tokens[at.start + 1..=at.end];
            let sum = sums.entry(piece.document).or_default();
            for seen in compare(&p, &q, next) {
                sum.0 += seen.divergence;
                sum.1 += 1;
                same += u64::from(seen.same_top);
                lost += seen.lost;
            }
        }
    }
    Ok(summary(&sums.into_values().collect::<Vec<_>>(), same, lost))
}

/// Documents each with the sum of divergences and its positions.
fn summary(documents: &[(f64, u64)], same: u64, lost: f64) -> Divergence {
    let positions: u64 = documents.iter().map(|d| d.1).sum();
    let n = positions.max(1) as f64;
    let mean = documents.iter().map(|d| d.0).sum::<f64>() / n;
    let (k, off) = (documents.len() as f64, |d: &(f64, u64)| (d.0 - mean * d.1 as f64).powi(2));
    let spread = documents.iter().map(off).sum::<f64>() * k / (k - 1.0);
    Divergence {
        positions,
        documents: documents.len() as u64,
        mean_kl: mean,
        standard_error: (documents.len() > 1).then(|| spread.sqrt() / n),
        same_top: same as f64 / n,
        perplexity_ratio: (lost / n).exp(),
    }
}

/// Final states, a piece each.
fn states(decoder: &Decoder, pieces: &[Piece]) -> Result<Vec<Vec<f32>>> {
    let width = decoder.config.hidden_size;
    let mut out = Vec::with_capacity(pieces.len());
    let mut from = 0;
    while from < pieces.len() {
        let (mut batch, mut to) = (Packed::new(), from);
        while to < pieces.len() && (to == from || batch.len() + pieces[to].tokens.len() <= BATCH) {
            batch.push_chain(&pieces[to].tokens, 0);
            to += 1;
        }
        let states = decoder.states(&Arc::new(batch))?;
        let mut rest = states.as_slice();
        for piece in &pieces[from..to] {
            let (own, behind) = rest.split_at(piece.tokens.len() * width);
            out.push(own.to_vec());
            rest = behind;
        }
        from = to;
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_what_varies() {
        // Two documents of like positions, four of them each: the mean's error is that of two draws.
        let divergence = summary(&[(4.0, 4), (12.0, 4)], 6, 8.0 * 0.5f64.ln());
        assert_eq!((divergence.mean_kl, divergence.positions, divergence.documents), (2.0, 8, 2));
        assert!((divergence.standard_error.unwrap() - 1.0).abs() < 1e-12);
        assert_eq!(divergence.same_top, 0.75);
        assert!((divergence.perplexity_ratio - 0.5).abs() < 1e-12);
        assert_eq!(summary(&[(4.0, 4)], 4, 0.0).standard_error, None);
    }
}
