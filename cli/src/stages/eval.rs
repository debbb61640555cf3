//! Eval: all arms on the same reviewed test rows, the report and the gates' verdict, in `eval/`.

use super::quantize::QuantizedFiles;
use super::train::outcome;
use super::{Finished, PROGRAM_VERSION, Run, Work, cannot, load, program};
use crate::base::Base;
use crate::exit::{Exit, Failure, Result};
use crate::live::{self, Live, LiveArm, LiveJudge, Task};
use crate::prices;
use crate::settings::recipe_arg;
use limbeck_artifact::dataset::{Dataset, DatasetCard, Example, Message, Split};
use limbeck_artifact::digest::{sha256_file, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::journal;
use limbeck_artifact::schema::Schema;
use limbeck_distill::prompt::Prompt;
use limbeck_eval::looks::Look;
use limbeck_eval::statistics::Risk;
use limbeck_eval::{
    AnswerError, AnswerWriter, Answerer, Arm, By, Comparer, Composition, Constraint, Escalation, EvalPlan, Fact,
    Fields, Gate, Metric, PairwiseJudge, PosteriorOrNot, PriceTable, RankingPlan, Respondent, Rows, Rule, Said,
    SaidOrNot, Target, Verdict, evaluate_judged,
};
use limbeck_model::adapter::Adapter;
use limbeck_model::arithmetic::{self, Arithmetic};
use limbeck_model::decoder::{Decoder, LoraSet};
use limbeck_model::device::DeviceName;
use limbeck_model::generate::{Writer, Written};
use limbeck_model::ops::Ops;
use limbeck_model::score::LabelScorer;
use limbeck_model::tokenizer::ChatTokenizer;
use limbeck_model::weights::Weights;
use limbeck_recipes::{
    ArmKind, CalibrationMethod, EvalArithmetic, EvalArm, EvalJudge, GateRule, Head, JudgeKind, Method, Recipe, SliceBy,
    SplitName,
};
use limbeck_trainer::TrainReport;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How many of the candidate's mistakes the report shows.
const MISTAKES: usize = 20;

/// What the run's record keeps; the rest is in the report.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluated {
    pub verdict: Verdict,
    pub headline: String,
    /// Relative to the run's folder.
    pub report: String,
    pub page: String,
}

/// Relative to the run's folder; there where the candidate gives scores.
pub const POLICY: &str = "eval/policy.json";

/// The arms' names; the quantized files' are their formats.
pub const FRONTIER: &str = "frontier";
/// The candidate the other way, where answers are fields.
const OTHER_WAY: [&str; 2] = ["constrained", "unconstrained"];
pub const BASE: &str = "base";
pub const LINEAR: &str = "linear";
const TUNED: &str = "tuned";

/// A model that answers by the exact posterior over the labels.
pub struct ModelArm(pub LabelScorer);

impl Answerer for ModelArm {
    fn answer(&mut self, messages: &[Message]) -> std::result::Result<Vec<f32>, AnswerError> {
        Ok(self.0.score(messages)?)
    }

    fn answer_all(&mut self, asked: &[&[Message]], done: &mut dyn FnMut(usize)) -> Vec<PosteriorOrNot> {
        self.0.score_many(asked, done).into_iter().map(|posterior| Ok(posterior?)).collect()
    }
}

/// A model that writes its answers.
struct WriterArm {
    writer: Writer,
    /// Answers are texts, not fields.
    texts: bool,
}

impl WriterArm {
    /// Of fields what was cut off is no JSON; of a text nothing else tells, so nothing of it counts.
    fn said(&self, written: Written) -> Said {
        let text = if self.texts && !written.ended { String::new() } else { written.text };
        Said { text, confidence: Some(written.probability) }
    }
}

impl AnswerWriter for WriterArm {
    fn write(&mut self, messages: &[Message]) -> std::result::Result<Said, AnswerError> {
        let written = self.writer.write(messages, &may_go_on(self.texts))?;
        Ok(self.said(written))
    }

