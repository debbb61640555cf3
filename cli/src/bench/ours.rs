//! Our side of a comparison, run in a process of its own so that memory and processor time are its own: training steps of
//! one shape, and a whole fine-tuning with the trainer's own loop.

use super::args::{OursFinetune, OursModel, OursStep};
use super::banking::{Row, Rows};
use super::{FinetuneFigures, RANK, StepFigures, THREADS, Tuned};
use crate::exit::{Exit, Failure, Result};
use crate::memory::peak_rss_bytes;
use crate::scratch::Scratch;
use limbeck_artifact::dataset::{
    Dataset, DatasetCard, Example, LabelSource, Message, Recorded, Split, TraceRef, example_id,
};
use limbeck_artifact::event::Silent;
use limbeck_model::adapter::{Adapter, AdapterConfig};
use limbeck_model::decoder::Decoder;
use limbeck_model::device;
use limbeck_model::prompt::{EncodedExample, TrainOn, encode_completion, encode_prompt};
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_trainer::batch::{LossNormalization, TrainRow};
use limbeck_trainer::learner::Learner;
use limbeck_trainer::optimizer::AdamWSettings;
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::random::Random;
use limbeck_trainer::resident::Held;
use limbeck_trainer::schedule::{Decay, Scheduler};
use limbeck_trainer::watch::Metric;
use limbeck_trainer::{Base, HeadKind, TrainPlan, TrainSettings, train, turbo};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

fn open(model: &OursModel, device: Option<&str>) -> Result<Decoder> {
    let ops = device::training_ops(device.unwrap_or("cpu").parse()?, model.dtype())?;
    let decoder = Decoder::from_weights_quantized(&Weights::open(&model.model)?, ops, true, model.quantize_base())?;
    Ok(decoder.with_checkpointing(model.gradient_checkpointing))
}

/// As the peer's scripts train, before what differs between them.
pub(super) fn settings() -> TrainSettings {
    TrainSettings {
        seed: 0,
        head: HeadKind::Verbalizer,
        r: RANK,
        lora_alpha: 2.0 * RANK as f32,
        use_rslora: false,
        use_dora: false,
        lora_dropout: 0.0,
        loraplus_lr_ratio: 1.0,
        target_modules: Vec::new(),
        turbo_layers: 0,
        turbo_cache_dtype: turbo::CacheDtype::F32,
        train_on: TrainOn::Last,
        loss_normalization: LossNormalization::Token,
        learning_rate: 2e-4,
        lr_scheduler: Scheduler::Constant,
        warmup_ratio: 0.0,
        decay_ratio: 0.0,
        decay_type: Decay::Linear,
        num_epochs: 1,
        batch_size: 8,
        gradient_accumulation_steps: 1,
        max_grad_norm: 0.0,
        // PyTorch's default, which peer_step.py leaves as it is.
        adamw: AdamWSettings { weight_decay: 0.01, ..AdamWSettings::default() },
        max_seq_length: 8192,
        save_steps: u64::MAX,
        save_total_limit: 1,
        eval_steps: 0,
        early_stopping_patience: 0,
        metric_for_best_model: Metric::Loss,
        load_best_model_at_end: false,
    }
}

/// All linear layers, by their short names.
pub(super) fn all_linear(decoder: &Decoder) -> Vec<String> {
    decoder.config.linears().iter().map(|m| m.rsplit('.').next().unwrap_or(m).to_owned()).collect()
}

