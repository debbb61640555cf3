//! The layer op against the same layer composed of single ops, in every way a batch can lie; and in bfloat16 against
//! float32. Threads and checkpointing change no bit.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test may panic, and tells its figures")]

mod common;

use burn::tensor::{Device, Tensor};
use common::{
    KINDS, Kind, PLAIN, adapter_of, adapter_of_rank, config_with, decoder_of, decoder_with, distance, of_device,
    step_under, step_with,
};
use limbeck_model::decoder::Decoder;
use limbeck_model::divergence::Divergence;
use limbeck_model::layout::{Packed, ROOT};
use limbeck_model::ops::codes::Codes;
use limbeck_model::ops::flex::bf16::Engine;
use limbeck_model::ops::flex::{Compute, FlexOps};
use limbeck_model::ops::stock::StockOps;
use limbeck_model::ops::{AttentionPlan, Frozen, LayerKv, Lora, Ops, SoftTarget, Target};
use std::sync::Arc;

/// The op set without its layer op.
struct Composed(FlexOps);

impl Ops for Composed {
    fn device(&self) -> Device {
        self.0.device()
    }

    fn freeze(&self, data: Vec<f32>, n_out: usize, n_in: usize, trains: bool) -> Frozen {
        self.0.freeze(data, n_out, n_in, trains)
    }

    fn freeze_codes(&self, codes: Codes, trains: bool) -> Frozen {
        self.0.freeze_codes(codes, trains)
    }

    fn embed(&self, table: &Frozen, tokens: &[u32]) -> Tensor<2> {
        self.0.embed(table, tokens)
    }

    fn rms_norm(&self, x: Tensor<2>, weight: &Arc<Vec<f32>>, eps: f32) -> Tensor<2> {
        self.0.rms_norm(x, weight, eps)
    }

    fn linear(&self, x: Tensor<2>, weight: &Frozen, lora: Option<&Lora>) -> Tensor<2> {
        self.0.linear(x, weight, lora)
    }

    fn attention(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        v: Tensor<2>,
        plan: &AttentionPlan,
        past: Option<&LayerKv>,
    ) -> Tensor<2> {
        self.0.attention(q, k, v, plan, past)
    }

    fn rotate_keys(&self, k: Tensor<2>, plan: &AttentionPlan) -> Tensor<2> {
        self.0.rotate_keys(k, plan)
    }

    fn add(&self, a: Tensor<2>, b: Tensor<2>) -> Tensor<2> {
        self.0.add(a, b)
    }

    fn swiglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        self.0.swiglu(gate, up)
    }

    fn geglu(&self, gate: Tensor<2>, up: Tensor<2>) -> Tensor<2> {
        self.0.geglu(gate, up)
    }

    fn linear_cross_entropy(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[Target],
        denominator: f32,
    ) -> Tensor<1> {
        self.0.linear_cross_entropy(hidden, head, targets, denominator)
    }

    fn linear_divergence(
        &self,
        hidden: Tensor<2>,
        head: &Frozen,
        targets: &[SoftTarget],
        divergence: Divergence,
        denominator: f32,
    ) -> Tensor<1> {
        self.0.linear_divergence(hidden, head, targets, divergence, denominator)
    }

    fn logits(&self, hidden: &Tensor<2>, head: &Frozen, rows: &[usize]) -> Vec<f32> {
        self.0.logits(hidden, head, rows)
    }

    fn logits_of(&self, hidden: &Tensor<2>, head: &Frozen, queries: &[(usize, Vec<u32>)]) -> Vec<Vec<f32>> {
        self.0.logits_of(hidden, head, queries)
    }
}

fn target(row: usize, token: u32) -> Target {
    Target { row, token, weight: 1.0 }
}

