//! The evaluation itself: ask every arm about the same reviewed rows, measure, calibrate, compare, decide. The caller
//! chooses arms and gates; nothing here knows what a model is.

use crate::arms::{self, Answers, Arm, ArmKind, Questions};
use crate::calibration::{
    RiskPoint, aurc, calibration_scores, confidences, fit_temperature, reliability, risk_coverage, serve_at, temper,
    temper_confidence,
};
use crate::cost::{Cost, PriceTable, Usage, recorded_cost, self_hosted_cost};
use crate::error::EvalError;
use crate::extraction::score_fields;
use crate::floor::text_of;
use crate::gates::{Evidence, Gate, Verdict, decide};
use crate::judge::Judge;
use crate::metrics::{Prediction, latency, score, score_answers};
use crate::report::{ArmResult, Calibration, Comparison, Fact, Lineage, Mistake, Report, Routing, SCHEMA, TestRows};
use crate::said::{calibrate_confidences, said_confidences};
use crate::statistics::{Paired, Risk, mcnemar_exact, tango_interval, wilson};
use crate::words::{percent, signed_points};
use limbeck_artifact::dataset::{DatasetCard, Example, LabelSource};
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::schema::Schema;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// What to evaluate, decided beforehand.
#[derive(Clone, Debug)]
pub struct EvalPlan {
    /// Name and version of the artifact to be.
    pub name: String,
    pub version: String,
    pub program_version: String,
    /// In the order of every posterior; empty where answers are fields.
    pub labels: Vec<String>,
    pub fields: Option<Fields>,
    /// The arm that gates judge.
    pub candidate: String,
    /// The arm that it would replace, where escalated calls go.
    pub frontier: Option<String>,
    pub gates: Vec<Gate>,
    /// Serve at or above this confidence, escalate below.
    pub threshold: f64,
    pub risk: Risk,
    pub bootstrap_resamples: u32,
    pub seed: u64,
    pub prices: Option<PriceTable>,
    /// The run's eval folder; predictions go to `predictions/` in it.
    pub dir: PathBuf,
    /// Facts about what was made, for the report.
    pub made: Vec<Fact>,
    pub notes: Vec<String>,
    pub reproduce: Vec<String>,
    /// How many of the candidate's mistakes the report shows.
    pub mistakes: usize,
}

/// Answers that are fields: their schema, as it is understood and as it was written.
#[derive(Clone, Debug)]
pub struct Fields {
    pub schema: Schema,
    pub text: String,
}

/// The rows of a frozen dataset that an evaluation reads.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    pub card: &'a DatasetCard,
    /// For the linear floor.
    pub train: &'a [Example],
    /// For temperatures.
    pub calibration: &'a [Example],
    pub test: &'a [Example],
}

/// Points of the risk–coverage curve that a report keeps.
const CURVE_POINTS: usize = 200;

