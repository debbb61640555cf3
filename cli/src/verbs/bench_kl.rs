//! `limbeck bench kl`: files beside the exact model on texts and on a task's rows, and the files to compare made on the way.

use crate::bench::args::{BenchKl, RoundingKind};
use crate::exit::{Exit, Failure, Result};
use crate::kl::{Divergence, Exact, Piece, diverge};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::{cannot, mix};
use limbeck_artifact::dataset::{Split, each_row};
use limbeck_artifact::event::Emit;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::gguf::GgmlType;
use limbeck_model::prompt::{TrainOn, encode_example};
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_quantize::allocate::{SensitivityPlan, Target, measure};
use limbeck_quantize::calibrate::open;
use limbeck_quantize::{
    CalibratePlan, Compensation, Format, Merged, QuantizePlan, calibrate, quantize, quantize_compensated,
};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Longest row of a task that is read.
const LONGEST_ROW: usize = 4096;

/// A file to measure.
struct Candidate {
    name: String,
    path: PathBuf,
    /// Whose KL is its measure, by name.
    beside: String,
    /// Of making it; None where it was there.
    seconds: Option<f64>,
}

/// What is measured under one name.
struct Set {
    name: String,
    pieces: Vec<Piece>,
}

#[derive(Serialize)]
struct Line {
    set: String,
    file: String,
    bytes: u64,
    bits_per_weight: f64,
    made_in_s: Option<f64>,
    #[serde(flatten)]
    divergence: Divergence,
    /// Mean KL over that of the file it is compared with.
    ratio: Option<f64>,
}

pub fn bench(settings: &Settings, args: &BenchKl) -> Result<Exit> {
    if args.file.is_empty() && args.make.is_empty() && args.mix.is_empty() {
        return Err(Failure::new(Exit::Usage, "there is no file to measure")
            .help("--file FILE.gguf, --make Q4_0, or --mix 90MB"));
    }
    let device: DeviceName = settings.device.as_deref().unwrap_or("cpu").parse()?;
    let tokenizer = ChatTokenizer::open(&args.reference)?;
    let sets = sets(args, &tokenizer)?;
    let sink = Sink::new(None, &Terminal::of_stderr());
    let scratch = Scratch::new("bench-kl")?;
    let candidates = candidates(args, &tokenizer, device, scratch.path(), &sink)?;
    sink.clear();

    let (weights, adapter) = Weights::open_trained::<Failure>(&args.reference, args.adapter.as_deref())?;
    let merged = Merged::new(&weights, adapter.as_ref())?;
    let reference = open(&merged, device::ops(device)?)?;
    let exact: Vec<Exact> = sets.iter().map(|set| Exact::read(&reference, &set.pieces)).collect::<Result<_>>()?;

    let mut lines: Vec<Line> = Vec::new();
    for candidate in &candidates {
        output::stderr(&format!("measuring {}\n", candidate.name));
        let weights = Weights::open(&candidate.path)?;
        let bits_per_weight = bits_per_weight(&weights);
        let decoder = Decoder::from_weights(&weights, device::ops(device)?, false)?;
        let bytes = std::fs::metadata(&candidate.path).map_err(|e| cannot("read", &candidate.path, &e))?.len();
        for (set, exact) in sets.iter().zip(&exact) {
            let divergence = diverge(exact, &decoder)?;
            lines.push(Line {
                set: set.name.clone(),
                file: candidate.name.clone(),
                bytes,
                bits_per_weight,
                made_in_s: candidate.seconds,
                divergence,
                ratio: None,
            });
        }
    }
    let kl: BTreeMap<(String, String), f64> =
        lines.iter().map(|line| ((line.set.clone(), line.file.clone()), line.divergence.mean_kl)).collect();
    for line in &mut lines {
        let beside = candidates.iter().find(|c| c.name == line.file).map(|c| c.beside.clone()).unwrap_or_default();
        line.ratio = kl.get(&(line.set.clone(), beside)).map(|other| line.divergence.mean_kl / other);
    }
    match settings.json {
        true => output::json(&json!({
            "reference": args.reference, "adapter": args.adapter, "calibration_tokens": args.calibration_tokens,
            "length": args.length, "damping": args.damping, "asymmetry": args.asymmetry, "passes": args.passes,
            "rows": lines,
        }))?,
        false => output::stdout(&text(&sets, &lines))?,
    }
    Ok(Exit::Ok)
}

