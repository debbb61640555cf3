//! Review elsewhere: the queue as tasks of Label Studio or records of Argilla, and what people answered there as decisions.
//! Both are JSON lists; the item's id and the digest of what is shown travel with each entry, so that an answer about a
//! text that has changed since counts for nothing.
//!
//! Label Studio: <https://labelstud.io/guide/task_format>. Argilla: `Record.to_dict` of its Python client, 2.x.

use super::{Decision, Decisions, Item, Pass, Queue, Verdict};
use crate::taxonomy::Answers;
use crate::trace::shown_sha256;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    LabelStudio,
    Argilla,
}

/// The items as one JSON list. The recorded answer goes along as prediction or suggestion.
pub fn export<'q>(items: impl Iterator<Item = &'q Item>, answers: &Answers, format: Format) -> Value {
    let entry = |item| match format {
        Format::LabelStudio => task(item, answers),
        Format::Argilla => record(item),
    };
    Value::Array(items.map(entry).collect())
}

fn about(item: &Item) -> Value {
    json!({
        "item": item.id, "answer": item.answer, "shown_sha256": item.shown_sha256, "split": item.split.name(),
        "source": item.source.name(),
    })
}

fn task(item: &Item, answers: &Answers) -> Value {
    let mut data = about(item);
    data["text"] = json!(item.message);
    let score = item.hint.map(|h| h.self_confidence);
    let predictions = item.label.iter().map(|label| {
        let (kind, key) = match answers {
            Answers::Labels(_) => ("choices", "choices"),
            Answers::Fields(_) => ("textarea", "text"),
        };
        let result = json!([{"from_name": "label", "to_name": "text", "type": kind, "value": {key: [label]}}]);
        json!({"model_version": "recorded answer", "score": score, "result": result})
    });
    json!({"data": data, "predictions": predictions.collect::<Vec<_>>()})
}

fn record(item: &Item) -> Value {
    let score = item.hint.map(|h| h.self_confidence);
    let suggestion = item
        .label
        .iter()
        .map(|label| ("label".to_string(), json!({"value": label, "score": score, "agent": "recorded answer"})));
    json!({
        "id": item.id, "fields": {"text": item.message}, "metadata": about(item),
        "suggestions": suggestion.collect::<serde_json::Map<_, _>>(), "responses": {}, "vectors": {},
    })
}

/// The labelling configuration that the tasks are made for.
pub fn label_studio_config(answers: &Answers, reasons: &[&str]) -> String {
    let escape =
        |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let choices = |names: &mut dyn Iterator<Item = &str>| -> String {
        names.map(|name| format!("    <Choice value=\"{}\"/>\n", escape(name))).collect()
    };
    let label = match answers {
        Answers::Labels(labels) => format!(
            "  <Choices name=\"label\" toName=\"text\" choice=\"single\">\n{}  </Choices>\n",
            choices(&mut labels.iter().map(String::as_str))
        ),
        Answers::Fields(fields) => {
            let names: Vec<String> = fields.schema.fields().iter().map(|f| escape(&f.name)).collect();
            let header = match fields.schema.is_text() {
                true => "The answer".to_owned(),
                false => format!("A JSON object of: {}", names.join(", ")),
            };
            format!(
                "  <Header value=\"{header}\"/>\n  <TextArea name=\"label\" toName=\"text\" editable=\"true\" maxSubmissions=\"1\"/>\n"
            )
        }
    };
    format!(
        "<View>\n  <Text name=\"text\" value=\"$text\"/>\n{label}\
         \x20 <Header value=\"Or reject, with a reason\"/>\n  <Choices name=\"reject\" toName=\"text\" choice=\"single\">\n{}  </Choices>\n\
         \x20 <TextArea name=\"note\" toName=\"text\"/>\n</View>\n",
        choices(&mut reasons.iter().copied())
    )
}