/// Evaluates `arms` on the reviewed test rows. Only reviewed rows count; predictions of finished arms are kept under
/// `plan.dir` and reused, so an interrupted evaluation goes on with the arm it was at.
pub fn evaluate(plan: &EvalPlan, arms: Vec<Arm<'_>>, rows: Rows<'_>, emit: &dyn Emit) -> Result<Report, EvalError> {
    check(plan, &arms)?;
    let questions = Questions {
        labels: &plan.labels,
        schema: plan.fields.as_ref().map(|fields| fields.text.as_str()),
        train: rows.train.iter().collect(),
        calibration: reviewed(rows.calibration),
        test: reviewed(rows.test),
    };
    let unreviewed = (rows.test.len() - questions.test.len()) as u64;
    if unreviewed > 0 {
        emit.emit(EventKind::Counted {
            what: "test rows left out".into(),
            n: unreviewed,
            reason: "not reviewed".into(),
        });
    }
    if questions.test.is_empty() {
        return Err(EvalError::NoRows { split: "test" });
    }
    let mut judge = Judge::new(&plan.labels, plan.fields.as_ref());
    let gold = judge.gold(&questions.test)?;
    let calibration_gold = judge.gold(&questions.calibration)?;

    let dir = plan.dir.join("predictions");
    let (mut results, mut answers) = (Vec::new(), BTreeMap::<String, Answers>::new());
    for arm in arms {
        let (name, title, kind) = (arm.name.clone(), arm.title.clone(), arm.kind());
        let mut given = arms::run(arm, &questions, &dir, emit)?;
        judge.mark(&mut given);
        let result = measure(plan, &judge, &name, title, kind, &given, &questions, &gold, &calibration_gold);
        emit.emit(arm_scored(&result));
        results.push(result);
        answers.insert(name, given);
    }

    let gates: Vec<_> = {
        let evidence = Evidence {
            labels: &plan.labels,
            in_words: plan.fields.is_some(),
            gold: &gold,
            arms: answers.iter().map(|(name, answers)| (name.as_str(), answers.test.as_slice())).collect(),
            candidate: &plan.candidate,
            risk: plan.risk,
            bootstrap_resamples: plan.bootstrap_resamples,
            seed: plan.seed,
        };
        plan.gates.iter().map(|gate| decide(gate, &evidence)).collect()
    };
    for gate in &gates {
        emit.emit(EventKind::GateDecided {
            gate: gate.gate.clone(),
            verdict: gate.verdict.name().to_owned(),
            reason: gate.reason.clone(),
        });
    }

    let timed = results.iter().find(|arm| arm.name == plan.candidate).and_then(of_some_calls);
    let groups: BTreeSet<&str> = questions.test.iter().map(|row| row.group.as_str()).collect();
    let mut report = Report {
        schema: SCHEMA,
        name: plan.name.clone(),
        version: plan.version.clone(),
        program_version: plan.program_version.clone(),
        verdict: Verdict::overall(gates.iter().map(|gate| gate.verdict)),
        headline: String::new(),
        candidate: plan.candidate.clone(),
        frontier: plan.frontier.clone(),
        made: plan.made.clone(),
        notes: plan.notes.iter().cloned().chain(timed).collect(),
        labels: plan.labels.clone(),
        fields: plan.fields.iter().flat_map(|f| f.schema.fields()).map(|f| f.name.clone()).collect(),
        test: TestRows {
            rows: gold.len() as u64,
            groups: groups.len() as u64,
            unreviewed,
            confidence: 1.0 - plan.risk.alpha,
        },
        comparisons: compare(plan, &results, &answers, &gold),
        routing: route(plan, &results, &answers, &gold),
        mistakes: mistakes(plan, &judge, &results, &answers, &questions, &gold),
        arms: results,
        gates,
        lineage: Lineage::of(rows.card),
        reproduce: plan.reproduce.clone(),
    };
    report.headline = headline(&report);
    Ok(report)
}

