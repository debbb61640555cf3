//! `limbeck score`: an artifact's answer to a message, or to a stream of them. The artifact is verified first.

use crate::args::Score;
use crate::exit::{Exit, Failure, Result};
use crate::output;
use crate::settings::Settings;
use crate::stages::eval::open_scorer;
use crate::verbs::verify;
use limbeck_artifact::dataset::Message;
use limbeck_artifact::keys;
use limbeck_artifact::manifest::ArtifactManifest;
use limbeck_artifact::store::Store;
use limbeck_artifact::untrusted::visible_line;
use limbeck_eval::{Report, temper};
use limbeck_model::device::DeviceName;
use limbeck_model::score::LabelScorer;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Longest line or message that is read, in bytes.
const MAX_BYTES: u64 = 1 << 20;

pub fn score(settings: &Settings, args: &Score) -> Result<Exit> {
    let dir = locate(args)?;
    let manifest = match args.no_verify {
        true => ArtifactManifest::load(&dir)?,
        false => {
            let key = keys::load_public(&args.key).map_err(|e| {
                Failure::of(Exit::VerificationFailed, &e)
                    .help("name the signer's public key with --key PUB; --no-verify answers without checking")
            })?;
            verify::check(&dir, &key)?.1
        }
    };
    let scorer = Scorer::open(&dir, manifest, settings, args.threshold)?;
    if args.jsonl {
        return stream(&scorer);
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
        output::stdout(&format!(
            "{}\n  confidence {:.3} · {} (threshold {})\n",
            visible_line(&answer.label),
            answer.confidence,
            answer.route,
            scorer.threshold
        ))?;
    }
    Ok(Exit::Ok)
}

