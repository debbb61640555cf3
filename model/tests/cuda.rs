//! A training step on CUDA equals the CPU's: `tests/gpu/run`, on a machine with an NVIDIA GPU, its driver and NVRTC.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{distance, step};
use limbeck_model::device::{DeviceName, ops, probe};
use limbeck_model::layout::Packed;
use limbeck_model::ops::Target;

#[test]
fn a_training_step_equals_the_cpu() {
    probe(DeviceName::Cuda(0)).unwrap();
    let mut batch = Packed::with_prefix(&[1, 2, 3, 4], 0);
    let mut targets = Vec::new();
    for (i, row) in [vec![5u32, 6, 7], vec![8], vec![10, 11, 12, 13]].iter().enumerate() {
        let range = batch.push_chain(row, 4);
        targets.push(Target { row: range.end - 1, token: 20 + i as u32, weight: 1.0 });
    }
    let (loss, grads) = step(ops(DeviceName::Cpu).unwrap(), &batch, &targets);
    let (loss_gpu, grads_gpu) = step(ops(DeviceName::Cuda(0)).unwrap(), &batch, &targets);
    assert!((loss - loss_gpu).abs() < 1e-4 * loss, "{loss} against {loss_gpu}");
    let gap = distance(&grads_gpu, &grads);
    assert!(gap < 1e-4, "gradients differ by {gap} of the largest");
}
