//! The formats a person asks for by name, and which block type each tensor then gets: llama.cpp's mixes by llama.cpp's rules.

use std::fmt;
use std::str::FromStr;

use limbeck_model::config::DecoderConfig;
use limbeck_model::gguf::GgmlType;
use serde::{Deserialize, Serialize};

use crate::QuantizeError;

/// A whole file's format. Matrices take its type; what must stay finer does (see [`Format::tensor_type`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[allow(non_camel_case_types, reason = "the names that llama.cpp and everyone else use")]
pub enum Format {
    F32,
    F16,
    BF16,
    Q8_0,
    Q6_K,
    Q5_K_M,
    Q5_1,
    Q5_0,
    Q4_K_M,
    Q4_K_S,
    Q4_1,
    Q4_0,
    IQ4_NL,
}

/// What the choice of a tensor's type goes by, beside its own name and shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    pub layers: usize,
    /// Query heads a head of keys and values.
    pub heads_a_group: usize,
    /// Whether the embedding is the head too.
    pub tied: bool,
    /// Whether there is an importance matrix.
    pub importance: bool,
}

impl Mix {
    pub fn new(config: &DecoderConfig, importance: bool) -> Mix {
        Mix {
            layers: config.num_hidden_layers,
            heads_a_group: config.num_attention_heads / config.num_key_value_heads.max(1),
            tied: config.tie_word_embeddings,
            importance,
        }
    }

    /// llama.cpp's `use_more_bits`: the first and the last eighth of the layers, and every third between.
    fn more_bits(&self, layer: usize) -> bool {
        let n = self.layers;
        layer < n / 8 || layer >= 7 * n / 8 || (layer - n / 8) % 3 == 2
    }

    fn first_eighth(&self, layer: usize) -> bool {
        layer < self.layers / 8
    }
}

impl Format {
    pub const ALL: [Format; 13] = [
        Format::F32,
        Format::F16,
        Format::BF16,
        Format::Q8_0,
        Format::Q6_K,
        Format::Q5_K_M,
        Format::Q5_1,
        Format::Q5_0,
        Format::Q4_K_M,
        Format::Q4_K_S,
        Format::Q4_1,
        Format::Q4_0,
        Format::IQ4_NL,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Format::Q5_K_M => "Q5_K_M",
            Format::Q4_K_M => "Q4_K_M",
            Format::Q4_K_S => "Q4_K_S",
            other => other.ggml_type().name(),
        }
    }

    /// The type of most of its matrices.
    pub fn ggml_type(self) -> GgmlType {
        match self {
            Format::F32 => GgmlType::F32,
            Format::F16 => GgmlType::F16,
            Format::BF16 => GgmlType::BF16,
            Format::Q8_0 => GgmlType::Q8_0,
            Format::Q6_K => GgmlType::Q6_K,
            Format::Q5_K_M => GgmlType::Q5_K,
            Format::Q5_1 => GgmlType::Q5_1,
            Format::Q5_0 => GgmlType::Q5_0,
            Format::Q4_K_M | Format::Q4_K_S => GgmlType::Q4_K,
            Format::Q4_1 => GgmlType::Q4_1,
            Format::Q4_0 => GgmlType::Q4_0,
            Format::IQ4_NL => GgmlType::IQ4_NL,
        }
    }

    /// general.file_type: llama.cpp's number.
    pub fn file_type(self) -> u32 {
        match self {
            Format::F32 => 0,
            Format::F16 => 1,
            Format::Q4_0 => 2,
            Format::Q4_1 => 3,
            Format::Q8_0 => 7,
            Format::Q5_0 => 8,
            Format::Q5_1 => 9,
            Format::Q4_K_S => 14,
            Format::Q4_K_M => 15,
            Format::Q5_K_M => 17,
            Format::Q6_K => 18,
            Format::IQ4_NL => 25,
            Format::BF16 => 32,
        }
    }

    /// What a file of this number is called; `None` where it is none of ours.
    pub fn of_file_type(id: u32) -> Option<Format> {
        Format::ALL.into_iter().find(|format| format.file_type() == id)
    }

    /// The type of one tensor, `dims` in ggml order. Vectors and norms are F32 as in llama.cpp. K-quants, their mixes and
    /// IQ4_NL follow llama.cpp tensor by tensor, with its fall-backs for rows that are no whole superblocks. The embedding and
    /// the head of the other 4- and 5-bit formats are Q8_0: every token goes through them, and llama.cpp keeps them finer too
    /// (Q6_K). A row that is not a whole number of blocks is F16.
    pub fn tensor_type(self, name: &str, dims: &[u64], mix: &Mix) -> GgmlType {
        let width = match dims {
            [] | [_] => return GgmlType::F32,
            _ if name.ends_with("_norm.weight") => return GgmlType::F32,
            [width, ..] => *width,
        };
        let wanted = match self {
            Format::F32 | Format::F16 | Format::BF16 => self.ggml_type(),
            Format::Q6_K | Format::Q5_K_M | Format::Q4_K_M | Format::Q4_K_S | Format::IQ4_NL => {
                self.as_llama_cpp(name, width, mix)
            }
            _ if matches!(name, "token_embd.weight" | "output.weight") => GgmlType::Q8_0,
            _ => self.guarded(name, mix),
        };
        fall_back(wanted, width)
    }

    /// Q4_0 and Q5_0 under an importance matrix have an offset in the first down projections, whose inputs have outliers.
    fn guarded(self, name: &str, mix: &Mix) -> GgmlType {
        let early_down = mix.importance && layer_of(name, "ffn_down").is_some_and(|layer| mix.first_eighth(layer));
        match self {
            Format::Q4_0 if early_down => GgmlType::Q4_1,
            Format::Q5_0 if early_down => GgmlType::Q5_1,
            _ => self.ggml_type(),
        }
    }

    /// `llama_tensor_get_type_impl`, of what the families here have.
    fn as_llama_cpp(self, name: &str, width: u64, mix: &Mix) -> GgmlType {
        let own = self.ggml_type();
        if name == "output.weight" || (mix.tied && name == "token_embd.weight") {
            return if width.is_multiple_of(own.block_len() as u64) { GgmlType::Q6_K } else { GgmlType::Q8_0 };
        }
        if let Some(layer) = layer_of(name, "attn_v") {
            return match self {
                Format::IQ4_NL if mix.heads_a_group >= 4 => GgmlType::Q5_K,
                Format::Q4_K_M | Format::Q5_K_M if mix.more_bits(layer) => GgmlType::Q6_K,
                Format::Q4_K_S if layer < 4 => GgmlType::Q5_K,
                _ => own,
            };
        }
        if layer_of(name, "attn_qkv").is_some() {
            return match self {
                Format::Q4_K_M => GgmlType::Q5_K,
                Format::Q5_K_M => GgmlType::Q6_K,
                _ => own,
            };
        }
        if let Some(layer) = layer_of(name, "ffn_down") {
            return match self {
                Format::Q4_K_M | Format::Q5_K_M if mix.more_bits(layer) => GgmlType::Q6_K,
                Format::IQ4_NL if mix.first_eighth(layer) && !mix.importance => GgmlType::Q5_K,
                Format::Q4_K_S if mix.first_eighth(layer) => GgmlType::Q5_K,
                _ => own,
            };
        }
        own
    }
}

