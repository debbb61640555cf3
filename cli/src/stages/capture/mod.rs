//! Capture: what a teacher says of the train rows and of messages that nobody labelled, in `capture/`. Only recipes that name a
//! teacher have this stage; the training reads what it leaves. Where answers are written, it is `tokens`.
//!
//! What the teacher's unconfirmed word is worth is measured on the rows that a person decided: by the label that it says, the
//! lower bound of how often it was right. A teacher that was trained on these very rows measures better than it is; the summary
//! can't know, the recipe's notes should.

pub mod on_policy;
pub mod tokens;
pub mod written;

use super::{Finished, Run, StageLine, Work, cannot, digests, named};
use crate::base;
use crate::exit::{Exit, Failure, Result};
use crate::stages::PROGRAM_VERSION;
use crate::stages::eval::{Writing, open_model, open_scorer, open_writer};
use limbeck_artifact::capture::{Capture, Named, discard, prompt_key};
use limbeck_artifact::dataset::{Dataset, DatasetCard, LabelSource, Split};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::manifest::{self, ArtifactManifest};
use limbeck_artifact::stage;
use limbeck_data_curation::curate::unlabeled::{Kept, UnlabeledPlan, UnlabeledSummary, unlabeled};
use limbeck_data_curation::redact::RedactOptions;
use limbeck_distill::committee::{Member, MergeError, Merged, merge_labels};
use limbeck_distill::{Asked, CaptureError, CapturePlan, TokenTeacher, capture};
use limbeck_eval::statistics::wilson;
use limbeck_eval::{AnswerError, argmax};
use limbeck_model::arithmetic::Arithmetic;
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::DeviceName;
use limbeck_model::generate::Writer;
use limbeck_model::ops::Ops;
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_recipes::{self as recipe, Trust};
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::{Distilled, Unlabeled};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Relative to the run's folder.
const FILE: &str = "capture/teacher.capture";
const UNLABELED: &str = "capture/unlabeled.jsonl";
/// Messages that a person should answer: their teachers differ, or what one wrote was refused.
const QUEUE: &str = "capture/queue.jsonl";
const LEFT_OUT: &str = "capture/left_out.jsonl";

/// Of the bound on a label's precision, two-sided.
const CONFIDENCE: f64 = 0.95;

/// What the run's record keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Captured {
    pub teacher: Named,
    /// Distinct prompts that it answered.
    pub rows: u64,
    pub bytes_per_row: f64,
    pub unlabeled: UnlabeledSummary,
    /// Unlabeled messages that carry weight in the training.
    pub learnt: u64,
    /// On the train and valid rows that a person decided.
    pub agreement: Reviewed,
    /// By label, in the dataset's order.
    pub trust: Vec<Worth>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Reviewed {
    pub right: u64,
    pub of: u64,
}

/// What the teacher's word is worth where it says this label and nobody confirmed it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Worth {
    pub label: String,
    pub reviewed: Reviewed,
    pub weight: f64,
}

/// A teacher as it lies on the disk; opening it takes longer.
pub struct Teacher {
    file: PathBuf,
    adapter: Option<PathBuf>,
    pub named: Named,
    /// Those that an artifact or an adapter's head names; else none.
    pub labels: Vec<String>,
}

impl Teacher {
    /// A `.gguf`, a folder of safetensors, or an artifact's folder; with an adapter that is not merged, where one is given.
    ///
    /// # Errors
    /// When the files can't be read.
    pub fn find(model: &Path, adapter: Option<&Path>) -> Result<Teacher> {
        let (file, mut name, mut labels) = match model.join(manifest::FILE_NAME).is_file() {
            true => {
                let manifest = ArtifactManifest::load(model)?;
                let name = format!("{} {}", manifest.name, manifest.version);
                (manifest.file(model, "model")?, name, manifest.task.labels)
            }
            false => (model.to_owned(), base::name_of(model), Vec::new()),
        };
        let mut digest = base::digest(&file, &Weights::open(&file).map_err(|e| cannot_open(model, &e))?)?;
        if let Some(folder) = adapter {
            // All weights of a full fine-tuning have a head, too, where one was trained.
            let (_, adapter) = Weights::open_trained::<AnswerError>(&file, Some(folder))
                .map_err(|e| cannot_open(folder, e.as_ref()))?;
            labels = adapter.and_then(|adapter| adapter.head).map_or(labels, |head| head.labels);
            name = format!("{name} + {}", base::name_of(folder));
            digest = sha256_hex(format!("{digest} {}", folder_digest(folder)?).as_bytes());
        }
        Ok(Teacher { file, adapter: adapter.map(Path::to_owned), named: Named { name, digest }, labels })
    }

