//! The model's threads and the queue before them. The queue is bounded, a request whose client has gone is not computed,
//! and a fault in one answer is that answer's alone.

use super::wire::Refusal;
use crate::verbs::score::{Answer, Scorer};
use hyper::StatusCode;
use limbeck_artifact::dataset::Message;
use limbeck_model::prompt::{encode_completion, encode_prompt};
use limbeck_model::tokenizer::ChatTokenizer;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::oneshot;

/// What waits is answered together, at most so many: then weights are read once for all.
const TOGETHER: usize = 16;

/// What the artifact makes of a message.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The label, or the fields as JSON, or what was written instead.
    pub text: String,
    pub confidence: f64,
    /// The model's own probability; None where the answer is not valid.
    pub score: Option<f64>,
    /// As `limbeck score` names it.
    pub route: &'static str,
    pub escalates: bool,
    /// Why the text is no valid answer, where it is none.
    pub fault: Option<String>,
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
}

impl Answered {
    /// The number that a threshold is on, by its name.
    pub fn number(&self, name: &str) -> Option<f64> {
        if name == "score" { self.score } else { self.score.map(|_| self.confidence) }
    }
}

struct Job {
    messages: Vec<Message>,
    reply: oneshot::Sender<Result<Answered, String>>,
}

pub struct Workers {
    jobs: Sender<Job>,
    waiting: Arc<AtomicUsize>,
}

impl Workers {
    /// `threads` threads that share one scorer, behind a queue of `queue` requests.
    pub fn start(scorer: Arc<Scorer>, tokenizer: Arc<ChatTokenizer>, threads: usize, queue: usize) -> Workers {
        let (jobs, received) = channel(queue);
        let received = Arc::new(Mutex::new(received));
        let waiting = Arc::new(AtomicUsize::new(0));
        for _ in 0..threads {
            let worker = Worker {
                scorer: Arc::clone(&scorer),
                tokenizer: Arc::clone(&tokenizer),
                received: Arc::clone(&received),
                waiting: Arc::clone(&waiting),
            };
            std::thread::spawn(move || worker.work());
        }
        Workers { jobs, waiting }
    }

    /// Requests that no thread has taken yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Refused at once where the queue is full.
    pub async fn answer(&self, messages: Vec<Message>) -> Result<Answered, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        if self.jobs.try_send(Job { messages, reply }).is_err() {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            let text = "more requests wait than the queue holds; send fewer at a time, or raise --queue";
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "queue_full", text);
            return Err(refusal.retry_after(Some(Duration::from_secs(1))));
        }
        let failed = |why: String| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "model_failed", why);
        match answer.await {
            Ok(answered) => answered.map_err(failed),
            Err(_) => Err(failed("the model's thread ended".to_owned())),
        }
    }
}

struct Worker {
    scorer: Arc<Scorer>,
    tokenizer: Arc<ChatTokenizer>,
    received: Arc<Mutex<Receiver<Job>>>,
    waiting: Arc<AtomicUsize>,
}

impl Worker {
    fn work(self) {
        loop {
            let Some(mut jobs) = self.take() else { return };
            jobs.retain(|job| !job.reply.is_closed());
            let questions: Vec<&[Message]> = jobs.iter().map(|job| job.messages.as_slice()).collect();
            let answered = catch_unwind(AssertUnwindSafe(|| self.answer(&questions)))
                .unwrap_or_else(|_| questions.iter().map(|one| self.answer_one(one)).collect());
            for (job, answered) in jobs.into_iter().zip(answered) {
                let _ = job.reply.send(answered);
            }
        }
    }

    /// Waits for a request, and takes along what waits behind it. None at the end.
    fn take(&self) -> Option<Vec<Job>> {
        let mut received = self.received.lock().ok()?;
        let mut jobs = vec![received.blocking_recv()?];
        while jobs.len() < TOGETHER
            && let Ok(job) = received.try_recv()
        {
            jobs.push(job);
        }
        self.waiting.fetch_sub(jobs.len(), Ordering::Relaxed);
        Some(jobs)
    }

    /// After a fault in one of several: the fault is that answer's alone.
    fn answer_one(&self, messages: &[Message]) -> Result<Answered, String> {
        let answered = catch_unwind(AssertUnwindSafe(|| self.answer(&[messages]))).ok().and_then(|mut all| all.pop());
        answered.unwrap_or_else(|| Err("the model failed on this message".to_owned()))
    }

    fn answer(&self, questions: &[&[Message]]) -> Vec<Result<Answered, String>> {
        let answers = self.scorer.answer_all(questions);
        let told = |(answer, messages): (crate::exit::Result<Answer>, &&[Message])| {
            self.told(answer.map_err(|failure| failure.message)?, messages)
        };
        answers.into_iter().zip(questions).map(told).collect()
    }

    fn told(&self, answer: Answer, messages: &[Message]) -> Result<Answered, String> {
        let count = || encode_prompt(&self.tokenizer, &self.scorer.asked(messages)).map_or(0, |ids| ids.len());
        let prompt_tokens = answer.prompt_tokens.unwrap_or_else(count);
        let text = answer.text().to_owned();
        let completion_tokens = encode_completion(&self.tokenizer, &text).map_or(0, |ids| ids.len());
        let escalates = answer.route == "escalate";
        let Answer { confidence, score, route, fault, .. } = answer;
        Ok(Answered { text, confidence, score, route, escalates, fault, prompt_tokens, completion_tokens })
    }
}
