//! The escalation certificate: against scipy, on whole evaluations, in gates, report and policy, of labels and of fields.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::Silent;
use limbeck_artifact::schema::Schema;
use limbeck_eval::{
    Action, AnswerError, AnswerWriter, Answerer, Arm, CardPlan, Escalation, EvalPlan, Fields, Gate, Policy, Report,
    Rule, Said, Score, Scored, SplitMix64, Target, Verdict, accepted_needed, certify, evaluate, least_accepted,
    model_card, render_html, terminal_summary,
};
use serde_json::Value;
use std::cell::Cell;
use std::path::Path;
use support::{Data, Model, plan};

#[test]
fn the_certificate_is_scipys() {
    let golden: Value = serde_json::from_str(include_str!("golden/escalation.json")).unwrap();
    let (mut certified, mut escalated) = (0, 0);
    for (i, case) in golden["cases"].as_array().unwrap().iter().enumerate() {
        let calibration: Vec<Scored> = case["calibration"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| Scored { score: row[0].as_f64(), right: row[1].as_bool().unwrap() })
            .collect();
        let unlabelled: Vec<Option<f64>> = case["unlabelled"].as_array().unwrap().iter().map(Value::as_f64).collect();
        let target =
            Target { max_error: case["max_error"].as_f64().unwrap(), confidence: case["confidence"].as_f64().unwrap() };
        let ours = certify(&calibration, &unlabelled, target, 0.8);
        assert_eq!(ours.least_accepted, case["least"].as_u64().unwrap(), "case {i}");
        assert_eq!(ours.candidates, case["candidates"].as_u64().unwrap(), "case {i}");
        assert_eq!(ours.threshold, case["threshold"].as_f64(), "case {i}");
        let theirs = case["steps"].as_array().unwrap();
        assert_eq!(ours.steps.len(), theirs.len(), "case {i}");
        for (ours, theirs) in ours.steps.iter().zip(theirs) {
            assert_eq!(Some(ours.threshold), theirs["threshold"].as_f64());
            assert_eq!(
                (Some(ours.accepted), Some(ours.errors)),
                (theirs["accepted"].as_u64(), theirs["errors"].as_u64())
            );
            assert!((ours.p - theirs["p"].as_f64().unwrap()).abs() < 1e-10, "case {i}: {ours:?}");
        }
        match case["upper"].as_f64() {
            Some(upper) => assert!((ours.error_upper.unwrap() - upper).abs() < 1e-10, "case {i}"),
            None => assert_eq!((ours.error_upper, ours.accepted), (None, 0)),
        }
        *(if ours.threshold.is_some() { &mut certified } else { &mut escalated }) += 1;
    }
    assert!(certified >= 3 && escalated >= 2, "{certified} {escalated}");
    for row in golden["needed"].as_array().unwrap() {
        let of = |key: &str| row[key].as_f64().unwrap();
        let target = Target { max_error: of("max_error"), confidence: of("confidence") };
        assert_eq!(accepted_needed(of("rate"), target, of("power")), row["rows"].as_u64(), "{row}");
    }
    assert_eq!(least_accepted(Target { max_error: 0.05, confidence: 0.95 }), 59);
}

fn asking(dir: &Path, max_error: f64, gates: Vec<Gate>) -> EvalPlan {
    let target = Target { max_error, confidence: 0.95 };
    EvalPlan {
        escalation: Some(Escalation { target, review_share: 0.1, valid_days: 30 }),
        fallback: vec!["frontier-large".into()],
        gates,
        ..plan(dir)
    }
}

fn gates() -> Vec<Gate> {
    vec![
        Gate { name: "coverage".into(), rule: Rule::CertifiedCoverage { min: 0.5 } },
        Gate { name: "fallback".into(), rule: Rule::Fallback {} },
    ]
}

/// Rows ask for what they say, so that a model is wrong where it does not read it, and then it is less sure.
fn told(n: usize) -> Data {
    let mut data = Data::new(n);
    for row in data.calibration.iter_mut().chain(&mut data.test) {
        let text = &row.messages[1].content;
        let said = support::LABELS.iter().find(|label| text.contains(&label.replace('_', " "))).unwrap();
        row.target = (*said).to_owned();
    }
    data
}

fn run(plan: &EvalPlan, data: &Data) -> Report {
    let asked = Cell::new(0);
    let model = || Ok(Box::new(Model { accuracy: 0.85, seed: 5, asked: &asked }) as Box<dyn Answerer>);
    let arms = vec![Arm::recorded("frontier", "recorded"), Arm::model("q8_0", "Q8_0 file", "q8", model)];
    evaluate(plan, arms, data.rows(), &Silent).unwrap()
}

