//! The metadata of a file to be served: what llama.cpp needs to build the model and its tokenizer, and who the model is.

use std::path::Path;

use limbeck_model::gguf::{Array, Value};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;

use crate::write::QuantizePlan;
use crate::{QuantizeError, Result};

/// llama.cpp's token type for a row of the embedding that no text becomes.
const UNUSED: i32 = 5;

/// All keys, general.* first.
pub(crate) fn metadata(plan: &QuantizePlan, weights: &Weights) -> Result<Vec<(String, Value)>> {
    let architecture = weights.config().to_gguf()?;
    let (mut out, architecture): (Vec<_>, Vec<_>) =
        architecture.into_iter().partition(|(k, _)| k.starts_with("general."));
    out.extend(general(plan, weights));
    out.extend(architecture);
    out.extend(tokenizer(plan, weights)?);
    Ok(out)
}

fn general(plan: &QuantizePlan, weights: &Weights) -> Vec<(String, Value)> {
    let of_base = |key: &str| weights.gguf().and_then(|file| file.get(&format!("general.{key}"))).cloned();
    let base_name = of_base("name").unwrap_or_else(|| Value::from(name_of(&plan.base)));
    let mut out: Vec<(&str, Value)> =
        vec![("general.type", "model".into()), ("general.name", plan.name.as_str().into())];
    let mut put = |key: &'static str, value: Option<Value>| out.extend(value.map(|value| (key, value)));
    put("general.version", plan.version.clone().map(Value::from));
    put("general.license", plan.license.clone().map(Value::from).or_else(|| of_base("license")));
    put("general.languages", of_base("languages"));
    put("general.size_label", of_base("size_label"));
    put("general.file_type", Some(plan.format.file_type().into()));
    put("general.quantization_version", Some(Value::U32(2)));
    put("general.quantized_by", Some("limbeck".into()));
    put("general.base_model.count", Some(Value::U32(1)));
    put("general.base_model.0.name", Some(base_name));
    put("general.base_model.0.organization", of_base("organization"));
    put("general.base_model.0.repo_url", of_base("repo_url"));
    let own = plan.provenance.iter().map(|(key, value)| (format!("limbeck.{key}"), Value::from(value.as_str())));
    out.into_iter().map(|(key, value)| (key.to_owned(), value)).chain(own).collect()
}

fn tokenizer(plan: &QuantizePlan, weights: &Weights) -> Result<Vec<(String, Value)>> {
    let mut keys: Vec<(String, Value)> = match weights.gguf() {
        // As it is, with keys that we do not know of.
        Some(file) => file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned().collect(),
        None => ChatTokenizer::open(&plan.base)?.gguf_metadata(),
    };
    let rows = weights.config().vocab_size;
    for (key, value) in &mut keys {
        // llama.cpp takes the number of tokens for the number of rows: fill up where the embedding has more.
        let filled = match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))) => {
                (tokens.len()..rows).for_each(|id| tokens.push(format!("[PAD{id}]")));
                tokens.len()
            }
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))) => {
                types.resize(rows.max(types.len()), UNUSED);
                types.len()
            }
            ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))) => {
                scores.resize(rows.max(scores.len()), 0.0);
                scores.len()
            }
            _ => continue,
        };
        if filled != rows {
            let why = format!("{key} has {filled} entries, the embedding {rows} rows");
            return Err(QuantizeError::Tensor {
                path: plan.base.clone(),
                architecture: weights.config().architecture.name().into(),
                name: "token_embd.weight".into(),
                why,
            });
        }
    }
    Ok(keys)
}

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
