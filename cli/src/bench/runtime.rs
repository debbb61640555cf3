//! How fast a model file is computed: prompts read and tokens written one at a time, beside llama.cpp in turn on the same
//! file, prompts and threads.

use super::args::BenchRuntime;
use super::ours::median;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::cannot;
use crate::verbs::bench::processor;
use limbeck_data_curation::text::Rng;
use limbeck_model::arithmetic::{self, Arithmetic};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::DeviceName;
use limbeck_model::generate::{Asked, Batch, Ends, continuations};
use limbeck_model::sequence::Sequence;
use limbeck_model::weights::Weights;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const SCRIPT: &str = include_str!("llamacpp_runtime.py");

/// Tokens a second of one reading and one writing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Speed {
    prompt_tokens_per_s: f64,
    written_tokens_per_s: f64,
}

/// A file's figures: the medians of the rounds, and every round.
#[derive(Debug, Serialize)]
struct Row {
    model: String,
    arithmetic: Arithmetic,
    matrices_mib: f64,
    ours: Speed,
    peer: Option<Speed>,
    /// Ours over the peer's: the median of the rounds' ratios, in each of which both sides came in turn.
    prompt_ratio: Option<f64>,
    written_ratio: Option<f64>,
    rounds: Vec<(Speed, Option<Speed>)>,
}

pub fn bench(settings: &Settings, args: &BenchRuntime) -> Result<Exit> {
    let device: DeviceName = settings.device.as_deref().unwrap_or("cpu").parse()?;
    let scratch = Scratch::new("bench-runtime")?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut rows, mut about) = (Vec::new(), None);
    for model in &args.model {
        let weights = Weights::open(model)?;
        let (decoder, arithmetic) = arithmetic::open(&weights, device, args.arithmetic.into())?;
        let mut peer = match &args.peer {
            None => None,
            Some(python) => Some(Peer::start(python, scratch.path(), model, threads)?),
        };
        let mut rng = Rng::new(17);
        let prompt: Vec<u32> = (0..args.prompt).map(|_| rng.below(decoder.config.vocab_size) as u32).collect();
        let mut rounds = Vec::new();
        for round in 0..=args.rounds {
            let ours = speed(&decoder, &prompt, args.tokens)?;
            let theirs = peer.as_mut().map(|peer| peer.speed(&prompt, args.tokens)).transpose()?;
            // The first round warms up.
            if round > 0 {
                output::stderr(&format!("{}: round {round} of {}\n", model.display(), args.rounds));
                rounds.push((ours, theirs));
            }
        }
        about = peer.as_ref().map(|peer| peer.about.clone()).or(about);
        rows.push(row(model, &decoder, arithmetic, rounds));
    }
    if settings.json {
        output::json(&json!({
            "processor": processor(), "threads": threads, "prompt": args.prompt, "tokens": args.tokens, "peer": about,
            "rows": rows,
        }))?;
    } else {
        output::stdout(&text(args, threads, &rows, about.as_ref()))?;
    }
    Ok(Exit::Ok)
}

fn row(model: &Path, decoder: &Decoder, arithmetic: Arithmetic, rounds: Vec<(Speed, Option<Speed>)>) -> Row {
    let middle = |speeds: &[Speed]| {
        let of = |f: fn(&Speed) -> f64| median(&speeds.iter().map(f).collect::<Vec<f64>>());
        Speed {
            prompt_tokens_per_s: of(|s| s.prompt_tokens_per_s),
            written_tokens_per_s: of(|s| s.written_tokens_per_s),
        }
    };
    let ours: Vec<Speed> = rounds.iter().map(|round| round.0).collect();
    let pairs: Vec<(Speed, Speed)> = rounds.iter().filter_map(|(ours, peer)| Some((*ours, (*peer)?))).collect();
    let ratio = |f: fn(&Speed) -> f64| {
        let ratios: Vec<f64> = pairs.iter().map(|(ours, peer)| f(ours) / f(peer)).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    };
    let bytes: u64 = decoder.base_bytes().iter().sum();
    Row {
        model: crate::base::name_of(model),
        arithmetic,
        matrices_mib: bytes as f64 / f64::from(1 << 20),
        ours: middle(&ours),
        peer: (!pairs.is_empty()).then(|| middle(&pairs.iter().map(|pair| pair.1).collect::<Vec<Speed>>())),
        prompt_ratio: ratio(|s| s.prompt_tokens_per_s),
        written_ratio: ratio(|s| s.written_tokens_per_s),
        rounds,
    }
}

