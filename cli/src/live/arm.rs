//! A live model as an arm of the evaluation: it is asked all rows at once, under the endpoint's limits, and its failures are told as
//! the evaluation's.

use super::Live;
use crate::exit::{Failure, Result};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::{Emit, EventKind};
use limbeck_distill::endpoint::{Endpoint, Question};
use limbeck_eval::statistics::wilson;
use limbeck_eval::{AnswerError, Fact, Respondent, Response};

/// A live model as an arm.
pub struct LiveArm<'e> {
    live: Live,
    endpoint: Endpoint,
    emit: &'e dyn Emit,
    facts: Vec<Fact>,
}

impl<'e> LiveArm<'e> {
    /// # Errors
    /// When kept replies can't be read.
    pub fn open(live: Live, emit: &'e dyn Emit) -> Result<LiveArm<'e>> {
        live.warn_if_exposed("arm", emit);
        let endpoint = live.open()?;
        Ok(LiveArm { live, endpoint, emit, facts: Vec::new() })
    }
}

impl Respondent for LiveArm<'_> {
    fn respond(
        &mut self,
        asked: &[&[Message]],
        done: &mut dyn FnMut(usize),
    ) -> std::result::Result<Vec<Response>, AnswerError> {
        let rows = self.live.again(asked.len());
        let mut questions = self.live.questions(asked);
        let once = questions.len();
        questions.extend(self.live.questions_again(asked, &rows));
        estimate(&self.live, &self.endpoint, &questions, self.emit);
        let asked = self.live.ask(&mut self.endpoint, &questions, self.emit, done).map_err(Told::of)?;
        if let Some(failure) = self.live.stopped(&asked) {
            return Err(Told::of(failure).into());
        }
        let again =
            asked.ends.iter().flatten().filter(|end| end.as_ref().is_err_and(|rejection| rejection.again)).count();
        if again > 0 && self.live.plan.online {
            let kept = self.endpoint.kept_at();
            let text = format!(
                "arm {}: {again} questions stay without an answer because of the network, and count as invalid; to ask them \
                 again, remove the arm's predictions (eval/predictions/{}.jsonl) and eval/report.json. What was answered is kept in {}",
                self.live.name,
                self.live.name,
                kept.display()
            );
            self.emit.emit(EventKind::Warning { text });
        }
        self.facts = self.live.facts(&asked, self.endpoint.spent());
        let (first, again) = asked.ends.split_at(once);
        let draws: Vec<_> = first.chunks(self.live.samples as usize).collect();
        if !rows.is_empty() {
            let one = |draw: &[_]| self.live.response(&draw[..1]).text;
            let pairs: Vec<(String, String)> =
                rows.iter().zip(again.chunks(1)).map(|(row, again)| (one(draws[*row]), one(again))).collect();
            self.facts.push(flakiness(&pairs));
        }
        Ok(draws.into_iter().map(|draws| self.live.response(draws)).collect())
    }

    fn facts(&self) -> Vec<Fact> {
        self.facts.clone()
    }
}

/// How often the same question got another answer, of those that were answered both times.
fn flakiness(pairs: &[(String, String)]) -> Fact {
    let answered: Vec<_> = pairs.iter().filter(|(first, again)| !first.is_empty() && !again.is_empty()).collect();
    let others = answered.iter().filter(|(first, again)| first != again).count() as u64;
    let n = answered.len() as u64;
    let range = wilson(others, n.max(1), 0.95);
    let told = format!(
        "{others} of {n} rows answered otherwise ({:.1} to {:.1} % at 95 %)",
        range.low * 100.0,
        range.high * 100.0
    );
    Fact::new("asked again", told)
}

/// Says what is to be asked and what that may cost, before it is asked.
pub fn estimate(live: &Live, endpoint: &Endpoint, questions: &[Question], emit: &dyn Emit) {
    let (open, prompt, completion) = endpoint.estimate(questions, &live.sampling);
    if open == 0 {
        return;
    }
    let kept = questions.len() - open;
    let cost = live.plan.budget.price.map(|price| {
        let most = price.of(prompt, completion);
        let cap = live.plan.budget.max_spend.map_or(String::new(), |cap| format!(", cap {cap}"));
        format!(": about {} {most:.4} at most{cap}", live.currency)
    });
    let text = format!(
        "asking {} at {}: {open} requests ({kept} kept from before), some {prompt} tokens and at most {completion} in answer{}",
        live.plan.model,
        live.plan.url,
        cost.unwrap_or_else(|| ", at no known price".to_owned())
    );
    emit.emit(EventKind::Note { text });
}

/// A failure on its way through a room that knows errors only.
#[derive(Debug)]
pub struct Told(String);

impl Told {
    pub fn of(failure: Failure) -> Told {
        let help = failure.help.map_or(String::new(), |help| format!(". Try: {help}"));
        Told(failure.message + &help)
    }
}

impl std::fmt::Display for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Told {}
