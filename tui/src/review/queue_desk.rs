//! The desk of a run: its review queue, everyone's decisions, and the stream that this session appends to. What others
//! decide meanwhile is heard through [`Desk::poll`].

use super::desk::{Alike, Desk, DeskError, Form, Gauge, Item, Judgement, Marks, Seen, State, Verdict};
use super::later::{Coming, Later};
use super::tally;
use limbeck_artifact::digest::{canonical_json, sha256_hex};
use limbeck_data_curation::review::handover::{self, HandOver};
use limbeck_data_curation::review::store::{self, Stream, Tail};
use limbeck_data_curation::review::{
    self, Agreement, Certificate, Decision, Decisions, Inspection, Pass, Queue, Said, Similar, Standing, agree,
    certify, rank,
};
use limbeck_data_curation::{Answers, Error};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Fewer items are not worth a thread.
const AT_LEAST: usize = 1024;

/// Similar items beside the message.
const ALIKE: usize = 3;

/// How a reviewer comes to the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// What nobody decided, in sight of what others did.
    First,
    /// Without sight of others: what too few have judged, or, where one is enough, what one has.
    Blind,
    /// Disputed and flagged items, of which one has judged none oneself.
    Adjudicate,
}

impl Role {
    fn pass(self) -> Option<Pass> {
        match self {
            Role::First => None,
            Role::Blind => Some(Pass::Blind),
            Role::Adjudicate => Some(Pass::Adjudicate),
        }
    }
}

/// What a desk is opened with.
pub struct Setup {
    /// For the title.
    pub name: String,
    pub queue: Queue,
    /// The queue's ranking, where it is yet to come.
    pub later: Option<Later>,
    /// The folder of the streams.
    pub store: PathBuf,
    /// Decisions that lie elsewhere.
    pub files: Vec<PathBuf>,
    pub reviewer: String,
    pub role: Role,
    /// Share of wrong labels that is to be certified not to be exceeded.
    pub max_label_error: f64,
    pub guidelines: String,
    /// The time as RFC 3339 in UTC.
    pub now: Box<dyn Fn() -> String>,
}

pub struct QueueDesk {
    name: String,
    queue: Arc<Queue>,
    decisions: Decisions,
    tail: Tail,
    store: PathBuf,
    handed: Vec<HandOver>,
    stream: Stream,
    reviewer: String,
    role: Role,
    rate: f64,
    guidelines: String,
    now: Box<dyn Fn() -> String>,
    items: Arc<[Item]>,
    labels: Arc<[String]>,
    place: HashMap<String, usize>,
    /// What stands for each item, everyone counted.
    settled: Vec<Standing>,
    /// Judged by two or more.
    shared: BTreeSet<usize>,
    drawn: Vec<usize>,
    inspections: Vec<Inspection>,
    similar: Arc<OnceLock<Similar>>,
    /// What is not needed for the first picture has not begun.
    asleep: bool,
    gauge: Option<Gauge>,
    order: Arc<[u32]>,
    /// A ranking that is still being made.
    coming: Option<Coming>,
    rearranged: bool,
}

/// An item as the desk opens with it.
struct LaidOut {
    item: Item,
    standing: Standing,
    decided: Decided,
    /// Judged by two or more.
    shared: bool,
}

