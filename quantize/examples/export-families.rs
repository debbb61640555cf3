//! Our tiny models of every family as GGUF files with what we read from them, for tests/conformance/families.sh:
//! `export-families FAMILIES OUT [FORMAT]` writes OUT/NAME.gguf (F32) and OUT/NAME.json, an INPUT of
//! tests/conformance/llamacpp.py. A family that can't be written is left out, with its reason on stderr.

use limbeck_artifact::event::Silent;
use limbeck_model::config::Activation;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::weights::Weights;
use limbeck_quantize::{Format, QuantizeError, QuantizePlan, quantize};
use serde_json::json;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::{Path, PathBuf};

/// How far two readers in float32 may be apart; a part left out shows in the first decimals.
const TOLERANCE: f64 = 2e-4;
/// On a CPU, llama.cpp looks GELU up in a table of half precision.
const TOLERANCE_OF_GELU: f64 = 3e-3;

#[expect(clippy::print_stderr, reason = "an example's talk")]
#[allow(dead_code, reason = "tests/families.rs takes the rest of this file")]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(families), Some(out)) = (args.next(), args.next()) else {
        return Err("usage: export-families FAMILIES OUT [FORMAT]".into());
    };
    let format: Format = args.next().as_deref().unwrap_or("F32").parse()?;
    let out = std::path::absolute(out)?;
    std::fs::create_dir_all(&out)?;
    for entry in std::fs::read_dir(&families)? {
        let golden = entry?.path();
        match export(&golden, &out, format) {
            Ok(file) => std::fs::write(file.with_extension("json"), questions(&file)?.to_string())?,
            Err(error) => eprintln!("{}: {error}", golden.display()),
        }
    }
    Ok(())
}

/// The golden with a tokenizer of letters, written. Those of Gemma divide their scores by a number of their own, to see
/// that it is minded; llama.cpp knows but the size of a head, so they get that.
pub fn export(golden: &Path, out: &Path, format: Format) -> Result<PathBuf, QuantizeError> {
    export_with(golden, out, format, |config| {
        if config.get("query_pre_attn_scalar").is_some() {
            config["query_pre_attn_scalar"] = config["head_dim"].clone();
        }
    })
}

/// The same with other changes to config.json.
pub fn export_with(
    golden: &Path,
    out: &Path,
    format: Format,
    change: impl FnOnce(&mut serde_json::Value),
) -> Result<PathBuf, QuantizeError> {
    let name = golden.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let base = out.join(format!("{name}.base"));
    let copy = || -> std::io::Result<()> {
        std::fs::create_dir_all(&base)?;
        let mut config = serde_json::from_slice(&std::fs::read(golden.join("config.json"))?)?;
        change(&mut config);
        std::fs::write(base.join("config.json"), config.to_string())?;
        std::fs::copy(golden.join("model.safetensors"), base.join("model.safetensors"))?;
        std::fs::write(base.join("tokenizer.json"), tokenizer().to_string())
    };
    copy().map_err(|source| QuantizeError::Digest { path: base.clone(), source })?;
    let file = out.join(format!("{name}.gguf"));
    quantize(&plan(&base, format, &file), &Silent).map(|_| file)
}

pub fn plan(base: &Path, format: Format, out: &Path) -> QuantizePlan {
    QuantizePlan {
        base: base.into(),
        adapter: None,
        format,
        types: BTreeMap::new(),
        imatrix: None,
        out: out.into(),
        name: out.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    }
}

fn tokenizer() -> serde_json::Value {
    let letters = (0..63u8).map(|i| char::from(b'!' + i).to_string());
    // One merge, for an empty list of them is no GGUF array that every reader takes.
    let vocab: BTreeMap<String, u32> = letters.chain(["AB".to_owned()]).zip(0..).collect();
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "post_processor": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["A B"]}
    })
}

/// A row within the file's context, and our log-probabilities of the tokens that go on from it.
#[allow(dead_code, reason = "tests/families.rs has no referee to ask")]
fn questions(file: &Path) -> Result<serde_json::Value, Box<dyn Error>> {
    let decoder = Decoder::from_weights(&Weights::open(file)?, ops(DeviceName::Cpu)?, false)?;
    // A larger context may have another rotation. llama.cpp wants room for one token more.
    let context = decoder.config.max_position_embeddings.min(2048);
    let len = (decoder.config.max_position_embeddings - 1).min(24);
    let row: Vec<u32> = (0..len as u32).map(|i| i * 29 % 61 + 3).collect();
    let rows = decoder.log_probs(&row, None)?;
    // After the whole row and after its first half: each token of the vocabulary.
    let case = |kept: usize| {
        json!({
            "id": kept,
            "prompt_tokens": row[..kept],
            "continuations": (0..64).map(|token| vec![token]).collect::<Vec<_>>(),
            "ours": rows[kept - 1].iter().take(64).map(|p| vec![*p]).collect::<Vec<_>>(),
        })
    };
    let cases = vec![case(row.len()), case(row.len() / 2)];
    let tolerance = match decoder.config.activation {
        Activation::Silu => TOLERANCE,
        Activation::GeluTanh => TOLERANCE_OF_GELU,
    };
    Ok(json!({"model": file, "arithmetic": "f32", "n_ctx": context, "tolerance": tolerance, "cases": cases}))
}
