//! `limbeck reproduce`: runs an artifact's own recipe again and compares what comes out, step by step, with what was signed.
//! The first step that differs is where to look.

use super::score::find;
use crate::args::Reproduce;
use crate::exit::{Exit, Failure, Result};
use crate::output::{self, short};
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::{self, PROGRAM_VERSION, Run, cannot};
use crate::verbs::run::started;
use limbeck_artifact::dataset::DatasetCard;
use limbeck_artifact::digest::{canonical_json, sha256_file, sha256_hex};
use limbeck_artifact::event::{Emit, Stage};
use limbeck_artifact::manifest::ArtifactManifest;
use limbeck_artifact::untrusted::visible_line;
use limbeck_model::device::{self, DeviceName};
use limbeck_recipes::{Resolved, is_locked, load_text, locate};
use serde::Serialize;
use serde_json::json;
use std::path::Path;

/// One thing of the artifact and of the second run.
#[derive(Clone, Debug, Serialize)]
struct Step {
    what: String,
    signed: String,
    /// None where the second run has no such thing.
    again: Option<String>,
}

impl Step {
    fn new(what: impl Into<String>, signed: &str, again: Option<String>) -> Step {
        Step { what: what.into(), signed: signed.to_owned(), again }
    }

    fn is_same(&self) -> bool {
        self.again.as_deref() == Some(&self.signed)
    }
}

pub fn reproduce(settings: &Settings, args: &Reproduce) -> Result<Exit> {
    let (dir, manifest) = find(&args.of)?;
    let resolved = recipe(&dir, &manifest, &args.recipe, settings)?;
    let device: DeviceName = resolved.recipe.model.device.parse()?;
    device::probe(device)?;
    let scratch = match &args.keep {
        None => Some(Scratch::new("reproduce")?),
        Some(_) => None,
    };
    let place = scratch.as_ref().map_or_else(|| args.keep.clone().unwrap_or_default(), |s| s.path().to_owned());
    let settings = Settings { runs_dir: place, ..settings.clone() };
    let run = Run::open(&settings, resolved)?;
    run.sink.emit(started(&run));
    stages::upto(&run, Stage::Quantize)?;
    run.sink.clear();
    let steps = compare(&run, &dir, &manifest)?;
    say(&settings, &manifest, &steps)
}

/// The recipe as the artifact holds it, its paths relative to the folder that the person names.
fn recipe(dir: &Path, manifest: &ArtifactManifest, folder: &Path, settings: &Settings) -> Result<Resolved> {
    let lock = manifest.file(dir, "recipe-lock")?;
    let text = std::fs::read_to_string(&lock).map_err(|e| cannot("read", &lock, &e))?;
    let path = locate(folder);
    let sets: Vec<_> = settings.sets.iter().filter(|(key, _)| key == "model.device").cloned().collect();
    load_text(&path, &text, &sets).map_err(|errors| {
        Failure::recipe(errors)
            .help("these are the artifact's own settings; an older version of the program may have made it")
    })
}

fn compare(run: &Run<'_>, dir: &Path, manifest: &ArtifactManifest) -> Result<Vec<Step>> {
    let lock = manifest.file(dir, "recipe-lock")?;
    let lock = std::fs::read_to_string(&lock).map_err(|e| cannot("read", &lock, &e))?;
    let base = run.base(&run.sink)?;
    let card = run.dataset_dir().join("dataset.json");
    let text = std::fs::read(&card).map_err(|e| cannot("read", &card, &e))?;
    let card: DatasetCard = serde_json::from_slice(&text)?;
    let mut steps = vec![
        Step::new("recipe", &values(&lock)?, Some(values(&run.resolved.lock_toml())?)),
        Step::new("base model", &manifest.base.digest, Some(base.digest.clone())),
        Step::new("dataset", &manifest.dataset_digest, Some(card.digest)),
    ];
    let made = |name: &str| match name.strip_prefix("adapter/") {
        Some(file) => run.dir.join("train/adapter").join(file),
        None => run.dir.join("quantize").join(name),
    };
    for role in ["adapter", "model"] {
        for (name, file) in manifest.files.iter().filter(|(_, file)| file.role == role) {
            steps.push(Step::new(name, &file.sha256, sha256_file(&made(name)).ok()));
        }
    }
    Ok(steps)
}

/// The digest of a lock's values; its comments tell where they came from, which is not what counts.
fn values(lock: &str) -> Result<String> {
    let mut table: toml::Table = toml::from_str(lock)
        .map_err(|e| Failure::new(Exit::Unexpected, format!("the recipe's lock can't be read: {e}")))?;
    // Locks of earlier versions say where the artifact went, too.
    for (section, values) in &mut table {
        if let Some(values) = values.as_table_mut() {
            values.retain(|name, _| is_locked(&format!("{section}.{name}")));
        }
    }
    Ok(sha256_hex(canonical_json(&serde_json::to_value(table)?).as_bytes()))
}

fn say(settings: &Settings, manifest: &ArtifactManifest, steps: &[Step]) -> Result<Exit> {
    let differs = steps.iter().find(|step| !step.is_same());
    let exit = if differs.is_none() { Exit::Ok } else { Exit::VerificationFailed };
    if settings.json {
        let told: Vec<_> = steps
            .iter()
            .map(|s| json!({"what": s.what, "same": s.is_same(), "signed": s.signed, "again": s.again}))
            .collect();
        output::json(&json!({"reproduced": differs.is_none(), "steps": told}))?;
        return Ok(exit);
    }
    let width = steps.iter().map(|s| s.what.chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for step in steps {
        let again = step.again.as_deref().map_or("nothing", short);
        let verdict = match step.is_same() {
            true => format!("same     {}", short(&step.signed)),
            false => format!("differs  signed {}, now {again}", short(&step.signed)),
        };
        text.push_str(&format!("  {:<width$}  {verdict}\n", visible_line(&step.what)));
    }
    text.push_str(&match differs {
        None => format!(
            "{} {} comes out of its recipe bit for bit\n",
            visible_line(&manifest.name),
            visible_line(&manifest.version)
        ),
        Some(first) => format!("{}\n", why(first, manifest)),
    });
    output::stdout(&text)?;
    Ok(exit)
}

/// What the first difference may come from.
fn why(first: &Step, manifest: &ArtifactManifest) -> String {
    let version = match manifest.program_version == PROGRAM_VERSION {
        true => String::new(),
        false => format!(
            " The artifact was made by version {}, this is {PROGRAM_VERSION}.",
            visible_line(&manifest.program_version)
        ),
    };
    let cause = match first.what.as_str() {
        "recipe" => "this version of the program reads the recipe otherwise: a default or a key changed",
        "base model" => "the base is another file; name the one that was used",
        "dataset" => "traces, decisions or the review's store are others than they were, or are curated otherwise",
        _ => {
            "training sums in the order of the processor's kind: the same bits come out on a machine like the first, with the same device and dtype"
        }
    };
    format!("not reproduced: the first difference is in {}. Likely: {cause}.{version}", visible_line(&first.what))
}
