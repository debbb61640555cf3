//! A tiny decoder with seeded random weights, on any op set.
#![allow(dead_code, reason = "each test file uses its part")]

use limbeck_model::adapter::{Adapter, AdapterConfig, LoraPair};
use limbeck_model::config::DecoderConfig;
use limbeck_model::decoder::{Decoder, DecoderError, LINEARS, LoraSet, module_path};
use limbeck_model::device::DeviceName;
use limbeck_model::ops::dora::Dora;
use limbeck_model::ops::{Lora, Ops, Target};
use std::collections::BTreeMap;
use std::sync::Arc;

pub fn values(n: usize, seed: u64, scale: f32) -> Vec<f32> {
    let mut z = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            z ^= z << 13;
            z ^= z >> 7;
            z ^= z << 17;
            ((z >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 2.0 * scale
        })
        .collect()
}

/// The op set of the device that `LIMBECK_TEST_DEVICE` names, as in `--device`: held against the reference beside the CPU's.
pub fn of_device() -> Option<Arc<dyn Ops>> {
    let name: DeviceName = std::env::var("LIMBECK_TEST_DEVICE").ok()?.parse().unwrap();
    Some(limbeck_model::device::ops(name).unwrap())
}

/// What a layer and its adapters have beside the plain ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Kind {
    pub head_norms: bool,
    pub bias: bool,
    pub dora: bool,
}

pub const PLAIN: Kind = Kind { head_norms: false, bias: false, dora: false };
pub const KINDS: [Kind; 5] = [
    PLAIN,
    Kind { head_norms: true, ..PLAIN },
    Kind { dora: true, ..PLAIN },
    Kind { dora: true, bias: true, ..PLAIN },
    Kind { dora: true, bias: true, head_norms: true },
];

pub fn config() -> DecoderConfig {
    config_of(PLAIN)
}

pub fn config_of(kind: Kind) -> DecoderConfig {
    config_with(kind, &serde_json::Value::Null)
}

/// The same with some of its keys given.
pub fn config_with(kind: Kind, given: &serde_json::Value) -> DecoderConfig {
    let mut json = serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4, "intermediate_size": 40,
        "vocab_size": 50, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512,
        "tie_word_embeddings": true, "hidden_act": "silu", "attention_bias": kind.bias
    });
    match kind.head_norms {
        true => (json["model_type"], json["architectures"]) = ("qwen3".into(), vec!["Qwen3ForCausalLM"].into()),
        false => json["mlp_bias"] = kind.bias.into(),
    }
    for (key, value) in given.as_object().into_iter().flatten() {
        json[key.as_str()] = value.clone();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    std::fs::write(&path, json.to_string()).unwrap();
    DecoderConfig::from_hf(&path).unwrap()
}

fn seed(name: &str) -> u64 {
    name.bytes().fold(7, |h, b| h * 31 % 1_000_003 + b as u64)
}

/// A weight of the tiny decoder.
pub fn tensor(c: &DecoderConfig, name: &str) -> Result<(Vec<usize>, Vec<f32>), DecoderError> {
    let (h, f, kv) = (c.hidden_size, c.intermediate_size, c.num_key_value_heads * c.head_dim);
    let shape = match name {
        n if n.contains("q_norm") || n.contains("k_norm") => vec![c.head_dim],
        n if n.ends_with(".bias") && (n.contains("k_proj") || n.contains("v_proj")) => vec![kv],
        n if n.ends_with(".bias") && (n.contains("gate") || n.contains("up")) => vec![f],
        n if n.ends_with(".bias") => vec![h],
        n if n.contains("norm") => vec![h],
        n if n.contains("embed") => vec![c.vocab_size, h],
        n if n.contains("k_proj") || n.contains("v_proj") => vec![kv, h],
        n if n.contains("gate") || n.contains("up") => vec![f, h],
        n if n.contains("down") => vec![h, f],
        n if n.contains("q_proj") => vec![c.num_attention_heads * c.head_dim, h],
        n if n.contains("o_proj") => vec![h, c.num_attention_heads * c.head_dim],
        _ => vec![h, h],
    };
    let n = shape.iter().product();
    let mut data = values(n, seed(name), if shape.len() == 1 { 0.3 } else { 0.35 });
    if name.contains("norm") {
        data.iter_mut().for_each(|x| *x += 1.0);
    }
    Ok((shape, data))
}

pub fn decoder(ops: Arc<dyn Ops>, adapter: Option<&Adapter>) -> Decoder {
    decoder_of(PLAIN, ops, adapter)
}

pub fn decoder_of(kind: Kind, ops: Arc<dyn Ops>, adapter: Option<&Adapter>) -> Decoder {
    decoder_with(&config_of(kind), ops, adapter)
}