/// A prompt read, up to the first token that is written, and the tokens behind it.
fn speed(decoder: &Decoder, prompt: &[u32], tokens: usize) -> Result<Speed> {
    let begun = Instant::now();
    let times = RefCell::new(Vec::with_capacity(tokens + 1));
    let goes_on = |_: usize, _: &[u32]| {
        times.borrow_mut().push(begun.elapsed().as_secs_f64());
        true
    };
    let ends = Ends { stop: &[], within: None, goes_on: &goes_on, done: &mut |_| () };
    let asked = [Asked::greedy(prompt, tokens + 1)];
    // The last token is not asked about.
    continuations(decoder, None, &Sequence::default(), &asked, Batch::default(), ends)?;
    let times = times.into_inner();
    let (Some(first), Some(last)) = (times.first(), times.last()) else {
        return Err(Failure::new(Exit::Unexpected, "the model wrote nothing"));
    };
    Ok(Speed {
        prompt_tokens_per_s: prompt.len() as f64 / first,
        written_tokens_per_s: (times.len() - 1) as f64 / (last - first),
    })
}

fn text(args: &BenchRuntime, threads: usize, rows: &[Row], about: Option<&About>) -> String {
    let mut out = format!(
        "{}\n{} tokens read, {} written, {threads} threads, {} rounds; tokens a second, medians\n",
        processor(),
        args.prompt,
        args.tokens,
        args.rounds
    );
    if let Some(about) = about {
        out += &format!("beside llama.cpp of {} in turn ({})\n", about.version, about.system.trim());
    }
    for row in rows {
        out += &format!("\n{}: arithmetic {}, matrices {:.1} MiB\n", row.model, row.arithmetic, row.matrices_mib);
        out += "               ours   llama.cpp   ratio\n";
        let line = |what: &str, f: fn(&Speed) -> f64, ratio: Option<f64>| {
            let number = |v: Option<f64>, digits: usize| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
            format!(
                "{what:<9}{:>10.1}{:>12}{:>8}\n",
                f(&row.ours),
                number(row.peer.as_ref().map(f), 1),
                number(ratio, 2)
            )
        };
        out += &line("read", |s| s.prompt_tokens_per_s, row.prompt_ratio);
        out += &line("written", |s| s.written_tokens_per_s, row.written_ratio);
    }
    out
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct About {
    version: String,
    system: String,
}

/// A Python process in which llama.cpp runs.
struct Peer {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    about: About,
}

impl Peer {
    fn start(python: &Path, dir: &Path, model: &Path, threads: usize) -> Result<Peer> {
        let script = dir.join("llamacpp_runtime.py");
        std::fs::write(&script, SCRIPT).map_err(|e| cannot("write", &script, &e))?;
        let mut command = Command::new(python);
        command.arg(&script).arg(model).arg(threads.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| {
            Failure::new(Exit::Usage, format!("failed to start {}: {e}", python.display()))
                .help("--peer names a Python with xllamacpp: pip install xllamacpp")
        })?;
        let (Some(asks), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new(Exit::Unexpected, "the peer has no pipes"));
        };
        let about = About { version: String::new(), system: String::new() };
        let mut peer = Peer { child, asks, answers: BufReader::new(answers), about };
        peer.about = serde_json::from_str(&peer.line()?)?;
        Ok(peer)
    }

    fn speed(&mut self, prompt: &[u32], tokens: usize) -> Result<Speed> {
        writeln!(self.asks, "{}", json!({"prompt": prompt, "tokens": tokens}))?;
        self.asks.flush()?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(Failure::new(Exit::Unexpected, "llama.cpp ended without an answer; what it said stands above")
                .help("--peer names a Python with xllamacpp: pip install xllamacpp"));
        }
        Ok(line)
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
