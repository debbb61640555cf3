//! The pipeline: each stage as a function of the run, under one cache. A stage whose plan, inputs and program version
//! are as before, and whose outputs are intact, is not run again.

pub mod calibration;
pub mod capture;
pub mod curate;
pub mod eval;
pub mod import;
mod load;
pub mod mix;
pub mod package;
pub mod promote;
mod provenance;
pub mod quantize;
mod rationales;
pub mod recover;
pub mod review;
mod states;
pub mod taken_over;
pub mod train;

use crate::base::Base;
use crate::exit::{Failure, Result};
use crate::output::Terminal;
use crate::progress::Sink;
use crate::sealing::{self, Held};
use crate::settings::Settings;
use crate::stores;
use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_artifact::encryption::Recipients;
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::{sweep, write_atomic};
use limbeck_artifact::journal::{self, Journal};
use limbeck_artifact::stage::{self, StageRecord};
use limbeck_data_curation::NamedFile;
use limbeck_recipes::{Recipe, Resolved};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub const PROGRAM_VERSION: &str = env!("CARGO_PKG_VERSION");

/// Goes up with each change to what a stage makes of the same plan and inputs. Between two versions of the program nothing else
/// would tell a build's results from those that an older build kept.
fn revision(stage: Stage) -> u32 {
    match stage {
        Stage::Import | Stage::Curate | Stage::Review | Stage::Capture => 1,
        Stage::Train | Stage::Quantize | Stage::Eval => 1,
        Stage::Package | Stage::Promote => 1,
    }
}

/// What stands for the program in the key of anything that a stage keeps.
pub fn program(stage: Stage) -> String {
    format!("{PROGRAM_VERSION}+{}", revision(stage))
}

/// An open run folder.
pub struct Run<'a> {
    pub settings: &'a Settings,
    pub resolved: Resolved,
    pub dir: PathBuf,
    pub sink: Sink,
    /// When the run began, the first time; resuming does not change it.
    pub created: String,
    base: OnceCell<Base>,
    /// Nothing is written, and no stage is run that is not done.
    looking: bool,
    /// Where the recipe encrypts: what keeps the folder open.
    held: Option<Arc<Held>>,
}

