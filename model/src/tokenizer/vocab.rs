//! A vocabulary as plain data: tokens, their kinds, merges in rank order or scores, special ids. It comes from GGUF
//! metadata or from a Hugging Face folder and goes to either, so that one tokenizer serves both formats.

use super::pre::PreTokenizer;
use crate::error::{ModelError, Result};
use crate::gguf::{Array, GgufFile, MOST_SHOWN, Value, shortened};
use std::collections::HashSet;
use std::path::Path;

/// What llama.cpp looks for in a model's lower-cased name before it drops whitespace after special tokens.
pub const PHI3: [&str; 2] = ["phi-3", "phi3"];
/// Which special tokens keep what follows them all the same.
pub(super) const PHI3_KEEPS: [&str; 3] = ["<unk>", "<s>", "<|endoftext|>"];
pub(super) const MAX_TOKENS: usize = 1 << 20;
pub(super) const MAX_MERGES: usize = 1 << 22;
/// Of a SentencePiece token, and of one that is matched as a whole. Gemma's longest has 93 bytes; longer ones would let a
/// file choose how long its reading takes.
pub(super) const MAX_PIECE_BYTES: usize = 512;
/// Of all its tokens together. Gemma's 262,144 have 2 MiB.
const MAX_TOKENS_BYTES: usize = 32 << 20;
const MAX_SPECIAL_BYTES: usize = 4 << 20;

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
    pub(super) fn from_id(id: i64) -> Option<Self> {
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
    pub(super) fn is_added(self) -> bool {
        matches!(self, TokenKind::Unknown | TokenKind::Control | TokenKind::UserDefined)
    }
}

/// How text becomes tokens.
#[derive(Clone, Debug, PartialEq)]
pub enum Algorithm {
    /// BPE over bytes spelled in GPT-2's alphabet (`Ġ` is a space), within the pieces that `pre` cuts.
    ByteLevel {
        pre: PreTokenizer,
        /// Pairs in order of rank.
        merges: Vec<(String, String)>,
    },
    /// BPE over characters as SentencePiece has it (`▁` is a space): the neighbours whose join is the token with the highest
    /// score are joined first, and what is no token in the end becomes `<0x00>` to `<0xFF>`.
    SentencePiece {
        /// One a token.
        scores: Vec<f32>,
        /// Whether a space is put before the text, and before what follows a token that is matched as a whole.
        add_space_prefix: bool,
        /// Whether whitespace after such a token is dropped, as Phi-3 wants it.
        strip_after_special: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Vocab {
    /// By id, in the algorithm's spelling but for added tokens, which are plain text.
    pub tokens: Vec<String>,
    pub kinds: Vec<TokenKind>,
    pub algorithm: Algorithm,
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
    /// When the tokenizer is of a kind that is not known here, or its parts contradict each other.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let path = file.path();
        let wrong = |why: String| ModelError::tokenizer(path, why);
        let text = |key: &str| file.get_as(key, "a string", Value::as_str);
        let flag = |key: &str| file.get_as(&format!("tokenizer.ggml.{key}"), "a bool", Value::as_bool);
        let algorithm = match text("tokenizer.ggml.model")? {
            Some("gpt2") => byte_level(file)?,
            Some("llama") => sentence_piece(file)?,
            None => return Err(wrong("there is no tokenizer.ggml.model".into())),
            Some(other) => {
                let known = "gpt2 (byte-level BPE) and llama (SentencePiece BPE) are";
                let other = shortened(other, MOST_SHOWN);
                let why = format!("tokenizer model '{other}' is not supported; {known}");
                return Err(wrong(format!("{why}. Try the model's Hugging Face folder")));
            }
        };
        if flag("add_eos_token")? == Some(true) {
            return Err(wrong("a server would end every prompt with the end-of-text token (add_eos_token)".into()));
        }
        let tokens = strings(file, "tokenizer.ggml.tokens")?.to_vec();
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
            let key = format!("tokenizer.ggml.{key}_token_id");
            let id = file.get_as(&key, "a token id", Value::as_u64)?;
            id.map(|id| u32::try_from(id).map_err(|_| wrong(format!("{key} {id} is no token id")))).transpose()
        };
        // llama.cpp's own defaults for a file that does not say.
        let defaults = match &algorithm {
            Algorithm::ByteLevel { pre, .. } => (*pre == PreTokenizer::LlamaBpe, None, None, None),
            Algorithm::SentencePiece { .. } => (true, Some(1), Some(2), Some(0)),
        };
        Self {
            tokens,
            kinds,
            algorithm,
            bos: id("bos")?.or(defaults.1),
            eos: id("eos")?.or(defaults.2),
            unknown: id("unknown")?.or(defaults.3),
            padding: id("padding")?,
            add_bos: flag("add_bos_token")?.unwrap_or(defaults.0),
        }
        .checked(path)
    }

