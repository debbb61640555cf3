//! Defaults < file < `--set`: puts the three together, checks what no single key can check, and builds the plain
//! structs. Every value keeps its origin for `explain` and the lock.

use crate::arms;
use crate::error::{RecipeError, RecipeErrors};
use crate::kinds::{self, SchemaFile};
use crate::read::{GivenTable, Reader};
use crate::recipe::Recipe;
use crate::schema::{self, ARRAYS, Array, FIELDS, GATES, Need};
use crate::source::{Place, Source};
use crate::teachers;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// A recipe is short; anything longer is another file.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    Default,
    /// The default that goes with another setting, such as `train.method = full`.
    DefaultUnder {
        setting: String,
    },
    File {
        file: String,
        line: usize,
        column: usize,
    },
    Set {
        argument: String,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::DefaultUnder { setting } => write!(f, "default under {setting}"),
            Origin::File { file, line, .. } => write!(f, "{file}:{line}"),
            Origin::Set { .. } => f.write_str("--set"),
        }
    }
}

/// One resolved value: gates and arms have keys such as `eval.gate.NAME.min`.
#[derive(Clone, Debug)]
pub struct Entry {
    pub key: String,
    /// As written, before paths are made relative to the recipe's folder.
    pub value: Value,
    pub origin: Origin,
    pub doc: &'static str,
}

#[derive(Clone, Debug)]
pub struct Resolved {
    pub recipe: Recipe,
    /// The file it came from.
    pub path: PathBuf,
    pub source: Source,
    pub origins: BTreeMap<String, Origin>,
    /// What `task.schema` names, read and understood; none for other kinds, and in a text that was not loaded from disk.
    pub schema: Option<SchemaFile>,
    pub(crate) entries: Vec<Entry>,
}

impl Resolved {
    /// Every value, in the schema's order; arms and gates come last.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }
}

/// The recipe's file: `recipe.toml` for a folder, else the path itself.
pub fn locate(path: &Path) -> PathBuf {
    if path.is_dir() { path.join("recipe.toml") } else { path.to_owned() }
}

/// Reads and resolves the recipe at `path` (a file, or a folder that holds `recipe.toml`) under `sets`, in their order.
///
/// # Errors
/// Everything that is wrong with the file and the overrides, or the one reason why the file can't be read.
pub fn load(path: &Path, sets: &[(String, String)]) -> Result<Resolved, RecipeErrors> {
    let path = locate(path);
    let read = || -> std::io::Result<String> {
        if std::fs::metadata(&path)?.len() > MAX_BYTES {
            return Err(std::io::Error::other(format!("it is larger than {MAX_BYTES} bytes")));
        }
        std::fs::read_to_string(&path)
    };
    let text = read().map_err(|e| {
        RecipeError::new(format!("reading the recipe {}: {e}", path.display()), None)
            .hint("name a recipe folder or file, or write a new one with `limbeck init NAME`")
    })?;
    let mut resolved = load_text(&path, &text, sets)?;
    resolved.schema = kinds::read_schema(&resolved)?;
    Ok(resolved)
}

/// As [`load`], from a text that stands at `path`.
///
/// # Errors
/// Everything that is wrong with the text and the overrides.
pub fn load_text(path: &Path, text: &str, sets: &[(String, String)]) -> Result<Resolved, RecipeErrors> {
    let source = Source::new(&path.display().to_string(), text);
    let mut reader = Reader::default();
    reader.file(&source);
    if reader.errors.is_empty() || reader.errors.iter().all(|e| !e.message.starts_with("not TOML")) {
        for (key, value) in sets {
            reader.set(key, value);
        }
        missing(&mut reader, &source);
        across(&mut reader, &source);
    }
    if !reader.errors.is_empty() {
        let mut errors = reader.errors;
        // The file's in the order of its text, then the overrides' in theirs.
        errors.sort_by_key(|e| match &e.place {
            None => (0, 0),
            Some(p) if p.source.name == source.name => (1, p.span.start),
            Some(_) => (2, 0),
        });
        return Err(RecipeErrors { errors });
    }
    let entries = entries(&reader, &source);
    let mut recipe: Recipe = Value::Table(nested(&entries)).try_into().map_err(|e: toml::de::Error| {
        RecipeError::new(format!("building the recipe's plan: {}", e.message()), None)
            .hint("this is a bug in limbeck's schema; please report it")
    })?;
    recipe.rebase(path.parent().unwrap_or(Path::new("")));
    let origins = entries.iter().map(|e| (e.key.clone(), e.origin.clone())).collect();
    Ok(Resolved { recipe, path: path.to_owned(), source, origins, schema: None, entries })
}