    /// As it reads what others have written.
    ///
    /// # Errors
    /// When its files don't fit together.
    pub fn reader(&self, device: DeviceName) -> Result<(TokenTeacher, Arc<ChatTokenizer>)> {
        let failed = |e: AnswerError| cannot_open(&self.file, e.as_ref());
        let opened = open_model(&self.file, self.adapter.as_deref(), (device, Arithmetic::F32)).map_err(failed)?;
        let lora = opened.lora();
        Ok((TokenTeacher { decoder: opened.decoder, lora, bridge: None }, opened.tokenizer))
    }

    /// Over the ops of a training, which it has a part in.
    ///
    /// # Errors
    /// When its files don't fit together.
    pub fn over(&self, ops: &Arc<dyn Ops>) -> Result<(Arc<Decoder>, LoraSet)> {
        let failed = |e: &dyn std::error::Error| cannot_open(&self.file, e);
        let (weights, adapter) = Weights::open_trained::<AnswerError>(&self.file, self.adapter.as_deref())
            .map_err(|e| failed(e.as_ref()))?;
        let decoder = Decoder::from_weights(&weights, ops.clone(), false).map_err(|e| failed(&e))?;
        let Some(adapter) = adapter else { return Ok((Arc::new(decoder), LoraSet::new())) };
        adapter.check(&decoder.config).map_err(|e| failed(&e))?;
        Ok((Arc::new(decoder), adapter.constants(ops.as_ref())))
    }

    /// # Errors
    /// When it has none that can be read.
    pub fn tokenizer(&self) -> Result<ChatTokenizer> {
        Ok(ChatTokenizer::open(&self.file)?)
    }

    /// As it writes.
    ///
    /// # Errors
    /// When its files don't fit together, or answers can't be kept to the schema.
    pub fn writer(&self, device: DeviceName, writing: &Writing) -> Result<Writer> {
        open_writer(&self.file, self.adapter.as_deref(), (device, Arithmetic::F32), writing)
            .map_err(|e| cannot_open(&self.file, e.as_ref()))
    }

    /// # Errors
    /// When its files don't fit together, or not these labels.
    pub fn open(&self, labels: &[String], device: DeviceName) -> Result<LabelScorer> {
        open_scorer(&self.file, self.adapter.as_deref(), (device, Arithmetic::F32), labels)
            .map_err(|e| cannot_open(&self.file, e.as_ref()))
    }
}

fn cannot_open(path: &Path, error: &dyn std::error::Error) -> Failure {
    Failure::new(Exit::Unexpected, format!("failed to open the teacher {}: {error}", path.display()))
        .help("name a .gguf, a folder of safetensors, or an artifact's folder; an adapter's folder goes beside it")
}

/// Over the files of a folder, by name.
fn folder_digest(folder: &Path) -> Result<String> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| cannot("look into", folder, &e))? {
        let path = entry.map_err(|e| cannot("look into", folder, &e))?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    let lines: Vec<String> =
        digests(&named(&files), false)?.iter().map(|(name, sha)| format!("{name} {sha}\n")).collect();
    Ok(sha256_hex(lines.concat().as_bytes()))
}

