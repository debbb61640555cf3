//! Curate: distinct rows in four splits, in `curate/`.

use super::{Finished, Run, Work, digests, named};
use crate::exit::Result;
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::Stage;
use limbeck_data_curation::review::QUEUE_FILE;
use limbeck_data_curation::{
    Answers, Balance, CurateOptions, CuratePlan, CurateSummary, Fields, Fractions, ImportSummary, Quality, curate,
};

pub fn run(run: &Run<'_>, imported: &Finished<ImportSummary>) -> Result<Finished<CurateSummary>> {
    let recipe = run.recipe();
    let against = named(&recipe.data.decontaminate_against);
    let mut inputs = digests(&against, false)?;
    inputs.insert("import".to_owned(), imported.digest());
    let answers = match &run.resolved.schema {
        None => {
            let mut labels = recipe.task.labels.clone();
            labels.sort();
            Answers::Labels(labels)
        }
        Some(file) => {
            inputs.insert("task.schema".to_owned(), sha256_hex(file.text.as_bytes()));
            Answers::Fields(Fields { schema: file.schema.clone(), text: file.text.clone() })
        }
    };
    run.stage(Stage::Curate, inputs, |emit, _| {
        let chars = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let split = &recipe.data.split;
        let plan = CuratePlan {
            imported: run.folder(Stage::Import),
            answers,
            min_chars: chars(recipe.data.min_chars),
            max_chars: chars(recipe.data.max_chars),
            near_dup_threshold: recipe.data.near_dup_threshold,
            split: Fractions { valid: split.valid, calibration: split.calibration, test: split.test },
            seed: recipe.seed,
            options: CurateOptions {
                by_time: split.by_time,
                drop: recipe.data.drop.iter().filter_map(|name| Quality::named(name)).collect(),
                decontaminate_against: against,
                balance: match recipe.data.balance {
                    limbeck_recipes::Balance::None => Balance::None,
                    limbeck_recipes::Balance::Sqrt => Balance::Sqrt,
                    limbeck_recipes::Balance::Equal => Balance::Equal,
                },
            },
            out: run.folder(Stage::Curate),
        };
        let summary = curate(&plan, emit)?;
        let kept: Vec<String> = summary.kept.iter().map(|(split, n)| format!("{} {n}", split.name())).collect();
        let left_out: u64 = summary.left_out.values().sum();
        Ok(Work {
            line: format!("{}; {left_out} left out", kept.join(", ")),
            outputs: ["curated.parquet", QUEUE_FILE, "left_out.jsonl", "quality.jsonl", "curate.json"]
                .map(|name| format!("curate/{name}"))
                .to_vec(),
            summary,
        })
    })
}
