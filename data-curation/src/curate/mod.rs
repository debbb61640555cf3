//! Accepted traces in, distinct rows in four splits out. Each row that is left out is counted with its reason and
//! listed in `left_out.jsonl`; what comes in equals what is kept plus all reasons.
//!
//! Near-duplicates are removed before the groups are formed. Were they kept, each would tie its customers together,
//! and in a log of short messages all customers would soon be one group that no split can divide.

mod against;
mod gather;
mod leaks;
mod near;
mod quality;
pub mod split;
mod threads;
pub mod unlabeled;
mod write;

pub use gather::each_message;
pub use quality::Quality;
pub use split::Fractions;
pub use write::{Sample, load, pieces};

use crate::Error;
use crate::import::{NamedFile, load_json};
use crate::table::Row;
use crate::taxonomy::Answers;
use crate::text::{Picked, hash, key, mix};
use against::Protected;
use gather::{Light, NONE};
use limbeck_artifact::dataset::{Split, TraceRef};
use limbeck_artifact::event::{Emit, EventKind};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, PartialEq)]
pub struct CuratePlan {
    /// The folder that [`crate::import`] wrote.
    pub imported: PathBuf,
    pub answers: Answers,
    /// Characters of the message.
    pub min_chars: u32,
    pub max_chars: u32,
    /// Jaccard similarity of character 5-grams, above 0 and at most 1, from which two messages are near-duplicates.
    pub near_dup_threshold: f64,
    pub split: Fractions,
    pub seed: u64,
    pub options: CurateOptions,
    /// Folder for `curated.parquet`, the review queue's items, `left_out.jsonl`, `quality.jsonl` and `curate.json`.
    pub out: PathBuf,
}

/// What is off unless a recipe asks for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CurateOptions {
    /// Test is the newest rows instead of a random draw; older rows of its customers are left out.
    pub by_time: bool,
    /// Signs whose rows are left out; all are counted.
    pub drop: Vec<Quality>,
    /// No kept row may repeat a text of these.
    pub decontaminate_against: Vec<NamedFile>,
    pub balance: Balance,
}

/// How classes of train are evened out, by leaving rows of the larger ones out. Other splits keep what came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    #[default]
    None,
    /// A class of n rows keeps √(n·m), m being the smallest class.
    Sqrt,
    /// Every class keeps as many as the smallest has.
    Equal,
}

/// Why a row was left out. A row has one reason: the first that applies, in this order.
pub const REASONS: [&str; 16] = [
    "too_short",
    "too_long",
    "refusal",
    "truncated",
    "outside_taxonomy",
    "repeated_ngrams",
    "template_leakage",
    "cut_by_collector",
    "duplicate_id",
    "exact_duplicate",
    "near_duplicate",
    "customer_in_test",
    "thread_in_test",
    "leaks_into_test",
    "in_protected_file",
    "balanced_away",
];

/// What came of it; kept as `curate.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CurateSummary {
    /// `rows_in` = `kept` of all splits + all of `left_out`.
    pub rows_in: u64,
    pub kept: BTreeMap<Split, u64>,
    pub left_out: BTreeMap<String, u64>,
    /// Kept rows that show a sign of [`Quality`]; `quality.jsonl` has samples.
    #[serde(default)]
    pub signs: BTreeMap<String, u64>,
    /// Kept rows whose recorded answer is none of the labels.
    pub outside_taxonomy: u64,
    /// Kept rows of which some copy was answered otherwise.
    pub disagreements: u64,
    pub groups: u64,
    /// Conversations of which several rows are kept, each in one split.
    #[serde(default)]
    pub threads: u64,
    pub labels: Vec<String>,
    /// The text of the answers' schema, where they are fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
}

impl CurateSummary {
    pub fn load(dir: &Path) -> Result<CurateSummary, Error> {
        load_json(&dir.join("curate.json"))
    }

    /// What counts as an answer.
    pub fn answers(&self) -> Result<Answers, Error> {
        Answers::of(&self.labels, self.schema.as_deref()).map_err(|e| Error::Plan(format!("the schema: {e}")))
    }

