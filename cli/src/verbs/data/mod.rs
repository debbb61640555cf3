//! `limbeck data`: what a frozen dataset is, what changed between two, where a row came from, and rows for other trainers.

pub mod args;
mod diff;
mod export;
mod lineage;
mod show;

use crate::exit::{Exit, Failure, Result};
use crate::sealing::{self, Held};
use crate::settings::{Settings, shell};
use args::DataVerb;
use limbeck_artifact::dataset::DatasetCard;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub fn data(settings: &Settings, verb: &DataVerb) -> Result<Exit> {
    match verb {
        DataVerb::Show { of } => show::show(settings, &Place::find(settings, of)?),
        DataVerb::Diff { a, b, rows } => {
            diff::diff(settings, &Place::find(settings, a)?, &Place::find(settings, b)?, *rows)
        }
        DataVerb::Lineage { of, row, decisions } => {
            lineage::lineage(settings, &Place::find(settings, of)?, row, decisions)
        }
        DataVerb::Export { of, format, split, out } => {
            export::export(&Place::find(settings, of)?, *format, split.split(), out.as_deref())
        }
    }
}

/// A dataset's folder, and the run that it lies in.
struct Place {
    dir: PathBuf,
    run: Option<PathBuf>,
    /// The recipe's decision files, where a recipe was named.
    decisions: Vec<PathBuf>,
    /// Keeps the run open, where its recipe encrypts.
    _held: Option<Arc<Held>>,
}

impl Place {
    /// What a person names: a dataset's folder, a run's folder, a run's name, or a recipe.
    fn find(settings: &Settings, of: &Path) -> Result<Place> {
        if of.join("dataset.json").is_file() {
            let run = of.parent().filter(|run| run.join("journal.jsonl").is_file());
            let run = run.map(Path::to_path_buf);
            return Ok(Place { dir: of.to_path_buf(), run, decisions: Vec::new(), _held: None });
        }
        // Before anything in the run is looked for: it may be encrypted, and the recipe says how it is opened.
        let recipe = limbeck_recipes::locate(of).is_file().then(|| settings.recipe(of)).transpose()?;
        let held = match &recipe {
            Some(found) => sealing::hold(&settings.run_dir(&found.recipe.name), &found.recipe.encrypt)?,
            None => None,
        };
        for run in [of.to_path_buf(), settings.runs_dir.join(of)] {
            if run.join("dataset/dataset.json").is_file() {
                // A run does not say where its recipe lies; the name that was given may lead there, too.
                let decisions = recipe.map(|found| found.recipe.review.decisions).unwrap_or_default();
                return Ok(Place { dir: run.join("dataset"), run: Some(run), decisions, _held: held });
            }
            sealing::refuse(&run, "dataset/dataset.json")?;
        }
        let Some(recipe) = recipe else {
            let message = format!("there is no dataset at {}", of.display());
            let help = format!(
                "name a dataset's folder (with dataset.json), a run's folder, a run under {}, or a recipe",
                shell(&settings.runs_dir)
            );
            return Err(Failure::new(Exit::Unexpected, message).help(help));
        };
        let recipe = recipe.recipe;
        let run = settings.run_dir(&recipe.name);
        if !run.join("dataset/dataset.json").is_file() {
            let message =
                format!("{} has no frozen dataset yet: there is no {}", recipe.name, run.join("dataset").display());
            let help = format!("freeze it: limbeck train {0}, or limbeck run {0}", shell(of));
            return Err(Failure::new(Exit::Unexpected, message).help(help));
        }
        Ok(Place { dir: run.join("dataset"), run: Some(run), decisions: recipe.review.decisions, _held: held })
    }

    /// The card, after all files were checked against it.
    fn checked(&self) -> Result<DatasetCard> {
        let card = DatasetCard::load(&self.dir)?;
        card.check_files(&self.dir)?;
        Ok(card)
    }
}
