//! tokenizer.json, read into a [`Vocab`] and written from one. What the file spells and llama.cpp has no word for is refused
//! by name: the model would be trained on other tokens than it is served.

use super::merges;
use super::pre::{PreTokenizer, is_byte_level};
use super::vocab::{Algorithm, MAX_MERGES, MAX_TOKENS, PHI3_KEEPS, TokenKind, Vocab, split_merge, unused};
use crate::error::{ModelError, Result};
use serde_json::{Value as Json, json};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// How SentencePiece spells a space.
pub(super) const SPACE: &str = "▁";

/// A token that is matched in the text as a whole.
pub(super) struct Added {
    pub id: u32,
    pub content: String,
    pub special: bool,
    pub strips_after: bool,
}

impl Added {
    /// From its id and what a file says of it.
    ///
    /// # Errors
    /// When something is missing, or it is matched as llama.cpp would not.
    pub fn read(id: &Json, token: &Json) -> Result<Self, String> {
        let (Some(id), Some(content)) = (token_id(id), token["content"].as_str()) else {
            return Err("an added token has no id or no content".into());
        };
        let is = |key: &str| token[key].as_bool().unwrap_or(false);
        if let Some(how) = ["lstrip", "single_word"].into_iter().find(|how| is(how)) {
            return Err(format!("its token '{content}' is matched with {how}; llama.cpp would not do so"));
        }
        Ok(Added { id, content: content.to_owned(), special: is("special"), strips_after: is("rstrip") })
    }
}

impl Vocab {
    /// From tokenizer.json; special ids are looked up by the texts in tokenizer_config.json.
    ///
    /// A SentencePiece tokenizer is read as llama.cpp applies it: a `Metaspace` that puts a space before the `first` piece
    /// of a text only comes to put one after each special token too, as the models' own SentencePiece files do.
    ///
    /// # Errors
    /// When the model in it is neither byte-level BPE nor SentencePiece's BPE with byte fallback, when llama.cpp has no
    /// word for a part of it, or when its parts contradict each other.
    pub fn from_json(path: &Path, json: &Json, config: &Json) -> Result<Self> {
        let wrong = |why: String| ModelError::tokenizer(path, why);
        let model = &json["model"];
        let kind = model["type"].as_str().unwrap_or("BPE");
        let byte_level = is_byte_level(&json["pre_tokenizer"]);
        if kind != "BPE" || !(byte_level || model["byte_fallback"] == true) {
            let known = "byte-level BPE and SentencePiece BPE with byte fallback are";
            return Err(wrong(format!("its model, {kind} without byte fallback, is not supported; {known}")));
        }
        let added = added_tokens(json).map_err(wrong)?;
        let mut by_id = BTreeMap::new();
        let vocab = model["vocab"].as_object().ok_or_else(|| wrong("model.vocab is no object".into()))?;
        for (token, id) in vocab {
            let id = token_id(id).ok_or_else(|| wrong(format!("'{token}' has no usable id")))?;
            if by_id.insert(id, (token.clone(), TokenKind::Normal)).is_some() {
                return Err(wrong(format!("id {id} is given twice")));
            }
        }
        for Added { id, content, special, .. } in &added {
            let kind = if *special { TokenKind::Control } else { TokenKind::UserDefined };
            if by_id.insert(*id, (content.clone(), kind)).is_some_and(|(old, _)| old != *content) {
                return Err(wrong(format!("id {id} is given to two tokens")));
            }
        }
        let n = by_id.last_key_value().map_or(0, |(&id, _)| id as usize + 1);
        let (mut tokens, mut kinds): (Vec<String>, Vec<TokenKind>) =
            (0..n).map(|id| by_id.remove(&(id as u32)).unwrap_or_else(|| unused(id))).unzip();
        let pairs = merges_of(model).ok_or_else(|| wrong("model.merges is no list of pairs".into()))?;
        if pairs.len() > MAX_MERGES {
            return Err(wrong(format!("{} merges are out of bounds", pairs.len())));
        }
        let ids = ["bos_token", "eos_token", "unk_token", "pad_token"].map(|key| {
            let text = config[key].as_str().or(config[key]["content"].as_str())?;
            tokens.iter().position(|t| t == text).map(|id| id as u32)
        });
        let [bos, eos, mut unknown, padding] = ids;
        let algorithm = if byte_level {
            byte_level_parts(json, pairs).map_err(wrong)?
        } else {
            let add_space_prefix = space_prefix(json, &tokens, &kinds).map_err(wrong)?;
            let strip_after_special = strips_after_special(&added).map_err(wrong)?;
            let scores = merges::to_scores(&tokens, &kinds, &pairs).map_err(wrong)?;
            unknown = unknown.or_else(|| position(&tokens, model["unk_token"].as_str()?));
            spell(&mut tokens, &mut kinds, unknown);
            Algorithm::SentencePiece { scores, add_space_prefix, strip_after_special }
        };
        // What a file does not say, its post-processor does.
        let add_bos = config["add_bos_token"].as_bool().unwrap_or_else(|| {
            let starts = json["post_processor"]["single"][0]["SpecialToken"]["id"].as_str();
            !byte_level && starts.and_then(|text| position(&tokens, text)).is_some_and(|id| Some(id) == bos)
        });
        Self { tokens, kinds, algorithm, bos, eos, unknown, padding, add_bos }.checked(path)
    }

