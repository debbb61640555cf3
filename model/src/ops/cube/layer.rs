//! A decoder layer of the plain kind as one op, forward and backward by hand. The residual stream is float32; between it and
//! itself everything has the type of the products, and with checkpointing only the layer's input is kept.

use super::buffer::{contiguous, dims};
use super::linear::{self, Factors, Kept};
use super::matrix::CubeMatrix;
use super::pointwise::{self, Gate};
use super::tables::Tables;
use super::{Compute, Cube, CubeOps, CubeTensor, attention, attention_backward, matrix, primitive, tensor};
use crate::ops::{AttentionPlan, Block};
use burn::backend::autodiff::checkpoint::{base::Checkpointer, strategy::NoCheckpointing};
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops as Prepared, OpsKind};
use burn::tensor::Tensor;
use std::sync::Arc;

const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const O: usize = 3;
const GATE: usize = 4;
const UP: usize = 5;
const DOWN: usize = 6;

/// The input, and A and B of seven linears.
const PARENTS: usize = 15;

#[derive(Clone, Debug)]
struct Linear {
    weight: Arc<CubeMatrix>,
    bias: Option<CubeTensor>,
    lora: Option<Factors>,
}

/// Everything that the layer is, apart from its input.
#[derive(Clone, Debug)]
struct Layer {
    compute: Compute,
    linears: Vec<Linear>,
    input_norm: CubeTensor,
    head_norms: Option<[CubeTensor; 2]>,
    post_norm: CubeTensor,
    eps: f32,
    plan: AttentionPlan,
    tables: Tables,
}

/// What the backward pass reads.
#[derive(Clone, Debug)]
struct Saved {
    kept: [Kept; 7],
    /// Queries and keys in front of the norms over their heads.
    bare: Option<[CubeTensor; 2]>,
    qkv: [CubeTensor; 3],
    attended: CubeTensor,
    /// Logarithms of the softmax's sums.
    sums: CubeTensor,
    /// Behind attention and the first residual sum.
    middle: CubeTensor,
    gate: CubeTensor,
    up: CubeTensor,
}

type FactorGrads = Option<[CubeTensor; 2]>;

/// `[n, heads · d]` as `[n · heads, d]`.
fn by_head(x: &CubeTensor, d: usize) -> CubeTensor {
    let [n, width] = dims(x);
    pointwise::shaped(x, [n * width / d, d])
}

impl Layer {
    fn linear(&self, which: usize, x: &CubeTensor) -> (CubeTensor, Kept) {
        let Linear { weight, bias, lora } = &self.linears[which];
        let (y, kept) = linear::forward(self.compute, x, weight, lora.as_ref());
        if let Some(bias) = bias {
            pointwise::add_row(&y, bias);
        }
        (y, kept)
    }

    fn forward(&self, input: &CubeTensor) -> (CubeTensor, Saved) {
        let (dtype, d) = (self.compute.dtype(), self.plan.head_dim);
        let first = pointwise::rms_norm(input, &self.input_norm, self.eps, dtype);
        let [(q, kept_q), (k, kept_k), (v, kept_v)] = [Q, K, V].map(|which| self.linear(which, &first));
        let bare = self.head_norms.as_ref().map(|_| [q.clone(), k.clone()]);
        let [q, k] = match &self.head_norms {
            None => [q, k],
            Some([of_q, of_k]) => [(q, of_q), (k, of_k)].map(|(x, norm)| {
                let normed = pointwise::rms_norm(&by_head(&x, d), norm, self.eps, dtype);
                pointwise::shaped(&normed, dims(&x))
            }),
        };
        let q = attention::rotate(&q, &self.plan, &self.tables, 1.0);
        let k = attention::rotate(&k, &self.plan, &self.tables, 1.0);
        let (attended, sums) = attention::forward([&q, &k, &v], &self.plan, &self.tables, None);
        let (o, kept_o) = self.linear(O, &attended);
        let middle = pointwise::add(input, &o);
        let second = pointwise::rms_norm(&middle, &self.post_norm, self.eps, dtype);
        let [(gate, kept_gate), (up, kept_up)] = [GATE, UP].map(|which| self.linear(which, &second));
        let gated = pointwise::gated(Gate::Silu, &gate, &up);
        let (down, kept_down) = self.linear(DOWN, &gated);
        let out = pointwise::add(&middle, &down);
        let kept = [kept_q, kept_k, kept_v, kept_o, kept_gate, kept_up, kept_down];
        (out, Saved { kept, bare, qkv: [q, k, v], attended, sums, middle, gate, up })
    }

    /// The gradient of the input of linears that read one, from those of their outputs.
    fn back(
        &self,
        arrived: &[(usize, &CubeTensor)],
        saved: &Saved,
        grads: &mut [FactorGrads; 7],
    ) -> Option<CubeTensor> {
        let mut dx: Option<CubeTensor> = None;
        for &(which, dy) in arrived {
            let Linear { weight, lora, .. } = &self.linears[which];
            let (part, factors) = linear::backward(self.compute, dy, weight, lora.as_ref(), &saved.kept[which]);
            grads[which] = factors;
            dx = Some(match dx {
                None => part,
                Some(sum) => pointwise::add(&sum, &part),
            });
        }
        dx
    }

