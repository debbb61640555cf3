//! A decoder layer as one op: norm, attention and feed-forward with their adapters, forward and backward by hand. Inputs
//! are packed once for all that read them, sums that meet in one place are one product, what an element-wise function
//! needs of a product it gets before it leaves the cache, and buffers are used again.
//!
//! With checkpointing only the layer's input is kept, and the backward pass begins by running the layer again.

mod attention;
mod pointwise;

use super::bf16::{DEPTH, Square};
use super::buffer::Buffer;
use super::compute::{Compute, Left, Part, Right};
use super::gated::{swiglu_square, swiglu_square_backward};
use super::kernels::{Threads, transpose};
use super::{Flex, FlexMatrix, FlexTensor, dims, flex, matrix, primitive, slice, tensor};
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

#[derive(Debug)]
struct Factors {
    /// `[r, in]` and `[out, r]`.
    a: FlexTensor,
    b: FlexTensor,
    r: usize,
    scaling: f32,
}

#[derive(Debug)]
struct Linear {
    weight: Arc<FlexMatrix>,
    n_out: usize,
    n_in: usize,
    bias: Option<Arc<Vec<f32>>>,
    lora: Option<Factors>,
}

/// Everything that the layer is, apart from its input.
#[derive(Debug)]
struct Layer {
    linears: Vec<Linear>,
    input_norm: Arc<Vec<f32>>,
    post_norm: Arc<Vec<f32>>,
    eps: f32,
    plan: AttentionPlan,
    compute: Compute,
    n: usize,
}

/// What the backward pass reads; every matrix is `[tokens, …]`.
#[derive(Debug)]
struct Saved {
    inverse_rms: [Buffer; 2],
    /// Of [`GROUPS`].
    down: [Down; 4],
    /// What the first norm gave.
    first: Left<'static>,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    log_sums: Buffer,
    attended: Buffer,
    /// After attention and the first residual sum.
    middle: Buffer,
    /// What the second norm gave.
    second: Left<'static>,
    gate: Left<'static>,
    up: Left<'static>,
}

/// Linears that read one input.
const GROUPS: [&[usize]; 4] = [&[Q, K, V], &[O], &[GATE, UP], &[DOWN]];

/// `scaling · x Aᵀ` of the linears of a group that have an adapter, side by side.
#[derive(Debug)]
struct Down {
    data: Buffer,
    /// The sum of the ranks.
    width: usize,
    /// Where each linear's columns begin.
    at: Vec<Option<usize>>,
}

/// A gradient `[n, out]` of a linear, and `scaling · dY B`.
struct Arrived<'a> {
    which: usize,
    dy: Left<'a>,
    up: Option<Buffer>,
}

/// Gradients of A and B of each linear.
type FactorGrads = Vec<Option<(Vec<f32>, Vec<f32>)>>;

impl Layer {
    /// The group's inputs, taken down to the adapters' ranks in one product.
    fn down(&self, group: usize, x: &Left) -> Down {
        let n_in = self.linears[GROUPS[group][0]].n_in;
        let mut factors = Vec::new();
        let at = GROUPS[group]
            .iter()
            .map(|&which| {
                let Factors { a, scaling, .. } = self.linears[which].lora.as_ref()?;
                let at = factors.len() / n_in;
                factors.extend(slice(a).iter().map(|a| a * scaling));
                Some(at)
            })
            .collect();
        let width = factors.len() / n_in;
        let mut data = Buffer::take(self.n * width);
        if width > 0 {
            let right = self.compute.right_columns(&factors, n_in, n_in, width);
            self.compute.product(Threads::All, &mut data, width, false, &[(x, right.all())]);
        }
        Down { data, width, at }
    }