    /// "1,115 = 1,021 kept + 22 exact_duplicate + …".
    pub fn account(&self) -> String {
        let kept: u64 = self.kept.values().sum();
        let reasons = REASONS.iter().filter_map(|r| Some(format!(" + {} {r}", self.left_out.get(*r)?)));
        format!("{} in = {kept} kept{}", self.rows_in, reasons.collect::<String>())
    }
}

/// A line of `left_out.jsonl`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    #[serde(flatten)]
    pub trace: TraceRef,
    pub reason: String,
    /// The trace that it repeats, or into which it leaks.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub like: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub note: Option<String>,
}

/// A kept row.
#[derive(Clone, Debug, PartialEq)]
pub struct Curated {
    pub row: Row,
    /// The label that the recorded answer is, or its fields in canonical form; none when it is outside the taxonomy, not
    /// valid, or was cut off.
    pub label: Option<String>,
    pub split: Split,
    /// Rows of one group never straddle two splits.
    pub group: String,
    /// Other answers that copies of this message got.
    pub rivals: Vec<String>,
}

/// What becomes of each row.
struct Fate {
    /// Index into [`REASONS`], or [`KEPT`].
    reason: Vec<u8>,
    /// The row that it repeats or leaks into, or [`NONE`].
    like: Vec<u32>,
    split: Vec<Option<Split>>,
    /// The first row of its group.
    group: Vec<u32>,
    notes: BTreeMap<u32, String>,
}

const KEPT: u8 = u8::MAX;

impl Fate {
    fn new(rows: usize) -> Fate {
        let notes = BTreeMap::new();
        Fate {
            reason: vec![KEPT; rows],
            like: vec![NONE; rows],
            split: vec![None; rows],
            group: vec![NONE; rows],
            notes,
        }
    }

    fn reason(&self, row: usize) -> Option<&'static str> {
        REASONS.get(usize::from(self.reason[row])).copied()
    }

    fn like(&self, row: usize) -> Option<usize> {
        Some(self.like[row]).filter(|l| *l != NONE).map(|l| l as usize)
    }

    /// The first reason stays.
    fn leave_out(&mut self, row: usize, reason: &str, like: Option<usize>) {
        if self.reason[row] == KEPT {
            self.reason[row] = REASONS.iter().position(|r| *r == reason).unwrap_or(0) as u8;
            self.like[row] = like.map_or(NONE, |l| l as u32);
        }
    }

    fn live(&self) -> Vec<u32> {
        (0..self.reason.len() as u32).filter(|row| self.reason[*row as usize] == KEPT).collect()
    }

    /// Of the rows still kept that share a key, leaves out all but the first.
    fn all_but_first(&mut self, reason: &str, key: impl Fn(usize) -> u128) {
        let mut first: HashMap<u128, u32> = HashMap::new();
        for row in self.live() {
            let before = *first.entry(key(row as usize)).or_insert(row);
            if before != row {
                self.leave_out(row as usize, reason, Some(before as usize));
            }
        }
    }
}

/// See the module. A distinct message of a customer ends in exactly one split.
pub fn curate(plan: &CuratePlan, emit: &dyn Emit) -> Result<CurateSummary, Error> {
    check(plan)?;
    let protected = Protected::read(&plan.options.decontaminate_against)?;
    let light = Light::read(&plan.imported.join("accepted.parquet"), &plan.answers, emit)?;
    let mut fate = Fate::new(light.len());
    filter(plan, &light, &mut fate);
    fate.all_but_first("duplicate_id", |row| key(light.ids.get(row)));
    fate.all_but_first("exact_duplicate", |row| key(light.normal.get(row)));

    let live = fate.live();
    emit.emit(EventKind::Note { text: format!("{} distinct messages, looking for near-duplicates", live.len()) });
    let near = near::clusters(Picked { texts: &light.normal, rows: &live }, plan.near_dup_threshold);
    let cluster = clusters_of_all(&fate, &live, &near);
    fate.all_but_first("near_duplicate", |row| u128::from(cluster[row]));

    deal(plan, &light, &mut fate)?;
    without_leaks(plan, &light, &protected, &mut fate);
    balance(plan, &light, &mut fate);

    let rivals = rivals(plan, &light, &cluster);
    let mut summary = summarize(plan, &light, &fate);
    summary.disagreements = rivals.keys().filter(|row| fate.reason(**row as usize).is_none()).count() as u64;
    let accounted = summary.kept.values().sum::<u64>() + summary.left_out.values().sum::<u64>();
    if accounted != light.len() as u64 {
        return Err(Error::Unaccounted { stage: "curate", into: light.len() as u64, out: accounted });
    }
    enough(plan, &summary)?;
    write::write(plan, &light, &fate, &rivals, &mut summary, emit)?;
    report(&summary, emit);
    Ok(summary)
}

