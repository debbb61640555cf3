//! The decoder as a whole: kernels against the plain reference, packed against alone, a shared or cached prefix against
//! none, an adapter beside the weights against merged, a label tree against its branches one by one.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::{adapter, decoder, distance, step};
use limbeck_model::decoder::{Decoder, DecoderError};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::generate::{Asked, Batch, Chosen, Ends, continuations, generate};
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::ops::Target;
use limbeck_model::sequence::Sequence;
use std::sync::Arc;

fn close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() < tolerance, "{x} against {y}");
    }
}

#[test]
fn kernels_equal_the_reference() {
    let tokens = [3, 1, 4, 1, 5, 9, 2, 6];
    let fast = decoder(ops(DeviceName::Cpu).unwrap(), None).log_probs(&tokens, None).unwrap();
    let plain = decoder(ops(DeviceName::CpuReference).unwrap(), None).log_probs(&tokens, None).unwrap();
    for (a, b) in fast.iter().zip(&plain) {
        close(a, b, 2e-4);
    }
}

fn batches() -> (Packed, Packed, Vec<Target>, Vec<Target>) {
    let (prefix, rows) = ([1u32, 2, 3, 4], [vec![5u32, 6, 7], vec![8, 9], vec![10, 11, 12, 13]]);
    let mut shared = Packed::with_prefix(&prefix, 0);
    let mut apart = Packed::new();
    let (mut a, mut b) = (Vec::new(), Vec::new());
    for (i, row) in rows.iter().enumerate() {
        let range = shared.push_chain(row, prefix.len());
        let whole: Vec<u32> = prefix.iter().chain(row).copied().collect();
        let range2 = apart.push_chain(&whole, 0);
        for back in 1..=2 {
            let (token, weight) = ((20 + i * 3 + back) as u32, 1.0 + i as f32 * 0.5);
            a.push(Target { row: range.end - back, token, weight });
            b.push(Target { row: range2.end - back, token, weight });
        }
    }
    (shared, apart, a, b)
}

#[test]
fn a_training_step_equals_the_reference_and_sharing_a_prefix_changes_nothing() {
    let (shared, apart, shared_targets, apart_targets) = batches();
    let cpu = ops(DeviceName::Cpu).unwrap();
    let (loss, grads) = step(cpu.clone(), &shared, &shared_targets);
    let (loss_apart, grads_apart) = step(cpu, &apart, &apart_targets);
    let (loss_plain, grads_plain) = step(ops(DeviceName::CpuReference).unwrap(), &apart, &apart_targets);
    assert!((loss - loss_apart).abs() < 1e-5 * loss && (loss - loss_plain).abs() < 1e-5 * loss);
    assert!(distance(&grads, &grads_apart) < 1e-5, "{}", distance(&grads, &grads_apart));
    assert!(distance(&grads, &grads_plain) < 2e-5, "{}", distance(&grads, &grads_plain));
}

#[test]
fn the_thread_count_does_not_change_a_bit() {
    let (shared, _, targets, _) = batches();
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| step(ops(DeviceName::Cpu).unwrap(), &shared, &targets))
    };
    let one = run(1);
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn a_cached_prefix_gives_the_same_answers() {
    let d = decoder(ops(DeviceName::Cpu).unwrap(), None);
    let tokens = [7u32, 8, 9, 10, 11, 12];
    let whole = d.log_probs(&tokens, None).unwrap();
    let cache = d.cache(&tokens[..4], None).unwrap();
    let mut batch = Packed::new();
    batch.push_chain(&tokens[4..], 4);
    let hidden = d.forward(&Arc::new(batch), None, Some(&cache), None).unwrap();
    let logits = d.ops().logits(&hidden, d.head(), &[1]);
    close(&limbeck_model::decoder::log_softmax(&logits), &whole[5], 1e-4);
}

#[test]
fn layers_can_be_run_in_parts() {
    let d = decoder(ops(DeviceName::Cpu).unwrap(), None);
    let mut batch = Packed::new();
    batch.push_chain(&[7, 8, 9], 0);
    let batch = Arc::new(batch);
    let read = |t: burn::tensor::Tensor<2>| t.into_data().try_into_vec::<f32>().unwrap();
    let whole = read(d.forward(&batch, None, None, None).unwrap());
    let below = d.run_layers(d.embed(&batch).unwrap(), 0..1, &batch, None, None, None);
    let above = d.run_layers(below.clone(), 1..2, &batch, None, None, None);
    assert_ne!(read(below), read(above.clone()));
    assert_eq!(read(d.finish(above)), whole);
}

