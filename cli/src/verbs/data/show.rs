//! `limbeck data show`: the card of a frozen dataset, after its files were checked.

use super::Place;
use crate::exit::{Exit, Result};
use crate::output::{self, Terminal, bold, short};
use crate::settings::Settings;
use limbeck_artifact::dataset::{DatasetCard, LabelSource, Split};
use limbeck_artifact::untrusted::visible_line;
use limbeck_tui::progress::count;
use std::collections::BTreeMap;

pub fn show(settings: &Settings, place: &Place) -> Result<Exit> {
    let card = place.checked()?;
    if settings.json {
        output::json(&serde_json::to_value(&card)?)?;
    } else {
        let head = format!("dataset {} in {}, files checked\n", short(&card.digest), place.dir.display());
        output::stdout(&(head + &text(&card, &Terminal::of_stdout())))?;
    }
    Ok(Exit::Ok)
}

/// Slices and classes of which so many are shown; `--json` has them all.
const SHOWN: usize = 30;

fn text(card: &DatasetCard, terminal: &Terminal) -> String {
    let mut text = String::new();
    let mut section = |title: &str, lines: Vec<String>| {
        if !lines.is_empty() {
            text.push_str(&format!("\n{}\n", bold(terminal, title)));
            lines.iter().for_each(|line| text.push_str(&format!("  {line}\n")));
        }
    };
    section("Rows", rows(card));
    section("Classes", classes(card));
    section("Slices", slices(card));
    section("Labels", labels(card));
    section("Redaction", redaction(card));
    let signs = &card.curation.signs;
    section("Quality", if signs.is_empty() { Vec::new() } else { vec![counted(signs)] });
    section(
        "Sources",
        card.sources.iter().map(|(name, sha256)| format!("{} {}", short(sha256), visible_line(name))).collect(),
    );
    text
}

fn rows(card: &DatasetCard) -> Vec<String> {
    let mut lines: Vec<String> = card
        .splits
        .iter()
        .map(|(split, s)| format!("{:<12} {:>9}, {} reviewed", split.name(), count(s.rows), count(s.reviewed)))
        .collect();
    let kept: u64 = card.splits.values().map(|s| s.rows).sum();
    let left_out: Vec<String> =
        card.left_out.iter().map(|(reason, n)| format!(" + {} {}", count(*n), reason.replace('_', " "))).collect();
    lines.push(format!("{} in = {} rows{}", count(card.traces_in), count(kept), left_out.concat()));
    lines
}

fn classes(card: &DatasetCard) -> Vec<String> {
    let of = |split: Split, label: &String| {
        let n = card.splits.get(&split).and_then(|s| s.labels.get(label)).copied().unwrap_or(0);
        format!("{:>12}", count(n))
    };
    // Fields have no taxonomy: the card counts which of them a row has.
    let mut combined: BTreeMap<&String, u64> = BTreeMap::new();
    if card.labels.is_empty() {
        card.splits.values().flat_map(|s| &s.labels).for_each(|(label, n)| *combined.entry(label).or_default() += n);
    }
    let mut combined: Vec<(&String, u64)> = combined.into_iter().collect();
    combined.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    let names: Vec<&String> = card.labels.iter().chain(combined.into_iter().map(|(label, _)| label)).collect();
    let width = names.iter().map(|l| l.chars().count()).max().unwrap_or(0).min(50);
    let header = Split::ALL.map(|s| format!("{:>12}", s.name())).concat();
    let mut lines = vec![format!("{:width$}{header}", "")];
    for label in names.iter().take(SHOWN) {
        let cells = Split::ALL.map(|split| of(split, label)).concat();
        lines.push(format!("{:width$}{cells}", limbeck_tui::text::fit(&visible_line(label), width)));
    }
    if names.len() > SHOWN {
        lines.push(format!("and {} more (--json has all)", names.len() - SHOWN));
    }
    lines
}

fn slices(card: &DatasetCard) -> Vec<String> {
    let line = |(name, values): (&String, &BTreeMap<String, u64>)| format!("{name:<12} {}", counted(values));
    card.curation.slices.iter().map(line).collect()
}

fn labels(card: &DatasetCard) -> Vec<String> {
    let curation = &card.curation;
    let mut lines: Vec<String> = curation
        .labels_by
        .iter()
        .map(|(source, p)| {
            let who = match source {
                LabelSource::Human => "a person's decision",
                LabelSource::Teacher => "the recorded model's answer, unreviewed",
            };
            let mean = p.weight / p.rows.max(1) as f64;
            format!("{:>9} rows: {who}, weight {mean:.2} each", count(p.rows))
        })
        .collect();
    if curation.is_empty() {
        return lines;
    }
    lines.push(format!("{:>9} recorded answers replaced by a person", count(curation.corrected)));
    lines.push(format!("{:>9} rows with copies that were answered otherwise", count(curation.disagreements)));
    lines.extend(curation.review_lines());
    lines
}

fn redaction(card: &DatasetCard) -> Vec<String> {
    let mut lines = Vec::new();
    if !card.redactions.is_empty() {
        lines.push(format!("taken out: {}", counted(&card.redactions)));
    }
    let curation = &card.curation;
    if !curation.redaction_recall.is_empty() {
        let recall = curation.redaction_recall.iter().map(|(kind, r)| format!("{kind} {:.1} %", r * 100.0));
        lines.push(format!("of made-up values it finds: {}", recall.collect::<Vec<_>>().join(", ")));
    }
    if let Some(precision) = curation.redaction_precision {
        lines.push(format!("precision among look-alikes: {:.1} %", precision * 100.0));
    }
    if !curation.redaction_note.is_empty() {
        lines.push(curation.redaction_note.clone());
    }
    lines
}

/// "a 3, b 1", the most first.
fn counted(values: &BTreeMap<String, u64>) -> String {
    let mut all: Vec<(&String, &u64)> = values.iter().collect();
    all.sort_by(|a, b| b.1.cmp(a.1).then(a.0.cmp(b.0)));
    let more = all.len().saturating_sub(SHOWN);
    let mut text: Vec<String> =
        all.into_iter().take(SHOWN).map(|(value, n)| format!("{} {}", visible_line(value), count(*n))).collect();
    if more > 0 {
        text.push(format!("and {more} more"));
    }
    text.join(", ")
}
