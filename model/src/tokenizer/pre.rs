//! The pre-tokenizers of byte-level BPE: how text is cut before merges apply. GGUF names them, tokenizer.json spells
//! them out; both must cut alike, or a model is trained on other tokens than it is served.

use serde_json::{Value as Json, json};

const CONTRACTIONS: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";
/// The same in tokenizer.json files: `(?i:)` also folds the long s and the Kelvin sign, which llama.cpp does not.
const CONTRACTIONS_HF: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    Gpt2,
    /// GPT-2's, with every digit on its own.
    Smollm,
    /// Llama 3's: digits by up to three.
    LlamaBpe,
    Qwen2,
    /// What llama.cpp falls back to when a file names none.
    Default,
}

impl PreTokenizer {
    pub const ALL: [PreTokenizer; 5] =
        [PreTokenizer::Gpt2, PreTokenizer::Smollm, PreTokenizer::LlamaBpe, PreTokenizer::Qwen2, PreTokenizer::Default];

    /// The name in `tokenizer.ggml.pre`.
    pub fn name(self) -> &'static str {
        match self {
            PreTokenizer::Gpt2 => "gpt-2",
            PreTokenizer::Smollm => "smollm",
            PreTokenizer::LlamaBpe => "llama-bpe",
            PreTokenizer::Qwen2 => "qwen2",
            PreTokenizer::Default => "default",
        }
    }

    /// All names, for errors.
    pub(super) fn known() -> String {
        Self::ALL.map(Self::name).join(", ")
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|pre| pre.name() == name)
    }

    /// A whole piece that is itself a token is taken without merging.
    pub fn ignores_merges(self) -> bool {
        self == PreTokenizer::LlamaBpe
    }

    /// As tokenizer.json's `pre_tokenizer`.
    pub fn to_json(self) -> Json {
        let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
        let split = |regex: &str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false});
        let steps = match self {
            PreTokenizer::Gpt2 => return bytes(true),
            PreTokenizer::Smollm => vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
            PreTokenizer::LlamaBpe => vec![split(&modern(CONTRACTIONS, r"\p{N}{1,3}")), bytes(false)],
            PreTokenizer::Qwen2 => vec![split(&modern(CONTRACTIONS, r"\p{N}")), bytes(false)],
            PreTokenizer::Default => vec![
                split(r"[\p{P}\$\+<=>\^~\|]+"),
                split(GPT2),
                split(r"\p{N}+"),
                split("[0-9][0-9][0-9]"),
                bytes(false),
            ],
        };
        json!({"type": "Sequence", "pretokenizers": steps})
    }

    /// Which one a tokenizer.json spells out, if it is one that GGUF has a name for.
    pub fn recognise(json: &Json) -> Option<Self> {
        let found = steps(json)?;
        Self::ALL.into_iter().find(|pre| steps(&pre.to_json()).as_ref() == Some(&found))
    }
}

/// The pattern that Llama 3 and Qwen share but for their numbers.
fn modern(contractions: &str, numbers: &str) -> String {
    let letters = r"[^\r\n\p{L}\p{N}]?\p{L}+";
    format!(r"{contractions}|{letters}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
}

/// A pre-tokenizer as a list of what it does, so that spellings of one thing compare equal.
fn steps(json: &Json) -> Option<Vec<String>> {
    match json["type"].as_str()? {
        "Sequence" => {
            let parts = json["pretokenizers"].as_array()?.iter().map(steps).collect::<Option<Vec<_>>>()?;
            Some(parts.concat())
        }
        "Digits" => Some(vec![format!("digits {}", json["individual_digits"].as_bool()?)]),
        "ByteLevel" if json["add_prefix_space"].as_bool() == Some(false) => {
            // Older files lack the field; it means true.
            Some(vec![format!("bytes {}", json["use_regex"].as_bool().unwrap_or(true))])
        }
        "Split" if json["behavior"] == "Isolated" && json["invert"].as_bool() != Some(true) => {
            let regex = json["pattern"]["Regex"].as_str()?;
            Some(vec![format!("split {}", regex.replace(CONTRACTIONS_HF, CONTRACTIONS))])
        }
        _ => None,
    }
}

/// Whether text reaches the merges as bytes spelled in GPT-2's alphabet.
pub(super) fn is_byte_level(json: &Json) -> bool {
    match json["type"].as_str() {
        Some("ByteLevel") => true,
        Some("Sequence") => json["pretokenizers"].as_array().is_some_and(|parts| parts.iter().any(is_byte_level)),
        _ => false,
    }
}
