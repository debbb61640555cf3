//! What goes by the kind of task: keys, gates and metrics that belong to one kind, and the schema that an extraction names.

use crate::error::{RecipeError, RecipeErrors};
use crate::read::Reader;
use crate::resolve::{Origin, Resolved};
use crate::schema::{FIELDS, Field, GATES, METRICS_OF, Need};
use crate::source::Place;
use limbeck_artifact::schema::Schema;
use std::path::Path;
use toml::Value;

type Get<'a> = &'a dyn Fn(&str) -> Option<Value>;

/// A schema is a page or two; anything longer is another file.
const MAX_BYTES: u64 = 1 << 20;

/// The task's kind, as far as the recipe says one that there is.
pub(crate) fn of(get: Get<'_>) -> Option<String> {
    get("task.kind").and_then(|kind| kind.as_str().map(str::to_owned))
}

/// What every answer of a generation must be.
const TEXT: &str = r#"{"type": "string"}"#;

/// What a task whose answers are written is called, with its article; none where answers are labels.
pub(crate) fn written(get: Get<'_>) -> Option<&'static str> {
    match of(get)?.as_str() {
        "extract" => Some("an extraction"),
        "generate" => Some("a generation"),
        _ => None,
    }
}

/// A schema as it was written and as it is understood.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaFile {
    pub text: String,
    pub schema: Schema,
}

/// What was asked for that is of another kind: the key at fault, what is wrong, the cure.
pub(crate) fn misplaced(get: Get<'_>) -> Vec<(&'static str, String, &'static str)> {
    let Some(kind) = of(get) else { return Vec::new() };
    let mut found = Vec::new();
    for field in FIELDS {
        let others = match field.need {
            Need::Of(other) => &[other][..],
            Need::OptionalOf(others) => others,
            _ => continue,
        };
        if !others.contains(&kind.as_str()) && get(field.key).is_some() {
            let others = others.join(" or ");
            let message = format!("`{}` is for tasks of kind {others}, and `task.kind` is \"{kind}\"", field.key);
            found.push((field.key, message, "take it out, or change `task.kind`"));
        }
    }
    let labels = get("task.labels").and_then(|labels| labels.as_array().cloned()).unwrap_or_default();
    for key in ["eval.out_of_scope", "eval.ranking.positive"] {
        let Some(name) = get(key).and_then(|name| name.as_str().map(str::to_owned)) else { continue };
        if !labels.is_empty() && !labels.iter().any(|label| label.as_str() == Some(&name)) {
            let message = format!("`{key}` is \"{name}\", which is none of the labels");
            found.push((key, message, "name one of `task.labels`"));
        }
    }
    let Some(called) = written(get) else { return found };
    if get("train.metric_for_best_model").is_some_and(|m| m.as_str() == Some("accuracy")) {
        let message = "`train.metric_for_best_model` is \"accuracy\", which a look tells of labels only".to_owned();
        found.push(("train.metric_for_best_model", message, "set it to \"loss\""));
    }
    if get("train.head").is_some_and(|head| head.as_str() == Some("classification")) {
        let message = format!("`train.head` is \"classification\", and {called} has no labels for it");
        found.push(("train.head", message, "leave it out: answers in words come from the model's own head"));
    }
    found
}

/// Gates that ask of one kind what only another has.
pub(crate) fn gates(reader: &Reader, get: Get<'_>) -> Vec<RecipeError> {
    let Some(kind) = of(get) else { return Vec::new() };
    let known = METRICS_OF.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, metrics)| metrics);
    let mut errors = Vec::new();
    for gate in reader.of(&GATES) {
        let place = |key: &str| gate.fields.get(key).map(|given| given.place.clone());
        if let Some(metric) = gate.text("metric").filter(|m| !known.contains(m)) {
            let message = format!("the metric {metric} is not of tasks of kind {kind}");
            errors.push(RecipeError::new(message, place("metric")).hint(format!("take one of {}", known.join(", "))));
        }
        if gate.text("kind") == Some("cell") {
            errors.extend(no_labels(&place, get, ["gold", "predicted"].map(|key| (key, gate.text(key)))));
        }
        if kind != "generate" && gate.text("kind") == Some("judge") {
            let message = "a gate of kind judge compares texts, and `task.kind` is not \"generate\"";
            errors.push(RecipeError::new(message, place("kind")).hint("ask for kind = \"non_inferiority\""));
        }
        if written(get).is_none() && gate.text("kind") == Some("pii_canary") {
            let message = "a gate of kind pii_canary asks what is written, and a label can't hold a secret";
            errors.push(RecipeError::new(message, place("kind")).hint("ask for kind = \"injection_canary\""));
        }
        let Some(called) = written(get) else { continue };
        if let Some(of_labels @ ("per_class_recall" | "cell")) = gate.text("kind") {
            let message = format!("a gate of kind {of_labels} asks for labels, and {called} has none");
            let hint = "ask for a floor under exact_match or validity";
            errors.push(RecipeError::new(message, place("kind")).hint(hint));
        }
        if gate.fields.contains_key("max_kl") {
            let message = format!("`max_kl` is about posteriors over labels, and {called} has none");
            errors
                .push(RecipeError::new(message, place("max_kl")).hint("leave it out: answers are compared as a whole"));
        }
        for key in ["over", "against"] {
            if gate.text(key) == Some("linear") {
                let message = format!("the arm linear picks labels, and {called} has none");
                errors.push(RecipeError::new(message, place(key)).hint("compare with frontier or base"));
            }
        }
    }
    errors
}

