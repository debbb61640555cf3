//! Makes a smaller base out of a base: some layers, renumbered, some neurons of their MLPs, and the vocabulary of the first
//! merges. Blocks are copied as they lie in the source, never requantized, but for narrower down projections, whose blocks lie
//! across the neurons: those become F16. The student is raw and wants training.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::ModelError;
use limbeck_model::gguf::{Array, GgmlType, GgufFile, GgufWriter, TensorInfo, Value, dequantize};
use limbeck_model::tokenizer::ChatTokenizer;
use serde::{Deserialize, Serialize};

use crate::error::{CarveError, Result};
use crate::source::Source;
use crate::vocabulary::{Cut, Vocabulary};

/// What to carve.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CarvePlan {
    /// A GGUF file or a Hugging Face folder, of the Llama family.
    pub source: PathBuf,
    /// Layers to keep, ascending, counted from 0.
    pub layers: Vec<usize>,
    /// Neurons of each kept layer's MLP to keep, ascending, as many of each; all of them where `None`.
    pub neurons: Option<Vec<Vec<u32>>>,
    /// How many of the tokenizer's merges to keep, from the first on; the whole vocabulary where `None`.
    pub merges: Option<usize>,
    pub out: PathBuf,
    /// general.name of the new file.
    pub name: String,
    /// SPDX id; the source's own where `None`.
    pub license: Option<String>,
}

/// What was carved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CarveReport {
    pub path: PathBuf,
    pub sha256: String,
    pub bytes: u64,
    pub parameters: u64,
    pub layers: usize,
    /// Neurons of a layer's MLP.
    pub neurons: usize,
    pub tokens: usize,
    pub source_name: String,
    /// Of the file; of a folder, over the digests and names of its files.
    pub source_sha256: String,
    pub source_bytes: u64,
    pub source_parameters: u64,
    pub source_layers: usize,
    pub source_neurons: usize,
    pub source_tokens: usize,
}

/// general.* keys that tell of the source as a release and would be wrong about the carved file.
const SOURCE_ONLY: [&str; 16] = [
    "general.alignment",
    "general.author",
    "general.basename",
    "general.description",
    "general.doi",
    "general.finetune",
    "general.license",
    "general.license.link",
    "general.license.name",
    "general.name",
    "general.organization",
    "general.repo_url",
    "general.size_label",
    "general.url",
    "general.uuid",
    "general.version",
];

/// Carves `plan.out` out of `plan.source`; the same plan gives the same bytes.
///
/// # Errors
/// When the source is not of the Llama family or its tokenizer no byte-level BPE, when a layer or that many merges are
/// not there, and when reading, writing or reading back fails.
pub fn carve(plan: &CarvePlan, emit: &dyn Emit) -> Result<CarveReport> {
    let source = Source::open(&plan.source)?;
    check_layers(plan, &source)?;
    check_neurons(plan, &source)?;
    let vocabulary = vocabulary(&source, plan.merges.is_some())?;
    let source_tokens = vocabulary.tokens.len();
    let cut = match plan.merges {
        Some(merges) => vocabulary.cut(merges, &special_ids(&source))?,
        None => Cut { old_ids: (0..source_tokens as u32).collect(), vocabulary },
    };
    let (source_sha256, source_bytes) = source.digest()?;

    let tensors = kept_tensors(plan, &source, &cut)?;
    let parameters = tensors.iter().map(|kept| kept.new.n_elements()).sum();
    let source_name = text(&source, "general.name").unwrap_or_else(|| file_name(&plan.source));

    let mut writer = GgufWriter::new();
    for (key, value) in carved_metadata(plan, &source, &cut) {
        writer.set(key, value);
    }
    for (key, value) in description(plan, &source, &source_name, &source_sha256, parameters) {
        writer.set(key, value);
    }
    let total = tensors.len() as u64;
    for (done, kept) in (1u64..).zip(&tensors) {
        let (source, cut) = (&source, &cut);
        writer.add(kept.new.name.clone(), kept.new.dims.clone(), kept.new.ty, move || {
            let bytes = source.bytes(kept.old)?;
            emit.emit(EventKind::Progress { done, total, unit: "tensors".into() });
            match kept.taken {
                Taken::All => Ok(bytes),
                Taken::Tokens => Ok(select_rows(&bytes, row_bytes(kept.old), &cut.old_ids)),
                Taken::Rows(rows) => Ok(select_rows(&bytes, row_bytes(kept.old), rows)),
                Taken::Columns(columns) => select_columns(&plan.source, kept.old, &bytes, columns),
            }
        });
    }
    writer.write(&plan.out)?;
    if let Err(error) = read_back(plan, &tensors, &cut) {
        // Nobody may take a wrong file for a base.
        let _ = std::fs::remove_file(&plan.out);
        return Err(error);
    }

    let tokens = cut.old_ids.len();
    let source_neurons = source.intermediate_size();
    let neurons = plan.neurons.as_ref().and_then(|by_layer| by_layer.first()).map_or(source_neurons, Vec::len);
    let left_out = |what: &str, n: usize, reason: &str| {
        emit.emit(EventKind::Counted { what: what.into(), n: n as u64, reason: reason.into() });
    };
    left_out("layers", plan.layers.len(), "");
    left_out("layers", source.block_count - plan.layers.len(), "not asked for");
    left_out("tokens", tokens, "");
    left_out("tokens", source_tokens - tokens, "made by a later merge");
    if plan.neurons.is_some() {
        left_out("neurons a layer", neurons, "");
        left_out("neurons a layer", source_neurons - neurons, "of least contribution");
    }
    let digest_error = |e| CarveError::Digest { path: plan.out.clone(), source: e };
    let bytes = std::fs::metadata(&plan.out).map_err(digest_error)?.len();
    emit.emit(EventKind::Wrote { path: plan.out.display().to_string(), bytes });
    Ok(CarveReport {
        path: plan.out.clone(),
        sha256: sha256_file(&plan.out).map_err(|e| CarveError::Digest { path: plan.out.clone(), source: e })?,
        bytes,
        parameters,
        layers: plan.layers.len(),
        neurons,
        tokens,
        source_name,
        source_sha256,
        source_bytes,
        source_parameters: source.tensors().iter().map(TensorInfo::n_elements).sum(),
        source_layers: source.block_count,
        source_neurons,
        source_tokens,
    })
}