    /// The adapter's term of a linear: `scaling · x Aᵀ` and `Bᵀ`.
    fn lora_term<'a>(&'a self, group: usize, which: usize, down: &'a Down) -> Option<(Left<'a>, Right<'a>)> {
        let Linear { n_out, lora, .. } = &self.linears[which];
        let Factors { b, r, .. } = lora.as_ref()?;
        let at = down.at[GROUPS[group].iter().position(|one| *one == which)?]?;
        let left = self.compute.left_rows(&down.data[at..], down.width, self.n, *r);
        Some((left, self.compute.right_columns(slice(b), *r, *r, *n_out)))
    }

    /// `out (+)= x Wᵀ + t Bᵀ`, and the bias.
    fn linear(&self, group: usize, which: usize, (x, down): (&Left, &Down), out: &mut [f32], accumulate: bool) {
        let Linear { weight, n_out, bias, .. } = &self.linears[which];
        let accumulate = match bias {
            Some(bias) if accumulate => {
                pointwise::add_rows(out, bias);
                true
            }
            Some(bias) => {
                out.chunks_exact_mut(*n_out).for_each(|row| row.copy_from_slice(bias));
                true
            }
            None => accumulate,
        };
        let lora = self.lora_term(group, which, down);
        let mut terms = vec![(x, weight.forward(*n_out))];
        terms.extend(lora.iter().map(|(left, right)| (left, right.all())));
        self.compute.product(Threads::All, out, *n_out, accumulate, &terms);
    }

    fn width(&self, which: usize) -> usize {
        self.linears[which].n_out
    }

    /// The norm's output as an operand.
    fn normed(&self, x: &[f32], inverse: &[f32], weight: &[f32]) -> Left<'static> {
        let [made] = self.compute.fused([self.n, weight.len()], [], |row, col, [out]| {
            pointwise::normed(x, inverse, weight, row, col, out);
        });
        made
    }

    fn forward(&self, input: &[f32]) -> (Vec<f32>, Saved) {
        let (n, c, h) = (self.n, self.compute, self.width(O));

        let first_rms = pointwise::inverse_rms(input, h, self.eps);
        let first = self.normed(input, &first_rms, &self.input_norm);
        let down_qkv = self.down(0, &first);
        let [mut q, mut k, mut v] = [Q, K, V].map(|which| Buffer::take(n * self.width(which)));
        for (which, out) in [(Q, &mut q), (K, &mut k), (V, &mut v)] {
            self.linear(0, which, (&first, &down_qkv), out, false);
        }
        attention::rotate(&mut q, self.plan.n_heads, &self.plan, 1.0);
        attention::rotate(&mut k, self.plan.n_kv_heads, &self.plan, 1.0);
        let (attended, log_sums) = attention::forward(&self.plan, c, &q, &k, &v);

        let x = self.by_token(&attended);
        let down_o = self.down(1, &x);
        let mut middle = Buffer::take(n * h);
        middle.copy_from_slice(input);
        self.linear(1, O, (&x, &down_o), &mut middle, true);
        drop(x);

        let second_rms = pointwise::inverse_rms(&middle, h, self.eps);
        let second = self.normed(&middle, &second_rms, &self.post_norm);
        let down_up = self.down(2, &second);
        let [gate, up, gated] = self.gated(&second, &down_up);
        let down_down = self.down(3, &gated);
        let mut out = middle.to_vec();
        self.linear(3, DOWN, (&gated, &down_down), &mut out, true);
        let (inverse_rms, down) = ([first_rms, second_rms], [down_qkv, down_o, down_up, down_down]);
        (out, Saved { inverse_rms, down, first, q, k, v, log_sums, attended, middle, second, gate, up })
    }

    /// Gate, up and `silu(gate) · up`.
    fn gated(&self, x: &Left, down: &Down) -> [Left<'static>; 3] {
        let f = self.width(GATE);
        let loras = [GATE, UP].map(|which| self.lora_term(2, which, down));
        let mut both = [GATE, UP].map(|which| vec![(x, self.linears[which].weight.forward(f))]);
        for (terms, lora) in both.iter_mut().zip(&loras) {
            terms.extend(lora.iter().map(|(left, right)| (left, right.all())));
        }
        let biases = [GATE, UP].map(|which| self.linears[which].bias.as_ref());
        let products = both.each_ref().map(Vec::as_slice);
        self.compute.fused([self.n, f], products, |_, col, [gate, up, gated]| {
            for (square, bias) in [&mut *gate, &mut *up].into_iter().zip(biases) {
                if let Some(bias) = bias {
                    pointwise::add_row(square, &bias[col..f.min(col + DEPTH)]);
                }
            }
            swiglu_square(gate, up, gated);
        })
    }

    /// `[heads, tokens, d]` as an operand `[tokens, heads * d]`.
    fn by_token(&self, x: &[f32]) -> Left<'static> {
        let (n, d) = (self.n, self.plan.head_dim);
        let [made] = self.compute.fused([n, x.len() / n], [], |row, col, [out]| {
            attention::by_token(x, n, d, row, col, out);
        });
        made
    }

    /// Takes a gradient down to the adapter's rank.
    fn arrive<'a>(&self, which: usize, dy: Left<'a>) -> Arrived<'a> {
        let Linear { n_out, lora, .. } = &self.linears[which];
        let c = self.compute;
        let up = lora.as_ref().map(|Factors { b, r, scaling, .. }| {
            let mut up = Buffer::take(self.n * r);
            c.product(Threads::All, &mut up, *r, false, &[(&dy, c.right_rows(slice(b), *r, *n_out, *r).all())]);
            up.iter_mut().for_each(|x| *x *= scaling);
            up
        });
        Arrived { which, dy, up }
    }

    /// The adapter's terms of [`Layer::input_gradient`]: `u` and `A`.
    fn lora_terms_back<'a>(&'a self, arrived: &'a [Arrived]) -> Vec<(Left<'a>, Right<'a>)> {
        let term = |one: &'a Arrived| {
            let Linear { n_in, lora, .. } = &self.linears[one.which];
            let (up, Factors { a, r, .. }) = (one.up.as_ref()?, lora.as_ref()?);
            Some((self.compute.left_rows(up, *r, self.n, *r), self.compute.right_rows(slice(a), *n_in, *r, *n_in)))
        };
        arrived.iter().filter_map(term).collect()
    }

    /// The terms of `Σ dY W + u A` over linears that read one input.
    fn terms_back<'a>(
        &'a self,
        arrived: &'a [Arrived],
        loras: &'a [(Left<'a>, Right<'a>)],
    ) -> Vec<(&'a Left<'a>, Part<'a>)> {
        let base = arrived.iter().map(|Arrived { which, dy, .. }| {
            let Linear { weight, n_in, .. } = &self.linears[*which];
            (dy, weight.backward(*n_in))
        });
        base.chain(loras.iter().map(|(up, a)| (up, a.all()))).collect()
    }

    /// `Σ dY W + u A`.
    fn input_gradient(&self, arrived: &[Arrived]) -> Buffer {
        let n_in = self.linears[arrived[0].which].n_in;
        let mut out = Buffer::take(self.n * n_in);
        let loras = self.lora_terms_back(arrived);
        self.compute.product(Threads::All, &mut out, n_in, false, &self.terms_back(arrived, &loras));
        out
    }

    /// dA = uᵀ x and dB = dYᵀ t of a group's linears; dB is made transposed, where its long side is the columns.
    fn factor_gradients(&self, group: usize, arrived: &[Arrived], x: &Left, down: &Down, grads: &mut FactorGrads) {
        let (c, n) = (self.compute, self.n);
        let adapted: Vec<(&Arrived, &Buffer, &Factors)> = arrived
            .iter()
            .filter_map(|one| Some((one, one.up.as_ref()?, self.linears[one.which].lora.as_ref()?)))
            .collect();
        let ups: Vec<Left> = adapted.iter().map(|(_, up, lora)| c.left_columns(up, lora.r, lora.r, n)).collect();
        let das = c.over_rows(&ups.iter().collect::<Vec<_>>(), x);
        for ((one, _, Factors { r, .. }), da) in adapted.into_iter().zip(das) {
            let position = GROUPS[group].iter().position(|which| *which == one.which);
            let Some(at) = position.and_then(|at| down.at[at]) else { unreachable!("an adapter took its input down") };
            let t = c.left_columns(&down.data[at..], down.width, *r, n);
            let Some(db_t) = c.over_rows(&[&t], &one.dy).pop() else { unreachable!("one left side, one product") };
            grads[one.which] = Some((da, transpose(&db_t, *r, self.width(one.which))));
        }
    }

    fn backward(&self, input: &[f32], saved: &Saved, dy: &[f32]) -> (Vec<f32>, FactorGrads) {
        let (n, c, h) = (self.n, self.compute, self.width(O));
        let [first_rms, second_rms] = &saved.inverse_rms;
        let mut grads: FactorGrads = (0..7).map(|_| None).collect();

        // Feed-forward.
        let one = [self.arrive(DOWN, c.left_rows(dy, h, n, h))];
        let [gated, d_gate, d_up] = self.gated_backward(&one, saved);
        self.factor_gradients(3, &one, &gated, &saved.down[3], &mut grads);
        drop((one, gated));
        let arrived = [self.arrive(GATE, d_gate), self.arrive(UP, d_up)];
        let dx = self.input_gradient(&arrived);
        self.factor_gradients(2, &arrived, &saved.second, &saved.down[2], &mut grads);
        drop(arrived);
        let mut d_middle = Buffer::take(n * h);
        pointwise::rms_norm_backward(&saved.middle, (&self.post_norm, second_rms), &dx, dy, &mut d_middle);
        drop(dx);

        // Attention.
        let one = [self.arrive(O, c.left_rows(&d_middle, h, n, h))];
        let d_attended = self.input_gradient(&one);
        self.factor_gradients(1, &one, &self.by_token(&saved.attended), &saved.down[1], &mut grads);
        drop(one);
        let Saved { q, k, v, attended, log_sums, .. } = saved;
        let d = attention::backward(&self.plan, c, &attention::Saved { q, k, v, out: attended, log_sums }, &d_attended);
        drop(d_attended);
        let arrived = [(Q, &d.q), (K, &d.k), (V, &d.v)].map(|(which, grad)| self.arrive(which, self.by_token(grad)));
        let dx = self.input_gradient(&arrived);
        self.factor_gradients(0, &arrived, &saved.first, &saved.down[0], &mut grads);
        drop(arrived);
        let mut d_input = vec![0f32; n * h];
        pointwise::rms_norm_backward(input, (&self.input_norm, first_rms), &dx, &d_middle, &mut d_input);
        (d_input, grads)
    }

    /// SwiGLU's output again, and the gradients of gate and up.
    fn gated_backward(&self, arrived: &[Arrived], saved: &Saved) -> [Left<'static>; 3] {
        let loras = self.lora_terms_back(arrived);
        let terms = self.terms_back(arrived, &loras);
        let size = [self.n, self.width(GATE)];
        self.compute.fused(size, [&terms], |row, col, [gated, gate, up]: [&mut Square; 3]| {
            saved.gate.square(row, col, gate);
            saved.up.square(row, col, up);
            swiglu_square_backward(gated, gate, up);
        })
    }
}

