//! Reads what a person wrote (a file, then each `--set`) against the schema, keeping every value's place. It goes on
//! after a mistake, so that all of them are reported together.

use crate::error::RecipeError;
use crate::schema::{self, Array, Field, Kind, TableKind};
use crate::source::{Place, Source};
use std::collections::BTreeMap;
use std::ops::Range;
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Value};

/// A value that was given, not defaulted.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub value: Value,
    pub place: Place,
    pub from_set: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct GivenTable {
    pub array: &'static Array,
    pub place: Place,
    pub fields: BTreeMap<String, Given>,
}

#[derive(Default)]
pub(crate) struct Reader {
    pub values: BTreeMap<String, Given>,
    /// The gates and the arms.
    pub tables: Vec<GivenTable>,
    /// Where each section's header stands.
    pub sections: BTreeMap<String, Place>,
    pub errors: Vec<RecipeError>,
}

/// The text being read: its source, and where the parsed part starts in it.
#[derive(Clone)]
struct At {
    source: Source,
    offset: usize,
    from_set: bool,
}

impl At {
    fn place(&self, span: Range<usize>) -> Place {
        self.source.at(span.start + self.offset..span.end + self.offset)
    }
}

/// The names by which other trainers know some of our keys.
const FOREIGN_NAMES: &[(&str, &str)] = &[
    ("rank", "train.r"),
    ("lora_r", "train.r"),
    ("alpha", "train.lora_alpha"),
    ("lora_target_modules", "train.target_modules"),
    ("lr", "train.learning_rate"),
    ("scheduler", "train.lr_scheduler"),
    ("lr_scheduler_type", "train.lr_scheduler"),
    ("epochs", "train.num_epochs"),
    ("num_train_epochs", "train.num_epochs"),
    ("micro_batch_size", "train.batch_size"),
    ("per_device_train_batch_size", "train.batch_size"),
    ("max_seq_len", "model.max_seq_length"),
    ("sequence_len", "model.max_seq_length"),
    ("base_model", "model.base"),
    ("gates", "eval.gate"),
];

impl Reader {
    /// Reads a recipe's text. After a syntax error nothing else is looked at: the rest of the text can't be trusted.
    pub(crate) fn file(&mut self, source: &Source) {
        let at = At { source: source.clone(), offset: 0, from_set: false };
        let (table, errors) = DeTable::parse_recoverable(&source.text);
        for error in &errors {
            let place = at.place(error.span().unwrap_or(0..0));
            self.errors.push(RecipeError::new(format!("not TOML: {}", error.message()), Some(place)));
        }
        if errors.is_empty() {
            self.section(&at, "", table.get_ref());
        }
    }

    /// Reads `key=value`. The value is TOML; a bare word is taken as a text.
    pub(crate) fn set(&mut self, key: &str, value: &str) {
        let source = Source::new("--set", &format!("{key}={value}"));
        let at = At { source, offset: key.len() + 1, from_set: true };
        let key_place = at.source.at(0..key.len());
        let bare = || Spanned::new(0..value.len(), DeValue::String(value.into()));
        if key.is_empty() {
            let error = RecipeError::new("an override names no key", Some(key_place));
            self.errors.push(error.hint("write --set train.r=8"));
        } else if let Some((array, rest)) = in_array(key) {
            self.set_in_table(&at, array, rest, key_place, value);
        } else if let Some(field) = schema::find(key) {
            let parsed = parse_value(field.kind, value).unwrap_or_else(bare);
            self.value(&at, field, &parsed);
        } else {
            match DeValue::parse(value) {
                Ok(parsed) => self.entry(&at, key, key_place, &parsed),
                Err(_) => self.entry(&at, key, key_place, &bare()),
            }
        }
    }

