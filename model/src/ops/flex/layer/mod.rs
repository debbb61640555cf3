//! A decoder layer as one op: norm, attention and feed-forward with their adapters, forward and backward by hand. Inputs
//! are packed once for all that read them, sums that meet in one place are one product, and buffers are used again.
//!
//! With checkpointing only the layer's input is kept, and the backward pass begins by running the layer again.

mod attention;
mod pointwise;

use super::bf16::Sides;
use super::buffer::Buffer;
use super::compute::{Compute, Left, Part, Right};
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
    /// `scaling · x Aᵀ` of each linear with an adapter.
    down: Vec<Option<Buffer>>,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    log_sums: Buffer,
    attended: Buffer,
    /// After attention and the first residual sum.
    middle: Buffer,
    gate: Buffer,
    up: Buffer,
}

/// A gradient `[n, out]` of a linear, on both sides, and `scaling · dY B`.
struct Arrived<'a> {
    which: usize,
    dy: Left<'a>,
    dy_right: Right<'a>,
    up: Option<Buffer>,
}

/// Gradients of A and B of each linear.
type FactorGrads = Vec<Option<(Vec<f32>, Vec<f32>)>>;

impl Layer {
    /// `out (+)= x Wᵀ + t Bᵀ`, and the bias; returns `t = scaling · x Aᵀ`.
    fn linear(&self, which: usize, x: &Left, out: &mut [f32], accumulate: bool) -> Option<Buffer> {
        let Linear { weight, n_out, n_in, bias, lora } = &self.linears[which];
        let c = self.compute;
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
        let base = (x, weight.forward(*n_out));
        let Some(Factors { a, b, r, scaling }) = lora else {
            c.product(Threads::All, out, *n_out, accumulate, &[base]);
            return None;
        };
        let mut t = Buffer::take(self.n * r);
        c.product(Threads::All, &mut t, *r, false, &[(x, c.right_columns(slice(a), *n_in, *n_in, *r).all())]);
        t.iter_mut().for_each(|x| *x *= scaling);
        let (left, b_t) = (c.left_rows(&t, *r, self.n, *r), c.right_columns(slice(b), *r, *r, *n_out));
        c.product(Threads::All, out, *n_out, accumulate, &[base, (&left, b_t.all())]);
        drop(left);
        Some(t)
    }

    fn width(&self, which: usize) -> usize {
        self.linears[which].n_out
    }

    /// The norm's output as an operand.
    fn normed(&self, x: &[f32], inverse: &[f32], weight: &[f32], sides: Sides) -> Sided {
        let [made] = self.compute.squares(self.n, weight.len(), [sides], |row, col, [out]| {
            pointwise::normed(x, inverse, weight, row, col, out)
        });
        made
    }

    fn forward(&self, input: &[f32]) -> (Vec<f32>, Saved) {
        let (n, c, h) = (self.n, self.compute, self.width(O));
        let mut down: Vec<Option<Buffer>> = Vec::with_capacity(7);

        let first = pointwise::inverse_rms(input, h, self.eps);
        let x = left(self.normed(input, &first, &self.input_norm, Sides::Left));
        let [mut q, mut k, mut v] = [Q, K, V].map(|which| Buffer::take(n * self.width(which)));
        for (which, out) in [(Q, &mut q), (K, &mut k), (V, &mut v)] {
            down.push(self.linear(which, &x, out, false));
        }
        drop(x);
        attention::rotate(&mut q, self.plan.n_heads, &self.plan, 1.0);
        attention::rotate(&mut k, self.plan.n_kv_heads, &self.plan, 1.0);
        let (attended, log_sums) = attention::forward(&self.plan, c, &q, &k, &v);

        let x = left(self.attended(&attended, Sides::Left));
        let mut middle = Buffer::take(n * h);
        middle.copy_from_slice(input);
        down.push(self.linear(O, &x, &mut middle, true));
        drop(x);

        let second = pointwise::inverse_rms(&middle, h, self.eps);
        let x = left(self.normed(&middle, &second, &self.post_norm, Sides::Left));
        let f = self.width(GATE);
        let [mut gate, mut up] = [Buffer::take(n * f), Buffer::take(n * f)];
        down.push(self.linear(GATE, &x, &mut gate, false));
        down.push(self.linear(UP, &x, &mut up, false));
        drop(x);
        let [gated] = c.squares(n, f, [Sides::Left], |row, col, [out]| pointwise::swiglu(&gate, &up, f, row, col, out));
        let mut out = middle.to_vec();
        down.push(self.linear(DOWN, &left(gated), &mut out, true));
        let inverse_rms = [first, second];
        (out, Saved { inverse_rms, down, q, k, v, log_sums, attended, middle, gate, up })
    }

    /// What attention gave, `[heads, tokens, d]`, as an operand `[tokens, heads * d]`.
    fn attended(&self, x: &[f32], sides: Sides) -> Sided {
        let (n, d) = (self.n, self.plan.head_dim);
        let [made] = self
            .compute
            .squares(n, x.len() / n, [sides], |row, col, [out]| attention::by_token(x, n, d, row, col, out));
        made
    }

