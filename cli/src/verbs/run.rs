//! `limbeck run` and the verbs of single stages: all stages up to one, then what was made, how good it is, and what to
//! try.

use crate::args::ScalarArgs;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal, bold};
use crate::settings::{Settings, arguments, recipe_arg, shell};
use crate::sinks;
use crate::stages::{self, Outcome, Run};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_eval::{Report, Verdict, terminal_summary};
use limbeck_model::device::{self, DeviceName};
use limbeck_tui::progress::{bytes, duration};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

pub fn run(settings: &Settings, recipe: &Path, last: Stage, scalars: &ScalarArgs) -> Result<Exit> {
    let resolved = settings.recipe(recipe)?;
    check_device(&resolved.recipe.model.device, last)?;
    let run = Run::open(settings, resolved)?;
    run.sink.plot_to(sinks::open(scalars, &run.recipe().name));
    let begun = Instant::now();
    run.sink.emit(started(&run));
    let outcome = stages::upto(&run, last);
    let exit = match &outcome {
        Err(failure) => failure.exit,
        Ok(outcome) => verdict_exit(outcome),
    };
    run.sink.emit(EventKind::RunFinished { exit_code: exit.code(), wall_ms: begun.elapsed().as_millis() as u64 });
    run.sink.clear();
    if let Some(reason) = run.sink.journal_failure() {
        output::stderr(&format!("warning: the journal has a hole: {reason}\n"));
    }
    let outcome = outcome?;
    if settings.json {
        output::json(&as_json(&run, &outcome, exit)?)?;
    } else {
        output::stdout(&closing(&run, &outcome, last)?)?;
    }
    Ok(exit)
}

/// How a run is told to begin.
pub fn started(run: &Run<'_>) -> EventKind {
    EventKind::RunStarted {
        recipe: run.resolved.path.display().to_string(),
        version: format!("{} {}", run.recipe().name, run.recipe().version),
        device: run.recipe().model.device.clone(),
        arguments: arguments(),
    }
}

/// A device that this build lacks is told before the first stage, not after the third.
pub fn check_device(name: &str, last: Stage) -> Result<()> {
    let device: DeviceName = name.parse()?;
    if last < Stage::Train {
        return Ok(());
    }
    device::probe(device).map_err(Failure::from)
}

/// A run that only measures, packages or promotes what failed its gates tells so by its exit code.
fn verdict_exit(outcome: &Outcome) -> Exit {
    match outcome.evaluated.as_ref().map(|e| e.verdict) {
        Some(Verdict::Fail) => Exit::GateFailed,
        Some(Verdict::Inconclusive) => Exit::Inconclusive,
        Some(Verdict::Pass) | None => Exit::Ok,
    }
}

fn report(run: &Run<'_>, outcome: &Outcome) -> Result<Option<Report>> {
    let Some(evaluated) = &outcome.evaluated else { return Ok(None) };
    Ok(Some(Report::load(&run.dir.join(&evaluated.report)).map_err(Failure::from)?))
}

/// What a person reads when the run is over.
fn closing(run: &Run<'_>, outcome: &Outcome, last: Stage) -> Result<String> {
    let terminal = Terminal::of_stdout();
    let recipe = recipe_arg(&run.resolved);
    let mut text = String::new();
    if let Some(report) = report(run, outcome)? {
        text.push_str(&format!("\n{}\n", terminal_summary(&report).trim_end()));
    }
    text.push_str(&format!("\n{}\n", bold(&terminal, "Made")));
    let mut line = |what: &str, value: String| text.push_str(&format!("  {what:<10} {value}\n"));
    if let Some(packaged) = &outcome.packaged {
        let dir = run.dir.join(&packaged.dir);
        line("artifact", format!("{} ({}, signed)", dir.display(), bytes(packaged.bytes)));
    }
    if let Some(evaluated) = &outcome.evaluated {
        line("report", run.dir.join(&evaluated.page).display().to_string());
    }
    if let Some(promoted) = &outcome.promoted {
        line("channel", format!("{} of {} (entry {})", promoted.channel, promoted.store, promoted.seq));
    }
    line("run", format!("{} (journal.jsonl, recipe.lock.toml)", run.dir.display()));
    let times: Vec<String> = outcome
        .stages
        .iter()
        .map(|s| format!("{} {}", s.stage.name(), if s.cached { "cached".to_owned() } else { duration(s.wall_ms) }))
        .collect();
    line("stages", times.join(" · "));
    let next = match (&outcome.packaged, last) {
        (Some(packaged), _) => {
            let what = match &outcome.promoted {
                Some(promoted) if run.recipe().promote.store == Path::new(crate::stores::DEFAULT) => {
                    format!("{}/{}", run.recipe().name, promoted.channel)
                }
                _ => shell(&run.dir.join(&packaged.dir)),
            };
            ("Try it", format!("limbeck score {what} \"{}\"", packaged.example))
        }
        (None, _) => ("Next", format!("limbeck run {recipe}")),
    };
    text.push_str(&format!("\n{}\n  {}\n", bold(&terminal, next.0), next.1));
    if let Some(recipients) = run.recipients() {
        let (dir, open) = (run.dir.display(), shell(&run.dir));
        text.push_str(&format!("\n{dir} is encrypted for {recipients}; `limbeck unseal {open}` opens it\n"));
    }
    Ok(text)
}

fn as_json(run: &Run<'_>, outcome: &Outcome, exit: Exit) -> Result<Value> {
    let report = report(run, outcome)?;
    let arms = report.as_ref().map(|report| {
        let arm = |a: &limbeck_eval::ArmResult| {
            json!({"arm": a.name, "accuracy": a.scores.accuracy, "macro_f1": a.scores.macro_f1, "latency": a.latency, "cost": a.cost})
        };
        report.arms.iter().map(arm).collect::<Vec<_>>()
    });
    Ok(json!({
        "run": run.dir,
        "exit_code": exit.code(),
        "stages": outcome.stages,
        "verdict": report.as_ref().map(|r| r.verdict.name()),
        "headline": report.as_ref().map(|r| r.headline.clone()),
        "arms": arms,
        "gates": report.as_ref().map(|r| serde_json::to_value(&r.gates)).transpose()?,
        "report": outcome.evaluated.as_ref().map(|e| run.dir.join(&e.report)),
        "artifact": outcome.packaged.as_ref().map(|p| run.dir.join(&p.dir)),
        "manifest_digest": outcome.packaged.as_ref().map(|p| p.manifest_digest.clone()),
        "promoted": outcome.promoted,
    }))
}