fn check_layers(plan: &CarvePlan, source: &Source) -> Result<()> {
    let available = source.block_count;
    let mut next = 0;
    for &layer in &plan.layers {
        if layer < next || layer >= available {
            return Err(CarveError::Layers { layer, available });
        }
        next = layer + 1;
    }
    match plan.layers.is_empty() {
        true => Err(source.refused("no layer was named to be kept")),
        false => Ok(()),
    }
}

fn check_neurons(plan: &CarvePlan, source: &Source) -> Result<()> {
    let Some(by_layer) = &plan.neurons else { return Ok(()) };
    let (available, asked) = (source.intermediate_size(), by_layer.first().map_or(0, Vec::len));
    let fits = |neurons: &Vec<u32>| {
        neurons.len() == asked
            && neurons.is_sorted_by(|a, b| a < b)
            && neurons.last().is_some_and(|n| (*n as usize) < available)
    };
    match by_layer.len() == plan.layers.len() && by_layer.iter().all(fits) {
        true => Ok(()),
        false => Err(CarveError::Width { asked, available }),
    }
}

/// Whole, where it is not to be `cut`: then any tokenizer will do.
fn vocabulary(source: &Source, cut: bool) -> Result<Vocabulary> {
    let no_bpe = |reason: String| CarveError::Vocabulary { reason };
    let model = text(source, "tokenizer.ggml.model").unwrap_or_default();
    if model != "gpt2" && cut {
        return Err(no_bpe(format!("tokenizer.ggml.model is '{model}', not 'gpt2'")));
    }
    let strings = |key: &str| {
        let list = source.get(key).and_then(Value::as_strings);
        list.map(<[String]>::to_vec).ok_or_else(|| no_bpe(format!("{key} is missing")))
    };
    if !cut {
        let merges = source.get("tokenizer.ggml.merges").and_then(Value::as_strings).unwrap_or_default().to_vec();
        return Ok(Vocabulary { tokens: strings("tokenizer.ggml.tokens")?, types: Vec::new(), merges });
    }
    let types = match source.get("tokenizer.ggml.token_type") {
        Some(Value::Array(types)) => types.to_i64s(),
        _ => None,
    };
    let types = types.ok_or_else(|| no_bpe("tokenizer.ggml.token_type is missing".into()))?;
    Ok(Vocabulary {
        tokens: strings("tokenizer.ggml.tokens")?,
        // No known type is beyond i32; one that is becomes a type to keep.
        types: types.into_iter().map(|ty| i32::try_from(ty).unwrap_or(i32::MAX)).collect(),
        merges: strings("tokenizer.ggml.merges")?,
    })
}