/// What a cell names that is none of the task's labels.
fn no_labels(
    place: &dyn Fn(&str) -> Option<Place>,
    get: Get<'_>,
    named: [(&'static str, Option<&str>); 2],
) -> Vec<RecipeError> {
    let labels = get("task.labels").and_then(|labels| labels.as_array().cloned()).unwrap_or_default();
    let known = |name: &str| labels.iter().any(|label| label.as_str() == Some(name));
    let mut errors = Vec::new();
    if labels.is_empty() {
        return errors;
    }
    for (key, name) in named.iter().filter_map(|(key, name)| Some((*key, (*name)?))) {
        if !known(name) {
            let message = format!("the cell's `{key}` is \"{name}\", which is none of the labels");
            errors.push(RecipeError::new(message, place(key)).hint("name one of `task.labels`"));
        }
    }
    if let [(_, Some(gold)), (_, Some(predicted))] = named
        && gold == predicted
    {
        let message = format!("the cell's `gold` and `predicted` are both \"{gold}\", which is no mistake");
        errors.push(RecipeError::new(message, place("predicted")).hint("ask for a floor under its recall instead"));
    }
    errors
}

/// The default of a gate's key where it is another under this kind of task.
pub(crate) fn gate_default(field: &Field, kind: Option<&str>) -> Option<Value> {
    let metric = match kind? {
        "extract" => "exact_match",
        "generate" => "rouge_l",
        _ => return None,
    };
    (field.key == "metric").then(|| Value::String(metric.to_owned()))
}

/// Reads the schema that an extraction names; a generation has one of its own.
///
/// # Errors
/// Where it lies in the recipe, with what is wrong with the file.
pub(crate) fn read_schema(resolved: &Resolved) -> Result<Option<SchemaFile>, RecipeErrors> {
    if resolved.recipe.task.kind == "generate" {
        let schema = Schema::parse(TEXT).map_err(|e| RecipeError::new(format!("the schema of a text: {e}"), None))?;
        return Ok(Some(SchemaFile { text: TEXT.to_owned(), schema }));
    }
    let Some(path) = &resolved.recipe.task.schema else { return Ok(None) };
    let failed = |what: String, hint: &str| RecipeError::new(what, named_at(resolved)).hint(hint);
    let text = text(path).map_err(|e| {
        let hint =
            "write the answer's JSON Schema there, or name another file; `limbeck init NAME --fields a,b` makes one";
        failed(format!("`task.schema` names {}, which can't be read: {e}", path.display()), hint)
    })?;
    let schema = Schema::parse(&text).map_err(|e| {
        let hint = "an object of plain fields is understood: strings, numbers, booleans, enums, and lists of them";
        failed(format!("the schema {} can't be used: {e}", path.display()), hint)
    })?;
    if schema.is_text() {
        let what = format!("the schema {} asks for a text, and an extraction for an object of fields", path.display());
        return Err(failed(what, "name the fields, or set `task.kind = \"generate\"` and leave the schema out").into());
    }
    if resolved.recipe.task.constrained == Some(true) {
        schema.grammar("").map_err(|e| {
            let hint =
                "mend it, or set `task.constrained = false`: answers are then checked only once they are written";
            failed(format!("answers can't be kept to the schema {} while they are written: {e}", path.display()), hint)
        })?;
    }
    Ok(Some(SchemaFile { text, schema }))
}

fn text(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > MAX_BYTES {
        return Err(std::io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
    }
    std::fs::read_to_string(path)
}

/// The line of the recipe that names the schema.
fn named_at(resolved: &Resolved) -> Option<Place> {
    let Some(Origin::File { line, .. }) = resolved.origins.get("task.schema") else { return None };
    let text = &resolved.source.text;
    let start = text.split_inclusive('\n').take(line - 1).map(str::len).sum::<usize>();
    let whole = text[start..].lines().next().unwrap_or("");
    let indent = whole.len() - whole.trim_start().len();
    Some(resolved.source.at(start + indent..start + whole.trim_end().len()))
}