    /// Adds unused tokens until there are `n`: an embedding often has more rows than the tokenizer uses, and llama.cpp
    /// wants a token for each.
    pub fn padded_to(mut self, n: usize) -> Self {
        for id in self.tokens.len()..n.min(MAX_TOKENS) {
            let (token, kind) = unused(id);
            self.tokens.push(token);
            self.kinds.push(kind);
        }
        if let Algorithm::SentencePiece { scores, .. } = &mut self.algorithm {
            scores.resize(self.tokens.len(), 0.0);
        }
        self
    }

    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize).is_some_and(|kind| kind.is_added())
    }

    /// Whether a prompt or an answer that spells it would take part in the template's structure. What SentencePiece calls
    /// user-defined is text: Gemma's line breaks, runs of spaces and HTML tags.
    pub fn is_structural(&self, id: u32) -> bool {
        let text = matches!(self.algorithm, Algorithm::SentencePiece { .. });
        self.is_special(id) && !(text && self.kinds.get(id as usize) == Some(&TokenKind::UserDefined))
    }

    /// The `tokenizer.ggml.*` keys, complete enough for llama.cpp to load and serve. It strips whitespace after special
    /// tokens only where `general.name` says [`PHI3`].
    pub fn to_gguf(&self) -> Vec<(String, Value)> {
        let kinds = self.kinds.iter().map(|&kind| kind as i32).collect();
        let mut keys: Vec<(&str, Value)> =
            vec![("tokens", Value::strings(self.tokens.clone())), ("token_type", Value::Array(Array::I32(kinds)))];
        let space_prefix = match &self.algorithm {
            Algorithm::ByteLevel { pre, merges } => {
                let merges = merges.iter().map(|(a, b)| format!("{a} {b}")).collect();
                keys.extend([("merges", Value::strings(merges))]);
                keys.splice(0..0, [("model", "gpt2".into()), ("pre", pre.name().into())]);
                false
            }
            Algorithm::SentencePiece { scores, add_space_prefix, .. } => {
                keys.extend([("scores", Value::Array(Array::F32(scores.clone())))]);
                keys.splice(0..0, [("model", "llama".into()), ("pre", "default".into())]);
                *add_space_prefix
            }
        };
        let ids = [self.bos, self.eos, self.unknown, self.padding];
        let names = ["bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id"];
        keys.extend(names.into_iter().zip(ids).filter_map(|(name, id)| Some((name, Value::U32(id?)))));
        keys.push(("add_bos_token", self.add_bos.into()));
        keys.push(("add_space_prefix", space_prefix.into()));
        keys.into_iter().map(|(key, value)| (format!("tokenizer.ggml.{key}"), value)).collect()
    }

    pub(super) fn checked(self, path: &Path) -> Result<Self> {
        let wrong = |why: String| Err(ModelError::tokenizer(path, why));
        let n = self.tokens.len();
        if n == 0 || n > MAX_TOKENS {
            return wrong(format!("{n} tokens are out of bounds"));
        }
        if self.kinds.len() != n {
            return wrong(format!("{} token types for {n} tokens", self.kinds.len()));
        }
        for (what, id) in [("bos", self.bos), ("eos", self.eos), ("unknown", self.unknown), ("padding", self.padding)] {
            if let Some(id) = id.filter(|&id| id as usize >= n) {
                return wrong(format!("the {what} token {id} is not one of {n}"));
            }
        }
        let mut seen = HashSet::with_capacity(n);
        if let Some(twice) = self.tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return wrong(format!("token '{}' is given twice", shortened(twice, MOST_SHOWN)));
        }
        match &self.algorithm {
            Algorithm::ByteLevel { merges, .. } if merges.len() > MAX_MERGES => {
                wrong(format!("{} merges are out of bounds", merges.len()))
            }
            Algorithm::ByteLevel { .. } => Ok(self),
            Algorithm::SentencePiece { scores, .. } => match wrong_pieces(&self, scores, &seen) {
                Some(why) => wrong(why),
                None => Ok(self),
            },
        }
    }
}