    fn write_all(
        &mut self,
        asked: &[&[Message]],
        done: &mut dyn FnMut(),
    ) -> std::result::Result<Vec<SaidOrNot>, AnswerError> {
        let written = self.writer.write_all(asked, &may_go_on(self.texts), &mut |_| done())?;
        Ok(written.into_iter().map(|written| Ok(self.said(written?))).collect())
    }
}

/// Whether what is written so far can still become an answer: where answers are `texts`, or else fields.
pub fn may_go_on(texts: bool) -> impl Fn(&str) -> bool + Sync {
    move |begun| texts || may_be_fields(begun)
}

/// Whether a beginning can become a JSON object, in a code fence or not. What can't is invalid however it goes on, and an
/// untuned model goes on at length.
fn may_be_fields(begun: &str) -> bool {
    begun.is_empty() || begun.starts_with('{') || "```".starts_with(begun) || begun.starts_with("```")
}

/// An untrained model that is told how to answer, with examples.
struct Prompted<A>(Prompt, A);

impl<A: Answerer> Answerer for Prompted<A> {
    fn answer(&mut self, messages: &[Message]) -> std::result::Result<Vec<f32>, AnswerError> {
        self.1.answer(&self.0.around(messages))
    }

    fn answer_all(&mut self, asked: &[&[Message]], done: &mut dyn FnMut(usize)) -> Vec<PosteriorOrNot> {
        let prompts: Vec<Vec<Message>> = asked.iter().map(|messages| self.0.around(messages)).collect();
        self.1.answer_all(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>(), done)
    }
}

impl<A: AnswerWriter> AnswerWriter for Prompted<A> {
    fn write(&mut self, messages: &[Message]) -> std::result::Result<Said, AnswerError> {
        self.1.write(&self.0.around(messages))
    }

    fn write_all(
        &mut self,
        asked: &[&[Message]],
        done: &mut dyn FnMut(),
    ) -> std::result::Result<Vec<SaidOrNot>, AnswerError> {
        let prompts: Vec<Vec<Message>> = asked.iter().map(|messages| self.0.around(messages)).collect();
        self.1.write_all(&prompts.iter().map(Vec::as_slice).collect::<Vec<_>>(), done)
    }
}

/// Opens a model; with what a training left, an adapter that is not merged or all weights, where that is given.
///
/// # Errors
/// When the files can't be read or don't fit together.
pub fn open_scorer(
    model: &Path,
    tuned: Option<&Path>,
    how: (DeviceName, Arithmetic),
    labels: &[String],
) -> std::result::Result<LabelScorer, AnswerError> {
    let opened = open_model(model, tuned, how)?;
    let lora = opened.lora();
    let OpenModel { decoder, tokenizer, ops, adapter } = opened;
    let scorer = match adapter.and_then(|adapter| adapter.head) {
        None => LabelScorer::new(decoder, tokenizer, labels)?,
        Some(head) => LabelScorer::by_head(decoder, tokenizer, labels, head.freeze(ops.as_ref(), labels)?)?,
    };
    Ok(match lora {
        None => scorer,
        Some(lora) => scorer.with_lora(lora),
    })
}

/// How answers are written.
#[derive(Clone)]
pub struct Writing {
    /// Where an answer is cut off, in tokens.
    pub max_new_tokens: usize,
    /// What answers are kept to meanwhile.
    pub within: Option<Schema>,
}

impl Writing {
    /// What decides answers beside the model.
    fn key(&self) -> String {
        // Answers that were kept before there was a choice were written freely.
        let within = if self.within.is_some() { " constrained" } else { "" };
        format!("{}{within}", self.max_new_tokens)
    }
}

/// As [`open_scorer`], to write answers.
///
/// # Errors
/// When the files can't be read or don't fit together.
pub fn open_writer(
    model: &Path,
    tuned: Option<&Path>,
    how: (DeviceName, Arithmetic),
    writing: &Writing,
) -> std::result::Result<Writer, AnswerError> {
    let opened = open_model(model, tuned, how)?;
    let lora = opened.lora();
    let mut writer = Writer::new(opened.decoder, opened.tokenizer, writing.max_new_tokens);
    if let Some(schema) = &writing.within {
        writer = writer.within(schema)?;
    }
    Ok(match lora {
        None => writer,
        Some(lora) => writer.with_lora(lora),
    })
}

