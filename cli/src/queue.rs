//! The review queue of a run, and its ranking. The rooms that it needs do not know each other: the linear model's
//! out-of-fold posteriors go from eval to data-curation as plain values, here.

use crate::exit::Result;
use crate::output;
use crate::settings::Settings;
use crate::stages::{self, Run};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::Stage;
use limbeck_artifact::stage;
use limbeck_data_curation::review::rank::{self, Head, RankPlan, Ranking};
use limbeck_data_curation::review::{self, Queue};
use limbeck_eval::{FloorRow, RANKING_VERSION, out_of_fold};
use limbeck_recipes::{Recipe, Resolved};
use limbeck_tui::review::{Later, Ranked};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// Folds of the linear model's cross-validation.
const FOLDS: usize = 5;
/// Rows that a fold learns from, each time counted: more make the ranking later, not better.
const VISITS: usize = 40_000;
/// With fewer labelled rows a student's opinion is noise.
const LEAST: usize = 40;
/// So long a desk waits for its ranking before it opens without: a small queue is not put in order under a reviewer's eyes.
const PATIENCE: Duration = Duration::from_millis(300);
/// With more items it does not wait: the ranking would not be there in time.
const SMALL: usize = 2_000;
/// Of the ranking's time, the share that the linear model takes.
const LEARNING: f32 = 0.9;

/// The run with its traces curated: as it lies there if that is done, so that nobody has to wait for its lock.
///
/// # Errors
/// Those of import and curate.
pub fn curated<'a>(settings: &'a Settings, resolved: &Resolved) -> Result<Run<'a>> {
    let looked = Run::look(settings, resolved.clone())?;
    if stages::upto(&looked, Stage::Curate).is_ok() {
        return Ok(looked);
    }
    let run = Run::open(settings, resolved.clone())?;
    stages::upto(&run, Stage::Curate)?;
    run.sink.clear();
    drop(run);
    Run::look(settings, resolved.clone())
}

/// The queue in an order that is there at once: the random share first.
///
/// # Errors
/// When what curate wrote can't be read.
pub fn plain(run: &Run<'_>) -> Result<Queue> {
    plain_of(&run.folder(Stage::Curate), run.recipe())
}

fn plain_of(curated: &Path, recipe: &Recipe) -> Result<Queue> {
    let mut queue = review::queue(curated, recipe.seed)?;
    queue.reviewers = recipe.review.reviewers_per_item;
    rank::plain(&mut queue, recipe.seed);
    Ok(queue)
}

/// The queue in the order in which it should be gone through. The ranking is made once and kept in the run's folder.
///
/// # Errors
/// When what curate wrote can't be read.
pub fn ranked(run: &Run<'_>) -> Result<(Queue, Head)> {
    let mut queue = plain(run)?;
    let to_rank = ToRank::of(run)?;
    let ranking = match to_rank.kept() {
        Some(ranking) => ranking,
        None => {
            let said = Mutex::new(0);
            let n = queue.items.len();
            let ranked = to_rank.make(&queue, &|share| tell(&said, share, n))?;
            if let Some(why) = &ranked.not_kept {
                output::stderr(&format!("{why}\n"));
            }
            ranked.ranking
        }
    };
    ranking.apply(&mut queue);
    Ok((queue, ranking.head))
}

/// The queue for a desk: ranked if the ranking is kept, or soon made; otherwise in the plain order, and the ranking comes
/// later, from a thread of its own.
///
/// # Errors
/// When what curate wrote can't be read.
pub fn opened(run: &Run<'_>) -> Result<(Queue, Option<Later>)> {
    let mut queue = plain(run)?;
    let to_rank = ToRank::of(run)?;
    if let Some(ranking) = to_rank.kept() {
        ranking.apply(&mut queue);
        return Ok((queue, None));
    }
    if queue.items.len() > SMALL {
        // It reads its own queue when the desk is open: a copy would take as long, and before.
        let (folder, recipe) = (run.folder(Stage::Curate), run.recipe().clone());
        let rank = move |told: &(dyn Fn(f32) + Sync)| {
            let its_own = plain_of(&folder, &recipe)?;
            to_rank.make(&its_own, told)
        };
        return Ok((queue, Some(Later::asleep(move |told| rank(told).map_err(|e| e.message)))));
    }
    let its_own = queue.clone();
    let later = Later::begin(move |told| to_rank.make(&its_own, told).map_err(|e| e.message));
    match later.wait(PATIENCE) {
        Ok(ranked) => {
            ranked.ranking.apply(&mut queue);
            Ok((queue, None))
        }
        Err(later) => Ok((queue, Some(later))),
    }
}

/// A line every fifth of the way.
fn tell(said: &Mutex<u32>, share: f32, items: usize) {
    let fifth = (share * 5.0) as u32;
    if let Ok(mut said) = said.lock()
        && (fifth > *said || *said == 0)
    {
        let first = if *said == 0 { "ranking" } else { "  still ranking" };
        output::stderr(&format!(
            "{first} {items} items by what a linear model makes of them, once: {:.0} %\n",
            share * 100.0
        ));
        *said = fifth.max(1);
    }
}

/// What a ranking is made from, beside the queue.
struct ToRank {
    curated: PathBuf,
    plan: RankPlan,
    key: String,
    /// Where it is kept.
    path: PathBuf,
}

impl ToRank {
    fn of(run: &Run<'_>) -> Result<ToRank> {
        let recipe = run.recipe();
        let made_by = stage::load(&run.dir, Stage::Curate)?.map(|record| record.outputs);
        let key = json!({
            "curated": made_by, "seed": recipe.seed, "random_share": recipe.review.random_share, "folds": FOLDS,
            "visits": VISITS, "version": [env!("CARGO_PKG_VERSION"), rank::VERSION, RANKING_VERSION],
        });
        Ok(ToRank {
            curated: run.folder(Stage::Curate),
            plan: RankPlan { random_share: recipe.review.random_share, seed: recipe.seed },
            key: sha256_hex(canonical_json(&key).as_bytes()),
            path: run.folder(Stage::Review).join("queue.jsonl"),
        })
    }

    fn kept(&self) -> Option<Ranking> {
        Ranking::load(&self.path, &self.key)
    }

    /// Makes it and keeps it. `told` hears the share that is done.
    fn make(&self, queue: &Queue, told: &(dyn Fn(f32) + Sync)) -> Result<Ranked> {
        let posteriors = posteriors(queue, &|share| told(share * LEARNING));
        let copies = rank::copies(&self.curated)?;
        let ranking = rank::rank(queue, &posteriors, &copies, &self.plan, &self.key);
        // Kept for speed only: a folder that can't be written to is no reason not to review.
        let not_kept = ranking.save(&self.path).err();
        let not_kept = not_kept.map(|error| format!("the ranking is not kept and will be made again: {error}"));
        Ok(Ranked { ranking, not_kept })
    }
}

/// What a linear model says of each labelled item without having learned from it.
pub fn posteriors(queue: &Queue, told: &(dyn Fn(f32) + Sync)) -> Vec<Option<Vec<f32>>> {
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
    let answers = out_of_fold(&rows, queue.answers.labels().len(), FOLDS, VISITS, told);
    known.iter().zip(answers).for_each(|((i, _), answer)| posteriors[*i] = Some(answer));
    posteriors
}