/// Steps of one shape on made-up tokens: forward, loss on every position that has a next token, backward, AdamW. The last
/// token of a row predicts nothing; the trainer does not compute on it, the peer does.
///
/// # Errors
/// When the model can't be read or the loss is not finite.
pub fn step(args: &OursStep, device: Option<&str>) -> Result<StepFigures> {
    let decoder = Arc::new(open(&args.model, device)?);
    let s = TrainSettings { batch_size: args.bs, target_modules: all_linear(&decoder), ..settings() };
    let vocabulary = decoder.config.vocab_size.min(49_000);
    let mut random = Random::new(s.seed, "bench tokens");
    let rows: Vec<TrainRow> = (0..args.bs)
        .map(|i| {
            let ids: Vec<u32> = (0..args.seq).map(|_| random.below(vocabulary) as u32).collect();
            let encoded = EncodedExample { mask: vec![true; ids.len()], ids };
            TrainRow::new(i.to_string(), encoded, 1.0)
        })
        .collect();
    let config = AdapterConfig::lora("base", s.r, s.lora_alpha, &s.target_modules, s.use_rslora);
    let mut parameters = Parameters::init(config, &decoder, s.seed);
    let learner = Learner::new(Base::Frozen(&decoder), &s, &rows);
    let mut held = Held::of(learner.base, &parameters);
    let chosen: Vec<usize> = (0..rows.len()).collect();
    let (mut wall, mut busy, mut loss) = (Vec::new(), Vec::new(), f64::NAN);
    for step in 0..args.warmup + args.steps {
        let (begun, cpu) = (Instant::now(), cpu_seconds());
        let gradients = learner.gradients_at(&held.leaves(learner.base, &parameters), &chosen, step)?;
        held.update(&mut parameters, &gradients, &s, s.learning_rate, step + 1);
        if step >= args.warmup {
            wall.push(begun.elapsed().as_secs_f64());
            busy.extend(cpu_seconds().zip(cpu).map(|(after, before)| after - before));
        }
        loss = gradients.loss;
        if !loss.is_finite() {
            return Err(Failure::new(Exit::Unexpected, format!("the loss of step {step} is {loss}")));
        }
    }
    let tokens = (args.bs * args.seq) as f64;
    let c = &decoder.config;
    let [layers, embedding] = decoder.base_bytes();
    let mib = |bytes: u64| (bytes as f64 / f64::from(1 << 20) * 10.0).round() / 10.0;
    Ok(StepFigures {
        dtype: decoder.ops().compute().to_owned(),
        bs: args.bs,
        seq: args.seq,
        tokens_per_s_median: tokens / median(&wall),
        tokens_per_s_best: tokens / wall.iter().copied().fold(f64::INFINITY, f64::min),
        tokens_per_s_cpu_normalised: (!busy.is_empty()).then(|| tokens / (median(&busy) / THREADS as f64)),
        peak_rss_mib: peak_rss_bytes().map(|bytes| bytes >> 20),
        torch: None,
        linear_flops: 2.0 * decoder.parameters() as f64,
        // Scores and their mix of the values, each 2 × width, over the half of the row that a position sees on average.
        attention_flops: 2.0 * (args.seq * c.num_attention_heads * c.head_dim * c.num_hidden_layers) as f64,
        loss: Some(loss),
        quantize_base: Some(decoder.quantized()),
        layers_mib: Some(mib(layers)),
        embedding_mib: Some(mib(embedding)),
    })
}

/// The fine-tuning of peer_finetune.py with the trainer's loop, then the accuracy on the test rows.
///
/// # Errors
/// When the rows or the model can't be read, the prompts are not the peer's, or the training fails.
pub fn finetune(args: &OursFinetune, device: Option<&str>) -> Result<FinetuneFigures> {
    let decoder = Arc::new(open(&args.model, device)?);
    let tokenizer = Arc::new(ChatTokenizer::open(&args.model.model)?);
    let scratch = Scratch::new("bench-ours")?;
    let rows = Rows::read(&args.data)?;
    let labels = rows.labels();
    let dataset = freeze(&rows, &labels, &system(&labels), scratch.path())?;
    same_prompt(&tokenizer, dataset.rows(Split::Train))?;
    let steps = dataset.rows(Split::Train).len().div_ceil(args.bs) as u64 * args.epochs;
    let warmup = (steps / 20).max(1);
    let settings = TrainSettings {
        learning_rate: args.lr,
        lr_scheduler: Scheduler::Cosine,
        // Rounded up to steps; the half keeps rounding errors from making it one more.
        warmup_ratio: (warmup as f64 - 0.5) / steps.max(1) as f64,
        num_epochs: args.epochs,
        batch_size: args.bs,
        max_grad_norm: 1.0,
        adamw: AdamWSettings::default(),
        target_modules: all_linear(&decoder),
        ..settings()
    };
    let plan = TrainPlan {
        settings,
        key: "bench".to_owned(),
        out: scratch.path().join("train"),
        base_name: "base".to_owned(),
        stop_at_step: None,
        distilled: None,
        told: None,
        on_policy: None,
        matched: None,
        rationales: None,
    };
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let report = train(&plan, &decoder, &tokenizer, &dataset, &Silent)?;
    let wall_s = begun.elapsed().as_secs_f64();
    let busy = cpu_seconds().zip(cpu).map(|(after, before)| after - before);
    let peak_rss_mib = peak_rss_bytes().map(|bytes| bytes >> 20);

    let mut tokens = 0;
    for e in dataset.rows(Split::Train) {
        tokens += encode_prompt(&tokenizer, &e.messages)?.len() + encode_completion(&tokenizer, &e.target)?.len();
    }
    let tokens = tokens as f64 * args.epochs as f64;
    let adapter = Adapter::load(&plan.out.join("adapter"))?;
    Ok(FinetuneFigures {
        dtype: decoder.ops().compute().to_owned(),
        classes: labels.len(),
        train: rows.train.len(),
        steps: report.steps,
        wall_s,
        tokens_per_s: tokens / wall_s,
        tokens_per_s_cpu_normalised: busy.filter(|s| *s > 0.0).map(|s| tokens / (s / THREADS as f64)),
        loss_last20: report.final_loss,
        peak_rss_mib,
        tuned: accuracy(&decoder, &tokenizer, &labels, &adapter, dataset.rows(Split::Test))?,
    })
}

