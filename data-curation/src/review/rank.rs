//! The order of the queue: suspected label errors first, then by value, each cluster of messages with its quota, and a
//! random share in between from which alone estimates are made.
//!
//! Value is the average rank by self-confidence, disagreement and duplicates represented. The posteriors come in as plain
//! values: they may be the linear floor's or a model's, and this room uses neither.

use super::cluster::clusters;
use super::noise::noise;
use super::{Hint, Item, Queue, QueueReason, Source, Standing};
use crate::Error;
use crate::curate::LeftOut;
use crate::taxonomy::Answers;
use crate::text::{hash, mix};
use limbeck_artifact::dataset::Split;
use limbeck_artifact::files::write_atomic;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankPlan {
    /// Share of the queue that is drawn at random, 0 to 1.
    pub random_share: f64,
    pub seed: u64,
}

/// Changes when the order may: part of the key under which a ranking is kept.
pub const VERSION: &str = "sources, confident learning, value, sqrt(n) clusters, random share; 2";

/// A ranking as it is kept beside a run: computing it takes a while, and all reviewers must get the same.
#[derive(Clone, Debug, PartialEq)]
pub struct Ranking {
    pub head: Head,
    places: Vec<PlaceOf>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// What the ranking was made from.
    pub key: String,
    /// Rows of train and valid whose label is probably wrong.
    pub suspects: u64,
    /// Confident learning's share of wrong labels: a sign, no certificate.
    pub noise: f64,
}

/// One item's place: the lines of the file are in the queue's order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct PlaceOf {
    id: String,
    source: Source,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    hint: Option<Hint>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    draw: Option<u32>,
    #[serde(skip_serializing_if = "is_zero", default)]
    copies: u32,
}

fn is_zero(n: &u32) -> bool {
    *n == 0
}

impl Ranking {
    /// What was kept at `path`, if it is whole and was made from `key`.
    pub fn load(path: &Path, key: &str) -> Option<Ranking> {
        let text = std::fs::read_to_string(path).ok()?;
        let (head, rest) = text.split_once('\n')?;
        let head: Head = serde_json::from_str(head).ok().filter(|head: &Head| head.key == key)?;
        let lines: Vec<&str> = rest.lines().collect();
        let places =
            lines.par_iter().map(|line| serde_json::from_str(line)).collect::<Result<Vec<PlaceOf>, _>>().ok()?;
        Some(Ranking { head, places })
    }

    /// Keeps it: a head, then one line an item. Two reviewers who compute it at once write the same bytes.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let failed = |e: std::io::Error| Error::io("write", path, e);
        let mut text = serde_json::to_vec(&self.head).map_err(|e| failed(e.into()))?;
        for place in &self.places {
            text.push(b'\n');
            serde_json::to_writer(&mut text, place).map_err(|e| failed(e.into()))?;
        }
        text.push(b'\n');
        write_atomic(path, &text).map_err(failed)
    }

    /// Puts the queue into this order. Items that it does not name stay behind, in the order that they had.
    pub fn apply(&self, queue: &mut Queue) {
        let order = self.mark(queue);
        let mut items: Vec<Option<Item>> = std::mem::take(&mut queue.items).into_iter().map(Some).collect();
        queue.items = order.iter().filter_map(|i| items[*i as usize].take()).collect();
    }

    /// Tells the queue's items what the ranking knows of them, and leaves them where they are. Returns their numbers in its
    /// order; those that it does not name come last.
    pub fn mark(&self, queue: &mut Queue) -> Vec<u32> {
        let place: HashMap<&str, u32> = self.places.iter().zip(0..).map(|(p, i)| (p.id.as_str(), i)).collect();
        let mut order: Vec<(u32, u32)> = Vec::with_capacity(queue.items.len());
        for (item, i) in queue.items.iter_mut().zip(0..) {
            let at = place.get(item.id.as_str()).copied();
            if let Some(place) = at.map(|at| &self.places[at as usize]) {
                (item.source, item.hint, item.draw, item.copies) = (place.source, place.hint, place.draw, place.copies);
            }
            order.push((at.unwrap_or(u32::MAX), i));
        }
        order.sort_unstable();
        order.into_iter().map(|(_, i)| i).collect()
    }
}

