//! The evaluation itself: ask every arm about the same reviewed rows, measure, calibrate, compare, decide. The caller
//! chooses arms and gates; nothing here knows what a model is.

use crate::arms::{self, Answers, Arm, ArmKind, Questions};
use crate::calibration::{calibrated, calibrated_scores, reliability};
use crate::calibrator::{Calibrator, ISOTONIC_ROWS, Method, compare_methods};
use crate::comparisons::compare;
use crate::composed::{Member, compose};
use crate::cost::{Charge, Usage, recorded_cost, self_hosted_cost, token_cost};
use crate::detection::{detection, ranked};
use crate::error::EvalError;
use crate::extraction::score_fields;
use crate::gates::{Costs, Evidence, Gate, GateResult, Measured, REPEATS, Verdict, decide, stability};
use crate::judge::Judge;
use crate::looks;
use crate::metrics::{Prediction, latency, score, score_answers};
use crate::mistakes::mistakes;
use crate::plan::{EvalPlan, check};
use crate::planted::plant;
use crate::policy;
use crate::preference::{self, PairwiseJudge};
use crate::report::{ArmResult, Calibration, Lineage, Report, SCHEMA, TestRows};
use crate::routing::route;
use crate::said::calibrate_confidences;
use crate::savings::savings;
use crate::slices::{self, Material};
use crate::statistics::Risk;
use crate::texts::{Likeness, score_texts};
use crate::words::{percent, signed_points, thousands};
use limbeck_artifact::dataset::{DatasetCard, Example, LabelSource};
use limbeck_artifact::event::{Emit, EventKind};
use std::collections::{BTreeMap, BTreeSet};

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

/// Evaluates `arms` on the reviewed test rows. Only reviewed rows count; predictions of finished arms are kept under
/// `plan.dir` and reused, so an interrupted evaluation goes on with the arm it was at.
pub fn evaluate(plan: &EvalPlan, arms: Vec<Arm<'_>>, rows: Rows<'_>, emit: &dyn Emit) -> Result<Report, EvalError> {
    evaluate_judged(plan, arms, Vec::new(), rows, emit)
}

