//! `limbeck data lineage`: a row's way back to the line of the log and to the people who decided; of a trace that is no
//! row, the stage that left it out and why.

use super::Place;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::Settings;
use crate::stages::cannot;
use limbeck_artifact::dataset::{Example, LabelSource, Split, each_row};
use limbeck_artifact::untrusted::visible_line;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// A shorter beginning of an id names too many rows.
const PREFIX: usize = 6;

pub fn lineage(settings: &Settings, place: &Place, row: &str, decisions: &[PathBuf]) -> Result<Exit> {
    let card = place.checked()?;
    let mut found: Vec<(Split, Example)> = Vec::new();
    for split in Split::ALL {
        for example in each_row(&place.dir, split)? {
            let example = example?;
            let by_id = row.len() >= PREFIX && example.id.starts_with(&row.to_lowercase());
            if by_id || example.trace.id == row {
                found.push((split, example));
            }
        }
    }
    let left_out = left_out(place, row)?;
    if found.is_empty() && left_out.is_empty() {
        let message = format!("no row and no trace is called {}", visible_line(row));
        let help = format!("give a row's id (its first {PREFIX} digits or more) or a trace's id, as reports name them");
        return Err(Failure::new(Exit::Unexpected, message).help(help));
    }
    let mut told = Vec::new();
    for (split, example) in &found {
        let about = decisions_on(place, &example.trace.id, decisions)?;
        let source = card.sources.get(&example.trace.file);
        told.push(json!({"split": split.name(), "row": example, "source_sha256": source, "decisions": about}));
    }
    if settings.json {
        output::json(&json!({"rows": told, "left_out": left_out}))?;
        return Ok(Exit::Ok);
    }
    let mut text = String::new();
    for ((split, example), told) in found.iter().zip(&told) {
        text.push_str(&row_text(*split, example, told));
    }
    for line in &left_out {
        text.push_str(&left_out_text(line));
    }
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn row_text(split: Split, row: &Example, told: &Value) -> String {
    let at = |key: &str| told[key].as_str().map_or("unknown".to_owned(), |s| output::short(s).to_owned());
    let mut text = format!("row {} of {}\n", row.id, split.name());
    let mut line = |key: &str, value: String| text.push_str(&format!("  {key:<10} {}\n", visible_line(&value)));
    line("target", row.target.clone());
    let who = match row.label_source {
        LabelSource::Human => format!("a person, weight {}", row.weight),
        LabelSource::Teacher => format!("the recorded model, unreviewed, weight {}", row.weight),
    };
    line("label of", who);
    line(
        "trace",
        format!("{}, {} line {} (SHA-256 {})", row.trace.id, row.trace.file, row.trace.line, at("source_sha256")),
    );
    let model = if row.recorded.model.is_empty() { "an unnamed model" } else { &row.recorded.model };
    let when = row.recorded.at.as_deref().unwrap_or("an unknown time");
    line("recorded", format!("{:?} by {model} at {when}", row.recorded.answer));
    if let Some(feedback) = &row.recorded.feedback {
        line("feedback", feedback.clone());
    }
    line("group", row.group.clone());
    let decisions = told["decisions"].as_array().cloned().unwrap_or_default();
    for decision in &decisions {
        let text = |key: &str| decision[key].as_str().unwrap_or_default().to_owned();
        let stands = if decision["id"].as_str() == row.decision.as_deref() { ", which stands" } else { "" };
        let label = decision["label"].as_str().map(|l| format!(" to {l}")).unwrap_or_default();
        let note = decision["note"].as_str().map(|n| format!(": {n}")).unwrap_or_default();
        line(
            "decision",
            format!(
                "{} {}{label} by {} at {}{note}{stands}",
                text("id"),
                text("verdict"),
                text("reviewer"),
                text("at")
            ),
        );
    }
    if decisions.is_empty()
        && let Some(id) = &row.decision
    {
        line("decision", format!("{id}, in a file that is not here (name it with --decisions)"));
    }
    text
}

fn left_out_text(line: &Value) -> String {
    let text = |key: &str| line[key].as_str().map(visible_line).unwrap_or_default();
    let like = line["like"].as_str().map(|l| format!(", like {}", visible_line(l))).unwrap_or_default();
    let note = line["note"].as_str().map(|n| format!(" ({})", visible_line(n))).unwrap_or_default();
    format!(
        "trace {}, {} line {}\n  left out   by {}: {}{like}{note}\n",
        text("id"),
        text("file"),
        line["line"],
        text("stage"),
        text("reason").replace('_', " ")
    )
}

/// Where the run's logs name the trace.
fn left_out(place: &Place, trace: &str) -> Result<Vec<Value>> {
    let mut out = Vec::new();
    let Some(run) = &place.run else { return Ok(out) };
    for stage in ["curate", "review"] {
        each_line(&run.join(stage).join("left_out.jsonl"), |mut line| {
            if line["id"] == trace {
                line["stage"] = json!(stage);
                out.push(line);
            }
        })?;
    }
    Ok(out)
}

fn decisions_on(place: &Place, trace: &str, more: &[PathBuf]) -> Result<Vec<Value>> {
    let mut files: Vec<PathBuf> = place.decisions.iter().chain(more).cloned().collect();
    if let Some(run) = &place.run
        && let Ok(entries) = std::fs::read_dir(run.join("review"))
    {
        let own = entries.flatten().map(|e| e.path());
        files.extend(own.filter(|p| {
            let name = p.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("decisions") && name.ends_with(".jsonl")
        }));
    }
    files.sort();
    files.dedup();
    let mut out = Vec::new();
    for file in &files {
        each_line(file, |line| {
            if line["item"] == trace {
                out.push(line);
            }
        })?;
    }
    out.sort_by_key(|d| d["at"].as_str().unwrap_or_default().to_owned());
    Ok(out)
}

/// A file that is not there has no lines; a line that is no JSON is passed over: its reader complains of it.
fn each_line(path: &Path, mut with: impl FnMut(Value)) -> Result<()> {
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(cannot("read", path, &e)),
    };
    for line in BufReader::new(file).lines() {
        let line = line.map_err(|e| cannot("read", path, &e))?;
        if let Ok(value) = serde_json::from_str(&line) {
            with(value);
        }
    }
    Ok(())
}
