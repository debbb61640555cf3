//! Attention of growing sequences in the ops that every op set has: row by row, its past put in front of it. The reference
//! of the kernels, and what a device without kernels of its own runs.

use super::{AttentionPlan, GrowingKv, LayerKv, Ops, Rotation};
use crate::layout::Packed;
use burn::tensor::Tensor;
use std::ops::Range;
use std::sync::Arc;

/// [`Ops::attention_growing`], one row after another.
pub(super) fn row_by_row(
    ops: &(impl Ops + ?Sized),
    [q, k, v]: [Tensor<2>; 3],
    plan: &AttentionPlan,
    shared: &GrowingKv,
    rows: &mut [&mut GrowingKv],
) -> Tensor<2> {
    let rotated = ops.rotate_keys(k.clone(), plan);
    let mut out = Vec::with_capacity(rows.len());
    for (row, own) in plan.batch.rows.iter().zip(rows) {
        let tokens = row.tokens.clone();
        let of_row = |x: &Tensor<2>| x.clone().narrow(0, tokens.start, tokens.len());
        let past: Vec<&LayerKv> = [shared.tensors(), own.tensors()].into_iter().flatten().collect();
        let past = (!past.is_empty()).then(|| joined(&past));
        out.push(ops.attention(of_row(&q), of_row(&k), of_row(&v), &plan_of(plan, &tokens), past.as_ref()));
        let added = LayerKv { keys: of_row(&rotated), values: of_row(&v) };
        **own = GrowingKv::Tensors(Box::new(match own.tensors() {
            None => added,
            Some(own) => joined(&[own, &added]),
        }));
    }
    Tensor::cat(out, 0)
}

fn joined(parts: &[&LayerKv]) -> LayerKv {
    LayerKv {
        keys: Tensor::cat(parts.iter().map(|part| part.keys.clone()).collect(), 0),
        values: Tensor::cat(parts.iter().map(|part| part.values.clone()).collect(), 0),
    }
}

/// The plan of one row as a batch of its own.
fn plan_of(plan: &AttentionPlan, tokens: &Range<usize>) -> AttentionPlan {
    let mut batch = Packed::new();
    let start = plan.batch.positions.get(tokens.start).map_or(0, |position| *position as usize);
    batch.push_chain(&plan.batch.tokens[tokens.clone()], start);
    let half = plan.head_dim / 2;
    let cut = |angles: &Arc<Vec<f32>>| Arc::new(angles[tokens.start * half..tokens.end * half].to_vec());
    let rotation = plan.rotation.as_ref().map(|r| Rotation { cos: cut(&r.cos), sin: cut(&r.sin) });
    AttentionPlan { segments: Arc::new(batch.segments()), batch: Arc::new(batch), rotation, ..plan.clone() }
}
