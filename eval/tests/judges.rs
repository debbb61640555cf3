//! A judge of texts, and the gates on what is measured beside the answers: every verdict of a judge is asked for in both orders, its
//! liking for one place is told and cancelled, reviewers are the measure of it, and a load test decides its gate.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "rows and models of tests on labels")]
mod support;

use limbeck_artifact::dataset::{Example, LabelSource, Message};
use limbeck_artifact::event::Silent;
use limbeck_artifact::schema::Schema;
use limbeck_eval::{
    AnswerError, AnswerWriter, Arm, Choice, Comparer, EvalPlan, Fact, Fields, Gate, Judged, LoadCall, LoadTest, Metric,
    PairwiseJudge, Report, Rows, Rule, Said, Shown, Verdict, evaluate_judged, judged_facts, load_facts, render_html,
    terminal_summary,
};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

const ROWS: usize = 120;

/// Rows whose recorded answer a reviewer left on three of four and wrote anew on the others.
fn rows() -> Vec<Example> {
    let mut data = support::Data::new(ROWS);
    for (i, row) in data.test.iter_mut().enumerate() {
        row.messages = vec![Message::new("user", &format!("message {i}"))];
        row.label_source = LabelSource::Human;
        row.recorded.answer = format!("recorded {i}");
        row.target = if i % 4 == 0 { format!("anew {i}") } else { row.recorded.answer.clone() };
    }
    data.test
}

/// Writes what is better on most rows: says so, for the judge to see.
struct Own(Vec<Example>);

impl AnswerWriter for Own {
    fn write(&mut self, messages: &[Message]) -> Result<Said, AnswerError> {
        let i = self.0.iter().position(|row| row.messages == messages).unwrap();
        let text = match i % 10 {
            0..=5 => format!("good {i}"),
            6 | 7 => format!("bad {i}"),
            // The same as was recorded, and nothing at all.
            8 => self.0[i].recorded.answer.clone(),
            _ => String::new(),
        };
        Ok(Said { text, confidence: Some(0.9) })
    }
}

/// Prefers "good" and "anew" to "recorded" to "bad"; on every `swayed`-th pair whatever comes first.
struct Judge<'c> {
    asked: &'c AtomicUsize,
    swayed: usize,
}

impl Comparer for Judge<'_> {
    fn compare(
        &mut self,
        shown: &[Shown<'_>],
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<Option<Choice>>, AnswerError> {
        self.asked.store(shown.len(), Ordering::SeqCst);
        done(shown.len());
        let worth = |text: &str| match text.split(' ').next() {
            Some("good" | "anew") => 2,
            Some("recorded") => 1,
            _ => 0,
        };
        let one = |shown: &Shown<'_>| {
            let number: usize = shown.first.rsplit(' ').next()?.parse().ok()?;
            if number.is_multiple_of(self.swayed) {
                return Some(Choice::First);
            }
            Some(match worth(shown.first).cmp(&worth(shown.second)) {
                std::cmp::Ordering::Greater => Choice::First,
                std::cmp::Ordering::Less => Choice::Second,
                std::cmp::Ordering::Equal => Choice::Tie,
            })
        };
        Ok(shown.iter().map(one).collect())
    }

    fn facts(&self) -> Vec<Fact> {
        vec![Fact::new("model", "big at https://example.com/v1")]
    }
}

fn plan(dir: &Path, gates: Vec<Gate>) -> EvalPlan {
    let schema = r#"{"type": "string"}"#;
    EvalPlan {
        labels: Vec::new(),
        fields: Some(Fields { schema: Schema::parse(schema).unwrap(), text: schema.to_owned() }),
        candidate: "own".into(),
        gates,
        ..support::plan(dir)
    }
}

fn gate(name: &str, rule: Rule) -> Gate {
    Gate { name: name.into(), rule }
}

/// The report, and how many pairs were shown.
fn judged(dir: &Path, gates: Vec<Gate>, swayed: usize, most: Option<usize>) -> (Report, usize) {
    let test = rows();
    let own = test.clone();
    let arms = vec![
        Arm::recorded("frontier", "recorded"),
        Arm::writer("own", "writes", "key", move || Ok(Box::new(Own(own)) as Box<dyn AnswerWriter>)),
    ];
    let asked = AtomicUsize::new(0);
    let judges = vec![PairwiseJudge::new("big", "frontier", most, || {
        Ok(Box::new(Judge { asked: &asked, swayed }) as Box<dyn Comparer>)
    })];
    let data = support::Data::new(ROWS);
    let rows = Rows { card: &data.card, train: &data.train, calibration: &[], test: &test };
    let report = evaluate_judged(&plan(dir, gates), arms, judges, rows, &Silent).unwrap();
    (report, asked.into_inner())
}

