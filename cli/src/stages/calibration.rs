//! What the quantize stage calibrates on: the task's own train rows and, where the recipe names one, the beginning of a general
//! text. An importance matrix is made of them, or compensated rounding goes by them.

use super::train::outcome;
use super::{Run, cannot, mix};
use crate::base::Base;
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::dataset::{DatasetCard, Split, each_row};
use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_model::device::DeviceName;
use limbeck_model::prompt::{TrainOn, encode_example, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_quantize::{CalibratePlan, Compensation, calibrate};
use limbeck_recipes::{Head, Imatrix, Recipe, Rounding};
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Relative to the run's folder.
pub const FILE: &str = "quantize/imatrix.gguf";

/// A token of text is rarely longer in bytes.
const BYTES_A_TOKEN: usize = 16;

/// What the importance matrix depends on, beside base and training: for the stage's key.
///
/// # Errors
/// When a file that the recipe names can't be read.
pub fn inputs(recipe: &Recipe, dataset: &DatasetCard) -> Result<BTreeMap<String, String>> {
    let q = &recipe.quantize;
    let digest = |what: &str, path: &Path| sha256_file(path).map_err(|e| cannot(&format!("read {what}"), path, &e));
    let mut inputs = BTreeMap::new();
    match &q.imatrix {
        Imatrix::None => {}
        Imatrix::File(path) => {
            inputs.insert("imatrix".to_owned(), digest("the importance matrix", path)?);
        }
        Imatrix::Task => {}
    }
    let mixed = q.formats.iter().any(|name| name == mix::NAME);
    if q.imatrix == Imatrix::Task || q.rounding == Rounding::Compensated || mixed {
        let settings = format!("{} {} {}", dataset.digest, recipe.model.max_seq_length, recipe.model.device);
        inputs.insert("calibration".to_owned(), sha256_hex(settings.as_bytes()));
        if let Some(path) = &q.imatrix_text {
            inputs.insert("imatrix_text".to_owned(), digest("the text to calibrate on", path)?);
        }
    }
    Ok(inputs)
}

/// The importance matrix that the recipe asks for, made where it is to be made.
///
/// # Errors
/// When rows can't be read or tokenized, or the model can't be run on them.
pub fn imatrix(run: &Run<'_>, base: &Base, emit: &dyn Emit) -> Result<Option<PathBuf>> {
    match &run.recipe().quantize.imatrix {
        Imatrix::None => Ok(None),
        Imatrix::File(path) => Ok(Some(path.clone())),
        Imatrix::Task => make(run, base, emit).map(Some),
    }
}

/// The rows that compensated rounding goes by, where the recipe asks for it.
///
/// # Errors
/// When rows can't be read or tokenized.
pub fn compensation(run: &Run<'_>, base: &Base, emit: &dyn Emit) -> Result<Option<Compensation>> {
    let recipe = run.recipe();
    if recipe.quantize.rounding == Rounding::Nearest {
        return Ok(None);
    }
    let chosen = choose(run, base, recipe.quantize.rounding_tokens)?;
    emit.emit(EventKind::Note { text: format!("rounding by {}", chosen.text) });
    Ok(Some(Compensation::new(chosen.rows, recipe.model.device.parse()?)))
}

fn make(run: &Run<'_>, base: &Base, emit: &dyn Emit) -> Result<PathBuf> {
    let recipe = run.recipe();
    let Chosen { rows, datasets, text } = choose(run, base, recipe.quantize.imatrix_tokens)?;
    emit.emit(EventKind::Note { text: format!("calibrating on {text}") });
    let device: DeviceName = recipe.model.device.parse()?;
    let plan = CalibratePlan { base: base.path.clone(), adapter: Some(outcome(run)), device, datasets };
    let matrix = calibrate(&plan, &rows, emit)?;
    let path = run.dir.join(FILE);
    std::fs::create_dir_all(run.folder(Stage::Quantize)).map_err(|e| cannot("create", &path, &e))?;
    let bytes = matrix.save(&path)?;
    emit.emit(EventKind::Wrote { path: FILE.to_owned(), bytes });
    Ok(path)
}

/// Rows of the task, then those of the general text.
pub struct Chosen {
    pub rows: Vec<Vec<u32>>,
    /// What they are from, and what was taken, for a person.
    pub datasets: Vec<String>,
    pub text: String,
}

/// Rows of at most so many tokens.
///
/// # Errors
/// When they can't be read or tokenized.
pub fn choose(run: &Run<'_>, base: &Base, most: usize) -> Result<Chosen> {
    let recipe = run.recipe();
    let q = &recipe.quantize;
    let tokenizer = ChatTokenizer::open(&base.path)?;
    let share = if q.imatrix_text.is_some() { q.imatrix_text_share } else { 0.0 };
    let wanted = (most as f64 * (1.0 - share)) as usize;
    let (mut rows, all) = task_rows(recipe, &run.dataset_dir(), &tokenizer, wanted)?;
    let of_task = (rows.len(), tokens(&rows));
    let mut datasets = vec![format!("{} train split", recipe.name)];
    let mut text = format!("{} of {all} train rows, {} tokens", of_task.0, of_task.1);
    if let Some(path) = &q.imatrix_text {
        let wanted = (of_task.1 as f64 * share / (1.0 - share)) as usize;
        let general = text_rows(path, &tokenizer, wanted, recipe.model.max_seq_length)?;
        let got = tokens(&general);
        text += &format!(", and {got} tokens of {}", path.display());
        if got < wanted {
            text += &format!(" ({wanted} were wanted; it is too short)");
        }
        datasets.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
        rows.extend(general);
    }
    Ok(Chosen { rows, datasets, text })
}

fn tokens(rows: &[Vec<u32>]) -> usize {
    rows.iter().map(Vec::len).sum()
}

/// Train rows of `wanted` tokens together, one row at least, and how many rows there are. A row is what the model was trained
/// on: prompt and answer through the chat template; under a classification head, which spells no answer, the prompt.
fn task_rows(
    recipe: &Recipe,
    dataset: &Path,
    tokenizer: &ChatTokenizer,
    wanted: usize,
) -> Result<(Vec<Vec<u32>>, usize)> {
    let mut rows = Vec::new();
    for row in each_row(dataset, Split::Train)? {
        let row = row?;
        let ids = match recipe.train.head {
            Head::Classification => encode_prompt(tokenizer, &row.messages)?,
            Head::Verbalizer => {
                let max = recipe.model.max_seq_length;
                encode_example(tokenizer, &row.messages, &row.answer(), TrainOn::Last, max)?.ids
            }
        };
        rows.push(ids);
    }
    let all = rows.len();
    if all == 0 {
        return Err(Failure::new(Exit::Unexpected, "the train split has no row to calibrate on")
            .help("set quantize.imatrix = \"none\" and quantize.rounding = \"nearest\", or give the importance matrix as a file"));
    }
    // Rows from all over the split, the same ones each time.
    let mut order: Vec<usize> = (0..all).collect();
    order.sort_by_key(|i| (*i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut left = wanted;
    let fits = |i: &usize| {
        let fits = rows[*i].len() <= left;
        left -= if fits { rows[*i].len() } else { 0 };
        fits
    };
    let mut chosen: Vec<usize> = order.iter().copied().filter(fits).collect();
    if chosen.is_empty() {
        chosen.push(order[0]);
    }
    chosen.sort_unstable();
    Ok((chosen.into_iter().map(|i| std::mem::take(&mut rows[i])).collect(), all))
}

/// The text's beginning, up to `wanted` tokens, in rows of `max_seq_length` at most.
fn text_rows(path: &Path, tokenizer: &ChatTokenizer, wanted: usize, max_seq_length: usize) -> Result<Vec<Vec<u32>>> {
    let fails = |e: std::io::Error| cannot("read the text to calibrate on", path, &e);
    let mut bytes = Vec::new();
    let most = (wanted * BYTES_A_TOKEN) as u64 + 4;
    std::fs::File::open(path).and_then(|file| file.take(most).read_to_end(&mut bytes)).map_err(fails)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text,
        // Cut within a character, at the end of what was read.
        Err(e) if e.error_len().is_none() && bytes.len() as u64 == most => {
            std::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default()
        }
        Err(e) => {
            let message = format!("{} is not UTF-8 at byte {}", path.display(), e.valid_up_to());
            return Err(Failure::new(Exit::Usage, message).help("quantize.imatrix_text names a plain text file"));
        }
    };
    let mut ids = tokenizer.encode_prompt(text)?;
    ids.truncate(wanted);
    Ok(ids.chunks(max_seq_length).map(<[u32]>::to_vec).collect())
}