/// Of the tensors as they are stored.
fn bits_per_weight(weights: &Weights) -> f64 {
    let Some(file) = weights.gguf() else { return f64::NAN };
    let (bytes, values) = file.tensors().iter().fold((0, 0), |(bytes, n), t| (bytes + t.n_bytes, n + t.n_elements()));
    8.0 * bytes as f64 / values.max(1) as f64
}

fn text(sets: &[Set], lines: &[Line]) -> String {
    let mut out = String::new();
    let width = lines.iter().map(|line| line.file.chars().count()).max().unwrap_or(0).max(4);
    for set in sets {
        let of = || lines.iter().filter(|line| line.set == set.name);
        let Some(first) = of().next() else { continue };
        out += &format!(
            "{}: {} positions of {} documents\n{:<width$}       MB  bits/weight   mean KL    +- s.e.  same top  perplexity   ratio\n",
            set.name, first.divergence.positions, first.divergence.documents, "file"
        );
        for line in of() {
            let d = &line.divergence;
            out += &format!(
                "{:<width$}  {:>7.1}  {:>11.2}  {:>8.5}  {:>8}  {:>6.1} %  {:>10.4}  {:>6}\n",
                line.file,
                line.bytes as f64 / 1e6,
                line.bits_per_weight,
                d.mean_kl,
                d.standard_error.map_or("-".to_owned(), |e| format!("{e:.5}")),
                d.same_top * 100.0,
                d.perplexity_ratio,
                line.ratio.map_or("-".to_owned(), |r| format!("{r:.3}")),
            );
        }
        out.push('\n');
    }
    out + "KL in nats a token, of the exact model's distribution from the file's; its standard error by documents; perplexity over the exact model's\n"
}

/// What is measured: texts under their names, a dataset's test rows, and of these the answers alone.
fn sets(args: &BenchKl, tokenizer: &ChatTokenizer) -> Result<Vec<Set>> {
    let mut texts = BTreeMap::<String, Vec<PathBuf>>::new();
    for given in &args.text {
        let (name, path) = given.split_once('=').unwrap_or(("text", given));
        texts.entry(name.to_owned()).or_default().push(path.into());
    }
    let mut sets = Vec::new();
    for (name, paths) in texts {
        let pieces = pieces(&documents(&paths)?, tokenizer, args.tokens, args.length)?;
        sets.push(Set { name, pieces });
    }
    if let Some(dataset) = &args.dataset {
        let (mut rows, mut left) = (Vec::new(), args.tokens);
        for (document, row) in each_row(dataset, Split::Test)?.enumerate() {
            let row = row?;
            let encoded = encode_example(tokenizer, &row.messages, &row.answer(), TrainOn::Last, LONGEST_ROW)?;
            if encoded.ids.len() > left {
                break;
            }
            left -= encoded.ids.len();
            let first = encoded.mask.iter().position(|in_answer| *in_answer).unwrap_or(0);
            rows.push((Piece::whole(document, encoded.ids), first));
        }
        let answers = rows
            .iter()
            .map(|(piece, first)| Piece { measured: first.saturating_sub(1)..piece.measured.end, ..piece.clone() });
        let answers: Vec<Piece> = answers.collect();
        sets.push(Set { name: "test rows".into(), pieces: rows.into_iter().map(|(piece, _)| piece).collect() });
        sets.push(Set { name: "answers of the test rows".into(), pieces: answers });
    }
    match sets.iter().all(|set| set.pieces.iter().all(|piece| piece.measured.is_empty())) {
        true => Err(Failure::new(Exit::Usage, "there is nothing to measure on").help("--text FILE, or --dataset DIR")),
        false => Ok(sets),
    }
}

