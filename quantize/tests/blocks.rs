//! The encoders against ggml itself. tests/reference/ggml_blocks.py made the golden file.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use limbeck_artifact::digest::sha256_hex;
use limbeck_model::gguf::{GgmlType, dequantize};
use limbeck_quantize::encode::{EncodeError, encode, encode_weighted};
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

fn floats(hex: &str) -> Vec<f32> {
    unhex(hex).chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
}

#[test]
fn edge_blocks_are_ggml_s_to_the_bit() {
    let golden = golden();
    let blocks = golden["blocks"].as_array().unwrap();
    assert!(blocks.len() > 20);
    for block in blocks {
        let x = floats(block["f32"].as_str().unwrap());
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
        let (seed, n) = (series["seed"].as_u64().unwrap(), series["n"].as_u64().unwrap() as usize);
        let x = match series["name"].as_str().unwrap() {
            "fine" => fine(seed, n),
            "coarse" => coarse(seed, n),
            "bell" => bell(seed, n),
            other => panic!("unknown series {other}"),
        };
        let bytes = encode(GgmlType::F32, &x).unwrap();
        assert_eq!(sha256_hex(&bytes), series["f32_sha256"].as_str().unwrap(), "the series itself");
        for (name, ty) in TYPES {
            let got = sha256_hex(&encode(ty, &x).unwrap());
            assert_eq!(got, series[name].as_str().unwrap(), "{name} {}", series["name"]);
        }
        check_searched(&x, 1024, series, &series["name"].to_string());
    }
}

/// Superblocks of eight edge blocks, each beginning at another of them.
#[test]
fn edge_superblocks_are_ggml_s_to_the_bit() {
    let golden = golden();
    let blocks: Vec<Vec<f32>> =
        golden["blocks"].as_array().unwrap().iter().map(|b| floats(b["f32"].as_str().unwrap())).collect();
    let supers = golden["supers"].as_array().unwrap();
    assert_eq!(supers.len(), blocks.len());
    for golden in supers {
        let first = golden["first"].as_u64().unwrap() as usize;
        let x: Vec<f32> = (0..8).flat_map(|i| blocks[(first + i) % blocks.len()].clone()).collect();
        check_searched(&x, 256, golden, &format!("blocks from {first}"));
    }
}

/// What is searched for: k-quants, IQ4_NL, and the other types under an importance matrix of `width` columns.
fn check_searched(x: &[f32], width: usize, golden: &Value, what: &str) {
    let searched = [
        ("Q4_K", GgmlType::Q4_K),
        ("Q5_K", GgmlType::Q5_K),
        ("Q6_K", GgmlType::Q6_K),
        ("IQ4_NL", GgmlType::IQ4_NL),
        ("Q4_0", GgmlType::Q4_0),
        ("Q4_1", GgmlType::Q4_1),
        ("Q5_0", GgmlType::Q5_0),
        ("Q5_1", GgmlType::Q5_1),
    ];
    let even: Vec<f32> = values(19, width, |u| ((u >> 48) + 1) as f32 * 2f32.powi(-((u & 7) as i32) - 8));
    let mut gaps = even.clone();
    gaps.iter_mut().step_by(3).for_each(|w| *w = 0.0);
    gaps[64..96].fill(0.0);
    let mut checked = 0;
    for (name, ty) in searched {
        let kinds =
            [(name.to_owned(), None), (format!("{name} even"), Some(&even)), (format!("{name} gaps"), Some(&gaps))];
        for (key, importance) in kinds {
            let Some(want) = golden.get(&key) else { continue };
            let got = match importance {
                None => encode(ty, x),
                Some(importance) => encode_weighted(ty, x, importance),
            };
            match want.as_str() {
                Some(want) => assert_eq!(sha256_hex(&got.unwrap()), want, "{key}, {what}"),
                // ggml writes blocks here that decode to what is no number, or to nothing like the values.
                None => assert!(matches!(got, Err(EncodeError::Overflow { .. })), "{key}, {what}: {got:?}"),
            }
            checked += 1;
        }
    }
    // Without importance a series names the other types too.
    assert!(matches!(checked, 20 | 24), "{checked}");
}

fn values(seed: u64, n: usize, value: impl Fn(u64) -> f32) -> Vec<f32> {
    let mut next = splitmix64(seed);
    (0..n).map(|_| value(next())).collect()
}

fn fine(seed: u64, n: usize) -> Vec<f32> {
    values(seed, n, |u| ((u >> 40) as f32 - 8_388_608.0) * 2f32.powi((u & 15) as i32 - 32))
}

fn coarse(seed: u64, n: usize) -> Vec<f32> {
    values(seed, n, |u| ((u >> 57) as f32 - 64.0) / 4.0)
}

fn bell(seed: u64, n: usize) -> Vec<f32> {
    let parts = |u: u64| (u & 0xffff) + (u >> 16 & 0xffff) + (u >> 32 & 0xffff) + (u >> 48);
    let mut next = splitmix64(seed);
    (0..n).map(|_| ((parts(next()) + parts(next())) as f32 - 8.0 * 32768.0) * 2f32.powi(-22)).collect()
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
