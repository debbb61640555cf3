//! The families through GGUF and back: what was written from a Hugging Face folder answers as the folder does. That
//! llama.cpp answers so too is tests/conformance/families.sh.
#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

#[path = "../examples/export-families.rs"]
mod export_families;

use limbeck_artifact::event::Silent;
use limbeck_model::config::{DecoderConfig, Rope};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::gguf::{GgmlType, GgufFile, GgufWriter, Value};
use limbeck_model::weights::Weights;
use limbeck_quantize::check::{Level, check};
use limbeck_quantize::{Format, quantize};
use serde_json::json;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/golden/families").join(name)
}

fn answers(path: &Path, row: &[u32]) -> Vec<f32> {
    let decoder = Decoder::from_weights(&Weights::open(path).unwrap(), ops(DeviceName::Cpu).unwrap(), false).unwrap();
    decoder.log_probs(row, None).unwrap().concat()
}

/// A golden written as F32, and the folder that it was written from.
fn written(name: &str, out: &Path) -> (PathBuf, PathBuf) {
    (export_families::export(&golden(name), out, Format::F32).unwrap(), out.join(format!("{name}.base")))
}

#[test]
fn what_was_written_answers_as_what_was_read() {
    let out = tempfile::tempdir().unwrap();
    for name in [
        "llama",
        "llama3",
        "llama-linear",
        "llama-dynamic",
        "smollm2",
        "smollm3",
        "mistral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "gemma3-softcap",
        "phi3",
        "phi3-longrope",
    ] {
        let (file, base) = written(name, out.path());
        let config = Weights::open(&file).unwrap().config().clone();
        let row: Vec<u32> = (0..config.max_position_embeddings.min(40) as u32).map(|i| i * 7 % 61).collect();
        let (from, to) = (answers(&base, &row), answers(&file, &row));
        let gap = from.iter().zip(&to).fold(0f32, |m, (a, b)| m.max((a - b).abs()));
        // Theta, eps and the factors of the frequencies are kept as float32; all else is the same numbers.
        assert!(gap < 2e-5, "{name}: {gap}");
        let refused = check(&file, true, &Silent).into_iter().filter(|f| f.level == Level::Refused);
        assert_eq!(refused.map(|f| f.what).collect::<Vec<_>>(), Vec::<String>::new(), "{name}");
        // Written again, it is the same to the byte, but for what tells where it came from.
        let again = out.path().join("again");
        std::fs::create_dir_all(&again).unwrap();
        let second = again.join(format!("{name}.gguf"));
        quantize(&export_families::plan(&file, Format::F32, &second), &Silent).unwrap();
        assert_eq!(tensors(&second), tensors(&file), "{name}");
        assert_eq!(Weights::open(&second).unwrap().config(), &config, "{name}");
    }
}

/// Name, type and bytes of each.
fn tensors(path: &Path) -> Vec<(String, GgmlType, Vec<u8>)> {
    let file = GgufFile::open(path).unwrap();
    file.tensors().iter().map(|t| (t.name.clone(), t.ty, file.bytes(t).unwrap())).collect()
}

#[test]
fn a_window_that_llama_cpp_leaves_out_becomes_the_context() {
    let out = tempfile::tempdir().unwrap();
    for (name, context) in [("mistral", 5), ("qwen2", 7), ("phi3", 7), ("llama", 64), ("gemma2", 64), ("gemma3", 64)] {
        let (file, _) = written(name, out.path());
        assert_eq!(Weights::open(&file).unwrap().config().max_position_embeddings, context, "{name}");
    }
    // Beyond its original context a row would be computed by the other factors, from its beginning on.
    let (file, base) = written("phi3-longrope", out.path());
    for path in [&file, &base] {
        assert_eq!(Weights::open(path).unwrap().config().max_position_embeddings, 256);
    }
    let file = GgufFile::open(&file).unwrap();
    let factors = |name: &str| file.dequantize(file.tensor(name).unwrap()).unwrap();
    assert_eq!(factors("rope_factors_short.weight"), [1.0, 1.25, 1.5, 2.0]);
    assert_eq!(factors("rope_factors_long.weight"), [1.5, 3.0, 6.0, 12.0]);
    let number = |key: &str| file.get(key).unwrap().as_f64().unwrap();
    // sqrt(1 + ln 4 / ln 256)
    assert!((number("phi3.rope.scaling.attn_factor") - 1.25f64.sqrt()).abs() < 1e-6);
    assert_eq!(file.get("phi3.rope.scaling.original_context_length").unwrap().as_u64(), Some(256));
}

