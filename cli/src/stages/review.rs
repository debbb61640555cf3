//! Review, the part without a person: decisions that were made become the frozen dataset, in `dataset/`. Where too few
//! were made, the run stops here and says what to do.

use super::{Finished, Run, Work, digests, named};
use crate::exit::{Exit, Failure, Result};
use crate::settings::recipe_arg;
use limbeck_artifact::dataset::{DatasetCard, Split};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_data_curation::review::{FreezePlan, Frozen, Missing, ReviewStatus, freeze, store};
use limbeck_data_curation::{CurateSummary, NamedFile};
use limbeck_recipes::MinReviewed;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Where `limbeck review` of this run keeps reviewers' streams of decisions.
pub fn decisions_dir(run: &Run<'_>) -> PathBuf {
    run.recipe().review.store.clone().unwrap_or_else(|| run.folder(Stage::Review))
}

/// The recipe's decision files, then those made in this run, each under a name of its own.
///
/// # Errors
/// When the run's review folder can't be listed.
pub fn decision_files(run: &Run<'_>) -> Result<Vec<NamedFile>> {
    let mut paths = run.recipe().review.decisions.clone();
    paths.extend(store::streams(&decisions_dir(run))?);
    Ok(named(&paths))
}

pub fn min_reviewed(share: &MinReviewed) -> BTreeMap<Split, f64> {
    BTreeMap::from([
        (Split::Train, share.train),
        (Split::Valid, share.valid),
        (Split::Calibration, share.calibration),
        (Split::Test, share.test),
    ])
}

pub fn run(run: &Run<'_>, curated: &Finished<CurateSummary>) -> Result<Finished<DatasetCard>> {
    let recipe = run.recipe();
    let decisions = decision_files(run)?;
    for file in decisions.iter().filter(|f| !f.path.exists()) {
        let text = format!("no decisions at {}: none are counted from there", file.path.display());
        run.sink.stage(Stage::Review).emit(EventKind::Warning { text });
    }
    let mut inputs = digests(&decisions, true)?;
    inputs.insert("curate".to_owned(), curated.digest());
    run.stage(Stage::Review, inputs, |emit, _| {
        let plan = FreezePlan {
            imported: run.folder(Stage::Import),
            curated: run.folder(Stage::Curate),
            decisions: decisions.clone(),
            system: recipe.task.system.clone(),
            reviewers_per_item: recipe.review.reviewers_per_item,
            min_reviewed: min_reviewed(&recipe.review.min_reviewed),
            unreviewed_weight: recipe.distill.unreviewed_weight as f32,
            seed: recipe.seed,
            max_label_error: recipe.review.max_label_error,
            redacted: recipe.data.redact,
            out: run.dataset_dir(),
            left_out: run.folder(Stage::Review).join("left_out.jsonl"),
        };
        let card = match freeze(&plan, emit)? {
            Frozen::Done(card) => card,
            Frozen::Incomplete { status, missing } => return Err(incomplete(run, &status, &missing)),
        };
        let rows: u64 = card.splits.values().map(|s| s.rows).sum();
        let reviewed: u64 = card.splits.values().map(|s| s.reviewed).sum();
        let mut outputs = vec!["dataset/dataset.json".to_owned(), "review/left_out.jsonl".to_owned()];
        outputs.push(format!("dataset/{}", limbeck_data_curation::frozen::TABLE));
        outputs.extend(Split::ALL.iter().map(|split| format!("dataset/{}.jsonl", split.name())));
        Ok(Work { line: format!("{rows} examples frozen, {reviewed} of them reviewed"), outputs, summary: card })
    })
}

fn incomplete(run: &Run<'_>, status: &ReviewStatus, missing: &[Missing]) -> Failure {
    let of = |m: &Missing| format!("{} {} of {} needed", m.split.name(), m.reviewed, m.needed);
    let lacking: Vec<String> = missing.iter().map(of).collect();
    let message = format!(
        "the review is not finished: {} of {} items are decided ({})",
        status.reviewed,
        status.queued,
        lacking.join(", ")
    );
    let recipe = recipe_arg(&run.resolved);
    let help = format!(
        "decide the rest with `limbeck review {recipe}` and start the run again; or ask for less: --set review.min_reviewed.train=0.5"
    );
    Failure::new(Exit::ReviewIncomplete, message).help(help)
}
