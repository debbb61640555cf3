//! The decoder: architectures, weights, tokenizer, chat template, KV cache, label trie, and the compute kernels under
//! them. Trainer, quantizer and evaluation share it; it knows none of them.

pub mod adapter;
pub mod arithmetic;
pub mod attending;
mod changed;
pub mod chat_template;
pub mod config;
pub mod decoder;
pub mod device;
pub mod divergence;
mod error;
pub mod fault;
pub mod generate;
pub mod gguf;
pub mod kernel_time;
pub mod label_trie;
pub mod layout;
pub mod lone_layer;
pub mod memory;
pub mod names;
pub mod next_token;
pub mod ops;
mod parts;
mod patience;
pub mod products;
pub mod prompt;
pub mod safetensor;
pub mod score;
pub mod sequence;
mod shared_prefix;
pub mod source;
pub mod tokenizer;
pub mod weights;

pub use error::{ModelError, Result};