fn check(plan: &CuratePlan) -> Result<(), Error> {
    if let Answers::Labels(labels) = &plan.answers
        && (labels.len() < 2 || labels.iter().collect::<BTreeSet<_>>().len() < labels.len())
    {
        return Err(Error::Plan("the taxonomy needs two labels at least, each once".to_string()));
    }
    if !(plan.near_dup_threshold > 0.0 && plan.near_dup_threshold <= 1.0) {
        return Err(Error::Plan(format!("a near-duplicate threshold of {} is not in (0, 1]", plan.near_dup_threshold)));
    }
    plan.split.check().map_err(Error::Plan)
}

fn filter(plan: &CuratePlan, light: &Light, fate: &mut Fate) {
    for row in 0..light.len() {
        let sign = plan.options.drop.iter().filter(|s| light.signs[row] & s.bit() != 0).min();
        match light.chars[row] {
            chars if chars < plan.min_chars => fate.leave_out(row, "too_short", None),
            chars if chars > plan.max_chars => fate.leave_out(row, "too_long", None),
            _ => sign.into_iter().for_each(|s| fate.leave_out(row, s.name(), None)),
        }
    }
}

/// The first row of each row's cluster, also for exact duplicates; for other rows themselves.
fn clusters_of_all(fate: &Fate, live: &[u32], near: &[usize]) -> Vec<u32> {
    let mut cluster: Vec<u32> = (0..fate.reason.len() as u32).collect();
    live.iter().zip(near).for_each(|(row, first)| cluster[*row as usize] = live[*first]);
    for row in (0..cluster.len()).filter(|row| fate.reason(*row) == Some("exact_duplicate")) {
        if let Some(like) = fate.like(row) {
            cluster[row] = cluster[like];
        }
    }
    cluster
}

/// Groups are customers and conversations, and whatever a chain of them ties together; a row without either is a group of
/// its own. Clusters need no joining here: one row of each is left.
fn groups(light: &Light, live: &[u32]) -> Vec<u32> {
    let mut joined = near::UnionFind::new(light.len());
    for of in [&light.customer, &light.thread] {
        let mut first: HashMap<u32, u32> = HashMap::new();
        for row in live.iter().filter(|row| of[**row as usize] != NONE) {
            let before = *first.entry(of[*row as usize]).or_insert(*row);
            joined.join(before as usize, *row as usize);
        }
    }
    let mut group = vec![NONE; light.len()];
    live.iter().for_each(|row| group[*row as usize] = joined.root(*row as usize) as u32);
    group
}

fn deal(plan: &CuratePlan, light: &Light, fate: &mut Fate) -> Result<(), Error> {
    let mut fractions = plan.split;
    fate.group = groups(light, &fate.live());
    if plan.options.by_time {
        newest_are_test(plan, light, fate)?;
        let rest = 1.0 - fractions.test;
        fractions = Fractions { valid: fractions.valid / rest, calibration: fractions.calibration / rest, test: 0.0 };
    }
    let dealt: Vec<u32> = fate.live().into_iter().filter(|row| fate.split[*row as usize].is_none()).collect();
    let group: Vec<usize> = dealt.iter().map(|row| fate.group[*row as usize] as usize).collect();
    // The recorded answer stands in for the label that review has yet to give; the last number is "none of them".
    let label: Vec<usize> = dealt.iter().map(|row| (light.class[*row as usize] as usize).min(light.classes)).collect();
    let splits = split::assign(&group, &label, &fractions, plan.seed);
    dealt.iter().zip(splits).for_each(|(row, split)| fate.split[*row as usize] = Some(split));
    Ok(())
}