pub fn decoder_with(c: &DecoderConfig, ops: Arc<dyn Ops>, adapter: Option<&Adapter>) -> Decoder {
    let mut load = |name: &str| {
        let (shape, mut data) = tensor(c, name)?;
        let pair = adapter.and_then(|a| a.pairs.get(name.strip_suffix(".weight").unwrap_or(name)));
        if let Some(p) = pair {
            let scaling = adapter.map_or(0.0, |a| a.scaling());
            for o in 0..p.n_out {
                for i in 0..p.n_in {
                    let delta: f32 = (0..p.r).map(|r| p.b[o * p.r + r] * p.a[r * p.n_in + i]).sum();
                    data[o * p.n_in + i] += scaling * delta;
                }
            }
        }
        Ok((shape, data))
    };
    Decoder::load(c, ops, true, &mut load).unwrap()
}

pub fn adapter(decoder: &Decoder, r: usize) -> Adapter {
    let names: Vec<String> = LINEARS.iter().map(|l| l.rsplit('.').next().unwrap().to_string()).collect();
    let mut pairs = BTreeMap::new();
    for layer in 0..decoder.config.num_hidden_layers {
        for (which, linear) in LINEARS.iter().enumerate() {
            let (n_out, n_in) = decoder.linear_shape(layer, which);
            let path = module_path(layer, linear);
            let (a, b) = (values(r * n_in, seed(&path), 0.3), values(n_out * r, seed(&path) + 1, 0.3));
            pairs.insert(path, LoraPair { a, b, magnitude: None, r, n_in, n_out });
        }
    }
    Adapter { config: AdapterConfig::lora("tiny", r, 2.0 * r as f32, &names, false), pairs, head: None }
}

/// Loss and the gradient of every factor over a packed batch.
pub fn step(ops: Arc<dyn Ops>, batch: &limbeck_model::layout::Packed, targets: &[Target]) -> (f32, Vec<Vec<f32>>) {
    step_with(ops, false, batch, targets)
}

/// The same, with each layer run again in the backward pass where `checkpoint`.
pub fn step_with(
    ops: Arc<dyn Ops>,
    checkpoint: bool,
    batch: &limbeck_model::layout::Packed,
    targets: &[Target],
) -> (f32, Vec<Vec<f32>>) {
    step_of(&decoder(ops, None).with_checkpointing(checkpoint), batch, targets)
}

/// The same of any decoder.
pub fn step_of(decoder: &Decoder, batch: &limbeck_model::layout::Packed, targets: &[Target]) -> (f32, Vec<Vec<f32>>) {
    step_under(decoder, &adapter(decoder, 3), batch, targets)
}

/// The adapter of [`adapter`], under DoRA with lengths away from the row norms.
pub fn adapter_of(kind: Kind, decoder: &Decoder) -> Adapter {
    adapter_of_rank(3, kind, decoder)
}

pub fn adapter_of_rank(r: usize, kind: Kind, decoder: &Decoder) -> Adapter {
    let mut adapter = adapter(decoder, r);
    if kind.dora {
        adapter.config.use_dora = true;
        for (path, pair) in &mut adapter.pairs {
            let away = values(pair.n_out, seed(path) + 2, 0.3);
            pair.magnitude = Some(decoder.row_norms(path).iter().zip(away).map(|(norm, x)| norm * (1.0 + x)).collect());
        }
    }
    adapter
}

/// Loss and gradients of the adapter's parts, module by module: A, B, and magnitudes where there are such.
pub fn step_under(
    decoder: &Decoder,
    adapter: &Adapter,
    batch: &limbeck_model::layout::Packed,
    targets: &[Target],
) -> (f32, Vec<Vec<f32>>) {
    let ops = decoder.ops();
    let tracked = |l: Lora| Lora {
        a: l.a.require_grad(),
        b: l.b.require_grad(),
        dora: l.dora.map(|dora| Dora::new(dora.magnitude.require_grad())),
        ..l
    };
    let set: LoraSet = adapter.constants(ops.as_ref()).into_iter().map(|(k, l)| (k, tracked(l))).collect();
    let hidden = decoder.forward(&Arc::new(batch.clone()), Some(&set), None, None).unwrap();
    let denominator = targets.iter().map(|t| t.weight).sum();
    let loss = ops.linear_cross_entropy(hidden, decoder.head(), targets, denominator);
    let grads = loss.backward();
    let read = |t: &burn::tensor::Tensor<2>| {
        t.grad(&grads).unwrap().into_data().convert::<f32>().try_into_vec::<f32>().unwrap()
    };
    let parts = |l: &Lora| {
        let magnitude = l.dora.as_ref().map(|dora| read(&dora.magnitude));
        [read(&l.a), read(&l.b)].into_iter().chain(magnitude).collect::<Vec<_>>()
    };
    let all = set.values().flat_map(parts).collect();
    (loss.to_data().convert::<f32>().try_into_vec::<f32>().unwrap()[0], all)
}

/// Largest difference relative to the largest value, over all gradients.
pub fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    let size = b.iter().flatten().fold(1e-9f32, |m, x| m.max(x.abs()));
    let gap = a.iter().flatten().zip(b.iter().flatten()).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    gap / size
}
