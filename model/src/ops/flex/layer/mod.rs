//! A decoder layer as one op: norm, attention and feed-forward with their adapters, forward and backward by hand. Inputs
//! are packed once for all that read them, sums that meet in one place are one product, what an element-wise function
//! needs of a product it gets before it leaves the cache, and buffers are used again.
//!
//! With checkpointing only the layer's input is kept, and the backward pass begins by running the layer again.

mod attention;
mod dora;
mod graph;
mod heads;
mod pointwise;
mod scores;

pub(super) use graph::layer;

use super::bf16::{DEPTH, Square};
use super::buffer::Buffer;
use super::compute::{Compute, Left, Part, Right, copy};
use super::gated::{swiglu_square, swiglu_square_backward};
use super::kernels::{Threads, transpose};
use super::{FlexMatrix, FlexTensor, slice};
use crate::ops::AttentionPlan;
use dora::{Lengths, column_sums, scale_square};
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
    /// DoRA's, where the adapter has them.
    lengths: Option<Lengths>,
}

/// Everything that the layer is, apart from its input.
#[derive(Debug)]
struct Layer {
    linears: Vec<Linear>,
    input_norm: Arc<Vec<f32>>,
    /// Over each head of queries and keys.
    head_norms: Option<[Arc<Vec<f32>>; 2]>,
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
    /// Of queries and keys in front of the norms over their heads.
    heads: Option<[heads::Normed; 2]>,
    q: Buffer,
    k: Buffer,
    v: Buffer,
    normalisers: Buffer,
    attended: Buffer,
    /// After attention and the first residual sum.
    middle: Buffer,
    /// What the second norm gave.
    second: Left<'static>,
    gate: Left<'static>,
    up: Left<'static>,
    /// What DoRA scaled of the two linears whose output goes into a residual sum.
    scaled: [Option<Left<'static>>; 2],
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

/// Gradients of a linear's A, B and magnitudes.
#[derive(Debug, Default)]
struct FactorGrads {
    a: Option<Vec<f32>>,
    b: Option<Vec<f32>>,
    magnitude: Option<Vec<f32>>,
}

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

    /// `out += x Wᵀ + t Bᵀ`, and the bias. Under DoRA, what was added but for the bias, for the backward pass.
    fn add_linear(&self, group: usize, which: usize, inputs: (&Left, &Down), out: &mut [f32]) -> Option<Left<'static>> {
        let Linear { n_out, bias, lengths, .. } = &self.linears[which];
        let Some(lengths) = lengths else {
            self.linear(group, which, inputs, out, true);
            return None;
        };
        let mut y = Buffer::take(out.len());
        self.terms(group, which, inputs, &mut y, false);
        lengths.apply(&mut y, None);
        pointwise::add(out, &y);
        if let Some(bias) = bias {
            pointwise::add_rows(out, bias);
        }
        let [kept] = self.compute.fused([self.n, *n_out], [], |row, col, [out]| copy(&y, *n_out, row, col, out));
        Some(kept)
    }

    /// `out (+)= x Wᵀ + t Bᵀ`, and the bias; under DoRA it does not add.
    fn linear(&self, group: usize, which: usize, inputs: (&Left, &Down), out: &mut [f32], accumulate: bool) {
        let Linear { n_out, bias, lengths, .. } = &self.linears[which];
        if let Some(lengths) = lengths {
            self.terms(group, which, inputs, out, false);
            return lengths.apply(out, bias.as_ref().map(|bias| bias.as_slice()));
        }
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
        self.terms(group, which, inputs, out, accumulate);
    }

