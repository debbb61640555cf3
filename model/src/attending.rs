//! Attention weights of a layer, worked out again for whoever asks: the kernels never keep them. A teacher gives the rows, a student
//! is held against them by KL divergence, and the gradient by its queries and keys comes with the value.
//!
//! This is no hot path: it costs the layer's products for queries and keys once more, and plain loops over the pairs of tokens that see
//! each other.

use crate::ops::AttentionPlan;
use burn::tensor::{Tensor, TensorData};

/// One layer's queries and keys over a batch, `[tokens, heads · head_dim]`, not rotated, and how they meet.
pub struct Attending {
    pub q: Tensor<2>,
    pub k: Tensor<2>,
    pub plan: AttentionPlan,
}

/// Attention weights: of each token in its order, of each head, over the tokens that it sees, in their order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AttentionRows {
    pub heads: usize,
    pub weights: Vec<f32>,
}

/// A loss, and a form whose gradient is that of the weighted loss.
pub struct Held {
    pub value: f64,
    pub form: Tensor<1>,
}

/// Below this a probability is nothing.
const TINY: f64 = 1e-12;

impl Attending {
    fn values(&self) -> [Vec<f32>; 2] {
        let values = |x: &Tensor<2>| x.to_data().convert::<f32>().try_into_vec::<f32>().unwrap_or_default();
        let [mut q, mut k] = [values(&self.q), values(&self.k)];
        rotate(&mut q, &self.plan, 1.0);
        rotate(&mut k, &self.plan, 1.0);
        [q, k]
    }

    /// Where queries of a head and keys of its group lie in a token's row.
    fn at(&self, head: usize) -> [usize; 2] {
        let group = self.plan.n_heads / self.plan.n_kv_heads.max(1);
        [head, head / group.max(1)].map(|at| at * self.plan.head_dim)
    }

    /// The row of a head: for each seen token its probability, and by how much the score under the cap moves with the one before it.
    fn row(&self, q: &[f32], k: &[f32], seen: &[usize], (token, head): (usize, usize), out: &mut Vec<[f64; 2]>) {
        let (d, [q_at, k_at]) = (self.plan.head_dim, self.at(head));
        let widths = [self.plan.n_heads * d, self.plan.n_kv_heads * d];
        let query = &q[token * widths[0] + q_at..][..d];
        out.clear();
        out.extend(seen.iter().map(|other| {
            let key = &k[other * widths[1] + k_at..][..d];
            let dot: f64 = query.iter().zip(key).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let score = dot * f64::from(self.plan.scale);
            match self.plan.softcap.map(f64::from) {
                None => [score, 1.0],
                Some(cap) => {
                    let capped = (score / cap).tanh();
                    [cap * capped, 1.0 - capped * capped]
                }
            }
        }));
        let max = out.iter().fold(f64::NEG_INFINITY, |m, [score, _]| m.max(*score));
        out.iter_mut().for_each(|[score, _]| *score = (*score - max).exp());
        let sum: f64 = out.iter().map(|[p, _]| p).sum();
        out.iter_mut().for_each(|[p, _]| *p /= sum);
    }

    pub fn rows(&self) -> AttentionRows {
        let [q, k] = self.values();
        let (mut row, mut weights) = (Vec::new(), Vec::new());
        each_seen(&self.plan, |token, seen| {
            for head in 0..self.plan.n_heads {
                self.row(&q, &k, seen, (token, head), &mut row);
                weights.extend(row.iter().map(|[p, _]| *p as f32));
            }
        });
        AttentionRows { heads: self.plan.n_heads, weights }
    }

