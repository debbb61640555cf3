//! Capture where answers are written: what a teacher expects at each token of the train rows' answers. The rows are tokenized as
//! the training will, so teacher and base must have one tokenizer and one chat template.
//!
//! What the teacher's word is worth on rows that nobody reviewed is the lower bound of how often it would have written a reviewed
//! answer itself, token for token. A teacher that was trained on these very rows measures better than it is.

use super::super::train::train_on;
use super::super::{Finished, PROGRAM_VERSION, Run, Work, cannot};
use super::{CONFIDENCE, FILE, Reviewed, Teacher, divergence, not_done};
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::capture::{Capture, Header, Named, Sparse, TokenRow, discard, tokens_key};
use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, LabelSource, Split};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::files::write_atomic;
use limbeck_artifact::stage;
use limbeck_distill::{CaptureError, TokenCapturePlan, TokensAsked, capture_tokens, tokenizer_digest};
use limbeck_eval::statistics::wilson;
use limbeck_model::prompt::{TrainOn, encode_example};
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
#[derive(Clone, Copy)]
pub struct Reading {
    pub train_on: TrainOn,
    pub max_seq_length: usize,
}

/// The rows of train and valid split as a training reads them.
///
/// # Errors
/// A row that can't be trained on.
pub fn asked(tokenizer: &ChatTokenizer, dataset: &Dataset, reading: Reading) -> Result<Vec<TokensAsked>> {
    let of = |example: &Example| {
        let Reading { train_on, max_seq_length } = reading;
        let row = encode_example(tokenizer, &example.messages, &example.answer(), train_on, max_seq_length);
        let row = row.map_err(|e| Failure::new(Exit::Unexpected, format!("row {}: {e}", example.id)))?;
        Ok(TokensAsked { id: example.id.clone(), row })
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
    Teacher(Box<Teacher>),
}

/// Runs the stage of a recipe that names a teacher.
///
/// # Errors
/// A teacher or a capture that can't be used, or that has another tokenizer than the base.
pub fn run(run: &Run<'_>, dataset: &Finished<DatasetCard>) -> Result<Option<Finished<CapturedTokens>>> {
    let asked = &run.recipe().distill;
    let source = match (&asked.capture, &asked.teacher) {
        (Some(file), _) => Source::File(file, Box::new(Capture::load(file)?)),
        (None, Some(model)) => Source::Teacher(Box::new(Teacher::find(model, asked.teacher_adapter.as_deref())?)),
        (None, None) => return Ok(None),
    };
    let of_source = match &source {
        Source::File(_, capture) => capture.digest.clone(),
        Source::Teacher(teacher) => teacher.named.digest.clone(),
    };
    // Its tokenizer makes the rows.
    let base = run.base(&run.sink.stage(Stage::Capture))?;
    let inputs = BTreeMap::from([
        ("base".to_owned(), base.digest.clone()),
        ("dataset".to_owned(), dataset.summary.digest.clone()),
        ("teacher".to_owned(), of_source),
    ]);
    run.stage(Stage::Capture, inputs, |emit, _| {
        let dataset = Dataset::load(&run.dataset_dir())?;
        let tokenizer = ChatTokenizer::open(&base.path)?;
        let max_seq_length = run.recipe().model.max_seq_length;
        let reading = Reading { train_on: train_on(run.recipe().train.train_on), max_seq_length };
        let rows = self::asked(&tokenizer, &dataset, reading)?;
        let captured = answers(run, &source, &rows, &tokenizer, emit)?;
        let agreement = agreement(&dataset, &captured, &rows);
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
        };
        let of = match summary.agreement.of {
            0 => "no reviewed row to measure it by".to_owned(),
            n => format!("{} of {n} reviewed answers are what it would write", summary.agreement.right),
        };
        let line = format!(
            "{} tokens of {} rows told by {} ({}), {of}",
            summary.tokens, summary.rows, summary.teacher.name, summary.kept
        );
        Ok(Work { summary, outputs: vec![FILE.to_owned()], line })
    })
    .map(Some)
}

/// The teacher's answers in the run's folder: asked for now, or copied from where they were captured.
fn answers(
    run: &Run<'_>,
    source: &Source<'_>,
    asked: &[TokensAsked],
    tokenizer: &ChatTokenizer,
    emit: &dyn Emit,
) -> Result<Capture<TokenRow>> {
    let out = run.dir.join(FILE);
    let teacher = match source {
        Source::File(path, capture) => {
            check(&capture.header, tokenizer, &format!("the capture {}", path.display()))?;
            let bytes = std::fs::read(path).map_err(|e| cannot("read the capture", path, &e))?;
            write_atomic(&out, &bytes).map_err(|e| cannot("write", &out, &e))?;
            return Ok(capture.as_ref().clone());
        }
        Source::Teacher(teacher) => teacher,
    };
    let (reader, own) = teacher.reader(run.recipe().model.device.parse()?)?;
    let plan = TokenCapturePlan {
        teacher: teacher.named.clone(),
        data: Named { name: "train and valid rows".to_owned(), digest: digest_of(asked) },
        sparse: sparse(run.recipe().distill.top_k, run.recipe().distill.draws, run.recipe().seed),
        tokenizer: tokenizer_digest(&own),
        template: template_digest(tokenizer),
        out: out.clone(),
        program_version: PROGRAM_VERSION.to_owned(),
    };
    same_tokenizer(&plan.tokenizer, tokenizer, &format!("the teacher {}", teacher.named.name))?;
    let report = match capture_tokens(&plan, &reader, asked, emit) {
        // Of another teacher or of other rows: the stage is another now, and what it left is nobody's.
        Err(CaptureError::File(limbeck_artifact::Error::Invalid { .. })) => {
            discard(&out)?;
            let _ = std::fs::remove_file(&out);
            capture_tokens(&plan, &reader, asked, emit)?
        }
        other => other?,
    };
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
    Ok(Capture::load(&out)?)
}

fn same_tokenizer(theirs: &str, tokenizer: &ChatTokenizer, who: &str) -> Result<()> {
    if theirs == tokenizer_digest(tokenizer) {
        return Ok(());
    }
    let message = format!(
        "{who} has another tokenizer than the base: what it expects of its tokens says nothing of the student's"
    );
    Err(Failure::new(Exit::Unexpected, message).help(
        "take a teacher of the base's family with the same vocabulary (`limbeck carve` without --merges keeps it), or let it write \
         answers and learn those: `limbeck teach`",
    ))
}

fn check(header: &Header, tokenizer: &ChatTokenizer, what: &str) -> Result<()> {
    same_tokenizer(&header.tokenizer, tokenizer, what)?;
    if header.template == template_digest(tokenizer) {
        return Ok(());
    }
    let message = format!("{what} was made with another chat template than the base has");
    Err(Failure::new(Exit::Unexpected, message).help("capture again with this base's template"))
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
    Ok(Some(ToldTokens {
        lambda: asked.lambda as f32,
        divergence: divergence(asked),
        rows: capture.rows.into_iter().map(|row| (row.key, row.positions)).collect(),
        trust: captured.trust as f32,
        contradicts: asked.trust == Trust::Full,
    }))
}