fn missing(reader: &mut Reader, source: &Source) {
    // A key that is there but wrong has its own error.
    let reported: Vec<String> = reader.errors.iter().map(|e| e.message.clone()).collect();
    let is_reported = |key: &str| reported.iter().any(|m| m.starts_with(&format!("`{key}` ")));
    let kind = kinds::of(&|key| given_or_default(reader, key));
    let needed = |f: &&schema::Field| match f.need {
        Need::Required => true,
        Need::Of(of) => kind.as_deref() == Some(of),
        _ => false,
    };
    for field in FIELDS.iter().filter(needed) {
        let section = schema::parent(field.key);
        if reader.values.contains_key(field.key) || is_reported(field.key) || is_reported(section) {
            continue;
        }
        let name = field.key[section.len()..].trim_start_matches('.');
        let place = reader.sections.get(section).cloned();
        let file = if place.is_none() { format!("{}: ", source.name) } else { String::new() };
        let wanted = format!(
            "add `{name} = …` {}: {}",
            if section.is_empty() { "at the top".into() } else { format!("under [{section}]") },
            field.doc
        );
        let message = format!("{file}`{}` is missing, expected {}", field.key, field.kind.expects());
        reader.errors.push(RecipeError::new(message, place).hint(wanted));
    }
    let mut errors = Vec::new();
    for table in &reader.tables {
        let Some(kind) = table.kind() else { continue };
        for field in kind.fields.iter().filter(|f| f.need == Need::Required && !table.fields.contains_key(f.key)) {
            if is_reported(field.key) {
                continue;
            }
            let (one, name) = (table.array.one, kind.kind);
            let message = format!("{one} of kind {name} without `{}`, expected {}", field.key, field.kind.expects());
            errors.push(
                RecipeError::new(message, Some(table.place.clone()))
                    .hint(format!("add `{} = …`: {}", field.key, field.doc)),
            );
        }
    }
    reader.errors.extend(errors);
}

/// A key's value, with the defaults that depend on no other key.
fn given_or_default(reader: &Reader, key: &str) -> Option<Value> {
    reader.values.get(key).map(|given| given.value.clone()).or_else(|| schema::find(key)?.default())
}

/// A key's value as it will be resolved.
fn resolved(reader: &Reader, key: &str) -> Option<Value> {
    let given = |key: &str| given_or_default(reader, key);
    let under = || schema::find(key)?.default_under(&given).map(|(value, _)| value);
    reader.values.get(key).map(|given| given.value.clone()).or_else(under).or_else(|| schema::find(key)?.default())
}

