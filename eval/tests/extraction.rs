//! An evaluation of fields with made-up answers: what counts as right, gates under their names, confidences and routing,
//! and that an answer which is not valid is served by nobody.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

#[allow(dead_code, reason = "answers are written here, not chosen")]
mod support;

use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_artifact::schema::Schema;
use limbeck_eval::{
    AnswerError, AnswerWriter, Arm, CardPlan, EvalError, EvalPlan, Fields, Gate, Metric, Report, Rule, Said, SaidOrNot,
    Verdict, evaluate, model_card, render_html, terminal_summary,
};
use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::Mutex;
use support::Data;

const SCHEMA: &str = r#"{"type": "object", "properties": {"time": {"type": "string"}, "people": {"type": "integer"}},
    "additionalProperties": false}"#;

/// 40 calibration and 80 test rows, "at N pm" for N people; every fourth names no number of people.
fn data() -> Data {
    let mut data = Data::new(80);
    for rows in [&mut data.train, &mut data.calibration, &mut data.test] {
        for (i, row) in rows.iter_mut().enumerate() {
            let people = if i % 4 == 0 { String::new() } else { format!(",\"people\":{}", i % 7 + 1) };
            row.target = format!("{{\"time\":\"{i} pm\"{people}}}");
            row.messages = vec![Message::new("user", &format!("{i}"))];
            // The frontier dresses its answers, is wrong on every tenth and writes no JSON on every twentieth.
            row.recorded.answer = match i % 20 {
                0 => "I can't".to_owned(),
                10 => "{\"time\": \"noon\"}".to_owned(),
                _ => format!("```json\n{}\n```", row.target.replace("pm", "PM")),
            };
        }
    }
    data.card.labels = Vec::new();
    data
}

fn target(rows: &[Example], message: &str) -> String {
    rows.iter().find(|row| row.messages[0].content == message).unwrap().target.clone()
}

/// Right but for every eighth row, where it is unsure: a value too many, one missing, another, or no JSON at all.
struct Model(Vec<Example>);

impl AnswerWriter for Model {
    fn write(&mut self, messages: &[Message]) -> Result<Said, AnswerError> {
        let message = &messages[0].content;
        let (i, right): (usize, _) = (message.parse()?, target(&self.0, message));
        let (text, confidence) = match i % 32 {
            0 => ("{\"time\":\"0 pm\",\"people\":9}".to_owned(), 0.4),
            8 => ("{}".to_owned(), 0.3),
            16 => ("{\"time\":\"half\"}".to_owned(), 0.2),
            24 => ("so be it".to_owned(), 0.99),
            _ => (right, 0.95),
        };
        Ok(Said { text, confidence: Some(confidence) })
    }
}

fn plan(dir: &Path) -> EvalPlan {
    let gate = |name: &str, rule| Gate { name: name.into(), rule };
    EvalPlan {
        labels: Vec::new(),
        fields: Some(Fields { schema: Schema::parse(SCHEMA).unwrap(), text: SCHEMA.to_owned() }),
        candidate: "q8".into(),
        gates: vec![
            gate("exact", Rule::Floor { metric: Metric::ExactMatch, min: 0.7 }),
            gate("valid", Rule::Floor { metric: Metric::Validity, min: 0.999 }),
            gate("frontier", Rule::NonInferiority { against: "frontier".into(), margin: 0.3 }),
        ],
        threshold: 0.7,
        mistakes: 20,
        ..support::plan(dir)
    }
}

fn run(plan: &EvalPlan, data: &Data) -> Result<Report, EvalError> {
    let rows: Vec<Example> = data.test.iter().chain(&data.calibration).cloned().collect();
    let writer = |name: &str| {
        let rows = rows.clone();
        Arm::writer(name, "writes", name, move || Ok(Box::new(Model(rows)) as Box<dyn AnswerWriter>))
    };
    let arms = vec![Arm::recorded("frontier", "recorded"), writer("tuned").calibrated(false), writer("q8")];
    evaluate(plan, arms, data.rows(), &Silent)
}

