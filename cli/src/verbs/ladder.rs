//! `limbeck ladder`: students of several sizes, then a table and the smallest that passes the gates.

use crate::args::Ladder;
use crate::exit::{Exit, Failure, Result};
use crate::ladder::{Rung, carve_all, rung, sizes, smallest};
use crate::output::{self, Terminal, bold};
use crate::settings::{Settings, recipe_arg, shell};
use crate::stages::{self, Run, cannot};
use crate::verbs::run::{check_device, started};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_eval::Verdict;
use limbeck_tui::progress::bytes;
use limbeck_tui::text::shell_word;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

pub fn ladder(settings: &Settings, args: &Ladder) -> Result<Exit> {
    let resolved = settings.recipe(&args.recipe.recipe)?;
    check_device(&resolved.recipe.model.device, Stage::Train)?;
    // What the carved rungs are trained with, before the first one is trained for hours.
    let mut healing = settings.clone();
    healing.sets.extend(args.heal.iter().cloned());
    healing.recipe(&args.recipe.recipe)?;
    let run = Run::open(settings, resolved)?;
    let begun = Instant::now();
    run.sink.emit(started(&run));
    let rungs = climb(&run, args);
    let exit = rungs.as_ref().map_or_else(|failure| failure.exit, |rungs| verdict(rungs));
    run.sink.emit(EventKind::RunFinished { exit_code: exit.code(), wall_ms: begun.elapsed().as_millis() as u64 });
    run.sink.clear();
    let rungs = rungs?;
    let command = smallest(&rungs).map(|rung| command(settings, &recipe_arg(&run.resolved), rung));
    let json = as_json(&run, args, &rungs, command.as_deref());
    let path = run.dir.join("ladder/ladder.json");
    let text = serde_json::to_string_pretty(&json)? + "\n";
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    match settings.json {
        true => output::json(&json)?,
        false => output::stdout(&table(&rungs, command.as_deref(), &path))?,
    }
    Ok(exit)
}

/// Rung by rung, the largest first: it teaches the others where the recipe names nobody.
fn climb(run: &Run<'_>, args: &Ladder) -> Result<Vec<Rung>> {
    let base = run.base(&run.sink.stage(Stage::Train))?;
    let sizes = sizes(&args.rungs, base.config.num_hidden_layers).map_err(|e| Failure::new(Exit::Usage, e))?;
    stages::upto(run, Stage::Review)?;
    let dataset = limbeck_artifact::stage::load(&run.dir, Stage::Review)?.map(|record| record.key).unwrap_or_default();
    let bases = carve_all(run, args, &sizes, &dataset)?;
    // Posteriors over labels are what can be taught; an answer that is written is learnt from its text.
    let teaches = !args.no_teacher && !run.recipe().distill.is_asked() && !run.recipe().task.labels.is_empty();
    if !args.unlabeled.is_empty() && !teaches {
        let message = "--unlabeled is for the ladder's own teacher, and here it has none";
        let help = "name the files in the recipe (distill.unlabeled) where it names a teacher; a task without labels learns from answers";
        return Err(Failure::new(Exit::Usage, message).help(help));
    }
    let (mut rungs, mut teacher): (Vec<Rung>, Option<rung::Teacher>) = (Vec::new(), None);
    for (size, base) in sizes.iter().zip(&bases) {
        let text = format!("rung {} of {}: {size} layers", rungs.len() + 1, sizes.len());
        run.sink.emit(EventKind::Note { text });
        run.sink.clear();
        let first = rungs.first().map(|first| first.run.clone());
        let made = rung::run(run, args, *size, base.as_ref(), teacher.as_ref(), first.as_deref())?;
        let told = format!("{size} layers: {}", told(&made));
        run.sink.emit(EventKind::Note { text: told });
        if teaches && teacher.is_none() {
            teacher = Some(rung::teacher(run, &made)?);
        }
        rungs.push(made);
    }
    Ok(rungs)
}