/// What came back.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imported {
    /// New decisions by reviewer, in the order of the file.
    pub decisions: BTreeMap<String, Vec<Decision>>,
    /// Judgements that the store holds already, as when a file is read twice.
    pub known: u64,
    /// Entries that can't be taken, by reason.
    pub left_out: BTreeMap<&'static str, u64>,
}

/// One person's answer to one item.
struct Answer {
    reviewer: String,
    at: Option<String>,
    label: Option<String>,
    reject: Option<String>,
    note: Option<String>,
    cancelled: bool,
    dwell_ms: Option<u64>,
}

/// Reads a list of tasks or records; which of the two, the entries tell. `now` stands in where an answer has no time.
///
/// # Errors
/// When it is neither.
pub fn import(text: &str, queue: &Queue, decisions: &Decisions, now: &str) -> Result<Imported, String> {
    let value: Value = serde_json::from_str(text)
        .map_err(|e| format!("it is no JSON: {e}; export as JSON (not JSON-MIN, CSV or TSV)"))?;
    let entries = value.as_array().ok_or("it is no JSON list of tasks (Label Studio) or records (Argilla)")?;
    let items: HashMap<&str, &Item> = queue.items.iter().map(|item| (item.id.as_str(), item)).collect();
    let mut imported = Imported::default();
    for (n, entry) in entries.iter().enumerate() {
        let (about, text, answers) = match (entry.get("data"), entry.get("fields")) {
            (Some(data), _) => (data, data.get("text"), label_studio(entry)),
            (_, Some(fields)) => (entry.get("metadata").unwrap_or(&Value::Null), fields.get("text"), argilla(entry)),
            _ => return Err(format!("entry {} has neither `data` (Label Studio) nor `fields` (Argilla)", n + 1)),
        };
        if answers.is_empty() {
            continue;
        }
        let id = about.get("item").or(entry.get("id")).and_then(Value::as_str).unwrap_or_default();
        let Some(item) = items.get(id) else {
            *imported.left_out.entry("its item is not in the queue").or_default() += answers.len() as u64;
            continue;
        };
        // Of the text that they had before them, whatever digest the entry claims.
        let shown = text.and_then(Value::as_str).map(|text| shown_sha256(text, &item.answer));
        if shown.as_deref() != Some(item.shown_sha256.as_str()) {
            *imported.left_out.entry("it is about another text").or_default() += answers.len() as u64;
            continue;
        }
        for answer in answers {
            match decision(item, &answer, &queue.answers, now) {
                Err(why) => *imported.left_out.entry(why).or_default() += 1,
                Ok(new) if is_known(&new, decisions) => imported.known += 1,
                Ok(new) => imported.decisions.entry(answer.reviewer).or_default().push(new),
            }
        }
    }
    Ok(imported)
}

fn is_known(new: &Decision, decisions: &Decisions) -> bool {
    decisions.of(&new.item).vote_of(&new.reviewer).is_some_and(|old| {
        (old.verdict, &old.label, &old.note, &old.shown_sha256)
            == (new.verdict, &new.label, &new.note, &new.shown_sha256)
    })
}

fn decision(item: &Item, answer: &Answer, answers: &Answers, now: &str) -> Result<Decision, &'static str> {
    let given = answer.label.as_deref().map(|label| answers.read(label).map_err(|_| answers.void()));
    let given = given.transpose()?;
    let (verdict, label) = match (&answer.reject, given.as_deref()) {
        (Some(_), _) => (Verdict::Reject, None),
        (None, Some(label)) if Some(label) == item.label.as_deref() => (Verdict::Accept, Some(label)),
        (None, Some(label)) => (Verdict::Correct, Some(label)),
        (None, None) if answer.cancelled => (Verdict::Skip, None),
        (None, None) => return Err("it has neither a label nor a rejection"),
    };
    let note = answer.reject.iter().chain(&answer.note).cloned().collect::<Vec<_>>().join("; ");
    let at = answer.at.as_deref().unwrap_or(now);
    let note = Some(note).filter(|note| !note.is_empty());
    let made = Decision::new(at, &answer.reviewer, &item.id, verdict, label, &item.shown_sha256, note.as_deref());
    // Nobody there sees what others answered.
    Ok(Decision { pass: Some(Pass::Blind), dwell_ms: answer.dwell_ms, ..made }.sealed())
}

