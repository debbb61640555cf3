//! Curation of answers that are fields, on the booking extractor's traces: what is not valid is data, what differs as the
//! messages do is no conflict, and the frozen targets are canonical.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

use limbeck_artifact::dataset::{Dataset, LabelSource, Split};
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_data_curation::curate::{Curated, load};
use limbeck_data_curation::redact::RedactOptions;
use limbeck_data_curation::review::{Decisions, FreezePlan, Frozen, QUEUE_FILE, QueueReason, freeze, queue};
use limbeck_data_curation::simulate::booking::{Booked, BookingPlan, simulate_bookings};
use limbeck_data_curation::taxonomy::{object, values};
use limbeck_data_curation::text::normal_form;
use limbeck_data_curation::trace::visible_message;
use limbeck_data_curation::{
    Answers, CurateOptions, CuratePlan, CurateSummary, Fields, Fractions, ImportPlan, NamedFile, curate, import,
};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

fn recipe(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/booking-extractor").join(name)
}

fn fields() -> Fields {
    Fields::parse(&fs::read_to_string(recipe("schema.json")).unwrap()).unwrap()
}

fn named(path: PathBuf) -> Vec<NamedFile> {
    vec![NamedFile { name: "file".to_string(), path }]
}

fn curated(dir: &Path, traces: PathBuf) -> (CurateSummary, Vec<Curated>) {
    let out = dir.join("import");
    let plan = ImportPlan {
        traces: named(traces),
        redact: true,
        redaction: RedactOptions::default(),
        max_line_bytes: 100_000,
        out: out.clone(),
    };
    import(&plan, &Silent).unwrap();
    let plan = CuratePlan {
        imported: out,
        answers: Answers::Fields(fields()),
        min_chars: 1,
        max_chars: 8000,
        near_dup_threshold: 0.8,
        split: Fractions { valid: 0.1, calibration: 0.15, test: 0.3 },
        seed: 17,
        options: CurateOptions::default(),
        out: dir.join("curate"),
    };
    let summary = curate(&plan, &Silent).unwrap();
    (summary, load(&dir.join("curate")).unwrap())
}

fn freeze_plan(dir: &Path, decisions: PathBuf) -> FreezePlan {
    FreezePlan {
        imported: dir.join("import"),
        curated: dir.join("curate"),
        decisions: named(decisions),
        system: None,
        reviewers_per_item: 1,
        min_reviewed: Split::ALL.into_iter().map(|s| (s, 1.0)).collect(),
        unreviewed_weight: 0.0,
        seed: 17,
        max_label_error: 0.05,
        redacted: true,
        out: dir.join("dataset"),
        left_out: dir.join("left_out.jsonl"),
    }
}