    fn section(&mut self, at: &At, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key =
                if prefix.is_empty() { name.get_ref().to_string() } else { format!("{prefix}.{}", name.get_ref()) };
            self.entry(at, &key, at.place(name.span()), value);
        }
    }

    fn entry(&mut self, at: &At, key: &str, key_place: Place, value: &Spanned<DeValue<'_>>) {
        if let Some(array) = schema::array(key) {
            self.all_tables(at, array, value);
        } else if let Some(field) = schema::find(key) {
            self.value(at, field, value);
        } else if schema::is_section(key) {
            match value.get_ref() {
                DeValue::Table(table) => {
                    self.sections.insert(key.to_owned(), key_place);
                    self.section(at, key, table);
                }
                other => {
                    let message = format!(
                        "`{key}` is {}, expected a table of {}",
                        describe(other),
                        schema::children(key).join(", ")
                    );
                    self.errors.push(RecipeError::new(message, Some(at.place(value.span()))));
                }
            }
        } else {
            self.errors.push(unknown_key(key, key_place));
        }
    }

    fn value(&mut self, at: &At, field: &Field, value: &Spanned<DeValue<'_>>) {
        match check(at, field.key, field, value) {
            Ok(given) => drop(self.values.insert(field.key.to_owned(), given)),
            Err(error) => self.errors.push(*error),
        }
    }

    fn all_tables(&mut self, at: &At, array: &'static Array, value: &Spanned<DeValue<'_>>) {
        let Array { key, one, .. } = array;
        let DeValue::Array(list) = value.get_ref() else {
            let message = format!("`{key}` is {}, expected one [[{key}]] table {one}", describe(value.get_ref()));
            self.errors.push(RecipeError::new(message, Some(at.place(value.span()))));
            return;
        };
        self.tables.retain(|table| table.array.key != *key);
        for item in list.iter() {
            match item.get_ref() {
                DeValue::Table(table) => self.table(at, array, at.place(item.span()), table),
                other => {
                    let message = format!("{one} is {}, expected a table with `kind`", describe(other));
                    self.errors.push(RecipeError::new(message, Some(at.place(item.span()))));
                }
            }
        }
    }

    fn table(&mut self, at: &At, array: &'static Array, place: Place, table: &DeTable<'_>) {
        let kinds: Vec<&str> = array.kinds.iter().map(|k| k.kind).collect();
        let Some(kind_value) = table.get("kind") else {
            let message = format!("{} without `kind`, expected one of {}", array.one, kinds.join(", "));
            self.errors.push(RecipeError::new(message, Some(place)));
            return;
        };
        let Some(kind) = kind_value.get_ref().as_str().and_then(|kind| array.kind(kind)) else {
            let message = format!("`kind` is {}, expected one of {}", describe(kind_value.get_ref()), kinds.join(", "));
            let mut error = RecipeError::new(message, Some(at.place(kind_value.span())));
            if let Some(near) = kind_value.get_ref().as_str().and_then(|k| nearest(k, kinds.iter().copied())) {
                error = error.hint(format!("did you mean \"{near}\"?"));
            }
            self.errors.push(error);
            return;
        };
        let mut fields = BTreeMap::new();
        for (name, value) in table {
            let Some(field) = table_field(kind, name.get_ref()) else {
                self.errors.push(unknown_table_key(array, kind, name.get_ref(), at.place(name.span())));
                continue;
            };
            match check(at, name.get_ref(), field, value) {
                Ok(given) => drop(fields.insert(field.key.to_owned(), given)),
                Err(error) => self.errors.push(*error),
            }
        }
        self.tables.push(GivenTable { array, place, fields });
    }

    /// `eval.gate.NAME.key` or `eval.gate.INDEX.key`; arms likewise.
    fn set_in_table(&mut self, at: &At, array: &'static Array, rest: &str, key_place: Place, value: &str) {
        let Array { key: of, word, one, .. } = array;
        let ours: Vec<usize> = (0..self.tables.len()).filter(|i| self.tables[*i].array.key == *of).collect();
        let name_of = |table: &GivenTable| table.text("name").or(table.text("kind")).unwrap_or("").to_owned();
        let names: Vec<String> = ours.iter().map(|i| name_of(&self.tables[*i])).collect();
        let Some((wanted, name)) = rest.rsplit_once('.') else {
            let message = format!("`{of}.{rest}` names no key of {one}");
            let example = if *word == "gate" { "min=0.9" } else { "shots=4" };
            self.errors
                .push(RecipeError::new(message, Some(key_place)).hint(format!("write --set {of}.NAME.{example}")));
            return;
        };
        let index = names.iter().position(|n| n == wanted).or_else(|| wanted.parse().ok().filter(|i| *i < names.len()));
        let Some(index) = index.map(|index: usize| ours[index]) else {
            let error = RecipeError::new(format!("no {word} is called `{wanted}`"), Some(key_place));
            let hint = match nearest(wanted, names.iter().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if names.is_empty() => format!("the recipe has no {word}s"),
                None => format!("the recipe's {word}s are {}", names.join(", ")),
            };
            self.errors.push(error.hint(hint));
            return;
        };
        let Some(kind) = self.tables[index].text("kind").and_then(|kind| array.kind(kind)) else { return };
        let Some(field) = table_field(kind, name).filter(|f| f.key != "kind") else {
            self.errors.push(unknown_table_key(array, kind, name, key_place));
            return;
        };
        let bare = || Spanned::new(0..value.len(), DeValue::String(value.into()));
        let parsed = parse_value(field.kind, value).unwrap_or_else(bare);
        match check(at, name, field, &parsed) {
            Ok(given) => drop(self.tables[index].fields.insert(field.key.to_owned(), given)),
            Err(error) => self.errors.push(*error),
        }
    }

    /// The tables of one array.
    pub(crate) fn of(&self, array: &'static Array) -> impl Iterator<Item = &GivenTable> {
        self.tables.iter().filter(|table| table.array.key == array.key)
    }
}