fn label_studio(task: &Value) -> Vec<Answer> {
    let annotations = task.get("annotations").and_then(Value::as_array);
    annotations.into_iter().flatten().map(annotation).collect()
}

fn annotation(annotation: &Value) -> Answer {
    let who = match annotation.get("completed_by") {
        Some(Value::Number(n)) => n.to_string(),
        Some(Value::String(name)) => name.clone(),
        Some(who) => ["email", "username", "id"]
            .iter()
            .find_map(|key| {
                who.get(key).and_then(|v| v.as_str().map(str::to_string).or(v.as_u64().map(|n| n.to_string())))
            })
            .unwrap_or_else(|| "unknown".to_string()),
        None => "unknown".to_string(),
    };
    let results = annotation.get("result").and_then(Value::as_array);
    let of = |name: &str, key: &str| {
        results
            .into_iter()
            .flatten()
            .filter(|r| r.get("from_name").and_then(Value::as_str) == Some(name))
            .find_map(|r| first_text(r.get("value")?.get(key)?))
    };
    let utc =
        |text: &str| OffsetDateTime::parse(text, &Rfc3339).ok()?.to_offset(time::UtcOffset::UTC).format(&Rfc3339).ok();
    let seconds = annotation.get("lead_time").and_then(Value::as_f64).filter(|s| s.is_finite() && *s >= 0.0);
    Answer {
        reviewer: format!("label-studio:{who}"),
        at: annotation.get("updated_at").or(annotation.get("created_at")).and_then(Value::as_str).and_then(utc),
        label: of("label", "choices").or_else(|| of("label", "text")),
        reject: of("reject", "choices"),
        note: of("note", "text"),
        cancelled: annotation.get("was_cancelled").and_then(Value::as_bool).unwrap_or(false),
        dwell_ms: seconds.map(|s| (s * 1000.0) as u64),
    }
}

/// A text, or the first of a list of texts; an empty one is none.
fn first_text(value: &Value) -> Option<String> {
    let text = value.as_str().or_else(|| value.as_array()?.first()?.as_str())?.trim();
    (!text.is_empty()).then(|| text.to_string())
}

