//! Many questions at once: what is kept is not asked again, the rest is asked by a few threads under limits, retries and a cap,
//! and each end is written down before it is handed on. It stops where going on is of no use, and says how much is left.

use super::EndpointPlan;
use super::budget::{Aside, Price, Purse};
use super::limits::Limits;
use super::replies::{End, Replies, ReplyError};
use super::reply::Reply;
use super::request::{Question, Sampling, body, key, prompt_tokens, text_tokens};
use super::wire::{Fault, Rejection, Wire};
use limbeck_artifact::digest::sha256_hex;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The longest wait between two attempts, unless the server asks for a longer one.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// So many refused questions with no answer before them say that the way of asking is refused.
const REFUSALS: u32 = 3;
/// How long a waiting thread sleeps before it looks whether all is off.
const NAP: Duration = Duration::from_millis(20);

/// A model that can be asked, with what it answered before.
pub struct Endpoint {
    pub(super) plan: EndpointPlan,
    pub(super) wire: Wire,
    limits: Limits,
    pub(super) purse: Purse,
    pub(super) replies: Replies,
    begun: Instant,
}

/// How far the asking got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Told {
    pub done: usize,
    pub total: usize,
    /// In all, with what was spent on earlier days.
    pub spent: f64,
}

/// How each question ended, in their order; none for those that were not asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    pub ends: Vec<Option<Result<Reply, Rejection>>>,
    pub stopped: Option<Stopped>,
}

impl Asked {
    /// Rejections by reason.
    pub fn rejected(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        for rejection in self.ends.iter().flatten().filter_map(|end| end.as_ref().err()) {
            *counts.entry(rejection.reason.name()).or_default() += 1;
        }
        counts
    }
}

/// Why not everything was asked. `left` are questions.
#[derive(Clone, Debug, PartialEq)]
pub enum Stopped {
    SpendCap {
        cap: f64,
        spent: f64,
        left: usize,
    },
    /// It was not there for several questions in a row.
    Down {
        why: String,
        left: usize,
    },
    /// It refuses whoever asks, or how it is asked.
    Denied {
        why: String,
        left: usize,
    },
    /// The network may not be used, and these are not kept.
    Offline {
        left: usize,
    },
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stopped::SpendCap { cap, spent, left } => {
                write!(
                    f,
                    "the next request could exceed the cap of {cap}: {spent:.4} are spent, {left} questions are left"
                )
            }
            Stopped::Down { why, left } => write!(f, "it {why}; {left} questions are left"),
            Stopped::Denied { why, left } => write!(f, "it {why}; {left} questions are left"),
            Stopped::Offline { left } => {
                write!(f, "{left} questions have no kept reply, and the network is not to be used")
            }
        }
    }
}

/// A question that has to be asked.
pub(super) struct Open {
    pub key: String,
    pub body: String,
    /// Tokens of the prompt: as reckoned, at most.
    pub reckoned: u64,
    at_most: u64,
}

/// From a thread that asks to the one that writes.
enum Note {
    Charged { open: usize, prompt_tokens: u64, completion_tokens: u64, why: String },
    Ended { open: usize, end: End },
}

impl Endpoint {
    /// `replies` are what is known already, and where what comes is kept.
    pub fn new(plan: EndpointPlan, replies: Replies) -> Endpoint {
        let price = plan.budget.price.unwrap_or(Price { input_per_1m: 0.0, output_per_1m: 0.0 });
        let cost =
            |(prompt, completion, batch)| price.of(prompt, completion) * if batch { plan.batch_share } else { 1.0 };
        let spent = replies.tokens().into_iter().map(cost).sum();
        let limits = Limits::new(plan.requests_per_minute, plan.tokens_per_minute);
        let purse = Purse::new(plan.budget, spent);
        Endpoint { wire: Wire::new(&plan), limits, purse, replies, plan, begun: Instant::now() }
    }

    pub fn plan(&self) -> &EndpointPlan {
        &self.plan
    }

    /// Money spent on all that is kept.
    pub fn spent(&self) -> f64 {
        self.purse.spent()
    }

    /// Another cap, where several share one.
    pub fn cap(&mut self, max_spend: Option<f64>) {
        self.plan.budget.max_spend = max_spend;
        self.purse.cap(max_spend);
    }

