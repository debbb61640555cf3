//! How much each matrix of a model minds being rounded: the walk over layers and types behind [`super::Sensitivities`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::config::Projection;
use limbeck_model::decoder::{Decoder, log_softmax};
use limbeck_model::device::{self, DeviceName};
use limbeck_model::gguf::{GgmlType, dequantize};
use limbeck_model::layout::Packed;
use limbeck_model::names::hf_to_gguf;
use limbeck_model::weights::Weights;
use rayon::prelude::*;

use super::{Choice, Sensitivities, Sensitivity, hull};
use crate::calibrate::open;
use crate::encode::encode;
use crate::{Merged, QuantizeError, Result};

/// Of types with as many bits those that are on ggml's most used paths; the first that fits is the one that is measured.
const LADDER: [GgmlType; 6] =
    [GgmlType::IQ4_NL, GgmlType::Q4_K, GgmlType::Q5_K, GgmlType::Q5_0, GgmlType::Q6_K, GgmlType::Q8_0];
/// Positions at which distributions are compared: the head is the dearest map of a small model.
const POSITIONS: usize = 256;
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Whose matrices are measured.
#[derive(Clone, Debug)]
pub struct SensitivityPlan {
    /// A GGUF file or a Hugging Face folder.
    pub base: PathBuf,
    /// What a training left, as [`crate::QuantizePlan`] takes it.
    pub adapter: Option<PathBuf>,
    pub device: DeviceName,
}

/// Measures every matrix whose rows are whole blocks, on `rows` of tokens. The model is in memory in float32, with the hidden
/// states of all layers; some `n_matrices / 2` forward passes over the rows are made.
///
/// # Errors
/// When the model can't be opened, a row does not fit it, or there is no row.
pub fn measure(plan: &SensitivityPlan, rows: &[Vec<u32>], emit: &dyn Emit) -> Result<Sensitivities> {
    let (weights, adapter) = Weights::open_trained::<QuantizeError>(&plan.base, plan.adapter.as_deref())?;
    let merged = Merged::new(&weights, adapter.as_ref())?;
    let ops = device::ops(plan.device).map_err(|e| fails(e.to_string()))?;
    Walk::new(&merged, open(&merged, ops)?, rows)?.all(emit)
}

fn fails(why: String) -> QuantizeError {
    QuantizeError::Calibrate { why }
}

/// What all measurements go by.
struct Walk<'a> {
    merged: &'a Merged<'a>,
    decoder: Decoder,
    batch: Arc<Packed>,
    /// What goes into each layer, and what comes out of the last.
    states: Vec<Vec<f32>>,
    /// Mean squares of the columns, by layer and the first map that reads the input; of the head's input by the layers' number.
    squares: BTreeMap<(usize, usize), Vec<f64>>,
    positions: Vec<usize>,
    /// Log-probabilities of the exact model at the positions.
    exact: Vec<f32>,
}

