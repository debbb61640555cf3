//! The frozen dataset on disk, where curation and training meet without knowing each other: four JSONL splits and a
//! card, addressed by content. A row carries what is needed to walk back to its trace and to the reviewer's decision.
//!
//! Layout of a dataset folder: `dataset.json` (a [`DatasetCard`]), and `train.jsonl`, `valid.jsonl`,
//! `calibration.jsonl`, `test.jsonl`, each one [`Example`] a line.

mod curation;
mod writer;

pub use curation::{Curation, Provenance};
pub use writer::{DatasetWriter, Line};

use crate::digest::{canonical_json, sha256_file, sha256_hex};
use crate::schema::Schema;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    Train,
    Valid,
    Calibration,
    Test,
}

impl Split {
    pub const ALL: [Split; 4] = [Split::Train, Split::Valid, Split::Calibration, Split::Test];

    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Valid => "valid",
            Split::Calibration => "calibration",
            Split::Test => "test",
        }
    }
}

/// One chat message: `role` is system, user, assistant or tool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: String,
    /// Empty where an assistant only calls tools.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub content: String,
    /// The tools that an assistant's turn calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Of a tool's answer: the call that it answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_call_id: Option<String>,
    /// Of a tool's answer: the tool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

impl Message {
    /// A message that calls no tool and answers none.
    pub fn new(role: &str, content: &str) -> Message {
        Message { role: role.to_owned(), content: content.to_owned(), ..Message::default() }
    }
}

/// A call of a tool, as chat-completion APIs write it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolCall {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(rename = "type", default = "function")]
    pub kind: String,
    pub function: ToolFunction,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolFunction {
    pub name: String,
    /// An object, or its JSON text.
    #[serde(default)]
    pub arguments: Value,
}

fn function() -> String {
    "function".to_owned()
}

/// Chat-completion APIs write null for an assistant that only calls tools.
fn null_as_empty<'de, D: serde::Deserializer<'de>>(d: D) -> std::result::Result<String, D::Error> {
    Ok(Option::<String>::deserialize(d)?.unwrap_or_default())
}

/// Who said what the target is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelSource {
    /// A reviewer's decision.
    Human,
    /// The recorded model's answer, which nobody looked at.
    Teacher,
}

/// What production recorded of the frontier model's call.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recorded {
    pub answer: String,
    pub model: String,
    pub latency_ms: Option<f64>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
    /// RFC 3339.
    pub at: Option<String>,
    pub feedback: Option<String>,
}

/// The very line a row came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRef {
    /// The trace's own id, or its digest where it has none.
    pub id: String,
    pub file: String,
    /// 1-based.
    pub line: u64,
}

/// One row: a prompt, the answer that is wanted, and where both came from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Example {
    /// SHA-256 over the canonical JSON of messages and target; names the row in reports and errors.
    pub id: String,
    /// The prompt: everything before the answer (system and user turns), redacted.
    pub messages: Vec<Message>,
    pub target: String,
    /// The tools that are to be called, where the wanted answer is a call.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_tool_calls: Vec<ToolCall>,
    pub label_source: LabelSource,
    /// 1 for a reviewed row; the recipe's weight for an unreviewed one.
    pub weight: f32,
    /// Rows of one group (customer, near-duplicate) never straddle two splits.
    pub group: String,
    pub recorded: Recorded,
    pub trace: TraceRef,
    /// The review decision's id, when a person decided.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub decision: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitCard {
    pub rows: u64,
    pub reviewed: u64,
    pub sha256: String,
    /// Rows a label; where answers are fields, rows a combination of them ("date, time").
    pub labels: BTreeMap<String, u64>,
}

/// The card of a frozen dataset. `digest` is the SHA-256 of the card's canonical JSON with `digest` itself empty.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatasetCard {
    pub digest: String,
    /// The taxonomy, sorted; empty where answers are fields.
    pub labels: Vec<String>,
    /// The JSON Schema of the answers, where they are fields: as it was written, for the order of its fields counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    pub splits: BTreeMap<Split, SplitCard>,
    /// What was left out on the way, by reason; `traces_in` = rows of all splits + these.
    pub traces_in: u64,
    pub left_out: BTreeMap<String, u64>,
    /// Digests of the inputs: trace files, decision files.
    pub sources: BTreeMap<String, String>,
    pub redactions: BTreeMap<String, u64>,
    /// How the rows came about; empty in cards of earlier versions.
    #[serde(default, skip_serializing_if = "Curation::is_empty")]
    pub curation: Curation,
}

