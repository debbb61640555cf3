//! How fast answers are written: prompts of many lengths, one by one and many at once, in turn on the same machine. The answers
//! are compared to the bit on the way.

use super::args::BenchWrite;
use super::ours::{cpu_seconds, median};
use crate::exit::{Exit, Failure, Result};
use crate::memory::peak_rss_bytes;
use crate::output;
use crate::output::aligned;
use crate::settings::Settings;
use crate::verbs::bench::processor;
use limbeck_artifact::schema::Schema;
use limbeck_data_curation::text::Rng;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName};
use limbeck_model::generate::{Asked, Batch, Chosen, Constraint, Ends, continuations};
use limbeck_model::sequence::Sequence;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

/// An answer that does not end by itself: a list of any texts.
const ENDLESS: &str = r#"{"type": "object", "required": ["said"], "properties": {"said":
    {"type": "array", "minItems": 1000000, "items": {"type": "string"}}}}"#;
/// Tokens that all prompts begin with, as a template and a system prompt do.
const SHARED: usize = 32;

/// One way to write all prompts.
#[derive(Clone, Debug, Serialize)]
struct Figure {
    batch: usize,
    /// Answers are kept to a schema.
    constrained: bool,
    /// A round each, by the clock and by the processor, all threads together.
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    /// Written, prompts not counted; the median round.
    tokens_per_s: f64,
    /// Times the speed of one by one, by the clock and by the processor.
    ratio: f64,
    cpu_ratio: Option<f64>,
}

pub fn write(settings: &Settings, args: &BenchWrite) -> Result<Exit> {
    let device: DeviceName = settings.device.as_deref().unwrap_or("cpu").parse()?;
    let decoder = Decoder::from_weights(&Weights::open(&args.model)?, device::writing_ops(device)?, false)?;
    let prompts = prompts(&decoder, args);
    let shared = decoder.begin(&prompts[0][..SHARED], None)?;
    let mut batches = args.batch.clone();
    batches.push(1);
    batches.sort_unstable();
    batches.dedup();
    let mut seconds: BTreeMap<(usize, bool), [Vec<f64>; 2]> = BTreeMap::new();
    let kept = args.constrained.then(|| Kept::open(&args.model, &decoder)).transpose()?;
    let ways: &[bool] = if kept.is_some() { &[false, true] } else { &[false] };
    let (mut first, mut differ) = ([None, None], 0);
    for round in 0..=args.rounds {
        for (&batch, &constrained) in batches.iter().flat_map(|batch| ways.iter().map(move |way| (batch, way))) {
            // The first round warms up, with few rows.
            let prompts = if round == 0 { &prompts[..prompts.len().min(2)] } else { &prompts };
            // New each time: finding out what may come next is part of the work.
            let within = kept.as_ref().filter(|_| constrained).map(Kept::constraint).transpose()?;
            let (begun, busy) = (Instant::now(), cpu_seconds());
            let answers = answers(&decoder, &shared, prompts, args.tokens, batch, within.as_ref())?;
            if round == 0 {
                continue;
            }
            let how = if constrained { ", kept to a schema" } else { "" };
            output::stderr(&format!("round {round} of {}: {batch} at once{how}\n", args.rounds));
            let [wall, cpu] = seconds.entry((batch, constrained)).or_default();
            wall.push(begun.elapsed().as_secs_f64());
            cpu.extend(cpu_seconds().zip(busy).map(|(after, before)| after - before));
            let known = first[usize::from(constrained)].get_or_insert_with(|| answers.clone());
            differ += known.iter().zip(&answers).filter(|(a, b)| exactly(a) != exactly(b)).count();
        }
    }
    let written = (args.rows * args.tokens) as f64;
    let alone = seconds[&(1, false)].clone().map(|times| median(&times));
    let figure = |((batch, constrained), [seconds, cpu_seconds]): ((usize, bool), [Vec<f64>; 2])| {
        let own = median(&seconds);
        let cpu_ratio = (!cpu_seconds.is_empty()).then(|| alone[1] / median(&cpu_seconds));
        Figure {
            batch,
            constrained,
            tokens_per_s: written / own,
            ratio: alone[0] / own,
            cpu_ratio,
            seconds,
            cpu_seconds,
        }
    };
    let figures: Vec<Figure> = seconds.into_iter().map(figure).collect();
    let peak_mib = peak_rss_bytes().map(|bytes| bytes >> 20);
    if differ > 0 && device == DeviceName::Cpu {
        let message = format!("{differ} answers depend on what was written beside them");
        return Err(
            Failure::new(Exit::Unexpected, message).help("this is a bug; please report the model and processor")
        );
    }
    if settings.json {
        output::json(&json!({
            "model": args.model, "processor": processor(), "rows": args.rows, "tokens": args.tokens,
            "figures": figures, "differ": differ, "peak_rss_mib": peak_mib,
        }))?;
    } else {
        output::stdout(&table(args, &figures, differ, peak_mib))?;
    }
    Ok(Exit::Ok)
}

