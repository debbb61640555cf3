//! What an arm writes: all rows at once, which is how fast it can be, and some again one by one with a clock beside it, which is
//! how long a call takes.

use crate::arms::{AnswerWriter, Answers};
use crate::error::{AnswerError, EvalError};
use crate::metrics::{Prediction, Said};
use crate::timed;
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::event::{Emit, EventKind};

/// Rows whose prompts are held at once.
const ROWS: usize = 1024;
/// Answers `[calibration, test]`. The latencies are those of single calls; a row that was not timed has none.
pub(crate) fn answers(
    arm: &str,
    writer: &mut dyn AnswerWriter,
    [calibration, test]: [&[&Example]; 2],
    progress: &dyn Fn(usize),
    emit: &dyn Emit,
) -> Result<Answers, EvalError> {
    let rows: Vec<&Example> = calibration.iter().chain(test).copied().collect();
    let (mut said, mut done) = (Vec::with_capacity(rows.len()), 0);
    for rows in rows.chunks(ROWS) {
        said.extend(write_all(arm, writer, rows, &mut || {
            done += 1;
            if done % 16 == 0 {
                progress(done);
            }
        })?);
    }
    progress(done);
    let mut test_said = said.split_off(calibration.len());
    let timed = time_some(arm, writer, test, &mut test_said, emit)?;
    let prediction = |(row, said): (&&Example, Said)| Prediction {
        row: row.id.clone(),
        label: None,
        posterior: None,
        latency_ms: None,
        said: Some(said),
        tokens: None,
    };
    let mut answers = Answers {
        calibration: calibration.iter().zip(said).map(prediction).collect(),
        test: test.iter().zip(test_said).map(prediction).collect(),
        facts: Vec::new(),
    };
    for (row, latency_ms) in timed {
        answers.test[row].latency_ms = Some(latency_ms);
    }
    Ok(answers)
}

fn write_all(
    arm: &str,
    writer: &mut dyn AnswerWriter,
    rows: &[&Example],
    done: &mut dyn FnMut(),
) -> Result<Vec<Said>, EvalError> {
    let asked: Vec<&[Message]> = rows.iter().map(|row| row.messages.as_slice()).collect();
    let failed = |row: &Example, source| EvalError::Answer { arm: arm.to_owned(), row: row.id.clone(), source };
    let said = writer.write_all(&asked, done).map_err(|source| failed(rows[0], source))?;
    if said.len() != rows.len() {
        let source: AnswerError = format!("{} answers to {} prompts", said.len(), rows.len()).into();
        return Err(failed(rows[0], source));
    }
    said.into_iter().zip(rows).map(|(said, row)| said.map_err(|source| failed(row, source))).collect()
}

/// Milliseconds of single calls, by test row. What they say takes the place of what was written beside others: the two are the
/// same unless the device adds up in another order there.
fn time_some(
    arm: &str,
    writer: &mut dyn AnswerWriter,
    test: &[&Example],
    said: &mut [Said],
    emit: &dyn Emit,
) -> Result<Vec<(usize, f64)>, EvalError> {
    let (mut times, mut others) = (Vec::new(), 0);
    let ask = |row: &Example| writer.write(&row.messages);
    let calls = timed::some(test, ask, |at, alone, latency_ms| {
        let failed = |source| EvalError::Answer { arm: arm.to_owned(), row: test[at].id.clone(), source };
        let alone = alone.map_err(failed)?;
        others += usize::from(alone.text != said[at].text);
        said[at] = alone;
        times.push((at, latency_ms));
        Ok(())
    })?;
    if others > 0 {
        let text = format!("arm {arm}: {others} of {calls} answers read otherwise when written one by one");
        emit.emit(EventKind::Warning { text });
    }
    Ok(times)
}
