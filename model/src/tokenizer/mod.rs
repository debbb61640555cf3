//! Text to token ids and back, and chat messages to the text that the model was trained on. The ids are those that
//! llama.cpp computes from the same file, whichever format the tokenizer came from.

mod pre;
mod vocab;

pub use pre::PreTokenizer;
pub use vocab::{TokenKind, Vocab};

use crate::chat_template::ChatTemplate;
use crate::config::DecoderConfig;
use crate::error::{ModelError, Result, read_capped};
use crate::gguf::{GgufFile, Value};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::files::write_atomic;
use serde_json::{Value as Json, json};
use std::path::Path;
use tokenizers::models::bpe::{self, BPE};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Stands for a byte that the vocabulary lacks, and is dropped again. Without it the tokenizer would join what stood
/// left and right of such a byte; llama.cpp does not. No text can spell it: bytes arrive in GPT-2's alphabet.
const NO_TOKEN: &str = "\u{0}no token";

/// A tokenizer with its chat template.
pub struct ChatTokenizer {
    inner: Tokenizer,
    vocab: Vocab,
    template: ChatTemplate,
    end_of_turn: Option<u32>,
}

impl std::fmt::Debug for ChatTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTokenizer({} tokens)", self.vocab.tokens.len())
    }
}

impl ChatTokenizer {
    /// From a Hugging Face folder (tokenizer.json, tokenizer_config.json) or from a `.gguf` file's metadata.
    ///
    /// # Errors
    /// When files are missing or malformed, or the tokenizer is no byte-level BPE.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { Self::open_folder(path) } else { Self::from_gguf(&GgufFile::open(path)?) }
    }

    /// Rebuilt from a GGUF file's metadata.
    ///
    /// # Errors
    /// As [`ChatTokenizer::open`].
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let vocab = Vocab::from_gguf(file)?;
        let template = file.get_as("tokenizer.chat_template", "a string", Value::as_str)?.unwrap_or_default();
        Self::from_vocab(file.path(), vocab, template)
    }

    /// Built from plain data; `path` names the source in errors.
    ///
    /// # Errors
    /// When a merge names tokens that are not in the vocabulary, or the template has a mistake.
    pub fn from_vocab(path: &Path, vocab: Vocab, template: &str) -> Result<Self> {
        let inner = working(&vocab).map_err(|e| ModelError::tokenizer(path, e.to_string()))?;
        let text = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize)).cloned();
        let template = ChatTemplate::new(template, text(vocab.bos), text(vocab.eos))?;
        let mut tokenizer = Self { inner, vocab, template, end_of_turn: None };
        tokenizer.end_of_turn = tokenizer.find_end_of_turn().or(tokenizer.vocab.eos);
        Ok(tokenizer)
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        let json = read_json(&path, MAX_TOKENIZER_BYTES)?;
        let config = optional(&folder.join("tokenizer_config.json"), |p| read_json(p, MAX_CONFIG_BYTES))?;
        let config = config.unwrap_or(Json::Null);
        let mut vocab = Vocab::from_json(&path, &json, &config)?;
        // The config may count more rows than the tokenizer has tokens.
        if let Some(decoder) = optional(&folder.join("config.json"), DecoderConfig::from_hf)? {
            vocab = vocab.padded_to(decoder.vocab_size);
        }
        let own_file = optional(&folder.join("chat_template.jinja"), |p| read_capped(p, MAX_CONFIG_BYTES))?;
        let template = match own_file {
            Some(bytes) => String::from_utf8(bytes)
                .map_err(|_| ModelError::tokenizer(folder, "chat_template.jinja is not UTF-8"))?,
            None => template_in(&config).unwrap_or_default().to_owned(),
        };
        Self::from_vocab(&path, vocab, &template)
    }

    /// Token ids of `text`; special tokens in it are parsed as such, none is added.
    ///
    /// # Errors
    /// When the text is longer than 16 MiB.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ModelError::Encode { why: format!("{} bytes are more than 16 MiB", text.len()) });
        }
        let encoding = self.inner.encode_fast(text, false).map_err(|e| ModelError::Encode { why: e.to_string() })?;
        let real = self.vocab.tokens.len() as u32;
        Ok(encoding.get_ids().iter().copied().filter(|&id| id < real).collect())
    }

    /// The text of `ids`, special tokens included. Bytes that are no UTF-8 on their own become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.inner.decode(ids, false).unwrap_or_default()
    }

    /// The token as the vocabulary spells it: `Ġthe` for " the".
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocab.tokens.get(id as usize).map(String::as_str)
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token).filter(|&id| (id as usize) < self.vocab.tokens.len())
    }

    /// Whether `id` is matched as a whole in the text: a control or a user-defined token.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.is_special(id)
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab.tokens.len()
    }

    pub fn vocab(&self) -> &Vocab {
        &self.vocab
    }

    pub fn eos_id(&self) -> Option<u32> {
        self.vocab.eos
    }

    pub fn bos_id(&self) -> Option<u32> {
        self.vocab.bos
    }

    /// The token that ends an assistant's turn in the chat template (`<|im_end|>` for SmolLM2), else the end of text.
    pub fn end_of_turn_id(&self) -> Option<u32> {
        self.end_of_turn
    }

    pub fn chat_template(&self) -> &str {
        self.template.source()
    }

    /// The prompt's text for `messages`, ready to encode.
    ///
    /// # Errors
    /// When there is no template, it refuses these messages, or it exceeds its limits.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        self.template.render(messages, add_generation_prompt)
    }

    /// All `tokenizer.*` keys that llama.cpp needs to load and serve the model.
    pub fn gguf_metadata(&self) -> Vec<(String, Value)> {
        let mut keys = self.vocab.to_gguf();
        if !self.chat_template().is_empty() {
            keys.push(("tokenizer.chat_template".into(), self.chat_template().into()));
        }
        keys
    }

    /// Writes tokenizer.json and tokenizer_config.json, as transformers reads them.
    ///
    /// # Errors
    /// When writing fails.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let text = |id: Option<u32>| id.and_then(|id| self.token(id));
        let config = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.vocab.add_bos,
            "add_prefix_space": false,
            "clean_up_tokenization_spaces": false,
            "bos_token": text(self.vocab.bos),
            "eos_token": text(self.vocab.eos),
            "unk_token": text(self.vocab.unknown),
            "pad_token": text(self.vocab.padding),
            "chat_template": self.chat_template(),
        });
        for (name, json) in [("tokenizer.json", &self.vocab.to_json()), ("tokenizer_config.json", &config)] {
            let path = folder.join(name);
            let bytes = format!("{json:#}\n");
            write_atomic(&path, bytes.as_bytes()).map_err(ModelError::write(&path))?;
        }
        Ok(())
    }

    /// Renders an answer and looks at the first special token after it.
    fn find_end_of_turn(&self) -> Option<u32> {
        let answer = "jvqxz";
        let text = self.render(&[Message::new("user", "a"), Message::new("assistant", answer)], false).ok()?;
        let (_, after) = text.rsplit_once(answer)?;
        self.encode(after).ok()?.into_iter().find(|&id| self.is_special(id))
    }
}

