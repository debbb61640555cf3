//! `limbeck bench curate`: each stage of curation on logs of several lengths, and datatrove beside it.

use super::bench::processor;
use crate::bench::args::BenchCurate;
use crate::bench::curate::{CurateStage, PeerFigures, Recall, StageFigures, THRESHOLD, recall};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::scratch::Scratch;
use crate::settings::Settings;
use crate::stages::cannot;
use limbeck_tui::progress::count;
use serde::Serialize;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

const SCRIPT: &str = include_str!("../bench/datatrove_minhash.py");

/// What a million traces may take on two cores, and the recall of planted pairs.
const SECONDS_PER_MILLION: f64 = 180.0;
const PEAK_MIB: u64 = 4096;
const RECALL: f64 = 0.95;

#[derive(Serialize)]
struct Length {
    traces: u64,
    stages: Vec<StageFigures>,
    recall: Recall,
}

impl Length {
    /// What a team runs: from the log to the frozen dataset.
    fn made(&self) -> impl Iterator<Item = &StageFigures> {
        self.stages.iter().filter(|s| !matches!(s.stage, CurateStage::Generate | CurateStage::Export))
    }

    fn seconds(&self) -> f64 {
        self.made().map(|s| s.seconds).sum()
    }

    fn cpu_seconds(&self) -> f64 {
        self.made().filter_map(|s| s.cpu_seconds).sum()
    }

    fn peak_mib(&self) -> u64 {
        self.made().filter_map(|s| s.peak_rss_mib).max().unwrap_or(0)
    }
}

pub fn bench(settings: &Settings, args: &BenchCurate) -> Result<Exit> {
    let mut counts = args.count.clone();
    counts.sort_unstable();
    counts.dedup();
    let mut lengths = Vec::new();
    let mut peer = None;
    for traces in counts {
        let place = Place::new(args.dir.as_deref(), traces)?;
        let stages = [CurateStage::Generate, CurateStage::Import, CurateStage::Curate, CurateStage::Freeze];
        let mut figures = Vec::new();
        for stage in stages {
            output::stderr(&format!("{} traces: {}", count(traces), stage.name()));
            let done = run(args, stage, place.path(), traces)?;
            output::stderr(&format!(", {:.1} s\n", done.seconds));
            figures.push(done);
        }
        let length = Length { traces, stages: figures, recall: recall(place.path())? };
        if let (Some(python), None) = (&args.datatrove, &peer) {
            run(args, CurateStage::Export, place.path(), traces)?;
            output::stderr(&format!("{} traces: datatrove", count(traces)));
            let figures = datatrove(python, place.path())?;
            output::stderr(&format!(", {:.1} s\n", figures.seconds.values().sum::<f64>()));
            peer = Some(figures);
        }
        lengths.push(length);
    }
    if settings.json {
        output::json(&json!({"processor": processor(), "threads": args.threads, "lengths": lengths, "peer": peer}))?;
    } else {
        output::stdout(&table(args, &lengths, peer.as_ref()))?;
    }
    Ok(Exit::Ok)
}

/// A folder for one length; gone when the length is done.
struct Place(Option<Scratch>, PathBuf);

impl Place {
    fn new(dir: Option<&Path>, traces: u64) -> Result<Place> {
        let Some(dir) = dir else {
            let scratch = Scratch::new(&format!("bench-{traces}"))?;
            let path = scratch.path().to_path_buf();
            return Ok(Place(Some(scratch), path));
        };
        let path = dir.join(format!("limbeck-bench-{traces}-{}", std::process::id()));
        std::fs::create_dir_all(&path).map_err(|e| cannot("create", &path, &e))?;
        Ok(Place(None, path))
    }

    fn path(&self) -> &Path {
        &self.1
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.is_none() {
            let _ = std::fs::remove_dir_all(&self.1);
        }
    }
}

fn run(args: &BenchCurate, stage: CurateStage, dir: &Path, traces: u64) -> Result<StageFigures> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench-ours", "curate", "--stage", stage.name(), "--dir"]).arg(dir);
    command.args(["--count", &traces.to_string(), "--seed", &args.seed.to_string()]);
    // Two pools are at work: ours, and that of the tables.
    let threads = args.threads.to_string();
    command.env("RAYON_NUM_THREADS", &threads).env("POLARS_MAX_THREADS", &threads);
    answer(command, stage.name())
}

