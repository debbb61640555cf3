//! What calibration sums up, against PyTorch's hooks on the same tiny models under the same adapters. Goldens and their
//! script: tests/reference/calibration.py.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use limbeck_artifact::event::Silent;
use limbeck_model::device::DeviceName;
use limbeck_quantize::{CalibratePlan, ImportanceMatrix, calibrate};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn family(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(name)
}

fn rows(name: &str) -> Vec<Vec<u32>> {
    let golden: Value = serde_json::from_slice(&std::fs::read(family(name).join("golden.json")).unwrap()).unwrap();
    serde_json::from_value(golden["rows"].clone()).unwrap()
}

fn calibrated(name: &str, device: DeviceName, adapter: bool) -> ImportanceMatrix {
    let plan = CalibratePlan {
        base: family(name),
        adapter: adapter.then(|| family(name).join("adapter")),
        device,
        datasets: vec!["rows".into()],
    };
    calibrate(&plan, &rows(name), &Silent).unwrap()
}

#[test]
fn sums_are_pytorch_s() {
    let golden: Value = serde_json::from_str(include_str!("golden/calibration.json")).unwrap();
    for (name, tensors) in golden.as_object().unwrap() {
        for device in [DeviceName::Cpu, DeviceName::CpuReference] {
            let matrix = calibrated(name, device, true);
            let tensors = tensors.as_object().unwrap();
            assert!(matrix.entries.keys().eq(tensors.keys()), "{name}: {:?}", matrix.entries.keys());
            for (tensor, want) in tensors {
                let entry = &matrix.entries[tensor];
                assert_eq!(entry.count, rows(name).iter().map(Vec::len).sum::<usize>() as f32);
                let want: Vec<f32> = serde_json::from_value(want.clone()).unwrap();
                assert_eq!(entry.sums.len(), want.len());
                let largest = want.iter().fold(0f32, |m, v| m.max(*v));
                for (got, want) in entry.sums.iter().zip(&want) {
                    // Both sides run in float32, and sum in other orders.
                    assert!((got - want).abs() <= 1e-4 * largest, "{name} {tensor}: {got} and not {want}");
                }
            }
        }
    }
}

#[test]
fn maps_in_one_matrix_have_one_entry() {
    let names: Vec<String> = calibrated("phi3", DeviceName::Cpu, true).entries.into_keys().collect();
    let parts = ["attn_output", "attn_qkv", "ffn_down", "ffn_up"];
    let want: Vec<String> = (0..2).flat_map(|i| parts.map(|part| format!("blk.{i}.{part}.weight"))).collect();
    assert_eq!(names, want);
}

#[test]
fn the_adapter_has_a_part_in_it_and_threads_have_none() {
    let with = calibrated("smollm2", DeviceName::Cpu, true);
    let without = calibrated("smollm2", DeviceName::Cpu, false);
    // What goes into the first layer's queries is the norm of the embedding: no adapter is before it.
    assert_eq!(with.entries["blk.0.attn_q.weight"], without.entries["blk.0.attn_q.weight"]);
    assert_ne!(with.entries["blk.0.ffn_down.weight"], without.entries["blk.0.ffn_down.weight"]);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| calibrated("smollm2", DeviceName::Cpu, true)), with);
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    let plan = CalibratePlan { base: family("llama"), adapter: None, device: DeviceName::Cpu, datasets: Vec::new() };
    let refused = |rows: &[Vec<u32>]| calibrate(&plan, rows, &Silent).unwrap_err().to_string();
    assert!(refused(&[]).contains("no row to calibrate on"));
    assert!(refused(&[vec![3, 64]]).contains("token 64 is outside the vocabulary of 64"));
    assert!(refused(&[vec![3; 65]]).contains("longer than the model's context of 64"));
}