/// How many traces each kept row of a curated folder stands for beside itself.
///
/// # Errors
/// When `left_out.jsonl` can't be read.
pub fn copies(curated: &Path) -> Result<HashMap<String, u32>, Error> {
    let path = curated.join("left_out.jsonl");
    let text = std::fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
    let mut copies: HashMap<String, u32> = HashMap::new();
    for left_out in text.lines().filter_map(|line| serde_json::from_str::<LeftOut>(line).ok()) {
        if left_out.reason.ends_with("duplicate")
            && let Some(like) = left_out.like
        {
            *copies.entry(like).or_default() += 1;
        }
    }
    Ok(copies)
}

/// Ranks the queue, which is in the order that [`super::queue()`] gave it. `posteriors[i]` [labels] is what a student that
/// did not learn from item i says of it, none where it was not asked.
pub fn rank(
    queue: &Queue,
    posteriors: &[Option<Vec<f32>>],
    copies: &HashMap<String, u32>,
    plan: &RankPlan,
    key: &str,
) -> Ranking {
    let items = &queue.items;
    let (known, found) = learn(queue, posteriors);
    let mut hints: Vec<Option<Hint>> = vec![None; items.len()];
    for (at, i) in known.iter().enumerate() {
        let Some(posterior) = &posteriors[*i] else { continue };
        let guess = (0..posterior.len()).fold(0, |best, j| if posterior[j] > posterior[best] { j } else { best });
        hints[*i] = Some(Hint {
            guess,
            confidence: posterior[guess],
            self_confidence: found.self_confidence[at],
            suspect: found.suspect[at],
        });
    }
    let (pool, fixed): (Vec<usize>, Vec<usize>) = (0..items.len()).partition(|i| pooled(&items[*i]));
    let copies: Vec<u32> = items.iter().map(|i| copies.get(&i.id).copied().unwrap_or(0)).collect();
    let by_value = by_value(queue, &pool, &hints, &copies, plan.seed);
    let drawn = draw_of(items, &pool, plan.seed);
    let mut draw: Vec<Option<u32>> = vec![None; items.len()];
    drawn.iter().enumerate().for_each(|(n, i)| draw[*i] = Some(n as u32));
    let mixed = with_random_share(&by_value, &drawn, plan.random_share);

    let of_fixed = fixed.iter().map(|i| (*i, true));
    let places = of_fixed
        .chain(mixed)
        .map(|(i, random)| PlaceOf {
            id: items[i].id.clone(),
            source: source(&items[i], hints[i].as_ref(), random),
            // A hint would be the student's hand in the labels that it is measured by.
            hint: hints[i].filter(|_| pooled(&items[i])),
            draw: draw[i],
            copies: copies[i],
        })
        .collect();
    let suspects = pool.iter().filter(|i| hints[**i].is_some_and(|h| h.suspect)).count() as u64;
    Ranking { head: Head { key: key.to_string(), suspects, noise: found.estimate }, places }
}

/// Puts a queue in the order that needs no ranking: the pool as the random draw has it. Whoever reviews before the ranking
/// is there reviews the share that estimates are made from.
pub fn plain(queue: &mut Queue, seed: u64) {
    let (pool, fixed): (Vec<usize>, Vec<usize>) = (0..queue.items.len()).partition(|i| pooled(&queue.items[*i]));
    let drawn = draw_of(&queue.items, &pool, seed);
    for (i, n) in drawn.iter().zip(0..) {
        queue.items[*i].draw = Some(n);
    }
    let mut items: Vec<Option<Item>> = std::mem::take(&mut queue.items).into_iter().map(Some).collect();
    queue.items = fixed.iter().chain(&drawn).filter_map(|i| items[*i].take()).collect();
}

/// What puts an item at its place in the random draw.
pub(super) fn draw_key(seed: u64, id: &str) -> u64 {
    mix(seed.rotate_left(17) ^ hash(id.as_bytes()))
}

/// The pool in the order of the random draw.
fn draw_of(items: &[Item], pool: &[usize], seed: u64) -> Vec<usize> {
    let mut drawn: Vec<(u64, usize)> = pool.iter().map(|i| (draw_key(seed, &items[*i].id), *i)).collect();
    drawn.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| items[a.1].id.cmp(&items[b.1].id)));
    drawn.into_iter().map(|(_, i)| i).collect()
}

/// Whether it is ranked and drawn from; test and calibration are not.
pub(super) fn pooled(item: &Item) -> bool {
    matches!(item.split, Split::Train | Split::Valid)
}

