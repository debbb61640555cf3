//! A whole evaluation with made-up models: what is reused after an interruption, what makes it stale, what is refused,
//! and that report, page and card say the same thing twice and let no text from outside act.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod support;

use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::{EventKind, Silent};
use limbeck_eval::looks::Look;
use limbeck_eval::statistics::Risk;
use limbeck_eval::{
    AnswerError, Answerer, Arm, CardPlan, EvalError, EvalPlan, Gate, PosteriorOrNot, RankingPlan, Report, Rule,
    Verdict, evaluate, junit, model_card, render_html, terminal_summary,
};
use std::cell::Cell;
use std::path::Path;
use std::sync::Mutex;
use support::{Data, Model, plan};

/// Frontier, base, floor, tuned and the quantized candidate; `asked` counts the calls to models.
fn arms<'a>(asked: &'a Cell<u32>, candidate_key: &str) -> Vec<Arm<'a>> {
    let model = |name: &str, title: &str, key: &str, accuracy, seed| {
        Arm::model(name, title, key, move || Ok(Box::new(Model { accuracy, seed, asked }) as Box<dyn Answerer>))
    };
    vec![
        Arm::recorded("frontier", "frontier-large, as recorded in the traces"),
        model("base", "the base model, untuned", "base", 0.10, 3),
        Arm::linear_floor("floor", "TF-IDF and logistic regression"),
        model("tuned", "merged model, f32", "tuned", 0.97, 5),
        model("q8_0", "Q8_0 file, read back", candidate_key, 0.97, 5),
    ]
}

fn run(plan: &EvalPlan, data: &Data) -> Report {
    evaluate(plan, arms(&Cell::new(0), "q8"), data.rows(), &Silent).unwrap()
}

#[test]
fn all_arms_answer_and_the_gates_decide() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let events = Mutex::new(Vec::new());
    let emit = |kind: EventKind| events.lock().unwrap().push(kind);
    let asked = Cell::new(0);
    let report = evaluate(&plan(dir.path()), arms(&asked, "q8"), data.rows(), &emit).unwrap();

    assert_eq!(
        report.arms.iter().map(|arm| arm.name.as_str()).collect::<Vec<_>>(),
        ["frontier", "base", "floor", "tuned", "q8_0"]
    );
    // Three models, 150 + 300 rows each, and 100 single calls with a clock beside them.
    assert_eq!(asked.get(), 3 * 550);
    let calls = |name: &str| report.arm(name).unwrap().latency.as_ref().unwrap().calls;
    assert_eq!([calls("q8_0"), calls("tuned"), calls("floor")], [100, 100, 300]);
    assert!(report.notes.iter().any(|note| note.contains("100 of the 300 test rows were asked one by one")));
    let accuracy = |name: &str| report.arm(name).unwrap().scores.accuracy;
    assert!(accuracy("floor") > 0.7, "the floor learns: {}", accuracy("floor"));
    assert!(accuracy("base") < 0.3);
    assert_eq!(report.comparison("q8_0", "tuned").unwrap().agreement, 1.0);
    assert_eq!(report.versus_frontier("base").unwrap().against, "frontier");
    assert_eq!(report.test.groups, 150);

    let candidate = report.candidate_arm().unwrap();
    let calibration = candidate.calibration.as_ref().unwrap();
    assert_eq!(calibration.fitted_rows, 150);
    assert!(calibration.tempered.nll <= calibration.raw.nll + 0.01);
    assert!(report.arm("frontier").unwrap().calibration.is_none(), "a recorded answer has no confidence");
    let frontier_cost = report.arm("frontier").unwrap().cost.as_ref().unwrap().per_1k_calls;
    assert!((0.45..0.65).contains(&frontier_cost), "200 tokens in, 5 out: {frontier_cost}");
    let routing = report.routing.as_ref().unwrap();
    assert!(routing.system_accuracy.unwrap() >= candidate.scores.accuracy - 0.05);

    let scored = events.lock().unwrap().iter().filter(|e| matches!(e, EventKind::ArmScored { .. })).count();
    let gates = events.lock().unwrap().iter().filter(|e| matches!(e, EventKind::GateDecided { .. })).count();
    assert_eq!((scored, gates), (5, 7));
    assert_eq!(report.gates.iter().find(|g| g.gate == "beats-base").unwrap().verdict, Verdict::Pass);
}