/// The queue's items, in their order, and where each is. The desk's items have the messages from here on: one copy of a
/// large log is enough.
fn laid_out(queue: &mut Queue, decisions: &Decisions, role: Role) -> (Vec<LaidOut>, HashMap<String, usize>) {
    let Queue { items, answers, reviewers } = queue;
    let place = items.iter().enumerate().map(|(i, item)| (item.id.clone(), i)).collect();
    let (answers, reviewers) = (&*answers, *reviewers);
    let one = |item: &mut review::Item| {
        let said = decisions.of(&item.id);
        let standing = item.settled(&said, answers, reviewers);
        let decided = Decided::of(&standing, &said, role);
        let message = std::mem::take(&mut item.message);
        LaidOut { item: shown(item, message, &decided, answers), standing, decided, shared: said.votes.len() > 1 }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = items.len().div_ceil(threads).max(AT_LEAST);
    let laid = std::thread::scope(|scope| {
        let parts: Vec<_> = items
            .chunks_mut(share)
            .map(|part| scope.spawn(move || part.iter_mut().map(one).collect::<Vec<_>>()))
            .collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    (laid, place)
}

/// What decisions say of an item beside its state; of most items nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Decided {
    /// Why an earlier decision does not count.
    void: Option<&'static str>,
    /// Labels that reviewers gave, for who settles a dispute.
    voted: Vec<(String, String)>,
}

impl Decided {
    fn of(standing: &Standing, said: &Said<'_>, role: Role) -> Decided {
        let void = if let Standing::Void(why) = standing { Some(*why) } else { None };
        let voted = said.votes.iter().filter(|_| role == Role::Adjudicate);
        let voted = voted.filter_map(|d| Some((d.label.clone()?, d.reviewer.clone()))).collect();
        Decided { void, voted }
    }
}

impl QueueDesk {
    /// Loads all decisions. An index of like messages is made in another thread once the first item is shown.
    ///
    /// # Errors
    /// When a decision file can't be read or holds a bad line.
    pub fn open(setup: Setup) -> Result<QueueDesk, Error> {
        let Setup { name, mut queue, later, store, files, reviewer, role, max_label_error, guidelines, now } = setup;
        let (decisions, tail) = store::open(&store, &files)?;
        let (laid, place) = laid_out(&mut queue, &decisions, role);
        let n = laid.len();
        let (mut items, mut settled) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let (mut shared, mut remarks) = (BTreeSet::new(), HashMap::new());
        for (i, laid) in laid.into_iter().enumerate() {
            if laid.shared {
                shared.insert(i);
            }
            if laid.decided != Decided::default() {
                remarks.insert(i, laid.decided);
            }
            items.push(laid.item);
            settled.push(laid.standing);
        }
        let items: Arc<[Item]> = items.into();
        let queue = Arc::new(queue);
        let drawn = rank::drawn(&queue);
        Ok(QueueDesk {
            order: (0..items.len() as u32).collect(),
            coming: later.map(|later| Coming::of(later, queue.clone(), items.clone(), remarks)),
            rearranged: false,
            name,
            place,
            labels: queue.answers.labels().to_vec().into(),
            stream: Stream::new(&store, &reviewer, &now()),
            inspections: certify::inspections(max_label_error, certify::ALPHA, drawn.len() as u64),
            drawn,
            rate: max_label_error,
            gauge: None,
            handed: handover::load(&store)?,
            store,
            decisions,
            tail,
            reviewer,
            role,
            guidelines,
            now,
            items,
            settled,
            shared,
            similar: Arc::default(),
            asleep: true,
            queue,
        })
    }

    /// Everyone's decisions, with those made here.
    pub fn decisions(&self) -> &Decisions {
        &self.decisions
    }

    /// The queue; the messages are in the desk's items.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The session's file, once there is one.
    pub fn stream(&self) -> Option<&std::path::Path> {
        self.stream.path()
    }

    /// Begins what the first picture did not need: the index of like messages, and the ranking.
    fn wake(&mut self) {
        if let Some(coming) = &mut self.coming {
            coming.wake();
        }
        if std::mem::take(&mut self.asleep) {
            let (slot, items) = (self.similar.clone(), self.items.clone());
            std::thread::spawn(move || slot.set(Similar::new(items.iter().map(|item| item.message.as_str()))));
        }
    }

    /// Whether its ranking is yet to come.
    pub fn is_ranking(&self) -> bool {
        self.coming.is_some()
    }

    pub fn certificate(&self) -> Certificate {
        let outcomes = rank::drawn_outcomes(&self.queue, &self.drawn, |i| &self.settled[i]);
        Certificate::of(&outcomes, self.rate, &self.inspections)
    }

    pub fn inspections(&self) -> &[Inspection] {
        &self.inspections
    }

    pub fn agreement(&self) -> Agreement {
        agree::agreement(self.shared.iter().map(|i| &self.queue.items[*i]), &self.queue.answers, &self.decisions)
    }

    fn append(&mut self, entry: Decision, item: usize) -> Result<(), DeskError> {
        self.stream.append(&entry).map_err(|e| DeskError(e.to_string()))?;
        self.decisions.add(entry);
        self.settle(item);
        Ok(())
    }

    fn entry(&self, item: usize, verdict: review::Verdict) -> Result<Decision, DeskError> {
        let known =
            self.queue.items.get(item).ok_or_else(|| DeskError(format!("there is no item {item} in the queue")))?;
        let at = self.decisions.later_than_seen(&known.id, &self.reviewer, &(self.now)());
        Ok(Decision::new(&at, &self.reviewer, &known.id, verdict, None, &known.shown_sha256, None))
    }

    fn settle(&mut self, i: usize) {
        let item = &self.queue.items[i];
        let said = self.decisions.of(&item.id);
        self.settled[i] = item.settled(&said, &self.queue.answers, self.queue.reviewers);
        match said.votes.len() > 1 {
            true => self.shared.insert(i),
            false => self.shared.remove(&i),
        };
        self.gauge = None;
    }

    fn gauge_anew(&mut self) -> Gauge {
        let gauge = match self.role {
            Role::First if !self.inspections.is_empty() => tally::gauge(&self.certificate()),
            Role::Blind if !self.shared.is_empty() => tally::agreeing(&self.agreement()),
            Role::Adjudicate => {
                let open = self.settled.iter().filter(|s| **s == Standing::Disputed).count();
                Gauge { short: format!("{open} disputed"), reached: open == 0 }
            }
            _ => Gauge::default(),
        };
        self.gauge = Some(gauge.clone());
        gauge
    }

    /// Takes the ranking over if it came. The draw is the plain order's, so the estimates go on.
    fn look_for_ranking(&mut self) -> Option<String> {
        let came = self.coming.as_ref()?.look()?;
        self.coming = None;
        match came {
            Ok(arranged) => {
                (self.queue, self.items, self.order) = (arranged.queue, arranged.items, arranged.order);
                self.rearranged = true;
                arranged.trouble
            }
            Err(why) => Some(why),
        }
    }

    /// Whether this reviewer has nothing to do with an item.
    fn closed(&self, i: usize, said: &Said<'_>) -> bool {
        if handover::is_anothers(&self.handed, &self.queue.items[i].id, &self.reviewer) {
            return true;
        }
        let own = said.vote_of(&self.reviewer).is_some();
        let settled = &self.settled[i];
        match self.role {
            Role::First => match settled {
                Standing::Open | Standing::Void(_) => false,
                Standing::Awaiting => own,
                _ => true,
            },
            Role::Blind => {
                let judged = said.votes.iter().filter(|d| d.verdict != review::Verdict::Skip).count();
                let (least, most) = if self.queue.reviewers > 1 { (0, self.queue.reviewers as usize) } else { (1, 2) };
                own || said.adjudication().is_some() || judged >= most || judged < least
            }
            Role::Adjudicate => {
                let due = *settled == Standing::Disputed || !said.flags.is_empty();
                own || said.adjudication().is_some() || !due
            }
        }
    }

    /// The vote that this reviewer may see.
    fn visible<'s>(&self, said: &Said<'s>) -> Option<&'s Decision> {
        match self.role {
            Role::First => said.standing(),
            Role::Blind => said.vote_of(&self.reviewer),
            Role::Adjudicate => said.adjudication(),
        }
    }
}

