//! The one reading of all accepted traces that decisions are made from: what every row needs in memory, a few hundred
//! bytes each, while prompts and answers stay on disk.

use super::quality::Quality;
use super::threads;
use crate::table::{self, Row, Slices};
use crate::taxonomy::label_of;
use crate::text::{Texts, normal_form};
use crate::trace::visible_message;
use crate::{Error, text};
use limbeck_artifact::event::{Emit, EventKind};
use rayon::prelude::*;
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
    /// Index among the labels.
    pub label: Vec<u32>,
    /// Answers that are no label.
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
    odd: Option<String>,
    signs: u8,
}

impl Light {
    pub fn read(path: &Path, labels: &[String], emit: &dyn Emit) -> Result<Light, Error> {
        let slices = Slices::open(path, None)?;
        let total = slices.rows();
        if u32::try_from(total).is_err() {
            return Err(Error::Plan(format!("{total} rows are more than a dataset can be made of at once (2³²)")));
        }
        let mut light = Light::default();
        let mut customers: HashMap<u128, u32> = HashMap::new();
        let mut threads = threads::Threads::default();
        for slice in slices {
            let rows = table::rows(&slice?).map_err(|e| Error::table("curate", path, e))?;
            let ones: Vec<One> = rows.into_par_iter().map(|row| One::of(row, labels)).collect();
            for one in ones {
                let row = light.len() as u32;
                let next = customers.len() as u32;
                light.ids.push(&one.id);
                light.customer.push(one.customer.map_or(NONE, |c| *customers.entry(c).or_insert(next)));
                threads.add(one.thread);
                light.at.push(one.at);
                light.chars.push(one.chars);
                light.normal.push(&one.normal);
                light.label.push(one.label);
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

    /// The label that the answer is, or the answer.
    pub fn answer<'l>(&'l self, row: usize, labels: &'l [String]) -> &'l str {
        labels.get(self.label[row] as usize).or_else(|| self.odd.get(&(row as u32))).map_or("", String::as_str)
    }
}

impl One {
    fn of(row: Row, labels: &[String]) -> One {
        let message = visible_message(&row.trace.messages);
        let label = row.trace.label(labels).and_then(|l| labels.iter().position(|x| x == l)).map(|i| i as u32);
        // Cut off by the token limit, a label is no answer; it still is in the taxonomy.
        let in_taxonomy = label.is_some() || label_of(labels, &row.trace.answer).is_some();
        let signs = Quality::of(&row, &message, in_taxonomy);
        let at = row.trace.at.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
        One {
            customer: row.trace.customer.as_deref().map(text::key),
            thread: threads::Seen::of(&row.trace),
            at: at.and_then(|at| i64::try_from(at.unix_timestamp_nanos()).ok()),
            chars: message.chars().count() as u32,
            normal: normal_form(&message),
            odd: label.is_none().then_some(row.trace.answer),
            label: label.unwrap_or(NONE),
            signs,
            id: row.trace.id,
        }
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
