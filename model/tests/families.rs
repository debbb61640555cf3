//! Every family against transformers and PEFT on tiny random models: logits, an adapter that PEFT saved, the loss, its
//! gradients, and the logits after one step; on our kernels and on the plain reference. Goldens and their script:
//! tests/reference/families.py.
//!
//! Both sides compute in float32 and in different orders, in sums of some 20 terms through up to four layers: they agree to
//! 2e-5 of the largest value (80 times float32's rounding), far below what any part that were left out would change. A step
//! of SGD carries the rounding of the gradients into the weights of a model that is made to be sensitive; behind it the
//! worst was 3e-5, and the bar is 1e-4.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_model::adapter::Adapter;
use limbeck_model::config::{Architecture, DecoderConfig};
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::generate::generate;
use limbeck_model::layout::Packed;
use limbeck_model::ops::{Lora, Ops, Target};
use limbeck_model::weights::Weights;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOLERANCE: f32 = 2e-5;
const AFTER_A_STEP: f32 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    rows: Vec<Vec<u32>>,
    at: Vec<(usize, usize)>,
    targets: Vec<(usize, usize, u32)>,
    learning_rate: f32,
    base: Vec<Vec<f32>>,
    adapted: Vec<Vec<f32>>,
    loss: f32,
    grads: BTreeMap<String, Vec<f32>>,
    stepped: Vec<Vec<f32>>,
}

struct Case {
    folder: PathBuf,
    golden: Golden,
    ops: Arc<dyn Ops>,
    decoder: Decoder,
}

fn families() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families")
}

fn open(name: &str, device: DeviceName) -> Case {
    let folder = families().join(name);
    let golden = serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
    let ops = ops(device).unwrap();
    let decoder = Decoder::from_weights(&Weights::open(&folder).unwrap(), ops.clone(), true).unwrap();
    Case { folder, golden, ops, decoder }
}

/// The rows packed, behind the prefix that they share where `shared` tokens of it are asked for.
fn pack(rows: &[Vec<u32>], shared: usize) -> (Arc<Packed>, impl Fn(usize, usize) -> usize + use<>) {
    let mut batch = Packed::with_prefix(&rows[0][..shared], 0);
    let starts: Vec<usize> = rows.iter().map(|row| batch.push_chain(&row[shared..], shared).start).collect();
    let place = move |row: usize, at: usize| if at < shared { at } else { starts[row] + at - shared };
    (Arc::new(batch), place)
}

impl Case {
    fn logits(&self, lora: Option<&LoraSet>, shared: usize) -> Vec<Vec<f32>> {
        let (batch, place) = pack(&self.golden.rows, shared);
        let hidden = self.decoder.forward(&batch, lora, None, None).unwrap();
        let rows: Vec<usize> = self.golden.at.iter().map(|&(row, at)| place(row, at)).collect();
        let logits = self.ops.logits(&hidden, self.decoder.head(), &rows);
        logits.chunks_exact(self.decoder.config.vocab_size).map(<[f32]>::to_vec).collect()
    }

    /// Loss, and the gradients of both factors of each module.
    fn step(&self, lora: &LoraSet, shared: usize) -> (f32, BTreeMap<String, Vec<f32>>) {
        let (batch, place) = pack(&self.golden.rows, shared);
        let tracked = |l: &Lora| Lora { a: l.a.clone().require_grad(), b: l.b.clone().require_grad(), ..l.clone() };
        let set: LoraSet = lora.iter().map(|(path, l)| (path.clone(), tracked(l))).collect();
        let hidden = self.decoder.forward(&batch, Some(&set), None, None).unwrap();
        let target = |&(row, at, token): &(usize, usize, u32)| Target { row: place(row, at), token, weight: 1.0 };
        let targets: Vec<Target> = self.golden.targets.iter().map(target).collect();
        let loss = self.ops.linear_cross_entropy(hidden, self.decoder.head(), &targets, targets.len() as f32);
        let grads = loss.backward();
        let read = |t: &burn::tensor::Tensor<2>| {
            t.grad(&grads).unwrap().into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
        };
        let factors = |(path, l): (&String, &Lora)| {
            [(format!("{path}.lora_A"), read(&l.a)), (format!("{path}.lora_B"), read(&l.b))]
        };
        let loss = loss.to_data().convert::<f32>().try_into_vec::<f32>().unwrap()[0];
        (loss, set.iter().flat_map(factors).collect())
    }
}

#[track_caller]
fn close(what: &str, got: &[f32], want: &[f32]) {
    within(TOLERANCE, what, got, want);
}

#[track_caller]
fn within(tolerance: f32, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}: length");
    let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    let gap = got.iter().zip(want).fold(0f32, |m, (g, w)| m.max((g - w).abs()));
    assert!(gap <= tolerance * size, "{what}: {gap} apart, the largest is {size}");
}

