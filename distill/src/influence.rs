//! What the layers of a model do on a task's prompts, and which of them a smaller base can go without: block influence, the
//! distance over a stretch of layers, and what a stretch costs in loss on the answers. Neurons of the MLPs are weighed likewise.
//!
//! Block influence (Men et al. 2024, *ShortGPT*) is 1 − cos between what goes into a layer and what comes out, averaged over
//! tokens; the stretch whose ends are nearest is Gromov et al.'s (2024, *The Unreasonable Ineffectiveness of the Deeper Layers*).

use std::sync::Arc;

use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::decoder::{Decoder, log_softmax};
use limbeck_model::layout::Packed;
use limbeck_model::prompt::{EncodedExample, shared_prefix};
use limbeck_model::weights::Weights;
use serde::{Deserialize, Serialize};

use crate::error::{CarveError, Result};

/// Tokens that go through the model at once: the states between all layers are held for them.
const BATCH: usize = 1024;
/// Positions whose logits are held at once.
const POSITIONS: usize = 128;
/// The last of [`limbeck_model::decoder::LINEARS`]: what goes into it are the MLP's neurons.
const DOWN: usize = 6;
/// Layers at either end that are kept whatever they measure: embedding and head are made for them.
const ENDS: usize = 2;

/// How layers are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// Those of least influence go, wherever they are.
    Influence,
    /// One stretch goes: that whose ends are nearest.
    Window,
    /// One stretch goes: that without which the loss on the answers is least.
    Loss,
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Influence {
    pub rows: u64,
    /// Behind the beginning that all rows share.
    pub tokens: u64,
    /// By layer: 1 − mean cosine between what goes in and what comes out.
    pub layers: Vec<f64>,
    /// The same between what goes into layer `i` and what goes into layer `i + 1 + n`, at `[i][n]`; the last is what the final
    /// norm takes.
    pub distances: Vec<Vec<f64>>,
    /// By layer and neuron of its MLP: the root mean square of what it says, times the length of what it writes.
    pub neurons: Vec<Vec<f64>>,
}

/// Runs the rows through the model and compares its states between the layers. What all rows begin with is read and not
/// measured: it would count as often as there are rows.
///
/// # Errors
/// Without rows, and when a row does not fit the model.
pub fn measure(decoder: &Decoder, weights: &Weights, rows: &[EncodedExample], emit: &dyn Emit) -> Result<Influence> {
    let skipped = skipped(rows);
    let (layers, width) = (decoder.config.num_hidden_layers, decoder.config.hidden_size);
    let mut sums: Vec<Vec<f64>> = (0..layers).map(|i| vec![0.0; layers - i]).collect();
    let mut neurons: Vec<Vec<f64>> = vec![Vec::new(); layers];
    let mut tokens = 0u64;
    for batch in batches(rows) {
        let at = measured(&batch, skipped);
        let mut see = |layer: usize, which: usize, x: &[f32]| {
            if which == DOWN {
                let wide = x.len() / batch.packed.len();
                let sums: &mut Vec<f64> = &mut neurons[layer];
                sums.resize(wide, 0.0);
                for token in &at {
                    let said = &x[token * wide..][..wide];
                    sums.iter_mut().zip(said).for_each(|(sum, x)| *sum += f64::from(*x).powi(2));
                }
            }
        };
        let states = decoder.hidden_states(&batch.packed, &mut see)?;
        for token in &at {
            let state: Vec<&[f32]> = states.iter().map(|state| &state[token * width..][..width]).collect();
            for (i, sums) in sums.iter_mut().enumerate() {
                sums.iter_mut().enumerate().for_each(|(n, sum)| *sum += 1.0 - cosine(state[i], state[i + 1 + n]));
            }
        }
        tokens += at.len() as u64;
        emit.emit(EventKind::Progress { done: batch.rows.end as u64, total: rows.len() as u64, unit: "rows".into() });
    }
    if tokens == 0 {
        return Err(CarveError::NoRows);
    }
    let n = tokens as f64;
    sums.iter_mut().flatten().for_each(|sum| *sum /= n);
    for (layer, neurons) in neurons.iter_mut().enumerate() {
        let down = weights.load(&format!("model.layers.{layer}.mlp.down_proj.weight"))?;
        let wide = neurons.len().max(1);
        let mut written = vec![0f64; wide];
        for row in down.data.chunks_exact(wide) {
            written.iter_mut().zip(row).for_each(|(sum, w)| *sum += f64::from(*w).powi(2));
        }
        neurons.iter_mut().zip(written).for_each(|(sum, written)| *sum = (*sum / n).sqrt() * written.sqrt());
    }
    Ok(Influence {
        rows: rows.len() as u64,
        tokens,
        layers: sums.iter().map(|from| from[0]).collect(),
        distances: sums,
        neurons,
    })
}

