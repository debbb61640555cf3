//! One model in every form that weights come in: whichever is opened, the same names give the same values. And forms
//! that lie, which are refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use limbeck_model::config::{Architecture, DecoderConfig};
use limbeck_model::gguf::{GgmlType, GgufWriter};
use limbeck_model::names::{hf_to_gguf, permute_qk};
use limbeck_model::weights::{Weights, qk_heads};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

fn config() -> DecoderConfig {
    DecoderConfig {
        architecture: Architecture::Llama,
        hidden_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 2,
        head_dim: 8,
        intermediate_size: 64,
        vocab_size: 40,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        max_position_embeddings: 128,
        tie_word_embeddings: true,
    }
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Values that F16 and BF16 hold exactly, different in each tensor.
fn tensors(config: &DecoderConfig) -> Tensors {
    let fill = |seed: usize, n: usize| (0..n).map(|i| ((i * 7 + seed * 13) % 127) as f32 / 64.0 - 1.0).collect();
    config
        .tensor_shapes()
        .into_iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let n = shape.iter().product();
            (name, (shape, fill(seed, n)))
        })
        .collect()
}

fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
    }
}

fn write_safetensors(path: &Path, dtype: Dtype, tensors: &Tensors) {
    let raw: Vec<_> = tensors.iter().map(|(name, (shape, v))| (name, shape, bytes(dtype, v))).collect();
    let views = raw.iter().map(|(name, shape, b)| (*name, TensorView::new(dtype, (*shape).clone(), b).unwrap()));
    serialize_to_file(views, None, path).unwrap();
}

fn write_folder(dir: &Path, dtype: Dtype, shards: usize) {
    let (config, tensors) = (config(), tensors(&config()));
    std::fs::write(dir.join("config.json"), config.to_hf_json("float32").to_string()).unwrap();
    if shards == 1 {
        return write_safetensors(&dir.join("model.safetensors"), dtype, &tensors);
    }
    let mut weight_map = BTreeMap::new();
    for shard in 0..shards {
        let name = format!("model-{:05}-of-{shards:05}.safetensors", shard + 1);
        let part: Tensors =
            tensors.clone().into_iter().enumerate().filter(|(i, _)| i % shards == shard).map(|t| t.1).collect();
        part.keys().for_each(|tensor| {
            weight_map.insert(tensor.clone(), name.clone());
        });
        write_safetensors(&dir.join(name), dtype, &part);
    }
    write_index(dir, &json!(weight_map));
}

fn write_index(dir: &Path, weight_map: &Json) {
    let index = json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

fn write_gguf(path: &Path) {
    let (config, tensors) = (config(), tensors(&config()));
    let mut writer = GgufWriter::new();
    config.to_gguf().into_iter().for_each(|(key, value)| {
        writer.set(key, value);
    });
    for (name, (shape, values)) in &tensors {
        let dims = shape.iter().rev().map(|&d| d as u64).collect();
        let values = match qk_heads(&config, name) {
            Some(heads) => permute_qk(values, heads, shape[1]),
            None => values.clone(),
        };
        writer.add_bytes(hf_to_gguf(name).unwrap(), dims, GgmlType::F32, bytes(Dtype::F32, &values));
    }
    writer.write(path).unwrap();
}

fn check(path: &Path) {
    let weights = Weights::open(path).unwrap();
    let expected = tensors(&config());
    let found = DecoderConfig { rms_norm_eps: 1e-5, ..weights.config().clone() };
    assert_eq!(found, config());
    assert!((weights.config().rms_norm_eps - 1e-5).abs() < 1e-11);
    assert_eq!(weights.names(), expected.keys().cloned().collect::<Vec<_>>());
    for (name, (shape, values)) in &expected {
        let tensor = weights.load(name).unwrap();
        assert_eq!((&tensor.shape, &tensor.data), (shape, values), "{name}");
    }
    assert!(!weights.contains("lm_head.weight") && weights.load("lm_head.weight").is_err());
}

#[test]
fn every_form_gives_the_same_weights() {
    for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16] {
        for shards in [1, 3] {
            let dir = tempfile::tempdir().unwrap();
            write_folder(dir.path(), dtype, shards);
            check(dir.path());
            assert_eq!(Weights::open(dir.path()).unwrap().files().len(), shards);
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    write_gguf(&path);
    check(&path);
}

#[track_caller]
fn refused(dir: &Path, because: &str) {
    let error = Weights::open(dir).unwrap_err().to_string();
    assert!(error.contains(because), "'{error}' does not say '{because}'");
}

fn edited(edit: impl FnOnce(&mut Json)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), Dtype::F32, 1);
    let mut json = config().to_hf_json("float32");
    edit(&mut json);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    dir
}

