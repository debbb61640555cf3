//! The bases of a ladder's smaller rungs: the layers are measured once on the train rows, each base is carved, and both are kept
//! under the digest of what they were made from.

use crate::args::Ladder;
use crate::carving::{Choice, Chosen, Wanted, choose, measured_on};
use crate::exit::{Exit, Failure, Result};
use crate::stages::{Run, cannot, program};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_distill::influence::By;
use limbeck_distill::{CarvePlan, carve};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};

/// A base that was carved.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Carved {
    key: String,
    pub sha256: String,
    pub path: PathBuf,
    pub choice: Choice,
}

/// What was measured, as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    key: String,
    chosen: Chosen,
}

/// A base for each of `sizes`, `None` where the recipe's own has so many layers and nothing else is to go.
///
/// # Errors
/// When the base can't be read or carved, or there are no train rows.
pub fn carve_all(run: &Run<'_>, args: &Ladder, sizes: &[usize], dataset: &str) -> Result<Vec<Option<Carved>>> {
    let emit = run.sink.stage(Stage::Train);
    let base = run.base(&emit)?;
    let all = base.config.num_hidden_layers;
    let smaller: Vec<usize> = sizes.iter().copied().filter(|size| *size < all).collect();
    if smaller.is_empty() {
        return Ok(vec![None; sizes.len()]);
    }
    let dir = run.dir.join("ladder/bases");
    std::fs::create_dir_all(&dir).map_err(|e| cannot("create", &dir, &e))?;
    let by: By = args.by.into();
    let of = json!({
        "base": base.digest, "dataset": dataset, "by": by, "rows": args.rows, "sizes": smaller, "program": program(Stage::Train),
    });
    let key = sha256_hex(canonical_json(&of).as_bytes());
    let path = dir.join("influence.json");
    let chosen = match read::<Kept>(&path).filter(|kept| kept.key == key) {
        Some(kept) => kept.chosen,
        None => {
            let rows = measured_on(&base.path, &run.dataset_dir(), args.rows as usize, &emit)?;
            let wanted: Vec<Wanted> = smaller.iter().map(|size| Wanted::Some(*size, by)).collect();
            let chosen = choose(&base.path, &rows, &wanted, run.recipe().model.device.parse()?, &emit)?;
            run.sink.clear();
            let kept = Kept { key: key.clone(), chosen };
            write(&path, &kept)?;
            kept.chosen
        }
    };
    let mut choices = chosen.choices.iter();
    let mut next = |size: usize| -> Result<Option<Carved>> {
        if size == all {
            return Ok(None);
        }
        let choice = choices.next().filter(|choice| choice.kept.len() == size);
        let choice =
            choice.ok_or_else(|| Failure::new(Exit::Unexpected, format!("no layers were chosen for {size}")))?;
        one(args, &base.path, &key, &chosen, choice, &dir, &emit).map(Some)
    };
    sizes.iter().map(|size| next(*size)).collect()
}

/// Carves a base, or finds that it was.
fn one(
    args: &Ladder,
    base: &Path,
    measured: &str,
    chosen: &Chosen,
    choice: &Choice,
    dir: &Path,
    emit: &dyn Emit,
) -> Result<Carved> {
    let size = choice.kept.len();
    let of = json!({"measured": measured, "kept": choice.kept, "neurons": args.neurons, "merges": args.merges});
    let key = sha256_hex(canonical_json(&of).as_bytes());
    let (path, record) = (dir.join(format!("layers-{size}.gguf")), dir.join(format!("layers-{size}.json")));
    if let Some(carved) = read::<Carved>(&record)
        && carved.key == key
        && limbeck_artifact::digest::sha256_file(&path).is_ok_and(|sha256| sha256 == carved.sha256)
    {
        return Ok(Carved { path: absolute(&path)?, ..carved });
    }
    let plan = CarvePlan {
        source: base.to_owned(),
        layers: choice.kept.clone(),
        neurons: args.neurons.map(|n| chosen.influence.widest(&choice.kept, n)).transpose()?,
        merges: args.merges,
        out: path.clone(),
        name: format!("{} carved to {size} layers", crate::base::name_of(base)),
        license: None,
    };
    let report = carve(&plan, emit)?;
    let carved = Carved { key, sha256: report.sha256, path: absolute(&path)?, choice: choice.clone() };
    write(&record, &carved)?;
    Ok(carved)
}

/// What other processes may be told whatever folder they are started in.
fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|e| cannot("find", path, &e))
}

fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn write<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, (serde_json::to_string_pretty(value)? + "\n").as_bytes()).map_err(|e| cannot("write", path, &e))
}