fn only(report: &Report) -> &Judged {
    assert_eq!(report.judged.len(), 1);
    &report.judged[0]
}

#[test]
fn both_orders_are_asked_and_what_the_order_decides_is_level() {
    let dir = tempfile::tempdir().unwrap();
    let (report, asked) = judged(dir.path(), Vec::new(), 1_000_000, None);
    let fair = only(&report).clone();
    // Row 0 is a multiple of any number: one pair is swayed after all, and its reviewer's pair.
    assert_eq!((fair.rows, fair.wins, fair.losses, fair.ties), (120, 71, 36, 13), "{fair:#?}");
    assert_eq!((fair.same, fair.by_validity, fair.illegible), (12, 12, 0));
    // 96 pairs of the candidate's and 30 that were written anew, in both orders.
    assert_eq!(asked, 2 * (96 + 30));
    assert!((fair.share - (71.0 + 6.5) / 120.0).abs() < 1e-12);
    assert!(fair.interval.low < fair.share && fair.share < fair.interval.high);
    assert_eq!((fair.position.pairs, fair.position.always_first, fair.position.always_second), (96, 1, 0));
    assert!((fair.position.first_share.unwrap() - (95.0 * 0.5 + 1.0) / 96.0).abs() < 1e-12);
    let reviewers = fair.reviewers.unwrap();
    assert_eq!((reviewers.rows, reviewers.with, reviewers.ties, reviewers.against), (30, 29, 1, 0));

    let dir = tempfile::tempdir().unwrap();
    let (report, _) = judged(dir.path(), Vec::new(), 2, None);
    let swayed = only(&report);
    // Half of the pairs go to whatever comes first, and decide nothing.
    assert_eq!(swayed.position.always_first, 48);
    assert!(swayed.position.p < 1e-9 && swayed.position.first_interval.unwrap().low > 0.6, "{:?}", swayed.position);
    assert!(swayed.wins < 40 && swayed.ties >= 48, "{swayed:#?}");
    let told = judged_facts(swayed);
    assert!(told.iter().any(|fact| fact.what == "position bias" && fact.value.contains("48 of 96 pairs")), "{told:#?}");
}

#[test]
fn rows_are_drawn_the_same_each_time_and_the_report_shows_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let (report, asked) = judged(dir.path(), Vec::new(), 1_000_000, Some(40));
    assert_eq!(only(&report).rows, 40);
    assert!(asked < 2 * 60, "{asked}");
    let again = judged(dir.path(), Vec::new(), 1_000_000, Some(40)).0;
    assert_eq!(report.to_json().unwrap(), again.to_json().unwrap());
    let (page, text) = (render_html(&report).unwrap(), terminal_summary(&report));
    assert!(text.contains("model: big at https://example.com/v1"), "{text}");
    for part in ["own beside frontier, by the judge big", "position bias"] {
        assert!(page.contains(part) && text.contains(part), "{part} is not in:\n{text}");
    }
}

#[test]
fn a_judge_decides_its_gate_and_one_that_says_nothing_decides_none() {
    let rule = |min: f64| Rule::Judge { judge: "big".into(), min };
    let gates = vec![
        gate("easy", rule(0.4)),
        gate("hard", rule(0.9)),
        gate("close", rule(0.62)),
        gate("nobody", Rule::Judge { judge: "other".into(), min: 0.5 }),
        gate("words", Rule::Floor { metric: Metric::RougeL, min: 0.05 }),
    ];
    let dir = tempfile::tempdir().unwrap();
    let (report, _) = judged(dir.path(), gates, 1_000_000, None);
    let verdicts: Vec<Verdict> = report.gates.iter().map(|gate| gate.verdict).collect();
    assert_eq!(verdicts[..4], [Verdict::Pass, Verdict::Fail, Verdict::Inconclusive, Verdict::Inconclusive]);
    assert!(report.gates[0].demand.contains("judge big prefers it on at least 40 %"), "{:?}", report.gates[0]);
    assert!(report.gates[3].reason.contains("was not asked"));

    // Only labels and fields are without a judge.
    let data = support::Data::new(ROWS);
    let judge = PairwiseJudge::new("big", "frontier", None, || unreachable!());
    let rows = Rows { card: &data.card, train: &data.train, calibration: &data.calibration, test: &data.test };
    let plan = EvalPlan { gates: Vec::new(), candidate: "frontier".into(), ..support::plan(dir.path()) };
    let arms = vec![Arm::recorded("frontier", "recorded")];
    let error = evaluate_judged(&plan, arms, vec![judge], rows, &Silent).unwrap_err().to_string();
    assert!(error.contains("compares texts"), "{error}");
}