    fn backward(&self, input: &CubeTensor, saved: &Saved, dy: &CubeTensor) -> (CubeTensor, [FactorGrads; 7]) {
        let d = self.plan.head_dim;
        let mut grads: [FactorGrads; 7] = Default::default();
        let mut back = |arrived: &[(usize, &CubeTensor)]| match self.back(arrived, saved, &mut grads) {
            Some(dx) => dx,
            None => unreachable!("a gradient for each of some linears"),
        };
        // Feed-forward.
        let d_gated = back(&[(DOWN, dy)]);
        let [d_gate, d_up] = pointwise::gated_backward(Gate::Silu, &saved.gate, &saved.up, &d_gated);
        let d_second = back(&[(GATE, &d_gate), (UP, &d_up)]);
        let d_middle = pointwise::rms_norm_backward(&saved.middle, &self.post_norm, &d_second, Some(dy), self.eps);
        // Attention.
        let d_attended = back(&[(O, &d_middle)]);
        let [dq, dk, dv] = attention_backward::backward(
            saved.qkv.each_ref(),
            [&saved.attended, &saved.sums, &d_attended],
            &self.plan,
            &self.tables,
            None,
        );
        let dq = attention::rotate(&dq, &self.plan, &self.tables, -1.0);
        let dk = attention::rotate(&dk, &self.plan, &self.tables, -1.0);
        let [dq, dk] = match (&self.head_norms, &saved.bare) {
            (Some([of_q, of_k]), Some([q, k])) => [(q, of_q, dq), (k, of_k, dk)].map(|(x, norm, dy)| {
                let shape = dims(x);
                let dx = pointwise::rms_norm_backward(&by_head(x, d), norm, &by_head(&dy, d), None, self.eps);
                pointwise::shaped(&dx, shape)
            }),
            _ => [dq, dk],
        };
        let d_first = back(&[(Q, &dq), (K, &dk), (V, &dv)]);
        let d_input = pointwise::rms_norm_backward(input, &self.input_norm, &d_first, Some(&d_middle), self.eps);
        (d_input, grads)
    }
}

#[derive(Clone, Debug)]
struct State {
    layer: Layer,
    input: CubeTensor,
    /// None with checkpointing.
    saved: Option<Saved>,
}

#[derive(Debug)]
struct LayerBackward;

impl Backward<Cube, PARENTS> for LayerBackward {
    type State = Arc<State>;

    fn backward(self, ops: Prepared<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let dy = contiguous(grads.consume::<Cube>(&ops.node));
        let again = state.saved.is_none().then(|| state.layer.forward(&state.input).1);
        let Some(saved) = state.saved.as_ref().or(again.as_ref()) else { unreachable!("saved, or computed again") };
        let (d_input, factors) = state.layer.backward(&state.input, saved, &dy);
        let mut parents = ops.parents.into_iter();
        if let Some(Some(node)) = parents.next() {
            grads.register::<Cube>(node.id, d_input);
        }
        for made in factors {
            let nodes: [_; 2] = std::array::from_fn(|_| parents.next().flatten());
            for (grad, node) in made.into_iter().flatten().zip(nodes) {
                if let Some(node) = node {
                    grads.register::<Cube>(node.id, grad);
                }
            }
        }
    }
}

/// The op; `None` where a linear is trained, or its adapter is more than two factors.
pub(super) fn layer(ops: &CubeOps, x: Tensor<2>, block: &Block, plan: &AttentionPlan) -> Option<Tensor<2>> {
    let more = |lora: &crate::ops::Lora| lora.dropout.is_some() || lora.dora.is_some();
    if block.lora.iter().flatten().any(more) {
        return None;
    }
    let x = primitive(x);
    let input = contiguous(x.primitive().clone());
    let row = |values| ops.held.row(&ops.cube, values);
    let mut nodes = vec![x.node()];
    let mut linears = Vec::with_capacity(7);
    for (frozen, lora) in block.linears.iter().zip(&block.lora) {
        let lora = lora.as_ref().map(|lora| {
            let (a, b) = (primitive(lora.a.clone()), primitive(lora.b.clone()));
            nodes.extend([a.node(), b.node()]);
            let [a, b] = [a, b].map(|factor| contiguous(factor.primitive().clone()));
            Factors { a, b, scaling: lora.scaling }
        });
        if lora.is_none() {
            // The input's node in place of a factor that is not there; no gradient is registered for it.
            nodes.extend([x.node(), x.node()]);
        }
        linears.push(Linear { weight: matrix(frozen)?.clone(), bias: frozen.bias.as_ref().map(row), lora });
    }
    let layer = Layer {
        compute: ops.compute,
        linears,
        input_norm: row(block.input_norm),
        head_norms: block.head_norms.map(|norms| norms.map(row)),
        post_norm: row(block.post_norm),
        eps: block.eps,
        plan: plan.clone(),
        tables: ops.tables(plan),
    };
    let (out, saved) = layer.forward(&input);
    let Ok(nodes) = <[_; PARENTS]>::try_from(nodes) else {
        unreachable!("the input, and two for each of seven linears")
    };
    Some(tensor(match LayerBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let saved = (!block.checkpoint).then_some(saved);
            p.finish(Arc::new(State { layer, input, saved }), out)
        }
        OpsKind::UnTracked(p) => p.finish(out),
    }))
}
