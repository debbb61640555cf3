//! Text to token ids and back, and chat messages to the text that the model was trained on. The ids are those that
//! llama.cpp computes from the same file, whichever format the tokenizer came from.

mod byte_level;
mod json;
mod labels;
mod merges;
mod model_file;
mod pre;
mod protobuf;
mod sentence_piece;
mod special;
mod vocab;

pub use labels::label_token;
pub use pre::PreTokenizer;
pub use vocab::{Algorithm, PHI3, TokenKind, Vocab};

use crate::chat_template::ChatTemplate;
use crate::config::DecoderConfig;
use crate::error::{ModelError, Result, read_capped};
use crate::gguf::{GgufFile, Value};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::files::write_atomic;
use serde_json::{Value as Json, json};
use std::path::Path;

const MAX_TOKENIZER_BYTES: u64 = 64 << 20;
const MAX_CONFIG_BYTES: u64 = 4 << 20;
const MAX_TEXT_BYTES: usize = 16 << 20;

/// A tokenizer with its chat template.
pub struct ChatTokenizer {
    engine: Engine,
    vocab: Vocab,
    template: ChatTemplate,
    end_of_turn: Option<u32>,
    opening: Opening,
}

enum Engine {
    ByteLevel(Box<byte_level::ByteLevel>),
    SentencePiece(Box<sentence_piece::SentencePiece>),
}

/// What stands before an answer in the chat template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opening {
    /// Whitespace that the template writes before the answer and not into the prompt: a space, for Llama 2.
    pub lead: String,
    /// Whether the prompt ends in text, so that the answer goes on with it; else it ends in a special token.
    pub goes_on: bool,
}

impl std::fmt::Debug for ChatTokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ChatTokenizer({} tokens)", self.vocab.tokens.len())
    }
}

impl ChatTokenizer {
    /// From a Hugging Face folder (tokenizer.json or SentencePiece's tokenizer.model, tokenizer_config.json) or from a `.gguf` file's metadata.
    ///
    /// # Errors
    /// When files are missing or malformed, or the tokenizer is neither byte-level BPE nor SentencePiece's BPE.
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
    /// When the vocabulary's parts contradict each other, or the template has a mistake.
    pub fn from_vocab(path: &Path, vocab: Vocab, template: &str) -> Result<Self> {
        let vocab = vocab.checked(path)?;
        let engine = match &vocab.algorithm {
            Algorithm::ByteLevel { pre, merges } => {
                let engine = byte_level::ByteLevel::new(&vocab, *pre, merges);
                Engine::ByteLevel(Box::new(engine.map_err(|e| ModelError::tokenizer(path, e.to_string()))?))
            }
            Algorithm::SentencePiece { scores, add_space_prefix, strip_after_special } => {
                let new = sentence_piece::SentencePiece::new;
                Engine::SentencePiece(Box::new(new(&vocab, scores, *add_space_prefix, *strip_after_special)))
            }
        };
        let text = |id: Option<u32>| id.and_then(|id| vocab.tokens.get(id as usize)).cloned();
        let template = ChatTemplate::new(template, text(vocab.bos), text(vocab.eos))?;
        let mut tokenizer = Self { engine, vocab, template, end_of_turn: None, opening: Opening::default() };
        tokenizer.end_of_turn = tokenizer.find_end_of_turn().or(tokenizer.vocab.eos);
        tokenizer.opening = tokenizer.find_opening().unwrap_or_default();
        Ok(tokenizer)
    }

    fn open_folder(folder: &Path) -> Result<Self> {
        let config = optional(&folder.join("tokenizer_config.json"), |p| read_json(p, MAX_CONFIG_BYTES))?;
        let config = config.unwrap_or(Json::Null);
        let (mut path, own) = (folder.join("tokenizer.json"), folder.join("tokenizer.model"));
        let mut vocab = if !path.is_file() && own.is_file() {
            path = own;
            let added = optional(&folder.join("added_tokens.json"), |p| read_json(p, MAX_CONFIG_BYTES))?;
            let bytes = read_capped(&path, MAX_TOKENIZER_BYTES)?;
            Vocab::from_model_file(&path, &bytes, &config, &added.unwrap_or(Json::Null))?
        } else {
            Vocab::from_json(&path, &read_json(&path, MAX_TOKENIZER_BYTES)?, &config)?
        };
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
        self.encode_part(text, false)
    }

    /// Token ids of `text` where it goes on after `before`: the same as [`ChatTokenizer::encode`]'s but for the space that
    /// some tokenizers put where a text begins or follows a special token.
    ///
    /// # Errors
    /// As [`ChatTokenizer::encode`].
    pub fn encode_after(&self, before: Option<u32>, text: &str) -> Result<Vec<u32>> {
        self.encode_part(text, before.is_some_and(|id| !self.is_special(id)))
    }

