//! Messages that nobody answered, of a task whose answers are written: the teacher writes them. What its draws agree on and the
//! task's verifiers accept is learnt; the rest becomes traces for the reviewers, as `limbeck teach` leaves them.
//!
//! Drafts go to the disk chunk by chunk. A kill loses the chunk in the making, and going on gives the same bytes.

use super::{LEFT_OUT, QUEUE, Teacher, UNLABELED, gather, read_unlabeled};
use crate::exit::Result;
use crate::live::Task;
use crate::stages::eval::{Writing, max_new_tokens, may_go_on};
use crate::stages::{Run, cannot};
use crate::verifiers::{best_of, verified};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_artifact::files::{append_lines, write_atomic};
use limbeck_artifact::random::mix;
use limbeck_artifact::untrusted::visible_line;
use limbeck_data_curation::NamedFile;
use limbeck_data_curation::curate::unlabeled::{Kept, UnlabeledSummary};
use limbeck_data_curation::review::TEACHER_DISAGREEMENT;
use limbeck_data_curation::taxonomy::Fields;
use limbeck_data_curation::trace::visible_message;
use limbeck_distill::best::{Best, Draw};
use limbeck_model::generate;
use limbeck_recipes::Recipe;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Relative to the run's folder: what the teacher wrote, what of it is learnt, and what is not.
pub const DRAFTS: &str = "capture/drafts.jsonl";
pub const ANSWERED: &str = "capture/answered.jsonl";
pub const REJECTED: &str = "capture/rejected.jsonl";

/// Messages that are written before they go to the disk.
const CHUNK: usize = 64;
/// Share of the draws that has to agree where nobody says otherwise; as `limbeck teach` has it.
const MIN_AGREEMENT: f64 = 0.6;
/// Temperature of several draws; one alone is the likeliest answer.
const WARM: f32 = 0.7;

/// A message with the teacher's answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Answered {
    /// For messages to people: `file:line`.
    pub from: String,
    pub messages: Vec<Message>,
    pub answer: String,
    /// Share of the draws that say so.
    pub agreement: f64,
}

/// What the run's record keeps: the messages that were kept are answered, queued or rejected.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct AnsweredSummary {
    pub unlabeled: UnlabeledSummary,
    pub answered: u64,
    pub queued: u64,
    pub rejected: u64,
    /// Why messages are not learnt.
    pub reasons: BTreeMap<String, u64>,
}

/// What the teacher wrote to one message.
#[derive(Serialize, Deserialize)]
struct Drafts {
    id: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    draws: Vec<Drawn>,
    /// Why it could write nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Drawn {
    text: String,
    probability: f64,
    /// It ended its turn; otherwise the answer was cut off.
    ended: bool,
}

/// Gathers the recipe's messages, has the teacher answer them and sorts its answers; `fits` says whether a message and its answer
/// can be a row of training.
///
/// # Errors
/// A file or a teacher that can't be read; the disk.
pub fn answered(
    run: &Run<'_>,
    files: Vec<NamedFile>,
    teacher: &Teacher,
    fits: &dyn Fn(&Kept, &str) -> std::result::Result<(), String>,
    emit: &dyn Emit,
) -> Result<(Vec<Answered>, AnsweredSummary)> {
    let unlabeled = gather(run, files, emit)?;
    let kept = read_unlabeled(&run.dir.join(UNLABELED))?;
    let Some(file) = &run.resolved.schema else { return Ok((Vec::new(), AnsweredSummary::default())) };
    let task = Task::Fields(file.schema.clone(), file.text.clone());
    let fields = Fields::parse(&file.text)?;
    let drafts = written(run, &task, teacher, &kept, emit)?;
    let mut sorted = Sorted::default();
    for (kept, drafts) in kept.iter().zip(&drafts) {
        sorted.take(
            &task,
            &fields,
            teacher,
            (kept, drafts),
            run.recipe().distill.min_agreement.unwrap_or(MIN_AGREEMENT),
            fits,
        );
    }
    let Sorted { answered, queue, rejected, reasons } = sorted;
    lines(&run.dir.join(ANSWERED), &answered)?;
    lines(&run.dir.join(QUEUE), &queue)?;
    lines(&run.dir.join(REJECTED), &rejected)?;
    let count = |n: usize| n as u64;
    let (queued, rejected) = (count(queue.len()), count(rejected.len()));
    let summary = AnsweredSummary { unlabeled, answered: count(answered.len()), queued, rejected, reasons };
    assert_eq!(summary.answered + queued + rejected, summary.unlabeled.kept, "each message ends in one file");
    tell(run, &summary, emit);
    Ok((answered, summary))
}

/// The files that this leaves, all in the record of the stage.
pub fn outputs() -> impl Iterator<Item = String> {
    [UNLABELED, LEFT_OUT, DRAFTS, ANSWERED, QUEUE, REJECTED].map(String::from).into_iter()
}

