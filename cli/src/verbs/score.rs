//! `limbeck score`: an artifact's answer to a message, or to a stream of them. The artifact is verified first.

mod stream;

use crate::args::{ArtifactArgs, OWN_KEY, Score};
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::sealing;
use crate::settings::Settings;
use crate::stages::eval::{Writing, may_go_on, open_scorer, open_writer};
use crate::stores;
use crate::verbs::verify;
use limbeck_artifact::dataset::Message;
use limbeck_artifact::keys;
use limbeck_artifact::manifest::ArtifactManifest;
use limbeck_artifact::schema::Schema;
use limbeck_artifact::store::{LaidOut, Trusted};
use limbeck_artifact::untrusted::{visible, visible_line};
use limbeck_eval::{Action, Calibrator, Policy, Report};
use limbeck_model::arithmetic::Arithmetic;
use limbeck_model::device::DeviceName;
use limbeck_model::generate::{Batch, WriteError, Writer, Written};
use limbeck_model::score::{LabelScorer, ScoreError};
use serde::Serialize;
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::time::Instant;

/// Longest line or message that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

pub fn score(settings: &Settings, args: &Score) -> Result<Exit> {
    let (dir, manifest) = find(&args.of)?;
    let scorer = Scorer::open(&dir, manifest, settings, args.threshold, args.arithmetic.map(Arithmetic::from))?
        .with_batch(usize::from(args.batch));
    // What was decrypted to be read is read.
    drop(dir);
    if args.jsonl {
        return stream::answer(scorer, usize::from(args.batch));
    }
    let text = match &args.text {
        Some(text) => text.clone(),
        None => {
            let mut text = String::new();
            std::io::stdin().lock().take(MAX_BYTES).read_to_string(&mut text)?;
            text
        }
    };
    if text.trim().is_empty() {
        return Err(
            Failure::new(Exit::Usage, "there is no message to answer").help("limbeck score ARTIFACT \"a message\"")
        );
    }
    let answer = scorer.answer(&[user(text.trim())])?;
    if settings.json {
        output::json(&serde_json::to_value(&answer)?)?;
    } else {
        let fault = answer.fault.as_ref().map_or(String::new(), |why| format!(" · not valid: {}", visible_line(why)));
        output::stdout(&format!(
            "{}\n  confidence {:.3} · {} ({}){fault}\n",
            if answer.text.is_some() { visible(answer.text()) } else { visible_line(answer.text()) },
            answer.confidence,
            answer.route,
            scorer.rule.words(answer.score)
        ))?;
    }
    Ok(Exit::Ok)
}

/// The artifact that was named, verified unless that was waived.
///
/// # Errors
/// When there is none, its signature is not the key's, or the store's trust policy does not admit it.
pub fn find(args: &ArtifactArgs) -> Result<(LaidOut, ArtifactManifest)> {
    let (dir, trusted) = locate(args)?;
    if args.no_verify {
        let manifest = ArtifactManifest::load(&dir)?;
        return Ok((dir, manifest));
    }
    let named = match (&args.key, &trusted) {
        (None, Some(_)) => None,
        (key, _) => Some(public_key(key.as_deref())?),
    };
    let mut manifest = None;
    if let Some(key) = named {
        manifest = Some(verify::check(&dir, &key)?.1);
    }
    if let Some(trusted) = trusted {
        let (verified, found) = verify::check(&dir, &trusted.key)?;
        trusted.version.check_files(&verified.files)?;
        manifest = Some(found);
    }
    let manifest = manifest.ok_or_else(|| Failure::new(Exit::VerificationFailed, "nothing was checked"))?;
    Ok((dir, manifest))
}

/// The key that an artifact must be signed with, where no trust policy says so.
///
/// # Errors
/// When there is none.
pub fn public_key(path: Option<&Path>) -> Result<keys::VerifyingKey> {
    keys::load_public(path.unwrap_or(Path::new(OWN_KEY))).map_err(|e| {
        Failure::of(Exit::VerificationFailed, &e)
            .help("name the signer's public key with --key PUB; --no-verify answers without checking")
    })
}

