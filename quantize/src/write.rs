//! The stage: base and adapter in, one GGUF file out, measured against the merged weights and read back before it counts.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use limbeck_artifact::digest::sha256_file;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_model::ModelError;
use limbeck_model::adapter::Adapter;
use limbeck_model::gguf::{GgmlType, GgufFile, GgufWriter, TensorInfo, dequantize};
use limbeck_model::names::{hf_to_gguf, permute_qk};
use limbeck_model::weights::{Weights, qk_heads};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::compensate::{Compensation, Compensator};
use crate::encode::{encode, encode_weighted, heeds_importance};
use crate::metadata::metadata;
use crate::{Format, ImportanceMatrix, Merged, Mix, QuantizeError, Result};

/// What to write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizePlan {
    /// A GGUF file or a Hugging Face folder.
    pub base: PathBuf,
    /// What a training left: a PEFT folder to be merged into the base, or a folder with all of its weights.
    pub adapter: Option<PathBuf>,
    pub format: Format,
    /// Types of tensors, by their names in GGUF, in the place of what the format gives them ([`crate::allocate`]).
    #[serde(skip)]
    pub types: BTreeMap<String, GgmlType>,
    /// An importance matrix, as `limbeck` or llama-imatrix wrote it: rounding then minds the columns that matter.
    #[serde(default)]
    pub imatrix: Option<PathBuf>,
    pub out: PathBuf,
    /// general.name of the file.
    pub name: String,
    /// general.version.
    pub version: Option<String>,
    /// SPDX id; the base's own where `None`.
    pub license: Option<String>,
    /// Further facts, written as `limbeck.KEY`: the recipe's digest, the dataset's.
    pub provenance: BTreeMap<String, String>,
}

/// What was written, and what rounding cost.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QuantizeReport {
    pub path: PathBuf,
    pub sha256: String,
    pub bytes: u64,
    pub parameters: u64,
    /// Of the tensors, without header and padding.
    pub bits_per_weight: f64,
    /// Tensors of each block type.
    pub tensors: BTreeMap<String, u64>,
    /// Tensors that the training changed.
    pub merged: u64,
    /// Tensors whose bytes are the base's own, because it has them in this very type.
    pub verbatim: u64,
    /// Tensors that were rounded by the importance matrix.
    pub weighted: u64,
    /// Tensors whose rounding makes up for itself and for that of the layers before. What they hold is not the nearest to the
    /// merged weights, so that `rmse` is no measure of them.
    #[serde(default)]
    pub compensated: u64,
    /// Over all weights, written against merged.
    pub max_abs_error: f64,
    pub rmse: f64,
    /// `rmse` over the root mean square of the weights.
    pub relative_rmse: f64,
}

/// One tensor of the file to be.
struct Planned {
    hf_name: String,
    info: TensorInfo,
    /// Heads whose rows GGUF orders otherwise; only of q and k.
    permuted_heads: Option<usize>,
    /// What is added to the weights: Gemma's norms are stored as their distance from 1, and in GGUF as they are.
    offset: f32,
    /// Values that follow from the config and are no weight of it.
    computed: Option<Vec<f32>>,
    /// Of each column, where the type heeds it and the matrix has the tensor.
    importance: Option<Vec<f32>>,
}

#[derive(Default)]
struct Tally {
    merged: u64,
    verbatim: u64,
    weighted: u64,
    compensated: u64,
    max_abs_error: f64,
    squared_error: f64,
    squares: f64,
}

/// Merges, encodes and writes; the same inputs give the same bytes. No more than one tensor is in memory at a time.
///
/// # Errors
/// When the adapter does not fit the base, a weight is not finite, or reading, writing or reading back fails. Then
/// nothing is left under `plan.out` but what was there before; a file that reads back wrong is removed.
pub fn quantize(plan: &QuantizePlan, emit: &dyn Emit) -> Result<QuantizeReport> {
    write(plan, None, emit)
}

/// The same with the layers' matrices rounded so that their errors make up for each other over `by`'s rows
/// ([`crate::compensate`]). A layer is in memory at a time, and what goes in and out of it.
///
/// # Errors
/// As [`quantize`], and when a row does not fit the model.
pub fn quantize_compensated(plan: &QuantizePlan, by: &Compensation, emit: &dyn Emit) -> Result<QuantizeReport> {
    write(plan, Some(by), emit)
}