fn told(rung: &Rung) -> String {
    let failed = match rung.not_passed.is_empty() {
        true => String::new(),
        false => format!(" ({})", rung.not_passed.join(", ")),
    };
    format!("{:.1} % of {} test rows right, gates {}{failed}", rung.accuracy * 100.0, rung.rows, rung.verdict.name())
}

/// Passed where one rung passes.
fn verdict(rungs: &[Rung]) -> Exit {
    let says = |verdict| rungs.iter().any(|rung| rung.verdict == verdict);
    match (says(Verdict::Pass), says(Verdict::Inconclusive)) {
        (true, _) => Exit::Ok,
        (false, true) => Exit::Inconclusive,
        (false, false) => Exit::GateFailed,
    }
}

/// The command that makes an artifact of a rung.
fn command(settings: &Settings, recipe: &str, rung: &Rung) -> String {
    let mut words = vec![format!("limbeck run {recipe}")];
    if settings.runs_dir != Path::new("runs") {
        words.push(format!("--runs-dir {}", shell(&settings.runs_dir)));
    }
    let own = settings.sets.iter().map(|(key, value)| format!("{key}={value}"));
    words.extend(own.chain(rung.set.iter().cloned()).map(|set| format!("--set {}", shell_word(&set))));
    words.join(" ")
}

fn as_json(run: &Run<'_>, args: &Ladder, rungs: &[Rung], command: Option<&str>) -> Value {
    json!({
        "run": run.dir,
        "by": args.by.to_string(),
        "rungs": rungs,
        "smallest": smallest(rungs).map(|rung| rung.layers),
        "command": command,
    })
}

const HEAD: [&str; 9] =
    ["layers", "size", "right", "95 % interval", "points", "p50 ms", "times as fast", "cost/1k", "gates"];

fn table(rungs: &[Rung], command: Option<&str>, path: &Path) -> String {
    let terminal = Terminal::of_stdout();
    let best = smallest(rungs).map(|rung| rung.layers);
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let row = |rung: &Rung| -> Vec<String> {
        let beside = rung.beside_first.as_ref();
        let range = |low: f64, high: f64| format!("{:.1} .. {:.1}", low * 100.0, high * 100.0);
        vec![
            rung.layers.to_string(),
            bytes(rung.bytes),
            format!("{:.1} %", rung.accuracy * 100.0),
            range(rung.accuracy_interval.low, rung.accuracy_interval.high),
            or_none(
                beside.map(|b| format!("{:+.1} ({})", b.difference * 100.0, range(b.interval.low, b.interval.high))),
            ),
            or_none(rung.p50_ms.map(|ms| format!("{ms:.1}"))),
            or_none(beside.and_then(|b| b.times_as_fast).map(|times| format!("{times:.1}"))),
            or_none(rung.cost.as_ref().map(|cost| format!("{:.4} {}", cost.per_1k_calls, cost.currency))),
            rung.verdict.name().to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> =
        std::iter::once(HEAD.map(str::to_owned).to_vec()).chain(rungs.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let n = rungs.first().map_or(0, |rung| rung.rows);
    let mut text =
        format!("Students of one recipe on {n} test rows; points are against the first, row by row (95 %).\n\n");
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
        let mark = if i > 0 && Some(rungs[i - 1].layers) == best { " *" } else { "" };
        text.push_str(&format!("  {}{mark}\n", cells.join("  ")));
    }
    for rung in rungs.iter().filter(|rung| !rung.not_passed.is_empty()) {
        text.push_str(&format!("  {} layers: not passed: {}\n", rung.layers, rung.not_passed.join(", ")));
    }
    match command {
        Some(command) => text.push_str(&format!(
            "  * the smallest that passes; all of it in {}\n\n{}\n  {command}\n",
            path.display(),
            bold(&terminal, "Make it")
        )),
        None => text.push_str(&format!("  no rung passes the gates; all of it in {}\n", path.display())),
    }
    text
}
