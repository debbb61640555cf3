//! Messages without an answer, for a teacher to label: read from files, redacted as traces are, and kept away from what a student
//! is measured by. What nearly repeats a row of valid, calibration or test, or contains one, is left out; so is a repetition of
//! another message or of a train row, whose label is known.

use super::against::FIELDS;
use super::leaks::leaks;
use crate::Error;
use crate::import::NamedFile;
use crate::redact::{RedactOptions, Redactor};
use crate::text::{Picked, Texts, key, normal_form};
use limbeck_artifact::capture::prompt_key;
use limbeck_artifact::dataset::{Message, Split, each_row};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::write_atomic;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq)]
pub struct UnlabeledPlan {
    pub files: Vec<NamedFile>,
    /// A frozen dataset's folder.
    pub dataset: PathBuf,
    /// Put in place of any system prompt; without one, messages that bring none get the dataset's, where all its rows have one.
    pub system: Option<String>,
    /// None leaves texts as they are.
    pub redaction: Option<RedactOptions>,
    pub near_dup_threshold: f64,
    /// The messages that are kept, JSON lines of [`Kept`].
    pub out: PathBuf,
    /// Those that are not, with a reason each.
    pub left_out: PathBuf,
}

/// A message that is kept: a prompt as the dataset's rows have theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// The prompt's key in a capture.
    pub id: String,
    pub messages: Vec<Message>,
    /// `file:line`.
    pub from: String,
}

/// In = kept + Σ reasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnlabeledSummary {
    pub read: u64,
    pub kept: u64,
    pub left_out: BTreeMap<String, u64>,
}

/// Reads, redacts, sorts out and writes.
///
/// # Errors
/// When a file or the dataset can't be read, or a redaction pattern is none.
pub fn unlabeled(plan: &UnlabeledPlan, emit: &dyn Emit) -> Result<UnlabeledSummary, Error> {
    let redactor = plan.redaction.as_ref().map(Redactor::with).transpose().map_err(Error::Plan)?;
    let known = Known::read(plan)?;
    let (mut summary, mut log) = (UnlabeledSummary::default(), String::new());
    let mut left_out = |summary: &mut UnlabeledSummary, from: &str, reason: &str, like: Option<&str>| {
        *summary.left_out.entry(reason.to_owned()).or_default() += 1;
        log.push_str(&format!("{}\n", json!({"from": from, "reason": reason, "like": like})));
    };
    let (mut rows, mut normal, mut seen) = (Vec::new(), Texts::default(), HashSet::new());
    for file in &plan.files {
        for (from, messages) in read(file)? {
            summary.read += 1;
            let Some(mut messages) = messages else {
                left_out(&mut summary, &from, "not_legible", None);
                continue;
            };
            if let Some(redactor) = &redactor {
                let mut document = redactor.document();
                messages.iter_mut().for_each(|m| m.content = document.redact(&m.content));
            }
            let messages = with_system(messages, plan.system.as_ref(), known.system.as_ref());
            let text = normal_form(&asked(&messages));
            let reason = match () {
                () if text.is_empty() => Some("empty"),
                () if !seen.insert(key(&text)) => Some("exact_duplicate"),
                () if known.train.contains(&key(&text)) => Some("in_train"),
                () => None,
            };
            match reason {
                Some(reason) => left_out(&mut summary, &from, reason, None),
                None => {
                    normal.push(&text);
                    rows.push(Kept { id: prompt_key(&messages), messages, from });
                }
            }
        }
    }
    let (all, held): (Vec<u32>, Vec<u32>) = ((0..rows.len() as u32).collect(), (0..known.held.len() as u32).collect());
    let held_out = Picked { texts: &known.held, rows: &held };
    let hits = leaks(Picked { texts: &normal, rows: &all }, held_out, plan.near_dup_threshold);
    let mut lines = String::new();
    for (row, hit) in rows.iter().zip(hits) {
        match hit {
            Some(hit) => {
                let (split, id) = &known.of_held[hit];
                left_out(&mut summary, &row.from, &format!("near_{}", split.name()), Some(id));
            }
            None => {
                summary.kept += 1;
                lines.push_str(&format!("{}\n", json!(row)));
            }
        }
    }
    write_atomic(&plan.out, lines.as_bytes()).map_err(|e| Error::io("write", &plan.out, e))?;
    write_atomic(&plan.left_out, log.as_bytes()).map_err(|e| Error::io("write", &plan.left_out, e))?;
    let accounted = summary.kept + summary.left_out.values().sum::<u64>();
    if accounted != summary.read {
        return Err(Error::Unaccounted { stage: "unlabeled", into: summary.read, out: accounted });
    }
    let counted = |what: &str, n, reason: &str| {
        emit.emit(EventKind::Counted { what: what.to_owned(), n, reason: reason.to_owned() });
    };
    counted("unlabeled messages", summary.kept, "");
    summary.left_out.iter().for_each(|(reason, n)| counted("unlabeled messages left out", *n, reason));
    Ok(summary)
}