/// A model, with what a training left beside it.
pub struct OpenModel {
    pub decoder: Arc<Decoder>,
    pub tokenizer: Arc<ChatTokenizer>,
    ops: Arc<dyn Ops>,
    adapter: Option<Adapter>,
}

impl OpenModel {
    pub fn lora(&self) -> Option<LoraSet> {
        let factors = self.adapter.as_ref().filter(|adapter| !adapter.pairs.is_empty());
        factors.map(|adapter| adapter.constants(self.ops.as_ref()))
    }
}

/// Under an adapter in float32, whatever is wanted: what was trained beside weights in float32 is computed so.
///
/// # Errors
/// When the files can't be read or don't fit together.
pub fn open_model(
    model: &Path,
    tuned: Option<&Path>,
    (device, wanted): (DeviceName, Arithmetic),
) -> std::result::Result<OpenModel, AnswerError> {
    let (weights, adapter) = Weights::open_trained::<AnswerError>(model, tuned)?;
    let wanted = if adapter.is_some() { Arithmetic::F32 } else { wanted };
    let decoder = Arc::new(arithmetic::open(&weights, device, wanted)?.0);
    let ops = decoder.ops().clone();
    if let Some(adapter) = &adapter {
        adapter.check(&decoder.config)?;
    }
    let tokenizer = Arc::new(ChatTokenizer::open(model)?);
    Ok(OpenModel { decoder, tokenizer, ops, adapter })
}

