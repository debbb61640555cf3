//! Capture where answers are written: what a teacher expects at each token of the train rows' answers. The rows are tokenized as
//! the training will; a teacher with another tokenizer or chat template reads them as its own, and what it expects is carried over
//! by bytes.
//!
//! What the teacher's word is worth on rows that nobody reviewed is the lower bound of how often it would have written a reviewed
//! answer itself, token for token. A teacher that was trained on these very rows measures better than it is.

use super::super::train::train_on;
use super::super::{Finished, PROGRAM_VERSION, Run, Work, cannot, digests, named};
use super::written::{self, Answered, AnsweredSummary};
use super::{CONFIDENCE, FILE, Reviewed, Teacher, divergence, not_done};
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::capture::{Capture, Header, Named, Sparse, TokenRow, tokens_key};
use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, LabelSource, Message, Split};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::stage;
use limbeck_data_curation::curate::unlabeled::Kept;
use limbeck_distill::bridge::Bridge;
use limbeck_distill::committee::{Member, merge_tokens};
use limbeck_distill::{
    CaptureError, TokenCapturePlan, TokenCaptureReport, TokenTeacher, TokensAsked, capture_tokens, tokenizer_digest,
};
use limbeck_eval::statistics::wilson;
use limbeck_model::prompt::{EncodedExample, PromptError, TrainOn, encode_example};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_recipes::{Distill, Trust};
use limbeck_trainer::ToldTokens;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// What the run's record keeps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CapturedTokens {
    pub teacher: Named,
    /// What was kept of each distribution.
    pub kept: String,
    pub rows: u64,
    pub tokens: u64,
    pub bytes_per_token: f64,
    /// Train and valid rows that a person decided, and those among them that the teacher would have written itself.
    pub agreement: Reviewed,
    /// What its word is worth in rows that no person decided.
    pub trust: f64,
    /// What became of messages that nobody answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<AnsweredSummary>,
    /// Those among them that carry weight in the training.
    #[serde(default)]
    pub learnt: u64,
}

/// How much is kept of a distribution, as a recipe or a command asks for it.
pub fn sparse(top_k: Option<usize>, draws: Option<usize>, seed: u64) -> Sparse {
    let small = |n: usize| u8::try_from(n).unwrap_or(u8::MAX);
    match draws {
        Some(draws) => Sparse::Sampling { draws: small(draws), seed },
        None => Sparse::TopK { k: small(top_k.unwrap_or(TOP_K)) },
    }
}

/// Tokens that are kept where nobody says how many.
const TOP_K: usize = 20;

/// How a training reads rows.
#[derive(Clone, Copy, PartialEq)]
pub struct Reading {
    pub train_on: TrainOn,
    pub max_seq_length: usize,
}

/// The teacher as it reads rows of a student with this tokenizer, and these rows: those of train and valid split as a training reads
/// them.
///
/// # Errors
/// A row that can't be trained on; tokenizers between which nothing can be carried over.
pub fn meet(
    teacher: &mut TokenTeacher,
    own: &ChatTokenizer,
    tokenizer: &ChatTokenizer,
    dataset: &Dataset,
    (reading, sparse): (Reading, Sparse),
) -> Result<Vec<TokensAsked>> {
    teacher.bridge = bridge(own, tokenizer)?;
    if teacher.bridge.is_some() {
        if reading.train_on != TrainOn::Last {
            let message = "a teacher with another tokenizer or chat template can be asked for the last answer only";
            return Err(Failure::new(Exit::Unexpected, message).help("set train.train_on to \"last\""));
        }
        if let Sparse::Sampling { .. } = sparse {
            let message =
                "draws of a teacher with another tokenizer would leave out what no token of the student's begins";
            return Err(Failure::new(Exit::Unexpected, message).help("keep the likeliest tokens instead of draws"));
        }
    }
    asked(tokenizer, teacher.bridge.is_some().then_some(own), dataset, reading)
}

/// From a teacher's tokens to a student's; none where these are the same, and so is how conversations are laid out.
///
/// # Errors
/// Where nothing can be carried over.
pub fn bridge(own: &ChatTokenizer, tokenizer: &ChatTokenizer) -> Result<Option<Bridge>> {
    if tokenizer_digest(own) == tokenizer_digest(tokenizer) && own.chat_template() == tokenizer.chat_template() {
        return Ok(None);
    }
    let bridge = Bridge::new(own, tokenizer).ok_or_else(|| {
        let message = "teacher and student have no tokens that end a turn, so nothing can be carried over";
        Failure::new(Exit::Unexpected, message).help("take a teacher of the base's family, or `limbeck teach`")
    })?;
    Ok(Some(bridge))
}

