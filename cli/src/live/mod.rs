//! Live models as a recipe names them: an arm of the evaluation, and a teacher. Puts settings, prices, secrets and prompts
//! together for `limbeck_distill::endpoint`, which knows none of these, and reads what comes back as the task's answers.

mod arm;
mod judge;

pub use arm::{LiveArm, Told, estimate};
pub use judge::LiveJudge;

use crate::exit::{Exit, Failure, Result};
use crate::settings::{Recording, Settings, named_secret};
use crate::stages::program;
use limbeck_artifact::dataset::{Example, Message};
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::journal;
use limbeck_artifact::schema::Schema;
use limbeck_data_curation::taxonomy::label_of;
use limbeck_distill::endpoint::{
    Api, Asked, Budget, Codes, Endpoint, EndpointPlan, Key, MaxTokensKey, Price, Question, Rejection, Replies, Reply,
    Sampling, of_codes, of_samples,
};
use limbeck_distill::prompt::{Prompt, Wanted, pick_shots};
use limbeck_eval::{Fact, PriceTable, Response, Tokens};
use limbeck_recipes::{EndpointApi, EndpointArm, PromptStyle, Recipe};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Before the second attempt.
const BACKOFF: Duration = Duration::from_millis(500);
/// Longest answer where a label is one, in tokens.
const LABEL_TOKENS: u32 = 32;
/// The most that providers give.
const TOP_LOGPROBS: u32 = 20;
/// What was spent is told at most this often.
const TELL: Duration = Duration::from_secs(1);

/// What an answer is.
#[derive(Clone, Debug)]
pub enum Task {
    Labels(Vec<String>),
    Fields(Schema, String),
}

impl Task {
    /// The answer as a label's name, as a text or as the fields' canonical text; none where it is not valid.
    pub fn read(&self, text: &str, codes: Option<&Codes>) -> Option<String> {
        match self {
            Task::Labels(labels) => match codes.and_then(|codes| codes.label(text)) {
                Some(label) => Some(labels[label].clone()),
                None => label_of(labels, first_line(text)).map(str::to_owned),
            },
            Task::Fields(schema, _) => schema.canonical_text(text).ok(),
        }
    }

    pub fn schema(&self) -> Option<&Schema> {
        match self {
            Task::Labels(_) => None,
            Task::Fields(schema, _) => Some(schema),
        }
    }

    /// What spreads examples: the label, or which fields are filled in.
    fn class(&self, row: &Example) -> String {
        match self {
            Task::Labels(_) => row.target.clone(),
            Task::Fields(schema, _) => {
                let answer = schema.read(&row.target).unwrap_or_default();
                let filled = schema.fields().iter().filter(|f| answer.get(&f.name).is_some_and(|v| !v.is_null()));
                filled.map(|f| f.name.as_str()).collect::<Vec<_>>().join(", ")
            }
        }
    }

    fn wanted<'t>(&'t self, codes: Option<&Codes>) -> Wanted<'t> {
        match (self, codes) {
            (Task::Fields(schema, _), _) if schema.is_text() => Wanted::Text,
            (Task::Fields(_, text), _) => Wanted::Fields(text),
            (Task::Labels(labels), Some(codes)) => Wanted::Codes(labels, codes.clone()),
            (Task::Labels(labels), None) => Wanted::Labels(labels),
        }
    }
}

/// The certificates of a file, which is looked into where they are used.
///
/// # Errors
/// When it can't be read.
pub fn authorities(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        let message = format!("failed to read the certificates in {}: {e}", path.display());
        Failure::new(Exit::Usage, message).help("name a PEM file with the certificate of the server's authority")
    })
}

/// A model that goes on with a text goes on after the answer too.
fn first_line(text: &str) -> &str {
    text.trim_start().lines().next().unwrap_or("")
}

/// The prompt of an arm: its instruction, and `shots` reviewed rows of `train`.
pub fn prompt(
    task: &Task,
    codes: Option<&Codes>,
    style: PromptStyle,
    shots: usize,
    train: &[Example],
    seed: u64,
) -> Prompt {
    use limbeck_artifact::dataset::LabelSource;
    let reviewed = train.iter().filter(|row| row.label_source == LabelSource::Human);
    let shots = pick_shots(reviewed, |row| task.class(row), shots, seed);
    Prompt::new(&task.wanted(codes), style == PromptStyle::Guided, &shots)
}

