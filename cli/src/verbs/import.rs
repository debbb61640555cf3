//! `limbeck import`: the traces of a recipe, of files by hand, or of a folder that grows.

use crate::args::{Import, ReadingArgs, ScalarArgs};
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, Terminal, bold};
use crate::progress::Sink;
use crate::settings::{Settings, shell};
use crate::stages::import::{files, reading};
use crate::stages::named;
use crate::verbs::run;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_data_curation::import::MAX_LINE_BYTES;
use limbeck_data_curation::import::watch::{INTERVAL, PATIENCE, Watch, WatchPlan};
use limbeck_data_curation::redact::RedactOptions;
use limbeck_data_curation::{ImportPlan, ImportSummary, NamedFile, Reading, import_as};
use limbeck_tui::progress::{bytes, count};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

pub fn import(settings: &Settings, args: &Import) -> Result<Exit> {
    if let Some(folder) = &args.watch {
        return watch(settings, args, folder);
    }
    if let [recipe] = args.what.as_slice()
        && is_recipe(recipe)
    {
        let mut settings = settings.clone();
        settings.sets.extend(args.reading.format.iter().map(|name| ("data.format".to_owned(), name.clone())));
        settings
            .sets
            .extend(args.reading.map.iter().map(|(field, column)| (format!("data.map.{field}"), column.clone())));
        return run::run(&settings, recipe, Stage::Import, &ScalarArgs::default());
    }
    by_hand(settings, args)
}

/// A folder with a recipe, or a TOML file. What is not there is taken for a recipe too: its error says what to do.
fn is_recipe(path: &Path) -> bool {
    let toml = path.extension().is_some_and(|e| e == "toml");
    toml || (path.is_dir() && path.join("recipe.toml").exists()) || (!path.exists() && path.extension().is_none())
}

/// How the files are to be read, from what was typed.
///
/// # Errors
/// A field that a trace has not.
pub fn reading_of(args: &ReadingArgs) -> Result<Reading> {
    reading(args.format.as_deref(), args.map.iter().map(|(field, column)| (field, column)))
}

/// The files that were named, with names that say something elsewhere.
///
/// # Errors
/// When one is not there.
pub fn named_files(paths: &[PathBuf]) -> Result<Vec<NamedFile>> {
    if let Some(missing) = paths.iter().find(|path| !path.exists()) {
        let message = format!("there is no file {}", missing.display());
        return Err(Failure::new(Exit::Usage, message).help("name trace files, or a folder of them"));
    }
    Ok(named(&files(paths)?))
}

fn by_hand(settings: &Settings, args: &Import) -> Result<Exit> {
    let reading = reading_of(&args.reading)?;
    let traces = named_files(&args.what)?;
    let sink = Sink::new(None, &Terminal::of_stderr());
    sink.be_brief();
    let size: u64 = traces.iter().filter_map(|f| std::fs::metadata(&f.path).ok()).map(|m| m.len()).sum();
    let begun = Instant::now();
    let (redact, redaction) = (!args.no_redact, RedactOptions::default());
    let plan = ImportPlan { traces, redact, redaction, max_line_bytes: MAX_LINE_BYTES, out: args.out.clone() };
    let summary = import_as(&plan, &reading, &sink);
    sink.clear();
    let (summary, seconds) = (summary?, begun.elapsed().as_secs_f64());
    if settings.json {
        let mut value = serde_json::to_value(&summary)?;
        value["out"] = json!(args.out);
        value["bytes"] = json!(size);
        value["wall_ms"] = json!((seconds * 1000.0).round());
        output::json(&value)?;
    } else {
        output::stdout(&told(&summary, &args.out, size, seconds))?;
    }
    Ok(Exit::Ok)
}

fn told(summary: &ImportSummary, out: &Path, size: u64, seconds: f64) -> String {
    let mut text = format!(
        "{} of {} records accepted, {} in {seconds:.1} s ({} records/s)\n",
        count(summary.accepted),
        count(summary.traces_in),
        bytes(size),
        count((summary.traces_in as f64 / seconds.max(1e-3)) as u64),
    );
    let mut line = |what: &str, value: String| text.push_str(&format!("  {what:<10} {value}\n"));
    let pairs = |map: &std::collections::BTreeMap<String, u64>| {
        map.iter().map(|(what, n)| format!("{what} {}", count(*n))).collect::<Vec<_>>().join(", ")
    };
    for (file, format) in &summary.formats {
        line("read", format!("{} as {format}", limbeck_tui::text::fit(file, 60)));
    }
    if !summary.rejected.is_empty() {
        line("rejected", pairs(&summary.rejected));
    }
    if !summary.redactions.is_empty() {
        line("redacted", pairs(&summary.redactions));
    }
    line("in", out.join("accepted.parquet").display().to_string());
    if !summary.rejected.is_empty() {
        line("why", out.join("rejected.jsonl").display().to_string());
    }
    let parquet = out.join("accepted.parquet");
    text.push_str(&format!("\n{}\n  limbeck audit {}\n", bold(&Terminal::of_stdout(), "Next"), shell(&parquet)));
    text
}

/// Looks until stopped. Being killed is the usual end: nothing is lost by it.
fn watch(settings: &Settings, args: &Import, folder: &Path) -> Result<Exit> {
    if !folder.is_dir() {
        let message = format!("there is no folder {}", folder.display());
        return Err(Failure::new(Exit::Usage, message).help("--watch names the folder that the logs are written to"));
    }
    let plan = WatchPlan {
        folder: folder.to_path_buf(),
        out: args.out.clone(),
        redact: !args.no_redact,
        max_line_bytes: MAX_LINE_BYTES,
        reading: reading_of(&args.reading)?,
        patience: PATIENCE,
    };
    let mut watch = Watch::open(plan)?;
    if !settings.json {
        let so_far = match watch.state.traces_in {
            0 => String::new(),
            n => format!("; {} records are there from before", count(n)),
        };
        let every = INTERVAL.as_secs();
        output::stderr(&format!(
            "watching {} every {every} s, into {}{so_far}; Ctrl-C stops it, the same command goes on\n",
            folder.display(),
            args.out.display()
        ));
    }
    let sink = Sink::new(None, &Terminal::of_stderr());
    let mut told = std::collections::BTreeSet::new();
    loop {
        let look = watch.look()?;
        for name in look.strange.iter().filter(|name| told.insert((*name).clone())) {
            let name = limbeck_tui::text::one_line(name);
            let text = format!("{name} is left out: JSON lines can be watched; import tables and documents by hand");
            sink.emit(EventKind::Warning { text });
        }
        let state = &watch.state;
        if look.accepted + look.rejected > 0 {
            let alive = if settings.json {
                let line = json!({
                    "segment": state.segments,
                    "accepted": look.accepted,
                    "rejected": look.rejected,
                    "bytes": look.bytes,
                    "accepted_in_all": state.accepted,
                    "traces_in": state.traces_in,
                    "waiting": state.waiting.len(),
                });
                output::stdout_while_read(&format!("{line}\n"))?
            } else {
                output::stdout_while_read(&format!(
                    "{} accepted, {} rejected, {} read ({} in all)\n",
                    count(look.accepted),
                    count(look.rejected),
                    bytes(look.bytes),
                    count(state.accepted)
                ))?
            };
            if !alive {
                return Ok(Exit::Ok);
            }
        }
        if look.more {
            continue;
        }
        if args.once {
            return Ok(Exit::Ok);
        }
        std::thread::sleep(INTERVAL);
    }
}