    /// `out (+)= x Wᵀ + t Bᵀ`.
    fn terms(&self, group: usize, which: usize, (x, down): (&Left, &Down), out: &mut [f32], accumulate: bool) {
        let Linear { weight, n_out, .. } = &self.linears[which];
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
        let heads = self
            .head_norms
            .as_ref()
            .map(|[of_q, of_k]| [heads::forward(&mut q, of_q, self.eps), heads::forward(&mut k, of_k, self.eps)]);
        attention::rotate(&mut q, self.plan.n_heads, &self.plan, 1.0);
        attention::rotate(&mut k, self.plan.n_kv_heads, &self.plan, 1.0);
        let (attended, normalisers) = attention::forward(&self.plan, c, &q, &k, &v);

        let x = self.by_token(&attended);
        let down_o = self.down(1, &x);
        let mut middle = Buffer::take(n * h);
        middle.copy_from_slice(input);
        let scaled_o = self.add_linear(1, O, (&x, &down_o), &mut middle);
        drop(x);

        let second_rms = pointwise::inverse_rms(&middle, h, self.eps);
        let second = self.normed(&middle, &second_rms, &self.post_norm);
        let down_up = self.down(2, &second);
        let [gate, up, gated] = self.gated(&second, &down_up);
        let down_down = self.down(3, &gated);
        let mut out = middle.to_vec();
        let scaled_down = self.add_linear(3, DOWN, (&gated, &down_down), &mut out);
        let scaled = [scaled_o, scaled_down];
        let (inverse_rms, down) = ([first_rms, second_rms], [down_qkv, down_o, down_up, down_down]);
        (
            out,
            Saved { inverse_rms, down, first, heads, q, k, v, normalisers, attended, middle, second, gate, up, scaled },
        )
    }

