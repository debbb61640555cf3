//! SentencePiece's own file, `tokenizer.model`, for a folder that has no tokenizer.json. It says the scores themselves, and how
//! text is prepared; what llama.cpp would not do so is refused. Field numbers: sentencepiece_model.proto of sentencepiece 0.2.

use super::json::{Added, SPACE, strips_after_special, token_id};
use super::protobuf::{Fields, Wire};
use super::vocab::{Algorithm, MAX_TOKENS, TokenKind, Vocab, unused};
use crate::error::{ModelError, Result};
use serde_json::Value as Json;
use std::path::Path;

/// What is read of the file, with the defaults of its schema.
struct Model {
    pieces: Vec<(String, f32, TokenKind)>,
    model_type: u64,
    suffix: bool,
    /// Of the unknown token, the first, the last, and padding; negative where there is none.
    ids: [i64; 4],
    normalizes: bool,
    add_dummy_prefix: bool,
    remove_extra_whitespaces: bool,
    escape_whitespaces: bool,
}

const BPE: u64 = 2;

impl Vocab {
    /// From `tokenizer.model`; special tokens that were added to it stand in tokenizer_config.json (`added_tokens_decoder`) or, of
    /// older folders, in `added`, added_tokens.json.
    ///
    /// # Errors
    /// When the file is malformed or another model than BPE with byte fallback, or prepares text as llama.cpp would not.
    pub fn from_model_file(path: &Path, bytes: &[u8], config: &Json, added: &Json) -> Result<Self> {
        let wrong = |why: String| ModelError::tokenizer(path, why);
        let model = parse(bytes).map_err(|why| wrong(format!("it is no SentencePiece model: {why}")))?;
        if let Some(why) = model.beyond() {
            return Err(wrong(why));
        }
        let added = added_tokens(config, added).map_err(wrong)?;
        let strip_after_special = strips_after_special(&added).map_err(wrong)?;
        let mut scores = Vec::with_capacity(model.pieces.len());
        let (mut tokens, mut kinds) = (Vec::with_capacity(model.pieces.len()), Vec::with_capacity(model.pieces.len()));
        for (token, score, kind) in model.pieces {
            tokens.push(if kind == TokenKind::UserDefined { token.replace(SPACE, " ") } else { token });
            scores.push(score);
            kinds.push(kind);
        }
        for Added { id, content, special, .. } in added {
            let id = id as usize;
            while tokens.len() <= id {
                let (token, kind) = unused(tokens.len());
                tokens.push(token);
                kinds.push(kind);
            }
            // The unknown token stays what it is, whoever lists it.
            if kinds[id] != TokenKind::Unknown {
                (tokens[id], kinds[id]) = match special {
                    true => (content, TokenKind::Control),
                    false => (content.replace(SPACE, " "), TokenKind::UserDefined),
                };
            }
        }
        scores.resize(tokens.len(), 0.0);
        let keys = ["unk_token", "bos_token", "eos_token", "pad_token"];
        let [unknown, bos, eos, padding] = std::array::from_fn(|i| {
            let text = config[keys[i]].as_str().or(config[keys[i]]["content"].as_str());
            let named = text.and_then(|text| tokens.iter().position(|token| token == text));
            named.or(usize::try_from(model.ids[i]).ok()).map(|id| id as u32)
        });
        let algorithm = Algorithm::SentencePiece {
            scores,
            add_space_prefix: config["add_prefix_space"].as_bool().unwrap_or(model.add_dummy_prefix),
            strip_after_special,
        };
        let add_bos = config["add_bos_token"].as_bool().unwrap_or(true);
        Self { tokens, kinds, algorithm, bos, eos, unknown, padding, add_bos }.checked(path)
    }
}

impl Model {
    /// What it asks for that llama.cpp would not do.
    fn beyond(&self) -> Option<String> {
        let kind = ["", "unigram", "", "word", "char"].get(self.model_type as usize).copied().unwrap_or("unknown");
        if self.model_type != BPE {
            return Some(format!(
                "its model is of the {kind} kind; SentencePiece's BPE with byte fallback is supported"
            ));
        }
        let asks = [
            (self.normalizes, "replaces characters before it cuts text (a normalizer with a table)"),
            (self.remove_extra_whitespaces, "drops spaces (remove_extra_whitespaces)"),
            (!self.escape_whitespaces, "does not spell spaces out (escape_whitespaces is false)"),
            (self.suffix, "puts the space behind a word (treat_whitespace_as_suffix)"),
        ];
        let (_, what) = asks.into_iter().find(|(asks, _)| *asks)?;
        Some(format!("it {what}; llama.cpp would not do so"))
    }
}

