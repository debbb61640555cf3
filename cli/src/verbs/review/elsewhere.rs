//! `limbeck review --export` and `--import`: the queue on its way to Label Studio or Argilla and back.

use crate::args::Tool;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::{Settings, recipe_arg, shell};
use crate::stages::{Run, cannot, review as stage};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::journal;
use limbeck_data_curation::review::exchange::{self, Format};
use limbeck_data_curation::review::store::{self, Stream};
use limbeck_data_curation::review::{Item, Queue};
use limbeck_tui::review::REASONS;
use serde_json::json;
use std::path::Path;

pub fn export(settings: &Settings, run: &Run<'_>, queue: &Queue, path: &Path, tool: Tool) -> Result<Exit> {
    let (decisions, _) = store::open(&stage::decisions_dir(run), &run.recipe().review.decisions)?;
    let open: Vec<&Item> = queue.open(&decisions);
    let format = match tool {
        Tool::LabelStudio => Format::LabelStudio,
        Tool::Argilla => Format::Argilla,
    };
    let list = exchange::export(open.iter().copied(), &queue.answers, format);
    let text = serde_json::to_string_pretty(&list)? + "\n";
    write_atomic(path, text.as_bytes()).map_err(|e| cannot("write", path, &e))?;
    let config = path.with_extension("config.xml");
    let mut made = vec![path];
    if tool == Tool::LabelStudio {
        let xml = exchange::label_studio_config(&queue.answers, &REASONS);
        write_atomic(&config, xml.as_bytes()).map_err(|e| cannot("write", &config, &e))?;
        made.push(&config);
    }
    if settings.json {
        output::json(&json!({"items": open.len(), "files": made}))?;
        return Ok(Exit::Ok);
    }
    let advice = match tool {
        Tool::LabelStudio => format!("give the project the labelling configuration of {}", config.display()),
        Tool::Argilla if queue.answers.fields().is_some() => {
            let what =
                if queue.answers.fields().is_some_and(|f| f.schema.is_text()) { "" } else { " (the answer as JSON)" };
            format!(
                "give the dataset a text field `text` and text questions `label`{what}, `reject` and `note` (none required), \
                 then records.from_json"
            )
        }
        Tool::Argilla => {
            "give the dataset a text field `text`, a label question `label` and text questions `reject` and \
                          `note` (not required), then records.from_json"
                .to_owned()
        }
    };
    output::stdout(&format!(
        "{} open items in {}; {advice}\n\nWhen they are answered\n  limbeck review {} --import FILE.json\n",
        open.len(),
        path.display(),
        recipe_arg(&run.resolved)
    ))?;
    Ok(Exit::Ok)
}

pub fn import(settings: &Settings, run: &Run<'_>, queue: &Queue, path: &Path) -> Result<Exit> {
    let dir = stage::decisions_dir(run);
    let (decisions, _) = store::open(&dir, &run.recipe().review.decisions)?;
    let text = std::fs::read_to_string(path).map_err(|e| cannot("read", path, &e))?;
    let now = journal::now();
    let imported = exchange::import(&text, queue, &decisions, &now)
        .map_err(|why| Failure::new(Exit::Unexpected, format!("failed to read {}: {why}", path.display())))?;
    let mut taken = 0;
    for (reviewer, list) in &imported.decisions {
        let mut stream = Stream::new(&dir, reviewer, &now);
        for decision in list {
            stream.append(decision)?;
            taken += 1;
        }
    }
    if settings.json {
        let reviewers: Vec<&String> = imported.decisions.keys().collect();
        output::json(&json!({
            "taken": taken, "known": imported.known, "left_out": imported.left_out, "reviewers": reviewers,
        }))?;
        return Ok(Exit::Ok);
    }
    let mut text = format!("{taken} judgements of {} reviewers taken from {}\n", imported.decisions.len(), shell(path));
    if imported.known > 0 {
        text.push_str(&format!("  {} were known already\n", imported.known));
    }
    for (why, n) in &imported.left_out {
        text.push_str(&format!("  {n} left out: {why}\n"));
    }
    text.push_str(&format!("\nNext\n  limbeck review {} --tally\n", recipe_arg(&run.resolved)));
    output::stdout(&text)?;
    Ok(Exit::Ok)
}
