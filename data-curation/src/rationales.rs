//! Rationales: why an answer is the answer, in words, for a student to learn beside it. They are read from files that people or models
//! wrote, or from the traces themselves where a model recorded its reasoning; redacted as traces are, and brought to the train rows
//! they are of. One that argues for an answer that a person corrected is left out, for it argues for a wrong one.

use crate::Error;
use crate::curate::unlabeled::{asked, prompt_of};
use crate::frozen::is_corrected;
use crate::import::NamedFile;
use crate::redact::{RedactOptions, Redactor};
use crate::text::{key, normal_form};
use crate::trace::draft::text_at;
use limbeck_artifact::dataset::{Example, Message, Split, each_row};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// Where a line has its rationale: by a name of its own, or as APIs record a model's reasoning.
const RATIONALE: [&str; 8] = [
    "rationale",
    "reasoning_content",
    "reasoning",
    "explanation",
    "response.choices.0.message.reasoning_content",
    "response.choices.0.message.reasoning",
    "choices.0.message.reasoning_content",
    "choices.0.message.reasoning",
];

/// Where it says whose it is: a trace's id, or a row's.
const ID: [&str; 4] = ["id", "trace", "trace_id", "row"];

/// Where it says what it argues for.
const ANSWER: [&str; 4] = ["answer", "label", "response.choices.0.message.content", "choices.0.message.content"];

/// What was read, and what became of it: in = kept + Σ reasons.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct RationaleSummary {
    pub read: u64,
    pub kept: u64,
    /// By reason: `not_legible`, `no_rationale`, `no_such_row`, `held_out` (of a row that is no train row's), `corrected`,
    /// `other_answer`, `repeated`.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// Rationales of train rows, by the row's id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rationales {
    pub of: BTreeMap<String, String>,
    pub summary: RationaleSummary,
}

/// Reads `files` and brings what they hold to the train rows of the dataset in `dataset`.
///
/// # Errors
/// When a file or the dataset can't be read, or a redaction pattern is none.
pub fn rationales(files: &[NamedFile], dataset: &Path, redaction: Option<&RedactOptions>) -> Result<Rationales, Error> {
    let redactor = redaction.map(Redactor::with).transpose().map_err(Error::Plan)?;
    let rows = Rows::read(dataset)?;
    let mut found = Rationales::default();
    for file in files {
        let text = std::fs::read_to_string(&file.path).map_err(|e| Error::io("read", &file.path, e))?;
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            found.summary.read += 1;
            let reason = match one(line, &rows, redactor.as_ref()) {
                Err(reason) => reason,
                Ok((row, _)) if found.of.contains_key(row) => "repeated",
                Ok((row, rationale)) => {
                    found.of.insert(row.to_owned(), rationale);
                    found.summary.kept += 1;
                    continue;
                }
            };
            *found.summary.left_out.entry(reason).or_default() += 1;
        }
    }
    Ok(found)
}

