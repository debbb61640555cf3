//! What a teacher is worth on an intent data set: a student on few labels alone, the same student with a teacher's answers to
//! messages that nobody labelled, as soft labels and as hard ones, and what a step costs more. Each part is kept in the output folder; the same
//! command goes on where it stopped.
//!
//! All arms of a seed share their labelled rows, base and settings, take about as many steps, and answer the same test rows, so that they are
//! compared row by row (exact McNemar). A test row whose text is anywhere in the train file is left out, for the teacher may have
//! learnt it.

mod compare;
mod course;
mod noise;
mod steps;

use super::args::BenchDistill;
use super::banking::{Row, Rows};
use super::ours::{all_linear, freeze, settings as plain_settings};
use crate::exit::{Exit, Result};
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use crate::stages::capture::{Teacher, digest_of};
use crate::stages::{PROGRAM_VERSION, cannot, program};
use compare::{report, text_of};
pub use course::Arm;
use course::Course;
use limbeck_artifact::capture::{
    CHUNK, Capture, CaptureWriter, Header, LABEL_POSTERIORS, Named, Row as CapturedRow, Started, discard, prompt_key,
};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::digest::sha256_hex;
use limbeck_artifact::event::Stage;
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
use limbeck_trainer::random::Random;
use limbeck_trainer::schedule::Scheduler;
use limbeck_trainer::{Distilled, HeadKind, TrainPlan, TrainSettings, Unlabeled, train};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

/// Of one arm and seed, on the test rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Answered {
    right: Vec<bool>,
    /// Mean negative log-likelihood of the right label, in nats.
    nll: f64,
    steps: u64,
    /// Of messages about which the teacher was made to err: the student says the same wrong label, of how many. None without
    /// such messages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    inherited: Option<[u64; 2]>,
    /// Wrong answers that review found, of how many were planted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    found: Option<[u64; 2]>,
}