/// As [`evaluate`], with judges who compare the candidate's texts with another arm's.
pub fn evaluate_judged(
    plan: &EvalPlan,
    arms: Vec<Arm<'_>>,
    judges: Vec<PairwiseJudge<'_>>,
    rows: Rows<'_>,
    emit: &dyn Emit,
) -> Result<Report, EvalError> {
    check(plan, &arms)?;
    preference::check(plan, &arms, &judges)?;
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
    if plan.calibration == Method::Isotonic && questions.calibration.len() < ISOTONIC_ROWS {
        return Err(EvalError::Plan {
            what: format!(
                "isotonic calibration needs {} reviewed calibration rows, and there are {}",
                thousands(ISOTONIC_ROWS as u64),
                thousands(questions.calibration.len() as u64)
            ),
            hint: "set eval.calibration to \"platt\" or \"temperature\", or review more of the calibration split"
                .to_owned(),
        });
    }
    let mut judge = Judge::new(&plan.labels, plan.fields.as_ref());
    let gold = judge.gold(&questions.test)?;
    let calibration_gold = judge.gold(&questions.calibration)?;

    let dir = plan.dir.join("predictions");
    let (mut results, mut answers) = (Vec::new(), BTreeMap::<String, Answers>::new());
    let mut likeness = Likeness::new();
    let (planted, mut planted_answers) = (plant(&plan.gates, &questions, &gold, plan.seed), Vec::new());
    for arm in arms {
        let (name, title, kind) = (arm.name.clone(), arm.title.clone(), arm.kind());
        let (given, charge) = match arm.composition() {
            Some((how, of)) => {
                let members = members(of, &results, &answers);
                let made = compose(how, &members, plan.labels.len(), questions.calibration.len());
                arms::keep(&name, &made.answers, &dir, emit)?;
                (made.answers, Charge::Known(made.cost))
            }
            None => {
                let charge = arm.charge();
                let canaries = arm.name == plan.candidate && arm.calibrate && !planted.is_empty();
                let with_canaries = canaries.then(|| questions.and(planted.iter().map(|planted| &planted.example)));
                let mut given = arms::run(arm, with_canaries.as_ref().unwrap_or(&questions), &dir, emit)?;
                judge.mark(&mut given);
                if canaries {
                    let answers = given.calibration.split_off(questions.calibration.len());
                    planted_answers =
                        planted.iter().zip(answers).map(|(planted, answer)| planted.answered(answer)).collect();
                }
                (given, charge)
            }
        };
        likeness.extend(judge.likeness(&gold, &given.test));
        let who = (name.as_str(), title, kind, charge);
        let result = measure(plan, &judge, &likeness, who, &given, &questions, &gold, &calibration_gold);
        emit.emit(arm_scored(&result));
        results.push(result);
        answers.insert(name, given);
    }

    let mut judgements = Vec::new();
    for judge in judges {
        let texts = |name: &str| answers.get(name).map_or(&[][..], |answers| answers.test.as_slice());
        let sides = [texts(&plan.candidate), texts(&judge.against)];
        judgements.push(preference::ask(plan, judge, &questions.test, sides, emit)?);
    }
    let routed = route(plan, &results, &answers, &gold, &calibration_gold);
    let (routing, serves) = routed.map_or((None, None), |routed| (Some(routed.routing), Some(routed.serves)));
    let candidate = answers.get(&plan.candidate).map_or(&[][..], |answers| answers.test.as_slice());
    let material = Material {
        test: &questions.test,
        train: &questions.train,
        gold: &gold,
        candidate,
        frontier: plan.frontier.as_ref().and_then(|name| answers.get(name)).map(|answers| answers.test.as_slice()),
        served: serves.as_deref(),
        name: &|number| judge.name(number),
        labels: plan.fields.is_none(),
        confidence: 1.0 - plan.risk.alpha,
        seed: plan.seed,
    };
    let (slices, slice_rows) = (slices::find(&material), slices::rows_by(&material));
    // Counted before anybody learns of the verdict: a look can't be taken back.
    let test_digest = looks::digest(&questions.test);
    let mut looks = plan.look.as_ref().map(|look| looks::count(look, &test_digest)).transpose()?;
    let lineage = Lineage::of(rows.card);
    let gates: Vec<_> = {
        let result = |name: &str| results.iter().find(|result| result.name == name);
        let own = result(&plan.candidate);
        let frontier = plan.frontier.as_deref().and_then(result);
        let frontier_cost = frontier.ok_or("no frontier model was evaluated").and_then(|frontier| {
            frontier.cost.as_ref().ok_or(frontier.cost_missing.as_deref().unwrap_or("there is no price table"))
        });
        let calibrator = own.and_then(|own| own.calibration.as_ref()).map(Calibration::calibrator);
        let evidence = Evidence {
            labels: &plan.labels,
            in_words: plan.fields.is_some(),
            likeness: &likeness,
            gold: &gold,
            arms: answers.iter().map(|(name, answers)| (name.as_str(), answers.test.as_slice())).collect(),
            candidate: &plan.candidate,
            risk: plan.risk,
            bootstrap_resamples: plan.bootstrap_resamples,
            seed: plan.seed,
            routing: routing.as_ref(),
            fallback: &plan.fallback,
            slices: &slice_rows,
            planted: &planted_answers,
            measured: Measured {
                load: plan.loads.get(&plan.candidate),
                judged: &judgements,
                calibrator: calibrator.as_ref(),
                costs: own.and_then(|own| Some(Costs { own: own.cost.as_ref()?, frontier: frontier_cost })),
                bytes: plan.bytes,
                reviewed: &lineage.splits,
            },
        };
        let groups: Vec<&str> = questions.test.iter().map(|row| row.group.as_str()).collect();
        let decided = |gate: &Gate| {
            let result = decide(gate, &evidence);
            GateResult { stability: stability(gate, result.verdict, &evidence, &groups, REPEATS), ..result }
        };
        if let Some(looks) = looks.as_mut().filter(|looks| looks.candidates > 1 && !plan.gates.is_empty()) {
            let alpha = plan.risk.alpha / looks.candidates as f64;
            let stricter = Evidence { risk: Risk { alpha, ..plan.risk }, ..evidence.clone() };
            looks.corrected = Some(Verdict::overall(plan.gates.iter().map(|gate| decide(gate, &stricter).verdict)));
        }
        plan.gates.iter().map(decided).collect()
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
        constraint: plan.constraint.clone(),
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
            looks,
        },
        comparisons: compare(plan, &results, &answers, &gold, &questions),
        slices: Some(slices),
        routing,
        policy: None,
        savings: None,
        mistakes: mistakes(plan, &judge, &results, &answers, &questions, &gold),
        arms: results,
        gates,
        judged: judgements.into_iter().map(|judgement| judgement.summary).collect(),
        lineage,
        reproduce: plan.reproduce.clone(),
    };
    report.headline = headline(&report);
    report.savings = plan.prices.as_ref().and_then(|prices| savings(prices, &report));
    report.policy = policy::make(plan, &report, &answers, &questions, &gold);
    Ok(report)
}

