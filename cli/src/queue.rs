//! The ranked review queue of a run. The rooms that it needs do not know each other: the linear floor's out-of-fold
//! posteriors go from eval to data-curation as plain values, here.

use crate::exit::Result;
use crate::output;
use crate::settings::Settings;
use crate::stages::{self, Run};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::Stage;
use limbeck_artifact::stage;
use limbeck_data_curation::review::rank::{self, Head, RankPlan, Ranking};
use limbeck_data_curation::review::{self, Queue};
use limbeck_eval::{FloorRow, out_of_fold};
use limbeck_recipes::Resolved;
use serde_json::json;

/// Folds of the floor's own cross-validation.
const FOLDS: usize = 5;
/// Rows that a fold's floor learns from at most: more make the ranking later, not better.
pub const MOST_TRAINED: usize = 12_000;
/// With fewer labelled rows a student's opinion is noise.
const LEAST: usize = 40;

/// The run with its traces curated: as it lies there if that is done, so that nobody has to wait for its lock.
///
/// # Errors
/// Those of import and curate.
pub fn curated<'a>(settings: &'a Settings, resolved: &Resolved) -> Result<Run<'a>> {
    let looked = Run::look(settings, resolved.clone());
    if stages::upto(&looked, Stage::Curate).is_ok() {
        return Ok(looked);
    }
    let run = Run::open(settings, resolved.clone())?;
    stages::upto(&run, Stage::Curate)?;
    run.sink.clear();
    drop(run);
    Ok(Run::look(settings, resolved.clone()))
}

/// The queue in the order in which it should be gone through. The ranking is made once and kept in the run's folder.
///
/// # Errors
/// When what curate wrote can't be read.
pub fn ranked(run: &Run<'_>) -> Result<(Queue, Head)> {
    let recipe = run.recipe();
    let curated = run.folder(Stage::Curate);
    let mut queue = review::queue(&curated, recipe.seed)?;
    queue.reviewers = recipe.review.reviewers_per_item;
    let made_by = stage::load(&run.dir, Stage::Curate)?.map(|record| record.outputs);
    let key = json!({
        "curated": made_by, "seed": recipe.seed, "random_share": recipe.review.random_share,
        "folds": FOLDS, "most": MOST_TRAINED, "version": rank::VERSION,
    });
    let key = sha256_hex(canonical_json(&key).as_bytes());
    let path = run.folder(Stage::Review).join("queue.jsonl");
    let ranking = match Ranking::load(&path, &key) {
        Some(ranking) => ranking,
        None => {
            let posteriors = posteriors(&queue, |fold| {
                output::stderr(&format!(
                    "ranking {} items by what a linear model makes of them, once: part {} of {FOLDS}\n",
                    queue.items.len(),
                    fold + 1
                ));
            });
            let copies = rank::copies(&curated)?;
            let plan = RankPlan { random_share: recipe.review.random_share, seed: recipe.seed };
            let ranking = rank::rank(&queue, &posteriors, &copies, &plan, &key);
            // Kept for speed only: a folder that can't be written to is no reason not to review.
            if let Err(error) = ranking.save(&path) {
                output::stderr(&format!("the ranking is not kept and will be made again: {error}\n"));
            }
            ranking
        }
    };
    ranking.apply(&mut queue);
    Ok((queue, ranking.head))
}

/// What the linear floor says of each labelled item without having learned from it.
pub fn posteriors(queue: &Queue, begun: impl FnMut(usize)) -> Vec<Option<Vec<f32>>> {
    let mut posteriors = vec![None; queue.items.len()];
    let number = |label: &str| queue.answers.labels().iter().position(|l| l == label);
    let known: Vec<(usize, usize)> =
        (0..queue.items.len()).filter_map(|i| Some((i, queue.items[i].label.as_deref().and_then(number)?))).collect();
    if known.len() < LEAST {
        return posteriors;
    }
    let rows: Vec<FloorRow<'_>> = known
        .iter()
        .map(|(i, label)| FloorRow { text: &queue.items[*i].message, label: *label, weight: 1.0 })
        .collect();
    let answers = out_of_fold(&rows, queue.answers.labels().len(), FOLDS, MOST_TRAINED, begun);
    known.iter().zip(answers).for_each(|((i, _), answer)| posteriors[*i] = Some(answer));
    posteriors
}