/// What only several keys together can get wrong.
fn across(reader: &mut Reader, source: &Source) {
    let get = |key: &str| resolved(reader, key);
    let place = |keys: &[&str]| {
        keys.iter().find_map(|k| reader.values.get(*k)).map_or_else(|| source.at(0..0), |g| g.place.clone())
    };
    let mut errors = Vec::new();

    let splits = ["data.split.test", "data.split.calibration", "data.split.valid"];
    let held_out: f64 = splits.iter().filter_map(|k| get(k)?.as_float()).sum();
    if held_out > 0.95 {
        let message = format!(
            "valid, calibration and test together take {held_out:.2} of the rows, which leaves train too little"
        );
        errors.push(RecipeError::new(message, Some(place(&splits))).hint("keep their sum at 0.95 or less"));
    }
    let formats = get("quantize.formats").unwrap_or(Value::Array(Vec::new()));
    if let (Some(ship), Some(formats)) = (get("quantize.ship"), formats.as_array())
        && !formats.is_empty()
        && !formats.contains(&ship)
    {
        let message = format!("`quantize.ship` is {ship}, which is not among `quantize.formats`");
        let hint = format!("ship one of {}, or add {ship} to formats", Value::Array(formats.clone()));
        errors.push(RecipeError::new(message, Some(place(&["quantize.ship", "quantize.formats"]))).hint(hint));
    }
    let is = |key: &str, value: &str| get(key).is_some_and(|v| v.as_str() == Some(value));
    let mixes = formats.as_array().is_some_and(|formats| formats.iter().any(|f| f.as_str() == Some("mix")));
    if mixes != get("quantize.target").is_some() {
        let (message, hint) = match mixes {
            true => ("the format mix needs a size", "set `quantize.target`, for example to \"90MB\" or \"4.5bpw\""),
            false => ("`quantize.target` is the size of the format mix", "add \"mix\" to `quantize.formats`"),
        };
        errors.push(
            RecipeError::new(message.to_owned(), Some(place(&["quantize.target", "quantize.formats"]))).hint(hint),
        );
    }
    if get("quantize.imatrix_text").is_some()
        && !is("quantize.imatrix", "task")
        && !is("quantize.rounding", "compensated")
    {
        let message = "`quantize.imatrix_text` is mixed into the task's rows, and `quantize.imatrix` is not \"task\"";
        let hint = "set `quantize.imatrix` to \"task\" or `quantize.rounding` to \"compensated\", or leave `quantize.imatrix_text` out";
        errors.push(RecipeError::new(message, Some(place(&["quantize.imatrix_text"]))).hint(hint));
    }
    if let (Some(Value::Integer(min)), Some(Value::Integer(max))) = (get("data.min_chars"), get("data.max_chars"))
        && min > max
    {
        let message = format!("`data.min_chars` is {min}, more than `data.max_chars`, which is {max}");
        errors.push(RecipeError::new(message, Some(place(&["data.min_chars", "data.max_chars"]))).hint("swap them"));
    }
    if let Some(Value::String(base)) = get("model.base")
        && base.starts_with("hf:")
        && get("model.revision").is_none()
    {
        let message = format!("`model.base` is {base} without `model.revision`: a hub model changes under its name");
        let hint = "add `revision = \"…\"` with the commit of the model's repository";
        errors.push(RecipeError::new(message, Some(place(&["model.base"]))).hint(hint));
    }
    for (key, message, hint) in adapter_only(&get) {
        errors.push(RecipeError::new(message, Some(place(&[key]))).hint(hint));
    }
    for (key, message, hint) in kinds::misplaced(&get) {
        errors.push(RecipeError::new(message, Some(place(&[key]))).hint(hint));
    }
    for (key, message, hint) in teachers::misplaced(&get) {
        errors.push(RecipeError::new(message, Some(place(&[key]))).hint(hint));
    }
    errors.extend(kinds::gates(reader, &get));
    errors.extend(arms::check(reader, &get));
    errors.extend(certificate(reader, &get));
    let recipients = get("encrypt.recipients").unwrap_or(Value::Array(Vec::new()));
    for wrong in recipients.as_array().into_iter().flatten().filter_map(Value::as_str) {
        if let Err(why) = limbeck_artifact::encryption::check_recipient(wrong) {
            let message = format!("`encrypt.recipients`: {why}");
            let hint = "`limbeck keys identity` makes a key and prints its recipient, `limbeck keys recipient` prints it again";
            // A secret is not shown again.
            let shown = Some(place(&["encrypt.recipients"])).filter(|_| !wrong.starts_with("AGE-SECRET-KEY-"));
            errors.push(RecipeError::new(message, shown).hint(hint));
        }
    }
    if get("encrypt.identity").is_some() && recipients.as_array().is_none_or(Vec::is_empty) {
        let message = "`encrypt.identity` says who reads, and `encrypt.recipients` names nobody to encrypt for";
        let hint = "add `recipients = [\"age1…\"]` under [encrypt], or leave identity out";
        errors.push(RecipeError::new(message, Some(place(&["encrypt.identity"]))).hint(hint));
    }
    for (key, message, hint) in valid_split(&get) {
        errors.push(RecipeError::new(message, Some(place(&[key]))).hint(hint));
    }
    let schedule = ["train.decay_ratio", "train.warmup_ratio"];
    let shares: f64 = schedule.iter().filter_map(|k| get(k)?.as_float()).sum();
    if shares > 1.0 && get("train.lr_scheduler").is_some_and(|s| s.as_str() == Some("warmup_stable_decay")) {
        let message = format!("warm-up and decay together take {shares:.2} of the steps");
        errors.push(RecipeError::new(message, Some(place(&schedule))).hint("keep their sum at 1 or less"));
    }
    let says = |key: &str, value: &str| get(key).is_some_and(|v| v.as_str() == Some(value));
    if says("train.head", "classification") && says("train.train_on", "all_assistant") {
        let message = "`train.train_on` is \"all_assistant\", and a classification head answers the last turn only";
        let hint = "leave `train.train_on` out, or set `train.head` to \"verbalizer\"";
        errors.push(RecipeError::new(message, Some(place(&["train.train_on", "train.head"]))).hint(hint));
    }
    if says("train.head", "classification")
        && get("quantize.recover_epochs").and_then(|v| v.as_integer()).is_some_and(|epochs| epochs > 0)
    {
        let message =
            "`quantize.recover_epochs` trains on the answers' tokens, and a classification head spells no answer";
        let hint = "set quantize.recover_epochs to 0, or `train.head` to \"verbalizer\"";
        errors.push(RecipeError::new(message, Some(place(&["quantize.recover_epochs", "train.head"]))).hint(hint));
    }
    if get("train.bnb_4bit_use_double_quant").is_some_and(|v| v.as_bool() == Some(true))
        && !says("train.quantize_base", "nf4")
    {
        let message =
            "`train.bnb_4bit_use_double_quant` is about the scales of nf4, and `train.quantize_base` is not \"nf4\"";
        let places = place(&["train.bnb_4bit_use_double_quant", "train.quantize_base"]);
        errors.push(
            RecipeError::new(message, Some(places)).hint("set `train.quantize_base` to \"nf4\", or leave it out"),
        );
    }
    if let (Some(Value::String(kept)), Some(Value::String(device))) = (get("train.quantize_base"), get("model.device"))
        && kept != "none"
        && !device.starts_with("cpu")
    {
        let message =
            format!("`train.quantize_base` is {kept} and `model.device` is {device}, which has no such kernels");
        let hint = "leave `train.quantize_base` out, or train on the cpu";
        errors.push(RecipeError::new(message, Some(place(&["train.quantize_base", "model.device"]))).hint(hint));
    }
    for array in ARRAYS {
        let tables: Vec<&GivenTable> = reader.of(array).collect();
        for (i, table) in tables.iter().enumerate() {
            let Some(name) = table.text("name") else { continue };
            if tables[..i].iter().any(|g| g.text("name") == Some(name)) {
                let place = table.fields.get("name").map(|g| g.place.clone());
                let word = array.word;
                errors.push(
                    RecipeError::new(format!("two {word}s are called \"{name}\""), place)
                        .hint(format!("give each {word} its own name")),
                );
            }
        }
    }
    reader.errors.extend(errors);
}