    /// `Σ weight · KL(teacher ‖ student)` over the tokens: the mean over heads where both have as many, else of the heads' mean.
    /// `scale` times its gradient is that of the form.
    pub fn held_against(&self, teacher: &AttentionRows, weights: &[f64], scale: f64) -> Held {
        let [q, k] = self.values();
        let (d, heads) = (self.plan.head_dim, self.plan.n_heads);
        let [mut by_q, mut by_k] = [vec![0f32; q.len()], vec![0f32; k.len()]];
        let (mut sum, mut at) = (0f64, 0);
        let mut rows: Vec<Vec<[f64; 2]>> = vec![Vec::new(); heads];
        each_seen(&self.plan, |token, seen| {
            let n = seen.len();
            let theirs = &teacher.weights[at..at + n * teacher.heads];
            at += n * teacher.heads;
            for (head, row) in rows.iter_mut().enumerate() {
                self.row(&q, &k, seen, (token, head), row);
            }
            let weight = weights[token];
            // By score, of each head: p (g - Σ p g), g the gradient by probability.
            let mut by_score = vec![0f64; heads * n];
            let kl = |p: f64, q: f64| if p > TINY { p * (p / q.max(TINY)).ln() } else { 0.0 };
            if teacher.heads == heads {
                for (head, row) in rows.iter().enumerate() {
                    for (j, [own, _]) in row.iter().enumerate() {
                        let p = f64::from(theirs[head * n + j]);
                        sum += weight * kl(p, *own) / heads as f64;
                        by_score[head * n + j] = (own - p) / heads as f64;
                    }
                }
            } else {
                let mean = |j: usize| (0..teacher.heads).map(|h| f64::from(theirs[h * n + j])).sum::<f64>();
                let own = |j: usize| rows.iter().map(|row| row[j][0]).sum::<f64>() / heads as f64;
                let ratios: Vec<f64> = (0..n)
                    .map(|j| {
                        let (p, own) = (mean(j) / teacher.heads as f64, own(j));
                        sum += weight * kl(p, own);
                        if p > TINY { -p / own.max(TINY) / heads as f64 } else { 0.0 }
                    })
                    .collect();
                for (head, row) in rows.iter().enumerate() {
                    let inner: f64 = row.iter().zip(&ratios).map(|([p, _], g)| p * g).sum();
                    for (j, ([p, _], g)) in row.iter().zip(&ratios).enumerate() {
                        by_score[head * n + j] = p * (g - inner);
                    }
                }
            }
            for (head, row) in rows.iter().enumerate() {
                let [q_at, k_at] = self.at(head);
                let own = token * heads * d + q_at;
                for (j, other) in seen.iter().enumerate() {
                    let g = weight * scale * by_score[head * n + j] * row[j][1] * f64::from(self.plan.scale);
                    let other = other * self.plan.n_kv_heads * d + k_at;
                    for i in 0..d {
                        by_q[own + i] += (g * f64::from(k[other + i])) as f32;
                        by_k[other + i] += (g * f64::from(q[own + i])) as f32;
                    }
                }
            }
        });
        rotate(&mut by_q, &self.plan, -1.0);
        rotate(&mut by_k, &self.plan, -1.0);
        let form = |x: &Tensor<2>, by: Vec<f32>| {
            let by: Tensor<2> = Tensor::from_data(TensorData::new(by, x.dims()), &x.device());
            (x.clone() * by).sum()
        };
        Held { value: sum, form: form(&self.q, by_q) + form(&self.k, by_k) }
    }
}

/// Turns each head of each token by its angle, or back.
fn rotate(x: &mut [f32], plan: &AttentionPlan, sign: f32) {
    let Some(rotation) = &plan.rotation else { return };
    let half = rotation.cos.len() / plan.batch.len().max(1);
    let width = x.len() / plan.batch.len().max(1);
    for (token, x) in x.chunks_exact_mut(width.max(1)).enumerate() {
        let (cos, sin) = (&rotation.cos[token * half..][..half], &rotation.sin[token * half..][..half]);
        for head in x.chunks_exact_mut(plan.head_dim) {
            for j in 0..half {
                let (low, high) = (head[j], head[half + j]);
                head[j] = low * cos[j] - sign * high * sin[j];
                head[half + j] = high * cos[j] + sign * low * sin[j];
            }
        }
    }
}

/// Each token of the batch with those that it sees, in the order of segments.
fn each_seen(plan: &AttentionPlan, mut of: impl FnMut(usize, &[usize])) {
    let positions = &plan.batch.positions;
    for segment in plan.segments.iter() {
        let n = segment.tokens.len();
        for (r, token) in segment.tokens.clone().enumerate() {
            let near = |other: &usize| {
                plan.window.is_none_or(|window| positions[*other] as usize + window > positions[token] as usize)
            };
            let shown = |c: usize| match &segment.visible {
                Some(visible) => visible[r * n + c],
                None => c <= r,
            };
            let prefix = if segment.sees_prefix { 0..plan.batch.prefix } else { 0..0 };
            let own = (0..n).filter(|c| shown(*c)).map(|c| segment.tokens.start + c);
            let seen: Vec<usize> = prefix.chain(own).filter(near).collect();
            of(token, &seen);
        }
    }
}