    /// As tokenizer.json.
    pub fn to_json(&self) -> Json {
        let ids = || self.tokens.iter().zip(&self.kinds).enumerate();
        let strips = |content: &str| {
            let strips = matches!(self.algorithm, Algorithm::SentencePiece { strip_after_special: true, .. });
            strips && !PHI3_KEEPS.contains(&content)
        };
        let added: Vec<Json> = ids()
            .filter(|(_, (_, kind))| kind.is_added())
            .map(|(id, (content, kind))| {
                let special = *kind != TokenKind::UserDefined;
                json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": strips(content),
                       "normalized": false, "special": special})
            })
            .collect();
        let vocab: serde_json::Map<String, Json> = ids().map(|(id, (token, _))| (token.clone(), id.into())).collect();
        let mut model = json!({"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false, "vocab": vocab});
        let pairs = |merges: &[(String, String)]| merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>();
        let (normalizer, pre, decoder) = match &self.algorithm {
            Algorithm::ByteLevel { pre, merges } => {
                model["ignore_merges"] = pre.ignores_merges().into();
                model["merges"] = pairs(merges).into();
                let decoder =
                    json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
                (Json::Null, pre.to_json(), decoder)
            }
            Algorithm::SentencePiece { scores, add_space_prefix, .. } => {
                model["byte_fallback"] = true.into();
                model["fuse_unk"] = true.into();
                model["unk_token"] = self.unknown.and_then(|id| self.tokens.get(id as usize)).cloned().into();
                model["merges"] = pairs(&merges::from_scores(&self.tokens, &self.kinds, scores)).into();
                let (normalizer, decoder) = spaces(*add_space_prefix);
                (normalizer, Json::Null, decoder)
            }
        };
        json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": normalizer,
               "pre_tokenizer": pre, "post_processor": null, "decoder": decoder, "model": model})
    }
}

