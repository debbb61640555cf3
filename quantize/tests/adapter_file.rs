//! An adapter that is served beside its base instead of merged: base and B·A out of the file are the merged weights, in GGUF's
//! own order of rows.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use std::collections::BTreeMap;
use std::path::Path;

use limbeck_artifact::event::Silent;
use limbeck_model::adapter::{Adapter, AdapterConfig, LoraPair};
use limbeck_model::gguf::{GgmlType, GgufFile, Value};
use limbeck_model::weights::Weights;
use limbeck_quantize::{Format, QuantizePlan, quantize, write_adapter};

const MODULES: [&str; 4] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.down_proj"];

/// An adapter on some modules of a base, with made-up values.
fn adapter(base: &Weights, dir: &Path, use_rslora: bool) {
    let r = 3;
    let mut next = tiny_base::splitmix64(5);
    let mut values = |n: usize| (0..n).map(|_| (next() >> 40) as f32 / (1 << 24) as f32 - 0.5).collect::<Vec<f32>>();
    let mut pairs = BTreeMap::new();
    for module in MODULES {
        let (n_out, n_in) = base.config().linear_shape(module);
        let pair = LoraPair { a: values(r * n_in), b: values(n_out * r), magnitude: None, r, n_in, n_out };
        pairs.insert(format!("model.layers.1.{module}"), pair);
    }
    let names = MODULES.map(|m| m.rsplit('.').next().unwrap().to_owned());
    let config = AdapterConfig::lora("tiny", r, 5.0, &names, use_rslora);
    Adapter { config, pairs, head: None }.save(dir).unwrap();
}

#[test]
fn base_and_adapter_are_the_merged_weights() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.gguf");
    tiny_base::write(&base, 2, GgmlType::F32, 1);
    let weights = Weights::open(&base).unwrap();
    for use_rslora in [false, true] {
        let folder = dir.path().join(format!("adapter-{use_rslora}"));
        std::fs::create_dir(&folder).unwrap();
        adapter(&weights, &folder, use_rslora);
        let out = dir.path().join("adapter.gguf");
        write_adapter(&folder, weights.config(), "Router", &out).unwrap();
        let plan = QuantizePlan { adapter: Some(folder), out: dir.path().join("merged.gguf"), ..plan(&base) };
        quantize(&plan, &Silent).unwrap();
        let (base, merged) = (GgufFile::open(&base).unwrap(), GgufFile::open(&plan.out).unwrap());
        let file = GgufFile::inspect(&out).unwrap();
        let text = |key: &str| file.get(key).and_then(Value::as_str).unwrap().to_owned();
        assert_eq!(
            (text("general.type"), text("adapter.type"), text("general.architecture")),
            ("adapter".to_owned(), "lora".to_owned(), "llama".to_owned())
        );
        let alpha = file.get("adapter.lora.alpha").and_then(Value::as_f64).unwrap();
        assert_eq!(file.tensors().len(), 2 * MODULES.len());
        let mut seen = 0;
        for info in file.tensors().iter().filter(|t| t.name.ends_with(".lora_a")) {
            let name = info.name.strip_suffix(".lora_a").unwrap();
            let b_info = file.tensor(&format!("{name}.lora_b")).unwrap();
            let (a, b) = (file.dequantize(info).unwrap(), file.dequantize(b_info).unwrap());
            let (n_in, r, n_out) = (info.dims[0] as usize, info.dims[1] as usize, b_info.dims[1] as usize);
            assert_eq!(b_info.dims[0] as usize, r);
            let load = |of: &GgufFile| of.dequantize(of.tensor(name).unwrap()).unwrap();
            let (plain, wanted) = (load(&base), load(&merged));
            let mut moved = 0f64;
            for row in 0..n_out {
                for column in 0..n_in {
                    let product: f64 =
                        (0..r).map(|k| f64::from(b[row * r + k]) * f64::from(a[k * n_in + column])).sum();
                    let at = row * n_in + column;
                    let sum = f64::from(plain[at]) + alpha / r as f64 * product;
                    assert!((sum - f64::from(wanted[at])).abs() < 1e-5, "{name} {row} {column}");
                    moved += product.abs();
                }
            }
            assert!(moved > 1.0, "an adapter of nothing would pass");
            seen += 1;
        }
        assert_eq!(seen, MODULES.len());
    }
}

fn plan(base: &Path) -> QuantizePlan {
    QuantizePlan {
        base: base.into(),
        adapter: None,
        format: Format::F32,
        types: BTreeMap::new(),
        imatrix: None,
        out: base.with_extension("out"),
        name: "Router".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    }
}