fn wrong_pieces(vocab: &Vocab, scores: &[f32], tokens: &HashSet<&str>) -> Option<String> {
    if scores.len() != vocab.tokens.len() {
        return Some(format!("{} scores for {} tokens", scores.len(), vocab.tokens.len()));
    }
    if let Some(at) = scores.iter().position(|score| !score.is_finite()) {
        return Some(format!("the score of token {at} is not finite"));
    }
    if let Some(long) = vocab.tokens.iter().position(|token| token.len() > MAX_PIECE_BYTES) {
        return Some(format!("token {long} is longer than {MAX_PIECE_BYTES} bytes"));
    }
    if vocab.tokens.iter().map(String::len).sum::<usize>() > MAX_TOKENS_BYTES {
        return Some("its tokens are longer than 32 MiB together".into());
    }
    let special = (0..).zip(&vocab.tokens).filter(|&(id, _)| vocab.is_special(id));
    if special.map(|(_, token)| token.len()).sum::<usize>() > MAX_SPECIAL_BYTES {
        return Some("its special tokens are longer than 4 MiB together".into());
    }
    let missing = (0..=255u8).map(byte_token).find(|byte| !tokens.contains(byte.as_str()))?;
    Some(format!("it has no token {missing}: text could meet characters that it has no tokens for"))
}

/// How SentencePiece spells a byte.
pub(super) fn byte_token(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

fn strings<'f>(file: &'f GgufFile, key: &str) -> Result<&'f [String]> {
    let found = file.get_as(key, "an array of strings", Value::as_strings)?;
    found.ok_or_else(|| ModelError::tokenizer(file.path(), format!("there is no {key}")))
}

fn byte_level(file: &GgufFile) -> Result<Algorithm> {
    let wrong = |why: String| ModelError::tokenizer(file.path(), why);
    let pre = file.get_as("tokenizer.ggml.pre", "a string", Value::as_str)?.unwrap_or("default");
    let pre = PreTokenizer::from_name(pre).ok_or_else(|| {
        let (pre, known) = (shortened(pre, MOST_SHOWN), PreTokenizer::known());
        wrong(format!("pre-tokenizer '{pre}' is not known; known: {known}"))
    })?;
    let merges = strings(file, "tokenizer.ggml.merges")?;
    let no_pair = |m: &str| wrong(format!("merge '{}' is no pair", shortened(m, MOST_SHOWN)));
    let merges = merges.iter().map(|m| split_merge(m).ok_or_else(|| no_pair(m)));
    Ok(Algorithm::ByteLevel { pre, merges: merges.collect::<Result<_>>()? })
}

fn sentence_piece(file: &GgufFile) -> Result<Algorithm> {
    let scores = file.get_as("tokenizer.ggml.scores", "an array of floats", |v| match v {
        Value::Array(Array::F32(scores)) => Some(scores.clone()),
        _ => None,
    })?;
    let scores =
        scores.ok_or_else(|| ModelError::tokenizer(file.path(), "there is no tokenizer.ggml.scores".to_owned()))?;
    let prefix = file.get_as("tokenizer.ggml.add_space_prefix", "a bool", Value::as_bool)?;
    let name = file.get_as("general.name", "a string", Value::as_str)?.unwrap_or_default().to_lowercase();
    Ok(Algorithm::SentencePiece {
        scores,
        add_space_prefix: prefix.unwrap_or(true),
        strip_after_special: PHI3.iter().any(|part| name.contains(part)),
    })
}

pub(super) fn unused(id: usize) -> (String, TokenKind) {
    (format!("[PAD{id}]"), TokenKind::Unused)
}

/// `a b`, where `a` may itself begin with a space.
pub(super) fn split_merge(text: &str) -> Option<(String, String)> {
    let after_first = text.chars().next()?.len_utf8();
    let at = text[after_first..].find(' ')? + after_first;
    Some((text[..at].to_owned(), text[at + 1..].to_owned())).filter(|(_, b)| !b.is_empty())
}
