//! What is wrong with a GGUF file before anyone serves it: what llama.cpp would refuse or read past, and what it would take in
//! silence and shouldn't. Only families that limbeck knows are checked tensor by tensor.

use std::collections::BTreeSet;
use std::path::Path;

use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::config::{DecoderConfig, ROPE_FACTORS};
use limbeck_model::gguf::{Array, GgmlType, GgufFile, MOST_SHOWN, Value, shortened};
use limbeck_model::names::hf_to_gguf;
use limbeck_model::tokenizer::{ChatTokenizer, PHI3};
use serde::Serialize;

use crate::{Format, ImportanceMatrix, Mix};

/// llama.cpp's LLAMA_MAX_LAYERS.
const MAX_LAYERS: u64 = 512;

/// llama.cpp's names of pre-tokenizers (`src/llama-vocab.cpp`, of November 2026); it throws at any other.
const PRE_TOKENIZERS: &str = "default minicpm5 llama3 llama-v3 llama-bpe falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano \
    deepseek-llm deepseek-coder deepseek-v3 youtu falcon mpt starcoder gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es \
    jina-v2-de a.x-4.0 mellum modern-bert jais-2 gemma4 granite-embed-multi-311m sarvam-moe jina-v1-en jina-v2-code \
    roberta-bpe whitespace refact command-r qwen2 deepseek-r1-qwen kormo f2llmv2 qwen35 stablelm2 olmo dbrx smaug-bpe \
    poro-chat glm4 chatglm-bpe viking jais tekken smollm codeshell bloom gpt3-finnish exaone exaone4 exaone-moe chameleon \
    minerva-7b megrez gpt-4o llama4 kanana2 talkie granite-embed-multi-97m tiny_aya cohere2moe superbpe trillion \
    granite-docling bailingmoe bailingmoe2 llada-moe seed-coder hunyuan hunyuan-dense joyai-llm kimi-k2 grok-2 afmoe laguna \
    minimax-m2 solar-open mellum2 k2-horizon";
const TOKENIZERS: [&str; 9] = ["llama", "gpt2", "bert", "t5", "rwkv", "plamo2", "gemma4", "none", "no_vocab"];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// llama.cpp does not load it, or reads what is not there.
    Refused,
    /// It loads, and something is not as it should be.
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub level: Level,
    pub what: String,
    pub cure: String,
}

struct Findings(Vec<Finding>);

impl Findings {
    fn refused(&mut self, what: impl Into<String>, cure: &str) {
        self.0.push(Finding { level: Level::Refused, what: what.into(), cure: cure.into() });
    }

    fn warning(&mut self, what: impl Into<String>, cure: &str) {
        self.0.push(Finding { level: Level::Warning, what: what.into(), cure: cure.into() });
    }
}

const CONVERT_AGAIN: &str = "convert the model again";
const FETCH_AGAIN: &str = "fetch the file again, and compare its SHA-256 with the publisher's";

/// Looks at the file; `values` says whether every tensor is read and decoded too. Nothing found is a file that llama.cpp loads,
/// as far as this looks.
pub fn check(path: &Path, values: bool, emit: &dyn Emit) -> Vec<Finding> {
    let mut found = Findings(Vec::new());
    let file = match GgufFile::inspect(path) {
        Ok(file) => file,
        Err(error) => {
            found.refused(error.to_string(), FETCH_AGAIN);
            return found.0;
        }
    };
    let text = |key: &str| file.get(key).and_then(Value::as_str);
    match text("general.type").unwrap_or("model") {
        "model" => {
            architecture(&file, &mut found);
            tokenizer(&file, &mut found);
            of_types(&file, &mut found);
        }
        "imatrix" => {
            if let Err(error) = ImportanceMatrix::open(path) {
                found.refused(error.to_string(), "make it again with `limbeck quantize` or llama-imatrix");
            }
        }
        other => {
            let other = shortened(other, MOST_SHOWN);
            found.warning(format!("general.type is '{other}': only the format was checked"), "nothing to do");
        }
    }
    let end = file.tensors().iter().map(|t| file.data_start() + t.offset + t.n_bytes).max().unwrap_or(file.len());
    if file.len() > end + 65_536 {
        found.warning(format!("{} bytes follow the last tensor", file.len() - end), FETCH_AGAIN);
    }
    if values {
        of_values(&file, &mut found, emit);
    }
    found.0
}

