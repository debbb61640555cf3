//! How far the confidence of a written answer may be believed: right and wrong are its two classes, whatever the answer is.

use crate::arms::Answers;
use crate::calibration::{confidence_scores, reliability};
use crate::calibrator::{Calibrator, Method, compare_methods};
use crate::metrics::Prediction;
use crate::report::Calibration;

/// Each row's confidence under a calibrator and whether its answer was right; none where answers have no confidence. Who
/// serves an answer sees that it is not valid, so that such a one has none.
pub(crate) fn said_confidences(
    predictions: &[Prediction],
    gold: &[usize],
    calibrator: &Calibrator,
) -> Option<Vec<(f64, bool)>> {
    let one = |(p, gold): (&Prediction, &usize)| {
        let confidence = p.said.as_ref()?.confidence?;
        Some(match p.label {
            None => (0.0, false),
            Some(label) => (calibrator.confidence(confidence), label == *gold),
        })
    };
    predictions.iter().zip(gold).map(one).collect()
}

/// One calibrator, fitted on the valid answers of the calibration split; what it does to the test rows. `groups` are those of
/// the calibration rows, for the comparison of methods; none, no comparison.
pub(crate) fn calibrate_confidences(
    answers: &Answers,
    gold: &[usize],
    calibration_gold: &[usize],
    method: Method,
    groups: Option<&[&str]>,
    level: f64,
) -> Option<Calibration> {
    let raw = said_confidences(&answers.test, gold, &Calibrator::None)?;
    let is_valid: Vec<bool> = answers.calibration.iter().map(|p| p.label.is_some()).collect();
    let all = said_confidences(&answers.calibration, calibration_gold, &Calibrator::None).unwrap_or_default();
    let fitted_on: Vec<(f64, bool)> =
        all.iter().zip(&is_valid).filter(|(_, valid)| **valid).map(|(row, _)| *row).collect();
    let calibrator = Calibrator::of_scores(method, &fitted_on);
    let tempered = said_confidences(&answers.test, gold, &calibrator)?;
    let groups: Vec<&str> = match groups {
        Some(groups) if groups.len() == is_valid.len() => {
            groups.iter().zip(&is_valid).filter(|(_, valid)| **valid).map(|(group, _)| *group).collect()
        }
        _ => Vec::new(),
    };
    let pick = |rows: &[usize]| rows.iter().map(|row| fitted_on[*row]).collect::<Vec<_>>();
    let methods = compare_methods(
        method,
        &groups,
        &|method, rows| Calibrator::of_scores(method, &pick(rows)),
        &|calibrator, rows| pick(rows).into_iter().map(|(p, right)| (calibrator.confidence(p), right)).collect(),
    );
    Some(Calibration {
        temperature: calibrator.temperature(),
        fitted_rows: fitted_on.len() as u64,
        raw: confidence_scores(&raw),
        tempered: confidence_scores(&tempered),
        bins: reliability(&tempered, level),
        calibrator,
        methods,
    })
}