/// Texts by their paths: files, and the files of folders in the order of their names.
fn documents(paths: &[PathBuf]) -> Result<Vec<String>> {
    let mut files = Vec::new();
    for path in paths {
        if !path.is_dir() {
            files.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| cannot("read", path, &e))?;
        let mut own: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).filter(|p| p.is_file()).collect();
        own.sort();
        files.extend(own);
    }
    let read = |path: &PathBuf| {
        let bytes = std::fs::read(path).map_err(|e| cannot("read", path, &e))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    files.iter().map(read).collect()
}

/// Pieces from the beginning of each document, of each about as much; of more documents than pieces, some from all over.
fn pieces(documents: &[String], tokenizer: &ChatTokenizer, tokens: usize, length: usize) -> Result<Vec<Piece>> {
    /// A token of text is rarely longer in bytes.
    const BYTES_A_TOKEN: usize = 16;
    let taken = documents.len().min((tokens / length).max(1));
    let (mut out, mut left) = (Vec::new(), tokens);
    for number in 0..taken {
        let document = number * documents.len() / taken;
        let text = &documents[document];
        let wanted = (left / (taken - number)).next_multiple_of(length).min(left);
        let end = text.floor_char_boundary((wanted * BYTES_A_TOKEN).min(text.len()));
        let mut ids = tokenizer.encode_prompt(&text[..end])?;
        ids.truncate(wanted);
        left -= ids.len();
        out.extend(ids.chunks(length).filter(|c| c.len() > 1).map(|c| Piece::whole(document, c.to_vec())));
    }
    Ok(out)
}

/// Rows to calibrate on: of a task's train split, of texts, or of both.
fn calibration(args: &BenchKl, tokenizer: &ChatTokenizer) -> Result<Vec<Vec<u32>>> {
    let general = match (&args.dataset, args.calibrate.is_empty()) {
        (None, _) => args.calibration_tokens,
        (Some(_), true) => 0,
        (Some(_), false) => (args.calibration_tokens as f64 * args.general_share) as usize,
    };
    let mut rows = Vec::new();
    if let Some(dataset) = &args.dataset {
        let mut left = args.calibration_tokens - general;
        for row in each_row(dataset, Split::Train)? {
            let row = row?;
            let ids = encode_example(tokenizer, &row.messages, &row.answer(), TrainOn::Last, LONGEST_ROW)?.ids;
            if ids.len() > left {
                break;
            }
            left -= ids.len();
            rows.push(ids);
        }
    }
    if general > 0 {
        let texts = pieces(&documents(&args.calibrate)?, tokenizer, general, args.length)?;
        rows.extend(texts.into_iter().map(|piece| piece.tokens));
    }
    match rows.is_empty() && args.rounding.iter().any(|kind| *kind != RoundingKind::Plain) {
        true => {
            let help = "--calibrate FILE, or --dataset DIR; --rounding plain needs neither";
            Err(Failure::new(Exit::Usage, "there is nothing to calibrate on").help(help))
        }
        false => Ok(rows),
    }
}

