//! Recorded calls to ask an artifact again: a draw of them, redacted as the artifact's own rows were.

use crate::args::ReadingArgs;
use crate::exit::{Exit, Failure, Result};
use crate::stages::cannot;
use crate::stages::import::redact_key;
use crate::verbs::import::{named_files, reading_of};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::manifest::ArtifactManifest;
use limbeck_data_curation::import::each_call;
use limbeck_data_curation::redact::{RedactOptions, Redactor};
use limbeck_eval::SplitMix64;
use std::path::{Path, PathBuf};

/// A recorded call.
pub struct Call {
    pub messages: Vec<Message>,
    /// What was answered then.
    pub answer: String,
}

pub struct Calls {
    pub asked: Vec<Call>,
    pub seen: u64,
    pub rejected: u64,
}

impl Calls {
    /// # Errors
    /// When there is no call to ask about.
    pub fn some(self) -> Result<Calls> {
        if !self.asked.is_empty() {
            return Ok(self);
        }
        let message = format!("none of the {} records is a call with an answer", self.rejected);
        Err(Failure::new(Exit::Usage, message).help("`limbeck import FILES` says why, record by record"))
    }
}

/// A uniform draw of the calls, in their order (reservoir sampling): all of them where they are few.
///
/// # Errors
/// When a file can't be read.
pub fn draw(
    traces: &[PathBuf],
    reading: &ReadingArgs,
    redactor: Option<&Redactor>,
    limit: u64,
    seed: u64,
) -> Result<Calls> {
    let files = named_files(traces)?;
    let reading = reading_of(reading)?;
    let mut rng = SplitMix64::new(seed);
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let mut kept: Vec<(u64, Call)> = Vec::new();
    let mut seen = 0u64;
    let rejected = each_call(&files, &reading, redactor, |trace| {
        let call = Call { messages: trace.messages, answer: trace.answer };
        if kept.len() < limit {
            kept.push((seen, call));
        } else if let Some(place) = kept.get_mut(rng.below(seen as usize + 1)) {
            *place = (seen, call);
        }
        seen += 1;
        Ok(())
    })?;
    kept.sort_by_key(|(at, _)| *at);
    Ok(Calls { asked: kept.into_iter().map(|(_, call)| call).collect(), seen, rejected })
}

/// What replaces personal data.
#[derive(Default)]
pub struct Redaction {
    /// None where nothing is replaced.
    pub redactor: Option<Redactor>,
    /// What a person should know about it.
    pub told: Option<String>,
}

/// What replaced personal data in the rows that the artifact was made from, by the recipe that it carries: the recipe's own
/// patterns too. Nothing where it replaced nothing, or the caller wants nothing replaced.
///
/// # Errors
/// When the artifact's lock can't be read.
pub fn redactor(dir: &Path, manifest: &ArtifactManifest, no_redact: bool) -> Result<Redaction> {
    if no_redact {
        return Ok(Redaction::default());
    }
    let lock = manifest.file(dir, "recipe-lock")?;
    let text = std::fs::read_to_string(&lock).map_err(|e| cannot("read", &lock, &e))?;
    let bad = |why: String| Failure::new(Exit::Unexpected, format!("the recipe's lock can't be used: {why}"));
    let table: toml::Table = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
    let data = table.get("data").and_then(toml::Value::as_table);
    let value = |key: &str| data.and_then(|data| data.get(key));
    if value("redact").and_then(toml::Value::as_bool) == Some(false) {
        let told = Some("The recipe redacts nothing, so nothing is redacted here.".to_owned());
        return Ok(Redaction { redactor: None, told });
    }
    let texts = value("redact_patterns").and_then(toml::Value::as_array);
    let patterns: Vec<String> = texts.into_iter().flatten().filter_map(|p| Some(p.as_str()?.to_owned())).collect();
    let mut told = match patterns.len() {
        0 => None,
        n => Some(format!("Redacted with the recipe's {n} own pattern{} too.", if n == 1 { "" } else { "s" })),
    };
    let key = match value("redact_key").and_then(toml::Value::as_str).map(Path::new) {
        Some(path) if path.is_file() => Some(redact_key(path)?),
        Some(path) => {
            told = Some(format!(
                "The recipe's redaction key {} is not here: placeholders are numbers instead of keyed names.",
                path.display()
            ));
            None
        }
        None => None,
    };
    let redactor = Redactor::with(&RedactOptions { patterns, key }).map_err(bad)?;
    Ok(Redaction { redactor: Some(redactor), told })
}