/// Mean loss a token on the rows' answers, in nats, of the model with some of its layers only; a figure for each choice. None
/// where no row has an answer.
///
/// # Errors
/// When a row does not fit the model.
pub fn losses(
    decoder: &Decoder,
    rows: &[EncodedExample],
    choices: &[Vec<usize>],
    emit: &dyn Emit,
) -> Result<Option<Vec<f64>>> {
    let width = decoder.config.hidden_size;
    let (mut sums, mut answered) = (vec![0f64; choices.len()], 0u64);
    for batch in batches(rows) {
        // Who predicts an answer's token, and which it is.
        let wanted: Vec<(usize, u32)> = batch
            .starts(rows)
            .flat_map(|(start, row)| {
                let carries = row.mask.iter().enumerate().skip(1).filter(|(_, carries)| **carries);
                carries.map(move |(i, _)| (start + i - 1, row.ids[i]))
            })
            .collect();
        if wanted.is_empty() {
            continue;
        }
        answered += wanted.len() as u64;
        let states = decoder.hidden_states(&batch.packed, &mut |_, _, _| ())?;
        for (sum, layers) in sums.iter_mut().zip(choices) {
            // As far as no layer is left out, the states are the whole model's.
            let same = layers.iter().enumerate().take_while(|(i, layer)| i == *layer).count();
            let finished = decoder.states_through(&batch.packed, &layers[same..], &states[same]);
            for some in wanted.chunks(POSITIONS) {
                let picked: Vec<f32> =
                    some.iter().flat_map(|(token, _)| &finished[token * width..][..width]).copied().collect();
                let logits = decoder.logits_behind(&picked);
                let by_token = logits.chunks_exact(logits.len() / some.len());
                *sum -= by_token.zip(some).map(|(l, (_, next))| f64::from(log_softmax(l)[*next as usize])).sum::<f64>();
            }
        }
        emit.emit(EventKind::Progress { done: batch.rows.end as u64, total: rows.len() as u64, unit: "rows".into() });
    }
    Ok((answered > 0).then(|| sums.iter().map(|sum| sum / answered as f64).collect()))
}

impl Influence {
    /// The layers to keep, `keep` of them, the ends always among them.
    ///
    /// # Errors
    /// When there are not so many, and by loss, which [`windows`] and [`losses`] tell.
    pub fn keep(&self, keep: usize, by: By) -> Result<Vec<usize>> {
        let windows = windows(self.layers.len(), keep)?;
        match by {
            By::Influence => {
                let (first, last) = ends(keep);
                let mut inner: Vec<usize> = (first..self.layers.len() - last).collect();
                // Of two that do as much, the earlier one stays.
                inner.sort_by(|a, b| self.layers[*b].total_cmp(&self.layers[*a]).then(a.cmp(b)));
                inner.truncate(keep - first - last);
                let mut kept: Vec<usize> =
                    (0..first).chain(inner).chain(self.layers.len() - last..self.layers.len()).collect();
                kept.sort_unstable();
                Ok(kept)
            }
            By::Window | By::Loss => {
                let gone = self.layers.len() - keep;
                let distance = |kept: &Vec<usize>| match gone {
                    0 => 0.0,
                    _ => self.distances[first_gone(kept)][gone - 1],
                };
                let nearest = windows.into_iter().min_by(|a, b| distance(a).total_cmp(&distance(b)));
                nearest.ok_or(CarveError::NoRows)
            }
        }
    }

    /// Of each of `layers`, the `n` neurons that say and write most, ascending.
    ///
    /// # Errors
    /// When a layer has fewer.
    pub fn widest(&self, layers: &[usize], n: usize) -> Result<Vec<Vec<u32>>> {
        let of = |layer: &usize| {
            let worth = &self.neurons[*layer];
            if n == 0 || n > worth.len() {
                return Err(CarveError::Width { asked: n, available: worth.len() });
            }
            let mut order: Vec<u32> = (0..worth.len() as u32).collect();
            order.sort_by(|a, b| worth[*b as usize].total_cmp(&worth[*a as usize]).then(a.cmp(b)));
            order.truncate(n);
            order.sort_unstable();
            Ok(order)
        };
        layers.iter().map(of).collect()
    }
}

/// Every way to keep `keep` of `layers` layers by leaving out one stretch between the ends.
///
/// # Errors
/// When there are not so many.
pub fn windows(layers: usize, keep: usize) -> Result<Vec<Vec<usize>>> {
    if keep == 0 || keep > layers {
        return Err(CarveError::Keep { asked: keep, available: layers });
    }
    let (first, last) = ends(keep);
    let gone = layers - keep;
    Ok((first..=layers - last - gone).map(|from| (0..from).chain(from + gone..layers).collect()).collect())
}