fn accuracy(
    decoder: &Arc<Decoder>,
    tokenizer: &Arc<ChatTokenizer>,
    labels: &[String],
    adapter: &Adapter,
    test: &[Example],
) -> Result<Tuned> {
    let begun = Instant::now();
    let lora = adapter.constants(decoder.ops().as_ref());
    let scorer = LabelScorer::new(decoder.clone(), tokenizer.clone(), labels)?.with_lora(lora);
    let mut right = 0u64;
    let asked: Vec<&[Message]> = test.iter().map(|example| example.messages.as_slice()).collect();
    for (example, posterior) in test.iter().zip(scorer.score_many(&asked, &mut |_| ())) {
        let posterior = posterior?;
        let best = (0..posterior.len()).max_by(|&a, &b| posterior[a].total_cmp(&posterior[b]));
        right += u64::from(best.is_some_and(|b| labels[b] == example.target));
    }
    let n = test.len() as u64;
    Ok(Tuned { accuracy: right as f64 / n.max(1) as f64, n, seconds: begun.elapsed().as_secs_f64() })
}

/// The rows as a frozen dataset: the trainer reads nothing else. An empty system prompt is none.
pub(super) fn freeze(rows: &Rows, labels: &[String], system: &str, dir: &Path) -> Result<Dataset> {
    let example = |split: &str, line: usize, (text, label): &Row| {
        let own = (!system.is_empty()).then(|| Message::new("system", system));
        let messages: Vec<Message> = own.into_iter().chain([Message::new("user", text)]).collect();
        let id = example_id(&messages, label);
        Example {
            messages,
            target: label.clone(),
            target_tool_calls: Vec::new(),
            label_source: LabelSource::Human,
            weight: 1.0,
            group: id.clone(),
            recorded: Recorded::default(),
            trace: TraceRef { id: id.clone(), file: format!("{split}.csv"), line: line as u64 + 2 },
            decision: None,
            id,
        }
    };
    let of = |split: &str, rows: &[Row]| rows.iter().enumerate().map(|(i, row)| example(split, i, row)).collect();
    let splits: BTreeMap<Split, Vec<Example>> =
        [(Split::Train, of("train", &rows.train)), (Split::Test, of("test", &rows.test))].into();
    let card = DatasetCard {
        digest: String::new(),
        labels: labels.to_vec(),
        schema: None,
        splits: BTreeMap::new(),
        traces_in: (rows.train.len() + rows.test.len()) as u64,
        left_out: BTreeMap::new(),
        sources: BTreeMap::new(),
        redactions: BTreeMap::new(),
        curation: Default::default(),
    };
    let dir = dir.join("dataset");
    std::fs::create_dir_all(&dir).map_err(|e| crate::stages::cannot("create", &dir, &e))?;
    Dataset::write(&dir, card, splits)?;
    Ok(Dataset::load(&dir)?)
}

fn system(labels: &[String]) -> String {
    format!("Classify the customer message. Answer with one of: {}.", labels.join(", "))
}

/// The peer writes the prompt out; ours comes from the model's template. Other text would be other work.
fn same_prompt(tokenizer: &ChatTokenizer, rows: &[Example]) -> Result<()> {
    let Some([system, user]) = rows.first().map(|e| e.messages.as_slice()) else { return Ok(()) };
    let want = format!(
        "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
        system.content, user.content
    );
    let got = tokenizer.render(&[system.clone(), user.clone()], true)?;
    if got == want {
        return Ok(());
    }
    let message = format!("the model's chat template does not give the peer's prompt: {got:?} instead of {want:?}");
    Err(Failure::new(Exit::Usage, message).help("take a model with ChatML's template, such as SmolLM2-135M-Instruct"))
}

/// Of a list that is not empty; the mean of the two in the middle where there are two, as Python's.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (n, middle) if n % 2 == 1 => sorted[middle],
        (_, middle) => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

/// Time on processors so far, user and system, to a hundredth of a second; none where the system does not tell.
pub(super) fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name before may hold blanks and brackets.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |i: usize| fields.get(i)?.parse::<f64>().ok();
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_pythons() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn work_shows_in_processor_time() {
        let Some(before) = cpu_seconds() else { return };
        let mut x = 1u64;
        for i in 0..400_000_000u64 {
            x = std::hint::black_box(x.wrapping_mul(31).wrapping_add(i));
        }
        assert!(x != 1 && cpu_seconds().unwrap() > before);
    }
}
