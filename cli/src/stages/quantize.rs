//! Quantize: the adapter merged into the base, or the weights that were all trained, one GGUF file a format, in `quantize/`.

use super::recover::{self, Recovered, recover};
use super::train::outcome;
use super::{Finished, Run, Work, calibration, mix};
use crate::exit::Result;
use limbeck_artifact::dataset::DatasetCard;
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{EventKind, Stage};
use limbeck_quantize::{QuantizePlan, quantize, quantize_compensated};
use limbeck_recipes::Imatrix;
use limbeck_trainer::TrainReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One file, as the run's record keeps it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quantized {
    /// Relative to the run's folder.
    pub file: String,
    pub sha256: String,
    pub bytes: u64,
    pub bits_per_weight: f64,
    pub relative_rmse: f64,
    /// What recovery did to it, where the recipe asks for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered: Option<Recovered>,
}

/// By format, such as `Q8_0`.
pub type QuantizedFiles = BTreeMap<String, Quantized>;

pub fn run(
    run: &Run<'_>,
    dataset: &Finished<DatasetCard>,
    trained: &Finished<TrainReport>,
) -> Result<Finished<QuantizedFiles>> {
    let recipe = run.recipe();
    let base = run.base(&run.sink.stage(Stage::Quantize))?;
    let mut inputs = calibration::inputs(recipe, &dataset.summary)?;
    inputs.insert("base".to_owned(), base.digest.clone());
    inputs.insert("train".to_owned(), trained.digest());
    inputs.extend(recover::input(recipe).map(|settings| ("recovery".to_owned(), sha256_hex(settings.as_bytes()))));
    run.stage(Stage::Quantize, inputs, |emit, key| {
        let imatrix = calibration::imatrix(run, base, emit)?;
        let compensation = calibration::compensation(run, base, emit)?;
        let mut files = QuantizedFiles::new();
        for name in &recipe.quantize.formats {
            emit.emit(EventKind::Note { text: format!("writing {name}") });
            let file = format!("quantize/{}-{name}.gguf", recipe.name);
            let mut provenance = BTreeMap::from([
                ("base.sha256".to_owned(), base.digest.clone()),
                ("dataset.digest".to_owned(), dataset.summary.digest.clone()),
            ]);
            if compensation.is_some() {
                provenance.insert("quantize.rounding".to_owned(), "compensated".to_owned());
            }
            let mixed = name == mix::NAME;
            let mut plan = QuantizePlan {
                base: base.path.clone(),
                adapter: Some(outcome(run)),
                format: if mixed { mix::FORMAT } else { name.parse()? },
                types: BTreeMap::new(),
                imatrix: imatrix.clone(),
                out: run.dir.join(&file),
                name: run.settings.outer.as_ref().map_or(&recipe.name, |outer| &outer.name).clone(),
                version: Some(recipe.version.clone()),
                license: None,
                provenance,
            };
            if mixed {
                plan.types = mix::types(run, base, &plan, emit)?;
            }
            let report = match &compensation {
                None => quantize(&plan, emit)?,
                Some(by) => quantize_compensated(&plan, by, emit)?,
            };
            files.insert(
                name.clone(),
                Quantized {
                    file,
                    sha256: report.sha256,
                    bytes: report.bytes,
                    bits_per_weight: report.bits_per_weight,
                    relative_rmse: report.relative_rmse,
                    recovered: None,
                },
            );
            if let Some(made) = files.get_mut(name) {
                recover(run, base, (name, made), key, emit)?;
            }
        }
        let size = |(f, q): (&String, &Quantized)| {
            format!("{f} {:.1} MB ({:.2} bits a weight)", q.bytes as f64 / 1e6, q.bits_per_weight)
        };
        let line = files.iter().map(size).collect::<Vec<_>>().join(", ");
        let mut outputs: Vec<String> = files.values().map(|q| q.file.clone()).collect();
        if recipe.quantize.imatrix == Imatrix::Task {
            outputs.push(calibration::FILE.to_owned());
        }
        if recipe.quantize.formats.iter().any(|name| name == mix::NAME) {
            outputs.push(mix::FILE.to_owned());
        }
        Ok(Work { line, outputs, summary: files })
    })
}
