//! Which settings a stage's result depends on: they go into its cache key, and no others do. Paths are left out, since
//! what they hold goes into the key as digests.

use crate::lock::is_locked;
use crate::resolve::Resolved;
use crate::schema::{self, Kind};
use limbeck_artifact::event::Stage;
use serde_json::{Map, Value};

/// What a training that learns from a teacher depends on beside its own settings.
const DISTILLED: &[&str] = &[
    "distill.lambda",
    "distill.temperature",
    "distill.exact_mass",
    "distill.divergence",
    "distill.divergence_alpha",
    "distill.divergence_beta",
    "distill.trust",
    "distill.on_policy",
    "distill.on_policy_after",
    "distill.on_policy_temperature",
    "distill.on_policy_divergence",
];

/// What a training depends on that writes answers itself.
const ON_POLICY: &[&str] = &["task.max_new_tokens", "distill.top_k"];
/// And one that matches its hidden states.
const MATCHED: &[&str] =
    &["distill.hidden_weight", "distill.hidden_layers", "distill.hidden_loss", "distill.attention_weight"];

/// And one that learns rationales.
const EXPLAINED: &[&str] =
    &["distill.rationale_weight", "distill.rationale_prompt", "data.redact", "data.redact_patterns"];

/// What a capture depends on beside its own settings where it is of tokens: what makes rows of them, and what is kept.
const TOLD: &[&str] = &["seed", "model.max_seq_length", "train.train_on", "distill.top_k", "distill.draws"];

/// What it depends on beside where the teacher writes answers.
const WRITTEN: &[&str] = &["task.max_new_tokens", "task.constrained", "distill.samples", "distill.min_agreement"];

/// Key prefixes a stage's result depends on.
fn prefixes(stage: Stage) -> &'static [&'static str] {
    match stage {
        Stage::Import => &["data.redact", "data.redact_patterns", "data.format", "data.map."],
        Stage::Curate => &[
            "seed",
            "task.labels",
            "data.min_chars",
            "data.max_chars",
            "data.near_dup_threshold",
            "data.drop",
            "data.balance",
            "data.split.",
        ],
        Stage::Review => &[
            "seed",
            "task.system",
            "review.min_reviewed.",
            "review.reviewers_per_item",
            "review.max_label_error",
            "distill.unreviewed_weight",
        ],
        Stage::Capture => &[
            "task.system",
            "model.device",
            "data.redact",
            "data.redact_patterns",
            "data.near_dup_threshold",
            "distill.trust",
        ],
        Stage::Train => &["seed", "model.max_seq_length", "model.device", "train."],
        Stage::Quantize => &[
            "name",
            "version",
            "quantize.formats",
            "quantize.imatrix",
            "quantize.imatrix_text_share",
            "quantize.imatrix_tokens",
            "quantize.rounding",
            "quantize.rounding_tokens",
            "quantize.target",
            "quantize.recover_epochs",
            "quantize.recover_learning_rate",
        ],
        Stage::Eval => &[
            "name",
            "version",
            "seed",
            "task.max_new_tokens",
            "task.constrained",
            "model.max_seq_length",
            "model.device",
            "data.notes",
            "quantize.ship",
            "eval.",
        ],
        Stage::Package => &[""],
        Stage::Promote => &["name", "version", "promote."],
    }
}

/// The settings of `stage` as one JSON object of dotted keys.
pub fn settings(resolved: &Resolved, stage: Stage) -> Value {
    // Without a teacher, how one would be learnt from is nothing that a training depends on.
    let distills = stage == Stage::Train && resolved.recipe.distill.is_asked();
    let written = resolved.recipe.task.kind != "classify";
    let on_policy = distills && resolved.recipe.distill.on_policy > 0.0;
    let answers = written && !resolved.recipe.distill.unlabeled.is_empty();
    let written_anew = match stage {
        Stage::Train if on_policy => ON_POLICY,
        Stage::Capture if answers => WRITTEN,
        _ => &[],
    };
    let own = match stage {
        Stage::Train if distills => DISTILLED,
        Stage::Capture if written => TOLD,
        _ => &[],
    };
    let distill = &resolved.recipe.distill;
    let only = |asked: bool, keys: &'static [&'static str]| if stage == Stage::Train && asked { keys } else { &[] };
    let (matched, explained) = (only(distill.matches_states(), MATCHED), only(distill.explains(), EXPLAINED));
    let wanted = |key: &str| {
        let mut prefixes = prefixes(stage).iter().chain(own).chain(written_anew).chain(matched).chain(explained);
        let told = stage == Stage::Promote || is_locked(key);
        told && prefixes.any(|p| if p.ends_with('.') || p.is_empty() { key.starts_with(p) } else { key == *p })
    };
    let is_path = |key: &str| {
        schema::find(key).is_some_and(|f| matches!(f.kind, Kind::Path | Kind::Paths { .. } | Kind::BaseModel))
    };
    let mut map = Map::new();
    for entry in resolved.entries().iter().filter(|e| wanted(&e.key) && !is_path(&e.key)) {
        map.insert(entry.key.clone(), serde_json::to_value(&entry.value).unwrap_or(Value::Null));
    }
    Value::Object(map)
}
