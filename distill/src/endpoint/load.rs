//! A model under load: calls at times of their own, or from so many callers at once, each sent once and timed from when it was due.
//! Answers come in pieces where the server can do that, so that the first is timed too. No answer is kept or asked for
//! again: a cache would answer for the server.

use super::budget::Purse;
use super::replies::{End, ReplyError};
use super::request::{Question, Sampling, body, prompt_tokens};
use super::wire::{Fault, Reason, Wire};
use super::{Endpoint, EndpointPlan, Stopped};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// When calls are made.
#[derive(Clone, Debug, PartialEq)]
pub enum Pace {
    /// At these times after the beginning, whatever the server does (open loop).
    Due(Vec<Duration>),
    /// As fast as answers come, until then (closed loop).
    Until(Duration),
}

#[derive(Clone, Debug, PartialEq)]
pub struct LoadPlan {
    pub pace: Pace,
    /// Calls under way at the same time; a call that is due beyond that waits to be sent, and its time runs.
    pub at_most: usize,
    /// Calls before the clock starts.
    pub warm_up: usize,
}

/// A call that was made; times are from the beginning.
#[derive(Clone, Debug, PartialEq)]
pub struct Timed {
    pub due: Duration,
    pub sent: Duration,
    /// Of the answer's first piece.
    pub first: Option<Duration>,
    pub ended: Duration,
    /// Tokens of the answer, where they were told, or why there is none.
    pub end: Result<Option<u64>, Reason>,
}

/// What came back of one streamed call.
pub(crate) struct Streamed {
    pub first: Option<Instant>,
    pub prompt_tokens: Option<u64>,
    pub completion_tokens: Option<u64>,
}

impl Endpoint {
    /// Asks the questions in turn, over and over, at the plan's pace; tells `told` how many calls have ended. Calls are in the order
    /// in which they were due.
    ///
    /// # Errors
    /// Where it may not be asked, is not there at all, or more would be spent than is allowed.
    pub fn under_load(
        &mut self,
        questions: &[Question],
        sampling: &Sampling,
        plan: &LoadPlan,
        told: &(dyn Fn(usize) + Sync),
    ) -> Result<Vec<Timed>, LoadError> {
        if !self.plan.online {
            return Err(Stopped::Offline { left: questions.len() }.into());
        }
        let asked: Vec<Call> = questions.iter().map(|question| Call::of(&self.plan, question, sampling)).collect();
        let crew = Crew {
            wire: &self.wire,
            purse: &self.purse,
            cap: self.plan.budget.max_spend,
            max_tokens: u64::from(sampling.max_tokens),
            asked: &asked,
            pace: &plan.pace,
            next: AtomicUsize::new(0),
            ended: AtomicUsize::new(0),
            off: AtomicBool::new(false),
            told,
        };
        let (sender, charges) = channel();
        let warm = crew.warm_up(plan.warm_up, &sender);
        let begun = Instant::now();
        let replies = &mut self.replies;
        let (mut timed, mut stopped) = (Vec::new(), warm.err());
        std::thread::scope(|scope| {
            let most = if stopped.is_some() { 0 } else { plan.at_most.max(1) };
            let threads: Vec<_> = (0..most)
                .map(|_| {
                    let (crew, sender) = (&crew, sender.clone());
                    scope.spawn(move || crew.work(begun, &sender))
                })
                .collect();
            drop(sender);
            // What is spent here counts under the cap of later questions too.
            let mut kept = Ok(());
            for (prompt_tokens, completion_tokens) in charges {
                let end = End::Charged { prompt_tokens, completion_tokens, why: "load test".to_owned() };
                kept = kept.and_then(|()| replies.add("load test", end));
                if kept.is_err() {
                    crew.off.store(true, Ordering::Relaxed);
                }
            }
            for thread in threads {
                let Ok((mut mine, end)) = thread.join() else { continue };
                timed.append(&mut mine);
                stopped = stopped.take().or(end);
            }
            kept.and_then(|()| replies.sync())
        })?;
        if let Some(stopped) = stopped {
            return Err(stopped.into());
        }
        timed.sort_by_key(|call| (call.due, call.sent));
        Ok(timed)
    }
}