/// Single tokens, odd lengths, a shared prefix, a tree, rows longer than a block of queries.
fn batches() -> Vec<(&'static str, Packed, Vec<Target>)> {
    let tokens = |n: usize, seed: usize| -> Vec<u32> { (0..n).map(|i| ((i * 7 + seed * 13) % 49) as u32).collect() };
    let mut all = Vec::new();
    let mut one = Packed::new();
    one.push_chain(&[3], 0);
    all.push(("one token", one, vec![target(0, 5)]));
    let mut rows = Packed::new();
    let ends: Vec<usize> = [5, 1, 17, 33].iter().map(|n| rows.push_chain(&tokens(*n, *n), 0).end - 1).collect();
    all.push(("rows", rows, ends.iter().map(|e| target(*e, 7)).collect()));
    let mut prefixed = Packed::with_prefix(&tokens(19, 1), 0);
    let ends: Vec<usize> = [4, 9, 1].iter().map(|n| prefixed.push_chain(&tokens(*n, *n), 19).end - 1).collect();
    all.push(("prefix", prefixed, ends.iter().map(|e| target(*e, 9)).collect()));
    let mut tree = Packed::with_prefix(&tokens(3, 1), 0);
    let range = tree.push_tree(&[4, 5], &[(6, ROOT), (7, 0), (8, ROOT), (9, 2)], 3);
    all.push(("tree", tree, range.map(|row| target(row, 11)).collect()));
    let mut long = Packed::with_prefix(&tokens(40, 2), 0);
    let range = long.push_chain(&tokens(300, 3), 40);
    all.push(("long", long, range.map(|row| target(row, (row % 50) as u32)).collect()));
    let mut idle = Packed::new();
    idle.push_chain(&[1, 2], 0);
    all.push(("no loss", idle, vec![Target { row: 0, token: 1, weight: 0.0 }, target(1, 4)]));
    all
}

fn step(kind: Kind, ops: Arc<dyn Ops>, batch: &Packed, targets: &[Target]) -> (f32, Vec<Vec<f32>>) {
    let decoder = decoder_of(kind, ops, None);
    step_under(&decoder, &adapter_of(kind, &decoder), batch, targets)
}

/// Each part against its own largest: a vector's gradient must not hide behind a matrix's.
fn furthest(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    let size = b.iter().flatten().fold(0f32, |m, x| m.max(x.abs()));
    // A part whose gradient is what rounding leaves of zero (the queries of a single token) is measured by the others.
    let own = |part: &Vec<f32>| part.iter().fold(1e-2 * size, |m, x| m.max(x.abs()));
    let gap = |a: &Vec<f32>, b: &Vec<f32>| a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    a.iter().zip(b).map(|(a, b)| gap(a, b) / own(b)).fold(0f32, f32::max)
}

#[test]
fn equals_the_layer_composed_of_single_ops_and_the_plain_reference() {
    let device = of_device();
    for kind in KINDS {
        let fused = decoder_of(kind, Arc::new(FlexOps::default()), None);
        assert!(
            fused.has_single_ops() && !decoder_of(kind, Arc::new(Composed(FlexOps::default())), None).has_single_ops()
        );
        for (name, batch, targets) in batches() {
            let (loss, grads) = step(kind, Arc::new(FlexOps::default()), &batch, &targets);
            assert_eq!(grads.len(), 2 * 7 * if kind.dora { 3 } else { 2 });
            let stock: Arc<dyn Ops> = Arc::new(StockOps::new(Device::flex()));
            let composed: Arc<dyn Ops> = Arc::new(Composed(FlexOps::default()));
            let device = device.iter().map(|ops| ("the device's", ops.clone(), 5e-5));
            for (other, ops, tolerance) in
                [("composed", composed, 1e-5), ("stock", stock, 5e-5)].into_iter().chain(device)
            {
                let (want, want_grads) = step(kind, ops, &batch, &targets);
                assert!((loss - want).abs() <= 1e-5 * want.abs(), "{name}, {kind:?}: {loss}, {other} {want}");
                let gap = distance(&grads, &want_grads);
                assert!(gap < tolerance, "{name}, {kind:?}: gradients are {gap} of the largest off the {other} ones");
                let gap = furthest(&grads, &want_grads);
                assert!(gap < 10.0 * tolerance, "{name}, {kind:?}: a part is {gap} of its largest off the {other} one");
            }
        }
    }
}