    /// Takes a gradient down to the adapter's rank.
    fn arrive<'a>(&self, which: usize, (dy, dy_right): (Left<'a>, Right<'a>)) -> Arrived<'a> {
        let Linear { n_out, lora, .. } = &self.linears[which];
        let c = self.compute;
        let up = lora.as_ref().map(|Factors { b, r, scaling, .. }| {
            let mut up = Buffer::take(self.n * r);
            c.product(Threads::All, &mut up, *r, false, &[(&dy, c.right_rows(slice(b), *r, *n_out, *r).all())]);
            up.iter_mut().for_each(|x| *x *= scaling);
            up
        });
        Arrived { which, dy, dy_right, up }
    }

    /// `Σ dY W + u A` over linears that read one input.
    fn input_gradient(&self, arrived: &[Arrived]) -> Buffer {
        let c = self.compute;
        let n_in = self.linears[arrived[0].which].n_in;
        let ups: Vec<(Left, Right)> = arrived
            .iter()
            .filter_map(|one| {
                let (up, lora) = (one.up.as_ref()?, self.linears[one.which].lora.as_ref()?);
                Some((c.left_rows(up, lora.r, self.n, lora.r), c.right_rows(slice(&lora.a), n_in, lora.r, n_in)))
            })
            .collect();
        let mut terms: Vec<(&Left, Part)> =
            arrived.iter().map(|one| (&one.dy, self.linears[one.which].weight.backward(n_in))).collect();
        terms.extend(ups.iter().map(|(up, a)| (up, a.all())));
        let mut out = Buffer::take(self.n * n_in);
        c.product(Threads::All, &mut out, n_in, false, &terms);
        out
    }

    /// dA = uᵀ x and dB = dYᵀ t; dB is made transposed, where its long side is the columns.
    fn factor_gradients(&self, one: &Arrived, x: &Right, saved: &Saved, grads: &mut FactorGrads) {
        let Linear { n_out, n_in, lora, .. } = &self.linears[one.which];
        let (Some(Factors { r, .. }), Some(t), Some(up)) = (lora, &saved.down[one.which], &one.up) else { return };
        let (c, n) = (self.compute, self.n);
        let mut da = vec![0f32; r * n_in];
        c.product(Threads::All, &mut da, *n_in, false, &[(&c.left_columns(up, *r, *r, n), x.all())]);
        let mut db_t = Buffer::take(r * n_out);
        c.product(Threads::All, &mut db_t, *n_out, false, &[(&c.left_columns(t, *r, *r, n), one.dy_right.all())]);
        grads[one.which] = Some((da, transpose(&db_t, *r, *n_out)));
    }

    fn backward(&self, input: &[f32], saved: &Saved, dy: &[f32]) -> (Vec<f32>, FactorGrads) {
        let (n, c, h, f) = (self.n, self.compute, self.width(O), self.width(GATE));
        let [first, second] = &saved.inverse_rms;
        let mut grads: FactorGrads = (0..7).map(|_| None).collect();

        // Feed-forward.
        let one = self.arrive(DOWN, c.both(dy, n, h));
        let d_gated = self.input_gradient(std::slice::from_ref(&one));
        let sides = [Sides::Right, Sides::Both, Sides::Both];
        let [gated, d_gate, d_up] = c.squares(n, f, sides, |row, col, out| {
            pointwise::swiglu_backward(&saved.gate, &saved.up, &d_gated, f, row, col, out)
        });
        drop(d_gated);
        self.factor_gradients(&one, &right(gated), saved, &mut grads);
        drop(one);
        let arrived = [self.arrive(GATE, both(d_gate)), self.arrive(UP, both(d_up))];
        let dx = self.input_gradient(&arrived);
        let x = right(self.normed(&saved.middle, second, &self.post_norm, Sides::Right));
        arrived.iter().for_each(|one| self.factor_gradients(one, &x, saved, &mut grads));
        drop(arrived);
        let mut d_middle = Buffer::take(n * h);
        pointwise::rms_norm_backward(&saved.middle, (&self.post_norm, second), &dx, dy, &mut d_middle);
        drop(dx);

        // Attention.
        let one = self.arrive(O, c.both(&d_middle, n, h));
        let d_attended = self.input_gradient(std::slice::from_ref(&one));
        self.factor_gradients(&one, &right(self.attended(&saved.attended, Sides::Right)), saved, &mut grads);
        drop(one);
        let Saved { q, k, v, attended, log_sums, .. } = saved;
        let d = attention::backward(&self.plan, c, &attention::Saved { q, k, v, out: attended, log_sums }, &d_attended);
        drop(d_attended);
        let arrived = [(Q, &d.q), (K, &d.k), (V, &d.v)]
            .map(|(which, grad)| self.arrive(which, both(self.attended(grad, Sides::Both))));
        let dx = self.input_gradient(&arrived);
        let x = right(self.normed(input, first, &self.input_norm, Sides::Right));
        arrived.iter().for_each(|one| self.factor_gradients(one, &x, saved, &mut grads));
        drop(arrived);
        let mut d_input = vec![0f32; n * h];
        pointwise::rms_norm_backward(input, (&self.input_norm, first), &dx, &d_middle, &mut d_input);
        (d_input, grads)
    }
}

type Sided = (Option<Left<'static>>, Option<Right<'static>>);

fn left(made: Sided) -> Left<'static> {
    made.0.unwrap_or_else(|| unreachable!("the left side was asked for"))
}

fn right(made: Sided) -> Right<'static> {
    made.1.unwrap_or_else(|| unreachable!("the right side was asked for"))
}

fn both(made: Sided) -> (Left<'static>, Right<'static>) {
    match made {
        (Some(left), Some(right)) => (left, right),
        _ => unreachable!("both sides were asked for"),
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
