//! `limbeck sweep`: trials of training values by successive halving, then a table and the `--set` line of the best.

use crate::args::Sweep;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal, bold};
use crate::settings::{Settings, recipe_arg, shell};
use crate::stages::{self, Run, cannot};
use crate::sweep::grid::{Trial, trials};
use crate::sweep::trial::{self, Rung};
use crate::sweep::{Round, better, rounds};
use crate::verbs::run::{check_device, started};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_recipes::load;
use limbeck_tui::progress::{count, duration};
use limbeck_tui::text::shell_word;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Instant;

/// A trial and what it has come to.
struct Entry {
    trial: Trial,
    learning_rate: f64,
    /// Of each round it took part in, the first first.
    rungs: Vec<Rung>,
}

pub fn sweep(settings: &Settings, args: &Sweep) -> Result<Exit> {
    let resolved = settings.recipe(&args.recipe.recipe)?;
    check_device(&resolved.recipe.model.device, Stage::Train)?;
    let samples = args.samples.map(|n| n as usize);
    let trials = trials(&args.params, samples, args.seed).map_err(|e| Failure::new(Exit::Usage, e))?;
    let mut entries = Vec::new();
    for trial in trials {
        // A value that no recipe may hold is told before the first trial runs.
        let sets = [settings.sets.clone(), trial.sets.clone()].concat();
        let recipe = load(&args.recipe.recipe, &sets).map_err(Failure::recipe)?.recipe;
        entries.push(Entry { trial, learning_rate: recipe.train.learning_rate, rungs: Vec::new() });
    }
    let run = Run::open(settings, resolved)?;
    let begun = Instant::now();
    run.sink.emit(started(&run));
    let rounds = rounds(entries.len(), args.eta, args.min_share);
    let done = stages::upto(&run, Stage::Capture).and_then(|_| all_rounds(&run, &mut entries, &rounds, args));
    let exit = done.as_ref().map_or_else(|failure| failure.exit, |()| Exit::Ok);
    run.sink.emit(EventKind::RunFinished { exit_code: exit.code(), wall_ms: begun.elapsed().as_millis() as u64 });
    run.sink.clear();
    done?;
    let ranked = ranked(&entries);
    let best = ranked.first().filter(|best| best.rungs.last().is_some_and(|rung| rung.valid_loss.is_some()));
    let Some(best) = best else {
        let help = "lower the learning rates, or look at the rows that the trials' journals name";
        return Err(Failure::new(Exit::Unexpected, "every trial diverged").help(help));
    };
    let command = command(settings, &recipe_arg(&run.resolved), &best.trial);
    let json = as_json(&run, &ranked, &rounds, &command);
    let path = run.dir.join("sweep/sweep.json");
    let text = serde_json::to_string_pretty(&json)? + "\n";
    write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
    match settings.json {
        true => output::json(&json)?,
        false => output::stdout(&table(&ranked, &rounds, &command, &path))?,
    }
    Ok(Exit::Ok)
}

/// Round by round, the better part goes on.
fn all_rounds(run: &Run<'_>, entries: &mut [Entry], rounds: &[Round], args: &Sweep) -> Result<()> {
    for (i, round) in rounds.iter().enumerate() {
        let chosen = go_on(entries, i, round.trials);
        for (n, at) in chosen.iter().enumerate() {
            let entry = &mut entries[*at];
            let values = values(&entry.trial);
            let text = format!("rung {} of {}, trial {} of {}: {values}", i + 1, rounds.len(), n + 1, chosen.len());
            run.sink.emit(EventKind::Note { text });
            run.sink.clear();
            let rung = trial::run(run, &entry.trial, *round, &args.scalars)?;
            run.sink.emit(EventKind::Note { text: format!("{values}: {}", told(&rung)) });
            entry.rungs.push(rung);
        }
    }
    Ok(())
}

/// The trials that take part in round `i`, at most `n`, in the sweep's order.
fn go_on(entries: &[Entry], i: usize, n: usize) -> Vec<usize> {
    let mut at: Vec<usize> = (0..entries.len()).filter(|at| entries[*at].rungs.len() == i).collect();
    if i > 0 {
        at.retain(|at| entries[*at].rungs.last().is_some_and(|rung| rung.valid_loss.is_some()));
        at.sort_by(|a, b| compare(entries, *a, *b));
    }
    at.truncate(n);
    at.sort_unstable();
    at
}

/// All trials, those that went furthest first.
fn ranked(entries: &[Entry]) -> Vec<&Entry> {
    let mut at: Vec<usize> = (0..entries.len()).collect();
    at.sort_by(|a, b| entries[*b].rungs.len().cmp(&entries[*a].rungs.len()).then_with(|| compare(entries, *a, *b)));
    at.into_iter().map(|at| &entries[at]).collect()
}

