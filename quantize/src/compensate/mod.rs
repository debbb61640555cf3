//! Rounding that makes up for itself: layer by layer, each matrix is rounded so that its outputs come out as the exact model's,
//! over inputs that the layers before it, rounded already, hand on. What is written are ordinary blocks.
//!
//! For inputs q as served and f as the exact model has them, over all tokens: H = E[q·qᵀ] and G = E[f·qᵀ] (both damped, a
//! share of the mean square on their diagonals). The map that gives from q what W gives from f is W′ = W·G·H⁻¹, in the least
//! squares. W′ is rounded column by column with feedback (GPTQ, Frantar et al. 2023, arXiv:2210.17323), scales by a search that
//! weighs column i by 1 / U[i, i]² (H⁻¹ = UᵀU), then by descent over levels and scales in the metric H.

mod factor;
pub(crate) mod grid;
mod moments;
mod refine;
mod round;
pub(crate) mod row;
mod search;

use std::collections::BTreeMap;
use std::sync::Arc;

use limbeck_model::config::{LINEARS, Projection};
use limbeck_model::decoder::DecoderError;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::gguf::{GgmlType, dequantize};
use limbeck_model::layout::Packed;
use limbeck_model::lone_layer::LoneLayer;
use limbeck_model::ops::Ops;
use limbeck_model::ops::tap::DISTINCT_INPUTS;
use limbeck_model::products::{Threads, View, matmul};

use crate::encode::{encode, encode_weighted};
use crate::{Merged, QuantizeError, Result};
use factor::inverse_factor;
use moments::Moments;
pub use round::{Metric, Rounded, round};

/// What compensated rounding goes by.
#[derive(Clone, Debug)]
pub struct Compensation {
    /// Rows of tokens, all of which go through a layer at once: some `16 · (hidden + intermediate)` bytes a token.
    pub rows: Vec<Vec<u32>>,
    pub device: DeviceName,
    /// Share of the inputs' mean square that is added to the diagonals.
    pub damping: f64,
    /// How far a matrix moves to the one that makes up for the layers before it: 0 not at all, 1 all the way.
    pub asymmetry: f64,
    /// Passes of descent at most.
    pub passes: u32,
}

impl Compensation {
    pub fn new(rows: Vec<Vec<u32>>, device: DeviceName) -> Compensation {
        Compensation { rows, device, damping: 0.01, asymmetry: 1.0, passes: 8 }
    }
}

/// What rounding cost, in squared error of the maps' outputs, all matrices together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub matrices: u64,
    pub error: f64,
    /// Of plain rounding of the same matrices.
    pub plain_error: f64,
}

/// A walk through the model's layers, from the first on.
pub(crate) struct Compensator<'a> {
    merged: &'a Merged<'a>,
    plan: &'a Compensation,
    ops: Arc<dyn Ops>,
    batch: Arc<Packed>,
    /// The type of each matrix of the layers, by its Hugging Face name.
    types: BTreeMap<String, GgmlType>,
    /// Hidden states between two layers, of the exact model and of the file: `[tokens, hidden_size]`.
    exact: Vec<f32>,
    served: Vec<f32>,
    /// The layer that comes next.
    layer: usize,
    /// Blocks of the layer before, in Hugging Face's order of rows.
    done: BTreeMap<String, Vec<u8>>,
    pub cost: Cost,
}

