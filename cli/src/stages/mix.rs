//! The format `mix`: block types chosen matrix by matrix, so that the file has the size that the recipe asks for and costs the
//! model's distributions least.

use super::calibration::choose;
use super::{Run, cannot};
use crate::base::Base;
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_model::gguf::GgmlType;
use limbeck_quantize::allocate::{Allocation, Sensitivities, SensitivityPlan, Target, measure};
use limbeck_quantize::{Format, QuantizePlan, file_bytes};
use std::collections::BTreeMap;

pub const NAME: &str = "mix";
/// What tensors are that are not measured, and what the file says it mostly is.
pub const FORMAT: Format = Format::IQ4_NL;
/// Relative to the run's folder.
pub const FILE: &str = "quantize/sensitivity.json";

/// Tokens of train rows that matrices are measured on.
const TOKENS: usize = 768;
/// Sizes that are told, beside the one that is asked for.
const CURVE: u64 = 7;

/// The types of the planned file for the recipe's target; tells what other sizes would cost.
///
/// # Errors
/// When rows or weights can't be read, and when no types make the file that small.
pub fn types(run: &Run<'_>, base: &Base, plan: &QuantizePlan, emit: &dyn Emit) -> Result<BTreeMap<String, GgmlType>> {
    let recipe = run.recipe();
    let target = read_target(recipe.quantize.target.as_deref().unwrap_or_default())?;
    let chosen = choose(run, base, TOKENS)?;
    emit.emit(EventKind::Note { text: format!("measuring what rounding each matrix costs, on {}", chosen.text) });
    let device = recipe.model.device.parse()?;
    let whose = SensitivityPlan { base: plan.base.clone(), adapter: plan.adapter.clone(), device };
    let measured = measure(&whose, &chosen.rows, emit)?;
    let path = run.dir.join(FILE);
    std::fs::create_dir_all(run.folder(Stage::Quantize)).map_err(|e| cannot("create", &path, &e))?;
    let text = serde_json::to_string_pretty(&measured)? + "\n";
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    emit.emit(EventKind::Wrote { path: FILE.to_owned(), bytes: text.len() as u64 });

    let around = around(plan, &measured)?;
    let chosen = allocate(&measured, around, target)?;
    for line in lines(&measured, around, &chosen) {
        emit.emit(EventKind::Note { text: line });
    }
    Ok(chosen.types)
}

/// # Errors
/// When the text is no size.
pub fn read_target(text: &str) -> Result<Target> {
    text.parse().map_err(|why: String| {
        Failure::new(Exit::RecipeInvalid, format!("`quantize.target`: {why}"))
            .help("set quantize.target, for example to \"90MB\" or \"4.5bpw\"")
    })
}

/// The types that make a file of the target's size, of which [`around`] says what else is in it.
///
/// # Errors
/// When none do.
pub fn allocate(measured: &Sensitivities, around: u64, target: Target) -> Result<Allocation> {
    let (least, _) = measured.bounds();
    let weights: u64 = measured.tensors.iter().map(|t| t.weights).sum();
    let bytes = match target {
        Target::Bytes(bytes) => bytes.saturating_sub(around),
        Target::BitsPerWeight(bits) => (bits * weights as f64 / 8.0) as u64,
    };
    measured.allocate(bytes).ok_or_else(|| {
        let smallest = format!(
            "{:.1} MB, {:.2} bits a weight",
            (least + around) as f64 / 1e6,
            8.0 * least as f64 / weights.max(1) as f64
        );
        let message = format!("no types make the file as small as {target}: the smallest is {smallest}");
        Failure::new(Exit::RecipeInvalid, message).help("set a larger quantize.target, or carve a smaller base")
    })
}

/// Bytes of a file that are no measured matrix: header, vocabulary, norms.
///
/// # Errors
/// When the base can't be read, or the adapter does not fit it.
pub fn around(plan: &QuantizePlan, measured: &Sensitivities) -> Result<u64> {
    let some =
        measured.allocate(u64::MAX).unwrap_or(Allocation { types: BTreeMap::new(), bytes: 0, weights: 0, kl: 0.0 });
    let whole = file_bytes(&QuantizePlan { types: some.types, ..plan.clone() })?;
    // Rows of whole blocks need up to 31 bytes of padding a tensor, whatever their types.
    Ok(whole.saturating_sub(some.bytes) + 32 * measured.tensors.len() as u64)
}

/// A table of sizes and what they cost, with what was chosen.
fn lines(measured: &Sensitivities, around: u64, chosen: &Allocation) -> Vec<String> {
    let line = |a: &Allocation| {
        format!(
            "{:.1} MB, {:.2} bits a weight: {:.4} nats a token by plain rounding, reckoned matrix by matrix",
            (a.bytes + around) as f64 / 1e6,
            a.bits_per_weight(),
            a.kl
        )
    };
    let mut counts = BTreeMap::<&str, u64>::new();
    chosen.types.values().for_each(|ty| *counts.entry(ty.name()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(ty, n)| format!("{n} {ty}")).collect();
    let curve = measured.pareto(CURVE);
    let told = curve.iter().map(|a| format!("size {}", line(a)));
    told.chain([format!("mix: {} ({})", line(chosen), counts.join(", "))]).collect()
}
