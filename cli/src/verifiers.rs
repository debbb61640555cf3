//! What a teacher's answer must pass before anybody learns from it, and which of several draws is the answer: the same for a live
//! teacher, for a batch and for a local one that writes.

use crate::live::Task;
use limbeck_data_curation::taxonomy::Fields;
use limbeck_distill::best::{Best, Draw, best_fields, best_label, best_text};
use limbeck_distill::endpoint::Codes;
use limbeck_eval::rouge_l;

/// The answer in canonical form, or the verifier that refuses it. `sent` is when the message was.
pub fn verified(
    task: &Task,
    codes: Option<&Codes>,
    fields: Option<&Fields>,
    (message, sent): (&str, Option<&str>),
    (text, cut_off): (&str, bool),
) -> Result<String, &'static str> {
    if text.trim().is_empty() {
        return Err("empty");
    }
    // Of a label nothing is missing where a model merely goes on talking.
    if fields.is_some() && cut_off {
        return Err("cut_off");
    }
    let answer = task.read(text, codes).ok_or(if fields.is_some() { "schema" } else { "outside_taxonomy" })?;
    match fields {
        Some(fields) if !fields.not_in(&answer, message, sent).is_empty() => Err("not_in_message"),
        _ => Ok(answer),
    }
}

/// What the draws say together.
pub fn best_of(task: &Task, draws: &[Draw]) -> Option<Best> {
    match task.schema() {
        None => best_label(draws),
        Some(schema) if schema.is_text() => best_text(draws, |a, b| rouge_l(a, b).f1),
        Some(schema) => best_fields(schema, draws),
    }
}
