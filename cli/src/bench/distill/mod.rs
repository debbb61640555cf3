//! What a teacher is worth on an intent data set: a student on few labels alone, the same student with a teacher's answers to
//! messages that nobody labelled, as soft labels and as hard ones, and what a step costs more. Each part is kept in the output folder; the same
//! command goes on where it stopped.
//!
//! All arms of a seed share their labelled rows, base and settings, take about as many steps, and answer the same test rows, so that they are
//! compared row by row (exact McNemar). A test row whose text is anywhere in the train file is left out, for the teacher may have
//! learnt it.

mod compare;

use super::args::BenchDistill;
use super::banking::{Row, Rows};
use super::ours::{all_linear, freeze, median, settings as plain_settings};
use crate::exit::{Exit, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use crate::stages::capture::{Teacher, digest_of};
use crate::stages::{PROGRAM_VERSION, cannot};
use compare::{report, text_of};
use limbeck_artifact::capture::{
    CHUNK, Capture, CaptureWriter, Header, LABEL_POSTERIORS, Named, Row as CapturedRow, Started, prompt_key,
};
use limbeck_artifact::dataset::{Dataset, Message, Split};
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::Silent;
use limbeck_artifact::files::write_atomic;
use limbeck_data_curation::text::normal_form;
use limbeck_distill::{Asked, CapturePlan, capture};
use limbeck_eval::{FloorRow, LinearFloor, argmax};
use limbeck_model::adapter::Adapter;
use limbeck_model::decoder::Decoder;
use limbeck_model::device::{self, DeviceName, Dtype};
use limbeck_model::prompt::encode_prompt;
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_trainer::divergence::Divergence;
use limbeck_trainer::learner::Learner;
use limbeck_trainer::parameters::Parameters;
use limbeck_trainer::random::Random;
use limbeck_trainer::rows::{encode_with, soft_loss};
use limbeck_trainer::schedule::Scheduler;
use limbeck_trainer::{Base, Distilled, HeadKind, TrainPlan, TrainSettings, Unlabeled, train};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// What the student learns from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arm {
    /// The labelled rows.
    Labels,
    /// These, and the teacher's posteriors of all.
    Soft,
    /// These, and the teacher's likeliest label of the others as if it were one.
    Hard,
}

impl Arm {
    const ALL: [Arm; 3] = [Arm::Labels, Arm::Soft, Arm::Hard];

    fn name(self) -> &'static str {
        match self {
            Arm::Labels => "labels alone",
            Arm::Soft => "soft labels",
            Arm::Hard => "hard labels",
        }
    }
}

/// Of one arm and seed, on the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answered {
    right: Vec<bool>,
    /// Mean negative log-likelihood of the right label, in nats.
    nll: f64,
    steps: u64,
}

impl Answered {
    fn none() -> Answered {
        Answered { right: Vec::new(), nll: f64::NAN, steps: 0 }
    }

    fn accuracy(&self) -> f64 {
        self.right.iter().filter(|right| **right).count() as f64 / self.right.len().max(1) as f64
    }
}

/// A teacher's answers by prompt.
struct Told {
    posteriors: BTreeMap<String, Vec<f32>>,
    digest: String,
}

/// Who teaches.
enum Master {
    Model(Teacher),
    /// TF-IDF and logistic regression on the whole train file.
    Linear(Box<LinearFloor>, Named),
}

impl Master {
    fn named(&self) -> &Named {
        match self {
            Master::Model(teacher) => &teacher.named,
            Master::Linear(_, named) => named,
        }
    }
}

/// What `--teacher` says for it.
const LINEAR: &str = "linear";

fn linear(rows: &Rows, labels: &[String]) -> Master {
    let label = |name: &String| labels.binary_search(name).unwrap_or(usize::MAX);
    let train: Vec<FloorRow<'_>> =
        rows.train.iter().map(|(text, name)| FloorRow { text, label: label(name), weight: 1.0 }).collect();
    let lines: Vec<String> = rows.train.iter().map(|(text, name)| format!("{name}\t{text}\n")).collect();
    let name = format!("TF-IDF and logistic regression on {} rows", train.len());
    let named = Named { name, digest: sha256_hex(lines.concat().as_bytes()) };
    Master::Linear(Box::new(LinearFloor::train(&train, labels.len())), named)
}

struct Work<'a> {
    args: &'a BenchDistill,
    sink: Sink,
    decoder: Arc<Decoder>,
    tokenizer: Arc<ChatTokenizer>,
    labels: Vec<String>,
    teacher: Master,
    device: DeviceName,
}