fn sgd(adapter: &Adapter, grads: &BTreeMap<String, Vec<f32>>, rate: f32) -> Adapter {
    let mut stepped = adapter.clone();
    for (path, pair) in &mut stepped.pairs {
        for (factor, values) in [("lora_A", &mut pair.a), ("lora_B", &mut pair.b)] {
            let grad = &grads[&format!("{path}.{factor}")];
            values.iter_mut().zip(grad).for_each(|(v, g)| *v -= rate * g);
        }
    }
    stepped
}

fn check(name: &str, architecture: Architecture) {
    for device in [DeviceName::CpuReference, DeviceName::Cpu] {
        let case = open(name, device);
        let golden = &case.golden;
        assert_eq!(case.decoder.config.architecture, architecture);
        for shared in [0, 5] {
            let what = |of: &str| format!("{name} on {device}, {shared} tokens shared: {of}");
            close(&what("logits"), &case.logits(None, shared).concat(), &golden.base.concat());
            let adapter = Adapter::load(&case.folder.join("adapter")).unwrap();
            let lora = adapter.constants(case.ops.as_ref());
            close(
                &what("logits under PEFT's adapter"),
                &case.logits(Some(&lora), shared).concat(),
                &golden.adapted.concat(),
            );
            let (loss, grads) = case.step(&lora, shared);
            close(&what("loss"), &[loss], &[golden.loss]);
            assert!(golden.grads.keys().all(|factor| grads.contains_key(factor)) && golden.grads.len() >= 8);
            let ours: Vec<f32> = golden.grads.keys().flat_map(|factor| grads[factor].clone()).collect();
            close(&what("gradients"), &ours, &golden.grads.values().flatten().copied().collect::<Vec<_>>());
            let stepped = sgd(&adapter, &grads, golden.learning_rate).constants(case.ops.as_ref());
            within(
                AFTER_A_STEP,
                &what("logits after a step"),
                &case.logits(Some(&stepped), shared).concat(),
                &golden.stepped.concat(),
            );
        }
    }
}