/// What the keys `..._token_id` (and lists `..._token_ids`) point at.
fn special_ids(source: &Source) -> BTreeSet<u32> {
    let ids = |(key, value): &(String, Value)| -> Vec<i64> {
        match value {
            Value::Array(list) if key.ends_with("_token_ids") => list.to_i64s().unwrap_or_default(),
            value if key.ends_with("_token_id") => {
                value.as_u64().and_then(|id| id.try_into().ok()).into_iter().collect()
            }
            _ => Vec::new(),
        }
    };
    let tokenizer = source.metadata().iter().filter(|(key, _)| key.starts_with("tokenizer."));
    tokenizer.flat_map(ids).map(|id| u32::try_from(id).unwrap_or(u32::MAX)).collect()
}

struct Kept<'a> {
    old: &'a TensorInfo,
    /// Its `offset` means nothing.
    new: TensorInfo,
    taken: Taken<'a>,
}

/// What of a tensor is kept.
enum Taken<'a> {
    All,
    /// The rows of the tokens that are.
    Tokens,
    Rows(&'a [u32]),
    Columns(&'a [u32]),
}

fn kept_tensors<'a>(plan: &'a CarvePlan, source: &'a Source, cut: &Cut) -> Result<Vec<Kept<'a>>> {
    let mut kept = Vec::new();
    for old in source.tensors() {
        let Some(name) = renumbered(&old.name, &plan.layers) else { continue };
        let by_token = matches!(old.name.as_str(), "token_embd.weight" | "output.weight" | "output.bias");
        let mut new = TensorInfo { name, ..old.clone() };
        let mut taken = if by_token { Taken::Tokens } else { Taken::All };
        if let Some((neurons, part)) = in_mlp(plan, &new.name) {
            let n = neurons.len() as u64;
            taken = match (part, new.dims.as_mut_slice()) {
                ("ffn_down.weight", [columns, _]) => {
                    *columns = n;
                    new.ty = narrowed(new.ty);
                    Taken::Columns(neurons)
                }
                ("ffn_gate.weight" | "ffn_up.weight" | "ffn_gate.bias" | "ffn_up.bias", [.., rows]) => {
                    *rows = n;
                    Taken::Rows(neurons)
                }
                _ => Taken::All,
            };
            new.n_bytes = new.ty.bytes_for(new.n_elements()).unwrap_or(0);
        }
        if by_token {
            let rows = old.dims.last().copied().unwrap_or(0);
            let last = cut.old_ids.last().copied().unwrap_or(0);
            if u64::from(last) >= rows || old.dims.len() != 2 {
                return Err(source.refused(&format!("'{}' is {:?}, no row for token {last}", old.name, old.dims)));
            }
            new.dims[1] = cut.old_ids.len() as u64;
            new.n_bytes = row_bytes(old) as u64 * new.dims[1];
        }
        kept.push(Kept { old, new, taken });
    }
    for layer in 0..plan.layers.len() {
        if !kept.iter().any(|k| k.new.name.starts_with(&format!("blk.{layer}."))) {
            return Err(source.refused(&format!("it has no tensors for layer {}", plan.layers[layer])));
        }
    }
    Ok(kept)
}

/// The name in the carved file: `blk.OLD.rest` becomes `blk.NEW.rest`, or nothing where the layer is not kept.
fn renumbered(name: &str, layers: &[usize]) -> Option<String> {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
    match layer.and_then(|(number, rest)| Some((number.parse::<usize>().ok()?, rest))) {
        Some((old, rest)) => layers.binary_search(&old).ok().map(|new| format!("blk.{new}.{rest}")),
        None => Some(name.to_owned()),
    }
}

/// The neurons that are kept of the layer that a tensor of the new file belongs to, and its name in there.
fn in_mlp<'p, 'n>(plan: &'p CarvePlan, name: &'n str) -> Option<(&'p [u32], &'n str)> {
    let (layer, part) = name.strip_prefix("blk.")?.split_once('.')?;
    Some((plan.neurons.as_ref()?.get(layer.parse::<usize>().ok()?)?, part))
}

/// The type of a matrix whose columns are picked: blocks that lie across columns can't be kept.
fn narrowed(ty: GgmlType) -> GgmlType {
    if ty.block_len() == 1 { ty } else { GgmlType::F16 }
}

fn select_columns(path: &Path, tensor: &TensorInfo, bytes: &[u8], columns: &[u32]) -> Result<Vec<u8>, ModelError> {
    let wide = tensor.dims.first().map_or(1, |n| *n as usize);
    if tensor.ty.block_len() == 1 {
        let size = tensor.ty.block_bytes();
        return Ok(bytes.chunks_exact(wide * size).flat_map(|row| select_rows(row, size, columns)).collect());
    }
    let mut data = vec![0f32; tensor.n_elements() as usize];
    let wrong = |why| ModelError::Tensor { path: path.into(), name: tensor.name.clone(), why };
    dequantize(tensor.ty, bytes, &mut data).map_err(wrong)?;
    let row = |row: &[f32]| {
        columns.iter().flat_map(|c| half::f16::from_f32(row[*c as usize]).to_le_bytes()).collect::<Vec<u8>>()
    };
    Ok(data.chunks_exact(wide).flat_map(row).collect())
}

/// Of a vector a row is one value.
fn row_bytes(tensor: &TensorInfo) -> usize {
    let width = if tensor.dims.len() < 2 { 1 } else { tensor.dims[0] };
    tensor.ty.bytes_for(width).unwrap_or(0) as usize
}

fn select_rows(bytes: &[u8], row_bytes: usize, rows: &[u32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(rows.len() * row_bytes);
    for &row in rows {
        out.extend_from_slice(&bytes[row as usize * row_bytes..][..row_bytes]);
    }
    out
}

/// The source's metadata in its order, cut to the kept layers and tokens; what described the source as a release is gone.
fn carved_metadata(plan: &CarvePlan, source: &Source, cut: &Cut) -> Vec<(String, Value)> {
    let source_tokens = source.get("tokenizer.ggml.tokens").and_then(Value::as_strings).map_or(0, <[String]>::len);
    let layers: Vec<u32> = plan.layers.iter().map(|&layer| layer as u32).collect();
    let id = |value: &Value| value.as_u64().and_then(|old| cut.new_id(old.try_into().ok()?)).map(Value::U32);
    let mut out = Vec::new();
    for (key, value) in source.metadata() {
        let value = match (key.as_str(), value) {
            ("tokenizer.huggingface.json", _) => continue,
            (key, _) if SOURCE_ONLY.contains(&key) || key.starts_with("general.base_model.") => continue,
            (key, _) if key.starts_with("general.source.") || key.starts_with("limbeck.") => continue,
            ("tokenizer.ggml.merges", _) => Value::strings(cut.vocabulary.merges.clone()),
            (key, Value::Array(list)) if key.starts_with("tokenizer.") && key.ends_with("_token_ids") => {
                let ids = list.to_i64s().unwrap_or_default();
                let ids = ids.into_iter().filter_map(|old| cut.new_id(old.try_into().ok()?)).map(|id| id as i32);
                Value::Array(Array::I32(ids.collect()))
            }
            (key, Value::Array(list)) if key.starts_with("tokenizer.") && list.len() == source_tokens => {
                Value::Array(select(list, &cut.old_ids))
            }
            (key, value) if key.starts_with("tokenizer.") && key.ends_with("_token_id") => match id(value) {
                Some(id) => id,
                None => continue,
            },
            (key, _) if source.key("block_count") == key => Value::U32(plan.layers.len() as u32),
            (key, _) if plan.neurons.is_some() && source.key("feed_forward_length") == key => {
                Value::U32(plan.neurons.as_ref().and_then(|by_layer| by_layer.first()).map_or(0, Vec::len) as u32)
            }
            (key, _) if source.key("vocab_size") == key => Value::U32(cut.old_ids.len() as u32),
            // One entry a layer, such as head counts that differ.
            (key, Value::Array(list)) if key.starts_with(&source.key("")) && list.len() == source.block_count => {
                Value::Array(select(list, &layers))
            }
            (_, value) => value.clone(),
        };
        out.push((key.clone(), value));
    }
    out
}

/// The items at `at`, each of which is less than the array's length.
fn select(array: &Array, at: &[u32]) -> Array {
    fn pick<T: Clone>(items: &[T], at: &[u32]) -> Vec<T> {
        at.iter().map(|&i| items[i as usize].clone()).collect()
    }
    match array {
        Array::U8(v) => Array::U8(pick(v, at)),
        Array::I8(v) => Array::I8(pick(v, at)),
        Array::U16(v) => Array::U16(pick(v, at)),
        Array::I16(v) => Array::I16(pick(v, at)),
        Array::U32(v) => Array::U32(pick(v, at)),
        Array::I32(v) => Array::I32(pick(v, at)),
        Array::F32(v) => Array::F32(pick(v, at)),
        Array::Bool(v) => Array::Bool(pick(v, at)),
        Array::String(v) => Array::String(pick(v, at)),
        Array::Array(v) => Array::Array(pick(v, at)),
        Array::U64(v) => Array::U64(pick(v, at)),
        Array::I64(v) => Array::I64(pick(v, at)),
        Array::F64(v) => Array::F64(pick(v, at)),
    }
}

/// Who the carved file is and where it comes from.
fn description(
    plan: &CarvePlan,
    source: &Source,
    source_name: &str,
    sha256: &str,
    parameters: u64,
) -> Vec<(String, Value)> {
    let vocabulary = match plan.merges {
        Some(merges) => format!("vocabulary of the first {merges} merges"),
        None => "the whole vocabulary".to_owned(),
    };
    let neurons = match plan.neurons.as_ref().and_then(|by_layer| by_layer.first()) {
        Some(kept) => format!("{} neurons of {} in each, ", kept.len(), source.intermediate_size()),
        None => String::new(),
    };
    let mut out = vec![
        ("general.name".to_owned(), Value::from(plan.name.as_str())),
        ("general.size_label".into(), size_label(parameters).into()),
        (
            "general.description".into(),
            format!(
                "Carved from {source_name} and not trained since: layers {:?} of {}, {neurons}{vocabulary}.",
                plan.layers, source.block_count
            )
            .into(),
        ),
        ("general.base_model.count".into(), Value::U32(1)),
        ("general.base_model.0.name".into(), source_name.into()),
    ];
    if let Some(license) = plan.license.clone().or_else(|| text(source, "general.license")) {
        out.push(("general.license".into(), license.into()));
    }
    for key in ["organization", "version", "repo_url"] {
        if let Some(value) = text(source, &format!("general.{key}")) {
            out.push((format!("general.base_model.0.{key}"), value.into()));
        }
    }
    let layers = plan.layers.iter().map(|&layer| layer as u32).collect();
    out.push(("limbeck.carve.source_sha256".into(), sha256.into()));
    out.push(("limbeck.carve.layers".into(), Value::Array(Array::U32(layers))));
    if let Some(merges) = plan.merges {
        out.push(("limbeck.carve.merges".into(), Value::U32(merges as u32)));
    }
    out
}

/// As llama.cpp writes it: 135M, 1.7B.
fn size_label(parameters: u64) -> String {
    let n = parameters as f64;
    if n < 1e6 {
        format!("{:.0}K", n / 1e3)
    } else if n < 1e9 {
        format!("{:.0}M", n / 1e6)
    } else {
        format!("{:.1}B", n / 1e9)
    }
}

/// Opens what was written as anyone would: every tensor there, in place and finite, and the tokenizer whole.
fn read_back(plan: &CarvePlan, tensors: &[Kept], cut: &Cut) -> Result<()> {
    let wrong = |why: String| CarveError::ReadBack { path: plan.out.clone(), why };
    let file = GgufFile::open(&plan.out)?;
    if file.tensors().len() != tensors.len() {
        return Err(wrong(format!("{} tensors instead of {}", file.tensors().len(), tensors.len())));
    }
    for (got, kept) in file.tensors().iter().zip(tensors) {
        let same = |a: &TensorInfo, b: &TensorInfo| (&a.name, &a.dims, a.ty) == (&b.name, &b.dims, b.ty);
        if !same(got, &kept.new) {
            return Err(wrong(format!("'{}' {:?} {} instead of '{}'", got.name, got.dims, got.ty, kept.new.name)));
        }
        // Refuses what is not finite.
        file.dequantize(got)?;
    }
    let tokenizer = ChatTokenizer::open(&plan.out)?;
    if tokenizer.vocab_size() != cut.old_ids.len() {
        return Err(wrong(format!("{} tokens instead of {}", tokenizer.vocab_size(), cut.old_ids.len())));
    }
    Ok(())
}

fn text(source: &Source, key: &str) -> Option<String> {
    source.get(key).and_then(Value::as_str).map(str::to_owned)
}

fn file_name(path: &Path) -> String {
    path.file_stem().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_renumbered_and_others_left_out() {
        let new = |name: &str| renumbered(name, &[0, 3, 11]);
        assert_eq!(new("blk.11.attn_q.weight").as_deref(), Some("blk.2.attn_q.weight"));
        assert_eq!(new("blk.1.attn_q.weight"), None);
        assert_eq!(new("output_norm.weight").as_deref(), Some("output_norm.weight"));
    }

    #[test]
    fn rows_are_taken_whole() {
        let info = TensorInfo { name: "e".into(), dims: vec![64, 3], ty: GgmlType::Q8_0, offset: 0, n_bytes: 204 };
        assert_eq!(row_bytes(&info), 68);
        let bytes: Vec<u8> = (0..204).collect();
        assert_eq!(select_rows(&bytes, 68, &[0, 2]), [&bytes[..68], &bytes[136..]].concat());
    }

    #[test]
    fn sizes_are_labelled_as_llama_cpp_does() {
        assert_eq!([134_515_008, 1_711_376_384, 31_400].map(size_label), ["135M", "1.7B", "31K"]);
    }
}