/// What is learnt, as the stage left it.
///
/// # Errors
/// When it can't be read.
pub fn read(run: &Run<'_>) -> Result<Vec<Answered>> {
    let path = run.dir.join(ANSWERED);
    let text = std::fs::read_to_string(&path).map_err(|e| cannot("read", &path, &e))?;
    Ok(text.lines().map(serde_json::from_str).collect::<std::result::Result<_, _>>()?)
}

fn tell(run: &Run<'_>, summary: &AnsweredSummary, emit: &dyn Emit) {
    let AnsweredSummary { answered, queued, rejected, reasons, .. } = summary;
    let text =
        format!("{answered} unlabeled messages are answered, {queued} are for the reviewers, {rejected} rejected");
    let why: Vec<String> = reasons.iter().map(|(reason, n)| format!("{n} {}", visible_line(reason))).collect();
    let colon = if why.is_empty() { "" } else { ": " };
    emit.emit(EventKind::Note { text: format!("{text}{colon}{}", why.join(", ")) });
    if *queued > 0 {
        let text = format!("to have them reviewed: data.traces with {}", run.dir.join(QUEUE).display());
        emit.emit(EventKind::Note { text });
    }
}

fn lines<T: Serialize>(path: &Path, of: &[T]) -> Result<()> {
    let lines = of.iter().map(serde_json::to_string).collect::<std::result::Result<Vec<String>, _>>()?;
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    write_atomic(path, text.as_bytes()).map_err(|e| cannot("write", path, &e))
}

/// What the teacher writes to each message, in their order; what lies there already is not written again.
fn written(run: &Run<'_>, task: &Task, teacher: &Teacher, kept: &[Kept], emit: &dyn Emit) -> Result<Vec<Drafts>> {
    let recipe = run.recipe();
    let path = run.dir.join(DRAFTS);
    let within = task.schema().filter(|schema| recipe.task.constrained == Some(true) && !schema.is_text());
    let samples = draws_of(recipe);
    let header = json!({
        "teacher": teacher.named.digest, "samples": samples, "temperature": if samples > 1 { WARM } else { 0.0 },
        "seed": recipe.seed, "max_new_tokens": max_new_tokens(recipe), "schema": within.and(run.resolved.schema.as_ref()).map(|file| &file.text),
    });
    let mut drafts = resumed(&path, &header, kept)?;
    let total = kept.len() as u64;
    if drafts.len() == kept.len() {
        return Ok(drafts);
    }
    if !drafts.is_empty() {
        emit.emit(EventKind::StageResumed { from: format!("message {} of {total}", drafts.len()) });
    }
    let writing = Writing { max_new_tokens: max_new_tokens(recipe), within: within.cloned() };
    let writer = teacher.writer(recipe.model.device.parse()?, &writing)?;
    let goes_on = may_go_on(task.schema().is_some_and(limbeck_artifact::schema::Schema::is_text));
    for chunk in kept[drafts.len()..].chunks(CHUNK) {
        let asked: Vec<_> = chunk
            .iter()
            .flat_map(|kept| (0..samples).map(|draw| (kept.messages.as_slice(), how(recipe, kept, draw))))
            .collect();
        let mut ends = writer.draw_all(&asked, &goes_on, &mut |_| ())?.into_iter();
        let mut made = Vec::with_capacity(chunk.len());
        for kept in chunk {
            let (mut draws, mut refused) = (Vec::with_capacity(samples), None);
            for end in ends.by_ref().take(samples) {
                match end {
                    Ok(end) => draws.push(Drawn { text: end.text, probability: end.probability, ended: end.ended }),
                    Err(why) => refused = Some(why.to_string()),
                }
            }
            made.push(Drafts { id: kept.id.clone(), draws, refused });
        }
        let text = made.iter().map(serde_json::to_string).collect::<std::result::Result<Vec<String>, _>>()?;
        append_lines(&path, &text).map_err(|e| cannot("add to", &path, &e))?;
        drafts.extend(made);
        emit.emit(EventKind::Progress { done: drafts.len() as u64, total, unit: "messages".to_owned() });
    }
    Ok(drafts)
}

fn draws_of(recipe: &Recipe) -> usize {
    recipe.distill.samples.unwrap_or(1)
}

/// How a draw is made: from a stream that follows from seed, message and number alone.
fn how(recipe: &Recipe, kept: &Kept, draw: usize) -> Option<generate::Draw> {
    let of_message = kept.id.get(..16).and_then(|digits| u64::from_str_radix(digits, 16).ok()).unwrap_or(0);
    let stream = mix(recipe.seed ^ mix(of_message).wrapping_add(draw as u64));
    (draws_of(recipe) > 1).then_some(generate::Draw { temperature: WARM, stream })
}

