//! One trial of a sweep: an ordinary run folder that takes over the parent's finished data stages, trains to a step, and
//! keeps what came of it, so that a killed sweep does nothing twice.

use super::grid::Trial;
use super::{Round, stop_at};
use crate::args::ScalarArgs;
use crate::exit::{Exit, Failure, Result};
use crate::settings::Settings;
use crate::sinks;
use crate::stages::taken_over::take_over;
use crate::stages::train::{self, Trained};
use crate::stages::{Run, cannot, capture, curate, import, review};
use crate::verbs::run::started;
use limbeck_artifact::dataset::Split;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What a trial had come to after a round; kept in its folder as `rungs/step-N.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rung {
    /// The train stage's key: another plan, dataset, base or version makes it void.
    pub key: String,
    pub step: u64,
    pub total: u64,
    /// Mean loss over the valid split's tokens; None where training diverged.
    pub valid_loss: Option<f64>,
    /// Share of the valid split's rows that are right.
    pub valid_accuracy: Option<f64>,
    /// Of this round's training alone. It decides nothing.
    pub wall_ms: u64,
}

/// Trains the trial to the end of `round`, or finds that it was done.
///
/// # Errors
/// Those of its stages; a training that diverges is none.
pub fn run(parent: &Run<'_>, trial: &Trial, round: Round, scalars: &ScalarArgs) -> Result<Rung> {
    let settings = settings(parent, trial);
    let resolved = settings.recipe(&parent.resolved.path)?;
    let run = Run::open(&settings, resolved)?;
    run.sink.be_brief();
    run.sink.plot_to(sinks::open(scalars, &trial.name));
    take_over(parent, &run, &[Stage::Import, Stage::Curate, Stage::Review, Stage::Capture])?;
    let begun = Instant::now();
    run.sink.emit(started(&run));
    let rung = to_rung(&run, round);
    let exit_code = rung.as_ref().map_or_else(|failure| failure.exit.code(), |_| 0);
    run.sink.emit(EventKind::RunFinished { exit_code, wall_ms: begun.elapsed().as_millis() as u64 });
    run.sink.clear();
    rung
}

/// The parent's settings, in a folder of the parent's folder, under the trial's name and values.
fn settings(parent: &Run<'_>, trial: &Trial) -> Settings {
    let mut settings = parent.settings.clone();
    settings.runs_dir = parent.dir.join("sweep");
    settings.sets.extend(trial.sets.iter().cloned());
    settings.sets.push(("name".to_owned(), trial.name.clone()));
    settings
}

/// Where the trial's run lies.
pub fn dir(parent: &Run<'_>, trial: &Trial) -> PathBuf {
    settings(parent, trial).run_dir(&trial.name)
}

fn to_rung(run: &Run<'_>, round: Round) -> Result<Rung> {
    let imported = import::run(run)?;
    let curated = curate::run(run, &imported)?;
    let dataset = review::run(run, &curated)?;
    capture::run(run, &dataset)?;
    let rows = |split| dataset.summary.splits.get(&split).map_or(0, |s| s.rows);
    if rows(Split::Valid) == 0 {
        let message = "the valid split is empty, and a sweep chooses by its loss";
        return Err(Failure::new(Exit::Unexpected, message).help("give it rows: --set data.split.valid=0.1"));
    }
    let rows = rows(Split::Train) + capture::unlabeled_rows(run)?;
    let total = train::settings(run.recipe()).total_steps(usize::try_from(rows).unwrap_or(usize::MAX));
    let step = stop_at(round, total);
    let key = run.key(Stage::Train, &train::inputs(run, &dataset)?);
    let path = run.dir.join(format!("rungs/step-{step:08}.json"));
    if let Some(kept) = load(&path).filter(|rung| rung.key == key && rung.step == step) {
        return Ok(kept);
    }
    let (valid_loss, valid_accuracy, wall_ms) = match train::upto(run, &dataset, step, total)? {
        Trained::To { report, wall_ms } => (report.valid_loss, report.valid_accuracy, wall_ms),
        Trained::Diverged { wall_ms } => (None, None, wall_ms),
    };
    let rung = Rung { key, step, total, valid_loss, valid_accuracy, wall_ms };
    let text = serde_json::to_string_pretty(&rung)? + "\n";
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    Ok(rung)
}

fn load(path: &Path) -> Option<Rung> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}
