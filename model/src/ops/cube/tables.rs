//! What attention must know of a batch beside its numbers: who sees whom, as tables that kernels read. They are worked out and
//! sent once a batch, whatever the number of layers.

use super::buffer::{Held, send};
use crate::layout::Segment;
use crate::ops::AttentionPlan;
use burn_cubecl::CubeDevice;
use burn_cubecl::tensor::CubeTensor;
use std::sync::Arc;

/// Numbers a token has in [`Tables::tokens`].
pub(super) const TOKEN: usize = 4;

/// Numbers a block has in [`Tables::blocks`].
pub(super) const BLOCK: usize = 4;

/// The tables of one batch.
#[derive(Clone, Debug)]
pub(super) struct Tables {
    /// Of each token where its segment begins, whether it sees the batch's prefix, where its row of bits begins in `bits`, and
    /// its position.
    pub tokens: CubeTensor,
    /// Of each block of tokens, as queries: the first of their own keys, the end of them, whether one of them sees the prefix;
    /// as keys: the end of the queries that see one of them.
    pub blocks: CubeTensor,
    /// Of label trees: a bit for each token of the segment, from its first on.
    pub bits: CubeTensor,
    pub has_trees: bool,
    /// Cosines and sines, `[tokens, head_dim / 2]`.
    pub angles: Option<[CubeTensor; 2]>,
}

impl Tables {
    pub(super) fn of(held: &Held, device: &CubeDevice, plan: &AttentionPlan, block: usize) -> Tables {
        let made = held.of(&plan.segments, || {
            let (tokens, bits) = tokens(plan, &plan.segments);
            let sent = |values: &[u32]| send(device, values, [1, values.len()]);
            vec![sent(&tokens), sent(&blocks(plan, &plan.segments, block)), sent(&bits)]
        });
        let angles = plan.rotation.as_ref().map(|rotation| {
            let sent = |values: &Arc<Vec<f32>>| held.row(device, values);
            [sent(&rotation.cos), sent(&rotation.sin)]
        });
        Tables {
            tokens: made[0].clone(),
            blocks: made[1].clone(),
            bits: made[2].clone(),
            has_trees: plan.segments.iter().any(|segment| segment.visible.is_some()),
            angles,
        }
    }
}

fn tokens(plan: &AttentionPlan, segments: &[Segment]) -> (Vec<u32>, Vec<u32>) {
    let mut tokens = vec![0u32; plan.batch.len() * TOKEN];
    // Chains have no bits of their own; there is one number so that the table is never empty.
    let mut bits = vec![0u32];
    for segment in segments {
        let len = segment.tokens.len();
        for (r, token) in segment.tokens.clone().enumerate() {
            let mut row = u32::MAX;
            if let Some(visible) = &segment.visible {
                row = bits.len() as u32;
                let word = |bits: &[bool]| bits.iter().rev().fold(0, |word, seen| word << 1 | u32::from(*seen));
                bits.extend(visible[r * len..][..len].chunks(32).map(word));
            }
            let own = [segment.tokens.start as u32, u32::from(segment.sees_prefix), row, plan.batch.positions[token]];
            tokens[token * TOKEN..][..TOKEN].copy_from_slice(&own);
        }
    }
    (tokens, bits)
}

fn blocks(plan: &AttentionPlan, segments: &[Segment], block: usize) -> Vec<u32> {
    let n = plan.batch.len();
    let sees_prefix = segments.iter().any(|segment| segment.sees_prefix);
    (0..n.div_ceil(block))
        .flat_map(|b| {
            let (first, end) = (b * block, n.min((b + 1) * block));
            let inside = || segments.iter().filter(|s| s.tokens.start < end && s.tokens.end > first);
            let lowest = inside().map(|s| s.tokens.start).min().unwrap_or(first);
            let sees = inside().any(|s| s.sees_prefix);
            let highest = inside().map(|s| s.tokens.end).max().unwrap_or(end);
            let last = if sees_prefix && first < plan.batch.prefix { n } else { highest };
            [lowest as u32, end as u32, u32::from(sees), last as u32]
        })
        .collect()
}
