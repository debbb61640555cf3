//! How often a test split was used to judge: a folder a split, a file a candidate, made exclusively under the next number, so that
//! nothing is counted twice and nothing is taken back. Rows and candidates are told by their digests.

use crate::error::EvalError;
use crate::gates::Verdict;
use crate::words::percent;
use limbeck_artifact::dataset::Example;
use limbeck_artifact::digest::{is_sha256, sha256_hex};
use limbeck_artifact::files::AtomicFile;
use serde::{Deserialize, Serialize};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Under a folder of runs: what looked at which test split is no run's own matter.
pub const FOLDER: &str = ".looks";

/// A candidate about to be judged.
#[derive(Clone, Debug)]
pub struct Look {
    /// Where looks are kept, [`FOLDER`] in the folder of the runs.
    pub store: PathBuf,
    /// Digest of the file that would be shipped.
    pub candidate: String,
    /// The run, and when, for whoever reads the file.
    pub run: String,
    pub at: String,
}

/// One candidate that a test split has judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub candidate: String,
    pub run: String,
    pub at: String,
}

/// What a test split has been used for, in a report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Looks {
    /// Digest of the reviewed test rows.
    pub test: String,
    /// Distinct candidates that were judged on them, this one among them.
    pub candidates: u64,
    /// Which of them this one was, by its first look.
    pub number: u64,
    /// What the gates say at a level divided by the number of candidates (Bonferroni); None where this is the only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub corrected: Option<Verdict>,
}

impl Looks {
    /// In sentences; `alpha` is the gates' level.
    pub fn words(&self, alpha: f64) -> String {
        let n = self.candidates;
        let Some(corrected) = self.corrected else {
            return "This test split has judged one candidate, this one.".to_owned();
        };
        let says = match corrected {
            Verdict::Pass => "pass, so this one passes however the candidates were chosen",
            Verdict::Fail => "fail",
            Verdict::Inconclusive => "are undecided",
        };
        format!(
            "This test split has judged {n} candidates, this one as number {}. If one of them is chosen by what the gates say here, \
             one that is not good enough may pass up to {n} times as often as their {} promise; at {} (Bonferroni) the gates \
             {says}. Choosing on the valid split, or fresh test rows, costs nothing of the kind.",
            self.number,
            percent(alpha),
            percent(alpha / n as f64)
        )
    }
}

/// Digest of the rows that judge: whoever has the same rows shares their looks.
pub fn digest(test: &[&Example]) -> String {
    let mut ids: Vec<&str> = test.iter().map(|row| row.id.as_str()).collect();
    ids.sort_unstable();
    sha256_hex(ids.join("\n").as_bytes())
}

/// All candidates that a test split has judged, in their order.
///
/// # Errors
/// When a file that is there can't be read or is none of these.
pub fn seen(store: &Path, test: &str) -> Result<Vec<Seen>, EvalError> {
    let mut all = Vec::new();
    loop {
        let path = file(store, test, all.len() + 1);
        let failed =
            |source| EvalError::Io { doing: "read the looks at the test split in", path: path.clone(), source };
        match std::fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(all),
            Err(e) => return Err(failed(e)),
            Ok(text) => all.push(serde_json::from_slice(&text).map_err(|e| failed(e.into()))?),
        }
    }
}

/// How many candidates the test split of a run has judged by now, 0 where nothing tells. Looks are counted beside the outermost
/// run: that of a seed or of a rung lies two folders further down.
///
/// # Errors
/// When a file that is there can't be read or is none of these.
pub fn judged(run: &Path, test: &str) -> Result<u64, EvalError> {
    let Ok(run) = run.canonicalize() else { return Ok(0) };
    let mut most = 0;
    for runs in run.ancestors().skip(1).take(3) {
        most = most.max(seen(&runs.join(FOLDER), test)?.len() as u64);
    }
    Ok(most)
}