/// The arms of those names that have answered; [`check`] saw to it that all have.
fn members<'a>(of: &[String], results: &'a [ArmResult], answers: &'a BTreeMap<String, Answers>) -> Vec<Member<'a>> {
    let member = |name: &String| {
        let result = results.iter().find(|result| result.name == *name)?;
        Some(Member { result, answers: answers.get(name)? })
    };
    of.iter().filter_map(member).collect()
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
pub(crate) fn posteriors(predictions: &[Prediction]) -> Option<Vec<&[f32]>> {
    predictions.iter().map(|p| p.posterior.as_deref()).collect()
}

#[expect(clippy::too_many_arguments, reason = "one call; a struct would only rename the list")]
fn measure(
    plan: &EvalPlan,
    judge: &Judge<'_>,
    likeness: &Likeness,
    (name, title, kind, charge): (&str, String, ArmKind, Charge),
    answers: &Answers,
    questions: &Questions<'_>,
    gold: &[usize],
    calibration_gold: &[usize],
) -> ArmResult {
    let confidence = 1.0 - plan.risk.alpha;
    let predicted: Vec<_> = answers.test.iter().map(|p| p.label).collect();
    let times: Vec<f64> = answers.test.iter().filter_map(|p| p.latency_ms).collect();
    let latency = latency(&times);
    let cost = match (&plan.prices, charge) {
        (None, _) => Err("no price table was given".to_owned()),
        (_, Charge::Known(cost)) => cost,
        (Some(prices), Charge::Recorded) => recorded_cost(questions.test.iter().map(|row| usage(row)), prices),
        (Some(prices), Charge::Tokens { model }) => {
            token_cost(answers.test.iter().map(|p| p.tokens), &model, name, prices)
        }
        (Some(prices), Charge::Machine) => match &latency {
            Some(latency) => self_hosted_cost(latency.mean_ms, prices),
            None => Err("no call was timed".to_owned()),
        },
    };
    let groups: Vec<&str> = questions.calibration.iter().map(|row| row.group.as_str()).collect();
    let groups = (name == plan.candidate).then_some(groups.as_slice());
    let of_confidences =
        || calibrate_confidences(answers, gold, calibration_gold, plan.calibration, groups, confidence);
    let calibration = posteriors(&answers.test).map(|test| {
        let fitted_on = posteriors(&answers.calibration).unwrap_or_default();
        calibrate_posteriors(&test, gold, &fitted_on, calibration_gold, plan.calibration, groups, confidence)
    });
    let of_texts = plan.fields.as_ref().is_some_and(|fields| fields.schema.is_text());
    let texts = of_texts.then(|| score_texts(likeness, gold, &predicted, confidence));
    let fields = plan.fields.as_ref().filter(|_| !of_texts);
    let extraction = judge.numbers().zip(fields).map(|(numbers, fields)| {
        score_fields(&fields.schema, &numbers.gold_values(gold), &numbers.values(&answers.test), confidence)
    });
    ArmResult {
        name: name.to_owned(),
        title,
        kind,
        scores: match plan.fields {
            None => score(gold, &predicted, &plan.labels, confidence),
            Some(_) => score_answers(gold, &predicted, extraction.as_ref(), confidence),
        },
        latency,
        cost_missing: cost.as_ref().err().cloned(),
        cost: cost.ok(),
        calibration: calibration.or_else(of_confidences),
        extraction,
        texts,
        detection: plan
            .out_of_scope
            .and_then(|label| Some(detection(label, plan.labels.get(label)?, gold, &answers.test, confidence))),
        ranked: plan.ranking.as_ref().and_then(|ranking| ranked(ranking, gold, &answers.test)),
        load: plan.loads.get(name).map(|test| test.summary.clone()),
        facts: answers.facts.clone(),
    }
}

/// One calibrator, fitted on the calibration split; what it does to the test rows, and where `groups` of the calibration rows
/// are given, how the methods compare.
fn calibrate_posteriors(
    test: &[&[f32]],
    gold: &[usize],
    fitted_on: &[&[f32]],
    calibration_gold: &[usize],
    method: Method,
    groups: Option<&[&str]>,
    level: f64,
) -> Calibration {
    let calibrator = match fitted_on {
        [] => Calibrator::default(),
        _ => Calibrator::of_posteriors(method, fitted_on, calibration_gold),
    };
    let pick = |rows: &[usize]| -> (Vec<&[f32]>, Vec<usize>) {
        rows.iter().map(|row| (fitted_on[*row], calibration_gold[*row])).unzip()
    };
    let methods = compare_methods(
        method,
        groups.filter(|groups| groups.len() == fitted_on.len()).unwrap_or_default(),
        &|method, rows| {
            let (posteriors, gold) = pick(rows);
            Calibrator::of_posteriors(method, &posteriors, &gold)
        },
        &|calibrator, rows| {
            let (posteriors, gold) = pick(rows);
            calibrated(&posteriors, &gold, calibrator)
        },
    );
    Calibration {
        temperature: calibrator.temperature(),
        fitted_rows: fitted_on.len() as u64,
        raw: calibrated_scores(test, gold, &Calibrator::None),
        tempered: calibrated_scores(test, gold, &calibrator),
        bins: reliability(&calibrated(test, gold, &calibrator), level),
        calibrator,
        methods,
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

pub(crate) fn right(predictions: &[Prediction], gold: &[usize]) -> Vec<bool> {
    predictions.iter().zip(gold).map(|(p, gold)| p.label == Some(*gold)).collect()
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
            // What a certificate lacks are calibration rows.
            let of_test = report.gates.iter().filter(|gate| !gate.numbers.contains_key("calibration_rows"));
            let needed = of_test.filter_map(|gate| gate.examples_needed).max();
            let open = count(Verdict::Inconclusive);
            let hint = needed.map_or(String::new(), |needed| {
                format!(" About {} reviewed test rows would decide.", thousands(needed))
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