impl GivenTable {
    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.fields.get(key)?.value.as_str()
    }

    pub(crate) fn kind(&self) -> Option<&'static TableKind> {
        self.array.kind(self.text("kind")?)
    }
}

/// The array that a `--set` key reaches into, and the rest of the key.
fn in_array(key: &str) -> Option<(&'static Array, &str)> {
    schema::ARRAYS.iter().find_map(|array| Some((*array, key.strip_prefix(array.key)?.strip_prefix('.')?)))
}

const TABLE_NAME: Field = Field {
    key: "name",
    kind: Kind::Name,
    need: schema::Need::Optional,
    doc: "what the report calls it; its kind when left out",
};
const TABLE_KIND: Field = Field { key: "kind", kind: Kind::Text, need: schema::Need::Required, doc: "the rule" };

fn table_field(kind: &'static TableKind, name: &str) -> Option<&'static Field> {
    match name {
        "name" => Some(&TABLE_NAME),
        "kind" => Some(&TABLE_KIND),
        _ => kind.fields.iter().find(|f| f.key == name),
    }
}

/// A `--set` value as TOML. A text needs no quotes: `--set version=1.2` is the text "1.2".
fn parse_value(kind: Kind, value: &str) -> Option<Spanned<DeValue<'_>>> {
    let textual = matches!(
        kind,
        Kind::Text | Kind::Name | Kind::Path | Kind::BaseModel | Kind::Device | Kind::Choice(_) | Kind::Arm(_)
    );
    if textual && !value.starts_with(['"', '\'']) {
        return None;
    }
    DeValue::parse(value).ok()
}

fn check(at: &At, key: &str, field: &Field, value: &Spanned<DeValue<'_>>) -> Result<Given, Box<RecipeError>> {
    let place = at.place(value.span());
    let wrong = |what: &str, place: Place, text: Option<&str>| {
        let error = RecipeError::new(format!("{what}, expected {}", field.kind.expects()), Some(place));
        match text.and_then(|t| nearest(t, field.kind.choices().iter().copied())) {
            Some(near) => error.hint(format!("did you mean \"{near}\"?")),
            None => error,
        }
    };
    let converted = convert(value.get_ref()).map(|v| field.kind.normalise(v));
    if let Some(value) = converted.filter(|v| field.kind.allows(v)) {
        return Ok(Given { value, place, from_set: at.from_set });
    }
    // A list with one bad item is marked at the item.
    if let (DeValue::Array(list), Kind::Choices(_) | Kind::Subset(_) | Kind::Texts { .. } | Kind::Paths { .. }) =
        (value.get_ref(), field.kind)
    {
        let one = match field.kind {
            Kind::Texts { .. } => Kind::Texts { min: 1 },
            kind => kind,
        };
        for (i, item) in list.iter().enumerate() {
            let place = at.place(item.span());
            let text = item.get_ref().as_str();
            if !convert(item.get_ref()).is_some_and(|v| one.allows(&Value::Array(vec![v]))) {
                return Err(Box::new(wrong(&format!("`{key}` holds {}", describe(item.get_ref())), place, text)));
            }
            let again = list.iter().take(i).any(|before| before.get_ref().as_str() == text);
            if again && !matches!(field.kind, Kind::Paths { .. }) {
                let message = format!("`{key}` holds {} twice", describe(item.get_ref()));
                return Err(Box::new(RecipeError::new(message, Some(place)).hint("remove one of them")));
            }
        }
    }
    Err(Box::new(wrong(&format!("`{key}` is {}", describe(value.get_ref())), place, value.get_ref().as_str())))
}