/// Keys and tensors of the decoder.
fn architecture(file: &GgufFile, found: &mut Findings) {
    let Some(name) = file.get("general.architecture").and_then(Value::as_str) else {
        found.refused("there is no general.architecture", CONVERT_AGAIN);
        return;
    };
    let keys = ["context_length", "embedding_length", "block_count", "feed_forward_length", "attention.head_count"];
    for key in keys.iter().map(|key| format!("{name}.{key}")) {
        let value = file.get(&key);
        let key = shortened(&key, MOST_SHOWN);
        match value {
            None => found.refused(format!("there is no {key}"), CONVERT_AGAIN),
            Some(Value::U32(0)) => found.refused(format!("{key} is 0"), CONVERT_AGAIN),
            Some(Value::U32(n)) if key.ends_with("block_count") && u64::from(*n) > MAX_LAYERS => {
                found.refused(format!("{key} is {n}; llama.cpp has room for {MAX_LAYERS}"), CONVERT_AGAIN);
            }
            Some(Value::U32(_) | Value::Array(_)) => {}
            Some(other) => found.refused(format!("{key} is {other}, not an unsigned 32-bit number"), CONVERT_AGAIN),
        }
    }
    let config = match DecoderConfig::from_gguf(file) {
        Ok(config) => config,
        Err(error) => {
            found.warning(
                format!("limbeck can't run it, so its tensors were not checked: {error}"),
                "nothing to do, if llama.cpp knows this architecture",
            );
            return;
        }
    };
    let mut wanted = BTreeSet::from([ROPE_FACTORS.to_owned()]);
    wanted.extend(config.gguf_rope_tensors().into_iter().map(|(name, _)| name.to_owned()));
    for (hf_name, shape) in config.tensor_shapes() {
        let Some(gguf_name) = hf_to_gguf(config.architecture, &hf_name) else { continue };
        match file.tensor(&gguf_name) {
            None => found.refused(format!("tensor '{gguf_name}' is missing"), CONVERT_AGAIN),
            Some(info) if !info.dims.iter().rev().map(|d| *d as usize).eq(shape.iter().copied()) => {
                let dims: Vec<usize> = shape.iter().rev().copied().collect();
                let what = format!("tensor '{gguf_name}' is {:?}, the metadata promise {dims:?}", info.dims);
                found.refused(what, CONVERT_AGAIN);
            }
            Some(_) => {}
        }
        wanted.insert(gguf_name);
    }
    let stray: Vec<&str> =
        file.tensors().iter().map(|t| t.name.as_str()).filter(|name| !wanted.contains(*name)).collect();
    if let Some(first) = stray.first() {
        let what = match stray.len() {
            1 => format!("tensor '{first}' has no place in a {name} model"),
            n => format!("{n} tensors have no place in a {name} model, '{first}' among them"),
        };
        found.refused(what, "take them out: llama.cpp counts the tensors that it uses");
    }
}

