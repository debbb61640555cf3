//! What an evaluation is asked for, decided beforehand, and whether that can be had: names that are there, numbers that make sense.

use crate::arms::{Arm, ArmKind};
use crate::calibrator::Method;
use crate::composed::Composition;
use crate::cost::PriceTable;
use crate::detection::RankingPlan;
use crate::error::EvalError;
use crate::escalation::Target;
use crate::gates::{Gate, Rule};
use crate::load::LoadTest;
use crate::looks::Look;
use crate::report::{Constraint, Fact};
use crate::statistics::Risk;
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
    /// In the order of every posterior; empty where answers are written.
    pub labels: Vec<String>,
    pub fields: Option<Fields>,
    /// The label that says that a message is none of the task's business.
    pub out_of_scope: Option<usize>,
    pub ranking: Option<RankingPlan>,
    /// The arm that gates judge.
    pub candidate: String,
    /// Of fields that a model writes: whether it is kept to their schema meanwhile, and the arm that is the candidate the other way.
    pub constraint: Option<Constraint>,
    /// The arm that it would replace, where escalated calls go.
    pub frontier: Option<String>,
    pub gates: Vec<Gate>,
    /// Serve at or above this confidence, escalate below: the recipe's own number, in force where no certificate is asked for.
    pub threshold: f64,
    pub escalation: Option<Escalation>,
    /// How confidences are calibrated.
    pub calibration: Method,
    /// Where escalated calls go, in order, for the policy.
    pub fallback: Vec<String>,
    pub risk: Risk,
    pub bootstrap_resamples: u32,
    pub seed: u64,
    pub prices: Option<PriceTable>,
    /// Where it is counted that the test split judges this candidate; None where nobody counts.
    pub look: Option<Look>,
    /// The run's eval folder; predictions go to `predictions/` in it.
    pub dir: PathBuf,
    /// Load tests that were made before, by arm.
    pub loads: BTreeMap<String, LoadTest>,
    /// Of the file that would be shipped, where that is known.
    pub bytes: Option<u64>,
    /// Facts about what was made, for the report.
    pub made: Vec<Fact>,
    pub notes: Vec<String>,
    pub reproduce: Vec<String>,
    /// How many of the candidate's mistakes the report shows.
    pub mistakes: usize,
}

/// A certificate that is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Escalation {
    pub target: Target,
    /// Share of the served answers that is queued for review.
    pub review_share: f64,
    /// Days after the newest row in which the certificate counts as fresh.
    pub valid_days: u32,
}

impl Escalation {
    fn problem(self) -> Option<String> {
        let Target { max_error, confidence } = self.target;
        let inside = |x: f64| x > 0.0 && x < 1.0;
        if !inside(max_error) || !inside(confidence) {
            return Some(format!("max_error is {max_error} and confidence {confidence}; both lie between 0 and 1"));
        }
        (!(0.0..=1.0).contains(&self.review_share)).then(|| format!("review_share is {}, no share", self.review_share))
    }
}

/// Answers that are written: their schema, as it is understood and as it was written.
#[derive(Clone, Debug)]
pub struct Fields {
    pub schema: Schema,
    pub text: String,
}

/// Refuses a plan that contradicts itself or its arms.
pub(crate) fn check(plan: &EvalPlan, arms: &[Arm<'_>]) -> Result<(), EvalError> {
    let refuse = |what: String, hint: &str| Err(EvalError::Plan { what, hint: hint.to_owned() });
    let labels: BTreeSet<&String> = plan.labels.iter().collect();
    if plan.fields.is_none() && (labels.len() < 2 || labels.len() != plan.labels.len()) {
        return refuse("at least two labels are needed, all different".into(), "correct [task] labels");
    }
    let names: BTreeSet<&str> = arms.iter().map(|arm| arm.name.as_str()).collect();
    if names.len() != arms.len() {
        return refuse("two arms have the same name".into(), "rename one");
    }
    for (at, arm) in arms.iter().enumerate() {
        let Some((how, of)) = arm.composition() else { continue };
        let earlier = |name: &str| arms[..at].iter().find(|arm| arm.name == name);
        if let Some(missing) = of.iter().find(|name| earlier(name).is_none()) {
            let what = format!("arm `{}` is made of `{missing}`, and no arm of that name comes before it", arm.name);
            return refuse(what, "name arms that come before it");
        }
        if of.len() < 2 || arm.name == plan.candidate {
            let what = format!("arm `{}` is made of others: of two at least, and it is no candidate", arm.name);
            return refuse(what, "name two arms or more");
        }
        let of_recorded = |name: &String| earlier(name).is_some_and(|arm| arm.kind() == ArmKind::Recorded);
        if matches!(how, Composition::Cascade { .. }) && of[..of.len() - 1].iter().any(of_recorded) {
            let what = format!("arm `{}` goes on where an arm is not sure, and recorded answers don't say", arm.name);
            return refuse(what, "name the recorded answers last");
        }
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
    if let Some(problem) = plan.escalation.and_then(|escalation| escalation.problem()) {
        return refuse(problem, "correct it in [eval.escalation]");
    }
    for gate in &plan.gates {
        if plan.fields.is_none() && matches!(gate.rule, Rule::PiiCanary { .. }) {
            let what = format!("gate `{}`: answers are labels, and no secret can come out in one", gate.name);
            return refuse(what, "leave the gate out, or ask for kind = \"injection_canary\"");
        }
        if let Some(problem) = gate.rule.problem() {
            return refuse(format!("gate `{}`: {problem}", gate.name), "correct it in [[eval.gate]]");
        }
    }
    let asked = plan.gates.iter().filter_map(|gate| gate.rule.other_arm());
    let other_way = plan.constraint.iter().map(|constraint| constraint.other.as_str());
    for name in asked.chain(other_way).chain([plan.candidate.as_str()]).chain(plan.frontier.as_deref()) {
        if !names.contains(name) {
            let known = names.iter().copied().collect::<Vec<_>>().join(", ");
            return refuse(format!("there is no arm `{name}`"), &format!("use one of {known}"));
        }
    }
    Ok(())
}