fn unknown_key(key: &str, place: Place) -> RecipeError {
    let section = schema::parent(key);
    let name = &key[section.len()..].trim_start_matches('.');
    let whole = if section.is_empty() { "the recipe".to_owned() } else { format!("[{section}]") };
    let error = RecipeError::new(format!("unknown key `{name}` in {whole}"), Some(place));
    let siblings = if schema::is_section(section) { schema::children(section) } else { Vec::new() };
    if let Some(near) = nearest(name, siblings.iter().copied()) {
        return error.hint(format!("did you mean `{near}`?"));
    }
    let last = |full: &&'static str| full.rsplit('.').next().unwrap_or(full) == *name;
    let foreign = FOREIGN_NAMES.iter().find(|(other, _)| other == name).map(|(_, ours)| *ours);
    let elsewhere = foreign.or_else(|| schema::FIELDS.iter().map(|f| f.key).find(last));
    match elsewhere {
        Some(full) if schema::parent(full) == section => {
            error.hint(format!("it is called `{}` here", &full[section.len()..].trim_start_matches('.')))
        }
        Some(full) => error.hint(format!("did you mean `{full}`, in [{}]?", schema::parent(full))),
        None if siblings.is_empty() => error,
        None => error.hint(format!("known here: {}", siblings.join(", "))),
    }
}

fn unknown_table_key(array: &Array, kind: &TableKind, name: &str, place: Place) -> RecipeError {
    let known: Vec<&str> = ["name", "kind"].into_iter().chain(kind.fields.iter().map(|f| f.key)).collect();
    let message = format!("unknown key `{name}` in {} of kind {}", array.one, kind.kind);
    let error = RecipeError::new(message, Some(place));
    match nearest(name, known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error.hint(format!("known here: {}", known.join(", "))),
    }
}

/// The candidate that a slip of the fingers would turn into `word`.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let folded = word.to_lowercase().replace('-', "_");
    let scored = candidates.map(|c| {
        let of = c.to_lowercase();
        let close = strsim::damerau_levenshtein(&folded, &of) <= 1 + of.chars().count() / 5;
        (if close { 2.0 } else { 0.0 } + strsim::jaro_winkler(&folded, &of), c)
    });
    scored.filter(|(score, _)| *score >= 0.88).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, c)| c)
}

/// A value as an error shows it, cut to a readable length.
fn describe(value: &DeValue<'_>) -> String {
    let short = |s: &str| {
        if s.chars().count() > 40 { format!("{}…", s.chars().take(39).collect::<String>()) } else { s.to_owned() }
    };
    match value {
        DeValue::String(s) => format!("\"{}\"", limbeck_artifact::untrusted::visible(&short(s))),
        DeValue::Integer(i) => convert(value).map_or_else(|| i.as_str().to_owned(), |v| v.to_string()),
        DeValue::Float(f) => f.as_str().to_owned(),
        DeValue::Boolean(b) => b.to_string(),
        DeValue::Datetime(d) => d.to_string(),
        DeValue::Array(list) => format!("a list of {}", list.len()),
        DeValue::Table(_) => "a table".to_owned(),
    }
}

/// None for a number that does not fit.
fn convert(value: &DeValue<'_>) -> Option<Value> {
    Some(match value {
        DeValue::String(s) => Value::String(s.to_string()),
        DeValue::Integer(i) => Value::Integer(i64::from_str_radix(i.as_str(), i.radix()).ok()?),
        DeValue::Float(f) => Value::Float(f.as_str().parse().ok()?),
        DeValue::Boolean(b) => Value::Boolean(*b),
        DeValue::Datetime(d) => Value::Datetime(*d),
        DeValue::Array(list) => Value::Array(list.iter().map(|v| convert(v.get_ref())).collect::<Option<_>>()?),
        DeValue::Table(_) => return None,
    })
}