pub fn run(
    run: &Run<'_>,
    dataset: &Finished<DatasetCard>,
    trained: &Finished<TrainReport>,
    quantized: &Finished<QuantizedFiles>,
) -> Result<Finished<Evaluated>> {
    let recipe = run.recipe();
    let base = run.base(&run.sink.stage(Stage::Eval))?;
    let prices = recipe.eval.prices.as_deref().map(prices::read).transpose()?;
    let mut inputs = BTreeMap::from([
        ("base".to_owned(), base.digest.clone()),
        ("dataset".to_owned(), dataset.summary.digest.clone()),
        ("train".to_owned(), trained.digest()),
        ("quantize".to_owned(), quantized.digest()),
    ]);
    if let Some(path) = &recipe.eval.prices {
        inputs.insert("prices".to_owned(), sha256_file(path).map_err(|e| cannot("read the price table", path, &e))?);
    }
    run.stage(Stage::Eval, inputs, |emit, _| {
        let device: DeviceName = recipe.model.device.parse()?;
        if recipe.eval.gates.is_empty() {
            let text = "the recipe has no [[eval.gate]]: nothing is demanded, so nothing will be promoted".to_owned();
            emit.emit(EventKind::Warning { text });
        }
        let dataset = Dataset::load(&run.dataset_dir())?;
        let labels = dataset.card.labels.clone();
        let fields =
            run.resolved.schema.as_ref().map(|file| Fields { schema: file.schema.clone(), text: file.text.clone() });
        let in_words = fields.is_some();
        let texts = fields.as_ref().is_some_and(|fields| fields.schema.is_text());
        let other = OTHER_WAY[usize::from(recipe.task.constrained == Some(true))];
        let program = program(Stage::Eval);
        let schema = run.resolved.schema.as_ref().map(|file| file.schema.clone());
        let constrained = recipe.task.constrained == Some(true);
        let [other_way, usual] = [!constrained, constrained].map(|constrained| Writing {
            max_new_tokens: max_new_tokens(recipe),
            within: schema.clone().filter(|_| constrained),
        });
        // Freely they can be written under any schema, kept to it not under every one.
        let unkept = schema.as_ref().filter(|_| !constrained && !texts).and_then(|schema| schema.grammar("").err());
        if let Some(e) = &unkept {
            let text = format!(
                "what keeping answers to the schema would do is not measured, for they can't be kept to it: {e}"
            );
            emit.emit(EventKind::Note { text });
        }
        let both_ways = in_words && !texts && unkept.is_none();
        let write = |name: &str,
                     title: &str,
                     (digest, by): (&str, Arithmetic),
                     open: (PathBuf, Option<PathBuf>),
                     writing: &Writing| {
            let key = sha256_hex(format!("{digest} {device} {program} {}", writing.key()).as_bytes());
            let writing = writing.clone();
            Arm::writer(name, title, &key, move || {
                let writer = open_writer(&open.0, open.1.as_deref(), (device, by), &writing)?;
                Ok(Box::new(WriterArm { writer, texts }) as Box<dyn AnswerWriter>)
            })
        };
        let model = |name: &str, title: &str, digest: &str, file: PathBuf, tuned: Option<PathBuf>, by: Arithmetic| {
            // Answers that were kept before there was a choice were computed in float32.
            let digest = if by == Arithmetic::F32 { digest.to_owned() } else { format!("{digest} {by}") };
            if in_words {
                // Writing takes its time, and only the candidate's confidence decides anything.
                return write(name, title, (&digest, by), (file, tuned), &usual)
                    .calibrated(name == recipe.quantize.ship);
            }
            let how = (device, by);
            let key = sha256_hex(format!("{digest} {device} {program}").as_bytes());
            let labels = labels.clone();
            Arm::model(name, title, &key, move || {
                Ok(Box::new(ModelArm(open_scorer(&file, tuned.as_deref(), how, &labels)?)) as Box<dyn Answerer>)
            })
        };
        let task = match &run.resolved.schema {
            Some(file) => Task::Fields(file.schema.clone(), file.text.clone()),
            None => Task::Labels(labels.clone()),
        };
        let ranking = ranking(recipe, &labels, dataset.rows(Split::Test), emit)?;
        // Before the models are in this process's memory, and before what takes long.
        let loads = load::tests(run, &dataset, quantized, &task, prices.as_ref(), emit)?;
        let mut arms = vec![Arm::recorded(FRONTIER, "the frontier model, as recorded in the traces")];
        if !in_words {
            arms.push(Arm::linear_floor(LINEAR, "TF-IDF and logistic regression on the same train split"));
        }
        if recipe.eval.base {
            let title = "the base model, untuned";
            arms.push(model(BASE, title, &base.digest, base.path.clone(), None, Arithmetic::F32));
        }
        arms.push(model(
            TUNED,
            match recipe.train.method {
                Method::Lora if recipe.train.head == Head::Classification => "the base under its adapter and head",
                Method::Lora => "the base under its adapter",
                Method::Full if recipe.train.head == Head::Classification => {
                    "the base with all its weights trained, under a head"
                }
                Method::Full => "the base with all its weights trained",
            },
            &format!("{} {}", base.digest, trained.digest()),
            base.path.clone(),
            Some(outcome(run)),
            Arithmetic::F32,
        ));
        for format in &recipe.quantize.formats {
            let Some(file) = quantized.summary.get(format) else { continue };
            let by = arithmetic(run, &run.dir.join(&file.file))?;
            let title = match by {
                Arithmetic::Served => format!("the {format} file itself, computed from its blocks as it is served"),
                Arithmetic::F32 => format!("the {format} file itself, read back"),
            };
            arms.push(model(format, &title, &file.sha256, run.dir.join(&file.file), None, by));
            if *format == recipe.quantize.ship && both_ways {
                let what = if constrained { "its answers written freely" } else { "its answers kept to the schema" };
                let title = format!("the {format} file, {what}");
                let digest = if by == Arithmetic::F32 { file.sha256.clone() } else { format!("{} {by}", file.sha256) };
                let open = (run.dir.join(&file.file), None);
                arms.push(write(other, &title, (&digest, by), open, &other_way).calibrated(false));
            }
        }
        for EvalArm { name, kind } in &recipe.eval.arms {
            let train = dataset.rows(Split::Train);
            match kind {
                ArmKind::Endpoint(arm) => {
                    let kept = live::kept_in(&run.asked_in(), name);
                    let prices = prices.as_ref();
                    let live = Live::new(name, arm, task.clone(), train, recipe, prices, kept, run.settings)?;
                    let title = format!("{}, a live model at {}", arm.model, arm.url);
                    let (key, model) = (live.key(), arm.model.clone());
                    let open =
                        move || Ok(Box::new(LiveArm::open(live, emit).map_err(live::Told::of)?) as Box<dyn Respondent>);
                    arms.push(Arm::endpoint(name, &title, &key, &model, open).calibrated(arm.calibrate));
                }
                ArmKind::FewShot { shots, prompt } => {
                    let prompt = live::prompt(&task, None, *prompt, *shots, train, recipe.seed);
                    arms.push(few_shot(name, prompt, *shots, base, device, &task, &usual));
                }
                ArmKind::Cascade { of, threshold } => {
                    let threshold = threshold.unwrap_or(recipe.eval.threshold);
                    let title =
                        format!("{}, each where those before it are less than {threshold} sure", of.join(", then "));
                    arms.push(Arm::composed(name, &title, Composition::Cascade { threshold }, of.clone()));
                }
                ArmKind::Ensemble { of } => {
                    let title = format!("{}, their calibrated probabilities added up", of.join(" and "));
                    arms.push(Arm::composed(name, &title, Composition::Ensemble, of.clone()));
                }
            }
        }
        let constraint = both_ways.then(|| Constraint { constrained, other: other.to_owned() });
        let plan = plan(run, &labels, prices.clone(), &base.name, quantized);
        let plan = EvalPlan { fields, constraint, loads, ranking, ..plan };
        let rows = Rows {
            card: &dataset.card,
            train: dataset.rows(Split::Train),
            calibration: dataset.rows(Split::Calibration),
            test: dataset.rows(Split::Test),
        };
        let mut judges = Vec::new();
        for EvalJudge { name, kind: JudgeKind::Pairwise(judge) } in &recipe.eval.judges {
            let kept = live::kept_in(&run.asked_in(), &format!("judge-{name}"));
            let (prices, endpoint) = (prices.as_ref(), judge.endpoint());
            let live = Live::new(name, &endpoint, task.clone(), &[], recipe, prices, kept, run.settings)?;
            judges.push(PairwiseJudge::new(name, &judge.against, judge.rows, move || {
                let judge = LiveJudge::open(live, judge.criteria.as_deref(), emit).map_err(live::Told::of)?;
                Ok(Box::new(judge) as Box<dyn Comparer>)
            }));
        }
        let report = evaluate_judged(&plan, arms, judges, rows, emit)?;
        report.save(&plan.dir, emit)?;
        let summary = Evaluated {
            verdict: report.verdict,
            headline: report.headline.clone(),
            report: "eval/report.json".to_owned(),
            page: "eval/report.html".to_owned(),
        };
        let mut outputs = vec![summary.report.clone(), summary.page.clone()];
        outputs.extend(report.policy.iter().map(|_| POLICY.to_owned()));
        Ok(Work { line: format!("gates: {}", report.verdict.name()), outputs, summary })
    })
}

