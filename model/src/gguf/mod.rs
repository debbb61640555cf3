//! GGUF, the file that llama.cpp serves: types, a reader that trusts nothing, a writer, and the decoding of quantized
//! blocks to f32. Encoding blocks is the quantizer's work, not ours.

mod dequantize;
mod reader;
mod types;
mod writer;

pub use dequantize::dequantize;
pub use reader::GgufFile;
pub use types::{Array, GgmlType, MOST_SHOWN, TensorInfo, Value, shortened};
pub use writer::GgufWriter;

pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
pub(crate) const DEFAULT_ALIGNMENT: u64 = 32;
pub(crate) const MAX_DIMS: usize = 4;
/// ggml keeps names in 64 bytes with a closing zero.
pub(crate) const MAX_NAME_LEN: usize = 63;

// What the reader allows, and so the writer.
/// Metadata and tensor entries together; the largest vocabularies in use take about 15 MiB.
pub(crate) const MAX_HEADER_BYTES: u64 = 64 << 20;
pub(crate) const MAX_KEYS: u64 = 1 << 16;
pub(crate) const MAX_TENSORS: u64 = 1 << 16;
pub(crate) const MAX_KEY_LEN: u64 = 1 << 10;
pub(crate) const MAX_STRING_LEN: u64 = 16 << 20;
pub(crate) const MAX_ARRAY_LEN: u64 = 1 << 24;
pub(crate) const MAX_ARRAY_DEPTH: u32 = 3;