/// A live model with all it takes to ask it for this task.
pub struct Live {
    pub name: String,
    pub task: Task,
    pub codes: Option<Codes>,
    pub prompt: Prompt,
    pub plan: EndpointPlan,
    pub sampling: Sampling,
    /// Draws a question.
    pub samples: u32,
    /// Questions that are put once more.
    pub asked_again: usize,
    /// What tells of the prompt in words.
    told: String,
    currency: String,
    dated: String,
    kept: PathBuf,
    recording: Recording,
    /// The environment variable that should hold the key, and does not.
    missing_key: Option<String>,
}

impl Live {
    /// `kept` is where its replies are kept; `prices` are the user's.
    ///
    /// # Errors
    /// When the address, the key or the price is not there.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call for each of two callers; a struct would only rename the list"
    )]
    pub fn new(
        name: &str,
        arm: &EndpointArm,
        task: Task,
        train: &[Example],
        recipe: &Recipe,
        prices: Option<&PriceTable>,
        kept: PathBuf,
        settings: &Settings,
    ) -> Result<Live> {
        let codes = match (&task, arm.label_codes) {
            (Task::Labels(labels), true) => Codes::for_labels(labels.len()),
            _ => None,
        };
        let price = prices.and_then(|prices| prices.price(&arm.model, name));
        if arm.max_spend.is_some() && price.is_none() {
            let message = format!("arm `{name}` has a spend cap, and the price table has no price for `{}`", arm.model);
            let help = format!("add [models.\"{}\"] with input_per_1m and output_per_1m to it", arm.model);
            return Err(Failure::new(Exit::RecipeInvalid, message).help(help));
        }
        let recording = settings.recording.clone();
        let online = !settings.offline && recording.replay.is_none();
        let key = arm.key_env.as_deref().filter(|_| online).and_then(named_secret).map(Key::new);
        let missing_key = arm.key_env.clone().filter(|_| online && key.is_none());
        let plan = EndpointPlan {
            url: arm.url.clone(),
            model: arm.model.clone(),
            api: match arm.api {
                EndpointApi::Chat => Api::Chat,
                EndpointApi::Completions => Api::Completions,
            },
            key,
            ca: arm.ca_file.as_deref().map(authorities).transpose()?,
            concurrency: arm.concurrency,
            max_retries: arm.max_retries,
            timeout: Duration::from_secs_f64(arm.timeout_s),
            backoff: BACKOFF,
            requests_per_minute: arm.requests_per_minute,
            tokens_per_minute: arm.tokens_per_minute,
            budget: Budget {
                price: price.map(|p| Price { input_per_1m: p.input_per_1m, output_per_1m: p.output_per_1m }),
                max_spend: arm.max_spend,
            },
            batch_share: price.and_then(|p| p.batch_share).unwrap_or(1.0),
            online,
            clock: journal::now,
        };
        if let Some(problem) = plan.problem() {
            let message = format!("the address of arm `{name}` can't be used: {problem}");
            return Err(Failure::new(Exit::RecipeInvalid, message).help("write it as https://HOST/v1"));
        }
        let longest = match &task {
            Task::Labels(_) => LABEL_TOKENS,
            Task::Fields(..) => u32::try_from(crate::stages::eval::max_new_tokens(recipe)).unwrap_or(u32::MAX),
        };
        let sampling = Sampling {
            temperature: arm.temperature,
            max_tokens: arm.max_tokens.unwrap_or(longest),
            max_tokens_key: match arm.max_tokens_key.as_str() {
                "max_completion_tokens" => MaxTokensKey::MaxCompletionTokens,
                _ => MaxTokensKey::MaxTokens,
            },
            logprobs: arm.logprobs.then_some(if codes.is_some() { TOP_LOGPROBS } else { 1 }),
            grammar: None,
        };
        let prompt = prompt(&task, codes.as_ref(), arm.prompt, arm.shots, train, recipe.seed);
        Ok(Live {
            name: name.to_owned(),
            told: told(arm),
            codes,
            prompt,
            plan,
            sampling,
            samples: arm.samples,
            asked_again: arm.asked_again,
            task,
            currency: prices.map_or_else(String::new, |prices| prices.currency.clone()),
            dated: prices.map_or_else(String::new, |prices| prices.as_of.clone()),
            kept,
            recording,
            missing_key,
        })
    }

    /// The digest of all that decides its answers, as far as it is ours to decide.
    pub fn key(&self) -> String {
        let Sampling { temperature, max_tokens, logprobs, .. } = &self.sampling;
        let mut asked = json!({
            "url": self.plan.url, "model": self.plan.model, "api": format!("{:?}", self.plan.api),
            "prompt": self.prompt.sha256(), "codes": self.codes.is_some(), "samples": self.samples,
            "temperature": temperature, "max_tokens": max_tokens, "logprobs": logprobs, "program": program(Stage::Eval),
        });
        if self.asked_again > 0 {
            asked["asked_again"] = json!(self.asked_again);
        }
        sha256_hex(canonical_json(&asked).as_bytes())
    }

    /// Says so where its key crosses the network in the clear.
    pub fn warn_if_exposed(&self, what: &str, emit: &dyn Emit) {
        if self.plan.is_exposed() {
            let text = format!("the key of {what} {} crosses the network in the clear: {}", self.name, self.plan.url);
            emit.emit(EventKind::Warning { text });
        }
    }

    /// Opens what is kept, or the recording that is to be replayed.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn open(&self) -> Result<Endpoint> {
        let replies = match &self.recording.replay {
            Some(path) => Replies::read(path)?,
            None => Replies::open(&self.kept)?,
        };
        Ok(Endpoint::new(self.plan.clone(), replies))
    }

    /// All draws of all questions, one question's beside each other.
    pub fn questions(&self, asked: &[&[Message]]) -> Vec<Question> {
        let of = |messages: &&[Message]| {
            let messages = self.prompt.around(messages);
            (0..self.samples).map(move |sample| Question { messages: messages.clone(), sample })
        };
        asked.iter().flat_map(of).collect()
    }

    /// Which of so many rows are asked once more: from all over.
    pub fn again(&self, rows: usize) -> Vec<usize> {
        let some = self.asked_again.min(rows);
        (0..some).map(|nth| nth * rows / some).collect()
    }

    /// One more draw of some of the rows.
    pub fn questions_again(&self, asked: &[&[Message]], rows: &[usize]) -> Vec<Question> {
        let of = |row: &usize| Question { messages: self.prompt.around(asked[*row]), sample: self.samples };
        rows.iter().map(of).collect()
    }

    /// Asks, telling of progress and money; adds what came to the recording.
    ///
    /// # Errors
    /// When replies can't be kept, or when it stopped before all was asked.
    pub fn ask(
        &self,
        endpoint: &mut Endpoint,
        questions: &[Question],
        emit: &dyn Emit,
        done: &mut dyn FnMut(usize),
    ) -> Result<Asked> {
        if let Some(variable) = self.missing_key.as_ref().filter(|_| endpoint.estimate(questions, &self.sampling).0 > 0)
        {
            let message =
                format!("arm `{}` needs a key, and the environment variable {variable} is not set", self.name);
            return Err(Failure::new(Exit::Usage, message).help(format!("export {variable}=…")));
        }
        let mut told_at: Option<Instant> = None;
        let asked = endpoint.ask_all(questions, &self.sampling, &mut |told| {
            let last = told.done == told.total;
            if self.plan.budget.price.is_some() && (last || told_at.is_none_or(|at| at.elapsed() > TELL)) {
                told_at = Some(Instant::now());
                emit.emit(EventKind::Spent { amount: told.spent, currency: self.currency.clone() });
            }
            done(told.done / self.samples as usize);
        })?;
        if let Some(path) = &self.recording.record {
            endpoint.record(questions, &self.sampling, path)?;
        }
        Ok(asked)
    }

    /// What is kept of the questions' ends, after a batch; adds it to the recording.
    ///
    /// # Errors
    /// When the recording can't be written.
    pub fn kept(&self, endpoint: &Endpoint, questions: &[Question]) -> Result<Asked> {
        if let Some(path) = &self.recording.record {
            endpoint.record(questions, &self.sampling, path)?;
        }
        Ok(endpoint.kept(questions, &self.sampling))
    }

    /// Why it stopped, and what to do about it.
    pub fn stopped(&self, asked: &Asked) -> Option<Failure> {
        use limbeck_distill::endpoint::Stopped;
        let stopped = asked.stopped.as_ref()?;
        let message = format!("{} at {}: {stopped}", self.plan.model, self.plan.url);
        let again = "the same command goes on where it stopped; what was answered is kept";
        let help = match stopped {
            Stopped::SpendCap { .. } => format!("raise max_spend of arm `{}`; {again}", self.name),
            Stopped::Down { .. } => format!("look whether it is up; {again}"),
            Stopped::Denied { .. } => {
                "look at url, model, key_env, logprobs and max_tokens_key of the arm, which may not be what it takes"
                    .to_owned()
            }
            Stopped::Offline { .. } => match &self.recording.replay {
                Some(path) => {
                    format!("{} was recorded from other questions; record it again with --record", path.display())
                }
                None => "run it without --offline, or with --replay FILE".to_owned(),
            },
        };
        Some(Failure::new(Exit::Unexpected, message).help(help))
    }

    /// What a reader has to know of who answered.
    pub fn facts(&self, asked: &Asked, spent: f64) -> Vec<Fact> {
        let replies: Vec<&Reply> = asked.ends.iter().flatten().filter_map(|end| end.as_ref().ok()).collect();
        let names = |of: &dyn Fn(&Reply) -> Option<String>| {
            let names: BTreeSet<String> = replies.iter().filter_map(|reply| of(reply)).collect();
            names.into_iter().collect::<Vec<_>>().join(", ")
        };
        let mut facts = vec![
            Fact::new("model", format!("{} at {}", self.plan.model, self.plan.url)),
            Fact::new("prompt", format!("{}, SHA-256 {}", self.told, self.prompt.sha256())),
        ];
        let served = names(&|reply| reply.model.clone());
        if !served.is_empty() && served != self.plan.model {
            facts.push(Fact::new("answered as", served));
        }
        let fingerprint = names(&|reply| reply.fingerprint.clone());
        if !fingerprint.is_empty() {
            facts.push(Fact::new("fingerprint", fingerprint));
        }
        let dates: BTreeSet<&str> = replies.iter().map(|reply| reply.at.as_str()).filter(|at| !at.is_empty()).collect();
        if let (Some(first), Some(last)) = (dates.first(), dates.last()) {
            facts.push(Fact::new("asked", format!("{first} to {last}")));
        }
        let rejections = || asked.ends.iter().flatten().filter_map(|end| end.as_ref().err());
        let retries = replies.iter().map(|reply| reply.retries).chain(rejections().map(|r| r.retries));
        let retries: u64 = retries.map(u64::from).sum();
        let rejected: Vec<String> = asked.rejected().iter().map(|(why, n)| format!("{n} {why}")).collect();
        let in_batch = replies.iter().filter(|reply| reply.batch).count();
        let how = match (in_batch, replies.len() - in_batch) {
            (0, _) => format!("{} at a time, {retries} retries", self.plan.concurrency),
            (_, 0) => "in a batch".to_owned(),
            (n, _) => format!("{n} of them in a batch, {} at a time, {retries} retries", self.plan.concurrency),
        };
        facts.push(Fact::new(
            "requests",
            format!(
                "{} answered, {how}, {}",
                replies.len(),
                if rejected.is_empty() {
                    "none rejected".to_owned()
                } else {
                    format!("rejected: {}", rejected.join(", "))
                }
            ),
        ));
        let unusable = replies.iter().filter(|reply| reply.logprobs_fault.is_some()).count();
        if unusable > 0 {
            facts.push(Fact::new("log-probabilities", format!("{unusable} replies had none that can be believed")));
        }
        if self.plan.budget.price.is_some() {
            facts.push(Fact::new("spent", self.money(spent)));
        }
        facts
    }

    /// An amount in the currency of the price table, and of when its prices are.
    pub fn money(&self, amount: f64) -> String {
        let dated = if self.dated.is_empty() { String::new() } else { format!(", at prices of {}", self.dated) };
        format!("{} {amount:.4}{dated}", self.currency)
    }

    /// A question's draws as one response. Of several the majority counts; of draws that are alike the earliest.
    pub fn response(&self, draws: &[Option<std::result::Result<Reply, Rejection>>]) -> Response {
        let replies: Vec<&Reply> = draws.iter().flatten().filter_map(|end| end.as_ref().ok()).collect();
        if replies.is_empty() {
            return Response { confidence: self.sampling.logprobs.map(|_| 0.0), ..Response::default() };
        }
        let tokens = Tokens {
            prompt: replies.iter().filter_map(|r| r.prompt_tokens).sum(),
            completion: replies.iter().filter_map(|r| r.completion_tokens).sum(),
        };
        let counted = Response {
            latency_ms: replies.iter().filter(|r| !r.batch).map(|r| r.latency_ms).reduce(f64::max),
            tokens: replies.iter().any(|r| r.prompt_tokens.is_some()).then_some(tokens),
            ..Response::default()
        };
        if draws.len() > 1 {
            return self.majority(&replies, counted);
        }
        let reply = replies[0];
        let posterior = self.codes.as_ref().and_then(|codes| of_codes(reply, codes));
        let most = posterior.as_ref().map(|p| p.iter().copied().map(f64::from).fold(0.0, f64::max));
        let of_texts = self.task.schema().is_some_and(Schema::is_text);
        let text = match self.task.read(&reply.text, self.codes.as_ref()) {
            // Nothing but this tells that a text lacks its end.
            _ if of_texts && reply.finish_reason.as_deref() == Some("length") => String::new(),
            Some(answer) => answer,
            None => reply.text.clone(),
        };
        Response { text, confidence: most.or_else(|| reply.probability()), posterior, ..counted }
    }

    fn majority(&self, replies: &[&Reply], counted: Response) -> Response {
        let answers: Vec<Option<String>> =
            replies.iter().map(|reply| self.task.read(&reply.text, self.codes.as_ref())).collect();
        let Some((text, votes)) = majority(&answers) else {
            return Response { text: replies[0].text.clone(), confidence: Some(0.0), ..counted };
        };
        let posterior = match &self.task {
            Task::Fields(..) => None,
            Task::Labels(labels) => {
                let index = |answer: &String| labels.iter().position(|label| label == answer);
                let drawn: Vec<Option<usize>> = answers.iter().map(|a| a.as_ref().and_then(index)).collect();
                of_samples(&drawn, labels.len())
            }
        };
        let most = posterior.as_ref().map(|p| p.iter().copied().map(f64::from).fold(0.0, f64::max));
        let share = votes as f64 / f64::from(self.samples);
        Response { text, confidence: Some(most.unwrap_or(share)), posterior, ..counted }
    }
}

