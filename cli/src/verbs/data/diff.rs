//! `limbeck data diff`: rows are the same where they come from the same trace; what else of them differs is told.

use super::Place;
use crate::exit::{Exit, Result};
use crate::output::{self, short};
use crate::settings::Settings;
use limbeck_artifact::dataset::{DatasetCard, Split, each_row};
use limbeck_artifact::untrusted::visible_line;
use limbeck_tui::progress::count;
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;

/// What is compared of a row.
#[derive(Clone, Serialize)]
struct Light {
    id: String,
    split: Split,
    target: String,
    weight: f32,
    reviewed: bool,
}

/// One way in which rows differ: how many, and some of them.
#[derive(Default, Serialize)]
struct Change {
    rows: u64,
    samples: Vec<String>,
}

pub fn diff(settings: &Settings, a: &Place, b: &Place, samples: usize) -> Result<Exit> {
    let (a_card, b_card) = (a.checked()?, b.checked()?);
    let changes = compare(&light(a)?, &light(b)?, samples);
    if settings.json {
        output::json(&json!({
            "a": {"digest": a_card.digest, "dir": a.dir}, "b": {"digest": b_card.digest, "dir": b.dir},
            "rows": changes, "classes": classes(&a_card, &b_card), "left_out": left_out(&a_card, &b_card),
        }))?;
        return Ok(Exit::Ok);
    }
    let mut text =
        format!("A {} {}\nB {} {}\n", short(&a_card.digest), a.dir.display(), short(&b_card.digest), b.dir.display());
    if a_card.digest == b_card.digest {
        output::stdout(&(text + "the same dataset\n"))?;
        return Ok(Exit::Ok);
    }
    text.push_str("\nRows, by their trace\n");
    for (what, change) in &changes {
        text.push_str(&format!("  {:>9} {what}\n", count(change.rows)));
        change.samples.iter().for_each(|line| text.push_str(&format!("            {}\n", visible_line(line))));
    }
    for (title, numbers) in [("Rows a class", classes(&a_card, &b_card)), ("Left out", left_out(&a_card, &b_card))] {
        let changed: Vec<String> = numbers
            .iter()
            .filter(|(_, (a, b))| a != b)
            .map(|(name, (a, b))| format!("  {:>9} -> {:<9} {}\n", count(*a), count(*b), visible_line(name)))
            .collect();
        if !changed.is_empty() {
            text.push_str(&format!("\n{title}\n{}", changed.concat()));
        }
    }
    if changes[TEST_TO_TRAIN].rows > 0 {
        text.push_str("\nRows of A's test train B: a figure of A's model on its test and one of B's do not compare.\n");
    }
    output::stdout(&text)?;
    Ok(Exit::Ok)
}

fn light(place: &Place) -> Result<BTreeMap<String, Light>> {
    let mut out = BTreeMap::new();
    for split in Split::ALL {
        for row in each_row(&place.dir, split)? {
            let row = row?;
            let reviewed = row.decision.is_some();
            let light = Light { id: row.id, split, target: row.target, weight: row.weight, reviewed };
            out.insert(format!("{}:{}", row.trace.file, row.trace.id), light);
        }
    }
    Ok(out)
}

const TEST_TO_TRAIN: &str = "moved from test to another split";

fn compare(a: &BTreeMap<String, Light>, b: &BTreeMap<String, Light>, samples: usize) -> BTreeMap<&'static str, Change> {
    let kinds = [
        "only in A",
        "only in B",
        "relabelled",
        "moved to another split",
        TEST_TO_TRAIN,
        "other text",
        "other weight",
        "reviewed since",
        "the same",
    ];
    let mut changes: BTreeMap<&'static str, Change> = kinds.into_iter().map(|k| (k, Change::default())).collect();
    let mut note = |kind: &'static str, line: String| {
        let change = changes.entry(kind).or_default();
        change.rows += 1;
        if kind != "the same" && change.samples.len() < samples {
            change.samples.push(line);
        }
    };
    for (key, old) in a {
        let Some(new) = b.get(key) else {
            note("only in A", format!("{key} {}", old.target));
            continue;
        };
        let mut same = true;
        let mut differs = |is: bool, kind: &'static str, line: String| {
            if is {
                same = false;
                note(kind, line);
            }
        };
        let relabelled = old.target != new.target;
        differs(relabelled, "relabelled", format!("{key} {} -> {}", old.target, new.target));
        let moved = old.split != new.split;
        let way = format!("{key} {} -> {}", old.split.name(), new.split.name());
        differs(moved && old.split != Split::Test, "moved to another split", way.clone());
        differs(moved && old.split == Split::Test, TEST_TO_TRAIN, way);
        differs(!relabelled && old.id != new.id, "other text", key.clone());
        differs(old.weight != new.weight, "other weight", format!("{key} {} -> {}", old.weight, new.weight));
        differs(!old.reviewed && new.reviewed, "reviewed since", key.clone());
        if same {
            note("the same", String::new());
        }
    }
    for (key, new) in b.iter().filter(|(key, _)| !a.contains_key(*key)) {
        note("only in B", format!("{key} {}", new.target));
    }
    changes
}

type Numbers = BTreeMap<String, (u64, u64)>;

fn classes(a: &DatasetCard, b: &DatasetCard) -> Numbers {
    let mut out = Numbers::new();
    for (card, of) in [(a, 0), (b, 1)] {
        for (label, n) in card.splits.values().flat_map(|s| &s.labels) {
            let both = out.entry(label.clone()).or_default();
            *(if of == 0 { &mut both.0 } else { &mut both.1 }) += n;
        }
    }
    out
}

fn left_out(a: &DatasetCard, b: &DatasetCard) -> Numbers {
    let reasons = a.left_out.keys().chain(b.left_out.keys());
    let of = |card: &DatasetCard, reason: &str| card.left_out.get(reason).copied().unwrap_or(0);
    reasons.map(|r| (r.replace('_', " "), (of(a, r), of(b, r)))).collect()
}