#[test]
fn fields_are_measured_gated_and_routed() {
    let (dir, data) = (tempfile::tempdir().unwrap(), data());
    let report = run(&plan(dir.path()), &data).unwrap();
    // Of 80 rows 0, 8, 16, ... are wrong: ten, of which 24 and 56 are not valid.
    let candidate = report.candidate_arm().unwrap();
    let scores = &candidate.scores;
    assert_eq!((scores.rows, scores.correct, scores.invalid), (80, 70, 2));
    let fields = candidate.extraction.as_ref().unwrap();
    let counts = |i: usize| {
        let f = &fields.fields[i];
        [f.correct, f.wrong, f.missing, f.hallucinated]
    };
    // 0, 32, 64: a number of people too many, and only row 0's time right; 8, 40, 72: nothing; 16, 48: another time; 24, 56.
    assert_eq!(counts(0), [71, 4, 5, 0]);
    assert_eq!(counts(1), [60, 0, 0, 3]);
    assert_eq!((fields.all.correct, fields.valid), (131, 78));
    // The frontier is judged by the same rule: case and a fence do not count.
    let frontier = report.frontier_arm().unwrap();
    assert_eq!((frontier.scores.correct, frontier.scores.invalid), (72, 4));
    assert!(frontier.calibration.is_none());
    let untempered = report.arm("tuned").unwrap().calibration.as_ref().unwrap();
    assert_eq!(
        (untempered.temperature, untempered.fitted_rows),
        (1.0, 0),
        "it was not asked about the calibration rows"
    );

    assert_eq!(report.gates[0].verdict, Verdict::Pass, "{}", report.gates[0].reason);
    assert!(report.gates[0].reason.starts_with("Exact match is 87.5 % (70 of 80)"), "{}", report.gates[0].reason);
    assert_eq!(report.gates[1].demand, "valid answers at least 99.9 %");
    assert!(report.gates[1].reason.contains("(78 of 80)"), "{}", report.gates[1].reason);
    assert_eq!(report.gates[2].verdict, Verdict::Pass);
    assert!(report.gates[2].reason.starts_with("Exact match minus that of frontier"), "{}", report.gates[2].reason);

    // However sure of it, nobody serves what is not valid.
    let routing = report.routing.as_ref().unwrap();
    assert_eq!((routing.served.served, routing.served.wrong), (70, 0));
    // Fitted on what is valid: of 40 rows those without 24.
    assert_eq!(candidate.calibration.as_ref().unwrap().fitted_rows, 39);
    assert!(report.mistakes.iter().any(|m| m.answer.is_none() && m.confidence.is_none()));
    let wrong = report.mistakes.iter().find(|m| m.answer.as_deref() == Some("{\"time\":\"half\"}")).unwrap();
    assert!(
        wrong.gold.starts_with("{\"time\":\"16 pm\"") || wrong.gold.starts_with("{\"time\":\"48 pm\""),
        "{wrong:?}"
    );

    assert_eq!(run(&plan(dir.path()), &data).unwrap(), report, "kept answers give the same report");
    let path = dir.path().join("report.json");
    report.save(dir.path(), &Silent).unwrap();
    assert_eq!(Report::load(&path).unwrap(), report);
}

/// Writes many at once, and counts. Alone it may answer otherwise.
struct Many {
    model: Model,
    otherwise: bool,
    calls: Rc<RefCell<(Vec<usize>, usize)>>,
}

impl AnswerWriter for Many {
    fn write(&mut self, messages: &[Message]) -> Result<Said, AnswerError> {
        self.calls.borrow_mut().1 += 1;
        let said = self.model.write(messages)?;
        Ok(if self.otherwise { Said { text: "{}".into(), ..said } } else { said })
    }

    fn write_all(&mut self, asked: &[&[Message]], done: &mut dyn FnMut()) -> Result<Vec<SaidOrNot>, AnswerError> {
        self.calls.borrow_mut().0.push(asked.len());
        Ok(asked.iter().rev().map(|_| done()).zip(asked).map(|(_, messages)| self.model.write(messages)).collect())
    }
}

