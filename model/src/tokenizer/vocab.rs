//! A byte-level BPE vocabulary as plain data: tokens, their kinds, merges in rank order, special ids. It comes from GGUF
//! metadata or from tokenizer.json and goes to either, so that one tokenizer serves both formats.

use super::pre::PreTokenizer;
use crate::error::{ModelError, Result};
use crate::gguf::{Array, GgufFile, Value};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::Path;

const MAX_TOKENS: usize = 1 << 20;
const MAX_MERGES: usize = 1 << 22;

/// What a token is, with GGUF's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    Normal = 1,
    Unknown = 2,
    /// Matched in the text as a whole, and hidden from a reader.
    Control = 3,
    /// Matched in the text as a whole, and shown.
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenKind {
    fn from_id(id: i64) -> Option<Self> {
        Some(match id {
            0 | 1 => TokenKind::Normal,
            2 => TokenKind::Unknown,
            3 => TokenKind::Control,
            4 => TokenKind::UserDefined,
            5 => TokenKind::Unused,
            6 => TokenKind::Byte,
            _ => return None,
        })
    }

    /// Found in the text before merges apply.
    fn is_added(self) -> bool {
        matches!(self, TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// By id, in GPT-2's byte alphabet (`Ġ` is a space) but for added tokens, which are plain text.
    pub tokens: Vec<String>,
    pub kinds: Vec<TokenKind>,
    /// Pairs in order of rank.
    pub merges: Vec<(String, String)>,
    pub pre: PreTokenizer,
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub unknown: Option<u32>,
    pub padding: Option<u32>,
    /// Whether a server is to put `bos` before every prompt.
    pub add_bos: bool,
}

impl Vocab {
    /// From the `tokenizer.ggml.*` keys of a GGUF file.
    ///
    /// # Errors
    /// When the tokenizer is no byte-level BPE, its pre-tokenizer is unknown, or its parts contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let path = file.path();
        let wrong = |why: String| ModelError::tokenizer(path, why);
        let text = |key: &str| file.get_as(key, "a string", Value::as_str);
        match text("tokenizer.ggml.model")? {
            Some("gpt2") => {}
            None => return Err(wrong("there is no tokenizer.ggml.model".into())),
            Some(other) => {
                let why = format!("tokenizer model '{other}' is not supported; gpt2 (byte-level BPE) is");
                return Err(wrong(format!("{why}. Try the model's Hugging Face folder")));
            }
        }
        let pre = text("tokenizer.ggml.pre")?.unwrap_or("default");
        let pre = PreTokenizer::from_name(pre)
            .ok_or_else(|| wrong(format!("pre-tokenizer '{pre}' is not known; known: {}", PreTokenizer::known())))?;
        let strings = |key: &str| {
            let found = file.get_as(key, "an array of strings", Value::as_strings)?;
            found.ok_or_else(|| wrong(format!("there is no {key}")))
        };
        let tokens = strings("tokenizer.ggml.tokens")?.to_vec();
        let merges = strings("tokenizer.ggml.merges")?;
        let merges = merges.iter().map(|m| split_merge(m).ok_or_else(|| wrong(format!("merge '{m}' is no pair"))));
        let kinds = file.get_as("tokenizer.ggml.token_type", "an array of whole numbers", |v| match v {
            Value::Array(array) => array.to_i64s(),
            _ => None,
        })?;
        let kinds = match kinds {
            None => vec![TokenKind::Normal; tokens.len()],
            Some(ids) => {
                let kinds = ids.iter().map(|&id| TokenKind::from_id(id)).collect::<Option<Vec<_>>>();
                kinds.ok_or_else(|| wrong("a token type is not one of 0 to 6".into()))?
            }
        };
        let id = |key: &str| -> Result<Option<u32>> {
            let id = file.get_as(key, "a token id", Value::as_u64)?;
            id.map(|id| u32::try_from(id).map_err(|_| wrong(format!("{key} {id} is no token id")))).transpose()
        };
        let add_bos = file.get_as("tokenizer.ggml.add_bos_token", "a bool", Value::as_bool)?;
        Self {
            tokens,
            kinds,
            merges: merges.collect::<Result<_>>()?,
            pre,
            bos: id("tokenizer.ggml.bos_token_id")?,
            eos: id("tokenizer.ggml.eos_token_id")?,
            unknown: id("tokenizer.ggml.unknown_token_id")?,
            padding: id("tokenizer.ggml.padding_token_id")?,
            // llama.cpp's own default for a file that does not say.
            add_bos: add_bos.unwrap_or(pre == PreTokenizer::LlamaBpe),
        }
        .checked(path)
    }

    /// From tokenizer.json; special ids are looked up by the texts in tokenizer_config.json.
    ///
    /// # Errors
    /// When the model in it is no BPE, or its parts contradict each other.
    pub fn from_json(path: &Path, json: &Json, config: &Json) -> Result<Self> {
        let wrong = |why: String| ModelError::tokenizer(path, why);
        let model = &json["model"];
        if model["type"].as_str().unwrap_or("BPE") != "BPE" || !super::pre::is_byte_level(&json["pre_tokenizer"]) {
            return Err(wrong("it is no byte-level BPE, the only kind that is supported".into()));
        }
        let normalizer = &json["normalizer"]["type"];
        if !(normalizer.is_null() || normalizer == "NFC") {
            return Err(wrong(format!("its normalizer {normalizer} is not supported; llama.cpp would not apply it")));
        }
        // Trained on one cut and served on another, a model would answer worse than it was measured to.
        let pre = PreTokenizer::recognise(&json["pre_tokenizer"]).ok_or_else(|| {
            wrong(format!("its pre-tokenizer has no name in GGUF that is known here; known: {}", PreTokenizer::known()))
        })?;
        let mut by_id = BTreeMap::new();
        let vocab = model["vocab"].as_object().ok_or_else(|| wrong("model.vocab is no object".into()))?;
        for (token, id) in vocab {
            let id = token_id(id).ok_or_else(|| wrong(format!("'{token}' has no usable id")))?;
            if by_id.insert(id, (token.clone(), TokenKind::Normal)).is_some() {
                return Err(wrong(format!("id {id} is given twice")));
            }
        }
        for added in json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default() {
            let (Some(id), Some(content)) = (token_id(&added["id"]), added["content"].as_str()) else {
                return Err(wrong("an added token has no id or no content".into()));
            };
            let special = added["special"].as_bool().unwrap_or(false);
            let kind = if special { TokenKind::Control } else { TokenKind::UserDefined };
            if by_id.insert(id, (content.to_owned(), kind)).is_some_and(|(old, _)| old != content) {
                return Err(wrong(format!("id {id} is given to two tokens")));
            }
        }
        let n = by_id.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
        let mut vocab = Self {
            tokens: Vec::new(),
            kinds: Vec::new(),
            merges: merges_of(model).ok_or_else(|| wrong("model.merges is no list of pairs".into()))?,
            pre,
            bos: None,
            eos: None,
            unknown: None,
            padding: None,
            add_bos: config["add_bos_token"].as_bool().unwrap_or(false),
        };
        for id in 0..n {
            let (token, kind) = by_id.remove(&(id as u32)).unwrap_or_else(|| unused(id));
            vocab.tokens.push(token);
            vocab.kinds.push(kind);
        }
        let id_of = |key: &str| {
            let text = config[key].as_str().or(config[key]["content"].as_str())?;
            vocab.tokens.iter().position(|t| t == text).map(|id| id as u32)
        };
        let ids = ["bos_token", "eos_token", "unk_token", "pad_token"].map(id_of);
        [vocab.bos, vocab.eos, vocab.unknown, vocab.padding] = ids;
        vocab.checked(path)
    }

    /// Adds unused tokens until there are `n`: an embedding often has more rows than the tokenizer uses, and llama.cpp
    /// wants a token for each.
    pub fn padded_to(mut self, n: usize) -> Self {
        for id in self.tokens.len()..n.min(MAX_TOKENS) {
            let (token, kind) = unused(id);
            self.tokens.push(token);
            self.kinds.push(kind);
        }
        self
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize).is_some_and(|kind| kind.is_added())
    }

    /// The `tokenizer.ggml.*` keys, complete enough for llama.cpp to load and serve.
    pub fn to_gguf(&self) -> Vec<(String, Value)> {
        let kinds = self.kinds.iter().map(|&kind| kind as i32).collect();
        let merges = self.merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
        let mut keys: Vec<(&str, Value)> = vec![
            ("model", "gpt2".into()),
            ("pre", self.pre.name().into()),
            ("tokens", Value::strings(self.tokens.clone())),
            ("token_type", Value::Array(Array::I32(kinds))),
            ("merges", Value::strings(merges)),
        ];
        let ids = [self.bos, self.eos, self.unknown, self.padding];
        let names = ["bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"];
        keys.extend(names.into_iter().zip(ids).filter_map(|(name, id)| Some((name, Value::U32(id?)))));
        keys.push(("add_bos_token", self.add_bos.into()));
        keys.push(("add_space_prefix", false.into()));
        keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
    }

    /// As tokenizer.json.
    pub fn to_json(&self) -> Json {
        let ids = || self.tokens.iter().zip(&self.kinds).enumerate();
        let added: Vec<Json> = ids()
            .filter(|(_, (_, kind))| kind.is_added())
            .map(|(id, (content, kind))| {
                let special = *kind != TokenKind::UserDefined;
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": special})
            })
            .collect();
        let vocab: serde_json::Map<String, Json> = ids().map(|(id, (token, _))| (token.clone(), id.into())).collect();
        json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": self.pre.to_json(),
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "ignore_merges": self.pre.ignores_merges(),
                "vocab": vocab,
                "merges": self.merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>(),
            },
        })
    }

    fn checked(self, path: &Path) -> Result<Self> {
        let wrong = |why: String| Err(ModelError::tokenizer(path, why));
        let n = self.tokens.len();
        if n == 0 || n > MAX_TOKENS || self.merges.len() > MAX_MERGES {
            return wrong(format!("{n} tokens and {} merges are out of bounds", self.merges.len()));
        }
        if self.kinds.len() != n {
            return wrong(format!("{} token types for {n} tokens", self.kinds.len()));
        }
        for (what, id) in [("bos", self.bos), ("eos", self.eos), ("unknown", self.unknown), ("padding", self.padding)] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                return wrong(format!("the {what} token {id} is not one of {n}"));
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        match self.tokens.iter().find(|token| !seen.insert(token.as_str())) {
            Some(twice) => wrong(format!("token '{twice}' is given twice")),
            None => Ok(self),
        }
    }
}

fn unused(id: usize) -> (String, TokenKind) {
    (format!("[PAD{id}]"), TokenKind::Unused)
}

fn token_id(json: &Json) -> Option<u32> {
    json.as_u64().filter(|&id| id < MAX_TOKENS as u64).map(|id| id as u32)
}

/// `a b`, where `a` may itself begin with a space.
fn split_merge(text: &str) -> Option<(String, String)> {
    let after_first = text.chars().next()?.len_utf8();
    let at = text[after_first..].find(' ')? + after_first;
    Some((text[..at].to_owned(), text[at + 1..].to_owned())).filter(|(_, b)| !b.is_empty())
}

/// Written as `"a b"` in older files, as `["a", "b"]` in newer ones.
fn merges_of(model: &Json) -> Option<Vec<(String, String)>> {
    model["merges"]
        .as_array()?
        .iter()
        .map(|merge| match merge {
            Json::String(text) => split_merge(text),
            pair => match pair.as_array()?.as_slice() {
                [Json::String(a), Json::String(b)] => Some((a.clone(), b.clone())),
                _ => None,
            },
        })
        .collect()
}
