//! A base in codes: the codes against bitsandbytes' and llama.cpp's, a training step over them against one over the decoded
//! weights, and what they take. The goldens come from tests/reference/quantized_base.py.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../tests/fixtures/tiny_base.rs"]
#[allow(dead_code, reason = "each test file uses its part")]
mod tiny_base;

use burn::tensor::Device;
use common::{distance, step_of};
use limbeck_artifact::digest::sha256_hex;
use limbeck_model::decoder::{Decoder, LINEARS, module_path};
use limbeck_model::gguf::GgmlType;
use limbeck_model::layout::Packed;
use limbeck_model::ops::codes::{Codes, DYNAMIC, DoubleScales, QuantizeBase};
use limbeck_model::ops::flex::bf16::Engine;
use limbeck_model::ops::flex::{Compute, FlexOps};
use limbeck_model::ops::stock::StockOps;
use limbeck_model::ops::{Ops, Target};
use limbeck_model::weights::Weights;
use serde_json::Value as Json;
use std::sync::Arc;

const ALL: [QuantizeBase; 3] = [QuantizeBase::Int8, QuantizeBase::Nf4, QuantizeBase::Nf4DoubleQuant];

fn golden() -> (Json, Vec<f32>, [usize; 2]) {
    let golden: Json = serde_json::from_str(include_str!("golden/quantized_base.json")).unwrap();
    let values = floats(&golden["values"]);
    let shape = serde_json::from_value(golden["shape"].clone()).unwrap();
    (golden, values, shape)
}

fn floats(bits: &Json) -> Vec<f32> {
    serde_json::from_value::<Vec<u32>>(bits.clone()).unwrap().into_iter().map(f32::from_bits).collect()
}

fn bytes(hex: &Json) -> Vec<u8> {
    let hex = hex.as_str().unwrap();
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn nf4_is_bitsandbytes() {
    let (golden, values, [n_out, n_in]) = golden();
    let codes = Codes::quantize(QuantizeBase::Nf4, &values, n_out, n_in).unwrap();
    let (got, absmax) = codes.nf4().unwrap();
    assert_eq!(got, bytes(&golden["nf4"]["codes"]));
    assert_eq!(bits(absmax), bits(&floats(&golden["nf4"]["absmax"])));
    assert_eq!(bits(&codes.dequantize()), bits(&floats(&golden["nf4"]["back"])));
}

/// The values that the script quantizes for this: products and quotients that every processor rounds alike.
fn many(blocks: u64) -> Vec<f32> {
    let value = |i: u64| {
        let random = ((i * 2_654_435_761) % (1 << 32)) >> 8;
        let block = i / 64;
        (random as f32 / (1 << 24) as f32 - 0.5) * (1.0 + ((block * block) % 97) as f32 / 16.0)
    };
    (0..blocks * 64).map(value).collect()
}

#[test]
fn double_quantized_scales_are_bitsandbytes() {
    let golden: Json = serde_json::from_str(include_str!("golden/quantized_base.json")).unwrap();
    let golden = &golden["nf4_double"];
    let table: Vec<u32> = DYNAMIC.iter().map(|x| x.to_bits()).collect();
    assert_eq!(table, serde_json::from_value::<Vec<u32>>(golden["table"].clone()).unwrap());
    let values = many(golden["blocks"].as_u64().unwrap());
    let codes = Codes::quantize(QuantizeBase::Nf4DoubleQuant, &values, values.len() / 64, 64).unwrap();
    let (own, DoubleScales { codes: scales, absmax, offset }) = codes.nf4_double().unwrap();
    assert!(absmax.len() == 3 && absmax.len() * 256 > scales.len(), "the last block is cut short");
    assert_eq!(bits(absmax), bits(&floats(&golden["absmax"])));
    assert_eq!(u64::from(offset.to_bits()), golden["offset"].as_u64().unwrap());
    assert_eq!(scales, bytes(&golden["scales"]));
    let le = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    assert_eq!(sha256_hex(own), golden["codes_sha256"].as_str().unwrap());
    assert_eq!(sha256_hex(&le(&codes.dequantize())), golden["back_sha256"].as_str().unwrap());
    // What it costs: the scales are some 1 % off, the codes are the same.
    let plain = Codes::quantize(QuantizeBase::Nf4, &values, values.len() / 64, 64).unwrap();
    assert_eq!(plain.nf4().unwrap().0, own);
    assert_eq!(plain.bytes() - codes.bytes(), 3 * scales.len() - 4 * absmax.len() - 4);
}

#[test]
fn int8_is_ggmls_q8_0() {
    let (golden, values, [n_out, n_in]) = golden();
    let codes = Codes::quantize(QuantizeBase::Int8, &values, n_out, n_in).unwrap();
    let file = Codes::from_q8_0(&bytes(&golden["q8_0"]), n_out, n_in).unwrap();
    assert_eq!(codes, file);
    let again = Codes::quantize(QuantizeBase::Int8, &file.dequantize(), n_out, n_in).unwrap();
    assert_eq!(again, file, "what ggml made keeps its codes when it is quantized again");
}

fn base(ty: GgmlType) -> (tempfile::TempDir, Weights) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("base.gguf");
    tiny_base::write(&path, 2, ty, 11);
    let weights = Weights::open(&path).unwrap();
    (dir, weights)
}