/// Answers come from a batch, latencies from single calls, and the report says so.
#[test]
fn rows_are_written_at_once_and_some_are_timed_alone() {
    let mut data = data();
    let more: Vec<Example> = (0..4)
        .flat_map(|copy| {
            data.test
                .iter()
                .map(move |row| Example { id: format!("{}-{copy}", row.id), ..row.clone() })
                .collect::<Vec<_>>()
        })
        .collect();
    data.test = more;
    let rows: Vec<Example> = data.test.iter().chain(&data.calibration).cloned().collect();
    let run = |otherwise: bool, events: &Mutex<Vec<EventKind>>| {
        let dir = tempfile::tempdir().unwrap();
        let calls = Rc::new(RefCell::new((Vec::new(), 0)));
        let many = Many { model: Model(rows.clone()), otherwise, calls: calls.clone() };
        let q8 = Arm::writer("q8", "writes", "q8", move || Ok(Box::new(many) as Box<dyn AnswerWriter>));
        let arms = vec![Arm::recorded("frontier", "recorded"), q8];
        let emit = |event: EventKind| events.lock().unwrap().push(event);
        let report = evaluate(&plan(dir.path()), arms, data.rows(), &emit).unwrap();
        (report, calls.take())
    };
    let events = Mutex::new(Vec::new());
    let (report, (batches, alone)) = run(false, &events);
    assert_eq!((batches, alone), (vec![40 + 320], 100));
    let candidate = report.candidate_arm().unwrap();
    assert_eq!((candidate.scores.rows, candidate.latency.as_ref().unwrap().calls), (320, 100));
    assert_eq!(candidate.scores.correct, 280, "every row counts, timed or not");
    assert!(report.notes.iter().any(|note| note.contains("100 of the 320 test rows were asked one by one")));
    let page = render_html(&report).unwrap();
    assert!(page.contains("one by one"));
    let rows_told = |events: &[EventKind]| {
        events.iter().filter(|e| matches!(e, EventKind::Progress { done: 360, total: 360, .. })).count()
    };
    assert_eq!(rows_told(&events.lock().unwrap()), 1);
    assert!(!events.lock().unwrap().iter().any(|e| matches!(e, EventKind::Warning { .. })));

    let (other, _) = run(true, &events);
    let warned = |e: &EventKind| matches!(e, EventKind::Warning { text } if text.contains("read otherwise when written one by one"));
    assert!(events.lock().unwrap().iter().any(warned));
    assert!(other.candidate_arm().unwrap().scores.correct < 280);
}

#[test]
fn a_reader_sees_the_fields() {
    let (dir, data) = (tempfile::tempdir().unwrap(), data());
    let report = run(&plan(dir.path()), &data).unwrap();
    let text = terminal_summary(&report);
    for part in ["80 reviewed test rows, 2 fields", "exact match", "field F1", "97.5 %", "hallucinated", "all fields"] {
        assert!(text.contains(part), "no {part} in:\n{text}");
    }
    let page = render_html(&report).unwrap();
    for part in ["Field by field", "Exact match, %", "Hallucinated", "All fields right", "none too many"] {
        assert!(page.contains(part), "no {part}");
    }
    for part in ["Class by class", "What is taken for what", "Linear floor", "Accuracy"] {
        assert!(!page.contains(part), "{part}");
    }
    let card = model_card(&CardPlan { pipeline_tag: "text-generation".into(), ..CardPlan::default() }, &report);
    for part in ["pulls 2 fields out of a message", "| people | ", "Fields: time, people.", "type: text-generation"] {
        assert!(card.contains(part), "no {part} in:\n{card}");
    }
    assert!(!card.contains("labels"), "{card}");
}

#[test]
fn a_target_that_the_schema_refuses_is_named() {
    let (dir, mut data) = (tempfile::tempdir().unwrap(), data());
    data.test[3].target = "{\"people\":\"three\"}".to_owned();
    let e = run(&plan(dir.path()), &data).unwrap_err().to_string();
    assert!(e.contains(&data.test[3].id) && e.contains("people: a whole number is needed"), "{e}");
}