fn tokenizer(file: &GgufFile, found: &mut Findings) {
    let text = |key: &str| file.get(key).and_then(Value::as_str);
    let model = match text("tokenizer.ggml.model") {
        None => {
            found.refused("there is no tokenizer.ggml.model", CONVERT_AGAIN);
            return;
        }
        Some(model) if !TOKENIZERS.contains(&model) => {
            let model = shortened(model, MOST_SHOWN);
            found.refused(format!("tokenizer.ggml.model is '{model}', which llama.cpp does not know"), CONVERT_AGAIN);
            return;
        }
        Some("none" | "no_vocab") => return,
        Some(model) => model,
    };
    let Some(tokens) = file.get("tokenizer.ggml.tokens").and_then(Value::as_strings) else {
        found.refused("there is no tokenizer.ggml.tokens, or it is no array of strings", CONVERT_AGAIN);
        return;
    };
    for (key, has_type) in [("token_type", "i32"), ("scores", "f32")].map(|(k, t)| (format!("tokenizer.ggml.{k}"), t)) {
        let n = match file.get(&key) {
            None => continue,
            Some(Value::Array(Array::I32(v))) if has_type == "i32" => v.len(),
            Some(Value::Array(Array::F32(v))) if has_type == "f32" => v.len(),
            Some(_) => {
                found.refused(format!("{key} is no array of {has_type}"), CONVERT_AGAIN);
                continue;
            }
        };
        if n < tokens.len() {
            let what = format!("{key} has {n} entries for {} tokens; llama.cpp reads past its end", tokens.len());
            found.refused(what, "don't serve this file");
        }
    }
    // It strips what follows special tokens then, and looks these up without asking whether they are there.
    let named = text("general.name").unwrap_or_default().to_lowercase();
    let asked = ["</s>", "<unk>", "<s>", "<|endoftext|>"];
    if PHI3.iter().any(|part| named.contains(part))
        && let Some(lacks) = asked.iter().find(|token| !tokens.iter().any(|t| t == *token))
    {
        let what = format!("general.name says Phi-3, and the vocabulary has no {lacks}, which llama.cpp then looks up");
        found.refused(what, "give the file another general.name");
    }
    if model == "gpt2" {
        match text("tokenizer.ggml.pre") {
            None => found.warning(
                "there is no tokenizer.ggml.pre: llama.cpp splits text by its default, and most models by another",
                "convert the model again with a converter of 2024 or later",
            ),
            Some(pre) if !PRE_TOKENIZERS.split_whitespace().any(|known| known == pre) => {
                let cure = "convert the model again; a newer llama.cpp may know it";
                let pre = shortened(pre, MOST_SHOWN);
                found.refused(format!("tokenizer.ggml.pre is '{pre}', which llama.cpp does not know"), cure);
            }
            Some(_) => {}
        }
        if file.get("tokenizer.ggml.merges").and_then(Value::as_strings).is_none() {
            found.refused("there is no tokenizer.ggml.merges", CONVERT_AGAIN);
        }
    }
    for (key, value) in file.metadata() {
        let special = key.strip_prefix("tokenizer.ggml.").is_some_and(|rest| rest.ends_with("_token_id"));
        if special && value.as_u64().is_none_or(|id| id >= tokens.len() as u64) {
            let what = format!("{key} is {value}, of {} tokens; llama.cpp goes on without it", tokens.len());
            found.warning(what, CONVERT_AGAIN);
        }
    }
    if text("tokenizer.chat_template").is_none() {
        let what = "there is no tokenizer.chat_template: llama.cpp falls back to ChatML";
        found.warning(what, "nothing to do, if the model was not trained to chat");
    } else if let Err(error) = ChatTokenizer::from_gguf(file) {
        found.warning(format!("limbeck can't tokenize as this file says: {error}"), CONVERT_AGAIN);
    }
}

/// What the file says that it is, against what it holds.
fn of_types(file: &GgufFile, found: &mut Findings) {
    let Some(said) = file.get("general.file_type").and_then(Value::as_u64) else { return };
    let Some(format) = u32::try_from(said).ok().and_then(Format::of_file_type) else { return };
    let weights = |ty: GgmlType| {
        file.tensors().iter().filter(|t| t.ty == ty && t.dims.len() > 1).map(|t| t.n_elements()).sum::<u64>()
    };
    // What it falls back to where rows are no whole superblocks.
    let mix = Mix { layers: 1, heads_a_group: 1, tied: true, importance: false };
    let spare = format.tensor_type("blk.0.attn_q.weight", &[32, 1], &mix);
    let most = GgmlType::KNOWN.iter().copied().max_by_key(|ty| weights(*ty));
    if let Some(most) = most
        && weights(format.ggml_type()) + weights(spare) == 0
        && weights(most) > 0
    {
        let what = format!("general.file_type says {format}, and no matrix is {}; most are {most}", format.ggml_type());
        found.warning(what, "nothing to do: the number is for people");
    }
}

/// Reads every tensor that can be decoded.
fn of_values(file: &GgufFile, found: &mut Findings, emit: &dyn Emit) {
    let total = file.tensors().len() as u64;
    let mut unread = BTreeSet::new();
    for (done, info) in (1u64..).zip(file.tensors()) {
        if !info.ty.decodable() {
            unread.insert(info.ty.name());
        } else if let Some(Err(error)) = file.pieces(info).find(Result::is_err) {
            found.refused(error.to_string(), "don't serve this file: one such value spoils every answer");
        }
        emit.emit(EventKind::Progress { done, total, unit: "tensors".into() });
    }
    if !unread.is_empty() {
        let types = unread.into_iter().collect::<Vec<_>>().join(", ");
        found.warning(format!("values of {types} can't be decoded here and were not checked"), "nothing to do");
    }
}
