//! The metadata of a file to be served: what llama.cpp needs to build the model and its tokenizer, and who the model is.

use std::path::Path;

use limbeck_model::gguf::{Array, Value};
use limbeck_model::tokenizer::{Algorithm, ChatTokenizer, PHI3, label_token};
use limbeck_model::weights::Weights;

use crate::write::QuantizePlan;
use crate::{ImportanceMatrix, QuantizeError, Result};

/// llama.cpp's token type for a row of the embedding that no text becomes.
const UNUSED: i32 = 5;
/// Of a label's token. An unused one would be no text in a server's answer, and one of another type would be found in prompts.
const NORMAL: i32 = 1;

/// All keys, general.* first; each of `labels` has a token behind those of the base.
pub(crate) fn metadata(
    plan: &QuantizePlan,
    weights: &Weights,
    labels: &[String],
    importance: Option<&ImportanceMatrix>,
) -> Result<Vec<(String, Value)>> {
    let mut config = weights.config().clone();
    config.vocab_size += labels.len();
    let architecture = config.to_gguf()?;
    let (mut out, architecture): (Vec<_>, Vec<_>) =
        architecture.into_iter().partition(|(k, _)| k.starts_with("general."));
    let (mut tokenizer, strips) = tokenizer(plan, weights)?;
    add_labels(&mut tokenizer, labels)?;
    out.extend(general(plan, weights, strips));
    out.extend(architecture);
    out.extend(tokenizer);
    out.extend(importance.into_iter().flat_map(|matrix| of_importance(plan, matrix)));
    Ok(out)
}

/// What llama-quantize writes of an importance matrix.
fn of_importance(plan: &QuantizePlan, matrix: &ImportanceMatrix) -> Vec<(String, Value)> {
    let file = plan.imatrix.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
    let mut out = vec![("quantize.imatrix.file".to_owned(), Value::from(file))];
    out.extend(matrix.datasets.first().map(|name| ("quantize.imatrix.dataset".to_owned(), name.as_str().into())));
    out.push(("quantize.imatrix.entries_count".to_owned(), Value::U32(matrix.entries.len() as u32)));
    out.push(("quantize.imatrix.chunks_count".to_owned(), matrix.chunk_count.into()));
    out
}

/// `general.name`. llama.cpp drops whitespace after special tokens where the name says Phi-3, so a model that was trained so
/// has to be called so, and no other may be: its vocabulary would be read another way, or refused.
fn name(name: &str, strips: bool) -> String {
    match (strips, says_phi3(name)) {
        (true, false) => format!("{name} ({})", PHI3[0]),
        (false, true) => unsaid(name),
        _ => name.to_owned(),
    }
}

/// With `phi 3` for what llama.cpp looks for.
fn unsaid(name: &str) -> String {
    let mut out = name.to_owned();
    while let Some((at, part)) = PHI3.iter().find_map(|part| Some((out.to_ascii_lowercase().find(part)?, *part))) {
        out.replace_range(at + "phi".len()..at + part.len(), " 3");
    }
    out
}

fn says_phi3(name: &str) -> bool {
    PHI3.iter().any(|part| name.to_lowercase().contains(part))
}

fn general(plan: &QuantizePlan, weights: &Weights, strips: bool) -> Vec<(String, Value)> {
    let of_base = |key: &str| weights.gguf().and_then(|file| file.get(&format!("general.{key}"))).cloned();
    let base_name = of_base("name").unwrap_or_else(|| Value::from(name_of(&plan.base)));
    let mut out: Vec<(&str, Value)> =
        vec![("general.type", "model".into()), ("general.name", name(&plan.name, strips).into())];
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

/// The `tokenizer.*` keys, and whether the tokenizer drops whitespace after special tokens.
fn tokenizer(plan: &QuantizePlan, weights: &Weights) -> Result<(Vec<(String, Value)>, bool)> {
    let (mut keys, strips): (Vec<(String, Value)>, bool) = match weights.gguf() {
        // As it is, with keys that we do not know of.
        Some(file) => {
            let text = |key: &str| file.get(key).and_then(Value::as_str).unwrap_or_default();
            let strips = text("tokenizer.ggml.model") == "llama" && says_phi3(text("general.name"));
            (file.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer.")).cloned().collect(), strips)
        }
        None => {
            let tokenizer = ChatTokenizer::open(&plan.base)?;
            let algorithm = &tokenizer.vocab().algorithm;
            let strips = matches!(algorithm, Algorithm::SentencePiece { strip_after_special: true, .. });
            (tokenizer.gguf_metadata(), strips)
        }
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
    Ok((keys, strips))
}

/// A token a label, which no text becomes.
fn add_labels(keys: &mut [(String, Value)], labels: &[String]) -> Result<()> {
    let byte_level = keys.iter().any(|(key, value)| key == "tokenizer.ggml.model" && value.as_str() == Some("gpt2"));
    for (key, value) in keys {
        match (key.as_str(), value) {
            ("tokenizer.ggml.tokens", Value::Array(Array::String(tokens))) => {
                for label in labels {
                    let token = label_token(label, byte_level);
                    if tokens.contains(&token) {
                        let why = format!("the base has a token {token} already; was a head folded into it before?");
                        return Err(QuantizeError::Head { why });
                    }
                    tokens.push(token);
                }
            }
            ("tokenizer.ggml.token_type", Value::Array(Array::I32(types))) => {
                types.extend(labels.iter().map(|_| NORMAL));
            }
            ("tokenizer.ggml.scores", Value::Array(Array::F32(scores))) => {
                scores.extend(labels.iter().map(|_| LAST));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A score below those of all joins.
const LAST: f32 = -1e9;

fn name_of(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn only_what_strips_is_called_phi_3() {
        assert_eq!(name("router", true), "router (phi-3)");
        assert_eq!(name("Phi-3 router", true), "Phi-3 router");
        assert_eq!(name("router", false), "router");
        assert_eq!(name("PHI3 and phi-3-mini", false), "PHI 3 and phi 3-mini");
    }
}