/// How large the file will be; nothing is written.
///
/// # Errors
/// When the base can't be read, or the adapter does not fit it.
pub fn file_bytes(plan: &QuantizePlan) -> Result<u64> {
    let (weights, adapter) = open(plan)?;
    let merged = Merged::new(&weights, adapter.as_ref())?;
    let importance = plan.imatrix.as_deref().map(ImportanceMatrix::open).transpose()?;
    let mut writer = GgufWriter::new();
    for (key, value) in metadata(plan, &weights, merged.labels(), importance.as_ref())? {
        writer.set(key, value);
    }
    for tensor in planned(plan, &merged, importance.as_ref(), false)? {
        let TensorInfo { name, dims, ty, .. } = tensor.info;
        writer.add_bytes(name, dims, ty, Vec::new());
    }
    Ok(writer.file_bytes(&plan.out)?)
}

fn open(plan: &QuantizePlan) -> Result<(Weights, Option<Adapter>)> {
    let (weights, adapter) = Weights::open_trained::<QuantizeError>(&plan.base, plan.adapter.as_deref())?;
    weights.config().gguf_architecture()?;
    Ok((weights, adapter))
}

fn write(plan: &QuantizePlan, by: Option<&Compensation>, emit: &dyn Emit) -> Result<QuantizeReport> {
    let (weights, adapter) = open(plan)?;
    let merged = Merged::new(&weights, adapter.as_ref())?;
    let importance = plan.imatrix.as_deref().map(ImportanceMatrix::open).transpose()?;
    let planned = planned(plan, &merged, importance.as_ref(), by.is_some())?;
    let compensator = by.map(|by| compensator(&merged, by, &planned)).transpose()?;
    if compensator.is_none() {
        tell_missing(plan, importance.as_ref(), &planned, emit);
    }

    let tally = RefCell::new(Tally::default());
    let compensator = RefCell::new(compensator);
    let mut writer = GgufWriter::new();
    for (key, value) in metadata(plan, &weights, merged.labels(), importance.as_ref())? {
        writer.set(key, value);
    }
    let total = planned.len() as u64;
    for (done, tensor) in (1u64..).zip(&planned) {
        let (merged, tally, compensator) = (&merged, &tally, &compensator);
        let TensorInfo { name, dims, ty, .. } = &tensor.info;
        writer.add(name.clone(), dims.clone(), *ty, move || {
            let made = match compensator.borrow_mut().as_mut() {
                Some(walk) if walk.rounds(&tensor.hf_name) => compensate(merged, tensor, walk, &mut tally.borrow_mut()),
                _ => make(merged, tensor, &mut tally.borrow_mut()),
            };
            let bytes = made.map_err(|error| match error {
                QuantizeError::Model(error) => error,
                other => ModelError::Tensor {
                    path: plan.out.clone(),
                    name: tensor.info.name.clone(),
                    why: other.to_string(),
                },
            })?;
            emit.emit(EventKind::Progress { done, total, unit: "tensors".into() });
            Ok(bytes)
        });
    }
    writer.write(&plan.out)?;
    if let Err(error) = read_back(&plan.out, &planned) {
        // Nobody may serve a wrong file.
        let _ = std::fs::remove_file(&plan.out);
        return Err(error);
    }
    if let Some(walk) = compensator.into_inner() {
        let text = format!(
            "compensated rounding: {} matrices by {} tokens; the squared error of what they give is {:.2} of plain rounding's",
            walk.cost.matrices,
            walk.tokens(),
            walk.cost.error / walk.cost.plain_error.max(f64::MIN_POSITIVE)
        );
        emit.emit(EventKind::Note { text });
    }
    report(plan, &planned, tally.into_inner(), emit)
}

/// Over the layers' matrices that come in blocks.
fn compensator<'a>(merged: &'a Merged<'a>, by: &'a Compensation, planned: &[Planned]) -> Result<Compensator<'a>> {
    let in_layers = planned.iter().filter(|t| t.info.name.starts_with("blk.") && t.info.dims.len() == 2);
    let in_blocks = in_layers.filter(|t| t.info.ty.block_len() > 1);
    let types = in_blocks.map(|t| (t.hf_name.clone(), t.info.ty)).collect();
    let embedding = planned.iter().find(|t| t.info.name == "token_embd.weight");
    let embedding = embedding.map_or((GgmlType::F32, None), |t| (t.info.ty, t.importance.as_deref()));
    Compensator::new(merged, by, types, embedding)
}

