//! A base of some 100 KB, a dataset of a few rows of unequal length, and settings for both.
#![allow(dead_code, unused_imports, reason = "each test file uses its part")]

#[path = "../../../tests/fixtures/tiny_base.rs"]
mod tiny_base;

use limbeck_artifact::dataset::{
    Dataset, DatasetCard, Example, LabelSource, Message, Recorded, Split, TraceRef, example_id,
};
use limbeck_artifact::event::EventKind;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{DeviceName, ops};
use limbeck_model::gguf::GgmlType;
use limbeck_model::prompt::TrainOn;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_trainer::batch::LossNormalization;
use limbeck_trainer::optimizer::AdamWSettings;
use limbeck_trainer::schedule::{Decay, Scheduler};
use limbeck_trainer::turbo::CacheDtype;
use limbeck_trainer::watch::Metric;
use limbeck_trainer::{HeadKind, TrainPlan, TrainSettings};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub const LABELS: [&str; 3] = ["and", "hello there", "the thing"];

pub struct Bench {
    pub folder: tempfile::TempDir,
    pub decoder: Arc<Decoder>,
    pub tokenizer: Arc<ChatTokenizer>,
    pub dataset: Dataset,
}

pub fn example(i: usize, split: Split) -> Example {
    let label = LABELS[i % 3];
    // Unequal lengths, and a hint at the label.
    let text = format!("{} {i} {}", split.name(), "and so on ".repeat(1 + i % 4) + &label[..2]);
    let messages = vec![Message::new("system", "Say which of the three it is."), Message::new("user", &text)];
    Example {
        id: example_id(&messages, label),
        messages,
        target: label.to_owned(),
        target_tool_calls: Vec::new(),
        label_source: LabelSource::Human,
        weight: if i.is_multiple_of(5) { 0.5 } else { 1.0 },
        group: format!("{}-{i}", split.name()),
        recorded: Recorded::default(),
        trace: TraceRef { id: i.to_string(), file: "traces.jsonl".to_owned(), line: i as u64 + 1 },
        decision: None,
    }
}

/// Where the trainings run: `LIMBECK_TEST_DEVICE`, as in `--device`, or the CPU.
pub fn device() -> DeviceName {
    std::env::var("LIMBECK_TEST_DEVICE").map_or(DeviceName::Cpu, |name| name.parse().unwrap())
}

/// A base as the bench's own, of so many layers and with other weights.
pub fn write_base(path: &Path, layers: u32, seed: u64) {
    tiny_base::write(path, layers, GgmlType::F32, seed);
}

impl Bench {
    pub fn new() -> Bench {
        Bench::with(|_| ())
    }

    /// `change` may spoil the train rows before they are frozen.
    pub fn with(change: impl Fn(&mut Vec<Example>)) -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base.gguf");
        tiny_base::write(&base, 3, GgmlType::F32, 1);
        let mut train: Vec<Example> = (0..21).map(|i| example(i, Split::Train)).collect();
        change(&mut train);
        let valid: Vec<Example> = (0..6).map(|i| example(i, Split::Valid)).collect();
        let card = DatasetCard {
            digest: String::new(),
            labels: LABELS.map(String::from).to_vec(),
            schema: None,
            splits: BTreeMap::new(),
            traces_in: (train.len() + valid.len()) as u64,
            left_out: BTreeMap::new(),
            sources: BTreeMap::new(),
            redactions: BTreeMap::new(),
            curation: Default::default(),
        };
        let dir = folder.path().join("dataset");
        Dataset::write(&dir, card, BTreeMap::from([(Split::Train, train), (Split::Valid, valid)])).unwrap();
        let weights = Weights::open(&base).unwrap();
        let decoder = Arc::new(Decoder::from_weights(&weights, ops(device()).unwrap(), true).unwrap());
        let tokenizer = Arc::new(ChatTokenizer::open(&base).unwrap());
        let dataset = Dataset::load(&dir).unwrap();
        Bench { folder, decoder, tokenizer, dataset }
    }

    pub fn plan(&self, name: &str, settings: &TrainSettings) -> TrainPlan {
        TrainPlan {
            settings: settings.clone(),
            key: "key".to_owned(),
            out: self.folder.path().join(name),
            base_name: "tiny".to_owned(),
            stop_at_step: None,
            distilled: None,
            told: None,
            on_policy: None,
            matched: None,
            rationales: None,
        }
    }
}

pub fn settings() -> TrainSettings {
    TrainSettings {
        seed: 5,
        head: HeadKind::Verbalizer,
        r: 4,
        lora_alpha: 8.0,
        use_rslora: false,
        use_dora: false,
        lora_dropout: 0.0,
        loraplus_lr_ratio: 1.0,
        target_modules: ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"].map(String::from).to_vec(),
        turbo_layers: 0,
        turbo_cache_dtype: CacheDtype::F32,
        train_on: TrainOn::Last,
        loss_normalization: LossNormalization::Token,
        learning_rate: 5e-3,
        lr_scheduler: Scheduler::Linear,
        warmup_ratio: 0.1,
        decay_ratio: 0.2,
        decay_type: Decay::Cosine,
        num_epochs: 3,
        batch_size: 4,
        gradient_accumulation_steps: 1,
        max_grad_norm: 1.0,
        adamw: AdamWSettings::default(),
        max_seq_length: 256,
        save_steps: 2,
        save_total_limit: 2,
        eval_steps: 0,
        early_stopping_patience: 0,
        metric_for_best_model: Metric::Loss,
        load_best_model_at_end: false,
    }
}

/// Everything under a folder: relative path and bytes.
pub fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(dir: &Path, root: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, root, found),
                false => {
                    found.insert(path.strip_prefix(root).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
                }
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

/// A sink that dies at its n-th event, wherever in the training that is: after a step, a look or a checkpoint.
pub fn die_at(n: usize) -> impl Fn(EventKind) + Sync {
    let seen = AtomicUsize::new(0);
    move |_| assert!(seen.fetch_add(1, Ordering::Relaxed) + 1 != n, "killed")
}