#[test]
fn configs_that_ask_for_something_else() {
    for (key, value, because) in [
        ("model_type", json!("mamba"), "architecture 'mamba' is not known; known: llama"),
        ("model_type", Json::Null, "architecture '(no model_type)'"),
        ("num_hidden_layers", json!(513), "num_hidden_layers is 513; 1 to 512"),
        ("num_hidden_layers", json!(-1), "no whole number"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("num_key_value_heads", json!(3), "can't share 3"),
        ("hidden_size", json!(u64::MAX), "hidden_size is"),
        ("head_dim", json!(7), "even head size"),
        ("rms_norm_eps", json!("small"), "no number"),
        ("rms_norm_eps", json!(0.0), "not within"),
        ("rope_scaling", json!({"rope_type": "llama3", "factor": 8.0}), "rope scaling 'llama3'"),
        ("attention_bias", json!(true), "biases are not supported"),
        ("hidden_act", json!("gelu"), "activation 'gelu'"),
        ("intermediate_size", json!(32), "its shape is"),
        ("tie_word_embeddings", json!(false), "no tensor 'lm_head.weight'"),
    ] {
        let dir = edited(|json| json[key] = value);
        refused(dir.path(), because);
    }
}

#[test]
fn newer_configs_keep_rope_theta_elsewhere() {
    let dir = edited(|json| {
        json.as_object_mut().unwrap().remove("rope_theta");
        json["rope_parameters"] = json!({"rope_theta": 100000.0, "rope_type": "default"});
    });
    assert_eq!(Weights::open(dir.path()).unwrap().config().rope_theta, 100_000.0);
}

#[test]
fn an_index_stays_in_its_folder() {
    for outside in ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..\\b.safetensors", ""] {
        let dir = tempfile::tempdir().unwrap();
        write_folder(dir.path(), Dtype::F32, 2);
        write_index(dir.path(), &json!({"model.norm.weight": outside}));
        refused(dir.path(), "only plain paths inside the folder");
    }
}

#[test]
fn an_index_that_lies() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), Dtype::F32, 2);
    let first = "model-00001-of-00002.safetensors";
    write_index(dir.path(), &json!({"made.up": first}));
    refused(dir.path(), "'made.up' should be in");
    write_index(dir.path(), &json!({}));
    refused(dir.path(), "names 0 files");
    let twice = format!(r#"{{"weight_map": {{"a": "{first}", "a": "b.safetensors"}}}}"#);
    std::fs::write(dir.path().join("model.safetensors.index.json"), twice).unwrap();
    refused(dir.path(), "'a' is given twice");
    std::fs::remove_file(dir.path().join("model.safetensors.index.json")).unwrap();
    refused(dir.path(), "no weights");
}

fn raw_safetensors(header: &str, data: usize) -> tempfile::TempDir {
    let dir = edited(|_| {});
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.resize(file.len() + data, 0);
    std::fs::write(dir.path().join("model.safetensors"), file).unwrap();
    dir
}

#[test]
fn safetensors_that_lie() {
    let tensor = |range: &str| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":{range}}}"#);
    for (header, data, because) in [
        (format!(r#"{{"a":{0},"a":{0}}}"#, tensor("[0,8]")), 8, "'a' is given twice"),
        (format!(r#"{{"a":{}}}"#, tensor("[0,8]")), 9, "don't make up"),
        (format!(r#"{{"a":{}}}"#, tensor("[0,8]")), 7, "don't make up"),
        (format!(r#"{{"a":{},"b":{}}}"#, tensor("[0,8]"), tensor("[4,12]")), 12, "not a usable safetensors"),
        (format!(r#"{{"a":{}}}"#, tensor("[8,0]")), 8, "not a usable safetensors"),
        (r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,8]}}"#.into(), 8, "not a usable"),
        (r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#.into(), 8, "not a usable"),
        ("[1]".into(), 0, "not a usable"),
        ("".into(), 0, "not a usable"),
    ] {
        refused(raw_safetensors(&header, data).path(), because);
    }
    let dir = edited(|_| {});
    for claimed in [u64::MAX, 1 << 40, 33 << 20, 100] {
        std::fs::write(dir.path().join("model.safetensors"), claimed.to_le_bytes()).unwrap();
        refused(dir.path(), "a header of");
    }
    std::fs::write(dir.path().join("model.safetensors"), [1, 2, 3]).unwrap();
    refused(dir.path(), "shorter than its first eight bytes");
}

#[test]
fn values_that_are_no_numbers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_folder(dir.path(), Dtype::F32, 1);
    let mut poisoned = tensors(&config());
    poisoned.get_mut("model.norm.weight").unwrap().1[3] = f32::NAN;
    write_safetensors(&dir.path().join("model.safetensors"), Dtype::F32, &poisoned);
    let error = Weights::open(dir.path()).unwrap().load("model.norm.weight").unwrap_err().to_string();
    assert!(error.contains("value 3 is not a finite number"), "{error}");
}

#[test]
fn a_gguf_of_another_architecture_names_those_that_are_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    let mut writer = GgufWriter::new();
    writer.set("general.architecture", "rwkv7");
    writer.write(&path).unwrap();
    refused(&path, "architecture 'rwkv7' is not known; known: llama");
}
