//! One model in every form that weights come in: whichever is opened, the same names give the same values. And forms
//! that lie, which are refused.

#![allow(clippy::unwrap_used, reason = "tests")]

use half::{bf16, f16};
use limbeck_model::config::{DecoderConfig, Rope, RopeScaling};
use limbeck_model::gguf::{GgmlType, GgufWriter};
use limbeck_model::names::{hf_to_gguf, permute_qk};
use limbeck_model::weights::{Weights, qk_heads};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

fn config_json() -> Json {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "float32", "hidden_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "intermediate_size": 64, "vocab_size": 40, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 128, "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false
    })
}

fn config() -> DecoderConfig {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    std::fs::write(&path, config_json().to_string()).unwrap();
    DecoderConfig::from_hf(&path).unwrap()
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
    let tensors = tensors(&config());
    std::fs::write(dir.join("config.json"), config_json().to_string()).unwrap();
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
    config.to_gguf().unwrap().into_iter().for_each(|(key, value)| {
        writer.set(key, value);
    });
    for (name, (shape, values)) in &tensors {
        let dims = shape.iter().rev().map(|&d| d as u64).collect();
        let values = match qk_heads(&config, name) {
            Some(heads) => permute_qk(values, heads, shape[1]),
            None => values.clone(),
        };
        writer.add_bytes(
            hf_to_gguf(config.architecture, name).unwrap(),
            dims,
            GgmlType::F32,
            bytes(Dtype::F32, &values),
        );
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
    let mut json = config_json();
    edit(&mut json);
    std::fs::write(dir.path().join("config.json"), json.to_string()).unwrap();
    dir
}

#[test]
fn configs_that_ask_for_something_else() {
    for (key, value, because) in [
        ("model_type", json!("mamba"), "architecture 'mamba' is not known; known: llama, mistral"),
        ("model_type", Json::Null, "architecture '(no model_type)'"),
        ("num_hidden_layers", json!(513), "num_hidden_layers is 513; 1 to 512"),
        ("num_hidden_layers", json!(-1), "no whole number"),
        ("num_attention_heads", json!(0), "num_attention_heads is 0"),
        ("num_key_value_heads", json!(3), "can't share 3"),
        ("hidden_size", json!(u64::MAX), "hidden_size is"),
        ("head_dim", json!(7), "even head size"),
        ("rms_norm_eps", json!("small"), "no number"),
        ("rms_norm_eps", json!(0.0), "not within"),
        (
            "rope_scaling",
            json!({"rope_type": "llama3", "factor": 8.0}),
            "'rope_scaling' has no usable 'low_freq_factor'",
        ),
        (
            "rope_scaling",
            json!({"rope_type": "yarn", "factor": 8.0}),
            "'yarn' is not supported; known: default, linear",
        ),
        ("rope_scaling", json!({"type": "linear", "factor": -1.0}), "no usable 'factor'"),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0, "mscale": 1.0}), "'rope_scaling.mscale' (1.0) is not"),
        ("rope_scaling", json!("linear"), "'rope_scaling' is no object"),
        ("partial_rotary_factor", json!(0.5), "'partial_rotary_factor' (0.5) is not understood"),
        ("attention_bias", json!(true), "no tensor 'model.layers.0.self_attn.k_proj.bias'"),
        ("sliding_window", json!(64), "'sliding_window' (64) is not understood for a llama model"),
        ("logit_scale", json!(0.1), "'logit_scale' (0.1) is not understood"),
        ("quantization_config", json!({"bits": 4}), "'quantization_config'"),
        ("architectures", json!(["LlamaForSequenceClassification"]), "it is a LlamaForSequenceClassification"),
        ("model_type", json!("gemma3"), "multimodal"),
        (
            "model_type",
            json!("qwen3_moe"),
            "not known; known: llama, mistral, smollm3, qwen2, qwen3, gemma2, gemma3_text, phi3",
        ),
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
    let rope = Weights::open(dir.path()).unwrap().config().layers[1].rope.clone();
    assert_eq!(rope, Some(Rope::plain(100_000.0)));
}