/// The folder of the artifact that was named: itself, or what a channel serves and what it has to be under a trust policy.
fn locate(args: &ArtifactArgs) -> Result<(LaidOut, Option<Trusted>)> {
    let path = Path::new(&args.artifact);
    if path.join(limbeck_artifact::manifest::FILE_NAME).is_file() {
        return Ok((path.to_owned().into(), None));
    }
    sealing::refuse(path, limbeck_artifact::manifest::FILE_NAME)?;
    if path.is_dir() {
        let message = format!("{} is no artifact: it holds no manifest.json", path.display());
        return Err(Failure::new(Exit::Usage, message)
            .help("name the folder that `limbeck package` made, such as runs/NAME/package"));
    }
    let Some(store) = stores::find(&args.store)? else {
        let message = format!(
            "there is no folder {}, and no store at {} to look a channel up in",
            path.display(),
            args.store.display()
        );
        return Err(Failure::new(Exit::Usage, message).help("name an artifact's folder, or a store with --store DIR"));
    };
    let channels = store.channels()?;
    let known: Vec<(&String, &String)> = channels.iter().flat_map(|(m, of)| of.keys().map(move |c| (m, c))).collect();
    let wanted = |(model, channel): &(&String, &String)| {
        args.artifact == **channel || args.artifact == format!("{model}/{channel}")
    };
    let found: Vec<&(&String, &String)> = known.iter().filter(|pair| wanted(pair)).collect();
    match found.as_slice() {
        [(model, channel)] => {
            // Asked first: what is not to be trusted is not laid out either.
            let trusted = if args.no_verify { None } else { store.trusted(model, channel)? };
            Ok((store.resolve(model, channel)?, trusted))
        }
        _ => {
            let listed: Vec<String> = known.iter().map(|(m, c)| format!("{m}/{c}")).collect();
            let message = match found.len() {
                0 => format!("there is no folder and no channel {}", args.artifact),
                n => format!("{n} models have a channel {}", args.artifact),
            };
            let help = match listed.is_empty() {
                true => format!("nothing is promoted in {} yet; `limbeck run RECIPE` promotes", args.store.display()),
                false => format!("the channels are {}", listed.join(", ")),
            };
            Err(Failure::new(Exit::Usage, message).help(help))
        }
    }
}

/// How the artifact answers.
enum Model {
    Labels(LabelScorer),
    Writes(Box<Writer>, Schema),
}

/// An open artifact.
pub struct Scorer {
    model: Model,
    system: Option<String>,
    calibrator: Calibrator,
    rule: Rule,
}

/// What decides between serving and escalating.
enum Rule {
    /// On the confidence: the caller's own number or the recipe's.
    Threshold(f64),
    /// On the model's own probability: a certificate's.
    Policy(Box<Policy>),
}

impl Rule {
    fn route(&self, score: f64, confidence: f64) -> &'static str {
        match self {
            Rule::Threshold(threshold) if confidence >= *threshold => Action::Serve.name(),
            Rule::Threshold(_) => Action::Escalate.name(),
            Rule::Policy(policy) => policy.route(score).name(),
        }
    }

    fn words(&self, score: Option<f64>) -> String {
        match self {
            Rule::Threshold(threshold) => format!("threshold {threshold}"),
            Rule::Policy(policy) => match (policy.threshold(), score) {
                (None, _) => "nothing could be certified: every call escalates".to_owned(),
                (Some(from), Some(score)) => format!("score {score:.4}, certified from {from:.4}"),
                (Some(from), None) => format!("certified from {from:.4}"),
            },
        }
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// None where what was written is not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    fields: Option<Value>,
    /// Where answers are texts; none where what was written is not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    /// The fields as JSON, in the schema's order.
    #[serde(skip)]
    canonical: Option<String>,
    /// What was written where it is not valid, and why it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
    /// Of the label, or of all that was written, after the calibration that was fitted on the calibration split.
    pub confidence: f64,
    /// The model's own probability of it, before calibration: what a certified threshold is on. None where the answer is
    /// not valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// `serve`, `serve_and_review` or `escalate`.
    pub route: &'static str,
    /// From when the model was asked until the answer was there.
    latency_ms: f64,
    /// So many were written at once, where it was not this one alone: a call of its own takes less time.
    #[serde(skip_serializing_if = "Option::is_none")]
    batch: Option<usize>,
    /// Where the model told.
    #[serde(skip)]
    pub prompt_tokens: Option<usize>,
    /// The runners-up, likeliest first.
    #[serde(skip_serializing_if = "Option::is_none")]
    others: Option<Vec<(String, f64)>>,
}

impl Answer {
    /// The answer as a person reads it.
    pub fn text(&self) -> &str {
        let said = [&self.label, &self.text, &self.canonical, &self.written];
        said.into_iter().flatten().next().map_or("", String::as_str)
    }
}