/// What is in the dataset already.
struct Known {
    /// Of train rows, [`key`] of the normal form.
    train: HashSet<u128>,
    /// Normal forms of all other rows, and which rows those are.
    held: Texts,
    of_held: Vec<(Split, String)>,
    /// The system prompt, where all rows have the same.
    system: Option<Message>,
}

impl Known {
    fn read(plan: &UnlabeledPlan) -> Result<Known, Error> {
        let mut known = Known { train: HashSet::new(), held: Texts::default(), of_held: Vec::new(), system: None };
        let mut systems: Vec<Option<Message>> = Vec::new();
        for split in Split::ALL {
            let rows = each_row(&plan.dataset, split).map_err(|e| Error::Dataset(e.to_string()))?;
            for row in rows {
                let row = row.map_err(|e| Error::Dataset(e.to_string()))?;
                let system = row.messages.first().filter(|m| m.role == "system").cloned();
                if systems.len() < 2 && !systems.contains(&system) {
                    systems.push(system);
                }
                let text = normal_form(&asked(&row.messages));
                match split {
                    Split::Train => {
                        known.train.insert(key(&text));
                    }
                    _ => {
                        known.held.push(&text);
                        known.of_held.push((split, row.id));
                    }
                }
            }
        }
        if let [Some(system)] = systems.as_slice() {
            known.system = Some(system.clone());
        }
        Ok(known)
    }
}

/// What the user said, turn by turn.
pub(crate) fn asked(messages: &[Message]) -> String {
    let said: Vec<&str> = messages.iter().filter(|m| m.role == "user").map(|m| m.content.as_str()).collect();
    said.join("\n")
}

fn with_system(mut messages: Vec<Message>, own: Option<&String>, of_rows: Option<&Message>) -> Vec<Message> {
    let brings = |m: &Message| matches!(m.role.as_str(), "system" | "developer");
    if let Some(own) = own {
        messages.retain(|m| !brings(m));
        messages.insert(0, Message::new("system", own));
    } else if let Some(system) = of_rows.filter(|_| !messages.iter().any(brings)) {
        messages.insert(0, system.clone());
    }
    messages
}

/// A line's place, and its prompt, where it has one.
type Line = (String, Option<Vec<Message>>);