/// The arithmetic in which a quantized file is judged, and served.
///
/// # Errors
/// When the file can't be read.
pub fn arithmetic(run: &Run<'_>, file: &Path) -> Result<Arithmetic> {
    let recipe = run.recipe();
    let wanted = match recipe.eval.arithmetic {
        EvalArithmetic::Served => Arithmetic::Served,
        EvalArithmetic::F32 => Arithmetic::F32,
    };
    Ok(wanted.of(&Weights::open(file)?, recipe.model.device.parse()?))
}

/// The untuned base with examples in its prompt.
fn few_shot<'a>(
    name: &str,
    prompt: Prompt,
    shots: usize,
    base: &Base,
    device: DeviceName,
    task: &Task,
    writing: &Writing,
) -> Arm<'a> {
    let title =
        format!("the base model, untuned, with {shots} example{} in its prompt", if shots == 1 { "" } else { "s" });
    let (digest, told, file) = (&base.digest, prompt.sha256(), base.path.clone());
    let program = program(Stage::Eval);
    let key = sha256_hex(format!("{digest} {device} {program} {told} {}", writing.key()).as_bytes());
    match task {
        Task::Labels(labels) => {
            let labels = labels.clone();
            Arm::model(name, &title, &key, move || {
                let arm = ModelArm(open_scorer(&file, None, (device, Arithmetic::F32), &labels)?);
                Ok(Box::new(Prompted(prompt, arm)) as Box<dyn Answerer>)
            })
        }
        Task::Fields(schema, _) => {
            let (texts, writing) = (schema.is_text(), writing.clone());
            Arm::writer(name, &title, &key, move || {
                let arm = WriterArm { writer: open_writer(&file, None, (device, Arithmetic::F32), &writing)?, texts };
                Ok(Box::new(Prompted(prompt, arm)) as Box<dyn AnswerWriter>)
            })
        }
    }
    .calibrated(false)
}