fn datatrove(python: &Path, dir: &Path) -> Result<PeerFigures> {
    let script = dir.join("datatrove_minhash.py");
    std::fs::write(&script, SCRIPT).map_err(|e| cannot("write", &script, &e))?;
    let mut command = Command::new(python);
    command.arg(&script).arg("--dir").arg(dir).arg("--work").arg(dir.join("datatrove"));
    answer(command, "datatrove")
        .map_err(|f| f.help("it needs a Python with: pip install datatrove orjson spacy 'xxhash<4'"))
}

fn answer<T: serde::de::DeserializeOwned>(mut command: Command, what: &str) -> Result<T> {
    let out = command.output().map_err(|e| Failure::new(Exit::Usage, format!("failed to start {what}: {e}")))?;
    let said = String::from_utf8_lossy(&out.stdout);
    let last = said.lines().rev().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(last).map_err(|_| {
        let talk = String::from_utf8_lossy(&out.stderr);
        let lines: Vec<&str> = talk.lines().filter(|l| !l.trim().is_empty()).collect();
        let tail = lines[lines.len().saturating_sub(8)..].join("\n");
        Failure::new(Exit::Unexpected, format!("{what} failed ({}):\n{tail}", out.status))
    })
}

fn table(args: &BenchCurate, lengths: &[Length], peer: Option<&PeerFigures>) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let mut text = format!("limbeck {version} on {}, {} threads\n\n", processor(), args.threads);
    let header = ["traces", "stage", "seconds", "CPU-s", "peak MiB"];
    text.push_str(&format!(
        "{:>10}  {:<9} {:>8} {:>8} {:>10}  made\n",
        header[0], header[1], header[2], header[3], header[4]
    ));
    for length in lengths {
        for (i, s) in length.stages.iter().enumerate() {
            let traces = if i == 0 { count(length.traces) } else { String::new() };
            let peak = s.peak_rss_mib.map_or("-".to_owned(), |p| p.to_string());
            let (name, seconds, cpu) = (s.stage.name(), s.seconds, s.cpu_seconds.unwrap_or(f64::NAN));
            text.push_str(&format!("{traces:>10}  {name:<9} {seconds:>8.1} {cpu:>8.1} {peak:>10}  {}\n", s.made));
        }
        let (seconds, peak) = (length.seconds(), length.peak_mib());
        let wanted = SECONDS_PER_MILLION * length.traces as f64 / 1e6;
        let per = seconds * 1e6 / length.traces as f64;
        text.push_str(&format!(
            "{:>10}  {:<9} {seconds:>8.1} {:>8.1} {peak:>10}  import to freeze, {per:.1} s a million; bar {wanted:.0} s {}, {PEAK_MIB} MiB {}\n",
            "",
            "all",
            length.cpu_seconds(),
            met(seconds <= wanted),
            met(peak <= PEAK_MIB),
        ));
        let Recall { pairs, found } = length.recall;
        let share = found as f64 / pairs.max(1) as f64;
        text.push_str(&format!(
            "{:>10}  planted pairs at Jaccard >= {THRESHOLD}: {found} of {pairs} found, {:.2} %; bar {:.0} % {}\n",
            "",
            share * 100.0,
            RECALL * 100.0,
            met(share >= RECALL)
        ));
    }
    if let (Some(peer), Some(ours)) = (peer, lengths.first()) {
        text.push_str(&beside(peer, ours));
    }
    text
}

fn met(is: bool) -> &'static str {
    if is { "met" } else { "missed" }
}

fn beside(peer: &PeerFigures, ours: &Length) -> String {
    let seconds: f64 = peer.seconds.values().sum();
    let parts: Vec<String> = peer.seconds.iter().map(|(name, s)| format!("{name} {s:.1}")).collect();
    let curate = ours.stages.iter().find(|s| s.stage == CurateStage::Curate);
    let (wall, cpu) = curate.map_or((0.0, 0.0), |s| (s.seconds, s.cpu_seconds.unwrap_or(f64::NAN)));
    format!(
        "\nBeside datatrove {} (word 5-grams, 14 buckets of 8) on the {} messages of the shortest log, two workers:\n  \
         datatrove   {seconds:.1} s ({}), {:.1} CPU-s, peak {} MiB a process, {} of {} pairs found, {:.2} %\n  \
         ours        {wall:.1} s, {cpu:.1} CPU-s for the whole stage curate, with exact duplicates, verification, splits and leaks\n  \
         ratio       {:.1} times as fast, {:.1} by processor time\n",
        peer.version,
        count(peer.rows),
        parts.join(", "),
        peer.cpu_seconds,
        peer.peak_rss_mib,
        peer.found,
        peer.pairs,
        peer.found as f64 * 100.0 / peer.pairs.max(1) as f64,
        seconds / wall.max(1e-9),
        peer.cpu_seconds / cpu.max(1e-9),
    )
}