#[test]
fn savings_are_measured_figures_under_the_tables_assumptions() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let mut plan = plan(dir.path());
    let prices = plan.prices.as_mut().unwrap();
    prices.assumptions.calls_per_month = Some(250_000.0);
    prices.assumptions.engineering = 500.0;
    let report = run(&plan, &data);
    let savings = report.savings.as_ref().unwrap();
    let coverage = report.routing.as_ref().unwrap().served.coverage;
    let per_call = report.arm("frontier").unwrap().cost.as_ref().unwrap().per_1k_calls / 1000.0;
    // Of 750 reviewed rows 300 an hour at 50, 10 for training, 500 for engineering.
    assert_eq!(savings.one_off, 125.0 + 10.0 + 500.0);
    let own = savings.at.iter().find(|at| at.own).unwrap();
    assert_eq!(savings.at.iter().map(|at| at.calls_per_month).collect::<Vec<_>>(), [1e4, 1e5, 2.5e5, 1e6]);
    // One machine of 0.05 an hour for 730 hours, 50 for watching it, and what is escalated.
    let after = 0.05 * 730.0 + 50.0 + (1.0 - coverage) * per_call * 250_000.0;
    assert!((own.economics.per_month_after - after).abs() < 1e-9);
    assert!((own.economics.saving_per_month - (per_call * 250_000.0 - after)).abs() < 1e-9);
    assert!((savings.break_even_calls.unwrap() - 86.5 / (coverage * per_call)).abs() < 1e-6);
    assert!(terminal_summary(&report).contains("at 250,000 it "));
    assert!(render_html(&report).unwrap().contains("What it saves"));
    assert!(savings.at[0].economics.saving_per_month < 0.0 && savings.at[0].economics.payback_months.is_none());

    // A machine that costs more than all the calls that it takes.
    plan.prices.as_mut().unwrap().self_hosted.as_mut().unwrap().per_hour = 1e12;
    let never = run(&plan, &data);
    assert_eq!(never.savings.as_ref().unwrap().break_even_calls, None);
    let why = "It pays at no volume: a machine costs more than it saves";
    assert!(terminal_summary(&never).contains(why) && render_html(&never).unwrap().contains(why));

    plan.prices.as_mut().unwrap().self_hosted = None;
    let unknown = run(&plan, &data);
    assert!(unknown.savings.is_none() && !render_html(&unknown).unwrap().contains("What it saves"));
}

#[test]
fn a_cost_without_the_price_of_what_escalates_is_not_known() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let rule = Rule::Cost { max_per_1k_calls: 1e6 };
    let mut plan = EvalPlan { gates: vec![Gate { name: "cost".into(), rule }], ..plan(dir.path()) };
    assert_eq!(run(&plan, &data).gates[0].verdict, Verdict::Pass);
    plan.prices.as_mut().unwrap().models.clear();
    let unpriced = run(&plan, &data);
    let served = &unpriced.routing.as_ref().unwrap().served;
    assert!(served.served < served.rows, "some escalate");
    let gate = &unpriced.gates[0];
    assert_eq!(gate.verdict, Verdict::Inconclusive, "{}", gate.reason);
    assert!(
        gate.reason.contains("of the calls are escalated") && gate.reason.contains("add [models."),
        "{}",
        gate.reason
    );
    assert!(!gate.reason.contains("rows"), "no rows would decide it: {}", gate.reason);
}

#[test]
fn a_label_that_matters_more_is_told_apart_and_items_are_put_in_order() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    // Six items a query; the first label is the wanted one, and what is out of scope.
    let item = |(i, row): (usize, &limbeck_artifact::dataset::Example)| (row.id.clone(), (format!("q{}", i / 6), 50));
    let ranking = RankingPlan { positive: 0, items: data.test.iter().enumerate().map(item).collect() };
    let plan = EvalPlan { out_of_scope: Some(0), ranking: Some(ranking), ..plan(dir.path()) };
    let report = run(&plan, &data);
    let candidate = report.candidate_arm().unwrap();
    let (found, ranked) = (candidate.detection.as_ref().unwrap(), candidate.ranked.as_ref().unwrap());
    let class = &candidate.scores.per_class[0];
    assert_eq!((found.rows, found.found, found.recall), (class.support, class.correct, class.recall));
    assert_eq!((found.precision, found.false_alarms), (class.precision, class.predicted - class.correct));
    assert_eq!(found.found + found.others_right, candidate.scores.correct);
    assert!(found.auroc.unwrap() > 0.85, "{found:?}");
    let chance = report.arm("base").unwrap().ranked.as_ref().unwrap();
    assert!(ranked.ndcg[1] > chance.ndcg[1] + 0.2 && ranked.recall[2] == 1.0, "{ranked:?} {chance:?}");
    let frontier = report.arm("frontier").unwrap();
    assert!(frontier.detection.as_ref().unwrap().auroc.is_none() && frontier.ranked.is_none(), "no probabilities");
    let (page, text) = (render_html(&report).unwrap(), terminal_summary(&report));
    assert!(page.contains("Out of scope") && page.contains("As an order") && page.contains("nDCG@3"));
    assert!(text.contains("out of scope (activate_my_card): ") && text.contains(" of the text and "), "{text}");
}

