//! The file that is served: what is merged, what is rounded, what is copied, and that a bad model makes no file.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use limbeck_artifact::event::Silent;
use limbeck_model::adapter::{Adapter, AdapterConfig, LoraPair};
use limbeck_model::gguf::{GgmlType, GgufFile, Value};
use limbeck_model::weights::Weights;
use limbeck_quantize::{Format, QuantizePlan, QuantizeReport, quantize};

fn plan(base: &Path, format: Format, out: PathBuf) -> QuantizePlan {
    QuantizePlan {
        base: base.into(),
        adapter: None,
        format,
        types: BTreeMap::new(),
        imatrix: None,
        out,
        name: "Router".into(),
        version: Some("0.3.0".into()),
        license: None,
        provenance: BTreeMap::from([("recipe_sha256".into(), "ab".repeat(32))]),
    }
}

fn run(plan: &QuantizePlan) -> QuantizeReport {
    quantize(plan, &Silent).unwrap()
}

fn rank_two(n_out: usize, n_in: usize, seed: u64) -> LoraPair {
    let mut next = tiny_base::splitmix64(seed);
    let mut values = |n: usize| (0..n).map(|_| (next() >> 40) as f32 / (1 << 24) as f32 - 0.5).collect();
    LoraPair { a: values(2 * n_in), b: values(n_out * 2), magnitude: None, r: 2, n_in, n_out }
}

fn adapter(dir: &Path, pairs: &[(&str, LoraPair)]) -> PathBuf {
    let config = AdapterConfig::lora("tiny", 2, 3.0, &["q_proj".into(), "down_proj".into()], false);
    let pairs = pairs.iter().map(|(name, pair)| (name.to_string(), pair.clone())).collect();
    let path = dir.join("adapter");
    std::fs::create_dir_all(&path).unwrap();
    Adapter { config, pairs, head: None }.save(&path).unwrap();
    path
}

#[test]
fn a_base_that_has_the_type_already_is_copied_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::Q8_0, 1);
    let out = run(&plan(&base, Format::Q8_0, dir.path().join("deep/er/out.gguf")));
    assert_eq!((out.verbatim, out.merged, out.rmse, out.max_abs_error), (20, 0, 0.0, 0.0));
    let (from, to) = (GgufFile::open(&base).unwrap(), GgufFile::open(&out.path).unwrap());
    for info in from.tensors() {
        let same = to.tensor(&info.name).unwrap();
        assert_eq!(from.bytes(info).unwrap(), to.bytes(same).unwrap(), "{}", info.name);
    }
    for (key, value) in from.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")) {
        assert_eq!(to.get(key), Some(value), "{key}");
    }
    let says = |key: &str| to.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    assert_eq!(says("general.name"), "Router");
    assert_eq!(says("general.version"), "0.3.0");
    assert_eq!(says("general.license"), "apache-2.0");
    assert_eq!(says("general.base_model.0.name"), "Tiny Base");
    assert_eq!(says("limbeck.recipe_sha256"), "ab".repeat(32));
    assert_eq!(to.get("general.file_type"), Some(&Value::U32(7)));
    assert_eq!(to.get("general.quantization_version"), Some(&Value::U32(2)));
    assert_eq!(to.get("llama.rope.dimension_count"), Some(&Value::U32(16)));
    assert!(to.tensor("output.weight").is_none(), "a tied head is the embedding");
}

#[test]
fn the_adapter_is_in_the_weights() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::Q8_0, 2);
    let (q, down) = ("model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj");
    let pairs = [(q, rank_two(64, 64, 5)), (down, rank_two(64, 96, 6))];
    let mut plan = plan(&base, Format::F32, dir.path().join("out.gguf"));
    plan.adapter = Some(adapter(dir.path(), &pairs));
    let report = run(&plan);
    assert_eq!((report.merged, report.rmse), (2, 0.0), "F32 loses nothing");

    let (before, after) = (Weights::open(&base).unwrap(), Weights::open(&report.path).unwrap());
    for name in before.names() {
        let (w, merged) = (before.load(&name).unwrap(), after.load(&name).unwrap());
        let pair = pairs.iter().find(|(module, _)| name == format!("{module}.weight")).map(|(_, pair)| pair);
        for (at, (w, merged)) in w.data.iter().zip(&merged.data).enumerate() {
            let delta = pair.map_or(0.0, |p| {
                let (o, i) = (at / p.n_in, at % p.n_in);
                let product = |k: usize| f64::from(p.b[o * 2 + k]) * f64::from(p.a[k * p.n_in + i]);
                // alpha 3 over rank 2
                1.5 * (product(0) + product(1))
            });
            let off = (f64::from(*w) + delta - f64::from(*merged)).abs();
            assert!(off < 1e-6, "{name} at {at}: {w} + {delta} became {merged}");
        }
    }
}

#[test]
fn four_bits_go_where_they_should_and_twice_the_same_way() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::F32, 3);
    let report = run(&plan(&base, Format::Q4_0, dir.path().join("a.gguf")));
    let again = run(&plan(&base, Format::Q4_0, dir.path().join("b.gguf")));
    assert_eq!(report.sha256, again.sha256);
    assert_eq!(report.tensors, BTreeMap::from([("F32".into(), 5), ("Q4_0".into(), 14), ("Q8_0".into(), 1)]));
    assert!((5.0..6.5).contains(&report.bits_per_weight), "{report:?}");
    // A step of Q4_0 is an eighth of the block's largest weight, here at most 1/8.
    assert!(report.max_abs_error <= 0.125 / 8.0 * 1.01 && report.max_abs_error > 0.005, "{report:?}");
    assert!(report.relative_rmse > 0.01 && report.relative_rmse < 0.1, "{report:?}");
    let (exact, rounded) = (Weights::open(&base).unwrap(), Weights::open(&report.path).unwrap());
    for name in exact.names() {
        for (a, b) in exact.load(&name).unwrap().data.iter().zip(rounded.load(&name).unwrap().data) {
            assert!((a - b).abs() <= 0.016, "{name}: {a} became {b}");
        }
    }
}

#[test]
fn a_broken_model_makes_no_file_and_spoils_none() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 1, GgmlType::Q8_0, 4);
    let out = dir.path().join("out.gguf");
    std::fs::write(&out, "what was there").unwrap();
    let refused = |pairs: &[(&str, LoraPair)], says: &str| {
        let mut plan = plan(&base, Format::Q8_0, out.clone());
        plan.adapter = Some(adapter(dir.path(), pairs));
        let error = quantize(&plan, &Silent).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
        assert_eq!(std::fs::read_to_string(&out).unwrap(), "what was there");
    };
    refused(&[("model.layers.1.self_attn.q_proj", rank_two(64, 64, 1))], "was it trained on this base?");
    refused(&[("model.layers.0.self_attn.k_proj", rank_two(64, 64, 1))], "it is [32, 64]");
    let mut huge = rank_two(64, 64, 1);
    huge.a.fill(1e30);
    refused(&[("model.layers.0.self_attn.q_proj", huge)], "beyond what Q8_0 holds");
    let litter = std::fs::read_dir(dir.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_file()).count();
    assert_eq!(litter, 2);
}