#[test]
fn the_recipes_traces_become_a_dataset_of_fields() {
    let dir = tempfile::tempdir().unwrap();
    let (summary, rows) = curated(dir.path(), recipe("traces.jsonl"));
    let (fields, answers) = (fields(), Answers::Fields(fields()));
    assert_eq!((summary.labels.len(), summary.schema.as_deref()), (0, Some(fields.text.as_str())));
    let invalid = rows.iter().filter(|row| row.label.is_none()).count();
    assert!((5..40).contains(&invalid) && invalid as u64 == summary.outside_taxonomy, "{invalid}");
    for row in &rows {
        assert_eq!(row.label.as_deref(), row.row.trace.read(&answers).ok().as_deref());
    }
    // Every combination of fields that is not rare is in every split, near its share.
    let mut patterns: BTreeMap<u64, BTreeMap<Split, f64>> = BTreeMap::new();
    for row in &rows {
        let pattern = row.label.as_deref().map_or(0, |label| fields.pattern(label));
        *patterns.entry(pattern).or_default().entry(row.split).or_default() += 1.0;
    }
    for of in patterns.values().filter(|of| of.values().sum::<f64>() >= 60.0) {
        let test = of[&Split::Test] / of.values().sum::<f64>();
        assert!((0.2..0.4).contains(&test), "{test}");
    }

    // The queue: what is wrong with an answer is told in words.
    let folder = dir.path().join("curate");
    let queue = queue(&folder, 3).unwrap();
    // What curate put on the shelf is what the rows say.
    fs::remove_file(folder.join(QUEUE_FILE)).unwrap();
    assert_eq!(limbeck_data_curation::review::queue(&folder, 3).unwrap(), queue);
    let of = |reason| queue.items.iter().filter(move |i| i.reason == reason).collect::<Vec<_>>();
    assert_eq!(of(QueueReason::Invalid).len(), invalid);
    let details: Vec<&str> = of(QueueReason::Invalid).iter().map(|i| i.detail.as_deref().unwrap()).collect();
    for part in ["people: a text is needed, not 4", "party_size: ", "cut it off", "no JSON"] {
        assert!(details.iter().any(|d| d.contains(part)), "no {part} in {details:?}");
    }
    let made_up = of(QueueReason::NotInMessage);
    assert!((5..60).contains(&made_up.len()), "{}", made_up.len());
    assert!(made_up.iter().any(|i| i.detail.as_deref() == Some("time \"7pm\"")), "{made_up:?}");
    for item in of(QueueReason::Disagreement) {
        assert!(item.rivals.iter().all(|rival| Some(rival) != item.label.as_ref()));
    }
    assert!(!of(QueueReason::RareFields).is_empty());

    let Frozen::Done(card) = freeze(&freeze_plan(dir.path(), recipe("decisions.jsonl")), &Silent).unwrap() else {
        panic!("every row is decided");
    };
    let dataset = Dataset::load(&dir.path().join("dataset")).unwrap();
    assert_eq!((dataset.card.digest, card.labels.len()), (card.digest.clone(), 0));
    let mut corrected = 0;
    for row in Split::ALL.into_iter().flat_map(|split| dataset_rows(dir.path(), split)) {
        assert_eq!(row.label_source, LabelSource::Human);
        assert_eq!(answers.read(&row.target).unwrap(), row.target);
        // The gold spans are the message's own words.
        let message = normal_form(&visible_message(&row.messages));
        for value in object(&row.target).values().flat_map(values) {
            assert!(message.contains(&normal_form(&value)), "{value} in {message}");
        }
        corrected += usize::from(row.recorded.answer != row.target);
    }
    assert!((50..200).contains(&corrected), "the frontier errs in some 9 of 100: {corrected}");
}

fn dataset_rows(dir: &Path, split: Split) -> Vec<limbeck_artifact::dataset::Example> {
    Dataset::load(&dir.join("dataset")).unwrap().rows(split).to_vec()
}

/// A line of a log.
fn call(id: usize, asked: Option<&str>, message: &str, answer: &str) -> String {
    let mut messages = vec![serde_json::json!({"role": "user", "content": message})];
    if let Some(asked) = asked {
        messages.insert(0, serde_json::json!({"role": "assistant", "content": asked}));
    }
    serde_json::json!({
        "id": format!("c{id}"), "customer": format!("g{id}"), "request": {"messages": messages},
        "response": {"model": "m", "choices": [{"message": {"content": answer}}]},
    })
    .to_string()
}

#[test]
fn copies_are_compared_by_what_they_say() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines: Vec<String> = (0..40).map(|i| call(100 + i, None, &format!("{}", 7919 * (i + 3)), "{}")).collect();
    let (time, people) = (Some("What time would you like the table?"), Some("For how many people will it be?"));
    lines.extend([
        // The same words after two questions are two messages, and other words after one question too.
        call(0, time, "13", "{\"time\": \"13\"}"),
        call(1, people, "13", "{\"people\": \"13\"}"),
        call(2, time, "14", "{\"time\": \"14\"}"),
        // A copy in another dress of the answer is no conflict, one with another answer is.
        call(3, None, "Dinner at eight for two, thank you", "{\"time\": \"eight\", \"people\": \"two\"}"),
        call(4, None, "dinner at eight for two, thank you!", "```json\n{\"people\":\"two\",\"time\":\"eight\"}\n```"),
        call(5, None, "Lunch on Sunday in the garden please", "{\"date\": \"Sunday\"}"),
        call(6, None, "lunch on sunday in the garden please", "{}"),
        // Near copies that say something else may be answered otherwise.
        call(7, None, "We would like to book a table for tomorrow evening at 19:30 o'clock", "{\"time\": \"19:30\"}"),
        call(8, None, "We would like to book a table for tomorrow evening at 20:30 o'clock", "{\"time\": \"20:30\"}"),
    ]);
    let traces = dir.path().join("traces.jsonl");
    fs::write(&traces, lines.join("\n")).unwrap();
    let (summary, rows) = curated(dir.path(), traces);
    let kept: BTreeSet<&str> = rows.iter().map(|row| row.row.trace.id.as_str()).collect();
    assert!(["c0", "c1", "c2"].iter().all(|id| kept.contains(id)), "{kept:?}");
    assert!(!kept.contains("c4") && !kept.contains("c6") && !kept.contains("c8"), "{kept:?}");
    assert_eq!(summary.left_out.get("exact_duplicate"), Some(&2));
    let rivals: Vec<(&str, &[String])> =
        rows.iter().filter(|r| !r.rivals.is_empty()).map(|r| (r.row.trace.id.as_str(), r.rivals.as_slice())).collect();
    assert_eq!(rivals, [("c5", &["{}".to_string()][..])]);
    assert_eq!(summary.disagreements, 1);
}

