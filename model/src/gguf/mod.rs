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
