//! An adapter as a GGUF file of its own, as llama.cpp takes it beside a base (`--lora`). Nothing is merged and nothing
//! rounded: A and B in float32 under GGUF's names, B's rows of q and k in GGUF's order.
//!
//! Source: llama.cpp's convert_lora_to_gguf.py and llama-adapter.cpp, which scales B·A by `adapter.lora.alpha` over the rank.

use std::path::Path;

use limbeck_model::ModelError;
use limbeck_model::adapter::Adapter;
use limbeck_model::config::DecoderConfig;
use limbeck_model::gguf::{GgmlType, GgufWriter};
use limbeck_model::names::{hf_to_gguf, permute_qk};
use limbeck_model::weights::qk_heads;

use crate::{QuantizeError, Result};

/// Writes the adapter in the PEFT folder `adapter`, for a base of `config`; the file's size in bytes.
///
/// # Errors
/// When it does not fit the base, or holds what llama.cpp has no place for: DoRA's magnitudes, a classification head.
pub fn write_adapter(adapter: &Path, config: &DecoderConfig, name: &str, out: &Path) -> Result<u64> {
    let architecture = config.gguf_architecture()?;
    let adapter = Adapter::load(adapter)?;
    adapter.check(config)?;
    let refused = |why: &str| Err(QuantizeError::AdapterFile { why: why.to_owned() });
    if adapter.config.use_dora {
        return refused("it is a DoRA, whose magnitudes llama.cpp does not know");
    }
    if adapter.head.is_some() {
        return refused("it has a classification head, which llama.cpp takes in a merged file only");
    }
    let mut writer = GgufWriter::new();
    // llama.cpp divides by the rank; under rsLoRA the scale is alpha over its root.
    let alpha = adapter.scaling() * adapter.config.r as f32;
    writer
        .set("general.type", "adapter")
        .set("general.architecture", architecture)
        .set("general.name", name)
        .set("adapter.type", "lora")
        .set("adapter.lora.alpha", alpha);
    for (module, pair) in adapter.pairs {
        let weight = format!("{module}.weight");
        let Some(gguf) = hf_to_gguf(config.architecture, &weight) else {
            return refused(&format!("llama.cpp has no name for {module}"));
        };
        let b = match qk_heads(config, &weight) {
            Some(heads) => permute_qk(&pair.b, heads, pair.r),
            None => pair.b,
        };
        let rank = pair.r as u64;
        for (part, dims, data) in
            [("lora_a", [pair.n_in as u64, rank], pair.a), ("lora_b", [rank, pair.n_out as u64], b)]
        {
            let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
            writer.add_bytes(format!("{gguf}.{part}"), dims.to_vec(), GgmlType::F32, bytes);
        }
    }
    writer.write(out).map_err(|e: ModelError| e.into())
}