/// The layer of `blk.N.PART.weight`.
fn layer_of(name: &str, part: &str) -> Option<usize> {
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    if rest.strip_suffix(".weight")? == part { layer.parse().ok() } else { None }
}

/// llama.cpp's fall-backs for rows that don't fill the blocks of the type.
fn fall_back(wanted: GgmlType, width: u64) -> GgmlType {
    let fits = |ty: GgmlType| width.is_multiple_of(ty.block_len() as u64);
    let next = match wanted {
        fitting if fits(fitting) => return fitting,
        GgmlType::Q4_K => GgmlType::Q5_0,
        GgmlType::Q5_K => GgmlType::Q5_1,
        GgmlType::Q6_K => GgmlType::Q8_0,
        _ => GgmlType::F16,
    };
    if fits(next) { next } else { GgmlType::F16 }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Format {
    type Err = QuantizeError;

    /// Case does not matter: `q8_0` is `Q8_0`.
    fn from_str(given: &str) -> Result<Format, QuantizeError> {
        Format::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(given))
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
    use std::collections::BTreeMap;

    const SMOLLM2: Mix = Mix { layers: 30, heads_a_group: 3, tied: true, importance: false };

    #[test]
    fn names_are_read_in_any_case_and_others_refused() {
        assert_eq!("q4_0".parse::<Format>().unwrap(), Format::Q4_0);
        assert_eq!("iq4_nl".parse::<Format>().unwrap(), Format::IQ4_NL);
        let json = serde_json::to_string(&Format::ALL).unwrap();
        assert_eq!(
            json,
            r#"["F32","F16","BF16","Q8_0","Q6_K","Q5_K_M","Q5_1","Q5_0","Q4_K_M","Q4_K_S","Q4_1","Q4_0","IQ4_NL"]"#
        );
        for format in Format::ALL {
            assert_eq!(Format::of_file_type(format.file_type()), Some(format));
            let listed = QuantizeError::Format { given: "x".into() }.to_string();
            assert!(listed.contains(&format!(" {format}")), "{format} is missing from: {listed}");
        }
        let error = serde_json::from_str::<Format>("\"Q4_K\"").unwrap_err().to_string();
        assert!(error.contains("'Q4_K' is no format; choose one of F32"), "{error}");
    }

    #[test]
    fn what_must_stay_fine_does() {
        let ty = |format: Format, name: &str, dims: &[u64]| format.tensor_type(name, dims, &SMOLLM2);
        assert_eq!(ty(Format::Q4_0, "blk.0.attn_q.weight", &[64, 64]), GgmlType::Q4_0);
        assert_eq!(ty(Format::Q4_0, "token_embd.weight", &[64, 9]), GgmlType::Q8_0);
        assert_eq!(ty(Format::Q4_0, "blk.0.attn_norm.weight", &[64]), GgmlType::F32);
        assert_eq!(ty(Format::Q8_0, "blk.0.attn_q.weight", &[48, 64]), GgmlType::F16);
        assert_eq!(ty(Format::F16, "token_embd.weight", &[33, 9]), GgmlType::F16);
        // q, k and v in one matrix.
        let fused = |format| ty(format, "blk.9.attn_qkv.weight", &[256, 64]);
        assert_eq!([Format::Q4_K_M, Format::Q5_K_M].map(fused), [GgmlType::Q5_K, GgmlType::Q6_K]);
        assert_eq!([Format::Q4_K_S, Format::IQ4_NL].map(fused), [GgmlType::Q4_K, GgmlType::IQ4_NL]);
        assert_eq!(ty(Format::F16, "blk.0.attn_q.bias", &[33]), GgmlType::F32);
    }

    /// Types by number over all matrices of a model, and the bits a weight that they come to.
    fn types(format: Format, mix: &Mix, h: u64, kv: u64, ffn: u64, vocab: u64) -> (BTreeMap<String, u32>, f64) {
        let mut tensors = vec![("token_embd.weight".to_owned(), [h, vocab])];
        if !mix.tied {
            tensors.push(("output.weight".to_owned(), [h, vocab]));
        }
        for layer in 0..mix.layers {
            let parts = [
                ("attn_q", [h, h]),
                ("attn_k", [h, kv]),
                ("attn_v", [h, kv]),
                ("attn_output", [h, h]),
                ("ffn_gate", [h, ffn]),
                ("ffn_up", [h, ffn]),
                ("ffn_down", [ffn, h]),
            ];
            tensors.extend(parts.map(|(part, dims)| (format!("blk.{layer}.{part}.weight"), dims)));
        }
        let (mut counts, mut bytes, mut weights) = (BTreeMap::new(), 0, 0);
        for (name, dims) in tensors {
            let ty = format.tensor_type(&name, &dims, mix);
            *counts.entry(ty.to_string()).or_default() += 1;
            bytes += ty.bytes_for(dims[0] * dims[1]).unwrap();
            weights += dims[0] * dims[1];
        }
        (counts, 8.0 * bytes as f64 / weights as f64)
    }

    /// What llama-quantize makes of SmolLM2-135M, whose rows of 576 are no whole superblocks.
    #[test]
    fn smollm2_gets_llama_cpp_s_types() {
        let of = |format, importance| types(format, &Mix { importance, ..SMOLLM2 }, 576, 192, 1536, 49_152);
        let counted = |counts: &[(&str, u32)]| counts.iter().map(|(ty, n)| (ty.to_string(), *n)).collect();
        let (counts, bits) = of(Format::Q4_K_M, false);
        assert_eq!(counts, counted(&[("Q4_K", 16), ("Q5_0", 166), ("Q6_K", 14), ("Q8_0", 15)]));
        // 6.17 with the norms, which are F32.
        assert!((bits - 6.159).abs() < 0.001, "{bits}");
        let counts = of(Format::Q4_K_S, false).0;
        assert_eq!(counts, counted(&[("Q4_K", 27), ("Q5_0", 176), ("Q5_1", 4), ("Q5_K", 3), ("Q8_0", 1)]));
        let counts = of(Format::Q5_K_M, false).0;
        assert_eq!(counts, counted(&[("Q5_1", 166), ("Q5_K", 16), ("Q6_K", 14), ("Q8_0", 15)]));
        assert_eq!(of(Format::Q6_K, false).0, counted(&[("Q6_K", 30), ("Q8_0", 181)]));
        assert_eq!(of(Format::IQ4_NL, false).0, counted(&[("IQ4_NL", 207), ("Q5_K", 3), ("Q8_0", 1)]));
        assert_eq!(of(Format::IQ4_NL, true).0, counted(&[("IQ4_NL", 210), ("Q8_0", 1)]));
        assert_eq!(of(Format::Q4_0, true).0, counted(&[("Q4_0", 207), ("Q4_1", 3), ("Q8_0", 1)]));
    }

    /// A model of whole superblocks with a head of its own, 32 layers, as Llama 3 has them.
    #[test]
    fn whole_superblocks_need_no_fall_back() {
        let mix = Mix { layers: 32, heads_a_group: 4, tied: false, importance: false };
        let (counts, bits) = types(Format::Q4_K_M, &mix, 4096, 1024, 14336, 128_256);
        assert_eq!(counts, BTreeMap::from([("Q4_K".into(), 193), ("Q6_K".into(), 33)]));
        // llama.cpp's own table says 4.89 of Llama-3.1-8B.
        assert!((bits - 4.89).abs() < 0.01, "{bits}");
        let counts = types(Format::IQ4_NL, &mix, 4096, 1024, 14336, 128_256).0;
        assert_eq!(counts, BTreeMap::from([("IQ4_NL".into(), 189), ("Q5_K".into(), 36), ("Q6_K".into(), 1)]));
    }
}