/// The whole chunks that an earlier try left under the same header, cut to these; without one the file begins anew.
fn resumed(path: &Path, header: &Value, kept: &[Kept]) -> Result<Vec<Drafts>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(e) => return Err(cannot("read", path, &e)),
    };
    let mut lines = text.split_inclusive('\n');
    let ours = lines.next().is_some_and(|line| serde_json::from_str::<Value>(line).is_ok_and(|found| found == *header));
    let mut drafts: Vec<Drafts> = Vec::new();
    for (line, kept) in lines.filter(|line| line.ends_with('\n')).zip(kept).take_while(|_| ours) {
        match serde_json::from_str::<Drafts>(line) {
            Ok(found) if found.id == kept.id => drafts.push(found),
            _ => break,
        }
    }
    if drafts.len() < kept.len() {
        drafts.truncate(drafts.len() / CHUNK * CHUNK);
        let mut text = format!("{header}\n");
        for draft in &drafts {
            text.push_str(&format!("{}\n", serde_json::to_string(draft)?));
        }
        write_atomic(path, text.as_bytes()).map_err(|e| cannot("write", path, &e))?;
    }
    Ok(drafts)
}

/// Messages by where they end.
#[derive(Default)]
struct Sorted {
    answered: Vec<Answered>,
    queue: Vec<Value>,
    rejected: Vec<Value>,
    reasons: BTreeMap<String, u64>,
}

impl Sorted {
    fn take(
        &mut self,
        task: &Task,
        fields: &Fields,
        teacher: &Teacher,
        (kept, drafts): (&Kept, &Drafts),
        min_agreement: f64,
        fits: &dyn Fn(&Kept, &str) -> std::result::Result<(), String>,
    ) {
        if let Some(why) = &drafts.refused {
            return self.reject(kept, "not_readable", why);
        }
        let message = visible_message(&kept.messages);
        let mut faults: BTreeMap<&str, u64> = BTreeMap::new();
        let draw = |drawn: &Drawn| {
            let answer = verified(task, None, Some(fields), (&message, None), (&drawn.text, !drawn.ended));
            let answer = answer.map_err(|fault| *faults.entry(fault).or_default() += 1);
            Draw { answer: answer.ok(), probability: Some(drawn.probability) }
        };
        let draws: Vec<Draw> = drafts.draws.iter().map(draw).collect();
        let n = draws.len();
        let best = best_of(task, &draws);
        let told = json!({
            "teacher": teacher.named, "draws": n, "valid": draws.iter().filter(|draw| draw.answer.is_some()).count(),
            "agreement": best.as_ref().map_or(0.0, |best| best.agreement), "faults": faults,
        });
        match best {
            Some(Best { answer, agreement }) if agreement >= min_agreement => match fits(kept, &answer) {
                Err(why) => self.reject(kept, "too_long", &why),
                Ok(()) => {
                    let (from, messages) = (kept.from.clone(), kept.messages.clone());
                    self.answered.push(Answered { from, messages, answer, agreement });
                }
            },
            Some(Best { answer, agreement }) => {
                let why = format!("{:.0} % of {n} draws agree", agreement * 100.0);
                self.ask_a_person((kept, teacher), &answer, &why, &told);
                *self.reasons.entry("queued: the draws disagree".to_owned()).or_default() += 1;
            }
            None => {
                let why = format!("no draw is valid ({})", faults.keys().copied().collect::<Vec<_>>().join(", "));
                // What no verifier accepts is shown as it was written.
                let first = drafts.draws.first().map_or("", |drawn| drawn.text.as_str());
                self.ask_a_person((kept, teacher), first, &why, &told);
                *self.reasons.entry(format!("queued: {why}")).or_default() += 1;
            }
        }
    }

    fn reject(&mut self, kept: &Kept, reason: &str, detail: &str) {
        self.rejected.push(json!({"from": kept.from, "reason": reason, "detail": detail}));
        *self.reasons.entry(format!("rejected: {reason}")).or_default() += 1;
    }

    fn ask_a_person(&mut self, (kept, teacher): (&Kept, &Teacher), answer: &str, why: &str, told: &Value) {
        self.queue.push(for_a_person(kept, &teacher.named.name, answer, why, told));
    }
}

/// A message with what a model says to it, as a trace that the review queue puts before others.
pub fn for_a_person(kept: &Kept, model: &str, answer: &str, why: &str, told: &Value) -> Value {
    json!({
        "id": kept.from,
        "request": {"model": model, "messages": kept.messages},
        "response": {
            "object": "chat.completion", "model": model,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}],
        },
        "limbeck_teacher": told,
        "feedback": format!("{TEACHER_DISAGREEMENT}: {why}"),
    })
}
