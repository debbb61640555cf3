//! The formats a person asks for by name, and which block type each tensor then gets.

use std::fmt;
use std::str::FromStr;

use limbeck_model::gguf::GgmlType;
use serde::{Deserialize, Serialize};

use crate::QuantizeError;

/// A whole file's format. Matrices take its type; what must stay finer does (see [`Format::tensor_type`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Format(GgmlType);

/// By name, with llama.cpp's number for general.file_type.
const FORMATS: [(GgmlType, u32); 8] = [
    (GgmlType::F32, 0),
    (GgmlType::F16, 1),
    (GgmlType::BF16, 32),
    (GgmlType::Q8_0, 7),
    (GgmlType::Q5_1, 9),
    (GgmlType::Q5_0, 8),
    (GgmlType::Q4_1, 3),
    (GgmlType::Q4_0, 2),
];

impl Format {
    pub const F32: Format = Format(GgmlType::F32);
    pub const F16: Format = Format(GgmlType::F16);
    pub const BF16: Format = Format(GgmlType::BF16);
    pub const Q8_0: Format = Format(GgmlType::Q8_0);
    pub const Q4_0: Format = Format(GgmlType::Q4_0);

    pub fn all() -> impl Iterator<Item = Format> {
        FORMATS.iter().map(|(ty, _)| Format(*ty))
    }

    pub fn ggml_type(self) -> GgmlType {
        self.0
    }

    /// general.file_type.
    pub fn file_type(self) -> u32 {
        FORMATS.iter().find(|(ty, _)| *ty == self.0).map_or(0, |(_, id)| *id)
    }

    /// The type of one tensor, `dims` in ggml order. Vectors and norms are F32 as in llama.cpp. The embedding and the
    /// head of the 4- and 5-bit formats are Q8_0: every token goes through them, and llama.cpp keeps them finer too
    /// (Q6_K). A row that is not a whole number of blocks is F16.
    pub fn tensor_type(self, name: &str, dims: &[u64]) -> GgmlType {
        let plain = matches!(self.0, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16);
        let wanted =
            if matches!(name, "token_embd.weight" | "output.weight") && !plain { GgmlType::Q8_0 } else { self.0 };
        match dims {
            [] | [_] => GgmlType::F32,
            _ if name.ends_with("_norm.weight") => GgmlType::F32,
            [width, ..] if !width.is_multiple_of(wanted.block_len() as u64) => GgmlType::F16,
            _ => wanted,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Format {
    type Err = QuantizeError;

    /// Case does not matter: `q8_0` is `Q8_0`.
    fn from_str(given: &str) -> Result<Format, QuantizeError> {
        Format::all()
            .find(|format| format.0.name().eq_ignore_ascii_case(given))
            .ok_or_else(|| QuantizeError::Format { given: given.into() })
    }
}

impl TryFrom<String> for Format {
    type Error = QuantizeError;

    fn try_from(given: String) -> Result<Format, QuantizeError> {
        given.parse()
    }
}

impl From<Format> for String {
    fn from(format: Format) -> String {
        format.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_others_refused() {
        assert_eq!("q4_0".parse::<Format>().unwrap(), Format::Q4_0);
        let json = serde_json::to_string(&Format::all().collect::<Vec<_>>()).unwrap();
        assert_eq!(json, r#"["F32","F16","BF16","Q8_0","Q5_1","Q5_0","Q4_1","Q4_0"]"#);
        let error = serde_json::from_str::<Format>("\"Q4_K\"").unwrap_err().to_string();
        assert!(error.contains("'Q4_K' is no format; choose one of F32"), "{error}");
    }

    #[test]
    fn what_must_stay_fine_does() {
        let ty = |format: Format, name: &str, dims: &[u64]| format.tensor_type(name, dims);
        assert_eq!(ty(Format::Q4_0, "blk.0.attn_q.weight", &[64, 64]), GgmlType::Q4_0);
        assert_eq!(ty(Format::Q4_0, "token_embd.weight", &[64, 9]), GgmlType::Q8_0);
        assert_eq!(ty(Format::Q4_0, "blk.0.attn_norm.weight", &[64]), GgmlType::F32);
        assert_eq!(ty(Format::Q8_0, "blk.0.attn_q.weight", &[48, 64]), GgmlType::F16);
        assert_eq!(ty(Format::F16, "token_embd.weight", &[33, 9]), GgmlType::F16);
        assert_eq!(ty(Format::F16, "blk.0.attn_q.bias", &[33]), GgmlType::F32);
    }
}
