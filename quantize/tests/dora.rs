//! A DoRA adapter in the weights, against PEFT's own merge; goldens and their script: tests/reference/dora.py.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use limbeck_model::adapter::Adapter;
use limbeck_model::weights::Weights;
use limbeck_quantize::Merged;
use std::collections::BTreeMap;
use std::path::Path;

#[test]
fn merged_weights_are_those_of_peft() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("model/tests/golden");
    for name in ["llama", "qwen2", "phi3", "gemma3"] {
        let folder = golden.join("dora").join(name);
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).unwrap()).unwrap();
        let want: BTreeMap<String, Vec<f32>> = serde_json::from_value(json["merged"].clone()).unwrap();
        assert_eq!(want.len(), 2);
        let weights = Weights::open(&golden.join("families").join(name)).unwrap();
        let adapter = Adapter::load(&folder.join("adapter")).unwrap();
        let merged = Merged::new(&weights, Some(&adapter)).unwrap();
        for (tensor, want) in want {
            assert!(merged.changes(&tensor));
            let got = merged.load(&tensor).unwrap().data;
            let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() < 1e-6 * size, "{name}, {tensor}: {got} against {want}");
            }
            assert_ne!(weights.load(&tensor).unwrap().data, got);
        }
    }
}