#[test]
fn a_decision_that_can_not_be_read_is_told() {
    let dir = tempfile::tempdir().unwrap();
    curated(dir.path(), recipe("traces.jsonl"));
    let decisions = fs::read_to_string(recipe("decisions.jsonl")).unwrap();
    let first = Decisions::load(&[recipe("decisions.jsonl")]).unwrap().list()[0].clone();
    let wrong = limbeck_data_curation::review::Decision::new(
        "2026-01-01T00:00:00Z",
        "ann",
        &first.item,
        limbeck_data_curation::review::Verdict::Correct,
        Some("{\"size\": 3}"),
        &first.shown_sha256,
        None,
    );
    let path = dir.path().join("decisions.jsonl");
    fs::write(&path, format!("{decisions}{}\n", wrong.to_line())).unwrap();
    let events = Mutex::new(Vec::new());
    let emit = |kind: EventKind| events.lock().unwrap().push(kind);
    freeze(&freeze_plan(dir.path(), path), &emit).unwrap();
    let told: Vec<String> = events
        .into_inner()
        .unwrap()
        .into_iter()
        .filter_map(|kind| match kind {
            EventKind::Warning { text } => Some(text),
            _ => None,
        })
        .collect();
    assert!(told.iter().any(|t| t.contains(&wrong.id) && t.contains("by ann") && t.contains("size: ")), "{told:?}");
}

#[test]
fn simulated_bookings_repeat_and_err_as_often_as_asked() {
    let slots = ["date", "time", "people", "first_name", "last_name"];
    let words = ["friday", "half seven", "4 people", "Ann", "Novak"];
    let booked = |i: usize| Booked {
        text: format!("booking {} of {}", i, words[..i % 5].join(" and ")),
        requested: if i.is_multiple_of(7) { vec!["time".to_string()] } else { Vec::new() },
        values: (0..i % 5).map(|s| (slots[s], words[s].to_string())).collect(),
    };
    let source: Vec<Booked> = (0..2_000).map(booked).collect();
    let schema = fields().text;
    let plan = BookingPlan { messages: [200, 300, 300, 400], ..BookingPlan::default() };
    let [traces, decisions] = simulate_bookings(&plan, &source, &schema).unwrap();
    assert_eq!(simulate_bookings(&plan, &source, &schema).unwrap(), [traces.clone(), decisions.clone()]);
    let other = BookingPlan { seed: 18, ..plan.clone() };
    assert_ne!(simulate_bookings(&other, &source, &schema).unwrap()[0], traces);
    let few = BookingPlan { messages: [0, 0, 0, 900], ..plan };
    assert!(simulate_bookings(&few, &source, &schema).unwrap_err().to_string().contains("with 3 slots"));

    assert_eq!(traces.lines().count(), 1_200 + 1_200 / 18 + 12);
    assert_eq!(decisions.lines().count(), 1_200 + 1_200 / 18, "a decision on each call that can be read");
    let corrected = decisions.lines().filter(|line| line.contains("\"correct\"")).count() as f64;
    let share = corrected / decisions.lines().count() as f64;
    assert!((0.07..0.13).contains(&share), "{share}");
    let asked = traces.lines().filter(|line| line.contains("What time would you like the table?")).count();
    assert!((120..240).contains(&asked), "{asked}");
}