fn compare(entries: &[Entry], a: usize, b: usize) -> std::cmp::Ordering {
    let none = Rung::default();
    let judged = |at: usize| (entries[at].rungs.last().unwrap_or(&none), entries[at].learning_rate, at);
    better(judged(a), judged(b))
}

fn values(trial: &Trial) -> String {
    let set = |(key, value): &(String, String)| format!("{}={value}", key.trim_start_matches("train."));
    trial.sets.iter().map(set).collect::<Vec<_>>().join(" ")
}

fn told(rung: &Rung) -> String {
    let Some(loss) = rung.valid_loss else { return format!("diverged before step {}", count(rung.step)) };
    let accuracy = rung.valid_accuracy.map_or(String::new(), |a| format!(", accuracy {:.1} %", a * 100.0));
    format!("valid loss {loss:.4}{accuracy} after {} of {} steps", count(rung.step), count(rung.total))
}

/// The command that runs the recipe with the trial's values.
fn command(settings: &Settings, recipe: &str, trial: &Trial) -> String {
    let mut words = vec![format!("limbeck run {recipe}")];
    if settings.runs_dir != Path::new("runs") {
        words.push(format!("--runs-dir {}", shell(&settings.runs_dir)));
    }
    let sets = settings.sets.iter().chain(&trial.sets);
    words.extend(sets.map(|(key, value)| format!("--set {}", shell_word(&format!("{key}={value}")))));
    words.join(" ")
}

fn as_json(run: &Run<'_>, ranked: &[&Entry], rounds: &[Round], command: &str) -> Value {
    let trial = |entry: &&Entry| {
        let last = entry.rungs.last();
        json!({
            "name": entry.trial.name,
            "set": entry.trial.sets.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>(),
            "learning_rate": entry.learning_rate,
            "rung": entry.rungs.len(),
            "step": last.map(|rung| rung.step),
            "total": last.map(|rung| rung.total),
            "valid_loss": last.and_then(|rung| rung.valid_loss),
            "valid_accuracy": last.and_then(|rung| rung.valid_accuracy),
            "wall_ms": entry.rungs.iter().map(|rung| rung.wall_ms).sum::<u64>(),
            "run": trial::dir(run, &entry.trial),
        })
    };
    json!({
        "run": run.dir,
        "chosen_by": "loss on the valid split; ties go to the smaller learning rate; the test split is not read",
        "rungs": rounds,
        "trials": ranked.iter().map(trial).collect::<Vec<_>>(),
        "best": ranked.first().map(|entry| entry.trial.name.clone()),
        "command": command,
    })
}

fn table(ranked: &[&Entry], rounds: &[Round], command: &str, path: &Path) -> String {
    let terminal = Terminal::of_stdout();
    let keys = ranked.first().map_or(Vec::new(), |entry| {
        entry.trial.sets.iter().map(|(key, _)| key.trim_start_matches("train.").to_owned()).collect()
    });
    let head = ["rung", "steps", "valid loss", "accuracy", "time"].map(str::to_owned);
    let mut rows: Vec<Vec<String>> = vec![keys.into_iter().chain(head).collect()];
    for entry in ranked {
        let last = entry.rungs.last();
        let of = |f: &dyn Fn(&Rung) -> String| last.map_or(String::new(), f);
        let mut row: Vec<String> = entry.trial.sets.iter().map(|(_, value)| value.clone()).collect();
        row.push(format!("{} of {}", entry.rungs.len(), rounds.len()));
        row.push(of(&|rung| format!("{}/{}", count(rung.step), count(rung.total))));
        row.push(of(&|rung| rung.valid_loss.map_or("diverged".to_owned(), |loss| format!("{loss:.4}"))));
        row.push(of(&|rung| rung.valid_accuracy.map_or(String::new(), |a| format!("{:.1} %", a * 100.0))));
        row.push(duration(entry.rungs.iter().map(|rung| rung.wall_ms).sum()));
        rows.push(row);
    }
    let columns = rows[0].len();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::from("Chosen by loss on the valid split; the test split was not read.\n\n");
    for (i, row) in rows.iter().enumerate() {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:>width$}")).collect();
        text.push_str(&format!("  {}{}\n", cells.join("  "), if i == 1 { " *" } else { "" }));
    }
    text.push_str(&format!("  * the best; all of it in {}\n", path.display()));
    text.push_str(&format!("\n{}\n  {command}\n", bold(&terminal, "Use it")));
    text
}