/// The rows with a label and a posterior, and what confident learning says of them.
fn learn(queue: &Queue, posteriors: &[Option<Vec<f32>>]) -> (Vec<usize>, super::noise::Noise) {
    let labels = queue.answers.labels();
    let number: HashMap<&str, usize> = labels.iter().enumerate().map(|(i, l)| (l.as_str(), i)).collect();
    let label = |i: usize| queue.items[i].label.as_deref().and_then(|l| number.get(l)).copied();
    let known: Vec<usize> =
        (0..queue.items.len()).filter(|i| posteriors[*i].is_some() && label(*i).is_some()).collect();
    let given: Vec<usize> = known.iter().filter_map(|i| label(*i)).collect();
    let rows: Vec<&[f32]> = known.iter().filter_map(|i| posteriors[*i].as_deref()).collect();
    let found = noise(&given, &rows, labels.len());
    (known, found)
}

fn source(item: &Item, hint: Option<&Hint>, random: bool) -> Source {
    let contradicted =
        !matches!(item.reason, QueueReason::Random | QueueReason::RareFields) || hint.is_some_and(|h| h.suspect);
    match item.source {
        _ if random => Source::Random,
        Source::Escalated => Source::Escalated,
        _ if contradicted => Source::Disagreement,
        _ => Source::LowConfidence,
    }
}

/// The pool, most valuable first.
fn by_value(queue: &Queue, pool: &[usize], hints: &[Option<Hint>], copies: &[u32], seed: u64) -> Vec<usize> {
    let item = |i: usize| &queue.items[i];
    let doubt = |i: usize| hints[i].map_or(1.0, |h| 1.0 - f64::from(h.self_confidence));
    let disagreement = |i: usize| {
        let guessed =
            hints[i].is_some_and(|h| item(i).label.as_deref() != Some(queue.answers.labels()[h.guess].as_str()));
        let parts = [
            guessed,
            matches!(item(i).reason, QueueReason::OutsideTaxonomy | QueueReason::Invalid),
            !item(i).rivals.is_empty(),
            item(i).reason == QueueReason::NegativeFeedback,
            item(i).source == Source::Escalated,
        ];
        parts.iter().filter(|part| **part).count() as f64
    };
    let signals = [
        fractional_ranks(&pool.iter().map(|i| doubt(*i)).collect::<Vec<_>>()),
        fractional_ranks(&pool.iter().map(|i| disagreement(*i)).collect::<Vec<_>>()),
        fractional_ranks(&pool.iter().map(|i| f64::from(copies[*i])).collect::<Vec<_>>()),
    ];
    let value: Vec<f64> = (0..pool.len()).map(|n| signals.iter().map(|s| s[n]).sum::<f64>()).collect();
    // Suspects first. No floor knows fields: there the reason itself says how urgent an item is.
    let tier = |i: usize| match &queue.answers {
        Answers::Labels(_) => u8::from(!(item(i).label.is_none() || hints[i].is_some_and(|h| h.suspect))),
        Answers::Fields(_) => item(i).reason as u8,
    };
    let mut order: Vec<usize> = (0..pool.len()).collect();
    order.sort_by(|a, b| {
        let (x, y) = (pool[*a], pool[*b]);
        tier(x).cmp(&tier(y)).then(value[*b].total_cmp(&value[*a])).then_with(|| {
            let tie = |i: usize| mix(seed ^ hash(item(i).id.as_bytes()));
            tie(x).cmp(&tie(y)).then_with(|| item(x).id.cmp(&item(y).id))
        })
    });
    let messages: Vec<&str> = order.iter().map(|n| item(pool[*n]).message.as_str()).collect();
    let clusters = clusters(&messages, seed);
    // The quota orders each tier by itself.
    let mut out = Vec::with_capacity(order.len());
    for of_tier in order.chunk_by(|a, b| tier(pool[*a]) == tier(pool[*b])) {
        let from = out.len();
        out.extend(with_quota(&clusters[from..from + of_tier.len()]).into_iter().map(|n| pool[of_tier[n]]));
    }
    out
}

/// The share of rows that each value exceeds, ties averaged: 0 for the smallest, below 1 for the largest.
fn fractional_ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    while from < order.len() {
        let to = (from..order.len()).find(|i| values[order[*i]] != values[order[from]]).unwrap_or(order.len());
        let rank = (from + to - 1) as f64 / 2.0 / values.len() as f64;
        order[from..to].iter().for_each(|i| ranks[*i] = rank);
        from = to;
    }
    ranks
}

/// Rows of a page; no cluster takes more than its quota of one.
const PAGE: usize = 100;