fn linears(weights: &Weights) -> Vec<String> {
    let layers = weights.config().num_hidden_layers;
    (0..layers).flat_map(|i| LINEARS.iter().map(move |l| format!("{}.weight", module_path(i, l)))).collect()
}

/// The tiny base's blocks hold any codes, -128 too, and seldom reach 127: quantizing them again would change them.
#[test]
fn a_q8_0_base_is_taken_as_it_is() {
    let (_dir, weights) = base(GgmlType::Q8_0);
    let mut changed = 0;
    for name in linears(&weights) {
        let dense = weights.load(&name).unwrap();
        let codes = weights.codes(&name, QuantizeBase::Int8).unwrap().unwrap();
        assert_eq!([codes.n_out, codes.n_in], dense.shape[..], "{name}");
        assert_eq!(bits(&codes.dequantize()), bits(&dense.data), "{name}");
        changed +=
            usize::from(Codes::quantize(QuantizeBase::Int8, &dense.data, codes.n_out, codes.n_in) != Some(codes));
        assert!(weights.codes(&name, QuantizeBase::Nf4).unwrap().is_none());
        assert!(weights.codes(&name, QuantizeBase::None).unwrap().is_none());
    }
    assert!(changed > 0);
    let (_dir, plain) = base(GgmlType::F32);
    assert!(plain.codes(&linears(&plain)[0], QuantizeBase::Int8).unwrap().is_none());

    let ops = || Arc::new(FlexOps::default());
    let tokens = [1, 40, 7, 99, 3];
    let kept = Decoder::from_weights_quantized(&weights, ops(), false, QuantizeBase::Int8).unwrap();
    let kept = kept.log_probs(&tokens, None).unwrap();
    let dense = decoded(&weights, ops(), QuantizeBase::None).log_probs(&tokens, None).unwrap();
    for (x, y) in kept.iter().flatten().zip(dense.iter().flatten()) {
        assert!((x - y).abs() < 1e-4, "{x} {y}");
    }
}

/// The base with its linear maps quantized and decoded again, and its embedding rounded: what a base in codes must train
/// like.
fn decoded(weights: &Weights, ops: Arc<dyn Ops>, quantize: QuantizeBase) -> Decoder {
    let linears = linears(weights);
    Decoder::load(weights.config(), ops, true, &mut |name| {
        let mut dense = weights.load(name).unwrap();
        if linears.iter().any(|l| l == name) {
            if let Some(codes) = Codes::quantize(quantize, &dense.data, dense.shape[0], dense.shape[1]) {
                dense.data = codes.dequantize();
            }
        } else if name == "model.embed_tokens.weight" {
            dense.data.iter_mut().for_each(|x| *x = half::bf16::from_f32(*x).to_f32());
        }
        Ok((dense.shape, dense.data))
    })
    .unwrap()
}

fn batch() -> (Packed, Vec<Target>) {
    let tokens = |n: usize, seed: usize| -> Vec<u32> { (0..n).map(|i| ((i * 7 + seed * 13) % 250) as u32).collect() };
    let mut batch = Packed::with_prefix(&tokens(9, 1), 0);
    let mut targets = Vec::new();
    for n in [70, 1, 33] {
        let rows = batch.push_chain(&tokens(n, n), 9);
        targets.push(Target { row: rows.end - 1, token: (n % 250) as u32, weight: 1.0 });
    }
    (batch, targets)
}

