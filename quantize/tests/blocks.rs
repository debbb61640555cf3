//! The encoders against ggml itself. tests/reference/ggml_blocks.py made the golden file.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use limbeck_artifact::digest::sha256_hex;
use limbeck_model::gguf::{GgmlType, dequantize};
use limbeck_quantize::encode::{EncodeError, encode};
use proptest::prelude::*;
use serde_json::Value;

const TYPES: [(&str, GgmlType); 7] = [
    ("F16", GgmlType::F16),
    ("BF16", GgmlType::BF16),
    ("Q4_0", GgmlType::Q4_0),
    ("Q4_1", GgmlType::Q4_1),
    ("Q5_0", GgmlType::Q5_0),
    ("Q5_1", GgmlType::Q5_1),
    ("Q8_0", GgmlType::Q8_0),
];

fn golden() -> Value {
    serde_json::from_str(include_str!("golden/blocks.json")).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

#[test]
fn edge_blocks_are_ggml_s_to_the_bit() {
    let golden = golden();
    let blocks = golden["blocks"].as_array().unwrap();
    assert!(blocks.len() > 20);
    for block in blocks {
        let bytes = unhex(block["f32"].as_str().unwrap());
        let x: Vec<f32> = bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
        for (name, ty) in TYPES {
            let got = encode(ty, &x);
            match block[name].as_str() {
                Some(want) => assert_eq!(hex(&got.unwrap()), want, "{name} {}", block["name"]),
                // ggml writes a block here that decodes to infinity or NaN.
                None => assert!(matches!(got, Err(EncodeError::Overflow { .. })), "{name} {}: {got:?}", block["name"]),
            }
        }
    }
}

fn splitmix64(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[test]
fn long_series_are_ggml_s_to_the_bit() {
    for series in golden()["series"].as_array().unwrap() {
        let mut next = splitmix64(series["seed"].as_u64().unwrap());
        let n = series["n"].as_u64().unwrap();
        let x: Vec<f32> = match series["name"].as_str().unwrap() {
            "fine" => (0..n)
                .map(|_| next())
                .map(|u| ((u >> 40) as f32 - 8_388_608.0) * 2f32.powi((u & 15) as i32 - 32))
                .collect(),
            "coarse" => (0..n).map(|_| ((next() >> 57) as f32 - 64.0) / 4.0).collect(),
            other => panic!("unknown series {other}"),
        };
        let bytes = encode(GgmlType::F32, &x).unwrap();
        assert_eq!(sha256_hex(&bytes), series["f32_sha256"].as_str().unwrap(), "the series itself");
        for (name, ty) in TYPES {
            let got = sha256_hex(&encode(ty, &x).unwrap());
            assert_eq!(got, series[name].as_str().unwrap(), "{name} {}", series["name"]);
        }
    }
}

proptest! {
    /// Reading back what was written is within half a step of what went in (a whole step at the asymmetric end).
    #[test]
    fn a_block_keeps_its_values_within_a_step(x in prop::collection::vec(-100f32..100.0, 64)) {
        for (ty, steps) in [(GgmlType::Q8_0, 127.0), (GgmlType::Q4_0, 8.0), (GgmlType::Q5_0, 16.0)] {
            let mut back = vec![0.0; 64];
            dequantize(ty, &encode(ty, &x).unwrap(), &mut back).unwrap();
            for (x, back) in x.chunks(32).zip(back.chunks(32)) {
                let step = x.iter().fold(0.0f32, |m, v| m.max(v.abs())) / steps;
                for (a, b) in x.iter().zip(back) {
                    prop_assert!((a - b).abs() <= step * 1.01, "{ty:?} {a} {b} step {step}");
                }
            }
        }
    }
}