    /// Where replies are kept.
    pub fn kept_at(&self) -> &Path {
        self.replies.path()
    }

    /// What asking these would cost beyond what is kept: (questions, prompt tokens as reckoned, most answer tokens).
    pub fn estimate(&self, questions: &[Question], sampling: &Sampling) -> (usize, u64, u64) {
        let (_, open) = self.open(questions, sampling, self.plan.online);
        let prompt = open.iter().map(|open| open.reckoned).sum();
        (open.len(), prompt, open.len() as u64 * u64::from(sampling.max_tokens))
    }

    /// The questions' names, and those of them that have to be asked, each once; with `again` also those that failed for no fault
    /// of theirs.
    pub(super) fn open(&self, questions: &[Question], sampling: &Sampling, again: bool) -> (Vec<String>, Vec<Open>) {
        let (mut keys, mut open, mut seen) = (Vec::with_capacity(questions.len()), Vec::new(), HashSet::new());
        for question in questions {
            let body = body(self.plan.api, &self.plan.model, question, sampling);
            let key = key(&self.plan.url, self.plan.api, &body, question.sample);
            let known = match self.replies.get(&key) {
                Some(End::Rejected(rejection)) => !rejection.again || !again,
                end => end.is_some(),
            };
            if !known && seen.insert(key.clone()) {
                let (reckoned, at_most) = prompt_tokens(&question.messages);
                open.push(Open { key: key.clone(), body: body.to_string(), reckoned, at_most });
            }
            keys.push(key);
        }
        (keys, open)
    }

    /// Asks all that is not known yet; tells `told` of each end.
    ///
    /// # Errors
    /// When a reply can't be kept; what the network does is no error.
    pub fn ask_all(
        &mut self,
        questions: &[Question],
        sampling: &Sampling,
        told: &mut dyn FnMut(Told),
    ) -> Result<Asked, ReplyError> {
        let (keys, open) = self.open(questions, sampling, self.plan.online);
        let stopped = match (open.is_empty(), self.plan.online) {
            (true, _) => None,
            (false, false) => Some(Stopped::Offline { left: open.len() }),
            (false, true) => self.ask_open(&open, sampling, keys.len(), told)?,
        };
        Ok(Asked { ends: self.ends(&keys), stopped })
    }

    /// What is kept of how these questions ended; nothing is asked.
    pub fn kept(&self, questions: &[Question], sampling: &Sampling) -> Asked {
        let (keys, _) = self.open(questions, sampling, false);
        Asked { ends: self.ends(&keys), stopped: None }
    }

    fn ends(&self, keys: &[String]) -> Vec<Option<Result<Reply, Rejection>>> {
        let end = |key: &String| match self.replies.get(key)? {
            End::Reply(reply) => Some(Ok(reply.clone())),
            End::Rejected(rejection) => Some(Err(rejection.clone())),
            End::Charged { .. } => None,
        };
        keys.iter().map(end).collect()
    }

    /// Adds how these questions ended to the recording at `path`.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn record(&self, questions: &[Question], sampling: &Sampling, path: &Path) -> Result<(), ReplyError> {
        let (keys, _) = self.open(questions, sampling, false);
        Replies::record(path, self.replies.recording(keys.iter()))
    }

    fn ask_open(
        &mut self,
        open: &[Open],
        sampling: &Sampling,
        total: usize,
        told: &mut dyn FnMut(Told),
    ) -> Result<Option<Stopped>, ReplyError> {
        let crew = Crew {
            plan: &self.plan,
            wire: &self.wire,
            limits: &self.limits,
            purse: &self.purse,
            begun: self.begun,
            max_tokens: u64::from(sampling.max_tokens),
            open,
            next: AtomicUsize::new(0),
            seen: AtomicBool::new(false),
            failed: AtomicU32::new(0),
            refused: AtomicU32::new(0),
            off: AtomicBool::new(false),
            why: Mutex::new(None),
        };
        let replies = &mut self.replies;
        let (mut ended, known) = (0, total - open.len().min(total));
        std::thread::scope(|scope| {
            let mut failed = Ok(());
            let (sender, notes) = channel();
            for first in 0..self.plan.concurrency.clamp(1, open.len()) {
                let (crew, sender) = (&crew, sender.clone());
                scope.spawn(move || crew.work(first == 0, &sender));
            }
            drop(sender);
            while let Ok(note) = notes.recv() {
                for note in std::iter::once(note).chain(notes.try_iter()) {
                    let (at, end) = match note {
                        Note::Charged { open, prompt_tokens, completion_tokens, why } => {
                            (open, End::Charged { prompt_tokens, completion_tokens, why })
                        }
                        Note::Ended { open, end } => {
                            ended += 1;
                            (open, end)
                        }
                    };
                    failed = failed.and_then(|()| replies.add(&open[at].key, end));
                }
                failed = failed.and_then(|()| replies.sync());
                if failed.is_err() {
                    crew.off.store(true, Ordering::Relaxed);
                }
                told(Told { done: known + ended, total, spent: crew.purse.spent() });
            }
            failed
        })?;
        let left = open.len() - ended;
        Ok(crew
            .why
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map(|why| why.stopped(&self.plan, &self.purse, left)))
    }
}

