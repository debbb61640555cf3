//! Measure, compare, calibrate, decide: what the arms of a run answer to the same reviewed rows, how sure one may be of
//! it, and whether that is enough to promote. Knows nothing of models: they come in as [`Answerer`]s.

mod arms;
mod bootstrap;
mod calibration;
mod cost;
mod error;
mod evaluate;
mod extraction;
mod floor;
mod gates;
mod judge;
mod metrics;
mod model_card;
mod predictions;
mod report;
mod rng;
mod said;
mod special;
pub mod statistics;
mod words;
mod written;

pub use arms::{AnswerWriter, Answerer, Arm, ArmKind, SaidOrNot};
pub use bootstrap::{BootstrapBounds, macro_f1_bounds};
pub use calibration::{
    BINS, Bin, CalibrationScores, RiskPoint, Served, aurc, calibration_scores, confidence_scores, confidences,
    fit_temperature, nll, reliability, risk_coverage, serve_at, temper, temper_confidence,
};
pub use cost::{Cost, PriceTable, SelfHosted, TokenPrice, Usage, recorded_cost, self_hosted_cost};
pub use error::{AnswerError, EvalError};
pub use evaluate::{EvalPlan, Fields, Rows, evaluate};
pub use extraction::{Extraction, FieldScore, normalised, score_fields};
pub use floor::{FloorRow, LinearFloor, RANKING_VERSION, out_of_fold, text_of};
pub use gates::{Evidence, Gate, GateResult, Metric, Rule, Verdict, decide};
pub use metrics::{ClassScore, Confusion, Latency, Prediction, Said, Scores, argmax, latency, score, score_answers};
pub use model_card::{CardPlan, model_card};
pub use report::{
    ArmResult, Calibration, Comparison, Fact, Lineage, Mistake, Report, Routing, SplitRows, TestRows, render_html,
    terminal_summary,
};
pub use rng::SplitMix64;
pub use special::{normal_cdf, normal_quantile};
