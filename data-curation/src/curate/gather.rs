//! The one reading of all accepted traces that decisions are made from: what every row needs in memory, a few hundred
//! bytes each, while prompts and answers stay on disk.

use super::quality::Quality;
use super::threads;
use crate::table::{self, Row, Slices};
use crate::taxonomy::Answers;
use crate::text::{Texts, hash, normal_form};
use crate::trace::visible_message;
use crate::{Error, text};
use limbeck_artifact::dataset::Message;
use limbeck_artifact::event::{Emit, EventKind};
use rayon::prelude::*;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Where a number stands for nothing.
pub(super) const NONE: u32 = u32::MAX;

/// Side by side, a value a row.
#[derive(Default)]
pub(super) struct Light {
    pub ids: Texts,
    /// A small number a customer.
    pub customer: Vec<u32>,
    /// A small number a conversation.
    pub thread: Vec<u32>,
    /// Nanoseconds since 1970.
    pub at: Vec<Option<i64>>,
    /// Of the message.
    pub chars: Vec<u32>,
    pub normal: Texts,
    /// The answers that are told apart: the labels, or every distinct answer of fields.
    pub known: Vec<String>,
    /// Index among them.
    pub label: Vec<u32>,
    /// What splits are balanced by: the label, or which fields the answer has.
    pub class: Vec<u32>,
    pub classes: usize,
    /// Answers that are no label, or not valid.
    pub odd: BTreeMap<u32, String>,
    /// Bits of [`Quality`].
    pub signs: Vec<u8>,
}

/// What is worked out of one row, apart from the others.
struct One {
    id: String,
    customer: Option<u128>,
    thread: threads::Seen,
    at: Option<i64>,
    chars: u32,
    normal: String,
    label: u32,
    /// In canonical form, where answers are fields.
    said: Option<String>,
    odd: Option<String>,
    signs: u8,
}

/// Numbers in the order of first sight.
#[derive(Default)]
struct Numbered<K>(HashMap<K, u32>);

impl<K: Eq + std::hash::Hash> Numbered<K> {
    fn of(&mut self, key: K) -> u32 {
        let next = self.0.len() as u32;
        *self.0.entry(key).or_insert(next)
    }
}

impl Light {
    pub fn read(path: &Path, answers: &Answers, emit: &dyn Emit) -> Result<Light, Error> {
        let slices = Slices::open(path, None)?;
        let total = slices.rows();
        if u32::try_from(total).is_err() {
            return Err(Error::Plan(format!("{total} rows are more than a dataset can be made of at once (2³²)")));
        }
        let mut light = Light { known: answers.labels().to_vec(), classes: answers.labels().len(), ..Light::default() };
        let (mut known, mut patterns) = (Numbered::default(), Numbered::default());
        let mut customers: HashMap<u128, u32> = HashMap::new();
        let mut threads = threads::Threads::default();
        for slice in slices {
            let rows = table::rows(&slice?).map_err(|e| Error::table("curate", path, e))?;
            let ones: Vec<One> = rows.into_par_iter().map(|row| One::of(row, answers)).collect();
            for one in ones {
                let row = light.len() as u32;
                let next = customers.len() as u32;
                light.ids.push(&one.id);
                light.customer.push(one.customer.map_or(NONE, |c| *customers.entry(c).or_insert(next)));
                threads.add(one.thread);
                light.at.push(one.at);
                light.chars.push(one.chars);
                light.normal.push(&one.normal);
                let (mut label, mut class) = (one.label, one.label);
                if let (Some(said), Answers::Fields(fields)) = (one.said, answers) {
                    class = patterns.of(fields.pattern(&said));
                    label = known.of(said.clone());
                    if label as usize == light.known.len() {
                        light.known.push(said);
                    }
                }
                light.classes = light.classes.max(patterns.0.len());
                light.label.push(label);
                light.class.push(class);
                one.odd.map(|odd| light.odd.insert(row, odd));
                light.signs.push(one.signs);
            }
            emit.emit(EventKind::Progress {
                done: light.len() as u64,
                total: total as u64,
                unit: "traces".to_string(),
            });
        }
        light.thread = threads.finish();
        Ok(light)
    }

    pub fn len(&self) -> usize {
        self.label.len()
    }

    /// The label that the answer is or its canonical form; the answer itself where it is neither.
    pub fn answer(&self, row: usize) -> &str {
        self.known.get(self.label[row] as usize).or_else(|| self.odd.get(&(row as u32))).map_or("", String::as_str)
    }
}

impl One {
    fn of(row: Row, answers: &Answers) -> One {
        let message = visible_message(&row.trace.messages);
        let (labels, read) = (answers.labels(), row.trace.read(answers).ok());
        let label = read.as_deref().and_then(|l| labels.iter().position(|x| x == l)).map(|i| i as u32);
        let said = read.filter(|_| answers.fields().is_some()).map(Cow::into_owned);
        let counts = label.is_some() || said.is_some();
        // Cut off by the token limit, a label is no answer; it still is in the taxonomy.
        let in_taxonomy = counts || answers.read(&row.trace.answer).is_ok();
        let signs = Quality::of(&row, &message, in_taxonomy);
        let at = row.trace.at.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        One {
            customer: row.trace.customer.as_deref().map(text::key),
            thread: threads::Seen::of(&row.trace),
            at: at.and_then(|at| i64::try_from(at.unix_timestamp_nanos()).ok()),
            chars: message.chars().count() as u32,
            normal: match answers {
                Answers::Labels(_) => normal_form(&message),
                Answers::Fields(_) => of_last_turn(&row.trace.messages, &message),
            },
            said,
            odd: (!counts).then_some(row.trace.answer),
            label: label.unwrap_or(NONE),
            signs,
            id: row.trace.id,
        }
    }
}

/// The normal form of the last turn behind a digest of what came before it. Fields are mostly in what was said last: after
/// the same question "13" and "14" are no copies of each other, and "13" after two questions are two messages.
fn of_last_turn(messages: &[Message], message: &str) -> String {
    let turns: Vec<&Message> = messages.iter().filter(|m| m.role != "system" && m.role != "developer").collect();
    match turns.split_last() {
        Some((last, before)) if !before.is_empty() => {
            let before: Vec<String> = before.iter().map(|m| normal_form(&m.content)).collect();
            format!("{:08x} {}", hash(before.join("\n").as_bytes()) as u32, normal_form(&last.content))
        }
        _ => normal_form(message),
    }
}

/// Calls `with` with the id and the message of every accepted trace, in order.
pub fn each_message(imported: &Path, mut with: impl FnMut(&str, &str) -> std::io::Result<()>) -> Result<(), Error> {
    let path = imported.join("accepted.parquet");
    for slice in Slices::open(&path, None)? {
        for row in table::rows(&slice?).map_err(|e| Error::table("read", &path, e))? {
            let message = visible_message(&row.trace.messages);
            with(&row.trace.id, &message).map_err(|e| Error::io("write the messages of", &path, e))?;
        }
    }
    Ok(())
}