/// An order in which no stretch of [`PAGE`] rows is one cluster's, otherwise as given. `clusters[n]` is row n's.
fn with_quota(clusters: &[usize]) -> Vec<usize> {
    let mut rows: Vec<Vec<usize>> = vec![Vec::new(); clusters.iter().max().map_or(0, |m| m + 1)];
    for n in (0..clusters.len()).rev() {
        rows[clusters[n]].push(n);
    }
    let in_use = rows.iter().filter(|r| !r.is_empty()).count();
    let quota = (3 * PAGE).div_ceil(in_use.max(1)).max(2);
    let mut out = Vec::with_capacity(clusters.len());
    let mut heads: BinaryHeap<Reverse<(usize, usize)>> =
        rows.iter().enumerate().filter_map(|(c, r)| Some(Reverse((*r.last()?, c)))).collect();
    while !heads.is_empty() {
        let (mut taken, mut resting) = (HashMap::<usize, usize>::new(), Vec::new());
        let page_ends = out.len() + PAGE;
        while out.len() < page_ends
            && let Some(Reverse((n, cluster))) = heads.pop()
        {
            rows[cluster].pop();
            out.push(n);
            let used = taken.entry(cluster).or_default();
            *used += 1;
            if let Some(next) = rows[cluster].last() {
                match *used < quota {
                    true => heads.push(Reverse((*next, cluster))),
                    false => resting.push(Reverse((*next, cluster))),
                }
            }
        }
        heads.extend(resting);
    }
    out
}

/// Merges the value's order with the draw's: every 1/share-th place is the draw's next row that has no place yet. Tells
/// with each row whether the draw placed it.
fn with_random_share(by_value: &[usize], drawn: &[usize], share: f64) -> Vec<(usize, bool)> {
    let mut placed = vec![false; by_value.iter().max().map_or(0, |m| m + 1)];
    let (mut value, mut draw) = (by_value.iter(), drawn.iter());
    let (mut out, mut owed) = (Vec::with_capacity(by_value.len()), 0.0);
    while out.len() < by_value.len() {
        owed += share.clamp(0.0, 1.0);
        let random = owed >= 1.0 - 1e-9;
        let next = match random {
            true => draw.find(|i| !placed[**i]),
            false => value.find(|i| !placed[**i]),
        };
        let Some(next) = next else { break };
        owed -= f64::from(u8::from(random));
        placed[*next] = true;
        out.push((*next, random));
    }
    out
}

/// The items of the draw, in its order.
pub fn drawn(queue: &Queue) -> Vec<usize> {
    let mut drawn: Vec<(u32, usize)> =
        queue.items.iter().enumerate().filter_map(|(i, item)| Some((item.draw?, i))).collect();
    drawn.sort_unstable();
    drawn.into_iter().map(|(_, i)| i).collect()
}

/// The random share as far as it is reviewed, in the order of the draw (see [`drawn`]): whether each row's recorded label
/// was wrong. `standing` gives what stands for an item. It ends at the first row that nobody judged.
pub fn drawn_outcomes<'s>(queue: &Queue, drawn: &[usize], standing: impl Fn(usize) -> &'s Standing) -> Vec<bool> {
    drawn.iter().map_while(|i| outcome(&queue.items[*i], standing(*i))).collect()
}