fn added_tokens(json: &Json) -> Result<Vec<Added>, String> {
    let all = json["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
    all.iter().map(|added| Added::read(&added["id"], added)).collect()
}

fn byte_level_parts(json: &Json, merges: Vec<(String, String)>) -> Result<Algorithm, String> {
    let normalizer = &json["normalizer"]["type"];
    if !(normalizer.is_null() || normalizer == "NFC") {
        return Err(format!("its normalizer {normalizer} is not supported; llama.cpp would not apply it"));
    }
    // Trained on one cut and served on another, a model would answer worse than it was measured to.
    let pre = PreTokenizer::recognise(&json["pre_tokenizer"]).ok_or_else(|| {
        format!("its pre-tokenizer has no name in GGUF that is known here; known: {}", PreTokenizer::known())
    })?;
    Ok(Algorithm::ByteLevel { pre, merges })
}

/// Whether a space is put before the text; an error where spaces become tokens in another way than llama.cpp's.
fn space_prefix(json: &Json, tokens: &[String], kinds: &[TokenKind]) -> Result<bool, String> {
    let model = &json["model"];
    let plain = |key: &str| matches!(&model[key], Json::Null) || model[key] == "" || model[key] == false;
    for key in ["dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"] {
        if !plain(key) {
            return Err(format!("its {key} {} is not supported; llama.cpp would not apply it", model[key]));
        }
    }
    let (mut prefix, mut spaces) = (false, false);
    for step in list(&json["normalizer"], "normalizers") {
        match step["type"].as_str() {
            Some("Prepend") if step["prepend"] == SPACE && !spaces => prefix = true,
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == SPACE => spaces = true,
            _ => return Err(format!("its normalizer {step} is not supported; llama.cpp would not apply it")),
        }
    }
    for step in list(&json["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str() {
            Some("Metaspace") if step["replacement"] == SPACE => {
                let scheme = step["prepend_scheme"].as_str().unwrap_or("always");
                prefix |= scheme != "never" && step["add_prefix_space"].as_bool().unwrap_or(true);
                spaces = true;
                let inner = |token: &String| token.chars().skip(1).any(|c| SPACE.starts_with(c));
                let normal = tokens.iter().zip(kinds).filter(|(_, kind)| **kind == TokenKind::Normal);
                if step["split"].as_bool().unwrap_or(true)
                    && let Some((across, _)) = normal.into_iter().find(|(token, _)| inner(token))
                {
                    return Err(format!("its Metaspace splits words, llama.cpp would not: '{across}' spans two"));
                }
            }
            // Gemma's: there are no spaces left to cut at.
            Some("Split") if spaces && step["pattern"]["String"] == " " => {}
            _ => return Err(format!("its pre-tokenizer {step} is not supported; llama.cpp would not apply it")),
        }
    }
    if spaces { Ok(prefix) } else { Err(format!("nothing in it turns spaces into '{SPACE}', as llama.cpp does")) }
}

/// A step, or a sequence of steps.
fn list<'j>(json: &'j Json, key: &str) -> Vec<&'j Json> {
    match json {
        Json::Null => Vec::new(),
        one => one[key].as_array().map_or_else(|| vec![one], |many| many.iter().collect()),
    }
}

/// llama.cpp strips after all special tokens but a few, or after none.
pub(super) fn strips_after_special(added: &[Added]) -> Result<bool, String> {
    let any = added.iter().any(|token| token.strips_after);
    // The rule is about structure: `</s>` strips though it is no special token in Phi-3's file.
    let odd = added.iter().find(|t| any && t.strips_after == PHI3_KEEPS.contains(&t.content.as_str()));
    match odd {
        None => Ok(any),
        Some(Added { content, strips_after, .. }) => {
            let does = if *strips_after { "drops" } else { "keeps" };
            Err(format!("its token '{content}' {does} the whitespace after it (rstrip); llama.cpp would not do so"))
        }
    }
}

/// Marks bytes and the unknown token, and spells user-defined tokens as they stand in the text, where llama.cpp looks.
fn spell(tokens: &mut [String], kinds: &mut [TokenKind], unknown: Option<u32>) {
    let bytes: HashSet<String> = (0..=255u8).map(super::vocab::byte_token).collect();
    for (id, (token, kind)) in tokens.iter_mut().zip(kinds).enumerate() {
        match *kind {
            _ if Some(id as u32) == unknown => *kind = TokenKind::Unknown,
            TokenKind::Normal if bytes.contains(token) => *kind = TokenKind::Byte,
            TokenKind::UserDefined => *token = token.replace(SPACE, " "),
            _ => {}
        }
    }
}

/// Normalizer and decoder.
fn spaces(prefix: bool) -> (Json, Json) {
    let replace = |from: &str, to: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": to});
    let mut steps = vec![replace(SPACE, " "), json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    if !prefix {
        return (replace(" ", SPACE), json!({"type": "Sequence", "decoders": steps}));
    }
    steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let normalizers = json!([{"type": "Prepend", "prepend": SPACE}, replace(" ", SPACE)]);
    (json!({"type": "Sequence", "normalizers": normalizers}), json!({"type": "Sequence", "decoders": steps}))
}

fn position(tokens: &[String], text: &str) -> Option<u32> {
    tokens.iter().position(|token| token == text).map(|id| id as u32)
}

pub(super) fn token_id(json: &Json) -> Option<u32> {
    json.as_u64().filter(|&id| id < MAX_TOKENS as u64).map(|id| id as u32)
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
