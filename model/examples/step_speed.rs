//! Times one LoRA training step: `step_speed MODEL_DIR [bf16|fp32] [rows] [length]`, for work on the kernels.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for whoever works on the kernels")]

use limbeck_model::adapter::{Adapter, AdapterConfig, LoraPair};
use limbeck_model::decoder::{Decoder, LINEARS, LoraSet, module_path};
use limbeck_model::device::{DeviceName, Dtype, training_ops};
use limbeck_model::layout::Packed;
use limbeck_model::ops::{Lora, Target};
use limbeck_model::weights::Weights;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let dtype = if args.get(2).is_some_and(|d| d == "fp32") { Dtype::Fp32 } else { Dtype::Bf16 };
    let number = |i: usize, default: usize| args.get(i).map_or(default, |n| n.parse().unwrap());
    let (rows, length) = (number(3, 8), number(4, 128));
    let ops = training_ops(DeviceName::Cpu, dtype).unwrap();
    let weights = Weights::open(std::path::Path::new(&args[1])).unwrap();
    let decoder = Decoder::from_weights(&weights, ops.clone(), true).unwrap();
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let r = 16;
    let mut pairs = BTreeMap::new();
    for layer in 0..decoder.config.num_hidden_layers {
        for (which, linear) in LINEARS.iter().enumerate() {
            let (n_out, n_in) = decoder.linear_shape(layer, which);
            let a = (0..r * n_in).map(|_| random() * 0.08).collect();
            let b = (0..r * n_out).map(|_| random() * 0.01).collect();
            pairs.insert(module_path(layer, linear), LoraPair { a, b, r, n_in, n_out });
        }
    }
    let adapter = Adapter { config: AdapterConfig::lora("base", r, 32.0, &[], false), pairs };
    let mut batch = Packed::new();
    let mut targets = Vec::new();
    for _ in 0..rows {
        let tokens: Vec<u32> = (0..length).map(|_| ((random() + 0.5) * 49_000.0) as u32).collect();
        let range = batch.push_chain(&tokens, 0);
        targets.extend((1..length).map(|i| Target { row: range.start + i - 1, token: tokens[i], weight: 1.0 }));
    }
    let batch = Arc::new(batch);
    let mut best = f64::MAX;
    let mut least = f64::MAX;
    for step in 0..6 {
        let busy = cpu_seconds();
        let begun = Instant::now();
        let set: LoraSet = adapter
            .constants(ops.as_ref())
            .into_iter()
            .map(|(k, l)| (k, Lora { a: l.a.require_grad(), b: l.b.require_grad(), scaling: l.scaling, dropout: None }))
            .collect();
        let hidden = decoder.forward(&batch, Some(&set), None, None).unwrap();
        let forward = begun.elapsed().as_secs_f64();
        let loss = ops.linear_cross_entropy(hidden, decoder.head(), &targets, targets.len() as f32);
        let head = begun.elapsed().as_secs_f64();
        let value = loss.to_data().try_into_vec::<f32>().unwrap()[0];
        let grads = loss.backward();
        let norm: f64 = set
            .values()
            .flat_map(|l| [l.a.grad(&grads).unwrap(), l.b.grad(&grads).unwrap()])
            .map(|g| g.to_data().try_into_vec::<f32>().unwrap().iter().map(|x| (*x as f64).powi(2)).sum::<f64>())
            .sum();
        let all = begun.elapsed().as_secs_f64();
        best = best.min(all);
        least = least.min(cpu_seconds() - busy);
        println!(
            "step {step}: {all:.3} s, {:.0} tokens/s (forward {forward:.3}, head {:.3}, backward {:.3}) loss {value} gradient {}",
            batch.len() as f64 / all,
            head - forward,
            all - head,
            norm.sqrt()
        );
    }
    let tokens = batch.len() as f64;
    println!("best {:.0} tokens/s, {:.0} on two cores that nobody else uses", tokens / best, tokens / (least / 2.0));
}

/// Time on processors so far, user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().skip(11).take(2).flat_map(str::parse).collect();
    fields.iter().sum::<f64>() / 100.0
}