/// Whether a row's recorded label was found wrong; none where nobody judged it. One that was skipped or is disputed counts
/// as wrong, so that no doubt makes the labels look better.
pub(super) fn outcome(item: &Item, standing: &Standing) -> Option<bool> {
    match standing {
        Standing::Open | Standing::Void(_) | Standing::Awaiting => None,
        Standing::Labelled(label) => Some(item.label.as_deref() != Some(label.as_str())),
        Standing::Rejected(_) | Standing::Skipped | Standing::Disputed => Some(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(n: usize, split: Split, label: Option<&str>) -> Item {
        Item {
            id: format!("t{n}"),
            split,
            message: format!("message {} about {}", n, ["cards", "money abroad", "an app that fails"][n % 3]),
            answer: label.unwrap_or("what?").to_string(),
            label: label.map(str::to_string),
            rivals: Vec::new(),
            reason: if label.is_none() { QueueReason::OutsideTaxonomy } else { QueueReason::Random },
            detail: None,
            feedback: None,
            at: None,
            shown_sha256: String::new(),
            source: Source::Random,
            hint: None,
            draw: None,
            copies: 0,
        }
    }

    /// A student that is sure of `a` everywhere but on every tenth row, where it is sure of `b`.
    fn ranked(n: usize, share: f64) -> (Queue, Ranking) {
        let labels = vec!["a".to_string(), "b".to_string()];
        let split = |i: usize| [Split::Train, Split::Train, Split::Test, Split::Valid][i % 4];
        // Half of the rows are honest a, half honest b; a tenth of each carries the other's label.
        let truth = |i: usize| i % 2;
        let given = |i: usize| if i % 10 < 1 { 1 - truth(i) } else { truth(i) };
        let items = (0..n).map(|i| item(i, split(i), Some(labels[given(i)].as_str()))).collect();
        let mut queue = Queue { items, answers: Answers::Labels(labels), reviewers: 1 };
        let posteriors: Vec<Option<Vec<f32>>> =
            (0..n).map(|i| Some(if truth(i) == 0 { vec![0.9, 0.1] } else { vec![0.1, 0.9] })).collect();
        let copies = HashMap::from([("t1".to_string(), 5)]);
        let ranking = rank(&queue, &posteriors, &copies, &RankPlan { random_share: share, seed: 3 }, "k");
        ranking.apply(&mut queue);
        (queue, ranking)
    }

    #[test]
    fn suspects_come_first_with_the_random_share_in_between() {
        let (queue, ranking) = ranked(400, 0.2);
        let test = queue.items.iter().take_while(|i| i.split == Split::Test).count();
        assert_eq!(test, 100);
        assert!(queue.items[..test].iter().all(|i| i.hint.is_none() && i.draw.is_none() && i.source == Source::Random));
        let pool = &queue.items[test..];
        // Of rows 0, 10, 20, ... those in test are not in the pool.
        let suspect = |i: &&Item| i.hint.is_some_and(|h| h.suspect);
        assert_eq!((ranking.head.suspects, pool.iter().filter(suspect).count()), (20, 20));
        let random: Vec<bool> = pool.iter().map(|i| i.source == Source::Random).collect();
        assert_eq!(random.iter().filter(|r| **r).count(), pool.len() / 5);
        assert!(random.iter().enumerate().all(|(n, r)| *r == (n % 5 == 4)));
        let by_value: Vec<&Item> = pool.iter().filter(|i| i.source != Source::Random).collect();
        let first = by_value.iter().take_while(|i| suspect(i)).count();
        assert!(first >= 15 && !by_value[first..].iter().any(suspect), "{first}");
        assert_eq!(by_value[0].source, Source::Disagreement);
        assert_eq!(by_value[first].id, "t1", "of equal doubt, the one that stands for most comes first");
        assert_eq!((by_value[first].source, by_value[first].copies), (Source::LowConfidence, 5));
        assert!((ranking.head.noise - 0.1).abs() < 0.02, "{}", ranking.head.noise);
    }

    #[test]
    fn of_fields_the_reason_says_what_comes_first() {
        use QueueReason::{Disagreement, Invalid, NotInMessage, RareFields};
        let reasons = [QueueReason::Random, RareFields, NotInMessage, Disagreement, Invalid];
        let schema = r#"{"type": "object", "properties": {"time": {"type": "string"}}}"#;
        let items = (0..50)
            .map(|i| Item { reason: reasons[i % 5], ..item(i, Split::Train, (i % 5 < 4).then_some("{}")) })
            .collect();
        let answers = Answers::of(&[], Some(schema)).unwrap();
        let mut queue = Queue { items, answers, reviewers: 1 };
        let plan = RankPlan { random_share: 0.0, seed: 3 };
        rank(&queue, &vec![None; 50], &HashMap::new(), &plan, "k").apply(&mut queue);
        let order: Vec<QueueReason> = queue.items.iter().map(|i| i.reason).collect();
        let want: Vec<QueueReason> = reasons.iter().rev().flat_map(|r| [*r; 10]).collect();
        assert_eq!(order, want);
        assert_eq!(queue.items[49].source, Source::LowConfidence);
        assert_eq!(queue.items[0].source, Source::Disagreement);
    }

    #[test]
    fn a_kept_ranking_is_the_same_and_another_key_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("queue.jsonl");
        let (_, ranking) = ranked(60, 0.2);
        ranking.save(&path).unwrap();
        assert_eq!(Ranking::load(&path, "k"), Some(ranking.clone()));
        assert_eq!(Ranking::load(&path, "other"), None);
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        assert_eq!(Ranking::load(&path, "k"), None);
        assert_eq!(ranked(60, 0.2).1, ranking);
    }

    #[test]
    fn the_plain_order_is_the_draw_and_the_ranking_keeps_it() {
        let (queue, ranking) = ranked(400, 0.2);
        let mut before = queue.clone();
        before.items.sort_by(|a, b| a.id.cmp(&b.id));
        before.items.iter_mut().for_each(|i| (i.hint, i.draw, i.copies) = (None, None, 0));
        plain(&mut before, 3);
        assert!(before.items[..100].iter().all(|i| i.split == Split::Test && i.draw.is_none()));
        assert!(before.items[100..].iter().zip(0..).all(|(i, n)| i.draw == Some(n)));
        let ids = |queue: &Queue| queue.items.iter().map(|i| (i.id.clone(), i.draw)).collect::<HashMap<_, _>>();
        assert_eq!(ids(&before), ids(&queue), "who was drawn before the ranking is drawn after it");
        let mut marked = before.clone();
        let order = ranking.mark(&mut marked);
        assert!(marked.items.iter().zip(&before.items).all(|(a, b)| a.id == b.id), "items stay where they are");
        let of = |i: &u32| marked.items[*i as usize].clone();
        assert_eq!(order.iter().map(of).collect::<Vec<_>>(), queue.items);
    }

    #[test]
    fn the_shares_ends_are_all_and_nothing() {
        let pooled = |share| -> Vec<bool> {
            ranked(100, share).0.items.iter().filter(|i| i.draw.is_some()).map(|i| i.source == Source::Random).collect()
        };
        assert!(pooled(1.0).iter().all(|r| *r));
        assert!(!pooled(0.0).iter().any(|r| *r));
    }

    /// The draw is a sample of the pool whatever the order by value did: every row is as likely among its first as any.
    #[test]
    fn the_draw_has_nothing_to_do_with_the_value() {
        let share_of_suspects = |seed: u64| {
            let labels = vec!["a".to_string(), "b".to_string()];
            let items: Vec<Item> = (0..300).map(|i| item(i, Split::Train, Some("a"))).collect();
            let queue = Queue { items, answers: Answers::Labels(labels), reviewers: 1 };
            let posterior = |i: usize| if i < 60 { vec![0.05, 0.95] } else { vec![0.9, 0.1] };
            let posteriors: Vec<_> = (0..300).map(|i| Some(posterior(i))).collect();
            let ranking = rank(&queue, &posteriors, &HashMap::new(), &RankPlan { random_share: 0.2, seed }, "k");
            let first = ranking.places.iter().filter(|p| p.draw.is_some_and(|d| d < 50));
            first.filter(|p| p.hint.is_some_and(|h| h.self_confidence < 0.5)).count() as f64 / 50.0
        };
        let mean = (0..60).map(share_of_suspects).sum::<f64>() / 60.0;
        assert!((mean - 0.2).abs() < 0.025, "{mean}");
    }

    #[test]
    fn no_cluster_fills_a_page() {
        let clusters: Vec<usize> = (0..1_000).map(|n| if n < 500 { 0 } else { n % 50 }).collect();
        let order = with_quota(&clusters);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1_000).collect::<Vec<_>>());
        let first_page = order[..PAGE].iter().filter(|n| clusters[**n] == 0).count();
        assert_eq!(first_page, 6, "3 x 100 / 50");
        assert_eq!(order[..6], [0, 1, 2, 3, 4, 5]);
        assert_eq!(with_quota(&[0, 0, 0]), [0, 1, 2]);
        assert_eq!(with_quota(&[]), Vec::<usize>::new());
    }

    #[test]
    fn ranks_average_ties() {
        assert_eq!(fractional_ranks(&[5.0, 1.0, 5.0, 0.0]), [0.625, 0.25, 0.625, 0.0]);
    }

    #[test]
    fn the_sample_ends_where_nobody_looked_and_doubt_counts_against_the_labels() {
        let (queue, _) = ranked(40, 0.2);
        let drawn = drawn(&queue);
        let at = |n: usize| drawn[n];
        let standing = |i: usize| match i {
            i if i == at(1) => Standing::Skipped,
            i if i == at(2) => Standing::Labelled("elsewhere".into()),
            i if i == at(4) => Standing::Open,
            i => Standing::Labelled(queue.items[i].label.clone().unwrap()),
        };
        let standings: Vec<Standing> = (0..40).map(standing).collect();
        assert_eq!(drawn_outcomes(&queue, &drawn, |i| &standings[i]), [false, true, true, false]);
    }
}