    /// Token ids of `text` as the beginning of an answer, which begins as [`ChatTokenizer::opening`] says.
    ///
    /// # Errors
    /// As [`ChatTokenizer::encode`].
    pub fn encode_answer(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_part(text, self.opening.goes_on)
    }

    /// Token ids of a prompt as a server makes them: with the token before it that begins a text, if the vocabulary asks for
    /// it and `text` does not spell it.
    ///
    /// # Errors
    /// As [`ChatTokenizer::encode`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        let bos = self.vocab.bos.filter(|_| self.vocab.add_bos);
        let spelled = bos.and_then(|id| self.token(id)).is_some_and(|bos| text.starts_with(bos));
        let mut ids: Vec<u32> = bos.into_iter().filter(|_| !spelled).collect();
        ids.extend(self.encode(text)?);
        Ok(ids)
    }

    fn encode_part(&self, text: &str, goes_on: bool) -> Result<Vec<u32>> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(ModelError::Encode { why: format!("{} bytes are more than 16 MiB", text.len()) });
        }
        match &self.engine {
            Engine::ByteLevel(engine) => engine.encode(text).map_err(|e| ModelError::Encode { why: e.to_string() }),
            Engine::SentencePiece(engine) => Ok(engine.encode(text, goes_on)),
        }
    }

    /// The text of `ids` as a server streams it, special tokens included: where the tokenizer put a space before a text,
    /// there is one. Bytes that are no UTF-8 on their own become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        match &self.engine {
            Engine::ByteLevel(engine) => engine.decode(ids),
            Engine::SentencePiece(_) => {
                let mut bytes = Vec::new();
                ids.iter().for_each(|&id| sentence_piece::append_bytes(&self.vocab, id, &mut bytes));
                String::from_utf8_lossy(&bytes).into_owned()
            }
        }
    }

    /// What a token adds to a text; none where it stands for no text, but for the template's structure or for nothing.
    pub fn bytes(&self, id: u32) -> Option<Vec<u8>> {
        let (token, kind) = (self.token(id)?, self.vocab.kinds.get(id as usize)?);
        if self.is_structural(id) || *kind == TokenKind::Unused {
            return None;
        }
        match &self.engine {
            Engine::ByteLevel(_) => byte_level::bytes(token),
            Engine::SentencePiece(_) => {
                let mut bytes = Vec::new();
                sentence_piece::append_bytes(&self.vocab, id, &mut bytes);
                Some(bytes)
            }
        }
    }

    /// The token as the vocabulary spells it: `Ġthe` for " the".
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocab.tokens.get(id as usize).map(String::as_str)
    }

    pub fn token_id(&self, token: &str) -> Option<u32> {
        match &self.engine {
            Engine::ByteLevel(engine) => engine.id(token),
            Engine::SentencePiece(engine) => engine.id(token),
        }
    }

    /// The token that stands for a label, in a file into which a classification head was folded.
    pub fn label_id(&self, label: &str) -> Option<u32> {
        self.token_id(&label_token(label, matches!(self.vocab.algorithm, Algorithm::ByteLevel { .. })))
    }

    /// Whether `id` is matched as a whole in the text: a control or a user-defined token.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.is_special(id)
    }

    /// Whether a text that spells it could be taken for the chat template's own.
    pub fn is_structural(&self, id: u32) -> bool {
        self.vocab.is_structural(id)
    }

    /// What stands before an answer.
    pub fn opening(&self) -> &Opening {
        &self.opening
    }

    /// Whether an answer has other tokens after a special token than after text.
    pub fn adds_space_prefix(&self) -> bool {
        match &self.engine {
            Engine::ByteLevel(_) => false,
            Engine::SentencePiece(engine) => engine.adds_space_prefix(),
        }
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
            "add_prefix_space": self.adds_space_prefix(),
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
        self.encode(after).ok()?.into_iter().find(|&id| self.is_structural(id))
    }

    /// Renders a prompt, then its answer, and looks at the border between them.
    fn find_opening(&self) -> Option<Opening> {
        let (user, answer) = (Message::new("user", "a"), "jvqxz");
        let prompt = self.render(std::slice::from_ref(&user), true).ok()?;
        let goes_on = self.encode_prompt(&prompt).ok()?.last().is_some_and(|&id| !self.is_special(id));
        let text = self.render(&[user, Message::new("assistant", answer)], false).unwrap_or_default();
        let lead = text.strip_prefix(&prompt).and_then(|said| said.split_once(answer)).map_or("", |(lead, _)| lead);
        // What is more than whitespace is for the row to refuse.
        let lead = if lead.trim().is_empty() { lead } else { "" };
        Some(Opening { lead: lead.to_owned(), goes_on })
    }
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