impl<'a> Compensator<'a> {
    /// `embedding` is the type and, where it is rounded by one, the importance that the embedding is written with.
    pub fn new(
        merged: &'a Merged<'a>,
        plan: &'a Compensation,
        types: BTreeMap<String, GgmlType>,
        embedding: (GgmlType, Option<&[f32]>),
    ) -> Result<Compensator<'a>> {
        let fails = |why: String| QuantizeError::Calibrate { why };
        let config = merged.weights().config();
        let mut batch = Packed::new();
        for row in plan.rows.iter().filter(|row| !row.is_empty()) {
            if row.len() > config.max_position_embeddings {
                let too_long = DecoderError::TooLong { len: row.len(), max: config.max_position_embeddings };
                return Err(fails(too_long.to_string()));
            }
            batch.push_chain(row, 0);
        }
        if batch.is_empty() {
            return Err(fails("there is no row to round by".into()));
        }
        let (exact, served) = embed(merged, &batch.tokens, embedding)?;
        let ops = device::ops(plan.device).map_err(|e| fails(e.to_string()))?;
        let batch = Arc::new(batch);
        let (layer, done, cost) = (0, BTreeMap::new(), Cost::default());
        Ok(Compensator { merged, plan, ops, batch, types, exact, served, layer, done, cost })
    }

    /// Tokens that rounding goes by.
    pub fn tokens(&self) -> usize {
        self.batch.len()
    }

    /// Whether a tensor is one of the matrices that are rounded here.
    pub fn rounds(&self, hf_name: &str) -> bool {
        self.types.contains_key(hf_name)
    }

    /// The blocks of a matrix, in Hugging Face's order of rows. Asked for in the order of the layers, each is there once.
    ///
    /// # Errors
    /// When weights can't be read, or what comes out of a layer is no number.
    pub fn take(&mut self, hf_name: &str) -> Result<Vec<u8>> {
        while !self.done.contains_key(hf_name) && self.layer < self.merged.weights().config().num_hidden_layers {
            self.run_layer()?;
        }
        let missing = || QuantizeError::Calibrate { why: format!("'{hf_name}' was asked for out of order") };
        self.done.remove(hf_name).ok_or_else(missing)
    }

    fn run_layer(&mut self) -> Result<()> {
        let (merged, number, batch) = (self.merged, self.layer, self.batch.clone());
        let config = merged.weights().config();
        let mut load = |name: &str| {
            let wrong = |e: QuantizeError| DecoderError::Weights(e.to_string());
            merged.load(name).map(|dense| (dense.shape, dense.data)).map_err(wrong)
        };
        let layer = LoneLayer::load(config, number, self.ops.clone(), &mut load)
            .map_err(|e| QuantizeError::Calibrate { why: e.to_string() })?;
        self.done.clear();

        let mut inputs = BTreeMap::new();
        self.exact = layer.run(std::mem::take(&mut self.exact), &batch, &mut |which, input| {
            inputs.insert(which, input.to_vec());
            None
        });
        let mut failed = None;
        let served = std::mem::take(&mut self.served);
        self.served = layer.run(served, &batch, &mut |which, input| {
            let exact = inputs.remove(&which)?;
            if failed.is_some() {
                return None;
            }
            match self.round_all(which, input, &exact) {
                Ok(weights) => Some(weights),
                Err(error) => {
                    failed = Some(error);
                    None
                }
            }
        });
        self.layer += 1;
        match failed {
            Some(error) => Err(error),
            None if self.served.iter().all(|v| v.is_finite()) => Ok(()),
            None => Err(QuantizeError::Calibrate { why: format!("layer {number} gives what is no number") }),
        }
    }

    /// Rounds the maps that read one input; what a reader will make of each comes back.
    fn round_all(&mut self, which: usize, served: &[f32], exact: &[f32]) -> Result<Vec<Vec<f32>>> {
        let width = served.len() / self.batch.len();
        let problem = Problem::of(&Moments::of(served, exact, width), self.plan);
        let end = DISTINCT_INPUTS.into_iter().find(|first| *first > which).unwrap_or(LINEARS.len());
        let parts = self.merged.weights().config().projections();
        parts[which..end].iter().map(|part| self.round_one(part, &problem)).collect()
    }

    /// Rows of one matrix may be asked for one after the other, where several maps share it.
    fn round_one(&mut self, part: &Projection, problem: &Problem) -> Result<Vec<f32>> {
        let name = format!("model.layers.{}.{}.weight", self.layer, part.module);
        let mut exact = self.merged.load(&name)?.data;
        if part.rows.len() * part.n_in < exact.len() {
            exact = exact[part.rows.start * part.n_in..part.rows.end * part.n_in].to_vec();
        }
        let Some(ty) = self.types.get(&name).copied() else { return Ok(exact) };
        let target = problem.target(&exact);
        let fails = |source| QuantizeError::Encode { name: name.clone(), source };
        let rounded = round(ty, &target, &problem.metric, self.plan.passes).map_err(fails)?;
        let mut values = vec![0.0; target.len()];
        dequantize(ty, &rounded.bytes, &mut values).map_err(|why| QuantizeError::Calibrate { why })?;
        self.cost.matrices += 1;
        self.cost.error += rounded.error * problem.mean_square;
        self.cost.plain_error += rounded.plain_error * problem.mean_square;
        self.done.entry(name).or_default().extend(rounded.bytes);
        Ok(values)
    }
}