    /// Gate, up and `silu(gate) · up`.
    fn gated(&self, x: &Left, down: &Down) -> [Left<'static>; 3] {
        let f = self.width(GATE);
        let loras = [GATE, UP].map(|which| self.lora_term(2, which, down));
        let mut both = [GATE, UP].map(|which| vec![(x, self.linears[which].weight.forward(f))]);
        for (terms, lora) in both.iter_mut().zip(&loras) {
            terms.extend(lora.iter().map(|(left, right)| (left, right.all())));
        }
        let products = both.each_ref().map(Vec::as_slice);
        self.compute.fused([self.n, f], products, |_, col, [gate, up, gated]| {
            let columns = col..f.min(col + DEPTH);
            for (square, which) in [(&mut *gate, GATE), (&mut *up, UP)] {
                let Linear { bias, lengths, .. } = &self.linears[which];
                if let Some(lengths) = lengths {
                    scale_square(square, &lengths.scale[columns.clone()]);
                }
                if let Some(bias) = bias {
                    pointwise::add_row(square, &bias[columns.clone()]);
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
    fn factor_gradients(&self, group: usize, arrived: &[Arrived], x: &Left, down: &Down, grads: &mut [FactorGrads]) {
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
            (grads[one.which].a, grads[one.which].b) = (Some(da), Some(transpose(&db_t, *r, self.width(one.which))));
        }
    }

    /// The gradient of a linear whose output goes into a residual sum, in front of DoRA's scale where there is one, and the
    /// gradient of that one's magnitudes.
    fn sum_back(&self, which: usize, dy: &[f32], saved: &Saved) -> Option<(Buffer, Vec<f32>)> {
        let (lengths, width) = (self.linears[which].lengths.as_ref()?, self.width(which));
        let scaled = saved.scaled[usize::from(which == DOWN)].as_ref()?;
        let of_dy = |row, col, square: &mut Square| copy(dy, width, row, col, square);
        let sums = column_sums([self.n, width], of_dy, |row, col, square| scaled.square(row, col, square), None);
        Some((lengths.in_front(dy), lengths.gradient(&sums)))
    }

    /// Gradients `[heads, tokens, d]` of queries, keys and values behind their products, taken in front of the norms over
    /// heads and of DoRA's scale.
    fn heads_back(&self, saved: &Saved, d: &mut attention::Grads, grads: &mut [FactorGrads]) {
        let (n, head_dim) = (self.n, self.plan.head_dim);
        let sides = [(Q, &mut d.q, &saved.q), (K, &mut d.k, &saved.k), (V, &mut d.v, &saved.v)];
        for (which, dy, y) in sides {
            if let (Some(norms), Some(normed), Q | K) = (&self.head_norms, &saved.heads, which) {
                heads::backward(&normed[which], &norms[which], n, dy);
            }
            let Linear { bias, lengths, .. } = &self.linears[which];
            let Some(lengths) = lengths else { continue };
            // The product as it was, which norms and rotation changed.
            let mut turned_back = None;
            let y: &[f32] = match (&saved.heads, which) {
                (_, V) => y,
                (Some(normed), _) => &normed[which].x,
                (None, _) => {
                    let before = turned_back.insert(Buffer::take(y.len()));
                    before.copy_from_slice(y);
                    attention::rotate(before, y.len() / (n * head_dim), &self.plan, -1.0);
                    before
                }
            };
            let bias = bias.as_ref().map(|bias| bias.as_slice());
            grads[which].magnitude = Some(lengths.heads_back(dy, y, bias, n, head_dim));
        }
    }

    fn backward(&self, input: &[f32], saved: &Saved, dy: &[f32]) -> (Vec<f32>, [FactorGrads; 7]) {
        let (n, c, h) = (self.n, self.compute, self.width(O));
        let [first_rms, second_rms] = &saved.inverse_rms;
        let mut grads: [FactorGrads; 7] = Default::default();

        // Feed-forward.
        let in_front = self.sum_back(DOWN, dy, saved);
        let one = [self.arrive(DOWN, c.left_rows(in_front.as_ref().map_or(dy, |(dy, _)| &**dy), h, n, h))];
        let [gated, d_gate, d_up] = self.gated_backward(&one, saved);
        self.gated_lengths(saved, [&d_gate, &d_up], &mut grads);
        self.factor_gradients(3, &one, &gated, &saved.down[3], &mut grads);
        drop((one, gated));
        grads[DOWN].magnitude = in_front.map(|(_, grad)| grad);
        let arrived = [self.arrive(GATE, d_gate), self.arrive(UP, d_up)];
        let dx = self.input_gradient(&arrived);
        self.factor_gradients(2, &arrived, &saved.second, &saved.down[2], &mut grads);
        drop(arrived);
        let mut d_middle = Buffer::take(n * h);
        pointwise::rms_norm_backward(&saved.middle, (&self.post_norm, second_rms), &dx, dy, &mut d_middle);
        drop(dx);

        // Attention.
        let in_front = self.sum_back(O, &d_middle, saved);
        let one = [self.arrive(O, c.left_rows(in_front.as_ref().map_or(&*d_middle, |(dy, _)| &**dy), h, n, h))];
        let d_attended = self.input_gradient(&one);
        self.factor_gradients(1, &one, &self.by_token(&saved.attended), &saved.down[1], &mut grads);
        drop(one);
        grads[O].magnitude = in_front.map(|(_, grad)| grad);
        let Saved { q, k, v, attended, normalisers, .. } = saved;
        let mut d =
            attention::backward(&self.plan, c, &attention::Saved { q, k, v, out: attended, normalisers }, &d_attended);
        drop(d_attended);
        self.heads_back(saved, &mut d, &mut grads);
        let arrived = [(Q, &d.q), (K, &d.k), (V, &d.v)].map(|(which, grad)| self.arrive(which, self.by_token(grad)));
        let dx = self.input_gradient(&arrived);
        self.factor_gradients(0, &arrived, &saved.first, &saved.down[0], &mut grads);
        drop(arrived);
        let mut d_input = vec![0f32; n * h];
        pointwise::rms_norm_backward(input, (&self.input_norm, first_rms), &dx, &d_middle, &mut d_input);
        (d_input, grads)
    }

    /// The magnitudes' gradients of gate and up.
    fn gated_lengths(&self, saved: &Saved, d: [&Left; 2], grads: &mut [FactorGrads]) {
        for ((which, y), d) in [(GATE, &saved.gate), (UP, &saved.up)].into_iter().zip(d) {
            let Linear { n_out, bias, lengths, .. } = &self.linears[which];
            let Some(lengths) = lengths else { continue };
            let squares = |of: &Left, row, col, square: &mut Square| of.square(row, col, square);
            let sums = column_sums(
                [self.n, *n_out],
                |row, col, square| squares(d, row, col, square),
                |row, col, square| squares(y, row, col, square),
                bias.as_ref().map(|bias| bias.as_slice()),
            );
            grads[which].magnitude = Some(lengths.gradient_in_front(&sums));
        }
    }

    /// SwiGLU's output again, and the gradients of gate and up, in front of DoRA's scale.
    fn gated_backward(&self, arrived: &[Arrived], saved: &Saved) -> [Left<'static>; 3] {
        let loras = self.lora_terms_back(arrived);
        let terms = self.terms_back(arrived, &loras);
        let size = [self.n, self.width(GATE)];
        self.compute.fused(size, [&terms], |row, col, [gated, gate, up]: [&mut Square; 3]| {
            saved.gate.square(row, col, gate);
            saved.up.square(row, col, up);
            swiglu_square_backward(gated, gate, up);
            for (square, which) in [(gate, GATE), (up, UP)] {
                if let Some(lengths) = &self.linears[which].lengths {
                    scale_square(square, &lengths.scale[col..lengths.scale.len().min(col + DEPTH)]);
                }
            }
        })
    }
}
