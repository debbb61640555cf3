//! A run inside another's folder takes over what the outer one has done: trials of a sweep, rungs of a ladder.

use super::eval::{BASE, LINEAR};
use super::review::{decision_files, decisions_dir};
use super::{Run, cannot};
use crate::exit::Result;
use limbeck_artifact::event::Stage;
use limbeck_artifact::files::{create_dirs, write_atomic};
use limbeck_artifact::relpath::SafeRelPath;
use limbeck_artifact::stage::{self, StageRecord};
use limbeck_recipes::{ArmKind, EvalArm};
use std::path::Path;

/// Makes the parent's finished stages the run's: the same files under the same records, so that the stage cache finds them
/// done. Decisions go with them.
///
/// # Errors
/// When a record can't be read, or a file not be linked or copied.
pub fn take_over(parent: &Run<'_>, run: &Run<'_>, stages: &[Stage]) -> Result<()> {
    let mine = decisions_dir(run);
    for file in decision_files(parent)?.into_iter().filter(|f| f.path.starts_with(&parent.dir)) {
        let bytes = std::fs::read(&file.path).map_err(|e| cannot("read", &file.path, &e))?;
        let Some(name) = file.path.file_name() else { continue };
        // A copy: the review goes on appending to its own.
        let copy = mine.join(name);
        if std::fs::read(&copy).ok().as_ref() != Some(&bytes) {
            write_atomic(&copy, &bytes).map_err(|e| cannot("write", &copy, &e))?;
        }
    }
    for &of in stages {
        let Some(record) = stage::load(&parent.dir, of)? else { continue };
        let have =
            stage::load(&run.dir, of)?.is_some_and(|mine| same(&mine, &record)) && stage::intact(&run.dir, &record);
        if !have {
            for path in record.outputs.keys() {
                let path = SafeRelPath::parse(path)?;
                link(&parent.dir.join(path.as_path()), &run.dir.join(path.as_path()))?;
            }
            stage::save(&run.dir, &record)?;
        }
    }
    Ok(())
}

/// Links answers that no training changes, and load tests of live models, from one run's evaluation to another's where the other
/// has none. They are kept under the key of what they were made from: what does not fit is made anew.
///
/// # Errors
/// When a file can't be linked or copied.
pub fn share_answers(from: &Run<'_>, to: &Run<'_>) -> Result<()> {
    let (from, to, recipe) = (from.folder(Stage::Eval), to.folder(Stage::Eval), to.recipe());
    let asked = |arm: &&EvalArm| matches!(arm.kind, ArmKind::Endpoint(_) | ArmKind::FewShot { .. });
    let arms = recipe.eval.arms.iter().filter(asked).map(|arm| arm.name.as_str());
    for name in [BASE, LINEAR].into_iter().chain(arms) {
        for file in [format!("predictions/{name}.jsonl"), format!("load/{name}.json")] {
            if from.join(&file).is_file() && !to.join(&file).exists() {
                link(&from.join(&file), &to.join(&file))?;
            }
        }
    }
    Ok(())
}

fn same(a: &StageRecord, b: &StageRecord) -> bool {
    (&a.key, &a.outputs) == (&b.key, &b.outputs)
}

/// A second name for a file that is never written in place, or a copy where the file system has no such thing.
fn link(from: &Path, to: &Path) -> Result<()> {
    let made = || -> std::io::Result<()> {
        if let Some(folder) = to.parent() {
            create_dirs(folder)?;
        }
        match std::fs::remove_file(to) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        match std::fs::hard_link(from, to) {
            Ok(()) => Ok(()),
            Err(_) => write_atomic(to, &std::fs::read(from)?),
        }
    };
    made().map_err(|e| cannot("take over", from, &e))
}
