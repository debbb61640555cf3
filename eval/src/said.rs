//! How far the confidence of a written answer may be believed: right and wrong are its two classes, whatever the answer is.

use crate::arms::Answers;
use crate::calibration::{as_posterior, confidence_scores, fit_temperature, reliability, temper_confidence};
use crate::metrics::Prediction;
use crate::report::Calibration;

/// Each row's confidence at `temperature` and whether its answer was right; none where answers have no confidence. Who
/// serves an answer sees that it is not valid, so that such a one has none.
pub(crate) fn said_confidences(
    predictions: &[Prediction],
    gold: &[usize],
    temperature: f64,
) -> Option<Vec<(f64, bool)>> {
    let one = |(p, gold): (&Prediction, &usize)| {
        let confidence = p.said.as_ref()?.confidence?;
        Some(match p.label {
            None => (0.0, false),
            Some(label) => (temper_confidence(confidence, temperature), label == *gold),
        })
    };
    predictions.iter().zip(gold).map(one).collect()
}

/// One temperature, fitted on the valid answers of the calibration split; what it does to the test rows.
pub(crate) fn calibrate_confidences(
    answers: &Answers,
    gold: &[usize],
    calibration_gold: &[usize],
    level: f64,
) -> Option<Calibration> {
    let raw = said_confidences(&answers.test, gold, 1.0)?;
    let valid = answers.calibration.iter().zip(calibration_gold).filter(|(p, _)| p.label.is_some());
    let (valid, valid_gold): (Vec<Prediction>, Vec<usize>) = valid.map(|(p, gold)| (p.clone(), *gold)).unzip();
    let fitted_on = said_confidences(&valid, &valid_gold, 1.0).unwrap_or_default();
    let posteriors: Vec<[f32; 2]> = fitted_on.iter().map(|(confidence, _)| as_posterior(*confidence)).collect();
    let posteriors: Vec<&[f32]> = posteriors.iter().map(|p| p.as_slice()).collect();
    let wrong: Vec<usize> = fitted_on.iter().map(|(_, right)| usize::from(!right)).collect();
    let temperature = fit_temperature(&posteriors, &wrong);
    let tempered = said_confidences(&answers.test, gold, temperature)?;
    Some(Calibration {
        temperature,
        fitted_rows: fitted_on.len() as u64,
        raw: confidence_scores(&raw),
        tempered: confidence_scores(&tempered),
        bins: reliability(&tempered, level),
    })
}