#[derive(Debug)]
struct State {
    layer: Layer,
    input: FlexTensor,
    /// None with checkpointing.
    saved: Option<Saved>,
}

#[derive(Debug)]
struct LayerBackward;

/// The input, and A and B of seven linears.
const PARENTS: usize = 15;

impl Backward<Flex, PARENTS> for LayerBackward {
    type State = Arc<State>;

    fn backward(self, ops: Prepared<Self::State, PARENTS>, grads: &mut Gradients, _: &mut Checkpointer) {
        let state = ops.state;
        let dy = grads.consume::<Flex>(&ops.node).to_contiguous();
        let input = slice(&state.input);
        let layer = &state.layer;
        let again = state.saved.is_none().then(|| layer.forward(input).1);
        let Some(saved) = state.saved.as_ref().or(again.as_ref()) else { unreachable!("saved, or computed again") };
        let (d_input, factors) = layer.backward(input, saved, slice(&dy));
        let mut parents = ops.parents.into_iter();
        if let Some(Some(node)) = parents.next() {
            grads.register::<Flex>(node.id, flex(d_input, dims(&state.input)));
        }
        for (made, linear) in factors.into_iter().zip(&layer.linears) {
            let (a, b) = (parents.next().flatten(), parents.next().flatten());
            let (Some((da, db)), Some(lora)) = (made, &linear.lora) else { continue };
            if let Some(node) = a {
                grads.register::<Flex>(node.id, flex(da, dims(&lora.a)));
            }
            if let Some(node) = b {
                grads.register::<Flex>(node.id, flex(db, dims(&lora.b)));
            }
        }
    }
}