/// What other converters leave out, llama.cpp has defaults for; and Phi-3's own window is in their files.
#[test]
fn files_of_other_converters_are_read_as_llama_cpp_reads_them() {
    let out = tempfile::tempdir().unwrap();
    let without = |name: &str, keys: &[&str], set: &[(&str, Value)]| {
        let file = GgufFile::open(&written(name, out.path()).0).unwrap();
        let mut writer = GgufWriter::new();
        let gone = |key: &str| keys.contains(&key) || set.iter().any(|(k, _)| *k == key);
        for (key, value) in file.metadata().iter().filter(|(key, _)| !gone(key)) {
            writer.set(key.clone(), value.clone());
        }
        for (key, value) in set {
            writer.set(*key, value.clone());
        }
        for info in file.tensors() {
            writer.add_bytes(info.name.clone(), info.dims.clone(), info.ty, file.bytes(info).unwrap());
        }
        let path = out.path().join("edited.gguf");
        writer.write(&path).unwrap();
        Weights::open(&path).map(|weights| weights.config().clone())
    };
    let windows = |config: &DecoderConfig| config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>();
    let keys = [
        "gemma2.attention.sliding_window",
        "gemma2.attention.sliding_window_pattern",
        "gemma2.attn_logit_softcapping",
        "gemma2.final_logit_softcapping",
    ];
    let gemma2 = without("gemma2", &keys, &[]).unwrap();
    assert_eq!(windows(&gemma2), [Some(4096), None]);
    assert_eq!((gemma2.attn_logit_softcapping, gemma2.final_logit_softcapping), (Some(50.0), Some(30.0)));
    let pattern = "gemma3.attention.sliding_window_pattern";
    let gemma3 = without("gemma3", &[pattern, "gemma3.rope.freq_base_swa"], &[]).unwrap();
    assert_eq!(windows(&gemma3), [Some(5); 3]);
    assert_eq!(gemma3.layers[0].rope, Some(Rope::plain(1e4)));
    let gemma3 = without("gemma3", &["gemma3.attention.sliding_window"], &[]).unwrap();
    assert_eq!(windows(&gemma3), [None; 3]);
    let phi3 = without(
        "phi3",
        &[],
        &[("phi3.attention.sliding_window", Value::U32(6)), ("phi3.context_length", Value::U32(64))],
    );
    assert_eq!(phi3.unwrap().max_position_embeddings, 6);
    let wrong = without("phi3", &[], &[("phi3.rope.scaling.attn_factor", Value::F32(1.2))]).unwrap_err().to_string();
    assert!(wrong.contains("attn_factor 1.2 is not supported"), "{wrong}");
}

#[test]
fn models_that_can_not_be_written_say_so_and_leave_no_file() {
    let out = tempfile::tempdir().unwrap();
    let with = |name: &str, key: &'static str, value: serde_json::Value| {
        let file = export_families::export_with(&golden(name), out.path(), Format::F32, |config| {
            if name.starts_with("gemma") {
                config["query_pre_attn_scalar"] = config["head_dim"].clone();
            }
            config[key] = value;
        });
        let error = file.unwrap_err().to_string();
        assert!(error.contains("can't be written as a GGUF file") && error.contains("hint: "), "{error}");
        assert!(!out.path().join(format!("{name}.gguf")).exists());
        error
    };
    assert!(with("gemma3", "query_pre_attn_scalar", json!(10)).contains("is 10, llama.cpp takes 8"));
    assert!(with("gemma2", "attn_logit_softcapping", json!(null)).contains("llama.cpp caps scores and logits"));
    assert!(with("gemma3", "hidden_activation", json!("silu")).contains("by GELU, this model by SiLU"));
    let layers = json!(["full_attention", "sliding_attention", "sliding_attention"]);
    assert!(with("gemma3", "layer_types", layers).contains("windows in an order"));
    let rope = json!({
        "rope_type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2],
        "original_max_position_embeddings": 200
    });
    let contexts = export_families::export_with(&golden("phi3-longrope"), out.path(), Format::F32, |config| {
        config["original_max_position_embeddings"] = json!(200);
        config["rope_parameters"] = rope;
    });
    assert!(contexts.unwrap_err().to_string().contains("llama.cpp makes contexts multiples of 256"));
}

/// A name that says Phi-3 makes llama.cpp look for tokens that others don't have.
#[test]
fn only_phi_3_is_called_so() {
    let out = tempfile::tempdir().unwrap();
    let (file, _) = written("phi3", out.path());
    assert_eq!(GgufFile::open(&file).unwrap().get("general.name").unwrap().as_str(), Some("phi 3"));
}