/// The rows of train and valid split as a training reads them, and as a teacher with a tokenizer of its own does.
fn asked(
    tokenizer: &ChatTokenizer,
    own: Option<&ChatTokenizer>,
    dataset: &Dataset,
    reading: Reading,
) -> Result<Vec<TokensAsked>> {
    let of = |example: &Example| {
        let read = |tokenizer: &ChatTokenizer, most: usize| {
            encode_example(tokenizer, &example.messages, &example.answer(), reading.train_on, most)
                .map_err(|e| Failure::new(Exit::Unexpected, format!("row {}: {e}", example.id)))
        };
        let row = read(tokenizer, reading.max_seq_length)?;
        // Its own context bounds it.
        let read = own.map(|own| read(own, usize::MAX)).transpose()?;
        Ok(TokensAsked { id: example.id.clone(), row, read })
    };
    [Split::Train, Split::Valid].into_iter().flat_map(|split| dataset.rows(split)).map(of).collect()
}

/// What stands for the rows that were asked, in their order.
pub fn digest_of(asked: &[TokensAsked]) -> String {
    let keys: Vec<String> = asked.iter().map(|asked| tokens_key(&asked.row.ids, &asked.row.mask)).collect();
    sha256_hex(canonical_json(&json!(keys)).as_bytes())
}

/// What stands for a chat template.
pub fn template_digest(tokenizer: &ChatTokenizer) -> String {
    sha256_hex(tokenizer.chat_template().as_bytes())
}

enum Source<'a> {
    File(&'a Path, Box<Capture<TokenRow>>),
    Teachers(Vec<Teacher>),
}