/// The messages of a file: JSON lines with a text or `messages`, the column of a CSV file that is named as a text is, or plain
/// lines. An assistant's last turn is an answer, and is left away.
///
/// # Errors
/// When it can't be read, or a CSV file has no such column.
pub fn read(file: &NamedFile) -> Result<Vec<Line>, Error> {
    let bytes = std::fs::read(&file.path).map_err(|e| Error::io("read", &file.path, e))?;
    let text = String::from_utf8_lossy(&bytes);
    let user = |text: &str| Some(vec![Message::new("user", text.trim())]);
    let place = |line: usize| format!("{}:{line}", file.name);
    if file.name.to_lowercase().ends_with(".csv") {
        let mut records = crate::csv::parse(&text).into_iter();
        let header = records.next().unwrap_or_default();
        let named = |field: &&str| header.iter().position(|column| column.trim() == *field);
        let Some(column) = FIELDS.iter().find_map(named) else {
            let why = format!("{} has no column named {}", file.path.display(), FIELDS.join(", "));
            return Err(Error::Source { why });
        };
        let row = |(i, record): (usize, Vec<String>)| (place(i + 2), record.get(column).and_then(|t| user(t)));
        return Ok(records.enumerate().map(row).collect());
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompt = |line: &str| match serde_json::from_str::<Value>(line) {
        Ok(value @ Value::Object(_)) => prompt_of(&value),
        Ok(Value::String(text)) => user(&text),
        _ if line.trim_start().starts_with('{') => None,
        _ => user(line),
    };
    Ok(lines.map(|(i, line)| (place(i + 1), prompt(line))).collect())
}

/// The prompt of a JSON object, where it has one.
pub(crate) fn prompt_of(value: &Value) -> Option<Vec<Message>> {
    if let Some(turns) = value.get("messages").or(value.pointer("/request/messages")) {
        let mut messages: Vec<Message> = serde_json::from_value(turns.clone()).ok()?;
        if messages.last().is_some_and(|m| m.role == "assistant") {
            messages.pop();
        }
        return messages.iter().any(|m| m.role == "user").then_some(messages);
    }
    let text = FIELDS.iter().find_map(|field| value.get(*field)?.as_str())?;
    Some(vec![Message::new("user", text.trim())])
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, LabelSource, Recorded, TraceRef, example_id};
    use limbeck_artifact::event::Silent;
    use std::fs;
    use std::path::Path;

    fn row(text: &str, label: &str) -> Example {
        let messages = vec![Message::new("system", "Classify."), Message::new("user", text)];
        Example {
            id: example_id(&messages, label),
            messages,
            target: label.to_owned(),
            target_tool_calls: Vec::new(),
            label_source: LabelSource::Human,
            weight: 1.0,
            group: text.to_owned(),
            recorded: Recorded::default(),
            trace: TraceRef { id: text.to_owned(), file: "t".to_owned(), line: 1 },
            decision: None,
        }
    }

    fn freeze(dir: &Path) {
        let rows = |texts: &[&str]| texts.iter().map(|t| row(t, "a")).collect::<Vec<_>>();
        let splits = BTreeMap::from([
            (Split::Train, rows(&["where is my new card please"])),
            (Split::Calibration, rows(&["can you cancel the transfer that I made"])),
            (Split::Test, rows(&["why was my refund not shown in the app"])),
        ]);
        let card = DatasetCard {
            digest: String::new(),
            labels: vec!["a".to_owned(), "b".to_owned()],
            schema: None,
            splits: BTreeMap::new(),
            traces_in: 3,
            left_out: BTreeMap::new(),
            sources: BTreeMap::new(),
            redactions: BTreeMap::new(),
            curation: Default::default(),
        };
        Dataset::write(dir, card, splits).unwrap();
    }

    #[test]
    fn what_repeats_a_held_out_row_never_reaches_the_student() {
        let dir = tempfile::tempdir().unwrap();
        freeze(&dir.path().join("dataset"));
        let file = dir.path().join("calls.jsonl");
        let lines = [
            r#"{"text":"Why was my refund not shown in the app?!"}"#,
            r#"{"text":"Good day. Why was my refund not shown in the app? Many thanks to all of you."}"#,
            r#"{"messages":[{"role":"user","content":"Can you cancel the transfer that I made?!"},{"role":"assistant","content":"a"}]}"#,
            r#"{"text":"Where is my new card, please?"}"#,
            r#"{"text":"the exchange rate is wrong, write to ann@example.org"}"#,
            "the exchange rate is WRONG, write to ann@example.org",
            r#"{"messages":[{"role":"system","content":"Other."},{"role":"user","content":"my pin is blocked"}]}"#,
            r#"{"messages":[]}"#,
            r#"{"text":"cut o"#,
            r#"{"text":"   "}"#,
        ];
        fs::write(&file, lines.join("\n\n")).unwrap();
        let plan = UnlabeledPlan {
            files: vec![NamedFile { name: "calls.jsonl".to_owned(), path: file }],
            dataset: dir.path().join("dataset"),
            system: None,
            redaction: Some(RedactOptions::default()),
            near_dup_threshold: 0.8,
            out: dir.path().join("out/unlabeled.jsonl"),
            left_out: dir.path().join("out/left_out.jsonl"),
        };
        let summary = unlabeled(&plan, &Silent).unwrap();
        let reasons = [
            ("empty", 1),
            ("exact_duplicate", 1),
            ("in_train", 1),
            ("near_calibration", 1),
            ("near_test", 2),
            ("not_legible", 2),
        ];
        assert_eq!(summary.left_out, reasons.map(|(r, n)| (r.to_owned(), n)).into());
        assert_eq!((summary.read, summary.kept), (10, 2));
        let kept: Vec<Kept> =
            fs::read_to_string(&plan.out).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        assert_eq!(kept[0].messages[0].content, "Classify.", "the dataset's own, where a message brings none");
        assert!(kept[0].messages[1].content.ends_with("<EMAIL_1>"), "{:?}", kept[0]);
        assert_eq!((kept[1].messages[0].content.as_str(), kept[1].from.as_str()), ("Other.", "calls.jsonl:13"));
        assert_eq!(kept[1].id, prompt_key(&kept[1].messages));

        let replaced = UnlabeledPlan { system: Some("Mine.".to_owned()), ..plan.clone() };
        unlabeled(&replaced, &Silent).unwrap();
        let text = fs::read_to_string(&plan.out).unwrap();
        assert!(text.contains("Mine.") && !text.contains("Other.") && !text.contains("Classify."));
    }

    #[test]
    fn a_csv_file_names_its_column() {
        let dir = tempfile::tempdir().unwrap();
        let read_csv = |text: &str| {
            let path = dir.path().join("rows.csv");
            fs::write(&path, text).unwrap();
            read(&NamedFile { name: "rows.csv".to_owned(), path })
        };
        let rows = read_csv("category,text\na,\"one, two\"\nb,three\n").unwrap();
        let texts: Vec<&str> = rows.iter().map(|(_, m)| m.as_ref().unwrap()[0].content.as_str()).collect();
        assert_eq!(texts, ["one, two", "three"]);
        assert!(read_csv("a,b\n1,2\n").unwrap_err().to_string().contains("has no column named text"));
    }
}