/// Why a load test has no end.
#[derive(Debug)]
pub enum LoadError {
    Stopped(Stopped),
    /// What was spent can't be kept.
    Reply(ReplyError),
}

impl From<Stopped> for LoadError {
    fn from(stopped: Stopped) -> LoadError {
        LoadError::Stopped(stopped)
    }
}

impl From<ReplyError> for LoadError {
    fn from(error: ReplyError) -> LoadError {
        LoadError::Reply(error)
    }
}

/// A question as it is sent.
struct Call {
    body: String,
    reckoned: u64,
    at_most: u64,
}

impl Call {
    fn of(plan: &EndpointPlan, question: &Question, sampling: &Sampling) -> Call {
        let mut body = body(plan.api, &plan.model, question, sampling);
        body["stream"] = true.into();
        body["stream_options"] = serde_json::json!({"include_usage": true});
        let (reckoned, at_most) = prompt_tokens(&question.messages);
        Call { body: body.to_string(), reckoned, at_most }
    }
}

/// Tokens that a call cost: of its prompt and of its answer.
type Charge = (u64, u64);

struct Crew<'a> {
    wire: &'a Wire,
    purse: &'a Purse,
    cap: Option<f64>,
    max_tokens: u64,
    asked: &'a [Call],
    pace: &'a Pace,
    next: AtomicUsize,
    ended: AtomicUsize,
    off: AtomicBool,
    told: &'a (dyn Fn(usize) + Sync),
}

impl Crew<'_> {
    /// Whoever refuses, or is not there, will not be there under load either.
    fn warm_up(&self, calls: usize, charges: &Sender<Charge>) -> Result<(), Stopped> {
        for i in 0..calls {
            let Err(fault) = self.call(&self.asked[i % self.asked.len()], charges)? else { continue };
            let (why, left) = (fault.told(), self.asked.len());
            match fault {
                Fault::Denied { .. } | Fault::Refused { .. } => return Err(Stopped::Denied { why, left }),
                Fault::NoConnection(_) => return Err(Stopped::Down { why, left }),
                _ => {}
            }
        }
        Ok(())
    }

    /// One call, paid for; the outer error is the cap's.
    fn call(&self, call: &Call, charges: &Sender<Charge>) -> Result<Result<Streamed, Fault>, Stopped> {
        let Some(aside) = self.purse.set_aside(call.at_most, self.max_tokens) else {
            let cap = self.cap.unwrap_or(f64::INFINITY);
            return Err(Stopped::SpendCap { cap, spent: self.purse.spent(), left: 1 });
        };
        let streamed = self.wire.stream(&call.body);
        let charge = match &streamed {
            Ok(streamed) => {
                (streamed.prompt_tokens.unwrap_or(call.reckoned), streamed.completion_tokens.unwrap_or(self.max_tokens))
            }
            Err(fault) if fault.may_cost() => (call.reckoned, self.max_tokens),
            Err(_) => {
                self.purse.give_back(aside);
                return Ok(streamed);
            }
        };
        self.purse.charge(aside, charge.0, charge.1);
        let _ = charges.send(charge);
        Ok(streamed)
    }

    fn work(&self, begun: Instant, charges: &Sender<Charge>) -> (Vec<Timed>, Option<Stopped>) {
        let mut mine = Vec::new();
        while !self.off.load(Ordering::Relaxed) {
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            let due = match self.pace {
                Pace::Due(due) => match due.get(i) {
                    Some(due) => *due,
                    None => break,
                },
                Pace::Until(end) if begun.elapsed() >= *end => break,
                Pace::Until(_) => begun.elapsed(),
            };
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
            let sent = begun.elapsed();
            let streamed = match self.call(&self.asked[i % self.asked.len()], charges) {
                Ok(streamed) => streamed,
                Err(stopped) => {
                    self.off.store(true, Ordering::Relaxed);
                    return (mine, Some(stopped));
                }
            };
            let (first, end) = match streamed {
                Ok(streamed) => (streamed.first.map(|at| at.duration_since(begun)), Ok(streamed.completion_tokens)),
                Err(fault) => (None, Err(fault.reason())),
            };
            mine.push(Timed { due, sent, first, ended: begun.elapsed(), end });
            (self.told)(self.ended.fetch_add(1, Ordering::Relaxed) + 1);
        }
        (mine, None)
    }
}