fn check(plan: &EvalPlan, arms: &[Arm<'_>]) -> Result<(), EvalError> {
    let refuse = |what: String, hint: &str| Err(EvalError::Plan { what, hint: hint.to_owned() });
    let labels: BTreeSet<&String> = plan.labels.iter().collect();
    if plan.fields.is_none() && (labels.len() < 2 || labels.len() != plan.labels.len()) {
        return refuse("at least two labels are needed, all different".into(), "correct [task] labels");
    }
    let names: BTreeSet<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
    if names.len() != arms.len() {
        return refuse("two arms have the same name".into(), "rename one");
    }
    let plain = |name: &str| {
        !name.is_empty()
            && !name.starts_with('.')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
    };
    if let Some(name) = names.iter().find(|name| !plain(name)) {
        return refuse(format!("arm name `{name}` is no file name"), "use letters, digits, `.`, `_` and `-`");
    }
    if !(plan.risk.alpha > 0.0 && plan.risk.alpha < 0.5 && plan.risk.power > 0.0 && plan.risk.power < 1.0) {
        return refuse("alpha must lie in (0, 0.5) and power in (0, 1)".into(), "use 0.05 and 0.8");
    }
    let gates: BTreeSet<&str> = plan.gates.iter().map(|gate| gate.name.as_str()).collect();
    if gates.len() != plan.gates.len() {
        return refuse("two gates have the same name".into(), "give each [[eval.gate]] a `name` of its own");
    }
    for gate in &plan.gates {
        if let Some(problem) = gate.rule.problem() {
            return refuse(format!("gate `{}`: {problem}", gate.name), "correct it in [[eval.gate]]");
        }
    }
    let asked = plan.gates.iter().filter_map(|gate| gate.rule.other_arm());
    for name in asked.chain([plan.candidate.as_str()]).chain(plan.frontier.as_deref()) {
        if !names.contains(name) {
            let known = names.iter().copied().collect::<Vec<_>>().join(", ");
            return refuse(format!("there is no arm `{name}`"), &format!("use one of {known}"));
        }
    }
    Ok(())
}

fn reviewed(rows: &[Example]) -> Vec<&Example> {
    rows.iter().filter(|row| row.label_source == LabelSource::Human).collect()
}

fn arm_scored(result: &ArmResult) -> EventKind {
    let (p50_ms, p95_ms) = result.latency.as_ref().map_or((0.0, 0.0), |l| (l.p50_ms, l.p95_ms));
    EventKind::ArmScored {
        arm: result.name.clone(),
        n: result.scores.rows,
        accuracy: result.scores.accuracy,
        p50_ms,
        p95_ms,
    }
}

/// Posteriors of all predictions; None if any has none.
fn posteriors(predictions: &[Prediction]) -> Option<Vec<&[f32]>> {
    predictions.iter().map(|p| p.posterior.as_deref()).collect()
}

#[expect(clippy::too_many_arguments, reason = "one call; a struct would only rename the list")]
fn measure(
    plan: &EvalPlan,
    judge: &Judge<'_>,
    name: &str,
    title: String,
    kind: ArmKind,
    answers: &Answers,
    questions: &Questions<'_>,
    gold: &[usize],
    calibration_gold: &[usize],
) -> ArmResult {
    let confidence = 1.0 - plan.risk.alpha;
    let predicted: Vec<_> = answers.test.iter().map(|p| p.label).collect();
    let times: Vec<f64> = answers.test.iter().filter_map(|p| p.latency_ms).collect();
    let latency = latency(&times);
    let cost = match (&plan.prices, kind) {
        (None, _) => Err("no price table was given".to_owned()),
        (Some(prices), ArmKind::Recorded) => recorded_cost(questions.test.iter().map(|row| usage(row)), prices),
        (Some(prices), _) => match &latency {
            Some(latency) => self_hosted_cost(latency.mean_ms, prices),
            None => Err("no call was timed".to_owned()),
        },
    };
    let of_confidences = || calibrate_confidences(answers, gold, calibration_gold, confidence);
    let calibration = posteriors(&answers.test).map(|test| {
        let fitted_on = posteriors(&answers.calibration).unwrap_or_default();
        let temperature = fit_temperature(&fitted_on, calibration_gold);
        Calibration {
            temperature,
            fitted_rows: fitted_on.len() as u64,
            raw: calibration_scores(&test, gold, 1.0),
            tempered: calibration_scores(&test, gold, temperature),
            bins: reliability(&confidences(&test, gold, temperature), confidence),
        }
    });
    let extraction = judge.numbers().zip(plan.fields.as_ref()).map(|(numbers, fields)| {
        score_fields(&fields.schema, &numbers.gold_values(gold), &numbers.values(&answers.test), confidence)
    });
    ArmResult {
        name: name.to_owned(),
        title,
        kind,
        scores: match &extraction {
            None => score(gold, &predicted, &plan.labels, confidence),
            Some(fields) => score_answers(gold, &predicted, fields, confidence),
        },
        latency,
        cost_missing: cost.as_ref().err().cloned(),
        cost: cost.ok(),
        calibration: calibration.or_else(of_confidences),
        extraction,
    }
}

/// Where answers are written many at once, and some calls are timed alone.
fn of_some_calls(arm: &ArmResult) -> Option<String> {
    let calls = arm.latency.as_ref()?.calls;
    let what = "Models' latencies are of single calls";
    (calls < arm.scores.rows).then(|| {
        format!("{what}: {calls} of the {} test rows were asked one by one, the others many at once.", arm.scores.rows)
    })
}

fn usage(row: &Example) -> Usage<'_> {
    Usage {
        model: &row.recorded.model,
        prompt_tokens: row.recorded.prompt_tokens,
        completion_tokens: row.recorded.completion_tokens,
    }
}