fn parse(bytes: &[u8]) -> Result<Model, String> {
    let mut model = Model {
        pieces: Vec::new(),
        model_type: 1,
        suffix: false,
        ids: [0, 1, 2, -1],
        normalizes: false,
        add_dummy_prefix: true,
        remove_extra_whitespaces: true,
        escape_whitespaces: true,
    };
    for field in Fields::of(bytes) {
        match field? {
            (1, Wire::Bytes(piece)) => {
                if model.pieces.len() == MAX_TOKENS {
                    return Err(format!("it has more than {MAX_TOKENS} tokens"));
                }
                let at = model.pieces.len();
                model.pieces.push(parse_piece(piece).map_err(|why| format!("token {at}: {why}"))?);
            }
            (2, Wire::Bytes(trainer)) => parse_trainer(trainer, &mut model)?,
            (3, Wire::Bytes(normalizer)) => parse_normalizer(normalizer, &mut model)?,
            (1..=3, other) => return Err(format!("a message was expected, {other:?} was found")),
            _ => {}
        }
    }
    match model.pieces.is_empty() {
        true => Err("it has no tokens".into()),
        false => Ok(model),
    }
}

fn parse_piece(bytes: &[u8]) -> Result<(String, f32, TokenKind), String> {
    let (mut token, mut score, mut kind) = (None, 0.0, TokenKind::Normal);
    for field in Fields::of(bytes) {
        match field? {
            (1, Wire::Bytes(text)) => {
                token = Some(std::str::from_utf8(text).map_err(|_| "it is not UTF-8".to_owned())?.to_owned());
            }
            (2, Wire::Fixed32(bits)) => score = f32::from_le_bytes(bits),
            (3, Wire::Varint(id)) => {
                let known = i64::try_from(id).ok().filter(|id| *id > 0).and_then(TokenKind::from_id);
                kind = known.ok_or_else(|| format!("{id} is no kind of token"))?;
            }
            (1..=3, other) => return Err(format!("{other:?} is not what was expected")),
            _ => {}
        }
    }
    let token = token.filter(|token| !token.is_empty()).ok_or("it has no text")?;
    Ok((token, score, kind))
}

fn parse_trainer(bytes: &[u8], model: &mut Model) -> Result<(), String> {
    for field in Fields::of(bytes) {
        let (number, Wire::Varint(value)) = field? else { continue };
        match number {
            3 => model.model_type = value,
            24 => model.suffix = value != 0,
            // A 32-bit number, its sign carried on to 64 bits.
            40..=43 => model.ids[number as usize - 40] = value.cast_signed(),
            _ => {}
        }
    }
    Ok(())
}

fn parse_normalizer(bytes: &[u8], model: &mut Model) -> Result<(), String> {
    for field in Fields::of(bytes) {
        match field? {
            (2, Wire::Bytes(table)) => model.normalizes = !table.is_empty(),
            (3, Wire::Varint(value)) => model.add_dummy_prefix = value != 0,
            (4, Wire::Varint(value)) => model.remove_extra_whitespaces = value != 0,
            (5, Wire::Varint(value)) => model.escape_whitespaces = value != 0,
            _ => {}
        }
    }
    Ok(())
}

/// Of both files, the newer one's word before the older's.
fn added_tokens(config: &Json, older: &Json) -> Result<Vec<Added>, String> {
    let mut out = Vec::new();
    for (id, token) in config["added_tokens_decoder"].as_object().into_iter().flatten() {
        let number: Option<Json> = id.parse::<u64>().ok().map(Json::from);
        out.push(Added::read(&number.unwrap_or_default(), token)?);
    }
    for (content, id) in older.as_object().into_iter().flatten() {
        let id = token_id(id).ok_or_else(|| format!("its token '{content}' has no usable id"))?;
        if !out.iter().any(|known| known.id == id) {
            let special = content.starts_with("<|") && content.ends_with("|>");
            out.push(Added { id, content: content.clone(), special, strips_after: false });
        }
    }
    Ok(out)
}