/// The answer that most draws give, and how many do; of two the one that came first.
pub fn majority(answers: &[Option<String>]) -> Option<(String, usize)> {
    let mut votes: BTreeMap<&String, (usize, usize)> = BTreeMap::new();
    for (at, answer) in answers.iter().enumerate() {
        if let Some(answer) = answer {
            votes.entry(answer).or_insert((0, at)).0 += 1;
        }
    }
    let best = votes.into_iter().min_by_key(|(_, (n, first))| (usize::MAX - n, *first));
    best.map(|(answer, (n, _))| (answer.clone(), n))
}

fn told(arm: &EndpointArm) -> String {
    let style = match arm.prompt {
        PromptStyle::Guided if arm.label_codes => "guided, by label codes",
        PromptStyle::Guided => "guided",
        PromptStyle::Recipe => "the recipe's own",
    };
    let shots = match arm.shots {
        0 => "no examples".to_owned(),
        1 => "1 example".to_owned(),
        n => format!("{n} examples"),
    };
    let draws = if arm.samples > 1 { format!(", {} draws at {}", arm.samples, arm.temperature) } else { String::new() };
    format!("{style}, {shots}{draws}")
}

/// Where an arm's replies are kept, in the folder of the evaluation.
pub fn kept_in(eval: &Path, arm: &str) -> PathBuf {
    eval.join("replies").join(format!("{arm}.jsonl"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_majority_is_the_commonest_answer_and_of_two_the_first() {
        let of = |answers: &[&str]| {
            let answers: Vec<Option<String>> =
                answers.iter().map(|a| Some((*a).to_owned()).filter(|a| !a.is_empty())).collect();
            majority(&answers)
        };
        assert_eq!(of(&["b", "a", "a", ""]), Some(("a".to_owned(), 2)));
        assert_eq!(of(&["b", "a", "a", "b"]), Some(("b".to_owned(), 2)));
        assert_eq!(of(&["", ""]), None);
    }
}