/// # Errors
/// When the rows or a model can't be read, or a training fails.
pub fn bench(settings: &Settings, args: &BenchDistill) -> Result<Exit> {
    let device: DeviceName = settings.device.as_deref().unwrap_or("cpu").parse()?;
    let mut rows = without_leaks(Rows::read(&args.data)?);
    if args.test_rows > 0 {
        Random::new(0, "bench distill test").shuffle(&mut rows.test);
        rows.test.truncate(args.test_rows);
    }
    let ops = device::training_ops(device, Dtype::Auto)?;
    let work = Work {
        args,
        sink: Sink::new(None, &Terminal::of_stderr()),
        decoder: Arc::new(Decoder::from_weights(&Weights::open(&args.student)?, ops, true)?),
        tokenizer: Arc::new(ChatTokenizer::open(&args.student)?),
        teacher: match args.teacher.as_os_str() == LINEAR {
            true => linear(&rows, &rows.labels()),
            false => Master::Model(Teacher::find(&args.teacher, args.teacher_adapter.as_deref())?),
        },
        labels: rows.labels(),
        device,
    };
    let ratio = work.step_ratio(&rows)?;
    let mut seeds = vec![BTreeMap::new(); args.seeds as usize];
    let mut of_teacher = None;
    // The comparison that matters most is there first.
    for arm in &args.arms {
        for (seed, answered) in (0..).zip(&mut seeds) {
            answered.insert(arm.name(), work.seed(&rows, seed, *arm)?);
        }
        if of_teacher.is_none() && *arm != Arm::Labels {
            of_teacher = Some(judged(&work, &rows.test, &work.answers("test", &asked(&rows.test))?));
        }
        let of_teacher = of_teacher.clone().unwrap_or_else(Answered::none);
        let so_far = report(&work, &rows, &of_teacher, &seeds, ratio);
        let path = args.out.join("report.json");
        let text = serde_json::to_string_pretty(&so_far)? + "\n";
        write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
        work.say(&text_of(&work, &rows, &of_teacher, &seeds, ratio));
    }
    work.sink.clear();
    let of_teacher = of_teacher.unwrap_or_else(Answered::none);
    let report = report(&work, &rows, &of_teacher, &seeds, ratio);
    match settings.json {
        true => output::json(&report)?,
        false => output::stdout(&text_of(&work, &rows, &of_teacher, &seeds, ratio))?,
    }
    Ok(Exit::Ok)
}

/// Test rows whose text no train row has.
fn without_leaks(rows: Rows) -> Rows {
    let known: BTreeSet<String> = rows.train.iter().map(|(text, _)| normal_form(text)).collect();
    let test = rows.test.into_iter().filter(|(text, _)| !known.contains(&normal_form(text))).collect();
    Rows { test, train: rows.train }
}

fn message(text: &str) -> Vec<Message> {
    vec![Message::new("user", text)]
}

fn asked(rows: &[Row]) -> Vec<Asked> {
    rows.iter().map(|(text, _)| Asked { id: text.clone(), messages: message(text) }).collect()
}

/// `per_class` rows of each label, then `unlabeled` of the others, all drawn; a text counts once.
fn draw(rows: &[Row], per_class: usize, unlabeled: usize, seed: u64) -> (Vec<Row>, Vec<Row>) {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    Random::new(seed, "bench distill").shuffle(&mut order);
    let (mut taken, mut seen): (BTreeMap<&str, usize>, BTreeSet<String>) = Default::default();
    let (mut labelled, mut rest) = (Vec::new(), Vec::new());
    for row in order.into_iter().map(|i| &rows[i]).filter(|(text, _)| seen.insert(normal_form(text))) {
        let n = taken.entry(row.1.as_str()).or_default();
        *n += 1;
        match *n <= per_class {
            true => labelled.push(row.clone()),
            false => rest.push(row.clone()),
        }
    }
    rest.truncate(unlabeled);
    (labelled, rest)
}