enum Why {
    Cap,
    Down(Fault),
    Denied(Fault),
}

impl Why {
    fn stopped(self, plan: &EndpointPlan, purse: &Purse, left: usize) -> Stopped {
        match self {
            Why::Cap => {
                Stopped::SpendCap { cap: plan.budget.max_spend.unwrap_or(f64::INFINITY), spent: purse.spent(), left }
            }
            Why::Down(fault) => Stopped::Down { why: fault.told(), left },
            Why::Denied(fault) => Stopped::Denied { why: fault.told(), left },
        }
    }
}

/// The threads that ask, and what they share.
struct Crew<'a> {
    plan: &'a EndpointPlan,
    wire: &'a Wire,
    limits: &'a Limits,
    purse: &'a Purse,
    begun: Instant,
    max_tokens: u64,
    open: &'a [Open],
    next: AtomicUsize,
    /// Something was answered: address, key and question are as they should be.
    seen: AtomicBool,
    /// Questions in a row that the server was not there for.
    failed: AtomicU32,
    /// Questions that were refused before any was answered.
    refused: AtomicU32,
    off: AtomicBool,
    why: Mutex<Option<Why>>,
}

impl Crew<'_> {
    /// Only the first one asks until something was answered: a wrong key is refused once, not once a thread.
    fn work(&self, first: bool, notes: &Sender<Note>) {
        while !first && !self.seen.load(Ordering::Relaxed) {
            if self.is_over() {
                return;
            }
            std::thread::sleep(NAP / 4);
        }
        while !self.is_over() {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(open) = self.open.get(at) else { return };
            let Some(end) = self.one(at, open, notes) else { return };
            match &end {
                End::Rejected(rejection) if rejection.again => {
                    let failed = self.failed.fetch_add(1, Ordering::Relaxed) + 1;
                    if failed as usize >= self.plan.concurrency + 2 && self.why().is_none() {
                        self.stop(Why::Down(Fault::NoConnection(format!(
                            "{failed} questions in a row: {}",
                            rejection.detail
                        ))));
                    }
                }
                _ => self.failed.store(0, Ordering::Relaxed),
            }
            if notes.send(Note::Ended { open: at, end }).is_err() {
                return;
            }
        }
    }

    fn is_over(&self) -> bool {
        self.off.load(Ordering::Relaxed) || self.next.load(Ordering::Relaxed) >= self.open.len()
    }

    fn why(&self) -> std::sync::MutexGuard<'_, Option<Why>> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, why: Why) {
        self.why().get_or_insert(why);
        self.off.store(true, Ordering::Relaxed);
    }

    /// All attempts at one question; none where it was broken off.
    fn one(&self, at: usize, open: &Open, notes: &Sender<Note>) -> Option<End> {
        let mut retries = 0;
        loop {
            self.wait_for_limits(open)?;
            let Some(aside) = self.purse.set_aside(open.at_most, self.max_tokens) else {
                self.stop(Why::Cap);
                return None;
            };
            let sent = Instant::now();
            let result = self.wire.post(&open.body);
            let latency_ms = (sent.elapsed().as_secs_f64() * 1e6).round() / 1e3;
            let fault = match result {
                Ok(reply) => {
                    self.seen.store(true, Ordering::Relaxed);
                    self.pay(aside, at, open, &reply, notes);
                    return Some(End::Reply(Reply { latency_ms, at: (self.plan.clock)(), retries, ..reply }));
                }
                Err(fault) => fault,
            };
            self.pay_for_nothing(aside, at, open, &fault, notes);
            let seen = self.seen.load(Ordering::Relaxed);
            match &fault {
                Fault::Denied { .. } => self.stop(Why::Denied(fault.clone())),
                // Nothing was ever answered: what is refused is how it is asked, and who is not there won't come.
                Fault::Refused { .. } if !seen && self.refused.fetch_add(1, Ordering::Relaxed) + 1 >= REFUSALS => {
                    self.stop(Why::Denied(fault.clone()));
                }
                Fault::NoConnection(_) if !seen && retries > 0 => self.stop(Why::Down(fault.clone())),
                _ => (),
            }
            if self.off.load(Ordering::Relaxed) {
                return None;
            }
            if !fault.is_passing() || retries >= self.plan.max_retries {
                return Some(End::Rejected(Rejection {
                    reason: fault.reason(),
                    detail: format!("it {}", fault.told()),
                    again: fault.is_passing(),
                    at: (self.plan.clock)(),
                    retries,
                }));
            }
            self.wait_for_next(open, retries, &fault)?;
            retries += 1;
        }
    }

    fn pay(&self, aside: Aside, at: usize, open: &Open, reply: &Reply, notes: &Sender<Note>) {
        let prompt_tokens = reply.prompt_tokens.unwrap_or(open.reckoned);
        let completion_tokens = reply.completion_tokens.unwrap_or_else(|| text_tokens(&reply.text));
        self.purse.charge(aside, prompt_tokens, completion_tokens);
        self.limits.correct(open.reckoned + self.max_tokens, prompt_tokens + completion_tokens);
        if reply.prompt_tokens.is_none() || reply.completion_tokens.is_none() {
            let prompt_tokens = if reply.prompt_tokens.is_none() { prompt_tokens } else { 0 };
            let completion_tokens = if reply.completion_tokens.is_none() { completion_tokens } else { 0 };
            let why = "reckoned: the reply tells no usage".to_owned();
            let _ = notes.send(Note::Charged { open: at, prompt_tokens, completion_tokens, why });
        }
    }

    fn pay_for_nothing(&self, aside: Aside, at: usize, open: &Open, fault: &Fault, notes: &Sender<Note>) {
        if !fault.may_cost() {
            self.purse.give_back(aside);
            return;
        }
        let (prompt_tokens, completion_tokens) = (open.reckoned, self.max_tokens);
        self.purse.charge(aside, prompt_tokens, completion_tokens);
        let why = fault.reason().name().to_owned();
        let _ = notes.send(Note::Charged { open: at, prompt_tokens, completion_tokens, why });
    }

    fn wait_for_limits(&self, open: &Open) -> Option<()> {
        loop {
            match self.limits.take(self.begun.elapsed(), open.reckoned + self.max_tokens) {
                Ok(()) => return (!self.off.load(Ordering::Relaxed)).then_some(()),
                Err(wait) => self.sleep(wait)?,
            }
        }
    }

    /// What the server asks for, else twice as long as before; spread out, so that those who failed together don't come back
    /// together.
    fn wait_for_next(&self, open: &Open, retries: u32, fault: &Fault) -> Option<()> {
        let draw = sha256_hex(format!("{} {retries}", open.key).as_bytes());
        let draw = u32::from_str_radix(&draw[..8], 16).map_or(0.5, |n| f64::from(n) / f64::from(u32::MAX));
        let wait = match fault.retry_after() {
            Some(asked) => {
                self.limits.pause(self.begun.elapsed() + asked);
                asked.mul_f64(1.0 + 0.1 * draw)
            }
            None => {
                let doubled = self.plan.backoff.saturating_mul(1u32 << retries.min(16)).min(LONGEST_BACKOFF);
                doubled.mul_f64(0.5 + 0.5 * draw)
            }
        };
        self.sleep(wait)
    }

    /// None where all is off by then.
    fn sleep(&self, wait: Duration) -> Option<()> {
        let until = Instant::now() + wait;
        loop {
            if self.off.load(Ordering::Relaxed) {
                return None;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Some(());
            }
            std::thread::sleep(left.min(NAP));
        }
    }
}
