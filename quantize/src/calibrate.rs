//! Calibration: the merged model reads rows of tokens, and what goes into each of its linear maps is summed up into an
//! importance matrix.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::config::{DecoderConfig, LINEARS};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::layout::Packed;
use limbeck_model::names::hf_to_gguf;
use limbeck_model::ops::Ops;
use limbeck_model::ops::tap::{DISTINCT_INPUTS, Tap};
use limbeck_model::weights::Weights;
use rayon::prelude::*;

use crate::imatrix::{Entry, ImportanceMatrix};
use crate::{Merged, QuantizeError, Result};

/// Tokens that go through the model at once: what is kept of them is some 10 KB a token in a small model.
const BATCH: usize = 2048;
/// Columns that a task sums up.
const COLUMNS: usize = 64;

/// Whose inputs are watched, on what.
#[derive(Clone, Debug)]
pub struct CalibratePlan {
    /// A GGUF file or a Hugging Face folder.
    pub base: PathBuf,
    /// What a training left, as [`crate::QuantizePlan`] takes it.
    pub adapter: Option<PathBuf>,
    pub device: DeviceName,
    /// What the rows came from, for a person who looks at the file.
    pub datasets: Vec<String>,
}

/// Sums up what the rows make of each linear map's inputs. The same rows give the same matrix on any number of threads.
///
/// # Errors
/// When the model can't be opened, a row does not fit it, or there is no row.
pub fn calibrate(plan: &CalibratePlan, rows: &[Vec<u32>], emit: &dyn Emit) -> Result<ImportanceMatrix> {
    let fails = |why: String| QuantizeError::Calibrate { why };
    if rows.iter().all(Vec::is_empty) {
        return Err(fails("there is no row to calibrate on".into()));
    }
    let (weights, adapter) = Weights::open_trained::<QuantizeError>(&plan.base, plan.adapter.as_deref())?;
    let merged = Merged::new(&weights, adapter.as_ref())?;
    let tap = Tap::new(device::ops(plan.device).map_err(|e| fails(e.to_string()))?);
    let decoder = open(&merged, tap.clone())?;

    let total: usize = rows.iter().map(Vec::len).sum();
    let (mut done, mut sums) = (0, BTreeMap::<(usize, usize), Vec<f64>>::new());
    for rows in batches(rows) {
        let mut batch = Packed::new();
        rows.iter().for_each(|row| {
            batch.push_chain(row, 0);
        });
        done += batch.len();
        tap.watch(&decoder, &Arc::new(batch), &mut |layer, which, input| {
            let tokens = rows.iter().map(Vec::len).sum::<usize>();
            let sums = sums.entry((layer, which)).or_insert_with(|| vec![0.0; input.len() / tokens]);
            add_squares(sums, input);
        })
        .map_err(|e| fails(e.to_string()))?;
        emit.emit(EventKind::Progress { done: done as u64, total: total as u64, unit: "tokens".into() });
    }
    let mut matrix = ImportanceMatrix {
        datasets: plan.datasets.clone(),
        chunk_count: rows.len() as u32,
        chunk_size: rows.iter().map(Vec::len).max().unwrap_or(0) as u32,
        ..ImportanceMatrix::default()
    };
    for ((layer, which), sums) in &sums {
        let entry = Entry { sums: sums.iter().map(|sum| *sum as f32).collect(), count: total as f32 };
        if let Some(column) = entry.sums.iter().position(|sum| !sum.is_finite()) {
            return Err(fails(format!("layer {layer} gets {} in column {column}", entry.sums[column])));
        }
        for name in names(weights.config(), *layer, *which) {
            matrix.entries.insert(name, entry.clone());
        }
    }
    Ok(matrix)
}

/// The merged model as a decoder. Rows that a classification head adds to the embedding are no part of it: no row holds
/// their tokens.
///
/// # Errors
/// When a weight can't be read, or is not what the config says.
pub fn open(merged: &Merged, ops: Arc<dyn Ops>) -> Result<Decoder> {
    let weights = merged.weights();
    let mut load = |name: &str| {
        let outside = !name.starts_with("model.layers.");
        let dense = if outside { weights.load(name).map_err(QuantizeError::from) } else { merged.load(name) };
        let wrong = |e: QuantizeError| limbeck_model::decoder::DecoderError::Weights(e.to_string());
        dense.map(|dense| (dense.shape, dense.data)).map_err(wrong)
    };
    Decoder::load(weights.config(), ops, false, &mut load).map_err(|e| QuantizeError::Calibrate { why: e.to_string() })
}

/// GGUF's names of the weights behind one of a layer's inputs, by the number of the first linear map that takes it.
fn names(config: &DecoderConfig, layer: usize, which: usize) -> Vec<String> {
    let end = DISTINCT_INPUTS.into_iter().find(|first| *first > which).unwrap_or(LINEARS.len());
    let mut modules: Vec<&str> = config.projections()[which..end].iter().map(|p| p.module).collect();
    // Where several are one matrix.
    modules.dedup();
    let name = |part: &&str| hf_to_gguf(config.architecture, &format!("model.layers.{layer}.{part}.weight"));
    modules.iter().filter_map(name).collect()
}

/// Rows in order, as many at a time as fit a batch, one at least.
fn batches(rows: &[Vec<u32>]) -> Vec<&[Vec<u32>]> {
    let (mut batches, mut from, mut tokens) = (Vec::new(), 0, 0);
    for (i, row) in rows.iter().enumerate() {
        if tokens > 0 && tokens + row.len() > BATCH {
            batches.push(&rows[from..i]);
            (from, tokens) = (i, 0);
        }
        tokens += row.len();
    }
    batches.push(&rows[from..]);
    batches
}

/// `sums[c] += Σ x[t][c]²`, tokens in their order.
fn add_squares(sums: &mut [f64], x: &[f32]) {
    let width = sums.len();
    sums.par_chunks_mut(COLUMNS).enumerate().for_each(|(block, sums)| {
        for row in x.chunks_exact(width) {
            for (sum, v) in sums.iter_mut().zip(&row[block * COLUMNS..]) {
                *sum += f64::from(*v) * f64::from(*v);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_row_once_and_few_tokens() {
        let rows: Vec<Vec<u32>> = [700, 700, 700, 3000, 10, 0, 2038, 1].map(|n| vec![1; n]).to_vec();
        let batches = batches(&rows);
        assert_eq!(batches.iter().map(|b| b.len()).collect::<Vec<_>>(), [2, 1, 1, 3, 1]);
        assert_eq!(batches.concat(), rows);
    }

    #[test]
    fn squares_are_summed_by_column() {
        let x: Vec<f32> = (0..3 * 130).map(|i| i as f32).collect();
        let mut sums = vec![1.0; 130];
        add_squares(&mut sums, &x);
        for (c, sum) in sums.iter().enumerate() {
            let want: f64 = (0..3).map(|t| ((t * 130 + c) as f64).powi(2)).sum();
            assert_eq!(*sum, 1.0 + want);
        }
    }
}
