//! One rung of a ladder: an ordinary run in a folder of the parent's, up to its evaluation, that takes over the parent's data.

use super::{Beside, Carved, Rung};
use crate::args::Ladder;
use crate::exit::{Failure, Result};
use crate::inner::{Inner, evaluated, lacks};
use crate::stages::quantize::QuantizedFiles;
use crate::stages::{Run, cannot};
use limbeck_artifact::event::Stage;
use limbeck_artifact::stage;
use limbeck_eval::{Answered, Report, Verdict, compare};
use std::path::{Path, PathBuf};

/// Of the difference between two rungs, two-sided; and the seed of its resampling.
const CONFIDENCE: f64 = 0.95;
const SEED: u64 = 17;

/// Who teaches the smaller rungs: the file that the first one would ship.
pub struct Teacher {
    pub file: PathBuf,
}

/// Runs a rung to its evaluation. The first has no teacher but the recipe's own.
///
/// # Errors
/// Those of its stages; gates that are not passed are none.
pub fn run(
    parent: &Run<'_>,
    args: &Ladder,
    layers: usize,
    carved: Option<&Carved>,
    teacher: Option<&Teacher>,
    first: Option<&Path>,
) -> Result<Rung> {
    let set = sets(args, carved, teacher)?;
    let name = format!("{}-{layers}-layers", parent.recipe().name);
    let data = [Stage::Import, Stage::Curate, Stage::Review];
    let inner = Inner { folder: "ladder", name, set: &set, stages: &data };
    evaluated(parent, inner, |run, report| rung(run, &report, layers, carved, first, &set))
}

fn rung(
    run: &Run<'_>,
    report: &Report,
    layers: usize,
    carved: Option<&Carved>,
    first: Option<&Path>,
    set: &[(String, String)],
) -> Result<Rung> {
    let arm =
        report.arms.iter().find(|arm| arm.name == report.candidate).ok_or_else(|| lacks(&run.dir, "a candidate"))?;
    let parameters = run.base(&run.sink.stage(Stage::Eval))?.config.parameters();
    Ok(Rung {
        layers,
        kept: carved.map(|carved| carved.choice.kept.clone()),
        loss_when_carved: carved.and_then(|carved| Some(carved.choice.loss?.carved)),
        parameters,
        bytes: shipped(&run.dir, &run.recipe().quantize.ship)?.1,
        rows: arm.scores.rows,
        accuracy: arm.scores.accuracy,
        accuracy_interval: arm.scores.accuracy_interval,
        verdict: report.verdict,
        not_passed: report.gates.iter().filter(|g| g.verdict != Verdict::Pass).map(|g| g.gate.clone()).collect(),
        p50_ms: arm.latency.as_ref().map(|latency| latency.p50_ms),
        p95_ms: arm.latency.as_ref().map(|latency| latency.p95_ms),
        cost: arm.cost.clone(),
        beside_first: first.map(|first| beside(first, &run.dir)).transpose()?.flatten(),
        set: set.iter().map(|(key, value)| format!("{key}={value}")).collect(),
        run: run.dir.clone(),
    })
}

/// The file that a finished rung would ship, as a teacher of others.
///
/// # Errors
/// When its record can't be read.
pub fn teacher(parent: &Run<'_>, first: &Rung) -> Result<Teacher> {
    let (path, _) = shipped(&first.run, &parent.recipe().quantize.ship)?;
    let file = std::path::absolute(&path).map_err(|e| cannot("find", &path, &e))?;
    Ok(Teacher { file })
}

/// The file of a format that a run wrote, and its size.
fn shipped(run: &Path, format: &str) -> Result<(PathBuf, u64)> {
    let record = stage::load(run, Stage::Quantize)?.ok_or_else(|| lacks(run, "a quantized file"))?;
    let files: QuantizedFiles = serde_json::from_value(record.summary)?;
    let file = files.get(format).ok_or_else(|| lacks(run, "the file to ship"))?;
    Ok((run.join(&file.file), file.bytes))
}

/// What makes this rung of the recipe, in the order in which it counts.
fn sets(args: &Ladder, carved: Option<&Carved>, teacher: Option<&Teacher>) -> Result<Vec<(String, String)>> {
    let mut set = Vec::new();
    if let Some(carved) = carved {
        set.push(("model.base".to_owned(), carved.path.display().to_string()));
    }
    if let Some(teacher) = teacher {
        set.push(("distill.teacher".to_owned(), teacher.file.display().to_string()));
        if !args.unlabeled.is_empty() {
            let absolute = |path: &PathBuf| std::path::absolute(path).map_err(|e| cannot("find", path, &e));
            let paths: Vec<PathBuf> = args.unlabeled.iter().map(absolute).collect::<Result<_>>()?;
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            set.push(("distill.unlabeled".to_owned(), serde_json::to_string(&paths)?));
        }
    }
    if carved.is_some() {
        set.extend(args.heal.iter().cloned());
    }
    Ok(set)
}

/// The rung against the first on the test rows of both.
fn beside(first: &Path, own: &Path) -> Result<Option<Beside>> {
    let (a, b) = (Answered::load(first).map_err(Failure::from)?, Answered::load(own).map_err(Failure::from)?);
    Ok(compare(&a, &b, CONFIDENCE, SEED).map(|compared| {
        let p50 = |latency: &Option<limbeck_eval::Latency>| latency.as_ref().map(|l| l.p50_ms).filter(|ms| *ms > 0.0);
        Beside {
            difference: compared.difference,
            interval: compared.interval,
            p_mcnemar: compared.p_mcnemar,
            times_as_fast: p50(&compared.first_latency).zip(p50(&compared.second_latency)).map(|(a, b)| a / b),
        }
    }))
}