/// The folder of the artifact that was named: itself, or what a channel serves.
fn locate(args: &Score) -> Result<PathBuf> {
    let path = Path::new(&args.artifact);
    if path.join(limbeck_artifact::manifest::FILE_NAME).is_file() {
        return Ok(path.to_owned());
    }
    if path.is_dir() {
        let message = format!("{} is no artifact: it holds no manifest.json", path.display());
        return Err(Failure::new(Exit::Usage, message)
            .help("name the folder that `limbeck package` made, such as runs/NAME/package"));
    }
    if !args.store.is_dir() {
        let message = format!(
            "there is no folder {}, and no store at {} to look a channel up in",
            path.display(),
            args.store.display()
        );
        return Err(Failure::new(Exit::Usage, message).help("name an artifact's folder, or a store with --store DIR"));
    }
    let store = Store::open(&args.store)?;
    let channels = store.channels()?;
    let known: Vec<(&String, &String)> = channels.iter().flat_map(|(m, of)| of.keys().map(move |c| (m, c))).collect();
    let wanted = |(model, channel): &(&String, &String)| {
        args.artifact == **channel || args.artifact == format!("{model}/{channel}")
    };
    let found: Vec<&(&String, &String)> = known.iter().filter(|pair| wanted(pair)).collect();
    match found.as_slice() {
        [(model, channel)] => Ok(store.resolve(model, channel)?),
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

struct Scorer {
    scorer: LabelScorer,
    system: Option<String>,
    temperature: f64,
    threshold: f64,
}

#[derive(Debug, Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<Value>,
    label: String,
    /// Of the label, after the temperature that was fitted on the calibration split.
    confidence: f64,
    /// `serve` or `escalate`.
    route: &'static str,
    latency_ms: f64,
    /// The runners-up, likeliest first.
    others: Vec<(String, f64)>,
}

impl Scorer {
    fn open(dir: &Path, manifest: ArtifactManifest, settings: &Settings, threshold: Option<f64>) -> Result<Scorer> {
        let device: DeviceName = settings.device.as_deref().unwrap_or("cpu").parse()?;
        let model = manifest.file(dir, "model")?;
        let report = Report::load(&manifest.file(dir, "report")?)?;
        let calibration = report.candidate_arm().and_then(|arm| arm.calibration.as_ref());
        let scorer = open_scorer(&model, None, device, &manifest.task.labels)
            .map_err(|e| Failure::new(Exit::Unexpected, format!("failed to open {}: {e}", model.display())))?;
        let threshold = threshold.or(manifest.threshold).unwrap_or(0.0);
        if !(0.0..=1.0).contains(&threshold) {
            return Err(Failure::new(Exit::Usage, format!("a threshold of {threshold} is not between 0 and 1")));
        }
        Ok(Scorer {
            scorer,
            system: manifest.task.system,
            temperature: calibration.map_or(1.0, |c| c.temperature),
            threshold,
        })
    }

    /// The artifact's system prompt takes the place of whatever the caller sent, as in training.
    fn answer(&self, messages: &[Message]) -> Result<Answer> {
        let begun = Instant::now();
        let mut asked: Vec<Message> = Vec::new();
        if let Some(system) = &self.system {
            asked.push(Message::new("system", system));
        }
        let keep = |m: &&Message| self.system.is_none() || !matches!(m.role.as_str(), "system" | "developer");
        asked.extend(messages.iter().filter(keep).cloned());
        let posterior = temper(&self.scorer.score(&asked)?, self.temperature);
        let mut order: Vec<usize> = (0..posterior.len()).collect();
        order.sort_by(|a, b| posterior[*b].total_cmp(&posterior[*a]).then(a.cmp(b)));
        let named = |i: &usize| (self.scorer.labels()[*i].clone(), posterior[*i]);
        let Some((label, confidence)) = order.first().map(named) else {
            return Err(Failure::new(Exit::Unexpected, "the artifact names no labels"));
        };
        let route = if confidence >= self.threshold { "serve" } else { "escalate" };
        let others = order.iter().skip(1).take(3).map(named).collect();
        Ok(Answer { id: None, label, confidence, route, latency_ms: begun.elapsed().as_secs_f64() * 1e3, others })
    }
}

fn user(text: &str) -> Message {
    Message::new("user", text)
}

/// A line of the stream.
#[derive(Deserialize)]
struct Question {
    #[serde(default)]
    id: Option<Value>,
    #[serde(default)]
    text: Option<String>,
    #[serde(default)]
    messages: Option<Vec<Message>>,
}

/// Answers each line as it comes. A line that can't be answered is answered with why, and the stream goes on.
fn stream(scorer: &Scorer) -> Result<Exit> {
    let mut input = std::io::stdin().lock();
    let (mut number, mut bad) = (0u64, 0u64);
    let mut line = Vec::new();
    loop {
        line.clear();
        if (&mut input).take(MAX_BYTES + 1).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        number += 1;
        let answer = match line.len() as u64 > MAX_BYTES {
            true => {
                skip_line(&mut input)?;
                Err((None, format!("the line is longer than {MAX_BYTES} bytes")))
            }
            false if line.trim_ascii().is_empty() => continue,
            false => answer_line(scorer, &line),
        };
        let value = match answer {
            Ok(answer) => serde_json::to_value(&answer)?,
            Err((id, why)) => {
                bad += 1;
                json!({"id": id, "line": number, "error": why})
            }
        };
        output::stdout(&format!("{value}\n"))?;
    }
    if bad > 0 {
        output::stderr(&format!("{bad} of {number} lines could not be answered; each has an `error`\n"));
    }
    Ok(Exit::Ok)
}

fn answer_line(scorer: &Scorer, line: &[u8]) -> std::result::Result<Answer, (Option<Value>, String)> {
    let question: Question = serde_json::from_slice(line).map_err(|e| (None, format!("not a question: {e}")))?;
    let messages = match (question.text, question.messages) {
        (Some(text), None) if !text.trim().is_empty() => vec![user(&text)],
        (None, Some(messages)) if !messages.is_empty() => messages,
        _ => return Err((question.id, "a line needs either `text` or `messages`".to_owned())),
    };
    match scorer.answer(&messages) {
        Ok(answer) => Ok(Answer { id: question.id, ..answer }),
        Err(failure) => Err((question.id, failure.message)),
    }
}

fn skip_line(input: &mut impl BufRead) -> std::io::Result<()> {
    loop {
        let (used, ended) = {
            let piece = input.fill_buf()?;
            match piece.iter().position(|b| *b == b'\n') {
                Some(at) => (at + 1, true),
                None => (piece.len(), piece.is_empty()),
            }
        };
        input.consume(used);
        if ended {
            return Ok(());
        }
    }
}