/// The tensors in the order of llama.cpp's own files: embedding, layers, final norm, head.
fn planned(
    plan: &QuantizePlan,
    merged: &Merged,
    importance: Option<&ImportanceMatrix>,
    compensated: bool,
) -> Result<Vec<Planned>> {
    let config = merged.weights().config();
    // What llama.cpp lifts because nothing tells which columns matter needs no lift where calibration does.
    let mix = Mix::new(config, importance.is_some() || (compensated && plan.format == Format::IQ4_NL));
    let fails = |name: &str, why: String| QuantizeError::Tensor {
        path: plan.base.clone(),
        architecture: config.architecture.name().into(),
        name: name.into(),
        why,
    };
    let wrong = |why: String| QuantizeError::Importance { path: plan.imatrix.clone().unwrap_or_default(), why };
    let plan_one = |(hf_name, of_base): (String, Vec<usize>)| {
        let shape = merged.shape(&hf_name, &of_base);
        let name = hf_to_gguf(config.architecture, &hf_name)
            .ok_or_else(|| fails(&hf_name, "GGUF has no name for it".into()))?;
        let dims: Vec<u64> = shape.iter().rev().map(|&n| n as u64).collect();
        let own = plan.types.get(&name).copied();
        let ty = own.unwrap_or_else(|| plan.format.tensor_type(&name, &dims, &mix));
        let n_bytes = dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).and_then(|n| ty.bytes_for(n));
        let n_bytes = n_bytes.ok_or_else(|| fails(&hf_name, format!("{shape:?} does not fit blocks of {ty}")))?;
        let permuted_heads = qk_heads(config, &hf_name);
        let offset = if hf_name.ends_with("norm.weight") { config.norm_offset } else { 0.0 };
        let columns = match importance {
            Some(matrix) if shape.len() == 2 && heeds_importance(ty) => matrix.of(&name, shape[1]).map_err(wrong)?,
            _ => None,
        };
        let info = TensorInfo { name, dims, ty, offset: 0, n_bytes };
        Ok(Planned { hf_name, info, permuted_heads, offset, computed: None, importance: columns })
    };
    let mut planned: Vec<Planned> = config.tensor_shapes().into_iter().map(plan_one).collect::<Result<_>>()?;
    for (name, factors) in config.gguf_rope_tensors() {
        let dims = vec![factors.len() as u64];
        let n_bytes = 4 * factors.len() as u64;
        let info = TensorInfo { name: name.into(), dims, ty: GgmlType::F32, offset: 0, n_bytes };
        planned.push(Planned {
            hf_name: name.into(),
            info,
            permuted_heads: None,
            offset: 0.0,
            computed: Some(factors),
            importance: None,
        });
    }
    Ok(planned)
}

/// Says which matrices of the layers the importance matrix knows nothing of; they are rounded plainly.
fn tell_missing(plan: &QuantizePlan, importance: Option<&ImportanceMatrix>, planned: &[Planned], emit: &dyn Emit) {
    if importance.is_none() {
        return;
    }
    let lacks = |t: &&Planned| t.importance.is_none() && heeds_importance(t.info.ty) && t.info.name.starts_with("blk.");
    let missing: Vec<&str> = planned.iter().filter(lacks).map(|t| t.info.name.as_str()).collect();
    if let Some(first) = missing.first() {
        let path = plan.imatrix.as_deref().unwrap_or(Path::new("")).display();
        let text = format!(
            "the importance matrix {path} says nothing of {} matrices, {first} among them; they are rounded plainly",
            missing.len()
        );
        emit.emit(EventKind::Warning { text });
    }
}

/// A tensor's bytes: the base's own where nothing changes, else loaded, merged, permuted and encoded.
fn make(merged: &Merged, tensor: &Planned, tally: &mut Tally) -> Result<Vec<u8>> {
    let info = &tensor.info;
    let changed = merged.changes(&tensor.hf_name);
    if let Some(file) = merged.weights().gguf()
        && let Some(own) = file.tensor(&info.name)
        && !changed
        && (own.ty, &own.dims) == (info.ty, &info.dims)
    {
        tally.verbatim += 1;
        let bytes = file.bytes(own)?;
        measure(&file.dequantize(own)?, None, tally);
        return Ok(bytes);
    }
    if let Some(values) = &tensor.computed {
        measure(values, None, tally);
        return Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect());
    }
    tally.merged += u64::from(changed);
    let mut dense = merged.load(&tensor.hf_name)?;
    if let Some(heads) = tensor.permuted_heads {
        dense.data = permute_qk(&dense.data, heads, dense.shape.get(1).copied().unwrap_or(1));
    }
    if tensor.offset != 0.0 {
        dense.data.iter_mut().for_each(|w| *w += tensor.offset);
    }
    let fails = |source| QuantizeError::Encode { name: info.name.clone(), source };
    let bytes = match &tensor.importance {
        None => encode(info.ty, &dense.data),
        Some(importance) => encode_weighted(info.ty, &dense.data, importance),
    };
    let bytes = bytes.map_err(fails)?;
    tally.weighted += u64::from(tensor.importance.is_some());
    measure(&dense.data, Some((info.ty, &bytes)), tally);
    Ok(bytes)
}

