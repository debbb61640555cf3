//! Our side of the comparison on a GPU, in a process of its own: the same works as peer.py's, from the same files.

use super::works::{LabelWork, OpCase, TrainWork, WriteWork};
use crate::bench::args::{OursModel, OursOps, OursWork};
use crate::bench::ours::settings;
use crate::exit::{Exit, Failure, Result};
use limbeck_artifact::dataset::Message;
use limbeck_model::adapter::{Adapter, AdapterConfig};
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, Dtype};
use limbeck_model::generate::{Asked, Batch, Ends, continuations};
use limbeck_model::kernel_time::{KernelTime, watched};
use limbeck_model::ops::single::{Numbers, Single, run};
use limbeck_model::prompt::EncodedExample;
use limbeck_model::safetensor::SafetensorsFile;
use limbeck_model::score::LabelScorer;
use limbeck_model::sequence::Sequence;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_trainer::batch::TrainRow;
use limbeck_trainer::learner::Learner;
use limbeck_trainer::optimizer::AdamWSettings;
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::resident::Held;
use limbeck_trainer::{Base, TrainSettings};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// How far both sides are from float64, as a share of its norm: the output, then each input's gradient.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpErrors {
    pub name: String,
    pub peer: Vec<f64>,
    pub ours: Vec<f64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpsErrors {
    pub ops: Vec<OpErrors>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trained {
    pub dtype: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub torch: Option<String>,
    pub losses: Vec<f64>,
    pub seconds: Vec<f64>,
    /// What the peer's allocator held at most; it keeps more from the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocated_mib: Option<u64>,
    /// Arithmetic of a token's forward pass; ours alone.
    #[serde(default)]
    pub linear_flops: f64,
    #[serde(default)]
    pub attention_flops: f64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub kernels: BTreeMap<String, KernelTime>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Labelled {
    pub seconds: f64,
    /// Natural logs, a row a prompt.
    pub log_posteriors: Vec<Vec<f64>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WroteAll {
    pub seconds: f64,
}

/// # Errors
/// When the file can't be read or is of another kind.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read(path)
        .map_err(|e| Failure::new(Exit::Usage, format!("failed to read {}: {e}", path.display())))?;
    Ok(serde_json::from_slice(&text)?)
}

/// Single ops on the peer's inputs.
///
/// # Errors
/// When files or device can't be used.
pub fn ops(args: &OursOps, device: Option<&str>) -> Result<OpsErrors> {
    let ops = device::training_ops(device.unwrap_or("cpu").parse()?, Dtype::Auto)?;
    let cases: Vec<OpCase> = read(&args.cases)?;
    let file = SafetensorsFile::open(&args.tensors)?;
    let shapes = file.shapes();
    let numbers = |key: &str| -> Result<Numbers> {
        let shape = shapes.get(key).map(Vec::as_slice);
        let Some(&[rows, width]) = shape else {
            return Err(Failure::new(Exit::Usage, format!("{} has no matrix {key}", args.tensors.display())));
        };
        Ok(Numbers { values: file.load(key)?, shape: [rows, width] })
    };
    let one = |(i, case): (usize, &OpCase)| -> Result<OpErrors> {
        let tensor = |name: &str| numbers(&format!("{i}.{name}"));
        let single = single(case, &tensor)?;
        let inputs = (0..case.inputs).map(|j| tensor(&format!("x{j}"))).collect::<Result<Vec<Numbers>>>()?;
        let (output, gradients) = run(ops.as_ref(), &single, &inputs, &tensor("dy")?);
        let answers: Vec<Vec<f32>> = std::iter::once(output).chain(gradients).collect();
        let errors = |of: &dyn Fn(usize) -> Result<Vec<f32>>| -> Result<Vec<f64>> {
            (0..answers.len()).map(|j| Ok(distance(&of(j)?, &tensor(&format!("exact{j}"))?.values))).collect()
        };
        let peer = errors(&|j| Ok(tensor(&format!("peer{j}"))?.values))?;
        let ours = errors(&|j| Ok(answers[j].clone()))?;
        Ok(OpErrors { name: case.name.clone(), peer, ours })
    };
    Ok(OpsErrors { ops: cases.iter().enumerate().map(one).collect::<Result<_>>()? })
}

fn single(case: &OpCase, tensor: &dyn Fn(&str) -> Result<Numbers>) -> Result<Single> {
    Ok(match case.op.as_str() {
        "rms_norm" => Single::RmsNorm { weight: tensor("weight")?.values, eps: case.eps },
        "swiglu" => Single::SwiGlu,
        "linear" => Single::Linear { weight: tensor("weight")?, scaling: case.scaling },
        "attention" => Single::Attention {
            heads: case.heads,
            kv_heads: case.kv_heads,
            head_dim: case.head_dim,
            theta: case.theta,
            lengths: case.lengths.clone(),
        },
        "cross_entropy" => Single::CrossEntropy { head: tensor("head")?, tokens: case.targets.clone() },
        other => return Err(Failure::new(Exit::Usage, format!("no op {other} is known here"))),
    })
}

/// ‖a - b‖ / ‖b‖; not a number where lengths differ.
fn distance(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() {
        return f64::NAN;
    }
    let norm = |terms: &mut dyn Iterator<Item = f64>| terms.map(|x| x * x).sum::<f64>().sqrt();
    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    apart / norm(&mut b.iter().map(|b| f64::from(*b))).max(f64::MIN_POSITIVE)
}

fn open(model: &OursModel, device: Option<&str>, trains: bool) -> Result<Decoder> {
    let ops = device::training_ops(device.unwrap_or("cpu").parse()?, model.dtype())?;
    let decoder = Decoder::from_weights_quantized(&Weights::open(&model.model)?, ops, trains, model.quantize_base())?;
    Ok(decoder.with_checkpointing(model.gradient_checkpointing))
}

/// # Errors
/// When model, work or adapter can't be read, or a loss is not finite.
pub fn train(args: &OursWork, device: Option<&str>) -> Result<Trained> {
    let work: TrainWork = read(&args.work)?;
    let decoder = Arc::new(open(&args.model, device, true)?);
    let s = TrainSettings {
        r: work.rank,
        lora_alpha: 2.0 * work.rank as f32,
        batch_size: work.batches.iter().map(Vec::len).max().unwrap_or(1),
        target_modules: crate::bench::ours::all_linear(&decoder),
        max_grad_norm: work.max_grad_norm,
        adamw: AdamWSettings { weight_decay: work.weight_decay, ..AdamWSettings::default() },
        ..settings()
    };
    let row = |(i, row): (usize, &super::works::WorkRow)| {
        let encoded = EncodedExample { ids: row.ids.clone(), mask: row.mask.clone() };
        TrainRow::new(i.to_string(), encoded, 1.0)
    };
    let rows: Vec<TrainRow> = work.rows.iter().enumerate().map(row).collect();
    let mut parameters = match &args.adapter {
        Some(dir) => Parameters::from_adapter(&Adapter::load(dir)?),
        None => {
            let config = AdapterConfig::lora("base", s.r, s.lora_alpha, &s.target_modules, s.use_rslora);
            Parameters::init(config, &decoder, s.seed)
        }
    };
    let learner = Learner::new(Base::Frozen(&decoder), &s, &rows);
    let mut held = Held::of(learner.base, &parameters);
    let (mut losses, mut seconds, mut kernels) = (Vec::new(), Vec::new(), BTreeMap::new());
    for (step, chosen) in work.batches.iter().enumerate() {
        let mut one = || -> Result<f64> {
            let leaves = held.leaves(learner.base, &parameters);
            let gradients = learner.gradients_at(&leaves, chosen, step as u64)?;
            held.update(&mut parameters, &gradients, &s, work.learning_rate, step as u64 + 1);
            decoder.ops().finish();
            Ok(gradients.loss)
        };
        let begun = Instant::now();
        let loss = match args.profile && step + 1 == work.batches.len() {
            false => one()?,
            true => {
                let (loss, watched) = watched(one);
                kernels = watched;
                loss?
            }
        };
        seconds.push(begun.elapsed().as_secs_f64());
        if !loss.is_finite() {
            return Err(Failure::new(Exit::Unexpected, format!("the loss of step {step} is {loss}")));
        }
        losses.push(loss);
    }
    let c = &decoder.config;
    let lengths = work.batches.last().map_or(&[][..], Vec::as_slice).iter().map(|i| work.rows[*i].ids.len() as f64);
    let (tokens, squares) = lengths.fold((0.0, 0.0), |(n, s), l| (n + l, s + l * l));
    Ok(Trained {
        dtype: decoder.ops().compute().to_owned(),
        torch: None,
        losses,
        seconds,
        allocated_mib: None,
        linear_flops: 2.0 * decoder.parameters() as f64,
        // Over the half of its row that a token sees on average: scores, and their mix of the values.
        attention_flops: 2.0 * squares / tokens * (c.num_attention_heads * c.head_dim * c.num_hidden_layers) as f64,
        kernels,
    })
}

/// # Errors
/// When model, work or tokenizer can't be read.
pub fn label(args: &OursWork, device: Option<&str>) -> Result<Labelled> {
    let work: LabelWork = read(&args.work)?;
    let Some(tokenizer) = &args.tokenizer else {
        return Err(Failure::new(Exit::Usage, "labels are spelled by a tokenizer").help("--tokenizer PATH"));
    };
    let decoder = Arc::new(open(&args.model, device, false)?);
    let scorer = LabelScorer::new(decoder, Arc::new(ChatTokenizer::open(tokenizer)?), &work.names)?;
    let asked: Vec<&[Message]> = work.messages.iter().map(Vec::as_slice).collect();
    // Twice: kernels are compiled at their first shapes.
    scorer.score_many(&asked, &mut |_| ());
    let begun = Instant::now();
    let found = scorer.score_many(&asked, &mut |_| ());
    let seconds = begun.elapsed().as_secs_f64();
    let logs = |posterior: Vec<f32>| posterior.into_iter().map(|p| f64::from(p).ln().max(-1e4)).collect();
    let log_posteriors = found.into_iter().map(|row| Ok(logs(row?))).collect::<Result<_>>()?;
    Ok(Labelled { seconds, log_posteriors })
}

/// # Errors
/// When model or work can't be read.
pub fn write(args: &OursWork, device: Option<&str>) -> Result<WroteAll> {
    let work: WriteWork = read(&args.work)?;
    let decoder = open(&args.model, device, false)?;
    let run = || -> Result<f64> {
        let asked: Vec<Asked> = work.prompts.iter().map(|prompt| Asked::greedy(prompt, work.tokens)).collect();
        let ends = Ends { stop: &[], within: None, goes_on: &|_, _| true, done: &mut |_| () };
        let begun = Instant::now();
        continuations(&decoder, None, &Sequence::default(), &asked, Batch::of(asked.len()), ends)?;
        Ok(begun.elapsed().as_secs_f64())
    };
    run()?;
    Ok(WroteAll { seconds: run()? })
}