/// The rows of the embedding that tokens name, exact and as they are written; `[tokens, hidden_size]`.
fn embed(
    merged: &Merged,
    tokens: &[u32],
    (ty, importance): (GgmlType, Option<&[f32]>),
) -> Result<(Vec<f32>, Vec<f32>)> {
    const NAME: &str = "model.embed_tokens.weight";
    let config = merged.weights().config();
    let table = merged.weights().load(NAME)?.data;
    let width = config.hidden_size;
    if let Some(&token) = tokens.iter().find(|t| **t as usize >= config.vocab_size) {
        let outside = DecoderError::Token { token, vocab: config.vocab_size };
        return Err(QuantizeError::Calibrate { why: outside.to_string() });
    }
    let mut exact = Vec::with_capacity(tokens.len() * width);
    tokens.iter().for_each(|t| exact.extend_from_slice(&table[*t as usize * width..][..width]));
    drop(table);
    let fails = |source| QuantizeError::Encode { name: NAME.into(), source };
    let bytes = match importance {
        None => encode(ty, &exact),
        Some(importance) => encode_weighted(ty, &exact, importance),
    };
    let mut served = vec![0.0; exact.len()];
    dequantize(ty, &bytes.map_err(fails)?, &mut served).map_err(|why| QuantizeError::Calibrate { why })?;
    if let Some(scale) = config.embedding_scale {
        exact.iter_mut().chain(&mut served).for_each(|v| *v *= scale);
    }
    Ok((exact, served))
}

/// What the maps that read one input have in common.
struct Problem {
    metric: Metric,
    /// U in doubles, and what W is multiplied with before H⁻¹; both `[width, width]`. None where W stays as it is.
    shift: Option<(Vec<f64>, Vec<f64>)>,
    mean_square: f64,
}

impl Problem {
    fn of(moments: &Moments, plan: &Compensation) -> Problem {
        let width = moments.width;
        let mean_square = moments.mean_square();
        if !(mean_square > 0.0 && mean_square.is_finite()) {
            return Problem { metric: Metric::plain(width), shift: None, mean_square: 1.0 };
        }
        // Damping grows where the sums' own rounding leaves H with a direction of less than nothing.
        let mut damping = plan.damping;
        let (h, u) = loop {
            let h = damped(&moments.gram, width, mean_square, damping);
            match inverse_factor(&h, width) {
                Some(u) => break (h, u),
                None => damping = (10.0 * damping).max(1e-6),
            }
        };
        let single = |values: &[f64]| values.iter().map(|v| *v as f32).collect::<Vec<f32>>();
        let importance = (0..width).map(|i| (1.0 / (u[i * width + i] * u[i * width + i])) as f32).collect();
        let metric = Metric { width, h: single(&h), u: single(&u), importance };
        let shift = (plan.asymmetry > 0.0).then(|| {
            let cross = damped(&moments.cross, width, mean_square, damping);
            let part = plan.asymmetry;
            let mixed = cross.iter().zip(&h).map(|(g, h)| part * g + (1.0 - part) * h).collect();
            (u, mixed)
        });
        Problem { metric, shift, mean_square }
    }

    /// W′ = W·G·UᵀU.
    fn target(&self, exact: &[f32]) -> Vec<f32> {
        let Some((u, cross)) = &self.shift else { return exact.to_vec() };
        let width = self.metric.width;
        let mut from: Vec<f64> = exact.iter().map(|v| f64::from(*v)).collect();
        let mut to = vec![0.0f64; from.len()];
        let rows = from.len() / width;
        for right in [View::rows(cross, width), View::transposed(u, width), View::rows(u, width)] {
            matmul([rows, width, width], &mut to, width, false, View::rows(&from, width), right, 1.0, Threads::All);
            std::mem::swap(&mut from, &mut to);
        }
        from.iter().map(|v| *v as f32).collect()
    }
}