fn plan(
    run: &Run<'_>,
    labels: &[String],
    prices: Option<PriceTable>,
    base: &str,
    quantized: &Finished<QuantizedFiles>,
) -> EvalPlan {
    let recipe = run.recipe();
    let e = &recipe.eval;
    let mut made = vec![Fact::new("base model", base)];
    for (format, file) in &quantized.summary {
        let shipped = if *format == recipe.quantize.ship { " (shipped)" } else { "" };
        let value = format!(
            "{:.1} MB, {:.2} bits a weight, SHA-256 {}",
            file.bytes as f64 / 1e6,
            file.bits_per_weight,
            file.sha256
        );
        made.push(Fact::new(format!("{format} file{shipped}"), value));
    }
    EvalPlan {
        name: recipe.name.clone(),
        version: recipe.version.clone(),
        program_version: PROGRAM_VERSION.to_owned(),
        labels: labels.to_vec(),
        fields: None,
        out_of_scope: e.out_of_scope.as_ref().and_then(|name| labels.iter().position(|label| label == name)),
        ranking: None,
        candidate: recipe.quantize.ship.clone(),
        constraint: None,
        frontier: Some(FRONTIER.to_owned()),
        gates: e.gates.iter().map(|gate| Gate { name: gate.name.clone(), rule: rule(&gate.rule) }).collect(),
        threshold: e.threshold,
        escalation: e.escalation.max_error.map(|max_error| Escalation {
            target: Target { max_error, confidence: e.escalation.confidence },
            review_share: e.escalation.review_share,
            valid_days: e.escalation.valid_days,
        }),
        calibration: match e.calibration {
            CalibrationMethod::Temperature => limbeck_eval::Method::Temperature,
            CalibrationMethod::Platt => limbeck_eval::Method::Platt,
            CalibrationMethod::Isotonic => limbeck_eval::Method::Isotonic,
            CalibrationMethod::None => limbeck_eval::Method::None,
        },
        fallback: e.escalation.fallback.clone(),
        risk: Risk { alpha: 1.0 - e.confidence, power: e.power },
        bootstrap_resamples: u32::try_from(e.bootstrap_samples).unwrap_or(u32::MAX),
        seed: recipe.seed,
        prices,
        look: quantized.summary.get(&recipe.quantize.ship).map(|file| Look {
            store: run.settings.looks_dir(),
            candidate: file.sha256.clone(),
            run: recipe.name.clone(),
            at: journal::now(),
        }),
        dir: run.folder(Stage::Eval),
        loads: BTreeMap::new(),
        bytes: quantized.summary.get(&recipe.quantize.ship).map(|file| file.bytes),
        made,
        notes: recipe.data.notes.clone(),
        reproduce: vec![format!("limbeck run {}", recipe_arg(&run.resolved))],
        mistakes: MISTAKES,
    }
}

