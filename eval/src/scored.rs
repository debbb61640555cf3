//! Posteriors of an arm: of all rows, many at once, which is how fast it can be, and of some again one by one with a clock beside
//! them, which is how long a call takes.

use crate::arms::{Answerer, Answers, prediction};
use crate::error::{AnswerError, EvalError};
use crate::metrics::Prediction;
use crate::timed;
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::event::{Emit, EventKind};

/// Rows whose prompts are held at once.
const ROWS: usize = 4096;

/// Answers `[calibration, test]`. The latencies are those of single calls; a row that was not timed has none.
pub(crate) fn answers(
    arm: &str,
    model: &mut dyn Answerer,
    [calibration, test]: [&[&Example]; 2],
    labels: usize,
    progress: &dyn Fn(usize),
    emit: &dyn Emit,
) -> Result<Answers, EvalError> {
    let rows: Vec<&Example> = calibration.iter().chain(test).copied().collect();
    let (mut found, mut done) = (Vec::with_capacity(rows.len()), 0);
    for rows in rows.chunks(ROWS) {
        let asked: Vec<&[Message]> = rows.iter().map(|row| row.messages.as_slice()).collect();
        let answers = model.answer_all(&asked, &mut |n| {
            let before = done;
            done += n;
            if done / 16 > before / 16 {
                progress(done);
            }
        });
        if answers.len() != rows.len() {
            let source: AnswerError = format!("{} posteriors for {} prompts", answers.len(), rows.len()).into();
            return Err(EvalError::Answer { arm: arm.to_owned(), row: rows[0].id.clone(), source });
        }
        for (row, answer) in rows.iter().zip(answers) {
            found.push(prediction(arm, row, answer, labels)?);
        }
    }
    progress(done);
    let mut test_found = found.split_off(calibration.len());
    time_some(arm, model, test, &mut test_found, labels, emit)?;
    Ok(Answers { calibration: found, test: test_found, facts: Vec::new() })
}

/// What single calls answer takes the place of what was answered beside others: the two are the same unless the device adds up in
/// another order there.
fn time_some(
    arm: &str,
    model: &mut dyn Answerer,
    test: &[&Example],
    found: &mut [Prediction],
    labels: usize,
    emit: &dyn Emit,
) -> Result<(), EvalError> {
    let mut others = 0;
    let ask = |row: &Example| model.answer(&row.messages);
    let calls = timed::some(test, ask, |at, alone, latency_ms| {
        let alone = Prediction { latency_ms: Some(latency_ms), ..prediction(arm, test[at], alone, labels)? };
        others += usize::from(alone.label != found[at].label);
        found[at] = alone;
        Ok(())
    })?;
    if others > 0 {
        let text = format!("arm {arm}: {others} of {calls} answers are others when asked one by one");
        emit.emit(EventKind::Warning { text });
    }
    Ok(())
}