fn right(predictions: &[Prediction], gold: &[usize]) -> Vec<bool> {
    predictions.iter().zip(gold).map(|(p, gold)| p.label == Some(*gold)).collect()
}

fn compare(
    plan: &EvalPlan,
    results: &[ArmResult],
    answers: &BTreeMap<String, Answers>,
    gold: &[usize],
) -> Vec<Comparison> {
    let others = || results.iter().map(|result| result.name.as_str()).filter(|name| *name != plan.candidate);
    let with_candidate = others().map(|other| (plan.candidate.as_str(), other));
    let with_frontier = plan.frontier.iter().flat_map(|frontier| {
        others().filter(move |other| other != frontier).map(move |other| (other, frontier.as_str()))
    });
    with_candidate
        .chain(with_frontier)
        .filter_map(|(arm, against)| {
            let (first, second) = (answers.get(arm)?, answers.get(against)?);
            let pair = Paired::count(&right(&first.test, gold), &right(&second.test, gold));
            let same = first.test.iter().zip(&second.test).filter(|(x, y)| x.label == y.label).count();
            Some(Comparison {
                arm: arm.to_owned(),
                against: against.to_owned(),
                pair,
                difference: pair.difference(),
                interval: tango_interval(pair, 1.0 - plan.risk.alpha),
                p_mcnemar: mcnemar_exact(pair),
                agreement: same as f64 / gold.len() as f64,
            })
        })
        .collect()
}

fn route(
    plan: &EvalPlan,
    results: &[ArmResult],
    answers: &BTreeMap<String, Answers>,
    gold: &[usize],
) -> Option<Routing> {
    let result = results.iter().find(|result| result.name == plan.candidate)?;
    let temperature = result.calibration.as_ref()?.temperature;
    let candidate = answers.get(&plan.candidate)?;
    let confidences = match posteriors(&candidate.test) {
        Some(posteriors) => confidences(&posteriors, gold, temperature),
        None => said_confidences(&candidate.test, gold, temperature)?,
    };
    let level = 1.0 - plan.risk.alpha;
    let served = serve_at(&confidences, plan.threshold, level);

    let frontier = plan.frontier.as_ref().and_then(|name| answers.get(name));
    let system_right = frontier.map(|frontier| {
        let frontier_right = right(&frontier.test, gold);
        let rows = confidences.iter().zip(&frontier_right);
        rows.filter(|((confidence, own), frontier)| if *confidence >= plan.threshold { *own } else { **frontier })
            .count()
    });
    let rows = gold.len() as u64;
    let frontier_cost = plan.frontier.as_ref().and_then(|name| results.iter().find(|r| r.name == *name)?.cost.as_ref());
    let cost = result.cost.as_ref().zip(frontier_cost).map(|(own, frontier)| Cost {
        per_1k_calls: own.per_1k_calls + (1.0 - served.coverage) * frontier.per_1k_calls,
        currency: own.currency.clone(),
        basis: "every call pays the candidate, an escalated one the frontier too".to_owned(),
    });
    Some(Routing {
        temperature,
        system_accuracy: system_right.map(|right| right as f64 / rows as f64),
        system_interval: system_right.map(|right| wilson(right as u64, rows, level)),
        cost,
        aurc: aurc(&confidences),
        curve: thin(risk_coverage(&confidences)),
        served,
    })
}