/// Of the rows still kept, the newest become test, and older rows of their groups are left out.
fn newest_are_test(plan: &CuratePlan, light: &Light, fate: &mut Fate) -> Result<(), Error> {
    let live = fate.live();
    let mut timed: Vec<(i64, u32)> = live.iter().filter_map(|row| Some((light.at[*row as usize]?, *row))).collect();
    let wanted = (plan.split.test * live.len() as f64).round() as usize;
    if timed.len() < wanted || wanted == 0 {
        return Err(Error::Plan(format!(
            "data.split.by_time wants the newest {wanted} of {} rows, and {} say when they were made",
            live.len(),
            timed.len()
        )));
    }
    timed.sort_unstable_by(|a, b| b.cmp(a));
    let mut in_test: [BTreeSet<u32>; 2] = Default::default();
    for (_, row) in &timed[..wanted] {
        fate.split[*row as usize] = Some(Split::Test);
        in_test[0].insert(fate.group[*row as usize]);
        in_test[1].insert(light.customer[*row as usize]);
    }
    for row in live {
        if fate.split[row as usize].is_none() && in_test[0].contains(&fate.group[row as usize]) {
            let customer = light.customer[row as usize];
            let known = customer != NONE && in_test[1].contains(&customer);
            fate.leave_out(row as usize, if known { "customer_in_test" } else { "thread_in_test" }, None);
        }
    }
    Ok(())
}

fn without_leaks(plan: &CuratePlan, light: &Light, protected: &Protected, fate: &mut Fate) {
    let (test, others): (Vec<u32>, Vec<u32>) =
        fate.live().into_iter().partition(|row| fate.split[*row as usize] == Some(Split::Test));
    let of = |rows| Picked { texts: &light.normal, rows };
    let found = leaks::leaks(of(&others), of(&test), plan.near_dup_threshold);
    for (row, hit) in others.iter().zip(found) {
        if let Some(hit) = hit {
            fate.leave_out(*row as usize, "leaks_into_test", Some(test[hit] as usize));
        }
    }
    if protected.normal.is_empty() {
        return;
    }
    let (live, all) = (fate.live(), (0..protected.normal.len() as u32).collect::<Vec<u32>>());
    let texts = Picked { texts: &protected.normal, rows: &all };
    for (row, hit) in live.iter().zip(leaks::leaks(of(&live), texts, plan.near_dup_threshold)) {
        if let Some(hit) = hit {
            fate.leave_out(*row as usize, "in_protected_file", None);
            fate.notes.insert(*row, protected.from[hit].clone());
        }
    }
}

fn balance(plan: &CuratePlan, light: &Light, fate: &mut Fate) {
    if plan.options.balance == Balance::None {
        return;
    }
    let mut classes: BTreeMap<u32, Vec<(u64, u32)>> = BTreeMap::new();
    for row in fate.live().into_iter().filter(|row| fate.split[*row as usize] == Some(Split::Train)) {
        let drawn = mix(plan.seed ^ hash(light.ids.get(row as usize).as_bytes()));
        classes.entry(light.class[row as usize]).or_default().push((drawn, row));
    }
    // Answers outside the taxonomy are no class; review finds theirs.
    classes.remove(&NONE);
    let smallest = classes.values().map(Vec::len).min().unwrap_or(0);
    for mut rows in classes.into_values() {
        rows.sort_unstable();
        let keep = match plan.options.balance {
            Balance::None => rows.len(),
            Balance::Sqrt => ((rows.len() * smallest) as f64).sqrt().round() as usize,
            Balance::Equal => smallest,
        };
        rows.iter().skip(keep).for_each(|(_, row)| fate.leave_out(*row as usize, "balanced_away", None));
    }
}

