//! `limbeck eval --referee URL`: the shipped file as another server reads and serves it. The same test rows through its chat
//! API, greedily: its prompts must be ours, token by token in number, and its answers those that were evaluated.

use super::eval::{CONFIDENCE, told};
use crate::exit::{Exit, Failure, Result};
use crate::live::Task;
use crate::output::{self, Terminal};
use crate::progress::Sink;
use crate::settings::Settings;
use crate::stages::Run;
use crate::stages::eval::max_new_tokens;
use limbeck_artifact::dataset::{Dataset, Example, LabelSource, Split};
use limbeck_artifact::event::{Emit, EventKind, Stage};
use limbeck_artifact::journal;
use limbeck_artifact::untrusted::visible_line;
use limbeck_distill::endpoint::{Endpoint, EndpointPlan, MaxTokensKey, Question, Rejection, Replies, Reply, Sampling};
use limbeck_eval::{Answered, AnsweredRow, Compared, compare};
use limbeck_model::prompt::encode_prompt;
use limbeck_model::tokenizer::ChatTokenizer;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Fewer answers alike than this are another model. A label is the likeliest as a whole here and the likeliest token by token
/// there, and scales in half precision move what is nearly level; hence not all of them.
const LEAST_AGREEMENT: f64 = 0.99;
const SHOWN: usize = 5;

/// A prompt that the server did not read as we do.
struct OtherPrompt {
    row: String,
    ours: u64,
    theirs: u64,
}

/// `most` bounds the rows that are asked about.
pub fn referee(settings: &Settings, recipe: &Path, url: &str, most: Option<u64>) -> Result<Exit> {
    let resolved = settings.recipe(recipe)?;
    let run = Run::look(settings, resolved)?;
    let shipped = run.dir.join("eval/report.json");
    if !shipped.is_file() {
        let message = format!("there is no evaluation in {}", run.dir.display());
        let help = format!("limbeck eval {} first; the referee is asked about what it answered", recipe.display());
        return Err(Failure::new(Exit::Usage, message).help(help));
    }
    let ours = Answered::load_free(&run.dir)?;
    let dataset = Dataset::load(&run.dataset_dir())?;
    let mut rows: Vec<&Example> =
        dataset.rows(Split::Test).iter().filter(|row| row.label_source == LabelSource::Human).collect();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    rows.truncate(most.map_or(usize::MAX, |most| usize::try_from(most).unwrap_or(usize::MAX)));
    let task = match &run.resolved.schema {
        Some(file) => Task::Fields(file.schema.clone(), file.text.clone()),
        None => Task::Labels(dataset.card.labels.clone()),
    };
    let replies = ask(settings, &run, &task, &rows, url)?;
    let theirs = answered(&ours, &task, &rows, &replies, url);
    let Some(compared) = compare(&ours, &theirs, CONFIDENCE, 17) else {
        return Err(Failure::new(Exit::Unexpected, "the evaluation and the dataset have no row in common"));
    };
    let tokenizer = ChatTokenizer::open(&shipped_file(&run)?)?;
    let others = other_prompts(&tokenizer, &rows, &replies)?;
    let counted = replies.iter().filter(|end| end.as_ref().is_ok_and(|reply| reply.prompt_tokens.is_some())).count();
    let rejected = replies.iter().filter(|end| end.is_err()).count();
    let agrees = compared.agreement >= LEAST_AGREEMENT && others.is_empty();
    match settings.json {
        true => output::json(&json!({
            "url": url,
            "agrees": agrees,
            "compared": compared,
            "prompts_counted": counted,
            "prompts_otherwise": others.iter().map(|o| json!({"row": o.row, "ours": o.ours, "theirs": o.theirs})).collect::<Vec<_>>(),
            "rejected": rejected,
        }))?,
        false => output::stdout(&text(&compared, &others, counted, rejected, rows.len()))?,
    }
    if agrees {
        return Ok(Exit::Ok);
    }
    let (message, help) = match others.is_empty() {
        false => (
            format!("the server reads {} of {counted} prompts as other numbers of tokens than we do", others.len()),
            "look whether it serves the shipped file and with its own chat template (llama-server --jinja)",
        ),
        true => (
            format!("the server answers {:.1} % of the rows as we do, fewer than 99 %", compared.agreement * 100.0),
            "look whether it serves the shipped file; the rows above say where they part",
        ),
    };
    Err(Failure::new(Exit::VerificationFailed, message).help(help))
}

fn shipped_file(run: &Run<'_>) -> Result<std::path::PathBuf> {
    let recipe = run.recipe();
    let ship = &recipe.quantize.ship;
    let record = limbeck_artifact::stage::load(&run.dir, Stage::Quantize)?;
    let files: Option<crate::stages::quantize::QuantizedFiles> =
        record.and_then(|record| serde_json::from_value(record.summary).ok());
    let file = files.and_then(|files| files.get(ship).map(|file| run.dir.join(&file.file)));
    file.ok_or_else(|| {
        let message = format!("the run in {} has no {ship} file", run.dir.display());
        Failure::new(Exit::Usage, message).help("`limbeck eval RECIPE` makes and evaluates it")
    })
}

type Ends = Vec<std::result::Result<Reply, Rejection>>;

