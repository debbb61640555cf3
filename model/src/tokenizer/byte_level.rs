//! Byte-level BPE at work. Built anew even where a tokenizer.json was read: a server rebuilds it from GGUF metadata just so,
//! without the file's own normalizer, truncation and padding; and no stranger's regex runs here.

use super::pre::PreTokenizer;
use super::vocab::{TokenKind, Vocab};
use std::collections::HashMap;
use std::sync::LazyLock;
use tokenizers::models::bpe::{self, BPE};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::{AddedToken, Result, Tokenizer, pre_tokenizers::byte_level};

/// Stands for a byte that the vocabulary lacks, and is dropped again. Without it the tokenizer would join what stood
/// left and right of such a byte; llama.cpp does not. No text can spell it: bytes arrive in GPT-2's alphabet.
const NO_TOKEN: &str = "\u{0}no token";

pub(super) struct ByteLevel {
    inner: Tokenizer,
    /// Ids are below this, but for the one of [`NO_TOKEN`].
    n: u32,
}

impl ByteLevel {
    pub(super) fn new(vocab: &Vocab, pre: PreTokenizer, merges: &[(String, String)]) -> Result<Self> {
        let ids = || vocab.tokens.iter().zip(0..);
        let mut known: bpe::Vocab = ids().map(|(token, id)| (token.clone(), id)).collect();
        let n = vocab.tokens.len() as u32;
        known.insert(NO_TOKEN.into(), n);
        let model = BPE::builder()
            .vocab_and_merges(known, merges.to_vec())
            .unk_token(NO_TOKEN.into())
            .ignore_merges(pre.ignores_merges())
            .build()?;
        let mut inner = Tokenizer::new(model);
        inner.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(pre.to_json())?));
        inner.with_decoder(Some(byte_level::ByteLevel::default()));
        let added: Vec<AddedToken> = ids()
            .filter(|&(_, id)| vocab.is_special(id))
            .map(|(token, id)| {
                let hidden = vocab.kinds[id as usize] != TokenKind::UserDefined;
                AddedToken::from(token.as_str(), hidden).normalized(false)
            })
            .collect();
        inner.add_tokens(&added);
        Ok(Self { inner, n })
    }

    pub(super) fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, false)?;
        Ok(encoding.get_ids().iter().copied().filter(|&id| id < self.n).collect())
    }

    pub(super) fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token).filter(|&id| id < self.n)
    }
}

/// GPT-2's letter for a byte: printable ones stand for themselves, the others for U+0100 and on, in their order.
pub(super) fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..);
    match printable(byte) {
        true => char::from(byte),
        false => {
            let before = (0..byte).filter(|other| !printable(*other)).count() as u32;
            char::from_u32(0x100 + before).unwrap_or('\u{fffd}')
        }
    }
}

/// The bytes of a token that is spelled in that alphabet.
pub(super) fn bytes(token: &str) -> Option<Vec<u8>> {
    static BYTES: LazyLock<HashMap<char, u8>> = LazyLock::new(|| (0..=255).map(|byte| (letter(byte), byte)).collect());
    token.chars().map(|letter| BYTES.get(&letter).copied()).collect()
}