macro_rules! families {
    ($($test:ident: $name:literal, $architecture:ident;)*) => {
        $(#[test]
        fn $test() {
            check($name, Architecture::$architecture);
        })*

        #[test]
        fn every_golden_is_checked() {
            let mut checked = vec![$($name.to_owned()),*];
            checked.sort();
            let mut there: Vec<String> =
                std::fs::read_dir(families()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            there.sort();
            assert_eq!(there, checked);
            for architecture in Architecture::ALL {
                let class = format!("{architecture:?}");
                assert!([$(stringify!($architecture)),*].contains(&class.as_str()), "{class} has no golden");
            }
        }
    };
}

families! {
    llama: "llama", Llama;
    llama3: "llama3", Llama;
    llama_with_linear_scaling_and_biases: "llama-linear", Llama;
    llama_with_dynamic_scaling: "llama-dynamic", Llama;
    smollm2: "smollm2", Llama;
    smollm3: "smollm3", SmolLm3;
    mistral: "mistral", Mistral;
    qwen2: "qwen2", Qwen2;
    qwen3: "qwen3", Qwen3;
    gemma2: "gemma2", Gemma2;
    gemma3: "gemma3", Gemma3;
    gemma3_with_capped_logits: "gemma3-softcap", Gemma3;
    phi3: "phi3", Phi3;
    phi3_with_longrope: "phi3-longrope", Phi3;
}

/// Rows of many lengths, behind prefixes shorter and longer than the windows: packed behind the prefix, each row gives
/// what it gives when it repeats the prefix itself; loss and every gradient.
#[test]
fn packed_behind_a_prefix_equals_rows_of_their_own() {
    for name in ["mistral", "qwen2", "gemma3", "smollm3"] {
        for (seed, shared) in [(1u32, 1), (2, 4), (3, 9), (4, 14)] {
            let mut case = open(name, DeviceName::Cpu);
            let token =
                |i: usize, row: usize| (seed * 31 + i as u32 * 17 + if i < shared { 0 } else { row as u32 * 7 }) % 64;
            let lengths = [shared + 1, shared + 2, shared + 11, shared + 5];
            case.golden.rows =
                lengths.iter().enumerate().map(|(row, len)| (0..*len).map(|i| token(i, row)).collect()).collect();
            case.golden.targets = lengths.iter().enumerate().map(|(row, len)| (row, len - 1, row as u32 + 3)).collect();
            let lora = Adapter::load(&case.folder.join("adapter")).unwrap().constants(case.ops.as_ref());
            let ((loss, grads), (loss_apart, grads_apart)) = (case.step(&lora, shared), case.step(&lora, 0));
            close(&format!("{name}, {shared} shared: loss"), &[loss], &[loss_apart]);
            let flat = |grads: BTreeMap<String, Vec<f32>>| grads.into_values().flatten().collect::<Vec<_>>();
            close(&format!("{name}, {shared} shared: gradients"), &flat(grads), &flat(grads_apart));
        }
    }
}

/// Windows, unrotated layers and caps go through the cache of keys as through one pass.
#[test]
fn a_cached_prefix_changes_nothing_in_any_family() {
    for name in ["mistral", "smollm3", "gemma2", "gemma3", "qwen3", "phi3"] {
        for device in [DeviceName::CpuReference, DeviceName::Cpu] {
            let case = open(name, device);
            let row = &case.golden.rows[0];
            let whole = case.logits(None, 0);
            let kept = 11;
            let cache = case.decoder.cache(&row[..kept], None).unwrap();
            let mut batch = Packed::new();
            batch.push_chain(&row[kept..], kept);
            let hidden = case.decoder.forward(&Arc::new(batch), None, Some(&cache), None).unwrap();
            let last = case.golden.at.iter().position(|at| *at == (0, row.len() - 1)).unwrap();
            let logits = case.ops.logits(&hidden, case.decoder.head(), &[row.len() - 1 - kept]);
            close(&format!("{name} on {device}"), &logits, &whole[last]);
        }
    }
}

/// A window as long as the row is none, one shorter changes the answer: the windows of the goldens are at work.
#[test]
fn a_window_hides_what_lies_before_it() {
    let case = open("mistral", DeviceName::Cpu);
    let answer = |window: Option<usize>, row: &[u32]| {
        let mut config = case.decoder.config.clone();
        config.layers.iter_mut().for_each(|layer| layer.window = window);
        let weights = Weights::open(&case.folder).unwrap();
        let mut load = |name: &str| {
            let dense = weights.load(name).unwrap();
            Ok((dense.shape, dense.data))
        };
        let decoder = Decoder::load(&config, case.ops.clone(), false, &mut load).unwrap();
        decoder.log_probs(row, None).unwrap().pop().unwrap()
    };
    let row = &case.golden.rows[0];
    assert_eq!(answer(None, row), answer(Some(row.len()), row));
    assert_ne!(answer(None, row), answer(Some(5), row));
    // Two layers with a window of 5 reach 8 tokens back and no further.
    let mut other = row.clone();
    other[row.len() - 10] ^= 1;
    assert_eq!(answer(Some(5), row), answer(Some(5), &other));
    other[row.len() - 9] ^= 1;
    assert_ne!(answer(Some(5), row), answer(Some(5), &other));
}

#[test]
fn generation_is_the_greedy_path_under_a_window() {
    let case = open("gemma3", DeviceName::Cpu);
    let mut tokens = case.golden.rows[0].clone();
    for next in generate(&case.decoder, None, &tokens.clone(), 6, &[]).unwrap() {
        let last = case.decoder.log_probs(&tokens, None).unwrap().pop().unwrap();
        let best = (0..last.len()).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
        assert_eq!(next as usize, best);
        tokens.push(next);
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let (llama, phi3) = (open("llama", DeviceName::Cpu), open("phi3", DeviceName::Cpu));
    let adapter = Adapter::load(&phi3.folder.join("adapter")).unwrap();
    assert!(adapter.check(&phi3.decoder.config).is_ok());
    let error = adapter.check(&llama.decoder.config).unwrap_err().to_string();
    assert!(error.contains("sits on `model.layers.0.mlp.gate_up_proj`"), "{error}");
    let wider = Adapter::load(&families().join("smollm2/adapter")).unwrap();
    let error = wider.check(&llama.decoder.config).unwrap_err().to_string();
    assert!(error.contains("its factors make [24, 20]"), "{error}");
    let lora = adapter.constants(llama.ops.as_ref());
    let (batch, _) = pack(&llama.golden.rows, 0);
    let error = llama.decoder.forward(&batch, Some(&lora), None, None).unwrap_err().to_string();
    assert!(error.contains("gate_up_proj") && error.contains("does not have"), "{error}");
}

#[test]
fn what_peft_can_do_beyond_lora_is_refused_by_name() {
    let from = families().join("llama/adapter");
    for (key, value) in [
        ("alpha_pattern", serde_json::json!({"q_proj": 8})),
        ("bias", "all".into()),
        ("init_lora_weights", "pissa".into()),
        ("modules_to_save", serde_json::json!(["lm_head"])),
        ("alora_invocation_tokens", serde_json::json!([1, 2])),
    ] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(from.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
        let text = std::fs::read(from.join("adapter_config.json")).unwrap();
        let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
        json[key] = value;
        std::fs::write(folder.path().join("adapter_config.json"), json.to_string()).unwrap();
        let error = Adapter::load(folder.path()).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn targets_of_fused_modules_are_the_fused_ones() {
    let names = |names: &[&str]| names.iter().map(|n| n.to_string()).collect::<Vec<_>>();
    let phi3 = DecoderConfig::from_hf(&families().join("phi3/config.json")).unwrap();
    let all = names(&["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]);
    assert_eq!(phi3.resolve_targets(&all), Ok(names(&["down_proj", "gate_up_proj", "o_proj", "qkv_proj"])));
    let llama = DecoderConfig::from_hf(&families().join("llama/config.json")).unwrap();
    assert_eq!(llama.resolve_targets(&names(&["qkv_proj", "v_proj"])), Err(names(&["qkv_proj"])));
}