/// Gates on a certificate that nobody asks for.
fn certificate(reader: &Reader, get: &dyn Fn(&str) -> Option<Value>) -> Vec<RecipeError> {
    if get("eval.escalation.max_error").is_some() {
        return Vec::new();
    }
    let asks = |gate: &&GivenTable| gate.text("kind") == Some("certified_coverage");
    let error = |gate: &GivenTable| {
        let message =
            "a gate of kind certified_coverage needs a certificate, and `eval.escalation.max_error` asks for none";
        let hint = "add `max_error = 0.05` under [eval.escalation]: the share of served answers that may be wrong";
        RecipeError::new(message, gate.fields.get("kind").map(|given| given.place.clone())).hint(hint)
    };
    reader.of(&GATES).filter(asks).map(error).collect()
}

/// What only an adapter can do, asked of a full fine-tuning: the key at fault, what is wrong, the cure.
fn adapter_only(get: &dyn Fn(&str) -> Option<Value>) -> Vec<(&'static str, String, &'static str)> {
    if get("train.method").is_none_or(|method| method.as_str() != Some("full")) {
        return Vec::new();
    }
    let asks = |(key, nothing): &&(&'static str, &str)| get(key).is_some_and(|value| value.to_string() != *nothing);
    let error = |(key, nothing): &(&'static str, &str)| {
        let message = format!("`{key}` is for adapters, and `train.method` is \"full\", which trains every weight");
        let hint = match *nothing {
            "0" | "0.0" => "set it to 0, or `train.method` to \"lora\"",
            _ => "set it to false, or `train.method` to \"lora\"",
        };
        (*key, message, hint)
    };
    schema::OF_ADAPTERS.iter().filter(asks).map(error).collect()
}

/// What goes by the valid split needs looks at it, and rows in it: the key at fault, what is wrong, the cure.
fn valid_split(get: &dyn Fn(&str) -> Option<Value>) -> Vec<(&'static str, String, &'static str)> {
    let patience = get("train.early_stopping_patience").and_then(|v| v.as_integer()).unwrap_or(0) > 0;
    let best = get("train.load_best_model_at_end").and_then(|v| v.as_bool()).unwrap_or(false);
    let no_looks = get("train.eval_steps").is_some_and(|v| v.as_integer() == Some(0));
    let no_rows = get("data.split.valid").is_some_and(|v| v.as_float() == Some(0.0));
    let mut found = Vec::new();
    for (key, asked) in [("train.early_stopping_patience", patience), ("train.load_best_model_at_end", best)] {
        if asked && no_looks {
            let message = format!("`{key}` goes by looks at the valid split, and `train.eval_steps` is 0");
            found.push((key, message, "set `train.eval_steps`, for example to 20"));
        }
        if asked && no_rows {
            let message = format!("`{key}` goes by the valid split, and `data.split.valid` is 0");
            found.push((key, message, "raise `data.split.valid`, for example to 0.1"));
        }
    }
    found
}

fn entries(reader: &Reader, source: &Source) -> Vec<Entry> {
    let origin = |place: &Place, from_set: bool| {
        if from_set {
            return Origin::Set { argument: place.source.text.to_string() };
        }
        let (line, column) = place.line_column();
        Origin::File { file: source.name.to_string(), line, column }
    };
    let get = |key: &str| given_or_default(reader, key);
    let mut entries = Vec::new();
    for field in FIELDS {
        let (value, origin) = match reader.values.get(field.key) {
            Some(given) => (given.value.clone(), origin(&given.place, given.from_set)),
            None => match (field.default_under(&get), field.default()) {
                (Some((value, setting)), _) => (value, Origin::DefaultUnder { setting }),
                (None, Some(value)) => (value, Origin::Default),
                (None, None) => continue,
            },
        };
        entries.push(Entry { key: field.key.to_owned(), value, origin, doc: field.doc });
    }
    let task = kinds::of(&get);
    for array in ARRAYS {
        let tables: Vec<&GivenTable> = reader.of(array).collect();
        for (table, name) in tables.iter().zip(table_names(&tables)) {
            entries.extend(of_table(array, table, &name, task.as_deref(), &origin));
        }
    }
    entries
}

fn of_table(
    array: &Array,
    table: &GivenTable,
    name: &str,
    task: Option<&str>,
    origin: &dyn Fn(&Place, bool) -> Origin,
) -> Vec<Entry> {
    let Some(kind) = table.kind() else { return Vec::new() };
    let key = |k: &str| format!("{}.{name}.{k}", array.key);
    let of = |k: &str| table.fields.get(k).map_or(Origin::Default, |g| origin(&g.place, g.from_set));
    let text = |s: &str| Value::String(s.to_owned());
    let doc = match array.word {
        "gate" => "what the report calls the gate",
        "judge" => "what the report and gates call the judge",
        _ => "what the report and gates call the arm",
    };
    let mut entries = vec![
        Entry { key: key("name"), value: text(name), origin: of("name"), doc },
        Entry { key: key("kind"), value: text(kind.kind), origin: of("kind"), doc: kind.doc },
    ];
    for field in kind.fields {
        let default = || kinds::gate_default(field, task).or_else(|| field.default());
        let Some(value) = table.fields.get(field.key).map(|g| g.value.clone()).or_else(default) else {
            continue;
        };
        entries.push(Entry { key: key(field.key), value, origin: of(field.key), doc: field.doc });
    }
    entries
}

/// A gate or an arm without a name is called by its kind; the second of a kind by kind-2.
pub(crate) fn table_names(tables: &[&GivenTable]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for table in tables {
        let wanted = table.text("name").or(table.text("kind")).unwrap_or(table.array.word);
        let taken = |name: &str| {
            names.iter().any(|n| n == name)
                || (tables.iter().any(|g| g.text("name") == Some(name)) && table.text("name") != Some(name))
        };
        let mut name = wanted.to_owned();
        let mut n = 1;
        while taken(&name) {
            n += 1;
            name = format!("{wanted}-{n}");
        }
        names.push(name);
    }
    names
}

/// The entries as the tree that they are in TOML; gates and arms become the arrays `eval.gate` and `eval.arm`.
pub(crate) fn nested(entries: &[Entry]) -> Table {
    let mut root = Table::new();
    let mut arrays: BTreeMap<&str, Vec<(String, Table)>> = BTreeMap::new();
    for entry in entries {
        let of = |array: &&&'static Array| entry.key.strip_prefix(array.key).is_some_and(|rest| rest.starts_with('.'));
        let array = ARRAYS.iter().find(of);
        if let Some((array, (name, key))) =
            array.and_then(|array| Some((array, entry.key[array.key.len() + 1..].rsplit_once('.')?)))
        {
            let tables = arrays.entry(array.word).or_default();
            if tables.last().is_none_or(|(last, _)| last != name) {
                tables.push((name.to_owned(), Table::new()));
            }
            if let Some((_, table)) = tables.last_mut() {
                table.insert(key.to_owned(), entry.value.clone());
            }
            continue;
        }
        let section = schema::parent(&entry.key);
        let mut table = &mut root;
        for part in section.split('.').filter(|p| !p.is_empty()) {
            let next = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            let Value::Table(next) = next else { return root };
            table = next;
        }
        table.insert(entry.key[section.len()..].trim_start_matches('.').to_owned(), entry.value.clone());
    }
    if let Some(Value::Table(eval)) = root.get_mut("eval") {
        for (word, tables) in arrays {
            eval.insert(word.to_owned(), Value::Array(tables.into_iter().map(|(_, t)| Value::Table(t)).collect()));
        }
    }
    root
}