impl Metric {
    /// Every column alike.
    pub fn plain(width: usize) -> Metric {
        let mut h = vec![0.0; width * width];
        (0..width).for_each(|i| h[i * width + i] = 1.0);
        Metric { width, u: h.clone(), h, importance: vec![1.0; width] }
    }
}

/// In units of `mean_square`, with `damping` on the diagonal.
fn damped(moments: &[f64], width: usize, mean_square: f64, damping: f64) -> Vec<f64> {
    let mut out: Vec<f64> = moments.iter().map(|v| v / mean_square).collect();
    (0..width).for_each(|i| out[i * width + i] += damping);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WIDTH: usize = 24;
    const TOKENS: usize = 90;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    fn plan(asymmetry: f64) -> Compensation {
        Compensation { asymmetry, ..Compensation::new(Vec::new(), DeviceName::Cpu) }
    }

    /// `Σ over tokens of (w·f − v·q)² / tokens + damping · |w − v|²`, in doubles.
    fn loss(w: &[f32], v: &[f64], served: &[f32], exact: &[f32], damping: f64) -> f64 {
        let of_token = |(q, f): (&[f32], &[f32])| {
            let wanted: f64 = w.iter().zip(f).map(|(w, f)| f64::from(*w) * f64::from(*f)).sum();
            let got: f64 = v.iter().zip(q).map(|(v, q)| v * f64::from(*q)).sum();
            (wanted - got).powi(2)
        };
        let tokens: f64 = served.chunks_exact(WIDTH).zip(exact.chunks_exact(WIDTH)).map(of_token).sum();
        let moved: f64 = w.iter().zip(v).map(|(w, v)| (f64::from(*w) - v).powi(2)).sum();
        tokens / TOKENS as f64 + damping * moved
    }

    #[test]
    fn the_target_is_where_the_damped_loss_is_least() {
        let exact = values(TOKENS * WIDTH, 1);
        let served: Vec<f32> = exact.iter().zip(values(TOKENS * WIDTH, 2)).map(|(f, e)| f + 0.3 * e).collect();
        let w = values(WIDTH, 3);
        let moments = Moments::of(&served, &exact, WIDTH);
        let problem = Problem::of(&moments, &plan(1.0));
        let damping = 0.01 * moments.mean_square();
        let target: Vec<f64> = problem.target(&w).iter().map(|v| f64::from(*v)).collect();
        let least = loss(&w, &target, &served, &exact, damping);
        let stays: Vec<f64> = w.iter().map(|v| f64::from(*v)).collect();
        assert!(least < 0.9 * loss(&w, &stays, &served, &exact, damping));
        for i in 0..WIDTH {
            for step in [-1e-3, 1e-3] {
                let mut moved = target.clone();
                moved[i] += step;
                assert!(loss(&w, &moved, &served, &exact, damping) > least, "column {i}");
            }
        }
    }

    #[test]
    fn without_a_prefix_s_error_or_asymmetry_the_target_is_the_matrix() {
        let (exact, w) = (values(TOKENS * WIDTH, 1), values(3 * WIDTH, 3));
        let same = Problem::of(&Moments::of(&exact, &exact, WIDTH), &plan(1.0)).target(&w);
        assert!(same.iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-5));
        let served = values(TOKENS * WIDTH, 9);
        assert_eq!(Problem::of(&Moments::of(&served, &exact, WIDTH), &plan(0.0)).target(&w), w);
    }

    #[test]
    fn inputs_that_never_vary_are_no_trouble() {
        let w = values(2 * WIDTH, 3);
        let nothing = vec![0.0; TOKENS * WIDTH];
        let problem = Problem::of(&Moments::of(&nothing, &nothing, WIDTH), &plan(1.0));
        assert_eq!(problem.target(&w), w);
        // One column alone is alive, and no damping was asked for.
        let alive: Vec<f32> = (0..TOKENS * WIDTH).map(|i| if i % WIDTH == 3 { 1.0 } else { 0.0 }).collect();
        let undamped = Compensation { damping: 0.0, ..plan(1.0) };
        let problem = Problem::of(&Moments::of(&alive, &alive, WIDTH), &undamped);
        assert!(problem.target(&w).iter().zip(&w).all(|(a, b)| (a - b).abs() < 1e-3));
    }
}