/// How many layers at either end are never left out; of a few, half and half.
fn ends(keep: usize) -> (usize, usize) {
    (keep.div_ceil(2).min(ENDS), (keep / 2).min(ENDS))
}

fn first_gone(kept: &[usize]) -> usize {
    kept.iter().enumerate().take_while(|(i, layer)| i == *layer).count()
}

/// What all rows begin with; of one row alone, nothing.
fn skipped(rows: &[EncodedExample]) -> usize {
    match rows.len() {
        0 | 1 => 0,
        _ => shared_prefix(rows.iter().map(|row| row.ids.as_slice())),
    }
}

struct Batch {
    packed: Arc<Packed>,
    rows: std::ops::Range<usize>,
}

impl Batch {
    /// Where each row's tokens begin in the batch.
    fn starts<'r>(&'r self, rows: &'r [EncodedExample]) -> impl Iterator<Item = (usize, &'r EncodedExample)> {
        self.packed.rows.iter().map(|row| row.tokens.start).zip(&rows[self.rows.clone()])
    }
}

/// Rows of some tokens together, a longer row by itself.
fn batches(rows: &[EncodedExample]) -> impl Iterator<Item = Batch> {
    let mut from = 0;
    std::iter::from_fn(move || {
        let (mut packed, mut to) = (Packed::new(), from);
        while to < rows.len() && (to == from || packed.len() + rows[to].len() <= BATCH) {
            packed.push_chain(&rows[to].ids, 0);
            to += 1;
        }
        let batch = Batch { packed: Arc::new(packed), rows: from..to };
        from = to;
        (!batch.rows.is_empty()).then_some(batch)
    })
}

/// The batch's tokens that are measured.
fn measured(batch: &Batch, skipped: usize) -> Vec<usize> {
    batch.packed.rows.iter().flat_map(|row| row.tokens.start + skipped..row.tokens.end).collect()
}

/// 1 where one of the two is nothing: a layer that leaves nothing as it was has changed nothing.
fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let (mut ab, mut aa, mut bb) = (0f64, 0f64, 0f64);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        (ab, aa, bb) = (ab + a * b, aa + a * a, bb + b * b);
    }
    let norms = (aa * bb).sqrt();
    if norms > 0.0 { ab / norms } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn influence(layers: &[f64]) -> Influence {
        let n = layers.len();
        // Distances that add up, but for one stretch that comes back to where it began.
        let mut distances: Vec<Vec<f64>> =
            (0..n).map(|i| (i..n).map(|j| layers[i..=j].iter().sum()).collect()).collect();
        distances[3][1] = 0.01;
        Influence { rows: 1, tokens: 1, layers: layers.to_vec(), distances, neurons: vec![vec![0.2, 0.9, 0.2, 0.5]; n] }
    }

    #[test]
    fn the_least_of_influence_go_and_the_ends_stay() {
        let measured = influence(&[0.01, 0.3, 0.2, 0.4, 0.5, 0.1, 0.3, 0.02]);
        let keep = |n, by| measured.keep(n, by).unwrap();
        assert_eq!(keep(6, By::Influence), [0, 1, 3, 4, 6, 7]);
        assert_eq!(keep(5, By::Influence), [0, 1, 4, 6, 7]);
        assert_eq!(keep(8, By::Influence), [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(keep(3, By::Influence), [0, 1, 7]);
        assert_eq!(keep(1, By::Influence), [0]);
        assert_eq!(keep(6, By::Window), [0, 1, 2, 5, 6, 7], "layers 3 and 4 undo each other");
        assert_eq!(keep(7, By::Window), [0, 1, 2, 3, 4, 6, 7]);
        assert!(measured.keep(0, By::Influence).is_err() && measured.keep(9, By::Window).is_err());
        assert_eq!(measured.widest(&[0, 5], 2).unwrap(), [[1, 3], [1, 3]]);
        assert_eq!(measured.widest(&[0], 3).unwrap(), [[0, 1, 3]], "of two alike the first");
        assert!(measured.widest(&[0], 5).is_err());
    }

    #[test]
    fn windows_leave_one_stretch_out() {
        assert_eq!(windows(6, 4).unwrap(), [[0, 1, 4, 5]]);
        assert_eq!(windows(7, 5).unwrap(), [[0, 1, 4, 5, 6], [0, 1, 2, 5, 6]]);
        assert_eq!(windows(4, 4).unwrap(), [[0, 1, 2, 3]]);
        assert_eq!(windows(4, 1).unwrap(), [[0]]);
        assert_eq!(windows(5, 2).unwrap(), [[0, 4]]);
        assert!(windows(5, 0).is_err() && windows(5, 6).is_err());
    }
}