/// The tokenizer at work. Built anew even where a tokenizer.json was read: a server rebuilds it from GGUF metadata just
/// so, without the file's own normalizer, truncation and padding; and no stranger's regex runs here.
fn working(vocab: &Vocab) -> tokenizers::Result<Tokenizer> {
    let ids = || vocab.tokens.iter().zip(0..);
    let mut known: bpe::Vocab = ids().map(|(token, id)| (token.clone(), id)).collect();
    known.insert(NO_TOKEN.into(), vocab.tokens.len() as u32);
    let model = BPE::builder()
        .vocab_and_merges(known, vocab.merges.clone())
        .unk_token(NO_TOKEN.into())
        .ignore_merges(vocab.pre.ignores_merges())
        .build()?;
    let mut tokenizer = Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(serde_json::from_value::<PreTokenizerWrapper>(vocab.pre.to_json())?));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let added: Vec<AddedToken> = ids()
        .filter(|&(_, id)| vocab.is_special(id))
        .map(|(token, id)| {
            let hidden = vocab.kinds[id as usize] != TokenKind::UserDefined;
            AddedToken::from(token.as_str(), hidden).normalized(false)
        })
        .collect();
    tokenizer.add_tokens(&added);
    Ok(tokenizer)
}

fn read_json(path: &Path, cap: u64) -> Result<Json> {
    serde_json::from_slice(&read_capped(path, cap)?).map_err(|e| ModelError::tokenizer(path, e.to_string()))
}

fn optional<T>(path: &Path, read: impl FnOnce(&Path) -> Result<T>) -> Result<Option<T>> {
    if path.is_file() { read(path).map(Some) } else { Ok(None) }
}

/// One template, or a list of named ones of which `default` counts.
fn template_in(config: &Json) -> Option<&str> {
    let template = &config["chat_template"];
    template.as_str().or_else(|| {
        let named = template.as_array()?.iter().find(|t| t["name"] == "default")?;
        named["template"].as_str()
    })
}
