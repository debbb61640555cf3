//! Quantize: the adapter merged into the base, or the weights that were all trained, one GGUF file a format, in `quantize/`.

use super::train::outcome;
use super::{Finished, Run, Work};
use crate::exit::Result;
use limbeck_artifact::dataset::DatasetCard;
use limbeck_artifact::event::{EventKind, Stage};
use limbeck_quantize::{Format, QuantizePlan, quantize};
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
    let inputs = BTreeMap::from([("base".to_owned(), base.digest.clone()), ("train".to_owned(), trained.digest())]);
    run.stage(Stage::Quantize, inputs, |emit, _| {
        let mut files = QuantizedFiles::new();
        for name in &recipe.quantize.formats {
            emit.emit(EventKind::Note { text: format!("writing {name}") });
            let file = format!("quantize/{}-{name}.gguf", recipe.name);
            let format: Format = name.parse()?;
            let plan = QuantizePlan {
                base: base.path.clone(),
                adapter: Some(outcome(run)),
                format,
                out: run.dir.join(&file),
                name: recipe.name.clone(),
                version: Some(recipe.version.clone()),
                license: None,
                provenance: BTreeMap::from([
                    ("base.sha256".to_owned(), base.digest.clone()),
                    ("dataset.digest".to_owned(), dataset.summary.digest.clone()),
                ]),
            };
            let report = quantize(&plan, emit)?;
            files.insert(
                name.clone(),
                Quantized {
                    file,
                    sha256: report.sha256,
                    bytes: report.bytes,
                    bits_per_weight: report.bits_per_weight,
                    relative_rmse: report.relative_rmse,
                },
            );
        }
        let sizes: Vec<String> = files.iter().map(|(f, q)| format!("{f} {:.1} MB", q.bytes as f64 / 1e6)).collect();
        Ok(Work { line: sizes.join(", "), outputs: files.values().map(|q| q.file.clone()).collect(), summary: files })
    })
}