impl Desk for QueueDesk {
    fn name(&self) -> &str {
        &self.name
    }

    fn items(&self) -> Arc<[Item]> {
        self.items.clone()
    }

    fn form(&self) -> Form {
        match self.queue.answers.fields() {
            None => Form::Labels,
            Some(fields) if fields.schema.is_text() => Form::Text,
            Some(fields) => Form::Fields(fields.schema.clone()),
        }
    }

    fn order(&self) -> Arc<[u32]> {
        self.order.clone()
    }

    fn rearranged(&mut self) -> bool {
        std::mem::take(&mut self.rearranged)
    }

    fn labels(&self) -> Arc<[String]> {
        self.labels.clone()
    }

    fn state(&self, i: usize) -> State {
        let Some(item) = self.queue.items.get(i) else { return State::default() };
        let said = self.decisions.of(&item.id);
        let vote = self.visible(&said);
        let judgement = vote.and_then(|vote| judgement(vote, item.standing(Some(vote), &self.queue.answers)));
        let blind = self.role == Role::Blind;
        let seen = |d: &&&Decision| !blind || d.reviewer == self.reviewer;
        let by = |d: &Decision| match d.note.as_deref() {
            Some(note) => format!("{note} ({})", d.reviewer),
            None => d.reviewer.clone(),
        };
        let votes = match !blind && said.votes.len() > 1 {
            true => said.votes.iter().map(|d| format!("{}: {}", d.reviewer, verdict_text(d))).collect(),
            false => Vec::new(),
        };
        let marks = Marks {
            flags: said.flags.iter().filter(seen).map(|d| by(d)).collect(),
            notes: said.notes.iter().filter(seen).map(|d| by(d)).collect(),
            votes,
        };
        State { judgement, closed: self.closed(i, &said), marks }
    }