impl Scorer {
    /// # Errors
    /// When its files can't be read or don't fit together.
    pub fn open(
        dir: &Path,
        manifest: ArtifactManifest,
        settings: &Settings,
        threshold: Option<f64>,
        arithmetic: Option<Arithmetic>,
    ) -> Result<Scorer> {
        // As it was evaluated; artifacts of versions that knew one arithmetic say nothing.
        let evaluated = || match manifest.arithmetic.as_deref() {
            Some("served") => Arithmetic::Served,
            _ => Arithmetic::F32,
        };
        let arithmetic = arithmetic.unwrap_or_else(evaluated);
        let device: DeviceName = settings.device.as_deref().unwrap_or("cpu").parse()?;
        let model = manifest.file(dir, "model")?;
        // What stands in for an artifact in a load test has no evaluation yet.
        let report = manifest.file(dir, "report").ok().map(|path| Report::load(&path)).transpose()?;
        let calibration = report.as_ref().and_then(|r| r.candidate_arm()).and_then(|arm| arm.calibration.as_ref());
        let cannot = |e| Failure::new(Exit::Unexpected, format!("failed to open {}: {e}", model.display()));
        let answers = match &manifest.task.schema {
            None => {
                Model::Labels(open_scorer(&model, None, (device, arithmetic), &manifest.task.labels).map_err(cannot)?)
            }
            Some(text) => {
                let schema = Schema::parse(text)
                    .map_err(|e| Failure::new(Exit::Unexpected, format!("the artifact's schema can't be used: {e}")))?;
                let writing = Writing {
                    max_new_tokens: manifest.task.max_new_tokens.unwrap_or(256),
                    within: (manifest.task.constrained == Some(true)).then(|| schema.clone()),
                };
                let writer = open_writer(&model, None, (device, arithmetic), &writing).map_err(cannot)?;
                Model::Writes(Box::new(writer), schema)
            }
        };
        if let Some(threshold) = threshold.filter(|t| !(0.0..=1.0).contains(t)) {
            return Err(Failure::new(Exit::Usage, format!("a threshold of {threshold} is not between 0 and 1")));
        }
        let policy = match manifest.file(dir, "policy") {
            Ok(path) => Some(Policy::load(&path)?).filter(|policy| policy.certificate.is_some()),
            // Artifacts of earlier versions have none, nor has one whose candidate gave no scores.
            Err(_) => None,
        };
        let rule = match (threshold, policy) {
            (Some(threshold), _) => Rule::Threshold(threshold),
            (None, Some(policy)) => Rule::Policy(Box::new(policy)),
            (None, None) => Rule::Threshold(manifest.threshold.unwrap_or(0.0)),
        };
        Ok(Scorer {
            model: answers,
            system: manifest.task.system,
            calibrator: calibration.map_or(Calibrator::None, |c| c.calibrator()),
            rule,
        })
    }

    /// From which number an answer is served, and which number that is; None where nothing could be certified.
    pub fn served_from(&self) -> (Option<f64>, &'static str) {
        match &self.rule {
            Rule::Threshold(threshold) => (Some(*threshold), "confidence"),
            Rule::Policy(policy) => (policy.threshold(), "score"),
        }
    }

    /// What the model is asked: the artifact's system prompt takes the place of whatever the caller sent, as in training.
    pub fn asked(&self, messages: &[Message]) -> Vec<Message> {
        let own = self.system.as_ref().map(|system| Message::new("system", system));
        let keep = |m: &&Message| own.is_none() || !matches!(m.role.as_str(), "system" | "developer");
        own.iter().cloned().chain(messages.iter().filter(keep).cloned()).collect()
    }

    /// How many answers in words [`Scorer::answer_all`] writes at once.
    fn with_batch(mut self, most: usize) -> Scorer {
        self.model = match self.model {
            Model::Writes(writer, schema) => Model::Writes(Box::new(writer.with_batch(Batch::of(most))), schema),
            labels => labels,
        };
        self
    }

    /// # Errors
    /// When the model can't take the message.
    pub fn answer(&self, messages: &[Message]) -> Result<Answer> {
        let begun = Instant::now();
        let asked = self.asked(messages);
        let mut answer = match &self.model {
            Model::Labels(scorer) => self.label(scorer, &scorer.score(&asked)?)?,
            Model::Writes(writer, schema) => {
                self.written(writer.write(&asked, &may_go_on(schema.is_text()))?, schema)?
            }
        };
        answer.latency_ms = milliseconds(begun);
        Ok(answer)
    }