impl<'a> Walk<'a> {
    fn new(merged: &'a Merged<'a>, decoder: Decoder, rows: &[Vec<u32>]) -> Result<Walk<'a>> {
        let mut batch = Packed::new();
        rows.iter().filter(|row| !row.is_empty()).for_each(|row| {
            batch.push_chain(row, 0);
        });
        if batch.is_empty() {
            return Err(fails("there is no row to measure on".into()));
        }
        let tokens = batch.len();
        let batch = Arc::new(batch);
        let mut squares = BTreeMap::new();
        let states = decoder
            .hidden_states(&batch, &mut |layer, which, input| {
                squares.insert((layer, which), mean_squares(input, tokens));
            })
            .map_err(|e| fails(e.to_string()))?;
        let layers = decoder.config.num_hidden_layers;
        squares.insert((layers, 0), mean_squares(&decoder.finished(&batch, &states[layers]), tokens));
        let n = POSITIONS.min(tokens);
        let positions: Vec<usize> = (0..n).map(|i| ((2 * i + 1) * tokens) / (2 * n)).collect();
        let logits = decoder.logits_from(&batch, layers, &states[layers], Vec::new(), &positions);
        let exact = log_probabilities(&logits, decoder.config.vocab_size);
        Ok(Walk { merged, decoder, batch, states, squares, positions, exact })
    }

    fn all(&self, emit: &dyn Emit) -> Result<Sensitivities> {
        let config = &self.decoder.config;
        let layers = config.num_hidden_layers;
        let mut tensors = Vec::new();
        let modules = config.linears();
        let total = (layers * modules.len()) as u64;
        let mut done = 0;
        tensors.extend(self.of_table(EMBEDDING)?);
        for layer in 0..layers {
            for module in modules {
                tensors.extend(self.of_module(layer, module)?);
                done += 1;
                emit.emit(EventKind::Progress { done, total, unit: "matrices".into() });
            }
        }
        if !config.tie_word_embeddings {
            tensors.extend(self.of_table(HEAD)?);
        }
        Ok(Sensitivities { tensors, tokens: self.batch.len() as u64, positions: self.positions.len() as u64 })
    }

    fn of_module(&self, layer: usize, module: &str) -> Result<Option<Sensitivity>> {
        let name = format!("model.layers.{layer}.{module}.weight");
        let parts = self.decoder.config.projections().into_iter().enumerate().filter(|(_, p)| p.module == module);
        let parts: Vec<_> = parts.collect();
        let which = parts.first().map_or(0, |(which, _)| *which);
        let first = limbeck_model::ops::tap::DISTINCT_INPUTS.into_iter().rev().find(|first| *first <= which);
        let squares = &self.squares[&(layer, first.unwrap_or(0))];
        let logits = |data: Vec<f32>| {
            let rows = |p: &Projection| data[p.rows.start * p.n_in..p.rows.end * p.n_in].to_vec();
            let changed = parts.iter().map(|(which, p)| (*which, rows(p))).collect();
            self.decoder.logits_from(&self.batch, layer, &self.states[layer], changed, &self.positions)
        };
        self.sensitivity(&name, squares, logits)
    }

    /// The embedding, which is the head too where they are tied, or the head alone.
    fn of_table(&self, name: &str) -> Result<Option<Sensitivity>> {
        let config = &self.decoder.config;
        let layers = config.num_hidden_layers;
        let is_head = name == HEAD || config.tie_word_embeddings;
        let width = config.hidden_size;
        let logits = |table: Vec<f32>| {
            // Rows behind the model's own, such as a head's labels, are no part of the decoder that is measured.
            let table = &table[..config.vocab_size * width];
            let mut last = self.states[layers].clone();
            if name == EMBEDDING {
                let scale = config.embedding_scale.unwrap_or(1.0);
                let row = |token: &u32| table[*token as usize * width..][..width].iter().map(|v| v * scale);
                let hidden: Vec<f32> = self.batch.tokens.iter().flat_map(row).collect();
                if !is_head {
                    return self.decoder.logits_from(&self.batch, 0, &hidden, Vec::new(), &self.positions);
                }
                last = self.decoder.last_state(&self.batch, &hidden);
            }
            self.decoder.logits_by(&self.batch, &last, table.to_vec(), &self.positions)
        };
        self.sensitivity(name, &self.squares[&(layers, 0)], logits)
    }

    /// None where no type of the ladder fits the rows.
    fn sensitivity(
        &self,
        name: &str,
        squares: &[f64],
        logits: impl Fn(Vec<f32>) -> Vec<f32>,
    ) -> Result<Option<Sensitivity>> {
        let dense = self.merged.load(name)?;
        let [n_out, n_in] = dense.shape[..] else { return Ok(None) };
        let fits = |ty: &GgmlType| n_in.is_multiple_of(ty.block_len());
        let mut types: Vec<GgmlType> = LADDER.into_iter().filter(fits).collect();
        types.dedup_by_key(|ty| ty.bytes_for(n_in as u64));
        let Some(coarsest) = types.first().copied() else { return Ok(None) };
        let Some(gguf) = hf_to_gguf(self.decoder.config.architecture, name) else { return Ok(None) };
        let encode_fails = |source| QuantizeError::Encode { name: name.to_owned(), source };
        let (mut kl_a_square, mut choices) = (0.0, Vec::new());
        for ty in types {
            let bytes = encode(ty, &dense.data).map_err(encode_fails)?;
            let mut values = vec![0.0; dense.data.len()];
            dequantize(ty, &bytes, &mut values).map_err(fails)?;
            let error = weighed_error(&dense.data, &values, squares);
            if ty == coarsest {
                let kl = self.kl(&logits(values));
                if !kl.is_finite() {
                    return Err(fails(format!("with {name} as {ty} the model gives what is no number")));
                }
                kl_a_square = if error > 0.0 { kl / error } else { 0.0 };
            }
            choices.push(Choice { ty: ty.name().to_owned(), bytes: bytes.len() as u64, kl: kl_a_square * error });
        }
        Ok(Some(Sensitivity { name: gguf, weights: (n_out * n_in) as u64, choices: hull(choices) }))
    }

    /// Mean KL divergence of the changed model's distributions from the exact one's.
    fn kl(&self, logits: &[f32]) -> f64 {
        let vocab = self.decoder.config.vocab_size;
        let of = |(p, logits): (&[f32], &[f32])| {
            let q = log_softmax(logits);
            p.iter().zip(&q).map(|(p, q)| f64::from(*p).exp() * (f64::from(*p) - f64::from(*q))).sum::<f64>()
        };
        let rows: Vec<f64> = self.exact.par_chunks_exact(vocab).zip(logits.par_chunks_exact(vocab)).map(of).collect();
        (rows.iter().sum::<f64>() / rows.len().max(1) as f64).max(0.0)
    }
}

fn log_probabilities(logits: &[f32], vocab: usize) -> Vec<f32> {
    logits.chunks_exact(vocab).flat_map(log_softmax).collect()
}

/// Of each column of `[tokens, width]`.
fn mean_squares(values: &[f32], tokens: usize) -> Vec<f64> {
    let width = values.len() / tokens.max(1);
    let mut sums = vec![0.0; width];
    for row in values.chunks_exact(width) {
        sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v) * f64::from(*v));
    }
    sums.iter().map(|sum| sum / tokens.max(1) as f64).collect()
}

/// The squared error of what a matrix gives, its inputs' columns taken for uncorrelated.
fn weighed_error(exact: &[f32], rounded: &[f32], squares: &[f64]) -> f64 {
    let row = |(a, b): (&[f32], &[f32])| {
        let each = a.iter().zip(b).zip(squares);
        each.map(|((a, b), square)| (f64::from(*a) - f64::from(*b)).powi(2) * square).sum::<f64>()
    };
    let rows: Vec<f64> =
        exact.par_chunks_exact(squares.len()).zip(rounded.par_chunks_exact(squares.len())).map(row).collect();
    rows.iter().sum()
}
