//! Curate: distinct rows in four splits, in `curate/`.

use super::{Finished, Run, Work};
use crate::exit::Result;
use limbeck_artifact::event::Stage;
use limbeck_data_curation::{CuratePlan, CurateSummary, Fractions, ImportSummary, curate};
use std::collections::BTreeMap;

pub fn run(run: &Run<'_>, imported: &Finished<ImportSummary>) -> Result<Finished<CurateSummary>> {
    let recipe = run.recipe();
    let inputs = BTreeMap::from([("import".to_owned(), imported.digest())]);
    run.stage(Stage::Curate, inputs, |emit, _| {
        let mut labels = recipe.task.labels.clone();
        labels.sort();
        let chars = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let split = &recipe.data.split;
        let plan = CuratePlan {
            imported: run.folder(Stage::Import),
            labels,
            min_chars: chars(recipe.data.min_chars),
            max_chars: chars(recipe.data.max_chars),
            near_dup_threshold: recipe.data.near_dup_threshold,
            split: Fractions { valid: split.valid, calibration: split.calibration, test: split.test },
            seed: recipe.seed,
            out: run.folder(Stage::Curate),
        };
        let summary = curate(&plan, emit)?;
        let kept: Vec<String> = summary.kept.iter().map(|(split, n)| format!("{} {n}", split.name())).collect();
        let left_out: u64 = summary.left_out.values().sum();
        Ok(Work {
            line: format!("{}; {left_out} left out", kept.join(", ")),
            outputs: ["curate/curated.parquet", "curate/left_out.jsonl", "curate/curate.json"]
                .map(String::from)
                .to_vec(),
            summary,
        })
    })
}