#[test]
fn gates_are_test_cases_for_ci() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let report = run(&plan(dir.path()), &data);
    let suite = junit(&report);
    let count = |verdict| report.gates.iter().filter(|gate| gate.verdict == verdict).count();
    assert_eq!(suite.matches("<testcase ").count(), report.gates.len());
    assert_eq!(suite.matches("<failure type=\"fail\"").count(), count(Verdict::Fail));
    assert_eq!(suite.matches("<error type=\"inconclusive\"").count(), count(Verdict::Inconclusive));
    assert!(suite.contains(&format!("tests=\"7\" failures=\"{}\"", count(Verdict::Fail))), "{suite}");
    assert!(suite.contains("name=\"beats-base: accuracy at least 40 points above base\""), "{suite}");
}

#[test]
fn finished_arms_are_not_asked_again_and_the_report_stays_the_same_bytes() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(120));
    let plan = plan(dir.path());
    let first = run(&plan, &data);
    let asked = Cell::new(0);
    let again = evaluate(&plan, arms(&asked, "q8"), data.rows(), &Silent).unwrap();
    assert_eq!(asked.get(), 0, "no model is opened or asked");
    assert_eq!(first.to_json().unwrap(), again.to_json().unwrap());
    assert_eq!(render_html(&first).unwrap(), render_html(&again).unwrap());

    // Another file behind the candidate: only the candidate is asked again.
    evaluate(&plan, arms(&asked, "another file"), data.rows(), &Silent).unwrap();
    assert_eq!(asked.get(), 60 + 120 + 100);

    // A torn predictions file counts as none.
    let torn = dir.path().join("predictions/base.jsonl");
    let text = std::fs::read_to_string(&torn).unwrap();
    std::fs::write(&torn, &text[..text.len() / 2]).unwrap();
    asked.set(0);
    evaluate(&plan, arms(&asked, "another file"), data.rows(), &Silent).unwrap();
    assert_eq!(asked.get(), 60 + 120 + 100);
}

/// Answers many at once, and keeps how many those were.
struct Together<'a>(Model<'a>, &'a Cell<usize>);

impl Answerer for Together<'_> {
    fn answer(&mut self, messages: &[Message]) -> Result<Vec<f32>, AnswerError> {
        self.0.answer(messages)
    }

    fn answer_all(&mut self, asked: &[&[Message]], done: &mut dyn FnMut(usize)) -> Vec<PosteriorOrNot> {
        self.1.set(asked.len());
        done(asked.len());
        asked.iter().map(|messages| self.0.answer(messages)).collect()
    }
}

#[test]
fn rows_that_are_scored_together_get_the_answers_that_they_get_alone() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(120));
    let (asked, most) = (Cell::new(0), Cell::new(0));
    let with = |together: bool, dir: &Path| {
        let (asked, most) = (&asked, &most);
        let model = move || Model { accuracy: 0.9, seed: 5, asked };
        let arm = match together {
            true => {
                Arm::model("q8_0", "together", "k", move || Ok(Box::new(Together(model(), most)) as Box<dyn Answerer>))
            }
            false => Arm::model("q8_0", "alone", "k", move || Ok(Box::new(model()) as Box<dyn Answerer>)),
        };
        let plan = EvalPlan { gates: Vec::new(), frontier: None, ..plan(dir) };
        let mut report = evaluate(&plan, vec![arm], data.rows(), &Silent).unwrap();
        report.arms[0].latency = None;
        report.arms[0].cost = None;
        report.arms[0].title = String::new();
        report.routing = None;
        report.policy = None;
        report
    };
    let together = with(true, dir.path());
    assert_eq!((most.get(), asked.get()), (180, 280));
    let other = tempfile::tempdir().unwrap();
    let alone = with(false, other.path());
    assert_eq!(
        together.to_json().unwrap(),
        alone.to_json().unwrap(),
        "what is answered does not depend on how it is asked"
    );
}