/// Runs the stage of a recipe that names a teacher.
///
/// # Errors
/// A teacher or a capture that can't be used, or that has another tokenizer than the base.
pub fn run(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<Option<Finished<CapturedTokens>>> {
    let asked = &run.recipe().distill;
    let source = match (&asked.capture, &asked.teacher) {
        (Some(file), _) => Source::File(file, Box::new(Capture::load(file)?)),
        (None, Some(_)) => Source::Teachers(super::committee(asked)?),
        (None, None) => return Ok(None),
    };
    let of_source = match &source {
        Source::File(_, capture) => capture.digest.clone(),
        Source::Teachers(teachers) => super::digest_of_all(teachers),
    };
    // Its tokenizer makes the rows.
    let base = run.base(&run.sink.stage(Stage::Capture))?;
    let mut inputs = BTreeMap::from([
        ("base".to_owned(), base.digest.clone()),
        ("dataset".to_owned(), dataset.summary.digest.clone()),
        ("teacher".to_owned(), of_source),
    ]);
    let files = named(&asked.unlabeled);
    inputs.extend(digests(&files, false)?.into_iter().map(|(name, digest)| (format!("unlabeled/{name}"), digest)));
    run.stage(Stage::Capture, inputs, |emit, _| {
        let dataset = Dataset::load(&run.dataset_dir())?;
        let tokenizer = ChatTokenizer::open(&base.path)?;
        let max_seq_length = run.recipe().model.max_seq_length;
        let reading = Reading { train_on: train_on(run.recipe().train.train_on), max_seq_length };
        let (answered, written) = match &source {
            // The first one writes: whose words an answer is of cannot be averaged.
            Source::Teachers(teachers) if !files.is_empty() && !teachers.is_empty() => {
                let teacher = &teachers[0];
                let fits = |kept: &Kept, answer: &str| {
                    row_of(&tokenizer, &kept.messages, answer, max_seq_length).map(drop).map_err(|e| e.to_string())
                };
                let (answered, summary) = written::answered(run, files, teacher, &fits, emit)?;
                (answered, Some(summary))
            }
            _ => (Vec::new(), None),
        };
        let captured = answers(run, &source, (&dataset, &answered), (&tokenizer, reading), emit)?;
        let agreement = agreement(&dataset, &captured, &self::asked(&tokenizer, None, &dataset, reading)?);
        let tokens = captured.rows.iter().map(|row| row.positions.len() as u64).sum::<u64>();
        let trust = match asked.trust {
            Trust::Full => 1.0,
            Trust::Reviewed => wilson(agreement.right, agreement.of, CONFIDENCE).low,
        };
        let summary = CapturedTokens {
            teacher: captured.header.teacher.clone(),
            kept: captured.header.sparse.map_or_else(String::new, |sparse| sparse.to_string()),
            rows: captured.rows.len() as u64,
            tokens,
            bytes_per_token: captured.bytes as f64 / tokens.max(1) as f64,
            agreement,
            trust,
            learnt: if trust > 0.0 { answered.len() as u64 } else { 0 },
            written,
        };
        if trust <= 0.0 && !answered.is_empty() {
            let text = "no reviewed answer is what the teacher would have written, token for token: what it wrote to unlabeled messages \
                        counts nothing. Review answers, or take it at its word with --set distill.trust=full";
            emit.emit(EventKind::Warning { text: text.to_owned() });
        }
        let of = match summary.agreement.of {
            0 => "no reviewed row to measure it by".to_owned(),
            n => format!("{} of {n} reviewed answers are what it would write", summary.agreement.right),
        };
        let line = format!(
            "{} tokens of {} rows told by {} ({}), {of}{}",
            summary.tokens,
            summary.rows,
            summary.teacher.name,
            summary.kept,
            summary.written.as_ref().map_or_else(String::new, |_| format!("; {} unlabeled learnt", summary.learnt)),
        );
        let written = summary.written.iter().flat_map(|_| written::outputs());
        let outputs = std::iter::once(FILE.to_owned()).chain(written).collect();
        Ok(Work { summary, outputs, line })
    })
    .map(Some)
}

/// The teacher's answers in the run's folder: asked for now, or copied from where they were captured.
fn answers(
    run: &Run<'_>,
    source: &Source<'_>,
    (dataset, answered): (&Dataset, &[Answered]),
    (tokenizer, reading): (&ChatTokenizer, Reading),
    emit: &dyn Emit,
) -> Result<Capture<TokenRow>> {
    let out = run.dir.join(FILE);
    let teachers = match source {
        Source::File(path, capture) => {
            check(&capture.header, tokenizer, &format!("the capture {}", path.display()))?;
            let bytes = std::fs::read(path).map_err(|e| cannot("read the capture", path, &e))?;
            write_atomic(&out, &bytes).map_err(|e| cannot("write", &out, &e))?;
            return Ok(capture.as_ref().clone());
        }
        Source::Teachers(teachers) => teachers,
    };
    let one =
        |teacher: &Teacher, out: &Path| of_one(run, teacher, (dataset, answered), (tokenizer, reading), out, emit);
    if let [alone] = teachers.as_slice() {
        return one(alone, &out);
    }
    let mut captures = Vec::new();
    for (i, teacher) in teachers.iter().enumerate() {
        emit.emit(EventKind::Note { text: format!("{} tells, {} of {}", teacher.named.name, i + 1, teachers.len()) });
        captures.push(one(teacher, &super::of_member(run, i))?);
    }
    let members: Vec<Member<_>> = captures.iter().map(|capture| Member { capture, weight: 1.0 }).collect();
    let merged = super::anew(&out, super::is_another_merge, || merge_tokens(&members, &out, PROGRAM_VERSION))?;
    let text = format!(
        "of {} tokens, {} are what some of the {} teachers would have written and others not",
        merged.of,
        merged.disagree,
        teachers.len()
    );
    emit.emit(EventKind::Note { text });
    Ok(Capture::load(&out)?)
}

/// One teacher's answers.
fn of_one(
    run: &Run<'_>,
    teacher: &Teacher,
    (dataset, answered): (&Dataset, &[Answered]),
    (tokenizer, reading): (&ChatTokenizer, Reading),
    out: &Path,
    emit: &dyn Emit,
) -> Result<Capture<TokenRow>> {
    let (mut reader, own) = teacher.reader(run.recipe().model.device.parse()?)?;
    let sparse = sparse(run.recipe().distill.top_k, run.recipe().distill.draws, run.recipe().seed);
    let mut asked = meet(&mut reader, &own, tokenizer, dataset, (reading, sparse))?;
    for Answered { from, messages, answer, .. } in answered {
        let read = |tokenizer: &ChatTokenizer, most: usize| {
            row_of(tokenizer, messages, answer, most)
                .map_err(|e| Failure::new(Exit::Unexpected, format!("the answer to {from}: {e}")))
        };
        let row = read(tokenizer, reading.max_seq_length)?;
        let read = reader.bridge.is_some().then(|| read(&own, usize::MAX)).transpose()?;
        asked.push(TokensAsked { id: from.clone(), row, read });
    }
    if reader.bridge.is_some() {
        let text = "the teacher has a tokenizer or chat template of its own: what it expects is carried over by bytes";
        emit.emit(EventKind::Note { text: text.to_owned() });
    }
    let plan = TokenCapturePlan {
        teacher: teacher.named.clone(),
        data: Named { name: data_of(answered).to_owned(), digest: digest_of(&asked) },
        sparse,
        tokenizer: tokenizer_digest(tokenizer),
        template: template_digest(tokenizer),
        out: out.to_owned(),
        program_version: PROGRAM_VERSION.to_owned(),
    };
    let report = ask(&plan, &reader, &asked, emit)?;
    if report.tokens_per_s > 0.0 {
        let text = format!(
            "{:.0} tokens read a second; {:.1} bytes for each token that is predicted; the teacher would have written {:.1} % of \
             them itself",
            report.tokens_per_s,
            report.bytes_per_token,
            report.agrees * 100.0
        );
        emit.emit(EventKind::Note { text });
    }
    if report.unlike > 0 {
        emit.emit(EventKind::Warning { text: unlike(report.unlike) });
    }
    Ok(Capture::load(out)?)
}

fn data_of(answered: &[Answered]) -> &'static str {
    match answered.is_empty() {
        true => "train and valid rows",
        false => "train and valid rows, the teacher's answers to unlabeled messages",
    }
}

