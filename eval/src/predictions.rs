//! Predictions on disk, one JSONL file an arm: a header with the key of what they were made from, then a line a row.
//! Written whole or not at all; a file that does not fit the questions is as good as none. Rows with a canary in them
//! stand behind the calibration split's.

use crate::arms::Answers;
use crate::error::EvalError;
use crate::metrics::Prediction;
use crate::report::Fact;
use limbeck_artifact::dataset::{Example, Split};
use limbeck_artifact::files::write_atomic;
use serde::{Deserialize, Serialize};
use std::path::Path;

#[derive(Serialize, Deserialize)]
struct Header {
    arm: String,
    key: String,
    calibration: usize,
    test: usize,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    facts: Vec<Fact>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    split: Split,
    #[serde(flatten)]
    prediction: Prediction,
}

/// Writes the file; returns its size in bytes.
pub(crate) fn save(path: &Path, arm: &str, key: &str, kept: &Answers) -> Result<u64, EvalError> {
    let json = |source| EvalError::Json { what: format!("predictions of arm `{arm}`"), source };
    let (calibration, test) = (kept.calibration.len(), kept.test.len());
    let header = Header { arm: arm.to_owned(), key: key.to_owned(), calibration, test, facts: kept.facts.clone() };
    let mut text = serde_json::to_string(&header).map_err(json)?;
    text.push('\n');
    for (split, predictions) in [(Split::Calibration, &kept.calibration), (Split::Test, &kept.test)] {
        for prediction in predictions {
            let line = Line { split, prediction: prediction.clone() };
            text.push_str(&serde_json::to_string(&line).map_err(json)?);
            text.push('\n');
        }
    }
    write_atomic(path, text.as_bytes()).map_err(|source| EvalError::Io {
        doing: "write the predictions",
        path: path.to_owned(),
        source,
    })?;
    Ok(text.len() as u64)
}

/// The predictions of the test rows, whatever they were made from, if the file is whole.
pub(crate) fn read_test(path: &Path) -> Option<Vec<Prediction>> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let header: Header = serde_json::from_str(lines.next()?).ok()?;
    let mut test = Vec::new();
    for line in lines {
        let line: Line = serde_json::from_str(line).ok()?;
        if line.split == Split::Test {
            test.push(line.prediction);
        }
    }
    (test.len() == header.test).then_some(test)
}

/// The kept predictions, if the file is whole, has this key and answers exactly these rows in this order.
pub(crate) fn load(path: &Path, key: &str, calibration: &[&Example], test: &[&Example]) -> Option<Answers> {
    let text = std::fs::read_to_string(path).ok()?;
    let mut lines = text.lines();
    let header: Header = serde_json::from_str(lines.next()?).ok()?;
    if header.key != key || header.calibration != calibration.len() || header.test != test.len() {
        return None;
    }
    let mut kept = Answers { calibration: Vec::new(), test: Vec::new(), facts: header.facts };
    for line in lines {
        let line: Line = serde_json::from_str(line).ok()?;
        match line.split {
            Split::Calibration => kept.calibration.push(line.prediction),
            Split::Test => kept.test.push(line.prediction),
            Split::Train | Split::Valid => return None,
        }
    }
    let same = |kept: &[Prediction], rows: &[&Example]| {
        kept.len() == rows.len() && kept.iter().zip(rows).all(|(kept, row)| kept.row == row.id)
    };
    (same(&kept.calibration, calibration) && same(&kept.test, test)).then_some(kept)
}