#[test]
fn a_certified_threshold_routes_by_the_models_own_probability() {
    let (dir, mut data) = (tempfile::tempdir().unwrap(), told(600));
    for (i, row) in data.calibration.iter_mut().chain(&mut data.test).enumerate() {
        row.recorded.at = Some(format!("2026-10-{:02}T12:00:00Z", i % 28 + 1));
    }
    let report = run(&asking(dir.path(), 0.05, gates()), &data);
    let routing = report.routing.as_ref().unwrap();
    let certificate = routing.certificate.as_ref().unwrap();
    assert_eq!(certificate.calibration_rows, 300);
    let threshold = certificate.threshold.unwrap();
    assert_eq!(routing.served.threshold, threshold);
    assert!((0.7..0.95).contains(&routing.served.coverage), "{:?}", routing.served);
    assert!(certificate.error_upper.unwrap() <= 0.05);
    assert!(routing.system_accuracy.unwrap() > 0.0 && routing.served.risk.unwrap() <= 0.05, "{:?}", routing.served);

    let bands: Vec<(Action, u64)> = routing.bands.iter().map(|band| (band.action, band.rows)).collect();
    let rows: u64 = bands.iter().map(|(_, rows)| rows).sum();
    assert_eq!((bands.len(), rows), (3, 600));
    assert_eq!(bands[0].1 + bands[1].1, routing.served.served);
    let queued = bands[1].1 as f64 / routing.served.served as f64;
    assert!((0.08..0.12).contains(&queued), "a tenth of what is served: {queued}");
    let latency = routing.latency.as_ref().unwrap();
    assert!(latency.max_ms > 600.0 && latency.p50_ms < 600.0, "an escalated call waits for the frontier: {latency:?}");

    assert_eq!(report.gates[0].verdict, Verdict::Pass, "{}", report.gates[0].reason);
    assert!(report.gates[0].reason.contains("From a score of"), "{}", report.gates[0].reason);
    assert_eq!(
        (report.gates[1].verdict, report.gates[1].reason.as_str()),
        (Verdict::Pass, "Escalated calls go to frontier-large.")
    );

    let policy = report.policy.as_ref().unwrap();
    assert_eq!((policy.score, policy.threshold()), (Score::TopProbability, Some(threshold)));
    assert_eq!(policy.validity.recertify_by.as_deref(), Some("2026-11-27"));
    assert_eq!((policy.reference.rows, policy.reference.scores.len()), (600, 600));
    assert_eq!(policy.reference.answers.iter().sum::<u64>(), 600);
    report.save(dir.path(), &Silent).unwrap();
    let read = Policy::load(&dir.path().join("policy.json")).unwrap();
    assert_eq!(&read, policy);
    // What the report counts is what a gateway does with the file.
    let served = std::fs::read_to_string(dir.path().join("predictions/q8_0.jsonl")).unwrap();
    let scores = served.lines().filter(|line| line.contains("\"split\":\"test\"")).map(|line| {
        let line: Value = serde_json::from_str(line).unwrap();
        let posterior: Vec<f32> = serde_json::from_value(line["posterior"].clone()).unwrap();
        f64::from(posterior.into_iter().fold(0.0_f32, f32::max))
    });
    let actions: Vec<Action> = scores.map(|score| read.route(score)).collect();
    for (action, rows) in bands {
        assert_eq!(actions.iter().filter(|a| **a == action).count() as u64, rows, "{action:?}");
    }
    assert_eq!(Report::load(&dir.path().join("report.json")).unwrap(), report);
}

#[test]
fn nothing_certified_escalates_all_and_says_what_would_change_it() {
    // Some 13 % of the rows ask for another label than they say, whatever the confidence.
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(400));
    let report = run(&asking(dir.path(), 0.02, gates()), &data);
    let routing = report.routing.as_ref().unwrap();
    assert_eq!((routing.served.served, routing.served.risk, routing.bands.len()), (0, None, 1));
    let frontier = report.frontier_arm().unwrap();
    assert_eq!(routing.system_accuracy, Some(frontier.scores.accuracy), "the frontier answers everything");
    let policy = report.policy.as_ref().unwrap();
    assert_eq!((policy.route(1.0), policy.threshold()), (Action::Escalate, None));
    assert!(!policy.certificate.as_ref().unwrap().certified);
    let words = routing.certificate.as_ref().unwrap().words();
    assert!(words.starts_with("Nothing can be certified at 2 % with 95 % confidence on 200 reviewed"), "{words}");
    assert_eq!(report.gates[0].verdict, Verdict::Fail, "{}", report.gates[0].reason);
    let text = terminal_summary(&report);
    assert!(text.contains("so every call escalates") && text.contains("escalates 100 % of calls"), "{text}");
    let card = model_card(&CardPlan::default(), &report);
    assert!(card.contains("Nothing can be certified"), "{card}");
    let page = render_html(&report).unwrap();
    assert!(page.contains("escalate all") && page.contains("nothing is served"), "{page}");
}

