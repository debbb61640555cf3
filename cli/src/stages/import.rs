//! Import: trace files into `import/`.

use super::{Finished, Run, Work, cannot, digests, named};
use crate::exit::{Exit, Failure, Result};
use crate::settings::{recipe_arg, shell};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{EventKind, Stage};
use limbeck_data_curation::import::MAX_LINE_BYTES;
use limbeck_data_curation::redact::measure::measure;
use limbeck_data_curation::redact::{RedactOptions, Redactor};
use limbeck_data_curation::trace::{Columns, Format};
use limbeck_data_curation::{ImportPlan, ImportSummary, Reading, import_as};
use std::path::{Path, PathBuf};

pub fn run(run: &Run<'_>) -> Result<Finished<ImportSummary>> {
    let recipe = run.recipe();
    if let Some(missing) = recipe.data.traces.iter().find(|path| !path.exists()) {
        let message = format!("there are no traces at {}", missing.display());
        let help = format!(
            "put them there, or name others: --set 'data.traces=[\"…\"]' (see `limbeck explain {}`)",
            recipe_arg(&run.resolved)
        );
        return Err(Failure::new(Exit::Unexpected, message).help(help));
    }
    let traces = named(&files(&recipe.data.traces)?);
    let reading = reading(Some(&recipe.data.format), recipe.data.map.iter())?;
    let mut inputs = digests(&traces, false)?;
    let key = recipe.data.redact_key.as_deref().map(redact_key).transpose()?;
    if let Some(key) = &key {
        inputs.insert("data.redact_key".to_owned(), sha256_hex(key));
    }
    run.stage(Stage::Import, inputs, |emit, _| {
        let out = run.folder(Stage::Import);
        let redaction = RedactOptions { patterns: recipe.data.redact_patterns.clone(), key };
        let (redact, max_line_bytes) = (recipe.data.redact, MAX_LINE_BYTES);
        let plan = ImportPlan { traces, redact, redaction, max_line_bytes, out };
        let summary = import_as(&plan, &reading, emit)?;
        if redact {
            let text = measure(&Redactor::new().map_err(limbeck_data_curation::Error::from)?, 299, 1).sentence();
            emit.emit(EventKind::Note { text });
        }
        Ok(Work {
            line: format!("{} traces accepted, {} rejected", summary.accepted, summary.rejects()),
            outputs: ["import/accepted.parquet", "import/rejected.jsonl", "import/import.json"]
                .map(String::from)
                .to_vec(),
            summary,
        })
    })
}

/// What a format's name and a mapping say. `auto` is no format.
///
/// # Errors
/// A field that a trace has not.
pub fn reading<'a>(format: Option<&str>, map: impl Iterator<Item = (&'a String, &'a String)>) -> Result<Reading> {
    let mut columns = Columns::default();
    for (field, column) in map {
        columns.set(field, column).map_err(|why| {
            Failure::new(Exit::Usage, format!("the mapping can't be used: {why}"))
                .help("for example --map input=question,output=answer")
        })?;
    }
    Ok(Reading { format: format.and_then(Format::named), columns })
}

/// Files as they are, and of folders the files in them: what a watcher accepted, or everything, in the order of names.
///
/// # Errors
/// When a folder can't be read, or holds none.
pub fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut out = Vec::new();
    for path in paths {
        if !path.is_dir() {
            out.push(path.clone());
            continue;
        }
        let found = in_folder(path).map_err(|e| cannot("look into", path, &e))?;
        if found.is_empty() {
            let message = format!("the folder {} holds no traces", path.display());
            return Err(Failure::new(Exit::Unexpected, message).help("name the files, or a folder that holds them"));
        }
        out.extend(found);
    }
    Ok(out)
}

fn in_folder(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let accepted = limbeck_data_curation::import::watch::segments(folder)?;
    if !accepted.is_empty() {
        return Ok(accepted);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if path.is_file() && !hidden {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// A shorter one could be guessed, and with it every telephone number.
const KEY_MIN_BYTES: usize = 16;

/// The key that makes a value's placeholder the same everywhere.
///
/// # Errors
/// When it can't be read or is too short.
pub fn redact_key(path: &Path) -> Result<Vec<u8>> {
    let make = format!("make one with: openssl rand -hex 32 > {0} && chmod 600 {0}", shell(path));
    let key = std::fs::read(path).map_err(|e| {
        Failure::new(Exit::Unexpected, format!("data.redact_key: {}: {e}", path.display())).help(make.clone())
    })?;
    let key = key.trim_ascii();
    if key.len() < KEY_MIN_BYTES {
        let message = format!("data.redact_key: {} holds {} bytes, fewer than 16", path.display(), key.len());
        return Err(Failure::new(Exit::Unexpected, message).help(make));
    }
    Ok(key.to_vec())
}