/// Calls of which every twentieth takes `late_ms`, the others 20; each `failed`-th gets no answer.
fn load(calls: usize, late_ms: f64, failed: usize) -> LoadTest {
    let call = |i: usize| LoadCall {
        due_s: i as f64 * 0.1,
        late_ms: 0.1,
        latency_ms: if i % 20 == 7 { late_ms } else { 20.0 + (i % 5) as f64 },
        first_token_ms: Some(5.0),
        completion_tokens: Some(3),
        failed: (failed > 0 && i.is_multiple_of(failed)).then(|| "timeout".to_owned()),
    };
    LoadTest::of((0..calls).map(call).collect(), Some(10.0), 0.95)
}

#[test]
fn a_load_test_decides_its_gate_and_is_in_the_report() {
    let data = support::Data::new(ROWS);
    let decided = |test: Option<LoadTest>, limit: f64| {
        let dir = tempfile::tempdir().unwrap();
        let plan = EvalPlan {
            gates: vec![gate("load", Rule::LatencyUnderLoad { p95_ms: limit })],
            candidate: "frontier".into(),
            loads: test.map(|test| BTreeMap::from([("frontier".to_owned(), test)])).unwrap_or_default(),
            ..support::plan(dir.path())
        };
        let rows = Rows { card: &data.card, train: &data.train, calibration: &data.calibration, test: &data.test };
        let arms = vec![Arm::recorded("frontier", "recorded")];
        evaluate_judged(&plan, arms, Vec::new(), rows, &Silent).unwrap()
    };
    let report = decided(Some(load(1200, 60.0, 0)), 100.0);
    assert_eq!(report.gates[0].verdict, Verdict::Pass, "{:?}", report.gates[0]);
    assert!(report.gates[0].reason.contains("At 10 calls a second"), "{}", report.gates[0].reason);
    assert!(report.gates[0].stability.is_none());
    // Exactly on the demand: five in a hundred are late.
    let close = decided(Some(load(1200, 500.0, 0)), 100.0);
    assert_eq!(close.gates[0].verdict, Verdict::Inconclusive);
    assert!(close.gates[0].reason.contains("no feasible number of calls"), "{}", close.gates[0].reason);
    // Calls that failed were fast, and are late all the same.
    assert_eq!(decided(Some(load(1200, 60.0, 4)), 100.0).gates[0].verdict, Verdict::Fail);
    let none = decided(None, 100.0);
    assert_eq!(none.gates[0].verdict, Verdict::Inconclusive);
    assert!(none.gates[0].reason.contains("eval.load.rate") && !none.gates[0].reason.contains("test rows"));

    let (page, text) = (render_html(&report).unwrap(), terminal_summary(&report));
    assert!(page.contains("frontier under load") && text.contains("frontier under load"), "{text}");
    for fact in load_facts(report.arms[0].load.as_ref().unwrap()) {
        assert!(text.contains(&fact.value), "{} is not in:\n{text}", fact.value);
    }
    assert_eq!(read_back(&report), report);
    // Nobody was answered: the gate fails, and the report can be read all the same.
    let down = decided(Some(load(1200, 60.0, 1)), 100.0);
    assert_eq!(down.gates[0].verdict, Verdict::Fail);
    assert!(down.gates[0].reason.contains("No call was answered"), "{}", down.gates[0].reason);
    assert_eq!(read_back(&down), down);
}

fn read_back(report: &Report) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("report.json");
    std::fs::write(&path, report.to_json().unwrap()).unwrap();
    Report::load(&path).unwrap()
}