impl Answered {
    fn none() -> Answered {
        Answered { right: Vec::new(), nll: f64::NAN, steps: 0, inherited: None, found: None }
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
    let costs = work.step_costs(&rows)?;
    let mut seeds = vec![BTreeMap::new(); args.seeds as usize];
    let mut of_teacher = None;
    // The comparison that matters most is there first.
    for course in args.arms.iter().flat_map(|arm| Course::all(*arm, &args.decisions)) {
        for (seed, answered) in (0..).zip(&mut seeds) {
            answered.insert(course.name(), work.seed(&rows, seed, course)?);
        }
        if of_teacher.is_none() && course.arm != Arm::Labels {
            of_teacher = Some(judged(&work, &rows.test, &work.answers("test", &asked(&rows.test))?));
        }
        let of_teacher = of_teacher.clone().unwrap_or_else(Answered::none);
        let so_far = report(&work, &rows, &of_teacher, &seeds, &costs);
        let path = args.out.join("report.json");
        let text = serde_json::to_string_pretty(&so_far)? + "\n";
        write_atomic(&path, text.as_bytes()).map_err(|e| cannot("write", &path, &e))?;
        work.say(&text_of(&work, &rows, &of_teacher, &seeds, &costs));
    }
    work.sink.clear();
    let of_teacher = of_teacher.unwrap_or_else(Answered::none);
    let report = report(&work, &rows, &of_teacher, &seeds, &costs);
    match settings.json {
        true => output::json(&report)?,
        false => output::stdout(&text_of(&work, &rows, &of_teacher, &seeds, &costs))?,
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
        discard(out)?;
        let header = Header {
            kind: LABEL_POSTERIORS.to_owned(),
            teacher: named.clone(),
            tokenizer: String::new(),
            template: String::new(),
            data,
            rows: asked.len() as u64,
            labels: self.labels.clone(),

            sparse: None,
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
            head: self.args.head.kind(),
            ..classifier_settings(&self.decoder)
        }
    }

    fn seed(&self, rows: &Rows, seed: u64, course: Course) -> Result<Answered> {
        let drawn = if self.args.draw_each { seed } else { 0 };
        let (labelled, others) = draw(&rows.train, self.args.per_class, self.args.unlabeled, drawn);
        let all: Vec<Row> = labelled.iter().chain(&others).cloned().collect();
        let told = match course.arm {
            Arm::Labels => Told { posteriors: BTreeMap::new(), digest: String::new() },
            _ => {
                let capture = self.answers(&format!("draw-{drawn}"), &asked(&all))?;
                Told { posteriors: ordered(&capture, &self.labels), digest: capture.digest }
            }
        };
        let made = self.course(rows, seed, course, [&labelled, &others], &told)?;
        let beside =
            made.inherited.map_or(String::new(), |[wrong, of]| format!(", {wrong} of {of} wrong answers repeated"));
        let name = course.name();
        self.say(&format!("seed {seed}, {name}: {:.2} % right{beside}, {} steps", made.accuracy() * 100.0, made.steps));
        Ok(made)
    }

    fn course(
        &self,
        rows: &Rows,
        seed: u64,
        course: Course,
        [labelled, others]: [&[Row]; 2],
        told: &Told,
    ) -> Result<Answered> {
        let folder = self.args.out.join(format!("seed-{seed}/{}", course.name().replace([' ', ','], "-")));
        let share = if course.is_noisy() { self.args.noise } else { 0.0 };
        // As the rows: drawn once for all seeds, or with each.
        let drawn = if self.args.draw_each { seed } else { 0 };
        let taught = noise::plant(told, others, share, drawn);
        let mut decided: Vec<usize> = match course.arm {
            Arm::Reviewed => noise::in_queue(labelled, others, &taught.said, &self.labels, drawn),
            Arm::ReviewedAtRandom => {
                let mut order: Vec<usize> = (0..others.len()).collect();
                Random::new(drawn, "bench distill review").shuffle(&mut order);
                order
            }
            _ => Vec::new(),
        };
        decided.truncate(course.decisions);
        let mut train_rows = labelled.to_vec();
        if !course.is_soft() && course.arm != Arm::Labels {
            train_rows.extend(noise::rows(others, &taught.said, &self.labels, &decided));
        }
        // About as many steps as the other arms, whatever the rows.
        let (all, few) = (labelled.len() + others.len(), labelled.len().max(1));
        let epochs = if course.arm == Arm::Labels {
            self.args.epochs * (all as f64 / few as f64).round() as u64
        } else {
            self.args.epochs
        };
        let settings = self.settings(seed, epochs);
        let distilled = course.is_soft().then(|| Distilled {
            lambda: self.args.lambda,
            divergence: Divergence::ForwardKl,
            temperature: self.args.temperature,
            exact_mass: course.exact_mass(self.args.exact_mass),
            posteriors: taught.posteriors.clone(),
            // The teacher's precision can't be measured on rows that it was trained on.
            trust: vec![1.0; self.labels.len()],
            unlabeled: others.iter().map(|(text, _)| Unlabeled { id: text.clone(), messages: message(text) }).collect(),
        });
        let mut key = json!({
            "settings": settings, "rows": train_rows, "capture": told.digest, "lambda": self.args.lambda,
            "temperature": self.args.temperature, "exact_mass": course.exact_mass(self.args.exact_mass), "compute": self.decoder.ops().compute(), "program": program(Stage::Train),
            "student": self.args.student, "test": rows.test.len(),
        });
        if share > 0.0 {
            key["noise"] = json!({"share": share, "drawn": drawn, "planted": taught.planted});
        }
        let key = sha256_hex(serde_json::to_string(&key)?.as_bytes());
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
            told: None,
            on_policy: None,
            matched: None,
            rationales: None,
        };
        self.say(&format!("seed {seed}, {}: training", course.name()));
        let report = train(&plan, &self.decoder, &self.tokenizer, &dataset, &self.sink)?;
        let adapter = Adapter::load(&plan.out.join("adapter"))?;
        let wrong: Vec<Row> = noise::rows(others, &taught.said, &self.labels, &[])
            .into_iter()
            .zip(&taught.planted)
            .filter_map(|(row, planted)| planted.then_some(row))
            .collect();
        let inherited = match wrong.len() as u64 {
            0 => None,
            of => {
                let repeated = self.test(&adapter, &wrong)?.right.iter().filter(|same| **same).count() as u64;
                Some([repeated, of])
            }
        };
        let found = (!decided.is_empty())
            .then(|| [decided.iter().filter(|i| taught.planted[**i]).count() as u64, wrong.len() as u64]);
        let answered = Answered { steps: report.steps, inherited, found, ..self.test(&adapter, &rows.test)? };
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
        Ok(Answered { nll: nll / right.len().max(1) as f64, right, ..Answered::none() })
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
    Answered { nll: nll / right.len().max(1) as f64, right, ..Answered::none() }
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