/// A matrix's bytes from the walk through the layers, permuted.
fn compensate(merged: &Merged, tensor: &Planned, walk: &mut Compensator, tally: &mut Tally) -> Result<Vec<u8>> {
    let bytes = walk.take(&tensor.hf_name)?;
    tally.merged += u64::from(merged.changes(&tensor.hf_name));
    tally.compensated += 1;
    let dense = merged.load(&tensor.hf_name)?;
    measure(&dense.data, Some((tensor.info.ty, &bytes)), tally);
    let rows = dense.shape[0].max(1);
    Ok(match tensor.permuted_heads {
        Some(heads) => permute_qk(&bytes, heads, bytes.len() / rows),
        None => bytes,
    })
}

/// Adds a tensor's error to the tally; `None` is no error. In pieces of fixed size, summed in order: the figures do not
/// depend on the number of threads.
fn measure(values: &[f32], written: Option<(GgmlType, &[u8])>, tally: &mut Tally) {
    const PIECE: usize = 64 * 1024;
    let pieces: Vec<(f64, f64, f64)> = values
        .par_chunks(PIECE)
        .enumerate()
        .map(|(i, piece)| {
            let squares = piece.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
            let Some((ty, bytes)) = written else { return (0.0, 0.0, squares) };
            let bytes_each = PIECE / ty.block_len() * ty.block_bytes();
            let own = &bytes[i * bytes_each..bytes.len().min((i + 1) * bytes_each)];
            let mut back = vec![0.0f32; piece.len()];
            if dequantize(ty, own, &mut back).is_err() {
                return (f64::INFINITY, f64::INFINITY, squares);
            }
            let errors = || piece.iter().zip(&back).map(|(&a, &b)| (f64::from(a) - f64::from(b)).abs());
            (errors().fold(0.0, f64::max), errors().map(|e| e * e).sum(), squares)
        })
        .collect();
    for (max, squared_error, squares) in pieces {
        tally.max_abs_error = tally.max_abs_error.max(max);
        tally.squared_error += squared_error;
        tally.squares += squares;
    }
}

/// Opens what was written as anyone would, and looks at every tensor: name, shape, type, place, finite values.
fn read_back(path: &Path, planned: &[Planned]) -> Result<()> {
    let wrong = |why: String| QuantizeError::ReadBack { path: path.into(), why };
    let file = GgufFile::open(path)?;
    if file.tensors().len() != planned.len() {
        return Err(wrong(format!("{} tensors instead of {}", file.tensors().len(), planned.len())));
    }
    for (got, want) in file.tensors().iter().zip(planned) {
        if (&got.name, &got.dims, got.ty) != (&want.info.name, &want.info.dims, want.info.ty) {
            return Err(wrong(format!("'{}' {:?} {} instead of '{}'", got.name, got.dims, got.ty, want.info.name)));
        }
        // Refuses what is not finite.
        file.dequantize(got)?;
    }
    Ok(())
}

fn report(plan: &QuantizePlan, planned: &[Planned], tally: Tally, emit: &dyn Emit) -> Result<QuantizeReport> {
    let digest = |source| QuantizeError::Digest { path: plan.out.clone(), source };
    let sha256 = sha256_file(&plan.out).map_err(digest)?;
    let bytes = std::fs::metadata(&plan.out).map_err(digest)?.len();
    emit.emit(EventKind::Wrote { path: plan.out.display().to_string(), bytes });
    let parameters: u64 = planned.iter().map(|t| t.info.n_elements()).sum();
    let tensor_bytes: u64 = planned.iter().map(|t| t.info.n_bytes).sum();
    let mut tensors = BTreeMap::new();
    for tensor in planned {
        *tensors.entry(tensor.info.ty.to_string()).or_insert(0) += 1;
    }
    let bits_per_weight = tensor_bytes as f64 * 8.0 / parameters as f64;
    let parts: Vec<String> = tensors.iter().map(|(ty, n)| format!("{n} {ty}")).collect();
    let text = format!("{}: {bits_per_weight:.2} bits a weight, tensors: {}", plan.format, parts.join(", "));
    emit.emit(EventKind::Note { text });
    Ok(QuantizeReport {
        path: plan.out.clone(),
        sha256,
        bytes,
        parameters,
        bits_per_weight,
        tensors,
        merged: tally.merged,
        verbatim: tally.verbatim,
        weighted: tally.weighted,
        compensated: tally.compensated,
        max_abs_error: tally.max_abs_error,
        rmse: (tally.squared_error / parameters as f64).sqrt(),
        relative_rmse: if tally.squares > 0.0 { (tally.squared_error / tally.squares).sqrt() } else { 0.0 },
    })
}