pub(super) fn layer(x: Tensor<2>, block: &Block, plan: &AttentionPlan) -> Tensor<2> {
    let x = primitive(x);
    let input = x.primitive().to_contiguous();
    let [n, _] = dims(&input);
    let mut nodes = vec![x.node()];
    let mut linears = Vec::with_capacity(7);
    for (frozen, lora) in block.linears.iter().zip(&block.lora) {
        let factors = lora.as_ref().map(|lora| {
            let (a, b) = (primitive(lora.a.clone()), primitive(lora.b.clone()));
            nodes.extend([a.node(), b.node()]);
            let (a, b) = (a.primitive().to_contiguous(), b.primitive().to_contiguous());
            Factors { r: dims(&a)[0], a, b, scaling: lora.scaling }
        });
        if factors.is_none() {
            // The input's node in place of a factor that is not there; no gradient is registered for it.
            nodes.extend([x.node(), x.node()]);
        }
        let weight = matrix(frozen).clone();
        let bias = frozen.bias.clone();
        linears.push(Linear { weight, n_out: frozen.n_out, n_in: frozen.n_in, bias, lora: factors });
    }
    let layer = Layer {
        compute: linears[0].weight.compute(),
        linears,
        input_norm: block.input_norm.clone(),
        post_norm: block.post_norm.clone(),
        eps: block.eps,
        plan: plan.clone(),
        n,
    };
    let (out, saved) = layer.forward(slice(&input));
    let out = flex(out, dims(&input));
    let Ok(nodes) = <[_; PARENTS]>::try_from(nodes) else {
        unreachable!("the input, and two for each of seven linears")
    };
    tensor(match LayerBackward.prepare::<NoCheckpointing>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(p) => {
            let saved = (!block.checkpoint).then_some(saved);
            p.finish(Arc::new(State { layer, input, saved }), out)
        }
        OpsKind::UnTracked(p) => p.finish(out),
    })
}
