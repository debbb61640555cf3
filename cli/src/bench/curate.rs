//! Curation of a made-up log of any length, each stage in a process of its own, so that its time and its peak of memory
//! are its own; and datatrove's MinHash over the same messages.

use crate::exit::{Exit, Failure, Result};
use crate::memory::peak_rss_bytes;
use crate::stages::cannot;
use limbeck_artifact::event::Silent;
use limbeck_artifact::files::AtomicFile;
use limbeck_data_curation::curate::{LeftOut, each_message};
use limbeck_data_curation::import::MAX_LINE_BYTES;
use limbeck_data_curation::redact::RedactOptions;
use limbeck_data_curation::review::{FreezePlan, Frozen, freeze};
use limbeck_data_curation::simulate::bulk::{BulkPlan, Pair, bulk, labels};
use limbeck_data_curation::{Answers, CurateOptions, CuratePlan, Fractions, ImportPlan, NamedFile, curate, import};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::time::Instant;

/// Similarity from which a planted pair must be found; what the recipe's default is, too.
pub const THRESHOLD: f64 = 0.8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CurateStage {
    Generate,
    Import,
    Curate,
    Freeze,
    /// The messages, for the peer.
    Export,
}

impl CurateStage {
    pub fn name(self) -> &'static str {
        match self {
            CurateStage::Generate => "generate",
            CurateStage::Import => "import",
            CurateStage::Curate => "curate",
            CurateStage::Freeze => "freeze",
            CurateStage::Export => "export",
        }
    }
}

/// One stage of one length.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StageFigures {
    pub stage: CurateStage,
    pub seconds: f64,
    /// Processor time of all threads: what another user of the machine changes least.
    pub cpu_seconds: Option<f64>,
    pub peak_rss_mib: Option<u64>,
    /// What it left behind, in a few words.
    pub made: String,
}

/// How many planted pairs ended in one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recall {
    pub pairs: u64,
    pub found: u64,
}

/// The peer's line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerFigures {
    pub version: String,
    pub rows: u64,
    pub seconds: BTreeMap<String, f64>,
    pub pairs: u64,
    pub found: u64,
    pub cpu_seconds: f64,
    pub peak_rss_mib: u64,
}

/// Runs one stage in `dir`.
///
/// # Errors
/// Those of the stage.
pub fn stage(stage: CurateStage, dir: &Path, count: u64, seed: u64) -> Result<StageFigures> {
    let begun = Instant::now();
    let named = |name: &str| vec![NamedFile { name: name.to_owned(), path: dir.join(name) }];
    let made = match stage {
        CurateStage::Generate => generate(dir, count, seed)?,
        CurateStage::Import => {
            let plan = ImportPlan {
                traces: named("traces.jsonl"),
                redact: true,
                redaction: RedactOptions::default(),
                max_line_bytes: MAX_LINE_BYTES,
                out: dir.join("import"),
            };
            let summary = import(&plan, &Silent)?;
            let redacted: u64 = summary.redactions.values().sum();
            format!("{} traces, {redacted} values redacted", summary.accepted)
        }
        CurateStage::Curate => {
            let plan = CuratePlan {
                imported: dir.join("import"),
                answers: Answers::Labels(labels()),
                min_chars: 1,
                max_chars: 8000,
                near_dup_threshold: THRESHOLD,
                split: Fractions { valid: 0.1, calibration: 0.15, test: 0.3 },
                seed,
                options: CurateOptions::default(),
                out: dir.join("curate"),
            };
            curate(&plan, &Silent)?.account()
        }
        CurateStage::Freeze => {
            let plan = FreezePlan {
                imported: dir.join("import"),
                curated: dir.join("curate"),
                decisions: named("decisions.jsonl"),
                system: None,
                reviewers_per_item: 1,
                min_reviewed: BTreeMap::new(),
                unreviewed_weight: 0.25,
                seed: 17,
                max_label_error: 0.05,
                redacted: true,
                out: dir.join("dataset"),
                left_out: dir.join("review/left_out.jsonl"),
            };
            match freeze(&plan, &Silent)? {
                Frozen::Done(card) => {
                    let rows: u64 = card.splits.values().map(|s| s.rows).sum();
                    format!("{rows} rows, dataset {}", &card.digest[..12])
                }
                Frozen::Incomplete { .. } => return Err(Failure::new(Exit::Unexpected, "nothing was frozen")),
            }
        }
        CurateStage::Export => export(dir)?,
    };
    let seconds = begun.elapsed().as_secs_f64();
    // The process did nothing else.
    let cpu_seconds = super::ours::cpu_seconds();
    Ok(StageFigures { stage, seconds, cpu_seconds, peak_rss_mib: peak_rss_bytes().map(|b| b >> 20), made })
}

fn generate(dir: &Path, count: u64, seed: u64) -> Result<String> {
    let file = |name: &str| {
        let path = dir.join(name);
        AtomicFile::create(&path).map_err(|e| cannot("write", &path, &e))
    };
    let (mut traces, mut pairs, mut decisions) =
        (file("traces.jsonl")?, file("pairs.jsonl")?, file("decisions.jsonl")?);
    let planted = bulk(&BulkPlan { count, seed }, &mut traces, &mut pairs, &mut decisions)?;
    for file in [traces, pairs, decisions] {
        file.commit()?;
    }
    Ok(format!("{:.2} GB, {} pairs, {} copies", planted.bytes as f64 / 1e9, planted.pairs, planted.exact_copies))
}

/// The redacted messages, as the peer reads them.
fn export(dir: &Path) -> Result<String> {
    let path = dir.join("messages.jsonl");
    let mut file = AtomicFile::create(&path).map_err(|e| cannot("write", &path, &e))?;
    let mut n = 0;
    each_message(&dir.join("import"), |id, message| {
        n += 1;
        writeln!(file, "{}", serde_json::json!({"id": id, "text": message}))
    })?;
    file.commit()?;
    Ok(format!("{n} messages"))
}

/// Of the planted pairs at or above [`THRESHOLD`], how many curation put together.
///
/// # Errors
/// When a file of the stages can't be read.
pub fn recall(dir: &Path) -> Result<Recall> {
    let mut like: HashMap<String, String> = HashMap::new();
    for line in lines(&dir.join("curate/left_out.jsonl"))? {
        let left: LeftOut = serde_json::from_str(&line?)?;
        if let (true, Some(twin)) = (left.reason.ends_with("_duplicate"), left.like) {
            like.insert(left.trace.id, twin);
        }
    }
    let root = |id: &str| {
        let mut at = id.to_owned();
        while let Some(next) = like.get(&at) {
            at.clone_from(next);
        }
        at
    };
    let mut recall = Recall::default();
    for line in lines(&dir.join("pairs.jsonl"))? {
        let pair: Pair = serde_json::from_str(&line?)?;
        if pair.jaccard >= THRESHOLD {
            recall.pairs += 1;
            recall.found += u64::from(root(&pair.a) == root(&pair.b));
        }
    }
    Ok(recall)
}

fn lines(path: &Path) -> Result<impl Iterator<Item = std::io::Result<String>>> {
    Ok(BufReader::new(std::fs::File::open(path).map_err(|e| cannot("open", path, &e))?).lines())
}
