//! Import: trace files into `import/`.

use super::{Finished, Run, Work, digests, named};
use crate::exit::{Exit, Failure, Result};
use crate::settings::{recipe_arg, shell};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::{EventKind, Stage};
use limbeck_data_curation::import::MAX_LINE_BYTES;
use limbeck_data_curation::redact::measure::measure;
use limbeck_data_curation::redact::{RedactOptions, Redactor};
use limbeck_data_curation::{ImportPlan, ImportSummary, import};
use std::path::Path;

pub fn run(run: &Run<'_>) -> Result<Finished<ImportSummary>> {
    let recipe = run.recipe();
    let traces = named(&recipe.data.traces);
    if let Some(missing) = traces.iter().find(|f| !f.path.is_file()) {
        let message = format!("there are no traces at {}", missing.path.display());
        let help = format!(
            "put them there, or name others: --set 'data.traces=[\"…\"]' (see `limbeck explain {}`)",
            recipe_arg(&run.resolved)
        );
        return Err(Failure::new(Exit::Unexpected, message).help(help));
    }
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
        let summary = import(&plan, emit)?;
        if redact {
            let text = measure(&Redactor::new().map_err(limbeck_data_curation::Error::from)?, 299, 1).sentence();
            emit.emit(EventKind::Note { text });
        }
        let rejected: u64 = summary.rejected.values().sum();
        Ok(Work {
            line: format!("{} traces accepted, {rejected} rejected", summary.accepted),
            outputs: ["import/accepted.parquet", "import/rejected.jsonl", "import/import.json"]
                .map(String::from)
                .to_vec(),
            summary,
        })
    })
}

/// A shorter one could be guessed, and with it every telephone number.
const KEY_MIN_BYTES: usize = 16;

fn redact_key(path: &Path) -> Result<Vec<u8>> {
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
