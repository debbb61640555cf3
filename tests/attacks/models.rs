//! GGUF files that keep to the format and lie about the model: a tiny base with a key, a tensor or the tokenizer changed, each with
//! what the loader has to say. Whoever believed them would divide by zero, allocate without end or read what is not there.

use super::tiny_base;
use limbeck_model::gguf::{Array, GgmlType, GgufFile, GgufWriter, Value};
use std::path::Path;

pub struct Lie {
    pub name: &'static str,
    change: Change,
    /// Part of the loader's reason.
    pub says: &'static str,
}

enum Change {
    Set(&'static str, Value),
    Unset(&'static str),
    /// Of a tensor: other dimensions, a type and bytes.
    Tensor(&'static str, Vec<u64>, GgmlType, Vec<u8>),
    Without(&'static str),
}

/// Writes the honest base.
pub fn honest(path: &Path) {
    tiny_base::write(path, 1, GgmlType::F32, 3);
}

impl Lie {
    /// Writes the base with this change.
    pub fn write(&self, honest: &Path, path: &Path) {
        let file = GgufFile::open(honest).unwrap();
        let mut writer = GgufWriter::new();
        for (key, value) in file.metadata() {
            if !matches!(&self.change, Change::Unset(gone) if gone == key) {
                writer.set(key.clone(), value.clone());
            }
        }
        if let Change::Set(key, value) = &self.change {
            writer.set(*key, value.clone());
        }
        let mut add = |name: &str, dims: &[u64], ty: GgmlType, bytes: Vec<u8>| {
            writer.add_bytes(name.to_owned(), dims.to_vec(), ty, bytes);
        };
        let mut changed = false;
        for info in file.tensors() {
            match &self.change {
                Change::Tensor(name, dims, ty, bytes) if *name == info.name => {
                    add(name, dims, *ty, bytes.clone());
                    changed = true;
                }
                Change::Without(name) if *name == info.name => {}
                _ => add(&info.name, &info.dims, info.ty, file.bytes(info).unwrap()),
            }
        }
        if let (Change::Tensor(name, dims, ty, bytes), false) = (&self.change, changed) {
            add(name, dims, *ty, bytes.clone());
        }
        writer.write(path).unwrap();
    }
}

pub fn lies() -> Vec<Lie> {
    let made = [sizes(), numbers(), tensors(), vocabularies(), templates()].into_iter().flatten();
    made.map(|(name, change, says)| Lie { name, change, says }).collect()
}

type Told = Vec<(&'static str, Change, &'static str)>;

fn sizes() -> Told {
    let set = |key, value| Change::Set(key, value);
    let long = Value::from("x".repeat(100_000));
    vec![
        ("no-architecture", Change::Unset("general.architecture"), "architecture '(no general.architecture)'"),
        ("architecture-that-is-a-number", set("general.architecture", Value::U32(1)), "is not a string"),
        ("endless-architecture", set("general.architecture", long), "is not known; known: llama"),
        ("no-layers", set("llama.block_count", Value::U32(0)), "llama.block_count is 0; 1 to 512"),
        (
            "layers-without-end",
            set("llama.block_count", Value::U32(u32::MAX)),
            "llama.block_count is 4294967295; 1 to 512",
        ),
        ("more-layers-than-there-are", set("llama.block_count", Value::U32(2)), "holds no tensor 'model.layers.1."),
        ("layers-in-words", set("llama.block_count", Value::from("two")), "is not a whole number"),
        (
            "heads-a-layer",
            set("llama.attention.head_count", Value::Array(Array::U32(vec![4; 9]))),
            "is not a whole number",
        ),
        ("no-heads", set("llama.attention.head_count", Value::U32(0)), "head_count is 0; 1 to 1024"),
        ("heads-without-end", set("llama.attention.head_count", Value::U32(1 << 31)), "head_count is 2147483648"),
        ("no-key-heads", set("llama.attention.head_count_kv", Value::U32(0)), "head_count_kv is 0"),
        (
            "key-heads-that-do-not-divide",
            set("llama.attention.head_count_kv", Value::U32(3)),
            "can't share 3 key-value heads",
        ),
        ("negative-width", set("llama.embedding_length", Value::I32(-64)), "is not a whole number"),
        (
            "width-without-end",
            set("llama.embedding_length", Value::U64(u64::MAX)),
            "embedding_length is 18446744073709551615",
        ),
        (
            "another-width",
            set("llama.embedding_length", Value::U32(128)),
            "rope.dimension_count 16 differs from the head size 32",
        ),
        ("odd-heads", set("llama.attention.key_length", Value::U32(17)), "differs from the head size 17"),
        (
            "another-feed-forward",
            set("llama.feed_forward_length", Value::U32(1 << 18)),
            "the config promises [64, 262144]",
        ),
        ("vocabulary-without-end", set("llama.vocab_size", Value::U64(u64::MAX)), "vocab_size is 18446744073709551615"),
        ("larger-vocabulary", set("llama.vocab_size", Value::U32(1 << 22)), "the config promises [4194304, 64]"),
        (
            "context-without-end",
            set("llama.context_length", Value::U64(u64::MAX)),
            "context_length is 18446744073709551615",
        ),
        ("experts", set("llama.expert_count", Value::U32(8)), "mixtures of experts are not supported"),
        ("window", set("llama.attention.sliding_window", Value::U32(8)), "a sliding window of 8"),
    ]
}

fn numbers() -> Told {
    let set = |key, value| Change::Set(key, Value::F32(value));
    vec![
        ("epsilon-no-number", set("llama.attention.layer_norm_rms_epsilon", f32::NAN), "rms_norm_eps NaN"),
        ("negative-epsilon", set("llama.attention.layer_norm_rms_epsilon", -1.0), "rms_norm_eps -1"),
        ("no-epsilon", Change::Unset("llama.attention.layer_norm_rms_epsilon"), "rms_epsilon' is missing"),
        ("rotation-no-number", set("llama.rope.freq_base", f32::NAN), "rope_theta NaN"),
        ("rotation-of-0", set("llama.rope.freq_base", 0.0), "rope_theta 0"),
        ("rotation-without-end", set("llama.rope.freq_base", f32::INFINITY), "rope_theta inf"),
        (
            "endless-scaling",
            Change::Set("llama.rope.scaling.type", Value::from("y".repeat(100_000))),
            "... (100000 characters)' is not supported",
        ),
    ]
}

fn tensors() -> Told {
    let zeros = |n: usize| vec![0; 4 * n];
    let with = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
    let norm = |values: &[f32]| Change::Tensor("blk.0.attn_norm.weight", vec![64], GgmlType::F32, with(values));
    let mut of_nan = [1.0; 64];
    of_nan[63] = f32::NAN;
    vec![
        ("no-norm", Change::Without("output_norm.weight"), "holds no tensor 'model.norm.weight'"),
        ("no-embedding", Change::Without("token_embd.weight"), "holds no tensor 'model.embed_tokens.weight'"),
        (
            "short-norm",
            Change::Tensor("blk.0.attn_norm.weight", vec![32], GgmlType::F32, zeros(32)),
            "its shape is [32]",
        ),
        (
            "norm-that-is-a-matrix",
            Change::Tensor("blk.0.attn_norm.weight", vec![64, 1], GgmlType::F32, zeros(64)),
            "its shape is [1, 64]",
        ),
        (
            "matrix-that-is-a-row",
            Change::Tensor("blk.0.attn_k.weight", vec![2048], GgmlType::F32, zeros(2048)),
            "its shape is [2048]",
        ),
        (
            "matrix-that-is-turned",
            Change::Tensor("blk.0.attn_k.weight", vec![32, 64], GgmlType::F32, zeros(2048)),
            "its shape is [64, 32]",
        ),
        (
            "a-stranger-in-a-layer",
            Change::Tensor("blk.0.ffn_gate_inp.weight", vec![64], GgmlType::F32, zeros(64)),
            "has no place for it",
        ),
        (
            "a-layer-too-many",
            Change::Tensor("blk.1.attn_norm.weight", vec![64], GgmlType::F32, zeros(64)),
            "has no place for it",
        ),
        ("a-norm-of-no-number", norm(&of_nan), "value 63 is not a finite number"),
        (
            "too-many-frequencies",
            Change::Tensor("rope_freqs.weight", vec![64], GgmlType::F32, zeros(64)),
            "has no factor for each frequency",
        ),
        (
            "frequencies-of-0",
            Change::Tensor("rope_freqs.weight", vec![8], GgmlType::F32, zeros(8)),
            "a factor that is not positive",
        ),
        (
            "a-type-nobody-decodes",
            Change::Tensor("blk.0.attn_norm.weight", vec![64], GgmlType::F64, vec![0; 512]),
            "type F64 can't be decoded",
        ),
    ]
}

fn vocabularies() -> Told {
    let set = |key, value| Change::Set(key, value);
    let n = tiny_base::tokens().len();
    let strings = |items: Vec<&str>| Value::strings(items.into_iter().map(str::to_owned).collect());
    let types = |n: usize, ty: i32| Value::Array(Array::I32(vec![ty; n]));
    let mut twice = tiny_base::tokens();
    twice[7] = twice[8].clone();
    let long = "z".repeat(100_000);
    let mut long_twice = tiny_base::tokens();
    (long_twice[7], long_twice[8]) = (long.clone(), long.clone());
    vec![
        ("no-tokenizer", Change::Unset("tokenizer.ggml.model"), "there is no tokenizer.ggml.model"),
        (
            "endless-tokenizer",
            set("tokenizer.ggml.model", Value::from(long.clone())),
            "... (100000 characters)' is not supported",
        ),
        (
            "endless-pre-tokenizer",
            set("tokenizer.ggml.pre", Value::from(long.clone())),
            "... (100000 characters)' is not known",
        ),
        ("no-tokens", Change::Unset("tokenizer.ggml.tokens"), "there is no tokenizer.ggml.tokens"),
        ("tokens-that-are-numbers", set("tokenizer.ggml.tokens", types(n, 1)), "is not an array of strings"),
        ("empty-tokens", set("tokenizer.ggml.tokens", Value::strings(Vec::new())), "0 tokens are out of bounds"),
        ("a-token-twice", set("tokenizer.ggml.tokens", Value::strings(twice)), "is given twice"),
        (
            "an-endless-token-twice",
            set("tokenizer.ggml.tokens", Value::strings(long_twice)),
            "... (100000 characters)' is given twice",
        ),
        ("too-few-types", set("tokenizer.ggml.token_type", types(3, 1)), "3 token types for"),
        (
            "types-without-end",
            set("tokenizer.ggml.token_type", types(n, i32::MAX)),
            "a token type is not one of 0 to 6",
        ),
        (
            "types-that-are-negative",
            set("tokenizer.ggml.token_type", types(n, -1)),
            "a token type is not one of 0 to 6",
        ),
        (
            "types-in-words",
            set("tokenizer.ggml.token_type", strings(vec!["normal"; 9])),
            "is not an array of whole numbers",
        ),
        ("no-merges", Change::Unset("tokenizer.ggml.merges"), "there is no tokenizer.ggml.merges"),
        ("merges-of-one", set("tokenizer.ggml.merges", strings(vec!["h"])), "merge 'h' is no pair"),
        (
            "an-endless-merge",
            set("tokenizer.ggml.merges", Value::strings(vec![long])),
            "... (100000 characters)' is no pair",
        ),
        ("merges-of-strangers", set("tokenizer.ggml.merges", strings(vec!["qq zz"])), "qq"),
        ("an-end-that-is-no-token", set("tokenizer.ggml.eos_token_id", Value::U32(n as u32)), "the eos token"),
        ("an-end-without-end", set("tokenizer.ggml.eos_token_id", Value::U64(u64::MAX)), "is no token id"),
        ("an-end-that-is-a-list", set("tokenizer.ggml.eos_token_id", types(100_000, 1)), "is not a token id"),
        ("an-end-to-every-prompt", set("tokenizer.ggml.add_eos_token", Value::Bool(true)), "would end every prompt"),
        (
            "pieces-without-scores",
            set("tokenizer.ggml.model", Value::from("llama")),
            "there is no tokenizer.ggml.scores",
        ),
    ]
}

fn templates() -> Told {
    let set = |text: String| Change::Set("tokenizer.chat_template", Value::from(text));
    let deep = |n: usize, open: &str, close: &str| format!("{}{}", open.repeat(n), close.repeat(n));
    vec![
        ("template-with-a-mistake", set("{% for %}".to_owned()), "failed to render the chat template"),
        ("template-of-two-mebibytes", set("x".repeat(2 << 20)), "are more than 1 MiB"),
        (
            "template-of-brackets",
            set(format!("{{{{ {} }}}}", deep(50_000, "(", ")"))),
            "failed to render the chat template",
        ),
        (
            "template-of-lists",
            set(format!("{{{{ {} }}}}", deep(50_000, "[", "]"))),
            "failed to render the chat template",
        ),
        ("template-of-ifs", set(deep(5_000, "{% if true %}", "{% endif %}")), "failed to render the chat template"),
        ("template-of-signs", set(format!("{{{{ {}1 }}}}", "-".repeat(100_000))), "more than 1000 tokens in one tag"),
        ("template-of-sums", set(format!("{{{{ 1{} }}}}", "+1".repeat(100_000))), "more than 1000 tokens in one tag"),
        ("template-of-parts", set(format!("{{{{ x{} }}}}", ".a".repeat(100_000))), "more than 1000 tokens in one tag"),
        (
            "template-of-powers",
            set(format!("{{{{ 2{} }}}}", "**2".repeat(100_000))),
            "more than 1000 tokens in one tag",
        ),
        (
            "template-of-filters",
            set(format!("{{{{ x{} }}}}", "|trim".repeat(100_000))),
            "more than 1000 tokens in one tag",
        ),
        (
            "template-of-alternatives",
            set(format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(80_000))),
            "200 alternatives",
        ),
        ("template-of-nots", set(format!("{{{{ {}1 }}}}", "not ".repeat(100_000))), "more than 1000 tokens in one tag"),
    ]
}