    fn history(&self) -> Vec<usize> {
        let own = self.decisions.history(&self.reviewer);
        own.into_iter().filter_map(|d| self.place.get(&d.item).copied()).collect()
    }

    fn decide(&mut self, item: usize, judgement: &Judgement, seen: &Seen) -> Result<(), DeskError> {
        let verdict = match judgement.verdict {
            Verdict::Accept => review::Verdict::Accept,
            Verdict::Correct => review::Verdict::Correct,
            Verdict::Reject => review::Verdict::Reject,
            Verdict::Skip => review::Verdict::Skip,
            Verdict::Flag => review::Verdict::Flag,
            Verdict::Note => review::Verdict::Note,
        };
        let suggested = canonical_json(&serde_json::json!(seen.suggested));
        let entry = Decision {
            label: judgement.label.clone(),
            note: judgement.note.clone(),
            pass: self.role.pass().filter(|_| verdict.judges()),
            suggestion_sha256: Some(sha256_hex(suggested.as_bytes())),
            dwell_ms: Some(u64::try_from(seen.dwell.as_millis()).unwrap_or(u64::MAX)),
            ..self.entry(item, verdict)?
        };
        self.append(entry.sealed(), item)
    }

    fn undo(&mut self, item: usize) -> Result<(), DeskError> {
        let mut entry = self.entry(item, review::Verdict::Undo)?;
        let last = self.decisions.latest_of(&entry.item, &self.reviewer);
        let last = last.ok_or_else(|| DeskError("nothing of yours stands for this item".to_string()))?;
        entry.of = Some(last.id.clone());
        self.append(entry.sealed(), item)
    }

    fn poll(&mut self) -> (Vec<usize>, Option<String>) {
        self.wake();
        let news = self.tail.poll(self.stream.path());
        let mut changed = BTreeSet::new();
        for decision in news.decisions {
            changed.extend(self.place.get(&decision.item));
            self.decisions.add(decision);
        }
        changed.iter().for_each(|i| self.settle(*i));
        // A network folder may be away for a while.
        if let Ok(handed) = handover::load(&self.store)
            && handed != self.handed
        {
            self.handed = handed;
            changed.extend(0..self.items.len());
        }
        let trouble = news.trouble.into_iter().next().or_else(|| self.look_for_ranking());
        (changed.into_iter().collect(), trouble)
    }

    fn similar(&self, item: usize) -> Option<Vec<Alike>> {
        let found = self.similar.get()?.to(&self.items.get(item)?.message, item, ALIKE);
        let alike = |other: usize| {
            let said = self.decisions.of(&self.queue.items[other].id);
            let seen = match self.role {
                Role::Blind => said.vote_of(&self.reviewer),
                Role::First | Role::Adjudicate => said.standing(),
            };
            let standing = self.queue.items[other].standing(seen, &self.queue.answers);
            let (label, decided) = match standing {
                Standing::Labelled(label) => (label, true),
                Standing::Rejected(_) => ("rejected".to_string(), true),
                _ => (self.items[other].answer.clone(), false),
            };
            Alike { item: other, label, decided }
        };
        Some(found.into_iter().map(|(other, _)| alike(other)).collect())
    }