/// Every k-th point, the first and the last among them.
fn thin(points: Vec<RiskPoint>) -> Vec<RiskPoint> {
    let every = points.len().div_ceil(CURVE_POINTS).max(1);
    let last = points.len().saturating_sub(1);
    points.into_iter().enumerate().filter(|(i, _)| i % every == 0 || *i == last).map(|(_, point)| point).collect()
}

fn mistakes(
    plan: &EvalPlan,
    judge: &Judge<'_>,
    results: &[ArmResult],
    answers: &BTreeMap<String, Answers>,
    questions: &Questions<'_>,
    gold: &[usize],
) -> Vec<Mistake> {
    const SHOWN_CHARS: usize = 240;
    let Some(candidate) = answers.get(&plan.candidate) else { return Vec::new() };
    let temperature = results
        .iter()
        .find(|result| result.name == plan.candidate)
        .and_then(|result| result.calibration.as_ref())
        .map_or(1.0, |calibration| calibration.temperature);
    let frontier = plan.frontier.as_ref().and_then(|name| answers.get(name));
    let confidence = |p: &Prediction| match (&p.posterior, &p.said) {
        (Some(posterior), _) => Some(temper(posterior, temperature)[p.label?]),
        (None, said) => p.label.and(said.as_ref()?.confidence).map(|c| temper_confidence(c, temperature)),
    };
    let mut wrong: Vec<(usize, Option<f64>)> = candidate
        .test
        .iter()
        .enumerate()
        .filter(|(i, p)| p.label != Some(gold[*i]))
        .map(|(i, p)| (i, confidence(p)))
        .collect();
    wrong.sort_by(|x, y| y.1.unwrap_or(-1.0).total_cmp(&x.1.unwrap_or(-1.0)).then(x.0.cmp(&y.0)));
    wrong
        .into_iter()
        .take(plan.mistakes)
        .map(|(i, confidence)| {
            let text = text_of(&questions.test[i].messages);
            let cut: String = text.chars().take(SHOWN_CHARS).collect();
            let name = |label: Option<usize>| label.map(|label| judge.name(label));
            Mistake {
                row: questions.test[i].id.clone(),
                text: if cut.len() < text.len() { cut + "…" } else { cut },
                gold: judge.name(gold[i]),
                answer: name(candidate.test[i].label),
                confidence,
                frontier: frontier.and_then(|frontier| name(frontier.test[i].label)),
            }
        })
        .collect()
}

fn headline(report: &Report) -> String {
    let count = |verdict| report.gates.iter().filter(|gate| gate.verdict == verdict).count();
    let all = report.gates.len();
    let decided = match report.verdict {
        _ if all == 0 => "No gate was set, so nothing is certified.".to_owned(),
        Verdict::Pass if all == 1 => "The one gate passes.".to_owned(),
        Verdict::Pass => format!("All {all} gates pass."),
        Verdict::Fail => format!("{} of {all} gates fail.", count(Verdict::Fail)),
        Verdict::Inconclusive => {
            let needed = report.gates.iter().filter_map(|gate| gate.examples_needed).max();
            let open = count(Verdict::Inconclusive);
            let hint = needed.map_or(String::new(), |needed| {
                format!(" About {} reviewed test rows would decide.", crate::words::thousands(needed))
            });
            format!(
                "{open} of {all} gates {} undecided: there is not enough evidence.{hint}",
                if open == 1 { "is" } else { "are" }
            )
        }
    };
    let Some(candidate) = report.candidate_arm() else { return decided };
    let versus = report
        .versus_frontier(&candidate.name)
        .map_or(String::new(), |c| format!(", {} against {}", signed_points(c.difference), c.against));
    format!(
        "{decided} {} is right on {} of {} test rows{versus}.",
        candidate.name,
        percent(candidate.scores.accuracy),
        report.test.rows
    )
}