/// A message and the teacher's answer as a row of training.
fn row_of(
    tokenizer: &ChatTokenizer,
    messages: &[Message],
    answer: &str,
    max_seq_length: usize,
) -> std::result::Result<EncodedExample, PromptError> {
    encode_example(tokenizer, messages, &Message::new("assistant", answer), TrainOn::Last, max_seq_length)
}

/// Captures into a stage's own file. What lies there of another teacher or of other rows is nobody's: the stage is another now.
///
/// # Errors
/// As [`capture_tokens`].
pub fn ask(
    plan: &TokenCapturePlan,
    reader: &TokenTeacher,
    asked: &[TokensAsked],
    emit: &dyn Emit,
) -> Result<TokenCaptureReport> {
    let is_other = |e: &CaptureError| matches!(e, CaptureError::File(limbeck_artifact::Error::Invalid { .. }));
    super::anew(&plan.out, is_other, || capture_tokens(plan, reader, asked, emit))
}

/// What is said of rows that could not be carried over.
pub fn unlike(rows: u64) -> String {
    format!("{rows} rows are learnt from their answers alone: teacher and student don't write the same bytes there")
}

fn check(header: &Header, tokenizer: &ChatTokenizer, what: &str) -> Result<()> {
    let (made_for, help) =
        match (header.tokenizer == tokenizer_digest(tokenizer), header.template == template_digest(tokenizer)) {
            (true, true) => return Ok(()),
            (false, _) => ("tokenizer", "capture again with --student naming this base"),
            (true, false) => ("chat template", "capture again with --student naming this base"),
        };
    Err(Failure::new(Exit::Unexpected, format!("{what} was made for another {made_for} than the base has")).help(help))
}

/// How many of the reviewed answers the teacher would have written itself; `asked` are the rows of train and valid split.
fn agreement(dataset: &Dataset, capture: &Capture<TokenRow>, asked: &[TokensAsked]) -> Reviewed {
    let whole: BTreeMap<&str, bool> =
        capture.rows.iter().map(|row| (row.key.as_str(), row.positions.iter().all(|p| p.agrees))).collect();
    let examples = [Split::Train, Split::Valid].into_iter().flat_map(|split| dataset.rows(split));
    let mut found = Reviewed::default();
    for (example, asked) in examples.zip(asked) {
        let told = whole.get(tokens_key(&asked.row.ids, &asked.row.mask).as_str());
        if let (Some(agrees), LabelSource::Human) = (told, example.label_source) {
            found.of += 1;
            found.right += u64::from(*agrees);
        }
    }
    found
}

/// What the stage left, as the training takes it; none of a recipe without a teacher, or of one that tells labels apart.
///
/// # Errors
/// When its files can't be read.
pub fn told(run: &Run<'_>) -> Result<Option<ToldTokens>> {
    let asked: &Distill = &run.recipe().distill;
    if !asked.is_asked() || run.recipe().task.kind == "classify" {
        return Ok(None);
    }
    let record = stage::load(&run.dir, Stage::Capture)?.ok_or_else(not_done)?;
    let captured: CapturedTokens = serde_json::from_value(record.summary)?;
    let capture = Capture::<TokenRow>::load(&run.dir.join(FILE))?;
    let answered = if captured.learnt > 0 { written::read(run)? } else { Vec::new() };
    let weighed = |Answered { from, messages, answer, agreement }| limbeck_trainer::Answered {
        id: from,
        messages,
        answer,
        weight: (captured.trust * agreement) as f32,
    };
    Ok(Some(ToldTokens {
        answered: answered.into_iter().map(weighed).filter(|answered| answered.weight > 0.0).collect(),
        lambda: asked.lambda as f32,
        divergence: divergence(asked),
        rows: capture.rows.into_iter().map(|row| (row.key, row.positions)).collect(),
        trust: captured.trust as f32,
        contradicts: asked.trust == Trust::Full,
    }))
}