#[test]
fn too_few_calibration_rows_are_no_failure_and_their_number_is_said() {
    let (dir, mut data) = (tempfile::tempdir().unwrap(), told(300));
    data.calibration.truncate(20);
    let report = run(&asking(dir.path(), 0.05, gates()), &data);
    let gate = &report.gates[0];
    assert_eq!(gate.verdict, Verdict::Inconclusive, "{}", gate.reason);
    let needed = gate.examples_needed.unwrap();
    assert!((65..5_000).contains(&needed), "{needed}");
    assert!(gate.reason.contains("rows") && gate.reason.contains("would probably be enough"), "{}", gate.reason);
    assert!(!report.headline.contains("test rows would decide"), "calibration rows lack: {}", report.headline);
}

#[test]
fn a_policy_without_a_fallback_is_refused_by_its_gate_and_the_recipes_number_is_called_so() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(100));
    let plan = EvalPlan { gates: gates(), ..plan(dir.path()) };
    let report = run(&plan, &data);
    assert_eq!(report.gates[1].verdict, Verdict::Fail);
    assert!(report.gates[1].reason.contains("eval.escalation.fallback"), "{}", report.gates[1].reason);
    assert!(report.gates[0].reason.contains("eval.escalation.max_error"), "{}", report.gates[0].reason);
    let policy = report.policy.as_ref().unwrap();
    assert_eq!((policy.score, policy.threshold(), &policy.certificate), (Score::Confidence, Some(0.7), &None));
    assert!(terminal_summary(&report).contains("the recipe's own, not certified"));
    assert!(render_html(&report).unwrap().contains("is measured here, not certified"));
}

/// Sure where it is right and unsure where it is not; some answers are no JSON.
struct Writes(SplitMix64);

impl AnswerWriter for Writes {
    fn write(&mut self, messages: &[Message]) -> Result<Said, AnswerError> {
        let sure = self.0.unit();
        let text = match sure {
            s if s < 0.1 => "no".to_owned(),
            s if s < 0.3 => "{\"time\":\"never\"}".to_owned(),
            _ => format!("{{\"time\":\"{}\"}}", messages[0].content),
        };
        Ok(Said { text, confidence: Some(if sure < 0.1 { 1.0 } else { sure }) })
    }
}

#[test]
fn fields_are_certified_by_the_probability_of_the_answer() {
    let (dir, mut data) = (tempfile::tempdir().unwrap(), Data::new(400));
    for rows in [&mut data.train, &mut data.calibration, &mut data.test] {
        for (i, row) in rows.iter_mut().enumerate() {
            row.messages = vec![Message::new("user", &format!("{i} pm"))];
            row.target = format!("{{\"time\":\"{i} pm\"}}");
            row.recorded.answer = row.target.clone();
        }
    }
    data.card.labels = Vec::new();
    let text = r#"{"type": "object", "properties": {"time": {"type": "string"}}}"#;
    let plan = EvalPlan {
        labels: Vec::new(),
        fields: Some(Fields { schema: Schema::parse(text).unwrap(), text: text.to_owned() }),
        ..asking(dir.path(), 0.05, Vec::new())
    };
    let open = || Ok(Box::new(Writes(SplitMix64::new(3))) as Box<dyn AnswerWriter>);
    let arms = vec![Arm::recorded("frontier", "recorded"), Arm::writer("q8_0", "writes", "q8", open)];
    let report = evaluate(&plan, arms, data.rows(), &Silent).unwrap();
    let routing = report.routing.as_ref().unwrap();
    let threshold = routing.certificate.as_ref().unwrap().threshold.unwrap();
    assert!((0.25..0.4).contains(&threshold), "wrong below 0.3: {threshold}");
    assert!(routing.served.risk.unwrap() <= 0.05 && routing.served.coverage > 0.55, "{:?}", routing.served);
    let policy = report.policy.unwrap();
    assert_eq!(policy.score, Score::AnswerProbability);
    let invalid = report.arms[1].scores.invalid;
    assert!(invalid > 20, "the surest answers of all are no JSON: {invalid}");
    assert_eq!((policy.reference.invalid, policy.reference.scores.len() as u64), (invalid, 400 - invalid));
}
