//! Shows what goes into a decoder's linear maps: an op set around another that keeps their inputs, and the walk over a batch,
//! layer by layer, that hands them on. An importance matrix is made of these.

use super::{AttentionPlan, Frozen, LayerKv, Lora, Ops, SoftTarget, Target, stock::to_vec};
use crate::decoder::{Decoder, DecoderError};
use crate::divergence::Divergence;
use crate::layout::Packed;
use crate::ops::codes::Codes;
use burn::tensor::{Device, Tensor};
use std::sync::{Arc, Mutex, PoisonError};

/// Of [`crate::decoder::LINEARS`], the first of those that share an input: queries (keys, values), output, gate (up), down.
pub const DISTINCT_INPUTS: [usize; 4] = [0, 3, 4, 6];

/// An op set that keeps what goes into each linear map until it is taken. It has no op for a whole layer.
pub struct Tap {
    ops: Arc<dyn Ops>,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    calls: usize,
    inputs: Vec<Vec<f32>>,
}

impl Tap {
    pub fn new(ops: Arc<dyn Ops>) -> Arc<Tap> {
        Arc::new(Tap { ops, seen: Mutex::default() })
    }

    fn take(&self) -> Seen {
        std::mem::take(&mut self.seen.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs the batch through `decoder`, which must be over this op set, and gives `see` each layer's number, one of
    /// [`DISTINCT_INPUTS`], and what went in there: `[tokens, n_in]`.
    ///
    /// # Errors
    /// When a token is outside the vocabulary, or a row is longer than the context.
    pub fn watch(
        &self,
        decoder: &Decoder,
        batch: &Arc<Packed>,
        see: &mut dyn FnMut(usize, usize, &[f32]),
    ) -> Result<(), DecoderError> {
        let mut hidden = decoder.embed(batch)?;
        for layer in 0..decoder.config.num_hidden_layers {
            self.take();
            hidden = decoder.run_layers(hidden, layer..layer + 1, batch, None, None, None);
            let seen = self.take();
            debug_assert_eq!(seen.calls, 7, "a layer has seven linear maps");
            for (which, input) in DISTINCT_INPUTS.into_iter().zip(&seen.inputs) {
                see(layer, which, input);
            }
        }
        Ok(())
    }
}

impl Ops for Tap {
    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2> {
        {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if DISTINCT_INPUTS.contains(&seen.calls) {
                seen.inputs.push(to_vec(&x));
            }
            seen.calls += 1;
        }
        self.ops.linear(x, weight, lora)
    }

    fn device(&self) -> Device {
        self.ops.device()
    }

    fn compute(&self) -> &'static str {
        self.ops.compute()
    }

    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, trains: bool) -> Frozen {
        self.ops.freeze(data, n_out, n_in, trains)
    }

    fn freeze_codes(&self, codes: Codes, trains: bool) -> Frozen {
        self.ops.freeze_codes(codes, trains)
    }

    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2> {
        self.ops.embed(table, tokens)
    }

    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
        self.ops.rms_norm(x, weight, eps)
    }

    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2> {
        self.ops.attention(q, k, v, plan, past)
    }

    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
        self.ops.rotate_keys(k, plan)
    }

    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        self.ops.add(a, b)
    }

    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        self.ops.swiglu(gate, up)
    }

    fn geglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        self.ops.geglu(gate, up)
    }

    fn linear_cross_entropy(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[Target],
        denominator: f32,
    ) -> Tensor<1> {
        self.ops.linear_cross_entropy(hidden, head, targets, denominator)
    }

    fn linear_divergence(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[SoftTarget],
        divergence: Divergence,
        denominator: f32,
    ) -> Tensor<1> {
        self.ops.linear_divergence(hidden, head, targets, divergence, denominator)
    }

    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32> {
        self.ops.logits(hidden, head, rows)
    }

    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        self.ops.logits_of(hidden, head, queries)
    }
}
