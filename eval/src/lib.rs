//! Measure, compare, calibrate, decide: what the arms of a run answer to the same reviewed rows, how sure one may be of
//! it, and whether that is enough to promote. Knows nothing of models: they come in as [`Answerer`]s.

mod arms;
mod bootstrap;
mod calibration;
mod calibrator;
mod compare;
mod comparisons;
mod composed;
mod cost;
mod detection;
mod drift;
mod error;
mod escalation;
mod evaluate;
mod extraction;
mod floor;
mod gates;
mod judge;
mod kmeans;
mod load;
pub mod looks;
mod metrics;
mod mistakes;
mod mmd;
mod model_card;
pub mod multiple;
mod plan;
mod planted;
mod policy;
mod predictions;
mod preference;
mod ranking;
mod report;
mod rollout;
mod routing;
mod said;
mod savings;
mod scored;
mod seed_spread;
mod self_check;
mod slices;
mod special;
pub mod statistics;
mod texts;
mod timed;
mod words;
mod written;

pub use arms::{AnswerWriter, Answerer, Arm, ArmKind, PosteriorOrNot, Respondent, Response, SaidOrNot};
pub use bootstrap::{BootstrapBounds, cluster_difference, macro_f1_bounds};
pub use calibration::{
    BINS, Bin, CalibrationScores, RiskPoint, Served, aurc, calibrated, calibrated_scores, calibration_scores,
    confidence_scores, confidences, excess_aurc, fit_temperature, nll, reliability, risk_coverage, serve_at, temper,
    temper_confidence,
};
pub use calibrator::{Calibrator, ISOTONIC_ROWS, Method, MethodScore};
pub use compare::{Answered, AnsweredRow, Changed, Compared, compare};
pub use composed::Composition;
pub use cost::{Cost, PriceTable, TokenPrice, Usage, recorded_cost, self_hosted_cost, token_cost};
pub use detection::{Detection, FIRST, Ranked, RankingPlan, auroc};
pub use drift::{Drift, DriftVerdict, Observed, PERMUTATIONS, Shift, Tested, drift, ks_distance, psi, score_psi};
pub use error::{AnswerError, EvalError};
pub use escalation::{
    Action, Band, Certificate, Scored, Step, Target, accepted_needed, bands, certified_threshold, certify,
    least_accepted, review_below, scored,
};
pub use evaluate::{Rows, evaluate, evaluate_judged};
pub use extraction::{Extraction, FieldScore, normalised, score_fields};
pub use floor::{FloorRow, LinearFloor, RANKING_VERSION, out_of_fold, text_of};
pub use gates::{Costs, Evidence, Gate, GateResult, Measured, Metric, Rule, Stability, Verdict, decide, stability};
pub use limbeck_artifact::random::SplitMix64;
pub use load::{ENOUGH_FOR_P99, Load, LoadCall, LoadTest, Percentile, Percentiles, arrivals, percentiles};
pub use metrics::{
    ClassScore, Confusion, Latency, Prediction, Said, Scores, Tokens, argmax, latency, score, score_answers,
};
pub use mmd::{embedding, mmd, spread};
pub use model_card::{CardPlan, model_card};
pub use plan::{Escalation, EvalPlan, Fields};
pub use policy::{CalibrationPolicy, Policy, PolicyBand, Promise, Reference, Score, Validity};
pub use preference::{Agreement, Choice, Comparer, Judged, Judgement, PairwiseJudge, Position, Shown};
pub use ranking::{ndcg, recall_at};
pub use report::{
    AnswerKind, ArmResult, Calibration, Comparison, Constraint, Fact, Lineage, Mistake, Report, Routing, SplitRows,
    TestRows, judged_facts, junit, load_facts, render_html, terminal_summary,
};
pub use rollout::{RolloutStep, SHARES, rollout};
pub use savings::{Savings, Volume};
pub use seed_spread::{SeedSpread, seed_spread};
pub use self_check::{Claim, Effort, Figure, self_check};
pub use slices::{By, Confused, Slice, SliceExample, Slices, p_worse};
pub use special::{normal_cdf, normal_quantile};
pub use texts::{Likeness, RougeL, Texts, is_exact, rouge_l};
pub use words::thousands;
