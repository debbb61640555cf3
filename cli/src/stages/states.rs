//! Hidden-state matching, as a training takes it: the teacher's decoder over the training's own ops, and which of its layers each
//! matched layer of the student goes with. A base that was carved tells; of any other, layers go together by their share of the depth.

use super::Run;
use super::capture::Teacher;
use crate::base::Base;
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_distill::tokenizer_digest;
use limbeck_model::config::DecoderConfig;
use limbeck_model::gguf::{GgufFile, Value};
use limbeck_model::ops::Ops;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_recipes::{Distill, HiddenLoss};
use limbeck_trainer::{Matched, StateLoss};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// What a training that matches states depends on beside its settings.
///
/// # Errors
/// When the teacher's files can't be read.
pub fn inputs(run: &Run<'_>) -> Result<BTreeMap<String, String>> {
    let teacher = teacher(&run.recipe().distill)?;
    Ok(teacher.map(|teacher| ("teacher".to_owned(), teacher.named.digest)).into_iter().collect())
}

fn teacher(asked: &Distill) -> Result<Option<Teacher>> {
    let model = asked.teacher.as_deref().filter(|_| asked.matches_states());
    model.map(|model| Teacher::find(model, asked.teacher_adapter.as_deref())).transpose()
}

/// That the two read the same tokens is told before anything is trained or captured.
///
/// # Errors
/// When they don't.
pub fn check(run: &Run<'_>) -> Result<()> {
    let Some(teacher) = teacher(&run.recipe().distill)? else { return Ok(()) };
    let base = run.base(&run.sink.stage(Stage::Train))?;
    same_tokens(base, &ChatTokenizer::open(&base.path)?, &teacher)
}

fn same_tokens(base: &Base, own: &ChatTokenizer, teacher: &Teacher) -> Result<()> {
    let theirs = teacher.tokenizer()?;
    if tokenizer_digest(own) == tokenizer_digest(&theirs) {
        return Ok(());
    }
    let message = format!(
        "states and attention are held against each other token by token, and {} ({} tokens) and its teacher {} ({} tokens) have \
         other vocabularies: they cut a text differently",
        base.name,
        own.vocab_size(),
        teacher.named.name,
        theirs.vocab_size()
    );
    Err(Failure::new(Exit::Unexpected, message).help(
        "carve the student without --merges, so that it keeps the whole vocabulary; or take distill.hidden_weight and attention_weight out: a teacher's \
         answers need no common tokenizer",
    ))
}

/// What the training matches; none of a recipe that doesn't.
///
/// # Errors
/// A teacher that can't be opened or reads other tokens; more layers than there are.
pub fn matched(
    run: &Run<'_>,
    base: &Base,
    tokenizer: &ChatTokenizer,
    ops: &Arc<dyn Ops>,
    emit: &dyn Emit,
) -> Result<Option<Matched>> {
    let asked = &run.recipe().distill;
    let Some(teacher) = teacher(asked)? else { return Ok(None) };
    same_tokens(base, tokenizer, &teacher)?;
    let (decoder, lora) = teacher.over(ops)?;
    let (own, theirs) = (&base.config, &decoder.config);
    let (n, of) = (own.num_hidden_layers, theirs.num_hidden_layers);
    if asked.hidden_layers > n {
        let message = format!("distill.hidden_layers is {}, and {} has {n} layers", asked.hidden_layers, base.name);
        return Err(Failure::new(Exit::Unexpected, message).help("ask for fewer, or for all with 0"));
    }
    let carved = carved_layers(&base.path)?.filter(|layers| is_of(layers, own, theirs));
    let how = match &carved {
        Some(_) => "as it was carved",
        None => "at the same share of the depth",
    };
    let all = carved.unwrap_or_else(|| evenly(n, of));
    let top = n - turbo(run.recipe().train.turbo_layers, n);
    let which = evenly(if asked.hidden_layers == 0 { n } else { asked.hidden_layers }, n);
    // What lies below the adapted layers never changes.
    let layers: Vec<(usize, usize)> = which.into_iter().filter(|own| *own >= top).map(|own| (own, all[own])).collect();
    let pairs: Vec<String> = layers.iter().map(|(own, theirs)| format!("{own}–{theirs}")).collect();
    let [what, are] = match (asked.hidden_weight > 0.0, asked.attention_weight > 0.0) {
        (true, true) => ["states and attention", "are"],
        (true, false) => ["states", "are"],
        (false, _) => ["attention", "is"],
    };
    let mut text =
        format!("{what} of layers {} {are} matched to those of {}, {how}", pairs.join(", "), teacher.named.name);
    if own.hidden_size != theirs.hidden_size && asked.hidden_weight > 0.0 {
        text.push_str(&format!(
            ", through maps of {} to {} that are learnt beside it",
            own.hidden_size, theirs.hidden_size
        ));
    }
    emit.emit(EventKind::Note { text });
    Ok(Some(Matched {
        teacher: decoder,
        lora,
        layers,
        loss: match asked.hidden_loss {
            HiddenLoss::Relative => StateLoss::Relative,
            HiddenLoss::Mse => StateLoss::Mse,
            HiddenLoss::Cosine => StateLoss::Cosine,
        },
        weight: asked.hidden_weight as f32,
        attention: asked.attention_weight as f32,
    }))
}

/// Layers that are adapted.
fn turbo(asked: usize, layers: usize) -> usize {
    if asked == 0 { layers } else { asked.min(layers) }
}

/// `n` of `of` layers: each the last of an equal share, so that the top one is among them.
fn evenly(n: usize, of: usize) -> Vec<usize> {
    (1..=n).map(|i| ((i * of + n / 2) / n.max(1)).clamp(1, of.max(1)) - 1).collect()
}

/// The layers that `limbeck carve` kept of what it was given; none of a file that it did not write.
fn carved_layers(base: &Path) -> Result<Option<Vec<usize>>> {
    if !base.is_file() {
        return Ok(None);
    }
    let file = GgufFile::open(base)?;
    let Some(Value::Array(list)) = file.get("limbeck.carve.layers") else { return Ok(None) };
    Ok(list.to_i64s().map(|layers| layers.into_iter().filter_map(|layer| layer.try_into().ok()).collect()))
}

/// Whether a model that was carved may have been carved out of one like the teacher.
fn is_of(layers: &[usize], own: &DecoderConfig, theirs: &DecoderConfig) -> bool {
    let alike = |c: &DecoderConfig| (c.hidden_size, c.num_attention_heads, c.num_key_value_heads, c.head_dim);
    layers.len() == own.num_hidden_layers
        && layers.is_sorted_by(|a, b| a < b)
        && layers.last().is_some_and(|last| *last < theirs.num_hidden_layers)
        && own.num_hidden_layers < theirs.num_hidden_layers
        && alike(own) == alike(theirs)
}

#[cfg(test)]
mod tests {
    use super::evenly;

    #[test]
    fn layers_are_spread_from_the_top_down() {
        assert_eq!(evenly(6, 30), [4, 9, 14, 19, 24, 29]);
        assert_eq!(evenly(4, 30), [7, 14, 22, 29]);
        assert_eq!(evenly(1, 6), [5]);
        assert_eq!(evenly(6, 6), [0, 1, 2, 3, 4, 5]);
        assert_eq!(evenly(3, 2), [0, 0, 1]);
    }
}
