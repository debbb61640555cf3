//! `limbeck bench quantize`: the encoder of each block type in MB of f32 a second, and ggml's own beside it, in turn.

use super::bench::processor;
use crate::bench::args::BenchQuantize;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::cannot;
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::random::SplitMix64;
use limbeck_model::gguf::GgmlType;
use limbeck_quantize::BLOCK_TYPES;
use limbeck_quantize::encode::{encode_into, heeds_importance};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

const SCRIPT: &str = include_str!("../bench/ggml_quantize.py");

/// Of a row: whole superblocks, and SmolLM2's and Qwen2.5-0.5B's down projections have about as many.
const WIDTH: usize = 1536;
/// Timings of which the best counts, on both sides.
const TIMINGS: usize = 3;

/// How much faster than ggml the type is to be; `None` where nothing was promised.
fn bar(ty: GgmlType, weighted: bool) -> Option<f64> {
    match (ty, weighted) {
        (GgmlType::Q4_K | GgmlType::Q6_K, _) => Some(3.0),
        (GgmlType::Q8_0, false) => Some(1.5),
        (GgmlType::Q4_0, false) => Some(1.0),
        _ => None,
    }
}

/// Time of one pass over the values: by the clock, and what the threads had of the processor, a thread's mean. On a machine
/// with other work only the second says what the code does.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Timing {
    wall_s: f64,
    cpu_s: f64,
}

impl Timing {
    const NEVER: Timing = Timing { wall_s: f64::INFINITY, cpu_s: f64::INFINITY };

    fn best(self, other: Timing) -> Timing {
        Timing { wall_s: self.wall_s.min(other.wall_s), cpu_s: self.cpu_s.min(other.cpu_s) }
    }
}

/// One type, with importance or without: MB of f32 a second, the best of all rounds.
#[derive(Serialize)]
struct Row {
    r#type: &'static str,
    importance: bool,
    /// CPU-normalised, as `ratio`, which the bar is about.
    ours_mb_per_s: f64,
    ggml_mb_per_s: Option<f64>,
    /// Ours over ggml's.
    ratio: Option<f64>,
    ratio_by_the_clock: Option<f64>,
    bar: Option<f64>,
    /// Whether both wrote the same bytes.
    identical: Option<bool>,
}

pub fn bench(settings: &Settings, args: &BenchQuantize) -> Result<Exit> {
    let rows = (args.megabytes * 1_000_000 / 4 / WIDTH).max(1);
    let values = noise(rows * WIDTH, args.seed);
    let importance: Vec<f32> = noise(WIDTH, args.seed ^ 1).iter().map(|v| v * v * 1e3).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let scratch = Scratch::new("bench-quantize")?;
    let mut referee = match &args.referee {
        None => None,
        Some(python) => Some(Referee::start(python, scratch.path(), &importance, &values, threads)?),
    };
    let megabytes = values.len() as f64 * 4e-6;
    let mut table = Vec::new();
    for ty in BLOCK_TYPES {
        for weighted in [false, true] {
            if weighted && !heeds_importance(ty) {
                continue;
            }
            output::stderr(&format!("{ty}{}\n", if weighted { " with importance" } else { "" }));
            let mut out = vec![0u8; ty.bytes_for(values.len() as u64).unwrap_or(0) as usize];
            let (mut ours, mut theirs, mut digest) = (Timing::NEVER, Timing::NEVER, None);
            for _ in 0..args.rounds {
                for _ in 0..TIMINGS {
                    let (begun, cpu) = (Instant::now(), cpu_seconds());
                    encode_into(ty, &values, weighted.then_some(&importance[..]), &mut out)?;
                    let wall_s = begun.elapsed().as_secs_f64();
                    let cpu_s =
                        cpu_seconds().zip(cpu).map_or(wall_s, |(after, before)| (after - before) / threads as f64);
                    ours = ours.best(Timing { wall_s, cpu_s });
                }
                if let Some(referee) = &mut referee {
                    let timed = referee.ask(ty, weighted)?;
                    theirs = theirs.best(timed.timing);
                    digest = Some(timed.sha256);
                }
            }
            let compared = digest.is_some();
            table.push(Row {
                r#type: ty.name(),
                importance: weighted,
                ours_mb_per_s: megabytes / ours.cpu_s,
                ggml_mb_per_s: compared.then(|| megabytes / theirs.cpu_s),
                ratio: compared.then(|| theirs.cpu_s / ours.cpu_s),
                ratio_by_the_clock: compared.then(|| theirs.wall_s / ours.wall_s),
                bar: bar(ty, weighted),
                identical: digest.map(|digest| digest == sha256_hex(&out)),
            });
        }
    }
    let version = referee.as_ref().map(|referee| referee.version.clone());
    if settings.json {
        let processor = processor();
        output::json(&json!({
            "processor": processor, "threads": threads, "megabytes": megabytes, "referee": version, "rows": table,
        }))?;
    } else {
        output::stdout(&text(&table, megabytes, threads, version.as_deref()))?;
    }
    Ok(Exit::Ok)
}