/// Counts a candidate, unless the split has judged it before.
///
/// # Errors
/// When the store can't be read or written to: a look that is not counted must not happen.
pub fn count(look: &Look, test: &str) -> Result<Looks, EvalError> {
    debug_assert!(is_sha256(test), "a test split is told by its digest");
    loop {
        let seen = seen(&look.store, test)?;
        let found = seen.iter().position(|seen| seen.candidate == look.candidate);
        if let Some(at) = found {
            let (candidates, number) = (seen.len() as u64, at as u64 + 1);
            return Ok(Looks { test: test.to_owned(), candidates, number, corrected: None });
        }
        let path = file(&look.store, test, seen.len() + 1);
        let failed =
            |source| EvalError::Io { doing: "count the look at the test split in", path: path.clone(), source };
        let own = Seen { candidate: look.candidate.clone(), run: look.run.clone(), at: look.at.clone() };
        let text = serde_json::to_string(&own)
            .map_err(|source| EvalError::Json { what: "the look at the test split".to_owned(), source })?;
        let mut file = AtomicFile::create(&path).map_err(failed)?;
        file.write_all(format!("{text}\n").as_bytes()).map_err(failed)?;
        // Another may have taken the number: then it is seen in the next round.
        file.commit_new().map_err(failed)?;
    }
}

fn file(store: &Path, test: &str, number: usize) -> PathBuf {
    store.join(test).join(format!("{number:06}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(store: &Path, candidate: &str) -> Look {
        let (candidate, run) = (candidate.to_owned(), "run".to_owned());
        Look { store: store.to_owned(), candidate, run, at: "2026-11-22T00:00:00.000Z".to_owned() }
    }

    #[test]
    fn a_candidate_counts_once_whoever_looks_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let test = sha256_hex(b"rows");
        let counted = |name: &str| {
            let looks = count(&look(dir.path(), name), &test).unwrap();
            (looks.number, looks.candidates)
        };
        assert_eq!([counted("a"), counted("b"), counted("a"), counted("b")], [(1, 1), (2, 2), (1, 2), (2, 2)]);
        let other = sha256_hex(b"other rows");
        assert_eq!(count(&look(dir.path(), "b"), &other).unwrap().candidates, 1, "other rows are another split");
        let threads: Vec<_> = (0..8)
            .map(|i| {
                let (look, test) = (look(dir.path(), &format!("c{}", i / 2)), test.clone());
                std::thread::spawn(move || count(&look, &test).unwrap().number)
            })
            .collect();
        let mut numbers: Vec<u64> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [3, 3, 4, 4, 5, 5, 6, 6]);
        let seen = seen(dir.path(), &test).unwrap();
        assert_eq!((seen.len(), seen[1].candidate.as_str(), seen[1].run.as_str()), (6, "b", "run"));
        std::fs::write(file(dir.path(), &test, 2), "damaged").unwrap();
        let told = count(&look(dir.path(), "new"), &test).unwrap_err().to_string();
        assert!(told.contains("000002.json"), "{told}");
    }

    #[test]
    fn looks_are_found_from_a_run_inside_another() {
        let runs = tempfile::tempdir().unwrap();
        let test = sha256_hex(b"rows");
        let (outer, inner) = (runs.path().join("run"), runs.path().join("run/seeds/run-seed-2"));
        std::fs::create_dir_all(&inner).unwrap();
        assert_eq!(judged(&inner, &test).unwrap(), 0);
        for candidate in ["a", "b"] {
            count(&look(&runs.path().join(FOLDER), candidate), &test).unwrap();
        }
        assert_eq!([judged(&outer, &test).unwrap(), judged(&inner, &test).unwrap()], [2, 2]);
    }

    #[test]
    fn what_many_looks_cost_is_said() {
        let mut looks = Looks { test: String::new(), candidates: 1, number: 1, corrected: None };
        assert_eq!(looks.words(0.05), "This test split has judged one candidate, this one.");
        looks = Looks { candidates: 4, number: 3, corrected: Some(Verdict::Inconclusive), ..looks };
        let words = looks.words(0.05);
        assert!(words.contains("4 candidates, this one as number 3") && words.contains("up to 4 times"), "{words}");
        assert!(words.contains("at 1.2 %") || words.contains("at 1.3 %"), "{words}");
        assert!(words.contains("the gates are undecided"), "{words}");
    }
}