impl Work<'_> {
    fn say(&self, text: &str) {
        self.sink.clear();
        output::stderr(&format!("{text}\n"));
    }

    /// The teacher's answers, captured in the output folder.
    fn answers(&self, name: &str, asked: &[Asked]) -> Result<Capture> {
        let out = self.args.out.join(format!("{name}.capture"));
        if let Ok(known) = Capture::load(&out)
            && known.header.teacher.digest == self.teacher.named().digest
            && known.header.data.digest == digest_of(asked)
        {
            return Ok(known);
        }
        self.say(&format!("the teacher answers {} prompts of {name}", asked.len()));
        let data = Named { name: name.to_owned(), digest: digest_of(asked) };
        let teacher = match &self.teacher {
            Master::Model(teacher) => teacher,
            Master::Linear(floor, named) => return self.answers_of(floor, named, data, asked, &out),
        };
        let plan = CapturePlan {
            teacher: teacher.named.clone(),
            data,
            out: out.clone(),
            program_version: PROGRAM_VERSION.to_owned(),
        };
        let report = capture(&plan, &teacher.open(&self.labels, self.device)?, asked, &self.sink)?;
        self.say(&format!(
            "  {:.1} rows a second ({:.0} tokens), {:.0} bytes a row",
            report.rows_per_s, report.tokens_per_s, report.bytes_per_row
        ));
        Ok(Capture::load(&out)?)
    }

    /// The linear model's, in the same file.
    fn answers_of(
        &self,
        floor: &LinearFloor,
        named: &Named,
        data: Named,
        asked: &[Asked],
        out: &Path,
    ) -> Result<Capture> {
        let _ = std::fs::remove_file(out);
        CaptureWriter::discard(out)?;
        let header = Header {
            kind: LABEL_POSTERIORS.to_owned(),
            teacher: named.clone(),
            tokenizer: String::new(),
            template: String::new(),
            data,
            rows: asked.len() as u64,
            labels: self.labels.clone(),
            program_version: PROGRAM_VERSION.to_owned(),
        };
        if let Started::Open(mut writer, _) = CaptureWriter::open(out, header)? {
            for chunk in asked.chunks(CHUNK) {
                let row = |asked: &Asked| {
                    let text = asked.messages.last().map_or("", |m| m.content.as_str());
                    let log_probs = floor.posterior(text).iter().map(|p| p.max(1e-12).ln()).collect();
                    CapturedRow { key: prompt_key(&asked.messages), log_probs }
                };
                writer.push(&chunk.iter().map(row).collect::<Vec<_>>())?;
            }
            writer.finish()?;
        }
        Ok(Capture::load(out)?)
    }

    fn settings(&self, seed: u64, epochs: u64) -> TrainSettings {
        TrainSettings {
            seed,
            learning_rate: self.args.learning_rate,
            num_epochs: epochs,
            batch_size: self.args.batch_size,
            turbo_layers: self.args.turbo_layers,
            ..classifier_settings(&self.decoder)
        }
    }

    fn seed(&self, rows: &Rows, seed: u64, arm: Arm) -> Result<Answered> {
        let drawn = if self.args.draw_each { seed } else { 0 };
        let (labelled, others) = draw(&rows.train, self.args.per_class, self.args.unlabeled, drawn);
        let all: Vec<Row> = labelled.iter().chain(&others).cloned().collect();
        let told = match arm {
            Arm::Labels => Told { posteriors: BTreeMap::new(), digest: String::new() },
            Arm::Soft | Arm::Hard => {
                let capture = self.answers(&format!("draw-{drawn}"), &asked(&all))?;
                Told { posteriors: ordered(&capture, &self.labels), digest: capture.digest }
            }
        };
        let made = self.arm(rows, seed, arm, [&labelled, &others], &told)?;
        self.say(&format!("seed {seed}, {}: {:.2} % right, {} steps", arm.name(), made.accuracy() * 100.0, made.steps));
        Ok(made)
    }

    fn arm(&self, rows: &Rows, seed: u64, arm: Arm, [labelled, others]: [&[Row]; 2], told: &Told) -> Result<Answered> {
        let posteriors = &told.posteriors;
        let folder = self.args.out.join(format!("seed-{seed}/{}", arm.name().replace(' ', "-")));
        let mut train_rows = labelled.to_vec();
        if arm == Arm::Hard {
            train_rows.extend(others.iter().filter_map(|(text, _)| {
                let said = argmax(posteriors.get(&prompt_key(&message(text)))?)?;
                Some((text.clone(), self.labels[said].clone()))
            }));
        }
        // About as many steps as the other arms, whatever the rows.
        let (all, few) = (labelled.len() + others.len(), labelled.len().max(1));
        let epochs = if arm == Arm::Labels {
            self.args.epochs * (all as f64 / few as f64).round() as u64
        } else {
            self.args.epochs
        };
        let settings = self.settings(seed, epochs);
        let distilled = (arm == Arm::Soft).then(|| Distilled {
            lambda: self.args.lambda,
            divergence: Divergence::ForwardKl,
            temperature: self.args.temperature,
            posteriors: posteriors.clone(),
            // The teacher's precision can't be measured on rows that it was trained on.
            trust: vec![1.0; self.labels.len()],
            unlabeled: others.iter().map(|(text, _)| Unlabeled { id: text.clone(), messages: message(text) }).collect(),
        });
        let key = sha256_hex(
            serde_json::to_string(&json!({
                "settings": settings, "rows": train_rows, "capture": told.digest, "lambda": self.args.lambda,
                "temperature": self.args.temperature, "compute": self.decoder.ops().compute(), "version": PROGRAM_VERSION,
                "student": self.args.student, "test": rows.test.len(),
            }))?
            .as_bytes(),
        );
        let kept = folder.join(format!("{}.json", &key[..16]));
        if let Some(kept) = std::fs::read(&kept).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            return Ok(kept);
        }
        let chosen = Rows { train: train_rows, test: Vec::new() };
        let dataset = freeze(&chosen, &self.labels, "", &folder)?;
        let plan = TrainPlan {
            settings,
            key,
            out: folder.join("train"),
            base_name: "student".to_owned(),
            stop_at_step: None,
            distilled,
        };
        self.say(&format!("seed {seed}, {}: training", arm.name()));
        let report = train(&plan, &self.decoder, &self.tokenizer, &dataset, &self.sink)?;
        let adapter = Adapter::load(&plan.out.join("adapter"))?;
        let answered = Answered { steps: report.steps, ..self.test(&adapter, &rows.test)? };
        write_atomic(&kept, &serde_json::to_vec(&answered)?).map_err(|e| cannot("write", &kept, &e))?;
        Ok(answered)
    }

    fn test(&self, adapter: &Adapter, test: &[Row]) -> Result<Answered> {
        let student = (self.decoder.clone(), self.tokenizer.clone());
        let log_posteriors = log_posteriors(student, &self.labels, adapter, test, &mut |_| ())?;
        let (mut right, mut nll) = (Vec::with_capacity(test.len()), 0f64);
        for (log_probs, (_, label)) in log_posteriors.iter().zip(test) {
            let of: Vec<f32> = log_probs.iter().map(|l| *l as f32).collect();
            right.push(argmax(&of).is_some_and(|best| self.labels[best] == *label));
            nll -= self.labels.iter().position(|own| own == label).map_or(f64::NAN, |at| log_probs[at]);
        }
        Ok(Answered { nll: nll / right.len().max(1) as f64, right, steps: 0 })
    }

    /// Time of a step on rows that have a label and a teacher's answer over one on their labels alone, in turn; by head.
    fn step_ratio(&self, rows: &Rows) -> Result<[f64; 2]> {
        let scratch = crate::scratch::Scratch::new("bench-distill")?;
        let train: Vec<Row> = rows.train.iter().take(self.args.batch_size).cloned().collect();
        let dataset = freeze(&Rows { train, test: Vec::new() }, &self.labels, "", scratch.path())?;
        Ok([
            self.step_ratio_under(&dataset, HeadKind::Classification)?,
            self.step_ratio_under(&dataset, HeadKind::Verbalizer)?,
        ])
    }

    fn step_ratio_under(&self, dataset: &Dataset, head: HeadKind) -> Result<f64> {
        let n = self.labels.len();
        // Each row's own label likeliest: a teacher that errs would be left out.
        let posterior = |label: &String| -> Vec<f32> {
            self.labels.iter().map(|own| if own == label { 0.5 + 0.5 / n as f32 } else { 0.5 / n as f32 }).collect()
        };
        let told = dataset.rows(Split::Train).iter().map(|e| (prompt_key(&e.messages), posterior(&e.target)));
        let distilled = Distilled {
            lambda: 0.5,
            divergence: Divergence::ForwardKl,
            temperature: 2.0,
            posteriors: told.collect(),
            trust: vec![1.0; n],
            unlabeled: Vec::new(),
        };
        let settings = TrainSettings { head, turbo_layers: 0, ..self.settings(0, 1) };
        let plan = |distilled| TrainPlan {
            settings: settings.clone(),
            key: String::new(),
            out: Path::new("").to_owned(),
            base_name: String::new(),
            stop_at_step: None,
            distilled,
        };
        let config = limbeck_model::adapter::AdapterConfig::lora(
            "",
            settings.r,
            settings.lora_alpha,
            &settings.target_modules,
            false,
        );
        let parameters = match head {
            HeadKind::Verbalizer => Parameters::init(config, &self.decoder, 0),
            HeadKind::Classification => Parameters::init_classifier(config.with_head(), &self.labels, &self.decoder, 0),
        };
        let sides = [plan(None), plan(Some(distilled))];
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..self.args.step_rounds {
            for (plan, times) in sides.iter().zip(&mut times) {
                let soft = soft_loss(plan, &self.tokenizer, dataset)?;
                let rows = encode_with(&self.tokenizer, dataset, plan, soft.as_ref(), &Silent)?;
                let all: Vec<usize> = (0..rows.len()).collect();
                let base = Base::Frozen(&self.decoder);
                let learner = Learner { base, settings: &plan.settings, rows: &rows, cache: None, soft: soft.as_ref() };
                let begun = Instant::now();
                learner.gradients(&parameters, &all, 0)?;
                if round > 0 {
                    times.push(begun.elapsed().as_secs_f64());
                }
            }
        }
        // By pairs of neighbours: others on the machine slow both of a pair.
        let ratios: Vec<f64> = times[0].iter().zip(&times[1]).map(|(plain, soft)| soft / plain).collect();
        Ok(median(&ratios))
    }
}