/// Query and item of each row, where items are put in order.
///
/// # Errors
/// When no message has both.
fn ranking(recipe: &Recipe, labels: &[String], rows: &[Example], emit: &dyn Emit) -> Result<Option<RankingPlan>> {
    let Some(wanted) = &recipe.eval.ranking.positive else { return Ok(None) };
    let Some(positive) = labels.iter().position(|label| label == wanted) else { return Ok(None) };
    let separator = &recipe.eval.ranking.separator;
    let item = |row: &Example| {
        let text = &row.messages.iter().rfind(|message| message.role == "user")?.content;
        let (query, item) = text.split_once(separator)?;
        Some((row.id.clone(), (query.to_owned(), item.chars().count() as u64)))
    };
    let items: BTreeMap<_, _> = rows.iter().filter_map(item).collect();
    let without = rows.len() - items.len();
    if items.is_empty() && without > 0 {
        let message =
            format!("no message of the test split holds \"{separator}\", where a query ends and its item begins");
        let help = "set eval.ranking.separator to the word at which your messages go on from query to item";
        return Err(Failure::new(Exit::RecipeInvalid, message).help(help));
    }
    if without > 0 {
        let text = format!(
            "{without} of {} test messages do not hold \"{separator}\" (eval.ranking.separator): they are left out of the order",
            rows.len()
        );
        emit.emit(EventKind::Warning { text });
    }
    Ok(Some(RankingPlan { positive, items }))
}

/// Where a written answer is cut off, in tokens.
pub fn max_new_tokens(recipe: &Recipe) -> usize {
    recipe.task.max_new_tokens.unwrap_or(256)
}

fn rule(rule: &GateRule) -> Rule {
    match rule.clone() {
        GateRule::Floor { metric, min } => Rule::Floor {
            metric: match metric {
                limbeck_recipes::Metric::Accuracy => Metric::Accuracy,
                limbeck_recipes::Metric::MacroF1 => Metric::MacroF1,
                limbeck_recipes::Metric::ExactMatch => Metric::ExactMatch,
                limbeck_recipes::Metric::Validity => Metric::Validity,
                limbeck_recipes::Metric::RougeL => Metric::RougeL,
            },
            min,
        },
        GateRule::Improvement { over, min } => Rule::Improvement { over, min },
        GateRule::NonInferiority { against, margin } => Rule::NonInferiority { against, margin },
        GateRule::PerClassRecall { min } => Rule::PerClassRecall { min },
        GateRule::Cell { gold, predicted, max } => Rule::Cell { gold, predicted, max },
        GateRule::Quantization { against, max_agreement_loss, max_accuracy_loss, max_kl } => {
            Rule::Quantization { against, max_agreement_loss, max_accuracy_loss, max_kl }
        }
        GateRule::SliceFloor { by, min } => Rule::SliceFloor {
            by: match by {
                SliceBy::Class => By::Class,
                SliceBy::Length => By::Length,
                SliceBy::Time => By::Time,
                SliceBy::Customer => By::Customer,
                SliceBy::Source => By::Source,
                SliceBy::Script => By::Script,
                SliceBy::Language => By::Language,
            },
            min,
        },
        GateRule::Judge { judge, min } => Rule::Judge { judge, min },
        GateRule::CertifiedCoverage { min } => Rule::CertifiedCoverage { min },
        GateRule::Fallback {} => Rule::Fallback {},
        GateRule::Latency { p95_ms, under_load: false } => Rule::Latency { p95_ms },
        GateRule::Latency { p95_ms, under_load: true } => Rule::LatencyUnderLoad { p95_ms },
        GateRule::InjectionCanary { max_flips } => Rule::InjectionCanary { max_flips },
        GateRule::PiiCanary { max_leaks } => Rule::PiiCanary { max_leaks },
        GateRule::Calibration { max_error } => Rule::Calibration { max_error },
        GateRule::Cost { max_per_1k_calls } => Rule::Cost { max_per_1k_calls },
        GateRule::Size { max_mb } => Rule::Size { max_mb },
        GateRule::Reviewed { of, min } => Rule::Reviewed {
            of: match of {
                SplitName::Train => Split::Train,
                SplitName::Valid => Split::Valid,
                SplitName::Calibration => Split::Calibration,
                SplitName::Test => Split::Test,
            },
            min,
        },
    }
}