fn ask(settings: &Settings, run: &Run<'_>, task: &Task, rows: &[&Example], url: &str) -> Result<Ends> {
    let plan = EndpointPlan {
        concurrency: 2,
        max_retries: 3,
        timeout: Duration::from_secs(120),
        online: settings.recording.replay.is_none(),
        ..EndpointPlan::plain(url, "shipped", journal::now)
    };
    if let Some(problem) = plan.problem() {
        let message = format!("{url} can't be asked: {problem}");
        return Err(Failure::new(Exit::Usage, message).help("write it as http://127.0.0.1:8080/v1"));
    }
    let sampling = Sampling {
        temperature: 0.0,
        max_tokens: match task {
            Task::Labels(_) => 64,
            Task::Fields(..) => u32::try_from(max_new_tokens(run.recipe())).unwrap_or(u32::MAX),
        },
        max_tokens_key: MaxTokensKey::MaxTokens,
        logprobs: None,
        grammar: match task {
            Task::Labels(labels) => Some(grammar(labels)),
            Task::Fields(..) => None,
        },
    };
    let questions: Vec<Question> =
        rows.iter().map(|row| Question { messages: row.messages.clone(), sample: 0 }).collect();
    let replies = match &settings.recording.replay {
        Some(path) => Replies::read(path)?,
        // What is served at an address changes: nothing is kept from one time to the next.
        None => Replies::default(),
    };
    let mut endpoint = Endpoint::new(plan, replies);
    let sink = Sink::new(None, &Terminal::of_stderr());
    let asked = endpoint.ask_all(&questions, &sampling, &mut |told| {
        let unit = "rows by the referee".to_owned();
        sink.emit(EventKind::Progress { done: told.done as u64, total: told.total as u64, unit });
    })?;
    sink.clear();
    if let Some(path) = &settings.recording.record {
        endpoint.record(&questions, &sampling, path)?;
    }
    if let Some(stopped) = asked.stopped {
        let message = format!("the server at {url}: {stopped}");
        let help = "start it with the shipped file: llama-server -m MODEL.gguf --jinja; the address ends in /v1";
        return Err(Failure::new(Exit::Unexpected, message).help(help));
    }
    Ok(asked.ends.into_iter().flatten().collect())
}

/// One of the labels and nothing else, as llama.cpp's grammars have it.
fn grammar(labels: &[String]) -> String {
    let quoted = |label: &String| {
        let inner: String = label
            .chars()
            .map(|c| match c {
                '"' | '\\' => format!("\\{c}"),
                c if c.is_ascii_control() => format!("\\x{:02X}", c as u32),
                c => c.to_string(),
            })
            .collect();
        format!("\"{inner}\"")
    };
    format!("root ::= {}", labels.iter().map(quoted).collect::<Vec<_>>().join(" | "))
}

/// The server's answers to the rows that were evaluated.
fn answered(ours: &Answered, task: &Task, rows: &[&Example], replies: &Ends, url: &str) -> Answered {
    let mut theirs = BTreeMap::new();
    let mut times_ms = Vec::new();
    for (row, end) in rows.iter().zip(replies) {
        let Some(known) = ours.rows.get(&row.id) else { continue };
        let reply = end.as_ref().ok();
        times_ms.extend(reply.map(|reply| reply.latency_ms));
        let answer = reply.and_then(|reply| match task {
            Task::Labels(_) => task.read(&reply.text, None),
            Task::Fields(..) => Answered::canonical(task.schema()?, &reply.text),
        });
        theirs.insert(row.id.clone(), AnsweredRow { answer, ..known.clone() });
    }
    Answered::new(&format!("the server at {url}"), theirs, times_ms)
}

fn other_prompts(tokenizer: &ChatTokenizer, rows: &[&Example], replies: &Ends) -> Result<Vec<OtherPrompt>> {
    let mut others = Vec::new();
    for (row, end) in rows.iter().zip(replies) {
        let Some(theirs) = end.as_ref().ok().and_then(|reply| reply.prompt_tokens) else { continue };
        let ours = encode_prompt(tokenizer, &row.messages)?.len() as u64;
        if ours != theirs {
            others.push(OtherPrompt { row: row.id.clone(), ours, theirs });
        }
    }
    Ok(others)
}

fn text(compared: &Compared, others: &[OtherPrompt], counted: usize, rejected: usize, rows: usize) -> String {
    let mut out = told(compared);
    out.push_str(&format!(
        "\nprompts: {counted} of {rows} counted by the server, {} of them otherwise than here\n",
        others.len()
    ));
    for other in others.iter().take(SHOWN) {
        let row = visible_line(other.row.get(..12).unwrap_or(&other.row)).into_owned();
        out.push_str(&format!("  row {row}: {} tokens here, {} there\n", other.ours, other.theirs));
    }
    if rejected > 0 {
        out.push_str(&format!("{rejected} rows got no answer, which count as different\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grammar_allows_the_labels_and_escapes_what_would_end_them() {
        let labels = ["card".to_owned(), "a \"b\"\\n\n".to_owned()];
        assert_eq!(grammar(&labels), "root ::= \"card\" | \"a \\\"b\\\"\\\\n\\x0A\"");
    }
}