/// The files that were given, then those that are made.
fn candidates(
    args: &BenchKl,
    tokenizer: &ChatTokenizer,
    device: DeviceName,
    scratch: &Path,
    emit: &dyn Emit,
) -> Result<Vec<Candidate>> {
    let name = |path: &Path| path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let first = args.file.first().map_or_else(String::new, |path| name(path));
    let given =
        |path: &PathBuf| Candidate { name: name(path), path: path.clone(), beside: first.clone(), seconds: None };
    let mut out: Vec<Candidate> = args.file.iter().map(given).collect();
    if args.make.is_empty() && args.mix.is_empty() {
        return Ok(out);
    }
    let dir = args.out.as_deref().unwrap_or(scratch);
    std::fs::create_dir_all(dir).map_err(|e| cannot("create", dir, &e))?;
    let rows = calibration(args, tokenizer)?;
    let imatrix = dir.join("imatrix.gguf");
    if args.rounding.contains(&RoundingKind::Imatrix) && !imatrix.exists() {
        let plan = CalibratePlan {
            base: args.reference.clone(),
            adapter: args.adapter.clone(),
            device,
            datasets: vec!["bench kl".into()],
        };
        calibrate(&plan, &rows, emit)?.save(&imatrix)?;
    }
    let by = Compensation {
        damping: args.damping,
        asymmetry: args.asymmetry,
        passes: args.passes,
        ..Compensation::new(rows, device)
    };
    let named = |format: &Format| Wanted { called: format.to_string(), format: *format, types: BTreeMap::new() };
    let mut wanted: Vec<Wanted> = args.make.iter().map(named).collect();
    wanted.extend(mixes(args, &by.rows, device, dir, emit)?);
    for Wanted { called, format, types } in wanted {
        for kind in &args.rounding {
            let path = dir.join(format!("{}-{}.gguf", called.replace(' ', "-"), kind.name()));
            let begun = Instant::now();
            let made = !path.exists();
            if made {
                output::stderr(&format!("making {called}, {}\n", kind.name()));
                let plan = QuantizePlan {
                    types: types.clone(),
                    imatrix: (*kind == RoundingKind::Imatrix).then(|| imatrix.clone()),
                    ..plan(args, format, &path)
                };
                match kind {
                    RoundingKind::Compensated => quantize_compensated(&plan, &by, emit)?,
                    RoundingKind::Plain | RoundingKind::Imatrix => quantize(&plan, emit)?,
                };
            }
            out.push(Candidate {
                name: format!("{called} {}", kind.name()),
                path,
                beside: format!("{called} {}", RoundingKind::Imatrix.name()),
                seconds: made.then(|| begun.elapsed().as_secs_f64()),
            });
        }
    }
    Ok(out)
}

/// A file to make in each rounding.
struct Wanted {
    called: String,
    format: Format,
    types: BTreeMap<String, GgmlType>,
}

/// Block types for the sizes that are asked for; what matrices cost is measured once and kept.
fn mixes(args: &BenchKl, rows: &[Vec<u32>], device: DeviceName, dir: &Path, emit: &dyn Emit) -> Result<Vec<Wanted>> {
    if args.mix.is_empty() {
        return Ok(Vec::new());
    }
    let kept = dir.join("sensitivity.json");
    let measured = match std::fs::read(&kept) {
        Ok(bytes) => serde_json::from_slice(&bytes)?,
        Err(_) => {
            let begun = Instant::now();
            let mut left = args.mix_tokens;
            let take = |row: &Vec<u32>| {
                let row = row[..row.len().min(left)].to_vec();
                left -= row.len();
                row
            };
            let rows: Vec<Vec<u32>> = rows.iter().map(take).collect();
            let plan = SensitivityPlan { base: args.reference.clone(), adapter: args.adapter.clone(), device };
            let measured = measure(&plan, &rows, emit)?;
            let (matrices, seconds) = (measured.tensors.len(), begun.elapsed().as_secs_f64());
            output::stderr(&format!("{matrices} matrices measured on {} tokens in {seconds:.0} s\n", measured.tokens));
            std::fs::write(&kept, serde_json::to_vec_pretty(&measured)?).map_err(|e| cannot("write", &kept, &e))?;
            measured
        }
    };
    let around = mix::around(&plan(args, mix::FORMAT, &kept), &measured)?;
    let of = |target: &Target| {
        let chosen = mix::allocate(&measured, around, *target)?;
        Ok(Wanted { called: format!("mix {target}"), format: mix::FORMAT, types: chosen.types })
    };
    args.mix.iter().map(of).collect()
}

fn plan(args: &BenchKl, format: Format, out: &Path) -> QuantizePlan {
    QuantizePlan {
        base: args.reference.clone(),
        adapter: args.adapter.clone(),
        format,
        types: BTreeMap::new(),
        imatrix: None,
        out: out.to_path_buf(),
        name: "bench-kl".into(),
        version: None,
        license: None,
        provenance: BTreeMap::new(),
    }
}
