//! Rationales, as a training takes them: those of the recipe's files that are of train rows, and a count of the others by reason.

use super::{Run, digests, named};
use crate::exit::Result;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_data_curation::rationales::rationales;
use limbeck_data_curation::redact::RedactOptions;
use limbeck_trainer::Rationales;
use std::collections::BTreeMap;

/// What a training that learns rationales depends on beside its settings.
///
/// # Errors
/// When a file can't be read.
pub fn inputs(run: &Run<'_>) -> Result<BTreeMap<String, String>> {
    let asked = &run.recipe().distill;
    if !asked.explains() {
        return Ok(BTreeMap::new());
    }
    let files = digests(&named(&asked.rationales), false)?;
    Ok(files.into_iter().map(|(name, digest)| (format!("rationales/{name}"), digest)).collect())
}

/// What the training learns beside the answers; none of a recipe that names none.
///
/// # Errors
/// When a file or the dataset can't be read.
pub fn of(run: &Run<'_>, emit: &dyn Emit) -> Result<Option<Rationales>> {
    let (asked, data) = (&run.recipe().distill, &run.recipe().data);
    if !asked.explains() {
        return Ok(None);
    }
    let redaction = RedactOptions {
        patterns: data.redact_patterns.clone(),
        key: data.redact_key.as_deref().map(super::import::redact_key).transpose()?,
    };
    let found = rationales(&named(&asked.rationales), &run.dataset_dir(), data.redact.then_some(&redaction))?;
    let counted = |what: &str, n, reason: &str| {
        emit.emit(EventKind::Counted { what: what.to_owned(), n, reason: reason.to_owned() });
    };
    counted("rationales", found.summary.kept, "");
    found.summary.left_out.iter().for_each(|(reason, n)| counted("rationales left out", *n, reason));
    if found.summary.kept == 0 {
        let text = "no rationale is of a train row: a line names its row by `id` (the trace's or the row's) or by `message`, and has its \
                    text in `rationale`; a trace has it in `reasoning_content`";
        emit.emit(EventKind::Warning { text: text.to_owned() });
    }
    Ok(Some(Rationales { weight: asked.rationale_weight as f32, prompt: asked.rationale_prompt.clone(), of: found.of }))
}