impl DatasetCard {
    /// Reads a dataset folder's card. Errors where it is missing or was changed; the rows are not looked at.
    pub fn load(dir: &Path) -> Result<DatasetCard> {
        let path = dir.join("dataset.json");
        let bytes = std::fs::read(&path).map_err(Error::io("read the dataset card", &path))?;
        let card: DatasetCard = serde_json::from_slice(&bytes)
            .map_err(|e| Error::invalid(&path, format!("it is not a dataset card: {e}"), FREEZE_AGAIN))?;
        if card.digest != card_digest(&path, &card)? {
            return Err(Error::invalid(&path, "the card was changed after it was frozen", FREEZE_AGAIN));
        }
        Ok(card)
    }

    /// Errors with the first file of the folder that has not the digest that the card says.
    pub fn check_files(&self, dir: &Path) -> Result<()> {
        let splits = self.splits.iter().map(|(split, card)| (format!("{}.jsonl", split.name()), &card.sha256));
        for (name, sha256) in splits.chain(self.curation.tables.iter().map(|(name, sha256)| (name.clone(), sha256))) {
            let path = dir.join(&name);
            if sha256_file(&path).map_err(Error::io("read the dataset", &path))? != *sha256 {
                return Err(Error::invalid(&path, "it was changed after it was frozen", FREEZE_AGAIN));
            }
        }
        Ok(())
    }
}

/// The rows of a split one by one, in the order in which they were frozen: for what need not hold them all. What they
/// are is not checked again; see [`DatasetCard::check_files`].
pub fn each_row(dir: &Path, split: Split) -> Result<impl Iterator<Item = Result<Example>>> {
    let path = dir.join(format!("{}.jsonl", split.name()));
    let file = std::fs::File::open(&path).map_err(Error::io("read the split", &path))?;
    Ok(BufReader::new(file).lines().enumerate().map(move |(i, line)| {
        let line = line.map_err(Error::io("read the split", &path))?;
        serde_json::from_str(&line)
            .map_err(|e| Error::invalid(&path, format!("line {} is not a row: {e}", i + 1), FREEZE_AGAIN))
    }))
}

/// The name of a row: SHA-256 over the canonical JSON of its prompt and its target.
pub fn example_id(messages: &[Message], target: &str) -> String {
    sha256_hex(canonical_json(&json!({"messages": messages, "target": target})).as_bytes())
}

impl Example {
    /// The wanted answer as the assistant's turn.
    pub fn answer(&self) -> Message {
        Message { tool_calls: self.target_tool_calls.clone(), ..Message::new("assistant", &self.target) }
    }

    /// The id that its content asks for: [`example_id`], over the tool calls too where there are any.
    fn content_id(&self) -> String {
        if self.target_tool_calls.is_empty() {
            return example_id(&self.messages, &self.target);
        }
        let (messages, target, calls) = (&self.messages, &self.target, &self.target_tool_calls);
        sha256_hex(canonical_json(&json!({"messages": messages, "target": target, "tool_calls": calls})).as_bytes())
    }
}

/// A dataset whose digests have been checked, in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Dataset {
    pub card: DatasetCard,
    pub dir: PathBuf,
    splits: BTreeMap<Split, Vec<Example>>,
}

impl Dataset {
    /// Reads a dataset folder. Errors where a file is missing, has not the digest that the card says, or breaks a
    /// promise of the format (see [`Dataset::write`]).
    pub fn load(dir: &Path) -> Result<Dataset> {
        let path = dir.join("dataset.json");
        let card = DatasetCard::load(dir)?;
        let targets = Targets::of(&card)?;
        let mut splits = BTreeMap::new();
        for split in Split::ALL {
            splits.insert(split, load_split(dir, split, card.splits.get(&split), &targets)?);
        }
        check(&path, &card, &targets, &splits)?;
        Ok(Dataset { card, dir: dir.to_path_buf(), splits })
    }

    /// The rows of a split, in the order in which they were frozen.
    pub fn rows(&self, split: Split) -> &[Example] {
        self.splits.get(&split).map_or(&[], Vec::as_slice)
    }