/// Norms of DoRA are constants of a step, so only its magnitudes have a difference to compare with.
#[test]
fn gradients_are_central_differences() {
    for kind in KINDS {
        let (_, batch, targets) = batches().swap_remove(2);
        let decoder = decoder_of(kind, Arc::new(FlexOps::default()), None);
        let mut adapter = adapter_of(kind, &decoder);
        let (_, grads) = step_under(&decoder, &adapter, &batch, &targets);
        let paths: Vec<String> = adapter.pairs.keys().cloned().collect();
        let parts = if kind.dora { 3 } else { 2 };
        for (i, path) in paths.iter().enumerate() {
            let of = |part: usize| &grads[i * parts + part];
            for part in if kind.dora { 2..3 } else { 0..2 } {
                // Where the gradient is largest, the difference is surest.
                let at = (0..of(part).len()).max_by(|a, b| of(part)[*a].abs().total_cmp(&of(part)[*b].abs())).unwrap();
                let mut loss = |delta: f32| {
                    let pair = adapter.pairs.get_mut(path).unwrap();
                    let values = [&mut pair.a, &mut pair.b].into_iter().chain(&mut pair.magnitude).nth(part).unwrap();
                    let before = values[at];
                    values[at] = before + delta;
                    let loss = f64::from(step_under(&decoder, &adapter, &batch, &targets).0);
                    let pair = adapter.pairs.get_mut(path).unwrap();
                    let values = [&mut pair.a, &mut pair.b].into_iter().chain(&mut pair.magnitude).nth(part).unwrap();
                    values[at] = before;
                    loss
                };
                let difference = (loss(5e-3) - loss(-5e-3)) / 1e-2;
                let grad = f64::from(of(part)[at]);
                let gap = (grad - difference).abs();
                assert!(gap < 2e-2 * grad.abs() + 2e-4, "{path} part {part}[{at}], {kind:?}: {grad}, {difference}");
            }
        }
    }
}

/// Scores of some hundreds: their exponentials overflow unless the largest is found first.
#[test]
fn large_scores_equal_the_layer_composed_of_single_ops() {
    let run = |ops: Arc<dyn Ops>, batch: &Packed, targets: &[Target]| {
        let c = common::config();
        let mut load = |name: &str| {
            let (shape, mut data) = common::tensor(&c, name)?;
            if name.contains("q_proj") {
                data.iter_mut().for_each(|x| *x *= 100.0);
            }
            Ok((shape, data))
        };
        common::step_of(&Decoder::load(&c, ops, true, &mut load).unwrap(), batch, targets)
    };
    for (name, batch, targets) in batches() {
        let (loss, grads) = run(Arc::new(FlexOps::default()), &batch, &targets);
        let (want, want_grads) = run(Arc::new(Composed(FlexOps::default())), &batch, &targets);
        assert!(loss.is_finite() && (loss - want).abs() <= 1e-4 * want.abs(), "{name}: {loss} against {want}");
        let gap = distance(&grads, &want_grads);
        assert!(gap < 2e-4, "{name}: gradients differ by {gap} of the largest");
    }
}

/// bfloat16 keeps 8 bits: rounding each operand once moves a sum by some 2^-9 of its terms' size, and a few layers of that
/// stay within a few per cent of the largest gradient.
#[test]
fn in_bfloat16_it_is_near_float32_with_every_engine() {
    for engine in [Engine::Portable, Engine::Avx512, Engine::Amx].into_iter().filter(|e| e.available()) {
        for kind in KINDS {
            for (name, batch, targets) in batches() {
                let what = format!("{name} with {engine:?}, {kind:?}");
                let (loss, grads) = step(kind, Arc::new(FlexOps::new(Compute::Bf16(engine))), &batch, &targets);
                let (want, want_grads) = step(kind, Arc::new(FlexOps::default()), &batch, &targets);
                assert!((loss - want).abs() <= 0.02 * want.abs(), "{what}: {loss} against {want}");
                let gap = distance(&grads, &want_grads);
                assert!(gap < 0.05, "{what}: gradients differ by {gap} of the largest");
                let composed = Composed(FlexOps::new(Compute::Bf16(engine)));
                let composed = step(kind, Arc::new(composed), &batch, &targets);
                let gap = distance(&grads, &composed.1);
                assert!(gap < 0.05, "{what}: fused and composed differ by {gap} of the largest");
            }
        }
    }
}

fn bits(grads: &[Vec<f32>]) -> Vec<u32> {
    grads.iter().flatten().map(|x| x.to_bits()).collect()
}

