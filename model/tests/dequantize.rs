//! Every block type decodes to the bits that ggml decodes it to. The goldens come from tests/reference/dequantize.py.

#![allow(clippy::unwrap_used, reason = "tests")]

use limbeck_artifact::digest::sha256_hex;
use limbeck_model::gguf::{GgmlType, dequantize};
use serde_json::Value as Json;

#[test]
fn blocks_decode_to_ggmls_bits() {
    let golden: Json = serde_json::from_str(include_str!("golden/dequantize.json")).unwrap();
    for ty in GgmlType::ALL {
        let expected = &golden[ty.name()];
        let values = decode(ty, expected);
        let bits: Vec<u64> = values.iter().take(32).map(|v| v.to_bits().into()).collect();
        let expected_bits: Vec<u64> = serde_json::from_value(expected["first_bits"].clone()).unwrap();
        assert_eq!(bits, expected_bits, "{ty}: the first values differ");
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(sha256_hex(&bytes), expected["sha256"].as_str().unwrap(), "{ty}: a later value differs");
    }
}

#[test]
fn a_length_that_is_no_whole_number_of_blocks_is_refused() {
    for (bytes, values) in [(18, 31), (17, 32), (36, 32), (0, 32)] {
        assert!(dequantize(GgmlType::Q4_0, &vec![0; bytes], &mut vec![0.0; values]).is_err(), "{bytes} {values}");
    }
}

fn decode(ty: GgmlType, golden: &Json) -> Vec<f32> {
    let n = golden["blocks"].as_u64().unwrap() as usize;
    let mut bytes = splitmix64(golden["seed"].as_u64().unwrap(), n * ty.block_bytes());
    let high: Vec<usize> = serde_json::from_value(golden["high_bytes"].clone()).unwrap();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        high.iter().for_each(|&at| block[at] &= 0xBF);
    }
    let mut values = vec![0.0; n * ty.block_len()];
    dequantize(ty, &bytes, &mut values).unwrap();
    values
}

fn splitmix64(mut seed: u64, n: usize) -> Vec<u8> {
    (0..n)
        .map(|_| {
            seed = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let z = (seed ^ (seed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 56) as u8
        })
        .collect()
}
