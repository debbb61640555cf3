//! `limbeck data export`: rows as other trainers read them.

use super::Place;
use super::args::Format;
use crate::exit::{Exit, Result};
use crate::output;
use crate::stages::cannot;
use limbeck_artifact::dataset::{Example, Message, Split, each_row};
use limbeck_artifact::files::AtomicFile;
use limbeck_data_curation::frozen::is_corrected;
use limbeck_tui::progress::count;
use serde_json::{Value, json};
use std::io::Write;
use std::path::Path;

pub fn export(place: &Place, format: Format, split: Split, out: Option<&Path>) -> Result<Exit> {
    place.checked()?;
    let mut file = out.map(|path| AtomicFile::create(path).map_err(|e| cannot("write", path, &e))).transpose()?;
    let (mut rows, mut written) = (0, 0);
    for row in each_row(&place.dir, split)? {
        let row = row?;
        rows += 1;
        let Some(value) = line(format, &row) else { continue };
        written += 1;
        match &mut file {
            Some(file) => writeln!(file, "{value}")?,
            None if !output::stdout_while_read(&format!("{value}\n"))? => return Ok(Exit::Ok),
            None => {}
        }
    }
    if let (Some(file), Some(path)) = (file, out) {
        file.commit().map_err(|e| cannot("write", path, &e))?;
    }
    let from = format!("{} of {} {} rows", count(written), count(rows), split.name());
    let why = if format == Format::Dpo { " (those whose recorded answer a person replaced)" } else { "" };
    output::stderr(&format!("{from} written{why}\n"));
    Ok(Exit::Ok)
}

fn line(format: Format, row: &Example) -> Option<Value> {
    match format {
        Format::Chat => {
            let turns: Vec<Message> = row.messages.iter().cloned().chain([row.answer()]).collect();
            Some(json!({"messages": turns}))
        }
        Format::Dpo => is_corrected(row).then(|| {
            let rejected = Message::new("assistant", &row.recorded.answer);
            json!({"prompt": row.messages, "chosen": [row.answer()], "rejected": [rejected]})
        }),
    }
}
