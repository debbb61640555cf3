//! A whole run inside another's folder, up to its evaluation, that takes over what the outer one has done: rungs of a ladder,
//! trainings with other seeds.

use crate::exit::{Exit, Failure, Result};
use crate::settings::{Outer, Settings};
use crate::stages::taken_over::{share_answers, take_over};
use crate::stages::{self, Run};
use crate::verbs::run::started;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_eval::Report;
use std::path::Path;
use std::time::Instant;

/// Which run: its folder is `PARENT/folder/name`, its recipe the parent's with these values set.
pub struct Inner<'a> {
    pub folder: &'a str,
    pub name: String,
    pub set: &'a [(String, String)],
    /// What is taken over, where it is done and fits.
    pub stages: &'a [Stage],
}

/// Runs it, or finds that it was run, and hands over the run with its report.
///
/// # Errors
/// Those of its stages; gates that are not passed are none.
pub fn evaluated<T>(parent: &Run<'_>, inner: Inner<'_>, then: impl FnOnce(&Run<'_>, Report) -> Result<T>) -> Result<T> {
    let mut settings: Settings = parent.settings.clone();
    settings.outer.get_or_insert_with(|| Outer {
        name: parent.recipe().name.clone(),
        runs_dir: parent.settings.runs_dir.clone(),
        eval: parent.folder(Stage::Eval),
    });
    settings.runs_dir = parent.dir.join(inner.folder);
    settings.sets.extend(inner.set.iter().cloned());
    settings.sets.push(("name".to_owned(), inner.name));
    let resolved = settings.recipe(&parent.resolved.path)?;
    let run = Run::open(&settings, resolved)?;
    run.sink.be_brief();
    take_over(parent, &run, inner.stages)?;
    share_answers(parent, &run)?;
    let begun = Instant::now();
    run.sink.emit(started(&run));
    let outcome = stages::upto(&run, Stage::Eval);
    let exit_code = outcome.as_ref().map_or_else(|failure| failure.exit.code(), |_| 0);
    run.sink.emit(EventKind::RunFinished { exit_code, wall_ms: begun.elapsed().as_millis() as u64 });
    run.sink.clear();
    let outcome = outcome?;
    share_answers(&run, parent)?;
    let evaluated = outcome.evaluated.ok_or_else(|| lacks(&run.dir, "an evaluation"))?;
    let report = Report::load(&run.dir.join(&evaluated.report)).map_err(Failure::from)?;
    then(&run, report)
}

/// A run that is not what it should be.
pub fn lacks(run: &Path, what: &str) -> Failure {
    Failure::new(Exit::Unexpected, format!("the run {} has not {what}", run.display()))
        .help("remove its folder and start again")
}