#[test]
fn a_step_over_codes_is_the_step_over_the_decoded_weights() {
    let (_dir, weights) = base(GgmlType::F32);
    let (batch, targets) = batch();
    let engines = [Engine::Portable, Engine::Avx512, Engine::Amx].into_iter().filter(|e| e.available());
    for quantize in ALL {
        let stock = || Arc::new(StockOps::new(Device::flex()));
        let (want, want_grads) = step_of(&decoded(&weights, stock(), quantize), &batch, &targets);
        let plain = step_of(&Decoder::from_weights(&weights, stock(), true).unwrap(), &batch, &targets);
        assert!(distance(&plain.1, &want_grads) > 1e-4, "{quantize} changes nothing");
        let over_codes = |ops: Arc<dyn Ops>| {
            let decoder = Decoder::from_weights_quantized(&weights, ops, true, quantize).unwrap();
            assert_eq!(decoder.quantized(), quantize);
            step_of(&decoder, &batch, &targets)
        };
        for ops in [stock() as Arc<dyn Ops>, Arc::new(FlexOps::default())] {
            let (loss, grads) = over_codes(ops);
            assert!((loss - want).abs() <= 1e-5 * want.abs(), "{quantize}: {loss} against {want}");
            let gap = distance(&grads, &want_grads);
            assert!(gap < 1e-5, "{quantize}: gradients differ by {gap} of the largest");
        }
        // In bfloat16 the operands are the same bits, and so are the sums; but the loss over codes stores its logits and the
        // other works them out twice, so that a gradient may be rounded to bfloat16 the other way.
        for engine in engines.clone() {
            let ops = || Arc::new(FlexOps::new(Compute::Bf16(engine)));
            let (loss, grads) = over_codes(ops());
            let (want, want_grads) = step_of(&decoded(&weights, ops(), quantize), &batch, &targets);
            assert!((loss - want).abs() <= 1e-6 * want.abs(), "{quantize} with {engine:?}: {loss} against {want}");
            let gap = distance(&grads, &want_grads);
            assert!(gap < 1e-3, "{quantize} with {engine:?}: gradients differ by {gap} of the largest");
        }
    }
}

/// Where the widths are no multiple of a block: the families' tiny decoder has 24 and 40 columns.
#[test]
fn widths_need_be_no_multiple_of_a_block() {
    let mut batch = Packed::new();
    let rows = batch.push_chain(&[3, 1, 4, 1, 5, 9, 2, 6], 0);
    let targets = [Target { row: rows.end - 1, token: 5, weight: 1.0 }];
    for quantize in ALL {
        let made = |ops: Arc<dyn Ops>| {
            let plain = common::decoder(ops.clone(), None);
            let mut load = |name: &str| common::tensor(&plain.config, name);
            Decoder::load_quantized(&plain.config, ops, true, quantize, &mut load, &mut |_| Ok(None)).unwrap()
        };
        let (loss, grads) = step_of(&made(Arc::new(FlexOps::default())), &batch, &targets);
        let (want, want_grads) = step_of(&made(Arc::new(StockOps::new(Device::flex()))), &batch, &targets);
        assert!((loss - want).abs() <= 1e-5 * want.abs(), "{quantize}: {loss} against {want}");
        assert!(distance(&grads, &want_grads) < 1e-5, "{quantize}");
    }
}

#[test]
fn checkpointing_and_the_number_of_threads_change_no_bit() {
    let (_dir, weights) = base(GgmlType::F32);
    let (batch, targets) = batch();
    for quantize in ALL {
        for compute in [Compute::F32, Compute::Bf16(Engine::best())] {
            let run = |threads: usize, checkpoint: bool| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let ops = Arc::new(FlexOps::new(compute));
                    let decoder = Decoder::from_weights_quantized(&weights, ops, true, quantize).unwrap();
                    let (loss, grads) = step_of(&decoder.with_checkpointing(checkpoint), &batch, &targets);
                    (loss.to_bits(), bits(&grads.concat()))
                })
            };
            let want = run(1, false);
            assert_eq!(run(3, false), want, "{quantize} in {compute:?} with 3 threads");
            assert_eq!(run(2, true), want, "{quantize} in {compute:?} with checkpointing");
        }
    }
}

#[test]
fn codes_are_kept_once_and_take_what_they_should() {
    let (_dir, weights) = base(GgmlType::F32);
    let values: u64 =
        linears(&weights).iter().map(|name| weights.shape(name).unwrap().iter().product::<usize>() as u64).sum();
    let table = (weights.config().vocab_size * weights.config().hidden_size) as u64;
    let bytes = |quantize| {
        let ops = Arc::new(FlexOps::default());
        Decoder::from_weights_quantized(&weights, ops, true, quantize).unwrap().base_bytes()
    };
    assert_eq!(bytes(QuantizeBase::None), [8 * values, 8 * table], "float32, once for each pass");
    assert_eq!(bytes(QuantizeBase::Int8), [values * 34 / 32, 2 * table]);
    assert_eq!(bytes(QuantizeBase::Nf4), [values * 36 / 64, 2 * table]);
    let scales = |name: &String| {
        let scales = weights.shape(name).unwrap().iter().product::<usize>().div_ceil(64);
        (scales + 4 * scales.div_ceil(256) + 4) as u64
    };
    let scales: u64 = linears(&weights).iter().map(scales).sum();
    assert_eq!(bytes(QuantizeBase::Nf4DoubleQuant), [values / 2 + scales, 2 * table]);
}