/// For the first row of each cluster, the answers of the others that are not its own.
fn rivals(plan: &CuratePlan, light: &Light, cluster: &[u32]) -> BTreeMap<u32, BTreeSet<String>> {
    let mut rivals: BTreeMap<u32, BTreeSet<String>> = BTreeMap::new();
    for (row, first) in cluster.iter().enumerate().filter(|(row, first)| *row != **first as usize) {
        let (own, other) = (light.answer(*first as usize), light.answer(row));
        let differ = match &plan.answers {
            Answers::Labels(_) => own != other,
            Answers::Fields(fields) => {
                fields.contradict(own, light.normal.get(*first as usize), other, light.normal.get(row))
            }
        };
        if differ {
            rivals.entry(*first).or_default().insert(other.to_string());
        }
    }
    rivals
}

fn summarize(plan: &CuratePlan, light: &Light, fate: &Fate) -> CurateSummary {
    let mut summary = CurateSummary {
        rows_in: light.len() as u64,
        kept: Split::ALL.into_iter().map(|s| (s, 0)).collect(),
        labels: plan.answers.labels().to_vec(),
        schema: plan.answers.fields().map(|fields| fields.text.clone()),
        ..CurateSummary::default()
    };
    let mut groups = BTreeSet::new();
    for row in 0..light.len() {
        match (fate.reason(row), fate.split[row]) {
            (Some(reason), _) => *summary.left_out.entry(reason.to_string()).or_default() += 1,
            (None, Some(split)) => {
                *summary.kept.entry(split).or_default() += 1;
                summary.outside_taxonomy += u64::from(light.label[row] == NONE);
                for sign in Quality::ALL.into_iter().filter(|s| light.signs[row] & s.bit() != 0) {
                    *summary.signs.entry(sign.name().to_string()).or_default() += 1;
                }
            }
            (None, None) => {}
        }
        if fate.split[row].is_some() {
            groups.insert(fate.group[row]);
        }
    }
    summary.groups = groups.len() as u64;
    let mut rows_of: HashMap<u32, u64> = HashMap::new();
    for row in (0..light.len()).filter(|row| light.thread[*row] != NONE && fate.reason(*row).is_none()) {
        *rows_of.entry(light.thread[row]).or_default() += 1;
    }
    summary.threads = rows_of.values().filter(|n| **n > 1).count() as u64;
    for sign in &plan.options.drop {
        summary.signs.entry(sign.name().to_string()).or_insert(0);
    }
    summary
}

/// A split that should have rows and has none would only fail later, and less clearly.
fn enough(plan: &CuratePlan, summary: &CurateSummary) -> Result<(), Error> {
    let wanted = |split: &Split| match split {
        Split::Train => true,
        Split::Valid => plan.split.valid > 0.0,
        Split::Calibration => plan.split.calibration > 0.0,
        Split::Test => plan.split.test > 0.0,
    };
    match summary.kept.iter().find(|(split, n)| **n == 0 && wanted(split)) {
        None => Ok(()),
        Some((split, _)) => Err(Error::Split {
            rows: summary.rows_in - summary.left_out.values().sum::<u64>(),
            groups: summary.groups,
            why: format!("none came to {}", split.name()),
            hint: "bring traces of more customers, or set the fraction of this split to 0",
        }),
    }
}

fn report(summary: &CurateSummary, emit: &dyn Emit) {
    let counted =
        |what: String, n: u64, reason: &str| emit.emit(EventKind::Counted { what, n, reason: reason.to_string() });
    for (split, n) in &summary.kept {
        counted(format!("{} rows", split.name()), *n, "");
    }
    for reason in REASONS {
        if let Some(n) = summary.left_out.get(reason) {
            counted("rows left out".to_string(), *n, reason);
        }
    }
    for (sign, n) in summary.signs.iter().filter(|(sign, n)| **n > 0 && *sign != "outside_taxonomy") {
        counted("rows to look at".to_string(), *n, sign);
    }
    if summary.outside_taxonomy > 0 {
        let reason = if summary.schema.is_some() { "answer_not_valid" } else { "answer_outside_taxonomy" };
        counted("rows for review".to_string(), summary.outside_taxonomy, reason);
    }
    if summary.disagreements > 0 {
        counted("rows for review".to_string(), summary.disagreements, "copies_answered_differently");
    }
    if summary.threads > 0 {
        let text = format!("{} conversations of several rows, each in one split", summary.threads);
        emit.emit(EventKind::Note { text });
    }
    emit.emit(EventKind::Note { text: summary.account() });
}