    /// Answers several at once, in their order; each answer is the one that it is alone.
    pub fn answer_all(&self, questions: &[&[Message]]) -> Vec<Result<Answer>> {
        if let [one] = questions {
            return vec![self.answer(one)];
        }
        let begun = Instant::now();
        let asked: Vec<Vec<Message>> = questions.iter().map(|messages| self.asked(messages)).collect();
        let asked: Vec<&[Message]> = asked.iter().map(Vec::as_slice).collect();
        match &self.model {
            Model::Labels(scorer) => self.label_all(scorer, &asked, begun),
            Model::Writes(writer, schema) => self.write_all(writer, schema, &asked, begun),
        }
    }

    fn label_all(&self, scorer: &LabelScorer, asked: &[&[Message]], begun: Instant) -> Vec<Result<Answer>> {
        let scored = scorer.score_all(asked);
        let latency_ms = milliseconds(begun);
        let answer = |scored: std::result::Result<(Vec<f32>, usize), ScoreError>| {
            let (posterior, tokens) = scored?;
            let answer = self.label(scorer, &posterior)?;
            Ok(Answer { latency_ms, batch: Some(asked.len()), prompt_tokens: Some(tokens), ..answer })
        };
        scored.into_iter().map(answer).collect()
    }

    fn write_all(&self, writer: &Writer, schema: &Schema, asked: &[&[Message]], begun: Instant) -> Vec<Result<Answer>> {
        let mut times = vec![0.0; asked.len()];
        let written =
            match writer.write_all(asked, &may_go_on(schema.is_text()), &mut |i| times[i] = milliseconds(begun)) {
                Ok(written) => written,
                Err(error) => {
                    let message = error.to_string();
                    return asked.iter().map(|_| Err(Failure::new(Exit::Unexpected, message.clone()))).collect();
                }
            };
        let answer = |(written, latency_ms): (std::result::Result<Written, WriteError>, f64)| {
            let answer = self.written(written?, schema)?;
            Ok(Answer { latency_ms, batch: Some(asked.len()), ..answer })
        };
        written.into_iter().zip(times).map(answer).collect()
    }

    fn written(&self, written: Written, schema: &Schema) -> Result<Answer> {
        let read = match written.ended {
            true => schema.canonical_text(&written.text).map_err(|fault| fault.to_string()),
            false => Err(match may_go_on(schema.is_text())(written.text.trim_start()) {
                true => "it was cut off".to_owned(),
                false => "the answer is no JSON".to_owned(),
            }),
        };
        let blank = Answer::default();
        Ok(match read {
            Ok(text) => {
                let confidence = self.calibrator.confidence(written.probability);
                let route = self.rule.route(written.probability, confidence);
                let answer = Answer { confidence, score: Some(written.probability), route, ..blank };
                match schema.is_text() {
                    true => Answer { text: Some(text), ..answer },
                    false => Answer { fields: Some(serde_json::from_str(&text)?), canonical: Some(text), ..answer },
                }
            }
            // Whatever the threshold: what can't be used is not served.
            Err(why) => Answer { written: Some(written.text), fault: Some(why), route: "escalate", ..blank },
        })
    }

    fn label(&self, scorer: &LabelScorer, given: &[f32]) -> Result<Answer> {
        let posterior = self.calibrator.posterior(given);
        // The model's own order: a curve is about its answer, and says nothing of another.
        let mut order: Vec<usize> = (0..posterior.len()).collect();
        order.sort_by(|a, b| given[*b].total_cmp(&given[*a]).then(a.cmp(b)));
        let named = |i: &usize| (scorer.labels()[*i].clone(), posterior[*i]);
        let Some(first) = order.first() else {
            return Err(Failure::new(Exit::Unexpected, "the artifact names no labels"));
        };
        let ((label, confidence), score) = (named(first), f64::from(given[*first]));
        let others = Some(order.iter().skip(1).take(3).map(named).collect());
        let route = self.rule.route(score, confidence);
        Ok(Answer { label: Some(label), confidence, score: Some(score), route, others, ..Answer::default() })
    }
}

fn user(text: &str) -> Message {
    Message::new("user", text)
}

fn milliseconds(begun: Instant) -> f64 {
    begun.elapsed().as_secs_f64() * 1e3
}