#[test]
fn a_label_tree_equals_its_branches() {
    let d = decoder(ops(DeviceName::Cpu).unwrap(), None);
    let prompt = [7u32, 8, 9];
    let mut batch = Packed::new();
    batch.push_tree(&prompt, &[(20, ROOT), (21, 0), (30, ROOT)], 0);
    let hidden = d.forward(&Arc::new(batch), None, None, None).unwrap();
    for (row, branch) in [(4, vec![20u32, 21]), (5, vec![30])] {
        let tree = limbeck_model::decoder::log_softmax(&d.ops().logits(&hidden, d.head(), &[row]));
        let chain: Vec<u32> = prompt.iter().chain(&branch).copied().collect();
        close(&tree, d.log_probs(&chain, None).unwrap().last().unwrap(), 1e-4);
    }
}

#[test]
fn merged_equals_beside() {
    let cpu = ops(DeviceName::Cpu).unwrap();
    let base = decoder(cpu.clone(), None);
    let lora = adapter(&base, 3);
    let tokens = [1u32, 2, 3, 4];
    let beside = base.log_probs(&tokens, Some(&lora.constants(cpu.as_ref()))).unwrap();
    let merged = decoder(cpu, Some(&lora)).log_probs(&tokens, None).unwrap();
    close(&beside[3], &merged[3], 2e-4);
    assert!((beside[3][0] - base.log_probs(&tokens, None).unwrap()[3][0]).abs() > 1e-3, "the adapter does something");
}

#[test]
fn an_adapter_survives_the_disk() {
    let cpu = ops(DeviceName::Cpu).unwrap();
    let lora = adapter(&decoder(cpu, None), 3);
    let folder = tempfile::tempdir().unwrap();
    lora.save(folder.path()).unwrap();
    assert_eq!(limbeck_model::adapter::Adapter::load(folder.path()).unwrap(), lora);
}

#[test]
fn generation_is_the_greedy_path() {
    let d = decoder(ops(DeviceName::Cpu).unwrap(), None);
    let out = generate(&d, None, &[5, 6], 6, &[]).unwrap();
    assert_eq!(out.len(), 6);
    let mut tokens = vec![5, 6];
    for &token in &out {
        let last = d.log_probs(&tokens, None).unwrap().pop().unwrap();
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        assert_eq!(token as usize, best);
        tokens.push(token);
    }
    assert_eq!(generate(&d, None, &[5, 6], 6, &[out[0]]).unwrap(), Vec::<u32>::new());
}

#[test]
fn bad_input_is_an_error() {
    let d = decoder(ops(DeviceName::Cpu).unwrap(), None);
    assert!(matches!(d.log_probs(&[50], None), Err(DecoderError::Token { token: 50, vocab: 50 })));
    assert!(matches!(d.log_probs(&[1; 513], None), Err(DecoderError::TooLong { len: 513, max: 512 })));
}

/// Up to five tokens behind `past` and `prompt`.
fn five(d: &Decoder, past: &Sequence, prompt: &[u32], stop: &[u32], most: usize) -> Chosen {
    let ends = Ends { stop, within: None, goes_on: &|_, tokens| tokens.len() < most, done: &mut |_| () };
    let asked = [Asked::greedy(prompt, 5)];
    continuations(d, None, past, &asked, Batch::default(), ends).unwrap().pop().unwrap()
}

/// The probability of what is chosen is the product of the plain forward pass's, with or without a kept beginning.
#[test]
fn a_chosen_answer_has_the_probability_of_its_tokens() {
    let d = decoder(ops(DeviceName::Cpu).unwrap(), None);
    let (prompt, nothing) = ([5, 6, 9, 3], Sequence::default());
    let free = five(&d, &nothing, &prompt, &[], 9);
    assert_eq!((free.tokens.len(), free.ended), (5, false));
    let whole: Vec<u32> = prompt.iter().chain(&free.tokens).copied().collect();
    let log_probs = d.log_probs(&whole, None).unwrap();
    let plain: f64 = (0..5).map(|i| f64::from(log_probs[prompt.len() - 1 + i][free.tokens[i] as usize])).sum();
    assert!((free.log_prob - plain).abs() < 1e-4, "{} {plain}", free.log_prob);

    let past = d.begin(&prompt[..2], None).unwrap();
    let kept = five(&d, &past, &prompt[2..], &[], 9);
    assert_eq!(kept.tokens, free.tokens);
    assert!((kept.log_prob - free.log_prob).abs() < 1e-4);

    // Stopped at the third token: two are left, and the third's probability counts.
    let stop = free.tokens[2];
    if !free.tokens[..2].contains(&stop) {
        let stopped = five(&d, &nothing, &prompt, &[stop], 9);
        let plain: f64 = (0..3).map(|i| f64::from(log_probs[prompt.len() - 1 + i][free.tokens[i] as usize])).sum();
        assert_eq!((stopped.tokens.as_slice(), stopped.ended), (&free.tokens[..2], true));
        assert!((stopped.log_prob - plain).abs() < 1e-4);
    }
    let short = five(&d, &nothing, &prompt, &[], 2);
    assert_eq!((short.tokens.as_slice(), short.ended), (&free.tokens[..2], false));
}