/// As the hub has them, written by older versions: what our goldens, written by a new one, do not show.
#[test]
fn configs_of_the_hub() {
    let read = |json: Json| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json.to_string()).unwrap();
        DecoderConfig::from_hf(&path)
    };
    // unsloth/Llama-3.2-1B-Instruct
    let llama = read(json!({
        "_name_or_path": "meta-llama/Llama-3.2-1B-Instruct", "architectures": ["LlamaForCausalLM"],
        "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128009,
        "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": false, "model_type": "llama",
        "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8, "pad_token_id": 128004,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": {"factor": 32.0, "high_freq_factor": 4.0,
        "low_freq_factor": 1.0, "original_max_position_embeddings": 8192, "rope_type": "llama3"},
        "rope_theta": 500000.0, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3", "use_cache": true, "vocab_size": 128256
    }))
    .unwrap();
    let rope = llama.layers[15].rope.clone().unwrap();
    assert!(matches!(rope.scaling, RopeScaling::Llama3 { factor: 32.0, .. }));
    let factors = llama.gguf_rope_tensors().swap_remove(0).1;
    assert_eq!((factors[0], factors[31]), (1.0, 32.0));
    assert!(factors.windows(2).all(|pair| pair[0] <= pair[1] * 1.000_001));

    // Qwen/Qwen2.5-0.5B-Instruct: a window that is switched off.
    let qwen = read(json!({
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643,
        "eos_token_id": 151645, "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02,
        "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2",
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0, "sliding_window": 32768, "tie_word_embeddings": true, "torch_dtype": "bfloat16",
        "transformers_version": "4.43.1", "use_cache": true, "use_sliding_window": false, "vocab_size": 151936
    }))
    .unwrap();
    assert!(qwen.qkv_bias && !qwen.o_bias && qwen.layers.iter().all(|layer| layer.window.is_none()));

    // google/gemma-3-1b-it: every sixth layer is full, and rotates from another base.
    let gemma = read(json!({
        "architectures": ["Gemma3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "attn_logit_softcapping": null, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
        "final_logit_softcapping": null, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 1152, "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
        "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
        "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
        "rope_scaling": null, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
        "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0", "use_cache": true, "vocab_size": 262144
    }))
    .unwrap();
    let full: Vec<usize> = (0..26).filter(|&i| gemma.layers[i].window.is_none()).collect();
    assert_eq!(full, [5, 11, 17, 23]);
    assert_eq!(gemma.layers[5].rope, Some(Rope::plain(1e6)));
    assert_eq!(gemma.layers[6].rope, Some(Rope::plain(1e4)));
    assert!(gemma.tie_word_embeddings);
    assert_eq!(gemma.gguf_architecture().unwrap(), "gemma3");

    // microsoft/Phi-3-mini-128k-instruct, as far as it matters here.
    let phi = |factors: usize| {
        let factors = vec![1.5; factors];
        read(json!({
        "architectures": ["Phi3ForCausalLM"], "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
        "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 8192, "max_position_embeddings": 131072,
        "model_type": "phi3", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
        "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-05, "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "long_factor": factors, "short_factor": factors}, "vocab_size": 32064
        }))
    };
    let rope = phi(48).unwrap().layers[0].rope.clone().unwrap();
    let RopeScaling::LongRope { attention_factor, context: 4096, .. } = rope.scaling else { panic!("{rope:?}") };
    assert!((attention_factor - 1.190_238).abs() < 1e-6);
    assert_eq!(phi(48).unwrap().gguf_context(), 4096);
    let error = phi(1).unwrap_err().to_string();
    assert!(error.contains("'rope_scaling.short_factor' is to be 48 positive numbers"), "{error}");
}

#[test]
fn a_tensor_without_a_place_in_the_layer_is_refused() {
    for (name, shape) in [("model.layers.0.self_attn.q_norm.weight", 8), ("model.layers.1.self_attn.q_proj.bias", 32)] {
        let dir = edited(|_| {});
        let mut more = tensors(&config());
        more.insert("model.layers.0.self_attn.rotary_emb.inv_freq".into(), (vec![4], vec![1.0; 4]));
        write_safetensors(&dir.path().join("model.safetensors"), Dtype::F32, &more);
        assert!(Weights::open(dir.path()).is_ok(), "frequencies follow from the config");
        more.insert(name.into(), (vec![shape], vec![1.0; shape]));
        write_safetensors(&dir.path().join("model.safetensors"), Dtype::F32, &more);
        refused(dir.path(), &format!("'{name}' of {} can't be used", dir.path().display()));
    }
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
    refused(&path, "architecture 'rwkv7' is not known; known: llama, smollm3, qwen2, qwen3, gemma2, gemma3, phi3");
}