/// What answers are kept to, as often as it is wanted anew.
struct Kept {
    schema: Schema,
    tokenizer: ChatTokenizer,
    known: usize,
}

impl Kept {
    fn open(model: &Path, decoder: &Decoder) -> Result<Kept> {
        let schema = Schema::parse(ENDLESS).map_err(|e| Failure::of(Exit::Unexpected, &e))?;
        Ok(Kept { schema, tokenizer: ChatTokenizer::open(model)?, known: decoder.head().n_out })
    }

    fn constraint(&self) -> Result<Constraint> {
        Constraint::new(&self.schema, &self.tokenizer, self.known).map_err(|e| Failure::of(Exit::Unexpected, &e))
    }
}

/// Made-up tokens: the weights are read as fast whatever they mean.
fn prompts(decoder: &Decoder, args: &BenchWrite) -> Vec<Vec<u32>> {
    let mut rng = Rng::new(17);
    let mut token = || rng.below(decoder.config.vocab_size) as u32;
    let shared: Vec<u32> = (0..SHARED).map(|_| token()).collect();
    let length = |row: usize| args.prompt / 2 + row * 7 % args.prompt.max(1) + 1;
    (0..args.rows).map(|row| shared.iter().copied().chain((0..length(row)).map(|_| token())).collect()).collect()
}

fn answers(
    decoder: &Decoder,
    shared: &Sequence,
    prompts: &[Vec<u32>],
    tokens: usize,
    batch: usize,
    within: Option<&Constraint>,
) -> Result<Vec<Chosen>> {
    let asked: Vec<Asked> = prompts.iter().map(|prompt| Asked::greedy(&prompt[SHARED..], tokens)).collect();
    let ends = Ends { stop: &[], within, goes_on: &|_, _| true, done: &mut |_| () };
    Ok(continuations(decoder, None, shared, &asked, Batch::of(batch), ends)?)
}

fn exactly(answer: &Chosen) -> (&[u32], u64) {
    (&answer.tokens, answer.log_prob.to_bits())
}

fn table(args: &BenchWrite, figures: &[Figure], differ: usize, peak_mib: Option<u64>) -> String {
    let heads =
        ["rows at once", "tokens/s", "ms a step", "times one by one", "by processor time", "CPU-s", "rounds differ by"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    for f in figures {
        let ms = 1e3 / f.tokens_per_s;
        let (least, most) = f.seconds.iter().fold((f64::INFINITY, 0f64), |(a, b), s| (a.min(*s), b.max(*s)));
        rows.push(vec![
            if f.constrained { format!("{}, kept to a schema", f.batch) } else { f.batch.to_string() },
            format!("{:.1}", f.tokens_per_s),
            format!("{:.1}", ms * f.batch as f64),
            format!("{:.2}", f.ratio),
            f.cpu_ratio.map_or(String::new(), |ratio| format!("{ratio:.2}")),
            format!("{:.1}", median(&f.cpu_seconds)),
            format!("{:.0} %", (most / least - 1.0) * 100.0),
        ]);
    }
    let same = match differ {
        0 => "Every answer is the same to the bit, however many were written beside it.".to_owned(),
        n => format!("{n} answers depend on what was written beside them."),
    };
    let memory = peak_mib.map_or(String::new(), |mib| format!(" Peak memory {mib} MiB."));
    format!(
        "{} on {}\n{} prompts of {} to {} tokens behind {SHARED} that all share, {} tokens written to each, prompts read on the way\n\n{}\n{same}{memory}\n",
        args.model.display(),
        processor(),
        args.rows,
        args.prompt / 2 + 1,
        args.prompt / 2 + args.prompt,
        args.tokens,
        aligned(&rows)
    )
}