fn text(table: &[Row], megabytes: f64, threads: usize, version: Option<&str>) -> String {
    let beside = version.map_or(String::new(), |version| format!(", ggml of {version} in turn"));
    let mut out = format!(
        "{}\n{megabytes:.0} MB of f32 in rows of {WIDTH}, {threads} threads; MB/s by processor time, the best of all rounds{beside}\n\n",
        processor()
    );
    out += "type    importance    ours    ggml   ratio     bar  by the clock  bytes\n";
    for row in table {
        let number = |v: Option<f64>, digits: usize| v.map_or("-".to_owned(), |v| format!("{v:.digits$}"));
        let verdict = match row.identical {
            None => "-",
            Some(true) => "identical",
            Some(false) => "DIFFERENT",
        };
        let missed = matches!((row.ratio, row.bar), (Some(ratio), Some(bar)) if ratio < bar);
        out += &format!(
            "{:<8}{:<12}{:>6.0}{:>8}{:>8}{:>8}{:>14}  {verdict}{}\n",
            row.r#type,
            if row.importance { "yes" } else { "no" },
            row.ours_mb_per_s,
            number(row.ggml_mb_per_s, 0),
            number(row.ratio, 2),
            number(row.bar, 1),
            number(row.ratio_by_the_clock, 2),
            if missed { ", below its bar" } else { "" },
        );
    }
    out
}

/// Sums of four uniform numbers about zero, some of the size of a layer's weights.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix64::new(seed);
    let mut values = Vec::with_capacity(n);
    for _ in 0..n {
        let z = random.next_u64();
        let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
        values.push((sum as f32 - 131_070.0) * 2f32.powi(-20));
    }
    values
}

/// What this process had of the processor, all threads together, by the scheduler's own count; Linux only.
fn cpu_seconds() -> Option<f64> {
    let of_thread = |entry: std::io::Result<std::fs::DirEntry>| -> Option<f64> {
        let text = std::fs::read_to_string(entry.ok()?.path().join("schedstat")).ok()?;
        Some(text.split(' ').next()?.parse::<f64>().ok()? * 1e-9)
    };
    std::fs::read_dir("/proc/self/task").ok()?.map(of_thread).sum()
}

#[derive(Deserialize)]
struct Timed {
    #[serde(flatten)]
    timing: Timing,
    sha256: String,
}

#[derive(Deserialize)]
struct Greeting {
    version: String,
}

/// A Python process that answers for ggml.
struct Referee {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: String,
}

impl Referee {
    fn start(python: &Path, dir: &Path, importance: &[f32], values: &[f32], threads: usize) -> Result<Referee> {
        let (script, floats) = (dir.join("ggml_quantize.py"), dir.join("floats.bin"));
        std::fs::write(&script, SCRIPT).map_err(|e| cannot("write", &script, &e))?;
        let bytes: Vec<u8> = importance.iter().chain(values).flat_map(|v| v.to_le_bytes()).collect();
        std::fs::write(&floats, bytes).map_err(|e| cannot("write", &floats, &e))?;
        let mut command = Command::new(python);
        command.arg(&script).arg(&floats).args([WIDTH.to_string(), threads.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(|e| {
            Failure::new(Exit::Usage, format!("failed to start {}: {e}", python.display()))
                .help("--referee names a Python with xllamacpp and numpy: pip install xllamacpp numpy")
        })?;
        let (Some(asks), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(Failure::new(Exit::Unexpected, "the referee has no pipes"));
        };
        let mut referee = Referee { child, asks, answers: BufReader::new(answers), version: String::new() };
        let greeting: Greeting = serde_json::from_str(&referee.line()?)?;
        referee.version = greeting.version;
        Ok(referee)
    }

    fn ask(&mut self, ty: GgmlType, weighted: bool) -> Result<Timed> {
        writeln!(self.asks, "{} {}", ty.id(), u8::from(weighted))?;
        self.asks.flush()?;
        Ok(serde_json::from_str(&self.line()?)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.answers.read_line(&mut line)? == 0 {
            return Err(Failure::new(
                Exit::Unexpected,
                "the referee ended without an answer; what it said stands above",
            )
            .help("--referee names a Python with xllamacpp and numpy: pip install xllamacpp numpy"));
        }
        Ok(line)
    }
}

impl Drop for Referee {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