/// Runs the stage, where the recipe has it.
///
/// # Errors
/// A teacher, a capture or a file that can't be used; labels that are not the dataset's.
pub fn run(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<Option<StageLine>> {
    match run.recipe().distill.is_asked() {
        false => Ok(None),
        true if run.recipe().task.kind == "classify" => Ok(labels(run, dataset)?.map(|finished| finished.line())),
        true => Ok(tokens::run(run, dataset)?.map(|finished| finished.line())),
    }
}

fn labels(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<Option<Finished<Captured>>> {
    let (recipe, asked) = (run.recipe(), &run.recipe().distill);
    let mut inputs = BTreeMap::from([("dataset".to_owned(), dataset.summary.digest.clone())]);
    let files = named(&asked.unlabeled);
    for (name, digest) in digests(&files, false)? {
        inputs.insert(format!("unlabeled/{name}"), digest);
    }
    let source = match (&asked.capture, &asked.teacher) {
        (Some(file), _) => Source::File(file, Box::new(Capture::load(file)?)),
        (None, Some(_)) => Source::Teachers(committee(asked)?),
        (None, None) => return Ok(None),
    };
    inputs.insert("teacher".to_owned(), source.digest());
    run.stage(Stage::Capture, inputs, |emit, _| {
        let unlabeled = gather(run, files, emit)?;
        let dataset = Dataset::load(&run.dataset_dir())?;
        let captured = answers(run, &source, &dataset, emit)?;
        let worth = worth(&dataset, &captured, recipe.distill.trust);
        let agreement = worth.iter().fold(Reviewed::default(), |sum, w| Reviewed {
            right: sum.right + w.reviewed.right,
            of: sum.of + w.reviewed.of,
        });
        let learnt = learnt(&run.dir.join(UNLABELED), &captured, &worth)?;
        let summary = Captured {
            teacher: captured.header.teacher.clone(),
            rows: captured.rows.len() as u64,
            bytes_per_row: captured.bytes as f64 / captured.rows.len().max(1) as f64,
            unlabeled,
            learnt,
            agreement,
            trust: worth,
        };
        tell(&summary, emit);
        let of = match summary.agreement.of {
            0 => "no reviewed row to measure it by".to_owned(),
            n => format!("right on {} of {n} reviewed rows", summary.agreement.right),
        };
        let line =
            format!("{} prompts answered by {}, {of}; {learnt} unlabeled learnt", summary.rows, summary.teacher.name);
        let queue = matches!(&source, Source::Teachers(teachers) if teachers.len() > 1).then_some(QUEUE);
        let outputs = [FILE, UNLABELED, LEFT_OUT].into_iter().chain(queue).map(String::from).collect();
        Ok(Work { summary, outputs, line })
    })
    .map(Some)
}

enum Source<'a> {
    File(&'a Path, Box<Capture>),
    Teachers(Vec<Teacher>),
}

impl Source<'_> {
    fn digest(&self) -> String {
        match self {
            Source::File(_, capture) => capture.digest.clone(),
            Source::Teachers(teachers) => digest_of_all(teachers),
        }
    }
}

/// The recipe's teachers, the first one first.
///
/// # Errors
/// When one can't be read.
fn committee(asked: &recipe::Distill) -> Result<Vec<Teacher>> {
    let first = asked.teacher.iter().map(|model| Teacher::find(model, asked.teacher_adapter.as_deref()));
    first.chain(asked.committee.iter().map(|model| Teacher::find(model, None))).collect()
}

/// One teacher's own, or what stands for several.
fn digest_of_all(teachers: &[Teacher]) -> String {
    match teachers {
        [alone] => alone.named.digest.clone(),
        several => {
            let lines: Vec<String> = several.iter().map(|teacher| format!("{}\n", teacher.named.digest)).collect();
            sha256_hex(lines.concat().as_bytes())
        }
    }
}

/// Where a committee's member's answers lie until they are merged.
fn of_member(run: &Run<'_>, i: usize) -> PathBuf {
    run.dir.join(format!("capture/member-{}.capture", i + 1))
}

/// Makes a capture anew where the file in its place is of another stage than this one is now, and so nobody's.
fn anew<T, E>(out: &Path, is_other: impl Fn(&E) -> bool, make: impl Fn() -> std::result::Result<T, E>) -> Result<T>
where
    Failure: From<E>,
{
    match make() {
        Err(e) if is_other(&e) => {
            discard(out)?;
            let _ = std::fs::remove_file(out);
            Ok(make()?)
        }
        made => Ok(made?),
    }
}

fn is_another_merge(e: &MergeError) -> bool {
    matches!(e, MergeError::File(limbeck_artifact::Error::Invalid { .. }))
}

fn gather(run: &Run<'_>, files: Vec<limbeck_data_curation::NamedFile>, emit: &dyn Emit) -> Result<UnlabeledSummary> {
    let data = &run.recipe().data;
    let redaction = RedactOptions {
        patterns: data.redact_patterns.clone(),
        key: data.redact_key.as_deref().map(super::import::redact_key).transpose()?,
    };
    let plan = UnlabeledPlan {
        files,
        dataset: run.dataset_dir(),
        system: run.recipe().task.system.clone(),
        redaction: data.redact.then_some(redaction),
        near_dup_threshold: data.near_dup_threshold,
        out: run.dir.join(UNLABELED),
        left_out: run.dir.join(LEFT_OUT),
    };
    Ok(unlabeled(&plan, emit)?)
}

fn read_unlabeled(path: &Path) -> Result<Vec<Kept>> {
    let text = std::fs::read_to_string(path).map_err(|e| cannot("read", path, &e))?;
    Ok(text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
}

/// The teacher's answers in the run's folder: asked for now, or copied from where they were captured.
fn answers(run: &Run<'_>, source: &Source<'_>, dataset: &Dataset, emit: &dyn Emit) -> Result<Capture> {
    let out = run.dir.join(FILE);
    let teachers = match source {
        Source::File(path, capture) => {
            let bytes = std::fs::read(path).map_err(|e| cannot("read the capture", path, &e))?;
            write_atomic(&out, &bytes).map_err(|e| cannot("write", &out, &e))?;
            check_labels(path, capture, &dataset.card.labels)?;
            return Ok(capture.as_ref().clone());
        }
        Source::Teachers(teachers) => teachers,
    };
    let rows = [Split::Train, Split::Valid].into_iter().flat_map(|split| dataset.rows(split));
    let mut asked: Vec<Asked> = rows.map(|e| Asked { id: e.id.clone(), messages: e.messages.clone() }).collect();
    let unlabeled = read_unlabeled(&run.dir.join(UNLABELED))?;
    asked.extend(unlabeled.iter().map(|kept| Asked { id: kept.from.clone(), messages: kept.messages.clone() }));
    if let [alone] = teachers.as_slice() {
        return ask(run, alone, &asked, &dataset.card.labels, &out, emit);
    }
    let mut captures = Vec::new();
    for (i, teacher) in teachers.iter().enumerate() {
        emit.emit(EventKind::Note { text: format!("{} answers, {} of {}", teacher.named.name, i + 1, teachers.len()) });
        captures.push(ask(run, teacher, &asked, &dataset.card.labels, &of_member(run, i), emit)?);
    }
    let members: Vec<Member<_>> = captures.iter().map(|capture| Member { capture, weight: 1.0 }).collect();
    let merged = anew(&out, is_another_merge, || merge_labels(&members, &out, PROGRAM_VERSION))?;
    let merged_capture = Capture::load(&out)?;
    for_reviewers(run, &merged, &merged_capture, &captures, &unlabeled)?;
    let text = format!(
        "the {} teachers differ on {} of {} prompts; what they say of unlabeled ones among these is for the reviewers, too: \
         data.traces with {}",
        teachers.len(),
        merged.disagree,
        merged.of,
        run.dir.join(QUEUE).display()
    );
    emit.emit(EventKind::Note { text });
    Ok(merged_capture)
}

/// Unlabeled messages that a committee differs on, as traces with who says what: a person's word is worth most there.
fn for_reviewers(
    run: &Run<'_>,
    merged: &Merged,
    mean: &Capture,
    captures: &[Capture],
    unlabeled: &[Kept],
) -> Result<()> {
    let disputed: BTreeSet<&str> = merged.disputed.iter().map(String::as_str).collect();
    let labels = &mean.header.labels;
    let said = |capture: &Capture| -> BTreeMap<String, usize> {
        let best = |(key, posterior): (String, Vec<f32>)| Some((key, argmax(&posterior)?));
        posteriors(capture, labels).into_iter().filter_map(best).collect()
    };
    let (of_all, of_each) = (said(mean), captures.iter().map(said).collect::<Vec<_>>());
    let mut lines = String::new();
    for kept in unlabeled.iter().filter(|kept| disputed.contains(kept.id.as_str())) {
        let Some(answer) = of_all.get(&kept.id).map(|at| labels[*at].as_str()) else { continue };
        let who = |(capture, said): (&Capture, &BTreeMap<String, usize>)| {
            let label = said.get(&kept.id).map_or("nothing", |at| labels[*at].as_str());
            format!("{} says {label}", capture.header.teacher.name)
        };
        let each: Vec<String> = captures.iter().zip(&of_each).map(who).collect();
        let agree = of_each.iter().filter(|said| said.get(&kept.id) == of_all.get(&kept.id)).count();
        let told = json!({"teacher": mean.header.teacher, "agreement": agree as f64 / captures.len() as f64});
        let trace = written::for_a_person(kept, &mean.header.teacher.name, answer, &each.join(", "), &told);
        lines.push_str(&format!("{trace}\n"));
    }
    let path = run.dir.join(QUEUE);
    write_atomic(&path, lines.as_bytes()).map_err(|e| cannot("write", &path, &e))
}

/// One teacher's answers.
fn ask(
    run: &Run<'_>,
    teacher: &Teacher,
    asked: &[Asked],
    labels: &[String],
    out: &Path,
    emit: &dyn Emit,
) -> Result<Capture> {
    let data = Named { name: "train and valid rows, unlabeled messages".to_owned(), digest: digest_of(asked) };
    let (named, version) = (teacher.named.clone(), PROGRAM_VERSION.to_owned());
    let plan = CapturePlan { teacher: named, data, out: out.to_owned(), program_version: version };
    let scorer = teacher.open(labels, run.recipe().model.device.parse()?)?;
    let is_other = |e: &CaptureError| matches!(e, CaptureError::File(limbeck_artifact::Error::Invalid { .. }));
    let report = anew(out, is_other, || capture(&plan, &scorer, asked, emit))?;
    if report.rows_per_s > 0.0 {
        let text = format!(
            "{:.1} rows a second ({:.0} tokens), {:.0} bytes a row",
            report.rows_per_s, report.tokens_per_s, report.bytes_per_row
        );
        emit.emit(EventKind::Note { text });
    }
    Ok(Capture::load(out)?)
}

/// What stands for the prompts that were asked, in their order.
pub fn digest_of(asked: &[Asked]) -> String {
    let keys: Vec<String> = asked.iter().map(|asked| prompt_key(&asked.messages)).collect();
    sha256_hex(canonical_json(&json!(keys)).as_bytes())
}

fn check_labels(path: &Path, capture: &Capture, labels: &[String]) -> Result<()> {
    let mut theirs = capture.header.labels.clone();
    theirs.sort();
    let mut ours = labels.to_vec();
    ours.sort();
    if theirs == ours {
        return Ok(());
    }
    let other = |of: &[String], not: &[String]| of.iter().find(|label| !not.contains(label)).cloned();
    let which = match (other(&theirs, &ours), other(&ours, &theirs)) {
        (Some(extra), _) => format!("`{extra}` is none of the dataset's"),
        (None, Some(lacking)) => format!("`{lacking}` was not asked for"),
        (None, None) => "one comes twice".to_owned(),
    };
    let message = format!("the capture {} is over other labels than the dataset: {which}", path.display());
    Err(Failure::new(Exit::Unexpected, message).help("capture again with --data naming this run's dataset folder"))
}

/// By prompt, over `labels` in their order.
fn posteriors(capture: &Capture, labels: &[String]) -> BTreeMap<String, Vec<f32>> {
    let at: Vec<Option<usize>> =
        labels.iter().map(|label| capture.header.labels.iter().position(|theirs| theirs == label)).collect();
    let ordered = |posterior: Vec<f32>| at.iter().map(|at| at.map_or(0.0, |at| posterior[at])).collect();
    capture.rows.iter().map(|row| (row.key.clone(), ordered(row.posterior()))).collect()
}

/// By label, how often the teacher was right where a person decided, and what follows for its word.
fn worth(dataset: &Dataset, capture: &Capture, trust: Trust) -> Vec<Worth> {
    let labels = &dataset.card.labels;
    let told = posteriors(capture, labels);
    let mut counts = vec![Reviewed::default(); labels.len()];
    for example in [Split::Train, Split::Valid].into_iter().flat_map(|split| dataset.rows(split)) {
        if example.label_source != LabelSource::Human {
            continue;
        }
        let Some(said) = told.get(&prompt_key(&example.messages)).and_then(|p| argmax(p)) else { continue };
        counts[said].of += 1;
        counts[said].right += u64::from(labels[said] == example.target);
    }
    let weight = |reviewed: &Reviewed| match trust {
        Trust::Full => 1.0,
        Trust::Reviewed => wilson(reviewed.right, reviewed.of, CONFIDENCE).low,
    };
    let of =
        |(label, reviewed): (&String, Reviewed)| Worth { label: label.clone(), weight: weight(&reviewed), reviewed };
    labels.iter().zip(counts).map(of).collect()
}

fn learnt(unlabeled: &Path, capture: &Capture, worth: &[Worth]) -> Result<u64> {
    let labels: Vec<String> = worth.iter().map(|w| w.label.clone()).collect();
    let told = posteriors(capture, &labels);
    let weighs = |kept: &Kept| told.get(&kept.id).and_then(|p| argmax(p)).is_some_and(|said| worth[said].weight > 0.0);
    Ok(read_unlabeled(unlabeled)?.iter().filter(|kept| weighs(kept)).count() as u64)
}

fn tell(captured: &Captured, emit: &dyn Emit) {
    let without: Vec<&str> = captured.trust.iter().filter(|w| w.weight <= 0.0).map(|w| w.label.as_str()).collect();
    if without.is_empty() {
        return;
    }
    let some: Vec<&str> = without.iter().take(5).copied().collect();
    let more = if without.len() > 5 { format!(" and {} more", without.len() - 5) } else { String::new() };
    let text = format!(
        "no reviewed row confirms the teacher on {}{more}: its unconfirmed word counts nothing there. Review rows of these \
         labels, or take it at its word with --set distill.trust=full",
        some.join(", ")
    );
    emit.emit(EventKind::Warning { text });
}

/// What stands for all that the stage made, for the key of the training.
///
/// # Errors
/// When its record can't be read.
pub fn digest(run: &Run<'_>) -> Result<Option<String>> {
    if !run.recipe().distill.is_asked() {
        return Ok(None);
    }
    let record = stage::load(&run.dir, Stage::Capture)?.ok_or_else(not_done)?;
    let lines: Vec<String> = record.outputs.iter().map(|(path, sha256)| format!("{path} {sha256}\n")).collect();
    Ok(Some(sha256_hex(lines.concat().as_bytes())))
}

fn not_done() -> Failure {
    Failure::new(Exit::Unexpected, "capture is not done for this recipe")
}

/// What the stage left, as the training takes it; none of a recipe without a teacher.
///
/// # Errors
/// When its files can't be read.
pub fn distilled(run: &Run<'_>, labels: &[String]) -> Result<Option<Distilled>> {
    let asked = &run.recipe().distill;
    if !asked.is_asked() || run.recipe().task.kind != "classify" {
        return Ok(None);
    }
    let record = stage::load(&run.dir, Stage::Capture)?.ok_or_else(not_done)?;
    let captured: Captured = serde_json::from_value(record.summary)?;
    let capture = Capture::load(&run.dir.join(FILE))?;
    let unlabeled = read_unlabeled(&run.dir.join(UNLABELED))?;
    Ok(Some(Distilled {
        lambda: asked.lambda as f32,
        divergence: divergence(asked),
        temperature: asked.temperature,
        exact_mass: asked.exact_mass,
        posteriors: posteriors(&capture, labels),
        trust: captured.trust.iter().map(|worth| worth.weight as f32).collect(),
        unlabeled: unlabeled.into_iter().map(|kept| Unlabeled { id: kept.from, messages: kept.messages }).collect(),
    }))
}

/// Unlabeled messages that a training on this run learns from.
///
/// # Errors
/// When the stage's record can't be read.
pub fn unlabeled_rows(run: &Run<'_>) -> Result<u64> {
    if !run.recipe().distill.is_asked() {
        return Ok(0);
    }
    let record = stage::load(&run.dir, Stage::Capture)?.ok_or_else(not_done)?;
    if run.recipe().task.kind != "classify" {
        return Ok(serde_json::from_value::<tokens::CapturedTokens>(record.summary)?.learnt);
    }
    Ok(serde_json::from_value::<Captured>(record.summary)?.learnt)
}

fn divergence_at_own_tokens(asked: &recipe::Distill) -> Divergence {
    match asked.on_policy_divergence {
        recipe::OnPolicyDivergence::ReverseKl => Divergence::ReverseKl,
        recipe::OnPolicyDivergence::ForwardKl => Divergence::ForwardKl,
        recipe::OnPolicyDivergence::Js => Divergence::JensenShannon { beta: 0.5 },
    }
}

fn divergence(asked: &recipe::Distill) -> Divergence {
    let (alpha, beta) = (asked.divergence_alpha.unwrap_or(0.1), asked.divergence_beta.unwrap_or(0.5));
    match asked.divergence {
        recipe::Divergence::ForwardKl => Divergence::ForwardKl,
        recipe::Divergence::ReverseKl => Divergence::ReverseKl,
        recipe::Divergence::Js => Divergence::JensenShannon { beta },
        recipe::Divergence::SkewKl => Divergence::SkewKl { alpha },
        recipe::Divergence::AlphaBeta => Divergence::AlphaBeta { alpha, beta },
    }
}