/// A response is to one question; one person's responses to a record are one answer.
fn argilla(record: &Value) -> Vec<Answer> {
    let mut by_person: BTreeMap<String, Answer> = BTreeMap::new();
    let questions = record.get("responses").and_then(Value::as_object);
    for (question, responses) in questions.into_iter().flatten() {
        for response in responses.as_array().into_iter().flatten() {
            let who = response.get("user_id").and_then(Value::as_str).unwrap_or("unknown");
            let Some(text) = response.get("value").and_then(first_text) else { continue };
            let answer = by_person.entry(who.to_string()).or_insert_with(|| Answer {
                reviewer: format!("argilla:{who}"),
                at: None,
                label: None,
                reject: None,
                note: None,
                cancelled: false,
                dwell_ms: None,
            });
            match question.as_str() {
                "label" => answer.label = Some(text),
                "reject" => answer.reject = Some(text),
                _ => answer.note = Some(text),
            }
        }
    }
    by_person.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::review::{QueueReason, Source, Standing};
    use limbeck_artifact::dataset::Split;

    fn queue() -> Queue {
        let item = |id: &str, label: Option<&str>| {
            let (message, answer) = (format!("text of {id} <&\">"), label.unwrap_or("what?").to_string());
            Item {
                id: id.to_string(),
                split: Split::Train,
                shown_sha256: shown_sha256(&message, &answer),
                message,
                answer,
                label: label.map(str::to_string),
                rivals: Vec::new(),
                reason: QueueReason::Random,
                detail: None,
                feedback: None,
                at: None,
                source: Source::Random,
                hint: None,
                draw: None,
                copies: 0,
            }
        };
        let items = vec![item("t1", Some("a")), item("t2", Some("b")), item("t3", None)];
        Queue { items, answers: Answers::Labels(vec!["a".into(), "b".into()]), reviewers: 1 }
    }

    fn all(imported: &Imported) -> Vec<(String, Verdict, Option<String>, Option<String>)> {
        let list = imported.decisions.values().flatten();
        list.map(|d| (format!("{} {}", d.reviewer, d.item), d.verdict, d.label.clone(), d.note.clone())).collect()
    }

    #[test]
    fn tasks_come_back_as_decisions() {
        let queue = queue();
        let mut tasks = export(queue.items.iter(), &queue.answers, Format::LabelStudio);
        assert_eq!(tasks[0]["predictions"][0]["result"][0]["value"]["choices"], json!(["a"]));
        assert_eq!(tasks[2]["predictions"], json!([]));
        let choice = |name: &str, value: &str| json!({"from_name": name, "to_name": "text", "type": "choices", "value": {"choices": [value]}});
        tasks[0]["annotations"] = json!([
            {"completed_by": 7, "created_at": "2026-03-09T21:52:49.5+01:00", "lead_time": 4.25, "result": [choice("label", "a")]},
            {"completed_by": {"email": "x@y.z"}, "result": [choice("label", "b"), {"from_name": "note", "value": {"text": ["unsure"]}}]},
        ]);
        tasks[1]["annotations"] = json!([
            {"completed_by": 7, "was_cancelled": true, "result": []},
            {"completed_by": 8, "result": [choice("label", "c")]},
            {"completed_by": 9, "result": []},
        ]);
        tasks[2]["annotations"] = json!([{"completed_by": 7, "result": [choice("reject", "test or spam")]}]);
        let now = "2026-04-01T00:00:00Z";
        let imported = import(&tasks.to_string(), &queue, &Decisions::default(), now).unwrap();
        let text = |s: &str| Some(s.to_string());
        assert_eq!(
            all(&imported),
            [
                ("label-studio:7 t1".into(), Verdict::Accept, text("a"), None),
                ("label-studio:7 t2".into(), Verdict::Skip, None, None),
                ("label-studio:7 t3".into(), Verdict::Reject, None, text("test or spam")),
                ("label-studio:x@y.z t1".into(), Verdict::Correct, text("b"), text("unsure")),
            ]
        );
        assert_eq!(imported.left_out.values().sum::<u64>(), 2);
        let first = &imported.decisions["label-studio:7"][0];
        assert_eq!((first.at.as_str(), first.dwell_ms), ("2026-03-09T20:52:49.5Z", Some(4250)));

        let mut decisions = Decisions::default();
        imported.decisions.values().flatten().for_each(|d| decisions.add(d.clone()));
        assert_eq!(queue.settled(&queue.items[0], &decisions), Standing::Disputed);
        assert_eq!(queue.settled(&queue.items[2], &decisions), Standing::Rejected("test or spam".into()));
        let again = import(&tasks.to_string(), &queue, &decisions, "2026-05-01T00:00:00Z").unwrap();
        assert_eq!((again.decisions.len(), again.known), (0, 4));
    }

    #[test]
    fn records_come_back_as_decisions() {
        let queue = queue();
        let mut records = export(queue.items.iter(), &queue.answers, Format::Argilla);
        assert_eq!(records[1]["suggestions"]["label"]["value"], json!("b"));
        records[0]["responses"] = json!({
            "label": [{"value": "b", "user_id": "u1"}, {"value": "a", "user_id": "u2"}],
            "note": [{"value": "hm", "user_id": "u1"}],
        });
        records[1]["fields"]["text"] = json!("another text");
        records[1]["responses"] = json!({"label": [{"value": "b", "user_id": "u1"}]});
        let imported = import(&records.to_string(), &queue, &Decisions::default(), "2026-04-01T00:00:00Z").unwrap();
        let text = |s: &str| Some(s.to_string());
        assert_eq!(
            all(&imported),
            [
                ("argilla:u1 t1".into(), Verdict::Correct, text("b"), text("hm")),
                ("argilla:u2 t1".into(), Verdict::Accept, text("a"), None),
            ]
        );
        assert_eq!(imported.left_out, BTreeMap::from([("it is about another text", 1)]));
    }

    #[test]
    fn what_is_neither_is_told() {
        let read = |text: &str| import(text, &queue(), &Decisions::default(), "2026-04-01T00:00:00Z").unwrap_err();
        assert!(read("text,label").contains("not JSON-MIN"));
        assert!(read("{}").contains("no JSON list"));
        assert!(read("[{\"text\": \"x\"}]").contains("entry 1 has neither"));
    }

    #[test]
    fn the_configuration_escapes_labels() {
        let config = label_studio_config(&Answers::Labels(vec!["a<b & \"c\"".to_string()]), &["spam"]);
        assert!(config.contains("<Choice value=\"a&lt;b &amp; &quot;c&quot;\"/>"), "{config}");
    }

    #[test]
    fn fields_go_as_text_and_come_back_checked() {
        let schema = r#"{"type":"object","properties":{"time":{"type":"string"},"people":{"type":"integer"}},
            "required":["people"],"additionalProperties":false}"#;
        let mut queue = queue();
        queue.answers = Answers::of(&[], Some(schema)).unwrap();
        queue.items.iter_mut().for_each(|item| item.label = None);
        queue.items[0].label = Some(r#"{"people":4}"#.to_string());
        let mut tasks = export(queue.items.iter(), &queue.answers, Format::LabelStudio);
        let result = &tasks[0]["predictions"][0]["result"][0];
        assert_eq!((&result["type"], &result["value"]["text"]), (&json!("textarea"), &json!([r#"{"people":4}"#])));
        let config = label_studio_config(&queue.answers, &["spam"]);
        assert!(config.contains("<TextArea name=\"label\"") && config.contains("time, people"), "{config}");
        let given = |text: &str| {
            let value = json!({"from_name": "label", "to_name": "text", "type": "textarea", "value": {"text": [text]}});
            json!([{"completed_by": 7, "result": [value]}])
        };
        tasks[0]["annotations"] = given("{ \"people\": 4.0, \"time\": null }");
        tasks[1]["annotations"] = given("```json\n{\"people\": 5, \"time\": \"7\"}\n```");
        tasks[2]["annotations"] = given("{\"people\": \"five\"}");
        let now = "2026-04-01T00:00:00Z";
        let imported = import(&tasks.to_string(), &queue, &Decisions::default(), now).unwrap();
        let label = |s: &str| Some(s.to_string());
        assert_eq!(
            all(&imported),
            [
                ("label-studio:7 t1".into(), Verdict::Accept, label(r#"{"people":4}"#), None),
                ("label-studio:7 t2".into(), Verdict::Correct, label(r#"{"time":"7","people":5}"#), None),
            ]
        );
        assert_eq!(imported.left_out, BTreeMap::from([("its answer is not valid under the schema", 1)]));

        let mut records = export(queue.items.iter(), &queue.answers, Format::Argilla);
        records[1]["responses"] = json!({"label": [{"value": "{\"people\": 6}", "user_id": "u1"}]});
        let imported = import(&records.to_string(), &queue, &Decisions::default(), now).unwrap();
        assert_eq!(all(&imported), [("argilla:u1 t2".into(), Verdict::Correct, label(r#"{"people":6}"#), None)]);
    }
}