#[test]
fn checkpointing_and_the_number_of_threads_change_no_bit() {
    for compute in [Compute::F32, Compute::Bf16(Engine::best())] {
        for kind in KINDS {
            for (name, batch, targets) in batches() {
                let run = |threads: usize, checkpoint: bool| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let decoder =
                        decoder_of(kind, Arc::new(FlexOps::new(compute)), None).with_checkpointing(checkpoint);
                    let adapter = adapter_of(kind, &decoder);
                    let (loss, grads) = pool.install(|| step_under(&decoder, &adapter, &batch, &targets));
                    (loss.to_bits(), bits(&grads))
                };
                let want = run(1, false);
                assert_eq!(run(3, false), want, "{name}, {kind:?} in {compute:?} with 3 threads");
                assert_eq!(run(2, true), want, "{name}, {kind:?} in {compute:?} with checkpointing");
            }
        }
    }
}

/// Not a test: what a step of the layers takes as one op each and composed, in turn, on a few layers in the shape of Qwen3-0.6B.
/// `./test -p limbeck -p limbeck-model --test layer -- --ignored --nocapture`
#[test]
#[ignore = "measures"]
fn how_long_a_step_takes() {
    let shape = serde_json::json!({
        "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16, "num_key_value_heads": 8,
        "head_dim": 128, "num_hidden_layers": 2, "vocab_size": 1000
    });
    let mut batch = Packed::new();
    let mut targets = Vec::new();
    for row in 0..8u32 {
        let tokens: Vec<u32> = (0..128).map(|i| (i * 7 + row * 13) % 1000).collect();
        targets.push(target(batch.push_chain(&tokens, 0).end - 1, 7));
    }
    let compute = Compute::Bf16(Engine::best());
    for kind in [PLAIN, Kind { head_norms: true, ..PLAIN }, Kind { dora: true, ..PLAIN }] {
        let config = config_with(kind, &shape);
        let ops: [Arc<dyn Ops>; 2] = [Arc::new(FlexOps::new(compute)), Arc::new(Composed(FlexOps::new(compute)))];
        let decoders = ops.map(|ops| decoder_with(&config, ops, None));
        let adapter = adapter_of_rank(16, kind, &decoders[0]);
        let mut best = [f64::INFINITY; 2];
        for _ in 0..5 {
            for (decoder, best) in decoders.iter().zip(&mut best) {
                let begun = std::time::Instant::now();
                step_under(decoder, &adapter, &batch, &targets);
                *best = best.min(begun.elapsed().as_secs_f64());
            }
        }
        let [one, composed] = best.map(|s| s * 1e3);
        eprintln!("{kind:?}: one op a layer {one:.0} ms, composed {composed:.0} ms, {:.2} times", composed / one);
    }
}

/// What a device keeps for its backward pass, or works out again for it, is the same; and half precision is near it.
#[test]
fn on_a_device_checkpointing_changes_no_bit() {
    let Some(ops) = of_device() else { return };
    for (name, batch, targets) in batches() {
        let [kept, again] = [false, true].map(|checkpoint| step_with(ops.clone(), checkpoint, &batch, &targets));
        assert_eq!(kept.0.to_bits(), again.0.to_bits(), "{name}");
        assert_eq!(kept.1, again.1, "{name}");
    }
}

#[cfg(feature = "wgpu")]
#[test]
fn half_precision_on_a_gpu_is_near_float32() {
    use limbeck_model::ops::cube::{Compute, CubeOps};
    let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
    if !Compute::F16.is_on(&device) {
        return eprintln!("not measured: this renderer has no float16");
    }
    for (name, batch, targets) in batches() {
        let [(loss, grads), (want, want_grads)] = [Compute::F16, Compute::F32]
            .map(|compute| step_with(Arc::new(CubeOps::new(device.clone(), compute)), false, &batch, &targets));
        assert!((loss - want).abs() <= 5e-3 * want.abs(), "{name}: {loss} against {want}");
        let gap = distance(&grads, &want_grads);
        eprintln!("{name}: gradients are {gap} of the largest off float32");
        assert!(gap < 2e-2, "{name}: gradients are {gap} of the largest off");
    }
}
