//! `limbeck gguf show`: header, metadata, tensors with their types and bits a weight.

use super::args::GgufShow;
use super::{bits_a_weight, dims, line, open};
use crate::exit::{Exit, Result};
use crate::output;
use crate::settings::Settings;
use limbeck_artifact::untrusted::visible_line;
use limbeck_model::gguf::{GgufFile, Value};
use limbeck_quantize::Format;
use limbeck_tui::progress::{bytes, count};
use serde_json::{Map, json};
use std::collections::BTreeMap;

/// Tensors of one type.
#[derive(Default)]
struct Share {
    tensors: u64,
    weights: u64,
    bytes: u64,
}

pub fn show(settings: &Settings, args: &GgufShow) -> Result<Exit> {
    let file = open(&args.file)?;
    let mut types: BTreeMap<&str, Share> = BTreeMap::new();
    for info in file.tensors() {
        let share = types.entry(info.ty.name()).or_default();
        share.tensors += 1;
        share.weights += info.n_elements();
        share.bytes += info.n_bytes;
    }
    let weights: u64 = types.values().map(|share| share.weights).sum();
    let tensor_bytes: u64 = types.values().map(|share| share.bytes).sum();
    let bits = 8.0 * tensor_bytes as f64 / weights.max(1) as f64;
    let format = file.get("general.file_type").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok());
    let format = format.and_then(Format::of_file_type).map(Format::name);
    if settings.json {
        let tensors: Vec<_> = file
            .tensors()
            .iter()
            .map(|t| json!({"name": t.name, "dims": t.dims, "type": t.ty.name(), "bytes": t.n_bytes, "bits_per_weight": bits_a_weight(t)}))
            .collect();
        let metadata: Map<String, serde_json::Value> =
            file.metadata().iter().map(|(key, value)| (key.clone(), line(value, args.full).into())).collect();
        let types: BTreeMap<_, _> = types
            .iter()
            .map(|(ty, s)| (*ty, json!({"tensors": s.tensors, "weights": s.weights, "bytes": s.bytes})))
            .collect();
        output::json(&json!({
            "path": args.file, "bytes": file.len(), "weights": weights, "bits_per_weight": bits, "format": format,
            "types": types, "metadata": metadata, "tensors": tensors,
        }))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!(
        "{}: {}, {} tensors, {} keys\n",
        args.file.display(),
        bytes(file.len()),
        count(file.tensors().len() as u64),
        count(file.metadata().len() as u64)
    );
    text += &format!(
        "{} weights in {bits:.2} bits each{}\n",
        count(weights),
        format.map_or(String::new(), |f| format!(", {f}"))
    );
    for (ty, share) in &types {
        text += &format!(
            "  {ty:<8}{:>6} tensors {:>16} weights {:>12}\n",
            count(share.tensors),
            count(share.weights),
            bytes(share.bytes)
        );
    }
    text += "\nMetadata\n";
    for (key, value) in file.metadata() {
        text += &format!("  {:<44} {}\n", visible_line(key), line(value, args.full));
    }
    text += "\nTensors\n";
    text += &tensors(&file);
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn tensors(file: &GgufFile) -> String {
    let rows = file.tensors().iter().map(|info| {
        let name = visible_line(&info.name);
        format!(
            "  {name:<36} {:<8} {:>18} {:>6.2} bits {:>12}\n",
            info.ty,
            dims(info),
            bits_a_weight(info),
            bytes(info.n_bytes)
        )
    });
    rows.collect()
}