/// The row that a line is of, and its rationale; or why there is none.
fn one<'r>(line: &str, rows: &'r Rows, redactor: Option<&Redactor>) -> Result<(&'r str, String), &'static str> {
    let value: Value = serde_json::from_str(line).map_err(|_| "not_legible")?;
    if !value.is_object() {
        return Err("not_legible");
    }
    let rationale = text_at(&value, &RATIONALE).filter(|text| !text.trim().is_empty()).ok_or("no_rationale")?;
    // One document: what is taken out of the message goes by the same name in what is said of it.
    let mut document = redactor.map(Redactor::document);
    let mut redacted = |text: &str| document.as_mut().map_or_else(|| text.to_owned(), |d| d.redact(text));
    let messages: Option<Vec<Message>> = prompt_of(&value)
        .map(|messages| messages.into_iter().map(|m| Message { content: redacted(&m.content), ..m }).collect());
    let by_id = text_at(&value, &ID).and_then(|id| rows.by_id.get(&id));
    let by_message = || rows.by_message.get(&key(&normal_form(&asked(messages.as_deref()?))));
    let row = by_id.or_else(by_message).ok_or("no_such_row")?;
    let Some(row) = row else { return Err("held_out") };
    match text_at(&value, &ANSWER) {
        // Its own word on what it argues for.
        Some(answer) if answer.trim() == row.target => {}
        Some(answer) if answer.trim() != row.recorded => return Err("other_answer"),
        _ if row.corrected => return Err("corrected"),
        _ => {}
    }
    Ok((&row.id, redacted(rationale.trim())))
}

struct Row {
    id: String,
    target: String,
    recorded: String,
    corrected: bool,
}

/// The dataset's rows; those of no train row are `None`.
#[derive(Default)]
struct Rows {
    by_id: HashMap<String, Option<std::rc::Rc<Row>>>,
    by_message: HashMap<u128, Option<std::rc::Rc<Row>>>,
}

impl Rows {
    fn read(dataset: &Path) -> Result<Rows, Error> {
        let mut rows = Rows::default();
        for split in Split::ALL {
            for row in each_row(dataset, split).map_err(|e| Error::Dataset(e.to_string()))? {
                let row = row.map_err(|e| Error::Dataset(e.to_string()))?;
                let of = (split == Split::Train).then(|| std::rc::Rc::new(Row::of(&row)));
                rows.by_message.insert(key(&normal_form(&asked(&row.messages))), of.clone());
                rows.by_id.insert(row.trace.id, of.clone());
                rows.by_id.insert(row.id, of);
            }
        }
        Ok(rows)
    }
}

impl Row {
    fn of(row: &Example) -> Row {
        Row {
            id: row.id.clone(),
            target: row.target.clone(),
            recorded: row.recorded.answer.clone(),
            corrected: is_corrected(row),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use limbeck_artifact::dataset::{Dataset, DatasetCard, LabelSource, Recorded, TraceRef, example_id};
    use std::fs;

    fn row(text: &str, recorded: &str, target: &str) -> Example {
        let messages = vec![Message::new("system", "Classify."), Message::new("user", text)];
        Example {
            id: example_id(&messages, target),
            messages,
            target: target.to_owned(),
            target_tool_calls: Vec::new(),
            label_source: LabelSource::Human,
            weight: 1.0,
            group: text.to_owned(),
            recorded: Recorded { answer: recorded.to_owned(), ..Recorded::default() },
            trace: TraceRef { id: format!("call-{text}"), file: "t".to_owned(), line: 1 },
            decision: None,
        }
    }

    #[test]
    fn a_rationale_goes_to_its_train_row_and_to_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let card = DatasetCard {
            digest: String::new(),
            labels: vec!["a".to_owned(), "b".to_owned()],
            schema: None,
            splits: BTreeMap::new(),
            traces_in: 6,
            left_out: BTreeMap::new(),
            sources: BTreeMap::new(),
            redactions: BTreeMap::new(),
            curation: Default::default(),
        };
        let train = vec![
            row("one", "a", "a"),
            row("mail <EMAIL_1> please", "a", "a"),
            row("three", "a", "b"),
            row("four", "a", "b"),
            row("five", "a", "a"),
        ];
        let ids: Vec<String> = train.iter().map(|row| row.id.clone()).collect();
        let test = vec![row("kept apart", "a", "a")];
        let dataset = dir.path().join("dataset");
        Dataset::write(&dataset, card, BTreeMap::from([(Split::Train, train), (Split::Test, test)])).unwrap();
        let lines = [
            r#"{"id":"call-one","rationale":"one is a, says ann@example.org"}"#.to_owned(),
            // A trace: its message and its own reasoning, redacted together.
            r#"{"id":"elsewhere","request":{"messages":[{"role":"user","content":"mail ann@example.org PLEASE"}]},
                "response":{"choices":[{"message":{"content":"a","reasoning_content":"ann@example.org asks"}}]}}"#
                .replace('\n', " "),
            // A person corrected the answer: what was said for it is of no use, but for what is said for the right one.
            r#"{"id":"call-three","rationale":"it is a, since"}"#.to_owned(),
            format!(r#"{{"row":"{}","rationale":"it is b, since","answer":"b"}}"#, ids[3]),
            r#"{"message":"five","rationale":"b it is","answer":"b"}"#.to_owned(),
            r#"{"message":"kept apart","rationale":"of a test row"}"#.to_owned(),
            r#"{"id":"call-one","rationale":"said twice"}"#.to_owned(),
            r#"{"id":"call-none","rationale":"of nothing"}"#.to_owned(),
            r#"{"id":"call-one"}"#.to_owned(),
            "no json".to_owned(),
        ];
        let path = dir.path().join("r.jsonl");
        fs::write(&path, lines.join("\n\n")).unwrap();
        let files = [NamedFile { name: "r.jsonl".to_owned(), path }];
        let found = rationales(&files, &dataset, Some(&RedactOptions::default())).unwrap();
        let want = [
            (ids[0].clone(), "one is a, says <EMAIL_1>".to_owned()),
            (ids[1].clone(), "<EMAIL_1> asks".to_owned()),
            (ids[3].clone(), "it is b, since".to_owned()),
        ];
        assert_eq!(found.of, want.into());
        let reasons =
            ["corrected", "other_answer", "held_out", "repeated", "no_such_row", "no_rationale", "not_legible"];
        assert_eq!(found.summary.left_out, reasons.map(|reason| (reason, 1)).into());
        assert_eq!((found.summary.read, found.summary.kept), (10, 3));
        let plain = rationales(&files, &dataset, None).unwrap();
        assert!(plain.of[&ids[0]].contains("ann@example.org"), "as the recipe says");
    }
}