    /// Freezes rows as a dataset folder and returns its card. `card`'s digest and splits are computed here; its labels
    /// are sorted. Promises that are checked before anything is written: each id is [`example_id`] of its row and
    /// occurs once, each target is one of the labels (where there are any) or what the schema makes of it (where there is
    /// one), no group is in two splits, and
    /// `traces_in` equals the rows plus what was left out. The card is written last.
    pub fn write(dir: &Path, card: DatasetCard, splits: BTreeMap<Split, Vec<Example>>) -> Result<DatasetCard> {
        let DatasetCard { left_out, traces_in, curation, .. } = card.clone();
        let mut writer = DatasetWriter::create(dir, card)?;
        for split in Split::ALL {
            for row in splits.get(&split).map_or(&[][..], Vec::as_slice) {
                writer.push(split, row, Line::of(row)?)?;
            }
        }
        writer.finish(traces_in, left_out, curation)
    }
}

const FREEZE_AGAIN: &str = "freeze the dataset again";

fn illegible(path: &Path) -> impl FnOnce(serde_json::Error) -> Error {
    let path = path.to_path_buf();
    move |e| Error::invalid(&path, format!("it cannot be written as JSON: {e}"), "look for numbers that are not finite")
}

/// What a dataset's targets must be.
enum Targets {
    Any,
    Labels(Vec<String>),
    Fields(Schema),
}

impl Targets {
    /// Errors where the card's schema is none.
    fn of(card: &DatasetCard) -> Result<Targets> {
        match &card.schema {
            None if card.labels.is_empty() => Ok(Targets::Any),
            None => Ok(Targets::Labels(card.labels.clone())),
            Some(text) => Schema::parse(text).map(Targets::Fields).map_err(|e| {
                Error::invalid(Path::new("dataset.json"), format!("its schema can't be used: {e}"), FREEZE_AGAIN)
            }),
        }
    }

    /// What a card counts a target as. The fields' values are the customers' and have no place in a card.
    fn class<'t>(&self, target: &'t str) -> Cow<'t, str> {
        let Targets::Fields(schema) = self else { return Cow::Borrowed(target) };
        let said: serde_json::Map<String, Value> = serde_json::from_str(target).unwrap_or_default();
        let names: Vec<&str> =
            schema.fields().iter().map(|f| f.name.as_str()).filter(|name| said.contains_key(*name)).collect();
        Cow::Owned(if names.is_empty() { "(no field)".to_owned() } else { names.join(", ") })
    }

    fn check(&self, target: &str) -> std::result::Result<(), String> {
        match self {
            Targets::Any => Ok(()),
            Targets::Labels(labels) => match labels.binary_search_by(|label| label.as_str().cmp(target)) {
                Ok(_) => Ok(()),
                Err(_) => Err("a target outside the taxonomy".to_owned()),
            },
            Targets::Fields(schema) => match schema.canonical_text(target) {
                Ok(canonical) if canonical == target => Ok(()),
                Ok(_) => Err("a target that is not in the schema's canonical form".to_owned()),
                Err(fault) => Err(format!("a target that the schema does not allow ({fault})")),
            },
        }
    }
}

fn split_card(rows: &[Example], text: &str, targets: &Targets) -> SplitCard {
    let mut labels = BTreeMap::new();
    for row in rows {
        *labels.entry(targets.class(&row.target).into_owned()).or_insert(0) += 1;
    }
    let reviewed = rows.iter().filter(|r| r.label_source == LabelSource::Human).count() as u64;
    SplitCard { rows: rows.len() as u64, reviewed, sha256: sha256_hex(text.as_bytes()), labels }
}

fn card_digest(path: &Path, card: &DatasetCard) -> Result<String> {
    let mut value = serde_json::to_value(card).map_err(illegible(path))?;
    value["digest"] = Value::String(String::new());
    Ok(sha256_hex(canonical_json(&value).as_bytes()))
}

fn load_split(dir: &Path, split: Split, card: Option<&SplitCard>, targets: &Targets) -> Result<Vec<Example>> {
    let path = dir.join(format!("{}.jsonl", split.name()));
    let Some(card) = card else {
        return Err(Error::invalid(&path, "the card does not name this split", FREEZE_AGAIN));
    };
    let text = std::fs::read_to_string(&path).map_err(Error::io("read the split", &path))?;
    if sha256_hex(text.as_bytes()) != card.sha256 {
        return Err(Error::invalid(&path, "it was changed after it was frozen", FREEZE_AGAIN));
    }
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| Error::invalid(&path, format!("line {} is not a row: {e}", i + 1), FREEZE_AGAIN))
    };
    let rows: Vec<Example> = text.lines().enumerate().map(parse).collect::<Result<_>>()?;
    if split_card(&rows, &text, targets) != *card {
        return Err(Error::invalid(&path, "its counts are not those of the card", FREEZE_AGAIN));
    }
    Ok(rows)
}