#[test]
fn a_test_split_remembers_the_candidates_that_it_judged() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(300));
    let judge = |candidate: &str, run_dir: &str| {
        let look = Look {
            store: dir.path().join(".looks"),
            candidate: candidate.to_owned(),
            run: run_dir.to_owned(),
            at: "2026-11-22T00:00:00.000Z".to_owned(),
        };
        let plan = EvalPlan { look: Some(look), ..plan(&dir.path().join(run_dir)) };
        (run(&plan, &data), plan)
    };
    let (first, _) = judge("aa", "one");
    let looks = first.test.looks.clone().unwrap();
    assert_eq!((looks.candidates, looks.number, looks.corrected), (1, 1, None));
    assert!(terminal_summary(&first).contains("This test split has judged one candidate, this one."));
    let (again, plan) = judge("aa", "one");
    assert_eq!(again.to_json().unwrap(), first.to_json().unwrap(), "the same bytes are judged once");
    let (second, _) = judge("bb", "two");
    let looks = second.test.looks.clone().unwrap();
    assert_eq!((looks.candidates, looks.number), (2, 2));
    // What passes at 5 % may be undecided at 2.5 %: the correction is what the gates say at that level.
    let strict = EvalPlan { look: None, risk: Risk { alpha: plan.risk.alpha / 2.0, ..plan.risk }, ..plan };
    assert_eq!(looks.corrected, Some(run(&strict, &data).verdict));
    assert!(terminal_summary(&second).contains("has judged 2 candidates, this one as number 2"));
    assert!(render_html(&second).unwrap().contains("has judged 2 candidates, this one as number 2"));
}

#[test]
fn a_saved_report_reads_back_equal() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(60));
    let report = run(&plan(dir.path()), &data);
    report.save(dir.path(), &Silent).unwrap();
    let back = Report::load(&dir.path().join("report.json")).unwrap();
    assert_eq!(back.to_json().unwrap(), report.to_json().unwrap());
    assert!(dir.path().join("report.html").exists());
}

#[test]
fn unreviewed_rows_do_not_judge() {
    use limbeck_artifact::dataset::LabelSource;
    let (dir, mut data) = (tempfile::tempdir().unwrap(), Data::new(60));
    data.test.iter_mut().take(10).for_each(|row| row.label_source = LabelSource::Teacher);
    let report = run(&plan(dir.path()), &data);
    assert_eq!((report.test.rows, report.test.unreviewed), (50, 10));

    data.test.iter_mut().for_each(|row| row.label_source = LabelSource::Teacher);
    let error = evaluate(&plan(dir.path()), arms(&Cell::new(0), "q8"), data.rows(), &Silent).unwrap_err();
    assert!(matches!(error, EvalError::NoRows { split: "test" }), "{error}");
}

#[test]
fn plans_that_cannot_be_met_are_refused_with_a_hint() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(30));
    let refused = |change: fn(&mut EvalPlan)| {
        let mut plan = plan(dir.path());
        change(&mut plan);
        evaluate(&plan, arms(&Cell::new(0), "q8"), data.rows(), &Silent).unwrap_err().to_string()
    };
    assert!(
        refused(|p| p.candidate = "q4_0".into())
            .contains("no arm `q4_0`. Try: use one of base, floor, frontier, q8_0, tuned")
    );
    assert!(refused(|p| p.labels.truncate(1)).contains("at least two labels"));
    assert!(refused(|p| p.gates.push(p.gates[0].clone())).contains("same name"));
    assert!(
        refused(|p| p.gates =
            vec![Gate { name: "x".into(), rule: Rule::NonInferiority { against: "frontier".into(), margin: 3.0 } }])
        .contains("margin is 3; it must lie strictly between 0 and 1")
    );
    assert!(
        refused(|p| {
            p.labels.pop();
        })
        .contains("is not one of the 11 labels")
    );
}

struct Broken(Vec<f32>);

impl Answerer for Broken {
    fn answer(&mut self, _: &[Message]) -> Result<Vec<f32>, AnswerError> {
        if self.0.len() == 1 { Err("out of memory".into()) } else { Ok(self.0.clone()) }
    }
}

#[test]
fn a_model_that_answers_nonsense_is_named_and_its_answers_are_not_kept() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(30));
    let mut plan = plan(dir.path());
    plan.gates.clear();
    (plan.candidate, plan.frontier) = ("odd".into(), None);
    let outcome = |answer: Vec<f32>| {
        let arm = Arm::model("odd", "odd", "odd", move || Ok(Box::new(Broken(answer)) as Box<dyn Answerer>));
        evaluate(&plan, vec![arm], data.rows(), &Silent)
    };
    let message = outcome(vec![f32::NAN; 12]).unwrap_err().to_string();
    assert!(message.contains("arm `odd`") && message.contains("not a number"), "{message}");
    assert!(outcome(vec![0.0; 1]).unwrap_err().to_string().contains("out of memory"));
    assert!(!dir.path().join("predictions/odd.jsonl").exists());
    // No answer at all is an answer: invalid, and wrong.
    let report = outcome(Vec::new()).unwrap();
    assert_eq!(report.arms[0].scores.invalid_rate, 1.0);
    assert_eq!(report.verdict, Verdict::Inconclusive, "without gates nothing is certified");
}