    fn gauge(&mut self) -> Gauge {
        let mut gauge = match &self.gauge {
            Some(gauge) => gauge.clone(),
            None => self.gauge_anew(),
        };
        if let Some(coming) = &self.coming {
            let rest = if gauge.short.is_empty() { String::new() } else { format!("; {}", gauge.short) };
            gauge.short = format!("ranking, {} %{rest}", coming.done());
        }
        gauge
    }

    fn guidelines(&self) -> &str {
        &self.guidelines
    }

    fn report(&mut self) -> Vec<String> {
        let reviewers = agree::reviewers(&self.queue, &self.decisions);
        tally::lines(&self.certificate(), &self.inspections, &self.agreement(), &reviewers)
    }
}

pub(super) fn shown(item: &review::Item, message: String, decided: &Decided, answers: &Answers) -> Item {
    let mut why = vec![match item.reason {
        // Nothing tells how sure the answer is where no model gives labels.
        review::QueueReason::Random if item.source == review::Source::LowConfidence && item.hint.is_none() => {
            "one of each kind of message comes early".to_string()
        }
        review::QueueReason::Random => item.source.name().to_string(),
        reason => match &item.detail {
            Some(detail) => format!("{}: {detail}", reason.text()),
            None => reason.text().to_string(),
        },
    }];
    if item.source == review::Source::Escalated {
        why[0] = item.source.name().to_string();
    }
    let mut instead: Vec<(String, String)> = Vec::new();
    let mut offer = |label: &str, who: &str| {
        if Some(label) != item.label.as_deref()
            && let Ok(label) = answers.read(label)
            && !instead.iter().any(|(known, _)| *known == label)
        {
            instead.push((label.into_owned(), who.to_string()));
        }
    };
    decided.voted.iter().for_each(|(label, who)| offer(label, who));
    if let Some(hint) = &item.hint {
        if hint.suspect {
            why.insert(0, "probably wrong".to_string());
        }
        let percent = |p: f32| format!("{:.0}%", p * 100.0);
        why.push(format!("a linear model gives it {}", percent(hint.self_confidence)));
        offer(&answers.labels()[hint.guess], &percent(hint.confidence));
    }
    item.rivals.iter().for_each(|rival| offer(rival, "a copy's answer"));
    if item.copies > 0 {
        why.push(format!("stands for {} more", item.copies));
    }
    let told = |rival: &String| answers.read(rival).is_ok();
    if !item.rivals.iter().all(told) {
        why.push(format!("other answers: {}", item.rivals.join(", ")));
    }
    if let Some(reason) = decided.void {
        why.push(format!("an earlier decision does not count: {reason}"));
    }
    let suspect = item.hint.is_some_and(|h| h.suspect).then_some("probably wrong");
    Item {
        id: item.id.clone(),
        message,
        answer: item.label.clone().unwrap_or_else(|| item.answer.clone()),
        answered_by: String::new(),
        why,
        instead,
        feedback: item.feedback.clone(),
        about: [Some(item.id.clone()), Some(item.split.name().to_string()), item.at.clone()]
            .into_iter()
            .flatten()
            .collect(),
        tags: [item.source.name(), item.split.name()].into_iter().chain(suspect).collect(),
    }
}

fn verdict_text(decision: &Decision) -> String {
    let label = decision.label.as_deref().unwrap_or_default();
    match decision.verdict {
        review::Verdict::Accept => "accepts".to_string(),
        review::Verdict::Correct => label.to_string(),
        review::Verdict::Reject => format!("rejects ({})", decision.note.as_deref().unwrap_or_default()),
        _ => "skipped".to_string(),
    }
}

fn judgement(decision: &Decision, stands: Standing) -> Option<Judgement> {
    let (verdict, label) = match stands {
        Standing::Skipped => (Verdict::Skip, None),
        Standing::Rejected(_) => (Verdict::Reject, None),
        Standing::Labelled(label) if decision.verdict == review::Verdict::Correct => (Verdict::Correct, Some(label)),
        Standing::Labelled(label) => (Verdict::Accept, Some(label)),
        _ => return None,
    };
    Some(Judgement { verdict, label, note: decision.note.clone() })
}

#[cfg(test)]
#[path = "queue_desk_tests.rs"]
mod tests;