impl<'a> Run<'a> {
    /// The run as it lies there, without its journal's lock: others may be at work in it. A stage that is not done as the
    /// recipe asks for it now is an error.
    ///
    /// # Errors
    /// When it is encrypted, and can't be opened.
    pub fn look(settings: &'a Settings, resolved: Resolved) -> Result<Run<'a>> {
        let dir = settings.run_dir(&resolved.recipe.name);
        let held = sealing::hold(&dir, &resolved.recipe.encrypt)?;
        let sink = Sink::new(None, &Terminal::of_stderr());
        sink.be_brief();
        Ok(Run { settings, resolved, dir, sink, created: String::new(), base: OnceCell::new(), looking: true, held })
    }

    /// Makes or reopens the run's folder and writes the lock.
    ///
    /// # Errors
    /// When the folder can't be written to, or another process is at work in it.
    pub fn open(settings: &'a Settings, resolved: Resolved) -> Result<Run<'a>> {
        let dir = settings.run_dir(&resolved.recipe.name);
        let held = sealing::hold(&dir, &resolved.recipe.encrypt)?;
        let path = dir.join("journal.jsonl");
        let journal = Journal::open(&path, &resolved.recipe.name)?;
        // The journal's lock says that nobody else is writing here: what a killed run left half-written can go.
        sweep(&dir).map_err(|e| cannot("clear", &dir, &e))?;
        let created = journal::read(&path)?.first().map_or_else(journal::now, |event| event.at.clone());
        let lock = dir.join("recipe.lock.toml");
        let text = resolved.lock_toml();
        if !std::fs::read_to_string(&lock).is_ok_and(|old| old == text) {
            write_atomic(&lock, text.as_bytes()).map_err(|e| cannot("write", &lock, &e))?;
        }
        let sink = Sink::new(Some(journal), &Terminal::of_stderr());
        warn_of_lockout(&resolved.recipe, &sink)?;
        Ok(Run { settings, resolved, dir, sink, created, base: OnceCell::new(), looking: false, held })
    }

    /// Whom the folder is encrypted for as soon as nobody works in it.
    pub fn recipients(&self) -> Option<&Recipients> {
        self.held.as_ref()?.recipients()
    }

    pub fn recipe(&self) -> &Recipe {
        &self.resolved.recipe
    }

    /// The folder of a stage.
    pub fn folder(&self, stage: Stage) -> PathBuf {
        self.dir.join(stage.name())
    }

    /// The evaluation with which the replies of live models are kept: that of the run itself or, inside another's folder, the
    /// other's, so that no question is paid twice.
    pub fn asked_in(&self) -> PathBuf {
        self.settings.outer.as_ref().map_or_else(|| self.folder(Stage::Eval), |outer| outer.eval.clone())
    }

    pub fn dataset_dir(&self) -> PathBuf {
        self.dir.join("dataset")
    }

    pub fn lock_digest(&self) -> String {
        sha256_hex(self.resolved.lock_toml().as_bytes())
    }

    /// The base model; found and digested once.
    ///
    /// # Errors
    /// As [`Base::open`].
    pub fn base(&self, emit: &dyn Emit) -> Result<&Base> {
        if let Some(base) = self.base.get() {
            return Ok(base);
        }
        let base = Base::open(self.recipe(), self.settings, emit)?;
        Ok(self.base.get_or_init(|| base))
    }

    /// What stands for a stage's plan and inputs under this program.
    pub fn key(&self, stage: Stage, inputs: &BTreeMap<String, String>) -> String {
        stage::key(&limbeck_recipes::settings(&self.resolved, stage), inputs, &program(stage))
    }

    /// Runs a stage through the cache. `work` gets a sink and the stage's key, and returns what it made.
    ///
    /// # Errors
    /// Those of `work`, and failing to read or write the record.
    pub fn stage<T: Serialize + DeserializeOwned>(
        &self,
        stage: Stage,
        inputs: BTreeMap<String, String>,
        work: impl FnOnce(&dyn Emit, &str) -> Result<Work<T>>,
    ) -> Result<Finished<T>> {
        let sink = self.sink.stage(stage);
        let key = self.key(stage, &inputs);
        if let Some(record) = stage::load(&self.dir, stage)?
            && record.key == key
            && let Ok(summary) = serde_json::from_value(record.summary.clone())
            && stage::intact(&self.dir, &record)
        {
            sink.emit(EventKind::StageCached { key });
            return Ok(Finished { record, summary, cached: true });
        }
        if self.looking {
            let message = format!("{} is not done for this recipe", stage.name());
            return Err(Failure::new(crate::exit::Exit::Unexpected, message));
        }
        sink.emit(EventKind::StageStarted {});
        let begun = Instant::now();
        let Work { summary, outputs, line } = work(&sink, &key)?;
        let wall_ms = begun.elapsed().as_millis() as u64;
        let outputs = stage::outputs(&self.dir, outputs)?;
        let record = StageRecord { stage, key, inputs, outputs, summary: serde_json::to_value(&summary)?, wall_ms };
        stage::save(&self.dir, &record)?;
        sink.emit(EventKind::StageFinished { wall_ms, summary: line });
        Ok(Finished { record, summary, cached: false })
    }
}

/// Told before hours of work, not after them: who encrypts for others alone cannot go on with the run.
fn warn_of_lockout(recipe: &Recipe, emit: &dyn Emit) -> Result<()> {
    if let Some(recipients) = stores::recipients(&recipe.encrypt)?
        && !recipients.include(&stores::identities(recipe.encrypt.identity.as_deref())?)
    {
        let text = format!(
            "the run is encrypted for {recipients} when it ends, and no age identity here opens it: on this machine it can't be gone on with"
        );
        emit.emit(EventKind::Warning { text });
    }
    Ok(())
}

/// What a stage made.
pub struct Work<T> {
    /// Kept in the record and given back when the stage is cached.
    pub summary: T,
    /// Paths relative to the run's folder, with `/`.
    pub outputs: Vec<String>,
    /// For a person.
    pub line: String,
}

pub struct Finished<T> {
    pub record: StageRecord,
    pub summary: T,
    pub cached: bool,
}

impl<T> Finished<T> {
    /// The digest that stands for everything this stage made.
    pub fn digest(&self) -> String {
        let lines: Vec<String> =
            self.record.outputs.iter().map(|(path, sha256)| format!("{path} {sha256}\n")).collect();
        sha256_hex(lines.concat().as_bytes())
    }

    pub fn line(&self) -> StageLine {
        StageLine { stage: self.record.stage, cached: self.cached, wall_ms: self.record.wall_ms }
    }
}

/// How a stage went, for the end of the run.
#[derive(Clone, Debug, Serialize)]
pub struct StageLine {
    pub stage: Stage,
    pub cached: bool,
    pub wall_ms: u64,
}

/// What came of a run, as far as it was asked to go.
#[derive(Default)]
pub struct Outcome {
    pub stages: Vec<StageLine>,
    pub evaluated: Option<eval::Evaluated>,
    pub packaged: Option<package::Packaged>,
    pub promoted: Option<promote::Promoted>,
}

/// Runs all stages up to `last`.
///
/// # Errors
/// The first stage's that fails; an unfinished review is one, a failed gate is not.
pub fn upto(run: &Run<'_>, last: Stage) -> Result<Outcome> {
    let mut outcome = Outcome::default();
    if last >= Stage::Package {
        crate::keys::check(run.recipe())?;
    }
    if let Some(target) = &run.recipe().quantize.target {
        mix::read_target(target)?;
    }
    if last >= Stage::Train {
        states::check(run)?;
    }
    let imported = import::run(run)?;
    outcome.stages.push(imported.line());
    if last == Stage::Import {
        return Ok(outcome);
    }
    let curated = curate::run(run, &imported)?;
    outcome.stages.push(curated.line());
    if last == Stage::Curate {
        return Ok(outcome);
    }
    let dataset = review::run(run, &curated)?;
    outcome.stages.push(dataset.line());
    if last == Stage::Review {
        return Ok(outcome);
    }
    let captured = capture::run(run, &dataset)?;
    outcome.stages.extend(captured);
    if last == Stage::Capture {
        return Ok(outcome);
    }
    check_export(run, last)?;
    let trained = train::run(run, &dataset)?;
    outcome.stages.push(trained.line());
    if last == Stage::Train {
        return Ok(outcome);
    }
    let quantized = quantize::run(run, &dataset, &trained)?;
    outcome.stages.push(quantized.line());
    if last == Stage::Quantize {
        return Ok(outcome);
    }
    let evaluated = eval::run(run, &dataset, &trained, &quantized)?;
    outcome.stages.push(evaluated.line());
    outcome.evaluated = Some(evaluated.summary.clone());
    if last == Stage::Eval {
        return Ok(outcome);
    }
    let packaged = package::run(run, &dataset, &trained, &quantized, &evaluated)?;
    outcome.stages.push(packaged.line());
    outcome.packaged = Some(packaged.summary.clone());
    if last == Stage::Package {
        return Ok(outcome);
    }
    let promoted = promote::run(run, &packaged.summary, &evaluated)?;
    outcome.stages.extend(promoted.iter().map(|(_, line)| line.clone()));
    outcome.promoted = promoted.map(|(promoted, _)| promoted);
    Ok(outcome)
}

/// A base that can't be written as the file to be served is told before it is trained on: of a run that would come to
/// that, it is the end; of one that stops before, a warning.
fn check_export(run: &Run<'_>, last: Stage) -> Result<()> {
    let sink = run.sink.stage(Stage::Train);
    let base = run.base(&sink)?;
    let (rows, context) = (run.recipe().model.max_seq_length, base.config.gguf_context());
    let failure = match base.config.gguf_architecture() {
        Err(error) => Failure::from(error),
        Ok(_) if rows > context && context < base.config.max_position_embeddings => Failure::new(
            crate::exit::Exit::Unexpected,
            format!("the exported model of {} serves {context} tokens at most, its sliding window", base.name),
        )
        .help(format!("set model.max_seq_length, now {rows}, to {context} or less")),
        Ok(_) => return Ok(()),
    };
    if last > Stage::Train {
        return Err(failure);
    }
    sink.emit(EventKind::Warning { text: failure.message });
    Ok(())
}

/// The digests of input files by their names; a file that is not there is left out when `may_lack`.
fn digests(files: &[NamedFile], may_lack: bool) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    for file in files.iter().filter(|f| !may_lack || f.path.exists()) {
        let sha256 = sha256_file(&file.path).map_err(|e| cannot("read", &file.path, &e))?;
        out.insert(file.name.clone(), sha256);
    }
    Ok(out)
}

/// Names for files that say something on another machine too: the file's own, made distinct.
pub fn named(paths: &[PathBuf]) -> Vec<NamedFile> {
    let mut out: Vec<NamedFile> = Vec::new();
    for path in paths {
        let own = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let taken = |name: &str, out: &[NamedFile]| out.iter().any(|f| f.name == name);
        let mut name = own.clone();
        let mut n = 1;
        while taken(&name, &out) {
            n += 1;
            name = format!("{own} ({n})");
        }
        out.push(NamedFile { name, path: path.clone() });
    }
    out
}

pub fn cannot(attempt: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(crate::exit::Exit::Unexpected, format!("failed to {attempt} {}: {error}", path.display()))
}