/// Marks that would act in HTML, Markdown, YAML or a terminal if they got through.
const HOSTILE: &str = "<script>alert(1)</script>\"'& \u{202e}evil\u{1b}[31m | `x` [a](b)\n---";

#[test]
fn no_text_from_outside_acts_in_page_card_or_terminal() {
    let (dir, mut data) = (tempfile::tempdir().unwrap(), Data::new(60));
    let mut plan = plan(dir.path());
    plan.name = HOSTILE.into();
    plan.notes = vec![HOSTILE.into()];
    plan.reproduce = vec![HOSTILE.into()];
    plan.mistakes = 60;
    plan.labels[0] = HOSTILE.into();
    for row in data.train.iter_mut().chain(&mut data.calibration).chain(&mut data.test) {
        row.messages[1].content.push_str(HOSTILE);
        if row.target == support::LABELS[0] {
            row.target = HOSTILE.into();
        }
    }
    data.card.left_out.insert(HOSTILE.into(), 1);
    let report = run(&plan, &data);
    assert!(!report.mistakes.is_empty());

    let page = render_html(&report).unwrap();
    assert!(!page.contains("<script") && !page.contains('\u{202e}') && !page.contains('\u{1b}'));
    assert!(page.contains("&lt;script&gt;") || page.contains("&lt;script&gt"), "shown, not hidden");
    for forbidden in ["http://", "https://", "src=", "href=", "url(", "@import"] {
        assert!(!page.contains(forbidden), "{forbidden}: the page reaches for something");
    }

    let terminal = terminal_summary(&report);
    assert!(!terminal.contains('\u{1b}') && !terminal.contains('\u{202e}'));

    let suite = junit(&report);
    assert!(!suite.contains("<script") && !suite.contains('\u{1b}') && !suite.contains('\u{202e}'));
    assert!(suite.contains("&lt;script&gt;"));

    let card =
        model_card(&CardPlan { license: HOSTILE.into(), notes: vec![HOSTILE.into()], ..CardPlan::default() }, &report);
    assert!(!card.contains("<script") && !card.contains('\u{1b}'));
    assert_eq!(card.lines().filter(|line| *line == "---").count(), 2, "front matter opens and closes once");
}

#[test]
fn a_large_taxonomy_gets_a_picture_instead_of_a_table() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(60));
    let mut plan = plan(dir.path());
    plan.labels.extend((0..30).map(|i| format!("unused_{i:02}")));
    (plan.candidate, plan.frontier) = ("floor".into(), None);
    plan.gates.clear();
    let report = evaluate(&plan, vec![Arm::linear_floor("floor", "floor")], data.rows(), &Silent).unwrap();
    let page = render_html(&report).unwrap();
    assert!(page.contains("class=\"heat\"") && !page.contains("class=\"matrix\""));
    assert!(page.contains("unused_29"), "classes without test rows are named");
}

#[test]
fn the_card_carries_what_the_hub_reads() {
    let (dir, data) = (tempfile::tempdir().unwrap(), Data::new(60));
    let report = run(&plan(dir.path()), &data);
    let card = model_card(
        &CardPlan {
            license: "apache-2.0".into(),
            base_model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
            base_model_relation: "quantized".into(),
            pipeline_tag: String::new(),
            language: vec!["en".into()],
            tags: vec!["limbeck".into(), "gguf".into()],
            files: vec![("model.gguf".into(), "weights, Q8_0".into())],
            intended_use: "Routing of support messages.".into(),
            notes: vec!["The traces are simulated.".into()],
            try_it: "limbeck score package 'where is my card?'".into(),
        },
        &report,
    );
    for part in [
        "license: \"apache-2.0\"",
        "base_model: \"HuggingFaceTB/SmolLM2-135M-Instruct\"",
        "base_model_relation: \"quantized\"",
        "language:\n- \"en\"",
        "model-index:",
        "type: accuracy",
        "## Results",
        "| q8\\_0",
        "## Data",
        "## Intended use",
        "## Limits",
        "The traces are simulated.",
        "limbeck score package",
    ] {
        let plain = part.replace("\\_", "_");
        assert!(
            card.contains(&plain) || card.contains(&plain.replace("| q8", "| **q8")),
            "{part} is missing in\n{card}"
        );
    }
}