fn check(path: &Path, card: &DatasetCard, targets: &Targets, splits: &BTreeMap<Split, Vec<Example>>) -> Result<()> {
    let broken = |reason: String| Err(Error::invalid(path, reason, "this is a defect of what froze the dataset"));
    let mut ids = BTreeSet::new();
    let mut groups: BTreeMap<&str, Split> = BTreeMap::new();
    for (split, rows) in splits {
        for row in rows {
            let at = format!("row {} of {} ({}:{})", row.id, split.name(), row.trace.file, row.trace.line);
            if row.id != row.content_id() {
                return broken(format!("{at} has not the id of its content"));
            }
            if !ids.insert(&row.id) {
                return broken(format!("{at} occurs twice"));
            }
            if let Err(why) = targets.check(&row.target) {
                return broken(format!("{at} has {why}: {:?}", row.target));
            }
            if let Some(other) = groups.insert(&row.group, *split)
                && other != *split
            {
                return broken(format!("group {:?} is in both {} and {}", row.group, other.name(), split.name()));
            }
            if !row.weight.is_finite() || row.weight < 0.0 {
                return broken(format!("{at} has the weight {}", row.weight));
            }
        }
    }
    let accounted = ids.len() as u64 + card.left_out.values().sum::<u64>();
    if accounted != card.traces_in {
        let traces_in = card.traces_in;
        return broken(format!("{traces_in} traces came in, but {accounted} are accounted for (rows + left out)"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn row(text: &str, target: &str, group: &str) -> Example {
        let messages = vec![Message::new("user", text)];
        Example {
            id: example_id(&messages, target),
            messages,
            target: target.to_owned(),
            target_tool_calls: Vec::new(),
            label_source: LabelSource::Human,
            weight: 1.0,
            group: group.to_owned(),
            recorded: Recorded { latency_ms: Some(0.1), ..Recorded::default() },
            trace: TraceRef { id: text.to_owned(), file: "traces.jsonl".to_owned(), line: 1 },
            decision: None,
        }
    }

    fn card(traces_in: u64, left_out: u64) -> DatasetCard {
        DatasetCard {
            digest: String::new(),
            labels: vec!["no".to_owned(), "ja".to_owned()],
            schema: None,
            splits: BTreeMap::new(),
            traces_in,
            left_out: BTreeMap::from([("exact duplicate".to_owned(), left_out)]),
            sources: BTreeMap::new(),
            redactions: BTreeMap::new(),
            curation: Curation::default(),
        }
    }

    type Rows = BTreeMap<Split, Vec<Example>>;

    fn splits() -> Rows {
        BTreeMap::from([
            (Split::Train, vec![row("a\nb", "ja", "g1"), row("b", "no", "g1")]),
            (Split::Test, vec![row("c", "no", "g2")]),
        ])
    }

    #[test]
    fn a_dataset_comes_back_as_it_was_frozen_and_freezing_it_again_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let written = Dataset::write(dir.path(), card(5, 2), splits()).unwrap();
        let loaded = Dataset::load(dir.path()).unwrap();
        assert_eq!(loaded.card, written);
        assert_eq!(loaded.rows(Split::Train), splits()[&Split::Train]);
        assert_eq!(loaded.rows(Split::Valid), []);
        assert_eq!(written.labels, ["ja", "no"]);
        assert_eq!(written.splits[&Split::Train].labels["ja"], 1);
        let again = tempfile::tempdir().unwrap();
        assert_eq!(Dataset::write(again.path(), card(5, 2), splits()).unwrap().digest, written.digest);
        for file in ["dataset.json", "train.jsonl", "valid.jsonl", "calibration.jsonl", "test.jsonl"] {
            let bytes = |d: &Path| fs::read(d.join(file)).unwrap();
            assert_eq!(bytes(dir.path()), bytes(again.path()), "{file}");
        }
    }

    #[test]
    fn tool_calls_come_back_and_count_in_the_id_while_plain_rows_are_as_before() {
        let line = r#"{"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"find","arguments":"{\"b\":1,\"a\":2}"}}]}"#;
        let message: Message = serde_json::from_str(line).unwrap();
        assert_eq!((message.content.as_str(), message.tool_calls[0].function.name.as_str()), ("", "find"));
        assert_eq!(serde_json::from_str::<Message>(&serde_json::to_string(&message).unwrap()).unwrap(), message);
        assert_eq!(
            serde_json::to_string(&Message::new("user", "hi")).unwrap(),
            r#"{"role":"user","content":"hi"}"#,
            "ids of plain rows stay"
        );
        let plain = row("a", "ja", "g");
        let calls = Example { target_tool_calls: message.tool_calls, ..plain.clone() };
        assert_eq!(plain.content_id(), plain.id);
        assert_ne!(calls.content_id(), plain.id);
    }

    #[test]
    fn a_change_to_any_file_is_found() {
        let dir = tempfile::tempdir().unwrap();
        Dataset::write(dir.path(), card(5, 2), splits()).unwrap();
        let check = |file: &str, from: &str, to: &str| {
            let path = dir.path().join(file);
            let text = fs::read_to_string(&path).unwrap();
            assert!(text.contains(from), "{file} lacks {from}");
            fs::write(&path, text.replacen(from, to, 1)).unwrap();
            let e = Dataset::load(dir.path()).unwrap_err().to_string();
            assert!(e.contains(file), "{e}");
            fs::write(&path, text).unwrap();
        };
        check("train.jsonl", "\"weight\":1.0", "\"weight\":2.0");
        check("test.jsonl", "\n", "\n\n");
        check("dataset.json", "\"traces_in\": 5", "\"traces_in\": 6");
        check("dataset.json", "exact duplicate", "exact Duplicate");
        fs::remove_file(dir.path().join("valid.jsonl")).unwrap();
        assert!(Dataset::load(dir.path()).is_err());
    }

    #[test]
    fn targets_that_are_fields_are_held_to_the_schema() {
        let schema = r#"{"type": "object", "properties": {"time": {"type": "string"}, "people": {"type": "integer"}},
            "additionalProperties": false}"#;
        let of = |target: &str| {
            let dir = tempfile::tempdir().unwrap();
            let card = DatasetCard { labels: Vec::new(), schema: Some(schema.to_owned()), ..card(1, 0) };
            let rows = BTreeMap::from([(Split::Test, vec![row("at 7", target, "g")])]);
            Dataset::write(dir.path(), card, rows).map(|_| Dataset::load(dir.path()).unwrap().card)
        };
        let card = of(r#"{"time":"7","people":2}"#).unwrap();
        assert_eq!(card.schema.unwrap(), schema, "as it was written, to the byte");
        assert_eq!(card.splits[&Split::Test].labels, BTreeMap::from([("time, people".to_owned(), 1)]));
        let refused = |target: &str, says: &str| {
            let e = of(target).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
        };
        refused(r#"{"people":2,"time":"7"}"#, "canonical form");
        refused(r#"{"time":"7","people":"two"}"#, "does not allow (people: ");
        refused("none", "does not allow");
    }

    #[test]
    fn rows_that_break_a_promise_are_refused_and_nothing_is_written() {
        let check = |card: DatasetCard, change: &dyn Fn(&mut Rows), says: &str| {
            let dir = tempfile::tempdir().unwrap();
            let mut splits = splits();
            change(&mut splits);
            let e = Dataset::write(dir.path(), card, splits).unwrap_err().to_string();
            assert!(e.contains(says), "{e}");
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        };
        check(card(6, 2), &|_| {}, "accounted for");
        check(card(6, 2), &|s| s.get_mut(&Split::Test).unwrap().push(row("d", "no", "g1")), "both train and test");
        check(card(6, 2), &|s| s.get_mut(&Split::Test).unwrap().push(row("c", "no", "g2")), "occurs twice");
        check(card(6, 2), &|s| s.get_mut(&Split::Test).unwrap().push(row("d", "nein", "g2")), "outside the taxonomy");
        check(card(5, 2), &|s| s.get_mut(&Split::Test).unwrap()[0].target = "ja".to_owned(), "id of its content");
        check(card(5, 2), &|s| s.get_mut(&Split::Test).unwrap()[0].weight = f32::NAN, "weight");
    }
}