/// As students are trained here: LoRA and a classification head.
pub(super) fn classifier_settings(decoder: &Decoder) -> TrainSettings {
    TrainSettings {
        head: HeadKind::Classification,
        lr_scheduler: Scheduler::Linear,
        warmup_ratio: 0.05,
        max_grad_norm: 1.0,
        target_modules: all_linear(decoder),
        save_steps: 100,
        ..plain_settings()
    }
}

/// What a tuned student makes of rows, each alone in its prompt; tells `done` how many there are.
///
/// # Errors
/// When the adapter and the model don't fit together.
pub(super) fn log_posteriors(
    (decoder, tokenizer): (Arc<Decoder>, Arc<ChatTokenizer>),
    labels: &[String],
    adapter: &Adapter,
    rows: &[Row],
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<f64>>> {
    let ops = decoder.ops().clone();
    let scorer = match &adapter.head {
        Some(head) => LabelScorer::by_head(decoder, tokenizer.clone(), labels, head.freeze(ops.as_ref(), labels)?)?,
        None => LabelScorer::new(decoder, tokenizer.clone(), labels)?,
    };
    let scorer = scorer.with_lora(adapter.constants(ops.as_ref()));
    let prompt = |(text, _): &Row| encode_prompt(&tokenizer, &message(text));
    let prompts: Vec<Vec<u32>> = rows.iter().map(prompt).collect::<std::result::Result<_, _>>()?;
    let past = scorer.beginning(&prompts)?;
    let mut all = Vec::with_capacity(rows.len());
    for prompts in prompts.chunks(32) {
        all.extend(scorer.log_posteriors(&past, prompts)?);
        done(all.len());
    }
    Ok(all)
}

/// By prompt, over the labels in their order: the capture was asked for these.
fn ordered(capture: &Capture, labels: &[String]) -> BTreeMap<String, Vec<f32>> {
    debug_assert_eq!(capture.header.labels, labels);
    capture.rows.iter().map(|row| (row.key.clone(), row.posterior())).collect()
}

fn judged(work: &Work<'_>, test: &[Row], told: &Capture) -> Answered {
    let posteriors = ordered(told, &work.labels);
    let (mut right, mut nll) = (Vec::new(), 0f64);
    for (text, label) in test {
        let posterior = posteriors.get(&prompt_key(&message(text)));
        right.push(posterior.and_then(|p| argmax(p)).is_some_and(|best| work.labels[best] == *label));
        let p = posterior.zip(work.labels.iter().position(|own| own == label)).map_or(f32::NAN, |(p, at)| p[at]);
        nll -= f64::from(p.max(1e-9)).ln();
    }
    Answered { nll: nll / right.len().max(1) as f64, right, steps: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_drawn_by_class_without_repetition_and_leaks_go() {
        let row = |text: &str, label: &str| (text.to_owned(), label.to_owned());
        let rows: Vec<Row> =
            (0..40).map(|i| row(&format!("text {}", i % 30), if i % 2 == 0 { "a" } else { "b" })).collect();
        let (labelled, others) = draw(&rows, 3, 10, 1);
        assert_eq!((labelled.len(), others.len()), (6, 10));
        let texts: BTreeSet<&String> = labelled.iter().chain(&others).map(|(text, _)| text).collect();
        assert_eq!(texts.len(), 16);
        assert_eq!(draw(&rows, 3, 10, 1), (labelled.clone(), others));
        assert_ne!(draw(&rows, 3, 10, 2).0, labelled);
        let rows = Rows { train: vec![row("One  two!", "a")], test: vec![row("one two", "a"), row("three", "a")] };
        assert_eq!(without_leaks(rows).test, [row("three", "a")]);
    }
}
